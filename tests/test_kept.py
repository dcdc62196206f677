"""A sweep keeps the predictions of its trainings, whoever trained them; commands read them without its data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from forge_sweep import predictions, sweep
from forge_sweep.cli import app
from forge_sweep.errors import InputError
from forge_sweep.study import find_study
from forge_sweep.sweep import Event
from tests.surface import experiment, fake_run, no_network

SMALL: dict[str, Any] = {"study__n_trials": 4, "confirm__top": 1, "confirm__seeds": 1, "study__pruner": "none"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep whose networks are trained by two processes."""
    folder = tmp_path_factory.mktemp("kept") / "mlruns"
    with no_network(fake_run()):
        sweep.run(experiment(**SMALL, workers={"kind": "processes", "n": 2}), store=folder)
    return folder


def read(store: Path) -> predictions.Kept:
    study = find_study("surface", store)
    assert study is not None
    return predictions.read(study, store)


def invoke(store: Path, *words: str) -> str:
    return CliRunner().invoke(app, [*words, "--store", str(store)], catch_exceptions=False).output


def test_every_training_is_kept_from_worker_processes_too(store: Path) -> None:
    kept = read(store)
    kinds = [label.partition(":")[0] for label in kept.scores]
    assert kinds == ["trial"] * 4 + ["baseline"] + ["confirm"] * 2 and not kept.missing
    assert {scores.shape for scores in kept.scores.values()} == {(len(kept.encoded), 3)}
    assert all(scores.dtype == np.float32 for scores in kept.scores.values())
    study = find_study("surface", store)
    assert study is not None
    recorded = study.notes("baseline:")["baseline:constant"]["metrics"]
    for name in kept.metrics:
        assert kept.score(name)["baseline:constant"] == pytest.approx(recorded[f"val_{name}"], abs=1e-6), name


def test_compare_tells_a_trial_from_a_baseline(store: Path) -> None:
    (found,) = json.loads(invoke(store, "compare", "surface", "trial:0", "constant", "--metric", "accuracy", "--json"))
    assert (found["one"], found["other"], found["metric"]) == ("trial:0", "baseline:constant", "accuracy")
    assert found["low"] <= found["gain"] <= found["high"] and found["outcome"] == "better"
    assert "paired resamples" in invoke(store, "compare", "surface", "0", "1", "2")


def test_trials_are_listed_and_sorted_by_any_metric(store: Path) -> None:
    rows = json.loads(invoke(store, "trials", "surface", "--sort", "log_loss", "--metric", "accuracy", "--json"))
    losses = [row["metrics"]["log_loss"] for row in rows]
    assert losses == sorted(losses) and all(0 <= row["metrics"]["accuracy"] <= 1 for row in rows)
    with pytest.raises(InputError, match="no metric 'rmse' of a multiclass task"):
        invoke(store, "trials", "surface", "--metric", "rmse")


def test_the_end_says_what_the_best_is_worth_once_choosing_is_corrected_for(store: Path) -> None:
    study = find_study("surface", store)
    assert study is not None
    final = study.final()
    assert final is not None and final["optimism"]["n"] == 4
    assert final["optimism"]["low"] <= final["optimism"]["corrected"] <= final["optimism"]["high"]
    assert final["optimism"]["words"] in invoke(store, "best", "surface").replace("\n", " ")


def test_a_file_that_is_gone_is_said(store: Path) -> None:
    kept = read(store)
    for path in store.glob("artifacts/**/predictions.npz"):
        _, arrays = predictions._unpacked(path.read_bytes())
        if "scores" in arrays and (arrays["scores"] == kept.scores["trial:2"]).all():
            path.rename(path.with_name("elsewhere"))
    assert read(store).missing == {"trial:2": "MLflow has its run without the file"}
    with pytest.raises(InputError, match="no predictions of trial:2"):
        invoke(store, "compare", "surface", "0", "2")


def test_over_the_limit_none_are_kept_and_that_is_said_once(tmp_path: Path) -> None:
    said: list[str] = []

    def watch(event: Event) -> None:
        if event.kind == "message" and "predictions" in event.data["text"]:
            said.append(event.data["text"])

    with no_network(fake_run()):
        few = {**SMALL, "study__n_trials": 1, "tracking": {"predictions_mb": 0.001}}
        sweep.run(experiment(**few), store=tmp_path, watch=watch)
        sweep.run(experiment(**{**few, "study__n_trials": 2}), store=tmp_path, watch=watch)
    (text,) = said
    assert "27 rows x 3 outputs" in text and "predictions_mb = 0.001" in text
    with pytest.raises(InputError, match="kept no validation predictions: 27 rows") as refusal:
        read(tmp_path)
    assert "under [tracking]" in str(refusal.value.hint)


@pytest.mark.slow
def test_what_is_killed_after_the_file_and_before_the_note_is_kept_by_the_next_process(tmp_path: Path) -> None:
    """The baseline's run has its file and its end, and the study knows nothing of it."""
    words = [sys.executable, "-m", "tests.surface", str(tmp_path), "3", "0", "trials:finish"]
    assert subprocess.run(words, capture_output=True, timeout=240).returncode == 9
    assert list(tmp_path.glob("artifacts/**/predictions.npz"))
    with no_network(fake_run()):
        sweep.run(experiment(study__n_trials=3), store=tmp_path)
    kept = read(tmp_path)
    assert {"trial:0", "trial:1", "trial:2", "baseline:constant"} <= {*kept.scores} and not kept.missing
