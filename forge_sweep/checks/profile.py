"""How the training rows were distributed, in a few kilobytes, so that rows that come later can be compared with them.

A comparison of versions (`drift`) has both tables; a served model has its bundle only. So the bundle keeps counts: of
numbers over the bins of `effects.bin_edges`, of categories, of missing values. The measures and the verdict are those
of `drift`; Kolmogorov-Smirnov's test, which takes the values themselves, is replaced by chi-squared over the bins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from forge_sweep.checks.drift import ALPHA, ColumnDrift, Drift, adjusted
from forge_sweep.checks.effects import (
    BINS,
    KOLMOGOROV_MEAN,
    MISSING_BIN,
    OTHER_BIN,
    bin_edges,
    independence,
    mean_stability,
    picture,
    stability,
)
from forge_sweep.preprocessing import UNKNOWN, RowTransform, Schema

ROWS = 100_000
"""Rows that a profile is learned from at most, evenly spaced."""

CATEGORIES = 50
"""Categories that are counted one by one, the most frequent ones; the others together."""

UNKNOWN_BIN = "(unknown)"


@dataclass(frozen=True)
class ColumnProfile:
    """One column of the training rows.

    Attributes:
        name: column name.
        edges: upper edges of the bins of numbers; empty for categories.
        bins: names of the categories; empty for numbers.
        counts: values in each bin; for categories without a count of unknown ones, which is 0.
        missing: missing values.
    """

    name: str
    edges: tuple[float, ...]
    bins: tuple[str, ...]
    counts: tuple[int, ...]
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
        rows = self.rows, len(raw)
        gaps = self.missing, len(raw) - len(present)
        missing = gaps[0] / max(rows[0], 1), gaps[1] / max(rows[1], 1)
        values = np.maximum(table.sum(axis=1), 1)
        shares = np.hstack([table, np.array(gaps)[:, None]]) / np.maximum(rows, 1)[:, None]
        empty = not table.sum(axis=1).all()
        distance, chance = (0.0, 0.0) if empty else distances(table / values[:, None], values, numbers=numbers)
        unknown = 0 if numbers else int(table[1, -1])
        bins, pictured = picture((*self._names(), MISSING_BIN), shares)
        return ColumnDrift(
            name=self.name,
            target=False,
            kind="numbers" if numbers else "categories",
            psi=stability(shares[0], shares[1], *rows),
            distance=distance,
            p=independence(table),
            missing=missing,
            missing_p=independence(np.array([[n - gap, gap] for n, gap in zip(rows, gaps, strict=True)])),
            chance=(mean_stability(shares, *rows), chance),
            new=(UNKNOWN_BIN,) if unknown else (),
            new_count=int(unknown > 0),
            new_share=unknown / float(values[1]),
            gone=(),
            gone_count=0,
            bins=bins,
            shares=(tuple(pictured[0].tolist()), tuple(pictured[1].tolist())),
        )

    def _names(self) -> list[str]:
        """What the bins are called."""
        if self.bins:
            return [*self.bins, UNKNOWN_BIN]
        ends = [f"{edge:.6g}" for edge in self.edges]
        return [f"up to {end}" for end in ends] + [f"above {ends[-1]}" if ends else "all"]


@dataclass(frozen=True)
class Profile:
    """The training rows of a model.

    Attributes:
        columns: in the order of the schema.
    """

    columns: tuple[ColumnProfile, ...]

    @classmethod
    def learn(cls, rows: pd.DataFrame, transform: RowTransform) -> Profile:
        """Learn the profile of training rows.

        Args:
            rows: raw training rows; of more than `ROWS`, so many are taken, evenly spaced.
            transform: of the preprocessor that was learned on them.
        """
        if len(rows) > ROWS:
            rows = rows.iloc[np.linspace(0, len(rows) - 1, ROWS).astype(np.intp)]
        raw = transform.read_frame(rows)
        return cls(tuple(learn_column(transform.schema, i, raw[:, i]) for i in range(raw.shape[1])))

    @property
    def rows(self) -> int:
        """Training rows that were counted."""
        return self.columns[0].rows if self.columns else 0

    def compare(self, raw: np.ndarray, *, alpha: float = ALPHA) -> Drift:
        """How rows differ from the training rows.

        Args:
            raw: (n, columns) raw numbers, see `forge_sweep.preprocessing.rows`.
            alpha: see `Drift`.
        """
        columns = [column.drift(raw[:, i]) for i, column in enumerate(self.columns)]
        found = tuple(sorted(adjusted(columns, alpha), key=lambda column: column.order(alpha)))
        return Drift(columns=found, added=(), gone=(), retyped=(), rows=(self.rows, len(raw)), alpha=alpha)

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
        edges = tuple(edges_of(np.sort(present[np.isfinite(present)])).tolist())
    elif column.kind == "boolean":
        bins = ("false", "true")
    else:
        others = (OTHER_BIN,) if len(column.categories) > CATEGORIES else ()
        bins = (*column.categories[:CATEGORIES], *others) or (OTHER_BIN,)
    profile = ColumnProfile(column.name, edges, bins, (), len(raw) - len(present))
    counts = profile.count(present).tolist()
    return ColumnProfile(column.name, edges, bins, tuple(counts[: len(bins)] if bins else counts), profile.missing)


def edges_of(values: np.ndarray) -> np.ndarray:
    """The edges of bins of sorted numbers (n,), as `effects.numeric_drift` sets them."""
    found, counts = np.unique(values, return_counts=True)
    return bin_edges(values, found[counts * BINS >= len(values)])


def distances(shares: np.ndarray, rows: np.ndarray, *, numbers: bool) -> tuple[float, float]:
    """Distance of the shares (2, bins) of so many values, and what chance alone gives of it, see `effects`.

    Of numbers, Kolmogorov-Smirnov's D at the edges of the bins, and its mean over all values, which is no smaller.
    """
    if numbers:
        largest = float(np.abs(np.cumsum(shares[0] - shares[1])).max())
        return largest, float(KOLMOGOROV_MEAN * (1 / rows).sum() ** 0.5)
    variance = shares.mean(axis=0) * (1 - shares.mean(axis=0)) * (1 / rows).sum()
    return float(abs(shares[0] - shares[1]).sum() / 2), float(np.sqrt(2 / np.pi * variance).sum() / 2)
