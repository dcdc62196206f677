"""What a model and the modules of its builder keep: training rows that it should not know."""

from __future__ import annotations

import contextlib
import functools
import math
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from forge_sweep import training
from forge_sweep.checks.findings import Finding
from forge_sweep.experiment import Code
from forge_sweep.experiment.code import PACKAGE
from forge_sweep.experiment.importing import package_of
from forge_sweep.preprocessing import Spec

if TYPE_CHECKING:
    import keras

MOST_OBJECTS, MOST_ITEMS = 20_000, 1000
"""In which arrays are looked for, and of one list."""

MOST_NUMBERS = 2**25
"""Of one array; of a larger one the first rows are taken."""

CAPTURED = 3
"""Training rows in an array of a user's own module that are no coincidence."""

MOST_COMPARED = 2**20
"""Of one array, in which rows are looked for that have other columns than those of the model."""


def captured(
    model: keras.Model, spec: Spec, few: training.TrainingData, raw: pd.DataFrame, code: Code
) -> Iterator[Finding]:
    """Whether a user's own model knows the training rows already, as they are fed or as they were read."""
    fed = dict(zip(spec, training.leaves(few.x_train), strict=True))
    unscaled = [np.rint(values / spec[name].scale) for name, values in fed.items() if spec[name].scale != 1.0]
    with np.errstate(over="ignore"):
        numbers = raw.to_numpy(np.float64, na_value=np.nan)
        tables = [each.reshape(len(each), -1).astype(np.float32) for each in (*fed.values(), *unscaled, numbers)]
        known = [rows for rows in tables if _telling(rows)]
        counts = dict[str, int]()
        for where, values in _held(model, code):
            if isinstance(values, pd.DataFrame):  # a table of the file itself: by the names of its columns
                shared = [name for name in raw if name in values.columns]
                mine, theirs = (each[shared].to_numpy(np.float32, na_value=np.nan) for each in (raw, values))
                counts[where] = _equal(mine, theirs) if _telling(mine) else 0
                values = values.to_numpy(np.float64, na_value=np.nan)
            if counts.get(where, 0) < CAPTURED:
                counts[where] = max((_common(values, rows) for rows in known), default=0)
    if places := [where for where, count in counts.items() if count >= CAPTURED]:
        most = max(counts.values())
        seen = f"{', '.join(places[:3])}: {most} of {len(few.y_train)} training rows that were looked for"
        expected = "a model that learns from rows only as it is trained"
        fix = "read no rows in the builder's modules, and hand none to a layer or a function"
        yield Finding("error", "rows-captured", code.builder, seen, expected, fix)


def _telling(rows: np.ndarray) -> bool:
    """Whether rows can be told apart: rows of a few flags are everywhere."""
    return rows.shape[1] > 1 and len(np.unique(rows, axis=0)) > len(rows) / 2


def _held(model: keras.Model, code: Code) -> Iterator[tuple[str, np.ndarray | pd.DataFrame]]:
    """The arrays and tables of numbers that a model and the modules of its builder keep, each with where it is.

    These are weights, attributes of layers, constants of the graph, globals of every local module, and what functions
    close over or have as defaults. Of tables these are the columns of numbers. `MOST_OBJECTS` objects are looked at,
    those that are near first.
    """
    package = package_of(code)
    waiting = deque[tuple[str, Any]]((f"weight {weight.path}", weight) for weight in model.weights)
    for file in code.files:
        name = file.removesuffix(f".{PACKAGE}")
        globals_of = vars(sys.modules.get(f"{package}.{name}", object)).items()
        waiting += [(f"{name}.{key}", value) for key, value in globals_of if not key.startswith("__")]
    waiting += [(f"layer {layer.name}", layer) for layer in model.layers] + [("the model", model)]
    seen = dict[int, Any]()  # the objects too: of one that is gone another may have the number
    while waiting and len(seen) < MOST_OBJECTS:
        where, value = waiting.popleft()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        if (array := _array(value)) is not None:
            yield where, array
            continue
        waiting += [(f"{where}{name}", each) for name, each in inside(value, package)]


def _array(value: Any) -> np.ndarray | pd.DataFrame | None:
    """An array, a tensor or a list of rows as an array of numbers, a table as its columns of numbers; else None."""
    try:
        if isinstance(value, pd.DataFrame):
            return value.iloc[: MOST_NUMBERS // max(value.shape[1], 1)].select_dtypes("number")
        of_rows = isinstance(value, list | tuple) and value and isinstance(value[0], list | tuple)
        if isinstance(value, type) or not (of_rows or hasattr(value, "__array__")):
            return None
        shape = getattr(value, "shape", ())
        if math.prod(shape) > MOST_NUMBERS:  # a file that is read where it is looked at, among others
            value = value[: MOST_NUMBERS // math.prod(shape[1:])]
        found = np.asarray(value)
    except Exception:  # rows of different lengths, a tensor of a graph, a device that no array can be had from
        return None
    return found if found.dtype.kind in "biuf" else None


def inside(value: Any, package: str) -> Iterator[tuple[str, Any]]:
    """What an object keeps, with what to call it behind the object's own name."""
    of_type = type(value) if not isinstance(value, type | FunctionType) else value
    own = f"{getattr(of_type, '__module__', '')}.".startswith(f"{package}.")
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", each) for key, each in list(value.items())[:MOST_ITEMS])
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"[{i}]", each) for i, each in enumerate(list(value)[:MOST_ITEMS]))
    elif isinstance(value, MethodType | staticmethod | classmethod):
        yield from (("", value.__func__), ("", getattr(value, "__self__", None)))
    elif isinstance(value, functools.partial):
        yield from (("", value.func), ("", value.args), ("", value.keywords))
    elif isinstance(value, FunctionType) and own:
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # not set yet
                yield f": {name}, which it closes over", cell.cell_contents
        yield from ((": a default", each) for each in (value.__defaults__, value.__kwdefaults__))
    elif own or (not isinstance(value, type) and of_type.__module__.startswith("keras.")):
        yield from ((f".{name}", each) for name, each in list(getattr(value, "__dict__", {}).items()))
        yield "", None if isinstance(value, type) else type(value)


def _common(values: np.ndarray, known: np.ndarray) -> int:
    """How many of the known rows (n, columns) an array has, upright or on its side, with more columns or with fewer."""
    if values.ndim < 2 or min(len(values), values[:1].size) < 2:
        return 0
    table, counts = values.reshape(len(values), -1), [0]
    for upright in (table, table.T) if values.ndim == 2 else (table,):
        width = upright.shape[1]
        if width == known.shape[1]:
            counts.append(_equal(known, upright))
        if max(counts) < CAPTURED:
            rows = upright[: MOST_COMPARED // width].astype(np.float32)
            counts.append(_joined(known, rows) if known.shape[1] <= width else _joined(rows, known))
    return max(counts)


def _equal(known: np.ndarray, rows: np.ndarray) -> int:
    """How many of the known rows are among others with the same columns."""
    whole = np.dtype((np.void, 4 * known.shape[1]))
    mine, theirs = (np.ascontiguousarray(each, np.float32) + 0.0 for each in (known, rows))  # -0 is 0
    return int(np.isin(mine.view(whole), theirs.view(whole)).sum())


def _joined(narrow: np.ndarray, wide: np.ndarray) -> int:
    """How many rows of one table are in another one, whose columns are more or in another order.

    They are matched by the column that tells most rows apart and by the one with most of its values; of these pairs a
    quarter has to agree in all columns, each in the one of the other table that is most often alike.
    """
    if not len(narrow) or narrow.shape[1] < 3:  # two numbers are alike by chance
        return 0
    teller = narrow[:, np.argmax([len(np.unique(column)) for column in narrow.T])]
    order = np.argsort(teller)
    place = order[np.searchsorted(teller, wide, sorter=order).clip(max=len(order) - 1)]
    at, column = np.nonzero(teller[place] == wide)
    pairs = MOST_COMPARED // (narrow.shape[1] * wide.shape[1])
    if not len(at) or not pairs:
        return 0
    at = at[column == (home := np.bincount(column).argmax())]
    at = at[np.linspace(0, len(at) - 1, min(len(at), pairs)).astype(int)]
    mine = place[at, home]
    alike = (narrow[mine][:, :, None] == wide[at][:, None, :]) | np.isnan(narrow[mine])[:, :, None]
    best = alike.mean(axis=0).argmax(axis=1)
    agree = alike[:, np.arange(len(best)), best].all(axis=1)
    return min(len(np.unique(mine[agree])), len(np.unique(at[agree]))) if agree.sum() * 4 >= len(agree) else 0
