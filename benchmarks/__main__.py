"""`make bench` and its parts: speed against the peers and the limit, as tables in Markdown.

    python -m benchmarks all             # everything but memory; how long that takes is said at its end
    python -m benchmarks quick           # a small run of everything, two or three minutes; its figures mean little
    python -m benchmarks trials --problems credit --sides ours plain
    python -m benchmarks memory          # 200 trials
    python -m benchmarks backends        # the quickstart on TensorFlow, JAX and PyTorch, each model on the others
    python -m benchmarks epochs          # the compiled epoch against model.fit, on TensorFlow and JAX
    python -m benchmarks diagnosis       # what the diagnosis of a trial costs
    python -m benchmarks alarms          # what it says of 200 healthy trials
    python -m benchmarks coverage        # how often the verdict's 95 % interval holds the truth; half an hour or more
    python -m benchmarks outlook         # what ten more trials were said to gain, and what they gave
    python -m benchmarks folds           # the registered model, chosen by one split and by five folds, on ten tables
    python -m benchmarks warm            # time to a validation AUC, with and without an earlier sweep
    python -m benchmarks curves          # a pruner that extrapolates learning curves against ours
    python -m benchmarks pareto          # pruning with several objectives: epochs saved, hypervolume kept
    python -m benchmarks calibrate       # the targets of `target`, to be put into benchmarks/target.py

Each side runs in a process of its own, on a store of its own. Imports are not counted; the start of worker processes
and of Ray is, and is shown apart.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import (
    backends,
    coverage,
    curves,
    determinism,
    diagnosis,
    epochs,
    folds,
    memory,
    outlook,
    overhead,
    pareto,
    suggestions,
    target,
    trials,
    warm,
)
from benchmarks.problems import PROBLEMS
from benchmarks.running import SideFailed
from benchmarks.sides import OURS_2, SIDES
from benchmarks.tables import machine, note, say

Results = dict[str, Any]
AT_EQUAL_WORK = {"synthetic": (8, 24), "shapes": (6, 12), "credit": (6, 12), "borrowers": (4, 8), "small": (2, 2)}
"""Trials of each peer, and of ours and the limit."""
OVERHEAD = {"synthetic": 12, "credit": 12}


def do_trials(asked: argparse.Namespace) -> Results:
    """Trials per hour."""
    found = {}
    for problem in asked.problems:
        peers, ours = AT_EQUAL_WORK[problem]
        counts = {"trials": asked.trials or peers, "ours": asked.ours or asked.trials or ours}
        try:
            found[problem] = trials.compare(problem, asked.sides, seed=asked.seed, **counts)
        except SideFailed as failed:
            say(f"### {PROBLEMS[problem].title}\n\nskipped: {failed}\n")
            continue
        trials.show(problem, found[problem])
    return found


def do_target(asked: argparse.Namespace) -> Results:
    """Time to target."""
    found = {}
    for problem in asked.target_problems:
        found[problem] = target.compare(problem, asked.target_sides, seeds=asked.seeds, cap_s=asked.cap_s)
        target.show(problem, found[problem], asked.cap_s)
    return found


def do_overhead(asked: argparse.Namespace) -> Results:
    """Study, tracking, pruning."""
    found = {problem: overhead.measure(problem, asked.trials or count) for problem, count in OVERHEAD.items()}
    overhead.show(found)
    return found


def do_diagnosis(asked: argparse.Namespace) -> Results:
    """Cost of the diagnosis."""
    found = {problem: diagnosis.measure(problem, asked.trials or count) for problem, count in OVERHEAD.items()}
    diagnosis.show_costs(found)
    return dict(found)


def do_alarms(asked: argparse.Namespace) -> Results:
    """False alarms."""
    found = diagnosis.alarms(asked.trials or 200, asked.seed)
    diagnosis.show_alarms(found)
    return found


def do_suggestions(asked: argparse.Namespace) -> Results:
    """Cost of a suggestion."""
    found = suggestions.measure(tuple(asked.finished))
    suggestions.show(found)
    return found


def do_determinism(asked: argparse.Namespace) -> Results:
    """Price of determinism."""
    found = determinism.measure("synthetic", asked.trials or 6)
    determinism.show(found)
    return found


def do_memory(asked: argparse.Namespace) -> Results:
    """Memory over many trials."""
    found = memory.measure(asked.memory_trials, list(memory.WAYS))
    memory.show(found)
    return found


def do_backends(asked: argparse.Namespace) -> Results:
    """Models across backends."""
    found = backends.measure(asked.set)
    backends.show(found)
    return found


def do_epochs(asked: argparse.Namespace) -> Results:
    """The compiled epoch."""
    found = epochs.measure(asked.epochs)
    epochs.show(found)
    return found


def do_coverage(asked: argparse.Namespace) -> Results:
    """Coverage of the verdict's interval."""
    found = coverage.measure(asked.metrics, asked.rows, asked.splits, asked.seed)
    coverage.show(found)
    return {"coverage": found}


def do_outlook(asked: argparse.Namespace) -> Results:
    """Is more search worth it?"""
    found = outlook.measure(asked.trials or outlook.SURFACES)
    outlook.show(found)
    return {"outlook": found}


def do_curves(asked: argparse.Namespace) -> Results:
    """Pruning by extrapolated curves."""
    found = curves.measure(asked.curve_problems, asked.trials or curves.TRIALS)
    curves.show(found)
    return dict(found)


def do_pareto(asked: argparse.Namespace) -> Results:
    """Pruning with several objectives."""
    found = pareto.measure(asked.curve_problems, asked.trials or pareto.TRIALS)
    pareto.show(found)
    return dict(found)


def do_warm(asked: argparse.Namespace) -> Results:
    """Does a warm start pay?"""
    found: Results = {}
    for problem in asked.target_problems:
        found[problem] = warm.measure(problem, asked.warm_seeds, asked.cap_s)
        warm.show(problem, found[problem], asked.cap_s)
    return found


def do_folds(asked: argparse.Namespace) -> Results:
    """Do folds choose better on few rows?"""
    found = folds.measure(asked.small_tables, asked.fold_seeds, asked.fold_s, asked.networks)
    folds.show(found, asked.fold_s)
    return dict(found)


def do_calibrate(asked: argparse.Namespace) -> Results:
    """The targets, for benchmarks/target.py."""
    found = {problem: target.calibrate(problem) for problem in asked.target_problems}
    say(f"TARGETS = {json.dumps(found)}")
    return found


PARTS: dict[str, Callable[[argparse.Namespace], Results]] = {
    "trials": do_trials,
    "target": do_target,
    "overhead": do_overhead,
    "diagnosis": do_diagnosis,
    "alarms": do_alarms,
    "suggestions": do_suggestions,
    "determinism": do_determinism,
    "memory": do_memory,
    "backends": do_backends,
    "epochs": do_epochs,
    "coverage": do_coverage,
    "outlook": do_outlook,
    "curves": do_curves,
    "pareto": do_pareto,
    "warm": do_warm,
    "folds": do_folds,
    "calibrate": do_calibrate,
}
COMMANDS = {
    **{part: [part] for part in PARTS},
    "all": ["trials", "target", "overhead", "diagnosis", "suggestions", "determinism"],
    "quick": ["trials", "target", "overhead", "suggestions", "memory"],
}
QUICK = {"trials": 2, "ours": 4, "problems": ["credit"], "seeds": 1, "cap_s": 20.0, "finished": [10, 1_000],
         "memory_trials": 20}  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("command", choices=COMMANDS)
    add = made.add_argument
    add("--problems", nargs="+", choices=PROBLEMS, default=["synthetic", "credit", "borrowers"])
    add("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    add("--trials", type=int, help="of each peer at equal work; follows from the problem")
    add("--ours", type=int, help="trials of ours at equal work; follows from the problem")
    add("--seed", type=int, default=0, help="of equal work")
    add("--target-problems", nargs="+", choices=PROBLEMS, default=["shapes"])
    add("--target-sides", nargs="+", choices=SIDES, default=[OURS_2, "keras-tuner", "ray-tune"])
    add("--seeds", type=int, default=3, help="of the time to target, whose median is shown")
    add("--cap-s", type=float, default=60.0, help="after which a search for the target is given up")
    add("--finished", nargs="+", type=int, default=list(suggestions.FINISHED), help="trials, for suggestions")
    add("--memory-trials", type=int, default=200)
    add("--epochs", type=int, default=12, help="of each side, for epochs")
    add("--metrics", nargs="+", choices=list(coverage.TASKS), default=list(coverage.METRICS), help="for coverage")
    add("--rows", nargs="+", type=int, default=list(coverage.ROWS), help="of validation, for coverage")
    add("--splits", type=int, default=coverage.SPLITS, help="for coverage")
    add("--warm-seeds", type=int, default=5, help="for warm, whose median is shown")
    add("--small-tables", nargs="+", choices=folds.TABLES, default=list(folds.TABLES), help="for folds")
    add("--fold-seeds", type=int, default=3, help="of split and search, for folds")
    add("--fold-s", type=float, default=60.0, help="seconds of each sweep, for folds")
    add("--networks", action="store_true", help="for folds: no trees among the baselines")
    add("--curve-problems", nargs="+", choices=PROBLEMS, default=["shapes", "credit"], help="for curves and pareto")
    add("--set", nargs="+", default=[], help="overrides of the quickstart, for backends, such as study.n_trials=2")
    add("--json", type=Path, help="file for all figures")
    return made


def main() -> None:
    """Run one command."""
    asked = parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as for Ctrl-C: what was started ends too
    if asked.command == "quick":
        vars(asked).update(QUICK)
    began, about = time.perf_counter(), machine()
    results: Results = {"machine": about}
    say(", ".join(f"{name} {value}" for name, value in about.items()) + "\n")
    for part in COMMANDS[asked.command]:
        results[part] = PARTS[part](asked)
    note(f"{time.perf_counter() - began:.0f} s in all")
    if asked.json:
        asked.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
