"""Mixed precision: what a trial computes in, and what stays float32: weights, outputs, and the model that is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forge_sweep import experiment as experiments
from forge_sweep import models, sources, training, trial
from forge_sweep.bundle import Bundle
from forge_sweep.errors import TrialFailed
from forge_sweep.experiment import Experiment
from forge_sweep.experiment.code import from_files
from forge_sweep.preprocessing import one_matrix
from forge_sweep.training import backend

PARAMS = {"width": 16, "depth": 1, "learning_rate": 0.01, "batch_size": 64, "ema": 0.5, "clip_norm": 1.0}
OWN = """
import keras
def build(inputs, heads, *, own_head: bool = False):
    hidden = keras.layers.Dense(8, activation="relu")(inputs["features"])
    head = keras.layers.Dense(1, activation="sigmoid")(hidden) if own_head else heads.only.output(hidden)
    model = keras.Model(inputs, head)
    model.compile(keras.optimizers.SGD(0.1), "binary_crossentropy", metrics=["accuracy"])
    return model
"""


def experiment(precision: str | None = None, **model: Any) -> Experiment:
    tables = {
        "name": "precision",
        "data": {"source": "sample", "name": "breast_cancer", "target": "target", "task": "binary"},
        "model": model,
        "objective": {"metric": "val_auc"},
        "study": {"n_trials": 1, "epochs": 2},
    }
    return experiments.parse(tables if precision is None else {**tables, "precision": precision}, root=Path())


def own(precision: str) -> Experiment:
    code = from_files("net", "build", {"net": OWN})
    made = experiment(precision)
    return made.model_copy(update={"code": code, "model": made.model.model_copy(update={"builder": "net:build"})})


def trained(spec: Experiment, params: Any = PARAMS) -> trial.TrialResult:
    dataset = sources.load(spec.data, root=spec.root, seed=spec.seed)
    return trial.run(spec, dataset, params, 3, lambda epoch, metrics: False)


def of(spec: Experiment) -> tuple[Any, trial.Recipe]:
    return sources.load(spec.data, root=spec.root, seed=spec.seed), trial.Recipe.of(spec)


def policies(model: Any) -> set[str]:
    return {layer.dtype_policy.name for layer in model.layers}


@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_a_trial_in_16_bits_learns_and_its_bundle_is_float32(precision: str, tmp_path: Path) -> None:
    import keras

    spec = experiment(precision)
    result, plain = trained(spec), trained(experiment())
    assert keras.config.dtype_policy().name == "float32", "the policy of the process is as it was"
    assert (result.precision, plain.precision) == (precision, "float32")
    assert policies(result.bundle.model) == {"float32"}
    assert type(result.bundle.model.optimizer).__name__ == "Adam"
    assert result.events == (), "the compiled epoch runs it, loss scaling included"
    assert 0 < abs(result.metrics["val_loss"] - plain.metrics["val_loss"]) < 0.05
    dataset = sources.load(spec.data, root=spec.root, seed=spec.seed)
    scored = trial.score(result.bundle, dataset.valid, "val")
    assert scored["val_auc"] == pytest.approx(result.value, abs=0.01)
    result.bundle.save(tmp_path / "bundle", dataset.train.features)
    again = Bundle.load(tmp_path / "bundle", verify=True)
    assert again.weights_sha256 == result.bundle.weights_sha256


def test_a_network_in_16_bits_has_a_float32_head_and_says_where_it_has_none() -> None:
    spec = own("mixed_bfloat16")
    result = trained(spec, {"batch_size": 64})
    assert type(result.bundle.model.optimizer).__name__ == "SGD" and policies(result.bundle.model) == {"float32"}
    with pytest.raises(TrialFailed, match=r"net:build gives bfloat16(?s:.*)heads\.only\.output"):
        trained(spec, {"batch_size": 64, "own_head": True})
    trained(own("float32"), {"batch_size": 64, "own_head": True})


STEP = """
    class Own(keras.Model):
        def train_step(self, data):
            import tensorflow as tf
            x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True))
            self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
            return {"loss": loss}
    model = Own(inputs, head)
"""


def test_a_train_step_of_ones_own_that_scales_no_loss_is_refused_in_float16() -> None:
    task = trial.prepare(*of(experiment())).task
    text = OWN.replace("    model = keras.Model(inputs, head)\n", STEP[1:])
    inputs = one_matrix(30)
    for precision, refused in (("mixed_float16", True), ("mixed_bfloat16", False)):
        with training.dtype_policy(precision):
            if refused:
                with pytest.raises(TrialFailed, match=r"Own: in mixed_float16(?s:.*)scale_loss\(loss\)"):
                    models.build(from_files("net", "build", {"net": text}), inputs, task, {})
                text = text.replace("tape.gradient(loss", "tape.gradient(self.optimizer.scale_loss(loss)")
            models.build(from_files("net", "build", {"net": text}), inputs, task, {})


@pytest.mark.parametrize(
    ("capability", "policy"), [((9, 0), "mixed_bfloat16"), ((7, 5), "mixed_float16"), ((6, 1), "float32")]
)
def test_auto_goes_by_the_weakest_gpu(
    capability: tuple[int, int], policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow as tf

    gpus = {"a": (9, 0), "b": capability}
    monkeypatch.setattr(backend, "accelerators", lambda: ("gpu:0", "gpu:1"))
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: list(gpus))
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: {"compute_capability": gpus[gpu]})
    found, said = training.precision_of("auto")
    assert found == policy
    assert f"{policy}, a GPU of compute capability {capability[0]}.{capability[1]}" in said


def test_auto_is_float32_on_a_cpu_and_the_trial_says_so() -> None:
    if training.accelerators():
        pytest.skip("has a GPU")
    result = trained(experiment("auto"))
    assert result.events == ("precision auto: float32, no GPU of NVIDIA's",)
    assert result.bundle.weights_sha256 == trained(experiment()).bundle.weights_sha256


def test_an_older_experiment_keeps_its_contract() -> None:
    recorded = experiment().resolved()
    del recorded["precision"]
    assert experiment("float32").contract() == experiment().contract()
    assert experiment("auto").contract() != experiment().contract()
    assert experiment().differences(recorded) == {}
    assert np.array_equal([*experiment("mixed_float16").differences(recorded)], ["precision"])
