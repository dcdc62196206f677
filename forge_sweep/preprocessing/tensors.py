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

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's modes by the number of channels."""

FORMATS = ("PNG", "JPEG")

LARGEST_FILE = 100_000_000
"""Bytes of an image file."""


class Unreadable(ValueError):
    """An image that cannot be taken; the message says why, and not which one."""


def is_tensor(series: pd.Series) -> bool:
    """Whether a column holds arrays."""
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
        try:
            array = np.asarray(cell)
        except ValueError:  # lists of different lengths
            wrong[row] = True
            continue
        if array.shape != shape or array.dtype.kind not in "biuf" or not np.isfinite(array).all():
            wrong[row] = True
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            values[row] = array
        if not np.isfinite(values[row]).all() or (values.dtype.kind in "biu" and (values[row] != array).any()):
            values[row], wrong[row] = 0, True
    return values, wrong


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
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise Unreadable("it is not base64") from None
    return read_image(content, shape)


def images(series: pd.Series, shape: tuple[int, ...], folders: Sequence[Path]) -> tuple[np.ndarray, dict[int, str]]:
    """Images that a column names by paths or holds as base64 (after ``data:``), and why some (by row) cannot be taken.

    Args:
        series: texts; cells that are arrays already stay.
        shape: of each image.
        folders: per row, where relative paths start.
    """
    found, wrong = np.empty(len(series), object), dict[int, str]()
    for row, (cell, folder) in enumerate(zip(series.to_numpy(object), folders, strict=True)):
        try:
            found[row] = _image(cell, shape, folder)
        except Unreadable as error:
            wrong[row] = str(error)
    return found, wrong


def _image(cell: Any, shape: tuple[int, ...], folder: Path) -> Any:
    if isinstance(cell, np.ndarray):
        return cell
    if not isinstance(cell, str) or not cell or "\0" in cell:
        raise Unreadable("no path is given")
    return from_text(cell, shape) if cell.startswith("data:") else read_image(folder / cell, shape)
