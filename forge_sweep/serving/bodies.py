"""From the body of a request to raw numbers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from forge_sweep.errors import DataError
from forge_sweep.preprocessing import RowTransform
from forge_sweep.serving import tables

JSON = "application/json"
CSV = "text/csv"
ARROW = ("application/vnd.apache.arrow.stream", "application/vnd.apache.arrow.file")
MEDIA = (JSON, CSV, *ARROW)


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
    """The raw numbers (n, columns) of a request, and the value that came in by row and column name."""

    raw: np.ndarray | Sequence[Sequence[float]]
    cell: Callable[[int, str], Any]


def media_of(header: bytes) -> str:
    """The media type that is meant; JSON where none is given, Refused where it is none of `MEDIA`."""
    media = header.decode("latin-1").partition(";")[0].strip().lower() or JSON
    if media not in MEDIA:
        raise Refused(415, "media-type", f"Content-Type is {media[:100]!r}; expected one of {', '.join(MEDIA)}")
    return media


def read(media: str, body: bytes, transform: RowTransform, max_rows: int) -> Rows:
    """The rows of a body; RowsRefused where they do not fit the schema, Refused where anything else is wrong."""
    if media == JSON:
        return _read_json(body, transform, max_rows)
    try:
        if media == CSV:
            table = tables.read_csv(body, list(transform.schema.names))
        else:
            table = tables.read_arrow(body, max_rows)
        _refuse_length(table.num_rows, max_rows)
        with tables.readable("table"):
            frame = tables.framed(table, transform.schema, text=media == CSV)
    except DataError as error:
        raise Refused(400, "unreadable", error.message, more={"fix": error.hint}) from error

    def cell(position: int, name: str) -> Any:
        value = frame[name].iloc[position]
        if value is None or value != value:
            return None
        return value.item() if isinstance(value, np.generic) else value if isinstance(value, str) else str(value)

    return Rows(transform.read_frame(frame), cell)


def _read_json(body: bytes, transform: RowTransform, max_rows: int) -> Rows:
    try:
        rows = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refused(400, "unreadable", f"the body is not JSON: {error}") from error
    if type(rows) is dict:
        _refuse_repeated(body, len(rows))
        return Rows([transform.read(rows)], lambda _, name: rows[name])
    if type(rows) is not list:
        raise Refused(422, "rows", "the body is neither an object (one row) nor an array of objects (several rows)")
    _refuse_length(len(rows), max_rows)
    for position, row in enumerate(rows):
        if type(row) is not dict:
            raise Refused(422, "rows", f"row {position} is not an object; expected its values by column name")
    _refuse_repeated(body, sum(map(len, rows)))
    return Rows(transform.read_all(rows), lambda position, name: rows[position][name])


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
