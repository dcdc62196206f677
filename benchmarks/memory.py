"""Resident memory over many trials: growth per trial of the sweep's process and of each worker process.

Small trials (600 x 40 rows, 3 epochs), since what leaks does so per trial and not per row. A worker process that is
replaced begins a line of its own. Shapes are searched, so that
no two networks are alike. The growth is the least-squares slope over the second half of the trials; what is warmed up
once is past by then. The peers' figure is that of the plain loop.
"""

from __future__ import annotations

import contextlib
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
    """Weighs this process and its descendants after each trial."""

    def __init__(self) -> None:
        import psutil

        self.me = psutil.Process()
        self.seen: dict[tuple[str, int], list[float]] = {}

    def weigh(self) -> None:
        """One more weight of each."""
        import psutil

        for process in (self.me, *self.me.children(recursive=True)):
            with contextlib.suppress(psutil.Error):  # it ended since
                self.seen.setdefault((self.role(process), process.pid), []).append(resident(process))

    def role(self, process: Any) -> str:
        """What a process is for; workers are children of the fork server."""
        if process.pid == self.me.pid:
            return "parent"
        if process.ppid() != self.me.pid:
            return "worker"
        return "fork server" if any("forkserver" in word for word in process.cmdline()) else "helper"

    def curves(self) -> list[tuple[str, list[float]]]:
        """The role and the weights of each process of interest."""
        return [(role, weights) for (role, _), weights in self.seen.items() if role != "helper"]


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
    return {"curves": scale.curves(), "seconds": time.perf_counter() - began}


def plain(**arguments: Any) -> dict[str, Any]:
    """The loop by hand."""
    import keras

    from benchmarks.sides.plain import run

    scale = Scale()
    began = keras.utils.clear_session
    keras.utils.clear_session = lambda *rest, **named: (scale.weigh(), began(*rest, **named))  # once per trial
    seconds = run(**arguments)["seconds"]
    return {"curves": scale.curves(), "seconds": seconds}


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
    rows = [
        [
            f"{WAYS[way][0]}: {role}",
            len(curve),
            *(f"{curve[at]:.0f}" for at in (0, len(curve) // 2, -1)),
            f"{growth(curve):.2f}",
        ]
        for way, found in results.items()
        for role, curve in found["curves"]
    ]
    table(["", "trials", "after the first", "half of them", "the last", "growth per trial"], rows)
