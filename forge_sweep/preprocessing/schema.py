"""The raw columns a model was trained on, and how rows are brought to them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from decimal import Decimal
from functools import cached_property
from numbers import Real
from typing import Any, Literal

import numpy as np
import pandas as pd
from pandas.api import types

from forge_sweep.errors import SchemaError
from forge_sweep.experiment.rules import nearest

Kind = Literal["numeric", "boolean", "categorical"]

CODE = "code"
"""`Column.dtype` of a column of numeric codes that was declared categorical."""

WHOLE = re.compile(r"0|-?[1-9][0-9]*")
"""A whole number in the one spelling that an integer has: neither 007 nor +5, 1e3 or 1.0."""

WHOLE_FLOAT = re.compile(r"(0|-?[1-9][0-9]*)\.0+")
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

WORDS: dict[Kind, str] = {"numeric": "numbers", "boolean": "booleans", "categorical": "text"}


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
    """

    name: str
    kind: Kind
    dtype: str
    missing: bool
    categories: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None

    @cached_property
    def takes_integers(self) -> bool:
        """Whether an integer says which category is meant: all codes of train were plain whole numbers.

        Where one was spelled 007, the integer 7 may be that one or another.
        """
        return self.dtype == CODE and all(map(WHOLE.fullmatch, self.categories))

    def read(self, series: pd.Series) -> tuple[np.ndarray, np.ndarray]:
        """Values (n,) as `Schema.values` gives them, and which of them are mistyped."""
        values, wrong = READERS[self.kind](series, self.takes_integers)
        if self.takes_integers:  # as training read such a file
            values = np.array([WHOLE_FLOAT.sub(r"\1", v) if _is_whole_float(v) else v for v in values], object)
        return values, wrong

    def expected(self, seen: Any) -> str:
        """What the column takes in place of a mistyped value."""
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
    """The features a model was trained on: names, order, types, categories and where values were missing.

    Attributes:
        columns: one `Column` per feature, in the order of train.
    """

    columns: tuple[Column, ...]

    @classmethod
    def learn(cls, train_features: pd.DataFrame, categorical: Iterable[str] = ()) -> Schema:
        """Learn the schema of the training rows.

        Args:
            train_features: (n, features) columns of numbers, booleans or text.
            categorical: columns of numeric codes that are categories.

        Raises:
            SchemaError: a column holds something else.
        """
        declared = frozenset(categorical)
        return cls(tuple(_learn_column(train_features[name], name in declared) for name in train_features.columns))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Column names in the order of train."""
        return tuple(column.name for column in self.columns)

    def align(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The frame in the order and with the types of the schema: float64, bool or nullable boolean, and text.

        Columns may come in any order. Integers do for numbers, 0 and 1 for booleans, whole numbers for declared codes
        if those of train were plain whole numbers (`Column.takes_integers`); missing values (None, NaN, NA) do
        everywhere. Text never does for numbers, nor a boolean.

        Args:
            frame: (n, features) raw rows; its index is kept.

        Raises:
            SchemaError: columns are missing, extra or mistyped; all of them are listed.
        """
        values = self.values(frame)
        aligned = {c.name: as_boolean(values[c.name]) if c.kind == "boolean" else values[c.name] for c in self.columns}
        return pd.DataFrame(aligned, index=frame.index)

    def values(self, frame: pd.DataFrame) -> dict[str, np.ndarray]:
        """What `align` gives, as plain arrays, for speed: a row of 30 numbers takes about half a millisecond.

        Args:
            frame: (n, features) raw rows.

        Returns:
            Per column (n,): float64 with NaN for numbers and booleans; objects, str or missing, for categories.

        Raises:
            SchemaError: as `align`.
        """
        lines = _name_differences(self.columns, list(frame.columns))
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

    def to_dict(self) -> dict[str, Any]:
        """JSON values that `from_dict` reads."""
        return {"columns": [asdict(column) for column in self.columns]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Schema:
        """The schema that `to_dict` wrote."""
        columns = values["columns"]
        return cls(tuple(Column(**{**column, "categories": tuple(column["categories"])}) for column in columns))


def as_boolean(values: np.ndarray) -> pd.api.extensions.ExtensionArray | np.ndarray:
    """0, 1 and NaN (n,) as bool, or as nullable boolean where some are missing."""
    missing = np.isnan(values)
    truth = values == 1
    return pd.arrays.BooleanArray(truth, missing) if missing.any() else truth


# Each reader takes a column and whether it holds declared codes; it gives its values and which rows (n,) are mistyped.


def read_numbers(series: pd.Series, codes: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Numbers as float64; booleans and text are wrong."""
    return _read_floats(series, "iuf", _is_number)


def read_booleans(series: pd.Series, codes: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Booleans, and numbers that are 0 or 1, as float64."""
    values, wrong = _read_floats(series, "biuf", lambda value: isinstance(value, (*NUMBERS, np.bool_)))
    return values, wrong | ~(np.isnan(values) | (values == 0) | (values == 1))


def read_categories(series: pd.Series, codes: bool) -> tuple[np.ndarray, np.ndarray]:
    """Text as objects. Of declared codes, whole numbers count as their digits."""
    if isinstance(series.dtype, pd.StringDtype):
        return series.to_numpy(object, na_value=np.nan), np.zeros(len(series), bool)
    values = series.to_numpy(object)
    present = ~is_missing(values)
    values = np.where(present, values, np.nan)  # one kind of missing, in a copy
    if codes:
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


READERS: dict[Kind, Callable[[pd.Series, bool], tuple[np.ndarray, np.ndarray]]] = {
    "numeric": read_numbers,
    "boolean": read_booleans,
    "categorical": read_categories,
}


def _code(value: Any, exact: int | None = None) -> Any:
    """A whole number as its digits; all else as it is, such as a float that has not room for all digits.

    Args:
        value: a value.
        exact: the least whole number that a float of the column's type may have been rounded to.
    """
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


def _is_whole_float(value: Any) -> bool:
    return isinstance(value, str) and WHOLE_FLOAT.fullmatch(value) is not None


def _is_number(value: Any) -> bool:
    return isinstance(value, NUMBERS) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_missing(values: np.ndarray) -> np.ndarray:
    """Which values (n,) are missing."""
    return np.asarray(pd.isna(values), bool)


def _offenders(series: pd.Series, wrong: np.ndarray) -> str:
    """``text in rows 0, 4 ('a', 'b')``, with positions from 0."""
    rows = np.flatnonzero(wrong)
    first, more = rows[:SHOWN], ", ..." if len(rows) > SHOWN else ""
    values = [v.item() if isinstance(v, np.generic) else v for v in (series.iloc[row] for row in first)]
    kind = "text" if isinstance(values[0], str) else type(values[0]).__name__
    return f"{kind} in rows {', '.join(map(str, first))}{more} ({', '.join(map(repr, values))}{more})"


def _name_differences(columns: tuple[Column, ...], given: list[Any]) -> list[str]:
    """One line per column that is missing (-), unknown (+) or given several times (~)."""
    known = {column.name: column for column in columns}
    if given == list(known):
        return []
    times = Counter(given)
    absent = [name for name in known if name not in times]
    lines = [f"- {name}: missing; expected {WORDS[known[name].kind]}" for name in absent]
    for name, count in times.items():
        if name not in known:
            close = nearest(str(name), absent)
            lines.append(f"+ {name}: unknown" + (f"; {close}" if close else ""))
        elif count > 1:
            lines.append(f"~ {name}: given {count} times")
    return lines


def _learn_column(series: pd.Series, declared: bool) -> Column:
    kind: Kind = "categorical" if declared else _kind(series)
    values, wrong = READERS[kind](series, declared)
    if wrong.any():
        raise SchemaError(
            f"column {series.name!r} is declared categorical but holds {_offenders(series, wrong)}; "
            "expected text or whole numbers",
            hint=f"take {str(series.name)!r} out of categorical under [data]",
        )
    missing = is_missing(values)
    if declared and series.dtype == object and any(_is_number(v) for v in series) and any(map(_is_text, series)):
        raise SchemaError(
            f"column {series.name!r} is declared categorical and holds both numbers and text",
            hint=f"read it as text: dtype={{{str(series.name)!r}: str}}",
        )
    categories = _by_frequency(values[~missing]) if kind == "categorical" else ()
    finite = values[np.isfinite(values)] if kind == "numeric" else np.empty(0)
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (None, None)
    dtype = CODE if declared else str(series.dtype)
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


def _by_frequency(values: np.ndarray) -> tuple[str, ...]:
    """Distinct texts, the most frequent first, ties by name."""
    counts = Counter(values.tolist())
    return tuple(sorted(counts, key=lambda category: (-counts[category], category)))
