"""Features as tokens, for transformers over the columns of a table. Imports Keras."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from forge_sweep.models.layers.members import uniform
from forge_sweep.models.layers.numbers import whole


@keras.saving.register_keras_serializable(package="forge_sweep")
class FeatureTokens(keras.layers.Layer):  # type: ignore[misc,unused-ignore]
    """A token for each column, x_j W_j + b_j, behind one token that is learned and stands for the row.

    It is the tokeniser of FT-Transformer (arXiv 2106.11959). An indicator column of 0 and 1 is so a lookup.

    Args:
        width: of each token.
        options: of `keras.layers.Layer`.
    """

    def __init__(self, width: int, **options: Any) -> None:
        super().__init__(**options)
        self.width = whole("width", width)

    def build(self, shape: Any) -> None:
        """A direction and a bias for each column."""
        columns, begin = int(shape[-1]), uniform(self.width)
        self.direction = self.add_weight(shape=(columns, self.width), initializer=begin, name="token_direction")
        self.offset = self.add_weight(shape=(columns, self.width), initializer=begin, name="token_bias")
        self.of_row = self.add_weight(shape=(1, self.width), initializer=begin, name="token_of_row")
        super().build(shape)

    def call(self, inputs: Any) -> Any:
        """(rows, columns) to (rows, 1 + columns, width)."""
        columns = ops.expand_dims(inputs, -1) * self.direction + self.offset
        of_row = ops.zeros_like(columns[:, :1]) + self.of_row
        return ops.concatenate([of_row, columns], axis=1)

    def compute_output_shape(self, shape: Any) -> Any:
        """See `call`."""
        return (shape[0], 1 + shape[-1], self.width)

    def get_config(self) -> dict[str, Any]:
        """All that it was made of."""
        return {**super().get_config(), "width": self.width}
