"""From target columns to arrays, with refusals that name the column, the rows and the fix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from forge_sweep.errors import DataError, Key
from forge_sweep.task.metrics import TaskKind

if TYPE_CHECKING:
    import pandas as pd

Label = str | int | float | bool

SHOWN = 10
"""How many rows or labels a message lists."""


def select(targets: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The target columns in the task's order."""
    absent = [name for name in names if name not in targets.columns]
    if absent:
        raise DataError(f"target column {absent[0]!r} is missing", hint=f"give all of {', '.join(names)}")
    return targets[list(names)]


def column_names(targets: pd.DataFrame) -> tuple[str, ...]:
    """Names of the target columns as text."""
    return tuple(map(str, targets.columns))


def refuse_missing(targets: pd.DataFrame) -> None:
    """Raise DataError for a missing or infinite target value."""
    from pandas.api.types import is_float_dtype

    for name in targets.columns:
        values = targets[name]
        bad = values.isna().to_numpy(dtype=bool)
        if is_float_dtype(values.dtype):
            bad = bad | np.isinf(values.to_numpy(dtype=float, na_value=np.nan))
        if bad.any():
            count = f"{int(bad.sum())} of {len(bad)} rows ({_rows(targets, bad)})"
            raise DataError(
                f"target {str(name)!r} is missing or infinite in {count}",
                hint="remove these rows from the file, or correct the value",
            )


def learn_classes(kind: TaskKind, targets: pd.DataFrame, positive: Label | None) -> tuple[Any, ...]:
    """The classes of a task as ``Task.classes`` holds them."""
    if kind == "regression":
        return ()
    if kind == "multilabel" or targets.shape[1] > 1:
        return _learn_indicators(kind, targets)
    return _learn_labels(kind, targets.iloc[:, 0], positive)


def label_codes(values: pd.Series, classes: Sequence[Any]) -> np.ndarray:
    """Position of each value in ``classes``, (n,) int64; equal values match across types (1 and 1.0)."""
    import pandas as pd

    found, uniques = pd.factorize(values)
    known = {label: code for code, label in enumerate(classes)}
    table = np.array([*(known.get(_plain(value), -1) for value in uniques), -1], dtype=np.int64)
    codes = table[found]
    if (unknown := codes < 0).any():
        labels = _shown(sorted({_plain(value) for value in values[unknown]}, key=_label_order))
        raise DataError(
            f"target {str(values.name)!r} holds {labels} ({_rows(values, unknown)}), which train does not have; "
            f"train has {_shown(classes)}",
            hint=f"correct the label, or split so that train holds every class ({Key('data.split.stratify', 'true')})",
        )
    return codes


def zero_one(targets: pd.DataFrame, *, one_hot: bool) -> np.ndarray:
    """Indicator columns as float64 (n, columns); with ``one_hot`` each row holds exactly one 1."""
    values = numbers(targets)
    for column, name in enumerate(targets.columns):
        wrong = (values[:, column] != 0) & (values[:, column] != 1)
        if wrong.any():
            found = _shown(sorted(set(values[wrong, column].tolist())))
            raise DataError(
                f"target {str(name)!r} holds {found} ({_rows(targets, wrong)}); each of several targets is 0 or 1",
                hint=f"write 0 and 1, or name one label column as {Key('data.target'):under}",
            )
    wrong = values.sum(axis=1) != 1
    if one_hot and wrong.any():
        raise DataError(
            f"target columns {', '.join(column_names(targets))} do not hold exactly one 1 in {int(wrong.sum())} rows "
            f"({_rows(targets, wrong)})",
            hint=f"""correct the rows, or set {Key("data.task", '"multilabel"')} when several may hold""",
        )
    return values


def numbers(targets: pd.DataFrame) -> np.ndarray:
    """Numeric target columns as float64 (n, columns)."""
    import pandas as pd
    from pandas.api.types import is_numeric_dtype

    for name in targets.columns:
        if not is_numeric_dtype(targets[name].dtype):
            values = targets[name].dropna()
            wrong = values[pd.to_numeric(values, errors="coerce").isna()]
            shown = f", such as {_plain(wrong.iloc[0])!r} in row {wrong.index[0]}" if len(wrong) else ""
            raise DataError(
                f"target {str(name)!r} is {targets[name].dtype}{shown}; expected numbers",
                hint="write plain numbers such as -1234.5 (no separators of thousands, currency or percent), or set "
                f"""{Key("data.task", '"binary" or "multiclass"')} for labels""",
            )
    return targets.to_numpy(dtype=float)


def target_scale(targets: pd.DataFrame) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, population standard deviation) of each regression target."""
    values = numbers(targets)
    if not len(values):
        raise DataError("train has no rows", hint=f"raise {Key('data.split.train'):under}")
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = values.mean(axis=0), values.std(axis=0)
    for name, spread, column in zip(column_names(targets), std, values.T, strict=True):
        if not np.isfinite(spread) or spread <= np.finfo(float).eps * np.abs(column).max():
            raise DataError(
                f"target {name!r} has standard deviation {spread:.4g} over {len(column)} rows, expected it to vary",
                hint="name a target that varies, or rescale it",
            )
    return tuple(mean.tolist()), tuple(std.tolist())


def _learn_labels(kind: TaskKind, values: pd.Series, positive: Label | None) -> tuple[Any, ...]:
    counts = {_plain(label): int(n) for label, n in values.value_counts(sort=False).items() if n}
    labels = sorted(counts, key=_label_order)
    name = str(values.name)
    if len(labels) < 2 or (kind == "binary" and len(labels) > 2):
        hint = "name a target that varies, or give train more rows"
        if len(labels) > 2:
            hint = f"""set {Key("data.task", '"multiclass" or "regression"')}, or name another target"""
        raise DataError(
            f"target {name!r} has {len(labels)} distinct values in train ({_shown(labels)}), "
            f"expected {'exactly' if kind == 'binary' else 'at least'} 2 for a {kind} task",
            hint=hint,
        )
    if rare := [label for label in labels if counts[label] < 2]:
        raise DataError(
            f"target {name!r} has {len(rare)} classes with 1 train row ({_shown(rare)}), expected 2 or more",
            hint=f"""merge or remove rare classes; set {Key("data.task", '"regression"')} for a quantity""",
        )
    if kind != "binary" or positive is None:
        return tuple(labels)
    if positive not in labels:
        raise DataError(
            f"{Key('data.positive')} = {positive!r} is not a label of target {name!r}, which has {_shown(labels)}",
            hint=f"set {Key('data.positive'):under} to {labels[0]!r} or {labels[1]!r}",
        )
    return tuple(sorted(labels, key=lambda label: bool(label == positive)))


def _learn_indicators(kind: TaskKind, targets: pd.DataFrame) -> tuple[str, ...]:
    values = zero_one(targets, one_hot=kind == "multiclass")
    for name, ones in zip(column_names(targets), values.sum(axis=0).astype(int), strict=True):
        if min(ones, len(values) - ones) < 2:
            raise DataError(
                f"target {name!r} is 1 in {ones} of {len(values)} train rows, expected at least 2 rows of 0 and of 1",
                hint=f"remove {name!r} from {Key('data.target'):under}, or give train more rows",
            )
    return column_names(targets)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _label_order(label: Any) -> tuple[bool, Any]:
    """Sort key: numbers and booleans by value, before text in alphabetical order."""
    return (True, label) if isinstance(label, str) else (False, label)


def _shown(labels: Sequence[Any]) -> str:
    more = f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else ""
    return ", ".join(repr(label) for label in labels[:SHOWN]) + more


def _rows(values: pd.DataFrame | pd.Series, bad: np.ndarray) -> str:
    first = [str(label) for label in values.index[bad][:SHOWN]]
    return f"rows {', '.join(first)}{', ...' if int(bad.sum()) > SHOWN else ''}"
