"""Resident memory over many trials: growth per trial of the sweep's process and of each worker process.

Small trials (600 x 40 rows, 3 epochs), since what leaks does so per trial and not per row. Shapes are searched, so that
no two networks are alike. The growth is the least-squares slope over the second half of the trials; what is warmed up
once is past by then. The peers' figure is that of the plain loop.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.problems import Work
from benchmarks.running import call, folder
from benchmarks.tables import note, say, slope, table

PROBLEM = "small"
WAYS = {
    "serial": ("ours, one process", 1),
    "processes": ("ours, two worker processes", 2),
    "plain": ("Optuna, `model.fit` and MLflow by hand", 1),
}


def resident(process: Any) -> float:
    """MB of a process, shared pages included."""
    return float(process.memory_info().rss) / 2**20


class Scale:
    """Weighs this process and its descendants after each trial; processes are told by their pid."""

    def __init__(self) -> None:
        import psutil

        self.me = psutil.Process()
        self.seen: dict[int, list[float]] = {}
        self.names: dict[int, str] = {}

    def weigh(self) -> None:
        """One more weight of each."""
        import psutil

        for process in (self.me, *self.me.children(recursive=True)):
            try:
                self.seen.setdefault(process.pid, []).append(resident(process))
                self.names[process.pid] = " ".join(process.cmdline())
            except psutil.Error:
                continue  # it ended since

    def curves(self, least: int) -> list[list[float]]:
        """The weights of this process, then of each other one that was there for at least so many trials."""
        others = [seen for pid, seen in self.seen.items() if pid != self.me.pid and len(seen) >= least]
        return [self.seen[self.me.pid], *others]


def ours(**arguments: Any) -> dict[str, Any]:
    """Our sweep."""
    from benchmarks.sides import ours as side

    work, scale = Work(**arguments), Scale()
    watch = side.Course.watch

    def weighing(course: side.Course, event: Any) -> None:
        watch(course, event)
        if event.kind == "trial_done":
            scale.weigh()

    side.Course.watch = weighing  # type: ignore[method-assign]
    began = time.perf_counter()
    side.sweep_of(work, study={"pruner": "median"})
    return {"curves": scale.curves(work.trials // 2), "seconds": time.perf_counter() - began}


def plain(**arguments: Any) -> dict[str, Any]:
    """The loop by hand."""
    import keras

    from benchmarks.sides.plain import run

    scale = Scale()
    began = keras.utils.clear_session
    keras.utils.clear_session = lambda *rest, **named: (scale.weigh(), began(*rest, **named))  # once per trial
    seconds = run(**arguments)["seconds"]
    return {"curves": scale.curves(arguments["trials"] // 2), "seconds": seconds}


def measure(trials: int, ways: list[str]) -> dict[str, dict[str, Any]]:
    """Each way in a process of its own."""
    found = {}
    for way in ways:
        title, workers = WAYS[way]
        with folder() as data, folder() as store:
            call("problems:prepare", problem=PROBLEM, folder=str(data), trials=trials, seed=0)
            work = Work(PROBLEM, str(data), str(store), trials=trials, workers=workers)
            found[way] = call(f"memory:{'plain' if way == 'plain' else 'ours'}", **work.to_dict())
        note(f"memory: {title}: {found[way]['seconds']:.0f} s")
    return found


def growth(curve: list[float]) -> float:
    """MB per trial over the second half; a curve has one weight per trial of the whole sweep."""
    return slope(curve[len(curve) // 2 :])


def show(results: dict[str, dict[str, Any]]) -> None:
    """The table."""
    say("### Resident memory, MB\n")
    rows = []
    for way, found in results.items():
        for index, curve in enumerate(found["curves"]):
            name = WAYS[way][0] + (
                "" if len(found["curves"]) == 1 else ": parent" if index == 0 else f": child {index}"
            )
            ends = [f"{curve[at]:.0f}" for at in (0, len(curve) // 2, -1)]
            rows.append([name, len(curve), *ends, f"{growth(curve):.2f}"])
    table(["", "trials", "after the first", "half of them", "the last", "growth per trial"], rows)
