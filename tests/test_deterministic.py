"""The same experiment twice gives the same parameters and, on a CPU, the same weights bit for bit."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from forge_sweep import sweep, training
from forge_sweep.errors import InputError
from forge_sweep.study import find_study
from forge_sweep.training import backend
from tests.test_sweep_workers import real

PARAMS = {"width": 24, "depth": 2, "dropout": 0.3, "learning_rate": 0.01, "l2": 1e-4, "batch_size": 64}


def one_sweep(store: Path) -> dict[str, Any]:
    """Parameters and values of all trials of a serial sweep, and a hash over the winner's weights."""
    spec = real({}).model_copy(update={"deterministic": True})
    sweep.run(spec, store=store)
    study = find_study("real", store)
    assert study is not None
    weights = sorted((store / "artifacts").rglob("*.keras"))
    return {"rows": [(row.params, row.state, row.value) for row in study.rows()], "weights": hashes(weights)}


def hashes(files: Any) -> list[str]:
    """SHA-256 of all weights in a `.keras` file, in order."""
    import keras

    found = []
    for path in files:
        model = keras.saving.load_model(path)
        found.append(hashlib.sha256(b"".join(values.tobytes() for values in model.get_weights())).hexdigest())
    return found


@pytest.mark.slow
def test_two_sweeps_with_deterministic_operations_are_equal_bit_for_bit(tmp_path: Path) -> None:
    """In processes of their own."""
    found = []
    for name in ("one", "two"):
        command = [sys.executable, "-m", "tests.test_deterministic", str(tmp_path / name)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    assert found[0] == found[1]
    assert found[0]["weights"]


SCRIPT = """
import sys
from pathlib import Path
from forge_sweep import sources, training, trial
from forge_sweep.errors import InputError
from tests.test_deterministic import PARAMS, real
spec = real({})
training.select_backend("tensorflow")
rows = sources.load(spec.data, root=Path(), seed=0)
fixed = spec.model_copy(update={"deterministic": True})
trial.run(fixed, rows, PARAMS, 1, lambda epoch, metrics: False)
try:
    trial.run(spec, rows, PARAMS, 1, lambda epoch, metrics: False)
except InputError as error:
    sys.stdout.write(str(error))
"""


def test_a_deterministic_process_refuses_an_experiment_that_is_not() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.startswith("deterministic = false, but an earlier experiment made this process deterministic")
    assert done.stdout.endswith("fix: start a new process")


def test_it_is_part_of_the_experiment() -> None:
    spec = real({})
    assert spec.contract() != spec.model_copy(update={"deterministic": True}).contract()


def test_jax_on_a_gpu_is_told_to_start_with_its_deterministic_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU it has no others."""
    import keras

    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: ["cpu:0"])
    monkeypatch.setattr(backend, "load_backend", lambda: None)
    training.fix_operations(True)
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: ["gpu:0"])
    training.fix_operations(False)
    with pytest.raises(InputError, match="export XLA_FLAGS=--xla_gpu_deterministic_ops=true"):
        training.fix_operations(True)
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=true")
    training.fix_operations(True)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(one_sweep(Path(sys.argv[1]))) + "\n")
