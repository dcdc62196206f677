"""Whether a training gave the same again: exactly, nearly, or not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from forge_sweep.reproduce.again import Again
from forge_sweep.reproduce.plan import Plan
from forge_sweep.tracking import Record

TOLERANCE = 1e-3
"""Largest difference of a metric or a prediction that counts as the same, in proportion to its size above 1."""


@dataclass(frozen=True)
class Verdict:
    """How a training compares with its record.

    Attributes:
        word: ``exact``: weights equal bit by bit; ``within tolerance``; or ``different``.
        text: how far off, or where.
        weights: SHA-256 of the weights this time.
        recorded_weights: as recorded; "" where they were not.
        metrics_off: difference of each validation metric at the best epoch, this time less recorded.
        scores_off: largest difference of a prediction on the validation rows, in proportion to the largest above 1;
            None where no model was kept.
        first_epoch: the first epoch, from 1, whose metrics are not the same to the last bit; None where all are.
    """

    word: Literal["exact", "within tolerance", "different"]
    text: str
    weights: str
    recorded_weights: str
    metrics_off: dict[str, float]
    scores_off: float | None
    first_epoch: int | None


def judge(record: Record, plan: Plan, again: Again, tolerance: float = TOLERANCE) -> Verdict:
    """Compare weights, then metrics and predictions.

    Args:
        record: the run.
        plan: what was trained again.
        again: what it gave.
        tolerance: see `TOLERANCE`.
    """
    recorded = record.tags.get("forge.weights_sha256", "") or again.recorded_weights
    metrics = recorded_metrics(record, plan)
    off = {name: again.metrics[name] - value for name, value in metrics.items() if name in again.metrics}
    first = first_difference(record.curves, again.history)
    far = sorted(_far(off, metrics, again, tolerance))
    if recorded == again.weights:
        word, text = "exact", f"all weights are the same, bit by bit (SHA-256 {again.weights[:12]})"
    elif off and not far:
        word, text = "within tolerance", f"{_how_far(off, again)}; {_weights(recorded)}"
    else:
        word, text = "different", f"{_where(first, far)}; {_how_far(off, again)}"
    return Verdict(word, text, again.weights, recorded, off, again.scores_off, first)  # type: ignore[arg-type]


def recorded_metrics(record: Record, plan: Plan) -> dict[str, float]:
    """Validation metrics at the best epoch, as logged; of a baseline there is one value each."""
    if plan.baseline:
        return {name: value for name, value in record.metrics.items() if name.startswith("val_")}
    best = -1 if record.best_epoch is None else record.best_epoch
    return {name: curve[best] for name, curve in record.curves.items() if name.startswith("val_") and best in curve}


def first_difference(curves: Mapping[str, Mapping[int, float]], history: tuple[dict[str, float], ...]) -> int | None:
    """The first epoch, from 1, in which a metric differs in any bit or that one side lacks; None for none."""
    last = max((epoch for curve in curves.values() for epoch in curve), default=-1)
    if not history:
        return None
    for epoch in range(max(last + 1, len(history))):
        now = history[epoch] if epoch < len(history) else {}
        then = {name: curve[epoch] for name, curve in curves.items() if epoch in curve}
        if bool(now) != bool(then) or any(now.get(name) != value for name, value in then.items()):
            return epoch + 1
    return None


def _far(off: Mapping[str, float], recorded: Mapping[str, float], again: Again, tolerance: float) -> Iterator[str]:
    """What is further off than the tolerance."""
    for name, difference in off.items():
        if not abs(difference) <= tolerance * max(1.0, abs(recorded[name])):
            yield name
    if again.scores_off is not None and not again.scores_off <= tolerance:
        yield "predictions"


def _how_far(off: Mapping[str, float], again: Again) -> str:
    """The largest differences in words."""
    if not off:
        return "there are no recorded metrics to compare with"
    worst = max(off, key=lambda name: abs(off[name]) if math.isfinite(off[name]) else math.inf)
    predictions = "" if again.scores_off is None else f", predictions on the validation rows by {again.scores_off:.3g}"
    return f"metrics are off by at most {abs(off[worst]):.3g} ({worst}){predictions}"


def _weights(recorded: str) -> str:
    return "weights are not the same bits" if recorded else "weights were not recorded"


def _where(first: int | None, far: list[str]) -> str:
    """Where two trainings part."""
    epoch = "" if first is None else f"the curves part at epoch {first}"
    beyond = f"beyond tolerance: {', '.join(far)}" if far else "weights are not the same bits"
    return "; ".join(filter(None, (epoch, beyond)))
