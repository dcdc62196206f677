"""The networks that models.build makes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from forge_sweep import models, training
from forge_sweep.errors import InputError
from forge_sweep.models import mlp
from forge_sweep.preprocessing import InputSpec, one_matrix, with_rows
from forge_sweep.task import Task

BINARY = Task.learn("binary", pd.DataFrame({"y": [0, 1, 0, 1]}))
DIGITS = Task.learn("multiclass", pd.DataFrame({"y": list(range(10)) * 2}))
ONE = one_matrix(3)
PRICE = Task.learn("regression", pd.DataFrame({"y": [1.0, 2.0, 3.0]}))


def layers_of(**params):
    """Layers of a small binary network by name."""
    model = models.build("mlp", ONE, BINARY, {"width": 8, "depth": 1, **params})
    return {layer.name: layer for layer in model.layers}


def test_a_block_is_dense_norm_activation_dropout_under_stable_names():
    model = models.build("mlp", ONE, BINARY, {"width": 8, "depth": 2, "dropout": 0.5})
    blocks = [f"{part}_{number}" for number in (1, 2) for part in ("dense", "norm", "activation", "dropout")]
    assert [layer.name for layer in model.layers] == ["features", *blocks, "output"]


def test_what_is_switched_off_leaves_no_layer():
    assert list(layers_of(batch_norm=False, dropout=0.0)) == ["features", "dense_1", "activation_1", "output"]


def test_a_bias_is_left_to_the_normalisation():
    assert not layers_of(batch_norm=True)["dense_1"].use_bias
    assert layers_of(batch_norm=False)["dense_1"].use_bias


def test_kernels_start_from_he_and_carry_the_l2_penalty():
    dense = layers_of(l2=0.01)["dense_1"]
    assert type(dense.kernel_initializer).__name__ == "HeNormal"
    assert float(dense.kernel_regularizer.l2) == pytest.approx(0.01)
    assert layers_of(l2=0.0)["dense_1"].kernel_regularizer is None


@pytest.mark.parametrize(
    ("width", "depth", "shape", "units", "expected"),
    [
        (64, 3, "constant", 1, (64, 64, 64)),
        (64, 3, "taper", 1, (64, 32, 16)),
        (32, 4, "taper", 1, (32, 16, 8, 8)),
        (64, 3, "taper", 40, (64, 40, 40)),
        (4, 2, "taper", 1, (4, 4)),
    ],
)
def test_widths_follow_the_shape_and_stay_above_the_output(width, depth, shape, units, expected):
    assert mlp.widths({"width": width, "depth": depth, "shape": shape}, units) == expected


@pytest.mark.parametrize(
    ("task", "activation", "loss"),
    [
        (BINARY, "sigmoid", "BinaryCrossentropy"),
        (DIGITS, "softmax", "SparseCategoricalCrossentropy"),
        (PRICE, "linear", "mse"),
    ],
    ids=lambda value: getattr(value, "kind", value),
)
def test_the_head_and_the_loss_follow_the_task(task, activation, loss):
    model = models.build("mlp", ONE, task, {"width": 8, "depth": 1})
    assert model.output_shape == (None, task.units)
    assert model.layers[-1].activation.__name__ == activation
    assert (model.loss if isinstance(model.loss, str) else type(model.loss).__name__) == loss


def test_logits_reach_the_loss():
    task = Task.learn("binary", pd.DataFrame({"y": [0, 1, 0, 1]}), from_logits=True)
    model = models.build("mlp", ONE, task, {"width": 8, "depth": 1})
    assert model.loss.get_config()["from_logits"] is True
    assert model.layers[-1].activation.__name__ == "linear"


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "nadam", "rmsprop", "sgd"])
def test_each_optimizer_takes_its_learning_rate_and_momentum_where_it_has_one(optimizer):
    model = models.build("mlp", ONE, BINARY, {"optimizer": optimizer, "learning_rate": 0.02, "momentum": 0.7})
    assert type(model.optimizer).__name__.lower() == optimizer
    assert float(model.optimizer.learning_rate) == pytest.approx(0.02)
    assert getattr(model.optimizer, "momentum", 0.7) == 0.7


def test_the_same_seed_gives_the_same_initial_weights():
    def weights(seed):
        training.seed_everything(seed)
        return np.concatenate([w.ravel() for w in models.build("mlp", ONE, BINARY, {}).get_weights()])

    assert np.array_equal(weights(1), weights(1))
    assert not np.array_equal(weights(1), weights(2))


def test_xla_is_off_on_a_machine_without_an_accelerator():
    model = models.build("mlp", ONE, BINARY, {})
    assert bool(training.accelerators()) or not model.jit_compile


def test_an_unknown_builder_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="mlp"):
        models.build("mpl", ONE, BINARY, {})


def test_a_builder_of_one_matrix_refuses_other_inputs_by_name():
    spec = {"amounts": InputSpec((3,)), "shop": InputSpec((1,), "int32", vocabulary=9)}
    with pytest.raises(InputError, match=r"mlp.* one matrix .*amounts \(3,\), shop \(1,\)"):
        models.build("mlp", spec, BINARY, {})
    with pytest.raises(InputError, match=r"features \(8, 8, 1\)"):
        models.size("mlp", {"features": InputSpec((8, 8, 1))}, BINARY, {})


@pytest.mark.parametrize("kind", ["piecewise", "periodic"])
def test_columns_are_embedded_before_the_first_block(kind):
    params = {"width": 24, "depth": 1, "embedding": kind, "embedding_dims": 5, "embedding_bins": 9}
    model = models.build("mlp", one_matrix(7), DIGITS, params)
    assert [layer.name for layer in model.layers][:3] == ["features", "embedding", "dense_1"]
    values = sum(layer.output.shape[-1] for layer in model.layers)
    assert models.size("mlp", one_matrix(7), DIGITS, params) == (model.count_params(), values)


def test_an_embedding_learns_from_the_rows_at_hand():
    rows = np.c_[np.arange(100) % 2, np.arange(100.0), np.arange(100.0) ** 3].astype("float32")
    spec = with_rows(one_matrix(3, ("a", "b", "c")), rows)
    embedding = models.build("mlp", spec, BINARY, {"embedding": "piecewise", "embedding_bins": 4}).layers[1]
    assert embedding.plain == (0,) and embedding.edges[1] == [0, 24.75, 49.5, 74.25, 99]


@pytest.mark.parametrize("params", [{}, {"embedding": "pbld", "parametric": True, "dropout": 0.1, "depth": 2}])
def test_realmlp_is_as_its_paper_has_it(params):
    for task, activation in ((BINARY, "selu"), (PRICE, "mish")):
        model = models.build("realmlp", one_matrix(7), task, params)
        (first, *_) = [layer for layer in model.layers if layer.name == "activation_1"]
        assert first.activation.__name__ == activation
        assert not np.array(model.layers[-1].kernel).any()
        assert (model.optimizer.beta_2, float(model.optimizer.learning_rate)) == (0.95, pytest.approx(0.04))
        values = sum(layer.output.shape[-1] for layer in model.layers)
        assert models.size("realmlp", one_matrix(7), task, params) == (model.count_params(), values)


@pytest.mark.parametrize("shape", ["constant", "taper"])
@pytest.mark.parametrize("on", [True, False], ids=["norm-dropout", "plain"])
def test_the_size_told_without_building_is_the_size_of_the_model(shape, on):
    params = {"width": 24, "depth": 3, "shape": shape, "batch_norm": on, "dropout": 0.2 * on}
    model = models.build("mlp", one_matrix(7), DIGITS, params)
    values = sum(layer.output.shape[-1] for layer in model.layers)
    assert models.size("mlp", one_matrix(7), DIGITS, params) == (model.count_params(), values)
