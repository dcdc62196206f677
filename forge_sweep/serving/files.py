"""`forge-sweep predict`: a file of raw rows in, a file of predictions out, a chunk at a time."""

from __future__ import annotations

import contextlib
import os
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
from forge_sweep.experiment import DataSpec
from forge_sweep.preprocessing import RowsRefused, is_tensor
from forge_sweep.serving import tables
from forge_sweep.serving.predict import Answer, Served, Window
from forge_sweep.sources.arrays import SUFFIX, read_archive
from forge_sweep.sources.reading import (
    ENDINGS,
    content_names,
    csv_schema,
    other_separator,
    refuse_names,
    refuse_unreadable,
    text_pieces,
    translated,
)
from forge_sweep.task import Task
from forge_sweep.task.task import free_name
from forge_sweep.tracking import fetched, locate

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

CHUNK_ROWS = 65_536
WARNINGS = "warnings"
KINDS = (*ENDINGS, SUFFIX)

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
    trust: bool = False,
) -> Predicted:
    """Predict a file. Nothing stands at ``output`` before all of its rows were predicted.

    Args:
        reference: which model, see `forge_sweep.tracking.locate`.
        file: ``.csv``, ``.csv.gz``, ``.parquet`` or ``.npz``; images as paths that start at its folder.
        output: ``.csv``, ``.parquet`` or ``.jsonl``; None for CSV on standard output.
        store: folder of the embedded stores.
        keep: columns of the file that are written before the predictions and are not features.
        ignore_extra: drop other columns that the model does not have, instead of refusing them. Columns that were none
            of its features when it was trained (target, key, dropped ones) are left out in any case.
        separator: of the fields of a CSV file; default: that of the file it was trained on.
        trust: see `forge_sweep.bundle.Bundle.load`.

    Raises:
        InputError: a file has an unknown suffix, a row does not fit (by its number, from 0), or there is no such model.
        BundleError: the model is damaged, or gives other golden scores than when it was saved.
    """
    file, store, output = Path(file), Path(store), None if output is None else Path(output)
    _refuse_kinds(file, output)
    located = locate(reference, store)
    with fetched(located, store) as folder:
        ready_backend(folder)
        bundle = Bundle.load(folder, verify=True, trust=trust)
    served = Served(bundle, located, Window(None, 0, 0, 0), ignore_extra=ignore_extra)
    _refuse_keep(served, keep)
    data = bundle.metadata.get("experiment", {}).get("data", {})
    mark = separator or data.get("separator") or ","
    if len(mark) != 1 or not mark.isascii() or mark in '"\r\n':
        raise InputError(f"--separator {mark!r}: expected one ASCII character", hint="such as --separator ';'")
    with _in_options():
        if not _is_archive(file):
            refuse_unreadable(file, "FILE", mark)
    targets = [data["target"]] if isinstance(data.get("target"), str) else data.get("target") or []
    spec = DataSpec.model_construct(target=tuple(targets), task=data.get("task"), drop=())  # as an archive is read by
    rows, counts, ignored = 0, Counter[str](), list[str]()
    with writing(output) as write:
        for table in _chunks(file, mark, spec):
            extra = [name for name in table.column_names if name in bundle.others and name not in keep]
            if not rows and not _is_archive(file):
                _refuse_header(table.column_names, served, {*extra}, keep, file, mark)
            if not rows:
                ignored = list(dict.fromkeys(extra))
            table = table.drop_columns(extra) if extra else table
            found, codes = _predicted(served, table, keep, rows, file)
            write(found)
            rows += found.num_rows
            counts.update(codes)
    return Predicted(served.label, rows, dict(counts), tuple(ignored))


@contextlib.contextmanager
def _in_options() -> Iterator[None]:
    """Say what an error says of keys of an experiment file in options of the command."""
    try:
        yield
    except DataError as error:
        raise error.reworded(
            lambda key, form: f"--separator {key.value}" if key == "data.separator" else "--ignore-extra"
        ) from None


def _refuse_header(
    names: list[str], served: Served, known: set[str], keep: Sequence[str], file: Path, separator: str
) -> None:
    wanted = served.transform.schema.names
    if len(wanted) > 1 and names and names[0] not in wanted and (mark := other_separator(names, separator)):
        raise DataError(
            f"the columns look separated by {mark!r}, and {separator!r} was expected", hint=f"give --separator {mark!r}"
        )
    extra = {name for name in names if name not in wanted and name not in keep}
    with _in_options():
        refuse_names(names, extra if served.transform.ignore_extra else known, "FILE", str(file))


def _predicted(
    served: Served, table: pa.Table, keep: Sequence[str], first: int, file: Path
) -> tuple[pa.Table, list[str]]:
    import pyarrow as pa

    if absent := [name for name in keep if name not in table.column_names]:
        raise DataError(f"the file has no column {absent[0]!r}", hint="correct --keep")
    schema, task = served.transform.schema, served.bundle.task
    features, text = table.drop_columns(list(keep)), _is_csv(file)
    frame = tables.framed(tables.without_missing_words(features) if text else features, schema, text=text)
    raw = served.transform.read_frame(frame, first)
    tensors = served.transform.tensors(frame, first, file.absolute().parent)
    # No rows have the types of one row.
    answer = served.answer(raw, tensors) if len(raw) else Answer(np.zeros((1, task.units)))
    if answer.misfits:
        raise RowsRefused([replace(misfit, row=first + (misfit.row or 0)) for misfit in answer.misfits])
    texts, codes = [""] * len(answer.scores), list[str]()
    for row, column in answer.flagged:
        name = schema.names[column]
        warning = served.warning(column, raw[row, column], frame[name].iloc[row])
        codes.append(warning["code"])
        texts[row] += f"{'; ' if texts[row] else ''}{name}: {warning['seen']}, expected {warning['expected']}"
    found = task.predictions(answer.scores, served.bundle.threshold)
    found[_warnings_column(task)] = texts
    values = pa.Table.from_pandas(found, preserve_index=False)[: len(raw)]
    names = [*keep, *values.column_names]
    return pa.table([*(table[name] for name in keep), *values.columns], names=names), codes


def _chunks(file: Path, separator: str, spec: DataSpec) -> Iterator[pa.Table]:
    """The rows of a file, a chunk at a time, after one without rows; of a CSV file as text, where only "" is null."""
    import pyarrow as pa
    from pyarrow import parquet

    what = f"FILE: {file}"
    if _is_archive(file):
        whole = _as_table(read_archive(file, "FILE", spec))
        yield from (whole.slice(start, CHUNK_ROWS) for start in range(0, whole.num_rows, CHUNK_ROWS))
        return
    if _is_csv(file):
        types = dict.fromkeys(csv_schema(file, separator, what).names, pa.string())
        yield from (piece.table for piece in text_pieces(file, separator, types, what, missing=[""]))
        return
    with translated(what), parquet.ParquetFile(file) as opened:
        names = content_names(opened.schema_arrow)
        yield opened.schema_arrow.empty_table().select(names)
        for batch in opened.iter_batches(batch_size=CHUNK_ROWS, columns=names):
            yield pa.Table.from_batches([batch])


def _as_table(frame: pd.DataFrame) -> pa.Table:
    """The columns of an archive, arrays as Arrow's tensors."""
    import pyarrow as pa

    def column(values: pd.Series) -> Any:
        if not is_tensor(values):
            return pa.array(values)
        arrays = np.stack(list(values))
        return pa.FixedShapeTensorArray.from_numpy_ndarray(arrays.astype(np.uint8) if arrays.dtype == bool else arrays)

    return pa.table({str(name): column(frame[name]) for name in frame})


@contextlib.contextmanager
def writing(output: Path | None) -> Iterator[Write]:
    """What takes the chunks of predictions; the file is renamed to its place once all of them are there."""
    if output is None:
        yield _csv_to(sys.stdout)
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
        with WRITERS[_kind_of(output, WRITERS)](partial) as write:
            yield write
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)


def _csv_to(file: Any) -> Write:
    begun = False

    def write(found: pa.Table) -> None:
        nonlocal begun
        import pandas as pd

        found.to_pandas(types_mapper=pd.ArrowDtype).to_csv(file, header=not begun, index=False)
        begun = True

    return write


@contextlib.contextmanager
def _csv_writer(path: Path) -> Iterator[Write]:
    with path.open("w", encoding="utf-8", newline="") as file:
        yield _csv_to(file)


@contextlib.contextmanager
def _json_writer(path: Path) -> Iterator[Write]:
    with path.open("w", encoding="utf-8") as file:
        yield lambda found: file.writelines(jsons.dumps(row, ensure_ascii=False) + "\n" for row in found.to_pylist())


@contextlib.contextmanager
def _parquet_writer(path: Path) -> Iterator[Write]:
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
    ".csv": _csv_writer,
    ".parquet": _parquet_writer,
    ".jsonl": _json_writer,
}


def _kind_of(path: Path, kinds: Any) -> str:
    return next((ending for ending in kinds if path.name.lower().endswith(ending)), "")


def _is_csv(file: Path) -> bool:
    return _kind_of(file, KINDS) not in (".parquet", SUFFIX)


def _is_archive(file: Path) -> bool:
    return _kind_of(file, KINDS) == SUFFIX


def _refuse_kinds(file: Path, output: Path | None) -> None:
    for path, kinds in ((file, KINDS), (output, tuple(WRITERS))):
        if path is not None and not _kind_of(path, kinds):
            raise InputError(f"{path} has an unknown suffix; expected {', '.join(kinds)}", hint="name it otherwise")
    if not os.path.isfile(file):
        raise InputError(f"{file} does not exist or is not a file", hint="give a file of raw rows")
    if output is not None and os.path.isdir(output):
        raise InputError(f"{output} is a directory; expected a file to write", hint="give another --output")
    if output is not None and os.path.exists(output) and output.samefile(file):
        raise InputError(f"{output} is the file of raw rows itself, which would be lost", hint="give another --output")


def _warnings_column(task: Task) -> str:
    """Where the warnings of a row are written: ``warnings``, or ``row_warnings`` where that is what is predicted."""
    scores, labels = task.columns()
    return free_name(WARNINGS, (*scores, *labels), "row_")


def _refuse_keep(served: Served, keep: Sequence[str]) -> None:
    task, schema = served.bundle.task, served.bundle.preprocessor.schema
    scores, labels = task.columns()
    written = {*scores, *labels, _warnings_column(task)}
    if twice := [name for name, count in Counter(keep).items() if count > 1]:
        raise InputError(f"--keep {twice[0]} is given {Counter(keep)[twice[0]]} times", hint="give it once")
    for name in keep:
        if name in schema.names:
            raise InputError(f"--keep {name}: the column is a feature of {served.label}", hint="take it out of --keep")
        if name in written:
            raise InputError(f"--keep {name}: the predictions have a column of that name", hint="rename it in the file")
