r"""Digests over the content of a dataset: over values, not over how a file or a database stores them.

The content digest, format 1, is the SHA-256 of::

    b"forge_sweep dataset 1\n"   rows (uint64)   columns (uint64)
    then for each column, in the order of its UTF-8 name:
        length of the name (uint64)   name (UTF-8)   kind (1 byte)   digests of the values (32 or 64 bytes)

with all integers little-endian, rows in canonical order, and a column being one of

``n`` numbers
    The SHA-256 of the values as little-endian float64, with one NaN (0x7ff8000000000000) for missing and +0.0 for
    zero. Booleans are 0 and 1, integers count when float64 holds all of them (up to 2**53). A column with no value at
    all is of this kind, whatever its type.
``t`` texts
    The SHA-256 of the lengths in bytes (int64, -1 for missing), then the SHA-256 of the UTF-8 bytes of all values one
    after the other. Larger integers are their decimal digits; times are nanoseconds since 1970 UTC, as an integer.

So both kinds can be computed column by column from a stream of blocks, in memory that does not grow with the rows.
What counts as content (features, targets and key) is decided by `forge_sweep.sources.assemble`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from pandas.api.types import is_datetime64_any_dtype, is_integer_dtype, is_numeric_dtype

from forge_sweep.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

CONTENT_TAG = b"forge_sweep dataset 1\n"
SPLIT_TAG = b"forge_sweep split 1\n"
Kind = Literal["n", "t"]
EXACT_INTEGER = 2**53  # float64 holds every integer up to here: IEEE 754, 53 bits of significand


class ContentDigest:
    """The content digest of rows that come in blocks, in memory that does not grow with the rows.

    Args:
        rows: number of all rows.
        kinds: per column its kind, which is a property of the whole column: see `kinds_of`.
    """

    def __init__(self, rows: int, kinds: Mapping[str, Kind]) -> None:
        self._rows = rows
        self._seen = 0
        self._columns = {name: ColumnDigest(kinds[name]) for name in sorted(kinds, key=str.encode)}

    def update(self, block: pd.DataFrame) -> None:
        """Take the next rows in canonical order.

        Args:
            block: columns of numbers, booleans, texts or times, by the names given.
        """
        self._seen += len(block)
        for name, column in self._columns.items():
            column.update(block[name])

    def hexdigest(self) -> str:
        """The 64 hex digits, once every row was taken."""
        assert self._seen == self._rows, f"{self._seen} rows of {self._rows}"
        whole = hashlib.sha256(CONTENT_TAG + struct.pack("<QQ", self._rows, len(self._columns)))
        for name, column in self._columns.items():
            encoded = name.encode()
            whole.update(struct.pack("<Q", len(encoded)) + encoded + column.entry())
        return whole.hexdigest()


class ColumnDigest:
    """What one column adds to the content digest: its kind, then one digest for numbers or two for texts."""

    def __init__(self, kind: Kind) -> None:
        self._kind: Kind = kind
        self._values = hashlib.sha256()
        self._texts = hashlib.sha256()

    def update(self, values: pd.Series) -> None:
        """Take the next values of the column."""
        if self._kind == "n":
            self._values.update(np.ascontiguousarray(_numbers(values), "<f8").data)
            return
        lengths, text = _text_buffers(_texts(values))
        self._values.update(lengths.data)
        self._texts.update(text.data)

    def entry(self) -> bytes:
        """The kind and the digests."""
        more = self._texts.digest() if self._kind == "t" else b""
        return self._kind.encode() + self._values.digest() + more


def content_digest(frame: pd.DataFrame) -> str:
    """The content digest (64 hex digits) of all columns of a frame, whatever their order.

    Args:
        frame: rows in canonical order; columns of numbers, booleans, texts or times.
    """
    digest = ContentDigest(len(frame), kinds_of(frame))
    digest.update(frame)
    return digest.hexdigest()


def kinds_of(frame: pd.DataFrame) -> dict[str, Kind]:
    """How each column counts: as numbers or as texts; a column without any value is of numbers."""
    return {str(name): _kind(frame[name]) for name in frame.columns}


def split_digest(roles: np.ndarray) -> str:
    """SHA-256 (64 hex digits) over the number of rows and one byte per row: 0 train, 1 valid, 2 test.

    Args:
        roles: (n,) int8 in canonical order.
    """
    return hashlib.sha256(SPLIT_TAG + struct.pack("<Q", len(roles)) + roles.astype("u1").tobytes()).hexdigest()


def fingerprints(features: pd.DataFrame, kinds: Mapping[str, Kind] | None = None) -> np.ndarray:
    """One uint64 per row (n,), equal for equal rows and for different rows different but for chance (n**2 / 2**65).

    Args:
        features: (n, features) rows.
        kinds: the kinds of whole columns, where these rows are a part of them; else as the rows show them.
    """
    kinds = kinds or kinds_of(features)
    canonical = {
        name: _numbers(features[name]) if kinds[name] == "n" else _texts(features[name])
        for name in sorted(features.columns, key=str.encode)
    }
    frame = pd.DataFrame(canonical, index=features.index)
    return pd.util.hash_pandas_object(frame, index=False).to_numpy(np.uint64)


def _kind(values: pd.Series) -> Kind:
    if is_datetime64_any_dtype(values.dtype):
        values = nanoseconds(values)
    if is_integer_dtype(values.dtype) and not _exact(values):
        return "t"
    return "n" if is_numeric_dtype(values.dtype) or bool(values.isna().all()) else "t"


def _numbers(values: pd.Series) -> np.ndarray:
    """Float64 (n,) with one NaN and no negative zero."""
    if is_datetime64_any_dtype(values.dtype):
        values = nanoseconds(values)
    numbers = pd.to_numeric(values).to_numpy(np.float64, na_value=np.nan) + 0.0  # -0.0 + 0.0 is +0.0
    numbers[np.isnan(numbers)] = np.nan
    return numbers


def _texts(values: pd.Series) -> pd.Series:
    if is_datetime64_any_dtype(values.dtype):
        values = nanoseconds(values)
    return values.astype("string") if is_integer_dtype(values.dtype) else values


def nanoseconds(times: pd.Series) -> pd.Series:
    """Times as nanoseconds since 1970 UTC, Int64; times without a zone count as UTC."""
    utc = times.dt.tz_convert("UTC").dt.tz_localize(None) if getattr(times.dtype, "tz", None) else times
    try:
        utc = utc.astype("datetime64[ns]")
    except pd.errors.OutOfBoundsDatetime as error:
        raise DataError(
            f"column {times.name!r} holds times beyond those of 64-bit nanoseconds: {error}",
            hint="expected times from 1677 to 2262: write such times as missing, as text, or name another column",
        ) from error
    return utc.astype("int64").astype("Int64").mask(utc.isna())


def _exact(integers: pd.Series) -> bool:
    present = integers.dropna()
    return present.empty or (int(present.max()) <= EXACT_INTEGER and int(present.min()) >= -EXACT_INTEGER)


def _text_buffers(values: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Lengths (n,) int64 with -1 for missing, and all UTF-8 bytes one after the other (uint8)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = _one_array(pa.array(values, type=pa.large_string(), from_pandas=True))
    lengths = pc.fill_null(pc.binary_length(texts), -1).to_numpy(zero_copy_only=False)
    filled = pc.fill_null(texts, "")  # a missing slot may hold bytes of its own
    _, offsets, data = filled.buffers()
    bounds = np.frombuffer(offsets, np.int64)[filled.offset : filled.offset + len(filled) + 1]
    text = np.frombuffer(data, np.uint8)[bounds[0] : bounds[-1]] if data and data.size else np.empty(0, np.uint8)
    return lengths.astype("<i8", copy=False), text


def _one_array(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    return array.combine_chunks() if hasattr(array, "combine_chunks") else array
