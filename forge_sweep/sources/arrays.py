"""NumPy archives and folders of images as rows, and images in the place of their paths."""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from forge_sweep.errors import DataError, Key
from forge_sweep.experiment.words import nearest
from forge_sweep.memory import memory
from forge_sweep.preprocessing import cells, images, mapped
from forge_sweep.sources.base import SHOWN, shown

if TYPE_CHECKING:
    from forge_sweep.experiment import DataSpec

SUFFIX = ".npz"
FOLDER = IMAGE, FILE, LABEL = "image", "file", "label"
"""The columns of a folder of images: the pictures, where it is the key the path of each below the folder, the class."""


def read_archive(path: Path, key: str, spec: DataSpec) -> pd.DataFrame:
    """The arrays of an archive as columns, see `columns_of`; those under ``data.drop`` are not read.

    Raises:
        DataError: there is no such file, it is no archive of plain arrays, it would not fit in memory, or see
            `columns_of`.
    """
    hint = "write it with numpy.savez(path, X=..., y=...): arrays of numbers, booleans or text, one row each first"
    if not path.is_file():
        raise DataError(f"{key}: {path} does not exist or is not a file", hint="a relative path starts at the file's")
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {entry.filename.removesuffix(".npy"): entry.file_size for entry in archive.infolist()}
        absent = [name for name in spec.drop if name not in sizes]
        refuse_too_much(2.5 * sum(sizes[name] for name in sizes if name not in spec.drop), f"{key}: {path}")
        with np.load(path, allow_pickle=False) as opened:
            arrays = {name: np.asarray(opened[name]) for name in opened.files if name not in spec.drop}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, MemoryError) as error:
        raise DataError(f"{key}: {path} cannot be read: {error}", hint=hint) from error
    if absent:
        close = nearest(absent[0], sizes)
        raise DataError(f"{Key('data.drop')} = {absent[0]!r}: {path} has no such array", hint=close or "remove it")
    return columns_of(arrays, spec, f"{key}: {path}", hint)


def refuse_too_much(needed: float, what: str) -> None:
    """Raise DataError where ``what`` takes more bytes of memory than are free."""
    room = memory().available
    if needed > room:
        raise DataError(
            f"{what} takes {needed / 1e9:.1f} GB of memory to read; {room / 1e9:.1f} GB are free",
            hint="give fewer rows or smaller arrays: all rows are held in memory",
        )


def columns_of(arrays: Mapping[str, np.ndarray], spec: DataSpec, source: str, hint: str) -> pd.DataFrame:
    """Arrays with as many rows each as columns by their names, such as ``X`` and ``y``.

    Arrays of one dimension, or with one value per row, become columns of a table, others arrays in cells: floats as
    float32, others as they are. A matrix ``y`` of targets is given by the names of its columns, ``y_0``, ``y_1``, ...

    Raises:
        DataError: they have different lengths or no rows, hold something else than numbers, booleans and text, or
            numbers that are not finite, or a target has several values per row.
    """
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(lengths.values())) != 1 or not next(iter(lengths.values())):
        seen = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "none"
        raise DataError(f"{source} holds arrays of different lengths or none: {seen}", hint=hint)
    columns: dict[str, pd.Series] = {}
    for name, array in arrays.items():
        if array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        if array.dtype.kind not in ("biuf" if array.ndim > 1 else "biufU"):
            raise DataError(f"{source}: array {name!r} holds {array.dtype} values", hint=hint)
        parts = [f"{name}_{i}" for i in range(array.shape[1])] if array.ndim == 2 else []
        if array.ndim > 1 and name in spec.target:
            named = f"target = [{', '.join(map(repr, parts))}]" if 1 < len(parts) < SHOWN else "one name per column"
            raise DataError(
                f"{Key('data.target')} = {name!r}: {source} has {array.shape[1:]} values per row there; expected one",
                hint=f"name the columns of a matrix, {named}" if parts else "write one value per row",
            )
        if parts and set(parts) <= set(spec.target):
            columns |= {part: pd.Series(array[:, i]) for i, part in enumerate(parts)}
        elif array.ndim > 1:
            columns[name] = pd.Series(cells(_finite(array, name, source)), dtype=object)
        else:
            columns[name] = pd.Series(array)
    return pd.DataFrame(columns)


def read_folder(path: Path, key: str, spec: DataSpec) -> tuple[pd.DataFrame, list[str]]:
    """The images of a folder that has one sub-folder per class, in the order of class and path; and warnings.

    Columns are those of `FOLDER`, with paths in the place of the pictures, which `with_images` reads. Names that begin
    with a dot are passed over.

    Raises:
        DataError: there are no classes or one has no files, a name is no text, or ``spec`` says nothing of the images
            or asks for something else than classes.
    """
    if spec.one_hot or spec.task not in ("binary", "multiclass"):
        raise DataError(
            f"{Key('data.task')} = {spec.task!r}: {path} is a folder of images, whose sub-folders are classes",
            hint="take binary or multiclass with one target, or give a table with a column of paths",
        )
    if not any(group.column == IMAGE and group.kind == "image" for group in spec.inputs.values()):
        raise DataError(
            f"{key}: {path} is a folder of images; expected {Key('data.inputs')}, which says their size",
            hint=f'for instance picture = {{ column = "{IMAGE}", kind = "image", shape = [64, 64, 3] }}',
        )

    def stop(error: OSError) -> None:
        raise error

    found, classes = list[str](), list[str]()
    try:
        there = sorted(each.name for each in path.iterdir() if not each.name.startswith("."))
        for name in (each for each in there if (path / each).is_dir()):
            walked = [(folder, file) for folder, _, files in os.walk(path / name, onerror=stop) for file in files]
            files = [Path(folder, file).relative_to(path) for folder, file in walked if not file.startswith(".")]
            if not files:
                raise DataError(f"{key}: {path / name} holds no images", hint="remove the empty folder, or fill it")
            found += sorted(file.as_posix() for file in files)
            classes += [name] * len(files)
    except OSError as error:
        raise DataError(f"{key}: {error.filename} cannot be read: {error.strerror}", hint="check its rights") from error
    if bad := [file for file in found if file != file.encode(errors="ignore").decode()]:
        raise DataError(f"{key}: {path} has names that are not UTF-8: {bad[:SHOWN]!r}", hint="rename these files")
    if not found:
        hint = "give one sub-folder per class, or a table with a column of paths"
        raise DataError(f"{key}: {path} has no sub-folders with images, each the name of a class", hint=hint)
    frame = pd.DataFrame({IMAGE: found, LABEL: classes, **({FILE: found} if spec.key == FILE else {})})
    beside = [name for name in there if name not in classes]
    return frame, [f"{path}: left out, being in the folder of no class: {shown(beside)}"] if beside else []


def tensors_of(column: pd.Series, source: str) -> pd.Series:
    """A column of arrays or lists of numbers, as a table has it, as arrays of one shape: floats as float32.

    Raises:
        DataError: they have different shapes, or hold something else.
    """
    found = [np.asarray(cell) for cell in column]
    shapes = Counter(array.shape for array in found)
    if len(shapes) > 1 or any(array.dtype.kind not in "biuf" for array in found):
        seen = ", ".join(f"{shape} ({count} rows)" for shape, count in shapes.most_common(SHOWN))
        (usual, _), *_ = shapes.most_common(1)
        odd = [row for row, array in enumerate(found) if array.shape != usual or array.dtype.kind not in "biuf"]
        raise DataError(
            f"column {column.name!r} of {source} holds arrays of the shapes {seen}; expected one shape, of numbers; "
            f"unlike the others: rows {shown(odd)}",
            hint=f"leave it out with {Key('data.drop', str([str(column.name)]))}, or write arrays of one shape",
        )
    return pd.Series(cells(_finite(np.stack(found), str(column.name), source)), index=column.index, name=column.name)


def _finite(array: np.ndarray, name: str, source: str) -> np.ndarray:
    if array.dtype.kind != "f":
        return array
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float32, copy=False)
    bad = ~np.isfinite(narrow).reshape(len(narrow), -1).all(axis=1)
    if bad.any():
        first = ", ".join(map(str, np.flatnonzero(bad)[:SHOWN].tolist()))
        raise DataError(
            f"{source}: array {name!r} holds numbers that float32 does not have in {bad.sum()} rows ({first})",
            hint="leave out rows with NaN, infinite or huge numbers: arrays have no missing values",
        )
    return narrow


def with_images(frame: pd.DataFrame, spec: DataSpec, folders: Sequence[Path], source: str) -> pd.DataFrame:
    """The rows with images in the place of their paths, in the columns that ``[data.inputs]`` says hold images.

    Args:
        frame: the rows of a table, or of an archive, whose arrays stay.
        spec: the section ``[data]``.
        folders: per row, where relative paths start.
        source: what messages call the rows.

    Raises:
        DataError: images that cannot be read or have another size, by their names; a shape is not declared.
    """
    for name, group in spec.inputs.items():
        if group.kind != "image" or group.column not in frame:
            continue
        column = frame[group.column]
        if mapped(column) is not None or all(isinstance(cell, np.ndarray) for cell in column):
            continue
        key = Key(f"data.inputs.{name}.shape")
        if group.shape is None:
            raise DataError(
                f"{key}: column {group.column!r} of {source} names image files, and no shape is declared",
                hint="say height, width and channels of each, such as shape = [64, 64, 3]",
            )
        size = float(np.prod(group.shape, dtype=np.int64))
        refuse_too_much(size * len(column), f"{source}: {len(column):,} images of {key} = {list(group.shape)}")
        found, wrong = images(column, group.shape, folders)
        if wrong:
            listed = [f"row {row}, {column.iloc[row]}: {why}" for row, why in list(wrong.items())[:SHOWN]]
            more = [f"and {len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else []
            raise DataError(
                "\n  ".join(
                    [f"{source}: {len(wrong)} images of column {group.column!r} cannot be taken", *listed, *more]
                ),
                hint=f"correct or remove these rows; an image is a PNG or JPEG of {key} = {list(group.shape)}, and "
                "its path starts at the folder of the table or of the classes",
            )
        frame = frame.assign(**{str(group.column): found})
    return frame
