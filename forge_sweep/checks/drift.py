"""How the columns of one dataset version differ from those of another: effect sizes first, p-values second.

A column counts as drifted only where the p-value, adjusted for all tests of the comparison (false discovery rate,
Benjamini and Hochberg 1995), is below ``alpha``, and an effect is large enough to matter beyond what chance gives with
so many rows and bins. Rows are taken as independent: those that both versions share make the tests milder.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from pandas.api import types

from forge_sweep.checks import effects
from forge_sweep.checks.findings import Finding

ALPHA = 0.05
PSI = 0.1
DISTANCE = 0.1
MISSING = 0.05
NEW_SHARE = 0.01
SHOWN = 10


@dataclass(frozen=True)
class ColumnDrift:
    """One column in both versions, reference and current where there are two figures."""

    name: str
    target: bool  # then its drift is label shift
    kind: Literal["numbers", "categories"]
    psi: float  # population stability index over the bins of `effects`, or over categories, and missing values
    distance: float  # Kolmogorov-Smirnov's D, or total variation of categories; 0 to 1, of values that are there
    p: float  # of that difference, unadjusted; nan where it cannot be tested
    missing: tuple[float, float]  # shares of missing values
    missing_p: float  # of their difference, unadjusted; nan where nothing is missing, or everything
    chance: tuple[float, float]  # what PSI and distance are on average where nothing drifted
    new: tuple[str, ...]  # categories that only the current version has, the most frequent first, at most `KEPT`
    new_count: int  # how many there are
    new_share: float  # share of current rows that have one of them
    gone: tuple[str, ...]  # categories that only the reference has, likewise
    gone_count: int
    bins: tuple[str, ...] = field(repr=False)  # of many categories the most frequent
    shares: tuple[tuple[float, ...], tuple[float, ...]] = field(repr=False)  # each over ``bins``
    adjusted: float = 1.0  # the smaller one of both p-values, adjusted for all tests; 1 where none was possible
    drifted: bool = False

    @property
    def effect(self) -> tuple[float, float]:
        """PSI and distance without what chance adds: the index is a sum of squares, the distance their root."""
        distance = max(self.distance**2 - self.chance[1] ** 2, 0.0) ** 0.5
        return max(self.psi - self.chance[0], 0.0), distance

    @property
    def shift(self) -> float:
        """By how much the share of missing values changed."""
        return self.missing[1] - self.missing[0]

    def order(self, alpha: float) -> tuple[Any, ...]:
        """Sort key: drifted ones, then others beyond chance, then all else; of each the largest effect first."""
        psi, distance = self.effect
        return (not self.drifted, self.adjusted >= alpha, -psi, -distance, -abs(self.shift), self.adjusted)

    def judged(self, p: float, missing_p: float, alpha: float) -> ColumnDrift:
        """The column with its verdict, given both of its p-values adjusted."""
        psi, distance = self.effect
        values = psi >= PSI or distance >= DISTANCE or self.new_share >= NEW_SHARE
        missing = psi >= PSI or abs(self.shift) >= MISSING
        drifted = (p < alpha and values) or (missing_p < alpha and missing)
        return replace(self, adjusted=min(p, missing_p), drifted=drifted)

    def finding(self) -> Finding:
        """The drift of this column as a finding."""
        seen = f"PSI {self.psi:.3f}, distance {self.distance:.3f}, adjusted p {self.adjusted:.2g}"
        if self.shift:
            seen += f", missing {self.missing[0]:.1%} -> {self.missing[1]:.1%}"
        if self.new:
            seen += f", {self.new_count} new categories in {self.new_share:.1%} of rows ({', '.join(self.new[:SHOWN])})"
        if self.gone:
            seen += f", {self.gone_count} gone categories ({', '.join(self.gone[:SHOWN])})"
        return Finding(
            severity="warning",
            code="label-shift" if self.target else "drift",
            subject=self.name,
            seen=seen,
            expected=f"PSI below {PSI}, a distance below {DISTANCE}, missing values within {MISSING:.0%}",
            fix="find out what changed at the source; models trained on the reference may no longer hold",
        )


@dataclass(frozen=True)
class Drift:
    """Two versions compared, reference and current."""

    columns: tuple[ColumnDrift, ...]  # of both, in the order of `ColumnDrift.order`
    added: tuple[str, ...]  # columns that only the current version has
    gone: tuple[str, ...]  # columns that only the reference has
    retyped: tuple[str, ...]  # columns of numbers in one version and of texts in the other
    rows: tuple[int, int]
    alpha: float  # the chance of any flag where nothing drifted, at most
    misread: tuple[Finding, ...] = ()  # what columns that were served have against them together, see `served`

    @property
    def drifted(self) -> tuple[ColumnDrift, ...]:
        """The columns that count as drifted, the largest effect first."""
        return tuple(column for column in self.columns if column.drifted)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was misread, and one finding per drifted, added, lost or retyped column."""
        words = {"added": self.added, "gone": self.gone, "of another type": self.retyped}
        columns = [
            Finding("warning", "columns-differ", name, f"the column is {what}", "the same columns", "ingest both alike")
            for what, names in words.items()
            for name in names
        ]
        return (*self.misread, *(column.finding() for column in self.drifted), *columns)


def compare(
    reference: pd.DataFrame,
    current: pd.DataFrame,
    *,
    targets: Collection[str] = (),
    discrete: Collection[str] = (),
    alpha: float = ALPHA,
) -> Drift:
    """Compare two tables column by column. All rows are used: 1,000,000 by 40 on each side take some ten seconds.

    Args:
        reference: (n, columns) features and targets of one version.
        current: (m, columns) of the other.
        targets: which columns are targets.
        discrete: columns whose numbers are labels.
        alpha: see `Drift`.
    """
    both = [str(name) for name in reference.columns if name in current]
    retyped = tuple(name for name in both if len(_kinds(reference[name], current[name])) > 1)
    columns = []
    for name in (name for name in both if name not in retyped):
        before, after = reference[name], current[name]
        numbers = False not in _kinds(before, after) and name not in discrete
        found = (effects.numeric_drift if numbers else effects.categorical_drift)(before.dropna(), after.dropna())
        gaps = int(before.isna().sum()), int(after.isna().sum())
        rows = len(reference), len(current)
        columns.append(column_drift(name, found, rows, gaps, numbers=numbers, target=name in targets))
    return Drift(
        columns=verdicts(columns, alpha),
        added=tuple(str(name) for name in current.columns if name not in reference),
        gone=tuple(str(name) for name in reference.columns if name not in current),
        retyped=retyped,
        rows=(len(reference), len(current)),
        alpha=alpha,
    )


def _kinds(*columns: pd.Series) -> set[bool]:
    """Whether columns hold numbers; booleans are categories, and a column without any value is what the others are."""
    return {
        types.is_numeric_dtype(values.dtype) and not types.is_bool_dtype(values.dtype)
        for values in columns
        if values.notna().any()
    }


def column_drift(
    name: str,
    found: effects.Measured,
    rows: tuple[int, int],
    gaps: tuple[int, int],
    *,
    numbers: bool,
    target: bool = False,
) -> ColumnDrift:
    """One column, given what was found of the values that are there, and the number of rows and of missing values."""
    missing = gaps[0] / max(rows[0], 1), gaps[1] / max(rows[1], 1)
    shares = np.array([np.append(found.shares[i] * (1 - missing[i]), missing[i]) for i in (0, 1)])
    bins, pictured = effects.picture((*found.bins, effects.MISSING_BIN), shares)
    return ColumnDrift(
        name=name,
        target=target,
        kind="numbers" if numbers else "categories",
        psi=effects.stability(shares[0], shares[1], *rows),
        distance=found.distance,
        p=found.p,
        missing=missing,
        missing_p=effects.independence(np.array([[n - gap, gap] for n, gap in zip(rows, gaps, strict=True)])),
        chance=(effects.mean_stability(shares, *rows), found.chance),
        new=found.new,
        new_count=found.new_count,
        new_share=found.new_share,
        gone=found.gone,
        gone_count=found.gone_count,
        bins=bins,
        shares=(tuple(pictured[0].tolist()), tuple(pictured[1].tolist())),
    )


def verdicts(columns: Sequence[ColumnDrift], alpha: float) -> tuple[ColumnDrift, ...]:
    """The columns with their verdicts in the order of `Drift`, p-values adjusted for every test that was made."""
    from scipy.stats import false_discovery_control

    raw = np.array([[column.p, column.missing_p] for column in columns]).reshape(-1, 2)
    tested = ~np.isnan(raw)
    corrected = np.ones_like(raw)
    if tested.any():
        corrected[tested] = false_discovery_control(raw[tested])
    adjusted = zip(columns, corrected.tolist(), strict=True)
    found = [column.judged(p, missing_p, alpha) for column, (p, missing_p) in adjusted]
    return tuple(sorted(found, key=lambda column: column.order(alpha)))
