"""How the columns of one dataset version differ from those of another: effect sizes first, p-values second.

Large tables make every difference significant, small ones make large differences by chance; so a column counts as
drifted only where both speak: the p-value, adjusted for all tests of the comparison, is below ``alpha``, and an effect
is large enough to matter.

Sources: population stability index and its thresholds, Siddiqi, Credit Risk Scorecards (2006), 10.3; two-sample
Kolmogorov-Smirnov and chi-squared tests, SciPy; false discovery rate, Benjamini and Hochberg (1995). Where nothing
drifted at all, their procedure flags anything with a chance of at most ``alpha``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pandas as pd
from pandas.api import types

from forge_sweep.checks.findings import Finding

ALPHA = 0.05
PSI = 0.1
DISTANCE = 0.1
MISSING = 0.05
NEW_SHARE = 0.01
BINS = 10
LEAST_EXPECTED = 5.0
SHOWN = 10

MISSING_BIN = "(missing)"
REST_BIN = "(rare)"


@dataclass(frozen=True)
class ColumnDrift:
    """One column in both versions.

    Attributes:
        name: column name.
        target: whether it is a target: label shift.
        kind: numbers or categories.
        psi: population stability index over ten quantile bins of the reference, or over categories, and missing values.
        distance: Kolmogorov-Smirnov's D of numbers, total variation of categories; 0 to 1, of values that are there.
        p: of that distance, unadjusted; nan where it cannot be tested.
        missing: share of missing values, reference and current.
        missing_p: of their difference, unadjusted.
        new: categories that only the current version has, the most frequent first.
        new_share: share of current rows that have one of them.
        gone: categories that only the reference has.
        bins: what the shares are of.
        shares: reference and current, each over ``bins``.
        adjusted: the smaller one of both p-values, adjusted for all tests of the comparison.
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
    new: tuple[str, ...]
    new_share: float
    gone: tuple[str, ...]
    bins: tuple[str, ...] = field(repr=False)
    shares: tuple[tuple[float, ...], tuple[float, ...]] = field(repr=False)
    adjusted: float = 1.0
    drifted: bool = False

    @property
    def matters(self) -> bool:
        """Whether an effect is large enough, whatever chance says."""
        shift = abs(self.missing[1] - self.missing[0])
        new = self.new_share >= NEW_SHARE
        return self.psi >= PSI or self.distance >= DISTANCE or shift >= MISSING or new

    def finding(self) -> Finding:
        """The drift of this column as a finding."""
        seen = f"PSI {self.psi:.3f}, distance {self.distance:.3f}, adjusted p {self.adjusted:.2g}"
        if self.missing[0] != self.missing[1]:
            seen += f", missing {self.missing[0]:.1%} -> {self.missing[1]:.1%}"
        if self.new:
            seen += f", new categories in {self.new_share:.1%} of rows ({', '.join(self.new[:SHOWN])})"
        if self.gone:
            seen += f", gone categories ({', '.join(self.gone[:SHOWN])})"
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
        columns: columns of both, the largest effect first.
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
    targets: Sequence[str] = (),
    discrete: Collection[str] = (),
    alpha: float = ALPHA,
) -> Drift:
    """Compare two tables column by column.

    Args:
        reference: (n, columns) features and targets of one version.
        current: (m, columns) of the other.
        targets: which columns are targets.
        discrete: columns whose numbers are labels.
        alpha: see `Drift`.
    """
    both = [str(name) for name in reference.columns if name in current]
    retyped = tuple(name for name in both if is_numbers(reference[name]) != is_numbers(current[name]))
    columns = [
        column_drift(reference[name], current[name], target=name in targets, discrete=name in discrete)
        for name in both
        if name not in retyped
    ]
    return Drift(
        columns=tuple(sorted(adjusted(columns, alpha), key=lambda column: (-column.psi, -column.distance))),
        added=tuple(str(name) for name in current.columns if name not in reference),
        gone=tuple(str(name) for name in reference.columns if name not in current),
        retyped=retyped,
        rows=(len(reference), len(current)),
        alpha=alpha,
    )


def is_numbers(values: pd.Series) -> bool:
    """Whether a column holds numbers; booleans are categories."""
    return types.is_numeric_dtype(values.dtype) and not types.is_bool_dtype(values.dtype)


def column_drift(
    reference: pd.Series, current: pd.Series, *, target: bool = False, discrete: bool = False
) -> ColumnDrift:
    """One column of both versions; not yet adjusted for other tests."""
    numbers = is_numbers(reference) and not discrete
    present = reference.dropna(), current.dropna()
    missing = tuple(
        1 - len(part) / max(len(whole), 1) for part, whole in zip(present, (reference, current), strict=True)
    )
    measure = numeric_drift if numbers else categorical_drift
    found = measure(*present)
    shares = [
        np.append(share * (1 - rate), rate) for share, rate in zip((found["a"], found["b"]), missing, strict=True)
    ]
    return ColumnDrift(
        name=str(reference.name),
        target=target,
        kind="numbers" if numbers else "categories",
        psi=stability(shares[0], shares[1], len(reference), len(current)),
        distance=found["distance"],
        p=found["p"],
        missing=(missing[0], missing[1]),
        missing_p=independence(missing_table(reference, current)),
        new=found.get("new", ()),
        new_share=found.get("new_share", 0.0),
        gone=found.get("gone", ()),
        bins=(*found["bins"], MISSING_BIN),
        shares=(tuple(map(float, shares[0])), tuple(map(float, shares[1]))),
    )


def numeric_drift(reference: pd.Series, current: pd.Series) -> dict[str, Any]:
    """Kolmogorov-Smirnov, and shares over quantile bins of the reference."""
    from scipy.stats import ks_2samp

    a, b = (np.sort(values.to_numpy(np.float64)) for values in (reference, current))
    edges = np.unique(np.quantile(a, np.linspace(0, 1, BINS + 1)[1:-1])) if len(a) else np.empty(0)
    counts = [np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1) for values in (a, b)]
    ends = [-np.inf, *edges, np.inf]
    result: dict[str, Any] = {
        "a": counts[0] / max(len(a), 1),
        "b": counts[1] / max(len(b), 1),
        "bins": tuple(f"({low:.4g}, {high:.4g}]" for low, high in pairwise(ends)),
    }
    if not (len(a) and len(b)):
        return {**result, "distance": 0.0, "p": np.nan}
    test = ks_2samp(a, b, method="asymp")  # with ties its p-value is too large, never too small
    return {**result, "distance": float(test.statistic), "p": float(test.pvalue)}


def categorical_drift(reference: pd.Series, current: pd.Series) -> dict[str, Any]:
    """Total variation and chi-squared over categories; rare ones count together."""
    counts = pd.concat([values.astype(str).value_counts() for values in (reference, current)], axis=1).fillna(0)
    counts.columns = pd.Index(["a", "b"])
    a, b = counts["a"], counts["b"]
    new, gone = counts.index[a == 0], counts.index[b == 0]
    rows = np.maximum(counts.sum().to_numpy(), 1)
    expected = counts.sum(axis=1) * rows.min() / rows.sum()
    rare = (expected < LEAST_EXPECTED).to_numpy()
    pooled = counts[~rare]
    if rare.any():
        pooled = pd.concat([pooled, counts[rare].sum().to_frame(REST_BIN).T])
    shares = pooled.to_numpy() / rows
    return {
        "a": shares[:, 0],
        "b": shares[:, 1],
        "bins": tuple(map(str, pooled.index)),
        "distance": float(abs(shares[:, 0] - shares[:, 1]).sum() / 2) if len(reference) and len(current) else 0.0,
        "p": independence(pooled.to_numpy().T),
        "new": tuple(b[new].sort_values(ascending=False).index),
        "new_share": float(b[new].sum() / rows[1]),
        "gone": tuple(a[gone].sort_values(ascending=False).index),
    }


def missing_table(reference: pd.Series, current: pd.Series) -> np.ndarray:
    """Present and missing values of both versions, (2, 2)."""
    missing = [int(values.isna().sum()) for values in (reference, current)]
    return np.array([[len(reference) - missing[0], missing[0]], [len(current) - missing[1], missing[1]]])


def independence(table: np.ndarray) -> float:
    """p-value of a table of counts; nan where a row or a column is empty. Small 2 x 2 tables take Fisher's test."""
    from scipy.stats import chi2_contingency, fisher_exact

    table = table[:, table.sum(axis=0) > 0]
    if table.shape[1] < 2 or (table.sum(axis=1) == 0).any():
        return float("nan")
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    if table.shape == (2, 2) and expected.min() < LEAST_EXPECTED:
        return float(fisher_exact(table).pvalue)
    return float(chi2_contingency(table).pvalue)


def stability(a: np.ndarray, b: np.ndarray, n: int, m: int) -> float:
    """Population stability index of two vectors of shares; an empty bin counts as half a row."""
    used = (a > 0) | (b > 0)
    floor = 0.5 / max(min(n, m), 1)
    a, b = np.maximum(a[used], floor), np.maximum(b[used], floor)
    return float(((b - a) * np.log(b / a)).sum())


def adjusted(columns: Sequence[ColumnDrift], alpha: float) -> list[ColumnDrift]:
    """The columns with their p-values adjusted for every test that was made."""
    from scipy.stats import false_discovery_control

    raw = np.array([[column.p, column.missing_p] for column in columns]).reshape(-1, 2)
    tested = ~np.isnan(raw)
    corrected = np.ones_like(raw)
    if tested.any():
        corrected[tested] = false_discovery_control(raw[tested])
    smallest = corrected.min(axis=1) if len(columns) else []
    return [
        replace(column, adjusted=float(p), drifted=bool(p < alpha and column.matters))
        for column, p in zip(columns, smallest, strict=True)
    ]
