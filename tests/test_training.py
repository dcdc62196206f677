"""Fitting one network: what stops it, what it leaves behind, and how its failures read."""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn import datasets

from forge_sweep import models, training
from forge_sweep.errors import DataError, InputError, TrialFailed
from forge_sweep.preprocessing import one_matrix
from forge_sweep.task import Task

# Keras 3.15 turns its variables into arrays in a way that NumPy 2 deprecates, in ReduceLROnPlateau among others.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

PARAMS = {"width": 8, "depth": 1, "learning_rate": 0.01, "dropout": 0.1, "l2": 1e-3}


def go_on(epoch, logs):
    """An on_epoch that never stops."""
    return False


def split(task, x, y, rows=200):
    """The first rows as train, the next 100 as validation, features standardised."""
    x = ((x - x.mean(axis=0)) / (x.std(axis=0) + 1e-9)).astype(np.float32)
    return training.TrainingData(x[:rows], y[:rows], x[rows : rows + 100], y[rows : rows + 100])


@pytest.fixture(scope="module")
def cancer():
    """Task and arrays of the breast cancer set."""
    x, y = datasets.load_breast_cancer(return_X_y=True)
    targets = pd.DataFrame({"target": y})
    task = Task.learn("binary", targets)
    return task, split(task, x, task.encode(targets))


def build(task, data, seed=1, compiled=False, **params):
    """A small network, seeded; not compiled into a graph unless asked, which takes longer than these fits."""
    training.seed_everything(seed)
    model = models.build("mlp", one_matrix(data.x_train.shape[1]), task, {**PARAMS, **params})
    model.run_eagerly = not compiled
    return model


def spec(**changes):
    """A short fit that watches the AUC."""
    defaults = {"epochs": 3, "patience": 2, "batch_size": 50, "monitor": "val_auc", "direction": "maximize"}
    return training.FitSpec(**{**defaults, **changes})


def objective(task, data, model):
    """AUC of a model as it stands."""
    return task.score(data.y_valid, task.to_scores(training.outputs(model, data.x_valid)))["auc"]


def test_every_epoch_is_reported_once_with_exact_metrics(cancer):
    task, data = cancer
    seen = []
    model = build(task, data, compiled=True)
    result = training.fit(model, task, data, spec(), lambda epoch, logs: seen.append((epoch, logs)))
    assert [epoch for epoch, _ in seen] == [0, 1, 2]
    assert tuple(logs for _, logs in seen) == result.history
    assert {"loss", "val_loss", "val_auc", "val_pr_auc", "val_brier", "lr"} <= set(seen[0][1])
    assert result.state == "finished"
    assert result.history[result.best_epoch]["val_auc"] == objective(task, data, model)


@pytest.mark.parametrize("set_name", ["digits", "diabetes"])
def test_val_loss_is_what_keras_evaluates_without_the_penalty_on_weights(set_name):
    x, y = getattr(datasets, f"load_{set_name}")(return_X_y=True)
    targets = pd.DataFrame({"target": y})
    task = Task.learn("multiclass" if set_name == "digits" else "regression", targets)
    data = split(task, x, task.encode(targets))
    model, unpenalised = build(task, data, l2=1.0), build(task, data, l2=0.0)
    short = spec(epochs=1, monitor="val_loss", direction="minimize")
    (logs,) = training.fit(model, task, data, short, go_on).history
    unpenalised.set_weights(model.get_weights())
    assert logs["val_loss"] == pytest.approx(unpenalised.evaluate(data.x_valid, data.y_valid, verbose=0), abs=1e-5)
    assert model.evaluate(data.x_valid, data.y_valid, verbose=0) > logs["val_loss"] + 1
    assert logs["loss"] > logs["val_loss"] + 1


@pytest.mark.parametrize("head", [{}, {"from_logits": True}])
def test_val_loss_of_a_penalised_network_is_the_log_loss_that_baselines_have(cancer, head):
    _, data = cancer
    task = Task.learn("binary", pd.DataFrame({"target": data.y_train[:, 0].astype(int)}), **head)
    (logs,) = training.fit(build(task, data, l2=1.0), task, data, spec(epochs=1), go_on).history
    assert logs["val_loss"] == pytest.approx(logs["val_log_loss"], abs=1e-5)


def test_regression_metrics_are_in_original_units():
    x, y = datasets.load_diabetes(return_X_y=True)
    targets = pd.DataFrame({"target": y})
    task = Task.learn("regression", targets)
    data = split(task, x, task.encode(targets))
    short = spec(epochs=1, monitor="val_rmse", direction="minimize")
    result = training.fit(build(task, data), task, data, short, go_on)
    assert 20 < result.history[0]["val_rmse"] < 300
    assert result.history[0]["val_loss"] < 10


def test_best_weights_are_restored_when_the_epochs_run_out(cancer):
    """Ascending the gradient makes the first epoch the best one."""
    task, data = cancer
    model = build(task, data, optimizer="sgd", l2=0.0, learning_rate=0.05)
    model.optimizer.learning_rate = -0.05
    result = training.fit(model, task, data, spec(epochs=4, patience=10), go_on)
    assert result.best_epoch < 3
    assert objective(task, data, model) == result.history[result.best_epoch]["val_auc"]
    assert objective(task, data, model) > result.history[-1]["val_auc"]


def test_training_stops_early_and_says_so(cancer):
    task, data = cancer
    model = build(task, data, optimizer="sgd", l2=0.0)
    model.optimizer.learning_rate = -0.05
    result = training.fit(model, task, data, spec(epochs=30, patience=2), go_on)
    assert len(result.history) == result.best_epoch + 3
    assert any(event.startswith("early stop after epoch") for event in result.events)
    assert objective(task, data, model) == result.history[result.best_epoch]["val_auc"]


def test_the_learning_rate_is_halved_before_early_stopping(cancer):
    task, data = cancer
    model = build(task, data, learning_rate=1e-5)
    constant = spec(epochs=6, patience=4, monitor="val_recall")
    result = training.fit(model, task, data, constant, go_on)
    assert any("learning rate 1e-05 -> 5e-06 after epoch" in event for event in result.events)
    assert result.history[0]["lr"] == pytest.approx(1e-5)
    assert all("learning_rate" not in row for row in result.history)


def test_without_a_schedule_the_learning_rate_stays_as_it_is(cancer):
    task, data = cancer
    model = build(task, data, learning_rate=1e-5)
    constant = spec(epochs=6, patience=4, monitor="val_recall", schedule="constant")
    result = training.fit(model, task, data, constant, go_on)
    assert {row["lr"] for row in result.history} == {result.history[0]["lr"]}
    assert not any("learning rate" in event for event in result.events)


def test_a_pruned_fit_ends_cleanly_with_its_best_weights(cancer):
    task, data = cancer
    model = build(task, data)
    result = training.fit(model, task, data, spec(epochs=9), lambda epoch, logs: epoch == 1)
    assert result.state == "pruned"
    assert len(result.history) == 2
    assert objective(task, data, model) == result.history[result.best_epoch]["val_auc"]


def test_the_same_seed_gives_bit_identical_weights_in_one_process(cancer):
    task, data = cancer

    def weights(seed):
        model = build(task, data, seed=seed, compiled=True)
        training.fit(model, task, data, spec(epochs=2), go_on)
        return b"".join(w.tobytes() for w in model.get_weights())

    first = weights(5)
    training.release()
    assert first == weights(5)
    assert first != weights(6)


def test_a_loss_that_is_not_finite_stops_the_trial_as_diverged(cancer):
    task, data = cancer
    reports = []
    model = build(task, data, optimizer="sgd", batch_norm=False, l2=1.0, learning_rate=10.0, depth=2)
    with pytest.raises(TrialFailed, match=r"loss is (nan|inf)\n  fix: it began in epoch \d+") as caught:
        training.fit(model, task, data, spec(epochs=60, patience=60), lambda epoch, logs: reports.append(logs))
    assert caught.value.failure == "diverged"
    assert all(np.isfinite(logs["val_loss"]) for logs in reports)


def test_a_deadline_fails_the_trial_as_time_out(cancer):
    task, data = cancer
    reports = []
    with pytest.raises(TrialFailed, match=r"0\.001 s") as caught:
        training.fit(build(task, data), task, data, spec(deadline_s=0.001), lambda *report: reports.append(report))
    assert caught.value.failure == "time-out"
    assert reports == []


def test_a_monitor_that_does_not_exist_fails_before_training_and_lists_what_there_is(cancer):
    task, data = cancer
    model = build(task, data)
    before = model.get_weights()
    with pytest.raises(TrialFailed, match=r"val_acu is not among the logs, which are loss, val_loss, val_auc"):
        training.fit(model, task, data, spec(monitor="val_acu"), go_on)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_a_monitor_without_a_value_is_a_failure_of_the_data(cancer):
    """AUC needs both classes in validation."""
    task, data = cancer
    rows = np.flatnonzero(data.y_valid[:, 0] == 1)
    one_class = training.TrainingData(data.x_train, data.y_train, data.x_valid[rows], data.y_valid[rows])
    with pytest.raises(TrialFailed, match="val_auc is not defined") as caught:
        training.fit(build(task, data), task, one_class, spec(), go_on)
    assert caught.value.failure == "data"


def test_missing_values_are_a_failure_of_the_data_and_not_a_divergence(cancer):
    task, data = cancer
    x = data.x_train.copy()
    x[3, 2] = np.nan
    with pytest.raises(TrialFailed, match="1 train rows have NaN") as caught:
        training.fit(build(task, data), task, training.TrainingData(x, data.y_train, x, data.y_train), spec(), go_on)
    assert caught.value.failure == "data"


def test_what_on_epoch_raises_stops_training_cleanly_and_comes_out_again(cancer):
    task, data = cancer
    model = build(task, data)
    at = []

    def broken(epoch, logs):
        at.append(objective(task, data, model))
        raise LookupError("the tracker is gone")

    with pytest.raises(LookupError, match="the tracker is gone"):
        training.fit(model, task, data, spec(), broken)
    assert at == [objective(task, data, model)]


class Interrupted(KeyboardInterrupt):
    """Like the one a sweep raises when it is asked to stop."""


@pytest.mark.parametrize("reason", [Interrupted, SystemExit])
def test_an_interrupt_in_on_epoch_ends_training_cleanly_and_comes_out_again(cancer, reason):
    task, data = cancer
    model = build(task, data, optimizer="sgd", l2=0.0, learning_rate=0.05)
    model.optimizer.learning_rate = -0.05  # ascending the gradient makes the first epoch the best one
    first = []

    def interrupt(epoch, logs):
        first.append(model.get_weights())
        if epoch == 2:
            raise reason

    with pytest.raises(reason):
        training.fit(model, task, data, spec(epochs=9, patience=9), interrupt)
    assert len(first) == 3
    for best, restored in zip(first[0], model.get_weights(), strict=True):
        assert np.array_equal(best, restored)


def test_an_epoch_that_ends_training_anyway_is_reported_but_not_pruned(cancer):
    """By early stopping, and as the last one."""
    task, data = cancer
    model = build(task, data, optimizer="sgd", l2=0.0)
    model.optimizer.learning_rate = -0.05
    seen = []

    def prune_late(epoch, logs):
        seen.append(epoch)
        return epoch == 2

    stopped = training.fit(model, task, data, spec(epochs=30, patience=2), prune_late)
    assert stopped.best_epoch == 0
    assert any(event.startswith("early stop after epoch 3") for event in stopped.events)
    last = training.fit(build(task, data), task, data, spec(epochs=3, patience=9), prune_late)
    assert seen == [0, 1, 2, 0, 1, 2]
    assert (stopped.state, last.state) == ("finished", "finished")
    assert [len(result.history) for result in (stopped, last)] == [3, 3]


def test_class_weights_reach_the_training_loss_and_not_validation(cancer):
    task, data = cancer
    weighted = training.TrainingData(data.x_train, data.y_train, data.x_valid, data.y_valid, {0: 1.0, 1: 50.0})
    plain = training.fit(build(task, data), task, data, spec(epochs=1), go_on).history[0]
    weighted_model = build(task, data, l2=0.0)
    heavy = training.fit(weighted_model, task, weighted, spec(epochs=1), go_on).history[0]
    assert heavy["loss"] > 5 * plain["loss"]
    assert heavy["val_loss"] == pytest.approx(weighted_model.evaluate(data.x_valid, data.y_valid, verbose=0), abs=1e-5)


@pytest.mark.parametrize(
    ("rows", "asked", "trained"), [(129, 128, 130), (129, 64, 65), (7, 3, 4), (200, 50, 50), (7, 1, 4), (2, 1, 2)]
)
def test_no_batch_of_one_row_reaches_a_normalisation(cancer, rows, asked, trained):
    from forge_sweep.training.fit import trainable_batch_size

    task, data = cancer
    model = build(task, data)
    events = []
    size = trainable_batch_size(model, rows, asked, events)
    assert size == trainable_batch_size(model, rows, size, [])
    assert size >= asked
    assert rows % size != 1
    assert bool(events) == (size != asked)


def test_a_batch_size_stays_where_nothing_is_normalised(cancer):
    task, data = cancer
    model = build(task, data, batch_norm=False)
    short = training.TrainingData(data.x_train[:51], data.y_train[:51], data.x_valid, data.y_valid)
    assert training.fit(model, task, short, spec(epochs=1), go_on).batch_size == 50


def test_a_row_has_the_same_outputs_alone_as_among_others(cancer):
    task, data = cancer
    model = build(task, data, compiled=True)
    together = training.outputs(model, data.x_valid)
    alone = np.concatenate([training.outputs(model, data.x_valid[row : row + 1]) for row in range(5)])
    chunked = training.outputs(model, data.x_valid, batch_size=32)
    assert together.shape == (100, 1)
    assert together.dtype == np.float32
    assert np.array_equal(alone, together[:5])
    assert np.array_equal(chunked, together)
    assert training.outputs(model, data.x_valid[:0]).shape == (0, 1)


def test_release_forgets_the_graphs_of_finished_trials(cancer):
    pytest.importorskip("tensorflow")
    from tensorflow.python.framework import ops

    task, data = cancer
    training.fit(build(task, data, activation="silu", compiled=True), task, data, spec(epochs=1), go_on)
    training.release()
    assert not [name for name in ops.gradient_registry._registry if name.startswith("CustomGradient-")]


class ResourceExhaustedError(Exception):
    """Named like TensorFlow's."""


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (MemoryError(), "out-of-memory"),
        (ResourceExhaustedError("OOM when allocating tensor with shape[4096,65536]"), "out-of-memory"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes"), "out-of-memory"),
        (DataError("target 'y' has 3 missing values"), "data"),
        (ValueError("Input X contains NaN."), "data"),
        (FloatingPointError("overflow"), "diverged"),
        (TimeoutError("too slow"), "time-out"),
        (concurrent.futures.BrokenExecutor("gone"), "lost-worker"),
        (TypeError("unexpected keyword"), "code"),
        (TrialFailed("diverged", "loss is nan"), "diverged"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value,
)
def test_failures_are_classified(error, failure):
    assert training.classify(error).failure == failure


def test_equal_causes_read_alike():
    def first(number):
        what = f"\x1b[1mdense_{number}: no <object at 0x7f{number}> in /tmp/run{number}/x.bin\x1b[0m"
        text = f"Exception encountered when calling Dense.call().\n\n{what}\n\nArguments received by Dense.call():\n"
        return training.classify(RuntimeError(f"{text}  - x={number}")).message

    assert first(1) == first(27) == "RuntimeError: dense_N: no <object at 0x...> in .../x.bin (in Dense.call())"


def test_out_of_memory_has_one_cause_whatever_was_allocated():
    causes = {training.classify(ResourceExhaustedError(f"OOM when allocating shape[{n}]")).message for n in (1, 2)}
    assert len(causes) == 1


def test_a_cause_without_a_message_still_names_its_type():
    assert training.classify(AssertionError()).message == "AssertionError: no message"


def test_an_unknown_backend_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="tensorflow, jax, torch"):
        training.select_backend("tensorflo")


def test_a_backend_that_contradicts_the_environment_is_refused(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(InputError, match="KERAS_BACKEND=jax"):
        training.select_backend("tensorflow")


@pytest.mark.parametrize(("level", "loaded", "expected"), [("1", True, "23"), ("1", False, "1"), ("0", True, "0")])
def test_tensorflow_is_quiet_though_jax_has_set_a_level(monkeypatch, level, loaded, expected):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", level)
    monkeypatch.setitem(sys.modules, "jax" if loaded else "no_jax", sys)
    if not loaded:
        monkeypatch.delitem(sys.modules, "jax", raising=False)
    training.select_backend("tensorflow")
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] in expected


def test_a_backend_is_refused_once_keras_runs_on_another(monkeypatch):
    import keras

    other = next(name for name in ("jax", "tensorflow") if name != keras.config.backend())
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    with pytest.raises(InputError, match=f"already runs on {keras.config.backend()}"):
        training.select_backend(other)


def test_importing_the_package_imports_no_backend():
    heavy = {"keras", "tensorflow", "sklearn", "xgboost"}
    code = f"import sys; from forge_sweep import training, models, baselines; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
