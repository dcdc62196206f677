"""What a model costs whoever serves and trains it, and which of two that score alike is the cheaper."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from forge_sweep.bundle import latency_ms
from forge_sweep.sweep.confirm import Confirmed, waiting_bundle
from forge_sweep.sweep.context import Context

CLEARLY = 2.0
"""So many times as much is dearer whatever else the machine does; below it, wall-clock says nothing."""


@dataclass(frozen=True)
class Cost:
    """Milliseconds from one raw row to its scores, and seconds of a training: the means over seeds.

    ``seconds`` is None where an older version trained it.
    """

    latency_ms: float
    seconds: float | None

    def is_below(self, other: Cost) -> bool:
        """Whether it is clearly the cheaper one: for a row, or, where rows cost alike, for a training."""
        if max(self.latency_ms, other.latency_ms) > CLEARLY * min(self.latency_ms, other.latency_ms):
            return self.latency_ms < other.latency_ms
        if self.seconds is None or other.seconds is None:
            return False
        return CLEARLY * self.seconds < other.seconds


def cost_of(context: Context, confirmed: Confirmed) -> Cost:
    """Measured once, and noted: a sweep that goes on after a kill ships what it chose before."""
    key = f"cost:{confirmed.name}"
    latency = context.study.notes("cost:").get(key)
    if latency is None:
        row = context.dataset.learned_from.features.iloc[:1]
        latency = latency_ms(waiting_bundle(context, confirmed.name), row)
        context.study.note(key, latency)
    notes, label = context.study.notes("confirm:"), confirmed.contender.label
    seconds = [notes[f"confirm:{label}:{s}"].get("seconds") for s in confirmed.seeds]
    known = [each for each in seconds if each is not None]
    return Cost(float(latency), statistics.fmean(known) if len(known) == len(seconds) else None)
