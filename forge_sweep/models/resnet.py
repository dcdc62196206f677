"""ResNet for tables (Gorishniy, Rubachev, Khrulkov and Babenko, NeurIPS 2021, https://arxiv.org/abs/2106.11959).

Written from the paper: blocks that add to what they get, with batch normalisation before each and a wider layer inside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forge_sweep.experiment import with_defaults
from forge_sweep.models.compiling import compile_published
from forge_sweep.models.heads import Heads

if TYPE_CHECKING:
    import keras

    from forge_sweep.experiment import Params
    from forge_sweep.task import Task


def build(n_features: int, task: Task, params: Params) -> keras.Model:
    """A compiled ResNet: dense -> (x + dropout(dense(dropout(relu(dense(norm(x))))))) x depth -> norm -> relu -> head.

    Args:
        n_features: columns of the preprocessed features.
        task: gives units, activation and loss of the heads.
        params: hyperparameters; what they lack has its default.

    Returns:
        A model from (rows, n_features) to (rows, task.units), float32.
    """
    import keras
    from keras import layers

    from forge_sweep.models.layers.members import uniform

    params = with_defaults("resnet", params)
    width, inner = int(params["width"]), _inner(params)
    features = keras.Input((n_features,), name="features")
    hidden = layers.Dense(width, kernel_initializer=uniform(n_features), name="stem")(features)
    for number in range(1, int(params["depth"]) + 1):
        added = layers.BatchNormalization(name=f"norm_{number}")(hidden)
        added = layers.Dense(inner, kernel_initializer=uniform(width), name=f"wide_{number}")(added)
        added = layers.Activation("relu", name=f"activation_{number}")(added)
        added = _dropped(added, float(params["dropout"]), f"dropout_{number}")
        added = layers.Dense(width, kernel_initializer=uniform(inner), name=f"dense_{number}")(added)
        added = _dropped(added, float(params["residual_dropout"]), f"residual_dropout_{number}")
        hidden = layers.Add(name=f"add_{number}")([hidden, added])
    hidden = layers.BatchNormalization(name="norm")(hidden)
    hidden = layers.Activation("relu", name="activation")(hidden)
    heads = Heads.of(task)
    model = keras.Model(
        features, heads.join({name: head.output(hidden) for name, head in heads.items()}), name="resnet"
    )
    compile_published(model, task, params)
    return model


def size(n_features: int, task: Task, params: Params) -> tuple[int, int]:
    """Parameters of the model (moving statistics included) and values per row that its layers give."""
    params = with_defaults("resnet", params)
    width, inner, depth = int(params["width"]), _inner(params), int(params["depth"])
    block = 4 * width + inner * (width + 1) + width * (inner + 1)
    parameters = width * (n_features + 1) + depth * block + 4 * width + task.units * (width + 1)
    wide, narrow = 2 + bool(params["dropout"]), 3 + bool(params["residual_dropout"])
    return parameters, n_features + 3 * width + depth * (wide * inner + narrow * width) + 2 * task.units


def _inner(params: Params) -> int:
    """Width of the layer inside a block."""
    return max(1, round(float(params["hidden_factor"]) * int(params["width"])))


def _dropped(hidden: Any, rate: float, name: str) -> Any:
    """Dropout, which at a rate of 0 leaves no layer behind."""
    from keras import layers

    return layers.Dropout(rate, name=name)(hidden) if rate else hidden
