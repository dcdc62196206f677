"""Where NaN or Inf came from in a training that diverged, in words and with the fix that fits. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from forge_sweep.checks.findings import Finding
from forge_sweep.checks.samples import UNSCALED

STEEP = 1e3
"""Norm of a gradient, or factor by which it grew, from which the step is too large for the rate."""

BATCHES = 10
"""Rows that are named at the most; where as many share the blame, no single one has it."""


@dataclass(frozen=True)
class NotFinite:
    """The first number of a training that was not finite.

    Attributes:
        epoch: 1-based.
        step: of the epoch, 1-based; 0 where only the validation after it shows it.
        steps: of an epoch.
        layer: the first one that gave it; "" where that is not known.
        what: of the layer: ``gradient``, ``outputs`` or ``weights``; or ``loss`` where its inputs were finite.
        gradient: norm of the whole gradient in the step before, None where there was none or it is not known.
        rate: learning rate of that step.
        rows: positions among the train rows of those whose loss alone is not finite, or beyond all others'.
        batch: rows of the step.
        largest: the largest number among the inputs of these rows, or of the batch where there are none.
        half: whether layers compute in float16, whose numbers end at 65,504.
        unknown: why it is not known more closely, "" where it is.
    """

    epoch: int
    step: int
    steps: int
    layer: str = ""
    what: str = ""
    gradient: float | None = None
    rate: float | None = None
    rows: tuple[int, ...] = ()
    batch: int = 0
    largest: float | None = None
    half: bool = False
    unknown: str = ""

    def finding(self) -> Finding:
        """In words, with the fix that fits."""
        at = f"step {self.step} of {self.steps}" if self.step else "after its last step"
        parts = [f"it began in epoch {self.epoch}, {at}"]
        if self.what == "loss":
            parts.append("in the loss itself: what the layers gave is finite")
        elif self.layer:
            parts.append(f"in the {self.what} of {self.layer}")
        if self.gradient is not None:
            parts.append(f"the gradient before had norm {self.gradient:.3g}")
        if self.rate is not None:
            parts.append(f"learning rate {self.rate:.3g}")
        if self.rows:
            parts.append(f"{len(self.rows)} of its {self.batch} rows alone do it, with inputs up to {self.largest:.3g}")
        if self.unknown:
            parts.append(self.unknown)
        subject = self.layer or "training"
        return Finding("warning", "not-finite", subject, ", ".join(parts), "finite numbers", self.fix(), self.rows[:10])

    def fix(self) -> str:
        """What to change, by what was found."""
        if self.half and self.what == "outputs":
            return 'precision = "mixed_bfloat16", or precision = "float32": float16 ends at 65,504'
        large = self.largest is not None and self.largest > UNSCALED
        if self.rows:
            return (
                'look at these train rows; scaler = "quantile" under [preprocessing] bounds what they hold'
                if large
                else "look at these train rows and their targets"
            )
        if large and self.largest is not None:
            return f'scaler = "standard" under [preprocessing]: inputs are as large as {self.largest:.3g}'
        slower = "" if self.rate is None else f"learning_rate = {min(self.rate / 10, 1e-3):.1g} or "
        if self.what == "loss" and (self.gradient or 0.0) < STEEP:
            return f"from_logits = true under [model], which bounds the loss, or {slower}clip_norm = 1.0"
        return f"{slower}clip_norm = 1.0 under [model.search]"
