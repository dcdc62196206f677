"""What a training that was cut off is taken up from again: all that its next epoch depends on."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

GROUPS = ("weights", "optimizer", "best")


class Checkpoint(Protocol):
    """Where the progress of one training is kept."""

    def load(self) -> bytes | None:
        """What was saved last; None where nothing was."""
        ...

    def save(self, content: bytes) -> None:
        """Replace it as a whole: a process that is killed in here leaves the old content or the new one."""
        ...


@dataclass(frozen=True)
class FileCheckpoint:
    """A checkpoint in a file of its own, whose folder is made."""

    path: Path

    def load(self) -> bytes | None:
        """See `Checkpoint`."""
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None

    def save(self, content: bytes) -> None:
        """See `Checkpoint`; an OSError leaves the old content."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self.path)
        finally:
            partial.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove it, and what a killed process left beside it."""
        for path in (self.path, *self.path.parent.glob(f".{self.path.name}.*")):
            path.unlink(missing_ok=True)


@dataclass(frozen=True, eq=False)
class Progress:
    """A training after one of its epochs.

    Attributes:
        identity: names the training; another one cannot be taken up from here.
        weights: all variables of the network, moving statistics and the states of random generators among them.
        optimizer: all variables of its optimizer.
        best: weights of the best epoch so far.
        seconds: wall clock so far, over all attempts.
        base_rate: learning rate that the training began with.
        callbacks: attributes of the callbacks that remember something.
        over: whether no epoch is left to train.
    """

    identity: str
    weights: Sequence[np.ndarray]
    optimizer: Sequence[np.ndarray]
    best: Sequence[np.ndarray]
    history: Sequence[dict[str, float]]
    events: Sequence[str]
    best_epoch: int
    seconds: float
    base_rate: float
    callbacks: dict[str, dict[str, Any]]
    over: bool


def pack(progress: Progress) -> bytes:
    """The progress as the content of a ``.npz`` file: arrays, and JSON for all else."""
    about = {name: value for name, value in vars(progress).items() if name not in GROUPS}
    arrays = {f"{group}/{i}": np.asarray(a) for group in GROUPS for i, a in enumerate(getattr(progress, group))}
    content = io.BytesIO()
    np.savez(content, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)  # type: ignore[arg-type]
    return content.getvalue()


def unpack(content: bytes) -> Progress:
    """What `pack` made.

    Raises:
        ValueError: it is something else, or damaged.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as saved:  # its checksums are compared while it is read
            about = json.loads(saved["about"].tobytes())
            groups: dict[str, Any] = {group: _group(saved, group) for group in GROUPS}
        older = {"learning_rate": "lr"}  # in progress that an older version saved
        about["history"] = [{older.get(name, name): value for name, value in row.items()} for row in about["history"]]
        return Progress(**about, **groups)
    except (ValueError, KeyError, TypeError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _group(saved: Any, group: str) -> list[np.ndarray]:
    return [saved[f"{group}/{i}"] for i in range(sum(name.startswith(f"{group}/") for name in saved.files))]


def find(checkpoint: Checkpoint | None, identity: str, events: list[str]) -> Progress | None:
    """The progress of this training, if any was saved; why a saved one is not used is added to ``events``."""
    content = None if checkpoint is None else checkpoint.load()
    if content is None:
        return None
    try:
        progress = unpack(content)
    except ValueError as error:
        events.append(f"trained from the beginning: the checkpoint cannot be read ({error})")
        return None
    if progress.identity != identity:
        events.append("trained from the beginning: the checkpoint is that of another training")
        return None
    return progress
