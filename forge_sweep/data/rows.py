"""Rows of two versions compared: by their key where both have the same one, else as two bags of rows.

Training and validation rows only. Of test rows there are fingerprints of their features, which tell whether a row that
came or went is one of them, but neither its key nor any value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from forge_sweep.sources.digest import fingerprints
from forge_sweep.sources.feature_store import reading
from forge_sweep.sources.feature_store.codec import Block
from forge_sweep.sources.feature_store.columns import StoredColumn, key_values
from forge_sweep.sources.feature_store.source import print_of
from forge_sweep.sources.feature_store.versions import SPLITS, Version

EXAMPLES = 10
TRAIN, VAL = range(2)
MOVES = {f"{SPLITS[one]} -> {SPLITS[other]}": (one, other) for one, other in ((TRAIN, VAL), (VAL, TRAIN))}


@dataclass(frozen=True)
class ValueChange:
    """Changed values of one column.

    Attributes:
        column: its name.
        count: how many.
        examples: the first ones: key, old value, new value; None is a missing value.
    """

    column: str
    count: int
    examples: tuple[tuple[Any, Any, Any], ...]


@dataclass(frozen=True)
class RowChanges:
    """How the training and validation rows of two versions differ.

    Attributes:
        key: column that tells which row is which; None where rows are compared as bags, by all of their values.
        rows: rows of A and of B.
        same: rows of both, all compared values alike.
        changed: rows of both with another value; None without a key: such a row is gone and another one is added.
        added: rows that only B has.
        gone: rows that only A has.
        moved: rows of both per move between splits (``train -> val``).
        from_test: added rows with the features of a test row of A; None where fingerprints cannot be compared.
        to_test: gone rows with the features of a test row of B; likewise.
        values: changed values per column, the most first.
        added_keys: the first keys.
        gone_keys: likewise.
        left_out: columns of both whose values are of different kinds, and so were not compared; with a key there are
            none.
    """

    key: str | None
    rows: tuple[int, int]
    same: int
    changed: int | None
    added: int
    gone: int
    moved: dict[str, int]
    from_test: int | None
    to_test: int | None
    values: tuple[ValueChange, ...] = ()
    added_keys: tuple[Any, ...] = ()
    gone_keys: tuple[Any, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Rows:
    """The visible rows of a version.

    Attributes:
        version: the version.
        block: its training and validation rows.
    """

    version: Version
    block: Block

    def columns(self) -> dict[str, tuple[StoredColumn, np.ndarray]]:
        """Features and targets with their values as they are stored, (n,) float64."""
        features = zip(self.version.features, self.block.raw.T, strict=True)
        targets = zip(self.version.targets, self.block.labels.T, strict=True)
        return {column.name: (column, values) for column, values in (*features, *targets)}

    def of_split(self, split: int) -> Rows:
        """Its training rows (0) or validation rows (1)."""
        return Rows(self.version, self.block.of_split(split))

    def frame(self) -> pd.DataFrame:
        """(n, columns) features and targets."""
        return pd.concat(
            [reading.features(self.version, self.block), reading.targets(self.version, self.block)], axis=1
        )

    def prints(self) -> np.ndarray:
        """Fingerprints (n,) uint64 of the features."""
        return fingerprints(reading.features(self.version, self.block), reading.kinds(self.version))

    def prints_as(self, other: Version) -> np.ndarray | None:
        """Fingerprints (n,) uint64 over the features of another version; None where they are not the same columns."""
        wanted = {column.name: column.kind for column in other.features}
        known = reading.kinds(self.version)
        if any(known.get(name) != kind for name, kind in wanted.items()):
            return None
        return fingerprints(reading.content(self.version, self.block)[list(wanted)], known)


def row_changes(a: Rows, b: Rows) -> RowChanges:
    """Compare the visible rows of two versions."""
    prints = trusted_prints(a, b)
    return by_key(a, b, prints) if same_key(a.version, b.version) else as_bags(a, b, prints)


def same_key(a: Version, b: Version) -> bool:
    """Whether both have a key of one name whose values can be compared."""
    if a.key is None or b.key is None or a.key.name != b.key.name:
        return False
    return a.key.dtype == b.key.dtype or {a.key.dtype, b.key.dtype} == {"int64", "float64"}


def same_features(a: Version, b: Version) -> bool:
    """Whether fingerprints of both are over the same columns, each seen the same way."""
    return {column.name: column.kind for column in a.features} == {column.name: column.kind for column in b.features}


def trusted_prints(a: Rows, b: Rows) -> tuple[np.ndarray, np.ndarray] | None:
    """Fingerprints of both; None where they cannot be compared with those that were stored at ingest."""
    if not same_features(a.version, b.version):
        return None
    found = a.prints(), b.prints()
    stored = all(
        print_of(prints[rows.block.splits == TRAIN]) == rows.version.train_print
        for prints, rows in zip(found, (a, b), strict=True)
    )
    return found if stored else None  # another version of pandas may fingerprint otherwise


def by_key(a: Rows, b: Rows, prints: tuple[np.ndarray, np.ndarray] | None) -> RowChanges:
    """Match rows by their key."""
    keys = [keys_of(rows) for rows in (a, b)]
    found = pd.Index(keys[0]).get_indexer(pd.Index(keys[1]))
    in_b = np.flatnonzero(found >= 0)
    in_a = found[in_b]
    added, gone = np.flatnonzero(found < 0), np.setdiff1d(np.arange(len(keys[0])), in_a, assume_unique=True)
    changed, values = value_changes(a.columns(), b.columns(), in_a, in_b, shown_keys(b, in_b))
    before, after = a.block.splits[in_a], b.block.splits[in_b]
    return RowChanges(
        key=None if a.version.key is None else a.version.key.name,
        rows=(len(keys[0]), len(keys[1])),
        same=int((~changed).sum()),
        changed=int(changed.sum()),
        added=len(added),
        gone=len(gone),
        moved={move: int(((before == one) & (after == other)).sum()) for move, (one, other) in MOVES.items()},
        from_test=None if prints is None else int(among(prints[1][added], a.version).sum()),
        to_test=None if prints is None else int(among(prints[0][gone], b.version).sum()),
        values=values,
        added_keys=shown_keys(b, added).first(),
        gone_keys=shown_keys(a, gone).first(),
    )


def as_bags(a: Rows, b: Rows, prints: tuple[np.ndarray, np.ndarray] | None) -> RowChanges:
    """Compare how often each row occurs, whatever its place."""
    names, left_out = comparable(a.columns(), b.columns())
    whole = [row_prints(rows, names) for rows in (a, b)]
    n = len(whole[0])
    _, codes = np.unique(np.concatenate(whole), return_inverse=True)
    parts, k = (codes[:n], codes[n:]), int(codes.max(initial=-1)) + 1
    counts = np.array(
        [
            [np.bincount(part[rows.block.splits == split], minlength=k) for split in (TRAIN, VAL)]
            for part, rows in zip(parts, (a, b), strict=True)
        ]
    )
    in_a, in_b = counts.sum(axis=1)
    added, gone = (in_b - in_a).clip(0), (in_a - in_b).clip(0)
    lost, won = (counts[0] - counts[1]).clip(0), (counts[1] - counts[0]).clip(0)
    return RowChanges(
        key=None,
        rows=(n, len(whole[1])),
        same=int(np.minimum(in_a, in_b).sum()),
        changed=None,
        added=int(added.sum()),
        gone=int(gone.sum()),
        moved={move: int(np.minimum(lost[one], won[other]).sum()) for move, (one, other) in MOVES.items()},
        from_test=None if prints is None else in_test(added, parts[1], prints[1], a.version),
        to_test=None if prints is None else in_test(gone, parts[0], prints[0], b.version),
        left_out=left_out,
    )


def in_test(surplus: np.ndarray, codes: np.ndarray, prints: np.ndarray, other: Version) -> int:
    """How many rows of a surplus (per code) have the features of a test row of the other version."""
    known, first = np.unique(codes, return_index=True)
    return int(surplus[known][among(prints[first], other)].sum())


def among(prints: np.ndarray, version: Version) -> np.ndarray:
    """Which fingerprints (n,) are those of a test row."""
    return np.isin(prints, held_prints(version))


def held_prints(version: Version) -> np.ndarray:
    """Fingerprints of the features of the test rows, as ingest left them."""
    return np.frombuffer(version.test_fingerprints, "<u8").astype(np.uint64)


def comparable(
    a: dict[str, tuple[StoredColumn, np.ndarray]], b: dict[str, tuple[StoredColumn, np.ndarray]]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Columns of both: those of the same kind, and the others."""
    both = [name for name in a if name in b]
    alike = [name for name in both if a[name][0].kind == b[name][0].kind]
    return tuple(alike), tuple(name for name in both if name not in alike)


def row_prints(rows: Rows, names: Sequence[str]) -> np.ndarray:
    """Fingerprints (n,) of some features and targets."""
    content = reading.content(rows.version, rows.block)[list(names)]
    return fingerprints(content, reading.kinds(rows.version)) if names else np.zeros(len(content), np.uint64)


def value_changes(
    a: dict[str, tuple[StoredColumn, np.ndarray]],
    b: dict[str, tuple[StoredColumn, np.ndarray]],
    in_a: np.ndarray,
    in_b: np.ndarray,
    keys: Keys,
) -> tuple[np.ndarray, tuple[ValueChange, ...]]:
    """Which of the matched rows (n,) changed, and the changed values per column, the most first."""
    changed, found = np.zeros(len(in_a), bool), []
    for name in [name for name in a if name in b]:
        (one, old), (other, new) = a[name], b[name]
        old, new = old[in_a], new[in_b]
        differs = different(one, old, other, new)
        changed |= differs
        where = np.flatnonzero(differs)
        if len(where):
            first = where[:EXAMPLES]
            examples = zip(keys.at(first), python(one, old[first]), python(other, new[first]), strict=True)
            found.append(ValueChange(name, len(where), tuple(examples)))
    return changed, tuple(sorted(found, key=lambda change: -change.count))


def different(one: StoredColumn, old: np.ndarray, other: StoredColumn, new: np.ndarray) -> np.ndarray:
    """Where the values (n,) of a column differ; where one side has texts and the other has not, as texts."""
    if one.dtype == "text" and other.dtype == "text":
        places = pd.Index(other.categories, dtype=object).get_indexer(pd.Index(one.categories, dtype=object))
        places = np.append(np.where(places < 0, np.inf, places.astype(float)), np.nan)
        old = places[np.where(np.isnan(old), -1, old).astype(np.intp)]
    elif "text" in (one.dtype, other.dtype):
        texts = ([None if v is None else str(v) for v in python(*side)] for side in ((one, old), (other, new)))
        return np.array([before != after for before, after in zip(*texts, strict=True)], bool)
    return np.asarray((old != new) & ~(np.isnan(old) & np.isnan(new)))


def python(column: StoredColumn, numbers: np.ndarray) -> list[Any]:
    """Stored values as Python's own, None where missing; floats that are all whole as whole numbers."""
    values = pd.Series(column.decode(numbers)).astype(object)
    whole = column.dtype == "float64" and bool((np.isnan(numbers) | (numbers % 1 == 0)).all())
    return [None if pd.isna(value) else int(value) if whole else value for value in values.tolist()]


@dataclass(frozen=True, eq=False)
class Keys:
    """Keys of some rows, for people.

    Attributes:
        values: (n,) as they are stored.
        times: whether they are nanoseconds since 1970 UTC.
    """

    values: np.ndarray
    times: bool

    def at(self, positions: np.ndarray) -> list[Any]:
        """Some of them; times in ISO 8601."""
        values = self.values[positions].tolist()
        return [pd.Timestamp(value).isoformat() for value in values] if self.times else values

    def first(self) -> tuple[Any, ...]:
        """The first few."""
        return tuple(self.at(np.arange(min(len(self.values), EXAMPLES))))


def shown_keys(rows: Rows, positions: np.ndarray) -> Keys:
    """The keys of some rows."""
    assert rows.version.key is not None
    return Keys(keys_of(rows)[positions], rows.version.key.dtype == "datetime")


def keys_of(rows: Rows) -> np.ndarray:
    """The keys (n,) of all rows."""
    assert rows.version.key is not None and rows.block.keys is not None
    values = key_values(rows.version.key, rows.block.keys)
    return values.to_numpy(object if rows.version.key.dtype == "text" else None)
