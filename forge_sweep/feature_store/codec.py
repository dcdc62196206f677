"""Rows in the binary format of COPY, to and from NumPy arrays.

The format is the one of PostgreSQL's manual, COPY, "Binary Format". All but the last fields of a row have a fixed
width, so whole blocks of rows are one structured array; what varies (the split's name, a key of text) stands at the
end.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import numpy as np

BLOCK_ROWS = 16_384
"""Rows that are handled at a time. Larger ones are slower: the allocator takes their memory anew from the system."""

Chunk = bytes | bytearray | memoryview

HEADER = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
TRAILER = struct.pack(">h", -1)
NULL = struct.pack(">i", -1)
FLOAT8 = 701  # pg_type.oid of float8

INSERTED = "dataset_version, source_row, raw_vector, scaled_vector, labels, normalization_version, split, row_key"
"""The columns that `encode` writes, in order."""


@dataclass(frozen=True, eq=False)
class Block:
    """Some rows, as they are stored.

    Attributes:
        splits: (n,) int8: 0 train, 1 val, 2 test.
        source_rows: (n,) int64.
        raw: (n, k) float64.
        labels: (n, t) float64.
        keys: (n,) numbers, or texts; None where there is no key.
    """

    splits: np.ndarray
    source_rows: np.ndarray
    raw: np.ndarray
    labels: np.ndarray
    keys: np.ndarray | list[str] | None = None

    def of_split(self, code: int) -> Block:
        """The rows of one split."""
        return self.take(np.flatnonzero(self.splits == code))

    def take(self, rows: np.ndarray) -> Block:
        """Some of the rows."""
        keys = [self.keys[row] for row in rows] if isinstance(self.keys, list) else self.keys
        keys = keys[rows] if isinstance(keys, np.ndarray) else keys
        return Block(self.splits[rows], self.source_rows[rows], self.raw[rows], self.labels[rows], keys)


def _vector(width: int) -> list[Any]:
    """Fields of a FLOAT8[] of one dimension: its length in bytes, the array's head, its elements."""
    head = [(name, ">i4") for name in ("bytes", "dimensions", "nulls", "type", "size", "first")]
    return [*head, ("elements", [("bytes", ">i4"), ("value", ">f8")], (width,))] if width else head[:4]


def _begin_vector(field: np.ndarray, width: int) -> None:
    """Write all of a field of type `_vector` but its values."""
    constants = {"bytes": 20 + 12 * width if width else 12, "dimensions": 1 if width else 0, "nulls": 0, "type": FLOAT8}
    for name, constant in constants.items():
        field[name] = constant
    if width:
        field["size"], field["first"] = width, 1
        field["elements"]["bytes"] = 8


class Encoder:
    """Makes rows of one version for ``COPY ... FROM STDIN (FORMAT binary)``; see `INSERTED`.

    Args:
        version_id: number of the version.
        normalization_version: as every row of it names it.
        splits: what the store calls the splits, by code.
    """

    def __init__(self, version_id: int, normalization_version: str, splits: Sequence[str]) -> None:
        self._version_id = version_id
        self._normalization = normalization_version.encode()
        self._splits = [_text(name) for name in splits]
        self._template: np.ndarray | None = None

    def encode(self, block: Block, scaled: np.ndarray) -> bytes:
        """The rows of a block with their scaled vectors, (n, m) float64."""
        vectors = {"raw": block.raw, "scaled": scaled, "labels": block.labels}
        rows = self._rows(len(block.splits), {name: values.shape[1] for name, values in vectors.items()})
        rows["source_row"]["value"] = block.source_rows
        for name, values in vectors.items():
            if values.shape[1]:
                rows[name]["elements"]["value"] = values
        fixed, width = rows.view(np.uint8).data, rows.itemsize
        heads = (fixed[start : start + width] for start in range(0, len(fixed), width))
        return b"".join(chain.from_iterable(zip(heads, self._tails(block), strict=True)))

    def _tails(self, block: Block) -> Iterator[bytes]:
        """Split and key of every row."""
        names = map(self._splits.__getitem__, block.splits.tolist())
        if block.keys is None:
            return (name + NULL for name in names)
        return (name + _text(key) for name, key in zip(names, block.keys, strict=True))

    def _rows(self, n: int, widths: dict[str, int]) -> np.ndarray:
        """Rows with all that is the same in each; their memory is used again for the next block."""
        if self._template is None or len(self._template) < n:
            row = [
                ("fields", ">i2"),
                ("version", [("bytes", ">i4"), ("value", ">i4")]),
                ("source_row", [("bytes", ">i4"), ("value", ">i8")]),
                *((name, _vector(width)) for name, width in widths.items()),
                ("normalization", [("bytes", ">i4"), ("text", f"S{len(self._normalization)}")]),
            ]
            rows = np.empty(n, np.dtype(row))
            rows["fields"] = 8
            rows["version"]["bytes"], rows["version"]["value"] = 4, self._version_id
            rows["source_row"]["bytes"] = 8
            for name, width in widths.items():
                _begin_vector(rows[name], width)
            rows["normalization"]["bytes"] = len(self._normalization)
            rows["normalization"]["text"] = self._normalization
            self._template = rows
        return self._template[:n]


class Decoder:
    """Makes blocks of what ``COPY (SELECT split, source_row, raw_vector, labels[, key]) TO STDOUT`` sends in binary.

    Args:
        raw: elements of ``raw_vector``.
        labels: elements of ``labels``.
        key: what the query makes of the key: ``">i8"``, ``">f8"``, ``"text"``, or None without one.
    """

    def __init__(self, raw: int, labels: int, key: str | None) -> None:
        fields = [
            ("fields", ">i2"),
            ("split", [("bytes", ">i4"), ("value", ">i2")]),
            ("source_row", [("bytes", ">i4"), ("value", ">i8")]),
            ("raw", _vector(raw)),
            ("labels", _vector(labels)),
        ]
        if key in (">i8", ">f8"):
            fields.append(("key", [("bytes", ">i4"), ("value", key)]))
        self._row = np.dtype(fields)
        self._expected = {"fields": 4 + (key is not None), "raw": raw, "labels": labels}
        self._key = key

    def blocks(self, chunks: Iterable[Chunk]) -> Iterator[Block]:
        """Blocks of at most `BLOCK_ROWS` rows, from chunks that end anywhere.

        Raises:
            ValueError: these are no such rows, or the last one is cut off.
        """
        if self._key == "text":
            yield from self._with_text(chunks)
            return
        rest = b""
        for pending in _gathered(chunks, BLOCK_ROWS * self._row.itemsize):
            rest += pending
            whole = len(rest) // self._row.itemsize
            # The trailer is shorter than a row, so what is left over never makes one.
            for first in range(0, whole, BLOCK_ROWS):
                rows = np.frombuffer(rest, self._row, min(BLOCK_ROWS, whole - first), first * self._row.itemsize)
                yield self._block(rows, None)
            rest = rest[whole * self._row.itemsize :]
        _require(rest == TRAILER)

    def _with_text(self, chunks: Iterable[Chunk]) -> Iterator[Block]:
        """Rows that end with a text: their places are found one by one."""
        width, rest = self._row.itemsize, b""
        for pending in _gathered(chunks, BLOCK_ROWS * width):
            rest += pending
            at, heads, keys = 0, [], []
            while at + width + 4 <= len(rest):
                (size,) = struct.unpack_from(">i", rest, at + width)
                end = at + width + 4 + size
                if end > len(rest):
                    break
                _require(size >= 0)
                heads.append(rest[at : at + width])
                keys.append(rest[end - size : end].decode())
                at = end
            rest = rest[at:]
            if heads:
                yield self._block(np.frombuffer(b"".join(heads), self._row), keys)
        _require(rest == TRAILER)

    def _block(self, rows: np.ndarray, keys: list[str] | None) -> Block:
        _require(bool((rows["fields"] == self._expected["fields"]).all()))
        for name in ("raw", "labels"):
            if self._expected[name]:
                _require(bool((rows[name]["size"] == self._expected[name]).all()))
        return Block(
            splits=rows["split"]["value"].astype(np.int8),
            source_rows=rows["source_row"]["value"].astype(np.int64),
            raw=_elements(rows, "raw", self._expected["raw"]),
            labels=_elements(rows, "labels", self._expected["labels"]),
            keys=rows["key"]["value"].astype(self._key[1:]) if self._key in (">i8", ">f8") else keys,
        )


def _elements(rows: np.ndarray, name: str, width: int) -> np.ndarray:
    """The vectors of a field as float64 (n, width)."""
    if not width:
        return np.empty((len(rows), 0))
    return np.asarray(rows[name]["elements"]["value"].astype(np.float64))


def _gathered(chunks: Iterable[Chunk], size: int) -> Iterator[bytes]:
    """The chunks without the header, joined to pieces of at least ``size`` bytes; the last one is what is left."""
    pieces: list[Chunk] = []
    length, header = 0, True
    for chunk in chunks:
        pieces.append(chunk)
        length += len(chunk)
        if length >= size + len(HEADER):
            yield _without_header(b"".join(pieces), header)
            pieces, length, header = [], 0, False
    yield _without_header(b"".join(pieces), header)


def _without_header(piece: bytes, header: bool) -> bytes:
    if not header:
        return piece
    _require(piece.startswith(HEADER))
    return piece[len(HEADER) :]


def _require(holds: bool) -> None:
    if not holds:
        raise ValueError("the server sent rows of another form than asked for")


def _text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack(">i", len(encoded)) + encoded


T = TypeVar("T")


def ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items, each made by another thread while the one before it is worked on.

    The database and this process then both have work all the time; NumPy, hashing and waiting for a socket all leave
    Python to others. At most one item waits.
    """
    iterator = iter(items)
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="forge-sweep-ahead") as thread:
        coming = thread.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, iterator, end)
            yield item  # type: ignore[misc]  # the one object that is no item is the end
