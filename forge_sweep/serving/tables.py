"""CSV and Arrow as frames for the schema. What comes from outside is checked before Arrow's C++ reads it."""

from __future__ import annotations

import contextlib
import math
import re
import struct
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from forge_sweep.errors import DataError
from forge_sweep.preprocessing import CODE, Column, Schema
from forge_sweep.sources.files import frame_of
from forge_sweep.sources.reading import MISSING_WORDS, csv_options

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

HEX = re.compile(r"0[xX][0-9a-fA-F]{1,16}")
"""A whole number as Arrow reads it in a CSV file of training rows, besides decimal ones."""

NUMBER = r"(?i)^[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf|infinity|nan)$"
MAGIC = b"ARROW1\0\0"
"""How a file of Arrow begins; what follows is a stream."""

TRUTH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def without_missing_words(table: pa.Table) -> pa.Table:
    """Text columns in which the words for a missing value are missing values."""
    import pyarrow as pa
    from pyarrow import compute

    words, nothing = pa.array(MISSING_WORDS, pa.string()), pa.scalar(None, pa.string())
    columns = [compute.if_else(compute.is_in(column, value_set=words), nothing, column) for column in table.columns]
    return pa.table(columns, names=table.column_names)


def of_texts(row: Mapping[str, str]) -> pa.Table:
    """One row of texts, as those of a CSV file, with the words for a missing value as missing values."""
    import pyarrow as pa

    return without_missing_words(pa.table({name: pa.array([text], pa.string()) for name, text in row.items()}))


def read_csv(body: bytes, names: list[str]) -> pa.Table:
    """A CSV file with a header, in UTF-8.

    Raises:
        DataError: it is none.
    """
    import pyarrow as pa
    from pyarrow import csv

    options = csv_options(",", dict.fromkeys(names, pa.string()))  # the type of a column is the schema's
    block = min(max(len(body), 1), 2**31 - 1)
    with readable("CSV"):
        return csv.read_csv(pa.BufferReader(body), csv.ReadOptions(use_threads=False, block_size=block), **options)


def framed(table: pa.Table, schema: Schema, *, text: bool) -> pd.DataFrame:
    """A frame for the schema, as the file sources make it.

    Args:
        table: raw rows.
        schema: what they are for.
        text: whether all columns are text, of a CSV file, and take the types of the schema; what is no such value is
            left as it is, for the schema to refuse.
    """
    if len(set(table.column_names)) < table.num_columns:
        twice: pd.DataFrame = table.to_pandas(ignore_metadata=True, date_as_object=False)
        return twice  # for the schema to refuse
    frame = frame_of(table, [column.name for column in schema.columns if column.dtype == CODE])
    if not text:
        return frame
    for column in schema.columns:
        if column.kind in ("numeric", "boolean") and column.name in frame:
            frame[column.name] = _typed_column(table[column.name], column)
    return frame


def _typed_column(values: pa.ChunkedArray, column: Column) -> pd.Series | np.ndarray:
    """A column of numbers or booleans that may be given as text."""
    import pyarrow as pa
    from pyarrow import compute

    if not pa.types.is_string(values.type):
        plain: pd.Series = values.to_pandas(date_as_object=False)
        return plain
    values = compute.utf8_trim_whitespace(values)
    if column.kind == "boolean":
        return np.array([TRUTH.get(word.lower(), word) if word else None for word in values.to_pylist()], object)
    try:
        return np.asarray(values.cast(pa.float64()).to_numpy())
    except pa.ArrowInvalid:
        right = compute.match_substring_regex(values, NUMBER).to_pylist()
        cells = zip(values.to_pylist(), right, strict=True)
        return np.array([float(text) if number else from_hex(text) for text, number in cells], object)


def from_hex(text: str | None) -> Any:
    """A hexadecimal number of 64 bits as training read it; whatever else it is, as it is."""
    if text is None or not HEX.fullmatch(text):
        return text
    number = int(text, 16)
    return float(number - 2**64 if number >= 2**63 else number)


def read_arrow(body: bytes, max_rows: int, schema: Schema, others: Collection[str] = ()) -> pa.Table:
    """An Arrow stream or file of plain columns, and for the arrays of the schema lists, tensors or binary images.

    The columns ``others`` are left out, whatever they hold.

    Raises:
        DataError: it is damaged, compressed, too long, or has columns other than numbers, booleans or text, or lists
            with more values than the arrays of the schema have.
    """
    import pyarrow as pa

    stream = body[len(MAGIC) :] if body.startswith(MAGIC) else body
    with readable("Arrow data"):
        _check_batches(stream, max_rows)
        table = pa.ipc.open_stream(stream).read_all().replace_schema_metadata(None)
        table.validate(full=True)
        table = table.select([i for i, name in enumerate(table.column_names) if name not in others])
        arrays = {column.name: column for column in schema.tensors}
        for name, column in zip(table.column_names, table.columns, strict=True):
            if (about := arrays.get(name)) is None:
                _refuse_type(name, column.type)
            elif not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
                _refuse_type(name, _innermost(column, about, table.num_rows))
        return table


@contextlib.contextmanager
def readable(what: str) -> Iterator[None]:
    """Whatever Arrow makes of damaged bytes becomes a DataError."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, struct.error, ValueError, OSError, LookupError, MemoryError) as error:
        hint = "send what its media type says, with a header line in a CSV"
        raise DataError(f"the {what} cannot be read: {_first_line(error)}", hint=hint) from error


def _innermost(values: pa.ChunkedArray, column: Column, rows: int) -> pa.DataType:
    """The type of the values in lists of lists, which have no more of them than arrays of this column."""
    import pyarrow as pa
    from pyarrow import compute, types

    if isinstance(values.type, pa.FixedShapeTensorType):
        values = values.cast(values.type.storage_type)
    while types.is_list(values.type) or types.is_large_list(values.type) or types.is_fixed_size_list(values.type):
        values = compute.list_flatten(values)
        if len(values) > rows * math.prod(column.shape):
            raise DataError(
                f"column {column.name!r} holds more values than {rows} arrays of shape {column.shape}",
                hint="send lists of this shape",
            )
    return values.type


def _refuse_type(name: str, kind: pa.DataType) -> None:
    from pyarrow import types

    plain = kind.value_type if types.is_dictionary(kind) else kind
    number = types.is_integer(plain) or types.is_floating(plain) or types.is_decimal(plain)
    text = types.is_string(plain) or types.is_large_string(plain)
    if not (number or text or types.is_boolean(plain) or types.is_null(plain)):
        raise DataError(f"column {name!r} is of type {kind}", hint="send numbers, booleans or text")


def _check_batches(stream: bytes, max_rows: int) -> None:
    """Count the rows and refuse compression before anything is allocated: a few bytes may claim any length.

    The messages are read as https://arrow.apache.org/docs/format/Columnar.html describes them.
    """
    import pyarrow as pa

    rows = 0
    for message in pa.ipc.MessageReader.open_stream(pa.py_buffer(stream)):
        if message.type == "schema":
            continue
        length, compressed = _batch_header(message.metadata.to_pybytes(), dictionary=message.type == "dictionary")
        rows += length
        if compressed:
            raise DataError("the Arrow data is compressed", hint="write it without compression")
        if not 0 <= length <= max_rows or rows > 2 * max_rows:
            raise DataError(f"the Arrow data has more than {max_rows} rows", hint="send fewer rows at a time")


def _batch_header(metadata: bytes, *, dictionary: bool) -> tuple[int, bool]:
    """Rows of a record batch (or of a dictionary), and whether its buffers are compressed, from its flatbuffer."""
    message = struct.unpack_from("<I", metadata)[0]
    batch = _pointed(metadata, message, 2)
    if dictionary:
        batch = _pointed(metadata, batch, 1)
    at = _field_at(metadata, batch, 0)
    length = struct.unpack_from("<q", metadata, at)[0] if at else 0
    return length, bool(_field_at(metadata, batch, 3))


def _pointed(buffer: bytes, table: int, slot: int) -> int:
    """Where the table begins that a field refers to."""
    at = _field_at(buffer, table, slot)
    if not at:
        raise ValueError("a message without a batch")
    return at + int(struct.unpack_from("<I", buffer, at)[0])


def _field_at(buffer: bytes, table: int, slot: int) -> int:
    """Where a field of a flatbuffer's table is; 0 where it is absent."""
    vtable = table - struct.unpack_from("<i", buffer, table)[0]
    if vtable < 0:
        raise ValueError("a table that points outside")
    if 4 + 2 * slot >= struct.unpack_from("<H", buffer, vtable)[0]:
        return 0
    offset = struct.unpack_from("<H", buffer, vtable + 4 + 2 * slot)[0]
    return table + int(offset) if offset else 0


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
