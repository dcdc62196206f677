"""Which rows train, validate and test: at random, by a column, by group, or by time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from pandas.api.types import is_datetime64_any_dtype, is_numeric_dtype

from forge_sweep.errors import DataError, Key
from forge_sweep.sources.base import ROLES, shown

if TYPE_CHECKING:
    from forge_sweep.experiment import DataSpec

TRAIN, VALID, TEST = range(3)
ROLE_WORDS = {"train": TRAIN, "valid": VALID, "val": VALID, "validation": VALID, "test": TEST}
"""What a split column may say, in any case."""


def assign(frame: pd.DataFrame, spec: DataSpec, seed: int) -> np.ndarray:
    """The role of every row, (n,) int8: 0 train, 1 valid, 2 test.

    Args:
        frame: all rows in canonical order; the index is what messages call a row.
        spec: the section ``[data]``; its split is of any kind but ``files``.
        seed: decides random and group splits.

    Raises:
        DataError: a split would be empty, or the rows cannot be split as asked.
    """
    split = spec.split
    shares = np.array([split.train, split.valid, split.test])
    if split.kind == "random":
        targets = frame[list(spec.target)]
        of_classes = [list(head.target) for head in spec.tasks.values() if head.task in ("binary", "multiclass")]
        if split.stratify and of_classes:
            roles = at_random_by_class(targets[of_classes[0]], shares, seed)
        else:
            roles = at_random(len(frame), shares, seed)
        # Where the audit sees them: it stops the sweep and names them.
        roles[without_target(targets)] = TRAIN
        return roles
    values = frame[getattr(split, split.kind)]
    if split.kind == "column":
        return by_column(values)
    return by_group(values, shares, seed) if split.kind == "group" else by_time(values, shares)


def without_target(targets: pd.DataFrame) -> np.ndarray:
    """Which rows (n,) have a missing or infinite target value."""
    bad = targets.isna().to_numpy(bool).any(axis=1)
    for name in targets.select_dtypes("float64"):
        bad |= np.isinf(targets[name].to_numpy())
    return np.asarray(bad)


def refuse_empty(roles: np.ndarray, spec: DataSpec) -> None:
    """Raise DataError for a split without rows."""
    empty = [role for code, role in enumerate(ROLES) if not (roles == code).any()]
    if empty:
        raise DataError(
            f"{Key('data.split')}: no rows for {' and '.join(empty)} among {len(roles)} rows; "
            "expected at least one row in each split",
            hint="each of train, valid and test needs rows; fix the split column, the files or the shares",
        )


def at_random(n: int, shares: np.ndarray, seed: int) -> np.ndarray:
    """Random roles for ``n`` rows; shares hold to within a row."""
    roles = np.empty(n, np.int8)
    roles[_shuffled(n, seed)] = np.repeat(np.arange(3, dtype=np.int8), _totals(n, shares))
    return roles


def at_random_by_class(targets: pd.DataFrame, shares: np.ndarray, seed: int) -> np.ndarray:
    """Random roles that keep the shares of classes alike; shares hold to within a row, per class to about one.

    A class is one value of the target, or one combination of one-hot columns.
    """
    codes, labels = class_numbers(targets)
    counts = np.bincount(codes)
    per_class = _per_class(counts, _totals(len(codes), shares), labels)
    shuffled = _shuffled(len(codes), seed)
    by_class, roles = shuffled[np.argsort(codes[shuffled], kind="stable")], np.empty(len(codes), np.int8)
    roles[by_class] = np.repeat(np.tile(np.arange(3, dtype=np.int8), len(counts)), per_class.ravel())
    return roles


def _shuffled(n: int, seed: int) -> np.ndarray:
    """``permutation(n)`` of the seeded generator, in four bytes a row where they do."""
    positions = np.arange(n, dtype=np.uint32 if n < 2**32 else np.int64)
    np.random.default_rng(seed).shuffle(positions)
    return positions


def by_column(values: pd.Series) -> np.ndarray:
    """Roles as a column names them: train, valid (val, validation) or test, in any case."""
    roles = values.astype("string").str.strip().str.lower().map(ROLE_WORDS)
    wrong = roles.isna().to_numpy(bool)
    if wrong.any():
        found = [str(value) for value in values[wrong].unique()]
        raise DataError(
            f"{Key('data.split.column')}: column {values.name!r} holds {shown(found)} "
            f"(rows {shown(values.index[wrong])}); expected {', '.join(ROLE_WORDS)}",
            hint=f"write the role of every row, or choose another {Key('data.split.kind')}",
        )
    return roles.to_numpy(np.int8)


def by_group(values: pd.Series, shares: np.ndarray, seed: int) -> np.ndarray:
    """Random roles for whole groups; shares of rows hold as far as the sizes of groups allow.

    Groups come in random order; each goes where it leaves the lowest filling relative to the share (the D'Hondt rule),
    so that a large group lands in a large split; the last groups go to splits that have none. The order of rows plays
    no part.
    """
    codes, groups = ranked(values, "group", "groups", "more groups")
    sizes, filled = np.bincount(codes), np.zeros(3)
    role_of = np.empty(groups, np.int8)
    for done, group in enumerate(np.random.default_rng(seed).permutation(groups)):
        empty = np.flatnonzero(filled == 0)
        last_call = groups - done <= len(empty)
        role = empty[0] if last_call else np.argmin((filled + sizes[group]) / shares)
        filled[role] += sizes[group]
        role_of[group] = role
    roles: np.ndarray = role_of[codes]
    return roles


def by_time(values: pd.Series, shares: np.ndarray) -> np.ndarray:
    """The oldest rows train, the newest test; rows of one moment stay together, shares hold as they allow."""
    codes, _ = ranked(values, "time", "different times", "finer times")
    ends = np.cumsum(np.bincount(codes))  # rows up to and with each moment
    first = np.argmin(abs(ends[:-2] - shares[TRAIN] * len(codes)))
    second = first + 1 + np.argmin(abs(ends[first + 1 : -1] - (shares[TRAIN] + shares[VALID]) * len(codes)))
    return np.add(codes > first, codes > second, dtype=np.int8)


def ranked(values: pd.Series, kind: str, what: str, more: str) -> tuple[np.ndarray, int]:
    """The rank of each value (n,) among the different ones, at least three, and their number."""
    key = Key(f"data.split.{kind}")
    missing = values.isna().to_numpy(bool)
    if missing.any():
        raise DataError(
            f"{key}: column {values.name!r} is missing in {missing.sum()} rows ({shown(values.index[missing])})",
            hint="every row needs a value there: fill it in, or remove the rows",
        )
    codes, found = pd.factorize(_as_times(values) if kind == "time" else values, sort=True)
    if len(found) < 3:
        raise DataError(
            f"{key}: column {values.name!r} holds {len(found)} {what}; expected at least 3, one per split",
            hint=f"name a column with {more}, or choose another {Key('data.split.kind')}",
        )
    return codes, len(found)


def _totals(n: int, shares: np.ndarray) -> np.ndarray:
    """Rows per split (3,)."""
    if n < 3:
        raise DataError(f"{Key('data.split')}: {n} rows; expected at least 3, one per split", hint="give more rows")
    return apportion(n, shares)


def apportion(total: int, weights: np.ndarray) -> np.ndarray:
    """Divide ``total`` into whole parts (k,) in proportion to ``weights`` (k,), each at least 1, by largest remainders.

    ``total`` is at least k, and no weight is negative.
    """
    small = np.zeros(len(weights), bool)
    while True:
        quota = np.where(small, 1.0, weights * ((total - small.sum()) / max(weights[~small].sum(), 1e-300)))
        if not (below := ~small & (quota < 1)).any():
            break
        small |= below
    parts = np.floor(quota).astype(np.int64)
    # Rounding guards against quotas such as 2.9999999999999996; ties go to the first.
    remainders = np.where(small, -1.0, np.round(quota - parts, 9))
    parts[np.argsort(-remainders, kind="stable")[: total - parts.sum()]] += 1
    return parts


def _per_class(counts: np.ndarray, totals: np.ndarray, labels: list[str]) -> np.ndarray:
    """Rows per class and split (classes, 3), at least 1 in each."""
    rarest = int(counts.argmin())
    if counts[rarest] >= 3 and totals.min() >= len(counts):
        test = apportion(int(totals[TEST]), counts)
        valid = apportion(int(totals[VALID]), counts - test)
        parts = np.stack([counts - test - valid, valid, test], axis=1)
        if parts.min() >= 1:
            return parts
    raise DataError(
        f"{Key('data.target')}: class {labels[rarest]} has {counts[rarest]} of {counts.sum()} rows, and there are "
        f"{len(counts)} classes for splits of {totals[TRAIN]}, {totals[VALID]} and {totals[TEST]} rows: "
        "too few to stratify; expected at least one row of every class in every split",
        hint=f"give more rows of the class, leave it out, or set {Key('data.split.stratify', 'false')}; "
        f"""where the target is a quantity, set {Key("data.task", '"regression"')}""",
    )


def class_numbers(targets: pd.DataFrame) -> tuple[np.ndarray, list[str]]:
    """Class number of every row (n,) and the name of every class, in the order of labels."""
    codes: np.ndarray
    if targets.shape[1] == 1:
        codes, found = pd.factorize(targets.iloc[:, 0], sort=True)
        labels = [repr(label) for label in found.tolist()]
    else:
        groups = targets.groupby(list(targets.columns), sort=True, dropna=True)
        codes = groups.ngroup().fillna(-1).to_numpy(np.int64, copy=True)
        first_rows = groups.head(1).sort_values(list(targets.columns))
        labels = [", ".join(map(repr, row)) for row in first_rows.to_numpy().tolist()]
    if (codes < 0).all():
        raise DataError(
            f"{Key('data.target')}: {shown(targets.columns)} has no values", hint="name the column of labels"
        )
    codes = codes.astype(np.int16 if len(labels) < 2**15 else np.int64)  # two bytes sort in linear time
    # The audit refuses rows without a target, with their numbers; here they only must not count as a class.
    codes[codes < 0] = np.bincount(codes[codes >= 0]).argmax()
    return codes, labels


def _begins_with(dates: np.ndarray) -> str:
    """``day`` or ``month`` where all whole numbers (n,) are dates such as 31012026 that begin with it; else ""."""
    one, two, year = dates // 1_000_000, dates // 10_000 % 100, dates % 10_000
    if not ((dates % 1 == 0) & (one >= 1) & (two >= 1) & (year >= 1800) & (year <= 2200)).all():
        return ""
    if one.max() <= 31 and two.max() <= 12:
        return "day"
    return "month" if one.max() <= 12 and two.max() <= 31 else ""


def _as_times(values: pd.Series) -> pd.Series:
    """Numbers and times as they are, text read as ISO 8601."""
    if is_datetime64_any_dtype(values.dtype):
        return values
    if is_numeric_dtype(values.dtype):
        if first := _begins_with(values.to_numpy(np.float64)):
            raise DataError(
                f"{Key('data.split.time')}: column {values.name!r} holds {shown(values.unique()[:2])}, which are dates "
                f"that begin with the {first}: as numbers they do not stand in the order of time; expected 20260131",
                hint="write them year first, or as text such as 2026-01-31",
            )
        return values
    times = pd.to_datetime(values, format="ISO8601", utc=True, errors="coerce")
    wrong = times.isna().to_numpy(bool)
    if wrong.any():
        raise DataError(
            f"{Key('data.split.time')}: column {values.name!r} holds {shown(values[wrong].unique())} "
            f"(rows {shown(values.index[wrong])}); expected numbers, timestamps, or text such as 2026-01-31 12:00:00",
            hint="write the times as ISO 8601, or as numbers",
        )
    return times
