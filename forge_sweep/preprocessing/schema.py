"""The raw columns a model was trained on, and how rows are brought to them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from decimal import Decimal
from functools import cached_property
from numbers import Real
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
from pandas.api import types

from forge_sweep.errors import SchemaError
from forge_sweep.experiment.words import nearest
from forge_sweep.preprocessing.array_files import mapped
from forge_sweep.preprocessing.tensors import cells, is_tensor, stacked

Kind = Literal["numeric", "boolean", "categorical", "tensor"]

CODE = "code"
"""`Column.dtype` of a column of numeric codes that was declared categorical."""

UNKNOWN = -1.0
"""The raw number of a category that train does not have."""

WHOLE = re.compile(r"0|-?[1-9][0-9]*")
"""A whole number in the one spelling that an integer has: neither 007 nor +5, 1e3 or 1.0."""

WHOLE_FLOAT = re.compile(r"^(0|-?[1-9][0-9]*)\.0+\Z")
"""What becomes of a whole number in a file where others of its column are missing."""

SHOWN = 5
"""How many rows a message lists."""

NUMBERS: tuple[type, ...] = (Real, Decimal)
"""What counts as a number among Python objects, NumPy's scalars included; bool has to be told apart."""

OBSERVED: dict[Kind, tuple[str, ...]] = {
    "numeric": ("integer", "floating", "mixed-integer-float", "decimal", "empty"),
    "boolean": ("boolean",),
    "categorical": ("string",),
}
"""The kind of a column, by what `pandas.api.types.infer_dtype` sees in it."""

WORDS: dict[Kind, str] = {"numeric": "numbers", "boolean": "booleans", "categorical": "text", "tensor": "arrays"}


@dataclass(frozen=True)
class Column:
    """One feature as train showed it.

    Attributes:
        name: column name.
        kind: how it enters the matrix.
        dtype: type in train, such as ``int64``; ``code`` for numeric codes declared categorical.
        missing: whether some value was missing in train.
        categories: categories of train, the most frequent first, ties by name; only if categorical.
        low: smallest finite value of train; only if numeric, None where there is none.
        high: largest finite value of train; likewise.
        shape: of the array in each cell; only of a tensor, whose ``dtype`` is that of its values.
    """

    name: str
    kind: Kind
    dtype: str
    missing: bool
    categories: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    shape: tuple[int, ...] = ()

    @cached_property
    def takes_integers(self) -> bool:
        """Whether an integer says which category is meant: all codes of train were plain whole numbers.

        Where one was spelled 007, the integer 7 may be that one or another.
        """
        return self.dtype == CODE and all(map(WHOLE.fullmatch, self.categories))

    def read(self, series: pd.Series) -> tuple[np.ndarray, np.ndarray]:
        """Values (n,) as `Schema.values` gives them, and which of them are mistyped; arrays of a file stay there."""
        if self.kind == "tensor":
            if (found := mapped(series)) is not None:
                fits = np.can_cast(found.dtype, self.dtype) and found.shape[1:] == self.shape
                return cast(np.ndarray, found), np.full(len(found), not fits)
            return stacked(series, self.shape, self.dtype)
        values, wrong = _read(series, self.kind, self.takes_integers)
        if self.takes_integers:  # as training read such a file
            values = np.array([WHOLE_FLOAT.sub(r"\1", v) if isinstance(v, str) else v for v in values], object)
        return values, wrong

    @cached_property
    def _positions(self) -> pd.Index:
        return pd.Index(self.categories, dtype=object)

    def raw(self, values: np.ndarray) -> np.ndarray:
        """What `read` gave as raw numbers: a category as its position, `UNKNOWN` for others, NaN for missing."""
        if self.kind != "categorical":
            return values
        codes = self._positions.get_indexer(pd.Index(values, dtype=object)).astype(np.float64)  # -1 is UNKNOWN
        codes[is_missing(values)] = np.nan
        return codes

    def expected(self, seen: Any) -> str:
        """What the column takes in place of a mistyped value."""
        if self.kind == "tensor":
            return f"arrays of shape {self.shape}, {self.dtype}"
        if not self._lacks_spelling(seen) or not self.categories:
            return WORDS[self.kind]
        example = next((text for text in self.categories if not WHOLE.fullmatch(text)), self.categories[0])
        return f"{'whole numbers with all of their digits, or ' * self.takes_integers}text such as {example!r}"

    def fix(self, seen: Any) -> str:
        """What to do about a mistyped value, ``; read it as text ...``; empty where there is nothing to add."""
        return f"; read it as text (dtype={{{self.name!r}: str}})" if self._lacks_spelling(seen) else ""

    def _lacks_spelling(self, seen: Any) -> bool:
        """Whether a number or boolean came in place of text."""
        return self.kind == "categorical" and isinstance(seen, (*NUMBERS, bool, np.bool_))


@dataclass(frozen=True)
class Schema:
    """The features a model was trained on, in the order of train: types, categories and where values were missing.

    Tensors come after all others.
    """

    columns: tuple[Column, ...]

    @classmethod
    def learn(cls, train_features: pd.DataFrame, categorical: Iterable[str] = ()) -> Schema:
        """The schema of training rows, whose columns are numbers, booleans or text, or codes if ``categorical``.

        Raises:
            SchemaError: a column holds something else.
        """
        declared = frozenset(categorical)
        columns = [_learn_column(train_features[name], name in declared) for name in train_features.columns]
        return cls(tuple(sorted(columns, key=lambda column: column.kind == "tensor")))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Column names in the order of train."""
        return tuple(column.name for column in self.columns)

    @cached_property
    def tabular(self) -> tuple[Column, ...]:
        """The columns that are no tensors: the first ones."""
        return tuple(column for column in self.columns if column.kind != "tensor")

    @cached_property
    def tensors(self) -> tuple[Column, ...]:
        """The columns of arrays."""
        return self.columns[len(self.tabular) :]

    def align(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The frame in the order and with the types of the schema: float64, bool or nullable boolean, and text.

        Columns may come in any order. Integers do for numbers, 0 and 1 for booleans, whole numbers for declared codes
        if those of train were plain whole numbers (`Column.takes_integers`); missing values (None, NaN, NA) do
        everywhere. Text never does for numbers, nor a boolean. The index is kept.

        Raises:
            SchemaError: columns are missing, extra or mistyped; all of them are listed.
        """
        values = self.values(frame)
        aligned: dict[str, Any] = {column.name: values[column.name] for column in self.columns}
        for column in self.columns:
            if column.kind == "tensor":
                aligned[column.name] = cells(values[column.name])
            elif column.kind == "boolean":
                truth, missing = values[column.name] == 1, np.isnan(values[column.name])
                aligned[column.name] = pd.arrays.BooleanArray(truth, missing) if missing.any() else truth
        return pd.DataFrame(aligned, index=frame.index)

    def values(self, frame: pd.DataFrame) -> dict[str, np.ndarray]:
        """What `align` gives, as plain arrays, for speed: a row of 30 numbers takes about half a millisecond.

        Returns:
            Per column (n,): float64 with NaN for numbers and booleans; objects, str or missing, for categories; of a
            tensor (n, ...).

        Raises:
            SchemaError: as `align`.
        """
        absent, unknown, repeated = self.name_differences(list(frame.columns))
        lines = [f"- {column.name}: missing; expected {WORDS[column.kind]}" for column in absent]
        for name in unknown:
            close = nearest(str(name), [column.name for column in absent])
            lines.append(f"+ {name}: unknown{f'; {close}' if close else ''}")
        lines += [f"~ {name}: given {count} times" for name, count in repeated.items()]
        values = {}
        for column in self.columns:
            if (series := frame.get(column.name)) is None or series.ndim > 1:
                continue
            values[column.name], wrong = column.read(series)
            if wrong.any():
                first = series.iloc[int(wrong.argmax())]
                expected, fix = column.expected(first), column.fix(first)
                lines.append(f"~ {column.name}: expected {expected}, got {_offenders(series, wrong)}{fix}")
        if lines:
            message = "\n  ".join(["the rows do not fit the schema of the training rows", *lines])
            raise SchemaError(message, hint="give each of its columns once, by name and with its type; in any order")
        return values

    def name_differences(self, given: list[Any]) -> tuple[list[Column], list[Any], dict[Any, int]]:
        """The columns that are missing, the names that the schema lacks, and how often repeated columns come."""
        if given == list(self.names):
            return [], [], {}
        times, known = Counter(given), set(self.names)
        absent = [column for column in self.columns if column.name not in times]
        unknown = [name for name in times if name not in known]
        return absent, unknown, {name: count for name, count in times.items() if count > 1 and name in known}

    def to_dict(self) -> dict[str, Any]:
        """JSON values that `from_dict` reads."""
        plain = [asdict(column) for column in self.columns]
        return {"columns": [{k: v for k, v in column.items() if k != "shape" or v} for column in plain]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Schema:
        """The schema that `to_dict` wrote."""
        lists = ("categories", "shape")
        columns = [c | {name: tuple(c[name]) for name in lists if name in c} for c in values["columns"]]
        return cls(tuple(Column(**column) for column in columns))


def _read(series: pd.Series, kind: Kind, codes: bool) -> tuple[np.ndarray, np.ndarray]:
    """The values of a column, which may hold declared ``codes``, and which of them (n,) are mistyped."""
    if kind == "numeric":
        return _read_floats(series, "iuf", _is_number)
    if kind == "boolean":
        values, wrong = _read_floats(series, "biuf", lambda value: isinstance(value, (*NUMBERS, np.bool_)))
        return values, wrong | ~(np.isnan(values) | (values == 0) | (values == 1))
    if isinstance(series.dtype, pd.StringDtype):
        return series.to_numpy(object, na_value=np.nan), np.zeros(len(series), bool)
    values = series.to_numpy(object)
    present = ~is_missing(values)
    values = np.where(present, values, np.nan)  # one kind of missing, in a copy
    if codes:  # whole numbers count as their digits
        dtype = getattr(series.dtype, "numpy_dtype", series.dtype)
        exact = _exact(dtype) if isinstance(dtype, np.dtype) and dtype.kind == "f" else None
        values = np.fromiter((_code(value, exact) for value in values), object, len(values))
    text = np.fromiter((isinstance(value, str) for value in values), bool, len(values))
    return values, present & ~text


def _read_floats(series: pd.Series, kinds: str, accepts: Callable[[Any], bool]) -> tuple[np.ndarray, np.ndarray]:
    """A column as float64; of types other than ``kinds`` value by value, as far as ``accepts`` allows."""
    if series.dtype.kind in kinds and not isinstance(series.dtype, pd.CategoricalDtype):
        plain = isinstance(series.dtype, np.dtype)
        values = series.to_numpy(np.float64) if plain else series.to_numpy(np.float64, na_value=np.nan)
        return values, np.zeros(len(values), bool)
    objects = series.to_numpy(object)
    present = ~is_missing(objects)
    right = present & np.fromiter(map(accepts, objects), bool, len(objects))
    values = np.full(len(objects), np.nan)
    values[right] = objects[right].astype(np.float64)
    return values, present & ~right


def _code(value: Any, exact: int | None = None) -> Any:
    """A whole number as its digits; all else as it is, such as a float that may be a rounded one, from ``exact`` on."""
    if not _is_number(value):
        return value
    if isinstance(value, float | np.floating) and abs(float(value)) >= (exact or _exact(type(value))):
        return value
    try:
        return str(int(value)) if value == int(value) else value
    except (ValueError, OverflowError):  # NaN, infinity
        return value


def _exact(dtype: Any) -> int:
    """The least positive whole number that stands for a neighbour too in a type of floats: 2**53 in float64."""
    return int(2 ** (np.finfo(dtype).nmant + 1))


def _is_number(value: Any) -> bool:
    return isinstance(value, NUMBERS) and not isinstance(value, bool)


def is_missing(values: np.ndarray) -> np.ndarray:
    """Which values (n,) are missing."""
    return np.asarray(pd.isna(values), bool)


def _offenders(series: pd.Series, wrong: np.ndarray) -> str:
    """``text in rows 0, 4 ('a', 'b')``, with positions from 0."""
    rows = np.flatnonzero(wrong)
    first, more = rows[:SHOWN], ", ..." if len(rows) > SHOWN else ""
    values = [v.item() if isinstance(v, np.generic) else v for v in (series.iloc[row] for row in first)]
    if isinstance(values[0], np.ndarray | list):
        return f"others in rows {', '.join(map(str, first))}{more} (of shape {np.shape(np.asarray(values[0], object))})"
    kind = "text" if isinstance(values[0], str) else type(values[0]).__name__
    return f"{kind} in rows {', '.join(map(str, first))}{more} ({', '.join(map(repr, values))}{more})"


def _learn_column(series: pd.Series, declared: bool) -> Column:
    if is_tensor(series):
        first = series.iloc[0]
        return Column(str(series.name), "tensor", str(first.dtype), False, shape=first.shape)
    kind: Kind = "categorical" if declared else _kind(series)
    values, wrong = _read(series, kind, declared)
    if wrong.any():
        raise SchemaError(
            f"column {series.name!r} is declared categorical but holds {_offenders(series, wrong)}; "
            "expected text or whole numbers",
            hint=f"take {str(series.name)!r} out of categorical under [data]",
        )
    missing = is_missing(values)
    objects = series if declared and series.dtype == object else ()
    if any(_is_number(v) for v in objects) and any(isinstance(v, str) for v in objects):
        raise SchemaError(
            f"column {series.name!r} is declared categorical and holds both numbers and text",
            hint=f"read it as text: dtype={{{str(series.name)!r}: str}}",
        )
    counts = Counter(values[~missing].tolist()) if kind == "categorical" else Counter[str]()
    finite = values[np.isfinite(values)] if kind == "numeric" else np.empty(0)
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (None, None)
    dtype = CODE if declared else str(series.dtype)
    categories = tuple(sorted(counts, key=lambda category: (-counts[category], category)))
    return Column(str(series.name), kind, dtype, bool(missing.any()), categories, low, high)


def _kind(series: pd.Series) -> Kind:
    """The kind of a column by its type, or by its values where they are Python objects."""
    found = types.infer_dtype(series.to_numpy(object) if series.dtype == "category" else series, skipna=True)
    for kind, names in OBSERVED.items():
        if found in names:
            return kind
    raise SchemaError(
        f"column {series.name!r} holds {found} values ({series.dtype}); expected numbers, booleans or text",
        hint=f"leave it out with drop = [{str(series.name)!r}] under [data], or make numbers of it",
    )
