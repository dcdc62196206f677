"""Samples of a training change nothing of it; what was not finite is found by training the last epoch once more."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from forge_sweep import models, training
from forge_sweep.errors import TrialFailed
from forge_sweep.preprocessing import one_matrix
from forge_sweep.training import FitResult, FitSpec, TrainingData
from tests.test_epoch import FEATURES, PARAMS, problem

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

TASK, DATA = problem("binary", weights=("class",))


def build(**params: Any) -> Any:
    """A seeded network."""
    training.select_backend("tensorflow")
    training.load_backend()
    training.seed_everything(1)
    return models.build("mlp", one_matrix(FEATURES), TASK, {**PARAMS, **params})


def fit(model: Any, data: TrainingData = DATA, **changes: Any) -> FitResult:
    """Four epochs, in an order that is the same each time."""
    given = {"epochs": 4, "patience": 9, "batch_size": 32, "monitor": "val_auc", "direction": "maximize", "seed": 7}
    spec = FitSpec(**{**given, "schedule": "constant", **changes})
    names = [f"x{n}" for n in range(FEATURES)]
    return training.fit(model, TASK, data, spec, lambda epoch, logs: False, columns=names)


@pytest.fixture
def after_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample is taken after each epoch, whatever it takes."""
    from forge_sweep.training.probe import Probe

    plain = Probe.on_epoch_end

    def on_epoch_end(self: Probe, epoch: int, logs: dict[str, float] | None = None) -> None:
        plain(self, epoch, logs)
        self.sample(self.model, epoch + 1)

    monkeypatch.setattr(Probe, "on_epoch_end", on_epoch_end)


REGULAR = {"dropout": 0.3, "batch_norm": True, "l2": 0.01}


@pytest.fixture(scope="module")
def unsampled() -> list[np.ndarray]:
    """Weights of a training with random states and moving statistics."""
    model = build(**REGULAR)
    found = fit(model)
    assert found.probe is not None
    return [np.array(value) for value in model.get_weights()]


def test_samples_change_not_a_bit_of_a_training(unsampled: list[np.ndarray], after_each_epoch: None) -> None:
    model = build(**REGULAR)
    found = fit(model).probe
    assert found is not None and len(found.samples) >= 4
    assert all(map(np.array_equal, model.get_weights(), unsampled))
    last = found.samples[-1]
    assert last.missing == () and last.epochs == 4 and last.steps == 16
    layers = {layer.name: layer for layer in last.layers}
    assert 0 < layers["dense_1"].moved < 1 and layers["dense_1"].gradient > 0  # type: ignore[operator]
    assert layers["activation_1"].constant == 0 and layers["dropout_1"].rate == 0.3
    assert 0 < last.penalty < 1 and [name for name, _ in last.columns][:2] == ["x0", "x1"]  # type: ignore[operator]


def test_a_network_that_is_no_graph_of_layers_says_what_cannot_be_sampled(after_each_epoch: None) -> None:
    build()
    import keras

    class Own(keras.Model):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.hidden = keras.layers.Dense(8, activation="relu")
            self.last = keras.layers.Dense(1)

        def call(self, x: Any) -> Any:
            return self.last(self.hidden(x))

    model = Own()
    model(DATA.x_train[:1])
    model.compile("adam", "mse")
    found = fit(model).probe
    assert found is not None
    (missing,) = found.samples[-1].missing
    assert missing == "activations not sampled: ValueError: Own is no graph of layers"
    assert all((layer.gradient or 0) > 0 for layer in found.samples[-1].layers)


def test_units_are_dead_or_saturated_by_layer() -> None:
    build()
    import keras

    from forge_sweep.training.probe import sampled

    def dense(name: str, kind: str, bias: float) -> Any:
        return keras.layers.Dense(4, kind, bias_initializer=keras.initializers.Constant(bias), name=name)

    inputs = keras.Input((FEATURES,))
    dead, alive = dense("dead", "relu", -30.0)(inputs), dense("alive", "relu", 30.0)(inputs)
    full = dense("full", "tanh", 30.0)(inputs)
    frozen = dense("frozen", "relu", 30.0)
    frozen.trainable = False
    joined = keras.layers.Concatenate()([dead, alive, full, frozen(inputs)])
    model = keras.Model(inputs, keras.layers.Dense(1, "sigmoid", name="last")(joined))
    model.compile("adam", "binary_crossentropy")
    layers = {layer.name: layer for layer in sampled(model, DATA).layers}
    assert {name: layers[name].constant for name in ("dead", "alive")} == {"dead": 1.0, "alive": 0.0}
    assert layers["full"].saturated == 1.0 and layers["last"].saturated is None
    assert layers["dead"].gradient == 0 and layers["last"].gradient > 0  # type: ignore[operator]
    assert layers["frozen"].trainable == 0 and layers["alive"].trainable == 1


# Numbers that are not finite


def failed(data: TrainingData = DATA, **params: Any) -> TrialFailed:
    """How a training fails."""
    with pytest.raises(TrialFailed) as caught:
        fit(build(**params), data)
    assert caught.value.failure == "diverged"
    return caught.value


def test_a_rate_that_is_too_high_is_named_with_the_step_and_the_layer() -> None:
    failure = failed(learning_rate=1e30)
    (found,) = failure.findings
    assert failure.message == "loss is nan" and found.code == "not-finite" and found.subject == "dense_2"
    assert found.seen.startswith("it began in epoch 1, step 2 of 4, in the outputs of dense_2, the gradient before had")
    assert "learning_rate = 0.001 or clip_norm = 1.0" in failure.hint


def test_rows_that_alone_are_not_finite_are_named() -> None:
    x = np.array(DATA.x_train)
    x[17] = 3e38
    (found,) = failed(TrainingData(x, DATA.y_train, DATA.x_valid, DATA.y_valid)).findings
    assert found.rows == (17,) and "1 of its 32 rows alone do it, with inputs up to 3e+38" in found.seen
    assert "learning_rate" not in found.fix and "look at these train rows" in found.fix


def test_what_diverges_in_a_later_epoch_is_replayed_from_a_state_that_was_kept() -> None:
    model = build(learning_rate=1e-3)

    def later(epoch: int, logs: dict[str, float]) -> bool:
        if epoch == 1:
            model.optimizer.learning_rate = 1e30
        return False

    given = {"epochs": 4, "patience": 9, "batch_size": 32, "monitor": "val_auc", "direction": "maximize", "seed": 7}
    with pytest.raises(TrialFailed) as caught:
        training.fit(model, TASK, DATA, FitSpec(**given, schedule="constant"), later)  # type: ignore[arg-type]
    (found,) = caught.value.findings
    assert found.seen.startswith("it began in epoch 3, step 2 of 4") and "learning rate 1e+30" in found.seen
