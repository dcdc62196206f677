"""Arrays of rows that do not fit in memory, written to files of this machine while their source is read once.

Below ``FORGE_SWEEP_CACHE`` (default ``~/.cache/forge_sweep``) there is one folder per content, named by its digest, so
that processes that train on the same rows at a time read the same pages:

- ``once-...``: the digest of the rows is known only after all of them were read, so the next process reads them again
  to see that they are the same. The folder goes with the last process that uses it.
- ``kept-...``: rows whose digest the experiment declares. They are found again without a look at their source, and go
  once nobody used them for `STALE_DAYS`.
- ``.partial-...``: in the making. It takes its name once all rows are in it.

Whoever uses a folder holds a lock in it, which the system takes back from a process that is killed. What nobody holds
is left over, and removed when the next one is made.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from forge_sweep.errors import DataError
from forge_sweep.preprocessing import ArrayFile, MappedArray, mapped
from forge_sweep.preprocessing.array_files import HIGH, LOW, PRINTS
from forge_sweep.sources.base import Dataset
from forge_sweep.sources.digest import head_of, little, prints_of

VARIABLE = "FORGE_SWEEP_CACHE"
ONCE, KEPT, PARTIAL = "once-", "kept-", ".partial-"
ABOUT, TABLE, LOCK, TURN = "about.json", "table.parquet", "lock", ".turn"
FORMAT = 1
STALE_DAYS = 30


Found = tuple[pd.DataFrame, list[int]]
"""All rows, with their number per split."""


class AlreadyThere(Exception):
    """Another process has kept the same rows in the meantime, which are ``found``."""

    def __init__(self, found: Found) -> None:
        self.found = found


def cache_folder() -> Path:
    """``FORGE_SWEEP_CACHE``, or ``forge_sweep`` in the user's cache folder."""
    declared = os.environ.get(VARIABLE)
    cache = Path(declared) if declared else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "forge_sweep"
    return cache.expanduser()


def folder() -> Path:
    """Where the spools are."""
    return cache_folder() / "rows"


class Spool:
    """Files in the making, one per column of arrays. `append` takes the rows in order, `finish` gives the columns.

    Args:
        expected: bytes that will be written, as far as that is known; refused where the disk has no room for them.
        key: names the content where it is declared; "" otherwise.
        what: what messages call the source.

    Raises:
        DataError: the folder cannot be written to, or has no room.
        AlreadyThere: another process has just written the same rows; see `find`.
    """

    def __init__(self, expected: float, key: str, what: str) -> None:
        self._what, self._key, self._root = what, key, folder()
        self._columns: dict[str, _Column] = {}
        self._turn: IO[bytes] | None = None
        self._lock: IO[bytes] | None = None
        try:
            self._begin(expected)
        except BaseException:
            self.close()
            raise

    def _begin(self, expected: float) -> None:
        with self._said():
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._key:
                self._turn = _locked(self._root / f"{self._key}{TURN}", wait=True)
                if (found := find(self._key)) is not None:
                    raise AlreadyThere(found)
            with _locked(self._root / LOCK, wait=True):  # a folder without its lock looks left over
                _remove_leftovers(self._root)
                self.place = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=self._root))
                self._lock = _locked(self.place / LOCK)
            free = shutil.disk_usage(self._root).free
        if expected > free:
            raise DataError(
                f"{self._what} does not fit in memory and takes {expected / 1e9:.1f} GB on disk; {free / 1e9:.1f} GB "
                f"are free in {self._root}",
                hint=f"set {VARIABLE} to a folder on a larger disk, or give fewer rows or smaller arrays",
            )

    def append(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write the next rows, (n, ...) of each column.

        Raises:
            DataError: a column has another type or shape than in the rows before; the disk is full.
        """
        if self._columns and set(arrays) != set(self._columns):
            seen, known = (", ".join(sorted(names)) or "none" for names in (arrays, self._columns))
            raise DataError(f"{self._what} gives arrays in columns {seen}; before it gave {known}", hint=SAME)
        with self._said():
            for name, values in arrays.items():
                if name not in self._columns:
                    self._columns[name] = _Column(self.place / f"{len(self._columns)}.rows", values)
                column = self._columns[name]
                if (values.dtype, values.shape[1:]) != (column.dtype, column.shape):
                    raise DataError(
                        f"{self._what}: {name!r} has rows of shape {values.shape[1:]}, {values.dtype}; before they had "
                        f"{column.shape}, {column.dtype}",
                        hint=SAME,
                    )
                column.append(values)

    def finish(self, frame: pd.DataFrame, lengths: list[int], names: list[str]) -> pd.DataFrame:
        """All rows are there: the files take their place.

        Args:
            frame: the other columns of all rows.
            lengths: rows per split, or of all together.
            names: of all columns, in order.

        Returns:
            ``frame`` with the columns of arrays, in the order of ``names``.
        """
        with self._said():
            arrays = {name: column.finish(sync=bool(self._key)) for name, column in self._columns.items()}
            about = {"format": FORMAT, "lengths": lengths, "names": names, "arrays": arrays}
            (self.place / ABOUT).write_text(json.dumps(about), encoding="utf-8")
            kept = bool(self._key) and _write_table(frame, self.place / TABLE)
            content = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
            place = self._root / (f"{KEPT}{self._key}" if kept else f"{ONCE}{content}")
            return _columns(frame, about, place, _Keeper(place, self._settle(place, about)))

    def _settle(self, place: Path, about: Mapping[str, Any]) -> IO[bytes]:
        """Rename the folder, or take the one that another process has, or this one from before; gives its lock."""
        assert self._lock is not None
        for left in reversed(range(10)):
            try:
                self.place.rename(place)
            except OSError:
                if (found := _held(place)) is not None:
                    if _about(place) == about:
                        return found
                    found.close()
                    raise OSError(f"{place}, which is in use, is damaged or holds other rows") from None
                if not left:
                    raise
            else:
                lock, self._lock = self._lock, None
                _lock(lock, shared=True, wait=True)
                return lock
        raise AssertionError

    def close(self) -> None:
        """Nothing of it stays but what was finished."""
        for column in self._columns.values():
            with contextlib.suppress(OSError):  # of a full disk, which was said
                column.close()
        if self._lock is not None:
            shutil.rmtree(self.place, ignore_errors=True)
            self._lock.close()
        if self._turn is not None:
            self._turn.close()

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        """Say of errors of the disk what they are."""
        try:
            yield
        except OSError as error:
            written = sum(column.bytes for column in self._columns.values())
            raise DataError(
                f"{self._what} does not fit in memory, and its arrays cannot be written to {self._root}: {error} "
                f"(after {written / 1e9:.1f} GB)",
                hint=f"set {VARIABLE} to a folder that can be written to and has room",
            ) from error


SAME = "give all batches the same columns, types and shapes"


class _Column:
    """The file of one column in the making, with what is kept of each row."""

    def __init__(self, path: Path, first: np.ndarray) -> None:
        self.path, self.dtype, self.shape = path, first.dtype, first.shape[1:]
        self.bytes, self.rows = 0, 0
        self._digest = hashlib.sha256(head_of(first[0]))
        self._files = {suffix: path.with_suffix(suffix).open("wb") for suffix in (".rows", PRINTS, LOW, HIGH)}

    def append(self, values: np.ndarray) -> None:
        flat = values.reshape(len(values), -1)
        content = little(values)
        self._digest.update(content)
        self._files[".rows"].write(content)
        self._files[PRINTS].write(prints_of(pd.Series(list(values), dtype=object)).tobytes())
        self._files[LOW].write(little(flat.min(axis=1)))
        self._files[HIGH].write(little(flat.max(axis=1)))
        self.bytes += len(content)
        self.rows += len(values)

    def finish(self, sync: bool) -> dict[str, Any]:
        if sync:  # what is kept outlives the machine's power
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
        self.close()
        digest = self._digest.hexdigest()
        return {
            "file": self.path.name,
            "dtype": self.dtype.name,
            "shape": list(self.shape),
            "rows": self.rows,
            "digest": digest,
        }

    def close(self) -> None:
        for file in self._files.values():
            file.close()


class _Keeper:
    """Holds a folder in place until nobody refers to it, or the process ends."""

    def __init__(self, place: Path, lock: IO[bytes]) -> None:
        weakref.finalize(self, _leave, place, lock, os.getpid())


def _leave(place: Path, lock: IO[bytes], pid: int) -> None:
    """Let go of a folder; the last one removes what is not kept."""
    if os.getpid() != pid:  # a process that was forked meanwhile
        return
    lock.close()
    if place.name.startswith(ONCE):
        _remove_unheld(place)


def find(key: str) -> Found | None:
    """The rows that were kept under this key; None where there are none, or they are damaged."""
    place = folder() / f"{KEPT}{key}"
    if (lock := _held(place)) is None:
        return None
    try:
        if (about := _about(place)) is None:
            raise ValueError(place)
        frame = pd.read_parquet(place / TABLE)
        os.utime(place / ABOUT)
    except (OSError, ValueError):  # made anew
        lock.close()
        _remove_unheld(place)
        return None
    return _columns(frame, about, place, _Keeper(place, lock)), about["lengths"]


def _about(place: Path) -> dict[str, Any] | None:
    """What a folder holds; None where it does not hold all of that."""
    try:
        about: dict[str, Any] = json.loads((place / ABOUT).read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            return None
        for each in about["arrays"].values():
            size = int(np.prod(each["shape"], dtype=np.int64)) * np.dtype(each["dtype"]).itemsize * each["rows"]
            if (place / each["file"]).stat().st_size != size:
                return None
    except (OSError, ValueError, KeyError):
        return None
    return about


def in_files(dataset: Dataset) -> str:
    """What to say of a dataset whose arrays lie in files of this machine; "" of others."""
    features = dataset.train.features
    found = {str(name): rows.file for name in features if (rows := mapped(features[name])) is not None}
    if not found:
        return ""
    place = next(iter(found.values())).path.parent
    size = sum(file.rows * file.row_bytes for file in found.values())
    how = ", kept for the declared digest and found again without reading the source" * place.name.startswith(KEPT)
    return f"the arrays {', '.join(found)} ({size / 1e9:.1f} GB) are read from {place} batch by batch{how}"


def _columns(frame: pd.DataFrame, about: Mapping[str, Any], place: Path, keeper: _Keeper) -> pd.DataFrame:
    """The frame with columns for the files of a folder."""
    frame = frame.copy(deep=False)
    for name, each in about["arrays"].items():
        path, shape = place / each["file"], tuple(each["shape"])
        file = ArrayFile(path, each["dtype"], shape, each["rows"], each["digest"], keeper)
        frame[name] = pd.Series(MappedArray(file, np.arange(each["rows"])), index=frame.index)
    ordered: pd.DataFrame = frame[about["names"]]
    return ordered


def _write_table(frame: pd.DataFrame, path: Path) -> bool:
    """Keep the other columns as well, where a file can hold them."""
    try:
        frame.to_parquet(path)
    except Exception:  # of any kind that pyarrow has for what it cannot write: the rows are read again next time
        path.unlink(missing_ok=True)
        return False
    return True


def _locked(path: Path, *, shared: bool = False, wait: bool = False) -> IO[bytes]:
    """The file, locked until it is closed.

    Raises:
        BlockingIOError: another one holds it, and this one does not ``wait``.
        FileNotFoundError: there is no such folder.
    """
    file = path.open("ab")
    try:
        _lock(file, shared=shared, wait=wait)
    except OSError:
        file.close()
        raise
    return file


def _lock(file: IO[bytes], *, shared: bool, wait: bool) -> None:
    with contextlib.suppress(ImportError):  # on Windows, where nobody removes a file that is in use
        import fcntl

        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))


def _held(place: Path) -> IO[bytes] | None:
    """A folder's lock, shared with others that use it; None where there is no such folder, or it is being removed."""
    for _ in range(100):
        try:
            lock = _locked(place / LOCK, shared=True)
        except FileNotFoundError:
            return None
        except BlockingIOError:  # just made by another process, or about to go
            time.sleep(0.05)
            continue
        if (place / ABOUT).exists():
            return lock
        lock.close()
        return None
    return None


def _remove_unheld(place: Path) -> None:
    """Remove a folder unless somebody uses it."""
    with contextlib.suppress(OSError), _locked(place / LOCK):
        shutil.rmtree(place, ignore_errors=True)


def _remove_leftovers(root: Path) -> None:
    """Remove what processes left that were killed, and what nobody used for long."""
    for place in root.iterdir():
        stale = place.name.startswith((ONCE, PARTIAL))
        if place.name.startswith(KEPT):
            with contextlib.suppress(OSError):
                stale = time.time() - (place / ABOUT).stat().st_mtime > STALE_DAYS * 86_400
        if stale:
            _remove_unheld(place)
        elif place.suffix == TURN and time.time() - place.stat().st_mtime > STALE_DAYS * 86_400:
            place.unlink(missing_ok=True)
