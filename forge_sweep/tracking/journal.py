"""A persistent queue of writes that could not be sent to MLflow.

One JSON record per line; the replay position is kept in a second file, saved after each record. Several processes may
share a journal; each access takes its lock.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

Record = dict[str, Any]


class Journal:
    """The queued writes of one experiment, in files of this name; the folder is created with the first record."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}.jsonl"
        self.refused = folder / f"{name}.refused.jsonl"
        self._position = folder / f"{name}.position"
        self._files = folder / f"{name}.files"
        self._lock = FileLock(str(folder / f"{name}.lock"))

    @property
    def waiting(self) -> bool:
        """Whether any record is queued; reads two small files."""
        return self._size() > self._done()

    def __len__(self) -> int:
        return sum(1 for _ in self._records()) if self.waiting else 0

    def append(self, record: Record) -> None:
        """Append a record; it is on disk when this returns, or OSError is raised."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock:
            self._repair()
            _append_line(self.path, record)

    def keep(self, source: Path) -> Path:
        """Copy a file; the copy is kept until its record has been replayed."""
        copy = self._files / uuid.uuid4().hex / source.name
        copy.parent.mkdir(parents=True)
        shutil.copyfile(source, copy)
        return copy

    def drain(self, apply: Callable[[Record], bool]) -> int:
        """Apply and remove every queued record in order; returns how many.

        `apply` returns False for a record that was set aside, whose files are still needed. If it raises, this record
        and those after it stay queued.
        """
        if not self.path.exists():
            return 0
        applied = 0
        with self._lock:
            self._repair()
            for end, record in self._records():
                made = apply(record)
                new = self._position.with_suffix(".position.new")
                new.write_text(str(end))
                new.replace(self._position)
                if made:
                    self._drop_copies(record)
                applied += 1
            # In this order: a kill in between leaves an empty journal with an old position, which `_repair` removes.
            os.truncate(self.path, 0)
            self._position.unlink(missing_ok=True)
        return applied

    def refuse(self, record: Record, reason: str) -> None:
        """Set aside a record that the store refuses, with the reason; `readmit` queues it again."""
        _append_line(self.refused, {**record, "reason": reason})

    @property
    def set_aside(self) -> int:
        """Number of records that were set aside."""
        return len(self.refused.read_bytes().splitlines()) if self.refused.exists() else 0

    def readmit(self) -> int:
        """Queue the records that were set aside again, before all others; returns how many.

        They are marked as late, since newer writes may have been applied meanwhile. A kill may leave records twice,
        which is harmless: every write is idempotent.
        """
        if not self.refused.exists():
            return 0
        with self._lock:
            self._repair()
            lines = self.refused.read_bytes().splitlines()
            rest = self.path.read_bytes()[self._done() :] if self.path.exists() else b""
            new = self.path.with_suffix(".new")
            with new.open("wb") as file:
                file.write(b"".join(_late(line) + b"\n" for line in lines) + rest)
                file.flush()
                os.fsync(file.fileno())
            self._position.unlink(missing_ok=True)
            new.replace(self.path)
            self.refused.unlink()
        return len(lines)

    def _records(self) -> Iterator[tuple[int, Record]]:
        """End position and content of each queued record, without a torn last line."""
        with self.path.open("rb") as lines:
            end = lines.seek(self._done())
            for line in lines:
                if not line.endswith(b"\n"):
                    return
                end += len(line)
                yield end, _parse(line)

    def _repair(self) -> None:
        """Remove a line torn by a kill, and a position beyond the end of the file."""
        if not self._done():
            self._position.unlink(missing_ok=True)
        if not self._size():
            return
        with self.path.open("rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)

    def _drop_copies(self, record: Record) -> None:
        # Only those of this record: others may belong to one that another process is about to append.
        for value in record.values():
            if isinstance(value, str) and Path(value).parent.parent == self._files:
                shutil.rmtree(Path(value).parent, ignore_errors=True)

    def _size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def _done(self) -> int:
        """Position up to which records were replayed; 0 if the saved one is beyond the end of the file."""
        try:
            position = int(self._position.read_text())
        except (FileNotFoundError, ValueError):
            return 0
        return position if position <= self._size() else 0


def _parse(line: bytes) -> Record:
    """The record; an unreadable line becomes one of the unknown kind ``unreadable``, which is set aside on replay."""
    try:
        record: Record = json.loads(line)
    except ValueError:
        return {"op": "unreadable", "line": line.decode("utf-8", errors="replace")}
    return record


def _late(line: bytes) -> bytes:
    """The record without its reason, marked as late; an unreadable line is kept."""
    record = _parse(line)
    if record.get("op") == "unreadable":
        return str(record["line"]).encode() if "line" in record else line
    waiting = {**{name: value for name, value in record.items() if name != "reason"}, "late": True}
    return _line(waiting)


def _line(record: Record) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _append_line(path: Path, record: Record) -> None:
    with path.open("ab") as file:
        file.write(_line(record) + b"\n")
        file.flush()
        os.fsync(file.fileno())
