"""The parts of RealMLP: weights that learn at rates of their own, by the way they are written down.

Holzmüller, Grinsztajn and Steinwart 2024, "Better by Default" (https://arxiv.org/abs/2407.04491). Keras' optimizers
have one learning rate. Under Adam, whose steps do not depend on the size of a gradient, a variable u that counts as
f * u moves as one with f times the rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from forge_sweep.models.layers.numbers import whole

ACTIVATIONS = ("gelu", "linear", "mish", "relu", "selu", "sigmoid", "silu", "softmax")


@keras.saving.register_keras_serializable(package="forge_sweep")
class Scale(keras.layers.Layer):  # type: ignore[misc,unused-ignore]
    """A learned factor for each input, 1 at the start: the network says which columns matter.

    Args:
        rate: of learning, as a multiple of the optimizer's.
        **kwargs: of `keras.layers.Layer`.
    """

    def __init__(self, rate: float = 6.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate = _factor("rate", rate)

    def build(self, input_shape: Sequence[Any]) -> None:
        """Make the weights."""
        start = keras.initializers.Constant(1 / self.rate)
        self.scale = self.add_weight(shape=(input_shape[-1],), initializer=start, name="scale")

    def call(self, inputs: Any) -> Any:
        """Scale (rows, columns)."""
        return inputs * (self.scale * self.rate)

    def get_config(self) -> dict[str, Any]:
        """What the layer is made of."""
        return {**super().get_config(), "rate": self.rate}


@keras.saving.register_keras_serializable(package="forge_sweep")
class NTPDense(keras.layers.Layer):  # type: ignore[misc,unused-ignore]
    """A dense layer in the neural tangent parametrisation: ``x W / sqrt(inputs) + b``, W and b ~ N(0, 1).

    One learning rate so suits every width.

    Args:
        units: outputs, 1 to 65,536.
        activation: one of `ACTIVATIONS`.
        bias_rate: rate of learning of the bias, as a multiple of the optimizer's.
        zeros: begin with zeros, as an output layer.
        **kwargs: of `keras.layers.Layer`.
    """

    def __init__(
        self, units: int, activation: str = "linear", bias_rate: float = 0.1, zeros: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.units, self.bias_rate, self.zeros = (
            whole("units", units, most=65_536),
            _factor("bias_rate", bias_rate),
            zeros,
        )
        self.activation = _known(activation)

    def build(self, input_shape: Sequence[Any]) -> None:
        """Make the weights."""

        def normal(spread: float) -> Any:
            return "zeros" if self.zeros else keras.initializers.RandomNormal(0.0, spread)

        self.kernel = self.add_weight(shape=(input_shape[-1], self.units), initializer=normal(1.0), name="kernel")
        self.bias = self.add_weight(shape=(self.units,), initializer=normal(1 / self.bias_rate), name="bias")

    def call(self, inputs: Any) -> Any:
        """(rows, units) of (rows, columns)."""
        found = ops.matmul(inputs, self.kernel) * inputs.shape[-1] ** -0.5 + self.bias * self.bias_rate
        return self.activation(found)

    def compute_output_shape(self, input_shape: Sequence[Any]) -> tuple[Any, ...]:
        """(rows, units)."""
        return (*input_shape[:-1], self.units)

    def get_config(self) -> dict[str, Any]:
        """What the layer is made of."""
        parts = {"units": self.units, "activation": self.activation.__name__}
        return {**super().get_config(), **parts, "bias_rate": self.bias_rate, "zeros": self.zeros}


@keras.saving.register_keras_serializable(package="forge_sweep")
class ParametricActivation(keras.layers.Layer):  # type: ignore[misc,unused-ignore]
    """``x + alpha (f(x) - x)``, with a learned alpha for each unit, 1 at the start: how much of f a unit takes.

    Args:
        activation: f, one of `ACTIVATIONS`.
        rate: of learning, as a multiple of the optimizer's.
        **kwargs: of `keras.layers.Layer`.
    """

    def __init__(self, activation: str = "selu", rate: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.activation, self.rate = _known(activation), _factor("rate", rate)

    def build(self, input_shape: Sequence[Any]) -> None:
        """Make the weights."""
        start = keras.initializers.Constant(1 / self.rate)
        self.alpha = self.add_weight(shape=(input_shape[-1],), initializer=start, name="alpha")

    def call(self, inputs: Any) -> Any:
        """Of (rows, units)."""
        return inputs + self.alpha * self.rate * (self.activation(inputs) - inputs)

    def get_config(self) -> dict[str, Any]:
        """What the layer is made of."""
        return {**super().get_config(), "activation": self.activation.__name__, "rate": self.rate}


def _factor(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} = {value!r}: expected a number above 0")
    return float(value)


def _known(activation: Any) -> Any:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation = {activation!r}: expected one of {', '.join(ACTIVATIONS)}")
    return keras.activations.get(activation)
