"""Joining a sweep that another process runs: search it from another shell, machine, array task or pod.

It fits no baseline, confirms nothing and registers nothing: that is up to `forge-sweep run`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forge_sweep import training
from forge_sweep.errors import SweepStopped
from forge_sweep.experiment import Experiment
from forge_sweep.sources import Dataset
from forge_sweep.study import Study, join_study, require_packages
from forge_sweep.sweep.context import Context, Event, Interrupted, Watch, ignore, message
from forge_sweep.sweep.pool import WorkerPool
from forge_sweep.sweep.reconcile import take_place
from forge_sweep.sweep.run import capture_environment, check_stores, identity, load_data, record_environment
from forge_sweep.sweep.trials import SEARCHING, enter_trials, searching
from forge_sweep.tracking import Tracker

WAIT_S = 600.0  # How long a process waits for the sweep to be there: the tasks of an array start in any order
CHECK_S = 1.0  # How often it checks


@dataclass(frozen=True)
class Joined:
    """What a process that joined did.

    Attributes:
        trials: number of trials that it ended, by state.
        left: why it left, in words.
        missing: what MLflow lacks of all that was written, and what to do; "" where it lacks nothing.
    """

    study: str
    trials: dict[str, int]
    left: str
    missing: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def join(
    experiment: Experiment,
    *,
    store: Path = Path("mlruns"),
    wait_s: float = WAIT_S,
    watch: Watch = ignore,
    stopping: Callable[[], bool] = lambda: False,
) -> Joined:
    """Run trials of a sweep that another process runs, until none is left.

    Args:
        experiment: of that sweep; only ``[workers]`` holds for this process alone.
        store: folder of the embedded stores, of arrays and of what waits for MLflow.
        wait_s: how long to wait for the sweep to be there and to search.
        watch: told of every event.
        stopping: asked after every epoch; true puts the running trials back and leaves.

    Raises:
        ResumeRefused: the experiment or its data differ from those that the sweep was begun with.
        InputError: its runs are in another MLflow store.
        SweepStopped: no such sweep was there in time, or three trials in a row failed alike.
        Interrupted: ``stopping`` said so.
    """
    require_packages(experiment)
    training.select_backend(experiment.backend, experiment.deterministic)
    check_stores(store)  # what cannot be written or asked is refused before anything is waited for
    here = capture_environment(experiment, watch)
    dataset = load_data(experiment, watch)
    study = wait_for(experiment, dataset, store, wait_s, watch, stopping)
    if study.n_done >= study.n_trials:
        return Joined(study.name, {}, f"all {study.n_trials} trials are done")
    training.load_backend()
    ended = Counter[str]()

    def count(event: Event) -> None:
        if event.kind == "trial_done":
            ended[event.data["state"]] += 1
        watch(event)

    key = study.notes("sweep:")["sweep:begin"]["key"]
    with study.join(stopping):
        with Tracker(experiment.name, store, description=experiment.description, sweep=key) as tracker:
            context = Context(experiment, dataset, study, tracker, here, store, key, count, stopping)
            take_place(context)
            _wait_for_parent(context)
            record_environment(context, tracker.existing(key))
            context.inform(f"joined {study.name} as process {os.getpid()}")
            enter_trials(context)
            study.requeue()
            with WorkerPool(context) as pool, searching(context, pool) as work:
                pool.run(work)
            _deliver(context)
        none_left = study.n_done + len(study.elsewhere()) >= study.n_trials
        left = "no trial is left to begin" if none_left else "the search ended"
        return Joined(study.name, dict(ended), left, tracker.missing())


def wait_for(
    experiment: Experiment, dataset: Dataset, store: Path, wait_s: float, watch: Watch, stopping: Callable[[], bool]
) -> Study:
    """The study, once its trials are being run or are all done."""
    study: Study | None = None

    def is_ready() -> bool:
        nonlocal study
        study = study or join_study(experiment, dataset=identity(dataset), store=store)
        return study is not None and (bool(study.notes("sweep:").get(SEARCHING)) or study.n_done >= study.n_trials)

    def say() -> None:
        message(watch, f"waiting up to {wait_s:g} s for `forge-sweep run` to search the study of {experiment.name}")

    if not _wait(is_ready, wait_s, stopping, say):
        raise SweepStopped(
            f"no process searched study {study.name} within {wait_s:g} s"
            if study
            else f"no study of {experiment.name} appeared within {wait_s:g} s",
            hint="start `forge-sweep run` with the same experiment, FORGE_SWEEP_STORAGE (or store), or raise --wait",
        )
    assert study is not None
    return study


def _wait(ready: Callable[[], bool], limit_s: float, stopping: Callable[[], bool], say: Callable[[], None]) -> bool:
    """Wait until it is so, and say once that this waits; false where it was not so in time."""
    began, said = time.monotonic(), False
    while not ready():
        if time.monotonic() - began >= limit_s:
            return False
        if not said:
            said = True
            say()
        if stopping():
            raise Interrupted
        time.sleep(CHECK_S)
    return True


def _wait_for_parent(context: Context) -> None:
    """The process that runs the sweep may have begun in an outage."""
    where = f"MLflow at {context.tracker.address}"

    def say() -> None:
        context.warn(f"waiting for {where} to have the run of {context.study.name}")

    if not _wait(lambda: context.tracker.has(context.key), WAIT_S, context.stopping, say):
        raise SweepStopped(
            f"{where} has no run of {context.study.name} after {WAIT_S:g} s",
            hint="set MLFLOW_TRACKING_URI as `forge-sweep run` has it, or check whether that server answers",
        )


def _deliver(context: Context) -> None:
    """Before leaving, write what waits for MLflow: the store of an array task or a pod may be gone afterwards."""
    tracker = context.tracker

    def say() -> None:
        context.warn(f"{tracker.pending} writes wait for MLflow at {tracker.address}; waiting to leave")

    with contextlib.suppress(Interrupted):
        _wait(tracker.replay, WAIT_S, context.stopping, say)
    if tracker.pending:
        context.warn(
            f"left with {tracker.pending} writes in {context.store}/journal that MLflow does not have; `forge-sweep "
            "reconcile` with that store, or without it, makes MLflow agree with the study"
        )
