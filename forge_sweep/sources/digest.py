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
``a`` arrays
    The SHA-256 of the type and shape of a cell (as text, such as ``uint8 8 8 1``), then of the little-endian values of
    all cells one after the other, rows first.

So both kinds can be computed column by column from a stream of blocks, in memory that does not grow with the rows.
What counts as content (features, targets and key) is decided by `forge_sweep.sources.assemble`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pandas.api.types import is_datetime64_any_dtype, is_integer_dtype, is_numeric_dtype

from forge_sweep.errors import DataError
from forge_sweep.preprocessing import is_tensor, mapped

CONTENT_TAG = b"forge_sweep dataset 1\n"
SPLIT_TAG = b"forge_sweep split 1\n"
Kind = Literal["n", "t", "a"]
EXACT_INTEGER = 2**53  # float64 holds every integer up to here: IEEE 754, 53 bits of significand


class ContentDigest:
    """The content digest of rows that come in blocks.

    Args:
        rows: number of all rows.
        kinds: per column its kind, which is a property of the whole column: see `kinds_of`.
    """

    def __init__(self, rows: int, kinds: Mapping[str, Kind]) -> None:
        self._rows, self._seen, self._kinds = rows, 0, kinds
        names = sorted(kinds, key=str.encode)
        self._values = {name: hashlib.sha256() for name in names}  # of texts: over their lengths
        self._begun: dict[str, bool] = {}
        self._known: dict[str, bytes] = {}
        self._texts = {name: hashlib.sha256() for name in names if kinds[name] == "t"}

    def update(self, block: pd.DataFrame) -> None:
        """Take the next rows in canonical order: columns of numbers, booleans, texts or times, by the names given."""
        self._seen += len(block)
        for name, values in self._values.items():
            if self._kinds[name] == "a":
                rows = mapped(block[name])
                if rows is not None and np.array_equal(rows.rows, np.arange(self._rows)):
                    self._known[name] = bytes.fromhex(rows.file.digest)  # computed when the file was written
                    continue
                for cell in block[name]:
                    if not self._begun.setdefault(name, False):
                        values.update(head_of(cell))
                        self._begun[name] = True
                    values.update(little(cell))
            elif self._kinds[name] == "n":
                values.update(np.ascontiguousarray(_numbers(block[name]), "<f8").data)
            else:
                lengths, text = _text_buffers(_texts(block[name]))
                values.update(lengths.data)
                self._texts[name].update(text.data)

    def hexdigest(self) -> str:
        """The 64 hex digits, once every row was taken."""
        assert self._seen == self._rows, f"{self._seen} rows of {self._rows}"
        whole = hashlib.sha256(CONTENT_TAG + struct.pack("<QQ", self._rows, len(self._values)))
        for name, values in self._values.items():
            encoded = name.encode()
            texts = self._texts[name].digest() if name in self._texts else b""
            whole.update(struct.pack("<Q", len(encoded)) + encoded + self._kinds[name].encode())
            whole.update(self._known.get(name, values.digest()) + texts)
        return whole.hexdigest()


def content_digest(frame: pd.DataFrame) -> str:
    """The content digest (64 hex digits) of a frame in canonical order, whatever the order of its columns."""
    digest = ContentDigest(len(frame), kinds_of(frame))
    digest.update(frame)
    return digest.hexdigest()


def kinds_of(frame: pd.DataFrame) -> dict[str, Kind]:
    """How each column counts: as numbers or as texts; a column without any value is of numbers."""
    return {str(name): _kind(_without_times(frame[name])) for name in frame.columns}


def split_digest(roles: np.ndarray) -> str:
    """SHA-256 (64 hex digits) over the number of rows and their roles (n,) in canonical order, one byte each."""
    return hashlib.sha256(SPLIT_TAG + struct.pack("<Q", len(roles)) + roles.astype("u1").tobytes()).hexdigest()


def fingerprints(features: pd.DataFrame, kinds: Mapping[str, Kind] | None = None) -> np.ndarray:
    """One uint64 per row (n,), equal for equal rows and for different rows different but for chance (n**2 / 2**65).

    ``kinds`` are those of whole columns, where these rows are a part of them; by default as the rows show them.
    """
    kinds = kinds or kinds_of(features)
    making = {"n": _numbers, "t": _texts, "a": prints_of}
    canonical = {name: making[kinds[name]](features[name]) for name in sorted(features.columns, key=str.encode)}
    frame = pd.DataFrame(canonical, index=features.index)
    return pd.util.hash_pandas_object(frame, index=False).to_numpy(np.uint64)


def little(cell: np.ndarray) -> bytes:
    """The values of an array in C order, little-endian."""
    return np.ascontiguousarray(cell, cell.dtype.newbyteorder("<")).tobytes()


def head_of(cell: np.ndarray) -> bytes:
    """Type and shape of an array, with which the digest of its column begins."""
    return f"{cell.dtype.name} {' '.join(map(str, cell.shape))}".encode()


def prints_of(arrays: pd.Series) -> np.ndarray:
    """A uint64 per array (n,), equal for equal ones and else different but for chance."""
    if (rows := mapped(arrays)) is not None:
        return np.asarray(rows.file.prints[rows.rows])
    hashed = (hashlib.blake2b(little(cell), digest_size=8).digest() for cell in arrays)
    return np.frombuffer(b"".join(hashed), "<u8")


def _kind(values: pd.Series) -> Kind:
    if is_tensor(values):
        return "a"
    if is_integer_dtype(values.dtype):
        present = values.dropna()
        exact = present.empty or (int(present.max()) <= EXACT_INTEGER and int(present.min()) >= -EXACT_INTEGER)
        return "n" if exact else "t"
    return "n" if is_numeric_dtype(values.dtype) or bool(values.isna().all()) else "t"


def _numbers(values: pd.Series) -> np.ndarray:
    """Float64 (n,) with one NaN and no negative zero."""
    numbers = pd.to_numeric(_without_times(values)).to_numpy(np.float64, na_value=np.nan) + 0.0  # -0.0 + 0.0 is +0.0
    numbers[np.isnan(numbers)] = np.nan
    return numbers


def _texts(values: pd.Series) -> pd.Series:
    values = _without_times(values)
    return values.astype("string") if is_integer_dtype(values.dtype) else values


def _without_times(values: pd.Series) -> pd.Series:
    return nanoseconds(values) if is_datetime64_any_dtype(values.dtype) else values


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


def _text_buffers(values: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Lengths (n,) int64 with -1 for missing, and all UTF-8 bytes one after the other (uint8)."""
    texts = pa.array(values, type=pa.large_string(), from_pandas=True)
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks()
    lengths = pc.fill_null(pc.binary_length(texts), -1).to_numpy(zero_copy_only=False)
    filled = pc.fill_null(texts, "")  # a missing slot may hold bytes of its own
    _, offsets, data = filled.buffers()
    bounds = np.frombuffer(offsets, np.int64)[filled.offset : filled.offset + len(filled) + 1]
    text = np.frombuffer(data, np.uint8)[bounds[0] : bounds[-1]] if data and data.size else np.empty(0, np.uint8)
    return lengths.astype("<i8", copy=False), text
