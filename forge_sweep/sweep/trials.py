"""Baselines and trials: each is run, logged to MLflow and told to the study, in this order.

A process that dies before `Study.tell` leaves a trial that the next one runs again, with the same seed and MLflow run.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Literal

from forge_sweep import training, trial
from forge_sweep.errors import SweepStopped, TrialFailed, TrialTaken
from forge_sweep.experiment import derived_seed
from forge_sweep.study import Asked, Attr, Requeued
from forge_sweep.sweep import ensemble
from forge_sweep.sweep.context import (
    BudgetOver,
    Context,
    baseline_values,
    finish,
    finish_failed,
    finite,
    rank,
    stop_if_asked,
)
from forge_sweep.sweep.jobs import Monitor, Outcome, infeasible, of_baseline
from forge_sweep.sweep.kept import keep
from forge_sweep.sweep.pool import WorkerPool, forget_progress
from forge_sweep.sweep.tuning import to_tune
from forge_sweep.tracking import Run, Status
from forge_sweep.training import FileCheckpoint, classify
from forge_sweep.workers import Job, Worker, WorkerLost

SEARCHING = "sweep:searching"  # Note of a study whose trials are being run: others may join
POLL_S = 2.0  # How often a process that has nothing to run checks the trials of others
POLL_HERE_S = 0.1  # How often a worker checks whether the others of this process have ended

FRESH_S = 5.0
"""A trial that this process made so long ago at most has no run yet: no other one can have taken it up meanwhile."""


def fit_baselines(context: Context) -> None:
    """Fit the baselines that have no score yet; one that failed is tried again by the next process.

    One that was over its time is tried again where it may take longer now.
    """
    kinds, notes = context.experiment.baselines.kinds, context.study.notes("baseline:")
    context.enter(
        "baselines", total=len(kinds) + len(to_tune(context)), done=sum(f"baseline:{k}" in notes for k in kinds)
    )
    for kind in kinds:
        noted = notes.get(f"baseline:{kind}")
        if noted is None or noted.get("timeout_s", math.inf) < context.experiment.first_look_s:
            stop_if_asked(context)
            fit_baseline(context, kind)


def fit_baseline(context: Context, kind: str) -> None:
    """Fit one baseline as a child run and note its score."""
    seed = derived_seed(context.experiment.seed, "baseline", kind)
    run = context.open_run(f"baseline-{kind}", "baseline", {"baseline": kind, "seed": seed})
    context.tell("baseline_started", name=kind)
    limit = context.experiment.first_look_s
    try:
        result = trial.run_baseline(context.experiment, context.dataset, kind, seed, timeout_s=limit)
    except Exception as error:
        failure = classify(error)
        finish_failed(run, failure)
        hint = f" ({failure.hint})" if failure.hint else ""
        context.warn(f"baseline {kind} failed: {failure.message}{hint}")
        if failure.failure == "time-out":
            context.study.note(f"baseline:{kind}", {"value": None, "cause": failure.message, "timeout_s": limit})
        return
    run.log_params(result.bundle.metadata["params"])
    outcome = of_baseline(context, result)
    if (missed := infeasible(context.experiment, outcome)) is not None:
        finish_failed(run, missed)
        context.warn(f"baseline {kind} is infeasible: {missed.message}")
        context.study.note(f"baseline:{kind}", {"value": None, "cause": missed.message, "infeasible": True})
        return
    tags = {"forge.weights_sha256": outcome.weights, **keep(context, run, outcome.predictions)}
    figures = outcome.summary(context.experiment.objective.metric, context.first_epoch)
    finish(run, "finished", "FINISHED", {**figures, "seconds": result.seconds}, tags)
    note = {"value": result.value, "metrics": finite(result.metrics), "seconds": result.seconds}
    context.study.note(f"baseline:{kind}", note)
    context.remember(kind, result.value, result.bundle)
    context.tell("baseline", name=kind, value=result.value, seconds=result.seconds)


def enter_trials(context: Context) -> None:
    """The phase of the trials begins, or goes on."""
    study = context.study
    if study.n_trials < (wanted := context.experiment.study.n_trials):
        text = f"the space has {study.n_trials} configurations: fewer trials than study.n_trials = {wanted} are run"
        context.inform(f"{text}; study.repeats = true trains them again")
    about = {"total": study.n_trials, "done": study.n_done, "states": study.counts()}
    context.enter("trials", best=best_value(context), baselines=baseline_values(context), **about)


@contextlib.contextmanager
def searching(context: Context, pool: WorkerPool) -> Iterator[Job]:
    """Search within the block: gives the loop for the workers, which ends when the study has all of its trials.

    While the process that runs the sweep searches, others may join; see `join`.
    """
    training.settle()
    with context.budget.searching(pool.gpus_each):
        if context.study.coordinates:
            context.study.note(SEARCHING, True)
        yield functools.partial(work, context, pool)
        if context.study.coordinates:
            context.study.note(SEARCHING, False)


def work(context: Context, pool: WorkerPool, worker: Worker) -> None:
    """The loop of one worker: ask, train, tell, until nothing is left to do or to spend."""
    while not worker.stopping:
        stop_if_asked(context)
        if context.budget.is_over(begins=True):
            if _wound_down(context):
                return
            continue
        # A process that joined stops when the one that runs the sweep goes on.
        is_open = context.study.coordinates or bool(context.study.notes(SEARCHING).get(SEARCHING))
        asked = context.study.ask() if is_open else None
        report_taken_back(context, context.study.taken_back())
        if asked is None:
            if not context.study.coordinates or not context.study.is_left_to_others():
                return
            time.sleep(POLL_S)  # what the others leave has to be run here
            continue
        try:
            with trained(context, pool, asked) as (checkpoint, monitor):
                seed = trial_seed(context, asked.number)
                keep = ensemble.folder_for(context, asked.number)
                monitor.outcome = pool.train(worker, asked.params, seed, checkpoint, monitor, keep=keep, needed=False)
            ensemble.tidy(context)
        except BudgetOver:
            continue
        if (streak := context.study.failing_streak()) is not None:  # the next one would fail, too
            failure, cause, numbers = streak
            listed = ", ".join(map(str, numbers))
            raise SweepStopped(f"trials {listed} failed alike ({failure}): {cause}", hint=HINTS[failure])


def _wound_down(context: Context) -> bool:
    """A budget is exhausted: wait a moment for what still runs. True once nothing does and it still is.

    Others learn of it within seconds. A trial that ends until then may bring the gain that a plateau lacked.
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
    if context.budget.is_over(afresh=True, begins=True):
        return True
    study.note(SEARCHING, True)
    return False


def report_taken_back(context: Context, taken: Requeued) -> None:
    """Say which trials dead processes left, and end the runs of those that were given up."""
    for number in taken.waiting:
        context.inform(f"trial {number} was cut off and runs again")
    for number in taken.lost:
        end_lost(context, number)


@contextlib.contextmanager
def trained(context: Context, pool: WorkerPool, asked: Asked) -> Iterator[tuple[FileCheckpoint, Monitor]]:
    """Train one trial within the block, as a child run; log its end and tell the study how it ended.

    Whatever goes wrong outside the training itself, the user's wish to stop included, lets the trial wait again. A
    failed training, a dead worker and a trial that another process has by now end here.
    """
    run: Run | None = None
    account = context.budget.open(asked)
    checkpoint = _checkpoint_of(context, asked.number)
    try:
        run = open_trial(context, pool, asked)
        monitor = Monitor(context, run, asked, account)
        try:
            yield checkpoint, monitor
        except TrialFailed as failure:
            ended = _end_failed(context, asked, run, failure)
        else:
            assert monitor.outcome is not None
            ended = _end_scored(context, asked, run, monitor.outcome)
        forget_progress(checkpoint)  # last: what is killed before the study knows the end goes on from there
    except WorkerLost as lost:
        assert run is not None
        _take_back(context, asked, run, lost)
        return
    except TrialTaken as taken:
        context.budget.settle(asked.number, counts=False)
        _drop(context, run, taken)
        return
    except BaseException:
        try:
            with contextlib.suppress(TrialTaken):
                context.budget.break_off(asked.number)
        finally:
            _put_back(context, asked, run)
        raise
    context.tell("trial_done", number=asked.number, params=asked.params, best=best_value(context), **ended)


def _put_back(context: Context, asked: Asked, run: Run | None) -> None:
    try:
        if run is not None:
            context.study.check_mine(asked.number)
            finish(run, "waiting", "SCHEDULED")
    except TrialTaken as taken:
        _drop(context, run, taken)
    finally:  # last, since another worker may take it up at once
        context.study.put_back(asked.number)


def _drop(context: Context, run: Run | None, taken: TrialTaken) -> None:
    """Leave a trial and its run to the process that took it over."""
    if run is not None:
        context.tracker.drop(run)
    context.warn(f"{taken.message}; it is dropped here")


def _take_back(context: Context, asked: Asked, run: Run, lost: WorkerLost) -> None:
    """Let a trial wait again whose worker died, or give it up where that happened too often."""
    try:
        context.study.check_mine(asked.number)
        context.budget.break_off(asked.number, died=True)
        finish(run, "waiting", "SCHEDULED")
    except TrialTaken as taken:
        _drop(context, run, taken)
        return
    finally:
        if lost.announced:  # a machine that was taken away counts as no attempt
            context.study.put_back(asked.number)
        again = lost.announced or context.study.lose(asked.number)
    if not again:
        end_lost(context, asked.number)
        forget_progress(_checkpoint_of(context, asked.number))
        return
    context.warn(f"trial {asked.number} was lost and runs again from its last saved epoch: {lost}")


def trial_seed(context: Context, number: int) -> int:
    """The seed of a trial, whenever it is trained."""
    seed: int = derived_seed(context.experiment.seed, "trial", number)
    return seed


def _checkpoint_of(context: Context, number: int) -> FileCheckpoint:
    return FileCheckpoint((context.checkpoints / f"{trial_name(number)}.npz").absolute())


def trial_name(number: int) -> str:
    """Name of a trial's run."""
    return f"trial-{number:04d}"


def open_trial(context: Context, pool: WorkerPool, asked: Asked) -> Run:
    """The run of a trial, new or found again."""
    tags = {"optuna.trial_number": str(asked.number), "forge.attempt": str(asked.attempt), **pool.tags}
    tags |= {"forge.warm_start": asked.warm} if asked.warm else {}
    params = {**asked.params, "seed": trial_seed(context, asked.number), "trial_number": asked.number}
    new = time.time() - asked.made < FRESH_S
    run = context.open_run(trial_name(asked.number), "trial", params, tags, new=new)
    context.tell("trial_started", number=asked.number, params=asked.params)
    return run


def _end_scored(context: Context, asked: Asked, run: Run, result: Outcome) -> dict[str, Any]:
    """Log the summary of a finished or pruned trial, end its run, then tell the study."""
    context.study.check_mine(asked.number)
    best_baseline = next(iter(baseline_values(context).values()), None)
    delta = None if best_baseline is None else rank(context, best_baseline) - rank(context, result.value)
    cost = context.budget.account(asked.number).cost
    took = {"seconds": cost.total.seconds, "cpu_seconds": cost.total.cpu_s}
    compared = {} if delta is None else {"delta_vs_baseline": delta}
    figures = {**result.summary(context.experiment.objective.metric, context.first_epoch), **took, **compared}
    missed = infeasible(context.experiment, result)
    why: dict[str, Any] = {} if missed is None else {"failure": missed.failure, "cause": missed.message}
    state: Literal["finished", "pruned", "failed"] = "failed" if missed else result.state
    status: Status = "FAILED" if missed else "FINISHED" if state == "finished" else "KILLED"
    kept = {f"forge.{name}": said for name, said in why.items()} if missed else keep(context, run, result.predictions)
    finish(run, state, status, figures, {**result.tags, **kept})
    best_epoch = result.best_epoch + context.first_epoch
    findings = {"findings": [asdict(each) for each in result.findings]} if result.findings else {}
    attrs = {"metrics": finite(result.metrics), "best_epoch": best_epoch, Attr.COST: cost.to_dict(), **findings}
    if result.ended_after is not None:
        attrs["ended_after"] = result.ended_after
    if result.loss is not None and math.isfinite(result.loss):
        attrs["loss"] = result.loss
    if result.measured:
        attrs["measured"] = result.measured
    excess = context.experiment.constraints.excess(result.measured)
    context.study.tell(asked.number, state, result.value, further=result.figures, attrs=attrs, excess=excess, **why)
    context.budget.settle(asked.number, result.value if state == "finished" else None, counts=not missed)
    shown = {"state": state, "value": result.value, "delta": delta, "epochs": result.epochs, **why}
    further = context.experiment.objective.names[1:]
    shown |= {"further": {name: result.figures[name] for name in further if name in result.figures}} if further else {}
    return {**shown, "seconds": cost.total.seconds, "metrics": attrs["metrics"]}


def _end_failed(context: Context, asked: Asked, run: Run, failure: TrialFailed) -> dict[str, Any]:
    context.study.check_mine(asked.number)
    finish_failed(run, failure)
    findings = {"findings": [asdict(each) for each in failure.findings]} if failure.findings else {}
    attrs = {Attr.COST: context.budget.account(asked.number).cost.to_dict(), **findings}
    why: dict[str, Any] = {"failure": failure.failure, "cause": failure.message}
    context.study.tell(asked.number, "failed", None, attrs=attrs, excess=failure.excess, **why)
    context.budget.settle(asked.number, counts=False)
    return {"state": "failed", "value": None, **why}


def end_lost(context: Context, number: int) -> None:
    """End the run of a trial that the study gave up, since its process died too often."""
    row = context.study.rows()[number]
    run = context.open_run(trial_name(number), "trial", {}, {"optuna.trial_number": str(number)})
    finish_failed(run, TrialFailed("lost-worker", row.cause))
    why = {"state": "failed", "value": None, "failure": row.failure, "cause": row.cause}
    context.tell("trial_done", number=number, params=row.params, best=best_value(context), **why)


HINTS = {
    "out-of-memory": "lower the upper ends of model.search.width, depth and batch_size",
    "diverged": "lower the upper end of model.search.learning_rate, or scale the data",
    "data": "fix the data as the cause says",
    "code": "fix the cause, then run the same command again",
    "time-out": "raise study.trial_timeout_s, or lower study.epochs and the size of the models",
    "lost-worker": "something kills the process each time: check memory (dmesg) and the scheduler's limits",
}


def best_value(context: Context) -> float | None:
    """The objective of the best finished trial so far."""
    best = context.study.best()
    return None if best is None else best.value
