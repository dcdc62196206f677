"""CSV and Parquet files: one file, or one per split."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from forge_sweep.errors import DataError
from forge_sweep.sources.assemble import assemble
from forge_sweep.sources.base import ROLES, Dataset

if TYPE_CHECKING:
    import pyarrow as pa

    from forge_sweep.experiment import DataSpec

MISSING_WORDS = (
    *("", "NA", "N/A", "n/a", "<NA>", "NaN", "nan", "-NaN", "-nan", "NULL", "null", "None"),
    *("#N/A", "#N/A N/A", "#NA", "1.#IND", "1.#QNAN", "-1.#IND", "-1.#QNAN"),
)
"""What stands for a missing value in a CSV file: the words of `pandas.read_csv`."""


class FileSource:
    """Reads ``data.path``: ``.csv``, ``.csv.gz`` or ``.parquet``.

    A CSV file has a header line, is UTF-8, and has no types of its own: a column is read as whole numbers, numbers,
    booleans (true / false), times or text, by all of its values. Columns named in ``data.categorical`` are read as
    text, so that the code ``007`` keeps its zeros. With one file per split, the files must have the same columns.
    """

    def load(self, spec: DataSpec, *, root: Path, seed: int) -> Dataset:
        """See `forge_sweep.sources.base.Source.load`."""
        paths = _paths(spec, root)
        tables = {key: _read(path, key, spec) for key, path in paths.items()}
        lengths = [table.num_rows for table in tables.values()]
        split_files = len(paths) > 1
        return assemble(
            _concatenate(tables).to_pandas(ignore_metadata=True, date_as_object=False),
            spec,
            name=_name(spec, paths),
            source=", ".join(map(str, paths.values())),
            seed=seed,
            rows=np.concatenate([np.arange(length, dtype=np.int64) for length in lengths]),
            roles=np.repeat(np.arange(len(ROLES), dtype=np.int8), lengths) if split_files else None,
        )


def _paths(spec: DataSpec, root: Path) -> dict[str, Path]:
    """TOML key -> resolved path; three of them in the order of roles, or one."""
    assert spec.path is not None  # the experiment file was checked for it
    if isinstance(spec.path, Mapping):
        named = {f"data.path.{role}": spec.path[role] for role in ROLES}
    else:
        named = {"data.path": spec.path}
    return {key: (root / Path(path).expanduser()).resolve() for key, path in named.items()}


def _name(spec: DataSpec, paths: dict[str, Path]) -> str:
    """The stem of the file, or the folder that holds the files of the splits."""
    first = next(iter(paths.values()))
    return first.parent.name if isinstance(spec.path, Mapping) else first.name.split(".")[0]


def _read(path: Path, key: str, spec: DataSpec) -> pa.Table:
    """One file as a table of at least one row."""
    import pyarrow as pa

    refuse_unreadable(path, key)
    reader = next(read for ending, read in READERS.items() if path.name.lower().endswith(ending))
    try:
        table = reader(path, spec)
    except (pa.ArrowException, OSError) as error:
        cause = str(error).splitlines()[0]
        raise DataError(f"{key}: {path} cannot be read: {cause}", hint="mend the file, or write it again") from error
    if table.num_rows == 0:
        raise DataError(f"{key}: {path} holds no rows; expected a header and rows", hint="name another file")
    return decoded(table, path, key)


def refuse_unreadable(path: Path, key: str) -> None:
    """Raise DataError for a file that is of no known kind, or that is not there."""
    if not path.name.lower().endswith(tuple(READERS)):
        raise DataError(
            f"{key}: {path} is of no known kind; expected {', '.join(READERS)}", hint="convert it to Parquet"
        )
    if not path.is_file():
        hint = "a relative path starts at the folder of the experiment file"
        raise DataError(f"{key}: {path} does not exist or is no file", hint=hint)


def _read_csv(path: Path, spec: DataSpec) -> pa.Table:
    import pyarrow as pa
    from pyarrow import csv

    with pa.input_stream(str(path), compression="detect") as stream:
        content = stream.read()
    return csv.read_csv(
        pa.BufferReader(content),
        # Types are inferred from the first block only, so all of the file is one block (2 GiB at most).
        read_options=csv.ReadOptions(block_size=min(max(len(content), 1), 2**31 - 1)),
        parse_options=csv.ParseOptions(delimiter=spec.separator, newlines_in_values=True),
        convert_options=csv.ConvertOptions(
            null_values=MISSING_WORDS,
            strings_can_be_null=True,
            column_types=dict.fromkeys(spec.categorical, pa.string()),
        ),
    )


def _read_parquet(path: Path, spec: DataSpec) -> pa.Table:
    from pyarrow import parquet

    table = parquet.ParquetFile(path).read()
    # An unnamed pandas index is the position of the row in some frame, not content.
    return table.select([i for i, name in enumerate(table.column_names) if not name.startswith("__index_level_")])


READERS: dict[str, Callable[[Path, DataSpec], pa.Table]] = {
    ".csv": _read_csv,
    ".csv.gz": _read_csv,
    ".parquet": _read_parquet,
}
"""How a file is read, by the end of its name."""


def decoded(table: pa.Table, path: Path, key: str) -> pa.Table:
    """The table of a file without dictionaries, all text as one type."""
    import pyarrow as pa

    columns = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_binary(column.type):
            raise DataError(f"{key}: column {name!r} of {path} is not UTF-8 text", hint="save the file as UTF-8")
        columns.append(column.cast(pa.large_string()) if pa.types.is_string(column.type) else column)
    return pa.table(columns, names=table.column_names)


def _concatenate(tables: dict[str, pa.Table]) -> pa.Table:
    """The rows of all files, one after the other.

    Raises:
        DataError: the files have different columns, or a column is text in one file and numbers in another.
    """
    import pyarrow as pa

    if len(tables) == 1:
        return next(iter(tables.values()))
    if absent := _differences(tables):
        message = "\n  ".join(["data.path: the files of the splits have different columns", *absent])
        raise DataError(message, hint="write the same columns to each file")
    try:
        return pa.concat_tables(tables.values(), promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(
            "\n  ".join(["data.path: the files of the splits have columns of different types", *_mixed_types(tables)]),
            hint="write each column with one type; name columns of codes in categorical under [data]",
        ) from error


def _differences(tables: dict[str, pa.Table]) -> list[str]:
    """``- age is missing in data.path.valid``, for every column that is not everywhere."""
    columns = {key: set(table.column_names) for key, table in tables.items()}
    everywhere = set.union(*columns.values())
    return [f"- {name} is missing in {key}" for key, names in columns.items() for name in sorted(everywhere - names)]


def _mixed_types(tables: dict[str, pa.Table]) -> list[str]:
    """``~ age: int64 in data.path.train, string in data.path.valid``, for every column of several types."""
    lines = []
    for name in next(iter(tables.values())).column_names:
        kinds = {key: str(table.schema.field(name).type) for key, table in tables.items()}
        if len(set(kinds.values())) > 1:
            lines.append(f"~ {name}: " + ", ".join(f"{kind} in {key}" for key, kind in kinds.items()))
    return lines
