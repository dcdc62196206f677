"""Time to a validation AUC, each side as its users run it, with its own way to end hopeless trials.

Ours is the default study (TPE, median pruner, early stopping) on two worker processes; KerasTuner is Hyperband; Ray
Tune is OptunaSearch and ASHA, two trials at a time. The clock runs from the first trial, the start of workers and
engines included, to the first epoch whose exact AUC on all validation rows is at the target. Our audit and pre-flight,
which the peers do not have, end before it; how long they took is said.
"""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.problems import PROBLEMS, Work
from benchmarks.running import call, folder
from benchmarks.sides import OURS, SIDES
from benchmarks.tables import say, seconds, table
from benchmarks.trials import available, run_side

QUANTILE = 0.8
RANDOM_TRIALS = 40
TARGETS = {"shapes": 0.9661, "credit": 0.8553}
"""What one in five trials of a random search reaches: `QUANTILE` of the best AUCs of `RANDOM_TRIALS` trials without
pruning, as ``python -m benchmarks calibrate`` prints it. Fixed, so that every run and machine has the same aim."""


def calibrate(problem: str) -> float:
    """The target of a problem, from our side with a random sampler in one process."""
    with folder() as data:
        call("problems:prepare", problem=problem, folder=str(data), trials=1, seed=0)
        work = Work(problem, str(data), store="", trials=RANDOM_TRIALS, study={"sampler": "random"})
        aucs = list(run_side(SIDES[OURS], work)["best"].values())
    return round(statistics.quantiles(aucs, n=100, method="inclusive")[round(100 * QUANTILE) - 1], 4)


def compare(problem: str, names: list[str], *, seeds: int, cap_s: float) -> dict[str, list[dict[str, Any]]]:
    """Every side with every seed."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in available(names)}
    with folder() as data:
        call("problems:prepare", problem=problem, folder=str(data), trials=1, seed=0)
        for seed in range(1, seeds + 1):
            work = Work(problem, str(data), store="", trials=1, seed=seed, target=TARGETS[problem], cap_s=cap_s)
            for name, runs in found.items():
                runs.append(run_side(SIDES[name], work))
    return found


def show(problem: str, results: dict[str, list[dict[str, Any]]], cap_s: float) -> None:
    """The table of one problem; a search that was given up counts as its cap."""
    say(f"### {PROBLEMS[problem].title}: seconds to a validation AUC of {TARGETS[problem]:.4f}\n")
    medians = {name: statistics.median(times(runs, cap_s)) for name, runs in results.items()}
    fastest = next(iter(medians.values()))
    rows = [
        [
            SIDES[name].title,
            ("at least " if medians[name] >= cap_s else "") + f"{medians[name]:.1f}",
            f"{medians[name] / fastest:.2f}",
            ", ".join(seconds(run["reached_s"]) for run in runs),
            seconds(statistics.median(run["start_s"] for run in runs)),
            seconds(statistics.median(run["checks_s"] for run in runs)) if "checks_s" in runs[0] else "-",
        ]
        for name, runs in results.items()
    ]
    table(["", "median, s", "of the first row", "each seed, s", "start, s", "audit and pre-flight before, s"], rows)


def times(runs: list[dict[str, Any]], cap_s: float) -> list[float]:
    """Seconds of each run."""
    return [cap_s if run["reached_s"] is None else run["reached_s"] for run in runs]
