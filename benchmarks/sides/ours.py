"""Our side: a sweep from its first trial to its last, through the public API."""

from __future__ import annotations

import contextlib
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.problems import Work, experiment_of


class Course:
    """What a watcher sees of a sweep.

    Args:
        work: what it is to do; decides when it is over.
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self.called = time.perf_counter()
        self.phases: dict[str, float] = {}
        self.started: dict[int, float] = {}
        self.rates: dict[int, float] = {}
        self.first_epochs: dict[int, float] = {}
        self.best: dict[int, float] = {}
        self.reached: float | None = None

    def watch(self, event: Any) -> None:
        """Note the time of what matters."""
        now, data = time.perf_counter(), event.data
        if event.kind == "phase":
            self.phases[data["name"]] = now
        elif event.kind == "trial_started":
            self.started[data["number"]] = now
            self.rates[data["number"]] = data["params"]["learning_rate"]
        elif event.kind == "epoch" and "confirm" not in self.phases:
            self.first_epochs.setdefault(data["number"], now)
            auc = data["metrics"]["val_auc"]
            self.best[data["number"]] = max(self.best.get(data["number"], 0.0), auc)
            if self.work.target is not None and self.reached is None and auc >= self.work.target:
                self.reached = now

    def stopping(self) -> bool:
        """Whether all is seen: the trials are over, the target is reached, or the cap."""
        late = not self.work.equal and "trials" in self.phases and self.seconds(None) > self.work.cap_s
        return "confirm" in self.phases or self.reached is not None or late

    def seconds(self, until: float | None) -> float:
        """From the first trial, the start of workers included, to a moment, or to now."""
        return (until or time.perf_counter()) - self.phases["trials"]

    def start_s(self) -> float:
        """How much longer the first trial took to its first epoch than the others did."""
        gaps = [self.first_epochs[number] - self.started[number] for number in sorted(self.first_epochs)]
        later = gaps[self.work.workers :]
        return max(0.0, gaps[0] - statistics.median(later)) if later else 0.0


def run(**arguments: Any) -> dict[str, Any]:
    """Our figures; see `recording.outcome` for the peers'."""
    work = Work(**arguments)
    study = {"sampler": "qmc", "pruner": "none", "patience": work.spec.epochs} if work.equal else {"n_trials": 10_000}
    course = sweep_of(work, study={**study, **work.study})
    found = {
        "seconds": course.seconds(course.phases.get("confirm") if course.reached is None else course.reached),
        "scoring_s": 0.0,
        "start_s": course.start_s(),
        "checks_s": course.phases["trials"] - course.called,
        "best": {repr(course.rates[number]): auc for number, auc in course.best.items()},
    }
    if not work.equal:
        found["reached_s"] = None if course.reached is None else course.seconds(course.reached)
    return found


def sweep_of(work: Work, **sections: Any) -> Course:
    """Run a sweep until the trials are over; what comes after them, confirmation and registration, has no peer."""
    from forge_sweep import sweep, training
    from forge_sweep.experiment import parse

    training.load_backend()  # imports are not counted, neither here nor at the peers
    experiment = parse(experiment_of(work, **sections), root=Path(work.folder))
    course = Course(work)
    with contextlib.suppress(sweep.Interrupted):
        sweep.run(experiment, store=Path(work.store), watch=course.watch, stopping=course.stopping)
    return course
