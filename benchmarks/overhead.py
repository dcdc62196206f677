"""What study, tracking and pruning cost per trial: a sweep in one process, less the time its networks trained.

The training is timed inside `trial.run`, without what is called after each epoch. The sweep is a default one: TPE,
median pruner, early stopping.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks.problems import PROBLEMS, Work
from benchmarks.running import call, folder
from benchmarks.tables import say, table


class Timed:
    """Stands in for `trial.run` and keeps its time, and apart from it that of its ``on_epoch``.

    Args:
        run: the real one.
    """

    def __init__(self, run: Callable[..., Any]) -> None:
        self.run = run
        self.trained: list[float] = []
        self.after_epochs: list[float] = []

    def __call__(
        self, experiment: Any, splits: Any, params: Any, seed: int, on_epoch: Callable[..., bool], **rest: Any
    ) -> Any:
        """Run, and time both."""
        inside = 0.0

        def timed(*epoch: Any) -> bool:
            nonlocal inside
            began = time.perf_counter()
            try:
                return on_epoch(*epoch)
            finally:
                inside += time.perf_counter() - began

        began = time.perf_counter()
        try:
            return self.run(experiment, splits, params, seed, timed, **rest)
        finally:
            self.trained.append(time.perf_counter() - began - inside)
            self.after_epochs.append(inside)


def run(**arguments: Any) -> dict[str, Any]:
    """Seconds per trial of everything but training."""
    from benchmarks.sides.ours import sweep_of
    from forge_sweep import trial

    work = Work(**arguments)
    timed = Timed(trial.run)
    trial.run = timed  # type: ignore[assignment]
    course = sweep_of(work)
    trained = sum(timed.trained[: work.trials])
    total = course.phases["confirm"] - course.phases["trials"]
    return {
        "trials": work.trials,
        "trial_s": total / work.trials,
        "overhead_s": (total - trained) / work.trials,
        "after_epochs_s": sum(timed.after_epochs[: work.trials]) / work.trials,
        "share": 1 - trained / total,
    }


def measure(problem: str, trials: int) -> dict[str, Any]:
    """The overhead on one problem."""
    with folder() as data, folder() as store:
        call("problems:prepare", problem=problem, folder=str(data), trials=1, seed=0)
        work = Work(problem, str(data), str(store), trials=trials)
        found: dict[str, Any] = call("overhead:run", **work.to_dict())
    return found


def show(results: dict[str, dict[str, Any]]) -> None:
    """The table."""
    say("### Study, tracking and pruning per trial (ours, one process, defaults)\n")
    rows = [
        [
            PROBLEMS[problem].title,
            found["trials"],
            f"{found['trial_s']:.2f}",
            f"{found['overhead_s']:.3f}",
            f"{100 * found['share']:.1f} %",
            f"{found['after_epochs_s']:.3f}",
        ]
        for problem, found in results.items()
    ]
    table(["", "trials", "a trial, s", "overhead, s", "of the trial", "of it after epochs, s"], rows)
