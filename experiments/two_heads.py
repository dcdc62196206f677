"""Two heads on one trunk: each has a branch of its own, and the network is trained for both at once."""

import keras
from keras import layers


def build(inputs, heads, *, width: int = 64, depth: int = 2, dropout: float = 0.1):
    """The heads are named in [data.heads] of two_heads.toml; `output` gives each the right units and activation."""
    hidden = inputs["features"]
    for _ in range(depth):
        hidden = layers.Dropout(dropout)(layers.Dense(width, activation="relu")(hidden))
    outputs = {name: head.output(layers.Dense(width // 2, activation="relu")(hidden)) for name, head in heads.items()}
    return keras.Model(inputs, outputs)
