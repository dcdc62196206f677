"""The compiled epoch: it trains as `model.fit` does, in an order that can be made again, and stops within an epoch."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from forge_sweep import models, training
from forge_sweep.errors import TrialFailed
from forge_sweep.preprocessing import one_matrix
from forge_sweep.task import Task

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

ROWS, FEATURES, BATCH_SIZE, SEED = 110, 6, 32, 7  # the last batch has 14 rows
PARAMS = {"width": 8, "depth": 2, "learning_rate": 0.01, "dropout": 0.0, "l2": 0.0, "batch_norm": False}


def rows(n=ROWS, seed=0):
    """Features that the targets of `targets` can be learned from."""
    return np.random.default_rng(seed).normal(size=(n, FEATURES)).astype(np.float32)


def targets(kind, x):
    """A table of targets for rows of features."""
    signal = x @ np.linspace(-1, 1, FEATURES)
    if kind == "regression":
        return pd.DataFrame({"y": signal})
    if kind == "multilabel":
        return pd.DataFrame({f"y{i}": (x[:, i] > 0).astype(int) for i in range(3)})
    codes = np.digitize(signal, [0.0] if kind == "binary" else [-0.5, 0.5])
    if kind == "one-hot":
        return pd.DataFrame(np.eye(3, dtype=int)[codes], columns=["a", "b", "c"])
    return pd.DataFrame({"y": codes})


def problem(kind="binary", weights=(), **head):
    """Task and data; train and validation are the same rows."""
    x = rows()
    table = targets(kind, x)
    task = Task.learn("multiclass" if kind == "one-hot" else kind, table, **head)
    y = task.encode(table)
    return task, training.TrainingData(
        x,
        y,
        x,
        y,
        class_weight={0: 1.0, 1: 5.0} if "class" in weights else None,
        sample_weight=np.linspace(0, 3, ROWS).astype(np.float32) if "sample" in weights else None,
    )


def build(task, seed=1, **params):
    training.seed_everything(seed)
    return models.build("mlp", one_matrix(FEATURES), task, {**PARAMS, **params})


def row_order(rows, seed, epoch):
    """The order in which a fit with this seed sees the rows in an epoch."""
    import tensorflow as tf

    from forge_sweep.training.epoch import shuffled

    return shuffled(rows, tf.constant((seed, epoch), tf.int64))


def train(model, data, epochs=range(3), seed=SEED):
    """Run whole epochs; returns the logs of the last one."""
    import keras

    from forge_sweep.training.epoch import CompiledEpoch

    epoch = CompiledEpoch(model, data, BATCH_SIZE, seed)
    listed, logs = keras.callbacks.CallbackList(model=model), {}
    model.stop_training = False
    for number in epochs:
        model.reset_metrics()
        logs = epoch(number, listed)
    return {name: float(value) for name, value in logs.items()}


def train_by_fit(model, data, epochs=range(3), seed=SEED):
    """The same through `model.fit`, in the same order."""
    for number in epochs:
        order = row_order(ROWS, seed, number).numpy()
        weights = data.sample_weight if data.sample_weight is None else data.sample_weight[order]
        fitted = model.fit(
            training.each(lambda values, order=order: values[order], data.x_train),
            data.y_train[order],
            sample_weight=weights,
            class_weight=data.class_weight,
            batch_size=BATCH_SIZE,
            shuffle=False,
            verbose=0,
        )
    return {name: values[0] for name, values in fitted.history.items()}


def state(model):
    """All that training changes: weights, moving statistics, the optimizer's slots and loss scale."""
    return [np.asarray(variable) for variable in [*model.variables, *model.optimizer.variables]]


def assert_same_training(ours, fits, data):
    """Both models come to the same weights and the same logs."""
    before = state(ours)[0]
    logs, expected = train(ours, data), train_by_fit(fits, data)
    assert logs == pytest.approx(expected, abs=1e-5)
    assert not np.allclose(before, state(ours)[0])
    for found, wanted in zip(state(ours), state(fits), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "weights", "params"),
    [
        ("binary", (), {"optimizer": "adam", "l2": 0.01, "batch_norm": True}),
        ("binary", ("class",), {"optimizer": "sgd", "momentum": 0.9}),
        ("binary", ("sample",), {"optimizer": "rmsprop", "momentum": 0.5, "l2": 0.01}),
        ("multiclass", ("class",), {"optimizer": "adamw"}),
        ("one-hot", ("class",), {"optimizer": "nadam", "batch_norm": True}),
        ("multilabel", ("sample",), {"optimizer": "adam"}),
        ("regression", (), {"optimizer": "sgd", "batch_norm": True, "l2": 0.01}),
        ("regression", ("sample",), {"optimizer": "adam"}),
    ],
)
def test_weights_and_loss_are_those_of_model_fit(kind, weights, params):
    head = {"loss": "mae"} if "sample" in weights and kind == "regression" else {}
    task, data = problem(kind, weights, **head)
    assert_same_training(build(task, **params), build(task, **params), data)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_and_loss_scaling_are_those_of_model_fit(policy):
    """The first steps overflow in float16, are left out, and halve the loss scale."""
    import keras

    kept = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        task, data = problem("binary", ("sample",), from_logits=True)
        ours, fits = build(task, batch_norm=True, l2=0.01), build(task, batch_norm=True, l2=0.01)
    finally:
        keras.config.set_dtype_policy(kept)
    if policy == "mixed_float16":
        for model in (ours, fits):
            model.optimizer.initial_scale = 2.0**24
    assert_same_training(ours, fits, data)
    if policy == "mixed_float16":
        assert float(ours.optimizer.dynamic_scale) < 2.0**24


def two_inputs():
    """A model that takes two tables by name, adds a penalty on its activity, and has metrics of its own."""
    import keras

    training.seed_everything(1)
    left, right = keras.Input((4,), name="left"), keras.Input((2,), name="right")
    hidden = keras.layers.Dense(8, activation="relu", activity_regularizer="l2")(left)
    output = keras.layers.Dense(1, activation="sigmoid")(keras.layers.concatenate([hidden, right]))
    model = keras.Model({"left": left, "right": right}, output)
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"], weighted_metrics=["mae"])
    return model


def test_several_inputs_and_compiled_metrics_are_those_of_model_fit():
    task, data = problem("binary", ("sample",))
    x = {"left": data.x_train[:, :4], "right": data.x_train[:, 4:]}
    both = training.TrainingData(x, data.y_train, x, data.y_valid, sample_weight=data.sample_weight)
    assert_same_training(two_inputs(), two_inputs(), both)
    spec = training.FitSpec(epochs=2, patience=2, batch_size=BATCH_SIZE, monitor="val_auc", direction="maximize")
    result = training.fit(two_inputs(), task, both, spec, lambda epoch, logs: False)
    assert {"loss", "accuracy", "mae", "val_auc"} <= set(result.history[-1])


def test_class_and_sample_weights_are_multiplied():
    from forge_sweep.training.data import row_weights

    _, data = problem("binary", ("class", "sample"))
    expected = data.sample_weight * np.where(data.y_train[:, 0] == 1, 5.0, 1.0)
    assert np.allclose(row_weights(data), expected)


def test_the_order_of_rows_follows_from_seed_and_epoch_alone():
    orders = {(seed, epoch): tuple(row_order(ROWS, seed, epoch).numpy()) for seed in (0, 2**32 - 1) for epoch in (0, 1)}
    training.seed_everything(3)
    assert orders[0, 1] == tuple(row_order(ROWS, 0, 1).numpy())
    assert len(set(orders.values())) == 4
    assert all(sorted(order) == list(range(ROWS)) for order in orders.values())


def test_an_epoch_taken_up_again_continues_bit_by_bit():
    task, data = problem()
    whole, halves = build(task, dropout=0.2), build(task, dropout=0.2)
    train(whole, data, range(4))
    train(halves, data, range(2))
    train(halves, data, range(2, 4))
    assert all(np.array_equal(a, b) for a, b in zip(state(whole), state(halves), strict=True))


def test_steps_per_call_change_nothing(monkeypatch):
    from forge_sweep.training import loop

    task, data = problem()
    many, single = build(task, dropout=0.2, batch_norm=True), build(task, dropout=0.2, batch_norm=True)
    monkeypatch.setattr(loop, "SEGMENT_S", 1e9)
    train(many, data)
    monkeypatch.setattr(loop, "SEGMENT_S", 0.0)
    train(single, data)
    assert all(np.array_equal(a, b) for a, b in zip(state(many), state(single), strict=True))


def test_calls_grow_while_they_are_short_and_shrink_where_they_are_long():
    from forge_sweep.training.epoch import CompiledEpoch

    task, data = problem()
    epoch = CompiledEpoch(build(task), data, 4, SEED)
    strides = [epoch.stride]
    for seconds in (0.1, 0.1, 0.7, 0.1, 0.1, 0.1, 3.0):
        epoch._pace(seconds)
        strides.append(epoch.stride)
    assert strides == [1, 2, 4, 4, 8, 16, 28, 14]


def test_rows_that_do_not_fit_are_streamed_to_the_same_weights(monkeypatch):
    from forge_sweep.training import epoch

    task, data = problem("binary", ("sample",))
    resident, streamed = build(task, batch_norm=True), build(task, batch_norm=True)
    expected = train(resident, data)
    monkeypatch.setattr(epoch, "free_bytes", lambda device: 1000)
    training.forget()
    assert epoch.CompiledEpoch(streamed, data, BATCH_SIZE, SEED).streamed
    assert train(streamed, data) == expected
    assert all(np.array_equal(a, b) for a, b in zip(state(resident), state(streamed), strict=True))
    assert fit(streamed, task, data, epochs=1).probe.waited_s > 0


def fit(model, task, data, callbacks=(), **changes):
    """A whole fit that nothing stops."""
    defaults = {"epochs": 3, "patience": 9, "batch_size": BATCH_SIZE, "monitor": "val_auc", "direction": "maximize"}
    spec = training.FitSpec(**{**defaults, "seed": SEED, **changes})
    return training.fit(model, task, data, spec, lambda epoch, logs: False, callbacks=callbacks)


def test_a_loss_that_is_not_finite_stops_the_epoch_at_that_step():
    task, data = problem("binary", ("sample",))
    place = 70  # in the third of four batches
    data.sample_weight[row := int(row_order(ROWS, SEED, 0)[place])] = np.inf
    model = build(task)
    with pytest.raises(TrialFailed, match=r"loss is inf\n  fix: it began in epoch 1") as caught:
        fit(model, task, data)
    assert caught.value.failure == "diverged"
    assert int(model.optimizer.iterations) == place // BATCH_SIZE + 1
    (found,) = caught.value.findings
    assert found.rows == (row,) and "step 3 of 4, in the loss itself" in found.seen and "their targets" in found.fix


def test_a_deadline_stops_within_an_epoch():
    task, data = problem()
    model = build(task)
    with pytest.raises(TrialFailed) as caught:
        fit(model, task, data, deadline_s=0.001, batch_size=4)
    assert caught.value.failure == "time-out"
    assert int(model.optimizer.iterations) == 1


def test_stock_callbacks_see_each_epoch(tmp_path):
    import keras

    task, data = problem()
    model, seen = build(task), []
    more = [
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2),
        keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(logs["val_auc"])),
    ]
    result = fit(model, task, data, more)
    assert result.events == ()
    assert seen == [row["val_auc"] for row in result.history]
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 4
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01 / 8)
    assert model.history.history["loss"] == [row["loss"] for row in result.history]


def test_what_needs_model_fit_gets_it_and_the_result_says_so():
    import keras

    class Counts(keras.callbacks.Callback):
        batches = 0

        def on_train_batch_end(self, batch, logs=None):
            self.batches += 1

    task, data = problem()
    counts = Counts()
    result = fit(build(task), task, data, [counts], epochs=2)
    assert counts.batches == 2 * 4
    assert result.events == ("trained by model.fit, not by the compiled epoch: Counts wants to see every batch",)


def test_a_training_step_of_ones_own_is_left_to_model_fit():
    import keras

    from forge_sweep.training.fit import obstacle

    class Own(keras.Model):
        def train_step(self, data):
            return super().train_step(data)

    def compiled(kind):
        inputs = keras.Input((FEATURES,))
        model = kind(inputs, keras.layers.Dense(1)(inputs))
        model.compile("sgd", "mse")
        return model

    assert obstacle(compiled(Own), []) == "Own trains in a way of its own"
    assert obstacle(compiled(keras.Model), [keras.callbacks.History()]) is None
    assert "TerminateOnNaN" in obstacle(compiled(keras.Model), [keras.callbacks.TerminateOnNaN()])
    batchwise = keras.callbacks.LambdaCallback(on_train_batch_end=print)
    assert "LambdaCallback" in obstacle(compiled(keras.Model), [batchwise])


def test_a_trained_model_is_saved_as_one_that_was_trained_by_model_fit(tmp_path):
    import keras

    task, data = problem()
    keras.utils.clear_session()  # names of optimizers are counted
    ours = build(task, batch_norm=True)
    train(ours, data)
    keras.utils.clear_session()
    fits = build(task, batch_norm=True)
    train_by_fit(fits, data)
    assert ours.to_json() == fits.to_json()
    assert ours.get_compile_config() == fits.get_compile_config()
    ours.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert all(np.array_equal(a, b) for a, b in zip(state(ours), state(loaded), strict=True))
    assert ours.evaluate(data.x_valid, data.y_valid, verbose=0) == pytest.approx(
        loaded.evaluate(data.x_valid, data.y_valid, verbose=0)
    )


def digest():
    """All weights after a fit with dropout."""
    task, data = problem("multiclass")
    model = build(task, dropout=0.3, batch_norm=True)
    fit(model, task, data)
    return hashlib.sha256(b"".join(weights.tobytes() for weights in model.get_weights())).hexdigest()


@pytest.mark.slow
def test_the_same_seed_gives_bit_identical_weights_in_another_process():
    script = "from tests import test_epoch; print(test_epoch.digest())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == digest() == digest()


@pytest.mark.slow
def test_rows_lie_on_the_device_of_the_weights():
    """Two logical CPUs stand in for a GPU beside a CPU."""
    script = """if True:
        import tensorflow as tf
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        from tests import test_epoch
        from forge_sweep.training.epoch import CompiledEpoch
        task, data = test_epoch.problem()
        with tf.device("CPU:1"):
            model = test_epoch.build(task)
        epoch = CompiledEpoch(model, data, 32, 7)
        print({tensor.device[-5:] for tensor in tf.nest.flatten(epoch.data)}, test_epoch.train(model, data)["loss"])
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    task, data = problem()
    assert done.stdout.strip() == f"{{'CPU:1'}} {train(build(task), data)['loss']}"
