"""FT-Transformer (Gorishniy, Rubachev, Khrulkov and Babenko, NeurIPS 2021, https://arxiv.org/abs/2106.11959).

Written from the paper: each column is a token, attention goes over the columns of a row, and the prediction is made of
one token that is learned. Time and memory grow with the square of the number of columns, encoded categories included.
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

HEADS = 8
"""Of attention, as in the paper."""


def build(n_features: int, task: Task, params: Params) -> keras.Model:
    """A compiled FT-Transformer: tokens -> (attention, ReGLU) x depth -> norm -> ReLU -> head, of the row's token.

    Blocks normalise what they get, but for the first attention; the last one attends from the row's token alone.

    Args:
        n_features: columns of the preprocessed features.
        task: gives units, activation and loss of the heads.
        params: hyperparameters; what they lack has its default.

    Returns:
        A model from (rows, n_features) to (rows, task.units), float32.
    """
    import keras
    from keras import layers

    from forge_sweep.models.layers.tokens import FeatureTokens

    params = with_defaults("ft_transformer", params)
    width, depth = int(params["width"]), int(params["depth"])
    features = keras.Input((n_features,), name="features")
    hidden = FeatureTokens(width, name="tokens")(features)
    for number in range(1, depth + 1):
        seen = hidden
        if number > 1:
            seen = layers.LayerNormalization(epsilon=1e-5, name=f"attention_norm_{number}")(hidden)
        attention = layers.MultiHeadAttention(
            HEADS, _key(width), dropout=float(params["attention_dropout"]), name=f"attention_{number}"
        )
        asking = seen
        if number == depth:
            hidden, asking = hidden[:, :1], seen[:, :1]
        added = _dropped(attention(asking, seen), float(params["residual_dropout"]), f"attention_dropout_{number}")
        hidden = layers.Add(name=f"attended_{number}")([hidden, added])
        hidden = _gated(hidden, number, params)
    hidden = layers.Reshape((width,), name="of_row")(hidden)
    hidden = layers.LayerNormalization(epsilon=1e-5, name="norm")(hidden)
    hidden = layers.Activation("relu", name="activation")(hidden)
    heads = Heads.of(task)
    output = heads.join({name: head.output(hidden) for name, head in heads.items()})
    model = keras.Model(features, output, name="ft_transformer")
    compile_published(model, task, params)
    return model


def size(n_features: int, task: Task, params: Params) -> tuple[int, int]:
    """Parameters of the model, and values per row that its layers give, those of attention included."""
    params = with_defaults("ft_transformer", params)
    width, depth, tokens = int(params["width"]), int(params["depth"]), n_features + 1
    keys, inner = HEADS * _key(width), _inner(params)
    attention = 3 * keys * (width + 1) + width * (keys + 1)
    gated = 2 * width + 2 * inner * (width + 1) + width * (inner + 1)
    parameters = width * (2 * n_features + 1) + depth * (attention + gated) + (depth - 1) * 2 * width
    values = n_features + tokens * width + depth * (HEADS * tokens**2 + tokens * (3 * keys + 7 * width + 3 * inner))
    return parameters + 2 * width + task.units * (width + 1), values + 3 * width + 2 * task.units


def _gated(hidden: Any, number: int, params: Params) -> Any:
    """X + dropout(dense(dropout(a * relu(b)))), where a and b are dense layers of the normalised x."""
    from keras import layers

    inner = _inner(params)
    seen = layers.LayerNormalization(epsilon=1e-5, name=f"norm_{number}")(hidden)
    value = layers.Dense(inner, kernel_initializer="he_normal", name=f"value_{number}")(seen)
    gate = layers.Dense(inner, kernel_initializer="he_normal", activation="relu", name=f"gate_{number}")(seen)
    added = layers.Multiply(name=f"gated_{number}")([value, gate])
    added = _dropped(added, float(params["dropout"]), f"dropout_{number}")
    added = layers.Dense(int(params["width"]), kernel_initializer="lecun_normal", name=f"dense_{number}")(added)
    added = _dropped(added, float(params["residual_dropout"]), f"residual_dropout_{number}")
    return layers.Add(name=f"add_{number}")([hidden, added])


def _key(width: int) -> int:
    """Width of a head's keys."""
    return max(1, width // HEADS)


def _inner(params: Params) -> int:
    """Width of the gated layer."""
    return max(1, round(float(params["hidden_factor"]) * int(params["width"])))


def _dropped(hidden: Any, rate: float, name: str) -> Any:
    """Dropout, which at a rate of 0 leaves no layer behind."""
    from keras import layers

    return layers.Dropout(rate, name=name)(hidden) if rate else hidden
