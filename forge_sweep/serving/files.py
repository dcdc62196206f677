"""`forge-sweep predict`: a file of raw rows in, a file of predictions out, a chunk at a time."""

from __future__ import annotations

import contextlib
import secrets
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forge_sweep import jsons
from forge_sweep.bundle import Bundle, ready_backend
from forge_sweep.errors import DataError, InputError
from forge_sweep.preprocessing import RowsRefused
from forge_sweep.serving import tables
from forge_sweep.serving.served import Answer, Served
from forge_sweep.serving.window import Window
from forge_sweep.tracking import fetched, locate

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK_ROWS = 65_536
CHUNK_BYTES = 8_000_000
WARNINGS = "warnings"

Write = Callable[["pa.Table"], None]


@dataclass(frozen=True)
class Predicted:
    """What was done.

    Attributes:
        model: ``fraud/3``.
        rows: rows predicted.
        warnings: values that train did not have, by kind.
    """

    model: str
    rows: int
    warnings: dict[str, int]


def predict_file(
    reference: str,
    file: Path,
    output: Path | None,
    *,
    store: Path,
    keep: Sequence[str] = (),
    ignore_extra: bool = False,
) -> Predicted:
    """Predict a file. Nothing stands at ``output`` before all of its rows were predicted.

    Args:
        reference: which model, see `forge_sweep.tracking.locate`.
        file: ``.csv``, ``.csv.gz`` or ``.parquet``.
        output: ``.csv``, ``.parquet`` or ``.jsonl``; None for CSV on standard output.
        store: folder of the embedded stores.
        keep: columns of the file that are written before the predictions and are no features.
        ignore_extra: drop other columns that the model does not have, instead of refusing them.

    Raises:
        InputError: a file is of no known kind, a row does not fit (by its number, from 0), or there is no such model.
        BundleError: the model is damaged, or gives other golden scores than when it was saved.
    """
    refuse_kinds(file, output)
    located = locate(reference, store)
    with fetched(located, store) as folder:
        ready_backend(folder)
        bundle = Bundle.load(folder, verify=True)
    served = Served(bundle, located, Window(None, 0, 0, 0), ignore_extra=ignore_extra)
    refuse_keep(served, keep)
    rows, counts = 0, Counter[str]()
    with writing(output) as write:
        for table in chunks(file):
            found, codes = predicted(served, table, keep, rows, text=is_csv(file))
            write(found)
            rows += found.num_rows
            counts.update(codes)
    return Predicted(served.label, rows, dict(counts))


def predicted(
    served: Served, table: pa.Table, keep: Sequence[str], first: int, *, text: bool
) -> tuple[pa.Table, list[str]]:
    """The predictions of a chunk, and the kinds of its warnings.

    Args:
        served: the model.
        table: raw rows.
        keep: columns to carry over.
        first: number of the first row.
        text: whether it is of a CSV file.
    """
    import pyarrow as pa

    if absent := [name for name in keep if name not in table.column_names]:
        raise DataError(f"the file has no column {absent[0]!r}", hint="correct --keep")
    schema, task = served.transform.schema, served.bundle.task
    features = table.drop_columns(list(keep))
    frame = tables.framed(tables.without_missing_words(features) if text else features, schema, text=text)
    raw = served.transform.read_frame(frame, first)
    # No rows have the types of one row.
    answer = served.answer(raw) if len(raw) else Answer(np.zeros((1, task.units)))
    if answer.misfits:
        raise RowsRefused([replace(misfit, row=first + (misfit.row or 0)) for misfit in answer.misfits])
    texts, codes = [""] * len(answer.scores), list[str]()
    for row, column in answer.flagged:
        name = schema.names[column]
        warning = served.warning(column, raw[row, column], frame[name].iloc[row])
        codes.append(warning["code"])
        texts[row] += f"{'; ' if texts[row] else ''}{name}: {warning['seen']}, expected {warning['expected']}"
    found = task.predictions(answer.scores, served.bundle.threshold)
    values = pa.Table.from_pandas(found.assign(**{WARNINGS: texts}), preserve_index=False)[: len(raw)]
    names = [*keep, *values.column_names]
    return pa.table([*(table[name] for name in keep), *values.columns], names=names), codes


def chunks(file: Path) -> Iterator[pa.Table]:
    """The rows of a file, a chunk at a time, after one chunk without rows.

    Raises:
        DataError: the file cannot be read.
    """
    import pyarrow as pa

    try:
        yield from (csv_chunks if is_csv(file) else parquet_chunks)(file)
    except (pa.ArrowException, OSError) as error:
        message = f"{file} cannot be read: {tables.first_line(error)}"
        raise DataError(message, hint="mend the file, or write it again") from error


def csv_chunks(file: Path) -> Iterator[pa.Table]:
    """A CSV file, every column as text."""
    import pyarrow as pa
    from pyarrow import csv

    parse = csv.ParseOptions(newlines_in_values=True)
    options = csv.ReadOptions(block_size=CHUNK_BYTES)
    with pa.input_stream(str(file), compression="detect") as stream:
        names = csv.open_csv(stream, read_options=options, parse_options=parse).schema.names
    with pa.input_stream(str(file), compression="detect") as stream:
        reader = csv.open_csv(
            stream, read_options=options, parse_options=parse, convert_options=tables.as_it_stands(names)
        )
        yield pa.Table.from_batches([], reader.schema)
        for batch in reader:
            yield pa.Table.from_batches([batch])


def parquet_chunks(file: Path) -> Iterator[pa.Table]:
    """A Parquet file."""
    import pyarrow as pa
    from pyarrow import parquet

    with parquet.ParquetFile(file) as opened:
        names = [name for name in opened.schema_arrow.names if not name.startswith("__index_level_")]
        yield opened.schema_arrow.empty_table().select(names)
        for batch in opened.iter_batches(batch_size=CHUNK_ROWS, columns=names):
            yield pa.Table.from_batches([batch])


@contextlib.contextmanager
def writing(output: Path | None) -> Iterator[Write]:
    """What takes the chunks of predictions; the file is renamed to its place once all of them are there."""
    if output is None:
        yield csv_to(sys.stdout)
        return
    partial = output.with_name(f".{output.name}.{secrets.token_hex(4)}.partial")  # two that write one file at once
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial.touch(exist_ok=False)
    except OSError as error:
        raise InputError(f"{output} cannot be written: {error.strerror}", hint="give another --output") from error
    try:
        with WRITERS[kind_of(output, WRITERS)](partial) as write:
            yield write
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)


def csv_to(file: Any) -> Write:
    """Writes chunks as CSV, with one header."""
    begun = False

    def write(found: pa.Table) -> None:
        nonlocal begun
        import pandas as pd

        found.to_pandas(types_mapper=pd.ArrowDtype).to_csv(file, header=not begun, index=False)
        begun = True

    return write


@contextlib.contextmanager
def csv_writer(path: Path) -> Iterator[Write]:
    """A CSV file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        yield csv_to(file)


@contextlib.contextmanager
def json_writer(path: Path) -> Iterator[Write]:
    """A JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        yield lambda found: file.writelines(jsons.dumps(row, ensure_ascii=False) + "\n" for row in found.to_pylist())


@contextlib.contextmanager
def parquet_writer(path: Path) -> Iterator[Write]:
    """A Parquet file."""
    from pyarrow import parquet

    with contextlib.ExitStack() as stack:
        writer: Any = None

        def write(found: pa.Table) -> None:
            nonlocal writer
            if writer is None:
                writer = stack.enter_context(parquet.ParquetWriter(path, found.schema))
            writer.write_table(found)

        yield write


READ = (".csv", ".csv.gz", ".parquet")
WRITERS: dict[str, Callable[[Path], contextlib.AbstractContextManager[Write]]] = {
    ".csv": csv_writer,
    ".parquet": parquet_writer,
    ".jsonl": json_writer,
}


def kind_of(path: Path, kinds: Any) -> str:
    """The ending of a file's name; "" where it is none of these."""
    return next((ending for ending in kinds if path.name.lower().endswith(ending)), "")


def is_csv(file: Path) -> bool:
    """Whether a file has no types of its own."""
    return kind_of(file, READ) != ".parquet"


def refuse_kinds(file: Path, output: Path | None) -> None:
    """Raise InputError for files that cannot be read or written."""
    for path, kinds in ((file, READ), (output, tuple(WRITERS))):
        if path is not None and not kind_of(path, kinds):
            raise InputError(f"{path} is of no known kind; expected {', '.join(kinds)}", hint="name it otherwise")
    if not file.is_file():
        raise InputError(f"{file} does not exist or is no file", hint="give a file of raw rows")
    if output is not None and output.is_dir():
        raise InputError(f"{output} is a folder; expected a file to write", hint="give another --output")
    if output is not None and output.exists() and output.samefile(file):
        raise InputError(f"{output} is the file of raw rows itself, which would be lost", hint="give another --output")


def refuse_keep(served: Served, keep: Sequence[str]) -> None:
    """Raise InputError for a column that cannot be carried over."""
    task, schema = served.bundle.task, served.bundle.preprocessor.schema
    written = [*task.predictions(np.empty((0, task.units))).columns, WARNINGS]
    for name in keep:
        if name in schema.names:
            raise InputError(f"--keep {name}: the column is a feature of {served.label}", hint="take it out of --keep")
        if name in written:
            raise InputError(f"--keep {name}: the predictions have a column of that name", hint="rename it in the file")
