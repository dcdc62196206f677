"""How training (a file at once), `predict` and `data ingest` (in blocks) read files, and what is said of bad ones."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from forge_sweep.errors import DataError, Key
from forge_sweep.experiment.loading import MARKS
from forge_sweep.memory import memory
from forge_sweep.sources.base import shown

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
"""Bytes at the beginning that are inspected."""

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

EMPTY = "Empty CSV file", "expected a header line and rows"

IN_MEMORY = 4
"""Bytes that reading takes for each byte of a CSV file's text: itself, Arrow's columns and pandas' (measured: 4.1)."""

ONE_BLOCK = 2**31 - 1
"""Bytes of text that Arrow infers types from at once."""

CSV_BLOCK = 8 << 20
"""Bytes of a CSV file that are read at a time where it is not read whole."""

UNCLOSED = (
    "close the quotation mark in that row; a mark inside a text (inches, a name) is written twice, in quotation marks"
)


def kind_of(path: Path) -> str:
    """The ending of a file's name, in small letters; "" where it is none of `ENDINGS`."""
    return next((ending for ending in ENDINGS if path.name.lower().endswith(ending)), "")


def refuse_unreadable(path: Path, key: str, separator: str) -> None:
    """Raise DataError for a file that is of no known kind, that is not there, or whose content is something else.

    ``key`` is what a message calls it, such as ``data.path``; ``separator`` that of the fields, as far as is known.
    """
    if not kind_of(path):
        raise DataError(
            f"{key}: {path} is of no known kind; expected {', '.join(ENDINGS)}", hint="convert it to Parquet"
        )
    try:
        if not path.is_file():
            hint = "a relative path starts at the folder of the experiment file; of a command, at the working directory"
            raise DataError(f"{key}: {path} does not exist or is not a file", hint=hint)
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise DataError(f"{key}: {path} cannot be read: {error.strerror}", hint="check its name and rights") from error
    if kind_of(path) == ".csv.gz" and head.startswith(GZIP):
        try:
            with open_text(path) as stream:
                found = _strange_text(bytes(stream.read(HEAD)), path, separator)
        except (pa.ArrowException, OSError) as error:
            cause = _cause_of(error)
            raise DataError(f"{key}: {path} cannot be unpacked: {cause}", hint="write the file again") from error
    else:
        found = _strange_file(head, path, separator)
    if found:
        raise DataError(f"{key}: {path} cannot be read: {found[0]}", hint=found[1])


def _strange_file(head: bytes, path: Path, separator: str) -> tuple[str, str] | None:
    """Why a file that begins so is not what its name says, and what to do."""
    if kind_of(path) == ".parquet":
        return None if head.startswith(b"PAR1") else ("it is not a Parquet file, despite its name", "write it again")
    if kind_of(path) == ".csv.gz":
        return "its content is not gzip, as its name says", "name it .csv, or compress it again"
    if head.startswith(GZIP):
        return "its content is compressed with gzip", "name it .csv.gz, or unpack it"
    return _strange_text(head, path, separator)


def _strange_text(head: bytes, path: Path, known: str) -> tuple[str, str] | None:
    if not head:
        return EMPTY
    for begins, what, hint in CONTENTS:
        if head.startswith(begins):
            return f"it is {what}, despite its name", hint
    for mark, name in MARKS.items():
        if head.startswith(mark):
            return f"it is {name} text; expected UTF-8", AS_UTF8
    text = head.removeprefix(b"\xef\xbb\xbf")
    header, newline, _ = text.partition(b"\n")
    if b"\0" in header:  # a zero byte in a text further on is that text's
        return "it is binary, or text in UTF-16 or UTF-32 without a byte order mark: it holds zero bytes", AS_UTF8
    if re.match(rb"\s*<(!doctype|html|\?xml)", text, re.IGNORECASE):
        return "it is an HTML or XML page, such as a server shows in the place of a file", "fetch the file itself"
    if re.match(rb'\s*(\[\s*)?\{\s*"[^"]*"\s*:', text):
        return "it is JSON", "write the rows as CSV with a header line, or as Parquet"
    if found := re.match(rb'"?sep=(.)"?[ \t]*\r?\n', text, re.IGNORECASE):
        separator = found[1].decode("ascii", "replace")
        what = f"it is a CSV file of Excel, whose first line, sep={separator}, is not a header"
        also = "" if separator == known else f", and set {Key('data.separator', repr(separator))}"
        return what, f"remove that line{also}"
    try:
        header.decode()
    except UnicodeDecodeError as error:
        if newline or error.start < len(header) - 3:  # no letter that is cut off at the end of the head
            at = len(header[: error.start].decode()) + 1
            return f"the header of {path.name} is not UTF-8 text, from character {at} on", AS_UTF8
    return None


def open_text(path: Path) -> pa.NativeFile:
    """The text of a CSV file, unpacked where its name ends in .gz, in any case."""
    return pa.input_stream(str(path), compression="gzip" if kind_of(path) == ".csv.gz" else None)


def whole_text(path: Path, key: str) -> bytes:
    """All of the text of a CSV file.

    Raises:
        DataError: it would not fit in memory, or Arrow cannot read so much at once; a small compressed file may hold
            any amount.
    """
    room = memory().available
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


def refuse_large(rows: int, columns: int, path: Path, key: str, lists: float = 0.0) -> None:
    """Raise DataError for a Parquet file whose table would not fit in memory, however small it is on disk.

    ``lists`` is what columns of lists take, in bytes.
    """
    room, needed = memory().available, 16 * rows * columns + lists  # a number in Arrow's table and in pandas'
    if needed > room:
        raise DataError(
            f"{key}: {path} holds {rows:,} rows of {columns} columns, which take {needed / 1e9:.1f} GB of memory at "
            f"least; {room / 1e9:.1f} GB are free",
            hint=f"read fewer columns ({Key('data.drop'):under}) or rows, or keep it in the feature store",
        )


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Turns what Arrow raises about a file into a DataError that says ``what`` cannot be read, and why."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        cause, hint = _explained(error)
        raise DataError(f"{what} cannot be read: {cause}", hint=hint) from error


def _cause_of(error: BaseException) -> str:
    """What Arrow says of a file, in one line of printable text."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    text = "".join(letter if letter.isprintable() and letter != "\ufffd" else "?" for letter in line)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _explained(error: BaseException) -> tuple[str, str]:
    """What is wrong with a CSV file by what its parser says, and how to fix it."""
    cause = _cause_of(error)
    if isinstance(error, UnicodeDecodeError) or "invalid UTF8" in cause:
        return "it is not UTF-8 text", AS_UTF8
    if "Empty CSV file" in cause:
        return EMPTY
    if "Expected" in cause and "columns, got" in cause:
        if len(str(error).splitlines()) > 1:
            text = cause.partition("got ")[2].partition(": ")[2]
            return f"a quotation mark is not closed in the row that begins with {shown_text(text)}", UNCLOSED
        return cause, (
            "give that row as many fields as the header; a text that holds the separator or a line break stands in "
            "quotation marks, and a quotation mark inside it is written twice"
        )
    return cause, "fix the file, or write it again"


def content_names(schema: pa.Schema) -> list[str]:
    """The columns of a Parquet file. An unnamed pandas index is the position of the row in some frame, not content."""
    return [name for name in schema.names if not name.startswith("__index_level_")]


# A CSV file, a block at a time


@dataclass(frozen=True)
class Malformed:
    """The row at this position of the file, from 0, has too many or too few fields."""

    row: int
    seen: int
    expected: int
    text: str


@dataclass(frozen=True)
class Piece:
    """Some rows of a file.

    Attributes:
        table: their columns.
        rows: (n,) int64 position of each row in the file, from 0, malformed rows counted.
        malformed: rows that were found on the way, and are not in the table.
    """

    table: pa.Table
    rows: np.ndarray
    malformed: tuple[Malformed, ...] = ()


def csv_options(
    separator: str,
    types: Mapping[str, pa.DataType] | None = None,
    missing: Sequence[str] = MISSING_WORDS,
    columns: Sequence[str] | None = None,
    skip: Callable[[Any], str] | None = None,
) -> dict[str, Any]:
    """What Arrow is told of a CSV file: texts in quotation marks may hold line breaks, every column may have gaps.

    Types that are not given are inferred. ``skip`` is asked about a row with too many or too few fields; without it,
    such a row is an error.
    """
    return {
        "parse_options": csv.ParseOptions(delimiter=separator, newlines_in_values=True, invalid_row_handler=skip),
        "convert_options": csv.ConvertOptions(
            null_values=missing, strings_can_be_null=True, column_types=types, include_columns=columns
        ),
    }


def csv_schema(content: Path | bytes, separator: str, what: str) -> pa.Schema:
    """The columns of a CSV file (or of its text), with the types that its first block shows.

    Raises:
        DataError: the file cannot be read, or a quotation mark of the header is not closed.
    """
    block, stream = CSV_BLOCK, open_text(content) if isinstance(content, Path) else pa.BufferReader(content)
    if isinstance(content, bytes):
        block = max(block, 2 * (content.find(b"\n") + 1 or len(content)))
    with (
        translated(what),
        csv.open_csv(
            stream, csv.ReadOptions(block_size=block), **csv_options(separator, skip=lambda row: "skip")
        ) as reader,
    ):
        schema = reader.schema
    for name in schema.names:
        if separator in name and re.search(r"[\r\n]", name):
            raise DataError(
                f"{what}: a quotation mark of the header is not closed: {shown_text(name)}",
                hint="close it, and write a mark that belongs to a name twice, in quotation marks",
            )
    return schema


def text_pieces(
    path: Path,
    separator: str,
    types: Mapping[str, pa.DataType],
    what: str,
    *,
    missing: Sequence[str] = MISSING_WORDS,
    skip: bool = False,
) -> Iterator[Piece]:
    """The rows of a CSV file, a block at a time, after a piece without rows.

    Args:
        path: the file.
        separator: of the fields.
        types: the type of text of each column.
        what: the file, for messages.
        missing: words for a missing value.
        skip: leave malformed rows out and report them, instead of raising.

    Raises:
        DataError: the file cannot be read, or a quotation mark is not closed.
    """
    skipped: list[Malformed] = []

    def note(row: Any) -> str:
        # Arrow counts from 1, the header included.
        skipped.append(Malformed(row.number - 2, row.actual_columns, row.expected_columns, row.text))
        return "skip"

    options = csv_options(separator, types, missing, skip=note if skip else None)
    reading = csv.ReadOptions(block_size=CSV_BLOCK, use_threads=not skip)  # with threads, no row has a number
    with translated(what), csv.open_csv(open_text(path), reading, **options) as reader:
        empty = Piece(reader.schema.empty_table(), np.empty(0, np.int64))
        yield empty
        following = 0
        for batch in reader:
            near = [row.row for row in skipped if row.row >= following]
            candidates = np.arange(following, following + batch.num_rows + len(near), dtype=np.int64)
            rows = candidates[~np.isin(candidates, near)][: batch.num_rows]
            first, following = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, following)
            # The reader is some blocks ahead of what it gives.
            passed = tuple(row for row in skipped if row.row < following)
            del skipped[: len(passed)]
            table = pa.Table.from_batches([batch])
            refuse_swallowed(table, separator, what, first)
            yield Piece(table, rows, passed)
        if skipped:
            yield replace(empty, malformed=tuple(skipped))


def refuse_names(names: Sequence[str], left_out: Collection[str], key: str, source: str) -> None:
    """Raise DataError for columns of one name and for a column without a name, but for those that are left out."""
    if twice := sorted({name for name in names if names.count(name) > 1} - set(left_out)):
        raise DataError(
            f"{key}: {source} has several columns named {shown(twice)}", hint="rename all but one, or drop them all"
        )
    if "" in names and "" not in left_out:
        raise DataError(
            f"{key}: column {names.index('') + 1} of {source} has no name",
            hint=f"""name it, or leave it out with {Key("data.drop", '[""]')}; with pandas, write with index=False""",
        )


def other_separator(names: Sequence[str], separator: str) -> str:
    """What separates the columns of a file that was read as a single one; "" where nothing does."""
    marks = (mark for mark in ";\t|," if mark != separator and mark in names[0]) if len(names) == 1 else ()
    return next(iter(marks), "")


def refuse_swallowed(table: pa.Table, separator: str, what: str, first: int = 0) -> str:
    """Raise DataError where a quotation mark is not closed, so that the rows after it, from ``first`` on, are one cell.

    Texts of several lines are legitimate. A cell is suspicious where the lines in it have as many fields as the header.

    Returns:
        A warning where one row may stand in a cell; "" where none does.
    """
    doubt = ""
    between = table.num_columns - 1
    if not between:
        return ""
    for row, name, value in _cells_of_several_lines(table):
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
            raise DataError(
                f"{what}: a quotation mark is not closed, and the rows after it are one cell: {words}", hint=UNCLOSED
            )
        fits = len(lines) > 1 and text.count(separator) == between * (len(lines) - 1)
        if between > 1 and fits and alike == len(whole) and not doubt:
            doubt = f"{what}: is a quotation mark not closed? {words}"
    return doubt


def _cells_of_several_lines(table: pa.Table) -> Iterator[tuple[int, str, Any]]:
    for name, column in zip(table.column_names, table.columns, strict=True):
        as_bytes = pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)
        if as_bytes or pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            breaks = pc.match_substring_regex(column, b"[\r\n]" if as_bytes else "[\r\n]")
            for row in np.flatnonzero(np.asarray(pc.fill_null(breaks, False))).tolist():
                yield row, name, column[row].as_py()


def shown_text(text: Any) -> str:
    """The first characters of a text for a message."""
    cut = str(text)[:40]
    return repr(cut if len(str(text)) <= 40 else f"{cut}...")


def listed(words: Mapping[str, int]) -> str:
    """``54 rows hold the word None``, and so on."""
    rows = {word: "1 row holds" if count == 1 else f"{count} rows hold" for word, count in words.items()}
    return ", ".join(f"{held} the word {word}" for word, held in rows.items())
