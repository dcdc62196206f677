"""Training and validation rows kept on this machine, so that the next sweep does not read them over the network.

A file is named by the digests of content and split, holds no test row, and is used only after its rows were digested
again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forge_sweep.sources.feature_store.codec import BLOCK_ROWS, Block
from forge_sweep.sources.feature_store.versions import Version

if TYPE_CHECKING:
    import pyarrow as pa

VARIABLE = "FORGE_SWEEP_CACHE"


def folder() -> Path:
    """``FORGE_SWEEP_CACHE``, or ``forge_sweep`` in the user's cache folder."""
    declared = os.environ.get(VARIABLE)
    return (
        Path(declared)
        if declared
        else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "forge_sweep"
    )


def path_of(version: Version) -> Path:
    """The file of a version, whether it is there or not."""
    return folder() / f"{version.digest}-{version.split_digest[:16]}.parquet"


def read(path: Path, version: Version) -> Iterator[Block]:
    """The rows of a cache file, not yet verified.

    Raises:
        OSError: the file is not one that `writing` wrote (`pyarrow.ArrowException` too).
    """
    from pyarrow import parquet

    width = len(version.features)
    with parquet.ParquetFile(path, pre_buffer=False) as file:
        for batch in file.iter_batches(BLOCK_ROWS):
            columns = [
                column.to_numpy(zero_copy_only=False) for column in batch.columns[: 2 + width + len(version.targets)]
            ]
            yield Block(
                splits=columns[0],
                source_rows=columns[1],
                raw=np.column_stack(columns[2 : 2 + width]) if width else np.empty((batch.num_rows, 0)),
                labels=np.column_stack(columns[2 + width :]),
                keys=_keys(batch, version),
            )


def write(path: Path, blocks: Iterable[Block]) -> Iterator[Block]:
    """The same blocks, kept at ``path`` once all of them came and were right; a full disk only costs the cache."""
    from pyarrow import parquet

    new = path.with_name(f".{path.name}.{os.getpid()}")
    writer: Any = None
    failed = False
    try:
        for block in blocks:
            if not failed:
                try:
                    writer = _write_block(writer, new, block)
                except OSError:
                    failed = True
            yield block
        if writer is not None and not failed:
            writer.close()
            new.replace(path)
    finally:
        if isinstance(writer, parquet.ParquetWriter) and writer.is_open:
            with contextlib.suppress(OSError):
                writer.close()
        new.unlink(missing_ok=True)


def forget(version: Version) -> None:
    """Remove the file of a version."""
    path_of(version).unlink(missing_ok=True)


def _write_block(writer: Any, path: Path, block: Block) -> Any:
    from pyarrow import parquet

    table = _table(block)
    if writer is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.parent.chmod(0o700)  # these are somebody's rows
        writer = parquet.ParquetWriter(path, table.schema, compression="lz4", use_dictionary=False)
    writer.write_table(table)
    return writer


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
