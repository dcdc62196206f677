"""A version of the feature store as a file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_sweep.errors import DataError
from forge_sweep.sources.base import new_look
from forge_sweep.sources.feature_store import reading
from forge_sweep.sources.feature_store.connection import CONFIRM, TUNER, connect, retrying
from forge_sweep.sources.feature_store.ledger import with_unseen, write_look
from forge_sweep.sources.feature_store.source import VISIBLE
from forge_sweep.sources.feature_store.versions import SPLITS, Version, find
from forge_sweep.sources.inspection import MISSING_WORDS

if TYPE_CHECKING:
    import pyarrow as pa

    from forge_sweep.sources.feature_store.address import Address
    from forge_sweep.sources.feature_store.codec import Block

Progress = Callable[[str, int, int | None], None]
ENDINGS = (".parquet", ".csv")


def export(
    address: Address,
    name: str,
    path: Path,
    *,
    with_test: bool = False,
    split_column: str | None = "split",
    purpose: str = "",
    progress: Progress = lambda phase, done, total: None,
) -> int:
    """Write the rows of a version in their order: key, features, targets, and which split each row is of.

    The file appears once all of its rows were verified. Parquet keeps every value and type; ingested again, with
    ``split_column`` as split, it has the digests of the version.

    Args:
        address: the store.
        name: of the version.
        path: ``.parquet`` or ``.csv``.
        with_test: the test rows too; that is a look at them, and a line in the ledger.
        split_column: name of the column with train, val or test; None leaves it out.
        purpose: what the ledger says of the look.
        progress: told of phase, rows done and rows in all.

    Returns:
        Number of rows.

    Raises:
        DataError: no such version, no such kind of file, or a column cannot be written to it.
        StoreDown: nobody answers.
    """
    if path.suffix.lower() not in ENDINGS:
        raise DataError(f"{path} is of no known kind; expected {' or '.join(ENDINGS)}", hint="name another file")
    splits = SPLITS if with_test else VISIBLE

    def work() -> int:
        with connect(address, role=CONFIRM if with_test else TUNER) as connection:
            version = find(connection, name)
            refuse_unwritable(version, path, split_column)
            if with_test:
                write_look(connection, version, new_look(version.digest, purpose or f"export to {path.name}"))
                version = with_unseen(connection, version)
                refuse_unwritable(version, path, split_column)
            with reading.rows(connection, version, splits) as blocks:
                total = sum(version.row_counts[split] for split in splits)
                return write(path, tables(version, blocks, split_column, lambda done: progress("writing", done, total)))

    return retrying(work)


def refuse_unwritable(version: Version, path: Path, split_column: str | None) -> None:
    """Raise DataError where the file would not say what the version says."""
    key = () if version.key is None else (version.key,)
    columns = (*key, *version.features, *version.targets)
    if split_column in {column.name for column in columns}:
        raise DataError(
            f"version {version.name} has a column {split_column!r} of its own", hint="--split-column ANOTHER_NAME"
        )
    if path.suffix.lower() == ".csv":
        for column in columns:
            if words := sorted({*column.categories, *column.unseen} & set(MISSING_WORDS)):
                raise DataError(
                    f"column {column.name!r} of {version.name} has the text {words[0]!r}, which in a CSV file is a "
                    "missing value",
                    hint=f"write {path.with_suffix('.parquet').name}",
                )


def tables(
    version: Version, blocks: Iterable[Block], split_column: str | None, written: Callable[[int], None]
) -> Iterator[pa.Table]:
    """The rows in blocks; ``written`` is told how many there were so far."""
    done = 0
    for block in blocks:
        yield as_table(version, block, split_column)
        done += len(block.splits)
        written(done)


def as_table(version: Version, block: Block, split_column: str | None) -> pa.Table:
    """A block with the types of the whole version, whatever its own values show."""
    import pyarrow as pa

    frame = reading.content(version, block)
    key = () if version.key is None else (version.key,)
    columns = {
        column.name: pa.array(frame[column.name], arrow_type(column.dtype), from_pandas=True)
        for column in (*key, *version.features, *version.targets)
    }
    if split_column is not None:
        columns[split_column] = pa.array([SPLITS[code] for code in block.splits.tolist()], pa.string())
    return pa.table(columns)


def arrow_type(dtype: str) -> pa.DataType:
    """The type of a stored column in a file."""
    import pyarrow as pa

    named = {"bool": pa.bool_(), "boolean": pa.bool_(), "text": pa.string(), "datetime": pa.timestamp("ns")}
    return named.get(dtype) or {"int64": pa.int64(), "uint64": pa.uint64(), "float64": pa.float64()}[dtype]


def write(path: Path, blocks: Iterable[pa.Table]) -> int:
    """Write blocks to a file that stands at ``path`` once it is whole; returns the number of rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    rows, writer = 0, None
    try:
        with contextlib.ExitStack() as stack:
            for table in blocks:
                writer = writer or stack.enter_context(new_writer(path, partial, table.schema))
                writer.write_table(table)
                rows += table.num_rows
        partial.replace(path)
    except OSError as error:
        cause = str(error).splitlines()[0]
        hint = "make room, or name another folder; for rows --from a version that is TMPDIR"
        raise DataError(f"{path} cannot be written: {cause}", hint=hint) from None
    finally:
        partial.unlink(missing_ok=True)
    return rows


def new_writer(path: Path, partial: Path, schema: pa.Schema) -> Any:
    """What writes the kind of file that ``path`` names."""
    from pyarrow import csv, parquet

    return csv.CSVWriter(partial, schema) if path.suffix.lower() == ".csv" else parquet.ParquetWriter(partial, schema)
