"""Behaviour of `forge_sweep.reproduce`: a recorded training is made again exactly, or what differs is said."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_breast_cancer

from forge_sweep import baselines, reproduce, sweep
from forge_sweep.bundle import Bundle, read_golden
from forge_sweep.errors import BundleError, DataError, InputError
from forge_sweep.experiment import Experiment, load, restore
from forge_sweep.reproduce import Again, commands, first_difference, judge, plan, read_record, typed
from forge_sweep.sweep import SweepResult
from forge_sweep.tracking import Record, fetched, locate
from forge_sweep.tracking import client as clients
from tests.test_bundle import customers, fitted

EXPERIMENT = """
name = "again"
seed = 5
[data]
path = "rows.csv"
target = "target"
task = "binary"
[preprocessing]
scaler = "robust"
[model.search]
width = { type = "int", low = 8, high = 32 }
learning_rate = { type = "float", low = 1e-3, high = 1e-2, log = true }
dropout = 0.2
batch_norm = { type = "categorical", choices = [true, false] }
batch_size = 64
[objective]
metric = "val_auc"
[study]
n_trials = 3
epochs = 4
pruner = "none"
[baselines]
kinds = ["constant", "random_forest", "hist_gradient_boosting", "xgboost"]
tune = false
[confirm]
top = 1
seeds = 1
"""


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SweepResult]:
    """One sweep on a file: its folder and how it ended."""
    folder = tmp_path_factory.mktemp("again")
    frame = load_breast_cancer(as_frame=True).frame
    frame.iloc[:400].to_csv(folder / "rows.csv", index=False)
    (folder / "again.toml").write_text(EXPERIMENT)
    return folder, sweep.run(load(folder / "again.toml"), store=folder / "mlruns")


def runs(folder: Path) -> dict[str, str]:
    """Ids of the runs by their names."""
    with closing(sqlite3.connect(folder / "mlruns" / "mlflow.db")) as database:
        return dict(database.execute("select name, run_uuid from runs"))


def tag(folder: Path, run_id: str, key: str) -> str | None:
    with closing(sqlite3.connect(folder / "mlruns" / "mlflow.db")) as database:
        found = database.execute("select value from tags where run_uuid = ? and key = ?", (run_id, key)).fetchone()
    return None if found is None else str(found[0])


@pytest.mark.slow
def test_the_winner_is_made_again_exactly_in_a_fresh_process(swept: tuple[Path, SweepResult]) -> None:
    folder, result = swept
    script = Path(sys.executable).with_name("forge-sweep")
    command = [sys.executable, str(script), "reproduce", result.model, "--store", str(folder / "mlruns"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["verdict"]["word"] == "exact", found
    assert found["differences"] == []
    assert found["verdict"]["scores_off"] == 0.0
    assert found["verdict"]["first_epoch"] is None
    written = tag(folder, found["run_id"], "forge.reproduced")
    assert written is not None and written.startswith("exact at ")
    reports = list((folder / "mlruns" / "artifacts").glob(f"**/{found['run_id']}/artifacts/reproduced/*.json"))
    assert json.loads(reports[0].read_text())["verdict"]["weights"] == found["verdict"]["recorded_weights"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trial-0001", *(f"baseline-{kind}" for kind in baselines.KINDS)])
def test_trials_and_baselines_are_made_again_exactly(name: str, swept: tuple[Path, SweepResult]) -> None:
    folder, _ = swept
    found = reproduce.reproduce(runs(folder)[name], store=folder / "mlruns")
    assert (found.verdict.word, found.differences) == ("exact", ()), found
    assert set(found.verdict.metrics_off.values()) == {0.0}


@pytest.mark.slow
def test_another_seed_is_said_and_leaves_no_verdict_on_the_run(swept: tuple[Path, SweepResult]) -> None:
    folder, _ = swept
    run_id = runs(folder)["trial-0002"]
    found = reproduce.reproduce(run_id, store=folder / "mlruns", seed=99)
    assert found.verdict.word == "different"
    assert found.verdict.first_epoch == 1 and "the curves part at epoch 1" in found.verdict.text
    (difference,) = found.differences
    assert difference.what == "seed" and difference.here == "99"
    assert tag(folder, run_id, "forge.reproduced") is None


@pytest.mark.slow
def test_a_changed_row_is_said(swept: tuple[Path, SweepResult], tmp_path: Path) -> None:
    folder, _ = swept
    frame = pd.read_csv(folder / "rows.csv")
    frame.loc[17, "mean radius"] *= 1.5
    frame.to_csv(tmp_path / "rows.csv", index=False)
    run_id = runs(folder)["trial-0000"]
    found = reproduce.reproduce(run_id, store=folder / "mlruns", root=tmp_path)
    assert "data (digest of all rows)" in {difference.what for difference in found.differences}
    assert found.verdict.word != "exact"
    assert "weights are not the same bits" in found.verdict.text or "beyond tolerance" in found.verdict.text
    written = tag(folder, run_id, "forge.reproduced")
    assert written is not None and written.startswith(f"{found.verdict.word} at ")


# The same version elsewhere


@pytest.mark.slow
def test_mlflow_predicts_the_golden_rows_of_the_registered_version(
    swept: tuple[Path, SweepResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `mlflow models serve` does: the same checks, the same answers."""
    folder, result = swept
    with fetched(locate(result.model, folder / "mlruns"), folder / "mlruns") as bundle:
        frame, scores = read_golden(bundle)
    uri = f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    import mlflow

    with clients.current(uri):
        found = mlflow.pyfunc.load_model(result.model).predict(frame)
        np.testing.assert_allclose(found["probability"], scores[:, 0], atol=1e-6)
        (golden,) = (folder / "mlruns" / "artifacts").glob("**/golden.json")
        whole = golden.read_bytes()
        golden.write_bytes(whole.replace(b"0", b"1", 1))
        with pytest.raises(BundleError, match=r"changed: golden\.json"):
            mlflow.pyfunc.load_model(result.model)
        golden.write_bytes(whole)


# What is compared, without training


@pytest.fixture(scope="module")
def record(swept: tuple[Path, SweepResult]) -> Record:
    """The record of a trial."""
    folder, _ = swept
    return read_record(runs(folder)["trial-0000"], folder / "mlruns")


def differences(record: Record, folder: Path) -> dict[str, tuple[str, str]]:
    """Everything but the training."""
    from forge_sweep import environment, sources

    experiment = restore(record.experiment, root=folder)
    dataset = sources.load(experiment.data, root=folder, seed=experiment.seed)
    here = environment.capture(folder, experiment.backend)
    found = reproduce.compare(record, experiment, plan(record, experiment), dataset, here)
    return {each.what: (each.recorded, each.here) for each in found}


def test_nothing_differs_where_nothing_was_changed(swept: tuple[Path, SweepResult], record: Record) -> None:
    assert differences(record, swept[0]) == {}


def test_another_package_version_commit_machine_and_image_are_named(
    swept: tuple[Path, SweepResult], record: Record
) -> None:
    packages = {**record.environment["packages"], "numpy": "1.0.0", "gone": "2.0"}
    packages.pop("scipy")
    changed = {"packages": packages, "git_commit": "a" * 40, "cpu": "Z80", "image_digest": "sha256:" + "0" * 64}
    other = replace(record, environment={**record.environment, **changed}, git_diff="+x = 1")
    found = differences(other, swept[0])
    assert found["package numpy"] == ("1.0.0", record.environment["packages"]["numpy"])
    assert found["package gone"] == ("2.0", "not there")
    assert found["package scipy"][0] == "not there"
    assert found["git commit"][0] == "a" * 40
    assert found["cpu"][0] == "Z80"
    assert found["image digest"][0] == "sha256:" + "0" * 64
    assert found["uncommitted changes"] == ("1 lines of git diff", "none (other ones)")


def test_threads_and_flags_are_compared(
    swept: tuple[Path, SweepResult], record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    found = differences(record, swept[0])
    assert found["variable TF_ENABLE_ONEDNN_OPTS"][1] == "0"
    assert found["variable OMP_NUM_THREADS"][1] == "7"


def test_a_record_that_does_not_agree_with_itself_is_said(swept: tuple[Path, SweepResult], record: Record) -> None:
    """A seed that does not follow from the experiment's, and an experiment that is not the one of the digest."""
    seeded = replace(record, params={**record.params, "seed": "1"})
    assert "seed (recorded, and as it follows from the experiment's)" in differences(seeded, swept[0])
    edited = replace(record, experiment={**record.experiment, "seed": 6})
    found = differences(edited, swept[0])
    assert {"experiment (digest recorded, and of experiment.json)", "split (digest)"} <= found.keys()


def test_params_come_back_with_their_types(record: Record) -> None:
    found = typed(restore(record.experiment, root=Path()).space, record)
    kinds = {name: type(found[name]) for name in ("width", "learning_rate", "dropout", "batch_norm", "batch_size")}
    assert kinds == {"width": int, "learning_rate": float, "dropout": float, "batch_norm": bool, "batch_size": int}


@pytest.mark.parametrize(
    ("asked", "tags", "halvings"),
    [
        ("64", {"forge.halvings": "0", "forge.batch_size": "65"}, 0),
        ("256", {"forge.halvings": "2", "forge.batch_size": "64"}, 2),
        ("256", {"forge.batch_size": "64"}, 2),
        ("256", {"forge.batch_size": "65"}, 2),
        ("64", {"forge.batch_size": "65"}, 0),
        ("64", {}, 0),
    ],
)
def test_halved_batches_are_recorded_and_of_older_runs_follow_from_the_batch_sizes(
    record: Record, asked: str, tags: dict[str, str], halvings: int
) -> None:
    kept = {name: value for name, value in record.tags.items() if name not in ("forge.halvings", "forge.batch_size")}
    changed = replace(record, params={**record.params, "batch_size": asked}, tags={**kept, **tags})
    assert plan(changed, restored(record)).halvings == halvings


def test_a_pruned_trial_stops_where_it_was_stopped(record: Record) -> None:
    tags = {**record.tags, "forge.state": "pruned", "forge.threads": "3"}
    planned = plan(replace(record, tags=tags, metrics={**record.metrics, "epochs_run": 2.0}), restored(record))
    assert (planned.epochs, planned.threads) == (2, 3)
    assert plan(record, restored(record)).epochs is None


def test_what_a_trial_was_trained_in_counts_and_not_what_auto_would_be_here(record: Record) -> None:
    tags = {**record.tags, "forge.precision": "mixed_bfloat16"}
    assert plan(replace(record, tags=tags), restored(record)).precision == "mixed_bfloat16"
    assert plan(record, restored(record)).precision == "float32"


def restored(record: Record) -> Experiment:
    return restore(record.experiment, root=Path())


def again(record: Record, **changes: float) -> Again:
    """A training that gave what is recorded, but for some metrics at the last epoch, and other weights."""
    curves = {**record.curves}
    history = [{name: curve[epoch] for name, curve in curves.items()} for epoch in sorted(curves["val_auc"])]
    best = record.best_epoch
    assert best is not None
    history[best] = {**history[best], **{n: history[best][n] + change for n, change in changes.items()}}
    metrics = {name: value for name, value in history[best].items() if name.startswith("val_")}
    return Again("f" * 64, metrics, tuple(history), 1.0)


def test_the_verdict_says_how_far_off_and_where(record: Record) -> None:
    planned, best = plan(record, restored(record)), int(record.metrics["best_epoch"])  # which counts from 1
    near = judge(record, planned, again(record, val_auc=-1e-4))
    assert near.word == "within tolerance" and near.first_epoch == best
    assert near.text == "metrics are off by at most 0.0001 (val_auc); weights are not the same bits"
    far = judge(record, planned, again(record, val_auc=-0.1, val_loss=0.2))
    assert far.word == "different"
    assert f"the curves part at epoch {best}; beyond tolerance: val_auc, val_loss" in far.text
    other_scores = judge(record, planned, replace(again(record), scores_off=0.5))
    assert other_scores.word == "different" and "beyond tolerance: predictions" in other_scores.text
    same = replace(again(record), weights=record.tags["forge.weights_sha256"])
    assert judge(record, planned, same).word == "exact"
    unknown = replace(record, tags={name: v for name, v in record.tags.items() if name != "forge.weights_sha256"})
    assert judge(unknown, planned, again(record)).text.endswith("weights were not recorded")


def test_curves_of_another_length_part_where_the_shorter_one_ends() -> None:
    curves = {"loss": {0: 1.0, 1: 0.5}}
    assert first_difference(curves, ({"loss": 1.0}, {"loss": 0.5})) is None
    assert first_difference(curves, ({"loss": 1.0},)) == 2
    assert first_difference(curves, ({"loss": 1.0}, {"loss": 0.5}, {"loss": 0.4})) == 3
    assert first_difference({}, ()) is None


# Restoring


def test_the_environment_is_restored_by_commands_that_are_only_printed(record: Record) -> None:
    there = {
        **record.environment,
        "git_commit": "c" * 40,
        "git_remote": "https://git.example.org/a b.git",
        "image_digest": "registry.example.org/x@sha256:" + "1" * 64,
        "packages": {"numpy": "2.4.0", "torch": "2.9.0+cpu", "forge-sweep": "0.1.0"},
        "flags": {"XLA_FLAGS": "--a --b"},
        "python": "3.12.4",
        "threads": {},
    }
    lines = commands(replace(record, environment=there, git_diff="# untracked: notes.txt\n+x\n"))
    text = "\n".join(lines)
    assert "git clone 'https://git.example.org/a b.git' restored" in text
    assert f"git checkout {'c' * 40}" in lines
    assert f"--run-id {record.parent_id} --artifact-path environment/" in text and "git apply git.diff" in lines
    assert "# untracked: notes.txt" in lines
    assert f"docker pull registry.example.org/x@sha256:{'1' * 64}" in lines
    assert "python3.12 -m venv .venv" in lines
    assert ".venv/bin/pip install --no-deps numpy==2.4.0 torch==2.9.0" in lines
    assert "export XLA_FLAGS='--a --b'" in lines
    assert commands(replace(record, environment={})) == (f"# run {record.run_id} has no environment on record",)


def test_what_cannot_be_made_again_is_refused_by_name(swept: tuple[Path, SweepResult], tmp_path: Path) -> None:
    folder, result = swept
    store = folder / "mlruns"
    with pytest.raises(InputError, match="is not a forge-sweep training but 'sweep'"):
        read_record(result.run_id, store)
    with pytest.raises(InputError, match=r"there is no run"):
        read_record("0" * 32, store)
    with pytest.raises(InputError, match=r"(?s)names no model.*models:/again@champion.*models:/again/1"):
        read_record("models:/again", store)
    with pytest.raises(InputError, match=r"(?s)'again' is a model.*write models:/again@challenger$"):
        read_record("again", store)
    with pytest.raises(DataError, match=r"(?s)does not exist.*--root FOLDER"):
        reproduce.reproduce("models:/again@challenger", store=store, root=tmp_path)
    with pytest.raises(InputError, match=r"has no alias @nobody"):
        read_record("models:/again@nobody", store)
    with pytest.raises(InputError, match="there is no MLflow store"):
        read_record("0" * 32, tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    record = read_record("models:/again@challenger", store)
    assert record.model is not None and record.model.uri == result.model
    failed = replace(record, tags={**record.tags, "forge.state": "failed"})
    with pytest.raises(InputError, match="is failed"):
        plan(failed, restored(record))


# Weights


@pytest.mark.parametrize("kind", ["network", *baselines.KINDS])
def test_weights_have_the_same_name_saved_and_loaded_or_not(kind: str, tmp_path: Path) -> None:
    bundle = fitted(kind, "multilabel")
    bundle.save(tmp_path / "bundle", customers())
    assert Bundle.load(tmp_path / "bundle").weights_sha256 == bundle.weights_sha256
    assert fitted(kind, "binary").weights_sha256 != bundle.weights_sha256
