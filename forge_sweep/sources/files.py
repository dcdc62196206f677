"""CSV and Parquet files: one file, or one per split."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from forge_sweep.errors import DataError
from forge_sweep.sources.assemble import assemble, identities, refuse_absent_columns
from forge_sweep.sources.base import ROLES, Dataset
from forge_sweep.sources.inspection import (
    AS_UTF8,
    MISSING_WORDS,
    as_identity,
    exact,
    explained,
    frame_of,
    kind_of,
    listed,
    not_utf8,
    refuse_large,
    refuse_swallowed,
    refuse_unreadable,
    shown_text,
    whole_text,
    words_of,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from forge_sweep.experiment import DataSpec


@dataclass(frozen=True)
class Part:
    """One file as it was read.

    Attributes:
        names: all of its columns, dropped ones included.
        table: the columns that are not dropped.
        warnings: what should be said of it.
        words: per column, how often each word for a missing value stands in it; of targets and declared codes only.
    """

    names: list[str]
    table: pa.Table
    warnings: tuple[str, ...] = ()
    words: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


class FileSource:
    """Reads ``data.path``: ``.csv``, ``.csv.gz`` or ``.parquet``.

    A CSV file has a header line, is UTF-8, and has no types of its own: a column is read as whole numbers, numbers,
    booleans (true / false), times or text, by all of its values. Columns named in ``data.categorical`` are read as
    text, so that the code ``007`` keeps its zeros; columns that order, group or split rows keep every digit. What is
    named in ``data.drop`` is not looked at. With one file per split, the files must have the same columns.
    """

    def load(self, spec: DataSpec, *, root: Path, seed: int) -> Dataset:
        """See `forge_sweep.sources.base.Source.load`."""
        paths = _paths(spec, root)
        parts = {key: _read(path, key, spec) for key, path in paths.items()}
        tables = {key: part.table for key, part in parts.items()}
        lengths = [table.num_rows for table in tables.values()]
        split_files = len(paths) > 1
        words: dict[str, dict[str, int]] = {}
        for part in parts.values():
            for name, counts in part.words.items():
                known = words.setdefault(name, {})
                for word, count in counts.items():
                    known[word] = known.get(word, 0) + count
        classes = () if spec.task == "regression" else spec.target
        said = [
            f"column {name!r}: {listed(words[name])}, read as missing; if it is a code, write it otherwise"
            for name in spec.categorical
            if words.get(name)
        ]
        return assemble(
            frame_of(_concatenate(tables), {*spec.categorical, *identities(spec), *classes}),
            spec,
            name=_name(spec, paths),
            source=", ".join(map(str, paths.values())),
            seed=seed,
            rows=np.concatenate([np.arange(length, dtype=np.int64) for length in lengths]),
            roles=np.repeat(np.arange(len(ROLES), dtype=np.int8), lengths) if split_files else None,
            names=next(iter(parts.values())).names,
            warnings=(*(text for part in parts.values() for text in part.warnings), *said),
            words={name: words[name] for name in spec.target if words.get(name)},
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


def _name(spec: DataSpec, paths: dict[str, Path]) -> str:
    """The stem of the file, or the folder that holds the files of the splits."""
    first = next(iter(paths.values()))
    return first.parent.name if isinstance(spec.path, Mapping) else first.name.split(".")[0]


def _read(path: Path, key: str, spec: DataSpec) -> Part:
    """One file, of at least one row."""
    import pyarrow as pa

    refuse_unreadable(path, key)
    try:
        part = (_read_parquet if kind_of(path) == ".parquet" else _read_csv)(path, key, spec)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        what, hint = explained(error)
        raise DataError(f"{key}: {path} cannot be read: {what}", hint=hint) from error
    if part.table.num_rows == 0:
        raise DataError(f"{key}: {path} holds no rows; expected a header and rows", hint="name another file")
    return part


def _read_csv(path: Path, key: str, spec: DataSpec) -> Part:
    import pyarrow as pa
    from pyarrow import csv

    content = whole_text(path, key).removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n")
    parse = csv.ParseOptions(delimiter=spec.separator, newlines_in_values=True)
    header = content[: content.find(b"\n") + 1] or content
    names = csv.open_csv(pa.BufferReader(content), csv.ReadOptions(block_size=max(1 << 20, 2 * len(header))), parse)
    names = list(names.schema.names)
    for name in names:
        if spec.separator in name and re.search(r"[\r\n]", name):
            hint = "close it, and write a mark that belongs to a name twice, in quotation marks"
            raise DataError(
                f"{key}: {path}: a quotation mark of the header is not closed: {shown_text(name)}", hint=hint
            )
    refuse_absent_columns(names, spec, str(path))
    kept = [position for position, name in enumerate(names) if name not in spec.drop]

    def read(positions: Sequence[int], types: Mapping[str, pa.DataType], missing: Sequence[str]) -> pa.Table:
        """Some columns. By their places: of those that are dropped, several may have one name."""
        table = csv.read_csv(
            pa.BufferReader(content),
            # Types are inferred from the first block only, so all of the file is one block (2 GiB at most).
            read_options=csv.ReadOptions(
                block_size=max(len(content), 1),
                column_names=[str(i) for i in range(len(names))],
                skip_rows_after_names=1,
            ),
            parse_options=parse,
            convert_options=csv.ConvertOptions(
                null_values=missing,
                strings_can_be_null=True,
                include_columns=[str(position) for position in positions],
                column_types={str(i): types[names[i]] for i in positions if names[i] in types},
            ),
        )
        return table.rename_columns([names[position] for position in positions])

    table = read(kept, dict.fromkeys(spec.categorical, pa.large_string()), MISSING_WORDS)
    place = {names[position]: position for position in kept}

    def texts(name: str, missing: Sequence[str] = MISSING_WORDS) -> pa.ChunkedArray:
        return read([place[name]], {name: pa.large_string()}, missing).column(0)

    warnings: tuple[str, ...] = ()
    mark = b"\n" if b"\n" in content else b"\r"
    lines = content.count(mark) + (not content.endswith(mark))
    if lines > table.num_rows + 1:  # empty lines, texts of several lines, or rows that are lost
        everything = read(range(len(names)), dict.fromkeys(names, pa.large_binary()), [""])
        found = refuse_swallowed(
            everything, spec.separator, f"{key}: {path} ({lines:,} lines, {table.num_rows:,} rows)"
        )
        warnings = (found,) if found else ()
    for name, toml in identities(spec).items():
        column = table.column(name)
        if column.null_count and not (own := texts(name, [""])).null_count:
            column = own  # a word such as NA names a row or a group as any other does
        table = table.set_column(table.column_names.index(name), name, exact(column, partial(texts, name), toml, name))
    words = {
        name: counts
        for name in (*spec.target, *spec.categorical)
        if table.column(name).null_count and (counts := words_of(texts(name, [""]).to_pylist()))
    }
    return Part(names, decoded(table, path, key), warnings, words)


def _read_parquet(path: Path, key: str, spec: DataSpec) -> Part:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        # An unnamed pandas index is the position of the row in some frame, not content.
        names = [name for name in file.schema_arrow.names if not name.startswith("__index_level_")]
        refuse_absent_columns(names, spec, str(path))
        kept = [name for name in names if name not in spec.drop]
        refuse_large(file.metadata.num_rows, len(kept), path, key)
        table = file.read(columns=kept).select(kept)
    for name, toml in identities(spec).items():
        place = table.column_names.index(name)
        column = table.column(name)
        table = table.set_column(place, name, as_identity(_plain(column), toml, name))
    return Part(names, decoded(table, path, key))


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column without a dictionary."""
    import pyarrow as pa

    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def decoded(table: pa.Table, path: Path, key: str) -> pa.Table:
    """The table of a file without dictionaries, all text as one type, all times with a zone in UTC."""
    import pyarrow as pa

    columns = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        column = _plain(column)
        kind = column.type
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
            if kind_of(path) == ".parquet":
                raise DataError(
                    f"{key}: column {name!r} of {path} holds bytes; expected numbers, booleans or text",
                    hint=f"leave it out with drop = [{name!r}] under [data], or write it as text",
                )
            row = not_utf8(column)
            raise DataError(f"{key}: column {name!r} of {path} is not UTF-8 text in row {row}", hint=AS_UTF8)
        if pa.types.is_timestamp(kind) and kind.tz is not None:  # whether or not this machine knows the zone
            column = column.cast(pa.timestamp(kind.unit, "UTC"))
        text = pa.types.is_string(kind) or pa.types.is_string_view(kind)
        columns.append(column.cast(pa.large_string()) if text else column)
    return pa.table(columns, names=table.column_names)


def _concatenate(tables: dict[str, pa.Table]) -> pa.Table:
    """The rows of all files, one after the other.

    Raises:
        DataError: the files have different columns, or a column is text in one file and numbers in another.
    """
    import pyarrow as pa

    if len(tables) == 1:
        return next(iter(tables.values()))
    tables = _alike(tables)
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


def _alike(tables: dict[str, pa.Table]) -> dict[str, pa.Table]:
    """The tables with whole numbers as text where another file has numbers beyond 64 bits in that column."""
    import pyarrow as pa

    names = set.intersection(*(set(table.column_names) for table in tables.values()))
    found = dict(tables)
    for name in names:
        kinds = {str(table.schema.field(name).type) for table in tables.values()}
        if "large_string" in kinds and kinds <= {"large_string", "int64", "uint64"} and kinds != {"large_string"}:
            long = all(
                is_digits(table.column(name))
                for table in tables.values()
                if pa.types.is_large_string(table.schema.field(name).type)
            )
            if long:
                for key, table in found.items():
                    place = table.column_names.index(name)
                    found[key] = table.set_column(place, name, table.column(name).cast(pa.large_string()))
    return found


def is_digits(column: pa.ChunkedArray) -> bool:
    """Whether a column of text holds whole numbers only."""
    import pyarrow.compute as pc

    return pc.all(pc.match_substring_regex(column, r"^-?[0-9]+$")).as_py() is not False


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
