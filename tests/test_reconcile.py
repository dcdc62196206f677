"""`forge-sweep reconcile`: what a kill or an older version left between Optuna and MLflow is found and put right."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from forge_sweep.cli import app
from forge_sweep.errors import InputError
from forge_sweep.study import leases, open_study
from forge_sweep.sweep import Reconciled, reconcile
from forge_sweep.tracking import Tracker
from tests.surface import EPOCHS, experiment
from tests.test_sweep import check_nothing_is_lost, client, curve, run, runs, study_of


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The store of a finished sweep of four trials."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FORGE_SWEEP_STORAGE", raising=False)
        store = tmp_path_factory.mktemp("swept")
        run(experiment(study__n_trials=4), store)
        yield store


@pytest.fixture
def store(swept: Path, tmp_path: Path) -> Path:
    """A copy of it; its artifacts stay where they were."""
    shutil.copytree(swept, tmp_path / "store")
    return tmp_path / "store"


def compared(store: Path, repair: bool = True) -> Reconciled:
    # the copy is another address than the one that the sweep noted
    study = open_for_notes(store)
    study.note("sweep:store", f"sqlite:///{store.absolute()}/mlflow.db")
    return reconcile("surface", store, repair=repair)


def open_for_notes(store: Path) -> Any:
    from forge_sweep.study import find_shared

    found = find_shared("surface", store)
    assert found is not None
    return found


def seen(found: Reconciled) -> list[tuple[str, str]]:
    return [(one.what, one.seen) for one in found.differences]


def trial_run(store: Path, number: int) -> Any:
    (found,) = [r for r in runs(store, "trial") if r.info.run_name == f"trial-{number:04d}"]
    return found


def test_a_sweep_in_order_has_nothing_to_repair(store: Path) -> None:
    found = compared(store)
    assert (found.trials, found.runs, found.differences) == (4, 4, ())


def test_a_wrong_status_and_a_left_over_failure_are_put_right(store: Path) -> None:
    run_id = trial_run(store, 0).info.run_id
    client(store).update_run(run_id, status="RUNNING")
    client(store).set_tag(trial_run(store, 1).info.run_id, "forge.failure", "lost-worker")
    assert seen(compared(store, repair=False)) == [
        ("run trial-0000", "RUNNING, forge.state = finished"),
        ("run trial-0001", "forge.failure = lost-worker"),
    ]
    assert client(store).get_run(run_id).info.status == "RUNNING", "looking changes nothing"
    assert all(one.repaired for one in compared(store).differences)
    assert compared(store).differences == ()
    check_nothing_is_lost(store, 4)


def test_a_run_that_is_missing_is_made_from_the_study(store: Path) -> None:
    before = trial_run(store, 2)
    client(store).delete_run(before.info.run_id)
    assert seen(compared(store)) == [("run trial-0002", "missing")]
    check_nothing_is_lost(store, 4)
    made = trial_run(store, 2)
    assert made.data.metrics["best_val_auc"] == before.data.metrics["best_val_auc"]
    assert made.data.params["width"] == before.data.params["width"]
    assert made.data.tags["forge.dataset_digest"] == before.data.tags["forge.dataset_digest"]
    assert compared(store).differences == ()


def test_a_run_in_the_bin_is_taken_back_with_all_it_had(store: Path) -> None:
    before = trial_run(store, 2)
    client(store).delete_run(before.info.run_id)
    compared(store)
    after = trial_run(store, 2)
    assert after.info.run_id == before.info.run_id
    assert after.data.metrics == before.data.metrics


def test_wrong_figures_and_points_beyond_the_last_epoch_are_put_right(store: Path) -> None:
    run = trial_run(store, 0)
    client(store).log_metric(run.info.run_id, "best_val_auc", 0.1)
    client(store).log_metric(run.info.run_id, "val_loss", 9.0, step=900)
    found = dict(seen(compared(store, repair=False)))
    assert len(compared(store, repair=False).differences) == 2
    assert found["run trial-0000"] == "points of epoch 900"
    compared(store)
    assert compared(store).differences == ()
    after = trial_run(store, 0)
    assert after.data.metrics["best_val_auc"] == run.data.metrics["best_val_auc"]
    assert after.data.metrics["val_loss"] == run.data.metrics["val_loss"]
    check_nothing_is_lost(store, 4)


def test_missing_points_and_figures_come_from_the_study(store: Path) -> None:
    """As in a run whose process died between the study's end and MLflow's."""
    old = trial_run(store, 0)
    mlflow = client(store)
    mlflow.delete_run(old.info.run_id)
    made = mlflow.create_run(old.info.experiment_id, tags=dict(old.data.tags), run_name=old.info.run_name)
    mlflow.log_metric(made.info.run_id, "val_auc", 0.5, step=1)
    mlflow.set_terminated(made.info.run_id, "FINISHED")
    rows = study_of(store).rows()
    found = seen(compared(store))
    figures = "best_val_loss, best_val_log_loss, best_val_auc, best_epoch, epochs_run, seconds"
    assert ("run trial-0000", f"without {figures}") in found
    assert ("run trial-0000", f"val_auc without epoch {', '.join(map(str, range(2, EPOCHS + 1)))}") in found
    assert trial_run(store, 0).data.metrics["best_val_auc"] == rows[0].value
    check_nothing_is_lost(store, 4)


def test_a_curve_with_a_point_twice_is_written_anew(store: Path) -> None:
    """The first point of an epoch stands; params, tags and data stay with the run."""
    old = trial_run(store, 0)
    first = client(store).get_metric_history(old.info.run_id, "val_auc")[0].value
    client(store).log_metric(old.info.run_id, "val_auc", 0.123, step=1)
    assert seen(compared(store)) == [("run trial-0000", "val_auc with several points of one epoch")]
    new = trial_run(store, 0)
    assert curve(store, new.info.run_id, "val_auc") == list(range(1, EPOCHS + 1))
    assert client(store).get_metric_history(new.info.run_id, "val_auc")[0].value == first
    assert new.data.params == old.data.params and len(new.inputs.dataset_inputs) == 1
    assert compared(store).differences == ()


def test_two_runs_of_one_trial_and_a_run_of_none_are_thinned_out(store: Path) -> None:
    old = trial_run(store, 3)
    for name, key in (("trial-0003", old.data.tags["forge.key"]), ("trial-0009", "surface/x/trial-0009")):
        tags = {**old.data.tags, "forge.key": key, "mlflow.runName": name}
        client(store).create_run(old.info.experiment_id, tags=tags, run_name=name)
    assert seen(compared(store)) == [("run trial-0003", "2 runs"), ("run trial-0009", "no such trial")]
    assert trial_run(store, 3).info.run_id == old.info.run_id
    check_nothing_is_lost(store, 4)


def dead_runner(store: Path, place: str = "") -> int:
    """A trial, its run and its sweep as a killed process leaves them."""
    study_attrs = study_of(store)._study.user_attrs
    dataset = {key: study_attrs[f"forge.dataset_{key}"] for key in ("version", "digest", "split_digest")}
    study = open_study(experiment(study__n_trials=6), dataset=dataset, store=store)
    asked = study.ask()
    assert asked is not None
    me = study._leases.me
    assert me is not None
    gone = {**me.values(), "role": "run", **({"place": place} if place else {"pid": 2**22 + 1})}
    study._study.set_user_attr(f"forge.owner.{me.id}", gone)
    key = study.notes("sweep:")["sweep:begin"]["key"]
    tracker = Tracker("surface", store)
    tracker.run(f"{key}/trial-{asked.number:04d}", f"trial-{asked.number:04d}", kind="trial", parent=key)
    tracker.run(f"{key}/confirm-0001-s1", "confirm-0001-s9", kind="confirm", parent=key)
    client(store).update_run(runs(store, "sweep")[0].info.run_id, status="RUNNING")
    return asked.number


def test_what_a_dead_process_left_running_is_ended(store: Path) -> None:
    number = dead_runner(store)
    found = compared(store)
    assert {what for what, _ in seen(found)} >= {f"trial {number}", f"run trial-{number:04d}"}
    assert study_of(store).rows()[number].state == "waiting"
    assert trial_run(store, number).info.status == "SCHEDULED"
    assert "RUNNING" not in {r.info.status for r in runs(store)}
    assert compared(store).differences == ()


def test_a_process_elsewhere_is_watched_before_anything_of_it_is_touched(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(leases, "LEASE_S", 0.5)
    number = dead_runner(store, place="another machine")
    said: list[str] = []
    compared_store = f"sqlite:///{store.absolute()}/mlflow.db"
    open_for_notes(store).note("sweep:store", compared_store)
    reconcile("surface", store, repair=True, say=said.append)
    assert len(said) == 1 and said[0].startswith("watching for up to 0.5 s whether process ")
    assert study_of(store).rows()[number].state == "waiting"


def test_writes_that_wait_are_made_first(store: Path) -> None:
    key = trial_run(store, 0).data.tags["forge.key"]
    folder = store / "journal"
    folder.mkdir(exist_ok=True)
    record = {"op": "tags", "key": key, "values": {"note": "late"}}
    (folder / "surface.jsonl").write_text(json.dumps(record) + "\n")
    assert seen(compared(store, repair=False)) == [("journal", "1 writes wait")]
    assert "note" not in trial_run(store, 0).data.tags
    assert seen(compared(store)) == [("journal", "1 writes wait")]
    assert trial_run(store, 0).data.tags["note"] == "late"
    assert compared(store).differences == ()


def test_the_command_says_what_differs_and_its_exit_code_says_whether(store: Path) -> None:
    compared(store)
    words = ["reconcile", "surface", "--store", str(store)]
    runner = CliRunner()
    clean = runner.invoke(app, [*words, "--dry-run"])
    assert (clean.exit_code, clean.stdout) == (0, "surface: nothing to repair\n")
    client(store).update_run(trial_run(store, 0).info.run_id, status="FAILED")
    dry = runner.invoke(app, [*words, "--dry-run", "--json"])
    assert dry.exit_code == 3
    (one,) = json.loads(dry.stdout)["differences"]
    assert one == {
        "what": "run trial-0000",
        "seen": "FAILED, forge.state = finished",
        "expected": "FINISHED, forge.state = finished",
        "repaired": False,
    }
    wet = runner.invoke(app, words)
    assert wet.exit_code == 0 and "trial-0000" in wet.stdout and "yes" in wet.stdout
    assert runner.invoke(app, words).stdout == "surface: nothing to repair\n"


def test_a_study_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no study in"):
        reconcile("surface", tmp_path, repair=True)
