"""What changed from one version in the feature store to another: settings, columns, rows. Test rows are not read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from forge_sweep.feature_store import reading
from forge_sweep.feature_store.columns import StoredColumn, key_values
from forge_sweep.feature_store.connection import TUNER, Address, connect, retrying
from forge_sweep.feature_store.source import VisibleRows, print_of, visible
from forge_sweep.feature_store.versions import SPLITS, Version, find
from forge_sweep.feature_store.words import counted, listed, named, shortened, valued
from forge_sweep.sources.digest import fingerprints

KEPT = 50
"""So many new and gone categories are listed per column."""


@dataclass(frozen=True)
class Side:
    """One of both versions.

    Attributes:
        name: its name.
        version: ``<name>@<first 12 digits of the digest>``.
        digest: SHA-256 over the content of all rows.
        rows: rows per split.
    """

    name: str
    version: str
    digest: str
    rows: dict[str, int]


@dataclass(frozen=True)
class Setting:
    """Something that both versions declare differently; JSON values.

    Attributes:
        name: what.
        a: in A.
        b: in B.
    """

    name: str
    a: Any
    b: Any


@dataclass(frozen=True)
class ColumnChange:
    """A column that is not the same in both versions.

    Attributes:
        name: its name.
        roles: ``feature``, ``target`` or ``key`` in A and in B; None where there is no such column.
        dtypes: its type in A and in B; likewise.
        new: categories that only B knows, at most `KEPT`; test rows count, since a vocabulary is that of all rows.
        new_count: how many there are.
        gone: categories that only A knows, likewise.
        gone_count: how many there are.
    """

    name: str
    roles: tuple[str | None, str | None]
    dtypes: tuple[str | None, str | None]
    new: tuple[str, ...] = ()
    new_count: int = 0
    gone: tuple[str, ...] = ()
    gone_count: int = 0

    def line(self) -> str:
        """The change for a terminal."""
        if self.roles[0] is None or self.roles[1] is None:
            sign, at = ("+", 1) if self.roles[0] is None else ("-", 0)
            return f"{sign} {named(self.name)} ({self.roles[at]}, {self.dtypes[at]})"
        words = [f"{one} -> {other}" for one, other in (self.roles, self.dtypes) if one != other]
        if self.new:
            words.append(f"new categories: {listed(self.new, self.new_count)}")
        if self.gone:
            words.append(f"gone categories: {listed(self.gone, self.gone_count)}")
        return f"~ {named(self.name)}: {'; '.join(words)}"


@dataclass(frozen=True)
class HeldRows:
    """What the stored digests and fingerprints say of the test rows.

    Attributes:
        same: whether features, targets and key of all of them have the same digest.
        only: feature rows that only A, or only B, tests with, by their fingerprints; None where these are over other
            columns.
    """

    same: bool
    only: tuple[int, int] | None


@dataclass(frozen=True)
class Diff:
    """Two versions compared.

    Attributes:
        a: the first one.
        b: the other one.
        same_content: whether features, targets and key of all rows are the same, test rows included.
        same_split: whether every row is in the same split.
        settings: what is declared differently.
        columns: what columns changed.
        rows: what rows changed; None where content and split are the same, and no row was read.
        test: what is known of the test rows.
    """

    a: Side
    b: Side
    same_content: bool
    same_split: bool
    settings: tuple[Setting, ...]
    columns: tuple[ColumnChange, ...]
    rows: RowChanges | None
    test: HeldRows

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The difference for a terminal."""
        return [
            *(_side_line(letter, side) for letter, side in (("A", self.a), ("B", self.b))),
            self._verdict(),
            *_section("settings", (_setting_line(setting) for setting in self.settings)),
            *_section("columns", (column.line() for column in self.columns)),
            *([] if self.rows is None else _section(*_rows_lines(self.rows))),
            *_section("test rows (not read)", _held_lines(self.test)),
        ]

    def _verdict(self) -> str:
        if not self.same_content:
            return "other content"
        if not self.same_split:
            return "same content, split otherwise"
        return "same content, and the same split" + ("; declared otherwise" if self.settings or self.columns else "")


def diff(address: Address | None, a: str, b: str) -> Diff:
    """Compare two versions: what they declare, their columns, their training and validation rows.

    Args:
        address: the store; None takes the one that ``FORGE_SWEEP_DATABASE_URL`` names.
        a: name of the version to compare with.
        b: name of the other one.

    Raises:
        DataError: there is no such version, or its rows are not those that were ingested.
        StoreDown: the store cannot be reached.
    """
    address = address or Address.from_environment()

    def read() -> tuple[Version, Version]:
        with connect(address, role=TUNER) as connection:
            return find(connection, a), find(connection, b)

    one, other = retrying(read)
    same_content, same_split = one.digest == other.digest, one.split_digest == other.split_digest
    rows = None
    if not (same_content and same_split):
        rows = _row_changes(visible(address, a), visible(address, b))
    return Diff(
        a=side(one),
        b=side(other),
        same_content=same_content,
        same_split=same_split,
        settings=settings(one, other),
        columns=_column_changes(one, other),
        rows=rows,
        test=_held_rows(one, other),
    )


def side(version: Version) -> Side:
    """What names a version."""
    return Side(version.name, version.version, version.digest, version.row_counts)


def settings(a: Version, b: Version) -> tuple[Setting, ...]:
    """What both versions declare differently."""
    found = [_declared(version) for version in (a, b)]
    return tuple(Setting(name, value, found[1][name]) for name, value in found[0].items() if value != found[1][name])


def _declared(version: Version) -> dict[str, Any]:
    """What a version declares, as JSON values."""
    return {
        "task": version.task,
        "positive": version.positive,
        "classes": list(version.classes),
        "key": None if version.key is None else version.key.name,
        "split": version.split,
        "dropped": sorted(version.dropped),
        "categorical": sorted(version.categorical),
        "parent": version.parent,
        "source": version.source,
        "normalization": version.normalization_version,
    }


def _column_changes(a: Version, b: Version) -> tuple[ColumnChange, ...]:
    """Columns that only one version has, then those of another role, type or vocabulary."""
    one, other = _columns_of(a), _columns_of(b)
    found = [
        *(_lone(name, *other[name], there=1) for name in other if name not in one),
        *(_lone(name, *one[name], there=0) for name in one if name not in other),
        *(_compared(name, one[name], other[name]) for name in one if name in other),
    ]
    return tuple(change for change in found if change is not None)


def _columns_of(version: Version) -> dict[str, tuple[str, StoredColumn]]:
    key = () if version.key is None else (("key", version.key),)
    features = (("feature", column) for column in version.features)
    targets = (("target", column) for column in version.targets)
    return {column.name: (role, column) for role, column in (*features, *targets, *key)}


def _lone(name: str, role: str, column: StoredColumn, *, there: int) -> ColumnChange:
    """A column that only one version has: A (0) or B (1)."""
    if there:
        return ColumnChange(name, (None, role), (None, column.dtype))
    return ColumnChange(name, (role, None), (column.dtype, None))


def _compared(name: str, one: tuple[str, StoredColumn], other: tuple[str, StoredColumn]) -> ColumnChange | None:
    (role_a, a), (role_b, b) = one, other
    new, gone = set(b.categories) - set(a.categories), set(a.categories) - set(b.categories)
    if a.dtype != b.dtype:
        new, gone = set(), set()  # one of both has no vocabulary
    if role_a == role_b and a.dtype == b.dtype and not new and not gone:
        return None
    lists = [tuple(sorted(names)[:KEPT]) for names in (new, gone)]
    return ColumnChange(name, (role_a, role_b), (a.dtype, b.dtype), lists[0], len(new), lists[1], len(gone))


def _held_rows(a: Version, b: Version) -> HeldRows:
    same = a.role_digests["test"] == b.role_digests["test"]
    if not _same_features(a, b):
        return HeldRows(same, None)
    prints = [_held_prints(version) for version in (a, b)]
    _, codes = np.unique(np.concatenate(prints), return_inverse=True)
    counts = [np.bincount(part, minlength=int(codes.max()) + 1) for part in np.split(codes, [len(prints[0])])]
    return HeldRows(same, (surplus(counts[0], counts[1]), surplus(counts[1], counts[0])))


def surplus(counts: np.ndarray, others: np.ndarray) -> int:
    """How many more there are, where there are more."""
    return int((counts - others).clip(0).sum())


def _side_line(letter: str, side: Side) -> str:
    """``A  v1@0123456789ab: 100 rows (70 train, 15 val, 15 test)``."""
    splits = ", ".join(f"{count:,} {split}" for split, count in side.rows.items())
    return f"{letter}  {side.version}: {counted(sum(side.rows.values()), 'row')} ({splits})"


def _setting_line(setting: Setting) -> str:
    """``task: binary -> multiclass``."""
    if isinstance(setting.a, dict) and isinstance(setting.b, dict):
        names = [n for n in {**setting.a, **setting.b} if setting.a.get(n) != setting.b.get(n)]
        words = [f"{n} {_json_text(setting.a.get(n))} -> {_json_text(setting.b.get(n))}" for n in names]
        return f"{setting.name}: {', '.join(words)}"
    return f"{setting.name}: {_json_text(setting.a)} -> {_json_text(setting.b)}"


def _json_text(value: Any) -> str:
    """A setting as JSON, a plain text as it is, nothing as ``none``."""
    if value is None:
        return "none"
    return named(value) if isinstance(value, str) else shortened(json.dumps(value, ensure_ascii=True))


def _rows_lines(rows: RowChanges) -> tuple[str, Iterator[str]]:
    how = f"matched by {named(rows.key)}" if rows.key is not None else "without a common key: whole rows compared"
    return f"training and validation rows ({how})", _row_lines(rows)


def _row_lines(rows: RowChanges) -> Iterator[str]:
    yield f"{rows.same:,} the same of {rows.rows[0]:,} in A and {rows.rows[1]:,} in B"
    for number, word, test, keys, other in (
        (rows.added, "+ added", rows.from_test, rows.added_keys, "A"),
        (rows.gone, "- gone", rows.to_test, rows.gone_keys, "B"),
    ):
        if number:
            tested = f"; {test:,} with the features of a test row of {other}" if test else ""
            yield f"{word}: {counted(number, 'row')}{_keyed(keys, number)}{tested}"
    if rows.changed:
        yield f"~ changed: {counted(rows.changed, 'row')}"
    for change in rows.values:
        yield f"  {named(change.column)}: {counted(change.count, 'value')}"
        yield from (f"    {valued(key)}: {valued(old)} -> {valued(new)}" for key, old, new in change.examples)
    yield from (f"> moved {move}: {counted(count, 'row')}" for move, count in rows.moved.items() if count)
    if rows.left_out:
        yield f"not compared, since they are numbers in one version and texts in the other: {listed(rows.left_out)}"


def _keyed(keys: tuple[Any, ...], number: int) -> str:
    """The first keys, in brackets."""
    more = f" and {number - len(keys):,} more" if number > len(keys) else ""
    return f" ({', '.join(map(valued, keys))}{more})" if keys else ""


def _held_lines(test: HeldRows) -> Iterator[str]:
    if test.same:
        yield "the same, by their digests"
    elif test.only is None:
        yield "digests and fingerprints are over other columns in A than in B, and tell nothing of the rows"
    else:
        yield f"other content, by their digests; features by fingerprint: {test.only[0]:,} rows only in A, " + (
            f"{test.only[1]:,} only in B"
        )


def _section(title: str, lines: Iterator[str]) -> list[str]:
    """A title with its lines below; nothing where there are none."""
    below = [f"  {line}" for line in lines]
    return [title, *below] if below else []


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


def _row_changes(a: VisibleRows, b: VisibleRows) -> RowChanges:
    prints = _trusted_prints(a, b)
    return _by_key(a, b, prints) if _same_key(a.version, b.version) else _as_bags(a, b, prints)


def _same_key(a: Version, b: Version) -> bool:
    if a.key is None or b.key is None or a.key.name != b.key.name:
        return False
    return a.key.dtype == b.key.dtype or {a.key.dtype, b.key.dtype} == {"int64", "float64"}


def _same_features(a: Version, b: Version) -> bool:
    """Whether fingerprints of both are over the same columns, each seen the same way."""
    return {column.name: column.kind for column in a.features} == {column.name: column.kind for column in b.features}


def _trusted_prints(a: VisibleRows, b: VisibleRows) -> tuple[np.ndarray, np.ndarray] | None:
    """Fingerprints of both; None where they cannot be compared with those that were stored at ingest."""
    if not _same_features(a.version, b.version):
        return None
    found = a.prints(), b.prints()
    stored = all(
        print_of(prints[rows.block.splits == TRAIN]) == rows.version.train_print
        for prints, rows in zip(found, (a, b), strict=True)
    )
    return found if stored else None  # another version of pandas may fingerprint otherwise


def _by_key(a: VisibleRows, b: VisibleRows, prints: tuple[np.ndarray, np.ndarray] | None) -> RowChanges:
    keys = [_keys_of(rows) for rows in (a, b)]
    found = pd.Index(keys[0]).get_indexer(pd.Index(keys[1]))
    in_b = np.flatnonzero(found >= 0)
    in_a = found[in_b]
    added, gone = np.flatnonzero(found < 0), np.setdiff1d(np.arange(len(keys[0])), in_a, assume_unique=True)
    changed, values = _value_changes(a.columns(), b.columns(), in_a, in_b, _shown_keys(b, in_b))
    before, after = a.block.splits[in_a], b.block.splits[in_b]
    return RowChanges(
        key=None if a.version.key is None else a.version.key.name,
        rows=(len(keys[0]), len(keys[1])),
        same=int((~changed).sum()),
        changed=int(changed.sum()),
        added=len(added),
        gone=len(gone),
        moved={move: int(((before == one) & (after == other)).sum()) for move, (one, other) in MOVES.items()},
        from_test=None if prints is None else int(_among(prints[1][added], a.version).sum()),
        to_test=None if prints is None else int(_among(prints[0][gone], b.version).sum()),
        values=values,
        added_keys=_shown_keys(b, added).first(),
        gone_keys=_shown_keys(a, gone).first(),
    )


def _as_bags(a: VisibleRows, b: VisibleRows, prints: tuple[np.ndarray, np.ndarray] | None) -> RowChanges:
    names, left_out = _comparable(a.columns(), b.columns())
    whole = [_row_prints(rows, names) for rows in (a, b)]
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
        from_test=None if prints is None else _in_test(added, parts[1], prints[1], a.version),
        to_test=None if prints is None else _in_test(gone, parts[0], prints[0], b.version),
        left_out=left_out,
    )


def _in_test(surplus: np.ndarray, codes: np.ndarray, prints: np.ndarray, other: Version) -> int:
    """How many rows of a surplus (per code) have the features of a test row of the other version."""
    known, first = np.unique(codes, return_index=True)
    return int(surplus[known][_among(prints[first], other)].sum())


def _among(prints: np.ndarray, version: Version) -> np.ndarray:
    """Which fingerprints (n,) are those of a test row."""
    return np.isin(prints, _held_prints(version))


def _held_prints(version: Version) -> np.ndarray:
    """Fingerprints of the features of the test rows, as ingest left them."""
    return np.frombuffer(version.test_fingerprints, "<u8").astype(np.uint64)


def _comparable(
    a: dict[str, tuple[StoredColumn, np.ndarray]], b: dict[str, tuple[StoredColumn, np.ndarray]]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    both = [name for name in a if name in b]
    alike = [name for name in both if a[name][0].kind == b[name][0].kind]
    return tuple(alike), tuple(name for name in both if name not in alike)


def _row_prints(rows: VisibleRows, names: Sequence[str]) -> np.ndarray:
    """Fingerprints (n,) of some features and targets."""
    content = reading.content(rows.version, rows.block)[list(names)]
    return fingerprints(content, reading.kinds(rows.version)) if names else np.zeros(len(content), np.uint64)


def _value_changes(
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
        differs = _different(one, old, other, new)
        changed |= differs
        where = np.flatnonzero(differs)
        if len(where):
            first = where[:EXAMPLES]
            examples = zip(keys.at(first), _python(one, old[first]), _python(other, new[first]), strict=True)
            found.append(ValueChange(name, len(where), tuple(examples)))
    return changed, tuple(sorted(found, key=lambda change: -change.count))


def _different(one: StoredColumn, old: np.ndarray, other: StoredColumn, new: np.ndarray) -> np.ndarray:
    """Where the values (n,) of a column differ; where one side has texts and the other has not, as texts."""
    if one.dtype == "text" and other.dtype == "text":
        places = pd.Index(other.categories, dtype=object).get_indexer(pd.Index(one.categories, dtype=object))
        places = np.append(np.where(places < 0, np.inf, places.astype(float)), np.nan)
        old = places[np.where(np.isnan(old), -1, old).astype(np.intp)]
    elif "text" in (one.dtype, other.dtype):
        texts = ([None if v is None else str(v) for v in _python(*side)] for side in ((one, old), (other, new)))
        return np.array([before != after for before, after in zip(*texts, strict=True)], bool)
    return np.asarray((old != new) & ~(np.isnan(old) & np.isnan(new)))


def _python(column: StoredColumn, numbers: np.ndarray) -> list[Any]:
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


def _shown_keys(rows: VisibleRows, positions: np.ndarray) -> Keys:
    assert rows.version.key is not None
    return Keys(_keys_of(rows)[positions], rows.version.key.dtype == "datetime")


def _keys_of(rows: VisibleRows) -> np.ndarray:
    """The keys (n,) of all rows."""
    assert rows.version.key is not None and rows.block.keys is not None
    values = key_values(rows.version.key, rows.block.keys)
    return values.to_numpy(object if rows.version.key.dtype == "text" else None)
