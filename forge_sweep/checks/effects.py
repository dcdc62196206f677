"""How much one column of two tables differs, and what chance of that: the measures and tests behind `drift`.

Sources: population stability index, Siddiqi, Credit Risk Scorecards (2006), 10.3, and its mean where nothing drifted,
Yurdakul and Naranjo, Journal of Risk Model Validation 14 (2020); two-sample Kolmogorov-Smirnov, chi-squared and
Fisher's tests, SciPy.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pandas as pd

BINS = 10
LEAST_EXPECTED = 5.0
LEAST_SHARE = 1e-4
"""An empty bin counts as half a row, and as this share at least: else its part in the PSI would grow with the rows."""

KEPT = 20  # so many new and gone categories are listed, and so many bins pictured
KOLMOGOROV_MEAN = 0.8687  # mean of Kolmogorov's distribution: sqrt(pi / 2) ln 2
MISSING_BIN = "(missing)"
REST_BIN = "(rare)"
OTHER_BIN = "(others)"


@dataclass(frozen=True, eq=False)
class Measured:
    """The values of one column that are there, in both tables; see `drift.ColumnDrift` for the rest."""

    bins: Sequence[str] = field(repr=False)
    shares: np.ndarray = field(repr=False)  # (2, bins), reference and current
    distance: float = 0.0  # 0 where one side is empty
    chance: float = 0.0  # the mean of the distance where nothing drifted
    p: float = float("nan")  # of the difference; nan where it cannot be tested
    new: tuple[str, ...] = ()
    new_count: int = 0
    new_share: float = 0.0
    gone: tuple[str, ...] = ()
    gone_count: int = 0


def numeric_drift(reference: pd.Series, current: pd.Series) -> Measured:
    """Kolmogorov-Smirnov, and shares over bins of the reference.

    Few distinct values take the chi-squared test instead: with ties the other one errs on the safe side, and sees less.
    """
    a, b = (np.sort(values.to_numpy(np.float64)) for values in (reference, current))
    edges = bin_edges(a)
    ends = [np.concatenate([[0], np.searchsorted(part, edges, side="right"), [len(part)]]) for part in (a, b)]
    bins = bin_names(a, b, ends)
    shares = np.array([np.diff(end) / max(len(part), 1) for end, part in zip(ends, (a, b), strict=True)])
    if not (len(a) and len(b)):
        return Measured(bins, shares)
    distance, p = kolmogorov_smirnov(a, b)
    distinct = np.unique(a)
    if len(distinct) <= BINS and len(np.union1d(distinct, b)) <= 2 * BINS:
        values, codes = np.unique(np.concatenate([a, b]), return_inverse=True)
        counts = [np.bincount(part, minlength=len(values)) for part in np.split(codes, [len(a)])]
        by_value = independence(pooled(np.array(counts))[0])
        p = p if np.isnan(by_value) else by_value  # it is where every value is rare
    return Measured(bins, shares, distance, KOLMOGOROV_MEAN * (1 / len(a) + 1 / len(b)) ** 0.5, p)


def kolmogorov_smirnov(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """D and its p-value: exact up to 10,000 rows, since the asymptotic one is up to five times too small for few."""
    from scipy.stats import ks_2samp

    with warnings.catch_warnings():
        # An exact p-value that rounds to more than 1 is replaced by the asymptotic one, which is as good there.
        warnings.filterwarnings("ignore", "ks_2samp: Exact calculation unsuccessful")
        test = ks_2samp(a, b)
    return float(test.statistic), float(test.pvalue)


def bin_edges(values: np.ndarray) -> np.ndarray:
    """Upper edges of the bins of sorted numbers (n,): quantiles, with each frequent value alone in a bin.

    One with a share of ``1 / BINS`` or more is frequent; its neighbours would not show.
    """
    found, counts = np.unique(values, return_counts=True)
    frequent = found[counts * BINS >= len(values)]
    rest = values[~np.isin(values, frequent)] if len(frequent) else values
    quantiles = np.linspace(0, 1, max(BINS - len(frequent), 1) + 1)[1:-1]
    inner = np.quantile(rest, quantiles, method="inverted_cdf") if len(rest) else rest
    return np.unique(np.concatenate([inner, frequent, np.nextafter(frequent, -np.inf)]))


def bin_names(a: np.ndarray, b: np.ndarray, ends: list[np.ndarray]) -> list[str]:
    """The smallest and the largest value in each bin, with as many digits as tell bins apart; "" for an empty one."""
    bounds = []
    for cuts in zip(*(pairwise(end) for end in ends), strict=True):
        parts = [part[low:high] for part, (low, high) in zip((a, b), cuts, strict=True) if high > low]
        bounds.append((min(part[0] for part in parts), max(part[-1] for part in parts)) if parts else None)
    for digits in (3, 4, 6, 8, 10, 12, 17):
        names = [" to ".join(dict.fromkeys(f"{value:.{digits}g}" for value in bound or ())) for bound in bounds]
        if len({name for name in names if name}) == sum(bound is not None for bound in bounds):
            break
    return names


def categorical_drift(reference: pd.Series, current: pd.Series) -> Measured:
    """Total variation and chi-squared over categories; rare ones count together."""
    labels, counts = category_counts(reference, current)
    rows = np.maximum(counts.sum(axis=1), 1)
    table, common = pooled(counts)
    bins, shares = [*labels[common], *[REST_BIN] * (table.shape[1] - len(common))], table / rows[:, None]
    if not (len(reference) and len(current)):
        return Measured(bins, shares)
    distance, chance = total_variation(shares, rows)
    new, gone = (ranked(counts[1 - i] == 0, counts[i]) for i in (1, 0))
    return Measured(
        bins,
        shares,
        distance,
        chance,
        p=independence(table),
        new=tuple(labels[new[:KEPT]]),
        new_count=len(new),
        new_share=float(counts[1][new].sum() / rows[1]),
        gone=tuple(labels[gone[:KEPT]]),
        gone_count=len(gone),
    )


def total_variation(shares: np.ndarray, rows: np.ndarray) -> tuple[float, float]:
    """Distance of the shares (2, k) of so many values, and its mean where nothing drifted."""
    variance = shares.mean(axis=0) * (1 - shares.mean(axis=0)) * (1 / rows).sum()
    return float(np.abs(shares[0] - shares[1]).sum() / 2), float(np.sqrt(2 / np.pi * variance).sum() / 2)


def category_counts(reference: pd.Series, current: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Categories (k,) as texts, and how often each occurs, (2, k)."""
    found = [pd.factorize(values) for values in (reference, current)]
    texts = [as_texts(pd.Series(values)) for _, values in found]
    codes, labels = pd.factorize(np.concatenate(texts))
    counts = np.zeros((2, len(labels)), np.int64)
    for row, (part, own) in enumerate(zip(np.split(codes, [len(texts[0])]), found, strict=True)):
        np.add.at(counts[row], part, np.bincount(own[0], minlength=len(part)))
    return np.asarray(labels, object), counts


def as_texts(values: pd.Series) -> np.ndarray:
    """Categories as texts, so that 1 and 1.0 are the same label."""
    if isinstance(values.dtype, pd.StringDtype):
        return values.to_numpy(object)
    whole = [isinstance(value, float) and value.is_integer() for value in values.tolist()]
    texts = [str(int(v) if w else v) for v, w in zip(values.tolist(), whole, strict=True)]
    return np.array(texts, object)


def pooled(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts (2, k) with the rare categories as one, the last; and which ones (positions) stand alone before it."""
    rows, totals = counts.sum(axis=1), counts.sum(axis=0)
    common = ranked(totals * rows.min() >= LEAST_EXPECTED * rows.sum(), totals)
    table = counts[:, common]
    rest = (rows - table.sum(axis=1))[:, None]
    return (np.hstack([table, rest]) if rest.any() else table), common


def ranked(chosen: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Positions that are chosen and counted, the most frequent first."""
    positions = np.flatnonzero(chosen & (counts > 0))
    return positions[np.argsort(-counts[positions], kind="stable")]


def picture(names: Sequence[str], shares: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """Bins that are not empty, and their shares (2, bins); beyond `KEPT`, those before the missing values are one."""
    used = np.flatnonzero(shares.any(axis=0))
    names, shares = [names[position] for position in used.tolist()], shares[:, used]
    last = len(names) - (MISSING_BIN in names[-1:])
    if last <= KEPT:
        return tuple(names), shares
    others = shares[:, KEPT:last].sum(axis=1, keepdims=True)
    return (*names[:KEPT], OTHER_BIN, *names[last:]), np.hstack([shares[:, :KEPT], others, shares[:, last:]])


def independence(table: np.ndarray) -> float:
    """p-value of a table of counts (2, k); nan where a row, or all columns but one, are empty.

    A column with too few expected rows for the chi-squared distribution joins the next smaller one; of two columns that
    are left, Fisher's test needs none.
    """
    from scipy.stats import chi2_contingency, fisher_exact
    from scipy.stats.contingency import expected_freq

    table = table[:, table.sum(axis=0) > 0]
    if table.shape[1] < 2 or (table.sum(axis=1) == 0).any():
        return float("nan")
    table = table[:, np.argsort(table.sum(axis=0), kind="stable")]
    while (few := expected_freq(table).min() < LEAST_EXPECTED) and table.shape[1] > 2:
        table = np.hstack([table[:, :2].sum(axis=1, keepdims=True), table[:, 2:]])
        table = table[:, np.argsort(table.sum(axis=0), kind="stable")]
    return float((fisher_exact if few and table.shape[1] == 2 else chi2_contingency)(table).pvalue)


def stability(a: np.ndarray, b: np.ndarray, n: int, m: int) -> float:
    """Population stability index of two vectors of shares, of n and m rows; see `LEAST_SHARE`."""
    used = (a > 0) | (b > 0)
    floor = max(0.5 / max(min(n, m), 1), LEAST_SHARE)
    a, b = np.maximum(a[used], floor), np.maximum(b[used], floor)
    return float(((b - a) * np.log(b / a)).sum())


def mean_stability(shares: np.ndarray, n: int, m: int) -> float:
    """The mean of the index where nothing drifted, for shares (2, bins): bins less one, times 1/n + 1/m."""
    used = int(shares.any(axis=0).sum())
    return max(used - 1, 0) * (1 / n + 1 / m) if n and m else 0.0
