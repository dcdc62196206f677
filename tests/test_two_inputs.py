"""experiments/two_inputs.toml as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.serving import COMMAND

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_two_inputs_are_swept_registered_and_predicted_and_the_run_is_made_again(tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "-1"}

    def forge_sweep(*words: str) -> str:
        command = [*COMMAND, *words]
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    small = ["study.n_trials=2", "study.epochs=2", 'baselines.kinds=["constant"]', "confirm.top=1", "confirm.seeds=1"]
    small.append("ensemble.ship=never")
    forge_sweep("run", str(ROOT / "experiments/two_inputs.toml"), *small)
    new = str(ROOT / "experiments/data/new.csv")
    forge_sweep("predict", "models:/two_inputs/1", new, "-o", "found.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert len(rows) == 10 and all(set(row.values()) & {"good", "bad"} for row in rows)
    assert "exact" in forge_sweep("reproduce", "models:/two_inputs/1")
