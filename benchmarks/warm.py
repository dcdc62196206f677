"""Does a warm start pay? Time and trials to the target of `benchmarks.target`, with and without an earlier sweep.

The earlier sweep has another seed and half of the rows, as that of last quarter would have: 20 trials with the default
study. The new one begins cold, or with ``study.warm_start``; the clock runs from its first trial.
"""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path
from typing import Any

from benchmarks.problems import PROBLEMS, Work
from benchmarks.running import call, folder
from benchmarks.tables import note, say, seconds, table
from benchmarks.target import TARGETS

EARLIER = 20
BEFORE = "before"
WAYS = {"cold": (), "warm": (BEFORE,)}


def run(way: str, trials_before: int, **arguments: Any) -> dict[str, Any]:
    """One search for the target, after the earlier sweep in the same store."""
    import pandas as pd

    from benchmarks.sides.ours import sweep_of

    work = Work(**arguments)
    half = Path(work.store) / "half"
    half.mkdir()
    rows = pd.read_parquet(Path(work.folder) / "rows.parquet")
    rows.sample(frac=0.5, random_state=work.seed).sort_index().to_parquet(half / "rows.parquet")
    earlier = dataclasses.replace(work, folder=str(half), seed=1000 + work.seed, target=None)
    sweep_of(earlier, name=BEFORE, study={"n_trials": trials_before})
    course = sweep_of(work, study={"n_trials": 10_000, "warm_start": list(WAYS[way])})
    reached = None if course.reached is None else course.seconds(course.reached)
    return {"reached_s": reached, "trials": len(course.started)}


def measure(problem: str, seeds: int, cap_s: float) -> dict[str, list[dict[str, Any]]]:
    """Every way with every seed."""
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with folder() as data:
        call("problems:prepare", problem=problem, folder=str(data), trials=1, seed=0)
        for seed in range(1, seeds + 1):
            for way, runs in found.items():
                with folder() as store:
                    work = Work(
                        problem, str(data), str(store), seed=seed, workers=2, target=TARGETS[problem], cap_s=cap_s
                    )
                    runs.append(call("warm:run", way=way, trials_before=EARLIER, **work.to_dict()))
                note(f"{problem}, {way}, seed {seed}: {runs[-1]}")
    return found


def show(problem: str, found: dict[str, list[dict[str, Any]]], cap_s: float) -> None:
    """Print the medians; a search that was given up counts as its cap."""
    say(f"### {PROBLEMS[problem].title}: to a validation AUC of {TARGETS[problem]:.4f}\n")
    rows = []
    for way, runs in found.items():
        took = [cap_s if each["reached_s"] is None else each["reached_s"] for each in runs]
        rows.append(
            [
                way,
                f"{statistics.median(took):.1f}",
                ", ".join(seconds(each["reached_s"]) for each in runs),
                f"{statistics.median(each['trials'] for each in runs):g}",
            ]
        )
    table(["start", "median, s", "each seed, s", "trials begun, median"], rows)
