"""What a file turns out to be before it is parsed, and rows that are lost in parsing: said by name, for every command.

Training, `predict` and `data ingest` read files in different ways (whole, in chunks, row by row with rejects); what
they accept and what they say of a file is decided here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forge_sweep.errors import DataError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

ENDINGS = (".csv", ".csv.gz", ".parquet")
"""What the name of a file of rows ends in, in any case."""

MISSING_WORDS = (
    *("", "NA", "N/A", "n/a", "<NA>", "NaN", "nan", "-NaN", "-nan", "NULL", "null", "None"),
    *("#N/A", "#N/A N/A", "#NA", "1.#IND", "1.#QNAN", "-1.#IND", "-1.#QNAN"),
)
"""What stands for a missing value in a CSV file: the words of `pandas.read_csv`."""

AS_UTF8 = "save the file as UTF-8 (in a spreadsheet: CSV UTF-8)"
GZIP = b"\x1f\x8b"
HEAD = 65_536
"""Bytes at the beginning that are looked at."""

CONTENTS = (
    (b"PK\x03\x04", "a ZIP archive, as Excel workbooks are", "save the sheet as CSV UTF-8, or unpack the archive"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook", "save the sheet as CSV UTF-8"),
    (b"BZh", "compressed with bzip2", "unpack it, or compress it with gzip and name it .csv.gz"),
    (b"\xfd7zXZ\0", "compressed with xz", "unpack it, or compress it with gzip and name it .csv.gz"),
    (b"(\xb5/\xfd", "compressed with Zstandard", "unpack it, or compress it with gzip and name it .csv.gz"),
    (b"PAR1", "a Parquet file", "name it .parquet"),
    (b"ARROW1", "an Arrow (Feather) file", "write it as Parquet"),
    (b"\x89HDF", "an HDF5 file", "write it as Parquet"),
    (b"SQLite format 3", "an SQLite database", "export the table as CSV or Parquet"),
    (b"%PDF", "a PDF", "give the table itself as CSV or Parquet"),
)
"""How other kinds of files begin, what they are, and what to do."""

ENCODINGS = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
"""Byte order marks of encodings other than UTF-8; the longer ones first."""

IN_MEMORY = 4
"""Bytes that reading takes for each byte of a CSV file's text: itself, Arrow's columns and pandas' (measured: 4.1)."""

EXACT_WHOLE = 2.0**53
"""Float64 holds every whole number up to here."""

ONE_BLOCK = 2**31 - 1
"""Bytes of text that Arrow infers types from at once."""


def kind_of(path: Path) -> str:
    """The ending of a file's name, in small letters; "" where it is none of `ENDINGS`."""
    return next((ending for ending in ENDINGS if path.name.lower().endswith(ending)), "")


def refuse_unreadable(path: Path, key: str) -> None:
    """Raise DataError for a file that is of no known kind, that is not there, or whose content is something else.

    Args:
        path: the file.
        key: what a message calls it, such as ``data.path``.
    """
    if not kind_of(path):
        raise DataError(
            f"{key}: {path} is of no known kind; expected {', '.join(ENDINGS)}", hint="convert it to Parquet"
        )
    try:
        if not path.is_file():
            hint = "a relative path starts at the folder of the experiment file"
            raise DataError(f"{key}: {path} does not exist or is no file", hint=hint)
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise DataError(f"{key}: {path} cannot be read: {error.strerror}", hint="check its name and rights") from error
    ending = kind_of(path)
    if ending == ".parquet":
        if not head.startswith(b"PAR1"):
            raise DataError(
                f"{key}: {path} cannot be read: it is no Parquet file, whatever its name says", hint="write it again"
            )
        return
    if head.startswith(GZIP):
        if ending == ".csv":
            hint = "name it .csv.gz, or unpack it"
            raise DataError(f"{key}: {path} cannot be read: its content is compressed with gzip", hint=hint)
        head = _unpacked_head(path, key)
    elif ending == ".csv.gz":
        hint = "name it .csv, or compress it again"
        raise DataError(f"{key}: {path} cannot be read: its content is not gzip, as its name says", hint=hint)
    _refuse_content(head, path, key)


def _unpacked_head(path: Path, key: str) -> bytes:
    import pyarrow as pa

    try:
        with open_text(path) as stream:
            return bytes(stream.read(HEAD))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{key}: {path} cannot be unpacked: {cause_of(error)}", hint="write the file again") from error


def _refuse_content(head: bytes, path: Path, key: str) -> None:
    """Raise DataError where the first bytes of the text of a CSV file are something else."""

    def refuse(what: str, hint: str) -> None:
        raise DataError(f"{key}: {path} cannot be read: it is {what}", hint=hint)

    if not head:
        raise DataError(f"{key}: {path} cannot be read: Empty CSV file", hint="expected a header line and rows")
    for begins, what, hint in CONTENTS:
        if head.startswith(begins):
            refuse(f"{what}, whatever its name says", hint)
    for mark, name in ENCODINGS:
        if head.startswith(mark):
            refuse(f"{name} text; expected UTF-8", AS_UTF8)
    if b"\0" in head.partition(b"\n")[0]:  # a zero byte in a text further on is that text's
        refuse("binary, or text in UTF-16 or UTF-32 without a byte order mark: it holds zero bytes", AS_UTF8)
    text = head.removeprefix(b"\xef\xbb\xbf")
    if re.match(rb"\s*<(!doctype|html|\?xml)", text, re.IGNORECASE):
        refuse("an HTML or XML page, such as a server shows in the place of a file", "fetch the file itself")
    if re.match(rb'\s*(\[\s*)?\{\s*"[^"]*"\s*:', text):
        refuse("JSON", "write the rows as CSV with a header line, or as Parquet")
    if found := re.match(rb'"?sep=(.)"?[ \t]*\r?\n', text, re.IGNORECASE):
        separator = found[1].decode("ascii", "replace")
        refuse(
            f"a CSV file of Excel, whose first line, sep={separator}, is no header",
            f"remove that line, and set separator = {separator!r} under [data]",
        )
    header, newline, _ = text.partition(b"\n")
    try:
        header.decode()
    except UnicodeDecodeError as error:
        if newline or error.start < len(header) - 3:  # no letter that is cut off at the end of what was looked at
            raise DataError(
                f"{key}: {path} cannot be read: the header of {path.name} is not UTF-8 text, from its "
                f"{len(header[: error.start].decode()) + 1}. character on",
                hint=AS_UTF8,
            ) from error


def open_text(path: Path) -> pa.NativeFile:
    """The text of a CSV file, unpacked where its name ends in .gz, in any case."""
    import pyarrow as pa

    return pa.input_stream(str(path), compression="gzip" if kind_of(path) == ".csv.gz" else None)


def whole_text(path: Path, key: str) -> bytes:
    """All of the text of a CSV file.

    Raises:
        DataError: it would not fit in memory, or is larger than Arrow reads at once; a small compressed file may hold
            any amount.
    """
    import psutil

    room = psutil.virtual_memory().available
    parts, size = [], 0
    with open_text(path) as stream:
        while part := stream.read(1 << 24):
            parts.append(part)
            size += len(part)
            if size > ONE_BLOCK or IN_MEMORY * size > room:
                on_disk = path.stat().st_size
                unpacked = "" if on_disk >= size else f", {on_disk / 1e6:.1f} MB as it is compressed"
                why = (
                    f"at most {ONE_BLOCK / 1e9:.1f} GB of text are read at once"
                    if size > ONE_BLOCK
                    else f"reading takes {IN_MEMORY} times as much memory, and {room / 1e9:.1f} GB are free"
                )
                raise DataError(
                    f"{key}: {path} holds more than {size / 1e9:.1f} GB of text{unpacked}; {why}",
                    hint="write it as Parquet, with fewer rows, or keep it in the feature store, which reads in blocks",
                )
    return b"".join(parts)


def refuse_large(rows: int, columns: int, path: Path, key: str) -> None:
    """Raise DataError for a Parquet file whose table would not fit in memory, however small it is on disk."""
    import psutil

    room, needed = psutil.virtual_memory().available, 16 * rows * columns  # a number in Arrow's table and in pandas'
    if needed > room:
        raise DataError(
            f"{key}: {path} holds {rows:,} rows of {columns} columns, which take {needed / 1e9:.1f} GB of memory at "
            f"least; {room / 1e9:.1f} GB are free",
            hint="read fewer columns (drop under [data]) or rows, or keep it in the feature store",
        )


def cause_of(error: BaseException) -> str:
    """What Arrow says of a file, in one line of printable text."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    text = "".join(letter if letter.isprintable() and letter != "\ufffd" else "?" for letter in line)
    return text if len(text) <= 200 else f"{text[:200]}..."


def explained(error: BaseException) -> tuple[str, str]:
    """What is wrong with a CSV file by what its parser says, and what to do."""
    cause = cause_of(error)
    if isinstance(error, UnicodeDecodeError) or "invalid UTF8" in cause:
        return "it is not UTF-8 text", AS_UTF8
    if "Expected" in cause and "columns, got" in cause:
        if len(str(error).splitlines()) > 1:
            text = cause.partition("got ")[2].partition(": ")[2]
            return f"a quotation mark is not closed in the row that begins with {shown_text(text)}", UNCLOSED
        return cause, (
            "give that row as many fields as the header; a text that holds the separator or a line break stands in "
            "quotation marks, and a quotation mark inside it is written twice"
        )
    return cause, "mend the file, or write it again"


def not_utf8(values: pa.ChunkedArray) -> int | None:
    """The position of the first value of a column of bytes that is no UTF-8 text."""
    for row, value in enumerate(values):
        try:
            (value.as_py() or b"").decode()
        except UnicodeDecodeError:
            return row
    return None


# Rows that a quotation mark swallows


def swallowed(table: pa.Table, separator: str, first: int = 0) -> tuple[str, bool]:
    """What is said of a cell that holds whole rows, since a quotation mark is not closed; "" where there is none.

    Texts of several lines are legitimate. A cell is suspicious where the lines in it have as many fields as the header.

    Args:
        table: columns of text (or of bytes) as they were parsed.
        separator: of the fields.
        first: number of the table's first row.

    Returns:
        The words, and whether there is no doubt: then two whole rows at least stand in the cell.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    doubt = ""
    between = table.num_columns - 1
    if not between:
        return "", False
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = column.type
        as_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        if not (as_bytes or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            continue
        feed, back = (b"\n", b"\r") if as_bytes else ("\n", "\r")
        breaks = pc.or_(pc.match_substring(column, feed), pc.match_substring(column, back))
        for row in np.flatnonzero(np.asarray(pc.fill_null(breaks, False))).tolist():
            value = column[row].as_py()
            text = value if isinstance(value, str) else value.decode("utf-8", "replace")
            text = text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n")  # the end of the file, where it is one
            lines = text.split("\n")
            whole = [line for line in lines[1:-1] if line.strip()]
            alike = sum(line.count(separator) == between for line in whole)
            words = (
                f"row {first + row}, column {name!r}: the cell holds {len(lines)} lines, which have as many fields as "
                f"the header; it begins with {shown_text(text)}"
            )
            if len(whole) >= (2 if between > 1 else 5) and alike >= 0.9 * len(whole):
                return words, True
            fits = len(lines) > 1 and text.count(separator) == between * (len(lines) - 1)
            if between > 1 and fits and alike == len(whole) and not doubt:
                doubt = words
    return doubt, False


UNCLOSED = (
    "close the quotation mark in that row; a mark inside a text (inches, a name) is written twice, in quotation marks"
)


def refuse_swallowed(table: pa.Table, separator: str, what: str, first: int = 0) -> str:
    """Raise DataError for rows that stand in one cell.

    Args:
        table: columns of text as they were parsed.
        separator: of the fields.
        what: the file, for the message.
        first: number of the table's first row.

    Returns:
        A warning where one row may stand in a cell; "" where none does.
    """
    words, sure = swallowed(table, separator, first)
    if sure:
        seen = f"{what}: a quotation mark is not closed, and the rows after it are one cell: {words}"
        raise DataError(seen, hint=UNCLOSED)
    return f"{what}: is a quotation mark not closed? {words}" if words else ""


def shown_text(text: Any) -> str:
    """The first characters of a text for a message."""
    cut = str(text)[:40]
    return repr(cut if len(str(text)) <= 40 else f"{cut}...")


# Values whose digits are their identity


def as_identity(values: pa.ChunkedArray, key: str, name: str) -> pa.ChunkedArray:
    """A column that orders, groups or names rows, with every digit: numbers, booleans, text or times.

    Decimals become whole numbers where they are such (text beyond 64 bits), times of day and durations nanoseconds,
    UUIDs and bytes text.

    Args:
        values: the column as its file has it.
        key: the TOML key that names it.
        name: its name.

    Raises:
        DataError: nothing can be ordered or told apart by it, such as lists.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import types

    kind = values.type
    if isinstance(kind, pa.BaseExtensionType):
        if str(kind) == "extension<arrow.uuid>":
            texts = [None if value is None else str(value) for value in values.to_pylist()]
            return pa.chunked_array([pa.array(texts, pa.large_string())])
        return as_identity(pa.chunked_array([chunk.storage for chunk in values.chunks], kind.storage_type), key, name)
    if types.is_decimal(kind):
        return _decimal_identity(values)
    if types.is_time(kind):
        return pc.cast(pc.cast(values, pa.time64("ns")), pa.int64())
    if types.is_duration(kind):
        return pc.cast(pc.cast(values, pa.duration("ns")), pa.int64())
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        texts = [None if value is None else value.hex() for value in values.to_pylist()]
        return pa.chunked_array([pa.array(texts, pa.large_string())])
    plain = (
        types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_boolean(kind)
        or types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_string_view(kind)
        or types.is_timestamp(kind)
        or types.is_date(kind)
        or types.is_null(kind)
    )
    if not plain:
        raise DataError(
            f"{key}: column {name!r} holds {kind} values; expected numbers, text or times",
            hint="name another column, or write this one as text",
        )
    return values


def exact(values: pa.ChunkedArray, written: Callable[[], pa.ChunkedArray], key: str, name: str) -> pa.ChunkedArray:
    """A column of a CSV file that names rows or groups, as numbers only where these keep what its texts tell apart.

    Args:
        values: the column as Arrow reads it, by all of its values.
        written: gives the same as text.
        key: the TOML key that names it.
        name: its name.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = values.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return values
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        return as_identity(values, key, name)
    texts = pc.utf8_trim_whitespace(written())
    beyond = pa.types.is_floating(kind) and (pc.max(pc.abs(values)).as_py() or 0.0) >= EXACT_WHOLE
    if beyond and pc.all(pc.match_substring_regex(texts, r"^[+-]?[0-9]+$")).as_py():
        return whole_numbers(texts)
    return texts if len(pc.unique(texts)) > len(pc.unique(values)) else values


def _decimal_identity(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Decimals as whole numbers, else as float64 where that tells them apart, else as text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    present = [value for value in values.to_pylist() if value is not None]
    if all(value == value.to_integral_value() for value in present):
        texts = [None if value is None else str(int(value)) for value in values.to_pylist()]
        return whole_numbers(pa.chunked_array([pa.array(texts, pa.large_string())]))
    floats = pc.cast(values, pa.float64())
    if len(set(present)) == len(pc.unique(floats).drop_null()):
        return floats
    # Not normalize(), which rounds to 28 digits.
    texts = [None if value is None else re.sub(r"\.?0+$", "", format(value, "f")) for value in values.to_pylist()]
    return pa.chunked_array([pa.array(texts, pa.large_string())])


def whole_numbers(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Texts of digits as int64, else as uint64, else as they are, so that no digit is lost."""
    import pyarrow as pa
    import pyarrow.compute as pc

    plain = pc.match_substring_regex(texts, r"^(0|-?[1-9][0-9]*)$")
    if pc.all(plain).as_py() is not False:
        for kind in (pa.int64(), pa.uint64()):
            try:
                return pc.cast(texts, kind)
            except pa.ArrowInvalid:
                continue
    return texts


def frame_of(table: pa.Table, whole: Collection[str]) -> pd.DataFrame:
    """The table as a frame.

    Args:
        table: columns of different names.
        whole: columns whose digits are what they are: whole numbers with gaps stay whole there.
    """
    import pandas as pd
    import pyarrow as pa

    kept = {
        pa.int8(): pd.Int8Dtype(),
        pa.int16(): pd.Int16Dtype(),
        pa.int32(): pd.Int32Dtype(),
        pa.int64(): pd.Int64Dtype(),
        pa.uint8(): pd.UInt8Dtype(),
        pa.uint16(): pd.UInt16Dtype(),
        pa.uint32(): pd.UInt32Dtype(),
        pa.uint64(): pd.UInt64Dtype(),
    }
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        mapper = kept.get if name in whole and column.null_count else None
        columns[name] = column.to_pandas(date_as_object=False, types_mapper=mapper)
    return pd.DataFrame(columns, copy=False)


def words_of(texts: Iterable[Any]) -> dict[str, int]:
    """How often each word for a missing value stands in a column; empty fields left out."""
    counts: dict[str, int] = {}
    for text in texts:
        if text and text in MISSING_WORDS:
            counts[text] = counts.get(text, 0) + 1
    return counts


def listed(words: Mapping[str, int]) -> str:
    """``54 rows hold the word None``, and so on."""
    rows = {word: "1 row holds" if count == 1 else f"{count} rows hold" for word, count in words.items()}
    return ", ".join(f"{held} the word {word}" for word, held in rows.items())
