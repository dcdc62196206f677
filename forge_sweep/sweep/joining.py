"""Joining a sweep that another process carries: run trials of it from another shell, machine, array task or pod.

A process that joined runs trials until none is left, and leaves. It fits no baseline, confirms nothing and registers
nothing: that is up to the process that carries the sweep, `forge-sweep run`. Any of them may die at any moment.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forge_sweep import sweep, training
from forge_sweep.environment import Environment
from forge_sweep.errors import SweepStopped
from forge_sweep.experiment import Experiment
from forge_sweep.sources import Dataset
from forge_sweep.study import Study, join_study, require_packages
from forge_sweep.sweep.context import Context, Event, Interrupted, Watch, baseline_values, ignore
from forge_sweep.sweep.crew import Crew
from forge_sweep.sweep.trials import SEARCHING, best_value, run_trials
from forge_sweep.tracking import Tracker

WAIT_S = 600.0
"""How long a process waits for the sweep to be there: the tasks of an array start in any order."""

LOOK_S = 1.0
"""How often it looks."""


@dataclass(frozen=True)
class Joined:
    """What a process that joined did.

    Attributes:
        study: name of the study.
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
    stopping: Callable[[], bool] = sweep.never,
) -> Joined:
    """Run trials of a sweep that another process carries, until none is left.

    Args:
        experiment: of that sweep; ``[workers]`` holds for this process, the rest of the budget is that of the sweep.
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
    sweep.check_stores(store)  # what cannot be written or asked is refused before anything is waited for
    here = sweep.capture_environment(experiment, watch)
    dataset = sweep.load_data(experiment, watch)
    study = wait_for(experiment, dataset, store, wait_s, watch, stopping)
    if study.n_done >= study.n_trials:
        return Joined(study.name, {}, f"all {study.n_trials} trials are done")
    training.load_backend()
    with study.join(stopping):
        return run_as_worker(experiment, dataset, study, here, store, watch, stopping)


def wait_for(
    experiment: Experiment, dataset: Dataset, store: Path, wait_s: float, watch: Watch, stopping: Callable[[], bool]
) -> Study:
    """The study, once its trials are being run or are all done.

    Raises:
        SweepStopped: that was not so in time.
        Interrupted: ``stopping`` said so.
    """
    began, said, study = time.monotonic(), False, None
    while not is_ready(study := study or join_study(experiment, dataset=sweep.identity(dataset), store=store)):
        if time.monotonic() - began >= wait_s:
            raise not_there(experiment, study, wait_s)
        if not said:
            said = True
            text = f"waiting up to {wait_s:g} s for `forge-sweep run` to search the study of {experiment.name}"
            watch(Event("message", {"text": text, "severity": "info"}))
        if stopping():
            raise Interrupted
        time.sleep(LOOK_S)
    assert study is not None
    return study


def is_ready(study: Study | None) -> bool:
    """Whether trials of a study may be run, or are all done."""
    if study is None:
        return False
    notes = study.notes("sweep:")
    return bool(notes.get(SEARCHING)) or study.n_done >= study.n_trials


def not_there(experiment: Experiment, study: Study | None, wait_s: float) -> SweepStopped:
    """The refusal, with what is missing."""
    what = f"no study of {experiment.name} appeared" if study is None else f"nobody searched study {study.name}"
    return SweepStopped(
        f"{what} within {wait_s:g} s",
        hint="start `forge-sweep run` with the same experiment, FORGE_SWEEP_STORAGE (or store), or raise --wait",
    )


def run_as_worker(
    experiment: Experiment,
    dataset: Dataset,
    study: Study,
    here: Environment,
    store: Path,
    watch: Watch,
    stopping: Callable[[], bool],
) -> Joined:
    """Run trials under the parent run that the carrying process made."""
    ended = Counter[str]()

    def count(event: Event) -> None:
        if event.kind == "trial_done":
            ended[event.data["state"]] += 1
        watch(event)

    key = study.notes("sweep:")["sweep:begin"]["key"]
    tracker = Tracker(experiment.name, store, description=experiment.description, sweep=key)
    context = Context(experiment, dataset, study, tracker, here, store, key, count, stopping)
    try:
        sweep.refuse_other_store(context)
        wait_for_parent(context)
        sweep.record_environment(context, tracker.existing(key))
        about = {"total": study.n_trials, "done": study.n_done, "states": study.counts()}
        context.tell("message", text=f"joined {study.name} as process {os.getpid()}", severity="info")
        context.tell("phase", name="trials", best=best_value(context), baselines=baseline_values(context), **about)
        study.requeue()
        with Crew(context) as crew:
            run_trials(context, crew)
        deliver(context)
    finally:
        tracker.close()
    left = (
        "no trial is left to begin" if study.n_done + len(study.elsewhere()) >= study.n_trials else "the search ended"
    )
    return Joined(study.name, dict(ended), left, tracker.missing())


def deliver(context: Context) -> None:
    """Before leaving, write what waits for MLflow: the store of an array task or a pod may be gone afterwards."""
    began, said = time.monotonic(), False
    while not context.tracker.replay() and time.monotonic() - began < WAIT_S and not context.stopping():
        if not said:
            said = True
            text = f"{context.tracker.pending} writes wait for MLflow at {context.tracker.address}; waiting to leave"
            context.tell("message", text=text, severity="warning")
        time.sleep(LOOK_S)
    if context.tracker.pending:
        text = f"left with {context.tracker.pending} writes in {context.store}/journal that MLflow does not have"
        hint = "`forge-sweep reconcile` with that store, or without it, makes MLflow agree with the study"
        context.tell("message", text=f"{text}; {hint}", severity="warning")


def wait_for_parent(context: Context) -> None:
    """Wait until MLflow has the run that the trials go under: the carrying process may have begun in an outage."""
    began, said = time.monotonic(), False
    while not context.tracker.has(context.key):
        if time.monotonic() - began >= WAIT_S:
            raise SweepStopped(
                f"MLflow at {context.tracker.address} has no run of {context.study.name} after {WAIT_S:g} s",
                hint="set MLFLOW_TRACKING_URI as `forge-sweep run` has it, or look whether that server answers",
            )
        if not said:
            said = True
            text = f"waiting for MLflow at {context.tracker.address} to have the run of {context.study.name}"
            context.tell("message", text=text, severity="warning")
        if context.stopping():
            raise Interrupted
        time.sleep(LOOK_S)
