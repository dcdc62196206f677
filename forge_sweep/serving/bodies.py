"""From the body of a request to raw numbers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from forge_sweep.errors import DataError
from forge_sweep.preprocessing import RowTransform
from forge_sweep.serving import tables

if TYPE_CHECKING:
    import pandas as pd

JSON = "application/json"
CSV = "text/csv"
ARROW = ("application/vnd.apache.arrow.stream", "application/vnd.apache.arrow.file")
MEDIA = (JSON, CSV, *ARROW)


class Refused(Exception):
    """A request that is not answered.

    Args:
        status: of HTTP.
        code: what is wrong, for machines.
        message: what is wrong, for people.
        more: other keys of the answer.
        headers: of the answer.
    """

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
        """The answer."""
        found: bytes = orjson.dumps({"error": {"code": self.code, "message": self.message, **self.more}})
        return found


@dataclass(frozen=True, eq=False, slots=True)
class Rows:
    """The rows of a request.

    Attributes:
        raw: raw numbers, (n, columns).
        cell: the value that came in, by position of the row and column name.
    """

    raw: np.ndarray | Sequence[Sequence[float]]
    cell: Callable[[int, str], Any]


def media_of(header: bytes) -> str:
    """The media type that is meant; JSON where none is given.

    Raises:
        Refused: it is none of `MEDIA`.
    """
    media = header.decode("latin-1").partition(";")[0].strip().lower() or JSON
    if media not in MEDIA:
        raise Refused(415, "media-type", f"Content-Type is {media[:100]!r}; expected one of {', '.join(MEDIA)}")
    return media


def read(media: str, body: bytes, transform: RowTransform, max_rows: int) -> Rows:
    """The rows of a body.

    Raises:
        Refused: it is not what its media type says, or has too many rows.
        RowsRefused: the rows do not fit the schema.
    """
    if media == JSON:
        return read_json(body, transform, max_rows)
    try:
        if media == CSV:
            table = tables.read_csv(body, list(transform.schema.names))
        else:
            table = tables.read_arrow(body, max_rows)
        refuse_length(table.num_rows, max_rows)
        with tables.readable("table"):
            frame = tables.framed(table, transform.schema, text=media == CSV)
    except DataError as error:
        raise Refused(400, "unreadable", error.message, more={"fix": error.hint}) from error
    return Rows(transform.read_frame(frame), cell_of(frame))


def read_json(body: bytes, transform: RowTransform, max_rows: int) -> Rows:
    """One row as an object, or several as an array of objects."""
    try:
        rows = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refused(400, "unreadable", f"the body is not JSON: {error}") from error
    if type(rows) is dict:
        refuse_repeated(body, len(rows))
        return Rows([transform.read(rows)], lambda _, name: rows[name])
    if type(rows) is not list:
        raise Refused(422, "rows", "the body is neither an object (one row) nor an array of objects (several rows)")
    refuse_length(len(rows), max_rows)
    for position, row in enumerate(rows):
        if type(row) is not dict:
            raise Refused(422, "rows", f"row {position} is no object; expected its values by column name")
    refuse_repeated(body, sum(map(len, rows)))
    return Rows(transform.read_all(rows), lambda position, name: rows[position][name])


def refuse_repeated(body: bytes, keys: int) -> None:
    """Raise Refused where an object has one key twice, of which a reader keeps the last.

    Every key of the text is followed by a colon outside of strings, so that as many colons as keys were read leave room
    for no other; only where there are more, in strings or in objects within objects, the text is read again.

    Args:
        body: JSON that was read already.
        keys: how many keys were found in it, those of nested objects left out.
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


def refuse_length(rows: int, most: int) -> None:
    """Raise Refused for too many rows."""
    if rows > most:
        raise Refused(422, "too-many-rows", f"{rows} rows; expected at most {most}", more={"max_rows": most})


def cell_of(frame: pd.DataFrame) -> Callable[[int, str], Any]:
    """Cells as JSON has them."""

    def cell(position: int, name: str) -> Any:
        value = frame[name].iloc[position]
        if value is None or value != value:
            return None
        return value.item() if isinstance(value, np.generic) else value if isinstance(value, str) else str(value)

    return cell
