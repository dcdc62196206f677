"""A network that was traced for an earlier trial is taken again, and nobody can tell."""

from __future__ import annotations

import pytest

from forge_sweep import training
from forge_sweep.training import FitSpec
from tests.test_epoch import build, problem, state

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

PARAMS = {"dropout": 0.3, "batch_norm": True, "l2": 0.01, "optimizer": "adam"}


@pytest.fixture(autouse=True)
def _nothing_kept():
    training.forget()
    yield
    training.forget()


def fit(kind="binary", seed=1, weights=(), batch_size=32, **params):
    """A trial: build, take, fit. Returns network, its state at the end, and the history."""
    task, data = problem(kind, weights)
    model = training.reuse(build(task, seed, **{**PARAMS, **params}))
    monitor = "val_r2" if kind == "regression" else "val_auc"
    spec = FitSpec(4, 2, batch_size, monitor, "maximize", seed=seed)
    found = training.fit(model, task, data, spec, lambda epoch, logs: False)
    return model, [array.tobytes() for array in state(model)], found.history


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "nadam", "rmsprop", "sgd"])
@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_a_network_that_is_taken_again_trains_as_a_new_one(kind, optimizer):
    new, expected, history = fit(kind, seed=5, learning_rate=0.003, optimizer=optimizer)
    training.forget()
    first, *_ = fit(kind, seed=2, learning_rate=0.02, optimizer=optimizer)
    training.release()
    again, found, curves = fit(kind, seed=5, learning_rate=0.003, optimizer=optimizer)
    assert again is first
    assert new is not first
    assert found == expected
    assert curves == history


def test_it_is_not_traced_again():
    from forge_sweep.training import networks

    model, *_ = fit(seed=1)
    (epoch,) = networks.epochs_of(model).values()
    traced = epoch._run.experimental_get_tracing_count()
    training.release()
    again, *_ = fit(seed=2, learning_rate=0.05)
    assert again is model
    assert epoch._run.experimental_get_tracing_count() == traced


def test_other_rows_of_the_same_shape_and_weights_are_trained_on():
    _, expected, _ = fit(weights=("class",), seed=3)
    training.forget()
    model, *_ = fit(weights=("sample",), seed=2)
    training.release()
    again, found, _ = fit(weights=("class",), seed=3)
    assert again is model
    assert found == expected


def test_another_batch_size_is_traced_for_the_same_network():
    _, expected, _ = fit(batch_size=16, seed=3)
    training.forget()
    model, *_ = fit(batch_size=32)
    training.release()
    again, found, _ = fit(batch_size=16, seed=3)
    assert again is model
    assert found == expected


@pytest.mark.parametrize("other", [{"dropout": 0.2}, {"l2": 0.02}, {"width": 9}, {"depth": 1}, {"optimizer": "sgd"}])
def test_whatever_is_part_of_the_trace_makes_another_network(other):
    model, *_ = fit()
    training.release()
    assert fit(**other)[0] is not model


def test_a_network_in_use_is_left_alone():
    model, before, _ = fit()
    other, *_ = fit(seed=2)
    assert other is not model
    assert [array.tobytes() for array in state(model)] == before


def test_a_network_of_ones_own_is_never_taken_again():
    import keras

    class Mine(keras.layers.Layer):
        def call(self, x):
            return 2 * x

    inputs = keras.Input((6,))
    own = keras.Model(inputs, keras.layers.Dense(1)(Mine()(inputs)))
    own.compile("sgd", "mse")
    excluded = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    optimizer = keras.optimizers.AdamW(1e-3)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    excluded.compile(optimizer, "mse")
    scheduled = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    scheduled.compile(keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)), "mse")
    for model in (own, excluded, scheduled):
        assert training.reuse(model) is model
        training.release()
        assert training.reuse(model) is model
    from forge_sweep.training import networks

    assert networks._networks == []


def test_only_a_few_small_networks_are_kept(monkeypatch):
    from forge_sweep.training import networks

    monkeypatch.setattr(networks, "MOST_NETWORKS", 2)
    models = [fit(width=width)[0] for width in (4, 5, 6)]
    training.release()
    assert [known.model for known in networks._networks] == models[1:]
    monkeypatch.setattr(networks, "MOST_BYTES", 10)
    training.release()
    assert networks._networks == []


def test_rows_are_not_held_by_networks_that_wait():
    from forge_sweep.training import networks

    model, *_ = fit()
    training.release()
    assert [epoch.data for epoch in networks.epochs_of(model).values()] == [None]
