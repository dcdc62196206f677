"""What study and tracking cost per trial, by part: a sweep whose training takes no time, on SQLite stores.

    python benchmarks/parts.py                            # 50 trials of 20 epochs
    python benchmarks/parts.py --pruner hyperband --trials 1000
    python benchmarks/parts.py --profile                  # the functions that take the most time of their own

Printed per trial: milliseconds of each part, transactions and statements on each database. Those of a part count what
its thread did within it. The first trials pay for imports and connections: they are left out.
"""

from __future__ import annotations

import argparse
import cProfile
import functools
import importlib
import pstats
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import sqlalchemy

from forge_sweep import bundle, sweep, training, trial
from forge_sweep.experiment import Experiment, Params, parse
from forge_sweep.study import Study
from forge_sweep.sweep import context
from forge_sweep.tracking import Run, Tracker
from forge_sweep.trial import TrialResult

WARM_UP = 5
now = time.perf_counter
STORY: Any = importlib.import_module("forge_sweep.sweep.run")  # the module; `sweep.run` is its function
PARTS: tuple[tuple[str, Any, str], ...] = (
    ("ask", Study, "ask"),
    ("open run", Tracker, "run"),
    ("log epoch", Run, "log_epoch"),
    ("report, prune?", Study, "report"),
    ("end run", Run, "finish"),
    ("tell", Study, "tell"),
    ("watch", context.Context, "tell"),
    ("best, streak", Study, "best"),
    ("best, streak", Study, "failing_streak"),
)


class Clock:
    """Time by part, without what the parts within it took, and transactions and statements by part and database."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.transactions: Counter[tuple[str, str]] = Counter()
        self.statements: Counter[tuple[str, str]] = Counter()
        self.stack = ["other"]
        self.since = now()

    def reset(self) -> None:
        """Forget what was counted."""
        self.seconds.clear()
        self.transactions.clear()
        self.statements.clear()
        self.since = now()

    def _lap(self) -> None:
        at = now()
        self.seconds[self.stack[-1]] += at - self.since
        self.since = at

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time booked under a part."""

        @functools.wraps(function)
        def call(*words: Any, **options: Any) -> Any:
            self._lap()
            self.stack.append(part)
            try:
                return function(*words, **options)
            finally:
                self._lap()
                self.stack.pop()

        return call

    def began(self, connection: Any) -> None:
        """A transaction."""
        self.transactions[self.stack[-1], Path(connection.engine.url.database).stem] += 1

    def executed(self, connection: Any, *_: Any) -> None:
        """A statement."""
        self.statements[self.stack[-1], Path(connection.engine.url.database).stem] += 1


def declared(n_trials: int, epochs: int, pruner: str, sampler: str) -> Experiment:
    """Five searched hyperparameters on a small sample."""
    return parse(
        {
            "name": "overhead",
            "data": {"source": "sample", "name": "breast_cancer", "target": "target", "task": "binary"},
            "model": {
                "search": {
                    "width": {"type": "int", "low": 16, "high": 256, "log": True},
                    "depth": {"type": "int", "low": 1, "high": 4},
                    "dropout": {"type": "float", "low": 0.0, "high": 0.5},
                    "learning_rate": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
                    "batch_size": {"type": "categorical", "choices": [64, 128, 256]},
                }
            },
            "objective": {"metric": "val_auc"},
            "study": {"n_trials": n_trials, "epochs": epochs, "pruner": pruner, "sampler": sampler},
            "baselines": {"kinds": ["constant"]},
            "confirm": {"top": 1, "seeds": 1},
        },
        root=Path(),
    )


class Instant:
    """In place of `trial.run`: the metrics of a network without the network."""

    made: bundle.Bundle | None = None

    def __call__(
        self, experiment: Experiment, rows: Any, params: Params, seed: int, on_epoch: Any, **_: Any
    ) -> TrialResult:
        """Climb to a height that follows from the parameters."""
        if self.made is None:
            self.made = trial.run_baseline(experiment, rows, "constant", 1).bundle
        epochs = experiment.study.epochs
        history: list[dict[str, float]] = []
        for epoch in range(epochs):
            value = (0.6 + float(params["width"]) / 1000 - float(params["dropout"]) / 5) * (epoch + 1) / epochs
            names = ("loss", "val_loss", "val_log_loss", "val_accuracy", "val_pr_auc", "val_f1", "learning_rate")
            history.append({**dict.fromkeys(names, 1 - value), "val_auc": value + seed % 1000 / 1e6})
            if on_epoch(epoch, history[-1]):
                break
        metrics = {name: value for name, value in history[-1].items() if name.startswith("val_")}
        state = "finished" if len(history) == epochs else "pruned"
        value, best = metrics["val_auc"], len(history) - 1
        return TrialResult(state, value, metrics, tuple(history), best, 0.0, 32, (), self.made)  # type: ignore[arg-type]


@contextmanager
def measured(clock: Clock) -> Iterator[None]:
    """Without networks and pre-flight, with every part timed."""
    before = [(home, name, getattr(home, name)) for _, home, name in PARTS]
    kept = trial.run, STORY.try_models, training.load_backend
    trial.run, STORY.try_models, training.load_backend = Instant(), lambda *_: (), lambda: None
    sqlalchemy.event.listen(sqlalchemy.Engine, "begin", clock.began)
    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", clock.executed)
    for part, home, name in PARTS:
        setattr(home, name, clock.timed(part, getattr(home, name)))
    try:
        yield
    finally:
        trial.run, STORY.try_models, training.load_backend = kept
        sqlalchemy.event.remove(sqlalchemy.Engine, "begin", clock.began)
        sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", clock.executed)
        for home, name, function in before:
            setattr(home, name, function)


def run(experiment: Experiment, store: Path, clock: Clock, profile: cProfile.Profile | None) -> tuple[float, int]:
    """Seconds of the trials after the first ones, and how many those are."""
    times: list[float] = []

    def watch(event: sweep.Event) -> None:
        if event.kind == "trial_done":
            times.append(now())
            if len(times) == WARM_UP:
                clock.reset()
                if profile is not None:
                    profile.enable()
        if event.kind == "phase" and event.data["name"] == "confirm":
            if profile is not None:
                profile.disable()
            raise KeyboardInterrupt  # all that was wanted

    with suppress(KeyboardInterrupt):
        sweep.run(experiment, store=store, watch=watch)
    return times[-1] - times[WARM_UP - 1], len(times) - WARM_UP


def table(clock: Clock, seconds: float, n: int) -> str:
    """Lines for people."""
    lines = [f"{'per trial':<16}{'ms':>8}  transactions (statements)"]
    for part in dict.fromkeys(["other", *(part for part, _, _ in PARTS)]):
        counted = [
            f"{database} {clock.transactions[part, database] / n:.1f} ({count / n:.1f})"
            for (where, database), count in sorted(clock.statements.items())
            if where == part
        ]
        lines.append(f"{part:<16}{clock.seconds[part] / n * 1000:8.2f}  {', '.join(counted)}")
    totals = [
        f"{database} {sum(c for (_, where), c in clock.transactions.items() if where == database) / n:.1f}"
        for database in sorted({database for _, database in clock.statements})
    ]
    tracking = sum(clock.seconds[part] for part in ("open run", "log epoch", "end run"))
    lines.append(f"{'tracking':<16}{tracking / n * 1000:8.2f}")
    return "\n".join([*lines, f"{'all':<16}{seconds / n * 1000:8.2f}  {', '.join(totals)}"]) + "\n"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=55)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--pruner", default="none")
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--cpu", action="store_true", help="processor time, which others on the machine disturb less")
    parser.add_argument("--profile", action="store_true")
    asked = parser.parse_args()
    if asked.cpu:
        globals()["now"] = time.process_time
    clock, profile = Clock(), cProfile.Profile() if asked.profile else None
    experiment = declared(asked.trials, asked.epochs, asked.pruner, asked.sampler)
    with tempfile.TemporaryDirectory() as store, measured(clock):
        seconds, n = run(experiment, Path(store), clock, profile)
    sys.stdout.write(table(clock, seconds, n))
    if profile is not None:
        pstats.Stats(profile, stream=sys.stdout).sort_stats("tottime").print_stats(45)


if __name__ == "__main__":
    main()
