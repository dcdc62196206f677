"""Learning a preprocessor on rows that come in blocks, in memory that does not grow with their number.

The result equals `Preprocessor.fit` on all rows at once, to the last bit: both learn scalers and means over the same
blocks of `FIT_ROWS` rows, and medians are selected exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from forge_sweep.errors import DataError
from forge_sweep.preprocessing.normalization import Normalization
from forge_sweep.preprocessing.preprocessor import (
    FIT_ROWS,
    FITTED,
    Preprocessor,
    fit_blocks,
    imputed,
    mean_of_sums,
    new_scaler,
)
from forge_sweep.preprocessing.schema import Column, Kind, Schema
from forge_sweep.preprocessing.selection import medians

STORED_SCALERS = ("standard", "minmax", "none")
"""The scalers that means, standard deviations, minima and maxima describe."""

Blocks = Callable[[], Iterable[np.ndarray]]


@dataclass(frozen=True)
class Coded:
    """A raw column as float64: numbers and booleans as they are, categories by their position; NaN is missing.

    Attributes:
        name: column name.
        kind: how it enters the matrix.
        dtype: `Column.dtype`.
        categories: what the positions stand for.
    """

    name: str
    kind: Kind
    dtype: str
    categories: tuple[str, ...] = ()


@np.errstate(over="ignore", invalid="ignore")  # what overflows is refused by name
def fit_stream(
    blocks: Blocks,
    columns: Sequence[Coded],
    *,
    scaler: str,
    impute: str,
    fill: float,
    max_categories: int,
) -> Normalization:
    """Learn from training rows that are gone through several times.

    Args:
        blocks: gives the rows from the start each time it is called, (n, columns) float64, n as it likes.
        columns: what the columns are.
        scaler: ``standard``, ``minmax`` or ``none``.
        impute: ``median``, ``mean`` or ``constant``.
        fill: the constant.
        max_categories: most categories with an output of their own, per column.

    Raises:
        DataError: the scaler is none that the store can keep, or numbers are too large for it.
    """
    if scaler not in STORED_SCALERS:
        raise DataError(
            f"scaler = {scaler!r}: a stored version keeps one of {', '.join(STORED_SCALERS)}",
            hint="name one of them; an experiment may still search over others, which are learned by its trials",
        )
    counts = _count(blocks, columns)
    schema = Schema(tuple(each.column() for each in counts))
    numeric = [i for i, column in enumerate(columns) if column.kind == "numeric"]
    boolean = [counts[i] for i, column in enumerate(columns) if column.kind == "boolean"]
    centers = _centers(blocks, numeric, [counts[i].present for i in numeric], impute, fill)
    statistics = _statistics(blocks, numeric, centers, _ends([counts[i] for i in numeric], centers))
    learned = statistics.get(scaler, {}) if numeric else {}
    _refuse_overflow(learned, [columns[i].name for i in numeric])
    modes = [float(2 * each.ones > each.present) for each in boolean]
    fills = np.array([*centers, *modes], np.float64)
    preprocessor = Preprocessor(schema, scaler, impute, fill, max_categories, fills, learned)
    return Normalization(
        preprocessor,
        means=statistics["standard"]["mean_"],
        stds=statistics["standard"]["scale_"],
        mins=statistics["minmax"]["data_min_"],
        maxes=statistics["minmax"]["data_max_"],
        row_count=counts[0].rows,
    )


class Count:
    """What one pass shows of a column."""

    def __init__(self, coded: Coded) -> None:
        self.coded = coded
        self.rows = self.present = self.ones = 0
        self.low, self.high = np.inf, -np.inf
        self.frequency = np.zeros(len(coded.categories), np.int64)

    def update(self, values: np.ndarray) -> None:
        """Take the next values (n,)."""
        present = values[~np.isnan(values)]
        self.rows += len(values)
        self.present += len(present)
        if self.coded.kind == "categorical":
            self.frequency += np.bincount(present.astype(np.intp), minlength=len(self.frequency))
        elif self.coded.kind == "boolean":
            self.ones += int(present.sum())
        elif len(present):
            self.low, self.high = min(self.low, float(present.min())), max(self.high, float(present.max()))

    @property
    def missing(self) -> bool:
        """Whether a value was missing."""
        return self.present < self.rows

    def column(self) -> Column:
        """The column of the schema."""
        names = self.coded.categories
        order = sorted(np.flatnonzero(self.frequency), key=lambda code: (-self.frequency[code], names[code]))
        low, high = (self.low, self.high) if self.coded.kind == "numeric" and self.present else (None, None)
        return Column(
            name=self.coded.name,
            kind=self.coded.kind,
            dtype=self.coded.dtype,
            missing=self.missing,
            categories=tuple(names[code] for code in order),
            low=low,
            high=high,
        )


def _count(blocks: Blocks, columns: Sequence[Coded]) -> list[Count]:
    counts = [Count(column) for column in columns]
    for block in blocks():
        for values, count in zip(block.T, counts, strict=True):
            count.update(values)
    return counts


def _centers(blocks: Blocks, numeric: list[int], present: list[int], impute: str, fill: float) -> np.ndarray:
    """What a missing number of each numeric column becomes; 0 where a column has no number at all."""
    if impute == "constant":
        return np.full(len(numeric), fill)
    if impute == "median":
        return medians(lambda: (block[:, numeric] for block in blocks()), np.array(present, np.int64))
    sums: list[list[float]] = [[] for _ in numeric]
    for block in regrouped(block[:, numeric] for block in blocks()):
        for parts, values in zip(sums, block.T, strict=True):
            parts.append(float(values[~np.isnan(values)].sum()))
    return np.array([mean_of_sums(parts, n) for parts, n in zip(sums, present, strict=True)])


def _ends(counts: list[Count], centers: np.ndarray) -> np.ndarray:
    """Smallest and largest imputed number of each column, (2, numeric)."""
    missing = np.where([each.missing for each in counts], centers, np.nan)
    lows, highs = np.array([each.low for each in counts]), np.array([each.high for each in counts])
    return np.stack([np.fmin(lows, missing), np.fmax(highs, missing)]) + 0.0  # one zero, as `imputed` has


def _statistics(blocks: Blocks, numeric: list[int], centers: np.ndarray, ends: np.ndarray) -> dict[str, dict[str, Any]]:
    """The fitted attributes of both scalers over imputed numbers."""
    if not numeric:
        empty = np.empty(0)
        return {"standard": {"mean_": empty, "scale_": empty}, "minmax": {"data_min_": empty, "data_max_": empty}}
    standard, minmax = new_scaler("standard"), new_scaler("minmax")
    for block in regrouped(block[:, numeric] for block in blocks()):
        standard.partial_fit(imputed(block, centers))
    minmax.fit(ends)  # what it learns is in the two ends of each column
    minmax.n_samples_seen_ = int(standard.n_samples_seen_)
    return {
        kind: {name: np.asarray(getattr(scaler, name)) for name in FITTED[kind]}
        for kind, scaler in (("standard", standard), ("minmax", minmax))
    }


def _refuse_overflow(learned: dict[str, Any], names: list[str]) -> None:
    """Raise DataError that lists the columns for which a scaler learned something infinite."""
    finite = [np.isfinite(values) for values in learned.values() if values.ndim]
    infinite = [name for name, *each in zip(names, *finite, strict=False) if not all(each)]
    if infinite:
        raise DataError(
            f"columns hold numbers that are too large to be scaled: {', '.join(infinite)}",
            hint="write them in a larger unit, or leave these columns out",
        )


def regrouped(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The same rows in the blocks that `Preprocessor.fit` learns over."""
    pending: list[np.ndarray] = []
    rows = 0
    for block in blocks:
        pending.append(block)
        rows += len(block)
        if rows >= 2 * FIT_ROWS:
            whole = np.concatenate(pending)
            cut = len(whole) // FIT_ROWS * FIT_ROWS
            yield from fit_blocks(whole[:cut])
            pending, rows = [whole[cut:]], len(whole) - cut
    if rows:
        yield from fit_blocks(np.concatenate(pending))
