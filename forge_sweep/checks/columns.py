"""Audit rules about one column, or columns against each other, within the visible splits."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator

import numpy as np
import pandas as pd
from pandas.api.types import is_float_dtype, is_integer_dtype, is_numeric_dtype

from forge_sweep.checks import notations
from forge_sweep.checks.evidence import NEARLY_ALL, Evidence, Seen, drop_fix, rule, some, values_of

MAX_UNSCALED = 10.0
MANY_MISSING = 0.50
MAX_SPREADS = 1000.0
"""Distance from the median, in interquartile ranges, from which a value hides the others. Incomes reach 500."""
EXACT_WHOLE = 2.0**53
LONGEST_CODE = 1e40  # whole numbers beyond are physical quantities, not codes


@rule("error", "target-missing", expected="a finite target in every row")
def target_missing(evidence: Evidence) -> Iterator[Seen]:
    """Targets that are missing or infinite in train or valid."""
    for role, split in evidence.visible:
        for name in split.targets:
            column = split.targets[name]
            bad = column.isna().to_numpy(dtype=bool)
            if is_float_dtype(column):
                bad = bad | np.isinf(values_of(column))
            if not bad.any():
                continue
            seen = f"the target is missing or infinite in {bad.sum()} of {len(bad)} {role} rows"
            fix = f"remove these rows from {evidence.dataset.source}, or correct the target"
            if words := evidence.dataset.missing_words.get(str(name), {}):
                said = ", ".join(f"{count} rows of the file hold the word {word}" for word, count in words.items())
                seen += f"; {said}, which is read as missing"
                fix = f"where {', '.join(words)} is a class, write it otherwise; else {fix}"
            yield Seen(name, seen, fix, split.rows[bad])


@rule("error", "infinite-values", expected="finite or missing values")
def infinite_values(evidence: Evidence) -> Iterator[Seen]:
    """Infinite feature values: no scaler or imputer can take them."""
    for (role, split), name in itertools.product(evidence.visible, evidence.numeric):
        infinite = np.isinf(values_of(split.features[name]))
        if infinite.any():
            seen = f"{infinite.sum()} infinite values in {len(infinite)} {role} rows"
            fix = f"write missing values as empty fields, or {drop_fix(name)}"
            yield Seen(name, seen, fix, split.rows[infinite])


@rule("error", "all-missing", expected="at least one value to learn from")
def all_missing(evidence: Evidence) -> Iterator[Seen]:
    """Features without a single value in train."""
    rows = evidence.dataset.sizes["train"]
    for name in evidence.features.index[evidence.features["missing"] == rows]:
        yield Seen(name, f"missing in all {rows} train rows", drop_fix(name))


@rule("warning", "empty-rows", expected="at least one value in each row")
def empty_rows(evidence: Evidence) -> Iterator[Seen]:
    """Rows without a single feature, as a join that found nothing leaves them: imputed, they are all the same row."""
    for role, split in evidence.visible:
        if role == "train" and not evidence.features["missing"].all():  # a column has them all
            continue
        empty = np.asarray(split.features.isna().to_numpy(bool).all(axis=1))
        if split.features.shape[1] > 1 and empty.any():
            seen = f"all {split.features.shape[1]} features are missing in {empty.sum()} of {len(empty)} {role} rows"
            yield Seen(role, seen, "remove these rows from the file, or find their values", split.rows[empty])


@rule("warning", "many-missing", expected=f"at most {MANY_MISSING:.0%} missing")
def many_missing(evidence: Evidence) -> Iterator[Seen]:
    """Features that are mostly missing in train."""
    rows = evidence.dataset.sizes["train"]
    missing = evidence.features["missing"]
    for name in evidence.features.index[(missing > MANY_MISSING * rows) & (missing < rows)]:
        seen = f"missing in {missing[name]} of {rows} train rows ({missing[name] / rows:.1%})"
        yield Seen(name, seen, f"keep it if being missing carries meaning, else {drop_fix(name)}")


@rule("error", "unscaled-range", expected=f"values within -{MAX_UNSCALED:g}..{MAX_UNSCALED:g}, or a scaler")
def unscaled_range(evidence: Evidence) -> Iterator[Seen]:
    """Numeric features with values beyond +-10 that reach the network as they are."""
    if evidence.scaled:
        return
    where = "under [preprocessing]" if evidence.scaler == "none" else "is a choice under [model.search]"
    fix = 'scaler = "standard" under [preprocessing], and no "none" in scaler under [model.search]'
    table = evidence.features.loc[list(evidence.numeric)]
    largest = table[["min", "max"]].abs().max(axis=1).sort_values(ascending=False, kind="stable")
    for name in largest.index[largest > MAX_UNSCALED]:
        ends = f"{table['min'][name]:.6g} to {table['max'][name]:.6g}"
        yield Seen(name, f'train values range from {ends} and scaler = "none" {where}', fix)


@rule("warning", "outlying-value")
def outlying_value(evidence: Evidence) -> Iterator[Seen]:
    """Values so far out that standard or minmax scaling leaves nothing of the others."""
    if evidence.scaler not in ("standard", "minmax"):
        return
    train = evidence.dataset.train
    expected = f"values within {MAX_SPREADS:g} times that range: {evidence.scaler} scaling hides the others"
    fix = 'correct the rows, or scaler = "quantile" or "robust" under [preprocessing]'
    for name in evidence.numeric:
        values = values_of(train.features[name])
        finite = values[np.isfinite(values)]
        if not len(finite):
            continue
        with np.errstate(over="ignore", invalid="ignore"):  # differences of values near the end of float64
            low, middle, high = np.quantile(finite, (0.25, 0.5, 0.75))
            beyond = np.abs(values - middle) > MAX_SPREADS * (high - low)
            far = np.flatnonzero(beyond & np.isfinite(values))  # infinite ones are an error of their own
        if high > low and len(far):
            seen = f"{values[far[0]]:.6g}, where half of the train rows lie between {low:.6g} and {high:.6g}"
            yield Seen(name, seen, fix, train.rows[far], expected=expected)


@rule("warning", "numbers-as-text")
def numbers_as_text(evidence: Evidence) -> Iterator[Seen]:
    """Text of which nearly all values are numbers, in whatever notation: one word makes text of a column of numbers."""
    train = evidence.dataset.train
    for name in evidence.categorical:
        text = train.features[name].dropna().astype(str)
        if name in evidence.dataset.categorical or not len(text):
            continue
        numeric = pd.to_numeric(text, errors="coerce").notna().to_numpy()
        if found := evidence.noted.get(name):
            ways, fix = notations.said(found.ways)
            seen = f"{found.share:.0%} of {len(text)} values are numbers with {ways}, and are read as text"
            fix = f"{fix}; or name the column in categorical under [data]"
            yield Seen(name, seen, fix, expected="plain numbers such as -1234.5, or names of categories")
        elif NEARLY_ALL <= numeric.mean() < 1:
            others = text[~numeric]
            seen = f"{numeric.sum()} of {len(text)} values are numbers, the others are {some(others.unique())}"
            fix = "empty those cells so that they count as missing, or name the column in categorical under [data]"
            yield Seen(name, seen, fix, others.index.to_numpy(), expected="numbers only, or names of categories")


@rule("warning", "digits-lost", expected="whole numbers below 2**53, or codes that are declared as such")
def digits_lost(evidence: Evidence) -> Iterator[Seen]:
    """Whole numbers with more digits than float64 holds: as codes or identifiers they are no longer what they were."""
    train = evidence.dataset.train
    for name in evidence.numeric:
        values = values_of(train.features[name])
        finite = np.where(np.isfinite(values), values, 0.0)
        long = np.abs(finite) >= EXACT_WHOLE
        if long.any() and (finite % 1 == 0).all() and np.abs(values[long]).max() < LONGEST_CODE:
            shown = f"{values[long][0]:.0f}"
            seen = f"{long.sum()} of {len(values)} train values have more digits than float64 holds, such as {shown}"
            fix = f'categorical = ["{name}"] under [data] where they are codes, else {drop_fix(name)}'
            yield Seen(name, seen, fix, train.rows[long])


@rule("warning", "constant-feature", expected="a feature that varies")
def constant_feature(evidence: Evidence) -> Iterator[Seen]:
    """Features with one value in every train row."""
    table = evidence.features
    for name in table.index[(table["distinct"] == 1) & (table["missing"] == 0)]:
        value = some(evidence.dataset.train.features[name].iloc[:1])
        yield Seen(name, f"the same value, {value}, in all train rows", drop_fix(name))


@rule("warning", "duplicate-features", expected="each feature once")
def duplicate_features(evidence: Evidence) -> Iterator[Seen]:
    """Features equal to an earlier one in every train row; for text, equal up to a renaming of the values."""
    first: dict[bytes, str] = {}
    train, table = evidence.dataset.train, evidence.features
    for name in table.index[table["distinct"] > 1]:
        twin = first.setdefault(_digest(train.features[name]), str(name))
        if twin != str(name):
            yield Seen(name, f"equal to feature {twin!r} in all {len(train.rows)} train rows", drop_fix(name))


@rule("warning", "id-like", expected="values that recur, so that something can be learned from them")
def id_like(evidence: Evidence) -> Iterator[Seen]:
    """Text that is nearly unique per row, and integers that are unique or count up; continuous floats are no ids."""
    train = evidence.dataset.train
    fixable = {found.subject for found in numbers_as_text(evidence)}  # how to fix it says more than to drop it
    for name in (name for name in evidence.near_unique if name not in fixable):
        column = train.features[name]
        if _may_be_id(column, train.rows):
            present, distinct = column.count(), column.nunique()
            seen = f"{distinct} distinct values in {present} train rows ({distinct / present:.1%})"
            yield Seen(name, seen, f'{drop_fix(name)}, or key = "{name}" under [data] if it names the row')


def _may_be_id(column: pd.Series, rows: np.ndarray) -> bool:
    """Whether a nearly unique column is text, or whole numbers that are unique or sorted like the source."""
    if not is_integer_dtype(column):
        return not is_numeric_dtype(column)
    in_source = column.iloc[np.argsort(rows)]
    return column.is_unique or in_source.is_monotonic_increasing or in_source.is_monotonic_decreasing


def _digest(column: pd.Series) -> bytes:
    """Of the numbers, or of the pattern of text values."""
    if is_numeric_dtype(column):
        content = values_of(column) + 0.0  # -0.0 and 0.0 alike
        content[np.isnan(content)] = np.nan
        return b"n" + hashlib.blake2b(content.tobytes(), digest_size=16).digest()
    codes = np.ascontiguousarray(pd.factorize(column)[0], dtype=np.int64)
    return b"t" + hashlib.blake2b(codes.tobytes(), digest_size=16).digest()
