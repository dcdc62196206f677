"""From one frame of raw rows to a `Dataset`: the steps that every source shares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from pandas.api import types

from forge_sweep.errors import DataError
from forge_sweep.experiment.rules import nearest
from forge_sweep.sources.base import ROLES, Dataset, HeldTest, Split, shown
from forge_sweep.sources.digest import content_digest, fingerprints, split_digest
from forge_sweep.sources.inspection import listed
from forge_sweep.sources.splits import assign, refuse_empty, without_target

if TYPE_CHECKING:
    from forge_sweep.experiment import DataSpec

NO_WORDS: Mapping[str, Mapping[str, int]] = MappingProxyType({})

OBJECT_TYPES = {
    "boolean": "boolean",
    "empty": "float64",
    "integer": "float64",
    "floating": "float64",
    "mixed-integer-float": "float64",
    "decimal": "float64",
}
"""What a column of Python objects becomes, by what pandas finds in it."""


def assemble(
    frame: pd.DataFrame,
    spec: DataSpec,
    *,
    name: str,
    source: str,
    seed: int,
    rows: np.ndarray | None = None,
    roles: np.ndarray | None = None,
    names: Sequence[str] | None = None,
    warnings: tuple[str, ...] = (),
    words: Mapping[str, Mapping[str, int]] = NO_WORDS,
) -> Dataset:
    """Check, order, split and digest the rows of a source.

    Content, and so part of the digest, are features, targets and key; dropped columns and the columns that split are
    not. With a key, rows are put in its order before anything else looks at them.

    Args:
        frame: every row, with the columns as the source names them.
        spec: the section ``[data]``.
        name: what the dataset is called where ``spec`` declares no version.
        source: where the rows come from, for messages.
        seed: decides random and group splits.
        rows: (n,) int64, position of each row in its source; 0 to n - 1 by default.
        roles: (n,) int8 where the source knows the roles already: 0 train, 1 valid, 2 test.
        names: all columns of the source where the frame lacks those that are dropped.
        warnings: what the source has to say of the rows.
        words: per target, how often each word for a missing value stands in it.

    Raises:
        DataError: the rows are not what ``spec`` says.
    """
    refuse_absent_columns(list(frame.columns) if names is None else list(names), spec, source)
    frame = frame.drop(columns=[name for name in spec.drop if name in frame.columns])
    frame.index = pd.Index(np.arange(len(frame)) if rows is None else rows)
    frame = tidy(frame, spec)
    if spec.key is not None:
        order = key_order(frame[spec.key])
        frame, roles = frame.iloc[order], None if roles is None else roles[order]
    roles = assign(frame, spec, seed) if roles is None else roles
    refuse_empty(roles, spec)
    return divide(frame, roles, spec, name=spec.version or name, source=source, warnings=warnings, words=words)


def divide(
    frame: pd.DataFrame,
    roles: np.ndarray,
    spec: DataSpec,
    *,
    name: str,
    source: str,
    warnings: tuple[str, ...] = (),
    words: Mapping[str, Mapping[str, int]] = NO_WORDS,
) -> Dataset:
    """The dataset of a frame in canonical order, given the role of every row."""
    content = frame.drop(columns=list(splitting_columns(spec)))
    digest = content_digest(content)
    targets = content[list(spec.target)]
    features = content.drop(columns=[*spec.target, *key_column(spec)])
    train, valid, test = (_split(features, targets, roles == code) for code in range(len(ROLES)))
    refuse_bad_test_rows(train.targets, test, spec, words)
    prints = fingerprints(features)
    return Dataset(
        name=name,
        version=f"{name}@{digest[:12]}",
        digest=digest,
        split_digest=split_digest(roles),
        train=train,
        valid=valid,
        sizes={role: int((roles == code).sum()) for code, role in enumerate(ROLES)},
        source=source,
        categorical=spec.categorical,
        fingerprints={role: prints[roles == code] for code, role in enumerate(ROLES)},
        _test=HeldTest(test),
        warnings=warnings,
        missing_words=words,
    )


def splitting_columns(spec: DataSpec) -> tuple[str, ...]:
    """The columns that only say which row goes where."""
    split = spec.split
    return tuple(column for column in (split.column, split.group, split.time) if column is not None)


def key_column(spec: DataSpec) -> tuple[str, ...]:
    """The key, if one is named."""
    return () if spec.key is None else (spec.key,)


def identities(spec: DataSpec) -> dict[str, str]:
    """The columns that name, group or order rows, with the TOML key of each."""
    split = spec.split
    named = {"data.split.column": split.column, "data.split.group": split.group, "data.split.time": split.time}
    found = {column: key for key, column in {"data.key": spec.key, **named}.items() if column is not None}
    return {column: key for column, key in found.items() if column not in (*spec.target, *spec.categorical)}


def refuse_absent_columns(columns: list[str], spec: DataSpec, source: str) -> None:
    """Raise DataError that lists every declared column that is not there, and every one of several of one name."""
    if twice := sorted({name for name in columns if columns.count(name) > 1 and name not in spec.drop}):
        raise DataError(
            f"data.path: {source} has several columns named {shown(twice)}", hint="rename all but one, or drop them all"
        )
    if "" in columns and "" not in spec.drop:
        raise DataError(
            f"data.path: column {columns.index('') + 1} of {source} has no name",
            hint='name it, or leave it out with drop = [""] under [data]; with pandas, write with index=False',
        )
    absent = [(key, column) for key, column in _declared(spec) if column not in columns]
    if absent:
        lines = [f"{key} = {column!r}: no such column{_or(nearest(column, columns))}" for key, column in absent]
        raise DataError("\n  ".join([f"{source} lacks columns that [data] names", *lines]), hint=_known(columns, spec))


def _declared(spec: DataSpec) -> Iterator[tuple[str, str]]:
    split = spec.split
    for key, names in (
        ("data.target", spec.target),
        ("data.key", key_column(spec)),
        ("data.drop", spec.drop),
        ("data.categorical", spec.categorical),
        (f"data.split.{split.kind}", splitting_columns(spec)),
    ):
        for name in names:
            yield key, name


def _or(suggestion: str) -> str:
    return f"; {suggestion}" if suggestion else ""


def _known(columns: list[str], spec: DataSpec) -> str:
    """The columns there are; a single one with separators in its name was read with the wrong separator."""
    marks = [mark for mark in ";\t|," if len(columns) == 1 and mark in columns[0]]
    if marks:
        return f"the columns look separated by another sign: set separator = {marks[0]!r} under [data]"
    return f"the columns are {shown(columns)}"


def tidy(frame: pd.DataFrame, spec: DataSpec) -> pd.DataFrame:
    """Features and targets as numbers, booleans or text; declared categories as text."""
    only_order = {*key_column(spec), *splitting_columns(spec)}
    columns = {
        name: frame[name]
        if name in only_order
        else code_text(frame[name])
        if name in spec.categorical
        else tidy_column(frame[name])
        for name in frame.columns
    }
    if not len(columns) > len(only_order) + len(spec.target):
        raise DataError("data: no column is left as a feature", hint="name fewer columns under [data]")
    return pd.DataFrame(columns, index=frame.index)


def tidy_column(values: pd.Series) -> pd.Series:
    """A column as int64, uint64, float64, bool, nullable boolean or text.

    Raises:
        DataError: the column holds something else, such as times or lists.
    """
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(object)
    if values.dtype == object and (found := types.infer_dtype(values, skipna=True)) in OBJECT_TYPES:
        values = values.astype(OBJECT_TYPES[found])  # type: ignore[call-overload]  # the stubs want a literal
    if types.is_bool_dtype(values.dtype):
        return values if values.isna().any() else values.astype(bool)
    if types.is_integer_dtype(values.dtype) and not values.isna().any():
        return values.astype("uint64" if str(values.dtype).lower() == "uint64" else "int64")
    if types.is_numeric_dtype(values.dtype) and not np.iscomplexobj(values):
        return pd.Series(values.to_numpy(np.float64, na_value=np.nan), index=values.index, name=values.name)
    if types.is_string_dtype(values):
        return values
    raise DataError(
        f"column {values.name!r} holds {types.infer_dtype(values, skipna=True)} values ({values.dtype}); "
        "expected numbers, booleans or text in features and targets",
        hint=f"leave it out with drop = [{str(values.name)!r}] under [data], or write numbers; "
        "a time can split the rows (data.split.time)",
    )


def code_text(codes: pd.Series) -> pd.Series:
    """Category codes as text: 3 and 3.0 become "3"; text stays, but for whole numbers that a missing value made "3.0".

    Raises:
        DataError: the codes are fractions or booleans.
    """
    if isinstance(codes.dtype, pd.CategoricalDtype):
        codes = codes.astype(object)
    if codes.dtype != object or types.infer_dtype(codes, skipna=True) not in ("integer", "decimal"):
        # Whole numbers of any length, with gaps or without, never pass through float64.
        codes = codes if types.is_integer_dtype(codes.dtype) else tidy_column(codes)
    present = codes.dropna()
    if types.is_string_dtype(codes) and codes.dtype != object:
        whole = bool(present.str.fullmatch(r"-?\d+\.0+").all())
        return codes.str.replace(r"\.0+$", "", regex=True) if whole else codes
    if types.infer_dtype(present) == "decimal":  # % of a decimal fails beyond 28 digits
        fractions = present[[value != value.to_integral_value() for value in present]]
    else:
        fractions = present[:0] if types.is_bool_dtype(codes.dtype) else present[(present % 1 != 0).to_numpy(bool)]
    if types.is_bool_dtype(codes.dtype) or len(fractions):
        seen = "booleans" if types.is_bool_dtype(codes.dtype) else shown(fractions.unique())
        raise DataError(
            f"data.categorical: column {codes.name!r} holds {seen}; expected whole numbers or text",
            hint=f"take {str(codes.name)!r} out of categorical under [data]: it is no column of codes",
        )
    return codes.map(lambda code: str(int(code)), na_action="ignore")


def key_order(key: pd.Series) -> np.ndarray:
    """Positions (n,) that put the rows in the order of their key.

    Raises:
        DataError: the key is missing somewhere, or is not unique.
    """
    for wrong, what in ((key.isna(), "missing"), (key.duplicated(keep=False), "not unique")):
        bad = wrong.to_numpy(bool)
        if bad.any():
            raise DataError(
                f"data.key: column {key.name!r} is {what} in {bad.sum()} rows ({shown(key.index[bad])}); "
                f"values there: {shown(key[bad].unique())}",
                hint="a key names every row once: mend those rows, choose another column, or leave data.key out",
            )
    return np.asarray(key.argsort(kind="stable"))


def refuse_bad_test_rows(
    train: pd.DataFrame, test: Split, spec: DataSpec, words: Mapping[str, Mapping[str, int]] = NO_WORDS
) -> None:
    """Raise DataError for test rows that could not be scored: the audit never sees them, and a sweep ends with them.

    Says how many and where, nothing else of the test split.
    """
    for name in spec.target:
        values = test.targets[name]
        said = f" ({listed(words[name])} in all splits, which is read as missing)" if words.get(name) else ""
        _refuse_test_rows("target", values, without_target(test.targets[[name]]), f"missing or infinite{said}")
        if spec.task in ("binary", "multiclass") and not spec.one_hot:
            unknown = ~values.isin(train[name].dropna()).to_numpy(bool)
            _refuse_test_rows("target", values, unknown, "of a class that train does not have")
        elif spec.task != "regression":
            _refuse_test_rows("target", values, ~values.isin((0, 1)).to_numpy(bool), "neither 0 nor 1")
    if spec.one_hot:
        several = (test.targets.sum(axis=1) != 1).to_numpy(bool)
        _refuse_test_rows("target", test.targets.iloc[:, 0], several, "one of several columns, or of none, that is 1")
    for _, values in test.features.select_dtypes("number").items():
        infinite = np.isinf(values.to_numpy(float, na_value=np.nan))
        _refuse_test_rows("path", values, infinite, "infinite")


def _refuse_test_rows(key: str, values: pd.Series, bad: np.ndarray, what: str) -> None:
    if bad.any():
        raise DataError(
            f"data.{key}: column {values.name!r} is {what} in {bad.sum()} rows of the test split "
            f"(rows {shown(values.index[bad])})",
            hint="correct or remove these rows; where a class is missing from train, split otherwise",
        )


def _split(features: pd.DataFrame, targets: pd.DataFrame, mask: np.ndarray) -> Split:
    return Split(features[mask], targets[mask], features.index[mask].to_numpy(np.int64))
