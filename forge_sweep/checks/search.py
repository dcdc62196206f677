"""What the finished trials of a sweep say together: what it should try next. From figures to findings.

Everything here is pure, as in `diagnose`. Each finding has a section of its name in docs/failures.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from forge_sweep.checks.findings import Finding
from forge_sweep.experiment import HYPERPARAMETERS, Dimension, Params, Scalar

if TYPE_CHECKING:
    from forge_sweep.task import Direction

EDGE = 0.1
"""Outermost share of a range, on its own scale, that counts as its edge."""

ENOUGH = 10
"""Finished trials below which where the best ones lie is chance."""


@dataclass(frozen=True)
class Tried:
    """A finished trial: its number, its objective, its hyperparameters and what was said of it."""

    number: int
    value: float
    params: Params
    codes: tuple[str, ...] = ()


def of_sweep(
    trials: Sequence[Tried], space: Mapping[str, Dimension | Scalar], direction: Direction
) -> tuple[Finding, ...]:
    """What the finished trials of a sweep say together; nothing where there are fewer than `ENOUGH`."""
    if len(trials) < ENOUGH:
        return ()
    ranked = sorted(trials, key=lambda trial: trial.value, reverse=direction == "maximize")
    top = ranked[: max(3, len(ranked) // 4)]
    found = [finding for name, value in space.items() for finding in _edge(name, value, ranked[0], top)]
    short = sum("still-improving" in trial.codes for trial in top)
    if short * 2 > len(top):
        seen = f"{short} of the best {len(top)} trials were still improving when their epochs were over"
        fix = "twice as many epochs under [study]"
        found.append(Finding("warning", "epochs-too-few", "study.epochs", seen, "trials that end by themselves", fix))
    stuck = sum(not {"one-answer", "flat-loss"}.isdisjoint(trial.codes) for trial in trials)
    if stuck * 2 > len(trials):
        seen = f"{stuck} of {len(trials)} finished trials learned nothing"
        fix = "see what is said of them: `forge-sweep diagnose NAME --trial N`"
        found.append(Finding("warning", "nothing-learned", "sweep", seen, "trials that learn", fix))
    return tuple(found)


def _edge(name: str, value: Dimension | Scalar, best: Tried, top: Sequence[Tried]) -> Iterator[Finding]:
    """Whether the best trials lie at one end of a range that could be wider."""
    if not isinstance(value, Dimension) or value.type == "categorical" or name not in best.params:
        return
    assert value.low is not None and value.high is not None
    scale = np.log if value.log else float
    first, last = scale(value.low), scale(value.high)
    places = [(scale(trial.params[name]) - first) / (last - first) for trial in (best, *top) if name in trial.params]
    mine, middle = places[0], float(np.median(places[1:]))
    if mine <= EDGE and middle <= 2 * EDGE:
        end, low, high = "low", _wider(value, value.low), value.high
    elif mine >= 1 - EDGE and middle >= 1 - 2 * EDGE:
        end, low, high = "high", value.low, _wider(value, value.high)
    else:
        return
    known = HYPERPARAMETERS.get(name)
    if known is not None and not (known.accepts(low) and known.accepts(high)):
        return  # there is nothing beyond
    step = f", step = {value.step:g}" if value.step is not None else ", log = true" if value.log else ""
    line = f'{name} = {{ type = "{value.type}", low = {low:g}, high = {high:g}{step} }} under [model.search]'
    seen = f"trial {best.number}, the best, has {best.params[name]:.4g}, and half of the best {len(top)} lie as near"
    seen += f" to {end} = {getattr(value, end):g}"
    yield Finding("warning", "edge-of-range", f"model.search.{name}", seen, "the best trials inside the range", line)


def _wider(value: Dimension, end: float) -> int | float:
    """An end of a range, moved outwards by half of the range on its own scale."""
    assert value.low is not None and value.high is not None
    outwards = -1 if end == value.low else 1
    if value.log:
        found = end * (value.high / value.low) ** (outwards / 2)
    else:
        found = end + outwards * (value.high - value.low) / 2
    return round(found) if value.type == "int" else float(f"{found:.3g}")
