"""A file becomes a frozen version: all of it, or nothing.

The file is read once, in blocks; every row is checked and coded to a temporary file. Then order, splits and what is
learned on the training rows are found out, and one transaction copies the rows, describes the version and freezes it. A
process that is killed anywhere leaves a temporary folder, which the next ingest removes, and nothing in the database.

Memory: buffers for some blocks of rows, and per row the key, the split column, the target and some 30 bytes while the
order and the splits are decided.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from forge_sweep.errors import DataError, Key, StoreDown
from forge_sweep.experiment import PreprocessingSpec
from forge_sweep.feature_store import reading
from forge_sweep.feature_store.checking import CodedRows, Rejects, RowFile
from forge_sweep.feature_store.codec import BLOCK_ROWS, HEADER, INSERTED, TRAILER, Block, Encoder, ahead
from forge_sweep.feature_store.columns import StoredColumn, decode, key_texts
from forge_sweep.feature_store.connection import connect, words
from forge_sweep.feature_store.source import print_of
from forge_sweep.feature_store.versions import SPLITS, Version, begin, complete, refuse_taken, was_stored
from forge_sweep.preprocessing import CODE, Coded, Normalization, fit_stream
from forge_sweep.sources.assemble import key_order, refuse_bad_test_rows
from forge_sweep.sources.base import Split
from forge_sweep.sources.digest import fingerprints, kinds_of, split_digest
from forge_sweep.sources.splits import TEST, TRAIN, assign, refuse_empty
from forge_sweep.task import Task

if TYPE_CHECKING:
    import psycopg

    from forge_sweep.experiment import DataSpec
    from forge_sweep.feature_store.connection import Address

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
        StoreDown: the store cannot be reached or the connection was lost; nothing was stored.
    """
    refuse_taken(address, name, parent)
    assert isinstance(spec.path, str)
    path = (root / Path(spec.path).expanduser()).resolve()
    file = RowFile(path, spec)
    with Spool(len(file.feature_names), len(spec.target)) as spool:
        _scan(file, spool, Rejects(max_errors, rejects, path), progress)
        draft = replace(_draft(name, spec, seed, file), parent=parent, source=source or str(path))
        arranged = _arrange(file, spool, spec, seed, draft)
        learned = _learn(arranged, spec, preprocessing or PreprocessingSpec(), progress)
        return _store(arranged, learned, address, progress)


def _scan(file: RowFile, spool: Spool, rejects: Rejects, progress: Progress) -> None:
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
        raise DataError(
            f"{Key('data.path')}: {file.table.path} holds no rows; expected a header and rows", hint="name another"
        )
    spool.finish(file.remaps())


def _arrange(file: RowFile, spool: Spool, spec: DataSpec, seed: int, draft: Version) -> Arranged:
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
    features, codes = _conceal(features, spool, order, roles)
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


def _conceal(
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


def _learn(arranged: Arranged, spec: DataSpec, preprocessing: PreprocessingSpec, progress: Progress) -> Normalization:
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


def _store(arranged: Arranged, learned: Normalization, address: Address, progress: Progress) -> Version:
    import psycopg

    name = arranged.draft.name
    try:
        with connect(address) as connection:
            number = begin(connection, name)
            draft = replace(arranged.draft, version_id=number, normalization_version=learned.name)
            version = _copy(connection, replace(arranged, draft=draft), learned, progress)
            progress("freezing", version.rows, version.rows)
            version = complete(connection, version, learned.to_store())
            _commit(connection, address, version)
        return version
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise StoreDown(
            f"the connection to the feature store was lost while {name} was ingested: {words(error)}; "
            "nothing was stored",
            hint="run the same command again once the server is there and has room",
        ) from None
    except psycopg.Error as error:
        raise DataError(
            f"the feature store refuses {name}: {words(error)}; nothing was stored",
            hint="fix what the server names, and run the same command again",
        ) from None


def _commit(connection: psycopg.Connection[Any], address: Address, version: Version) -> None:
    """Commit; if the connection is lost meanwhile, a new one finds out whether it succeeded."""
    import psycopg

    try:
        connection.commit()
    except (psycopg.OperationalError, psycopg.InterfaceError):
        if not was_stored(address, version):
            raise


def _copy(
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
        f"{Key('data.key')}: column {key.name!r} holds {key.dtype} values; "
        "expected whole numbers, numbers, text or times",
        hint=f"choose another column, or leave {Key('data.key')} out",
    )


PREFIX = "forge-sweep-ingest-"


class Spool:
    """Rows of float64 in a file of a temporary folder (``TMPDIR``) that goes with it.

    Args:
        features: number of features.
        targets: number of targets.
    """

    def __init__(self, features: int, targets: int) -> None:
        _remove_leftovers()
        self._features = features
        self._width = features + targets
        self._folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
        self._file = (self._folder / "rows.f8").open("wb")
        self._positions: list[np.ndarray] = []
        self._remaps: Mapping[int, np.ndarray] = {}
        self.rows = 0

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def append(self, block: CodedRows) -> None:
        """Take the next rows.

        Raises:
            DataError: the disk is full.
        """
        try:
            np.concatenate([block.features, block.targets], axis=1).tofile(self._file)
        except OSError as error:
            raise DataError(
                f"{self._folder} has no room for the coded rows: {error}",
                hint="export TMPDIR= a folder with 8 bytes for each value of the file",
            ) from None
        self._positions.append(block.rows)
        self.rows += len(block.rows)

    def finish(self, remaps: Mapping[int, np.ndarray]) -> None:
        """All rows are there.

        Args:
            remaps: final codes by provisional ones, by column; applied to what is read from here on.
        """
        self._file.close()
        self._remaps = remaps
        self.positions = np.concatenate(self._positions)
        self._positions.clear()

    def recode(self, codes: Mapping[int, np.ndarray]) -> None:
        """Change codes once more: new ones by those that were final until now, by column."""
        changed = {column: _recoded(self._remaps[column], new) for column, new in codes.items()}
        self._remaps = {**self._remaps, **changed}

    def targets(self) -> np.ndarray:
        """All targets (n, targets), in the order of the file."""
        targets, at = np.empty((self.rows, self._width - self._features)), 0
        for block in self.blocks(None):
            targets[at : at + len(block.rows)] = block.targets
            at += len(block.rows)
        return targets

    def blocks(self, order: np.ndarray | None) -> Iterator[CodedRows]:
        """The rows in blocks of `BLOCK_ROWS`.

        Args:
            order: (n,) positions among the appended rows; None for the order of the file.
        """
        for first in range(0, self.rows, BLOCK_ROWS):
            picked = slice(first, first + BLOCK_ROWS) if order is None else order[first : first + BLOCK_ROWS]
            # Mapped anew each time: pages of earlier blocks would count as memory of this process.
            values = np.array(np.memmap(self._file.name, np.float64, "r", shape=(self.rows, self._width))[picked])
            for column, remap in self._remaps.items():
                values[:, column] = _recoded(values[:, column], remap)
            yield CodedRows(self.positions[picked], values[:, : self._features], values[:, self._features :])


def _recoded(codes: np.ndarray, remap: np.ndarray) -> np.ndarray:
    """Final codes of provisional ones; missing stays missing."""
    missing = np.isnan(codes)
    return np.where(missing, np.nan, np.append(remap, np.nan)[np.where(missing, -1, codes).astype(np.intp)])


def _remove_leftovers() -> None:
    import psutil

    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        pid = folder.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)
