"""What rows that a model is asked for have against them as a whole: columns that were swapped, or scaled already.

Each row by itself may look sound. Both are told by the profile of the training rows, once enough rows have come.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from forge_sweep.checks.findings import Finding

if TYPE_CHECKING:
    from forge_sweep.checks.drift import ColumnDrift
    from forge_sweep.checks.profile import ColumnProfile

MOST_COLUMNS = 40
LIKE, SCALE = 0.99, 2.0
LEAST_EDGES = 5
NEAR = 0.35
SHOWN = 5


def misread(columns: Sequence[tuple[ColumnProfile, np.ndarray]]) -> Iterator[Finding]:
    """Findings on drifted columns of numbers, each with its profile and the raw numbers (n,) that came."""
    numbers = [(column, raw) for column, raw in columns[:MOST_COLUMNS] if len(column.edges) >= LEAST_EDGES]
    numbers = [(column, raw) for column, raw in numbers if np.isfinite(raw).any()]
    swapped = list(_swapped(numbers))
    yield from swapped
    named = {name for finding in swapped for name in finding.subject.split(" and ")}
    yield from _rescaled([(column, raw[np.isfinite(raw)]) for column, raw in numbers if column.name not in named])


def _swapped(columns: Sequence[tuple[ColumnProfile, np.ndarray]]) -> Iterator[Finding]:
    """Pairs of which each holds what the other one held in train, the closest ones first."""
    found = []
    for (one, mine), (other, theirs) in itertools.combinations(columns, 2):
        crossed = one.drift(theirs), other.drift(mine)
        if not any(map(_differs, crossed)):
            found.append((sum(each.psi for each in crossed), one, other, mine, theirs))
    used: set[str] = set()
    for _, one, other, mine, theirs in sorted(found, key=lambda each: each[0]):
        if used.isdisjoint((one.name, other.name)):
            used |= {one.name, other.name}
            seen = (
                f"{len(mine)} rows have in {one.name} (median {np.nanmedian(mine):.4g}) what the training rows had in "
            )
            seen += f"{other.name}, and the other way round (median {np.nanmedian(theirs):.4g})"
            fix = "send each value under the name of its own column"
            yield Finding("warning", "swapped-columns", f"{one.name} and {other.name}", seen, _EXPECTED, fix)


def _rescaled(columns: Sequence[tuple[ColumnProfile, np.ndarray]]) -> Iterator[Finding]:
    """Columns whose quantiles are those of train, times a factor beyond 2 or below 1/2 and with any offset."""
    found = list[tuple[str, float, float, float]]()
    for column, raw in columns:
        shares = np.cumsum(column.counts)[: len(column.edges)] / sum(column.counts)
        edges, quantiles = np.array(column.edges), np.quantile(raw, shares)
        if edges.std() == 0 or quantiles.std() == 0:
            continue
        like, scale = float(np.corrcoef(edges, quantiles)[0, 1]), float(quantiles.std() / edges.std())
        if like >= LIKE and not 1 / SCALE <= scale <= SCALE:
            found.append((column.name, scale, float(raw.mean()), float(raw.std())))
    if not found:
        return
    name, scale, mean, deviation = found[0]
    names = ", ".join(each[0] for each in found[:SHOWN]) + (", ..." if len(found) > SHOWN else "")
    seen = f"{len(found)} columns are distributed as the training rows are, on another scale: {name} times {scale:.3g}"
    standard = sum(abs(mean) < NEAR and abs(deviation - 1) < NEAR for _, _, mean, deviation in found)
    fix = "send them in the unit of the training rows"
    if 2 * standard > len(found):
        seen += f", with mean {mean:.2f} and deviation {deviation:.2f}, as a scaler leaves them"
        fix = "send them unscaled: the model scales by what it learned on its training rows"
    yield Finding("warning", "rescaled", names, seen, _EXPECTED, fix)


_EXPECTED = "raw values, as the training rows had them"


def _differs(drift: ColumnDrift) -> bool:
    from forge_sweep.checks.drift import DISTANCE, PSI

    psi, distance = drift.effect
    return psi >= PSI or distance >= DISTANCE
