"""Audit rules about one column, or columns against each other, within the visible splits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_float_dtype, is_integer_dtype, is_numeric_dtype

from forge_sweep.checks import notations
from forge_sweep.checks.evidence import NEARLY_ALL, Evidence, drop_fix, finding, some, values_of
from forge_sweep.checks.findings import Finding

MAX_UNSCALED = 10.0
MANY_MISSING = 0.50
MAX_SPREADS = 1000.0
"""Distance from the median, in interquartile ranges, from which a value hides the others. Incomes reach 500."""
EXACT_WHOLE = 2.0**53
LONGEST_CODE = 1e40
"""Whole numbers beyond are physical quantities, not codes."""


def target_missing(evidence: Evidence) -> Iterator[Finding]:
    """Targets that are missing or infinite in train or valid."""
    for role, split in evidence.visible:
        for name in split.targets:
            column = split.targets[name]
            bad = column.isna().to_numpy(dtype=bool)
            if is_float_dtype(column):
                bad = bad | np.isinf(values_of(column))
            if bad.any():
                words = evidence.dataset.missing_words.get(str(name), {})
                said = ", ".join(f"{count} rows of the file hold the word {word}" for word, count in words.items())
                classes = ", ".join(words)
                yield finding(
                    "error",
                    "target-missing",
                    str(name),
                    seen=f"the target is missing or infinite in {bad.sum()} of {len(bad)} {role} rows"
                    + (f"; {said}, which is read as missing" if words else ""),
                    expected="a finite target in every row",
                    fix=(
                        f"where {classes} is a class, write it otherwise; else remove these rows from "
                        f"{evidence.dataset.source}, or correct the target"
                        if words
                        else f"remove these rows from {evidence.dataset.source}, or correct the target"
                    ),
                    rows=split.rows[bad],
                )


def infinite_values(evidence: Evidence) -> Iterator[Finding]:
    """Infinite feature values: no scaler or imputer can take them."""
    for role, split in evidence.visible:
        for name in evidence.numeric:
            infinite = np.isinf(values_of(split.features[name]))
            if infinite.any():
                yield finding(
                    "error",
                    "infinite-values",
                    str(name),
                    seen=f"{infinite.sum()} infinite values in {len(infinite)} {role} rows",
                    expected="finite or missing values",
                    fix=f"write missing values as empty fields, or {drop_fix(name)}",
                    rows=split.rows[infinite],
                )


def all_missing(evidence: Evidence) -> Iterator[Finding]:
    """Features without a single value in train."""
    rows = evidence.dataset.sizes["train"]
    for name in evidence.features.index[evidence.features["missing"] == rows]:
        yield finding(
            "error",
            "all-missing",
            str(name),
            seen=f"missing in all {rows} train rows",
            expected="at least one value to learn from",
            fix=drop_fix(name),
        )


def many_missing(evidence: Evidence) -> Iterator[Finding]:
    """Features that are mostly missing in train."""
    rows = evidence.dataset.sizes["train"]
    missing = evidence.features["missing"]
    for name in evidence.features.index[(missing > MANY_MISSING * rows) & (missing < rows)]:
        yield finding(
            "warning",
            "many-missing",
            str(name),
            seen=f"missing in {missing[name]} of {rows} train rows ({missing[name] / rows:.1%})",
            expected=f"at most {MANY_MISSING:.0%} missing",
            fix=f"keep it if being missing carries meaning, else {drop_fix(name)}",
        )


def unscaled_range(evidence: Evidence) -> Iterator[Finding]:
    """Numeric features with values beyond +-10 that reach the network as they are."""
    if evidence.scaled:
        return
    where = "under [preprocessing]" if evidence.scaler == "none" else "is a choice under [model.search]"
    table = evidence.features.loc[list(evidence.numeric)]
    largest = np.maximum(table["min"].abs(), table["max"].abs())
    for name in table.index[largest > MAX_UNSCALED]:
        yield finding(
            "error",
            "unscaled-range",
            str(name),
            seen=f"train values range from {table['min'][name]:.6g} to {table['max'][name]:.6g} and "
            f'scaler = "none" {where}',
            expected=f"values within -{MAX_UNSCALED:g}..{MAX_UNSCALED:g}, or a scaler",
            fix='scaler = "standard" under [preprocessing], and no "none" in scaler under [model.search]',
        )


def outlying_value(evidence: Evidence) -> Iterator[Finding]:
    """Values so far out that standard or minmax scaling leaves nothing of the others."""
    if evidence.scaler not in ("standard", "minmax"):
        return
    train = evidence.dataset.train
    for name in evidence.numeric:
        values = values_of(train.features[name])
        finite = values[np.isfinite(values)]
        if not len(finite):
            continue
        with np.errstate(over="ignore", invalid="ignore"):  # differences of values near the end of float64
            low, middle, high = np.quantile(finite, (0.25, 0.5, 0.75))
            far = np.flatnonzero(np.abs(values - middle) > MAX_SPREADS * (high - low))
        if high > low and len(far):
            yield finding(
                "warning",
                "outlying-value",
                name,
                seen=f"{values[far[0]]:.6g}, where half of the train rows lie between {low:.6g} and {high:.6g}",
                expected=f"values within {MAX_SPREADS:g} times that range: {evidence.scaler} scaling hides the others",
                fix='correct the rows, or scaler = "quantile" or "robust" under [preprocessing]',
                rows=train.rows[far],
            )


def numbers_as_text(evidence: Evidence) -> Iterator[Finding]:
    """Text of which nearly all values are numbers, in whatever notation: one word makes text of a column of numbers."""
    train = evidence.dataset.train
    for name in evidence.categorical:
        text = train.features[name].dropna().astype(str)
        if name in evidence.dataset.categorical or not len(text):
            continue
        numeric = pd.to_numeric(text, errors="coerce").notna().to_numpy()
        if found := evidence.noted.get(name):
            seen, fix = notations.said(found.ways)
            yield finding(
                "warning",
                "numbers-as-text",
                name,
                seen=f"{found.share:.0%} of {len(text)} values are numbers with {seen}, and are read as text",
                expected="plain numbers such as -1234.5, or names of categories",
                fix=f"{fix}; or name the column in categorical under [data]",
            )
        elif NEARLY_ALL <= numeric.mean() < 1:
            others = text[~numeric]
            yield finding(
                "warning",
                "numbers-as-text",
                name,
                seen=f"{numeric.sum()} of {len(text)} values are numbers, the others are {some(others.unique())}",
                expected="numbers only, or names of categories",
                fix="empty those cells so that they count as missing, or name the column in categorical under [data]",
                rows=others.index.to_numpy(),
            )


def digits_lost(evidence: Evidence) -> Iterator[Finding]:
    """Whole numbers with more digits than float64 holds: as codes or identifiers they are no longer what they were."""
    for name in evidence.numeric:
        values = values_of(evidence.dataset.train.features[name])
        finite = np.where(np.isfinite(values), values, 0.0)
        long = np.abs(finite) >= EXACT_WHOLE
        if long.any() and (finite % 1 == 0).all() and np.abs(values[long]).max() < LONGEST_CODE:
            yield finding(
                "warning",
                "digits-lost",
                name,
                seen=f"{long.sum()} of {len(values)} train values have more digits than float64 holds, such as "
                f"{values[long][0]:.0f}",
                expected="whole numbers below 2**53, or codes that are declared as such",
                fix=f'categorical = ["{name}"] under [data] where they are codes, else {drop_fix(name)}',
                rows=evidence.dataset.train.rows[long],
            )


def constant_feature(evidence: Evidence) -> Iterator[Finding]:
    """Features with one value in every train row."""
    table = evidence.features
    for name in table.index[(table["distinct"] == 1) & (table["missing"] == 0)]:
        yield finding(
            "warning",
            "constant-feature",
            str(name),
            seen=f"the same value, {_first(evidence.dataset.train.features[name])}, in all train rows",
            expected="a feature that varies",
            fix=drop_fix(name),
        )


def duplicate_features(evidence: Evidence) -> Iterator[Finding]:
    """Features equal to an earlier one in every train row; for text, equal up to a renaming of the values."""
    first: dict[bytes, str] = {}
    table = evidence.features
    for name in table.index[table["distinct"] > 1]:
        twin = first.setdefault(_digest(evidence.dataset.train.features[name]), str(name))
        if twin != str(name):
            yield finding(
                "warning",
                "duplicate-features",
                str(name),
                seen=f"equal to feature {twin!r} in all {len(evidence.dataset.train.rows)} train rows",
                expected="each feature once",
                fix=drop_fix(name),
            )


def id_like(evidence: Evidence) -> Iterator[Finding]:
    """Text that is nearly unique per row, and integers that are unique or count up; continuous floats are no ids."""
    train = evidence.dataset.train
    mended = {found.subject for found in numbers_as_text(evidence)}  # mending it says more than dropping it
    for name in (name for name in evidence.near_unique if name not in mended):
        column = train.features[name]
        if _may_be_id(column, train.rows):
            present, distinct = column.count(), column.nunique()
            yield finding(
                "warning",
                "id-like",
                str(name),
                seen=f"{distinct} distinct values in {present} train rows ({distinct / present:.1%})",
                expected="values that recur, so that something can be learned from them",
                fix=f'{drop_fix(name)}, or key = "{name}" under [data] if it names the row',
            )


def _may_be_id(column: pd.Series, rows: np.ndarray) -> bool:
    """Whether a nearly unique column is text, or whole numbers that are unique or sorted like the source."""
    if not is_numeric_dtype(column):
        return True
    if is_bool_dtype(column) or not is_integer_dtype(column):
        return False
    in_source = column.iloc[np.argsort(rows)]
    return column.is_unique or in_source.is_monotonic_increasing or in_source.is_monotonic_decreasing


def _digest(column: pd.Series) -> bytes:
    """Digest of a column's content: of the numbers, or of the pattern of text values."""
    if is_numeric_dtype(column):
        content = values_of(column) + 0.0  # -0.0 and 0.0 alike
        content[np.isnan(content)] = np.nan
        return b"n" + hashlib.blake2b(content.tobytes(), digest_size=16).digest()
    codes = np.ascontiguousarray(pd.factorize(column)[0], dtype=np.int64)
    return b"t" + hashlib.blake2b(codes.tobytes(), digest_size=16).digest()


def _first(column: pd.Series) -> str:
    """The first value, as a message writes it."""
    value = column.iloc[0]
    return repr(value.item() if hasattr(value, "item") else value)
