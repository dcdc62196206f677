"""How the learning rate goes, and what else every optimizer and loss may have: decay, clipping, averages, smoothing."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from forge_sweep import models, training
from forge_sweep.errors import ExperimentError, InputError, TrialFailed
from forge_sweep.experiment import parse
from forge_sweep.models.general import adjust
from forge_sweep.preprocessing.inputs import one_matrix
from forge_sweep.training import FileCheckpoint, FitSpec
from tests.test_checkpoint import Cut, same
from tests.test_epoch import BATCH_SIZE, ROWS, SEED, build, problem, row_order, state

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

RATE = 0.02
STEPS = -(-ROWS // BATCH_SIZE)  # of an epoch
SMALL = {"width": 4, "depth": 1}


def go_on(epoch, logs):
    return False


def fit(kind="binary", on_epoch=go_on, eagerly=False, params=None, head=None, reuse=False, **changes):
    """A fit of four epochs; returns network and result."""
    task, data = problem(kind, **(head or {}))
    model = build(task, **{**SMALL, "learning_rate": RATE, **(params or {})})
    model.run_eagerly = eagerly
    model = training.reuse(model) if reuse else model
    monitor = "val_r2" if kind == "regression" else "val_auc"
    wanted = {"epochs": 4, "patience": 9, "batch_size": BATCH_SIZE, "monitor": monitor, "direction": "maximize"}
    spec = FitSpec(**{**wanted, "seed": SEED, "identity": "one", "schedule": "constant", **changes})
    return model, training.fit(model, task, data, spec, on_epoch)


def keras_formula(schedule, warmup, epochs, rate=RATE):
    """The rate in each epoch's last step, by Keras' own schedule with the rate in it."""
    import keras

    schedules, total = keras.optimizers.schedules, epochs * STEPS
    rises = round(warmup * total)
    if schedule == "constant":
        formula = schedules.PolynomialDecay(0.0, rises, end_learning_rate=rate, power=1.0)
    elif not rises:
        formula = schedules.CosineDecay(rate, total)
    else:
        first, alpha = (rate / 25, 1e-4 / 25) if schedule == "one_cycle" else (0.0, 0.0)
        formula = schedules.CosineDecay(first, total - rises, alpha, warmup_target=rate, warmup_steps=rises)
    return [float(formula((epoch + 1) * STEPS - 1)) for epoch in range(epochs)]


@pytest.mark.parametrize("eagerly", [False, True])
@pytest.mark.parametrize(
    ("schedule", "warmup", "share"), [("cosine", None, 0.0), ("one_cycle", None, 0.3), ("constant", 0.5, 0.5)]
)
def test_the_rate_of_each_epoch_is_that_of_keras_own_formula(schedule, warmup, share, eagerly):
    """In the compiled epoch and in `model.fit`, which an eager network is trained by."""
    _, found = fit(schedule=schedule, warmup=warmup, eagerly=eagerly)
    assert [row["lr"] for row in found.history] == pytest.approx(keras_formula(schedule, share, 4), rel=1e-5)


@pytest.mark.parametrize("eagerly", [False, True])
def test_the_rate_rises_and_falls_four_times(eagerly):
    """As in RealMLP; the last step is nearly at the end of the fourth cycle."""
    _, found = fit(schedule="coslog4", eagerly=eagerly)
    shares = [((epoch + 1) * STEPS - 1) / (4 * STEPS) for epoch in range(4)]
    expected = [RATE * (0.5 - 0.5 * math.cos(2 * math.pi * math.log2(1 + 15 * t))) for t in shares]
    assert [row["lr"] for row in found.history] == pytest.approx(expected, rel=1e-4, abs=1e-8)


def test_weights_are_those_of_an_optimizer_that_has_the_schedule_itself():
    """So every step has its own rate, not every epoch."""
    import keras

    task, data = problem()
    theirs = build(task, **SMALL)
    theirs.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(RATE, 4 * STEPS)), theirs.loss)
    for epoch in range(4):
        steps_of(theirs, data, epoch)
    ours, found = fit(schedule="cosine", monitor="loss", direction="minimize")
    assert found.best_epoch == 3
    for mine, wanted in zip(ours.trainable_variables, theirs.trainable_variables, strict=True):
        np.testing.assert_allclose(np.array(mine), np.array(wanted), atol=1e-6)


def steps_of(model, data, epoch):
    """Train the steps of an epoch one by one; returns the weights after each."""
    order, after = row_order(ROWS, SEED, epoch).numpy(), []
    for step in range(STEPS):
        rows = order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]
        model.train_on_batch(data.x_train[rows], data.y_train[rows])
        after.append([np.array(variable) for variable in model.trainable_variables])
    return after


def test_the_plateau_begins_after_the_warm_up():
    """Two epochs of warm-up; then every epoch without gain halves the rate of a network that learns nothing."""
    still = {"params": {"learning_rate": 1e-4, "optimizer": "sgd"}, "monitor": "val_recall", "patience": 2}
    _, found = fit(schedule="reduce_on_plateau", warmup=0.5, **still)
    rates = [row["lr"] for row in found.history]
    assert rates[:2] == pytest.approx([1e-4 * (STEPS - 1) / (2 * STEPS), 1e-4 * (2 * STEPS - 1) / (2 * STEPS)])
    assert rates[2:] == pytest.approx([1e-4] * len(rates[2:]))
    assert not any("learning rate" in event for event in found.events)
    _, found = fit(schedule="reduce_on_plateau", warmup=0.25, **{**still, "patience": 4, "epochs": 5})
    assert [row["lr"] for row in found.history][1:] == pytest.approx([1e-4, 1e-4, 1e-4, 0.5e-4])


CASES = {
    "one_cycle": {"schedule": "one_cycle"},
    "plateau": {"schedule": "reduce_on_plateau", "warmup": 0.25, "patience": 2},
}
EMA = {"ema": 0.7, "weight_decay": 0.01, "clip_norm": 0.5, "dropout": 0.2, "batch_norm": True}


@pytest.mark.parametrize("case", CASES)
def test_a_fit_that_was_cut_off_ends_with_the_same_bits(tmp_path, case):
    whole, expected = fit(params=EMA, **CASES[case])
    checkpoint = FileCheckpoint(tmp_path / "trial.npz")
    with pytest.raises(Cut):
        fit(on_epoch=cut_in_the_second, params=EMA, checkpoint=checkpoint, **CASES[case])
    resumed, found = fit(params=EMA, checkpoint=checkpoint, **CASES[case])
    assert found.history == expected.history
    assert same(state(whole), state(resumed))


def cut_in_the_second(epoch, logs):
    if epoch == 1:
        raise Cut
    return False


def test_half_a_batch_goes_on_at_the_same_place_of_the_schedule(tmp_path):
    checkpoint = FileCheckpoint(tmp_path / "trial.npz")
    with pytest.raises(Cut):
        fit(on_epoch=cut_in_the_second, checkpoint=checkpoint, schedule="cosine")
    halved = {"params": {"learning_rate": RATE / 2}, "batch_size": BATCH_SIZE // 2}
    _, found = fit(checkpoint=checkpoint, schedule="cosine", **halved)
    steps = -(-ROWS // (BATCH_SIZE // 2))
    last = 0.5 * (1 + math.cos(math.pi * (3 * steps - 1) / (4 * steps)))
    assert found.history[2]["lr"] == pytest.approx(RATE / 2 * last, rel=1e-4)


def test_a_network_that_is_taken_again_follows_its_new_rate():
    training.forget()
    try:
        expected, history = fit(schedule="cosine", params={"learning_rate": 0.005})
        first, _ = fit(schedule="cosine", reuse=True)
        training.release()
        again, found = fit(schedule="cosine", params={"learning_rate": 0.005}, reuse=True)
        assert again is first
        assert found.history == history.history
        assert same(state(expected), state(again))
        training.release()
        _, longer = fit(schedule="cosine", epochs=5, reuse=True)
        assert [row["lr"] for row in longer.history] == pytest.approx(keras_formula("cosine", 0.0, 5), rel=1e-5)
    finally:
        training.forget()


def test_a_schedule_of_the_builders_own_is_followed_and_not_contradicted():
    import keras

    task, data = problem()

    def scheduled():
        model = build(task)
        model.compile(keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, STEPS, 0.5)), model.loss)
        return model

    spec = FitSpec(3, 1, BATCH_SIZE, "val_recall", "maximize", seed=SEED)
    found = training.fit(scheduled(), task, data, spec, go_on)
    assert found.history[1]["lr"] == pytest.approx(0.1 * 0.5**2)  # as the optimizer has it after the epoch
    assert any("follows a learning-rate schedule of its own" in event for event in found.events)
    with pytest.raises(TrialFailed, match=r"remove schedule and warmup") as failed:
        training.fit(scheduled(), task, data, FitSpec(3, 1, 32, "val_auc", "maximize", schedule="cosine"), go_on)
    assert failed.value.failure == "code"


def test_averages_are_validated_and_kept_and_training_goes_on_with_the_weights():
    """Averaged by hand over a network that is trained the same way without them."""
    momentum, average, ends = 0.7, None, []
    task, data = problem()
    model, found = fit(params={"ema": momentum, "optimizer": "sgd"}, monitor="loss", direction="minimize")
    plain = build(task, learning_rate=RATE, optimizer="sgd", **SMALL)
    for epoch in range(4):
        for weights in steps_of(plain, data, epoch):
            average = [
                momentum * before + (1 - momentum) * now
                for before, now in zip(average or weights, weights, strict=True)
            ]
        ends.append(average)
    for mine, wanted in zip(model.trainable_variables, ends[found.best_epoch], strict=True):
        np.testing.assert_allclose(np.array(mine), wanted, atol=1e-6)
    for row, averages in zip(found.history, ends, strict=True):
        plain.set_weights(averages)
        scores = task.to_scores(training.outputs(plain, data.x_valid))
        assert row["val_auc"] == pytest.approx(task.score(data.y_valid, scores)["auc"], abs=1e-6)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "nadam", "rmsprop", "sgd"])
def test_every_optimizer_decays_weights_and_clips_as_keras_does(optimizer):
    import keras

    task, data = problem()
    ours = build(task, optimizer=optimizer, weight_decay=0.1, clip_norm=0.01)
    theirs = build(task, optimizer=optimizer)
    theirs.compile(type(ours.optimizer)(learning_rate=0.01, weight_decay=0.1, global_clipnorm=0.01), loss=theirs.loss)
    for model in (ours, theirs):
        model.train_on_batch(data.x_train, data.y_train)
    assert same(ours.get_weights(), theirs.get_weights())
    assert not same(ours.get_weights(), build(task, optimizer=optimizer).get_weights())
    assert isinstance(ours.optimizer, keras.optimizers.Optimizer)


def test_zero_is_what_nothing_is():
    task, _ = problem()
    off = {"weight_decay": 0.0, "clip_norm": 0.0, "ema": 0.0, "label_smoothing": 0.0}
    plain, zero = build(task), build(task, **off)
    assert plain.optimizer.get_config() | {"name": ""} == zero.optimizer.get_config() | {"name": ""}
    assert float(build(task, optimizer="adamw", **off).optimizer.weight_decay) == 0.0


@pytest.mark.parametrize(("kind", "head"), [("binary", {}), ("one-hot", {}), ("multilabel", {"from_logits": True})])
def test_labels_are_smoothed_in_training_and_not_in_val_loss(kind, head):
    _, plain = fit(kind, head=head, epochs=1)
    smooth, found = fit(kind, head=head, epochs=1, params={"label_smoothing": 0.5})
    task, data = problem(kind, **head)
    assert found.history[0]["loss"] != pytest.approx(plain.history[0]["loss"], rel=1e-3)
    assert smooth.loss.get_config()["label_smoothing"] == 0.5
    assert smooth.loss.get_config()["from_logits"] == bool(head)
    score = task.score(data.y_valid, task.to_scores(training.outputs(smooth, data.x_valid)))
    wanted = score["log_loss"]
    assert found.history[0]["val_loss"] == pytest.approx(wanted, rel=1e-4)
    assert smooth.evaluate(data.x_valid, data.y_valid, verbose=0) != pytest.approx(wanted, rel=1e-3)


def test_a_builders_own_losses_and_metrics_stay_where_labels_are_smoothed():
    import keras

    inputs = keras.Input((3,))
    heads = [keras.layers.Dense(1, activation="sigmoid", name="a")(inputs), keras.layers.Dense(1, name="b")(inputs)]
    model = keras.Model(inputs, {"a": heads[0], "b": heads[1]})
    losses = {"a": "binary_crossentropy", "b": "mse"}
    model.compile("adam", losses, loss_weights={"a": 1.0, "b": 0.5}, metrics={"a": ["accuracy"]})
    optimizer = model.optimizer
    adjust(model, {"label_smoothing": 0.2})
    assert model.optimizer is optimizer
    assert model.loss["a"].get_config()["label_smoothing"] == 0.2
    assert model.loss["b"] == "mse"
    compiled = model.get_compile_config()
    assert (compiled["loss_weights"], compiled["metrics"]) == ({"a": 1.0, "b": 0.5}, {"a": ["accuracy"]})


@pytest.mark.parametrize(
    ("params", "compiled", "words"),
    [
        ({"label_smoothing": 0.1}, {"loss": "mae"}, "mae has none"),
        ({"clip_norm": 1.0}, {"optimizer": "clipping"}, "the builder's optimizer has clipvalue already"),
        ({"ema": 0.9}, {"optimizer": "built"}, "has its variables already"),
    ],
)
def test_what_a_builder_leaves_no_room_for_is_refused_by_name(params, compiled, words):
    import keras

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    optimizer = keras.optimizers.SGD(0.1, clipvalue=1.0 if compiled.get("optimizer") == "clipping" else None)
    model.compile(optimizer, compiled.get("loss", "mse"))
    if compiled.get("optimizer") == "built":
        optimizer.build(model.trainable_variables)
    with pytest.raises(InputError, match=words):
        adjust(model, params)


def experiment(search, study=(), **data):
    """An experiment with this search space."""
    given = {"source": "file", "path": "rows.csv", "target": "y", "task": "binary", **data}
    metric = {"regression": "val_rmse"}.get(given["task"], "val_auc")
    return parse(
        {
            "name": "rates",
            "data": given,
            "model": {"search": search},
            "objective": {"metric": metric},
            "study": {"n_trials": 1, **dict(study)},
        },
        root=Path(),
    )


def test_the_schedule_of_the_study_holds_where_none_is_searched():
    from forge_sweep.trial import schedule_of

    assert schedule_of(experiment({}), {}) == "reduce_on_plateau"
    assert schedule_of(experiment({}, {"schedule": "none"}), {}) == "constant"
    assert schedule_of(experiment({"schedule": "cosine"}), {"schedule": "cosine"}) == "cosine"
    assert schedule_of(experiment({"schedule": "constant"}, {"schedule": "none"}), {}) == "constant"


def test_an_experiment_without_them_has_no_such_parameters():
    names = {"schedule", "warmup", "weight_decay", "clip_norm", "ema", "label_smoothing"}
    assert not names & set(experiment({}).space)
    assert names <= set(experiment(dict.fromkeys(names - {"schedule"}, 0.1) | {"schedule": "cosine"}).space)


@pytest.mark.parametrize(
    ("search", "study", "data", "words"),
    [
        (
            {"schedule": "cosine"},
            {"schedule": "plateau"},
            {},
            r'model.search.schedule = "cosine".*study.schedule = "plateau" too',
        ),
        ({"schedule": "linear"}, {}, {}, "one_cycle"),
        ({"warmup": 3}, {}, {}, "from 0 to 0.9"),
        ({"label_smoothing": 0.1}, {}, {"task": "regression"}, 'loss = "mse", for which Keras has no label smoothing'),
        ({"label_smoothing": 0.1}, {}, {"task": "multiclass"}, "as one-hot columns"),
        ({"clipnorm": 1.0}, {}, {}, 'did you mean "clip_norm"?'),
    ],
)
def test_what_cannot_be_is_refused_with_its_keys(search, study, data, words):
    with pytest.raises(ExperimentError, match=words):
        experiment(search, study, **data)


def test_models_are_built_with_them_whatever_the_builder_is():
    task, _ = problem()
    training.seed_everything(1)
    model = models.build("mlp", one_matrix(6), task, {"width": 4, "ema": 0.9, "weight_decay": 0.1, "clip_norm": 2.0})
    config = model.optimizer.get_config()
    assert (config["use_ema"], config["ema_momentum"]) == (True, 0.9)
    assert (config["weight_decay"], config["global_clipnorm"]) == (0.1, 2.0)
