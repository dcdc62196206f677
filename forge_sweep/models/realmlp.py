"""RealMLP, the simple variant (TD-S), with the embedding and the activation of the full one as hyperparameters.

Holzmüller, Grinsztajn and Steinwart 2024, "Better by Default: Strong Pre-Tuned MLPs and Boosted Trees on Tabular Data"
(https://arxiv.org/abs/2407.04491): a learned scale for each input, dense layers in the neural tangent parametrisation,
an output layer that begins with zeros, Adam with beta2 = 0.95 and four cycles of the learning rate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forge_sweep.experiment import with_defaults
from forge_sweep.models import compiling
from forge_sweep.models.heads import Heads

if TYPE_CHECKING:
    import keras
    import numpy as np

    from forge_sweep.experiment import Params
    from forge_sweep.task import Task

BETA_2 = 0.95
"""Of Adam and its kin: the second moment forgets quicker than Keras' 0.999, as the rate comes back four times."""


def build(n_features: int, task: Task, params: Params, rows: np.ndarray | None = None) -> keras.Model:
    """A compiled RealMLP; layers are named ``features``, ``embedding``, ``scale``, ``dense_1``, ..., ``output``.

    Args:
        n_features: columns of the preprocessed features.
        task: gives units, activation and loss of the head.
        params: hyperparameters; those not named have the defaults of ``experiment.NETWORKS["realmlp"]``.
        rows: training rows for the embedding to learn from.

    Returns:
        A model from (rows, n_features) to (rows, task.units), float32.
    """
    import keras

    from forge_sweep.models.layers import NTPDense, ParametricActivation, Periodic, Scale

    params = with_defaults("realmlp", params)
    hidden = features = keras.Input((n_features,), name="features")
    if params["embedding"] == "pbld":
        embedding = Periodic(4, 16, float(params["embedding_sigma"]), form="pbld", name="embedding")
        embedding.adapt(rows)
        hidden = embedding(hidden)
    hidden = Scale(float(params["scale_rate"]), name="scale")(hidden)
    activation = _activation(task, params)
    for number in range(1, int(params["depth"]) + 1):
        hidden = NTPDense(int(params["width"]), name=f"dense_{number}")(hidden)
        name = f"activation_{number}"
        if params["parametric"]:
            hidden = ParametricActivation(activation, name=name)(hidden)
        else:
            hidden = keras.layers.Activation(activation, name=name)(hidden)
        if params["dropout"]:
            hidden = keras.layers.Dropout(float(params["dropout"]), name=f"dropout_{number}")(hidden)
    heads = Heads.of(task)
    outputs = {}
    for name, head in heads.items():
        last = NTPDense(head.units, head.activation, zeros=True, dtype="float32", name=head.layer_name)
        outputs[name] = last(hidden)
    model = keras.Model(features, heads.join(outputs), name="realmlp")
    optimizer: Any = compiling.optimizer(params)
    if hasattr(optimizer, "beta_2"):
        optimizer.beta_2 = BETA_2
    model.compile(optimizer=optimizer, loss=compiling.loss(task))
    return model


def size(n_features: int, task: Task, params: Params) -> tuple[int, int]:
    """Parameters of the model and values per row that its layers give; every column counts as embedded."""
    params = with_defaults("realmlp", params)
    width, inputs = int(params["width"]), n_features
    parameters, values = 0, n_features
    if params["embedding"] == "pbld":
        inputs = 4 * n_features
        parameters, values = n_features * (2 * 16 + 3 * 16 + 3), values + inputs
    parameters, values = parameters + inputs, values + inputs
    for _ in range(int(params["depth"])):
        parameters += width * (inputs + 1 + bool(params["parametric"]))
        values += width * (2 + bool(params["dropout"]))
        inputs = width
    return parameters + task.units * (inputs + 1), values + task.units


def _activation(task: Task, params: Params) -> str:
    """SELU where classes are predicted, Mish for numbers, unless another one is asked for."""
    if params["activation"] != "auto":
        return str(params["activation"])
    return "mish" if all(head.kind == "regression" for head in task.heads.values()) else "selu"
