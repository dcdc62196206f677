"""Layers and the loss of networks that are many in one: members that share most weights (TabM, arXiv 2410.24210).

A tensor of members is (rows, members, width). Imports Keras; all is computed with ``keras.ops``, on every backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import initializers, ops

from forge_sweep.models.layers.numbers import whole

Draws = Literal["signs", "normal", "ones"]
Averaged = Literal["values", "softmax", "sigmoid"]


@keras.saving.register_keras_serializable(package="forge_sweep")
class Members(keras.layers.Layer):  # type: ignore[misc,unused-ignore]
    """Each member's view of the same rows: (rows, width) to (rows, members, width), times weights of (members, width).

    Args:
        members: how many.
        draws: initial weights: ``signs`` are -1 and 1, each half of the time, ``normal`` is N(0, 1), ``ones``.
        sources: the column that each value comes from, such as `PiecewiseLinear.sources`; those of one column begin
            with one weight, since they stand or fall together. None: each with its own.
        options: of `keras.layers.Layer`.

    Raises:
        ValueError: there are not as many ``sources`` as values.
    """

    def __init__(
        self, members: int, draws: Draws = "signs", sources: Sequence[int] | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self.members, self.draws = whole("members", members), draws
        self.sources = None if sources is None else [int(source) for source in sources]

    def build(self, shape: Any) -> None:
        """One weight for each member and value."""
        width = int(shape[-1])
        sources = range(width) if self.sources is None else self.sources
        if len(sources) != width:
            raise ValueError(f"{self.name} has sources for {len(sources)} values, and there are {width}")
        columns, owner = np.unique(np.asarray(sources), return_inverse=True)
        drawn = _drawn(self.draws, (self.members, len(columns)))
        self.scale = self.add_weight(
            shape=(self.members, width),
            initializer=lambda shape, dtype: ops.cast(ops.take(drawn, owner, axis=1), dtype),
            name="scale",
        )
        super().build(shape)

    def call(self, inputs: Any) -> Any:
        """(rows, width) to (rows, members, width)."""
        return ops.expand_dims(inputs, 1) * self.scale

    def compute_output_shape(self, shape: Any) -> Any:
        """See `call`."""
        return (shape[0], self.members, shape[-1])

    def get_config(self) -> dict[str, Any]:
        """All that it was made of."""
        return {**super().get_config(), "members": self.members, "draws": self.draws, "sources": self.sources}


@keras.saving.register_keras_serializable(package="forge_sweep")
class MemberDense(keras.layers.Layer):  # type: ignore[misc,unused-ignore]
    """A dense layer whose kernel all members share, with weights of their own around it.

    Member m computes s_m * ((r_m * x) W) + b_m. Kernel and biases begin as in `uniform`, r and s with ones
    (BatchEnsemble, arXiv 2002.06715, as TabM has it).

    Args:
        units: outputs of each member.
        first: whether `Members` comes before it, which is its r.
        options: of `keras.layers.Layer`.
    """

    def __init__(self, units: int, first: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.units, self.first = whole("units", units), bool(first)

    def build(self, shape: Any) -> None:
        """The shared kernel, and two or three vectors for each member."""
        members, width = int(shape[-2]), int(shape[-1])
        self.kernel = self.add_weight(shape=(width, self.units), initializer=uniform(width), name="kernel")
        if not self.first:
            self.before = self.add_weight(shape=(members, width), initializer="ones", name="before")
        self.after = self.add_weight(shape=(members, self.units), initializer="ones", name="after")
        self.bias = self.add_weight(shape=(members, self.units), initializer=uniform(width), name="bias")
        super().build(shape)

    def call(self, inputs: Any) -> Any:
        """(rows, members, width) to (rows, members, units)."""
        hidden = inputs if self.first else inputs * self.before
        return ops.matmul(hidden, self.kernel) * self.after + self.bias

    def compute_output_shape(self, shape: Any) -> Any:
        """See `call`."""
        return (*shape[:-1], self.units)

    def get_config(self) -> dict[str, Any]:
        """All that it was made of."""
        return {**super().get_config(), "units": self.units, "first": self.first}


@keras.saving.register_keras_serializable(package="forge_sweep")
class MemberOutput(keras.layers.Layer):  # type: ignore[misc,unused-ignore]
    """The head: dense layers, one of each member. Trained apart, averaged to predict.

    In training (``training=True``) it gives what each member says, (rows, members, units), for `MemberLoss` to take;
    otherwise the mean over members, (rows, units).

    Args:
        units: outputs of each member.
        activation: of each member's outputs.
        averaged: what the mean is taken of: the outputs as they are, or, where these are logits, the probabilities
            that a ``softmax`` or ``sigmoid`` makes of them; the mean becomes logits again.
        options: of `keras.layers.Layer`.
    """

    def __init__(self, units: int, activation: Any = "linear", averaged: Averaged = "values", **options: Any) -> None:
        super().__init__(**options)
        self.units, self.averaged = whole("units", units), averaged
        self.activation = keras.activations.get(activation)

    def build(self, shape: Any) -> None:
        """A kernel and a bias for each member."""
        members, width = int(shape[-2]), int(shape[-1])
        self.kernel = self.add_weight(shape=(members, width, self.units), initializer=uniform(width), name="kernel")
        self.bias = self.add_weight(shape=(members, self.units), initializer=uniform(width), name="bias")
        super().build(shape)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """(rows, members, width) to (rows, members, units) in training, else to (rows, units)."""
        if self.units == 1:  # a product and a sum: as a batch of matrices of one column it takes several times as long
            found = ops.expand_dims(ops.sum(inputs * ops.squeeze(self.kernel, -1), axis=-1), -1)
        else:
            found = ops.transpose(ops.matmul(ops.transpose(inputs, (1, 0, 2)), self.kernel), (1, 0, 2))
        found = self.activation(found + self.bias)
        if training:
            return found
        if self.averaged == "values":
            return ops.mean(found, axis=1)
        if self.averaged == "softmax":
            return ops.logsumexp(ops.log_softmax(found, axis=-1), axis=1)
        return ops.logsumexp(ops.log_sigmoid(found), axis=1) - ops.logsumexp(ops.log_sigmoid(-found), axis=1)

    def compute_output_shape(self, shape: Any) -> Any:
        """That of predictions."""
        return (shape[0], self.units)

    def get_config(self) -> dict[str, Any]:
        """All that it was made of."""
        activation = keras.activations.serialize(self.activation)
        own = {"units": self.units, "activation": activation, "averaged": self.averaged}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="forge_sweep")
class MemberLoss(keras.losses.Loss):  # type: ignore[misc,unused-ignore]
    """The mean of the members' losses, where the loss of their mean would train one large network.

    Outputs of (rows, members, units) are taken member by member; those of (rows, units), such as predictions, as the
    loss itself takes them.

    Args:
        loss: of one member, as ``compile`` takes it.
        label_smoothing: given to ``loss``.
        name: of the loss.
    """

    def __init__(self, loss: Any, label_smoothing: float = 0.0, name: str = "member_loss") -> None:
        super().__init__(name=name)
        self.loss, self.used = loss, keras.losses.get(loss)
        config = self.used.get_config() if isinstance(self.used, keras.losses.Loss) else {}
        self.smooths = "label_smoothing" in config
        self.label_smoothing = label_smoothing
        if label_smoothing:
            self.used = type(self.used).from_config({**config, "label_smoothing": label_smoothing})

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The loss of each row, (rows,)."""
        of_rows = self.used.call if isinstance(self.used, keras.losses.Loss) else self.used
        if len(y_pred.shape) == 2:
            return of_rows(y_true, y_pred)
        members, units = y_pred.shape[1:]
        found = of_rows(ops.repeat(y_true, members, axis=0), ops.reshape(y_pred, (-1, units)))
        return ops.mean(ops.reshape(found, (-1, members)), axis=1)

    def get_config(self) -> dict[str, Any]:
        """All that it was made of; ``label_smoothing`` only where the loss can smooth labels."""
        loss = self.loss if isinstance(self.loss, str) else keras.losses.serialize(keras.losses.get(self.loss))
        smoothing = {"label_smoothing": self.label_smoothing} if self.smooths else {}
        return {"loss": loss, **smoothing, "name": self.name}


def uniform(inputs: int) -> Any:
    """An initializer for kernel and bias of a layer with so many inputs: uniform within 1 / sqrt(inputs).

    It is what the reference implementations of these networks begin with.
    """
    limit = 1.0 / np.sqrt(max(inputs, 1))
    return initializers.RandomUniform(-limit, limit)


def _drawn(draws: Draws, shape: Any, dtype: Any = None) -> Any:
    """Initial weights, see `Members`."""
    dtype = dtype or "float32"
    if draws == "ones":
        return ops.ones(shape, dtype)
    if draws == "normal":
        return keras.random.normal(shape, dtype=dtype)
    return ops.cast(ops.where(keras.random.uniform(shape) < 0.5, -1.0, 1.0), dtype)
