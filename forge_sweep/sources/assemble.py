"""From one frame of raw rows to a `Dataset`: the steps that every source shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from pandas.api import types

from forge_sweep.errors import DataError, Key
from forge_sweep.experiment.words import nearest
from forge_sweep.preprocessing import is_tensor, mapped
from forge_sweep.sources.arrays import tensors_of
from forge_sweep.sources.base import ROLES, Dataset, HeldTest, Role, Split, shown
from forge_sweep.sources.digest import content_digest, fingerprints, prints_of, split_digest
from forge_sweep.sources.folds import Positions, positions
from forge_sweep.sources.reading import listed, other_separator, refuse_names
from forge_sweep.sources.splits import assign, refuse_empty, without_target

if TYPE_CHECKING:
    from forge_sweep.experiment import DataSpec

NO_WORDS: Mapping[str, Mapping[str, int]] = MappingProxyType({})

OBJECT_TYPES = {
    "boolean": "boolean",
    "string": pd.StringDtype(na_value=np.nan),  # what pandas 3 reads text as; pandas 2 reads objects
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
    not. With a key, rows are put in its order before anything else looks at them. A digest that is declared
    (``data.digest``) stands in the place of the computed one.

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
    refuse_absent_columns(list(frame.columns if names is None else names), spec, source)
    frame = frame.drop(columns=[name for name in spec.drop if name in frame.columns])
    frame.index = pd.Index(np.arange(len(frame)) if rows is None else rows)
    frame = tidy(frame, spec)
    if spec.key is not None:
        order = key_order(frame[spec.key])
        frame, roles = frame.iloc[order], None if roles is None else roles[order]
    roles = assign(frame, spec, seed) if roles is None else roles
    refuse_empty(roles, spec)

    content = frame.drop(columns=list(splitting_columns(spec)))
    digest = spec.digest or content_digest(content)
    targets = content[list(spec.target)]
    features = content.drop(columns=[*spec.target, *key_column(spec)])
    masks = {role: roles == code for code, role in enumerate(ROLES)}
    train, valid, test = (
        Split(features[mask], targets[mask], features.index[mask].to_numpy(np.int64)) for mask in masks.values()
    )
    refuse_bad_test_rows(train.targets, test, spec, words)
    prints = fingerprints(features)
    return Dataset(
        name=spec.version or name,
        version=f"{spec.version or name}@{digest[:12]}",
        digest=digest,
        split_digest=split_digest(roles),
        train=train,
        valid=valid,
        sizes={role: int(mask.sum()) for role, mask in masks.items()},
        source=source,
        categorical=spec.categorical,
        fingerprints={role: prints[mask] for role, mask in masks.items()},
        _test=HeldTest(test),
        warnings=warnings,
        scaled_whole=scaled_whole(features, masks["train"]),
        missing_words=words,
        array_prints={
            str(name): {role: prints_of(features[name][mask]) for role, mask in masks.items()}
            for name in features
            if is_tensor(features[name])
        },
        groups={} if spec.split.group is None else count_groups(frame[spec.split.group], roles),
        in_folds=_folds(frame, spec, roles, seed),
    )


def _folds(frame: pd.DataFrame, spec: DataSpec, roles: np.ndarray, seed: int) -> tuple[Positions, ...]:
    if spec.split.folds > 1 and (names := [str(name) for name in frame if mapped(frame[name]) is not None]):
        raise DataError(
            f"{Key('data.split.folds', str(spec.split.folds)):is}: the arrays of {', '.join(names)} do not fit in "
            "memory, and folds are for few rows",
            hint=f"leave {Key('data.split.folds')} out: with so many rows one split is as good",
        )
    return positions(frame, spec, roles, seed)


EXACT = 1e-5
"""Of a mean of 0 and a deviation of 1 that a scaler made: float32 keeps this much."""

MOSTLY = 0.5
"""Share of different values of a quantity, and of the quantities that a scaler to 0..1 was applied to."""


def scaled_whole(features: pd.DataFrame, train: np.ndarray) -> dict[str, tuple[str, ...]]:
    """Columns that were scaled over all rows, and not over the train rows (n,) alone, by what they have in common.

    A mean of 0 and a deviation of 1 are no coincidence. A range of 0 to 1 may be one: that counts where most columns of
    numbers that hardly recur, three at the least, have it over all rows and not over the train rows.
    """
    numbers = features.select_dtypes("float64")
    with np.errstate(over="ignore", invalid="ignore"):  # sums of values near the end of float64
        mean = numbers.mean()
        centred = numbers[mean.index[mean.abs() < EXACT]]
        standard = [
            str(name)
            for name in centred
            if min(abs(centred[name].std(ddof=ddof) - 1) for ddof in (0, 1)) < EXACT
            and max(abs(centred[name][train].mean()), abs(centred[name][train].std() - 1)) > 10 * EXACT
        ]
        low, high = numbers.min(), numbers.max()
        whole = [
            name for name in numbers.columns[(low == 0) & (high == 1)] if numbers[name].nunique() > MOSTLY * len(train)
        ]
        ranged = [str(name) for name in whole if (numbers[name][train].min(), numbers[name][train].max()) != (0, 1)]
    found = {}
    if standard:
        found["mean 0 and standard deviation 1"] = tuple(standard)
    if len(whole) >= 3 and len(ranged) > MOSTLY * len(whole):
        found["the range 0 to 1"] = tuple(ranged)
    return found


def count_groups(values: pd.Series, roles: np.ndarray) -> dict[Role, int]:
    """Number of groups in each split.

    Raises:
        DataError: a group stands in two splits, as a source with roles of its own may have it.
    """
    of_groups = pd.DataFrame({"group": values.to_numpy(), "role": roles}).drop_duplicates()
    several = of_groups["group"][of_groups["group"].duplicated()].unique()
    if len(several):
        raise DataError(
            f"{Key('data.split.group')}: {len(several)} groups of column {values.name!r} stand in two splits "
            f"({shown(several)})",
            hint=f"put all rows of a group into one split, or choose another {Key('data.split.kind')}",
        )
    return {role: int((of_groups["role"] == code).sum()) for code, role in enumerate(ROLES)}


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
    named = {f"data.split.{kind}": getattr(split, kind) for kind in ("column", "group", "time")}
    found = {column: Key(key) for key, column in {"data.key": spec.key, **named}.items() if column is not None}
    return {column: key for column, key in found.items() if column not in (*spec.target, *spec.categorical)}


def refuse_absent_columns(columns: list[str], spec: DataSpec, source: str) -> None:
    """Raise DataError for columns of one name or without any, or with every declared column that is not there."""
    refuse_names(columns, spec.drop, Key("data.path"), source)
    declared = {
        "data.target": spec.target,
        "data.key": key_column(spec),
        "data.drop": spec.drop,
        "data.categorical": spec.categorical,
        f"data.split.{spec.split.kind}": splitting_columns(spec),
    }
    lines = []
    for key, names in declared.items():
        for name in names:
            if name not in columns:
                close = nearest(name, columns)
                lines.append(f"{Key(key)} = {name!r}: no such column{f'; {close}' if close else ''}")
    if lines:
        mark = other_separator(columns, spec.separator)
        raise DataError(
            "\n  ".join([f"{source} lacks columns that are declared", *lines]),
            hint=f"the columns look separated by another sign: set {Key('data.separator', repr(mark))}"
            if mark
            else f"the columns are {shown(columns)}",
        )


def tidy(frame: pd.DataFrame, spec: DataSpec) -> pd.DataFrame:
    """Features and targets as numbers, booleans or text; declared categories as text."""
    only_order = {*key_column(spec), *splitting_columns(spec)}
    if len(frame.columns) <= len(only_order) + len(spec.target):
        raise DataError("no column is left as a feature", hint="name fewer columns as target, key or dropped")
    columns = {}
    for name in frame.columns:
        column = frame[name]
        if name not in only_order:
            column = code_text(column) if name in spec.categorical else tidy_column(column)
        columns[name] = column
    # Arrays last, so that a schema has the columns of the table in front.
    ordered = sorted(columns, key=lambda name: is_tensor(columns[name]))
    return pd.DataFrame({name: columns[name] for name in ordered}, index=frame.index)


def tidy_column(values: pd.Series) -> pd.Series:
    """A column as int64, uint64, float64, bool, nullable boolean or text; or as arrays of one shape.

    Raises:
        DataError: the column holds something else, such as times.
    """
    if mapped(values) is not None:
        return values
    if is_tensor(values):
        return tensors_of(values, "the rows")
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
        hint=f"leave it out with {Key('data.drop', str([str(values.name)]))}, or write numbers; "
        f"a time can split the rows ({Key('data.split.time')})",
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
    if types.is_bool_dtype(codes.dtype):
        seen = "booleans"
    else:
        if types.infer_dtype(present) == "decimal":  # % of a decimal fails beyond 28 digits
            fraction = np.array([value != value.to_integral_value() for value in present])
        else:
            fraction = (present % 1 != 0).to_numpy(bool)
        seen = shown(present[fraction].unique())
    if seen:
        raise DataError(
            f"{Key('data.categorical')}: column {codes.name!r} holds {seen}; expected whole numbers or text",
            hint=f"take {str(codes.name)!r} out of {Key('data.categorical'):under}: it does not hold codes",
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
                f"{Key('data.key')}: column {key.name!r} is {what} in {bad.sum()} rows ({shown(key.index[bad])}); "
                f"values there: {shown(key[bad].unique())}",
                hint=f"a key names every row once: fix those rows, choose another column, or omit {Key('data.key')}",
            )
    return np.asarray(key.argsort(kind="stable"))


def refuse_bad_test_rows(
    train: pd.DataFrame, test: Split, spec: DataSpec, words: Mapping[str, Mapping[str, int]] = NO_WORDS
) -> None:
    """Raise DataError for test rows that could not be scored: the audit never sees them, and a sweep ends with them.

    Says how many and where, nothing else of the test split.
    """

    def refuse(values: pd.Series, bad: np.ndarray, what: str, key: str) -> None:
        if bad.any():
            raise DataError(
                f"{key}: column {values.name!r} is {what} in {bad.sum()} rows of the test split "
                f"(rows {shown(values.index[bad])})",
                hint="correct or remove these rows; where a class is missing from train, split otherwise",
            )

    for path, head in spec.tasks.items():
        for name in head.target:
            values, key = test.targets[name], f"{path}.target"
            said = f" ({listed(words[name])} in all splits, which is read as missing)" if words.get(name) else ""
            refuse(values, without_target(test.targets[[name]]), f"missing or infinite{said}", key)
            labels = train.loc[~without_target(train[[name]]), name]
            if head.task == "binary" and (found := labels.nunique()) > 2:
                hint = '"multiclass" is for classes, "regression" for a quantity'
                text = f'{path}.task = "binary": target {name!r} has {found} different values in train, expected 2'
                raise DataError(text, hint=hint)
            if head.task in ("binary", "multiclass") and not head.one_hot:
                unknown = ~values.isin(train[name].dropna()).to_numpy(bool)
                refuse(values, unknown, "of a class that train does not have", key)
            elif head.task != "regression":
                refuse(values, ~values.isin((0, 1)).to_numpy(bool), "neither 0 nor 1", key)
        if head.one_hot:
            columns = test.targets[list(head.target)]
            several = (columns.sum(axis=1) != 1).to_numpy(bool)
            refuse(columns.iloc[:, 0], several, "one of several columns, or of none, that is 1", f"{path}.target")
    for _, values in test.features.select_dtypes("number").items():
        refuse(values, np.isinf(values.to_numpy(float, na_value=np.nan)), "infinite", "data.path")
