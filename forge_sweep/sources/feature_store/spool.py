"""Coded rows on this machine's disk, while everything that needs all of them is found out."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

import numpy as np

from forge_sweep.errors import DataError
from forge_sweep.sources.feature_store.codec import BLOCK_ROWS
from forge_sweep.sources.feature_store.rows import CodedRows

PREFIX = "forge-sweep-ingest-"


class Spool:
    """Rows of float64 in a file of a temporary folder (``TMPDIR``) that goes with it.

    Args:
        features: number of features.
        targets: number of targets.
    """

    def __init__(self, features: int, targets: int) -> None:
        remove_leftovers()
        self._features = features
        self._width = features + targets
        self._folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
        self._file = (self._folder / "rows.f8").open("wb")
        self._positions: list[np.ndarray] = []
        self._remaps: Mapping[int, np.ndarray] = {}
        self.rows = 0

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def append(self, block: CodedRows) -> None:
        """Take the next rows.

        Raises:
            DataError: the disk is full.
        """
        try:
            np.concatenate([block.features, block.targets], axis=1).tofile(self._file)
        except OSError as error:
            raise DataError(
                f"{self._folder} has no room for the coded rows: {error}",
                hint="export TMPDIR= a folder with 8 bytes for each value of the file",
            ) from None
        self._positions.append(block.rows)
        self.rows += len(block.rows)

    def finish(self, remaps: Mapping[int, np.ndarray]) -> None:
        """All rows are there.

        Args:
            remaps: final codes by provisional ones, by column; applied to what is read from here on.
        """
        self._file.close()
        self._remaps = remaps
        self.positions = np.concatenate(self._positions)
        self._positions.clear()

    def recode(self, codes: Mapping[int, np.ndarray]) -> None:
        """Change codes once more: new ones by those that were final until now, by column."""
        changed = {column: _recoded(self._remaps[column], new) for column, new in codes.items()}
        self._remaps = {**self._remaps, **changed}

    def targets(self) -> np.ndarray:
        """All targets (n, targets), in the order of the file."""
        targets, at = np.empty((self.rows, self._width - self._features)), 0
        for block in self.blocks(None):
            targets[at : at + len(block.rows)] = block.targets
            at += len(block.rows)
        return targets

    def blocks(self, order: np.ndarray | None) -> Iterator[CodedRows]:
        """The rows in blocks of `BLOCK_ROWS`.

        Args:
            order: (n,) positions among the appended rows; None for the order of the file.
        """
        for first in range(0, self.rows, BLOCK_ROWS):
            picked = slice(first, first + BLOCK_ROWS) if order is None else order[first : first + BLOCK_ROWS]
            # Mapped anew each time: pages of earlier blocks would count as memory of this process.
            values = np.array(np.memmap(self._file.name, np.float64, "r", shape=(self.rows, self._width))[picked])
            for column, remap in self._remaps.items():
                values[:, column] = _recoded(values[:, column], remap)
            yield CodedRows(self.positions[picked], values[:, : self._features], values[:, self._features :])


def _recoded(codes: np.ndarray, remap: np.ndarray) -> np.ndarray:
    """Final codes of provisional ones; missing stays missing."""
    missing = np.isnan(codes)
    return np.where(missing, np.nan, np.append(remap, np.nan)[np.where(missing, -1, codes).astype(np.intp)])


def remove_leftovers() -> None:
    """Remove the folders of ingests of this machine that were killed."""
    import psutil

    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        pid = folder.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)
