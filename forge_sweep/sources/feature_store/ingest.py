"""A file becomes a frozen version: all of it, or nothing.

The file is read once, in blocks; every row is checked and coded to a temporary file. Then order, splits and what is
learned on the training rows are found out, and one transaction copies the rows, describes the version and freezes it. A
process that is killed anywhere leaves a temporary folder, which the next ingest removes, and nothing in the database.

Memory: buffers for some blocks of rows, and per row the key, the split column, the target and some 30 bytes while the
order and the splits are decided.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from forge_sweep.errors import DataError, StoreDown
from forge_sweep.experiment import PreprocessingSpec
from forge_sweep.preprocessing import CODE, Coded, Normalization, fit_stream
from forge_sweep.sources.assemble import key_order, refuse_bad_test_rows
from forge_sweep.sources.base import Split
from forge_sweep.sources.digest import fingerprints, kinds_of, split_digest
from forge_sweep.sources.feature_store import reading
from forge_sweep.sources.feature_store.ahead import ahead
from forge_sweep.sources.feature_store.codec import HEADER, INSERTED, TRAILER, Block, Encoder
from forge_sweep.sources.feature_store.columns import StoredColumn, decode, key_texts
from forge_sweep.sources.feature_store.connection import connect, words
from forge_sweep.sources.feature_store.rejects import Rejects
from forge_sweep.sources.feature_store.rows import RowFile
from forge_sweep.sources.feature_store.source import print_of
from forge_sweep.sources.feature_store.spool import Spool
from forge_sweep.sources.feature_store.versions import SPLITS, Version, begin, complete, refuse_taken, was_stored
from forge_sweep.sources.splits import TEST, TRAIN, assign, refuse_empty
from forge_sweep.task import Task

if TYPE_CHECKING:
    import psycopg

    from forge_sweep.experiment import DataSpec
    from forge_sweep.sources.feature_store.address import Address

Progress = Callable[[str, int, int | None], None]


def ignore(phase: str, done: int, total: int | None) -> None:
    """Show no progress."""


@dataclass(frozen=True, eq=False)
class Arranged:
    """The rows in canonical order, and all that has to be known before they are stored.

    Attributes:
        spool: the rows.
        order: (n,) canonical order; None where it is that of the file.
        roles: (n,) int8 in canonical order: 0 train, 1 val, 2 test.
        keys: (n,) in canonical order, or None.
        draft: the version without digests.
    """

    spool: Spool
    order: np.ndarray | None
    roles: np.ndarray
    keys: pd.Series | None
    draft: Version

    def blocks(self) -> Iterator[Block]:
        """The rows as they are stored, in order."""
        at = 0
        for coded in self.spool.blocks(self.order):
            part = slice(at, at + len(coded.rows))
            keys = None if self.keys is None else key_texts(self.keys.iloc[part])
            yield Block(self.roles[part], coded.rows, coded.features, coded.targets, keys)
            at = part.stop

    def train(self) -> Iterator[np.ndarray]:
        """The features of the training rows, (n, k) float64, in order."""
        at = 0
        for coded in self.spool.blocks(self.order):
            yield coded.features[self.roles[at : at + len(coded.rows)] == TRAIN]
            at += len(coded.rows)


def ingest(
    spec: DataSpec,
    *,
    name: str,
    root: Path,
    seed: int,
    address: Address,
    preprocessing: PreprocessingSpec | None = None,
    max_errors: int = 0,
    rejects: Path | None = None,
    parent: str | None = None,
    source: str | None = None,
    progress: Progress = ignore,
) -> Version:
    """Store a file as a frozen version.

    Args:
        spec: the file as ``[data]`` declares one; the same content, split and seed give the digests and the splits that
            training from the file gives.
        name: of the version.
        root: folder that relative paths start from.
        seed: decides random and group splits.
        address: the store, as its owner.
        preprocessing: what is learned on the training rows for ``scaled_vector``: scaler standard, minmax or none.
        max_errors: rows that may be wrong; they are left out.
        rejects: CSV file for the wrong rows.
        parent: version that this one follows.
        source: what is recorded as its source; the path by default.
        progress: told of phase, rows done and rows in all, where known.

    Raises:
        DataError: the file or its declaration is wrong, or the name is taken; nothing was stored.
        StoreDown: the store cannot be reached or broke off; nothing was stored.
    """
    refuse_taken(address, name, parent)
    assert isinstance(spec.path, str)
    path = (root / Path(spec.path).expanduser()).resolve()
    file = RowFile(path, spec)
    with Spool(len(file.feature_names), len(spec.target)) as spool:
        scan(file, spool, Rejects(max_errors, rejects, path), progress)
        draft = replace(_draft(name, spec, seed, file), parent=parent, source=source or str(path))
        arranged = arrange(file, spool, spec, seed, draft)
        learned = learn(arranged, spec, preprocessing or PreprocessingSpec(), progress)
        return store(arranged, learned, address, progress)


def scan(file: RowFile, spool: Spool, rejects: Rejects, progress: Progress) -> None:
    """Read every row once.

    Raises:
        DataError: more rows are wrong than may be, or none is left.
    """
    total = file.table.rows()
    with contextlib.closing(rejects):
        for block in file.scan(rejects.add):
            spool.append(block)
            progress("reading", spool.rows + rejects.count, total)
        rejects.refuse()
    if not spool.rows:
        raise DataError(f"data.path: {file.table.path} holds no rows; expected a header and rows", hint="name another")
    spool.finish(file.remaps())


def arrange(file: RowFile, spool: Spool, spec: DataSpec, seed: int, draft: Version) -> Arranged:
    """Order and splits, by the steps that every source takes.

    Raises:
        DataError: the key names no order, or the rows cannot be split as asked.
    """
    features, targets = file.features(), file.targets()
    frame = decode(targets, spool.targets(), spool.positions)
    side = file.side().set_axis(pd.Index(spool.positions))
    frame = pd.concat([frame, side[[name for name in side if name not in frame]]], axis=1)
    order = None if spec.key is None else key_order(frame[spec.key])
    frame = frame if order is None else frame.iloc[order]
    roles = assign(frame, spec, seed)
    refuse_empty(roles, spec)
    labels = frame[list(spec.target)]
    train, test = labels[roles == TRAIN], labels[roles == TEST]
    refuse_bad_test_rows(train, Split(test.iloc[:, :0], test, test.index.to_numpy()), spec)
    task = Task.learn(spec.task, train, positive=spec.positive)
    key = None if spec.key is None else _key_column(frame[spec.key])
    features, codes = conceal(features, spool, order, roles)
    spool.recode(codes)
    draft = replace(
        draft,
        features=features,
        targets=targets,
        key=key,
        classes=task.classes,
        row_counts={split: int((roles == code).sum()) for code, split in enumerate(SPLITS)},
        split_digest=split_digest(roles),
    )
    return Arranged(spool, order, roles, None if spec.key is None else frame[spec.key], draft)


def conceal(
    features: tuple[StoredColumn, ...], spool: Spool, order: np.ndarray | None, roles: np.ndarray
) -> tuple[tuple[StoredColumn, ...], dict[int, np.ndarray]]:
    """The vocabularies of training and validation rows, and apart from them the texts that only test rows have.

    Returns:
        The columns, and new codes by old ones for each column that has such texts.
    """
    texts = [position for position, column in enumerate(features) if column.categories]
    seen = {position: np.zeros(len(features[position].categories), bool) for position in texts}
    at = 0
    for coded in spool.blocks(order) if texts else ():
        visible = coded.features[roles[at : at + len(coded.rows)] != TEST]
        at += len(coded.rows)
        for position in texts:
            codes = visible[:, position]
            seen[position][codes[~np.isnan(codes)].astype(np.intp)] = True
    columns, recodes = list(features), {}
    for position in [position for position in texts if not seen[position].all()]:
        column, shown = features[position], seen[position]
        names = np.array(column.categories, object)
        columns[position] = replace(column, categories=tuple(names[shown]), unseen=tuple(names[~shown]))
        new = np.empty(len(names))
        new[np.argsort(~shown, kind="stable")] = np.arange(len(names))
        recodes[position] = new
    return tuple(columns), recodes


def learn(arranged: Arranged, spec: DataSpec, preprocessing: PreprocessingSpec, progress: Progress) -> Normalization:
    """What the scaled vectors are made with, from the training rows."""
    progress("learning", 0, None)
    return fit_stream(
        arranged.train,
        [coded(column, column.name in spec.categorical) for column in arranged.draft.features],
        scaler=preprocessing.scaler,
        impute=preprocessing.impute,
        fill=preprocessing.fill,
        max_categories=preprocessing.max_categories,
    )


def coded(column: StoredColumn, declared: bool) -> Coded:
    """A stored column as the preprocessing takes it."""
    if column.dtype == "text":
        return Coded(column.name, "categorical", CODE if declared else "str", column.categories)
    return Coded(column.name, "boolean" if column.dtype in ("bool", "boolean") else "numeric", column.dtype)


def store(arranged: Arranged, learned: Normalization, address: Address, progress: Progress) -> Version:
    """Copy, describe and freeze, in one transaction."""
    import psycopg

    name = arranged.draft.name
    try:
        with connect(address) as connection:
            number = begin(connection, name)
            draft = replace(arranged.draft, version_id=number, normalization_version=learned.name)
            version = copy(connection, replace(arranged, draft=draft), learned, progress)
            progress("freezing", version.rows, version.rows)
            version = complete(connection, version, learned.to_store())
            commit(connection, address, version)
        return version
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise StoreDown(
            f"the feature store broke off while {name} was ingested: {words(error)}; nothing was stored",
            hint="run the same command again once the server is there and has room",
        ) from None
    except psycopg.Error as error:
        raise DataError(
            f"the feature store refuses {name}: {words(error)}; nothing was stored",
            hint="mend what the server names, and run the same command again",
        ) from None


def commit(connection: psycopg.Connection[Any], address: Address, version: Version) -> None:
    """Commit; where the connection breaks off in its midst, another one finds out what came of it."""
    import psycopg

    try:
        connection.commit()
    except (psycopg.OperationalError, psycopg.InterfaceError):
        if not was_stored(address, version):
            raise


def copy(
    connection: psycopg.Connection[Any], arranged: Arranged, learned: Normalization, progress: Progress
) -> Version:
    """Send every row; returns the version with its digests."""
    from psycopg import sql

    draft, prepare = arranged.draft, learned.preprocessor.transform
    proof = Proof(draft)
    encoder = Encoder(draft.version_id, draft.normalization_version, SPLITS)
    # FREEZE: the table is of this transaction, so its rows need no later visit to be visible to all.
    statement = sql.SQL("COPY {} (" + INSERTED + ") FROM STDIN (FORMAT binary, FREEZE)")
    with (
        connection.cursor() as cursor,
        cursor.copy(statement.format(sql.Identifier(draft.partition))) as sending,
    ):
        sending.write(HEADER)

        def rows() -> Iterator[bytes]:
            for block in arranged.blocks():
                frame = reading.features(draft, block)
                proof.update(block, frame)
                yield encoder.encode(block, prepare(frame).astype(np.float64))

        for encoded in ahead(rows()):
            sending.write(encoded)
            progress("storing", proof.rows, draft.rows)
        sending.write(TRAILER)
    return proof.version()


class Proof:
    """What later readings are checked against: digests of all rows and of each split, and fingerprints."""

    def __init__(self, draft: Version) -> None:
        self._draft = draft
        self._kinds = reading.kinds(draft)
        self._whole = reading.RowDigest(draft, draft.rows)
        self._splits = {name: reading.RowDigest(draft, draft.row_counts[name]) for name in SPLITS}
        self._prints: dict[str, list[np.ndarray]] = {name: [] for name in SPLITS}

    @property
    def rows(self) -> int:
        """Rows so far."""
        return self._whole.rows

    def update(self, block: Block, features: pd.DataFrame) -> None:
        """Take the next rows."""
        self._whole.update(block)
        prints = fingerprints(features, self._kinds)
        for code, name in enumerate(SPLITS):
            self._splits[name].update(block.of_split(code))
            self._prints[name].append(prints[block.splits == code])

    def version(self) -> Version:
        """The version, complete."""
        return replace(
            self._draft,
            digest=self._whole.hexdigest(),
            role_digests={name: digest.hexdigest() for name, digest in self._splits.items()},
            train_print=print_of(np.concatenate(self._prints["train"])),
            test_fingerprints=np.concatenate(self._prints["test"]).astype("<u8").tobytes(),
        )


def _draft(name: str, spec: DataSpec, seed: int, file: RowFile) -> Version:
    """The version as far as the declaration says it."""
    return Version(
        name=name,
        features=(),
        targets=(),
        key=None,
        categorical=spec.categorical,
        task=spec.task,
        positive=spec.positive,
        classes=(),
        row_counts={},
        digest="",
        split_digest="",
        role_digests={},
        train_print="",
        test_fingerprints=b"",
        parent=None,
        source="",
        split={**spec.split.model_dump(mode="json", exclude_none=True), "seed": seed},
        dropped=spec.drop,
        normalization_version="",
    )


def _key_column(key: pd.Series) -> StoredColumn:
    """How the key is kept.

    Raises:
        DataError: it holds values of a type that no key has.
    """
    kind = kinds_of(key.to_frame())[str(key.name)]
    if pd.api.types.is_datetime64_any_dtype(key.dtype):
        return StoredColumn(str(key.name), "datetime", kind)
    if pd.api.types.is_string_dtype(key.dtype):
        return StoredColumn(str(key.name), "text", kind)
    if (dtype := str(key.dtype)) in ("int64", "uint64", "float64"):
        return StoredColumn(str(key.name), dtype, kind)  # type: ignore[arg-type]  # it is one of them
    if pd.api.types.is_integer_dtype(key.dtype):
        return StoredColumn(str(key.name), "int64", kind)
    raise DataError(
        f"data.key: column {key.name!r} holds {key.dtype} values; expected whole numbers, numbers, text or times",
        hint="choose another column, or leave data.key out",
    )
