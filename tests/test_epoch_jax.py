"""The compiled epoch on JAX: it trains as `model.fit` does there, in a process that has no TensorFlow."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forge_sweep import models, training
from forge_sweep.preprocessing import one_matrix
from forge_sweep.task import Task

ROWS, BATCH_SIZE, SEED, EPOCHS = 110, 32, 7, 2
PARAMS = {"width": 8, "depth": 2, "learning_rate": 0.01, "dropout": 0.3, "l2": 0.01, "optimizer": "adamw"}
MORE = {"weight_decay": 0.01, "ema": 0.9, "clip_norm": 0.5, "label_smoothing": 0.1}


def problem(weighted: bool = True) -> tuple[Task, training.TrainingData]:
    x = np.random.default_rng(0).normal(size=(ROWS, 6)).astype(np.float32)
    table = pd.DataFrame({"y": (x @ np.linspace(-1, 1, 6) > 0).astype(int)})
    task = Task.learn("binary", table)
    y = task.encode(table)
    weights = {"class_weight": {0: 1.0, 1: 5.0}, "sample_weight": np.linspace(0, 3, ROWS).astype(np.float32)}
    return task, training.TrainingData(x, y, x, y, **(weights if weighted else {}))


def mlp(task: Task, seed: int = 1, **changes: Any) -> Any:
    training.seed_everything(seed)
    return models.build("mlp", one_matrix(6), task, {**PARAMS, **MORE, **changes})


def two_inputs() -> Any:
    import keras

    training.seed_everything(1)
    left, right = keras.Input((4,), name="left"), keras.Input((2,), name="right")
    hidden = keras.layers.Dense(8, activation="relu", activity_regularizer="l2")(left)
    output = keras.layers.Dense(1, activation="sigmoid")(keras.layers.concatenate([hidden, right]))
    model = keras.Model({"left": left, "right": right}, output)
    model.compile("sgd", "binary_crossentropy", metrics=["accuracy"], weighted_metrics=["mae"])
    return model


def by_fit(model: Any, data: training.TrainingData, listed: list[Any]) -> None:
    """`model.fit` with batches in the compiled epoch's order."""
    from forge_sweep.training.data import row_weights
    from forge_sweep.training.epoch_jax import shuffled

    weights = row_weights(data)

    def batches() -> Any:
        for epoch in range(EPOCHS):
            order = np.asarray(shuffled(ROWS, np.uint32(SEED), epoch))
            for start in range(0, ROWS, BATCH_SIZE):
                rows = order[start : start + BATCH_SIZE]
                x = training.each(lambda values, rows=rows: values[rows], data.x_train)
                yield (x, data.y_train[rows]) if weights is None else (x, data.y_train[rows], weights[rows])

    steps = -(-ROWS // BATCH_SIZE)
    model.fit(batches(), steps_per_epoch=steps, epochs=EPOCHS, callbacks=listed, verbose=0)


def compared(make: Any, data: training.TrainingData, schedule: training.Schedule = "constant") -> dict[str, Any]:
    """Largest differences of weights, optimizer and logs between the compiled epoch and `model.fit`."""
    from forge_sweep.training import epoch_jax, loop
    from forge_sweep.training.rates import Follow, Rates

    rates = Rates.of(training.FitSpec(EPOCHS, 9, BATCH_SIZE, "val_auc", "maximize", schedule), ROWS, BATCH_SIZE)
    ours, fits = make(), make()
    before = [np.asarray(variable) for variable in ours.variables]
    for model in (ours, fits):
        listed = [] if rates is None else [Follow(rates, rates.steps // EPOCHS)]
        if model is ours:
            epochs = loop.compiled_epochs(epoch_jax.CompiledEpoch, model, data, BATCH_SIZE, SEED, rates)
            epochs.fit(range(EPOCHS), listed)
        else:
            by_fit(model, data, listed)

    def off(one: Any, other: Any) -> float:
        pairs = zip(one.variables, other.variables, strict=True)
        return max(float(np.abs(np.asarray(a, np.float64) - np.array(b, np.float64)).max()) for a, b in pairs)

    logs = zip(ours.history.history.items(), fits.history.history.items(), strict=True)
    return {
        "weights": off(ours, fits),
        "optimizer": off(ours.optimizer, fits.optimizer),
        "logs": [[name, theirs, abs(a[-1] - b[-1])] for (name, a), (theirs, b) in logs],
        "moved": any(not np.array_equal(np.array(v), was) for v, was in zip(ours.variables, before, strict=True)),
    }


def fit(
    model: Any, task: Task, data: training.TrainingData, keep: Kept | None = None, until: int = 9
) -> tuple[training.FitResult, str]:
    """A fit of three epochs, which is interrupted after one of them, and a digest of all variables."""
    spec = training.FitSpec(3, 9, BATCH_SIZE, "val_auc", "maximize", seed=SEED, checkpoint=keep)

    def on_epoch(epoch: int, logs: dict[str, float]) -> bool:
        if epoch == until:
            raise KeyboardInterrupt
        return False

    result = training.fit(model, task, data, spec, on_epoch)
    return result, hashlib.sha256(b"".join(np.asarray(each).tobytes() for each in model.variables)).hexdigest()


class Kept:
    """A checkpoint in memory."""

    content: bytes | None = None

    def save(self, content: bytes) -> None:
        self.content = content

    def load(self) -> bytes | None:
        return self.content

    def remove(self) -> None:
        self.content = None


def on_jax() -> dict[str, Any]:
    training.select_backend("jax")
    training.load_backend()
    import keras

    from forge_sweep.training import networks

    task, data = problem()
    x = {"left": data.x_train[:, :4], "right": data.x_train[:, 4:]}
    both = training.TrainingData(x, data.y_train, x, data.y_valid, sample_weight=data.sample_weight)
    found: dict[str, Any] = {
        "one_cycle": compared(lambda: mlp(task), data, "one_cycle"),
        "two inputs": compared(two_inputs, both),
    }
    with training.dtype_policy("mixed_float16"):
        found["mixed_float16"] = compared(lambda: mlp(task, depth=1, dropout=0.0), data)

    first, whole = fit(training.reuse(mlp(task)), task, data)
    training.release()
    model = training.reuse(mlp(task))
    second, again = fit(model, task, data)
    found["taken again"] = [networks.epochs_of(model) != {}, whole == again, [*first.events, *second.events]]
    kept = Kept()
    training.release()
    with contextlib.suppress(KeyboardInterrupt):
        fit(training.reuse(mlp(task)), task, data, kept, until=1)
    training.release()
    third, resumed = fit(training.reuse(mlp(task)), task, data, kept)
    found["resumed"] = [third.events, resumed == whole]

    class Own(keras.Model):
        def train_step(self, state: Any, batch: Any) -> Any:
            return super().train_step(state, batch)

    inputs = keras.Input((6,))
    own = Own(inputs, keras.layers.Dense(1, activation="sigmoid")(inputs))
    own.compile("sgd", "binary_crossentropy")
    found["own"] = fit(own, task, data)[0].events
    found["tensorflow"] = "tensorflow" in sys.modules
    return found


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    if importlib.util.find_spec("jax") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI has no jax: .ci/run installs it")
        pytest.skip("needs jax: pip install '.[jax]'")
    environ = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    command = [sys.executable, "-m", "tests.test_epoch_jax"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ, timeout=250)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.slow
@pytest.mark.parametrize("case", ["one_cycle", "two inputs", "mixed_float16"])
def test_weights_optimizer_and_logs_are_those_of_model_fit(found: dict[str, Any], case: str) -> None:
    tolerance = 2e-3 if case == "mixed_float16" else 1e-5
    assert found[case]["moved"]
    assert found[case]["weights"] < tolerance and found[case]["optimizer"] < tolerance
    for name, theirs, off in found[case]["logs"]:
        assert name == theirs and off < tolerance


@pytest.mark.slow
def test_a_network_taken_again_trains_as_a_new_one_does(found: dict[str, Any]) -> None:
    assert found["taken again"] == [True, True, []]


@pytest.mark.slow
def test_a_fit_that_was_cut_off_ends_as_if_nothing_had_been(found: dict[str, Any]) -> None:
    assert found["resumed"] == [["taken up again after epoch 2"], True]


@pytest.mark.slow
def test_a_training_step_of_ones_own_is_left_to_model_fit_and_nothing_imports_tensorflow(found: dict[str, Any]) -> None:
    assert found["own"] == ["trained by model.fit, not by the compiled epoch: Own trains in a way of its own"]
    assert not found["tensorflow"]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(on_jax()))
