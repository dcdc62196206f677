"""The networks from papers: what each is made of, that it learns, and that it is the same after it was saved."""

from __future__ import annotations

from typing import ClassVar

import keras
import numpy as np
import pandas as pd
import pytest

from forge_sweep import training
from forge_sweep.errors import InputError
from forge_sweep.models import ft_transformer, resnet, tabm
from forge_sweep.models.general import adjust
from forge_sweep.models.layers.members import MemberLoss, MemberOutput, Members
from forge_sweep.task import Joint, Task
from forge_sweep.testing import BuilderContract

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

WIDTH, ROWS = 5, 160
X = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)
SIGNAL = X @ np.linspace(-1, 1, WIDTH)
TARGETS = pd.DataFrame({"sold": (SIGNAL > 0) * 1, "kind": np.digitize(SIGNAL, [-0.5, 0.5]), "price": SIGNAL})
TARGETS = TARGETS.assign(other=(X[:, 0] > 0) * 1, double=2 * SIGNAL)
TASKS = {
    "binary": Task.learn("binary", TARGETS[["sold"]]),
    "logits": Task.learn("multiclass", TARGETS[["kind"]], from_logits=True),
    "multilabel": Task.learn("multilabel", TARGETS[["sold", "other"]]),
    "regression": Task.learn("regression", TARGETS[["price", "double"]]),
}
TASKS["joint"] = Joint.of({"one": TASKS["multilabel"], "two": TASKS["regression"]}, [1.0, 2.0])

SMALL = {"width": 16, "depth": 2, "learning_rate": 0.01}
KINDS = {
    "tabm": (tabm, {**SMALL, "members": 4}),
    "tabm full": (tabm, {**SMALL, "members": 4, "full": True, "dropout": 0.0, "embedding": 0}),
    "resnet": (resnet, {**SMALL, "residual_dropout": 0.1}),
    "ft_transformer": (ft_transformer, {**SMALL, "depth": 1, "residual_dropout": 0.1}),
}


def made(kind, task, seed=1, **more):
    """A compiled network of this kind."""
    module, params = KINDS[kind]
    training.seed_everything(seed)
    return adjust(module.build(WIDTH, task, {**params, **more}), more)


def trained(kind, task, epochs=4):
    """A network after a few epochs of the compiled epoch, and its fit."""
    y = task.encode(TARGETS)
    model = made(kind, task)
    weights = np.linspace(0.5, 2, ROWS).astype(np.float32)
    data = training.TrainingData(X, y, X, y, sample_weight=weights)
    spec = training.FitSpec(epochs, 99, 32, "val_loss", "minimize", seed=3)
    return model, training.fit(model, task, data, spec, lambda epoch, logs: False)


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_by_the_compiled_epoch_and_is_sampled(kind):
    model, fitted = trained(kind, TASKS["binary"])
    assert not fitted.events
    assert fitted.history[-1]["val_loss"] < 0.9 * fitted.history[0]["val_loss"] < 0.9
    taken = fitted.probe.sample(model, 4)
    assert not taken.missing
    assert any(layer.constant is not None for layer in taken.layers)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", ["logits", "joint"])
def test_each_task_has_its_outputs_and_the_size_that_arithmetic_tells(kind, task):
    module, params = KINDS[kind]
    params = {**params, "depth": 2}
    model = module.build(WIDTH, TASKS[task], params)
    assert tuple(model.output_shape) == (None, TASKS[task].units)
    assert model.count_params() == module.size(WIDTH, TASKS[task], params)[0]
    layers = [layer.output.shape[1:] for layer in model.layers]
    assert module.size(WIDTH, TASKS[task], params)[1] >= 0.9 * sum(int(np.prod(shape)) for shape in layers)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_read_it_says_the_same_and_decays_no_bias(kind, tmp_path):
    model = made(kind, TASKS["joint"], label_smoothing=0.1, weight_decay=100.0)
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "net.keras")
    again = keras.saving.load_model(tmp_path / "net.keras")
    np.testing.assert_array_equal(training.outputs(again, X), training.outputs(model, X))
    assert again.loss.get_config() == model.loss.get_config()
    now = model.trainable_variables
    before = [np.array(weight) for weight in now]
    model.optimizer.apply_gradients([(np.zeros_like(was), w) for was, w in zip(before, now, strict=True)])
    decayed = {w.name for was, w in zip(before, now, strict=True) if not np.array_equal(was, np.array(w))}
    assert {"kernel"} <= decayed <= {"kernel", "linear", "scale", "before", "after"}


def test_members_are_trained_apart_and_their_probabilities_averaged():
    task = TASKS["logits"]
    model = made("tabm", task, dropout=0.0)
    apart, mean = (np.array(model(X, training=on), np.float64) for on in (True, False))
    assert apart.shape == (ROWS, 4, 3)
    chances = np.exp(apart) / np.exp(apart).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(task.to_scores(mean.astype(np.float32)), chances.mean(axis=1), atol=1e-6)
    y = task.encode(TARGETS)
    each = [-np.log(chances[np.arange(ROWS), member, y]) for member in range(4)]
    found = model.loss(y, apart.astype(np.float32))
    assert float(found) == pytest.approx(np.mean(each), rel=1e-5)


def test_sigmoids_of_logits_are_averaged_too():
    layer = MemberOutput(2, averaged="sigmoid")
    hidden = np.random.default_rng(1).normal(size=(7, 3, 4)).astype(np.float32)
    mean, apart = np.array(layer(hidden)), np.array(layer(hidden, training=True), np.float64)
    np.testing.assert_allclose(1 / (1 + np.exp(-mean)), (1 / (1 + np.exp(-apart))).mean(axis=1), atol=1e-6)


def test_the_values_of_one_embedded_feature_begin_with_one_weight():
    layer = Members(3, "normal", sources=[7, 7, 2, 2, 2])
    layer.build((None, 5))
    scale = np.array(layer.scale)
    assert [len({*row}) for row in scale] == [2, 2, 2]
    with pytest.raises(ValueError, match="sources for 5 values"):
        Members(3, sources=[7, 7, 2, 2, 2]).build((None, 6))


def test_a_loss_that_smooths_no_labels_refuses_to():
    assert "label_smoothing" not in MemberLoss("mean_squared_error").get_config()
    with pytest.raises(InputError, match="label_smoothing"):
        made("tabm", TASKS["regression"], label_smoothing=0.1)


class TestTabM(BuilderContract):
    """TabM keeps what every builder promises."""

    builder = "tabm"
    experiment: ClassVar = {"model": {"search": {"width": {"type": "int", "low": 16, "high": 64}, "members": 4}}}


class TestResNet(BuilderContract):
    """So does ResNet."""

    builder = "resnet"
    experiment: ClassVar = {"model": {"search": {"width": {"type": "int", "low": 16, "high": 64}}}}


class TestRealMLP(BuilderContract):
    """And RealMLP, with what its authors' full variant adds."""

    builder = "realmlp"
    experiment: ClassVar = {
        "model": {"search": {"width": {"type": "int", "low": 16, "high": 64}, "embedding": "pbld", "parametric": True}}
    }


class TestEmbeddedMLP(BuilderContract):
    """And the plain network whose numbers are embedded."""

    builder = "mlp"
    experiment: ClassVar = {
        "model": {"search": {"width": {"type": "int", "low": 16, "high": 64}, "embedding": "piecewise"}}
    }


class TestFTTransformer(BuilderContract):
    """And FT-Transformer."""

    builder = "ft_transformer"
    experiment: ClassVar = {"model": {"search": {"width": {"type": "int", "low": 16, "high": 32}, "depth": 1}}}
