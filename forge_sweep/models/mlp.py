"""Multilayer perceptron: blocks of Dense -> BatchNormalization -> activation -> Dropout, then the task's head.

Normalisation stands before the activation, as in Ioffe and Szegedy 2015 (https://arxiv.org/abs/1502.03167), and dropout
after it, so that the shift in variance it causes does not reach the moving statistics of its own block (Li et al. 2018,
https://arxiv.org/abs/1801.05134).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forge_sweep.experiment import with_defaults
from forge_sweep.models.compiling import compile_model
from forge_sweep.models.heads import Heads

if TYPE_CHECKING:
    import keras
    import numpy as np

    from forge_sweep.experiment import Params
    from forge_sweep.task import Task

NARROWEST = 8
"""Least width a taper goes down to."""

DIMS, BINS, SIGMA = 12, 32, 0.1
"""Of embeddings where ``embedding_dims``, ``embedding_bins`` and ``embedding_sigma`` are not named."""


def build(n_features: int, task: Task, params: Params, rows: np.ndarray | None = None) -> keras.Model:
    """A compiled multilayer perceptron.

    Layers are named ``features``, ``embedding`` (where there is one), ``dense_1``, ``norm_1``, ``activation_1``,
    ``dropout_1``, ..., ``output``, so that two models of one configuration have the same weight names. Kernels start
    from He's normal distribution (He et al. 2015, https://arxiv.org/abs/1502.01852); the head from Keras' default,
    Glorot uniform. Several heads share all of them but the output layers, which have the names of the heads.

    Args:
        n_features: columns of the preprocessed features.
        task: gives units, activation and loss of the head.
        params: hyperparameters; the keys are those of ``experiment.HYPERPARAMETERS``.
        rows: training rows that an embedding learns from.

    Returns:
        A model from (rows, n_features) to (rows, task.units), float32.
    """
    import keras

    params = with_defaults("mlp", params)
    features = keras.Input((n_features,), name="features")
    hidden = _embedded(features, params, rows)
    for number, width in enumerate(widths(params, task.units), start=1):
        hidden = _block(hidden, number, width, params)
    heads = Heads.of(task)
    output = heads.join({name: head.output(hidden) for name, head in heads.items()})
    model = keras.Model(features, output, name="mlp")
    compile_model(model, task, params)
    return model


def size(n_features: int, task: Task, params: Params) -> tuple[int, int]:
    """Parameters of the model (moving statistics included) and values per row that its layers give."""
    params = with_defaults("mlp", params)
    layers = 2 + bool(params["batch_norm"]) + bool(params["dropout"])
    parameters, values, inputs = 0, n_features, n_features
    if kind := embedding_of(params):
        dims, bins = int(params.get("embedding_dims", DIMS)), int(params.get("embedding_bins", BINS))
        inputs = n_features * dims  # at most: columns of two values are not embedded
        each = dims * (bins + 2) if kind == "piecewise" else bins + dims * (2 * bins + 1)
        parameters, values = n_features * each, values + inputs
    for width in widths(params, task.units):
        parameters += width * (inputs + (4 if params["batch_norm"] else 1))
        values += width * layers
        inputs = width
    return parameters + task.units * (inputs + 1), values + task.units


def embedding_of(params: Params) -> str:
    """``piecewise``, ``periodic``, or "" where columns are not embedded."""
    return str(params.get("embedding", "none")).replace("none", "")


def widths(params: Params, units: int) -> tuple[int, ...]:
    """Width of each block.

    Args:
        params: ``width``, ``depth`` and ``shape`` are read.
        units: output units; a taper does not go below them, nor below 8, unless ``width`` itself is smaller.
    """
    width, depth = int(params["width"]), int(params["depth"])
    if params["shape"] == "constant":
        return (width,) * depth
    least = min(width, max(NARROWEST, units))
    return tuple(max(width >> block, least) for block in range(depth))


def _embedded(features: Any, params: Params, rows: np.ndarray | None) -> Any:
    """The features as the first dense layer sees them; without an embedding as they are."""
    if not (kind := embedding_of(params)):
        return features
    from forge_sweep.models.layers import Periodic, PiecewiseLinear

    dims, bins = int(params.get("embedding_dims", DIMS)), int(params.get("embedding_bins", BINS))
    if kind == "piecewise":
        layer: Any = PiecewiseLinear(dims, bins, name="embedding")
    else:
        layer = Periodic(dims, bins, float(params.get("embedding_sigma", SIGMA)), name="embedding")
    layer.adapt(rows)
    return layer(features)


def _block(hidden: Any, number: int, width: int, params: Params) -> Any:
    """Dense -> BatchNormalization -> activation -> Dropout; what is switched off leaves no layer behind."""
    from keras import layers, regularizers

    normalise, dropout, l2 = bool(params["batch_norm"]), float(params["dropout"]), float(params["l2"])
    hidden = layers.Dense(
        width,
        kernel_initializer="he_normal",
        kernel_regularizer=regularizers.L2(l2) if l2 else None,
        use_bias=not normalise,  # the normalisation subtracts any bias again and brings its own
        name=f"dense_{number}",
    )(hidden)
    if normalise:
        hidden = layers.BatchNormalization(name=f"norm_{number}")(hidden)
    hidden = layers.Activation(params["activation"], name=f"activation_{number}")(hidden)
    return layers.Dropout(dropout, name=f"dropout_{number}")(hidden) if dropout else hidden
