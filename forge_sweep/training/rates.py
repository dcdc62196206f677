"""The learning rate over the steps of a fit, in Keras' own formulas. Imports Keras, so `fit` imports it when it begins.

The rate follows from the number of the step alone, counted from the epoch. So it is right after a fit was taken up
again, with half the batch too, and after steps that mixed precision left out. The optimizer keeps a plain variable for
it: a network of the same architecture is trained again with another rate and not traced anew.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from forge_sweep.training.callbacks import BetweenSteps, learning_rate

if TYPE_CHECKING:
    from forge_sweep.training.fit import FitSpec

FIRST_SHARE, LAST_SHARE = 1 / 25, 1e-4
"""Of ``one_cycle``: what its first rate is of the greatest, and its last of the first (as in PyTorch's OneCycleLR)."""


@dataclass(frozen=True)
class Rates:
    """How the learning rate goes, as shares of the one that the optimizer begins with.

    Attributes:
        kind: ``cosine``, ``coslog4``, ``one_cycle``, or ``constant`` after the warm-up.
        steps: of all epochs.
        warmup: how many of them the rate rises.
        until: the last step that follows from this; afterwards the rate is left as it is.
    """

    kind: str
    steps: int
    warmup: int
    until: int

    @classmethod
    def of(cls, spec: FitSpec, rows: int, batch_size: int) -> Rates | None:
        """How the rate goes in a fit; None where no step changes it."""
        steps = spec.epochs * -(-rows // batch_size)
        warmup = min(round(spec.warmup_share * steps), steps - 1)
        if spec.schedule in ("cosine", "coslog4", "one_cycle"):
            return cls(spec.schedule, steps, warmup, until=steps)
        return cls("constant", steps, warmup, until=warmup) if warmup else None

    def share(self) -> Any:
        """From the number of a step, from 0, to its share: one of Keras' schedules."""
        if self.kind == "coslog4":
            return self._four_cycles
        schedules = keras.optimizers.schedules
        if self.kind == "constant":
            return schedules.PolynomialDecay(0.0, self.warmup, end_learning_rate=1.0, power=1.0)
        if not self.warmup:
            return schedules.CosineDecay(1.0, self.steps)
        first, last = (FIRST_SHARE, FIRST_SHARE * LAST_SHARE) if self.kind == "one_cycle" else (0.0, 0.0)
        return schedules.CosineDecay(
            first, self.steps - self.warmup, alpha=last, warmup_target=1.0, warmup_steps=self.warmup
        )

    def _four_cycles(self, step: Any) -> Any:
        """After the warm-up ``0.5 - 0.5 cos(2 pi log2(1 + 15 t))`` (RealMLP, https://arxiv.org/abs/2407.04491)."""
        done = (ops.cast(step, "float32") - self.warmup) / max(1, self.steps - self.warmup)
        rising = ops.cast(step, "float32") / max(1, self.warmup)
        cycles = ops.log2(1.0 + 15.0 * ops.maximum(done, 0.0))
        return ops.where(done < 0, rising, 0.5 - 0.5 * ops.cos(2 * math.pi * cycles))

    def at(self, step: Any, base: Any, now: Any) -> Any:
        """The rate of a step, as a tensor; ``base`` is the one at the beginning, ``now`` the present one."""
        return ops.where(step <= self.until, base * self.share()(step), now)


def is_settable(model: keras.Model) -> bool:
    """Whether the optimizer has a plain learning rate; one that was built with a schedule of Keras follows that."""
    return hasattr(model.optimizer.learning_rate, "assign")


class Follow(BetweenSteps):
    """Sets the rate before each step of ``model.fit``; the compiled epoch does it between its own."""

    def __init__(self, rates: Rates, steps: int) -> None:
        super().__init__()
        self.rates = rates
        self.steps = steps
        self.base = math.nan
        self.first = 0

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Remember the rate at the beginning; comes before a progress is put back."""
        self.base = learning_rate(self.model)

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Count steps from the epoch."""
        self.first = epoch * self.steps

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Set the rate of this step."""
        if hasattr(self.model, "jax_state_sync"):  # on JAX, variables lie apart from the model while it is trained
            self.model.jax_state_sync()
        if self.first + batch <= self.rates.until:
            self.model.optimizer.learning_rate = float(self.rates.at(self.first + batch, self.base, self.base))
