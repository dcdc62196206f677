"""CSV and Parquet files, NumPy archives and folders of images as a source: one of them, or one per split."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv, types

from forge_sweep.errors import DataError, Key
from forge_sweep.preprocessing import cells
from forge_sweep.sources.arrays import FOLDER, SUFFIX, read_archive, read_folder, with_images
from forge_sweep.sources.assemble import assemble, identities, refuse_absent_columns
from forge_sweep.sources.base import ROLES, Dataset
from forge_sweep.sources.digest import EXACT_INTEGER
from forge_sweep.sources.reading import (
    AS_UTF8,
    MISSING_WORDS,
    content_names,
    csv_options,
    csv_schema,
    kind_of,
    listed,
    refuse_large,
    refuse_swallowed,
    refuse_unreadable,
    translated,
    whole_text,
)

if TYPE_CHECKING:
    from forge_sweep.experiment import DataSpec

NULLABLE = ("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64")
"""Whole numbers of pandas that may be missing."""


@dataclass(frozen=True)
class Part:
    """One file as it was read.

    Attributes:
        names: all of its columns, dropped ones included.
        table: the columns that are not dropped.
        warnings: what should be said of it.
        words: per target or declared code, how often each word for a missing value stands in it.
    """

    names: list[str]
    table: pa.Table
    warnings: tuple[str, ...] = ()
    words: Mapping[str, Counter[str]] = field(default_factory=dict)


class FileSource:
    """Reads ``data.path``: ``.csv``, ``.csv.gz``, ``.parquet``, ``.npz``, or a folder with one sub-folder per class.

    A CSV file has a header line, is UTF-8, and has no types of its own: a column is read as whole numbers, numbers,
    booleans (true / false), times or text, by all of its values. Columns named in ``data.categorical`` are read as
    text, so that the code ``007`` keeps its zeros; columns that order, group or split rows keep every digit. What is
    named in ``data.drop`` is ignored. With one file per split, the files must have the same columns.
    """

    def load(self, spec: DataSpec, *, root: Path, seed: int) -> Dataset:
        """See `forge_sweep.sources.base.Source.load`."""
        paths = _paths(spec, root)
        if any(_is_archive(path) or path.is_dir() for path in paths.values()):
            return _arrays(paths, spec, seed)
        parts = {key: _read(path, key, spec) for key, path in paths.items()}
        lengths = [part.table.num_rows for part in parts.values()]
        words: dict[str, Counter[str]] = defaultdict(Counter)
        for part in parts.values():
            for name, counts in part.words.items():
                words[name].update(counts)
        said = [
            f"column {name!r}: {listed(words[name])}, read as missing; if it is a code, write it otherwise"
            for name in spec.categorical
            if words.get(name)
        ]
        classes = [name for head in spec.tasks.values() if head.task != "regression" for name in head.target]
        first, split_files = next(iter(paths.values())), len(paths) > 1
        frame = frame_of(_concatenate(parts), {*spec.categorical, *identities(spec), *classes})
        source = ", ".join(map(str, paths.values()))
        folders = [path.parent for path, length in zip(paths.values(), lengths, strict=True) for _ in range(length)]
        return assemble(
            with_images(frame, spec, folders, source) if spec.inputs else frame,
            spec,
            name=first.parent.name if split_files else first.name.split(".")[0],
            source=source,
            seed=seed,
            rows=np.concatenate([np.arange(length, dtype=np.int64) for length in lengths]),
            roles=np.repeat(np.arange(len(ROLES), dtype=np.int8), lengths) if split_files else None,
            names=next(iter(parts.values())).names,
            warnings=(*(text for part in parts.values() for text in part.warnings), *said),
            words={name: words[name] for name in spec.target if words.get(name)},
        )


def _is_archive(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIX)


def _arrays(paths: Mapping[str, Path], spec: DataSpec, seed: int) -> Dataset:
    """The rows of NumPy archives or of folders of images: one, or one per split."""
    first, split_files = next(iter(paths.values())), len(paths) > 1
    if others := [
        path for path in paths.values() if (path.is_dir(), _is_archive(path)) != (first.is_dir(), _is_archive(first))
    ]:
        raise DataError(f"data.path: {others[0]} is of another kind than {first}", hint="write all of them alike")
    frames, said = list[pd.DataFrame](), list[str]()
    if first.is_dir():
        refuse_absent_columns(list(FOLDER), spec, str(first))
    for key, path in paths.items():
        frame, beside = read_folder(path, key, spec) if path.is_dir() else (read_archive(path, key, spec), [])
        if frames and set(frame) != set(frames[0]):
            names = ", ".join(map(str, frames[0]))
            raise DataError(f"{key} holds {', '.join(map(str, frame))}; expected {names}", hint="write the same arrays")
        frames.append(frame)
        said += beside
    folders = [path for path, frame in zip(paths.values(), frames, strict=True) for _ in range(len(frame))]
    source, lengths = ", ".join(map(str, paths.values())), [len(frame) for frame in frames]
    frame = pd.concat(frames, ignore_index=True)
    return assemble(
        with_images(frame, spec, folders if first.is_dir() else [path.parent for path in folders], source),
        spec,
        name=first.parent.name if split_files else first.stem,
        source=source,
        seed=seed,
        rows=np.concatenate([np.arange(length, dtype=np.int64) for length in lengths]),
        roles=np.repeat(np.arange(len(ROLES), dtype=np.int8), lengths) if split_files else None,
        names=FOLDER if first.is_dir() else [*map(str, frame), *spec.drop],
        warnings=tuple(said),
    )


def _paths(spec: DataSpec, root: Path) -> dict[str, Path]:
    """TOML key -> resolved path; three of them in the order of roles, or one."""
    assert spec.path is not None  # the experiment file was checked for it
    if isinstance(spec.path, Mapping):
        named = {f"data.path.{role}": spec.path[role] for role in ROLES}
    else:
        named = {"data.path": spec.path}
    for key, path in named.items():
        if "\0" in path:
            raise DataError(f"{key} = {path!r} holds a zero byte; expected a path", hint="write the path anew")
    return {key: (root / Path(path).expanduser()).resolve() for key, path in named.items()}


def _read(path: Path, key: str, spec: DataSpec) -> Part:
    refuse_unreadable(path, key, spec.separator)
    with translated(f"{key}: {path}"):
        part = (_read_parquet if kind_of(path) == ".parquet" else _read_csv)(path, key, spec)
    if part.table.num_rows == 0:
        raise DataError(f"{key}: {path} holds no rows; expected a header and rows", hint="name another file")
    return part


def _read_csv(path: Path, key: str, spec: DataSpec) -> Part:
    content = whole_text(path, key).removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n")
    names = csv_schema(content, spec.separator, f"{key}: {path}").names
    refuse_absent_columns(names, spec, str(path))
    # Columns go by their places: of those that are dropped, several may have one name.
    places = {name: str(i) for i, name in enumerate(names) if name not in spec.drop}
    # Types are inferred from the first block only, so all of the file is one block (2 GiB at most).
    options = csv.ReadOptions(
        block_size=max(len(content), 1), column_names=[str(i) for i in range(len(names))], skip_rows_after_names=1
    )

    def read(places: Sequence[str], typed: Mapping[str, pa.DataType], missing: Sequence[str]) -> pa.Table:
        table = csv.read_csv(
            pa.BufferReader(content), options, **csv_options(spec.separator, typed, missing, list(places))
        )
        return table.rename_columns([names[int(place)] for place in table.column_names])

    def texts(name: str, missing: Sequence[str] = MISSING_WORDS) -> pa.ChunkedArray:
        return read([places[name]], {places[name]: pa.large_string()}, missing).column(0)

    table = read(list(places.values()), {places[name]: pa.large_string() for name in spec.categorical}, MISSING_WORDS)
    warning = ""
    mark = b"\n" if b"\n" in content else b"\r"
    lines = content.count(mark) + (not content.endswith(mark))
    if lines > table.num_rows + 1:  # empty lines, texts of several lines, or rows that are lost
        everything = read(options.column_names, dict.fromkeys(options.column_names, pa.large_binary()), [""])
        what = f"{key}: {path} ({lines:,} lines, {table.num_rows:,} rows)"
        warning = refuse_swallowed(everything, spec.separator, what)
    for name, toml in identities(spec).items():
        column = table.column(name)
        if column.null_count and not (own := texts(name, [""])).null_count:
            column = own  # a word such as NA names a row or a group as any other does
        table = with_column(table, name, exact(column, partial(texts, name), toml, name))
    words = {}
    for name in (*spec.target, *spec.categorical):
        if table.column(name).null_count:
            words[name] = Counter(text for text in texts(name, [""]).to_pylist() if text and text in MISSING_WORDS)
    return Part(names, decoded(table, path, key), (warning,) if warning else (), words)


def _read_parquet(path: Path, key: str, spec: DataSpec) -> Part:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        names = content_names(file.schema_arrow)
        refuse_absent_columns(names, spec, str(path))
        kept = [name for name in names if name not in spec.drop]
        refuse_large(file.metadata.num_rows, len(kept), path, key, _list_bytes(file, kept))
        table = file.read(columns=kept).select(kept)
    for name, toml in identities(spec).items():
        table = with_column(table, name, as_identity(plain(table.column(name)), toml, name))
    return Part(names, decoded(table, path, key))


def _list_bytes(file: Any, kept: Sequence[str]) -> float:
    """What the columns of lists take in memory: in Arrow's table, as arrays, and while these are put together."""
    needed, widths = 0.0, dict[str, float]()
    for name in kept:
        kind = file.schema_arrow.field(name).type
        kind, inner = (kind.storage_type, True) if isinstance(kind, pa.BaseExtensionType) else (kind, False)
        while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
            kind, inner = kind.value_type, True
        if inner and (types.is_primitive(kind)):
            widths[name] = 3 * kind.bit_width / 8
    for group in range(file.metadata.num_row_groups if widths else 0):
        for place in range(file.metadata.num_columns):
            column = file.metadata.row_group(group).column(place)
            needed += column.num_values * widths.get(column.path_in_schema.partition(".list.")[0], 0.0)
    return needed


def _concatenate(parts: dict[str, Part]) -> pa.Table:
    """The rows of all files, one after the other.

    Raises:
        DataError: the files have different columns, or a column is text in one file and numbers in another.
    """
    tables = {key: part.table for key, part in parts.items()}
    if len(tables) == 1:
        return next(iter(tables.values()))
    columns = {key: set(table.column_names) for key, table in tables.items()}
    everywhere = set.union(*columns.values())
    absent = [f"- {name} is missing in {key}" for key, names in columns.items() for name in sorted(everywhere - names)]
    if absent:
        message = "\n  ".join(["data.path: the files of the splits have different columns", *absent])
        raise DataError(message, hint="write the same columns to each file")
    tables = _with_long_numbers(tables)
    try:
        return pa.concat_tables(tables.values(), promote_options="permissive")
    except pa.ArrowException as error:
        mixed = []
        for name in next(iter(tables.values())).column_names:
            kinds = {key: str(table.schema.field(name).type) for key, table in tables.items()}
            if len(set(kinds.values())) > 1:
                mixed.append(f"~ {name}: " + ", ".join(f"{kind} in {key}" for key, kind in kinds.items()))
        raise DataError(
            "\n  ".join(["data.path: the files of the splits have columns of different types", *mixed]),
            hint="write each column with one type; name columns of codes in categorical under [data]",
        ) from error


def _with_long_numbers(tables: dict[str, pa.Table]) -> dict[str, pa.Table]:
    """The tables with whole numbers as text where another file has numbers beyond 64 bits in that column."""
    text = pa.large_string()
    for name in next(iter(tables.values())).column_names:
        columns = [table.column(name) for table in tables.values()]
        kinds = {column.type for column in columns}
        if len(kinds) == 1 or text not in kinds or not kinds <= {text, pa.int64(), pa.uint64()}:
            continue
        digits = [pc.match_substring_regex(column, r"^-?[0-9]+$") for column in columns if column.type == text]
        if all(pc.all(each).as_py() is not False for each in digits):
            tables = {key: with_column(table, name, table.column(name).cast(text)) for key, table in tables.items()}
    return tables


# Columns of Arrow


def with_column(table: pa.Table, name: str, column: pa.ChunkedArray) -> pa.Table:
    """The table with another column in the place of the one of this name."""
    return table.set_column(table.column_names.index(name), name, column)


def as_identity(values: pa.ChunkedArray, key: str, name: str) -> pa.ChunkedArray:
    """A column that orders, groups or names rows, with every digit: numbers, booleans, text or times.

    Decimals become whole numbers where they are such (text beyond 64 bits), times of day and durations nanoseconds,
    UUIDs and bytes text.

    Raises:
        DataError: nothing can be ordered or told apart by it, such as lists. It names the TOML ``key`` and the column.
    """
    kind = values.type
    if isinstance(kind, pa.BaseExtensionType):
        if str(kind) == "extension<arrow.uuid>":
            return _spelled(values, str)
        return as_identity(pa.chunked_array([chunk.storage for chunk in values.chunks], kind.storage_type), key, name)
    if types.is_decimal(kind):
        return _decimal_identity(values)
    if types.is_time(kind):
        return pc.cast(pc.cast(values, pa.time64("ns")), pa.int64())
    if types.is_duration(kind):
        return pc.cast(pc.cast(values, pa.duration("ns")), pa.int64())
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return _spelled(values, bytes.hex)
    numbers = types.is_integer, types.is_floating, types.is_boolean
    others = types.is_string, types.is_large_string, types.is_string_view, types.is_timestamp, types.is_date
    if not any(is_one(kind) for is_one in (*numbers, *others, types.is_null)):
        raise DataError(
            f"{key}: column {name!r} holds {kind} values; expected numbers, text or times",
            hint="name another column, or write this one as text",
        )
    return values


def exact(values: pa.ChunkedArray, written: Callable[[], pa.ChunkedArray], key: str, name: str) -> pa.ChunkedArray:
    """A column of a CSV file that names rows or groups, as numbers only where these keep what its texts tell apart.

    ``values`` is the column as Arrow reads it, ``written`` gives the same as text.
    """
    kind = values.type
    if types.is_binary(kind) or types.is_large_binary(kind):
        return values
    if not (types.is_floating(kind) or types.is_integer(kind)):
        return as_identity(values, key, name)
    texts = pc.utf8_trim_whitespace(written())
    beyond = types.is_floating(kind) and (pc.max(pc.abs(values)).as_py() or 0.0) >= EXACT_INTEGER
    if beyond and pc.all(pc.match_substring_regex(texts, r"^[+-]?[0-9]+$")).as_py():
        return _whole_numbers(texts)
    return texts if len(pc.unique(texts)) > len(pc.unique(values)) else values


def _decimal_identity(values: pa.ChunkedArray) -> pa.ChunkedArray:
    present = [value for value in values.to_pylist() if value is not None]
    if all(value == value.to_integral_value() for value in present):
        return _whole_numbers(_spelled(values, lambda value: str(int(value))))
    floats = pc.cast(values, pa.float64())
    if len(set(present)) == len(pc.unique(floats).drop_null()):
        return floats
    # Not normalize(), which rounds to 28 digits.
    return _spelled(values, lambda value: re.sub(r"\.?0+$", "", format(value, "f")))


def _spelled(values: pa.ChunkedArray, spell: Callable[[Any], str]) -> pa.ChunkedArray:
    texts = [None if value is None else spell(value) for value in values.to_pylist()]
    return pa.chunked_array([pa.array(texts, pa.large_string())])


def _whole_numbers(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Texts of digits as int64, else as uint64, else as they are, so that no digit is lost."""
    digits = pc.match_substring_regex(texts, r"^(0|-?[1-9][0-9]*)$")
    if pc.all(digits).as_py() is not False:
        for kind in (pa.int64(), pa.uint64()):
            try:
                return pc.cast(texts, kind)
            except pa.ArrowInvalid:
                continue
    return texts


def frame_of(table: pa.Table, whole: Collection[str]) -> pd.DataFrame:
    """The table as a frame. In the columns ``whole``, whole numbers with gaps stay whole."""
    kept = {pa.type_for_alias(name.lower()): pd.api.types.pandas_dtype(name) for name in NULLABLE}
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if (array := array_of(column)) is not None:
            columns[name] = pd.Series(cells(array), dtype=object)
            continue
        mapper = kept.get if name in whole and column.null_count else None
        columns[name] = column.to_pandas(date_as_object=False, types_mapper=mapper)
    return pd.DataFrame(columns, copy=False)


def array_of(column: pa.ChunkedArray) -> np.ndarray | None:
    """Lists of numbers, nested or not, or Arrow's tensors, as one array, rows first; None where they have no shape."""
    if isinstance(column.type, pa.FixedShapeTensorType):
        arrays = [chunk.to_numpy_ndarray() for chunk in column.chunks if len(chunk)]
        return np.concatenate(arrays) if arrays and not column.null_count else None
    shape = [len(column)]
    while types.is_list(column.type) or types.is_large_list(column.type) or types.is_fixed_size_list(column.type):
        lengths = pc.unique(pc.list_value_length(column))
        if column.null_count or len(lengths) != 1:
            return None
        shape.append(lengths[0].as_py())
        column = pc.list_flatten(column)
    kind = column.type
    if len(shape) == 1 or not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
        return None
    return np.asarray(column.to_numpy().reshape(shape))


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column without a dictionary."""
    return column.cast(column.type.value_type) if types.is_dictionary(column.type) else column


def decoded(table: pa.Table, path: Path, key: str) -> pa.Table:
    """The table of a file without dictionaries, all text as one type, all times with a zone in UTC."""
    columns = []
    for name, column in zip(table.column_names, map(plain, table.columns), strict=True):
        kind = column.type
        if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
            if kind_of(path) == ".parquet":
                raise DataError(
                    f"{key}: column {name!r} of {path} holds bytes; expected numbers, booleans or text",
                    hint=f"leave it out with {Key('data.drop', str([name]))}, or write it as text",
                )
            values = enumerate(column.to_pylist())
            row = next((i for i, value in values if value and value.decode(errors="ignore").encode() != value), None)
            raise DataError(f"{key}: column {name!r} of {path} is not UTF-8 text in row {row}", hint=AS_UTF8)
        if types.is_timestamp(kind) and kind.tz is not None:  # whether or not this machine knows the zone
            column = column.cast(pa.timestamp(kind.unit, "UTC"))
        text = types.is_string(kind) or types.is_string_view(kind)
        columns.append(column.cast(pa.large_string()) if text else column)
    return pa.table(columns, names=table.column_names)
