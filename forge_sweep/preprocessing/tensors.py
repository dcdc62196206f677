"""Columns of arrays: in a frame one NumPy array per cell, all of one shape; images also as files and as text.

An image is uint8, (height, width, channels) with one channel (grey), three (RGB) or four (RGBA). Its size stands in the
header of its file and has to be the declared one, so that nothing larger is ever decoded.
"""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from forge_sweep.preprocessing.array_files import MappedDtype

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's modes by the number of channels."""

FORMATS = ("PNG", "JPEG")

LARGEST_FILE = 100_000_000
"""Bytes of an image file."""


class Unreadable(ValueError):
    """An image that cannot be taken; the message says why, and not which one."""


def is_tensor(series: pd.Series) -> bool:
    """Whether a column holds arrays, in memory or in a file."""
    if isinstance(series.dtype, MappedDtype):
        return True
    return bool(series.dtype == object and len(series) and isinstance(series.iloc[0], np.ndarray))


def cells(values: np.ndarray) -> np.ndarray:
    """Rows (n, ...) as objects (n,), each a view of its row."""
    found = np.empty(len(values), object)
    for row, each in enumerate(values):
        found[row] = each
    return found


def stacked(series: pd.Series, shape: tuple[int, ...], dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Cells as one array (n, *shape), and which of them (n,) are no such arrays; those are 0.

    Nested lists do as well; a number must be one that the type holds exactly, for whole numbers.
    """
    values, wrong = np.zeros((len(series), *shape), dtype), np.zeros(len(series), bool)
    for row, cell in enumerate(series.to_numpy(object)):
        array = _as_array(cell, shape)
        if array is None or array.dtype.kind not in "biuf" or not np.isfinite(array).all():
            wrong[row] = True
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            values[row] = array
        if not np.isfinite(values[row]).all() or (values.dtype.kind in "biu" and (values[row] != array).any()):
            values[row], wrong[row] = 0, True
    return values, wrong


def _as_array(cell: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """A cell as an array of this shape, if it is one or nested lists of numbers.

    Lists are looked through first: NumPy makes texts in a list as long as the longest, whatever memory that takes.
    """
    if hasattr(cell, "__array__") and not _holds_objects(cell):
        array = np.asarray(cell)
        return array if array.shape == shape else None
    try:
        return np.asarray(_lists(cell)) if _is_nested(cell, shape) else None
    except (ValueError, OverflowError):
        return None


def _is_nested(cell: Any, shape: tuple[int, ...]) -> bool:
    if isinstance(cell, np.ndarray) and not _holds_objects(cell):
        return bool(cell.shape == shape)
    if not isinstance(cell, list | tuple | np.ndarray) or getattr(cell, "ndim", 1) != 1 or len(cell) != shape[0]:
        return False
    if len(shape) > 1:
        return all(_is_nested(each, shape[1:]) for each in cell)
    return all(issubclass(kind, int | float | np.number | np.bool_) for kind in set(map(type, cell)))


def _lists(cell: Any) -> Any:
    """Arrays of arrays, as pandas has nested lists of a file, as lists."""
    return [_lists(each) for each in cell] if _holds_objects(cell) else cell


def _holds_objects(cell: Any) -> bool:
    return isinstance(cell, np.ndarray) and cell.dtype.hasobject


def read_image(content: bytes | Path, shape: tuple[int, ...]) -> np.ndarray:
    """A PNG or JPEG image, uint8 of this shape; of other channels than it has, as Pillow converts it.

    Raises:
        Unreadable: it is none, is damaged, or has another size.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        if isinstance(content, Path):
            if content.stat().st_size > LARGEST_FILE:
                raise Unreadable(f"more than {LARGEST_FILE // 1_000_000} MB")
            content = content.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                width, height = image.size
                if (height, width) != shape[:2]:
                    raise Unreadable(f"{height} x {width} pixels, not {shape[0]} x {shape[1]}")
                if image.mode[0] in "IF":  # Pillow would cut all values beyond 255
                    raise Unreadable("more than 8 bits per channel")
                pixels = np.array(image.convert(MODES[shape[2]]), np.uint8)
    except FileNotFoundError:
        raise Unreadable("there is no such file") from None
    except UnidentifiedImageError:
        raise Unreadable("it is neither PNG nor JPEG") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Unreadable("too many pixels") from None
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's for damaged files
        if isinstance(error, Unreadable):
            raise
        raise Unreadable(f"it is damaged: {error}") from None
    return pixels.reshape(shape)


def from_text(text: str, shape: tuple[int, ...]) -> np.ndarray:
    """An image from base64, with or without ``data:image/png;base64,`` before it.

    Raises:
        Unreadable: it is no such text, or see `read_image`.
    """
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    if len(encoded) > LARGEST_FILE * 4 // 3:
        raise Unreadable(f"more than {LARGEST_FILE // 1_000_000} MB")
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise Unreadable("it is not base64") from None
    return read_image(content, shape)


def images(
    series: pd.Series, shape: tuple[int, ...], folders: Sequence[Path] | None = None
) -> tuple[np.ndarray, dict[int, str]]:
    """Images as arrays, and why some (by row) cannot be taken.

    Args:
        series: texts, or bytes, which are the content of a file; arrays and lists stay as they are.
        shape: of each image.
        folders: per row, where relative paths start. A text is then a path, or base64 after ``data:image/png;base64,``;
            without folders it is base64 in any case.
    """
    found, wrong = np.empty(len(series), object), dict[int, str]()
    for row, cell in enumerate(series.to_numpy(object)):
        try:
            found[row] = _image(cell, shape, folders[row] if folders is not None else None)
        except Unreadable as error:
            wrong[row] = str(error)
    return found, wrong


def _image(cell: Any, shape: tuple[int, ...], folder: Path | None) -> Any:
    if isinstance(cell, np.ndarray | list):
        return cell
    if isinstance(cell, bytes):
        return read_image(cell, shape)
    if not isinstance(cell, str) or not cell or "\0" in cell:
        raise Unreadable("no image is given" if folder is None else "no path is given")
    return from_text(cell, shape) if folder is None or cell.startswith("data:") else read_image(folder / cell, shape)
