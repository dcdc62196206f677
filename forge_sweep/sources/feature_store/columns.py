"""How a column of a dataset is kept in a FLOAT8[] and comes back as it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from forge_sweep.sources.digest import Kind, nanoseconds

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
