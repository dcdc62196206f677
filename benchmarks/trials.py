"""Trials per hour at equal work: the same rows, arrays, networks, configurations, epochs; no pruning, no early stop.

The configurations are the first points of a Sobol sequence, so that no side trains smaller networks than another. Our
sides and the limit may be given more of them than the peers, so that their start does not weigh more than it would in
a sweep; AUCs are compared on the configurations that both sides trained.
"""

from __future__ import annotations

import importlib.util
import statistics
from pathlib import Path
from typing import Any

from benchmarks.problems import PROBLEMS, Work
from benchmarks.running import call, folder
from benchmarks.sides import OURS, OURS_2, PLAIN, SIDES, Side
from benchmarks.tables import noise, note, paired, say, seconds, table

ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
LIMIT = Side("limit: bare matrix products on all cores", "sides.limit:run")

Found = dict[str, Any]


def available(names: list[str]) -> list[str]:
    """The sides whose engine is installed; what the others lack is said."""
    lacking = {name: [module for module in SIDES[name].needs if not importlib.util.find_spec(module)] for name in names}
    for name, modules in lacking.items():
        if modules:
            say(f"{SIDES[name].title} is left out: {', '.join(modules)} not installed (make peers installs it)\n")
    return [name for name, modules in lacking.items() if not modules]


def run_side(side: Side, work: Work, variables: dict[str, str] | None = None) -> Found:
    """One side on a store of its own."""
    with folder() as store:
        arguments = {**work.to_dict(), "store": str(store), "workers": side.workers}
        found: Found = call(side.function, variables=variables, **arguments)
    note(f"{work.problem}: {side.title}, seed {work.seed}: {found['seconds']:.1f} s")
    return found


def compare(problem: str, names: list[str], *, trials: int, ours: int, seed: int) -> dict[str, Found]:
    """All sides on one problem, the limit included.

    Args:
        problem: a key of `PROBLEMS`.
        names: keys of `SIDES`.
        trials: of each peer.
        ours: of our sides and the limit.
        seed: of configurations and networks.
    """
    with folder() as data:
        call("problems:prepare", problem=problem, folder=str(data), trials=max(trials, ours), seed=seed)
        return {
            **{name: measured(name, SIDES[name], data, problem, trials, ours, seed) for name in available(names)},
            "limit": measured("limit", LIMIT, data, problem, trials, ours, seed),
        }


def measured(name: str, side: Side, data: Path, problem: str, trials: int, ours: int, seed: int) -> Found:
    """One side's figures with its trials per hour."""
    count = ours if name in (OURS, OURS_2, "limit") else trials
    work = Work(problem, str(data), store="", trials=count, seed=seed)
    found = run_side(side, work, ONE_THREAD if name == "limit" else None)
    aucs = list(found["best"].values())
    if name != "limit" and len(aucs) != count:
        raise RuntimeError(f"{side.title} ran {len(aucs)} trials of {count}: the work is not equal")
    return {**found, "trials": count, "per_hour": count / found["seconds"] * 3600}


def show(problem: str, results: dict[str, Found]) -> None:
    """The table of one problem."""
    base = results.get(PLAIN)
    say(f"### {PROBLEMS[problem].title}, {PROBLEMS[problem].epochs} epochs\n")
    rows = [row(name, found, base, results) for name, found in results.items()]
    table(
        ["", "trials", "per hour", "of the plain loop", "of the limit", "start, s", "best AUC", "mean AUC",
         "to the plain loop, same configurations"],
        rows,
    )  # fmt: skip


def row(name: str, found: Found, base: Found | None, results: dict[str, Found]) -> list[str]:
    """One side's row."""
    side, aucs = SIDES.get(name, LIMIT), list(found["best"].values())
    limit = results["limit"]["per_hour"]
    return [
        side.title,
        str(found["trials"]),
        f"{found['per_hour']:,.0f}",
        f"{found['per_hour'] / base['per_hour']:.2f}" if base else "-",
        f"{found['per_hour'] / limit:.3f}",
        seconds(found["start_s"]),
        f"{max(aucs):.4f}" if aucs else "-",
        f"{statistics.fmean(aucs):.4f}" if aucs else "-",
        noise(*paired(found["best"], base["best"])[:2]) if base and aucs and name != PLAIN else "-",
    ]
