"""The command line as a user meets it."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.text import Text
from typer.testing import CliRunner

from forge_sweep import __version__, jsons, sweep, training
from forge_sweep.cli import app
from forge_sweep.cli.printing import REPLACED, print_table, wrapped
from forge_sweep.cli.watchers import LiveView, Pace, PlainLines
from forge_sweep.errors import InputError
from forge_sweep.study import find_study
from forge_sweep.sweep import Event
from tests.forked import Forked
from tests.servers import ui
from tests.surface import experiment, fake_run, no_network

FORGE_SWEEP = str(Path(sys.executable).with_name("forge-sweep"))

BROKEN = """
name = "broken"
seed = "seven"
[data]
source = "sample"
name = "diabetes"
taget = "target"
target = "target"
task = "regression"
[model.search]
widht = 3
[objective]
metric = "val_auc"
[study]
pruner = "hyperbnd"
"""


def forge_sweep(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    return subprocess.run([FORGE_SWEEP, *words], cwd=cwd, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one complete sweep on the surface."""
    folder = tmp_path_factory.mktemp("cli") / "mlruns"
    with no_network(fake_run()):
        sweep.run(experiment(), store=folder)
    return folder


def invoke(*words: str) -> str:
    """Standard output of a command that ends well."""
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_five_mistakes_give_five_messages_and_exit_code_2(tmp_path: Path) -> None:
    """All at once, with the nearest spelling, on standard error."""
    (tmp_path / "broken.toml").write_text(BROKEN)
    done = forge_sweep("run", "broken.toml", cwd=tmp_path)
    assert done.returncode == 2
    assert "5 mistakes" in done.stderr
    for word in ("seed", "data.taget", "model.search.widht", "objective.metric", "study.pruner"):
        assert f"  {word}" in done.stderr
    assert not (tmp_path / "mlruns").exists()


def test_unscaled_data_exits_3_and_names_the_range(tmp_path: Path) -> None:
    """The scaler is off and the values are large."""
    (tmp_path / "raw.toml").write_text(
        'name = "raw"\n[data]\nsource = "sample"\nname = "breast_cancer"\ntarget = "target"\ntask = "binary"\n'
        '[preprocessing]\nscaler = "none"\n[model.search]\nwidth = { type = "int", low = 4, high = 8 }\n'
        '[objective]\nmetric = "val_auc"\n'
    )
    done = forge_sweep("run", "raw.toml", cwd=tmp_path)
    assert done.returncode == 3
    assert "worst area" in done.stderr and "4254" in done.stderr.replace(",", "")


@pytest.mark.parametrize("words", [["run", "none.toml"], ["status", "nothing"], ["frobnicate"]])
def test_usage_errors_exit_2(words: list[str], tmp_path: Path) -> None:
    """A missing file, an experiment that was never run, a command that does not exist."""
    done = forge_sweep(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_store_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """Before anything is read or written."""
    (tmp_path / "store").write_text("")
    path = str(Path(__file__).parents[1] / "experiments" / "quickstart.toml")
    done = forge_sweep("run", path, "--store", "store", cwd=tmp_path)
    assert done.returncode == 2 and "store is a file" in done.stderr


REFUSED_AT_THE_START: dict[str, tuple[dict[str, str], str]] = {
    "another backend": ({"KERAS_BACKEND": "jax"}, "KERAS_BACKEND=jax"),
    "a tag, not a digest": ({"FORGE_SWEEP_IMAGE_DIGEST": "latest"}, "FORGE_SWEEP_IMAGE_DIGEST"),
    "no tracking address": ({"MLFLOW_TRACKING_URI": "gopher://x"}, "MLFLOW_TRACKING_URI"),
    "no server in it": ({"MLFLOW_TRACKING_URI": "http://"}, "names no host"),
    "no host in it": ({"MLFLOW_TRACKING_URI": "http://[::1"}, "Invalid IPv6 URL"),
}


@pytest.mark.parametrize("case", REFUSED_AT_THE_START)
@pytest.mark.parametrize("start", [sweep.run, sweep.check])
def test_what_run_refuses_at_its_start_check_refuses_too(
    case: str, start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env, words = REFUSED_AT_THE_START[case]
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with no_network(fake_run()), pytest.raises(InputError, match=re.escape(words)):
        start(experiment(), store=tmp_path / "mlruns")
    assert not (tmp_path / "mlruns").exists()


@pytest.mark.parametrize("start", [sweep.run, sweep.check])
@pytest.mark.parametrize(("place", "words"), [("file", "is a file"), ("file/inner", "cannot be made"), ("n" * 300, "")])
def test_a_store_that_cannot_be_is_refused_by_both(start: Any, place: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with no_network(fake_run()), pytest.raises(InputError, match=f"the store .* {words}"):
        start(experiment(), store=tmp_path / place)


def test_an_empty_keras_backend_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "")
    training.select_backend("tensorflow")


def test_a_refusal_is_an_event_too_where_machines_read(tmp_path: Path) -> None:
    """The reason stands in the JSON, not only on standard error."""
    (tmp_path / "broken.toml").write_text(BROKEN)
    done = forge_sweep("run", "broken.toml", "--json", cwd=tmp_path)
    event = json.loads(done.stdout.splitlines()[-1])
    assert event["event"] == "error" and event["exit_code"] == 2 and "5 mistakes" in event["text"]


@pytest.mark.slow
def test_ctrl_c_exits_130_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """The first signal ends the epoch and keeps the books."""
    (tmp_path / "quick.toml").write_text(
        'name = "quick"\n[data]\nsource = "sample"\nname = "iris"\ntarget = "target"\ntask = "multiclass"\n'
        '[model.search]\nwidth = { type = "int", low = 4, high = 8 }\n[objective]\nmetric = "val_log_loss"\n'
        '[study]\npruner = "none"\nn_trials = 200\nepochs = 50\npatience = 50\n[baselines]\nkinds = ["constant"]\n'
    )
    words = [FORGE_SWEEP, "run", "quick.toml", "--json"]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if json.loads(line)["event"] == "epoch")
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command again" in stderr
    states = json.loads(forge_sweep("status", "quick", "--json", cwd=tmp_path).stdout)["trials"]
    assert states["waiting"] == 1 and "running" not in states
    done = sum(states.values()) - 1
    again = forge_sweep("run", "quick.toml", f"study.n_trials={done + 1}", "--json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["trials"] == {"finished": done + 1}


def test_help_and_version_import_no_engine(tmp_path: Path) -> None:
    """So that they answer at once."""
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom forge_sweep.cli import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "engines = {'tensorflow', 'keras', 'mlflow', 'optuna', 'sklearn', 'pandas'}\n"
        "assert not engines & set(sys.modules), engines & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=60)
    assert forge_sweep("--version", cwd=tmp_path).stdout.strip() == f"forge-sweep {__version__}"


def test_status_says_how_far_a_sweep_is_without_tensorflow(store: Path) -> None:
    """In words and as JSON."""
    assert "6 of 6 trials done" in invoke("status", "surface", "--store", str(store))
    values = json.loads(invoke("status", "surface", "--store", str(store), "--json"))
    assert sum(values["trials"].values()) == 6 and values["best"]["state"] == "finished"
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom forge_sweep.cli import app\n"
        f"assert CliRunner().invoke(app, ['status', 'surface', '--store', {str(store)!r}]).exit_code == 0\n"
        "assert not {'tensorflow', 'keras', 'mlflow'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_status_says_that_no_process_runs_a_killed_sweep(store: Path, tmp_path: Path) -> None:
    assert "no process is running" not in invoke("status", "surface", "--store", str(store))
    assert json.loads(invoke("status", "surface", "--store", str(store), "--json"))["carried"] is False
    killed = Forked("tests.surface", tmp_path / "new", 50, 0.2)
    try:
        until = time.monotonic() + 120
        while (study := find_study("surface", tmp_path / "new")) is None or not study.rows():
            assert time.monotonic() < until and killed.poll() is None
            time.sleep(0.1)
        assert "no process is running" not in invoke("status", "surface", "--store", str(tmp_path / "new"))
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    assert "no process is running this sweep" in invoke("status", "surface", "--store", str(tmp_path / "new"))


def test_trials_lists_every_trial_with_what_was_searched(store: Path) -> None:
    """Fixed hyperparameters are left out of the table and stand in the JSON."""
    text = invoke("trials", "surface", "--store", str(store))
    assert "width" in text and "dropout" in text and "batch_size" not in text
    rows = json.loads(invoke("trials", "surface", "--store", str(store), "--json"))
    assert [row["number"] for row in rows] == list(range(6)) and "batch_size" in rows[0]["params"]


def test_best_names_the_trial_the_verdict_and_the_model(store: Path) -> None:
    """What a user wants to know at the end."""
    text = invoke("best", "surface", "--store", str(store))
    assert text.startswith("winner: trial ") and "models:/surface/1" in text and "best in the search: trial " in text


def test_report_is_one_self_contained_html_file(store: Path, tmp_path: Path) -> None:
    """It holds verdict, trials and plots, and loads nothing from elsewhere."""
    path = tmp_path / "report.html"
    invoke("report", "surface", "--store", str(store), "-o", str(path))
    html = path.read_text(encoding="utf-8")
    assert "models:/surface/1" in html and "Plotly.newPlot" in html and "Slices" in html
    assert "is not estimated from fewer than ten finished trials" in html
    assert 'src="http' not in html and "<link" not in html


def test_the_live_view_shows_progress_of_a_resumed_sweep_and_its_running_trials() -> None:
    """States of all trials, best so far, the baseline to beat, the current loss; nothing is cut at 60 columns."""
    console = Console(width=60, file=io.StringIO(), force_terminal=True)
    live = LiveView(PlainLines(console, Pace(experiment())))
    states = {"finished": 3, "pruned": 1}
    trials = {"name": "trials", "total": 10, "done": 4, "states": states, "best": 0.9, "baselines": {"xgboost": 0.85}}
    live.watch(Event("phase", trials))
    live.watch(Event("trial_started", {"number": 4, "params": {"width": 8, "batch_size": 32}}))
    live.watch(Event("epoch", {"number": 5, "epoch": 2, "metrics": {"loss": 0.5, "val_loss": 0.6}}))
    failed = {"state": "failed", "value": None, "best": 0.9, "failure": "diverged", "cause": "loss is nan"}
    live.watch(Event("trial_done", {"number": 3, "params": {"width": 9}, **failed}))
    lines = live.__rich__().plain.splitlines()
    assert lines[0].startswith("trials 5 of 10, about ") and lines[0].endswith("left")
    assert lines[1:] == [
        "3 finished, 1 pruned, 1 failed",
        "best 0.9000, best baseline xgboost 0.8500",
        "now trial 4: width 8",
        "now trial 5, epoch 2 of 6: loss 0.5000, val_loss 0.6000",
    ]
    assert "trial 3    failed (diverged): loss is nan" in console.file.getvalue()  # type: ignore[attr-defined]


def printed(*events: Event, **options: Any) -> list[str]:
    """The lines that events give."""
    console = Console(file=io.StringIO(), **{"width": 100, "markup": False, **options})
    lines = PlainLines(console, Pace(experiment()))
    for event in events:
        lines.watch(event)
    lines.close()
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined,no-any-return]


def test_check_says_how_many_groups_each_split_has(tmp_path: Path) -> None:
    """75 patients with four rows each."""
    rows = [f"{i % 75},{i * 7 % 11},{i % 2}" for i in range(300)]
    (tmp_path / "visits.csv").write_text("\n".join(["patient,x,y", *rows]))
    (tmp_path / "visits.toml").write_text(
        'name = "visits"\nobjective.metric = "val_auc"\nmodel.search.width = { type = "int", low = 4, high = 8 }\n'
        'data = { path = "visits.csv", target = "y", task = "binary", split = { kind = "group", group = "patient" } }\n'
    )
    with no_network(fake_run()):
        done = CliRunner().invoke(app, ["check", str(tmp_path / "visits.toml"), "--store", str(tmp_path / "store")])
    assert done.exit_code == 0, done.output
    found = re.search(r"^  groups: 75 \(train (\d+), validation (\d+), test (\d+)\)$", done.output, re.MULTILINE)
    assert found and sum(map(int, found.groups())) == 75, done.output


def test_a_trials_line_has_what_was_searched_the_best_so_far_and_the_time_left() -> None:
    phase = {"name": "trials", "total": 4, "done": 0, "states": {}, "best": None, "baselines": {}}
    ended = {"number": 0, "state": "finished", "value": 0.8, "best": 0.8, "delta": -0.01, "epochs": 3, "seconds": 1.0}
    line = printed(Event("phase", phase), Event("trial_done", {**ended, "params": {"width": 8, "batch_size": 32}}))[1]
    assert line.startswith("  trial 0    finished 0.8000  best 0.8000  vs. baseline -0.0100  3 epochs, 1.0 s  (1 of 4")
    assert "left)  width 8" in line and "batch_size" not in line


def test_baselines_and_confirmation_say_how_much_is_left() -> None:
    baseline = Event("baseline", {"name": "constant", "value": 0.5, "seconds": 0.1})
    lines = printed(Event("phase", {"name": "baselines", "total": 3, "done": 0}), baseline)
    assert "1 of 3, about" in lines[1]
    one = Event("confirm", {"name": "x", "words": "trial 1", "seed": 1, "value": 0.9})
    lines = printed(Event("phase", {"name": "confirm"}), Event("confirming", {"runs": 4}), one)
    assert "(1 of 4, about" in lines[1]


def test_repetitions_are_counted() -> None:
    """Thirty columns with one fault, and one message that comes five times."""
    findings = [
        Event(
            "finding", {"severity": "warning", "code": "shift", "subject": f"c{n}", "text": f"warning: c{n}: shifted"}
        )
        for n in range(30)
    ]
    again = [Event("message", {"severity": "warning", "text": "the worker is slow"})] * 5
    lines = printed(*findings, *again)
    assert len(lines) == 6
    assert lines[4] == "warning: 27 more shift warnings: " + ", ".join(f"c{n}" for n in range(3, 13)) + ", ..."
    assert lines[5] == "repeated 5 times: the worker is slow"


def test_names_in_brackets_and_control_characters_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither markup nor emoji, and no name steers the terminal."""
    names = ["flow [l/s]", "price [/kg]", "[red]", ":smile:", "a\x1b[31m\nb"]
    print_table(("feature [x]",), [(name,) for name in names])
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == [
        "feature [x]",
        *("flow [l/s]", "price [/kg]", "[red]", ":smile:", "a\\x1b[31m\\nb"),
    ]
    assert printed(Event("message", {"severity": "warning", "text": "column [/b] is :x:"})) == [
        "warning: column [/b] is :x:"
    ]


def test_a_table_that_a_terminal_has_no_room_for_goes_on_below(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the first column; no cell is cut."""
    out = Console(width=30, file=io.StringIO(), force_terminal=True, markup=False)
    monkeypatch.setattr("forge_sweep.cli.printing.console", lambda: out)
    print_table(("trial", "state", "learning_rate", "value"), [(0, "finished", 0.00123, 0.5), (1, "pruned", 0.5, None)])
    lines = [line.split() for line in Text.from_ansi(out.file.getvalue()).plain.splitlines()]  # type: ignore[attr-defined]
    assert lines == [
        *(["trial", "state", "learning_rate"], ["0", "finished", "0.00123"], ["1", "pruned", "0.5"]),
        *(["trial", "value"], ["0", "0.5"], ["1", "-"]),
    ]


def test_words_are_never_broken_at_60_columns() -> None:
    text = (
        "  trial 3 finished with a rather long explanation that needs a second line, and sqlite:////a/very/long/path"
        + "x" * 60
    )
    lines = wrapped(text, 60).splitlines()
    assert " ".join(lines).split() == text.split()
    assert all(len(line) <= 60 for line in lines[:-1])


@pytest.mark.parametrize(
    ("encoding", "expected"), [("ascii", "0.5 +/- 0.1 gr\\xf6\\xdfe \\U0001f4a5"), ("utf-8", "0.5 ± 0.1 größe 💥")]
)
def test_a_terminal_without_a_character_shows_another_one(encoding: str, expected: str) -> None:
    assert "0.5 ± 0.1 größe 💥".encode(encoding, REPLACED).decode(encoding) == expected


def test_json_has_no_nan() -> None:
    """Nor Infinity, NumPy's numbers or halves of characters."""
    value = {"a": float("nan"), "b": [float("inf"), np.float64("nan"), np.int64(3)], 1: Path("x"), "c": "\udcff"}
    assert json.loads(jsons.dumps(value), parse_constant=pytest.fail) == {
        "a": None,
        "b": [None, None, 3],
        "1": "x",
        "c": "\\udcff",
    }


def test_whatever_prints_or_keeps_json_goes_through_one_door() -> None:
    """`json.dumps` writes NaN; those that hash or compare, or write what only Python reads, are listed."""
    allowed = {
        *("jsons.py", "bundle/files.py", "bundle/weights.py", "experiment/words.py", "experiment/spec.py", "trial.py"),
        "experiment/code.py",
        *("preprocessing/preprocessor.py", "preprocessing/streaming.py", "feature_store/versions.py"),
        *("study/resume.py", "study/storage.py", "sweep/context.py", "tracking/journal.py", "training/checkpoint.py"),
        *("training/networks.py", "feature_store/diff.py", "feature_store/checking.py", "registry/candidate.py"),
        *("bundle/evaluation.py", "bundle/bundle.py", "bundle/network.py", "contract/alike.py", "training/devices.py"),
        *("draft.py", "predictions.py", "sources/spool.py"),
    }
    package = Path(__file__).parents[1] / "forge_sweep"
    texts = {path.relative_to(package).as_posix(): path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    assert {name for name, text in texts.items() if re.search(r"(?<!\w)json\.dumps?\(", text)} <= allowed


def test_schema_is_json(tmp_path: Path) -> None:
    """For editors."""
    assert json.loads(invoke("schema"))["title"] == "Experiment"


@pytest.mark.slow
def test_ui_serves_mlflow_and_the_dashboard_on_the_sweeps_own_stores(store: Path) -> None:
    """Both answer, and the link that is printed names this sweep's parent run."""
    parent = json.loads(invoke("best", "surface", "--store", str(store), "--json"))["final"]["run_id"]
    with ui(store) as link:
        assert f"parentRunId%20%3D%20'{parent}'" in link
