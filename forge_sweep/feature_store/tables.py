"""CSV and Parquet files as Arrow tables of bounded size, every row with its number in the file."""

from __future__ import annotations

import csv
import io
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from forge_sweep.errors import DataError, Key
from forge_sweep.feature_store.codec import BLOCK_ROWS
from forge_sweep.sources.files import as_identity, decoded, with_column
from forge_sweep.sources.reading import (
    AS_UTF8,
    Piece,
    content_names,
    csv_schema,
    kind_of,
    open_text,
    refuse_unreadable,
    text_pieces,
    translated,
)


def open_table(path: Path, separator: str, identities: Mapping[str, str] | None = None) -> CsvTable | ParquetTable:
    """The file, of the kind that its name says.

    Args:
        path: the file.
        separator: of the fields of a CSV file.
        identities: columns that name, group or order rows, with the TOML key of each.

    Raises:
        DataError: it is of no known kind, is not there, or cannot be read.
    """
    refuse_unreadable(path, Key("data.path"), separator)
    with translated(_called(path)):
        file: CsvTable | ParquetTable = (
            ParquetTable(path, identities or {}) if kind_of(path) == ".parquet" else CsvTable(path, separator)
        )
    if not file.names:
        raise DataError(f"{_called(path)} holds no columns; expected a header and rows", hint="name another file")
    if strange := next((name for name in file.names if "\0" in name), None):  # UTF-16 without its mark, mostly
        raise DataError(f"{_called(path)} has a zero byte in the column name {strange!r}", hint=AS_UTF8)
    return file


def _called(path: Path) -> str:
    return f"{Key('data.path')}: {path}"


class CsvTable:
    """A CSV file, compressed or not: UTF-8, with a header line.

    Attributes:
        path: the file.
        names: its columns.
        unit: what a message counts: ``line``, or ``row`` of a Parquet file.
    """

    unit = "line"

    def __init__(self, path: Path, separator: str) -> None:
        self.path = path
        self._separator = separator
        self._lines = Lines(path, separator)
        schema = csv_schema(path, separator, _called(path))
        self.names = list(schema.names)
        self._inferred = {field.name: field.type for field in schema}

    def line(self, row: int) -> int:
        """The line that the record begins in, blank lines and quoted line breaks counted."""
        return self._lines.of(row)

    def types(self, columns: Sequence[str]) -> dict[str, pa.DataType]:
        """The type of each column; of a CSV file as its first block shows it, ``null`` where that shows no value."""
        return {name: self._inferred[name] for name in columns}

    def pieces(self, columns: Sequence[str]) -> Iterator[Piece]:
        """The rows in order. A CSV file gives text, in which missing values are null."""
        types = dict.fromkeys(self.names, pa.large_string())
        for piece in text_pieces(self.path, self._separator, types, _called(self.path), skip=True):
            table = piece.table.select(list(columns))
            for first in range(0, max(len(piece.rows), 1), BLOCK_ROWS):
                malformed = piece.malformed if first == 0 else ()
                yield Piece(table.slice(first, BLOCK_ROWS), piece.rows[first : first + BLOCK_ROWS], malformed)

    def rows(self) -> int | None:
        """How many rows there are, where the file says so."""
        return None


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
            return row + 2
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


class ParquetTable:
    """A Parquet file, see `CsvTable`."""

    unit = "row"

    def __init__(self, path: Path, identities: Mapping[str, str]) -> None:
        from pyarrow import parquet

        self.path = path
        self._identities = identities
        with parquet.ParquetFile(path) as file:
            self._schema = file.schema_arrow
            self._rows = file.metadata.num_rows
        self.names = content_names(self._schema)

    def line(self, row: int) -> int:
        """The row, from 1."""
        return row + 1

    def types(self, columns: Sequence[str]) -> dict[str, pa.DataType]:
        """See `CsvTable`."""
        empty = self._decoded(self._schema.empty_table().select(list(columns)))
        return {field.name: field.type for field in empty.schema}

    def pieces(self, columns: Sequence[str]) -> Iterator[Piece]:
        """See `CsvTable`."""
        from pyarrow import parquet

        following = 0
        # Buffering ahead would hold the whole file in memory.
        with translated(_called(self.path)), parquet.ParquetFile(self.path, pre_buffer=False) as file:
            for batch in file.iter_batches(BLOCK_ROWS, columns=list(columns)):
                table = pa.Table.from_batches([batch]).select(list(columns))
                positions = np.arange(following, following + batch.num_rows, dtype=np.int64)
                yield Piece(self._decoded(table), positions)
                following += batch.num_rows

    def rows(self) -> int | None:
        """See `CsvTable`."""
        return int(self._rows)

    def _decoded(self, table: pa.Table) -> pa.Table:
        for name in (name for name in self._identities if name in table.column_names):
            column = table.column(name)
            if not pa.types.is_decimal(column.type):  # whole numbers or not, which only all of the values tell
                table = with_column(table, name, as_identity(column, self._identities[name], name))
        return decoded(table, self.path, Key("data.path"))
