"""Rows without a DataFrame: the same numbers as `Preprocessor.transform`, and refusals that name row and column.

A row becomes one float64 per column of the schema, its *raw numbers*: numbers as they are, booleans as 0 and 1,
categories as their position in `Column.categories`, `UNKNOWN` for others, NaN for what is missing. Ranges are checked
and drift is measured on them, and `Preprocessor.matrix` makes the matrix of a model of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from forge_sweep.errors import SchemaError
from forge_sweep.experiment.words import nearest
from forge_sweep.preprocessing.inputs import NO_TENSORS, Batch
from forge_sweep.preprocessing.preprocessor import Preprocessor
from forge_sweep.preprocessing.schema import UNKNOWN, WORDS, Column
from forge_sweep.preprocessing.tensors import images

MISSING = float("nan")

LISTED = 20
"""How many misfits a refusal lists."""

What = Literal["missing-column", "unknown-column", "repeated-column", "mistyped", "image", "not-finite", "no-score"]


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
    """Rows that do not fit the schema: ``count`` misfits in all, of which the first `LISTED` are kept."""

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
        others: such columns that are dropped in any case.
        feed: makes the features of raw numbers and arrays; the preprocessor's by default.
    """

    def __init__(
        self,
        preprocessor: Preprocessor,
        *,
        ignore_extra: bool = False,
        others: Collection[str] = frozenset(),
        feed: Callable[[np.ndarray, Mapping[str, np.ndarray]], np.ndarray | Batch] | None = None,
    ) -> None:
        self.schema = preprocessor.schema
        self.ignore_extra = ignore_extra
        self.others = others
        self._readers = [(column.name, reader(column)) for column in self.schema.tabular]
        self._arrays, self._images = [column.name for column in self.schema.tensors], preprocessor.images
        self._matrix, self._feed = preprocessor.matrix, feed or preprocessor.feed

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
        """The raw numbers of several rows, (n, columns); RowsRefused names the first misfits of all of them."""
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
        """The raw numbers of a frame, (n, columns), with its columns in any order.

        RowsRefused names the misfits of all rows, of which the first has the position ``first``.
        """
        misfits, count = self._name_misfits(list(frame.columns))
        raw = np.empty((len(frame), len(self._readers)))
        for i, column in enumerate(self.schema.tabular):
            if (series := frame.get(column.name)) is None or series.ndim > 1:
                continue
            values, wrong = column.read(series)
            count += int(wrong.sum())
            rows = np.flatnonzero(wrong)[:LISTED].tolist()
            misfits += [mistyped(column, series.iloc[row], first + row) for row in rows]
            raw[:, i] = column.raw(values)
        if misfits:
            raise RowsRefused(misfits, count)
        return raw

    def tensors(self, frame: pd.DataFrame, first: int = 0, folder: Path | None = None) -> dict[str, np.ndarray]:
        """The arrays (n, ...) of a frame by column; RowsRefused as `read_frame` has it.

        Images may come as arrays, base64 or bytes of a file; with a ``folder`` as paths that start there.
        """
        found, misfits, count = {}, list[Misfit](), 0
        for column in self.schema.tensors:
            if (series := frame.get(column.name)) is None or series.ndim > 1:
                continue  # said by `read_frame`
            read, why = series, dict[int, str]()
            if column.name in self._images:
                taken, why = images(series, column.shape, None if folder is None else [folder] * len(series))
                read = pd.Series(taken, dtype=object)
            found[column.name], wrong = column.read(read)
            count += int(wrong.sum())
            for row in np.flatnonzero(wrong)[:LISTED].tolist():
                cell = series.iloc[row]
                if row not in why:
                    misfits.append(mistyped(column, cell, first + row))
                    continue
                seen = f"{cut(cell)}: {why[row]}" if isinstance(cell, str) and folder is not None else why[row]
                expected = f"a PNG or JPEG of {column.shape[0]} x {column.shape[1]} pixels, or {column.expected(cell)}"
                misfits.append(Misfit(first + row, column.name, "image", seen, expected))
        if misfits:
            raise RowsRefused(misfits, count)
        return found

    def features(self, raw: np.ndarray, tensors: Mapping[str, np.ndarray] = NO_TENSORS) -> np.ndarray | Batch:
        """What the model takes, see `Preprocessor.batch`; `not_finite` says which rows have none."""
        return self._feed(raw, tensors)

    def not_finite(self, raw: np.ndarray, features: np.ndarray | Batch) -> list[Misfit]:
        """Numbers that are infinite, or beyond float32 once they are scaled, for which a model has no answer."""
        if all(np.isfinite(each).all() for each in (features.values() if isinstance(features, dict) else [features])):
            return []
        numbers = self._matrix(raw)[:, : len(self._matrix.numbers)]
        expected = "numbers that float32 can hold once they are scaled"
        rows, positions = np.nonzero(~np.isfinite(numbers))
        columns = self._matrix.numbers[positions]
        return [
            Misfit(row, self.schema.names[column], "not-finite", f"{raw[row, column]:.6g}", expected)
            for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
        ]

    def _try(self, row: Mapping[str, Any]) -> list[float] | None:
        """The raw numbers of a row; None where it does not fit."""
        width = len(self._readers) + len(self._arrays)
        if len(row) != width and not self.ignore_extra and len(row) - sum(name in row for name in self.others) != width:
            return None
        if not all(name in row for name in self._arrays):
            return None
        try:
            return [read(row[name]) for name, read in self._readers]
        except (KeyError, ValueError, OverflowError):
            return None

    def _misfits(self, row: Mapping[str, Any], position: int) -> tuple[list[Misfit], int]:
        """What is wrong with one row, the first `LISTED` and how many in all."""
        names, count = self._name_misfits(list(row))
        misfits = [replace(misfit, row=position) for misfit in names]
        for column, (name, read) in zip(self.schema.tabular, self._readers, strict=True):
            if name in row:
                try:
                    read(row[name])
                except (ValueError, OverflowError):
                    count += 1
                    misfits.append(mistyped(column, row[name], position))
        return misfits[:LISTED], count

    def _name_misfits(self, given: list[Any]) -> tuple[list[Misfit], int]:
        """Columns that are missing, unknown or given several times: the first `LISTED`, and how many in all."""
        absent, unknown, times = self.schema.name_differences(given)
        unknown = [] if self.ignore_extra else [name for name in unknown if name not in self.others]
        names = [column.name for column in absent]
        misfits = [
            *(Misfit(None, c.name, "missing-column", "the column is missing", WORDS[c.kind]) for c in absent),
            *(unknown_column(name, names) for name in unknown[:LISTED]),
            *(Misfit(None, n, "repeated-column", f"given {k} times", "each column once") for n, k in times.items()),
        ]
        return misfits[:LISTED], len(absent) + len(unknown) + len(times)


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
        return float(column.raw(values)[0])

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
            rounded = integers and value.endswith("0") and value not in known  # perhaps 3.0, the code 3
            return by_frame(value) if rounded else known.get(value, UNKNOWN)
        if integers and type(value) is int:
            return known.get(str(value), UNKNOWN)
        return MISSING if value is None else by_frame(value)

    return {"numeric": number, "boolean": boolean, "categorical": category}[column.kind]


def mistyped(column: Column, value: Any, row: int) -> Misfit:
    """A value of another type."""
    kind = "text" if isinstance(value, str) else "array" if isinstance(value, np.ndarray) else type(value).__name__
    return Misfit(row, column.name, "mistyped", f"{kind} {shown(value)}", column.expected(value) + column.fix(value))


def unknown_column(name: Any, absent: Sequence[str]) -> Misfit:
    """A column that the schema does not have."""
    text = cut(str(name))
    close = nearest(text, absent[:1000])
    expected = f"columns of the schema{f'; {close}' if close else ''}"
    return Misfit(None, text, "unknown-column", "no such column", expected)


def shown(value: Any) -> str:
    """A value as a message shows it: in one line, and no more of it than tells what it is."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, np.ndarray):
        return f"of shape {value.shape}, {value.dtype}"
    if isinstance(value, int) and value.bit_length() > 200:
        return f"of {value.bit_length()} bits"
    if isinstance(value, list) and value and isinstance(value[0], list):
        return f"of shape {np.shape(np.asarray(value, object))}"
    if isinstance(value, bytes):
        return f"of {len(value)} bytes"
    if isinstance(value, dict | list):
        return f"of {len(value)} values"
    return repr(cut(value)) if isinstance(value, str) else cut(repr(value))


def cut(text: str, most: int = 60) -> str:
    """The beginning of a long text."""
    return text if len(text) <= most else f"{text[:most]}..."
