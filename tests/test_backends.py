"""JAX and PyTorch beside TensorFlow: a trial on each, without TensorFlow, and its bundle on the others."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forge_sweep import experiment as experiments
from forge_sweep import sources, training, trial
from forge_sweep.bundle import BACKEND_TOLERANCE, Bundle, ready_backend
from forge_sweep.checks.findings import errors
from forge_sweep.errors import MissingExtra
from forge_sweep.experiment import Experiment
from forge_sweep.preflight import preflight
from forge_sweep.sources import Dataset
from forge_sweep.trial import TrialResult

PARAMS = {"width": 16, "depth": 1, "dropout": 0.2, "learning_rate": 0.01, "l2": 1e-4, "batch_size": 64}


def experiment(backend: str, builder: str = "mlp", root: Path = Path()) -> Experiment:
    return experiments.parse(
        {
            "name": "backends",
            "backend": backend,
            "data": {"source": "sample", "name": "breast_cancer", "target": "target", "task": "binary"},
            "model": {
                "builder": builder,
                "class_weight": "balanced",
                "search": {"width": 16} if builder == "mlp" else {},
            },
            "objective": {"metric": "val_auc"},
            "study": {"n_trials": 1, "epochs": 3},
        },
        root=root,
    )


def trained(backend: str, seed: int = 3) -> tuple[TrialResult, Dataset]:
    spec = experiment(backend)
    dataset = sources.load(spec.data, root=spec.root, seed=spec.seed)
    return trial.run(spec, dataset, PARAMS, seed, lambda epoch, metrics: False), dataset


def on_another_backend(backend: str, of_tensorflow: Path, folder: Path) -> dict[str, Any]:
    """In a process of its own: a trial twice, its bundle, and the scores of a bundle that TensorFlow trained.

    The second time samples are taken after each epoch, which must change nothing.
    """
    training.select_backend(backend)
    training.load_backend()
    first, dataset = trained(backend)
    from forge_sweep.training.probe import Probe

    plain, samples = Probe.on_epoch_end, []

    def on_epoch_end(self: Probe, epoch: int, logs: dict[str, float] | None = None) -> None:
        plain(self, epoch, logs)
        samples.append(self.sample(self.model, epoch + 1))

    Probe.on_epoch_end = on_epoch_end  # type: ignore[method-assign]
    second, _ = trained(backend)
    first.bundle.save(folder, dataset.train.features)
    ready_backend(of_tensorflow)
    (folder.parent / "net.py").write_text(
        "import keras\ndef build(inputs, heads):\n    return keras.Model(inputs, heads.only.output(inputs['features']))"
    )
    spec = experiment(backend, builder="net:build", root=folder.parent)
    return {
        "own model": [str(finding) for finding in errors(preflight(spec, dataset))],
        "value": first.value,
        "same": first.bundle.weights_sha256 == second.bundle.weights_sha256,
        "samples": [[each.missing, max(layer.gradient or 0 for layer in each.layers)] for each in samples[:3]],
        "events": first.events,
        "devices": training.accelerators(),
        "own": first.bundle.scores(dataset.valid.features).tolist(),
        "tensorflow's": Bundle.load(of_tensorflow).scores(dataset.valid.features).tolist(),
        "imported": [name for name in ("tensorflow", "jax", "torch") if name in sys.modules],
    }


@pytest.fixture(scope="module")
def of_tensorflow(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrialResult, Dataset]:
    folder = tmp_path_factory.mktemp("backends") / "tensorflow"
    result, dataset = trained("tensorflow")
    result.bundle.save(folder, dataset.train.features)
    return folder, result, dataset


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_trial_needs_no_tensorflow_and_its_bundle_predicts_the_same_on_it(
    backend: str,
    of_tensorflow: tuple[Path, TrialResult, Dataset],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if importlib.util.find_spec(backend) is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI has no {backend}: .ci/run installs it")
        pytest.skip(f"needs {backend}: pip install '.[{backend}]'")
    folder, result, dataset = of_tensorflow
    command = [sys.executable, "-m", "tests.test_backends", backend, str(folder), str(tmp_path / backend)]
    environ = {name: value for name, value in os.environ.items() if name not in ("KERAS_BACKEND", "PYTHONWARNINGS")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ, timeout=250)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert backend in found["imported"] and "tensorflow" not in found["imported"]
    words = [line for line in done.stderr.splitlines() if "its golden rows give the same scores here" not in line]
    assert words == [], "nothing is printed but the word on the other bundle"
    assert found["same"], "one seed, equal weights"
    assert len(found["samples"]) == 3 and all(not missing and size > 0 for missing, size in found["samples"])
    assert found["own model"] == [], "nothing that the pre-flight refuses"
    assert found["value"] > 0.9
    by_fit = ["trained by model.fit, not by the compiled epoch: the backend is torch"]
    assert found["events"] == (by_fit if backend == "torch" else [])
    theirs = result.bundle.scores(dataset.valid.features)
    assert np.abs(np.array(found["tensorflow's"]) - theirs).max() < BACKEND_TOLERANCE

    with caplog.at_level(logging.WARNING, logger="forge_sweep"):
        back = Bundle.load(tmp_path / backend)
    assert f"backend {backend} (here tensorflow); its golden rows give the same scores here" in caplog.text
    assert np.abs(back.scores(dataset.valid.features) - np.array(found["own"])).max() < BACKEND_TOLERANCE

    import keras

    whole = keras.saving.load_model(tmp_path / backend / "model.keras")
    assert isinstance(whole.optimizer, keras.optimizers.Adam), "it needs no package of the other backend"


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_backend_that_is_not_installed_names_its_extra(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=rf"backend = \"{backend}\"(?s:.*)pip install '\.\[{backend}\]'"):
        training.select_backend(backend)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(on_another_backend(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))))
