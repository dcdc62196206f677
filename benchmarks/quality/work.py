"""What a side is given, and the one measurement in its process: two cores, imports before the clock, everything after.

`prepare` writes a table once as a user would have it: one Parquet file whose column ``split`` says which rows train.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

CORES = 2
RESERVE = 0.03
"""Share of the budget that peers keep for their predictions of test."""
ROWS, ABOUT = "rows.parquet", "about.json"


class NoTime(Exception):
    """A side was at the end of its budget before it had any model."""


@dataclass
class Work:
    """One table and one budget.

    Attributes:
        folder: what `prepare` wrote.
        store: an empty folder.
        seconds: the budget from the first row that is read to the last prediction.
        seed: of everything random in a side.
        began: when the clock started: wall and CPU seconds.
    """

    folder: str
    store: str
    seconds: float
    seed: int = 0
    began: tuple[float, float] = field(default_factory=lambda: _now())

    @property
    def about(self) -> dict[str, Any]:
        """What `prepare` wrote; of the ``classes`` of a binary task the positive one is the second."""
        found: dict[str, Any] = json.loads((Path(self.folder) / ABOUT).read_text())
        return found

    @property
    def used(self) -> float:
        """Seconds since the clock started."""
        return time.perf_counter() - self.began[0]

    @property
    def left(self) -> float:
        """Seconds that a peer may still train; negative when it is time to predict."""
        return self.seconds * (1 - RESERVE) - self.used

    def stop(self) -> tuple[float, float]:
        """Wall and CPU seconds since the clock started."""
        (wall, cpu), (wall_before, cpu_before) = _now(), self.began
        return wall - wall_before, cpu - cpu_before

    def parts(self) -> dict[str, tuple[pd.DataFrame, np.ndarray]]:
        """Features and target of ``train``, ``valid`` and ``test``; classes as their numbers."""
        import pandas as pd

        about, rows = self.about, pd.read_parquet(Path(self.folder) / ROWS)
        target = rows[about["target"]]
        if about["classes"] is not None:
            target = target.map({label: number for number, label in enumerate(about["classes"])})
        features, split = rows.drop(columns=[about["target"], "split"]), rows["split"]
        return {
            name: (features[split == name].reset_index(drop=True), target[split == name].to_numpy())
            for name in ("train", "valid", "test")
        }


def prepare(table: str, folder: str) -> dict[str, Any]:
    """Write a table with its split; returns what `Work.about` gives."""
    import pandas as pd

    from benchmarks.quality.tables import SPLIT, TABLES, split_of

    known = TABLES[table]
    frame = known.load()
    frame = frame.assign(**{SPLIT: split_of(frame, known)})
    hashed = pd.util.hash_pandas_object(frame, index=False).to_numpy().tobytes()
    classes = None
    if known.task != "regression":
        labels = sorted(frame[known.target].unique().tolist(), key=lambda label: (label == known.positive, label))
        classes = labels
    about = {
        "table": table,
        "target": known.target,
        "task": known.task,
        "positive": known.positive,
        "classes": classes,
        "digest": hashlib.sha256(hashed).hexdigest(),
        "rows": {str(name): int(count) for name, count in frame[SPLIT].value_counts().items()},
        "columns": frame.shape[1] - 2,
    }
    frame.to_parquet(Path(folder) / ROWS)
    (Path(folder) / ABOUT).write_text(json.dumps(about))
    return about


def measure(module: str, folder: str, store: str, seconds: float, seed: int, output: str) -> dict[str, Any]:
    """Run one side in this process and keep its predictions of the test rows in ``output``.

    A side's module has ``load()``, which imports what it needs, and ``run(work)``, which gives predictions by name and
    facts. ``shipped`` is the name of what a user of the side would have.
    """
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(CORES)))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    side = importlib.import_module(f"benchmarks.quality.sides.{module}")
    side.load()
    work = Work(folder, store, seconds, seed)
    predictions, facts = side.run(work)
    took_s, cpu_s = work.stop()

    import numpy as np

    kept = {name: np.asarray(values, dtype=np.float32) for name, values in predictions.items()}
    with Path(output).open("wb") as file:
        np.savez_compressed(file, **kept)
    return {"took_s": took_s, "cpu_s": cpu_s, "facts": facts}


def _now() -> tuple[float, float]:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return time.perf_counter(), sum(each.ru_utime + each.ru_stime for each in used)
