"""A file, or another version, becomes a version: what the command line declares, checked as an experiment file is."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_sweep.data.catalogue import described
from forge_sweep.data.export import Progress, export
from forge_sweep.errors import DataError, ExperimentError, Mistake
from forge_sweep.experiment import parse_data
from forge_sweep.experiment.rules import nearest
from forge_sweep.sources.base import shown
from forge_sweep.sources.feature_store.ingest import ingest
from forge_sweep.sources.feature_store.versions import refuse_taken

if TYPE_CHECKING:
    from forge_sweep.experiment import DataSpec, PreprocessingSpec
    from forge_sweep.sources.feature_store.address import Address
    from forge_sweep.sources.feature_store.versions import Version


KEYS = "target|task|key|drop|categorical|positive|separator"
QUOTED = r"(?:\"[^\"]*\"|'[^']*')"
KEY = r"(?<![\w'\"/.\\-])data\."  # and not a part of a path or of a quoted name
END = r"\b(?!\.\w)"
WORDS = (
    (r"\b(?:set )?stratify = false under \[data\.split\]", "add --no-stratify"),
    (r"\bstratify = true under \[data\.split\]", "no --no-stratify"),
    (r"\braise train under \[data\.split\]", "raise the share of train: --shares"),
    (rf"\b({KEYS}) = ({QUOTED} or {QUOTED}) under \[data\]", r"--\1 \2"),
    (rf"\b({KEYS}) = \[?(\"[^\"]*\"|'[^']*')\]? under \[data\]", r"--\1 \2"),
    (rf"\b({KEYS}) under \[data\]", r"--\1"),
    (r",? under \[data(\.split)?\]", ""),
    (r"that \[data\] names", "that are named"),
    (rf"{KEY}path{END}", "FILE"),
    (rf"\({KEY}split\.(column|group|time)\)", r"(--split \1=COLUMN)"),
    (rf", since {KEY}split\.kind = \"(\w+)\"", r": --split \1=COLUMN"),
    (rf"{KEY}split\.(column|group|time) = ", r"--split \1="),
    (rf"{KEY}split\.(column|group|time){END}", r"--split \1"),
    (rf"{KEY}split\.kind{END}", "--split"),
    (rf"{KEY}({KEYS}|split){END}", r"--\1"),
    (r"^data: ", ""),
    (r"^(positive|scaler) = ", r"--\1 = "),
    (r"the folder of the experiment file", "the working directory"),
)
"""What errors say of an experiment file, and what that is on the command line."""


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
        StoreDown: the store cannot be reached, or broke off; nothing was stored.
    """
    data, preprocessing = checked({"path": str(path.resolve()), **said(declared.data)}, declared)
    with words_of_options():
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
        StoreDown: the store cannot be reached, or broke off; nothing was stored.
    """
    refuse_taken(address, name, parent)
    description = described(address, parent)
    kept = not said(declared.split)
    inherited, settings = inherit(description.version, said(declared.data)), description.normalization["recipe"]
    column = f"split of {parent}"
    split = {"kind": "column", "column": column} if kept else declared.split
    learned = {key: settings[key] for key in ("scaler", "impute", "fill", "max_categories")}
    with tempfile.TemporaryDirectory(prefix="forge-sweep-") as folder:
        path = Path(folder) / "rows.parquet"
        data, preprocessing = checked(
            {**inherited, "path": str(path)},
            Declaration({}, split, {**learned, **said(declared.preprocessing)}, declared.seed),
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
        with words_of_options({str(path): f"version {parent}"}):
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
def words_of_options(names: Mapping[str, str] | None = None) -> Iterator[None]:
    """Turn what an error says of an experiment file into words of the command line.

    Args:
        names: what else is to be called otherwise, such as a temporary file.
    """
    rules = [
        *((rf"(?:{KEY}path: )?{re.escape(name)}", other.replace("\\", r"\\")) for name, other in (names or {}).items()),
        *WORDS,
    ]
    try:
        yield
    except DataError as error:
        raise DataError(reworded(error.message, rules), hint=reworded(error.hint, rules)) from None


def reworded(text: str, rules: Sequence[tuple[str, str]] = WORDS) -> str:
    """The text after each (pattern, replacement); what none of them knows stays."""
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


def inherit(version: Version, stated: Mapping[str, Any]) -> dict[str, Any]:
    """``[data]`` of a version made from another one: what is stated, and else what the other one has.

    Raises:
        DataError: the other one lacks a column that is named.
    """
    refuse_absent(version, stated)
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
    return said(inherited)


def refuse_absent(version: Version, stated: Mapping[str, Any]) -> None:
    """Raise DataError for a named column that the version does not have."""
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


def checked(data: Mapping[str, Any], declared: Declaration) -> tuple[DataSpec, PreprocessingSpec]:
    """The sections, checked like those of an experiment file; mistakes name options instead of keys."""
    sections = {"data": {**data, "split": said(declared.split)}, "preprocessing": said(declared.preprocessing)}
    try:
        return parse_data(sections)
    except ExperimentError as error:
        mistakes = [
            Mistake(option(mistake.path), mistake.value, reworded(mistake.expected), reworded(mistake.hint))
            for mistake in error.mistakes
        ]
        raise ExperimentError("data ingest", mistakes) from None


def option(path: str) -> str:
    """The option that says what a key of the experiment file says."""
    section, _, key = path.partition(".")
    if key.startswith("split."):
        share = key.removeprefix("split.") in ("train", "valid", "test")
        return "--shares" if share else "--split"
    if path == "data.split":  # the shares do not sum to 1
        return "--shares"
    return f"--{key.replace('_', '-')}" if section in ("data", "preprocessing") and key else path


def said(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what was not said."""
    return {key: value for key, value in values.items() if value is not None and value != ()}
