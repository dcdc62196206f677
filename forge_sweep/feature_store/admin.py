"""Which versions the feature store has, what is known of one, its audit, and its end."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_sweep import sources
from forge_sweep.errors import DataError, ExperimentError, Key, Mistake, worded
from forge_sweep.experiment import parse_data
from forge_sweep.experiment.words import nearest
from forge_sweep.feature_store import cache, reading, versions
from forge_sweep.feature_store.connection import CONFIRM, TUNER, Address, connect, retrying
from forge_sweep.feature_store.ingest import ingest
from forge_sweep.feature_store.source import VISIBLE, spec_of
from forge_sweep.feature_store.versions import SPLITS, Look, Version, find, looks, refuse_taken, with_unseen, write_look
from forge_sweep.sources.base import new_look, shown
from forge_sweep.sources.reading import MISSING_WORDS

if TYPE_CHECKING:
    import pyarrow as pa

    from forge_sweep.checks.audit import Audit
    from forge_sweep.experiment import DataSpec, PreprocessingSpec
    from forge_sweep.feature_store.codec import Block
    from forge_sweep.feature_store.connection import Address
    from forge_sweep.feature_store.versions import Version
    from forge_sweep.tracking import ModelVersion


@dataclass(frozen=True)
class Description:
    """All that the store says of a version.

    Attributes:
        version: the version.
        normalization: ``normalization_params`` as they are stored.
        looks: every look at its test rows, and at those of any version of the same content, the oldest first.
    """

    version: Version
    normalization: dict[str, Any]
    looks: tuple[Look, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values; without fingerprints and the preprocessor's recipe."""
        shown = {name: value for name, value in self.normalization.items() if name != "recipe"}
        lines = [dataclasses.asdict(look) for look in self.looks]
        return {**as_dict(self.version), "normalization": shown, "test_looks": lines}


def listed(address: Address) -> list[Version]:
    """Every version, the oldest first.

    Raises:
        DataError: the tables are missing.
        StoreDown: the server does not answer.
    """

    def work() -> list[Version]:
        with connect(address) as connection:
            return versions.versions(connection)

    return retrying(work)


def described(address: Address, name: str) -> Description:
    """What the store says of a version.

    Raises:
        DataError: there is no such version.
        StoreDown: the server does not answer.
    """

    def work() -> Description:
        with connect(address) as connection:
            version = versions.find(connection, name)
            stored = versions.normalization(connection, version.normalization_version)
            return Description(version, stored, tuple(looks(connection, version.digest)))

    return retrying(work)


def audited(address: Address, name: str, preprocessing: PreprocessingSpec) -> Audit:
    """The audit that a sweep would begin with, on training and validation rows.

    Args:
        address: the store.
        name: of the version.
        preprocessing: what a sweep would scale with.

    Raises:
        DataError: there is no such version, or its rows are not those that were ingested.
        StoreDown: the server does not answer.
    """
    from forge_sweep.checks.audit import audit

    spec = spec_of(described(address, name).version)
    dataset = sources.load(spec, root=Path(), seed=0)
    return audit(dataset, spec.task, preprocessing, scaled=preprocessing.scaler != "none")


def dropped(
    address: Address, name: str, store: Path, agree: Callable[[Version, tuple[ModelVersion, ...]], bool]
) -> bool:
    """Remove a version, its rows and their cache, once it is agreed to; the ledger of test evaluations stays.

    Args:
        address: the store, as its owner.
        name: of the version.
        store: folder of the embedded MLflow store.
        agree: told what goes and which registered models were trained on it; False leaves everything as it is.

    Returns:
        Whether it was removed.

    Raises:
        DataError: there is no such version, another one was made from it, or the login is not the owner.
        StoreDown: the server does not answer.
    """
    from forge_sweep.tracking import models_trained_on

    version = described(address, name).version
    if not agree(version, models_trained_on(version.version, store)):
        return False
    cache.forget(versions.drop(address, name))
    return True


def as_dict(version: Version) -> dict[str, Any]:
    """A version as JSON values, without its fingerprints."""
    values = {**dataclasses.asdict(version), "version": version.version}
    del values["test_fingerprints"], values["version_id"], values["train_print"]
    return values


@dataclass(frozen=True)
class Declaration:
    """What is said of the rows. None is not said: a default, or as in the version they come from.

    Attributes:
        data: keys of ``[data]``.
        split: keys of ``[data.split]``.
        preprocessing: keys of ``[preprocessing]``.
        seed: decides random and group splits.
    """

    data: Mapping[str, Any]
    split: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    seed: int | None


@dataclass(frozen=True)
class Strictness:
    """What is done about wrong rows.

    Attributes:
        max_errors: how many may be left out.
        rejects: CSV file for them.
    """

    max_errors: int = 0
    rejects: Path | None = None


def ingest_file(
    address: Address,
    name: str,
    path: Path,
    declared: Declaration,
    *,
    parent: str | None,
    strictness: Strictness,
    progress: Progress,
) -> Version:
    """Store a file as a version.

    Raises:
        ExperimentError: the declaration has mistakes; all are listed, by option.
        DataError: the file is wrong, or the name is taken; nothing was stored.
        StoreDown: the store cannot be reached, or the connection was lost; nothing was stored.
    """
    data, preprocessing = _checked({"path": str(path.resolve()), **_said(declared.data)}, declared)
    with in_options():
        return ingest(
            data,
            name=name,
            root=Path(),
            seed=declared.seed or 0,
            address=address,
            preprocessing=preprocessing,
            max_errors=strictness.max_errors,
            rejects=strictness.rejects,
            parent=parent,
            source=str(path),
            progress=progress,
        )


def ingest_version(address: Address, name: str, parent: str, declared: Declaration, *, progress: Progress) -> Version:
    """Store the rows of a version as another one: other columns, another target, another split, another scaler.

    What is not said stays as it is in ``parent``, the split of every row included. The test rows are read for it, so
    the ledger of ``parent`` gets a line.

    Raises:
        ExperimentError: the declaration has mistakes; all are listed, by option.
        DataError: there is no such version, or the name is taken; nothing was stored.
        StoreDown: the store cannot be reached, or the connection was lost; nothing was stored.
    """
    refuse_taken(address, name, parent)
    description = described(address, parent)
    kept = not _said(declared.split)
    inherited, settings = _inherit(description.version, _said(declared.data)), description.normalization["recipe"]
    column = f"split of {parent}"
    split = {"kind": "column", "column": column} if kept else declared.split
    learned = {key: settings[key] for key in ("scaler", "impute", "fill", "max_categories")}
    with tempfile.TemporaryDirectory(prefix="forge-sweep-") as folder:
        path = Path(folder) / "rows.parquet"
        data, preprocessing = _checked(
            {**inherited, "path": str(path)},
            Declaration({}, split, {**learned, **_said(declared.preprocessing)}, declared.seed),
        )
        export(
            address,
            parent,
            path,
            with_test=True,
            split_column=column if kept else None,
            purpose=f"ingest of {name} from {parent}",
            progress=progress,
        )
        with in_options(path, f"version {parent}"):
            return ingest(
                data,
                name=name,
                root=Path(),
                seed=declared.seed or 0,
                address=address,
                preprocessing=preprocessing,
                parent=parent,
                source=f"version {description.version.version}",
                progress=progress,
            )


@contextlib.contextmanager
def in_options(path: Path | None = None, name: str = "") -> Iterator[None]:
    """Say what an error says of keys of an experiment file in options of the command.

    Args:
        path: a temporary file, which nobody named.
        name: what it is called instead.
    """

    def words(key: Key, form: str) -> str:
        return "--from" if path and key == "data.path" else _option(key, key.value)

    try:
        yield
    except DataError as error:
        told = error.reworded(words)
        if path is None:
            raise told from None
        texts = [text.replace(str(path), name) for text in (told.message, told.hint)]
        raise DataError(texts[0], hint=texts[1]) from None


def _inherit(version: Version, stated: Mapping[str, Any]) -> dict[str, Any]:
    """``[data]`` of a version made from another one: what is stated, and else what the other one has.

    Raises:
        DataError: the other one lacks a column that is named.
    """
    _refuse_absent(version, stated)
    gone = set(stated.get("drop", ()))
    inherited = {
        "target": [column.name for column in version.targets],
        "task": version.task,
        "key": None if version.key is None else version.key.name,
        "categorical": [name for name in version.categorical if name not in gone],
        **stated,
    }
    if inherited["task"] == "binary" and inherited["target"] == [column.name for column in version.targets]:
        inherited.setdefault("positive", version.positive)
    return _said(inherited)


def _refuse_absent(version: Version, stated: Mapping[str, Any]) -> None:
    key = () if version.key is None else (version.key,)
    known = [column.name for column in (*key, *version.features, *version.targets)]
    for name in ("target", "key", "drop", "categorical"):
        words = stated.get(name, ())
        for column in (words,) if isinstance(words, str) else words:
            if column not in known:
                raise DataError(
                    f"--{name} {column}: version {version.name} has no such column",
                    hint=nearest(column, known) or f"it has {shown(known)}",
                )


def _checked(data: Mapping[str, Any], declared: Declaration) -> tuple[DataSpec, PreprocessingSpec]:
    """The sections, checked like those of an experiment file; mistakes name options instead of keys."""
    sections = {"data": {**data, "split": _said(declared.split)}, "preprocessing": _said(declared.preprocessing)}
    try:
        return parse_data(sections)
    except ExperimentError as error:
        raise ExperimentError(
            "data ingest",
            [
                Mistake(
                    # of the section as a whole only the sum of its shares can be wrong
                    "--shares" if mistake.path == "data.split" else _option(mistake.path).partition(" ")[0],
                    mistake.value,
                    *(
                        worded(text, lambda key, form: _option(key, key.value))
                        for text in (mistake.expected, mistake.hint)
                    ),
                )
                for mistake in error.mistakes
            ],
        ) from None


def _option(path: str, value: str = "") -> str:
    """The option that says what a key of the experiment file says, set to ``value`` where one is given."""
    section, _, key = path.partition(".")
    if section not in ("data", "preprocessing") or not key:
        return path
    if path in ("data.split.train", "data.split.valid", "data.split.test"):
        return "--shares"
    match key:
        case "path":
            return "FILE"
        case "split.stratify":
            return "--no-stratify" if value == "false" else "no --no-stratify"
        case "split.kind" | "split":
            return "--split " + value.strip('"') + "=COLUMN" if value else "--split"
        case "split.column" | "split.group" | "split.time":
            return f"--split {key.removeprefix('split.')}=COLUMN"
    return f"--{key.replace('_', '-')}" + (f" {value.strip('[]')}" if value else "")


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None and value != ()}


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
        StoreDown: the server does not answer.
    """
    if path.suffix.lower() not in ENDINGS:
        raise DataError(f"{path} is not of a known kind; expected {' or '.join(ENDINGS)}", hint="name another file")
    splits = SPLITS if with_test else VISIBLE

    def work() -> int:
        with connect(address, role=CONFIRM if with_test else TUNER) as connection:
            version = find(connection, name)
            _refuse_unwritable(version, path, split_column)
            if with_test:
                write_look(connection, version, new_look(version.digest, purpose or f"export to {path.name}"))
                version = with_unseen(connection, version)
                _refuse_unwritable(version, path, split_column)
            with reading.rows(connection, version, splits) as blocks:
                total = sum(version.row_counts[split] for split in splits)
                return write(
                    path, _tables(version, blocks, split_column, lambda done: progress("writing", done, total))
                )

    return retrying(work)


def _refuse_unwritable(version: Version, path: Path, split_column: str | None) -> None:
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


def _tables(
    version: Version, blocks: Iterable[Block], split_column: str | None, written: Callable[[int], None]
) -> Iterator[pa.Table]:
    """The rows in blocks; ``written`` is told how many there were so far."""
    done = 0
    for block in blocks:
        yield _as_table(version, block, split_column)
        done += len(block.splits)
        written(done)


def _as_table(version: Version, block: Block, split_column: str | None) -> pa.Table:
    """A block with the types of the whole version, whatever its own values show."""
    import pyarrow as pa

    frame = reading.content(version, block)
    key = () if version.key is None else (version.key,)
    columns = {
        column.name: pa.array(frame[column.name], _arrow_type(column.dtype), from_pandas=True)
        for column in (*key, *version.features, *version.targets)
    }
    if split_column is not None:
        columns[split_column] = pa.array([SPLITS[code] for code in block.splits.tolist()], pa.string())
    return pa.table(columns)


def _arrow_type(dtype: str) -> pa.DataType:
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
                writer = writer or stack.enter_context(_new_writer(path, partial, table.schema))
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


def _new_writer(path: Path, partial: Path, schema: pa.Schema) -> Any:
    """What writes the kind of file that ``path`` names."""
    from pyarrow import csv, parquet

    return csv.CSVWriter(partial, schema) if path.suffix.lower() == ".csv" else parquet.ParquetWriter(partial, schema)
