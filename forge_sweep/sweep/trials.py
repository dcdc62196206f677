"""Baselines and trials: each is run, logged to MLflow and told to the study, in this order.

The study says what is done. A process that dies before `Study.tell` leaves a trial that the next one runs again under
the same number, the same seed and the same MLflow run.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from forge_sweep import trial
from forge_sweep.errors import SweepStopped, TrialFailed
from forge_sweep.experiment import derived_seed
from forge_sweep.study import Asked
from forge_sweep.sweep.context import (
    Context,
    OnEpoch,
    baseline_values,
    finish,
    finish_failed,
    finite,
    stop_if_asked,
)
from forge_sweep.sweep.crew import Crew, forget_progress
from forge_sweep.sweep.orders import Outcome
from forge_sweep.tracking import Run
from forge_sweep.training import classify, settle
from forge_sweep.workers import Job, Worker, WorkerLost


def fit_baselines(context: Context) -> None:
    """Fit the baselines that have no score yet; one that failed is tried again by the next process."""
    for kind in context.experiment.baselines.kinds:
        if f"baseline:{kind}" not in context.study.notes("baseline:"):
            stop_if_asked(context)
            fit_baseline(context, kind)


def fit_baseline(context: Context, kind: str) -> None:
    """Fit one baseline as a child run and note its score."""
    seed = derived_seed(context.experiment.seed, "baseline", kind)
    run = context.child(f"baseline-{kind}", "baseline", {"baseline": kind, "seed": seed})
    try:
        result = trial.run_baseline(context.experiment, context.dataset, kind, seed)
    except Exception as error:
        failure = classify(error)
        finish_failed(run, failure)
        context.tell("message", text=f"baseline {kind} failed: {failure.message}", severity="warning")
        return
    run.log_params(result.bundle.metadata["params"])
    run.log_metrics({**result.metrics, "seconds": result.seconds})
    run.set_tags({"forge.weights_sha256": result.bundle.weights_sha256})
    finish(run, "finished", "FINISHED")
    note = {"value": result.value, "metrics": finite(result.metrics), "seconds": result.seconds}
    context.study.note(f"baseline:{kind}", note)
    context.tell("baseline", name=kind, value=result.value, seconds=result.seconds)


def run_trials(context: Context, crew: Crew) -> None:
    """Run trials until the study has all of its `n_trials`, or the time is up."""
    settle()
    crew.run(job(context, crew))


def job(context: Context, crew: Crew) -> Job:
    """The loop of one worker: ask, run, tell, until nothing is left."""
    time_is_up = deadline(context)

    def loop(worker: Worker) -> None:
        while not worker.stopping:
            stop_if_asked(context)
            if time_is_up():
                return
            asked = context.study.ask()
            if asked is None:
                return
            run_trial(context, crew, worker, asked)
            stop_if_hopeless(context)

    return loop


def deadline(context: Context) -> Callable[[], bool]:
    """Whether the time of this command is over, from now on; said once."""
    began, said = time.monotonic(), threading.Event()
    timeout_s = context.experiment.study.timeout_s or math.inf

    def is_over() -> bool:
        over = time.monotonic() - began > timeout_s
        with context.lock:
            if over and not said.is_set():
                said.set()
                text = f"study.timeout_s = {timeout_s:g} is over: no new trial is started"
                context.tell("message", text=text, severity="warning")
        return over

    return is_over


def run_trial(context: Context, crew: Crew, worker: Worker, asked: Asked) -> None:
    """Run one trial as a child run and tell the study how it ended.

    Whatever goes wrong outside the training itself, the user's wish to stop included, lets the trial wait again.
    """
    run: Run | None = None
    try:
        run = open_trial(context, crew, asked)
        ended = run_opened(context, crew, worker, asked, run)
    except WorkerLost as lost:
        assert run is not None
        take_back(context, asked, run, lost)
        return
    except BaseException:
        try:
            if run is not None:
                finish(run, "waiting", "SCHEDULED")
        finally:  # last, since another worker may take it up at once
            context.study.put_back(asked.number)
        raise
    context.tell("trial_done", number=asked.number, best=best_value(context), **ended)


def take_back(context: Context, asked: Asked, run: Run, lost: WorkerLost) -> None:
    """Let a trial wait again whose worker died, or give it up where that happened too often."""
    try:
        finish(run, "waiting", "SCHEDULED")
    finally:
        again = context.study.lose(asked.number)
    if not again:
        end_lost(context, asked.number)
        forget_progress(checkpoint_of(context, asked.number))
        return
    text = f"trial {asked.number} was lost and runs again: {lost}"
    context.tell("message", text=text, severity="warning")


def run_opened(context: Context, crew: Crew, worker: Worker, asked: Asked, run: Run) -> dict[str, Any]:
    """Train, log the end, tell the study; returns how it ended."""
    on_epoch = OnEpoch(context, run, lambda epoch, metrics: report(context, asked, epoch, metrics))
    seed = derived_seed(context.experiment.seed, "trial", asked.number)
    checkpoint = checkpoint_of(context, asked.number)
    try:
        result = crew.train(worker, asked.params, seed, checkpoint, on_epoch)
    except TrialFailed as failure:
        if on_epoch.error is not None:
            raise on_epoch.error from None
        ended = end_failed(context, asked, run, failure)
    else:
        ended = end_scored(context, asked, run, result)
    forget_progress(checkpoint)  # last: what is killed before the study knows the end goes on from there
    return ended


def checkpoint_of(context: Context, number: int) -> Path:
    """The file that holds the progress of a trial."""
    return context.checkpoints / f"{trial_name(number)}.npz"


def trial_name(number: int) -> str:
    """Name of a trial's run."""
    return f"trial-{number:04d}"


def open_trial(context: Context, crew: Crew, asked: Asked) -> Run:
    """The run of a trial, new or found again."""
    seed = derived_seed(context.experiment.seed, "trial", asked.number)
    tags = {"optuna.trial_number": str(asked.number), "forge.attempt": str(asked.attempt), **crew.tags}
    params = {**asked.params, "seed": seed, "trial_number": asked.number}
    run = context.child(trial_name(asked.number), "trial", params, **tags)
    context.tell("trial_started", number=asked.number, params=asked.params)
    return run


def report(context: Context, asked: Asked, epoch: int, metrics: Mapping[str, float]) -> bool:
    """Show an epoch and ask the study whether to prune."""
    context.tell("epoch", number=asked.number, epoch=epoch, metrics=metrics)
    return context.study.report(asked.number, epoch, metrics[context.experiment.objective.metric])


def end_scored(context: Context, asked: Asked, run: Run, result: Outcome) -> dict[str, Any]:
    """Log the summary of a finished or pruned trial, end its run, then tell the study."""
    delta = delta_vs_baseline(context, result.value)
    summary = {"best_epoch": result.best_epoch, "epochs_run": result.epochs, "seconds": result.seconds}
    compared = {} if delta is None else {"delta_vs_baseline": delta}
    run.log_metrics({f"best_{context.experiment.objective.metric}": result.value, **summary, **compared})
    run.set_tags(result.tags)
    finish(run, result.state, "FINISHED" if result.state == "finished" else "KILLED")
    attrs = {"metrics": finite(result.metrics), "best_epoch": result.best_epoch, "seconds": result.seconds}
    context.study.tell(asked.number, result.state, result.value, attrs=attrs)
    shown = {"state": result.state, "value": result.value, "delta": delta, "epochs": result.epochs}
    return {**shown, "seconds": result.seconds, "metrics": attrs["metrics"]}


def end_failed(context: Context, asked: Asked, run: Run, failure: TrialFailed) -> dict[str, Any]:
    """End the run of a failed trial with its class and cause, then tell the study."""
    finish_failed(run, failure)
    context.study.tell(asked.number, "failed", None, failure=failure.failure, cause=failure.message)
    return {"state": "failed", "value": None, "failure": failure.failure, "cause": failure.message}


def end_lost(context: Context, number: int) -> None:
    """End the run of a trial that the study gave up, since its process died too often."""
    row = context.study.rows()[number]
    run = context.child(trial_name(number), "trial", {}, **{"optuna.trial_number": str(number)})
    finish_failed(run, TrialFailed("lost-worker", row.cause))
    why = {"state": "failed", "value": None, "failure": row.failure, "cause": row.cause}
    context.tell("trial_done", number=number, best=best_value(context), **why)


def stop_if_hopeless(context: Context) -> None:
    """Stop a sweep whose last three trials failed alike: the fourth would too."""
    streak = context.study.failing_streak()
    if streak is not None:
        failure, cause, numbers = streak
        listed = ", ".join(map(str, numbers))
        raise SweepStopped(f"trials {listed} failed alike ({failure}): {cause}", hint=HINTS[failure])


HINTS = {
    "out-of-memory": "lower the upper ends of model.search.width, depth and batch_size",
    "diverged": "lower the upper end of model.search.learning_rate, or scale the data",
    "data": "mend the data as the cause says",
    "code": "mend the cause, then run the same command again",
    "time-out": "raise study.trial_timeout_s, or lower study.epochs and the size of the models",
    "lost-worker": "something kills the process each time: look at memory (dmesg) and at the scheduler's limits",
}


def delta_vs_baseline(context: Context, value: float) -> float | None:
    """How much better than the best baseline, above 0 is better; None without a baseline."""
    best = next(iter(baseline_values(context).values()), None)
    if best is None:
        return None
    return value - best if context.experiment.direction == "maximize" else best - value


def best_value(context: Context) -> float | None:
    """The objective of the best finished trial so far."""
    best = context.study.best()
    return None if best is None else best.value
