"""The loss of a network with several heads. Imports Keras."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras


@keras.saving.register_keras_serializable(package="forge_sweep")
class JointLoss(keras.losses.Loss):  # type: ignore[misc,unused-ignore]
    """The losses of heads whose targets and outputs stand side by side, summed by weight.

    Args:
        losses: of the heads, as ``compile`` takes them.
        widths: columns of each head's targets.
        units: columns of each head's outputs.
        weights: of the heads' losses.
        label_smoothing: of the losses that have one; ValueError where none has.
        name: of the loss.
    """

    def __init__(
        self,
        losses: Sequence[Any],
        widths: Sequence[int],
        units: Sequence[int],
        weights: Sequence[float],
        label_smoothing: float = 0.0,
        name: str = "joint_loss",
    ) -> None:
        super().__init__(name=name)
        self.losses = [*losses]
        self.widths, self.units, self.weights = [*widths], [*units], [*weights]
        self.label_smoothing = label_smoothing
        known = [keras.losses.get(loss) for loss in losses]
        self.used = [_smoothed(loss, label_smoothing) for loss in known] if label_smoothing else known
        if label_smoothing and all(one is other for one, other in zip(known, self.used, strict=True)):
            raise ValueError("none of the heads' losses smooths labels")

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The loss of each row, (rows,)."""
        total, y, x = 0.0, 0, 0
        for loss, width, units, weight in zip(self.used, self.widths, self.units, self.weights, strict=True):
            of_rows = loss.call if isinstance(loss, keras.losses.Loss) else loss
            total += weight * of_rows(y_true[:, y : y + width], y_pred[:, x : x + units])
            y, x = y + width, x + units
        return total

    def get_config(self) -> dict[str, Any]:
        """All that it was made of."""
        losses = [loss if isinstance(loss, str) else keras.losses.serialize(loss) for loss in self.losses]
        parts = {"losses": losses, "widths": self.widths, "units": self.units, "weights": self.weights}
        return {**parts, "label_smoothing": self.label_smoothing, "name": self.name}


def _smoothed(loss: Any, share: float) -> Any:
    """The same loss with smoothed labels, or itself."""
    if isinstance(loss, keras.losses.Loss) and "label_smoothing" in (config := loss.get_config()):
        return type(loss).from_config({**config, "label_smoothing": share})
    return loss
