"""The short way from a row to the matrix of a model: no DataFrame on the way, the same numbers at the end.

A row becomes one float64 per column of the schema (`RowTransform.read`): numbers as they are, booleans as 0 and 1,
categories as their position in `Column.categories`, `UNKNOWN` for others, NaN for what is missing. Ranges are checked
and drift is measured on these *raw numbers*; `RowTransform.features` makes the matrix of them. The tests hold it to
`Preprocessor.transform` bit by bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from forge_sweep.errors import SchemaError
from forge_sweep.experiment.rules import nearest
from forge_sweep.preprocessing.preprocessor import Preprocessor, unchecked
from forge_sweep.preprocessing.schema import WORDS, Column, is_missing

UNKNOWN = -1.0
"""The raw number of a category that train does not have."""

MISSING = float("nan")

LISTED = 20
"""How many misfits a refusal lists."""

What = Literal["missing-column", "unknown-column", "repeated-column", "mistyped", "not-finite", "no-score"]


@dataclass(frozen=True)
class Misfit:
    """One thing that keeps rows from being predicted.

    Attributes:
        row: position of the row, from 0; None where it is all of them.
        column: column name; empty where it is none in particular.
        code: what is wrong, for machines.
        seen: what came in.
        expected: what was expected.
    """

    row: int | None
    column: str
    code: What
    seen: str
    expected: str

    def __str__(self) -> str:
        row = "" if self.row is None else f"row {self.row}: "
        return f"{row}{self.column}: {self.seen}; expected {self.expected}"


class RowsRefused(SchemaError):
    """Rows that do not fit the schema.

    Args:
        misfits: what is wrong, at least one.
        count: how many there are in all; at most `LISTED` are kept.
    """

    def __init__(self, misfits: Sequence[Misfit], count: int | None = None) -> None:
        self.misfits = tuple(misfits[:LISTED])
        self.count = max(count or 0, len(misfits))
        more = [f"and {self.count - len(self.misfits)} more"] if self.count > len(self.misfits) else []
        lines = ["the rows do not fit the schema of the training rows", *map(str, self.misfits), *more]
        hint = "give each of its columns by name and with its type; rows are counted from 0"
        super().__init__("\n  ".join(lines), hint=hint)


class RowTransform:
    """A preprocessor compiled for single rows and small batches.

    Args:
        preprocessor: what was learned on train.
        ignore_extra: drop columns that the schema does not have, instead of refusing them.
    """

    def __init__(self, preprocessor: Preprocessor, *, ignore_extra: bool = False) -> None:
        self.schema = preprocessor.schema
        self.ignore_extra = ignore_extra
        self.n_outputs = len(preprocessor.output_names)
        self._names = frozenset(self.schema.names)
        self._readers = [(column.name, reader(column)) for column in self.schema.columns]
        self._features = Features(preprocessor)
        self._positions = {
            c.name: pd.Index(c.categories, dtype=object) for c in self.schema.columns if c.kind == "categorical"
        }

    def read(self, row: Mapping[str, Any], position: int = 0) -> list[float]:
        """The raw numbers of one row, in the order of the schema.

        Args:
            row: values by column: JSON's types, or whatever `Schema.align` takes.
            position: which row it is, for the refusal.

        Raises:
            RowsRefused: a column is missing, unknown or mistyped.
        """
        raw = self._try(row)
        if raw is None:
            raise RowsRefused(*self._misfits(row, position))
        return raw

    def read_all(self, rows: Iterable[Mapping[str, Any]]) -> np.ndarray:
        """The raw numbers of several rows, (n, columns).

        Raises:
            RowsRefused: names the first misfits of all rows.
        """
        found, misfits, count = [], list[Misfit](), 0
        for position, row in enumerate(rows):
            if (raw := self._try(row)) is not None:
                found.append(raw)
            elif len(misfits) < LISTED:
                more, n = self._misfits(row, position)
                misfits, count = misfits + more, count + n
            else:
                count += 1
        if misfits:
            raise RowsRefused(misfits, count)
        return np.array(found, np.float64).reshape(len(found), len(self._readers))

    def read_frame(self, frame: pd.DataFrame, first: int = 0) -> np.ndarray:
        """The raw numbers of a frame, (n, columns).

        Args:
            frame: raw rows, in any order of columns.
            first: position of its first row, for the refusal.

        Raises:
            RowsRefused: names the misfits of all rows.
        """
        misfits, count = self._name_misfits(list(frame.columns))
        raw = np.empty((len(frame), len(self._readers)))
        for i, column in enumerate(self.schema.columns):
            if (series := frame.get(column.name)) is None or series.ndim > 1:
                continue
            values, wrong = column.read(series)
            count += int(wrong.sum())
            rows = np.flatnonzero(wrong)[:LISTED].tolist()
            misfits += [mistyped(column, series.iloc[row], first + row) for row in rows]
            raw[:, i] = self._codes(column.name, values) if column.kind == "categorical" else values
        if misfits:
            raise RowsRefused(misfits, count)
        return raw

    def features(self, raw: np.ndarray) -> np.ndarray:
        """The matrix of the model, (n, outputs) float32; `not_finite` says which rows have none."""
        return self._features(raw)

    def not_finite(self, raw: np.ndarray, features: np.ndarray) -> list[Misfit]:
        """Numbers that are infinite, or beyond float32 once they are scaled, for which a model has no answer."""
        numbers = features[:, : len(self._features.numbers)]
        if np.isfinite(numbers).all():
            return []
        expected = "numbers that float32 can hold once they are scaled"
        rows, positions = np.nonzero(~np.isfinite(numbers))
        columns = self._features.numbers[positions]
        return [
            Misfit(row, self.schema.names[column], "not-finite", f"{raw[row, column]:.6g}", expected)
            for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
        ]

    def _codes(self, name: str, values: np.ndarray) -> np.ndarray:
        """Categories (n,), str or missing, as raw numbers."""
        codes = self._positions[name].get_indexer(pd.Index(values, dtype=object)).astype(np.float64)
        codes[is_missing(values)] = MISSING
        return codes

    def _try(self, row: Mapping[str, Any]) -> list[float] | None:
        """The raw numbers of a row; None where it does not fit."""
        if len(row) != len(self._readers) and not (self.ignore_extra and len(row) > len(self._readers)):
            return None
        try:
            return [read(row[name]) for name, read in self._readers]
        except (KeyError, ValueError, OverflowError):
            return None

    def _misfits(self, row: Mapping[str, Any], position: int) -> tuple[list[Misfit], int]:
        """What is wrong with one row, the first `LISTED` and how many in all."""
        names, count = self._name_misfits(list(row))
        misfits = [replace(misfit, row=position) for misfit in names]
        for column, (name, read) in zip(self.schema.columns, self._readers, strict=True):
            if name in row:
                try:
                    read(row[name])
                except (ValueError, OverflowError):
                    count += 1
                    misfits.append(mistyped(column, row[name], position))
        return misfits[:LISTED], count

    def _name_misfits(self, given: list[Any]) -> tuple[list[Misfit], int]:
        """Columns that are missing, unknown or given several times: the first `LISTED`, and how many in all."""
        times = Counter(given)
        absent = [column for column in self.schema.columns if column.name not in times]
        unknown = [] if self.ignore_extra else [name for name in times if name not in self._names]
        repeated = [name for name, count in times.items() if count > 1 and name in self._names]
        misfits = [Misfit(None, c.name, "missing-column", "the column is missing", WORDS[c.kind]) for c in absent]
        misfits += [unknown_column(name, [column.name for column in absent]) for name in unknown[:LISTED]]
        misfits += [
            Misfit(None, name, "repeated-column", f"given {times[name]} times", "each column once") for name in repeated
        ]
        return misfits[:LISTED], len(absent) + len(unknown) + len(repeated)


class Features:
    """From raw numbers to the matrix, by the arrays that the preprocessor learned.

    Attributes:
        numbers: positions in the schema of the numeric columns, then of the boolean ones.
    """

    def __init__(self, preprocessor: Preprocessor) -> None:
        columns = preprocessor.schema.columns
        numeric, boolean, categorical = (
            [i for i, column in enumerate(columns) if column.kind == kind]
            for kind in ("numeric", "boolean", "categorical")
        )
        self.numbers = np.array(numeric + boolean, np.intp)
        self._n_outputs = len(preprocessor.output_names)
        self._numeric = len(numeric)
        self._fills = preprocessor.fills
        self._scale = scaling(preprocessor)
        self._indicated = np.array([i for i in self.numbers.tolist() if columns[i].missing], np.intp)
        self._categorical = np.array(categorical, np.intp)
        first = len(self.numbers) + len(self._indicated)
        self._set_outputs([columns[i] for i in categorical], preprocessor.max_categories, first)

    def _set_outputs(self, columns: Sequence[Column], max_categories: int, first: int) -> None:
        """The output of each category of each column, in one table: unknown, the categories, missing; -1 for none."""
        parts, starts, start = list[np.ndarray](), list[int](), 0
        for column in columns:
            kept, known = min(max_categories, len(column.categories)), len(column.categories)
            other = first + kept if known > kept else -1
            width = kept + (known > kept) + column.missing
            own, rest = np.arange(first, first + kept), np.full(known - kept, other)
            parts.append(np.concatenate([[other], own, rest, [first + width - 1 if column.missing else -1]]))
            starts.append(start + 1)
            start += known + 2
            first += width
        self._outputs = np.concatenate([np.empty(0), *parts]).astype(np.intp)
        self._starts = np.array(starts, np.intp)
        self._missing = np.array([len(column.categories) for column in columns], np.float64)

    def __call__(self, raw: np.ndarray) -> np.ndarray:
        """(n, columns) float64 to (n, outputs) float32."""
        matrix = np.zeros((len(raw), self._n_outputs), np.float32)
        numbers = raw[:, self.numbers]
        numbers = np.where(np.isnan(numbers), self._fills, numbers)
        with np.errstate(over="ignore", invalid="ignore"):
            if self._scale is not None and len(raw):
                numbers[:, : self._numeric] = self._scale(numbers[:, : self._numeric])
            matrix[:, : len(self.numbers)] = numbers
        first = len(self.numbers)
        if len(self._indicated):
            matrix[:, first : first + len(self._indicated)] = np.isnan(raw[:, self._indicated])
        if len(self._categorical):
            codes = raw[:, self._categorical]
            codes = np.where(np.isnan(codes), self._missing, codes).astype(np.intp)
            outputs = self._outputs[codes + self._starts]
            rows, blocks = np.nonzero(outputs >= 0)
            matrix[rows, outputs[rows, blocks]] = 1.0
        return matrix


def scaling(preprocessor: Preprocessor) -> Callable[[np.ndarray], np.ndarray] | None:
    """What scikit-learn's scaler does to float64 numbers (n, numeric), in its own order of operations."""
    learned = preprocessor.learned
    if not learned:
        return None
    if preprocessor.scaler == "quantile":
        scaler: Any = preprocessor.sklearn_scaler()
        return lambda numbers: unchecked(scaler.transform, numbers)
    if preprocessor.scaler == "minmax":
        factor, shift = learned["scale_"], learned["min_"]
        return lambda numbers: numbers * factor + shift
    center = learned["mean_" if preprocessor.scaler == "standard" else "center_"]
    scale = learned["scale_"]
    return lambda numbers: (numbers - center) / scale


def reader(column: Column) -> Callable[[Any], float]:
    """What makes a raw number of a value of this column; ValueError where it is mistyped.

    JSON's types are told apart here; all others go the way of frames.
    """
    integers = column.takes_integers
    known = {category: float(code) for code, category in enumerate(column.categories)}

    def by_frame(value: Any) -> float:
        values, wrong = column.read(pd.Series([value], dtype=object))
        if wrong[0]:
            raise ValueError
        if column.kind != "categorical":
            return float(values[0])
        return MISSING if is_missing(values)[0] else known.get(values[0], UNKNOWN)

    def number(value: Any) -> float:
        kind = type(value)
        if kind is float or kind is int:
            return float(value)
        return MISSING if value is None else by_frame(value)

    def boolean(value: Any) -> float:
        if value is True:
            return 1.0
        if value is False:
            return 0.0
        return MISSING if value is None else by_frame(value)

    def category(value: Any) -> float:
        if type(value) is str:
            return (
                by_frame(value)
                if integers and value.endswith("0") and value not in known
                else known.get(value, UNKNOWN)
            )
        if integers and type(value) is int:
            return known.get(str(value), UNKNOWN)
        return MISSING if value is None else by_frame(value)

    return {"numeric": number, "boolean": boolean, "categorical": category}[column.kind]


def mistyped(column: Column, value: Any, row: int) -> Misfit:
    """A value of another type."""
    kind = "text" if isinstance(value, str) else type(value).__name__
    return Misfit(row, column.name, "mistyped", f"{kind} {shown(value)}", column.expected(value) + column.fix(value))


def unknown_column(name: Any, absent: Sequence[str]) -> Misfit:
    """A column that the schema does not have."""
    text = cut(str(name))
    close = nearest(text, absent[:1000])
    return Misfit(
        None, text, "unknown-column", "no such column", f"columns of the schema{f'; {close}' if close else ''}"
    )


def shown(value: Any) -> str:
    """A value as a message shows it: in one line, and no more of it than tells what it is."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, int) and value.bit_length() > 200:
        return f"of {value.bit_length()} bits"
    if isinstance(value, dict | list):
        return f"of {len(value)} values"
    return repr(cut(value)) if isinstance(value, str) else cut(repr(value))


def cut(text: str, most: int = 60) -> str:
    """The beginning of a long text."""
    return text if len(text) <= most else f"{text[:most]}..."
