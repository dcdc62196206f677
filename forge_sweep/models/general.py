"""The hyperparameters that every network has, whoever built it: those of its optimizer and of its losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from forge_sweep.errors import InputError

if TYPE_CHECKING:
    import keras

    from forge_sweep.experiment import Params

SMOOTHED = {
    "binary_crossentropy": "BinaryCrossentropy",
    "binary_focal_crossentropy": "BinaryFocalCrossentropy",
    "categorical_crossentropy": "CategoricalCrossentropy",
    "categorical_focal_crossentropy": "CategoricalFocalCrossentropy",
}
"""Losses of Keras that smooth labels, with their classes."""


def adjust(model: keras.Model, params: Params) -> keras.Model:
    """Give a compiled network, not trained yet, ``weight_decay``, ``clip_norm``, ``ema`` and ``label_smoothing``.

    They are Keras' own: ``weight_decay``, ``global_clipnorm``, ``use_ema`` and ``ema_momentum`` of the optimizer,
    ``label_smoothing`` of the losses. What ``params`` do not name stays as the builder has it.

    Raises:
        InputError: no loss of the network smooths labels, or the optimizer clips gradients in another way already.
    """
    # A LossScaleOptimizer leaves all of this to the optimizer that it wraps.
    optimizer: Any = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    decay = params.get("weight_decay")
    if decay is not None and (decay or optimizer.weight_decay is not None):
        optimizer.weight_decay = float(decay)
    if norm := params.get("clip_norm"):
        other = next((name for name in ("clipnorm", "clipvalue") if getattr(optimizer, name) is not None), None)
        if other is not None:
            raise InputError(
                f"clip_norm = {norm} under [model.search], but the builder's optimizer has {other} already",
                hint=f"remove clip_norm, or {other} in the builder",
            )
        optimizer.global_clipnorm = float(norm)
    if momentum := params.get("ema"):
        if optimizer.built and not optimizer.use_ema:
            hint = "let the builder return it as `compile` leaves it"
            raise InputError("ema under [model.search]: the builder's optimizer has its variables already", hint=hint)
        optimizer.use_ema, optimizer.ema_momentum = True, float(momentum)
    if share := params.get("label_smoothing"):
        if model.loss is None:
            seen = "label_smoothing under [model.search]: the builder compiled its model without a loss"
            raise InputError(seen, hint="remove it, or give the loss to compile")
        _compile_with(model, _smoothed(model.loss, float(share)))
    return model


def _smoothed(loss: Any, share: float) -> Any:
    """The same losses, smoothing labels where they can.

    Raises:
        InputError: none of them can.
    """
    import keras

    lacking: list[str] = []

    def smooth(one: Any) -> Any:
        name = one if isinstance(one, str) else getattr(one, "__name__", "")
        if name in SMOOTHED:
            return getattr(keras.losses, SMOOTHED[name])(label_smoothing=share)
        if isinstance(one, keras.losses.Loss) and "label_smoothing" in (config := one.get_config()):
            return type(one).from_config({**config, "label_smoothing": share})
        lacking.append(name or getattr(one, "name", type(one).__name__))
        return one

    several = isinstance(loss, Mapping | list | tuple)
    if isinstance(loss, Mapping):
        found: Any = {head: smooth(one) for head, one in loss.items()}
    else:
        found = [smooth(one) for one in loss] if several else smooth(loss)
    if len(lacking) == (len(loss) if several else 1):
        raise InputError(
            f"label_smoothing under [model.search]: {', '.join(lacking)} has none",
            hint=f"remove it, or take one of {', '.join(SMOOTHED)}",
        )
    return found


def _compile_with(model: keras.Model, loss: Any) -> None:
    """Compile a network as it was, with other losses and the same optimizer."""
    import keras

    try:
        was = keras.saving.deserialize_keras_object(
            {key: value for key, value in model.get_compile_config().items() if key not in ("optimizer", "loss")}
        )
    except (TypeError, ValueError) as error:
        text = f"label_smoothing under [model.search]: the network cannot be compiled again ({error})"
        hint = "register the builder's own metrics with keras.saving.register_keras_serializable"
        raise InputError(text, hint=hint) from error
    model.compile(**{**was, "optimizer": model.optimizer, "loss": loss})
