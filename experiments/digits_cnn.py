"""A convolutional network on small images, which sees them moved a little while it learns."""

import keras
from keras import layers


def build(inputs, heads, *, filters: int = 16, blocks: int = 2, shift: float = 0.1, dropout: float = 0.2):
    """``shift``: how far training images are moved, as a share of their side; predictions take them as they are."""
    hidden = layers.RandomTranslation(shift, shift, fill_mode="constant")(inputs["features"])
    for block in range(blocks):
        hidden = layers.Conv2D(filters * 2**block, 3, padding="same", activation="relu")(hidden)
        hidden = layers.MaxPooling2D()(hidden)
    hidden = layers.Dropout(dropout)(layers.Flatten()(hidden))
    return keras.Model(inputs, heads.only.output(hidden))
