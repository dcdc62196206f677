"""The walk of the README: two sweeps, promote, refused within noise, forced with a reason, rolled back."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.shop import loans

pytestmark = pytest.mark.slow

FORGE_SWEEP = str(Path(sys.executable).with_name("forge-sweep"))

TOML = """
name = "{name}"
description = "Who pays back"
seed = 3
[data]
path = "loans.csv"
target = "label"
task = "binary"
version = "loans_v1"
[model.search]
width = {{ type = "int", low = 24, high = {high} }}
learning_rate = 0.01
[objective]
metric = "val_auc"
[study]
n_trials = 1
epochs = 12
[baselines]
kinds = ["constant"]
[confirm]
top = 1
seeds = 1
[tracking]
model_name = "loans"
[promotion]
groups = ["city"]
max_latency_ms = 60000.0
"""


def test_two_sweeps_and_four_decisions(tmp_path: Path) -> None:
    """Every step as a user types it, each in a process of its own."""

    def forge_sweep(*words: str, code: int = 0) -> Any:
        done = subprocess.run([FORGE_SWEEP, *words], cwd=tmp_path, capture_output=True, text=True, timeout=250)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    loans(1_500).to_csv(tmp_path / "loans.csv", index=False)
    for name, high in (("first", 32), ("second", 33)):
        (tmp_path / f"{name}.toml").write_text(textwrap.dedent(TOML.format(name=name, high=high)))

    forge_sweep("run", "first.toml")
    done = json.loads(forge_sweep("promote", "loans", "1", "--reason", "first model", "--json"))
    assert done["promoted"] and done["champion"] is None and done["figures"]["baseline"]["low"] > 0

    forge_sweep("run", "second.toml")
    refused = json.loads(forge_sweep("promote", "loans", "@challenger", "--json", code=3))
    assert refused["version"] == "2" and refused["refused"] == ["beats-champion"], refused
    gain = refused["figures"]["champion"]
    assert gain["low"] <= 0 <= gain["high"] or gain["gain"] == 0
    (model,) = json.loads(forge_sweep("models", "list", "--json"))
    assert model["aliases"] == {"champion": "1", "challenger": "2"}, "a refusal changes nothing"

    shown = forge_sweep("promote", "loans", "2", "--force", "the rows it saw are newer")
    assert "overruled: beats-champion; reason on record: the rows it saw are newer" in shown
    forge_sweep("rollback", "loans", "--reason", "complaints")
    (model,) = json.loads(forge_sweep("models", "list", "--json"))
    assert model["aliases"] == {"champion": "1", "previous": "2"}

    history = json.loads(forge_sweep("models", "history", "loans", "--json"))
    assert [(each["action"], each["to"], each["reason"]) for each in history] == [
        ("promote", "1", "first model"),
        ("promote", "2", "the rows it saw are newer"),
        ("rollback", "1", "complaints"),
    ]
    assert history[1]["forced"] == ["beats-champion"]
    looks = [json.loads(line)["purpose"] for line in (tmp_path / "mlruns/test_looks.jsonl").read_text().splitlines()]
    assert [look.split()[0] for look in looks] == ["final", "promotion", "final", "promotion", "promotion"]
