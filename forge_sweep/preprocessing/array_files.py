"""Columns of arrays that stay in a file, for rows that do not fit in memory.

`ArrayFile` is the file, `MappedArray` a column of a frame whose cells are rows of it, and `Mapped` takes the place of
an array of such rows where rows are only taken out of it: in `TrainingData`, for instance. None of them reads a row
before it is asked for.

The file holds the values of all rows, little-endian, one after the other and nothing else. Beside it stand a
fingerprint, the least and the greatest value of each row, so that what looks for duplicates, blank images or the range
of values does not read it again. All of its values are finite.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.extensions import ExtensionArray, ExtensionDtype
from pandas.api.indexers import check_array_indexer

LET_GO = 64_000_000
"""Bytes that are read before this process lets go of a file's pages. The system keeps them where it has room."""

ADVISED = hasattr(mmap, "MADV_WILLNEED")  # not on Windows

BLOCK = 16_000_000
"""Bytes that are read at a time where all rows are gone through."""

PRINTS, LOW, HIGH = ".prints", ".low", ".high"
"""Suffixes of the files beside an array file."""


@dataclass(frozen=True)
class ArrayFile:
    """A file of arrays of one type and shape. Small, and can be pickled; a copy opens the file for itself.

    Attributes:
        path: the values.
        dtype: their type, such as ``uint8``.
        shape: of one row.
        rows: how many there are.
        digest: SHA-256 (hex) over the column in the order of the file, see `forge_sweep.sources.digest`.
        keeper: holds the file in place as long as it is referred to; not pickled.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    rows: int
    digest: str
    keeper: Any = field(default=None, compare=False, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return ArrayFile, (self.path, self.dtype, self.shape, self.rows, self.digest)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return int(math.prod(self.shape)) * np.dtype(self.dtype).itemsize

    def read(self, rows: np.ndarray) -> np.ndarray:
        """A copy of the rows (n,) at these positions, (n, ...)."""
        if ADVISED and len(rows):
            self._fetch(np.sort(rows) * self.row_bytes)
        found: np.ndarray = self._values[rows]
        self._read[0] += found.nbytes
        if ADVISED and self._read[0] > LET_GO:
            self._read[0] = 0
            self._pages.madvise(mmap.MADV_DONTNEED)
        return found

    def _fetch(self, begins: np.ndarray) -> None:
        """Ask the system for the pages of the rows that begin at these bytes, in order: for them all at a time.

        Left to itself it reads one row after the other, and far around each, which is eight times as much and more.
        """
        first, last = begins // mmap.PAGESIZE, (begins + self.row_bytes - 1) // mmap.PAGESIZE
        cuts = np.flatnonzero(first[1:] > last[:-1] + 1) + 1
        starts, ends = first[np.concatenate([[0], cuts])], last[np.concatenate([cuts, [len(first)]]) - 1] + 1
        for start, end in zip((starts * mmap.PAGESIZE).tolist(), (ends * mmap.PAGESIZE).tolist(), strict=True):
            self._pages.madvise(mmap.MADV_WILLNEED, start, min(end, len(self._pages)) - start)

    @cached_property
    def prints(self) -> np.ndarray:
        """A fingerprint per row (n,) uint64, as `forge_sweep.sources.digest.prints_of` makes it."""
        return np.fromfile(self.path.with_suffix(PRINTS), "<u8")

    @cached_property
    def low(self) -> np.ndarray:
        """The least value of each row (n,)."""
        return np.fromfile(self.path.with_suffix(LOW), self._little)

    @cached_property
    def high(self) -> np.ndarray:
        """The greatest value of each row (n,)."""
        return np.fromfile(self.path.with_suffix(HIGH), self._little)

    @property
    def _little(self) -> np.dtype[Any]:
        return np.dtype(self.dtype).newbyteorder("<")

    @cached_property
    def _pages(self) -> mmap.mmap:
        with self.path.open("rb") as file:
            pages = mmap.mmap(file.fileno(), self.rows * self.row_bytes, access=mmap.ACCESS_READ)
        if ADVISED:
            pages.madvise(mmap.MADV_RANDOM)
        return pages

    @cached_property
    def _values(self) -> np.ndarray:
        return np.frombuffer(self._pages, self._little).reshape(self.rows, *self.shape)

    @cached_property
    def _read(self) -> list[int]:
        return [0]


@dataclass(frozen=True, eq=False)
class Mapped:
    """Rows of an array file, in the place of an array (n, ...): slices and rows by position can be taken, as copies.

    Attributes:
        file: where they are.
        rows: (n,) positions in the file.
        scale: what they are multiplied by, as float32; None for the values as they are in the file.
    """

    file: ArrayFile
    rows: np.ndarray
    scale: float | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of what is taken out."""
        return np.dtype(self.file.dtype if self.scale is None else np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array."""
        return len(self.rows), *self.file.shape

    @property
    def ndim(self) -> int:
        """As of an array."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """What all rows would take in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: slice | np.ndarray) -> np.ndarray:
        return scaled(self.file.read(self.rows[key]), self.scale)

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError(f"rows of {self.file.path} are to be taken in parts: all of them may not fit in memory")

    def scaled(self, scale: float) -> Mapped:
        """The same rows as float32, multiplied by this."""
        return replace(self, scale=scale)


def scaled(values: np.ndarray, scale: float | None) -> np.ndarray:
    """Values as float32 times ``scale``; None leaves them as they are."""
    if scale is None:
        return values
    with np.errstate(over="ignore"):
        made = values.astype(np.float32)
    return made if scale == 1.0 else made * np.float32(scale)


class MappedDtype(ExtensionDtype):
    """The type of a `MappedArray`. It is called as that of arrays in memory is, which hold the same."""

    name = "object"
    type = np.ndarray
    na_value = None

    @classmethod
    def construct_array_type(cls) -> Any:
        """See pandas."""
        return MappedArray

    def __hash__(self) -> int:
        return hash(MappedDtype)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MappedDtype)


class MappedArray(ExtensionArray):
    """A column whose cells are rows of an array file, at these positions (n,); made when they are asked for."""

    def __init__(self, file: ArrayFile, rows: np.ndarray) -> None:
        self.mapped = Mapped(file, rows)

    @classmethod
    def _from_sequence(cls, scalars: Any, *, dtype: Any = None, copy: bool = False) -> MappedArray:
        """Pandas' hook, for what is none yet: such a column comes from a file only."""
        if isinstance(scalars, MappedArray):
            return scalars
        raise TypeError("arrays of memory cannot become a column of a file")

    @classmethod
    def _concat_same_type(cls, to_concat: Sequence[MappedArray]) -> MappedArray:
        """Pandas' hook: columns one below the other."""
        files = {each.mapped.file for each in to_concat}
        if len(files) > 1:
            raise TypeError("columns of different files cannot become one")
        return cls(files.pop(), np.concatenate([each.mapped.rows for each in to_concat]))

    dtype = MappedDtype()

    @property
    def nbytes(self) -> int:
        """What the column takes in memory."""
        return self.mapped.rows.nbytes

    def __len__(self) -> int:
        return len(self.mapped)

    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, int | np.integer):
            return self.mapped[np.array([item])][0]
        return MappedArray(self.mapped.file, self.mapped.rows[check_array_indexer(self, item)])

    def __iter__(self) -> Iterator[np.ndarray]:
        step = max(1, BLOCK // max(self.mapped.file.row_bytes, 1))
        for start in range(0, len(self), step):
            yield from self.mapped[start : start + step]

    def __eq__(self, other: object) -> Any:
        raise TypeError("arrays are compared by their fingerprints")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        found = np.empty(len(self), object)
        for row, cell in enumerate(self):
            found[row] = cell
        return found

    def isna(self) -> np.ndarray:
        """None of the cells is missing."""
        return np.zeros(len(self), bool)

    def take(self, indices: Any, *, allow_fill: bool = False, fill_value: Any = None) -> MappedArray:
        """See pandas; there is nothing to fill gaps with."""
        if allow_fill and (np.asarray(indices) < 0).any():
            raise ValueError("an array has no missing values")
        return MappedArray(self.mapped.file, self.mapped.rows[np.asarray(indices, np.intp)])

    def copy(self) -> MappedArray:
        """The same: nothing of it can be changed."""
        return self


def mapped(series: pd.Series) -> Mapped | None:
    """The rows of a column that lie in a file; None for others."""
    return series.array.mapped if isinstance(series.array, MappedArray) else None


def in_memory(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with the arrays of files as arrays in memory; for a few rows."""
    held = {name: np.asarray(frame[name].array) for name in frame if mapped(frame[name]) is not None}
    return frame.assign(**{str(name): pd.Series(cells, frame.index, object) for name, cells in held.items()})
