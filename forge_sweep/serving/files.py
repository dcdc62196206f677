"""`forge-sweep predict`: a file of raw rows in, a file of predictions out, a chunk at a time."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from forge_sweep.sources.inspection import ENDINGS, explained, open_text, refuse_swallowed, refuse_unreadable
from forge_sweep.task import Task
from forge_sweep.task.task import free_name
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
        ignored: columns that were no features when the model was trained, and were left out.
    """

    model: str
    rows: int
    warnings: dict[str, int]
    ignored: tuple[str, ...] = ()


def predict_file(
    reference: str | Path,
    file: Path | str,
    output: Path | str | None,
    *,
    store: Path | str,
    keep: Sequence[str] = (),
    ignore_extra: bool = False,
    separator: str | None = None,
) -> Predicted:
    """Predict a file. Nothing stands at ``output`` before all of its rows were predicted.

    Args:
        reference: which model, see `forge_sweep.tracking.locate`.
        file: ``.csv``, ``.csv.gz`` or ``.parquet``.
        output: ``.csv``, ``.parquet`` or ``.jsonl``; None for CSV on standard output.
        store: folder of the embedded stores.
        keep: columns of the file that are written before the predictions and are no features.
        ignore_extra: drop other columns that the model does not have, instead of refusing them. Columns that were none
            of its features when it was trained (target, key, dropped ones) are left out in any case.
        separator: of the fields of a CSV file; default: that of the file it was trained on.

    Raises:
        InputError: a file is of no known kind, a row does not fit (by its number, from 0), or there is no such model.
        BundleError: the model is damaged, or gives other golden scores than when it was saved.
    """
    file, store, output = Path(file), Path(store), None if output is None else Path(output)
    refuse_kinds(file, output)
    located = locate(reference, store)
    with fetched(located, store) as folder:
        ready_backend(folder)
        bundle = Bundle.load(folder, verify=True)
    served = Served(bundle, located, Window(None, 0, 0, 0), ignore_extra=ignore_extra)
    refuse_keep(served, keep)
    data = bundle.metadata.get("experiment", {}).get("data", {})
    mark = separator or data.get("separator") or ","
    if len(mark) != 1 or not mark.isascii() or mark in '"\r\n':
        raise InputError(f"--separator {mark!r}: expected one ASCII character", hint="such as --separator ';'")
    refuse_unreadable(file, "FILE")
    others = {name for name in known_before(data) if name not in bundle.preprocessor.schema.names}
    rows, counts, ignored = 0, Counter[str](), list[str]()
    with writing(output) as write:
        for table in chunks(file, mark):
            refuse_other_separator(table, bundle, mark)
            extra = [name for name in table.column_names if name in others and name not in keep]
            ignored = ignored or list(dict.fromkeys(extra))
            table = table.drop_columns(extra) if extra else table
            found, codes = predicted(served, table, keep, rows, text=is_csv(file))
            write(found)
            rows += found.num_rows
            counts.update(codes)
    return Predicted(served.label, rows, dict(counts), tuple(ignored))


def known_before(data: Mapping[str, Any]) -> set[str]:
    """Columns of the training rows that are no features, by the section ``[data]`` of the experiment."""
    split = data.get("split") or {}
    target = data.get("target") or ()
    named = [*([target] if isinstance(target, str) else target), *(data.get("drop") or ()), data.get("key")]
    return {name for name in (*named, split.get("column"), split.get("group"), split.get("time")) if name}


def refuse_other_separator(table: pa.Table, bundle: Bundle, separator: str) -> None:
    """Raise DataError for a file of one column whose name holds the columns of the model, separated otherwise."""
    wanted = bundle.preprocessor.schema.names
    if table.num_columns == 1 and len(wanted) > 1 and table.column_names[0] not in wanted:
        for mark in ";\t|,":
            if mark != separator and mark in table.column_names[0]:
                raise DataError(
                    f"the columns look separated by {mark!r}, and {separator!r} was expected",
                    hint=f"give --separator {mark!r}",
                )


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
    found[warnings_column(task)] = texts
    values = pa.Table.from_pandas(found, preserve_index=False)[: len(raw)]
    names = [*keep, *values.column_names]
    return pa.table([*(table[name] for name in keep), *values.columns], names=names), codes


def chunks(file: Path, separator: str) -> Iterator[pa.Table]:
    """The rows of a file, a chunk at a time, after one chunk without rows.

    Raises:
        DataError: the file cannot be read.
    """
    import pyarrow as pa

    try:
        yield from csv_chunks(file, separator) if is_csv(file) else parquet_chunks(file)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        what, hint = explained(error)
        raise DataError(f"{file} cannot be read: {what}", hint=hint) from error


def csv_chunks(file: Path, separator: str) -> Iterator[pa.Table]:
    """A CSV file, every column as text."""
    import pyarrow as pa
    from pyarrow import csv

    parse = csv.ParseOptions(delimiter=separator, newlines_in_values=True)
    options = csv.ReadOptions(block_size=CHUNK_BYTES)
    with open_text(file) as stream:
        names = csv.open_csv(stream, read_options=options, parse_options=parse).schema.names
    with open_text(file) as stream:
        reader = csv.open_csv(
            stream, read_options=options, parse_options=parse, convert_options=tables.as_it_stands(names)
        )
        yield pa.Table.from_batches([], reader.schema)
        row = 0
        for batch in reader:
            table = pa.Table.from_batches([batch])
            refuse_swallowed(table, separator, str(file), row)
            row += table.num_rows
            yield table


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
    partial = output.with_name(f".predict.{secrets.token_hex(4)}.partial")  # two that write one file at once
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.lstat(output)  # a name that no file can have is said before anything is predicted
        partial.touch(exist_ok=False)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{output} cannot be written: {why}", hint="give another --output") from error
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
    return kind_of(file, ENDINGS) != ".parquet"


def refuse_kinds(file: Path, output: Path | None) -> None:
    """Raise InputError for files that cannot be read or written."""
    for path, kinds in ((file, ENDINGS), (output, tuple(WRITERS))):
        if path is not None and not kind_of(path, kinds):
            raise InputError(f"{path} is of no known kind; expected {', '.join(kinds)}", hint="name it otherwise")
    if not os.path.isfile(file):
        raise InputError(f"{file} does not exist or is no file", hint="give a file of raw rows")
    if output is not None and os.path.isdir(output):
        raise InputError(f"{output} is a folder; expected a file to write", hint="give another --output")
    if output is not None and os.path.exists(output) and output.samefile(file):
        raise InputError(f"{output} is the file of raw rows itself, which would be lost", hint="give another --output")


def warnings_column(task: Task) -> str:
    """Where the warnings of a row are written: ``warnings``, or ``row_warnings`` where that is what is predicted."""
    scores, labels = task.columns()
    return free_name(WARNINGS, (*scores, *labels), "row_")


def refuse_keep(served: Served, keep: Sequence[str]) -> None:
    """Raise InputError for a column that cannot be carried over."""
    task, schema = served.bundle.task, served.bundle.preprocessor.schema
    scores, labels = task.columns()
    written = {*scores, *labels, warnings_column(task)}
    if twice := [name for name, count in Counter(keep).items() if count > 1]:
        raise InputError(f"--keep {twice[0]} is given {Counter(keep)[twice[0]]} times", hint="give it once")
    for name in keep:
        if name in schema.names:
            raise InputError(f"--keep {name}: the column is a feature of {served.label}", hint="take it out of --keep")
        if name in written:
            raise InputError(f"--keep {name}: the predictions have a column of that name", hint="rename it in the file")
