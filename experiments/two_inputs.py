"""Two inputs: amounts beside an embedding of categories, and a skip connection past the hidden layers."""

import keras
from keras import layers


def build(inputs, heads, *, width: int = 32, depth: int = 2, dimensions: int = 4, dropout: float = 0.1):
    """Amounts are a matrix, kinds one code per column; both are named in [data.inputs] of two_inputs.toml."""
    kinds = inputs["kinds"]
    vectors = layers.Flatten()(layers.Embedding(kinds.vocabulary, dimensions)(kinds))
    joined = layers.Concatenate()([inputs["amounts"], vectors])
    hidden = joined
    for _ in range(depth):
        hidden = layers.Dropout(dropout)(layers.Dense(width, activation="relu")(hidden))
    return keras.Model(inputs, heads.only.output(layers.Concatenate()([hidden, joined])))
