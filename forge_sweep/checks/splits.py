"""Audit rules that compare the splits with each other, and the classes within them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pandas.api.types import is_numeric_dtype

from forge_sweep.checks.evidence import Evidence, Seen, drop_fix, rule, some, values_of

if TYPE_CHECKING:
    from forge_sweep.sources.base import Role

MANY_DUPLICATES = 0.20
DISTINCT_PER_ROW = 10
STRONG_IMBALANCE, IMBALANCE = 0.05, 0.20
MIN_CLASS_ROWS = 10
MIN_CLASS_SHIFT = 0.05
MIN_MEAN_SHIFT = 0.25
SIGNIFICANCE = 0.001


@rule("warning", "duplicated-rows", expected="no row in two splits")
def duplicated_rows(evidence: Evidence) -> Iterator[Seen]:
    """Rows whose features stand in two splits, by fingerprint: what was learned by heart is scored as skill.

    More than 20 % of valid or test is an error, unless the features can form fewer than 10 different rows per row of
    data, where twins say nothing. Shown are rows of valid, or for test their twins in the other split.
    """
    marks, visible = evidence.dataset.fingerprints, dict(evidence.visible)
    pairs: tuple[tuple[Role, Role], ...] = (("train", "valid"), ("train", "test"), ("valid", "test"))
    fix = 'remove duplicates from the file, or kind = "group" with group = "<column>" under [data.split]'
    for fitted, scored in pairs:
        twins = np.isin(marks[scored], marks[fitted])
        if not twins.any():
            continue
        split = visible.get(scored, visible[fitted])
        shown = twins if scored in visible else np.isin(marks[fitted], marks[scored])
        grave = twins.mean() > MANY_DUPLICATES and _rows_can_differ(evidence)
        share = f"{twins.sum()} of {len(twins)} {scored} rows ({twins.mean():.1%})"
        seen = f"{share} equal a {fitted} row in features"
        yield Seen(f"{fitted}/{scored}", seen, fix, split.rows[shown], severity="error" if grave else "warning")


FREE_TEXT = 0.5
"""Share of rows with a text that train does not have above which texts are sentences, not categories."""


@rule("warning", "unseen-categories", expected="categories that train has seen")
def unseen_categories(evidence: Evidence) -> Iterator[Seen]:
    """Text values in valid that train does not have; of nearly unique text, and of numbers, that is said once."""
    train, valid = evidence.dataset.train, evidence.dataset.valid
    said = {*evidence.near_unique, *evidence.noted}
    for name in (name for name in evidence.categorical if name not in said):
        column = valid.features[name]
        unseen = (column.notna() & ~column.isin(train.features[name].dropna().unique())).to_numpy(dtype=bool)
        if unseen.any():
            values = some(column[unseen].unique())
            seen = f"{values} in {unseen.sum()} of {len(unseen)} valid rows, never in train"
            fix = f'merge rare values of "{name}" in the file, or raise train under [data.split]'
            if unseen.mean() > FREE_TEXT:
                fix = f"{drop_fix(name)}, or store its tokens as a column of arrays (docs/models.md)"
            yield Seen(name, seen, fix, valid.rows[unseen])


@rule("info", "class-imbalance")
def class_imbalance(evidence: Evidence) -> Iterator[Seen]:
    """A rare class in train, relative to equal shares: with N classes its share times N/2, for two its share."""
    metric = "val_balanced_accuracy" if evidence.kind == "multiclass" else "val_pr_auc"
    weight = 'class_weight = "balanced" under [model] and ' if evidence.kind in ("binary", "multiclass") else ""
    for name, train, _, labels in evidence.classes():
        counts = np.bincount(train, minlength=len(labels))
        present = np.flatnonzero(counts)
        if len(present) < 2:
            continue
        rarest = present[counts[present].argmin()]
        share = counts[rarest] / counts.sum()
        relative = share * len(present) / 2
        if relative < IMBALANCE:
            yield Seen(
                name,
                f"class {labels[rarest]!r} has {counts[rarest]} of {counts.sum()} train rows ({share:.2%})",
                f'{weight}metric = "{metric}" under [objective]',
                severity="warning" if relative < STRONG_IMBALANCE else "info",
                expected=f"at least {2 * IMBALANCE / len(present):.3g} of the rows in each of {len(present)} classes",
            )


@rule("warning", "imbalanced-accuracy", expected="an objective that a constant answer does not win")
def imbalanced_accuracy(evidence: Evidence) -> Iterator[Seen]:
    """Accuracy as the objective where calling every row the frequent class is nearly always right."""
    if evidence.metric != "val_accuracy" or evidence.kind not in ("binary", "multiclass"):
        return
    metric = "val_balanced_accuracy" if evidence.kind == "multiclass" else "val_pr_auc"
    for name, train, _, labels in evidence.classes():
        counts = np.bincount(train, minlength=len(labels))
        if (share := counts.max() / counts.sum()) > 1 - STRONG_IMBALANCE and len(labels) > 1:
            seen = f"val_accuracy is {share:.1%} for a model that calls every row {labels[counts.argmax()]!r}"
            yield Seen(name, seen, f'class_weight = "balanced" under [model] and metric = "{metric}" under [objective]')


@rule("warning", "scaled-on-all-rows", expected="rows as they were measured")
def scaled_on_all_rows(evidence: Evidence) -> Iterator[Seen]:
    """Features that were scaled before the split: what the scaler learned of valid and test is in the train rows."""
    for how, names in evidence.dataset.scaled_whole.items():
        rows = sum(evidence.dataset.sizes.values())
        seen = f"{some(names)} have {how} over all {rows} rows, and not over those of train"
        fix = 'give the rows unscaled, and scaler = "standard" under [preprocessing], which learns on train rows only'
        yield Seen(", ".join(names[:3]) + (", ..." if len(names) > 3 else ""), seen, fix)


@rule("error", "class-absent-from-train", expected="every class in train and valid")
def class_absent_from_train(evidence: Evidence) -> Iterator[Seen]:
    """Classes that train lacks: nothing can learn them."""
    for name, train, valid, labels in evidence.classes():
        yield from _absent("train", name, np.setdiff1d(valid, train), labels)


@rule("warning", "class-absent-from-valid", expected="every class in train and valid")
def class_absent_from_valid(evidence: Evidence) -> Iterator[Seen]:
    """Classes that valid lacks: nothing can be chosen by them."""
    for name, train, valid, labels in evidence.classes():
        yield from _absent("valid", name, np.setdiff1d(train, valid), labels)


def _absent(split: Role, target: str, absent: np.ndarray, labels: Sequence[Any]) -> Iterator[Seen]:
    if len(absent):
        seen = f"no {split} row has class {some([labels[code] for code in absent.tolist()])}"
        fix = f"stratify = true or a larger {split} under [data.split], or merge rare classes"
        yield Seen(target, seen, fix)


@rule("warning", "few-rows-per-class", expected=f"at least {MIN_CLASS_ROWS} train rows of each class")
def few_rows_per_class(evidence: Evidence) -> Iterator[Seen]:
    """Classes with fewer than 10 train rows."""
    for name, train, _, labels in evidence.classes():
        counts = np.bincount(train, minlength=len(labels))
        few = np.flatnonzero((counts > 0) & (counts < MIN_CLASS_ROWS))
        if len(few):
            found = f"{len(few)} of {len(labels)} classes have as few as {counts[few].min()} train rows"
            fix = "merge or remove rare classes, or raise train under [data.split]"
            yield Seen(name, f"{found}: {some([labels[code] for code in few])}", fix)


@rule("warning", "class-shift", expected=f"class shares within {MIN_CLASS_SHIFT:.0%} of each other")
def class_shift(evidence: Evidence) -> Iterator[Seen]:
    """Class shares that differ between train and valid.

    The total variation distance exceeds 0.05 and a chi-square test of homogeneity says it is not chance (p < 0.001).
    """
    from scipy.stats import chi2_contingency

    fix = "stratify = true under [data.split], or expect scores on new data to differ as much"
    for name, train, valid, labels in evidence.classes():
        if not len(train) or not len(valid) or len(labels) < 2:
            continue
        counts = np.stack([np.bincount(codes, minlength=len(labels)) for codes in (train, valid)])
        shares = counts / counts.sum(axis=1, keepdims=True)
        distance = float(np.abs(shares[0] - shares[1]).sum() / 2)
        p = float(chi2_contingency(counts[:, counts.any(axis=0)], correction=False).pvalue)
        if distance > MIN_CLASS_SHIFT and p < SIGNIFICANCE:
            most = int(np.abs(shares[0] - shares[1]).argmax())
            both = f"{shares[0, most]:.1%} of train and {shares[1, most]:.1%} of valid"
            seen = f"class {labels[most]!r} has {both} (total variation {distance:.3f}, p = {p:.1e})"
            yield Seen(name, seen, fix)


@rule("warning", "mean-shift", expected=f"means within {MIN_MEAN_SHIFT} standard deviations")
def mean_shift(evidence: Evidence) -> Iterator[Seen]:
    """Numeric features (and a regression target) whose mean differs between train and valid.

    By more than 0.25 standard deviations and by Welch's test at 0.001 over all features together (Bonferroni). A
    standardised difference above 0.25 is a usual sign of imbalance (Imbens and Rubin, Causal Inference, 2015, ch. 14).
    """
    train, valid = evidence.dataset.train, evidence.dataset.valid
    columns = [(str(name), train.features[name], valid.features[name]) for name in evidence.numeric]
    if evidence.kind == "regression":
        columns += [(str(name), train.targets[name], valid.targets[name]) for name in train.targets]
    columns = [column for column in columns if is_numeric_dtype(column[1]) and is_numeric_dtype(column[2])]
    for name, *both in columns:
        before, after = (values[np.isfinite(values)] for values in map(values_of, both))
        shift, p = _standardised_difference(before, after)
        if abs(shift) > MIN_MEAN_SHIFT and p < SIGNIFICANCE / len(columns):
            means = f"mean {before.mean():.4g} in train and {after.mean():.4g} in valid"
            fix = 'kind = "random" under [data.split] if the order of rows means nothing; else expect drift, or drop '
            yield Seen(name, f"{means} ({shift:+.2f} standard deviations)", f'{fix}"{name}" under [data]')


def _rows_can_differ(evidence: Evidence) -> bool:
    if evidence.arrays is not None and evidence.arrays.facts:
        return True
    possible = np.log(np.maximum(evidence.features["distinct"].to_numpy(dtype=float), 1)).sum()
    return bool(possible > np.log(DISTINCT_PER_ROW * max(sum(evidence.dataset.sizes.values()), 1)))


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
