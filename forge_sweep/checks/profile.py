"""How the training rows were distributed, in a few kilobytes, so that rows that come later can be compared with them.

A served model has its bundle only, and so the bundle keeps counts. The measures and the verdict are those of `drift`;
Kolmogorov-Smirnov's test, which takes the values themselves, is replaced by chi-squared over the bins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from forge_sweep.checks.drift import ALPHA, ColumnDrift, Drift, column_drift, verdicts
from forge_sweep.checks.effects import KOLMOGOROV_MEAN, OTHER_BIN, Measured, bin_edges, independence, total_variation
from forge_sweep.checks.served import misread
from forge_sweep.preprocessing import UNKNOWN, RowTransform, Schema

ROWS = 100_000  # rows that a profile is learned from at most, evenly spaced
CATEGORIES = 50  # categories that are counted one by one, the most frequent ones; the others together
UNKNOWN_BIN = "(unknown)"


@dataclass(frozen=True)
class ColumnProfile:
    """One column of the training rows."""

    name: str
    edges: tuple[float, ...]  # upper ones of the bins of numbers; empty for categories
    bins: tuple[str, ...]  # names of the categories; empty for numbers
    counts: tuple[int, ...]  # values in each bin; for categories without a count of unknown ones, which is 0
    missing: int

    @property
    def rows(self) -> int:
        """Rows that were counted."""
        return sum(self.counts) + self.missing

    def count(self, raw: np.ndarray) -> np.ndarray:
        """Present raw numbers (n,) in each bin, int64; of categories the last count is that of unknown ones."""
        if not self.bins:
            return np.bincount(np.searchsorted(self.edges, raw, side="left"), minlength=len(self.edges) + 1)
        known = raw[raw != UNKNOWN]
        counts = np.bincount(np.minimum(known, len(self.bins) - 1).astype(np.intp), minlength=len(self.bins))
        return np.append(counts, len(raw) - len(known))

    def drift(self, raw: np.ndarray) -> ColumnDrift:
        """How raw numbers (n,) differ from the column; not yet adjusted for other tests."""
        present = raw[~np.isnan(raw)]
        numbers = not self.bins
        table = np.array([self.counts if numbers else (*self.counts, 0), self.count(present)])
        values = np.maximum(table.sum(axis=1), 1)
        shares = table / values[:, None]
        distance, chance = 0.0, 0.0
        if table.sum(axis=1).all():
            distance, chance = _at_edges(shares, values) if numbers else total_variation(shares, values)
        unknown = 0 if numbers else int(table[1, -1])
        found = Measured(
            self._names(),
            shares,
            distance,
            chance,
            p=independence(table),
            new=(UNKNOWN_BIN,) if unknown else (),
            new_count=int(unknown > 0),
            new_share=unknown / float(values[1]),
        )
        return column_drift(
            self.name, found, (self.rows, len(raw)), (self.missing, len(raw) - len(present)), numbers=numbers
        )

    def _names(self) -> list[str]:
        if self.bins:
            return [*self.bins, UNKNOWN_BIN]
        ends = [f"{edge:.6g}" for edge in self.edges]
        return [f"up to {end}" for end in ends] + [f"above {ends[-1]}" if ends else "all"]


@dataclass(frozen=True)
class Profile:
    """The training rows of a model; ``columns`` are those of the schema that are no arrays, in its order."""

    columns: tuple[ColumnProfile, ...]

    @classmethod
    def learn(cls, rows: pd.DataFrame, transform: RowTransform) -> Profile:
        """The profile of raw training rows, given what the preprocessor learned on them."""
        if len(rows) > ROWS:
            rows = rows.iloc[np.linspace(0, len(rows) - 1, ROWS).astype(np.intp)]
        raw = transform.read_frame(rows)
        return cls(tuple(learn_column(transform.schema, i, raw[:, i]) for i in range(raw.shape[1])))

    @property
    def rows(self) -> int:
        """Training rows that were counted."""
        return self.columns[0].rows if self.columns else 0

    def compare(self, raw: np.ndarray, *, alpha: float = ALPHA) -> Drift:
        """How rows of raw numbers (n, columns), see `forge_sweep.preprocessing.rows`, differ from the training rows."""
        columns = verdicts([column.drift(raw[:, i]) for i, column in enumerate(self.columns)], alpha)
        drifted = {column.name for column in columns if column.drifted}
        apart = [(column, raw[:, i]) for i, column in enumerate(self.columns) if column.name in drifted]
        rows = self.rows, len(raw)
        return Drift(columns, added=(), gone=(), retyped=(), rows=rows, alpha=alpha, misread=tuple(misread(apart)))

    def to_dict(self) -> dict[str, Any]:
        """JSON values that `from_dict` reads."""
        return {"columns": [asdict(column) for column in self.columns]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Profile:
        """The profile that `to_dict` wrote."""
        lists = ("edges", "bins", "counts")
        return cls(tuple(ColumnProfile(**c | {name: tuple(c[name]) for name in lists}) for c in values["columns"]))


def learn_column(schema: Schema, position: int, raw: np.ndarray) -> ColumnProfile:
    """The profile of one column of raw numbers (n,)."""
    column, present = schema.columns[position], raw[~np.isnan(raw)]
    edges, bins = (), tuple[str, ...]()
    if column.kind == "numeric":
        edges = tuple(bin_edges(np.sort(present[np.isfinite(present)])).tolist())
    elif column.kind == "boolean":
        bins = ("false", "true")
    else:
        others = (OTHER_BIN,) if len(column.categories) > CATEGORIES else ()
        bins = (*column.categories[:CATEGORIES], *others) or (OTHER_BIN,)
    profile = ColumnProfile(column.name, edges, bins, (), len(raw) - len(present))
    counts = profile.count(present).tolist()
    return replace(profile, counts=tuple(counts[: len(bins)] if bins else counts))


def _at_edges(shares: np.ndarray, rows: np.ndarray) -> tuple[float, float]:
    """Kolmogorov-Smirnov's D at the edges of the bins, and its mean over all values, which is no smaller, by chance."""
    largest = float(np.abs(np.cumsum(shares[0] - shares[1])).max())
    return largest, float(KOLMOGOROV_MEAN * (1 / rows).sum() ** 0.5)
