"""CSV and Parquet files as Arrow tables of bounded size, every row with its number in the file."""

from __future__ import annotations

import csv
import io
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forge_sweep.errors import DataError
from forge_sweep.sources.feature_store.codec import BLOCK_ROWS
from forge_sweep.sources.files import decoded
from forge_sweep.sources.inspection import (
    AS_UTF8,
    MISSING_WORDS,
    as_identity,
    explained,
    kind_of,
    open_text,
    refuse_swallowed,
    refuse_unreadable,
)

if TYPE_CHECKING:
    import pyarrow as pa

CSV_BLOCK = 8 << 20
"""Bytes of a CSV file that are read at a time; the kinds of its columns are those of the first block."""


@dataclass(frozen=True)
class Piece:
    """Some rows of a file.

    Attributes:
        table: the columns asked for.
        rows: (n,) int64 position of each row in the file, from 0, malformed rows included.
        malformed: rows of a CSV file that were found on the way, and are not in the table.
    """

    table: pa.Table
    rows: np.ndarray
    malformed: tuple[Malformed, ...] = ()


@dataclass(frozen=True)
class Malformed:
    """A row with too many or too few fields.

    Attributes:
        row: its position in the file, from 0.
        seen: number of fields.
        expected: number of columns.
        text: the row.
    """

    row: int
    seen: int
    expected: int
    text: str


class TableFile(ABC):
    """One file.

    Attributes:
        path: the file.
        names: its columns.
        first_line: what a message calls the first row: 2 below a header line, 1 in a table without lines.
        unit: what a message counts: ``line`` or ``row``.
    """

    path: Path
    names: list[str]
    first_line: int
    unit: str

    def line(self, row: int) -> int:
        """What a message calls the row at this position of the file."""
        return row + self.first_line

    @abstractmethod
    def types(self, columns: Sequence[str]) -> dict[str, pa.DataType]:
        """The type of each column; of a CSV file as its first block shows it, ``null`` where that shows no value."""

    @abstractmethod
    def pieces(self, columns: Sequence[str]) -> Iterator[Piece]:
        """The rows in order. A CSV file gives text, in which missing values are null."""

    @abstractmethod
    def rows(self) -> int | None:
        """How many rows there are, where the file says so."""


def open_table(path: Path, separator: str, identities: Mapping[str, str] | None = None) -> TableFile:
    """The file, of the kind that its name says.

    Args:
        path: the file.
        separator: of the fields of a CSV file.
        identities: columns that name, group or order rows, with the TOML key of each.

    Raises:
        DataError: it is of no known kind, is not there, or cannot be read.
    """
    refuse_unreadable(path, "data.path")
    with reading(path):
        file: TableFile = (
            ParquetTable(path, identities or {}) if kind_of(path) == ".parquet" else CsvTable(path, separator)
        )
    if not file.names:
        raise DataError(f"data.path: {path} holds no columns; expected a header and rows", hint="name another file")
    if strange := next((name for name in file.names if "\0" in name), None):  # UTF-16 without its mark, mostly
        raise DataError(f"data.path: {path} has a zero byte in the column name {strange!r}", hint=AS_UTF8)
    return file


class reading:  # a context manager, and reads like one
    """Turns what Arrow raises about a file into a DataError that names it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, kind: Any, error: BaseException | None, at: Any) -> None:
        """Translate."""
        import pyarrow as pa

        if isinstance(error, pa.ArrowException | OSError | UnicodeDecodeError):
            cause, hint = explained(error)
            raise DataError(f"data.path: {self.path} cannot be read: {cause}", hint=hint) from error


class CsvTable(TableFile):
    """A CSV file, compressed or not: UTF-8, with a header line."""

    first_line = 2
    unit = "line"

    def __init__(self, path: Path, separator: str) -> None:
        self.path = path
        self._separator = separator
        self._inferred: dict[str, pa.DataType] = {}
        self._lines = Lines(path, separator)
        with self._open({}) as reader:
            self.names = list(reader.schema.names)
            if len(set(self.names)) == len(self.names):
                self._inferred = {field.name: field.type for field in reader.schema}

    def line(self, row: int) -> int:
        """The line that the record begins in, blank lines and quoted line breaks counted."""
        return self._lines.of(row)

    def types(self, columns: Sequence[str]) -> dict[str, pa.DataType]:
        """See `TableFile`."""
        return {name: self._inferred[name] for name in columns}

    def pieces(self, columns: Sequence[str]) -> Iterator[Piece]:
        """See `TableFile`. A quoted line break and an empty line do not count as lines."""
        import pyarrow as pa

        skipped: list[Malformed] = []

        def skip(row: Any) -> str:
            position = row.number - self.first_line
            skipped.append(Malformed(position, row.actual_columns, row.expected_columns, row.text))
            return "skip"

        with reading(self.path), self._open(dict.fromkeys(self.names, pa.large_string()), skip) as reader:
            following = 0
            for batch in reader:
                rows = _positions(following, batch.num_rows, skipped)
                following = int(rows[-1]) + 1 if len(rows) else following
                # The reader is some blocks ahead of what it gives.
                passed = [row for row in skipped if row.row < following]
                del skipped[: len(passed)]
                everything = pa.Table.from_batches([batch])
                refuse_swallowed(
                    everything, self._separator, f"data.path: {self.path}", int(rows[0]) if len(rows) else 0
                )
                table = everything.select(list(columns))
                for first in range(0, len(rows), BLOCK_ROWS):
                    found = tuple(passed) if first == 0 else ()
                    yield Piece(table.slice(first, BLOCK_ROWS), rows[first : first + BLOCK_ROWS], found)
            nothing = pa.table(dict.fromkeys(columns, pa.nulls(0, pa.large_string())))
            yield Piece(nothing, np.empty(0, np.int64), tuple(skipped))

    def rows(self) -> int | None:
        """See `TableFile`."""
        return None

    def _open(self, types: dict[str, Any], skip: Callable[[Any], str] | None = None) -> Any:
        from pyarrow import csv as arrow

        return arrow.open_csv(
            open_text(self.path),
            read_options=arrow.ReadOptions(block_size=CSV_BLOCK, use_threads=skip is None),
            parse_options=arrow.ParseOptions(
                delimiter=self._separator, newlines_in_values=True, invalid_row_handler=skip or (lambda row: "skip")
            ),
            convert_options=arrow.ConvertOptions(
                null_values=MISSING_WORDS, strings_can_be_null=True, column_types=types
            ),
        )


class Lines:
    """Where the records of a CSV file begin. Read only once there is something to say about one: Arrow does not tell.

    Args:
        path: the file, compressed or not.
        separator: of its fields.
    """

    def __init__(self, path: Path, separator: str) -> None:
        self._path = path
        self._separator = separator
        self._begins = array("q")
        self._reader: Iterator[int] | None = None

    def of(self, row: int) -> int:
        """The line of the record at this position, from 1; the header is the record before the first."""
        self._reader = self._reader or self._read()
        limit = csv.field_size_limit(2**31 - 1)  # of all readers; texts may be long
        try:
            while len(self._begins) <= row + 1:
                self._begins.append(next(self._reader))
        except (StopIteration, csv.Error, ValueError, OSError):  # it does not read the file as Arrow does
            return row + CsvTable.first_line
        finally:
            csv.field_size_limit(limit)
        return self._begins[row + 1]

    def _read(self) -> Iterator[int]:

        with open_text(self._path) as stream:
            reader = csv.reader(io.TextIOWrapper(stream, "utf-8-sig", newline=""), delimiter=self._separator)
            while True:
                begins = reader.line_num + 1
                if next(reader, None):
                    yield begins
                elif reader.line_num < begins:
                    return


class ParquetTable(TableFile):
    """A Parquet file."""

    first_line = 1
    unit = "row"

    def __init__(self, path: Path, identities: Mapping[str, str]) -> None:
        from pyarrow import parquet

        self.path = path
        self._identities = identities
        with parquet.ParquetFile(path) as file:
            self._schema = file.schema_arrow
            self._rows = file.metadata.num_rows
        # An unnamed pandas index is the position of the row in some frame, not content.
        self.names = [name for name in self._schema.names if not name.startswith("__index_level_")]

    def types(self, columns: Sequence[str]) -> dict[str, pa.DataType]:
        """See `TableFile`."""
        empty = self._decoded(self._schema.empty_table().select(list(columns)))
        return {field.name: field.type for field in empty.schema}

    def pieces(self, columns: Sequence[str]) -> Iterator[Piece]:
        """See `TableFile`."""
        import pyarrow as pa
        from pyarrow import parquet

        following = 0
        # Buffering ahead would hold the whole file in memory.
        with reading(self.path), parquet.ParquetFile(self.path, pre_buffer=False) as file:
            for batch in file.iter_batches(BLOCK_ROWS, columns=list(columns)):
                table = pa.Table.from_batches([batch]).select(list(columns))
                yield Piece(
                    self._decoded(table),
                    np.arange(following, following + batch.num_rows, dtype=np.int64),
                )
                following += batch.num_rows

    def rows(self) -> int | None:
        """See `TableFile`."""
        return int(self._rows)

    def _decoded(self, table: pa.Table) -> pa.Table:
        """Without dictionaries, all text as one type: views, which some writers keep texts in, included."""
        import pyarrow as pa

        for name in (name for name in self._identities if name in table.column_names):
            column = table.column(name)
            if not pa.types.is_decimal(column.type):  # whole numbers or not, which only all of the values tell
                own = as_identity(column, self._identities[name], name)
                table = table.set_column(table.column_names.index(name), name, own)
        plain = decoded(table, self.path, "data.path")
        columns = [
            column.cast(pa.large_string()) if pa.types.is_string_view(column.type) else column
            for column in plain.columns
        ]
        return pa.table(columns, names=plain.column_names)


def _positions(first: int, count: int, skipped: Sequence[Malformed]) -> np.ndarray:
    """The positions of ``count`` rows from ``first`` on, those that were skipped left out."""
    near = [row.row for row in skipped if row.row >= first]
    candidates = np.arange(first, first + count + len(near), dtype=np.int64)
    return candidates[~np.isin(candidates, near)][:count]
