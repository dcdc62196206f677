"""The logic of a sweep on a known surface: real SQLite, real Optuna, real MLflow, no network."""

from __future__ import annotations

import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from forge_sweep import sweep
from forge_sweep.errors import GateRefused, InputError, ResumeRefused, SweepStopped, TrialFailed
from forge_sweep.experiment import Experiment
from forge_sweep.sources import test_looks as looks_at_test
from forge_sweep.study import StudyView, find_study
from forge_sweep.sweep import Event, Interrupted, SweepResult, verdict
from forge_sweep.sweep.cost import Cost
from tests.forked import Forked
from tests.surface import EPOCHS, STORY, experiment, fake_run, height, no_network


def run(spec: Experiment, store: Path, run_trial: Any = None, **options: Any) -> SweepResult:
    """Run a sweep on the surface."""
    with no_network(run_trial or fake_run()):
        return sweep.run(spec, store=store, **options)


def client(store: Path) -> Any:
    """MLflow on the embedded store."""
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{store.absolute()}/mlflow.db")


def runs(store: Path, kind: str | None = None) -> list[Any]:
    """The MLflow runs of the only experiment, by kind, ordered by name."""
    ids = [e.experiment_id for e in client(store).search_experiments() if e.name != "Default"]
    found = client(store).search_runs(ids, max_results=1000)
    return sorted((r for r in found if kind in (None, r.data.tags["forge.kind"])), key=lambda r: r.info.run_name)


def curve(store: Path, run_id: str, metric: str) -> list[int]:
    """Steps of a curve."""
    return [point.step for point in client(store).get_metric_history(run_id, metric)]


def study_of(store: Path, name: str = "surface") -> StudyView:
    """The newest study."""
    study = find_study(name, store)
    assert study is not None
    return study


def test_a_sweep_leaves_one_parent_and_every_trial_as_its_child(tmp_path: Path) -> None:
    """Params, one point per epoch, statuses, digests: what a user looks for in MLflow is there."""
    result = run(experiment(), tmp_path)
    (parent,) = runs(tmp_path, "sweep")
    children = runs(tmp_path, "trial")
    rows = study_of(tmp_path).rows()
    assert parent.info.run_id == result.run_id and parent.info.status == "FINISHED"
    assert [child.info.run_name for child in children] == [f"trial-{n:04d}" for n in range(6)]
    for child, row in zip(children, rows, strict=True):
        assert child.data.tags["mlflow.parentRunId"] == result.run_id
        assert child.info.status == {"finished": "FINISHED", "pruned": "KILLED"}[row.state]
        assert child.data.params["width"] == str(row.params["width"]) and child.data.params["trial_number"] == str(
            row.number
        )
        assert curve(tmp_path, child.info.run_id, "val_auc") == list(range(1, row.epochs + 1))
        assert len(child.data.tags["forge.dataset_digest"]) == 64
        assert child.data.tags["forge.image_digest"] in ("none", "unknown")
        assert "delta_vs_baseline" in child.data.metrics
    assert "pruned" in {row.state for row in rows}


def test_the_winner_is_confirmed_scored_once_on_test_and_registered(tmp_path: Path) -> None:
    """The best of the surface wins, with its own test score, one look, and the alias challenger."""
    result = run(experiment(), tmp_path)
    best = max(
        (row for row in study_of(tmp_path).rows() if row.state == "finished"), key=lambda row: height(row.params)
    )
    assert result.best["number"] == best.number == int(result.winner["label"])
    assert len(result.winner["values"]) == 2
    (parent,) = runs(tmp_path, "sweep")
    assert parent.data.metrics["test_accuracy"] == pytest.approx(result.test["test_accuracy"])
    digest = parent.data.tags["forge.dataset_digest"]
    assert len(looks_at_test(tmp_path / "test_looks.jsonl", digest)) == 1
    version = client(tmp_path).get_model_version_by_alias("surface", "challenger")
    assert result.model == f"models:/surface/{version.version}"
    assert version.tags["forge.dataset_digest"] == digest
    assert not (tmp_path / "checkpoints" / "surface").exists()


def test_a_tree_that_is_as_good_and_costs_as_much_is_what_gets_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verdict says so in words."""
    monkeypatch.setattr(verdict, "cost_of", lambda context, each: Cost(2.0, 1.0))
    kinds = ["constant", "hist_gradient_boosting"]
    spec = experiment(baselines__kinds=kinds, baselines__tune=False, study__n_trials=2)
    result = run(spec, tmp_path)
    assert result.winner["baseline"] == "hist_gradient_boosting"
    assert result.outcome == "as good as" and "so ship the baseline (one row takes 2 ms" in result.verdict
    assert runs(tmp_path, "trial")[0].data.metrics["delta_vs_baseline"] < 0


def test_running_a_complete_sweep_again_changes_nothing(tmp_path: Path) -> None:
    """No second look at test, no second version, no run left open."""
    first = run(experiment(), tmp_path)
    before = len(runs(tmp_path))
    second = run(experiment(), tmp_path)
    assert second == first
    assert len(runs(tmp_path)) == before
    assert {r.info.status for r in runs(tmp_path)} <= {"FINISHED", "KILLED"}


def test_more_trials_extend_the_sweep_and_the_second_look_at_test_is_said(tmp_path: Path) -> None:
    """`n_trials` is the total; a new winner is a new version, the same winner is not; repeated looks are said."""
    first = run(experiment(study__n_trials=2), tmp_path)
    events: list[Event] = []
    second = run(experiment(study__n_trials=6), tmp_path, watch=events.append)
    assert sum(second.trials.values()) == 6
    assert any("test evaluation 2" in event.data["text"] for event in events if event.kind == "message")
    assert first.winner["label"] != second.winner["label"] and second.model.endswith("/2")
    third = run(experiment(study__n_trials=7), tmp_path)
    assert third.winner["label"] == second.winner["label"] and third.model == second.model


def test_ctrl_c_puts_the_trial_back_and_the_resumed_sweep_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    """Same numbers, same parameters, same values; nothing stays RUNNING in between."""
    whole = tmp_path / "whole"
    run(experiment(), whole)
    cut = tmp_path / "cut"
    calls = Counter[str]()

    def stopping() -> bool:
        calls["n"] += 1
        return calls["n"] > 20

    with pytest.raises(Interrupted):
        run(experiment(), cut, stopping=stopping)
    states = [row.state for row in study_of(cut).rows()]
    assert states.count("waiting") == 1 and "running" not in states
    assert "RUNNING" not in {r.info.status for r in runs(cut)}
    run(experiment(), cut)
    expected = [(row.number, row.state, row.params, row.value) for row in study_of(whole).rows()]
    assert [(row.number, row.state, row.params, row.value) for row in study_of(cut).rows()] == expected
    for child, row in zip(runs(cut, "trial"), study_of(cut).rows(), strict=True):
        assert curve(cut, child.info.run_id, "val_auc") == list(range(1, row.epochs + 1))


def check_nothing_is_lost(store: Path, n_trials: int) -> None:
    """Optuna and MLflow agree: dense numbers, none running, one point per epoch, one parent, one model."""
    rows = study_of(store).rows()
    assert [row.number for row in rows] == list(range(n_trials))
    children = runs(store, "trial")
    assert [child.info.run_name for child in children] == [f"trial-{n:04d}" for n in range(n_trials)]
    statuses = {"finished": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
    assert [child.info.status for child in children] == [statuses[row.state] for row in rows]
    for child, row in zip(children, rows, strict=True):
        assert curve(store, child.info.run_id, "val_auc") == list(range(1, row.epochs + 1))
    (parent,) = runs(store, "sweep")
    assert parent.info.status == "FINISHED" and "forge.cause" not in parent.data.tags
    assert {r.info.status for r in runs(store)} <= {"FINISHED", "KILLED", "FAILED"}
    lost = {"FINISHED", "KILLED"}
    assert not [r.info.run_name for r in runs(store) if r.info.status in lost and "forge.failure" in r.data.tags]


@pytest.mark.slow
def test_kill_9_at_any_moment_leaves_exactly_the_trials_that_were_asked_for(tmp_path: Path) -> None:
    """Killed three times in mid-sweep, at whatever it was doing."""
    for wanted in (1, 5, 9):
        process = Forked("tests.surface", tmp_path, 12, 0.05)
        while process.poll() is None:
            study = find_study("surface", tmp_path)
            if study is not None and study.n_done >= wanted:
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert wanted <= study_of(tmp_path).n_done < 12
    run(experiment(study__n_trials=12), tmp_path)
    check_nothing_is_lost(tmp_path, 12)
    assert {row.state for row in study_of(tmp_path).rows()} <= {"finished", "pruned"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "point", ["trials:fit_baseline", "confirm:log_end", "publish:score_on_test", "publish:register"]
)
def test_a_death_after_any_phase_is_made_up_for_by_the_same_command(tmp_path: Path, point: str) -> None:
    """One look at test and one model version, wherever the process died."""
    assert Forked("tests.surface", tmp_path, 3, 0.0, point).wait() == 9
    result = run(experiment(study__n_trials=3), tmp_path)
    check_nothing_is_lost(tmp_path, 3)
    digest = runs(tmp_path, "sweep")[0].data.tags["forge.dataset_digest"]
    assert len(looks_at_test(tmp_path / "test_looks.jsonl", digest)) == 1
    assert result.model == "models:/surface/1"


@pytest.mark.slow
def test_a_trial_that_kills_its_process_three_times_is_given_up_with_its_class(tmp_path: Path) -> None:
    """In the study and in MLflow alike, and said."""
    for _ in range(3):
        assert Forked("tests.surface", tmp_path, 3, 0.0, "trials:open_trial").wait() == 9
    events: list[Event] = []
    run(experiment(study__n_trials=3), tmp_path, watch=events.append)
    check_nothing_is_lost(tmp_path, 3)
    lost = runs(tmp_path, "trial")[0]
    assert lost.info.status == "FAILED" and lost.data.tags["forge.failure"] == "lost-worker"
    assert [e.data["number"] for e in events if e.kind == "trial_done" and e.data["state"] == "failed"] == [0]


def test_a_minimised_objective_ranks_by_the_smallest(tmp_path: Path) -> None:
    """Best trial, winner, typical seed and lead over the baseline all follow the direction."""
    result = run(experiment(objective__metric="val_log_loss", study__pruner="none"), tmp_path)
    rows = study_of(tmp_path).rows()
    lowest = min(rows, key=lambda row: row.value or 9.0)
    assert result.best["number"] == lowest.number == int(result.winner["label"])
    assert result.winner["mean"] == min(c["mean"] for c in result.confirmed)
    child = next(r for r in runs(tmp_path, "trial") if r.info.run_name == f"trial-{lowest.number:04d}")
    gap = result.baselines["constant"] - (lowest.value or 9.0)
    assert child.data.metrics["delta_vs_baseline"] == pytest.approx(gap)
    name = f"confirm-{lowest.number:04d}-s{1 + result.winner['values'].index(max(result.winner['values']))}"
    (version,) = client(tmp_path).search_model_versions("name = 'surface'")
    assert client(tmp_path).get_run(version.run_id).info.run_name == name, "of two seeds the worse is shipped"


def test_a_passing_failure_in_the_confirmation_is_tried_again(tmp_path: Path) -> None:
    """A full disk is mended and the same command goes on; nothing was written off."""

    def fail(params: Any) -> TrialFailed | None:
        return TrialFailed("code", "OSError: no space left") if study_of(tmp_path).n_done == 3 else None

    spec = experiment(study__n_trials=3, baselines__kinds=[])
    with pytest.raises(SweepStopped, match="every candidate failed"):
        run(spec, tmp_path, fake_run(fail=fail))
    result = run(spec, tmp_path)
    assert len(result.confirmed) == 2
    check_nothing_is_lost(tmp_path, 3)


def test_a_fork_is_tried_before_its_first_trial_and_goes_on_when_repeated(tmp_path: Path) -> None:
    """The pre-flight sees every new search space; `--fork` twice makes one fork."""
    run(experiment(study__n_trials=2), tmp_path)
    tried: list[int] = []
    changed = experiment(study__n_trials=2, study__patience=3)
    with no_network(fake_run()), pytest.MonkeyPatch.context() as patch:  # undone before `no_network` puts back its own
        patch.setattr(STORY, "try_models", lambda spec, dataset, watch: tried.append(spec.study.patience))
        first = sweep.run(changed, store=tmp_path, fork=True)
        second = sweep.run(changed, store=tmp_path, fork=True)
    assert tried == [3]
    assert first.study == second.study == "surface-2"


def test_another_mlflow_store_in_mid_sweep_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the runs elsewhere would be lost to whoever compares them."""
    run(experiment(study__n_trials=1), tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path.absolute()}/other.db")
    with pytest.raises(InputError, match=r"the runs of sweep surface are in .*mlflow\.db"):
        run(experiment(study__n_trials=2), tmp_path)
    assert not (tmp_path / "other.db").exists()


def test_a_perfect_predictor_can_be_declared_to_be_known_before(tmp_path: Path) -> None:
    """The leak is an error until the file says that the feature is honest; then it is a warning."""
    make = pd.DataFrame({"x": range(400), "y": [int(n >= 200) for n in range(400)], "z": [n % 7 for n in range(400)]})
    make.to_csv(tmp_path / "rows.csv", index=False)
    data = {"path": str(tmp_path / "rows.csv"), "target": "y", "task": "binary"}
    with pytest.raises(GateRefused, match="target-leak"):
        run(experiment(data=data), tmp_path / "store")
    events: list[Event] = []
    known = experiment(data={**data, "known_before": "x"}, study__n_trials=1)
    run(known, tmp_path / "store", watch=events.append)
    leaks = [e.data for e in events if e.kind == "finding" and e.data["code"] == "target-leak"]
    assert [leak["severity"] for leak in leaks] == ["warning"]


def test_a_constant_that_wins_is_said_to_have_learned_nothing(tmp_path: Path) -> None:
    """Nobody ships a constant without being told."""
    events: list[Event] = []

    def flat(params: Any) -> TrialFailed | None:
        return TrialFailed("out-of-memory", f"width {params['width']}")

    result = run(experiment(study__n_trials=2), tmp_path, fake_run(fail=flat), watch=events.append)
    assert "nothing was learned" in result.verdict
    assert any("nothing was learned" in e.data["text"] for e in events if e.kind == "message")


def test_a_baseline_over_its_time_is_noted_and_the_sweep_goes_on(tmp_path: Path) -> None:
    """It is not fitted again by every start, but where it may take longer; the key is no part of what a trial is."""
    kinds, told = ["constant", "random_forest"], list[Event]()
    first = run(experiment(study__n_trials=1, baselines__kinds=kinds, baselines__timeout_s=1e-6), tmp_path)
    assert list(first.baselines) == ["constant"] and first.outcome == "better"
    (failed,) = [r for r in runs(tmp_path, "baseline") if r.info.run_name == "baseline-random_forest"]
    assert failed.info.status == "FAILED" and failed.data.tags["forge.failure"] == "time-out"
    run(experiment(study__n_trials=2, baselines__kinds=kinds, baselines__timeout_s=1e-6), tmp_path, watch=told.append)
    assert not [e for e in told if "random_forest" in str(e.data.get("text"))]
    longer = run(experiment(study__n_trials=3, baselines__kinds=kinds, baselines__timeout_s=600), tmp_path)
    assert set(longer.baselines) == set(kinds)


def test_another_environment_is_recorded_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each environment is an artifact of its own, and every run names the one it ran in."""
    run(experiment(study__n_trials=1), tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    events: list[Event] = []
    run(experiment(study__n_trials=2), tmp_path, watch=events.append)
    said = [e.data["text"] for e in events if e.kind == "message" and "environment changed" in e.data["text"]]
    assert len(said) == 1 and "OMP_NUM_THREADS: None -> 7" in said[0]
    first, second = (r.data.tags["forge.environment"] for r in runs(tmp_path, "trial"))
    assert first != second
    folders = client(tmp_path).list_artifacts(runs(tmp_path, "sweep")[0].info.run_id, "environment")
    assert {folder.path for folder in folders} == {f"environment/{first}", f"environment/{second}"}


def test_a_changed_experiment_is_refused_with_the_difference_and_fork_begins_anew(tmp_path: Path) -> None:
    """The old study stays as it is; the new one starts from its trials."""
    run(experiment(), tmp_path)
    changed = experiment(study__epochs=EPOCHS + 1, study__n_trials=2)
    with pytest.raises(ResumeRefused, match=rf"study\.epochs: {EPOCHS} -> {EPOCHS + 1}"):
        run(changed, tmp_path)
    result = run(changed, tmp_path, fork=True)
    assert result.study == "surface-2"
    rows = study_of(tmp_path).rows()
    assert sum(bool(row.imported) for row in rows) == 6 and sum(not row.imported for row in rows) == 2
    assert len(runs(tmp_path, "sweep")) == 2


def test_three_failures_with_one_cause_stop_the_sweep_and_name_it(tmp_path: Path) -> None:
    """The fourth would fail alike; the parent run says why it ended."""

    def fail(params: Any) -> TrialFailed:
        return TrialFailed("diverged", "loss is nan at epoch 0")

    with pytest.raises(SweepStopped, match=r"trials 0, 1, 2 failed alike \(diverged\): loss is nan"):
        run(experiment(), tmp_path, fake_run(fail=fail))
    assert [r.info.status for r in runs(tmp_path, "trial")] == ["FAILED"] * 3
    assert {r.data.tags["forge.failure"] for r in runs(tmp_path, "trial")} == {"diverged"}
    assert [r.info.status for r in runs(tmp_path, "sweep")] == ["FAILED"]


def test_single_failures_are_recorded_and_the_sweep_goes_on(tmp_path: Path) -> None:
    """A failed trial counts, and carries its class."""

    def fail(params: Any) -> TrialFailed | None:
        return TrialFailed("out-of-memory", "model of width 64 did not fit") if params["width"] > 40 else None

    result = run(experiment(study__n_trials=8), tmp_path, fake_run(fail=fail))
    failed = [row for row in study_of(tmp_path).rows() if row.failure]
    assert failed and result.trials["failed"] == len(failed)
    assert sum(result.trials.values()) == 8


def test_data_that_fails_the_audit_starts_nothing(tmp_path: Path) -> None:
    """No study, no run: the findings name column, figure and fix."""
    spec = experiment(preprocessing__scaler="none")
    with pytest.raises(GateRefused, match="unscaled-range"):
        run(spec, tmp_path)
    assert not (tmp_path / "optuna.db").exists() and not (tmp_path / "mlflow.db").exists()
