"""NumPy archives as rows, and images in the place of their paths."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import psutil

from forge_sweep.errors import DataError, Key
from forge_sweep.preprocessing import cells, images
from forge_sweep.sources.base import SHOWN

if TYPE_CHECKING:
    from forge_sweep.experiment import DataSpec

SUFFIX = ".npz"


def read_archive(path: Path, key: str) -> pd.DataFrame:
    """The arrays of an archive as columns by their names, such as ``X`` and ``y``: as many rows in each.

    Arrays of one dimension become columns of a table, others arrays in cells: floats as float32, others as they are.

    Raises:
        DataError: there is no such file, it is no archive of plain arrays, they have different lengths, or hold numbers
            that are not finite.
    """
    hint = "write it with numpy.savez(path, X=..., y=...): arrays of numbers, booleans or text, one row each first"
    if not path.is_file():
        raise DataError(f"{key}: {path} does not exist or is not a file", hint="a relative path starts at the file's")
    try:
        with zipfile.ZipFile(path) as archive:
            needed = sum(entry.file_size for entry in archive.infolist())
        room = psutil.virtual_memory().available
        if needed > room:
            raise DataError(
                f"{key}: {path} unpacks to {needed / 1e9:.1f} GB; {room / 1e9:.1f} GB are free",
                hint="write fewer rows or smaller arrays",
            )
        with np.load(path, allow_pickle=False) as opened:
            arrays = {name: np.asarray(opened[name]) for name in opened.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{key}: {path} cannot be read: {error}", hint=hint) from error
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(lengths.values())) != 1 or not next(iter(lengths.values())):
        seen = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "none"
        raise DataError(f"{key}: {path} holds arrays of different lengths or none: {seen}", hint=hint)
    columns: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if array.dtype.kind not in ("biuf" if array.ndim > 1 else "biufU"):
            raise DataError(f"{key}: array {name!r} of {path} holds {array.dtype} values", hint=hint)
        columns[name] = cells(_finite(array, name, f"{key}: {path}")) if array.ndim > 1 else array
    return pd.DataFrame(
        {name: pd.Series(values, dtype=object if arrays[name].ndim > 1 else None) for name, values in columns.items()}
    )


def tensors_of(column: pd.Series, source: str) -> pd.Series:
    """A column of arrays or lists of numbers, as a table has it, as arrays of one shape: floats as float32.

    Raises:
        DataError: they have different shapes, or hold something else.
    """
    found = [np.asarray(cell) for cell in column]
    shapes = {array.shape for array in found}
    if len(shapes) > 1 or any(array.dtype.kind not in "biuf" for array in found):
        seen = ", ".join(map(str, sorted(shapes, key=str)[:SHOWN]))
        raise DataError(
            f"column {column.name!r} of {source} holds arrays of the shapes {seen}; expected one shape, of numbers",
            hint=f"leave it out with {Key('data.drop', str([str(column.name)]))}, or write arrays of one shape",
        )
    return pd.Series(cells(_finite(np.stack(found), str(column.name), source)), index=column.index, name=column.name)


def _finite(array: np.ndarray, name: str, source: str) -> np.ndarray:
    if array.dtype.kind != "f":
        return array
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float32)
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
        if all(isinstance(cell, np.ndarray) for cell in column):
            continue
        key = Key(f"data.inputs.{name}.shape")
        if group.shape is None:
            raise DataError(
                f"{key}: column {group.column!r} of {source} names image files, and no shape is declared",
                hint="say height, width and channels of each, such as shape = [64, 64, 3]",
            )
        found, wrong = images(column, group.shape, folders)
        if wrong:
            listed = [f"row {row}, {column.iloc[row]}: {why}" for row, why in list(wrong.items())[:SHOWN]]
            more = [f"and {len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else []
            raise DataError(
                "\n  ".join(
                    [f"{source}: {len(wrong)} images of column {group.column!r} cannot be taken", *listed, *more]
                ),
                hint=f"correct or remove these rows; an image is a PNG or JPEG of {key} = {list(group.shape)}, and "
                "its path starts at the folder of the table",
            )
        frame = frame.assign(**{str(group.column): found})
    return frame
