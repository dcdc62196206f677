"""A study, a store and a bundle that an older version wrote open, resume, predict and reproduce."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from forge_sweep.cli import app

pytestmark = pytest.mark.slow

ASSETS = Path(__file__).parent / "assets"
TRIALS = [
    ("finished", 0.8888322284548699, 11),
    ("finished", 0.8393676695563488, 9),
    ("finished", 0.8867924528301886, 7),
    ("finished", 0.9265680775114739, 16),
]
"""State, val_auc and width of each trial, as `forge-sweep trials` printed them then."""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(ASSETS / "store-2026-11.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def old(unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of its own, as the folder that commands run in."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(unpacked, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


def forge_sweep(*words: str) -> str:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def last_json(text: str) -> Any:
    return json.loads(text.splitlines()[-1])


def test_it_opens(old: Path) -> None:
    trials = json.loads(forge_sweep("trials", "people", "--json"))
    assert [(each["state"], each["value"], each["params"]["width"]) for each in trials] == TRIALS
    assert "trial 3" in forge_sweep("best", "people")
    assert "4 finished" in forge_sweep("status", "people")


def test_its_model_predicts_the_same(old: Path) -> None:
    forge_sweep("predict", "models:/people/1", "experiments/people.csv", "-o", "again.csv")
    then, now = pd.read_csv(old / "predicted.csv"), pd.read_csv(old / "again.csv")
    pd.testing.assert_frame_equal(now, then, rtol=1e-4, atol=1e-6)


def test_its_sweep_goes_on(old: Path) -> None:
    """With the file that began it: nothing is refused, and no trial is made twice."""
    before = json.loads(forge_sweep("trials", "people", "--json"))
    result = last_json(forge_sweep("run", "experiments/people.toml", "study.n_trials=5", "--json"))
    assert sum(result["trials"].values()) == 5
    after = json.loads(forge_sweep("trials", "people", "--json"))
    assert after[:4] == before and len(after) == 5


def test_its_winner_can_be_made_again(old: Path) -> None:
    found = json.loads(forge_sweep("reproduce", "models:/people/1", "--root", "experiments", "--json"))
    assert found["verdict"]["word"] in ("exact", "within tolerance")
