"""Training and validation rows kept on this machine, so that the next sweep does not read them over the network.

A file is of one version and named by its digests, holds no test row, and is used only after its rows were digested
again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from forge_sweep.feature_store.codec import BLOCK_ROWS, Block
from forge_sweep.feature_store.versions import Version
from forge_sweep.sources.spool import cache_folder as folder

if TYPE_CHECKING:
    import pyarrow as pa

PARTIAL = ".partial-"

SOURCE_ROWS = b"forge_sweep source rows"
"""Key of the file's metadata with the SHA-256 over the places of its rows in their source (int64)."""


def path_of(version: Version) -> Path:
    """The file of a version, whether it is there or not.

    Another version may have the same content, and so the same digests, with its rows at other places of another file or
    with its columns in another order.
    """
    identity = hashlib.sha256(repr((version.version_id, version.name, version.frozen_at)).encode()).hexdigest()
    return folder() / f"{version.digest}-{version.split_digest[:16]}-{identity[:8]}.parquet"


def read(path: Path, version: Version) -> Iterator[Block]:
    """The rows of a cache file, not yet verified.

    Raises:
        Exception: of any kind where the file is not what `write` wrote; ValueError where only the places of the rows in
            their source are not.
    """
    from pyarrow import parquet

    width, source_rows = len(version.features), hashlib.sha256()
    with parquet.ParquetFile(path, pre_buffer=False) as file:
        for batch in file.iter_batches(BLOCK_ROWS):
            columns = [
                column.to_numpy(zero_copy_only=False) for column in batch.columns[: 2 + width + len(version.targets)]
            ]
            source_rows.update(np.ascontiguousarray(columns[1]).data)
            yield Block(
                splits=columns[0],
                source_rows=columns[1],
                raw=np.column_stack(columns[2 : 2 + width]) if width else np.empty((batch.num_rows, 0)),
                labels=np.column_stack(columns[2 + width :]),
                keys=_keys(batch, version),
            )
        if file.metadata.metadata[SOURCE_ROWS] != source_rows.hexdigest().encode():
            raise ValueError("source rows")  # the content digest is over all else


def write(path: Path, blocks: Iterable[Block]) -> Iterator[Block]:
    """The same blocks, kept at ``path`` once all of them came and were right."""
    partial = Partial(path)
    try:
        for block in blocks:
            partial.attempt(partial.append, block)
            yield block
        partial.attempt(partial.finish)
    finally:
        partial.remove()


class Partial:
    """A cache file in the making. A full disk, or a folder that cannot be written to, only costs the cache.

    Args:
        path: where it will stand.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._place = ""
        self._file: IO[bytes] | None = None
        self._writer: Any = None
        self._source_rows = hashlib.sha256()
        self._failed = False

    def attempt(self, step: Callable[..., None], *values: Any) -> None:
        """Do something with the file, unless that failed before."""
        with contextlib.suppress(OSError):
            if not self._failed:
                self._failed = True
                step(*values)
                self._failed = False

    def append(self, block: Block) -> None:
        """Write the next rows."""
        table = _table(block)
        if self._writer is None:
            self._writer = self._begin(table.schema)
        self._source_rows.update(np.ascontiguousarray(block.source_rows).data)
        self._writer.write_table(table)

    def finish(self) -> None:
        """All rows are there: the file takes its place."""
        if self._file is not None:
            self._writer.add_key_value_metadata({SOURCE_ROWS.decode(): self._source_rows.hexdigest()})
            self._writer.close()
            self._file.close()
            Path(self._place).replace(self._path)

    def remove(self) -> None:
        """Nothing of it stays but for a finished file."""
        with contextlib.suppress(OSError):
            if self._file is not None:
                if self._writer is not None and self._writer.is_open:
                    self._writer.close()
                self._file.close()
        if self._file is not None:
            Path(self._place).unlink(missing_ok=True)

    def _begin(self, schema: pa.Schema) -> Any:
        from pyarrow import parquet

        folder = self._path.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # the file is private: it holds the user's rows
        _remove_leftovers(folder)
        opened, self._place = tempfile.mkstemp(prefix=f"{PARTIAL}{os.getpid()}-", dir=folder)
        self._file = os.fdopen(opened, "wb")
        return parquet.ParquetWriter(self._file, schema, compression="lz4", use_dictionary=False)


def _remove_leftovers(folder: Path) -> None:
    """Remove the partial files of processes of this machine that were killed."""
    import psutil

    for path in folder.glob(f"{PARTIAL}*"):
        pid = path.name.removeprefix(PARTIAL).partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            path.unlink(missing_ok=True)


def forget(version: Version) -> None:
    """Remove the file of a version."""
    path_of(version).unlink(missing_ok=True)


def _table(block: Block) -> pa.Table:
    import pyarrow as pa

    columns = [block.splits, block.source_rows, *block.raw.T, *block.labels.T]
    arrays = [pa.array(np.ascontiguousarray(column)) for column in columns]
    if block.keys is not None:
        arrays.append(pa.array(block.keys))
    return pa.table(arrays, names=[str(position) for position in range(len(arrays))])


def _keys(batch: pa.RecordBatch, version: Version) -> np.ndarray | list[str] | None:
    if version.key is None:
        return None
    column = batch.columns[-1]
    if version.key.dtype in ("text", "uint64"):
        return [str(key) for key in column.to_pylist()]
    return np.asarray(column.to_numpy(zero_copy_only=False))
