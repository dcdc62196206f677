"""`forge_sweep.Sweep`: what the command line does, from Python and in notebooks."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import forge_sweep
from forge_sweep import Sweep, sweep
from forge_sweep.checks.findings import Finding, Findings
from forge_sweep.cli import app
from forge_sweep.errors import BundleError, ExperimentError, GateRefused, InputError
from forge_sweep.experiment import Experiment
from forge_sweep.experiment.importing import PREFIX
from forge_sweep.sweep import Event, Interrupted, SweepResult
from tests.surface import EPOCHS, experiment, fake_run, no_network

TABLES: dict[str, Any] = {
    "name": "tumours",
    "seed": 3,
    "data": {"source": "sample", "name": "breast_cancer", "target": "target", "task": "binary"},
    "model": {"search": {"width": {"type": "int", "low": 4, "high": 8}, "learning_rate": 1e-2}},
    "objective": {"metric": "val_auc"},
    "study": {"n_trials": 2, "epochs": 2},
    "baselines": {"kinds": ["constant"]},
    "confirm": {"top": 1, "seeds": 2},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of all sweeps here, each under a name of its own: making one takes seconds."""
    return tmp_path_factory.mktemp("store")


def small(name: str, n_trials: int) -> Experiment:
    """A sweep on the surface that ends soon."""
    return experiment(name=name, study__n_trials=n_trials, confirm__top=1, confirm__seeds=1)


@pytest.fixture(scope="module")
def ended(store: Path) -> tuple[Sweep, SweepResult, list[Event]]:
    """A complete sweep on the surface, with its result and all that was told."""
    events: list[Event] = []
    made = Sweep(experiment(description="<b>wine</b> & more"), store=store)
    with no_network(fake_run()):
        return made, made.run(watch=events.append), events


def printed(*words: str) -> Any:
    """What a command prints as JSON."""
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_importing_the_package_is_cheap_and_naming_a_sweep_imports_no_engine() -> None:
    """Neither NumPy nor pandas before `Sweep` is asked for, and neither Keras nor MLflow nor Optuna then."""
    code = (
        "import sys, forge_sweep\n"
        "assert 'Sweep' in dir(forge_sweep)\n"
        "heavy = {'numpy', 'pandas', 'pydantic', 'rich', 'typer'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "forge_sweep.Sweep, forge_sweep.load_model, forge_sweep.export_model\n"
        "engines = {'tensorflow', 'keras', 'jax', 'torch', 'mlflow', 'optuna', 'pandas', 'IPython'}\n"
        "assert not engines & set(sys.modules), engines & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="'sweeep'"):
        forge_sweep.sweeep  # noqa: B018


def test_tables_in_python_are_the_experiment_of_the_file(tmp_path: Path) -> None:
    """Also where they hold a path, a tuple or NumPy's numbers; overrides are those of the command line."""
    pd.DataFrame({"a": range(40), "y": [0, 1] * 20}).to_csv(tmp_path / "rows.csv", index=False)
    (tmp_path / "own.toml").write_text(
        'name = "own"\n[data]\npath = "rows.csv"\ntarget = ["y"]\ntask = "binary"\n[objective]\nmetric = "val_auc"\n'
        '[model.search]\nwidth = { type = "int", low = 4, high = 64 }\n[study]\nn_trials = 3\n'
    )
    tables = {
        "name": "own",
        "data": {"path": Path("rows.csv"), "target": ("y",), "task": "binary"},
        "objective": {"metric": "val_auc"},
        "model": {
            "search": {"width": {"type": "int", "low": np.int64(4), "high": np.geomspace(1, 64, 2, dtype=int)[1]}}
        },
        "study": {"n_trials": np.int32(3)},
    }
    from_file, from_tables = Sweep.from_toml(str(tmp_path / "own.toml")), Sweep(tables, root=tmp_path)
    assert from_tables.experiment.resolved() == from_file.experiment.resolved()
    assert from_tables.experiment.root.resolve() == from_file.experiment.root
    assert Sweep(from_file.experiment, root=Path("elsewhere")).experiment.root == Path("elsewhere")
    longer = Sweep.from_toml(tmp_path / "own.toml", "study.n_trials=4", "model.search.depth=3")
    assert (longer.experiment.study.n_trials, longer.experiment.model.search["depth"]) == (4, 3)
    assert repr(longer) == "Sweep('own', store='mlruns')"


def test_mistakes_are_exceptions_that_list_all_of_them() -> None:
    """Nothing exits; what is no experiment at all is told from one with mistakes."""
    wrong = {**TABLES, "study": {"n_trails": 4}, "objective": {"metric": "auc"}, "data": pd.DataFrame()}
    with pytest.raises(ExperimentError) as raised:
        Sweep(wrong)
    assert {each.path for each in raised.value.mistakes} >= {"study.n_trails", "data"}
    with pytest.raises(InputError, match=r"given as str; expected its tables as a dictionary\n  fix: Sweep.from_toml"):
        Sweep("experiments/quickstart.toml")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="does not exist"):
        Sweep.from_toml("nowhere.toml")


def test_what_a_sweep_tells_and_returns_is_what_the_commands_show(
    ended: tuple[Sweep, SweepResult, list[Event]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Events, trials, best, winner, status: the same values, one way or the other."""
    made, result, events = ended
    assert [event.data["name"] for event in events if event.kind == "phase"] == [
        *("audit", "baselines", "trials", "confirm", "publish")
    ]
    assert sum(event.kind == "epoch" for event in events) >= EPOCHS
    where = ("--store", str(made.store))
    shown = printed("best", "surface", *where)
    assert made.best is not None and made.best.to_dict() == shown["best"]
    assert made.winner == shown["winner"] == result.winner
    assert made.status() == printed("status", "surface", *where)
    frame, rows = made.trials, printed("trials", "surface", *where)
    assert [*frame.index] == [row["number"] for row in rows]
    for name in ("state", "value", "epochs", "seconds", "failure", "cause", "imported"):
        assert [*frame[name]] == [row[name] for row in rows]
    assert [*frame["params_width"]] == [row["params"]["width"] for row in rows]
    assert frame["value"].idxmax() == made.best.number
    capsys.readouterr()


def test_a_sweep_that_ended_is_read_from_its_store(
    ended: tuple[Sweep, SweepResult, list[Event]], tmp_path: Path
) -> None:
    """By another object, made of its name alone: the result, the model, the link, the report."""
    made, result, _ = ended
    found = Sweep.open("surface", store=made.store)
    assert found.experiment.resolved() == made.experiment.resolved()
    assert found.result == result
    assert (found.link, found.run_id) == (result.link, result.run_id) and found.run_id
    page = found.report(tmp_path / "page.html")
    assert "surface" in page.read_text(encoding="utf-8")
    with pytest.raises(InputError, match="is a directory"):
        found.report(tmp_path)
    assert not found.reconcile(dry_run=True).differences
    with pytest.raises(InputError, match=r"experiment 'surfaces' has no study in .*; there is surface"):
        Sweep.open("surfaces", store=made.store)


def test_a_running_sweep_is_read_while_it_runs(store: Path) -> None:
    """What is not known yet is None or empty; a model that is not there is an error that says so."""
    spec = small("running", 1)
    seen: list[Any] = []

    def look(event: Event) -> None:
        other = Sweep(spec, store=store)
        if event.kind == "epoch" and not seen:
            seen.extend((other.trials["state"].tolist(), other.best, other.winner, other.result, other.run_id))
            seen.append(other.status()["carried"])
            with pytest.raises(InputError, match="running has no model yet: the sweep has not ended"):
                _ = other.model

    new = Sweep(spec, store=store)
    assert "not begun; 1 to run" in new._repr_html_()
    with pytest.raises(InputError, match="has no study"):
        _ = new.trials
    with no_network(fake_run()):
        new.run(watch=look)
    assert seen == [["running"], None, None, None, None, True]


def test_ctrl_c_stops_after_the_epoch_and_run_goes_on(store: Path) -> None:
    """As on the command line; the handlers of the notebook are back afterwards."""
    made = Sweep(small("interrupted", 3), store=store)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def interrupt(event: Event) -> None:
        if event.kind == "epoch" and event.data["number"] == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with no_network(fake_run()):
        with pytest.raises(Interrupted, match=r"finished trials are kept; run\(\) again resumes"):
            made.run(watch=interrupt)
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
        assert made.status()["done"] == 1 and made.result is None
        assert "no process is running this sweep" in made._repr_html_()
        assert sum(made.run(watch=sweep.ignore).trials.values()) == 3


def test_in_another_thread_a_function_says_when_to_stop(store: Path) -> None:
    """Signals do not arrive there."""
    made, asked, raised = Sweep(small("threaded", 3), store=store), threading.Event(), list[BaseException]()

    def work() -> None:
        try:
            made.run(watch=lambda event: asked.set() if event.kind == "trial_done" else None, stopping=asked.is_set)
        except BaseException as error:
            raised.append(error)

    with no_network(fake_run()):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert [type(error) for error in raised] == [Interrupted]
    assert made.status()["done"] == 1


def test_without_a_watcher_it_prints_the_lines_of_the_command(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says what MLflow lacks at the end, which the command ends with as well."""
    made = Sweep(small("printed", 1), store=store)
    original = sweep.run
    lacking = lambda *words, **options: dataclasses.replace(original(*words, **options), missing="2 writes wait")  # noqa: E731
    monkeypatch.setattr(sweep, "run", lacking)
    with no_network(fake_run()):
        assert made.run().missing == "2 writes wait"
    lines = capsys.readouterr().out.splitlines()
    assert "trials: 0 of 1 done" in lines and "test evaluation and registration" in lines
    assert lines[-1] == "warning: the sweep is complete, but 2 writes wait"


def test_a_check_gives_its_findings_and_errors_are_raised(tmp_path: Path) -> None:
    """With the findings on the exception; nothing is left in the store."""
    leaky = pd.DataFrame({"a": np.arange(200.0), "copy": [0, 1] * 100, "y": [0, 1] * 100})
    leaky.to_csv(tmp_path / "rows.csv", index=False)
    data = {"path": "rows.csv", "target": "y", "task": "binary"}
    made = Sweep({**TABLES, "data": data}, root=tmp_path, store=tmp_path / "store")
    with pytest.raises(GateRefused) as raised, no_network(fake_run()):
        made.check(watch=sweep.ignore)
    assert "target-leak-copy" in {found.code for found in raised.value.findings}
    assert not (tmp_path / "store").exists()
    with no_network(fake_run()):
        found = Sweep(experiment(), store=tmp_path / "store").check(watch=sweep.ignore)
    assert isinstance(found, Findings) and all(each.severity != "error" for each in found)


def test_what_a_notebook_shows_is_escaped(ended: tuple[Sweep, SweepResult, list[Event]]) -> None:
    """Names, descriptions, values of cells and causes come from users and their data."""
    made, result, _ = ended
    page = made._repr_html_()
    assert "&lt;b&gt;wine&lt;/b&gt; &amp; more" in page and "<b>" not in page
    assert "6 of 6 done" in page and result.model in page and f'href="{result.link[:20]}' in page
    evil = "<img src=x onerror=alert(1)>"
    table = Findings([Finding("warning", "rule", evil, f"line\n{evil}", '"', "'")])._repr_html_()
    assert "<img" not in table and "&lt;img" in table and "&quot;" in table and "&#x27;" in table
    changed = dataclasses.replace(result, verdict=evil, link=f"javascript:{evil}", missing=evil)
    shown = changed._repr_html_()
    assert "<img" not in shown and "href" not in shown and shown.count("&lt;img") == 3
    assert set(re.findall(r"<(\w+)", shown)) == {"table", "caption", "thead", "tbody", "tr", "th", "td", "p"}
    assert Findings()._repr_html_() == "<p>no findings</p>"


def test_a_store_that_cannot_be_read_is_said_in_place_of_the_trials(tmp_path: Path) -> None:
    """A notebook that shows a sweep shows no traceback."""
    (tmp_path / "optuna.db").write_bytes(b"SQLite format 3\0" + b"\0" * 500)
    assert "optuna.db" in Sweep(TABLES, store=tmp_path)._repr_html_()


def test_a_script_without_a_guard_does_not_run_in_its_workers(tmp_path: Path) -> None:
    """A worker process imports the script under this name."""
    script = tmp_path / "script.py"
    script.write_text(f"from forge_sweep import Sweep\nSweep({TABLES!r}).run()\n")
    own = tmp_path / "own.py"
    own.write_text(f"from forge_sweep import Sweep\ndef build(inputs, heads): ...\nSweep({TABLES!r}, builder=build)\n")
    with pytest.raises(InputError, match=r"the trials of own\.py import it"):
        runpy.run_path(str(own), run_name=f"{PREFIX}0123.own")
    with pytest.raises(InputError, match=r"the trials of script\.py import it, and would each run its sweep") as raised:
        runpy.run_path(str(script), run_name="__mp_main__")
    assert 'if __name__ == "__main__":' in raised.value.hint


BUILDER = """
import keras


@keras.saving.register_keras_serializable("own")
class Doubled(keras.layers.Layer):
    def call(self, x):
        return 2 * x


def build(inputs, heads, *, width: int = 8):
    hidden = keras.layers.Dense(width, activation="relu")(inputs["features"])
    return keras.Model(inputs["features"], heads.only.output(Doubled()(hidden)))


def outer():
    def build(inputs, heads): ...

    return build
"""


def function_of(path: Path, name: str, module: str = "") -> Any:
    """A function of a file, as an import gives it."""
    space: dict[str, Any] = {"__name__": module or path.stem}
    exec(compile(path.read_text(), path, "exec"), space)
    return space[name]


def test_a_real_sweep_from_tables_gives_a_model_that_takes_raw_rows(store: Path, tmp_path: Path) -> None:
    """Checked, run, loaded and exported without a command; its code is trusted where it is the user's own file."""
    import sklearn.datasets

    (tmp_path / "net.py").write_text(BUILDER)
    made = Sweep(TABLES, root=tmp_path, store=store, builder=function_of(tmp_path / "net.py", "build"))
    made.check(watch=sweep.ignore)
    result = made.run(watch=sweep.ignore)
    rows = sklearn.datasets.load_breast_cancer(as_frame=True).data.sample(frac=1, axis=1, random_state=0).head(5)
    predicted = made.model.predict(rows)
    assert repr(made.model) == "Bundle(network: binary of target from 30 columns)"
    assert result.winner["baseline"] == "" and [*predicted.columns] == ["probability", "label"]
    name = "models:/tumours@challenger"
    with pytest.raises(BundleError, match="trust=True"):
        forge_sweep.load_model(name, store=store)
    pd.testing.assert_frame_equal(forge_sweep.load_model(name, store=store, trust=True).predict(rows), predicted)
    done = forge_sweep.export_model(result.model, "saved_model", tmp_path / "network", store=store, trust=True)
    assert done.path.exists() and done.difference <= done.allowed
    with pytest.raises(InputError, match="no alias @champion"):
        forge_sweep.load_model("models:/tumours@champion", store=store)


def test_a_builder_is_given_as_a_function_of_a_file(tmp_path: Path) -> None:
    """Of a module or of the script itself; the experiment is that of a file that names it."""
    (tmp_path / "net.py").write_text(BUILDER)
    tables = {**TABLES, "model": {"search": {"width": {"type": "int", "low": 4, "high": 8}}}}
    named = Sweep({**tables, "model": {**tables["model"], "builder": "net:build"}}, root=tmp_path)
    for module in ("net", "__main__"):
        made = Sweep(tables, root=tmp_path, builder=function_of(tmp_path / "net.py", "build", module))
        assert made.experiment.contract() == named.experiment.contract()
        assert made.experiment.model.builder == "net:build"
    assert "builder" not in tables["model"], "the caller's tables stay as they are"


def test_a_builder_that_no_other_process_could_read_is_refused(tmp_path: Path) -> None:
    """With the way out: a cell of a notebook, a function within another, a file that is not found or is another one."""
    (tmp_path / "net.py").write_text(BUILDER)
    build = function_of(tmp_path / "net.py", "build")
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(BUILDER, "/nowhere/ipykernel_7/123.py", "exec"), space)
    with pytest.raises(InputError, match=r"typed into a notebook or a shell.*\n  fix: begin its cell with %%writefile"):
        Sweep(TABLES, builder=space["build"])
    for function in (function_of(tmp_path / "net.py", "outer")(), lambda inputs, heads: None, len):
        with pytest.raises(InputError, match="is no function of a module"):
            Sweep(TABLES, root=tmp_path, builder=function)
    with pytest.raises(
        InputError, match=rf"net:build is not found from .*\n  fix: give root='{re.escape(str(tmp_path))}'"
    ):
        Sweep(TABLES, root=tmp_path.parent, builder=build)
    other = tmp_path / "other"
    other.mkdir()
    (other / "net.py").write_text(BUILDER)
    with pytest.raises(InputError, match="but net:build leads to"):
        Sweep(TABLES, root=other, builder=build)
    with pytest.raises(InputError, match=r"given as net:build, and model\.builder = 'mlp'"):
        Sweep({**TABLES, "model": {"builder": "mlp"}}, root=tmp_path, builder=build)
    with pytest.raises(InputError, match="given with an Experiment"):
        Sweep(experiment(), builder=build)
