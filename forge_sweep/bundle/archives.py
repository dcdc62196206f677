"""Zip files (``.keras``, ``.skops``, ``.npz``), looked at before a library unpacks them.

Nothing of ours extracts to disk, but what a later version of a library does with a name is not ours to know: an archive
with a name that is not one of ours is refused whole.
"""

from __future__ import annotations

import re
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from forge_sweep.errors import BundleError

MOST_TIMES = 100
"""How many times its own size an archive may unpack to, once that is more than `SMALL` bytes."""

SMALL = 64_000_000

ENCRYPTED = 1
"""Bit of an entry's flags."""


def check_zip(path: Path, names: str) -> None:
    """Refuse an archive that could write elsewhere, fill memory, or hide an entry.

    Args:
        path: the file.
        names: a regular expression that every entry's name matches.

    Raises:
        BundleError: an entry has another name, comes twice, is a link, is encrypted, or shares
            its bytes with another one; or it unpacks to too much.
    """
    entries = _entries(path)
    problems = {
        "names that do not belong there": [e.filename for e in entries if not re.fullmatch(names, e.filename)],
        "links or folders": [e.filename for e in entries if _mode(e) not in (0, stat.S_IFREG) or e.is_dir()],
        "encrypted entries": [e.filename for e in entries if e.flag_bits & ENCRYPTED],
        "names that come twice": sorted({e.filename for e in entries if _count(entries, e.filename) > 1}),
    }
    found = [f"{problem}: {', '.join(map(repr, seen))}" for problem, seen in problems.items() if seen]
    size, declared = path.stat().st_size, sum(e.file_size for e in entries)
    if sum(e.compress_size for e in entries) > size:
        found.append("entries that share their bytes")
    if declared > max(SMALL, MOST_TIMES * size):
        found.append(f"{declared} bytes when unpacked, from {size}")
    if found:
        raise BundleError(f"{path} is no archive of ours; {'; '.join(found)}", hint="do not use this folder")


def check_npz(path: Path) -> None:
    """Refuse a ``.npz`` file whose arrays are objects, or larger than what is there.

    Raises:
        BundleError: as said, or as `check_zip`.
    """
    check_zip(path, r"\w[\w.]*\.npy")
    check_arrays(path, lambda name: True)


def check_arrays(path: Path, wanted: Callable[[str], bool]) -> None:
    """Refuse ``.npy`` entries that announce objects, or another number of bytes than they have.

    Raises:
        BundleError: as said.
    """
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if wanted(entry.filename):
                with archive.open(entry) as file:
                    announced = _announced(file, path, entry.filename)
                    held = entry.file_size - file.tell()
                if announced != held:
                    raise BundleError(
                        f"{path}: {entry.filename} announces {announced} bytes and has {held}",
                        hint="do not use this folder",
                    )


def _announced(file: Any, path: Path, name: str) -> int:
    """Bytes of the array that a ``.npy`` header describes; the header is a literal, evaluated by NumPy as such."""
    version = np.lib.format.read_magic(file)
    reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, _, dtype = reader(file)
    if dtype.hasobject:
        raise BundleError(f"{path}: {name} holds Python objects", hint="do not use this folder")
    count = 1
    for length in shape:
        count *= int(length)
    return count * int(dtype.itemsize)


def _entries(path: Path) -> list[zipfile.ZipInfo]:
    with zipfile.ZipFile(path) as archive:
        return archive.infolist()


def _mode(entry: zipfile.ZipInfo) -> int:
    """The kind of file that an entry says it is; 0 where it says nothing."""
    return stat.S_IFMT(entry.external_attr >> 16)


def _count(entries: list[zipfile.ZipInfo], name: str) -> int:
    return sum(entry.filename == name for entry in entries)
