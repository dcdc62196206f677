"""A queue in a file: what could not be written to MLflow waits here, in order, and survives the process.

One JSON record per line. How far it was replayed stands in a file of its own, saved after each record. Several
processes may share a journal; each access holds its lock.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from filelock import BaseFileLock

Record = dict[str, Any]


class Journal:
    """The waiting writes of one experiment.

    Args:
        folder: where the journal lives; created with the first record.
        name: file name without suffix.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}.jsonl"
        self.refused = folder / f"{name}.refused.jsonl"
        self._position = folder / f"{name}.position"
        self._files = folder / f"{name}.files"
        self._lock_path = folder / f"{name}.lock"

    @property
    def waiting(self) -> bool:
        """Whether any record waits; one look at two small files."""
        return self._size() > self._done()

    def __len__(self) -> int:
        """Records that wait."""
        return sum(1 for _ in self._records()) if self.waiting else 0

    def append(self, record: Record) -> None:
        """Add a record at the end, on disk when this returns.

        Raises:
            OSError: the journal cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked():
            self._repair()
            _append_line(self.path, record)

    def keep(self, source: Path) -> Path:
        """A copy of a file that stays until its record was replayed."""
        copy = self._files / uuid.uuid4().hex / source.name
        copy.parent.mkdir(parents=True)
        shutil.copyfile(source, copy)
        return copy

    def drain(self, apply: Callable[[Record], bool]) -> int:
        """Apply every waiting record in order and forget it; returns how many.

        Args:
            apply: called with each record; false where it was set aside, and needs its files still. When it raises,
                this record and those after it stay.
        """
        if not self.path.exists():
            return 0
        applied = 0
        with self._locked():
            self._repair()
            for end, record in self._records():
                made = apply(record)
                self._save_position(end)
                if made:
                    self._drop_copies(record)
                applied += 1
            self._clear()
        return applied

    def refuse(self, record: Record, reason: str) -> None:
        """Set aside a record that the store does not take, with the reason; `readmit` tries it again."""
        _append_line(self.refused, {**record, "reason": reason})

    @property
    def set_aside(self) -> int:
        """Records that were set aside."""
        return len(self.refused.read_bytes().splitlines()) if self.refused.exists() else 0

    def readmit(self) -> int:
        """Let the records that were set aside wait again, before all others; returns how many.

        They are marked as late, since what was written meanwhile is newer. A kill in between leaves records twice, and
        every write may be made twice.
        """
        if not self.refused.exists():
            return 0
        with self._locked():
            self._repair()
            lines = self.refused.read_bytes().splitlines()
            rest = b""
            if self.path.exists():
                with self.path.open("rb") as file:
                    file.seek(self._done())
                    rest = file.read()
            again = b"".join(_late(line) + b"\n" for line in lines)
            new = self.path.with_suffix(".new")
            with new.open("wb") as file:
                file.write(again + rest)
                file.flush()
                os.fsync(file.fileno())
            self._position.unlink(missing_ok=True)
            new.replace(self.path)
            self.refused.unlink()
        return len(lines)

    def _records(self) -> Iterator[tuple[int, Record]]:
        """End position and content of each waiting record; a torn last line is not one."""
        with self.path.open("rb") as lines:
            end = lines.seek(self._done())
            for line in lines:
                if not line.endswith(b"\n"):
                    return
                end += len(line)
                yield end, _parse(line)

    def _repair(self) -> None:
        """Cut a line torn by a kill; forget a position that outlived its records."""
        if self._position_read() > self._size():
            self._position.unlink(missing_ok=True)
        if not self._size():
            return
        with self.path.open("rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)

    def _clear(self) -> None:
        # In this order: a kill in between leaves an empty journal with an old position, which `_repair` forgets.
        os.truncate(self.path, 0)
        self._position.unlink(missing_ok=True)

    def _drop_copies(self, record: Record) -> None:
        """Delete the files kept for a record; others may belong to one that another process is about to append."""
        for value in record.values():
            if isinstance(value, str) and Path(value).parent.parent == self._files:
                shutil.rmtree(Path(value).parent, ignore_errors=True)

    def _size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def _done(self) -> int:
        """Position up to which records were replayed; 0 when the saved one outlived its records."""
        position = self._position_read()
        return position if position <= self._size() else 0

    def _position_read(self) -> int:
        try:
            return int(self._position.read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def _save_position(self, end: int) -> None:
        new = self._position.with_suffix(".position.new")
        new.write_text(str(end))
        new.replace(self._position)

    def _locked(self) -> BaseFileLock:
        from filelock import FileLock

        return FileLock(str(self._lock_path))


def _parse(line: bytes) -> Record:
    """The record, or one of the unknown kind ``unreadable`` that its reader refuses, so that it blocks nothing."""
    try:
        record: Record = json.loads(line)
    except ValueError:
        return {"op": "unreadable", "line": line.decode("utf-8", errors="replace")}
    return record


def _late(line: bytes) -> bytes:
    """A record as it waited, marked as late; a line that is unreadable stays so."""
    record = _parse(line)
    if record.get("op") == "unreadable":
        return line if "line" not in record else str(record["line"]).encode()
    waiting = {**{name: value for name, value in record.items() if name != "reason"}, "late": True}
    return json.dumps(waiting, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _append_line(path: Path, record: Record) -> None:
    with path.open("ab") as file:
        file.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        file.flush()
        os.fsync(file.fileno())
