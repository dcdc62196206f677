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
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from pandas.api.types import is_datetime64_any_dtype, is_integer_dtype, is_numeric_dtype

if TYPE_CHECKING:
    import pyarrow as pa

CONTENT_TAG = b"forge_sweep dataset 1\n"
SPLIT_TAG = b"forge_sweep split 1\n"
EXACT_INTEGER = 2**53  # float64 holds every integer up to here: IEEE 754, 53 bits of significand


def content_digest(frame: pd.DataFrame) -> str:
    """The content digest (64 hex digits) of all columns of a frame, whatever their order.

    Args:
        frame: rows in canonical order; columns of numbers, booleans, texts or times.
    """
    whole = hashlib.sha256(CONTENT_TAG + struct.pack("<QQ", *frame.shape))
    for name in sorted(frame.columns, key=str.encode):
        encoded = name.encode()
        whole.update(struct.pack("<Q", len(encoded)) + encoded + _column_entry(frame[name]))
    return whole.hexdigest()


def split_digest(roles: np.ndarray) -> str:
    """SHA-256 (64 hex digits) over the number of rows and one byte per row: 0 train, 1 valid, 2 test.

    Args:
        roles: (n,) int8 in canonical order.
    """
    return hashlib.sha256(SPLIT_TAG + struct.pack("<Q", len(roles)) + roles.astype("u1").tobytes()).hexdigest()


def fingerprints(features: pd.DataFrame) -> np.ndarray:
    """One uint64 per row (n,), equal for equal rows and for different rows different but for chance (n**2 / 2**65)."""
    names = sorted(features.columns, key=str.encode)
    canonical = pd.DataFrame({name: _canonical(features[name]) for name in names}, index=features.index)
    return pd.util.hash_pandas_object(canonical, index=False).to_numpy(np.uint64)


def _column_entry(values: pd.Series) -> bytes:
    canonical = _canonical(values)
    if isinstance(canonical, np.ndarray):
        return b"n" + hashlib.sha256(canonical.astype("<f8", copy=False).data).digest()
    lengths, text = _text_buffers(canonical)
    return b"t" + hashlib.sha256(lengths.data).digest() + hashlib.sha256(text.data).digest()


def _canonical(values: pd.Series) -> np.ndarray | pd.Series:
    """Numbers as float64 (n,) with one NaN and no negative zero; texts as a series."""
    if is_datetime64_any_dtype(values.dtype):
        values = nanoseconds(values)
    if is_integer_dtype(values.dtype) and not _exact(values):
        return values.astype("string")
    if is_numeric_dtype(values.dtype) or bool(values.isna().all()):
        numbers = pd.to_numeric(values).to_numpy(np.float64, na_value=np.nan) + 0.0  # -0.0 + 0.0 is +0.0
        numbers[np.isnan(numbers)] = np.nan
        return numbers
    return values


def nanoseconds(times: pd.Series) -> pd.Series:
    """Times as nanoseconds since 1970 UTC, Int64; times without a zone count as UTC."""
    utc = times.dt.tz_convert("UTC").dt.tz_localize(None) if getattr(times.dtype, "tz", None) else times
    return utc.astype("datetime64[ns]").astype("int64").astype("Int64").mask(utc.isna())


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
