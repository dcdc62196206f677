"""What is deleted or lost between two runs of a sweep is said, and made again as far as anything still knows it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from forge_sweep.cli import app
from forge_sweep.experiment import derived_seed
from forge_sweep.study import find_shared
from forge_sweep.sweep import Event, Reconciled, SweepResult, reconcile
from forge_sweep.tracking import Tracker, default_uri
from tests.surface import EPOCHS, experiment
from tests.test_sweep import client, curve, run, runs

SWEPT = experiment(study__n_trials=4)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The store of a finished sweep of four trials."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FORGE_SWEEP_STORAGE", raising=False)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        store = tmp_path_factory.mktemp("swept") / "mlruns"
        run(SWEPT, store)
        yield store


@pytest.fixture
def store(swept: Path, tmp_path: Path) -> Path:
    """A copy of it, as if the sweep had run there."""
    return copied(swept, tmp_path / "mlruns")


def copied(swept: Path, store: Path, but: tuple[str, ...] = ()) -> Path:
    """A copy without some files: MLflow holds the database of an address open, which a deletion would not end."""
    shutil.copytree(swept, store, ignore=shutil.ignore_patterns(*but))
    study = find_shared("surface", store)
    assert study is not None
    study.note("sweep:store", default_uri(store))
    return store


def again(store: Path) -> tuple[SweepResult, list[str]]:
    """The same command once more, and what it says."""
    said: list[str] = []

    def watch(event: Event) -> None:
        if event.kind == "message" and "container" not in str(event.data["text"]):
            said.append(str(event.data["text"]))

    return run(SWEPT, store, watch=watch), said


def parent_of(store: Path) -> Any:
    (found,) = runs(store, "sweep")
    return found


def everything(store: Path) -> dict[str, Any]:
    """Every run below the parent, by name; each there once, and under it."""
    parent, found = parent_of(store), {}
    for kind in ("trial", "baseline", "confirm"):
        for one in runs(store, kind):
            assert one.info.run_name not in found
            assert one.data.tags["mlflow.parentRunId"] == parent.info.run_id
            found[one.info.run_name] = one
    return found


NAMES = {
    *(f"trial-{number:04d}" for number in range(4)),
    "baseline-constant",
    *(f"confirm-{label}-s{s}" for label in ("constant",) for s in (1, 2)),
}


def names_are_whole(store: Path) -> None:
    found = everything(store)
    assert set(found) >= NAMES and len([name for name in found if name.startswith("confirm-0")]) == 4


def test_a_sweep_that_lost_nothing_says_nothing(store: Path) -> None:
    result, said = again(store)
    assert [text for text in said if "lost" in text or "gone" in text] == [] and result.missing == ""


def test_an_mlflow_database_that_is_gone_is_said_and_filled_again_from_the_study(swept: Path, tmp_path: Path) -> None:
    """Runs with params, seeds and figures, the parent with its setting; the model is trained and registered again."""
    before = everything(swept)
    store = copied(swept, tmp_path / "mlruns", but=("mlflow.db*", "artifacts"))
    result, said = again(store)
    assert any("had lost a part of surface: its parent run and" in text for text in said)
    assert any("gone from the registry, and so are its files: the winner is trained again" in text for text in said)
    names_are_whole(store)
    after = everything(store)
    for name, old in before.items():
        new = after[name]
        assert new.info.status == old.info.status
        if not name.startswith("confirm"):  # those were trained again
            assert new.data.params == old.data.params or name.startswith("baseline")
        assert {key: value for key, value in new.data.params.items() if key in ("seed", "trial_number")} == {
            key: value for key, value in old.data.params.items() if key in ("seed", "trial_number")
        }
        assert new.data.metrics["best_val_auc"] == pytest.approx(old.data.metrics["best_val_auc"])
    assert curve(store, after["trial-0002"].info.run_id, "val_auc")
    assert "without its curves" in after["trial-0002"].data.tags["forge.reconciled"]
    paths = {file.path for file in client(store).list_artifacts(parent_of(store).info.run_id)}
    assert {"experiment.json", "audit", "environment"} <= paths
    name, _, version = result.model.removeprefix("models:/").rpartition("/")
    assert client(store).get_model_version(name, version).run_id in {r.info.run_id for r in after.values()}
    assert [text for text in again(store)[1] if "lost" in text or "gone" in text] == []


def test_a_study_database_that_is_gone_is_said_and_its_old_run_does_not_stay_running(
    swept: Path, tmp_path: Path
) -> None:
    store = tmp_path / "mlruns"
    shutil.copytree(swept, store, ignore=shutil.ignore_patterns("optuna.db*"))
    old = parent_of(store)
    client(store).update_run(old.info.run_id, status="RUNNING")
    _, said = again(store)
    assert any("whose study is not in the study database" in text and "its run is ended" in text for text in said)
    ended = client(store).get_run(old.info.run_id)
    assert (ended.info.status, ended.data.tags["forge.state"]) == ("KILLED", "interrupted")
    assert len(runs(store, "sweep")) == 2


def delete_version(store: Path, model: str) -> None:
    name, _, version = model.removeprefix("models:/").rpartition("/")
    client(store).delete_model_version(name, version)


def test_a_model_version_that_was_deleted_is_registered_again_from_its_files(store: Path) -> None:
    result, _ = again(store)
    source = client(store).get_model_version("surface", "1").source
    delete_version(store, result.model)
    found = reconcile("surface", store, repair=False)
    assert ("model models:/surface/1", "gone from the registry") in seen(found)
    done = CliRunner().invoke(app, ["best", "surface", "--store", str(store)])
    assert done.exit_code == 1 and "models:/surface/1 is gone from MLflow" in done.output
    result, said = again(store)
    assert any(
        f"models:/surface/1 of this sweep is gone from the registry: registered again as {result.model}" in t
        for t in said
    )
    name, _, version = result.model.removeprefix("models:/").rpartition("/")
    made = client(store).get_model_version(name, version)
    assert made.source == source and made.tags["forge.sweep"] and made.tags["forge.key"]
    assert client(store).get_model_version_by_alias("surface", "challenger").version == made.version
    assert seen(reconcile("surface", store, repair=False)) == []
    assert again(store)[0].model == result.model


def test_a_model_whose_files_are_gone_too_is_trained_and_registered_again(store: Path) -> None:
    result, _ = again(store)
    model_id = str(client(store).get_model_version("surface", "1").source).removeprefix("models:/")
    delete_version(store, result.model)
    client(store).delete_logged_model(model_id)
    result, said = again(store)
    assert any("so are its files: the winner is trained again" in text for text in said)
    name, _, version = result.model.removeprefix("models:/").rpartition("/")
    assert client(store).get_model_version(name, version).status == "READY"
    looks = (store / "test_looks.jsonl").read_text().splitlines()
    assert len(looks) == 1


def seen(found: Reconciled) -> list[tuple[str, str]]:
    return [(one.what, one.seen) for one in found.differences]


@pytest.mark.parametrize("by", ["reconcile", "run"])
def test_a_parent_that_was_deleted_comes_back_from_the_bin_with_all_of_it(store: Path, by: str) -> None:
    old = parent_of(store)
    client(store).delete_run(old.info.run_id)
    if by == "run":
        again(store)
    else:
        assert seen(reconcile("surface", store, repair=True)) == [
            ("the sweep", "no parent run, but 4 trials in the study")
        ]
    assert parent_of(store).info.run_id == old.info.run_id
    names_are_whole(store)


def test_runs_are_put_under_the_new_parent_where_the_old_one_is_gone_for_good(store: Path) -> None:
    """As when somebody empties MLflow's bin: no second run of a trial is made."""
    old = parent_of(store)
    key = old.data.tags["forge.key"]
    client(store).set_tag(old.info.run_id, "forge.key", "elsewhere")
    client(store).set_tag(old.info.run_id, "forge.kind", "other")
    ids = {one.info.run_id for kind in ("trial", "baseline", "confirm") for one in runs(store, kind)}
    found = reconcile("surface", store, repair=True)
    assert found.differences[0].what == "the sweep" and all(one.repaired for one in found.differences)
    new = parent_of(store)
    assert (new.info.run_id != old.info.run_id, new.data.tags["forge.key"]) == (True, key)
    assert new.data.params["seed"] == "3" and new.data.tags["forge.verdict"]
    assert {one.info.run_id for one in everything(store).values()} == ids


def test_an_experiment_that_was_renamed_keeps_its_sweep_in_one_piece(store: Path) -> None:
    """More trials go where the others are; reconcile finds nothing to repair."""
    (home,) = {one.info.experiment_id for one in runs(store, "trial")}
    client(store).rename_experiment(home, "surface of 2025")
    assert seen(reconcile("surface", store, repair=False)) == []
    longer = experiment(study__n_trials=5)
    run(longer, store)
    assert client(store).get_experiment_by_name("surface") is None
    found = client(store).search_runs([home], "tags.`forge.kind` = 'trial'")
    assert sorted(one.info.run_name for one in found) == [f"trial-{number:04d}" for number in range(5)]


def test_baselines_and_confirmations_that_were_deleted_are_made_again(store: Path) -> None:
    for name in ("baseline-constant", "confirm-constant-s1", "trial-0001"):
        client(store).delete_run(everything(store)[name].info.run_id)
    found = reconcile("surface", store, repair=True)
    assert {one.what for one in found.differences} == {
        "run baseline-constant",
        "run confirm-constant-s1",
        "run trial-0001",
    }
    names_are_whole(store)
    assert seen(reconcile("surface", store, repair=True)) == []


def test_a_run_that_is_made_again_has_params_seed_and_figures(store: Path) -> None:
    old = everything(store)
    for name in ("baseline-constant", "confirm-constant-s2", "trial-0000"):
        client(store).set_tag(old[name].info.run_id, "forge.key", f"elsewhere/{name}")
        client(store).set_tag(old[name].info.run_id, "mlflow.parentRunId", "nobody")
        client(store).delete_run(old[name].info.run_id)
    reconcile("surface", store, repair=True)
    new = everything(store)
    assert new["trial-0000"].data.params == old["trial-0000"].data.params
    assert new["trial-0000"].data.params["seed"] == str(derived_seed(3, "trial", 0))
    assert new["confirm-constant-s2"].data.params == old["confirm-constant-s2"].data.params
    for name in ("baseline-constant", "confirm-constant-s2", "trial-0000"):
        assert new[name].data.metrics["best_val_auc"] == old[name].data.metrics["best_val_auc"]
    steps = list(curve(store, new["trial-0000"].info.run_id, "val_auc"))
    assert steps == sorted(steps) and len(steps) <= EPOCHS and steps


def test_what_a_kill_left_of_a_registration_is_removed(store: Path) -> None:
    winner = client(store).get_run(client(store).get_model_version("surface", "1").run_id)
    half = client(store).create_logged_model(
        winner.info.experiment_id, "surface", winner.info.run_id, {}, {}, "forge_sweep"
    )
    found = reconcile("surface", store, repair=True)
    assert [(one.seen, one.repaired) for one in found.differences] == [("PENDING", True)]
    left = client(store).search_logged_models([winner.info.experiment_id], f"source_run_id = '{winner.info.run_id}'")
    assert half.model_id not in {one.model_id for one in left} and len(left) == 1


def test_what_mlflow_refused_is_said_at_the_end_and_tried_again(store: Path) -> None:
    study = find_shared("surface", store)
    assert study is not None
    tracker = Tracker("surface", store, uri="http://127.0.0.1:9")
    tracker.run("elsewhere/x", "x", kind="trial").log_metrics({"bad[0]": 1.0})
    tracker.close()
    result, _ = again(store)
    assert "refused 1 writes" in result.missing
    (store / "journal" / "surface.refused.jsonl").unlink()
    assert again(store)[0].missing == ""
