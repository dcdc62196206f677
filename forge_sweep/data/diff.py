"""What changed from one version in the feature store to another: settings, columns, rows. Test rows are not read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from forge_sweep.data.rows import RowChanges, Rows, held_prints, row_changes, same_features
from forge_sweep.data.words import counted, listed, named, shortened, valued
from forge_sweep.sources.feature_store.address import Address
from forge_sweep.sources.feature_store.columns import StoredColumn
from forge_sweep.sources.feature_store.connection import TUNER, connect, retrying
from forge_sweep.sources.feature_store.source import visible
from forge_sweep.sources.feature_store.versions import Version, find

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
            *(side_line(letter, side) for letter, side in (("A", self.a), ("B", self.b))),
            self._verdict(),
            *section("settings", (setting_line(setting) for setting in self.settings)),
            *section("columns", (column.line() for column in self.columns)),
            *([] if self.rows is None else section(*rows_lines(self.rows))),
            *section("test rows (not read)", held_lines(self.test)),
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
    one, other = (described(address, name) for name in (a, b))
    same_content, same_split = one.digest == other.digest, one.split_digest == other.split_digest
    rows = None
    if not (same_content and same_split):
        rows = row_changes(Rows(*visible(address, a)), Rows(*visible(address, b)))
    return Diff(
        a=side(one),
        b=side(other),
        same_content=same_content,
        same_split=same_split,
        settings=settings(one, other),
        columns=column_changes(one, other),
        rows=rows,
        test=held_rows(one, other),
    )


def described(address: Address, name: str) -> Version:
    """The version of this name."""

    def read() -> Version:
        with connect(address, role=TUNER) as connection:
            return find(connection, name)

    return retrying(read)


def side(version: Version) -> Side:
    """What names a version."""
    return Side(version.name, version.version, version.digest, version.row_counts)


def settings(a: Version, b: Version) -> tuple[Setting, ...]:
    """What both versions declare differently."""
    found = [declared(version) for version in (a, b)]
    return tuple(Setting(name, value, found[1][name]) for name, value in found[0].items() if value != found[1][name])


def declared(version: Version) -> dict[str, Any]:
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


def column_changes(a: Version, b: Version) -> tuple[ColumnChange, ...]:
    """Columns that only one version has, then those of another role, type or vocabulary."""
    one, other = columns_of(a), columns_of(b)
    found = [
        *(lone(name, *other[name], there=1) for name in other if name not in one),
        *(lone(name, *one[name], there=0) for name in one if name not in other),
        *(compared(name, one[name], other[name]) for name in one if name in other),
    ]
    return tuple(change for change in found if change is not None)


def columns_of(version: Version) -> dict[str, tuple[str, StoredColumn]]:
    """Every column of a version with its role."""
    key = () if version.key is None else (("key", version.key),)
    features = (("feature", column) for column in version.features)
    targets = (("target", column) for column in version.targets)
    return {column.name: (role, column) for role, column in (*features, *targets, *key)}


def lone(name: str, role: str, column: StoredColumn, *, there: int) -> ColumnChange:
    """A column that only one version has: A (0) or B (1)."""
    if there:
        return ColumnChange(name, (None, role), (None, column.dtype))
    return ColumnChange(name, (role, None), (column.dtype, None))


def compared(name: str, one: tuple[str, StoredColumn], other: tuple[str, StoredColumn]) -> ColumnChange | None:
    """A column of both, where it is not the same."""
    (role_a, a), (role_b, b) = one, other
    new, gone = set(b.categories) - set(a.categories), set(a.categories) - set(b.categories)
    if a.dtype != b.dtype:
        new, gone = set(), set()  # one of both has no vocabulary
    if role_a == role_b and a.dtype == b.dtype and not new and not gone:
        return None
    lists = [tuple(sorted(names)[:KEPT]) for names in (new, gone)]
    return ColumnChange(name, (role_a, role_b), (a.dtype, b.dtype), lists[0], len(new), lists[1], len(gone))


def held_rows(a: Version, b: Version) -> HeldRows:
    """Compare the test rows without seeing them."""
    same = a.role_digests["test"] == b.role_digests["test"]
    if not same_features(a, b):
        return HeldRows(same, None)
    prints = [held_prints(version) for version in (a, b)]
    _, codes = np.unique(np.concatenate(prints), return_inverse=True)
    counts = [np.bincount(part, minlength=int(codes.max()) + 1) for part in np.split(codes, [len(prints[0])])]
    return HeldRows(same, (surplus(counts[0], counts[1]), surplus(counts[1], counts[0])))


def surplus(counts: np.ndarray, others: np.ndarray) -> int:
    """How many more there are, where there are more."""
    return int((counts - others).clip(0).sum())


def side_line(letter: str, side: Side) -> str:
    """``A  v1@0123456789ab: 100 rows (70 train, 15 val, 15 test)``."""
    splits = ", ".join(f"{count:,} {split}" for split, count in side.rows.items())
    return f"{letter}  {side.version}: {counted(sum(side.rows.values()), 'row')} ({splits})"


def setting_line(setting: Setting) -> str:
    """``task: binary -> multiclass``."""
    if isinstance(setting.a, dict) and isinstance(setting.b, dict):
        names = [n for n in {**setting.a, **setting.b} if setting.a.get(n) != setting.b.get(n)]
        words = [f"{n} {json_text(setting.a.get(n))} -> {json_text(setting.b.get(n))}" for n in names]
        return f"{setting.name}: {', '.join(words)}"
    return f"{setting.name}: {json_text(setting.a)} -> {json_text(setting.b)}"


def json_text(value: Any) -> str:
    """A setting as JSON, a plain text as it is, nothing as ``none``."""
    if value is None:
        return "none"
    return named(value) if isinstance(value, str) else shortened(json.dumps(value, ensure_ascii=True))


def rows_lines(rows: RowChanges) -> tuple[str, Iterator[str]]:
    """Title and lines of the rows that changed."""
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
            yield f"{word}: {counted(number, 'row')}{keyed(keys, number)}{tested}"
    if rows.changed:
        yield f"~ changed: {counted(rows.changed, 'row')}"
    for change in rows.values:
        yield f"  {named(change.column)}: {counted(change.count, 'value')}"
        yield from (f"    {valued(key)}: {valued(old)} -> {valued(new)}" for key, old, new in change.examples)
    yield from (f"> moved {move}: {counted(count, 'row')}" for move, count in rows.moved.items() if count)
    if rows.left_out:
        yield f"not compared, since they are numbers in one version and texts in the other: {listed(rows.left_out)}"


def keyed(keys: tuple[Any, ...], number: int) -> str:
    """The first keys, in brackets."""
    more = f" and {number - len(keys):,} more" if number > len(keys) else ""
    return f" ({', '.join(map(valued, keys))}{more})" if keys else ""


def held_lines(test: HeldRows) -> Iterator[str]:
    """What is known of the test rows."""
    if test.same:
        yield "the same, by their digests"
    elif test.only is None:
        yield "digests and fingerprints are over other columns in A than in B, and tell nothing of the rows"
    else:
        yield f"other content, by their digests; features by fingerprint: {test.only[0]:,} rows only in A, " + (
            f"{test.only[1]:,} only in B"
        )


def section(title: str, lines: Iterator[str]) -> list[str]:
    """A title with its lines below; nothing where there are none."""
    below = [f"  {line}" for line in lines]
    return [title, *below] if below else []
