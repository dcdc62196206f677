"""How a column of a dataset is kept in a FLOAT8[] and comes back as it was."""

from __future__ import annotations

import io
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from forge_sweep.errors import DataError, Key
from forge_sweep.sources.assemble import tidy_column
from forge_sweep.sources.digest import EXACT_INTEGER, Kind, nanoseconds
from forge_sweep.sources.reading import MISSING_WORDS

if TYPE_CHECKING:
    import pyarrow as pa

Dtype = Literal["int64", "uint64", "float64", "bool", "boolean", "text", "datetime"]


@dataclass(frozen=True)
class StoredColumn:
    """One column as the rows of a version show it.

    Attributes:
        name: column name.
        dtype: type that `forge_sweep.sources.assemble.tidy` gives the whole column: ``boolean`` has missing values,
            ``bool`` has none; ``text`` is kept as a code, the position in ``categories``; ``datetime`` only as a key.
        kind: how the content digest sees the whole column, see `forge_sweep.sources.digest`.
        categories: every text of training and validation rows in order; only of ``text``, and empty for a key, which is
            no code.
        unseen: texts that only test rows have, whose codes follow; empty where they are out of reach.
    """

    name: str
    dtype: Dtype
    kind: Kind
    categories: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()

    def decode(self, numbers: np.ndarray) -> Any:
        """The values of a column as an array that a frame takes over.

        Args:
            numbers: (n,) float64 as stored; NaN is missing.
        """
        if self.dtype == "text":
            codes = np.where(np.isnan(numbers), -1, numbers).astype(np.intp)
            texts = [*self.categories, *self.unseen]
            if not texts:
                return pd.array([np.nan] * len(codes), dtype="str")
            return pd.array(texts, dtype="str").take(codes, allow_fill=True)
        if self.dtype == "boolean":
            return pd.arrays.BooleanArray(numbers == 1, np.isnan(numbers))
        return numbers.astype({"bool": bool}.get(self.dtype, self.dtype), copy=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON values that `from_dict` reads, without ``unseen``: who reads them may not see test rows."""
        values = asdict(self)
        del values["unseen"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StoredColumn:
        """The column that `to_dict` wrote."""
        return cls(values["name"], values["dtype"], values["kind"], tuple(values["categories"]))


def decode(columns: Sequence[StoredColumn], vectors: np.ndarray, index: np.ndarray) -> pd.DataFrame:
    """The frame that was stored, types included.

    Args:
        columns: k columns in the order of the vectors.
        vectors: (n, k) float64.
        index: (n,) what the frame calls its rows.
    """
    values = {column.name: column.decode(vectors[:, position]) for position, column in enumerate(columns)}
    return pd.DataFrame(values, index=pd.Index(index))


def key_texts(key: pd.Series) -> list[str]:
    """The values of a key as text that `key_values` turns back."""
    if pd.api.types.is_datetime64_any_dtype(key.dtype):
        key = nanoseconds(key)
    if pd.api.types.is_float_dtype(key.dtype):
        return [repr(value) for value in key.tolist()]  # the shortest text that gives the same float64 again
    return [str(value) for value in key.tolist()]


def key_values(column: StoredColumn, keys: np.ndarray | Sequence[str]) -> pd.Series:
    """The values of a key; times as nanoseconds since 1970 UTC, whose digest is that of the times.

    Args:
        column: the key.
        keys: (n,) as they were read: numbers where the query made them such, else as `key_texts` gave them.
    """
    if column.dtype == "text":
        return pd.Series(list(keys), dtype="str")
    return pd.Series(np.array(keys, dtype="uint64" if column.dtype == "uint64" else None))


MOST_CATEGORIES = 100_000
"""Texts that one column may have: beyond that it is free text, not a category."""

MOSTLY = 0.9
"""Share of numbers from which on a column of text counts as one of numbers with mistakes."""

TRUE, FALSE = ("1", "true", "True", "TRUE"), ("0", "false", "False", "FALSE")
"""Arrow's words for booleans in CSV files."""

WHOLE = r"\s*[+-]?\d+\s*"
WHOLE_CODE = re.compile(r"-?\d+\.0+")


class Coder(ABC):
    """One column: codes its values, and remembers what all of them have in common.

    Args:
        name: column name.
    """

    expected = "numbers"

    def __init__(self, name: str) -> None:
        self.name = name
        self.missing = False

    @abstractmethod
    def code(self, values: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
        """Values (n,) as float64 with NaN for missing, and which of them (n,) are none of the column's kind."""

    def inexact(self, values: pa.ChunkedArray, coded: np.ndarray) -> np.ndarray:
        """Which coded values (n,) may not be what stands in the file."""
        return np.zeros(len(coded), bool)

    def unstorable(self, coded: np.ndarray) -> np.ndarray:
        """Which coded values (n,) PostgreSQL does not take."""
        return np.zeros(len(coded), bool)

    def accept(self, coded: np.ndarray) -> None:
        """Record values (m,) whose rows are kept."""
        self.missing = self.missing or bool(np.isnan(coded).any())

    @abstractmethod
    def column(self) -> StoredColumn:
        """The column, once all rows were seen."""

    def remap(self) -> np.ndarray | None:
        """Final code by provisional code; None where codes are final."""
        return None

    def _stored(self, dtype: Dtype, *, empty: bool, categories: tuple[str, ...] = ()) -> StoredColumn:
        kind: Kind = "t" if dtype == "text" and not empty else "n"
        return StoredColumn(self.name, dtype, kind, categories)


class NumberCoder(Coder):
    """Numbers of a Parquet file, or of a CSV file as text."""

    def __init__(self, name: str, dtype: Dtype = "int64") -> None:
        super().__init__(name)
        self._dtype: Dtype = dtype
        self._any = False

    def code(self, values: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
        """See `Coder`."""
        import pyarrow as pa

        if pa.types.is_large_string(values.type):
            coded, wrong, whole = _parsed(values)
            if not whole:
                self._dtype = "float64"
        else:
            coded, wrong = _floats(values), np.zeros(len(values), bool)
        return coded, wrong

    def inexact(self, values: pa.ChunkedArray, coded: np.ndarray) -> np.ndarray:
        """See `Coder`. 2**53 may have been 2**53 + 1; what is written as a float is what float64 makes of it."""
        import pyarrow as pa

        large: np.ndarray = np.abs(coded) >= EXACT_INTEGER
        if self._dtype != "float64" or pa.types.is_decimal(values.type) or not large.any():
            return large
        if not pa.types.is_large_string(values.type):
            return np.zeros(len(coded), bool)
        large[large] = values.filter(pa.array(large)).to_pandas().str.fullmatch(WHOLE).to_numpy(bool)
        return large

    def accept(self, coded: np.ndarray) -> None:
        """See `Coder`."""
        missing = np.isnan(coded)
        self.missing = self.missing or bool(missing.any())
        self._any = self._any or not bool(missing.all())

    def column(self) -> StoredColumn:
        """See `Coder`; whole numbers with a missing value are float64, as everywhere."""
        return self._stored("float64" if self.missing or not self._any else self._dtype, empty=not self._any)


class BooleanCoder(Coder):
    """Booleans of a Parquet file, or the words for them in a CSV file."""

    expected = "true or false"

    def code(self, values: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
        """See `Coder`."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if not pa.types.is_large_string(values.type):
            return _floats(values), np.zeros(len(values), bool)
        true, false, missing = (
            _mask(mask)
            for mask in (pc.is_in(values, pa.array(TRUE)), pc.is_in(values, pa.array(FALSE)), pc.is_null(values))
        )
        return np.where(true, 1.0, np.where(false, 0.0, np.nan)), ~(true | false | missing)

    def column(self) -> StoredColumn:
        """See `Coder`."""
        return self._stored("boolean" if self.missing else "bool", empty=False)


class TextCoder(Coder):
    """Texts, as codes in the order of their first appearance; `remap` puts them in the order of the texts.

    Args:
        name: column name.
        declared: whether these are declared codes, of which numbers count as their digits, and ``3.0`` as ``3``.
    """

    expected = "text, or whole numbers as codes"

    def __init__(self, name: str, *, declared: bool = False) -> None:
        super().__init__(name)
        self._declared = declared
        self._codes: dict[str, int] = {}
        self._used: set[int] = set()
        self._unstorable: list[int] = []

    def code(self, values: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
        """See `Coder`."""
        import pyarrow as pa
        import pyarrow.compute as pc

        wrong = np.zeros(len(values), bool)
        if not pa.types.is_large_string(values.type):
            numbers = _floats(values)
            wrong = ~np.isnan(numbers) & (numbers % 1 != 0) | (np.abs(numbers) > EXACT_INTEGER)
            values = pa.chunked_array([_digits(values, wrong)])
        encoded = pc.dictionary_encode(values).combine_chunks()
        if isinstance(encoded, pa.ChunkedArray):  # no rows at all
            return np.empty(0), wrong
        places = np.array([self._place(text) for text in encoded.dictionary.to_pylist()], np.float64)
        indices = pc.fill_null(encoded.indices, -1).to_numpy()
        coded = np.append(places, np.nan)[indices]
        return coded, wrong

    def _place(self, text: str) -> int:
        place = self._codes.setdefault(text, len(self._codes))
        if place >= MOST_CATEGORIES:
            raise DataError(
                f"column {self.name!r} has more than {MOST_CATEGORIES:,} different texts; expected categories",
                hint=f"leave it out: --drop {self.name}",
            )
        if "\0" in text:
            self._unstorable.append(place)
        return place

    def unstorable(self, coded: np.ndarray) -> np.ndarray:
        """See `Coder`. A text with a zero byte."""
        return np.isin(coded, self._unstorable) if self._unstorable else super().unstorable(coded)

    def accept(self, coded: np.ndarray) -> None:
        """See `Coder`."""
        super().accept(coded)
        self._used.update(np.unique(coded[~np.isnan(coded)]).astype(int).tolist())

    def column(self) -> StoredColumn:
        """See `Coder`."""
        return self._stored("text", empty=not self._used, categories=self._vocabulary())

    def remap(self) -> np.ndarray | None:
        """See `Coder`."""
        place = {text: position for position, text in enumerate(self._vocabulary())}
        return np.array([place.get(self._final(text), -1) for text in self._codes], np.float64)

    def _vocabulary(self) -> tuple[str, ...]:
        used = [text for text, code in self._codes.items() if code in self._used]
        return tuple(sorted({self._final(text) for text in used}))

    def _final(self, text: str) -> str:
        """The text, without the ``.0`` that a missing value gave to all whole numbers of a declared column."""
        return text.partition(".")[0] if self._declared and self._all_whole() else text

    def _all_whole(self) -> bool:
        if not hasattr(self, "_whole"):
            used = [text for text, code in self._codes.items() if code in self._used]
            self._whole = bool(used) and all(WHOLE_CODE.fullmatch(text) for text in used)
        return self._whole


def coder(name: str, kind: pa.DataType, sample: pa.ChunkedArray, *, declared: bool) -> Coder:
    """The coder for a column.

    Args:
        name: column name.
        kind: type of the column; of a CSV file as its first block shows it.
        sample: first values, to tell texts from numbers with mistakes.
        declared: whether it was declared to be of categories.

    Raises:
        DataError: the column holds something else, such as times.
    """
    import pyarrow as pa

    if declared:
        if pa.types.is_boolean(kind):
            raise DataError(
                f"{Key('data.categorical')}: column {name!r} holds booleans; expected whole numbers or text",
                hint=f"take {name!r} out of {Key('data.categorical'):under}: it is not a column of codes",
            )
        return TextCoder(name, declared=True)
    if pa.types.is_boolean(kind):
        return BooleanCoder(name)
    if pa.types.is_integer(kind):
        return NumberCoder(name, "uint64" if pa.types.is_uint64(kind) else "int64")
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind):
        return NumberCoder(name, "float64")
    if pa.types.is_large_string(kind) or pa.types.is_string(kind):
        return NumberCoder(name) if _mostly_numbers(sample) else TextCoder(name)
    tidy_column(pa.chunked_array([pa.nulls(1, kind)]).to_pandas(date_as_object=False).rename(name))
    raise DataError(f"column {name!r} holds {kind} values; expected numbers, booleans or text", hint=f"--drop {name}")


def inferred(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Texts of a CSV column with the type that Arrow gives them by all of their values."""
    import pyarrow as pa
    from pyarrow import csv

    written = io.BytesIO()
    csv.write_csv(pa.table({"column": values}), written)
    size = min(max(written.tell(), 1), 2**31 - 1)  # one block, as far as there is one of this size
    table = csv.read_csv(
        pa.BufferReader(written.getvalue()),
        read_options=csv.ReadOptions(block_size=size),
        parse_options=csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
        convert_options=csv.ConvertOptions(null_values=MISSING_WORDS, strings_can_be_null=True),
    )
    return table.column(0)


def _mostly_numbers(sample: pa.ChunkedArray) -> bool:
    import pyarrow as pa

    if not pa.types.is_large_string(sample.type) or sample.null_count == len(sample):
        return False
    coded, wrong, _ = _parsed(sample)
    return bool((~np.isnan(coded)).sum() >= MOSTLY * (len(sample) - sample.null_count)) and bool(wrong.any())


def _parsed(values: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray, bool]:
    """Texts as numbers, which are none, and whether all that are some are written as whole numbers."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        return _floats(pc.cast(values, pa.int64())), np.zeros(len(values), bool), True
    except pa.ArrowInvalid:
        pass
    try:
        return _floats(pc.cast(values, pa.float64())), np.zeros(len(values), bool), False
    except pa.ArrowInvalid:
        texts = values.to_pandas()
        coded = pd.to_numeric(texts, errors="coerce").to_numpy(np.float64, na_value=np.nan)
        right = texts[~np.isnan(coded)]
        return coded, np.isnan(coded) & texts.notna().to_numpy(), bool(right.str.fullmatch(r"\s*-?\d+\s*").all())


def _floats(values: pa.ChunkedArray) -> np.ndarray:
    """Numbers or booleans as float64 with NaN for null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_null(values.type):
        return np.full(len(values), np.nan)
    if not pa.types.is_float64(values.type):
        if pa.types.is_boolean(values.type):
            values = pc.cast(values, pa.uint8())
        values = pc.cast(values, pa.float64(), safe=False)
    return np.asarray(values.to_numpy(), np.float64).copy() if values.num_chunks != 1 else _one(values.chunk(0))


def _one(values: pa.Array) -> np.ndarray:
    return np.asarray(values.to_numpy(zero_copy_only=False), np.float64)


def _digits(values: pa.ChunkedArray, wrong: np.ndarray) -> pa.Array:
    """Whole numbers as their digits; fractions and missing values as null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kept = pc.if_else(pa.array(wrong), None, values.combine_chunks())
    return pc.cast(pc.cast(kept, pa.int64(), safe=False), pa.large_string())


def zero_bytes(values: pa.ChunkedArray) -> np.ndarray:
    """Which of the values (n,) are texts with a zero byte, which PostgreSQL does not take."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_large_string(values.type):
        return np.zeros(len(values), bool)
    return _mask(pc.fill_null(pc.match_substring(values, "\0"), False))


def _mask(mask: Any) -> np.ndarray:
    return np.asarray(mask.to_numpy(), bool)
