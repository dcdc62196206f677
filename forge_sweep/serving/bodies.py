"""From the body of a request to raw numbers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.parser import HeaderParser
from typing import Any

import numpy as np
import orjson
import pandas as pd

from forge_sweep.errors import DataError
from forge_sweep.preprocessing import NO_TENSORS, RowTransform
from forge_sweep.serving import tables

JSON = "application/json"
CSV = "text/csv"
ARROW = ("application/vnd.apache.arrow.stream", "application/vnd.apache.arrow.file")
FORM = "multipart/form-data"
MEDIA = (JSON, CSV, *ARROW, FORM)
PARTS = 100  # of a form, besides one for each column


class Refused(Exception):
    """A request that is not answered; ``more`` are other keys of the refusal."""

    def __init__(
        self, status: int, code: str, message: str, *, more: dict[str, Any] | None = None, headers: Any = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.more = more or {}
        self.headers = tuple(headers)

    @property
    def body(self) -> bytes:
        """The refusal as JSON."""
        found: bytes = orjson.dumps({"error": {"code": self.code, "message": self.message, **self.more}})
        return found


@dataclass(frozen=True, eq=False, slots=True)
class Rows:
    """The raw numbers (n, columns) of a request, the value that came in by row and column name, and its arrays."""

    raw: np.ndarray | Sequence[Sequence[float]]
    cell: Callable[[int, str], Any]
    tensors: Mapping[str, np.ndarray] = field(default_factory=dict)


def media_of(header: bytes) -> str:
    """The media type that is meant; JSON where none is given, Refused where it is none of `MEDIA`.

    That of a form goes on with ``;`` and its boundary.
    """
    media = header.decode("latin-1").partition(";")[0].strip().lower() or JSON
    if media not in MEDIA:
        raise Refused(415, "media-type", f"Content-Type is {media[:100]!r}; expected one of {', '.join(MEDIA)}")
    if media != FORM:
        return media
    boundary = HeaderParser().parsestr(f"Content-Type: {header.decode('latin-1')}").get_boundary()
    if not boundary:
        raise Refused(400, "unreadable", f"{FORM} has no boundary in its Content-Type")
    return f"{FORM};{boundary}"


def read(media: str, body: bytes, transform: RowTransform, max_rows: int) -> Rows:
    """The rows of a body; RowsRefused where they do not fit the schema, Refused where anything else is wrong."""
    if media == JSON:
        return _read_json(body, transform, max_rows)
    if media.startswith(FORM):
        return _of_frame(_read_form(body, media.partition(";")[2], transform), transform)
    try:
        if media == CSV:
            table = tables.read_csv(body, list(transform.schema.names))
        else:
            table = tables.read_arrow(body, max_rows, transform.schema, transform.others)
        _refuse_length(table.num_rows, max_rows)
        with tables.readable("table"):
            frame = tables.framed(table, transform.schema, text=media == CSV)
    except DataError as error:
        raise Refused(400, "unreadable", error.message, more={"fix": error.hint}) from error
    return _of_frame(frame, transform)


def _of_frame(frame: pd.DataFrame, transform: RowTransform) -> Rows:
    def cell(position: int, name: str) -> Any:
        value = frame[name].iloc[position]
        if value is None or value != value:
            return None
        return value.item() if isinstance(value, np.generic) else value if isinstance(value, str) else str(value)

    return Rows(transform.read_frame(frame), cell, transform.tensors(frame))


def _read_json(body: bytes, transform: RowTransform, max_rows: int) -> Rows:
    try:
        rows = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refused(400, "unreadable", f"the body is not JSON: {error}") from error
    if type(rows) is dict:
        _refuse_repeated(body, len(rows))
        return Rows([transform.read(rows)], lambda _, name: rows[name], _arrays([rows], transform))
    if type(rows) is not list:
        raise Refused(422, "rows", "the body is neither an object (one row) nor an array of objects (several rows)")
    _refuse_length(len(rows), max_rows)
    for position, row in enumerate(rows):
        if type(row) is not dict:
            raise Refused(422, "rows", f"row {position} is not an object; expected its values by column name")
    _refuse_repeated(body, sum(map(len, rows)))
    return Rows(transform.read_all(rows), lambda position, name: rows[position][name], _arrays(rows, transform))


def _arrays(rows: Sequence[Mapping[str, Any]], transform: RowTransform) -> Mapping[str, np.ndarray]:
    """The arrays of rows that have been read otherwise."""
    names = [column.name for column in transform.schema.tensors]
    if not names:
        return NO_TENSORS
    return transform.tensors(pd.DataFrame({n: pd.Series([row[n] for row in rows], dtype=object) for n in names}))


def _read_form(body: bytes, boundary: str, transform: RowTransform) -> pd.DataFrame:
    """The one row of a form (RFC 7578): files are images, other parts text, as in a CSV, or JSON for an array.

    Raises:
        Refused: it is no such form, or has a field twice.
    """
    mark = b"\r\n--" + boundary.encode("latin-1")
    body = b"\r\n" + body
    if body.count(mark) > PARTS + len(transform.schema.columns):
        raise Refused(400, "unreadable", f"the form has more than {PARTS} parts besides the columns of the model")
    parts = body.split(mark)
    if len(parts) < 2 or not parts[-1].startswith(b"--"):
        raise Refused(400, "unreadable", "the form does not end with its boundary")
    texts, arrays = dict[str, str](), dict[str, Any]()
    kinds = {column.name: column.kind for column in transform.schema.columns}
    for part in parts[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        about = HeaderParser().parsestr(head.strip(b"\r\n").decode("utf-8", "replace"))
        name = about.get_param("name", header="content-disposition")
        if not isinstance(name, str):
            raise Refused(400, "unreadable", "a part of the form has no name; expected the name of a column")
        if name in texts or name in arrays:
            raise Refused(400, "repeated-key", f"the form has the field {name[:60]!r} twice; give one row at a time")
        tensor = kinds.get(name) == "tensor"
        if tensor and about.get_filename() is not None:
            arrays[name] = content
            continue
        try:
            text = content.decode("utf-8")
            arrays[name] = orjson.loads(text) if tensor and text[:1] == "[" else text
        except ValueError as error:  # both libraries' own
            raise Refused(400, "unreadable", f"field {name[:60]!r} of the form cannot be read: {error}") from error
        if not tensor:
            texts[name] = arrays.pop(name)
    frame = tables.framed(tables.of_texts(texts), transform.schema, text=True)
    return frame.assign(**{name: pd.Series([value], dtype=object) for name, value in arrays.items()})


def _refuse_repeated(body: bytes, keys: int) -> None:
    """Refuse a body in which an object has one key twice: a reader keeps only the last.

    ``keys`` were read, those of nested objects left out. A colon follows every key, so a body with as many colons has
    no other key. One with more, in strings or in nested objects, is read again.
    """
    if body.count(b":") == keys:
        return

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            name, times = Counter(name for name, _ in pairs).most_common(1)[0]
            raise Refused(400, "repeated-key", f"an object has the key {name[:60]!r} {times} times; give each once")
        return found

    try:
        json.loads(body, object_pairs_hook=distinct, parse_int=float)  # of any length, for which Python has a limit
    except RecursionError as error:
        raise Refused(400, "unreadable", "the body is nested too deeply") from error


def _refuse_length(rows: int, most: int) -> None:
    if rows > most:
        raise Refused(422, "too-many-rows", f"{rows} rows; expected at most {most}", more={"max_rows": most})
