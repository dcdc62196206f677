"""The one query, its rows in blocks, and the proof that they are the rows of the version."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from forge_sweep.errors import DataError
from forge_sweep.feature_store.codec import Block, Decoder, ahead
from forge_sweep.feature_store.columns import decode, key_values
from forge_sweep.feature_store.versions import RESTORE, SPLITS, Version
from forge_sweep.sources.digest import ContentDigest, Kind

if TYPE_CHECKING:
    import psycopg
    from psycopg.sql import SQL, Composed

KEYS = {
    "int64": (">i8", "row_key::bigint"),
    "datetime": (">i8", "row_key::bigint"),
    "float64": (">f8", "row_key::float8"),
}
"""How a key is read where its type has a fixed width; any other is read as text."""


def query(version: Version, splits: Sequence[str]) -> tuple[SQL | Composed, tuple[Any, ...]]:
    """The query that every reading of rows goes through, and the values to bind."""
    from psycopg import sql

    key = "" if version.key is None else ", " + KEYS.get(version.key.dtype, ("text", "row_key"))[1]
    text = (
        "COPY (SELECT (array_position(%s::text[], split) - 1)::smallint, source_row, raw_vector, labels{key}"
        " FROM training_features WHERE dataset_version = %s AND split = ANY (%s::text[])"
        " ORDER BY feature_id) TO STDOUT (FORMAT binary)"
    )
    return sql.SQL(text.replace("{key}", key)), (list(SPLITS), version.version_id, list(splits))


@contextlib.contextmanager
def rows(
    connection: psycopg.Connection[Any], version: Version, splits: Sequence[str] = SPLITS
) -> Iterator[Iterator[Block]]:
    """The verified rows of a version in blocks, see `stream` and `verified`; the query ends with the context.

    Whoever stops reading, by an error say, has to end the query before the connection is used or closed: psycopg would
    wait for its end forever.
    """
    with contextlib.closing(stream(connection, version, splits)) as unchecked:
        yield verified(unchecked, version, splits)


def stream(connection: psycopg.Connection[Any], version: Version, splits: Sequence[str] = SPLITS) -> Generator[Block]:
    """The rows of a version in blocks, in its order, as far as the connection's role may see them; nothing is checked.

    To be read to its end, or closed: see `rows`.

    Args:
        connection: in any role.
        version: which version.
        splits: which of its splits.
    """
    key = None if version.key is None else KEYS.get(version.key.dtype, ("text", ""))[0]
    decoder = Decoder(len(version.features), len(version.targets), key)
    statement, values = query(version, splits)
    with connection.cursor() as cursor, cursor.copy(statement, values) as copy:
        try:
            yield from ahead(decoder.blocks(copy))
        except ValueError as error:
            _refuse(version, "the rows", str(error), "vectors of the version's length")


def verified(blocks: Iterable[Block], version: Version, splits: Sequence[str] = SPLITS) -> Iterator[Block]:
    """The same blocks; raises at the end where they were not exactly the rows of the version.

    Raises:
        DataError: rows are missing or differ from what was ingested.
    """
    digests = {name: RowDigest(version, version.row_counts[name]) for name in splits}
    for block in blocks:
        for code, name in enumerate(SPLITS):
            if name in digests:
                try:
                    digests[name].update(block.of_split(code))
                except (IndexError, ValueError):  # a code that stands for no text, a number that is no integer
                    _refuse(
                        version, f"the {name} rows", "values that are none of their columns", "those of its columns"
                    )
        yield block
    for name, digest in digests.items():
        if digest.rows != version.row_counts[name]:
            _refuse(version, f"the {name} rows", f"{digest.rows} rows", f"{version.row_counts[name]}")
        if (found := digest.hexdigest()) != version.role_digests[name]:
            _refuse(version, f"the {name} rows", f"the digest {found[:12]}", version.role_digests[name][:12])


class RowDigest:
    """The content digest of some rows of a version: features, targets and key.

    Args:
        version: gives the columns.
        rows: how many rows there will be.
    """

    def __init__(self, version: Version, rows: int) -> None:
        self._version = version
        self._digest = ContentDigest(rows, kinds(version))
        self.rows = 0

    def update(self, block: Block) -> None:
        """Take the next rows."""
        self.rows += len(block.splits)
        self._digest.update(content(self._version, block))

    def hexdigest(self) -> str:
        """The digest, once every row was taken."""
        return self._digest.hexdigest()


def kinds(version: Version) -> dict[str, Kind]:
    """The digest's kind of every column of content."""
    key = () if version.key is None else (version.key,)
    return {column.name: column.kind for column in (*version.features, *version.targets, *key)}


def content(version: Version, block: Block) -> pd.DataFrame:
    """Features, targets and key of a block, typed."""
    parts = [features(version, block), targets(version, block)]
    if version.key is not None and block.keys is not None:
        key = key_values(version.key, block.keys).set_axis(block.source_rows)
        parts.append(key.to_frame(version.key.name))
    return pd.concat(parts, axis=1)


def features(version: Version, block: Block) -> pd.DataFrame:
    """(n, k) features of a block, typed; the index is the position in what was ingested."""
    return decode(version.features, block.raw, block.source_rows)


def targets(version: Version, block: Block) -> pd.DataFrame:
    """(n, t) targets of a block, typed; the index is the position in what was ingested."""
    return decode(version.targets, block.labels, block.source_rows)


def gather(blocks: Iterable[Block], version: Version, rows: int) -> Block:
    """All rows of the blocks as one, columns contiguous.

    Args:
        blocks: the rows.
        version: gives the widths.
        rows: how many there are.
    """
    raw = np.empty((len(version.features), rows)).T
    labels = np.empty((len(version.targets), rows)).T
    splits, source_rows = np.empty(rows, np.int8), np.empty(rows, np.int64)
    keys: list[Any] = []
    at = 0
    for block in blocks:
        end = at + len(block.splits)
        if end > rows:
            _refuse(version, "the rows", f"more than {rows} rows", f"{rows}")
        raw[at:end], labels[at:end] = block.raw, block.labels
        splits[at:end], source_rows[at:end] = block.splits, block.source_rows
        keys.extend([] if block.keys is None else [block.keys])
        at = end
    if at != rows:
        _refuse(version, "the rows", f"{at} rows", f"{rows}")
    return Block(splits, source_rows, raw, labels, _joined(keys))


def _joined(keys: list[Any]) -> np.ndarray | list[str] | None:
    if not keys:
        return None
    return np.concatenate(keys) if isinstance(keys[0], np.ndarray) else [key for part in keys for key in part]


def _refuse(version: Version, what: str, seen: str, expected: str) -> None:
    raise DataError(
        f"data.version: {what} of {version.version} are not those that were ingested: {seen}; expected {expected}",
        hint=RESTORE,
    )
