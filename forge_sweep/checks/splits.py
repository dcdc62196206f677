"""Audit rules that compare the splits with each other, and the classes within them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from forge_sweep.checks.evidence import Evidence, finding, some, values_of
from forge_sweep.checks.findings import Finding, Severity

if TYPE_CHECKING:
    from forge_sweep.sources.base import Role

MANY_DUPLICATES = 0.20
DISTINCT_PER_ROW = 10
STRONG_IMBALANCE, IMBALANCE = 0.05, 0.20
MIN_CLASS_ROWS = 10
MIN_CLASS_SHIFT = 0.05
MIN_MEAN_SHIFT = 0.25
SIGNIFICANCE = 0.001


def duplicated_rows(evidence: Evidence) -> Iterator[Finding]:
    """Rows whose features stand in two splits, by fingerprint: what was learned by heart is scored as skill.

    More than 20 % of valid or test is an error, unless the features can form few different rows at all (fewer than 10
    per row of data), where twins say nothing about the split. Shown are rows of valid, or for test their twins in the
    other split.
    """
    marks, visible = evidence.dataset.fingerprints, dict(evidence.visible)
    pairs: tuple[tuple[Role, Role], ...] = (("train", "valid"), ("train", "test"), ("valid", "test"))
    for fitted, scored in pairs:
        twins = np.isin(marks[scored], marks[fitted])
        if not twins.any():
            continue
        split = visible.get(scored, visible[fitted])
        shown = twins if scored in visible else np.isin(marks[fitted], marks[scored])
        grave = twins.mean() > MANY_DUPLICATES and _rows_can_differ(evidence)
        yield finding(
            "error" if grave else "warning",
            "duplicated-rows",
            f"{fitted}/{scored}",
            seen=f"{twins.sum()} of {len(twins)} {scored} rows ({twins.mean():.1%}) equal a {fitted} row in features",
            expected="no row in two splits",
            fix='remove duplicates from the file, or kind = "group" with group = "<column>" under [data.split]',
            rows=split.rows[shown],
        )


def unseen_categories(evidence: Evidence) -> Iterator[Finding]:
    """Text values in valid that train does not have; of nearly unique text, and of numbers, that is said once."""
    train, valid = evidence.dataset.train, evidence.dataset.valid
    said = {*evidence.near_unique, *evidence.noted}
    for name in (name for name in evidence.categorical if name not in said):
        column = valid.features[name]
        unseen = (column.notna() & ~column.isin(train.features[name].dropna().unique())).to_numpy(dtype=bool)
        if unseen.any():
            yield finding(
                "warning",
                "unseen-categories",
                str(name),
                seen=f"{some(column[unseen].unique())} in {unseen.sum()} of {len(unseen)} valid rows, never in train",
                expected="categories that train has seen",
                fix=f'merge rare values of "{name}" in the file, or raise train under [data.split]',
                rows=valid.rows[unseen],
            )


def class_imbalance(evidence: Evidence) -> Iterator[Finding]:
    """A rare class in train, relative to equal shares: with N classes its share times N/2, for two its share."""
    for name, train, _, labels in evidence.classes():
        counts = np.bincount(train, minlength=len(labels))
        present = np.flatnonzero(counts)
        if len(present) < 2:
            continue
        rarest = present[counts[present].argmin()]
        share = counts[rarest] / counts.sum()
        relative = share * len(present) / 2
        if relative < IMBALANCE:
            severity: Severity = "warning" if relative < STRONG_IMBALANCE else "info"
            yield finding(
                severity,
                "class-imbalance",
                name,
                seen=f"class {labels[rarest]!r} has {counts[rarest]} of {counts.sum()} train rows ({share:.2%})",
                expected=f"at least {2 * IMBALANCE / len(present):.3g} of the rows in each of {len(present)} classes",
                fix=_imbalance_fix(evidence),
            )


def class_coverage(evidence: Evidence) -> Iterator[Finding]:
    """Classes that one split lacks."""
    for name, train, valid, labels in evidence.classes():
        in_train, in_valid = (np.bincount(codes, minlength=len(labels)) > 0 for codes in (train, valid))
        yield from _absent("error", "train", name, labels, in_valid & ~in_train)
        yield from _absent("warning", "valid", name, labels, in_train & ~in_valid)


def few_rows_per_class(evidence: Evidence) -> Iterator[Finding]:
    """Classes with fewer than 10 train rows."""
    for name, train, _, labels in evidence.classes():
        counts = np.bincount(train, minlength=len(labels))
        few = np.flatnonzero((counts > 0) & (counts < MIN_CLASS_ROWS))
        if len(few):
            yield finding(
                "warning",
                "few-rows-per-class",
                name,
                seen=f"{len(few)} of {len(labels)} classes have as few as {counts[few].min()} train rows: "
                f"{some([labels[code] for code in few])}",
                expected=f"at least {MIN_CLASS_ROWS} train rows of each class",
                fix="merge or remove rare classes, or raise train under [data.split]",
            )


def class_shift(evidence: Evidence) -> Iterator[Finding]:
    """Class shares that differ between train and valid.

    The total variation distance exceeds 0.05 and a chi-square test of homogeneity says it is not chance (p < 0.001).
    """
    for name, train, valid, labels in evidence.classes():
        if not len(train) or not len(valid) or len(labels) < 2:
            continue
        counts = np.stack([np.bincount(codes, minlength=len(labels)) for codes in (train, valid)])
        shares = counts / counts.sum(axis=1, keepdims=True)
        distance = float(np.abs(shares[0] - shares[1]).sum() / 2)
        if distance > MIN_CLASS_SHIFT and (p := _chi_square(counts)) < SIGNIFICANCE:
            most = int(np.abs(shares[0] - shares[1]).argmax())
            yield finding(
                "warning",
                "class-shift",
                name,
                seen=f"class {labels[most]!r} has {shares[0, most]:.1%} of train and {shares[1, most]:.1%} of valid "
                f"(total variation {distance:.3f}, p = {p:.1e})",
                expected=f"class shares within {MIN_CLASS_SHIFT:.0%} of each other",
                fix="stratify = true under [data.split], or expect scores on new data to differ as much",
            )


def mean_shift(evidence: Evidence) -> Iterator[Finding]:
    """Numeric features (and a regression target) whose mean differs between train and valid.

    By more than 0.25 standard deviations and by Welch's test at 0.001 over all features together (Bonferroni). A
    standardised difference above 0.25 is a usual sign of imbalance (Imbens and Rubin, Causal Inference, 2015, ch. 14).
    """
    train, valid = evidence.dataset.train, evidence.dataset.valid
    columns = [(str(name), train.features[name], valid.features[name]) for name in evidence.numeric]
    if evidence.kind == "regression":
        columns += [(str(name), train.targets[name], valid.targets[name]) for name in train.targets]
    columns = [column for column in columns if is_numeric_dtype(column[1]) and is_numeric_dtype(column[2])]
    for name, before, after in columns:
        shift, p = _standardised_difference(_finite(before), _finite(after))
        if abs(shift) > MIN_MEAN_SHIFT and p < SIGNIFICANCE / len(columns):
            yield finding(
                "warning",
                "mean-shift",
                name,
                seen=f"mean {_finite(before).mean():.4g} in train and {_finite(after).mean():.4g} in valid "
                f"({shift:+.2f} standard deviations)",
                expected=f"means within {MIN_MEAN_SHIFT} standard deviations",
                fix='kind = "random" under [data.split] if the order of rows means nothing; else expect drift, or drop '
                f'"{name}" under [data]',
            )


def _absent(
    severity: Severity, split: Role, target: str, labels: Sequence[Any], absent: np.ndarray
) -> Iterator[Finding]:
    """The finding about classes that a split lacks, where there are any."""
    if absent.any():
        yield finding(
            severity,
            f"class-absent-from-{split}",
            target,
            seen=f"no {split} row has class {some([labels[code] for code in np.flatnonzero(absent).tolist()])}",
            expected="every class in train and valid",
            fix=f"stratify = true or a larger {split} under [data.split], or merge rare classes",
        )


def _rows_can_differ(evidence: Evidence) -> bool:
    """Whether the features can form many more different rows than there are."""
    possible = np.log(np.maximum(evidence.features["distinct"].to_numpy(dtype=float), 1)).sum()
    return bool(possible > np.log(DISTINCT_PER_ROW * max(sum(evidence.dataset.sizes.values()), 1)))


def _imbalance_fix(evidence: Evidence) -> str:
    """What helps against imbalance, as far as the task offers it."""
    weight = 'class_weight = "balanced" under [model]'
    return {
        "binary": f'{weight} and metric = "val_pr_auc" under [objective]',
        "multiclass": f'{weight} and metric = "val_balanced_accuracy" under [objective]',
    }.get(evidence.kind, 'metric = "val_pr_auc" under [objective]')


def _chi_square(counts: np.ndarray) -> float:
    """p-value of homogeneity of the two rows of counts."""
    from scipy.stats import chi2_contingency

    return float(chi2_contingency(counts[:, counts.sum(axis=0) > 0], correction=False).pvalue)


def _standardised_difference(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """(difference of means over the pooled standard deviation, two-sided p of Welch's statistic)."""
    from scipy.stats import norm

    if len(before) < 2 or len(after) < 2:
        return 0.0, 1.0
    with np.errstate(over="ignore", invalid="ignore"):
        difference = after.mean() - before.mean()
        spread = np.sqrt((before.var() + after.var()) / 2)
    if not np.isfinite(spread):
        return 0.0, 1.0
    if spread == 0:
        return (0.0, 1.0) if difference == 0 else (float(np.copysign(np.inf, difference)), 0.0)
    error = np.sqrt(before.var(ddof=1) / len(before) + after.var(ddof=1) / len(after))
    return float(difference / spread), float(2 * norm.sf(abs(difference) / error))


def _finite(column: pd.Series) -> np.ndarray:
    """Finite values of a numeric column."""
    values = values_of(column)
    return np.asarray(values[np.isfinite(values)])
