"""How the columns of one dataset version differ from those of another: effect sizes first, p-values second.

Large tables make every difference significant, small ones make large differences by chance; so a column counts as
drifted only where both speak: the p-value, adjusted for all tests of the comparison, is below ``alpha``, and an effect
is large enough to matter, over and above what chance alone gives with so many rows and bins.

Source: false discovery rate, Benjamini and Hochberg (1995). Where nothing drifted at all, their procedure flags
anything with a chance of at most ``alpha``; where something did, of all flags this share is wrong on average. That
holds for rows that are independent; rows that both versions share make the tests milder. The measures and tests
themselves are in `effects`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from pandas.api import types

from forge_sweep.checks.effects import (
    MISSING_BIN,
    categorical_drift,
    independence,
    mean_stability,
    missing_table,
    numeric_drift,
    picture,
    stability,
)
from forge_sweep.checks.findings import Finding

ALPHA = 0.05
PSI = 0.1
DISTANCE = 0.1
MISSING = 0.05
NEW_SHARE = 0.01
SHOWN = 10


@dataclass(frozen=True)
class ColumnDrift:
    """One column in both versions.

    Attributes:
        name: column name.
        target: whether it is a target: label shift.
        kind: numbers or categories.
        psi: population stability index over ten quantile bins of the reference (a value of a tenth of its rows or more
            is a bin of its own), or over categories, and missing values.
        distance: Kolmogorov-Smirnov's D of numbers, total variation of categories; 0 to 1, of values that are there.
        p: of that difference, unadjusted; nan where it cannot be tested.
        missing: share of missing values, reference and current.
        missing_p: of their difference, unadjusted; nan where nothing is missing, or everything.
        chance: what PSI and distance are on average where nothing drifted, with so many rows and bins.
        new: categories that only the current version has, the most frequent first, at most `KEPT`.
        new_count: how many there are.
        new_share: share of current rows that have one of them.
        gone: categories that only the reference has, likewise.
        gone_count: how many there are.
        bins: what the shares are of; of many categories the most frequent.
        shares: reference and current, each over ``bins``.
        adjusted: the smaller one of both p-values, adjusted for all tests of the comparison; 1 where none was possible.
        drifted: whether the column counts as drifted.
    """

    name: str
    target: bool
    kind: Literal["numbers", "categories"]
    psi: float
    distance: float
    p: float
    missing: tuple[float, float]
    missing_p: float
    chance: tuple[float, float]
    new: tuple[str, ...]
    new_count: int
    new_share: float
    gone: tuple[str, ...]
    gone_count: int
    bins: tuple[str, ...] = field(repr=False)
    shares: tuple[tuple[float, ...], tuple[float, ...]] = field(repr=False)
    adjusted: float = 1.0
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

    @property
    def matters(self) -> bool:
        """Whether an effect is large enough, whatever the p-values say."""
        psi, distance = self.effect
        return psi >= PSI or distance >= DISTANCE or abs(self.shift) >= MISSING or self.new_share >= NEW_SHARE

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
            seen += f", {self.new_count} new categories in {self.new_share:.1%} of rows ({listed(self.new)})"
        if self.gone:
            seen += f", {self.gone_count} gone categories ({listed(self.gone)})"
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
    """Two versions compared.

    Attributes:
        columns: columns of both: drifted ones, then those whose difference is too small to matter but no chance, then
            all others; of each the largest effect first.
        added: columns that only the current version has.
        gone: columns that only the reference has.
        retyped: columns of numbers in one version and of texts in the other.
        rows: rows compared, reference and current.
        alpha: the chance of any flag where nothing drifted, at most.
    """

    columns: tuple[ColumnDrift, ...]
    added: tuple[str, ...]
    gone: tuple[str, ...]
    retyped: tuple[str, ...]
    rows: tuple[int, int]
    alpha: float

    @property
    def drifted(self) -> tuple[ColumnDrift, ...]:
        """The columns that count as drifted, the largest effect first."""
        return tuple(column for column in self.columns if column.drifted)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """One finding per drifted, added, lost or retyped column."""
        words = {"added": self.added, "gone": self.gone, "of another type": self.retyped}
        columns = [
            Finding("warning", "columns-differ", name, f"the column is {what}", "the same columns", "ingest both alike")
            for what, names in words.items()
            for name in names
        ]
        return (*(column.finding() for column in self.drifted), *columns)


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
    retyped = tuple(name for name in both if len(kinds(reference[name], current[name])) > 1)
    columns = [
        column_drift(reference[name], current[name], target=name in targets, discrete=name in discrete)
        for name in both
        if name not in retyped
    ]
    return Drift(
        columns=tuple(sorted(adjusted(columns, alpha), key=lambda column: column.order(alpha))),
        added=tuple(str(name) for name in current.columns if name not in reference),
        gone=tuple(str(name) for name in reference.columns if name not in current),
        retyped=retyped,
        rows=(len(reference), len(current)),
        alpha=alpha,
    )


def kinds(*columns: pd.Series) -> set[bool]:
    """Whether columns hold numbers; booleans are categories, and a column without any value is what the others are."""
    return {
        types.is_numeric_dtype(values.dtype) and not types.is_bool_dtype(values.dtype)
        for values in columns
        if values.notna().any()
    }


def column_drift(
    reference: pd.Series, current: pd.Series, *, target: bool = False, discrete: bool = False
) -> ColumnDrift:
    """One column of both versions; not yet adjusted for other tests."""
    numbers = False not in kinds(reference, current) and not discrete
    rows = len(reference), len(current)
    present = reference.dropna(), current.dropna()
    missing = [(whole - len(part)) / max(whole, 1) for part, whole in zip(present, rows, strict=True)]
    found = (numeric_drift if numbers else categorical_drift)(*present)
    shares = np.array([np.append(found.shares[i] * (1 - missing[i]), missing[i]) for i in (0, 1)])
    bins, pictured = picture((*found.bins, MISSING_BIN), shares)
    return ColumnDrift(
        name=str(reference.name),
        target=target,
        kind="numbers" if numbers else "categories",
        psi=stability(shares[0], shares[1], *rows),
        distance=found.distance,
        p=found.p,
        missing=(missing[0], missing[1]),
        missing_p=independence(missing_table(reference, current)),
        chance=(mean_stability(shares, *rows), found.chance),
        new=found.new,
        new_count=found.new_count,
        new_share=found.new_share,
        gone=found.gone,
        gone_count=found.gone_count,
        bins=bins,
        shares=(tuple(pictured[0].tolist()), tuple(pictured[1].tolist())),
    )


def adjusted(columns: Sequence[ColumnDrift], alpha: float) -> list[ColumnDrift]:
    """The columns with their verdicts, p-values adjusted for every test that was made."""
    from scipy.stats import false_discovery_control

    raw = np.array([[column.p, column.missing_p] for column in columns]).reshape(-1, 2)
    tested = ~np.isnan(raw)
    corrected = np.ones_like(raw)
    if tested.any():
        corrected[tested] = false_discovery_control(raw[tested])
    return [
        column.judged(p, missing_p, alpha) for column, (p, missing_p) in zip(columns, corrected.tolist(), strict=True)
    ]


def listed(names: Sequence[str]) -> str:
    """The first names."""
    return ", ".join(names[:SHOWN])
