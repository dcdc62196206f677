"""Baselines and trials: each is run, logged to MLflow and told to the study, in this order.

The study says what is done. A process that dies before `Study.tell` leaves a trial that the next one runs again under
the same number, the same seed and the same MLflow run.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forge_sweep import training, trial
from forge_sweep.errors import SweepStopped, TrialFailed, TrialTaken
from forge_sweep.experiment import derived_seed
from forge_sweep.study import COST, Asked, Requeued
from forge_sweep.sweep.context import (
    BudgetOver,
    Context,
    OnEpoch,
    baseline_values,
    finish,
    finish_failed,
    finite,
    stop_if_asked,
    summary,
)
from forge_sweep.sweep.crew import Crew, forget_progress
from forge_sweep.sweep.orders import Outcome
from forge_sweep.tracking import FIRST_EPOCH, Run
from forge_sweep.training import classify
from forge_sweep.workers import Job, Worker, WorkerLost

POLL_S = 2.0
"""How often a process that has nothing to run looks after the trials of others."""

POLL_HERE_S = 0.1
"""How often a worker looks whether the others of this process have come to an end."""

FRESH_S = 5.0
"""A trial that this process made so long ago at most has no run yet: no other one can have taken it up meanwhile."""


def fit_baselines(context: Context) -> None:
    """Fit the baselines that have no score yet; one that failed is tried again by the next process.

    One that was over its time is tried again where it may take longer now.
    """
    for kind in context.experiment.baselines.kinds:
        noted = context.study.notes("baseline:").get(f"baseline:{kind}")
        if noted is None or noted.get("timeout_s", math.inf) < context.experiment.baseline_timeout_s:
            stop_if_asked(context)
            fit_baseline(context, kind)


def fit_baseline(context: Context, kind: str) -> None:
    """Fit one baseline as a child run and note its score."""
    seed = derived_seed(context.experiment.seed, "baseline", kind)
    run = context.child(f"baseline-{kind}", "baseline", {"baseline": kind, "seed": seed})
    context.tell("baseline_started", name=kind)
    try:
        result = trial.run_baseline(context.experiment, context.dataset, kind, seed)
    except Exception as error:
        failure = classify(error)
        finish_failed(run, failure)
        hint = f" ({failure.hint})" if failure.hint else ""
        context.tell("message", text=f"baseline {kind} failed: {failure.message}{hint}", severity="warning")
        if failure.failure == "time-out":
            limit = context.experiment.baseline_timeout_s
            context.study.note(f"baseline:{kind}", {"value": None, "cause": failure.message, "timeout_s": limit})
        return
    run.log_params(result.bundle.metadata["params"])
    tags = {"forge.weights_sha256": result.bundle.weights_sha256}
    figures = summary(context, Outcome.of(result))
    finish(run, "finished", "FINISHED", {**figures, "seconds": result.seconds}, tags)
    note = {"value": result.value, "metrics": finite(result.metrics), "seconds": result.seconds}
    context.study.note(f"baseline:{kind}", note)
    context.tell("baseline", name=kind, value=result.value, seconds=result.seconds)


def run_trials(context: Context, crew: Crew) -> None:
    """Run trials until the study has all of its `n_trials`, or another budget is over.

    While a process that carries the sweep does so, others may join; see `joining`.
    """
    training.settle()
    with context.budget.searching(crew.gpus_each):
        if not context.study.coordinates:
            crew.run(job(context, crew))
            return
        context.study.note(SEARCHING, True)
        crew.run(job(context, crew))
        context.study.note(SEARCHING, False)


def job(context: Context, crew: Crew) -> Job:
    """The loop of one worker: ask, run, tell, until nothing is left to do or to spend."""

    def loop(worker: Worker) -> None:
        while not worker.stopping:
            stop_if_asked(context)
            if context.budget.is_over():
                if not is_settled(context):
                    continue
                return
            asked = context.study.ask() if is_open(context) else None
            report_taken_back(context, context.study.taken_back())
            if asked is None:
                if wait_for_others(context):
                    continue
                return
            try:
                run_trial(context, crew, worker, asked)
            except BudgetOver:
                continue
            stop_if_hopeless(context)

    return loop


SEARCHING = "sweep:searching"
"""Note of a study whose trials are being run: others may join."""


def is_open(context: Context) -> bool:
    """Whether trials may still be begun: a process that joined stops when the one that carries the sweep goes on."""
    return context.study.coordinates or bool(context.study.notes(SEARCHING).get(SEARCHING))


def wait_for_others(context: Context) -> bool:
    """Wait a moment where others run the last trials: what they leave has to be run here. False where nobody does."""
    if not context.study.coordinates or not context.study.is_left_to_others():
        return False
    time.sleep(POLL_S)
    return True


def is_settled(context: Context) -> bool:
    """Whether nothing runs any more, now that a budget is over, and it is over still; else waits a moment.

    Others come to know of it within seconds. A trial that ends until then may bring the gain that a plateau lacked.
    """
    study = context.study
    if context.budget.runs_here:
        time.sleep(POLL_HERE_S)
        return False
    if not study.coordinates:
        return True
    if study.notes(SEARCHING).get(SEARCHING):  # who joined begins no other trial
        study.note(SEARCHING, False)
        if study.has_company():
            time.sleep(POLL_S)
    if study.elsewhere():
        report_taken_back(context, study.requeue())
        time.sleep(POLL_S)
        return False
    if context.budget.is_over(afresh=True):
        return True
    study.note(SEARCHING, True)
    return False


def report_taken_back(context: Context, taken: Requeued) -> None:
    """Say which trials dead processes left, and end the runs of those that were given up."""
    for number in taken.waiting:
        context.tell("message", text=f"trial {number} was cut off and runs again", severity="info")
    for number in taken.lost:
        end_lost(context, number)


def run_trial(context: Context, crew: Crew, worker: Worker, asked: Asked) -> None:
    """Run one trial as a child run and tell the study how it ended.

    Whatever goes wrong outside the training itself, the user's wish to stop included, lets the trial wait again.
    """
    run: Run | None = None
    context.budget.open(asked)
    try:
        run = open_trial(context, crew, asked)
        ended = run_opened(context, crew, worker, asked, run)
    except WorkerLost as lost:
        assert run is not None
        take_back(context, asked, run, lost)
        return
    except TrialTaken as taken:
        context.budget.settle(asked.number, counts=False)
        drop(context, run, taken)
        return
    except BaseException:
        try:
            with contextlib.suppress(TrialTaken):
                context.budget.break_off(asked.number)
        finally:
            put_back(context, asked, run)
        raise
    context.tell("trial_done", number=asked.number, params=asked.params, best=best_value(context), **ended)


def put_back(context: Context, asked: Asked, run: Run | None) -> None:
    """Let a trial wait again."""
    try:
        if run is not None:
            context.study.check_mine(asked.number)
            finish(run, "waiting", "SCHEDULED")
    except TrialTaken as taken:
        drop(context, run, taken)
    finally:  # last, since another worker may take it up at once
        context.study.put_back(asked.number)


def drop(context: Context, run: Run | None, taken: TrialTaken) -> None:
    """Leave a trial, and its run, to the process that has it by now."""
    if run is not None:
        context.tracker.drop(run)
    context.tell("message", text=f"{taken.message}; it is dropped here", severity="warning")


def take_back(context: Context, asked: Asked, run: Run, lost: WorkerLost) -> None:
    """Let a trial wait again whose worker died, or give it up where that happened too often."""
    try:
        context.study.check_mine(asked.number)
        context.budget.break_off(asked.number, died=True)
        finish(run, "waiting", "SCHEDULED")
    except TrialTaken as taken:
        drop(context, run, taken)
        return
    finally:
        again = waits_again(context, asked, lost)
    if not again:
        end_lost(context, asked.number)
        forget_progress(checkpoint_of(context, asked.number))
        return
    text = f"trial {asked.number} was lost and runs again from its last saved epoch: {lost}"
    context.tell("message", text=text, severity="warning")


def waits_again(context: Context, asked: Asked, lost: WorkerLost) -> bool:
    """Let a lost trial wait again; false where it is given up. A machine that was taken away counts as no attempt."""
    if lost.announced:
        context.study.put_back(asked.number)
        return True
    return context.study.lose(asked.number)


def run_opened(context: Context, crew: Crew, worker: Worker, asked: Asked, run: Run) -> dict[str, Any]:
    """Train, log the end, tell the study; returns how it ended."""
    account = context.budget.account(asked.number)
    on_epoch = OnEpoch(context, run, lambda epoch, metrics: report(context, asked, epoch, metrics), account)
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
    new = time.time() - asked.made < FRESH_S
    run = context.open_run(trial_name(asked.number), "trial", params, tags, new=new)
    context.tell("trial_started", number=asked.number, params=asked.params)
    return run


def report(context: Context, asked: Asked, epoch: int, metrics: Mapping[str, float]) -> bool:
    """Show an epoch and ask the study whether to prune.

    Raises:
        BudgetOver: a budget is over, and this trial would go on.
    """
    context.tell("epoch", number=asked.number, epoch=epoch + FIRST_EPOCH, metrics=metrics)
    prune = context.study.report(asked.number, epoch, metrics[context.experiment.objective.metric])
    context.budget.completed(asked.number, epoch)
    last = prune or epoch + 1 >= context.experiment.study.epochs
    if not last and context.budget.is_over():
        raise BudgetOver
    return prune


def end_scored(context: Context, asked: Asked, run: Run, result: Outcome) -> dict[str, Any]:
    """Log the summary of a finished or pruned trial, end its run, then tell the study."""
    context.study.check_mine(asked.number)
    delta = delta_vs_baseline(context, result.value)
    cost = context.budget.account(asked.number).cost
    took = {"seconds": cost.total.seconds, "cpu_seconds": cost.total.cpu_s}
    compared = {} if delta is None else {"delta_vs_baseline": delta}
    figures = {**summary(context, result), **took, **compared}
    finish(run, result.state, "FINISHED" if result.state == "finished" else "KILLED", figures, result.tags)
    best_epoch = result.best_epoch + context.first_epoch
    attrs = {"metrics": finite(result.metrics), "best_epoch": best_epoch, COST: cost.to_dict()}
    context.study.tell(asked.number, result.state, result.value, attrs=attrs)
    context.budget.settle(asked.number, result.value if result.state == "finished" else None)
    shown = {"state": result.state, "value": result.value, "delta": delta, "epochs": result.epochs}
    return {**shown, "seconds": cost.total.seconds, "metrics": attrs["metrics"]}


def end_failed(context: Context, asked: Asked, run: Run, failure: TrialFailed) -> dict[str, Any]:
    """End the run of a failed trial with its class and cause, then tell the study."""
    context.study.check_mine(asked.number)
    finish_failed(run, failure)
    attrs = {COST: context.budget.account(asked.number).cost.to_dict()}
    context.study.tell(asked.number, "failed", None, failure=failure.failure, cause=failure.message, attrs=attrs)
    context.budget.settle(asked.number, counts=False)
    return {"state": "failed", "value": None, "failure": failure.failure, "cause": failure.message}


def end_lost(context: Context, number: int) -> None:
    """End the run of a trial that the study gave up, since its process died too often."""
    row = context.study.rows()[number]
    run = context.child(trial_name(number), "trial", {}, **{"optuna.trial_number": str(number)})
    finish_failed(run, TrialFailed("lost-worker", row.cause))
    why = {"state": "failed", "value": None, "failure": row.failure, "cause": row.cause}
    context.tell("trial_done", number=number, params=row.params, best=best_value(context), **why)


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
