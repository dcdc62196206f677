"""An image beside a table: convolutions on the one, a dense layer on the other, and a head on both."""

import keras
from keras import layers


def build(inputs, heads, *, filters: int = 16, width: int = 32, dropout: float = 0.2):
    """The picture comes as 0..1, the measurements are scaled; [data.inputs] of table_and_image.toml names both."""
    seen = layers.Conv2D(filters, 3, activation="relu")(inputs["picture"])
    seen = layers.Conv2D(2 * filters, 3, activation="relu")(seen)
    seen = layers.Flatten()(layers.MaxPooling2D()(seen))
    known = layers.Dense(width, activation="relu")(inputs["measured"])
    joined = layers.Dropout(dropout)(layers.Concatenate()([seen, known]))
    return keras.Model(inputs, heads.only.output(layers.Dense(width, activation="relu")(joined)))
