"""What runs record of a training: one value, one count of epochs and one duration, wherever people look."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from forge_sweep import environment, sources, training, trial
from forge_sweep.cli import app
from forge_sweep.errors import InputError, TrialFailed, one_line
from forge_sweep.experiment import Params, parse
from forge_sweep.reproduce import _machine
from forge_sweep.study import PHASES_NOTE, TrialRow, open_study, phases_words, span
from forge_sweep.sweep import Interrupted, reconcile
from forge_sweep.sweep.budget import Stopwatch
from forge_sweep.tracking.runs import _curves
from forge_sweep.trial import TrialResult
from tests.surface import EPOCHS, STORY, experiment, fake_run
from tests.test_sweep import client, curve, run, runs, study_of

PEAK = 2  # 0-based


@dataclass(frozen=True)
class peaking_run(fake_run):
    """A training that is best in its third epoch and worse in the end, as real ones are."""

    def __call__(self, experiment: Any, splits: Any, params: Any, seed: int, on_epoch: Any, **options: Any) -> Any:
        history: list[dict[str, float]] = []

        def falling(epoch: int, metrics: dict[str, float]) -> bool:
            metrics["val_auc"] -= 0.3 * max(0, epoch - PEAK)
            history.append(dict(metrics))
            return bool(on_epoch(epoch, metrics))

        result: TrialResult = super().__call__(experiment, splits, params, seed, falling, **options)
        best = max(range(len(history)), key=lambda epoch: history[epoch]["val_auc"])
        metrics = {name: value for name, value in history[best].items() if name.startswith("val_")}
        return replace(
            result, value=metrics["val_auc"], metrics=metrics, history=tuple(history), best_epoch=best, seconds=77.0
        )


@pytest.fixture
def store(tmp_path: Path) -> Path:
    run(experiment(), tmp_path, peaking_run())
    return tmp_path


def test_every_run_has_the_metrics_of_the_model_that_is_kept(store: Path) -> None:
    """Under one name for networks and trees, so that they sort together; a curve's last point is something else."""
    names = {"best_val_auc", "best_val_loss", "best_val_log_loss"}
    rows = {row.number: row for row in study_of(store).rows()}
    for child in (*runs(store, "trial"), *runs(store, "confirm")):
        if "baseline" in child.data.params:
            continue
        found = child.data.metrics
        points = client(store).get_metric_history(child.info.run_id, "val_auc")
        best = max(points, key=lambda point: point.value)
        assert names <= found.keys()
        assert found["best_val_auc"] == best.value and found["best_epoch"] == best.step
        assert points[0].step == 1
        if len(points) == EPOCHS:
            assert found["val_auc"] == points[-1].value < found["best_val_auc"]
            losses = {p.step: p.value for p in client(store).get_metric_history(child.info.run_id, "val_loss")}
            assert found["best_val_loss"] == losses[PEAK + 1]
        assert "learning_rate" not in found and found["lr"] == 1e-3
    for child in runs(store, "trial"):
        row = rows[int(child.data.params["trial_number"])]
        assert child.data.metrics["best_val_auc"] == row.value
        assert child.data.metrics["seconds"] == pytest.approx(row.seconds, abs=2e-3)
        assert child.data.metrics["best_epoch"] == row.attrs["best_epoch"]
    trees = [r for r in (*runs(store, "baseline"), *runs(store, "confirm")) if "baseline" in r.data.params]
    assert len(trees) == 3
    for tree in trees:
        values = {name: value for name, value in tree.data.metrics.items() if name.startswith("val_")}
        assert len(values) > 3
        assert {f"best_{name}": value for name, value in values.items()}.items() <= tree.data.metrics.items()


def test_a_pruned_trial_has_one_value_in_optuna_and_here(store: Path) -> None:
    """Its best epoch's, as in MLflow; Optuna by itself takes the last report."""
    pruned = [row for row in study_of(store).rows() if row.state == "pruned"]
    assert pruned
    for row in pruned:
        kept, reports = study_of(store)._study.trials[row.number], study_of(store).reports(row.number)
        assert kept.state.name == "PRUNED" and kept.value == row.value == max(reports.values())
        assert sorted(reports) == list(range(row.epochs))


def test_a_sweep_that_an_older_version_began_goes_on_counting_from_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = STORY.begin

    def as_before(study: Any) -> dict[str, Any]:
        noted = begun(study)
        if noted.pop("first_epoch", None) is not None:
            study.note("sweep:begin", noted)
        return noted

    with monkeypatch.context() as older:
        older.setattr(STORY, "begin", as_before)
        run(experiment(study__n_trials=2), tmp_path, peaking_run())
    run(experiment(study__n_trials=4), tmp_path, peaking_run())
    for child in runs(tmp_path, "trial"):
        steps = curve(tmp_path, child.info.run_id, "val_auc")
        assert steps == list(range(len(steps)))
        assert child.data.metrics["best_epoch"] == min(PEAK, len(steps) - 1)
    assert reconcile("surface", tmp_path, repair=False).differences == ()


def test_reconcile_agrees_with_what_runs_record(store: Path) -> None:
    assert reconcile("surface", store, repair=False).differences == ()


def test_curves_of_older_runs_are_read_by_todays_names(tmp_path: Path) -> None:
    """The learning rate had the name of the hyperparameter, and epochs counted from 0."""
    run(experiment(study__n_trials=1), tmp_path)
    mlflow = client(tmp_path)
    old = mlflow.create_run(
        mlflow.get_experiment_by_name("surface").experiment_id, tags={"forge.kind": "older"}
    ).info.run_id
    for epoch, rate in enumerate((0.1, 0.05)):
        mlflow.log_metric(old, "learning_rate", rate, step=epoch)
        mlflow.log_metric(old, "val_auc", 0.5 + epoch, step=epoch)
    expected = {"lr": {0: 0.1, 1: 0.05}, "val_auc": {0: 0.5, 1: 1.5}}
    assert _curves(mlflow, old, ["learning_rate", "val_auc", "seconds"], 0) == expected
    (new,) = runs(tmp_path, "trial")
    assert set(_curves(mlflow, new.info.run_id, list(new.data.metrics), 1)["lr"]) == set(range(EPOCHS))


# Time


def test_the_time_of_each_phase_is_summed_over_interruptions(tmp_path: Path) -> None:
    """In the result, in status, in the report and on the parent run; running a complete sweep again adds nothing."""
    calls = Counter[str]()

    def stopping() -> bool:
        calls["n"] += 1
        return calls["n"] > 12

    with pytest.raises(Interrupted):
        run(experiment(), tmp_path, stopping=stopping)
    first = study_of(tmp_path).phases()
    assert {"start", "audit", "baselines", "trials"} <= set(first) and "confirm" not in first
    (parent,) = runs(tmp_path, "sweep")
    assert parent.data.metrics["seconds_trials"] == first["trials"]
    result = run(experiment(), tmp_path)
    notes = list(study_of(tmp_path).notes(PHASES_NOTE).values())
    assert len(notes) == 2
    assert list(result.phases) == ["start", "audit", "preflight", "baselines", "trials", "confirm", "publish"]
    for name, seconds in result.phases.items():
        assert seconds == pytest.approx(sum(note.get(name, 0.0) for note in notes), abs=1e-3)
    assert all(result.phases[name] >= seconds for name, seconds in first.items())
    assert run(experiment(), tmp_path).phases == result.phases
    (parent,) = runs(tmp_path, "sweep")
    assert {f"seconds_{name}": s for name, s in result.phases.items()}.items() <= parent.data.metrics.items()

    from typer.testing import CliRunner

    shown = CliRunner().invoke(app, ["status", "surface", "--store", str(tmp_path)]).output
    assert f"took {phases_words(result.phases)}" in shown
    CliRunner().invoke(app, ["report", "surface", "--store", str(tmp_path), "-o", str(tmp_path / "r.html")])
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert f"<td>confirmation</td>\n<td>{result.phases['confirm']:.1f}</td>" in page
    assert "summed over interruptions. The search took" in page


def test_a_stopwatch_adds_up_what_lies_between_phases() -> None:
    now = 0.0
    kept: dict[str, Any] = {}

    class Notes:
        def note(self, key: str, value: Any) -> None:
            kept[key] = value

    watch = Stopwatch(lambda: now)
    for phase, seconds in (("audit", 2.0), ("", 5.0), ("trials", 30.0), ("audit", 1.0)):
        watch.enter(phase)
        now += seconds
    assert kept == {}
    watch.keep_in(Notes())  # type: ignore[arg-type]
    assert list(kept.values()) == [{"audit": 3.0, "trials": 30.0}]
    now += 1.0
    watch.tick()
    assert list(kept.values()) == [{"audit": 3.0, "trials": 30.0}]
    now += 9.0
    watch.tick()
    assert list(kept.values()) == [{"audit": 13.0, "trials": 30.0}]


def test_times_in_words() -> None:
    assert [span(seconds) for seconds in (0.04, 119.9, 300, 7200)] == ["0.0 s", "119.9 s", "5.0 min", "2.0 h"]
    words = phases_words({"audit": 0.4, "trials": 27.7, "confirm": 271.9})
    assert words == "5.0 min: audit 0.4 s, trials 27.7 s, confirmation 4.5 min"


# Figures


def told(store: Path, finished: int, pruned: int, failed: int) -> Any:
    """A study with so many trials of each state."""
    spec = experiment(study__n_trials=finished + pruned + failed)
    study = open_study(spec, dataset={"version": "v", "digest": "d" * 64, "split_digest": "s" * 64}, store=store)
    with study.hold():
        for number in range(finished + pruned + failed):
            asked = study.ask()
            assert asked is not None
            value = 0.5 + 0.01 * asked.params["width"] - float(asked.params["dropout"]) / 7
            study.report(number, 0, value)
            study.report(number, 1, value - 0.1)
            if number < finished:
                study.tell(number, "finished", value)
            elif number < finished + pruned:
                study.tell(number, "pruned", value)
            else:
                study.tell(number, "failed", failure="code", cause="broken")
    return study


def test_importances_need_ten_finished_trials_and_say_how_many_they_are_from(tmp_path: Path) -> None:
    few = told(tmp_path / "few", finished=9, pruned=3, failed=1).figures()
    assert set(few) == {"history", "epochs", "parallel_coordinate", "slice"}
    enough = told(tmp_path / "enough", finished=10, pruned=0, failed=0).figures()
    assert "importances" in enough and "from 10 finished trials" in enough["importances"].layout.title.text


def test_pruned_trials_are_in_the_plots_and_failed_ones_are_counted(tmp_path: Path) -> None:
    study = told(tmp_path, finished=3, pruned=2, failed=2)
    figures = study.figures()
    assert {figure.layout.title.text.partition(": ")[2] for figure in figures.values()} == {
        "3 finished and 2 pruned trials; 2 failed, without a value"
    }
    rows: list[TrialRow] = study.rows()
    crosses = [trace for trace in figures["history"].data if "pruned" in (trace.name or "")]
    assert list(crosses[0].x) == [3, 4] and list(crosses[0].y) == [row.value for row in rows[3:5]]
    assert list(figures["epochs"].data[3].y) == pytest.approx([rows[3].value, rows[3].value - 0.1])
    for trace in figures["slice"].data:
        assert sorted(trace.y) == sorted(row.value for row in rows[:5])


# The schedule of the learning rate


def raw(**study: Any) -> dict[str, Any]:
    return {
        "name": "x",
        "data": {"source": "sample", "name": "wine", "target": "target", "task": "multiclass"},
        "objective": {"metric": "val_auc"},
        "model": {"search": {"width": {"type": "int", "low": 4, "high": 64}}},
        "study": study,
    }


def test_a_file_without_a_schedule_is_the_experiment_that_it_was() -> None:
    """The digest was computed by the version before the key."""
    digest = "555aa4c240cf2d714bfab695a41320ad6cf5dc24228408bbcee097ee8b3d2f26"
    assert parse(raw(), root=Path()).contract() == digest
    assert parse(raw(schedule="plateau"), root=Path()).contract() == digest
    assert parse(raw(schedule="none"), root=Path()).contract() != digest


def test_a_study_from_before_the_schedule_is_resumed_and_another_schedule_is_refused(tmp_path: Path) -> None:
    from forge_sweep.errors import ResumeRefused
    from forge_sweep.study import resumable
    from forge_sweep.study.trials import Attr

    run(experiment(), tmp_path)
    study = study_of(tmp_path)
    resolved = study.resolved
    del resolved["study"]["schedule"]
    study._study.set_user_attr(Attr.RESOLVED, resolved)
    found = study._study.user_attrs
    same = {key: found[f"forge.dataset_{key}"] for key in ("version", "digest", "split_digest")}
    assert resumable(experiment(), dataset=same, store=tmp_path) is not None
    with pytest.raises(ResumeRefused, match=r'study\.schedule: "plateau" -> "none"'):
        run(experiment(study__schedule="none"), tmp_path)


# Keras' settings and variables


TRAINED = """
import sys
from pathlib import Path
from forge_sweep import sources, training, trial
from forge_sweep.training import Setup
from tests.surface import experiment
Setup("tensorflow", 1)()
import keras
spec = experiment(study__epochs=2)
dataset = sources.load(spec.data, root=spec.root, seed=spec.seed)
params = {"width": 8, "depth": 1, "learning_rate": 0.01, "batch_size": 32, "dropout": 0.0}
result = trial.run(spec, dataset, params, 5, lambda epoch, metrics: False)
print(keras.config.floatx(), keras.config.epsilon(), keras.config.image_data_format(), keras.config.dtype_policy().name)
print(result.bundle.weights_sha256, result.metrics["val_auc"], result.history[-1]["loss"])
"""


def trained(home: Path) -> str:
    """What a training gives in a process of a user with this home."""
    variables = {"HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[1])}
    inherited = {name: value for name, value in environment.os.environ.items() if not name.startswith("KERAS")}
    done = subprocess.run(
        [sys.executable, "-c", TRAINED], capture_output=True, text=True, env={**inherited, **variables}, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_keras_json_changes_no_number(tmp_path: Path) -> None:
    """Case 02: float16 there gave other trials, without a word."""
    plain, odd = tmp_path / "plain", tmp_path / "odd"
    plain.mkdir()
    (odd / ".keras").mkdir(parents=True)
    settings = '{"floatx": "float16", "epsilon": 0.001, "backend": "torch", "image_data_format": "channels_first"}'
    (odd / ".keras" / "keras.json").write_text(settings)
    found = trained(odd)
    assert found.startswith("float32 1e-07 channels_last float32\n")
    assert found == trained(plain)


def test_what_keras_json_asks_for_and_does_not_get_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert environment.ignored_settings() == ""
    (tmp_path / "keras.json").write_text('{"floatx": "float16", "epsilon": 1e-7, "backend": "tensorflow"}')
    said = environment.ignored_settings()
    assert str(tmp_path / "keras.json") in said and "floatx = float16" in said and "floatx = float32" in said
    (tmp_path / "keras.json").write_text("[1]")
    assert environment.ignored_settings() == ""


@pytest.mark.slow
def test_a_keras_json_that_keras_cannot_start_with_is_named(tmp_path: Path) -> None:
    (tmp_path / "keras.json").write_text('{"floatx": "int8"}')
    code = "from forge_sweep import training; training.select_backend('tensorflow'); training.load_backend()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**environment.os.environ, "KERAS_HOME": str(tmp_path)},
        check=False,
    )
    assert f"InputError: Keras cannot start with {tmp_path / 'keras.json'}" in done.stderr
    assert "fix: fix that file, or remove it" in done.stderr


@pytest.mark.parametrize("name", ["KERAS_MAX_EPOCHS", "KERAS_MAX_STEPS_PER_EPOCH"])
def test_a_variable_that_cuts_trainings_short_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(InputError, match=f"{name}=1"):
        training.select_backend("tensorflow")
    monkeypatch.setenv(name, "")
    training.select_backend("tensorflow")


def test_a_variable_that_asks_for_other_operations_than_the_experiment_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TF_DETERMINISTIC_OPS", "1")
    training.select_backend("tensorflow")  # nothing is trained
    training.select_backend("tensorflow", True)
    with pytest.raises(InputError, match=r"TF_DETERMINISTIC_OPS=1\n  fix: unset TF_DETERMINISTIC_OPS, or set"):
        training.select_backend("tensorflow", False)
    monkeypatch.setenv("TF_DETERMINISTIC_OPS", "yes")  # TensorFlow would abort the process
    with pytest.raises(InputError, match="TF_DETERMINISTIC_OPS=yes"):
        training.select_backend("tensorflow")


def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for that which says that there is no GPU."""
    for name in ("KERAS_BACKEND", "TF_DETERMINISTIC_OPS", "TF_ENABLE_ONEDNN_OPTS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "")
    seen = environment.capture(Path(), "tensorflow")
    assert "TF_ENABLE_ONEDNN_OPTS" not in seen.flags and seen.flags["CUDA_VISIBLE_DEVICES"] == ""
    training.select_backend("tensorflow")
    variables = environment.os.environ
    assert variables["KERAS_BACKEND"] == "tensorflow" and "TF_DETERMINISTIC_OPS" not in variables


def test_settings_and_variables_are_recorded_and_older_records_differ_in_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    monkeypatch.setenv("TF_VAR_password", "secret")
    here = environment.capture(Path(), "tensorflow")
    assert here.keras == {"floatx": "float32", "epsilon": "1e-07", "image_data_format": "channels_last"}
    assert here.variables["ONEDNN_DEFAULT_FPMATH_MODE"] == "BF16"
    assert "secret" not in str(here.to_dict())

    def differing(recorded: dict[str, Any]) -> list[tuple[str, Any, Any]]:
        return [pair for pair in _machine(recorded, here) if pair[1] != pair[2]]

    record = here.to_dict()
    assert differing(record) == []
    older = {name: value for name, value in record.items() if name not in ("keras", "variables")}
    assert differing(older) == []
    fewer = {name: value for name, value in here.variables.items() if name != "ONEDNN_DEFAULT_FPMATH_MODE"}
    other = {**record, "variables": fewer, "keras": {**record["keras"], "floatx": "float16"}}
    assert differing(other) == [
        ("variable ONEDNN_DEFAULT_FPMATH_MODE", "not there", "BF16"),
        ("Keras' floatx", "float16", "float32"),
    ]


def test_what_an_older_version_did_not_record_did_not_change() -> None:
    before = {"python": "3.11.1", "flags.XLA_FLAGS": "a"}
    now = {"python": "3.11.1", "flags.XLA_FLAGS": "a", "keras.floatx": "float32", "git_diff": ""}
    assert list(STORY.changes(before, now)) == []
    assert list(STORY.changes(before, {**now, "python": "3.12.0"})) == ["python: 3.11.1 -> 3.12.0"]
    assert list(STORY.changes({**before, "keras.floatx": "float32"}, now)) == ["the uncommitted changes"]


def test_a_warning_of_a_library_is_one_line_without_its_place() -> None:
    text = "Argument is experimental.\n  It may change (/venv/lib/python3.11/site-packages/optuna/a.py:12)"
    assert one_line(UserWarning(text)) == "Argument is experimental. It may change"
    assert one_line("see postgresql://me:secret@host/db") == "see postgresql://***@host/db"


def test_a_plain_training_takes_the_schedule_of_the_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every training goes through `trial.run`, which hands the schedule on."""
    used: list[str] = []

    def fit(model: Any, task: Any, data: Any, spec: training.FitSpec, *words: Any, **options: Any) -> Any:
        used.append(spec.schedule)
        raise TrialFailed("code", "it is not trained here")

    monkeypatch.setattr(training, "fit", fit)
    spec = parse(raw(schedule="none"), root=Path())
    dataset = sources.load(spec.data, root=spec.root, seed=spec.seed)
    params: Params = {"width": 4, "learning_rate": 1e-3, "batch_size": 8}
    with pytest.raises(TrialFailed, match="it is not trained here"):
        trial.run(spec, dataset, params, 1, lambda epoch, metrics: False)
    assert used == ["constant"]
