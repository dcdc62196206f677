"""Baselines and trials: each is run, logged to MLflow and told to the study, in this order.

The study says what is done. A process that dies before `Study.tell` leaves a trial that the next one runs again under
the same number, the same seed and the same MLflow run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from forge_sweep import trial, workers
from forge_sweep.errors import SweepStopped, TrialFailed
from forge_sweep.study import Asked
from forge_sweep.sweep.context import Context, Interrupted, seed_of
from forge_sweep.tracking import Run, Status
from forge_sweep.training import classify, release, settle
from forge_sweep.trial import TrialResult


def fit_baselines(context: Context) -> dict[str, float]:
    """Fit the baselines that are not fitted yet; returns the objective of each that could be."""
    for kind in context.experiment.baselines.kinds:
        if f"baseline:{kind}" not in context.study.notes("baseline:"):
            stop_if_asked(context)
            fit_baseline(context, kind)
    return baseline_values(context)


def baseline_values(context: Context) -> dict[str, float]:
    """The objective of every fitted baseline, the best one first."""
    notes = context.study.notes("baseline:")
    values = {
        name.removeprefix("baseline:"): note["value"] for name, note in notes.items() if note["value"] is not None
    }
    wanted = [kind for kind in context.experiment.baselines.kinds if kind in values]
    return {kind: values[kind] for kind in sorted(wanted, key=lambda kind: rank(context, values[kind]))}


def fit_baseline(context: Context, kind: str) -> None:
    """Fit one baseline as a child run and note its score, or why it has none."""
    seed = seed_of(context.experiment.seed, "baseline", kind)
    run = context.child(f"baseline-{kind}", "baseline", {"baseline": kind, "seed": seed})
    try:
        result = trial.run_baseline(context.experiment, context.dataset, kind, seed)
    except Exception as error:
        failure = classify(error)
        finish_failed(run, failure)
        context.study.note(f"baseline:{kind}", {"value": None, "metrics": {}, "cause": failure.message})
        context.tell("message", text=f"baseline {kind} failed: {failure.message}", severity="warning")
        return
    run.log_params(result.bundle.metadata["params"])
    run.log_metrics({**result.metrics, "seconds": result.seconds})
    finish(run, "finished", "FINISHED")
    value = None if math.isnan(result.value) else result.value
    context.study.note(
        f"baseline:{kind}", {"value": value, "metrics": finite(result.metrics), "seconds": result.seconds}
    )
    context.tell("baseline", name=kind, value=value, seconds=result.seconds)


def run_trials(context: Context) -> None:
    """Run trials until the study has all of its `n_trials`, or the time is up."""
    settle()
    workers.make(context.experiment.workers).run(job(context))


def job(context: Context) -> Callable[[str], None]:
    """The loop of one worker: ask, run, tell, until nothing is left."""
    began = time.monotonic()
    timeout_s = context.experiment.study.timeout_s or math.inf

    def loop(worker_id: str) -> None:
        while True:
            stop_if_asked(context)
            if time.monotonic() - began > timeout_s:
                context.tell(
                    "message",
                    text=f"study.timeout_s = {timeout_s:g} is over: no new trial is started",
                    severity="warning",
                )
                return
            asked = context.study.ask()
            if asked is None:
                return
            run_trial(context, asked)
            release()
            stop_if_hopeless(context)

    return loop


def run_trial(context: Context, asked: Asked) -> None:
    """Run one trial as a child run and tell the study how it ended."""
    seed = seed_of(context.experiment.seed, "trial", asked.number)
    name = f"trial-{asked.number:04d}"
    tags = {"optuna.trial_number": str(asked.number), "forge.attempt": str(asked.attempt)}
    run = context.child(name, "trial", {**asked.params, "seed": seed, "trial_number": asked.number}, **tags)
    context.tell("trial_started", number=asked.number, params=asked.params)
    checkpoint = context.checkpoints / f"{name}.keras"
    on_epoch = OnTrialEpoch(context, asked.number, run)
    try:
        result = trial.run(
            context.experiment,
            context.dataset,
            asked.params,
            seed,
            on_epoch,
            checkpoint=checkpoint,
            deadline_s=context.experiment.study.trial_timeout_s,
        )
    except TrialFailed as failure:
        if on_epoch.error is not None:
            put_back(context, asked, run)
            raise on_epoch.error from None
        end_failed(context, asked, run, failure)
    except BaseException:
        put_back(context, asked, run)
        raise
    else:
        end_scored(context, asked, run, result)
    finally:
        run.flush()
        checkpoint.unlink(missing_ok=True)


class OnTrialEpoch:
    """What happens after each epoch of a trial; keeps an error of its own apart from errors of the trial."""

    def __init__(self, context: Context, number: int, run: Run) -> None:
        self.context = context
        self.number = number
        self.run = run
        self.error: Exception | None = None

    def __call__(self, epoch: int, metrics: dict[str, float]) -> bool:
        """Log the epoch and ask the study whether to prune."""
        try:
            stop_if_asked(self.context)
            self.run.log_epoch(epoch, metrics)
            self.context.tell("epoch", number=self.number, epoch=epoch, metrics=metrics)
            return self.context.study.report(self.number, epoch, metrics[self.context.experiment.objective.metric])
        except Exception as error:
            self.error = error
            raise


def end_scored(context: Context, asked: Asked, run: Run, result: TrialResult) -> None:
    """Log the summary of a finished or pruned trial, end its run, then tell the study."""
    objective = context.experiment.objective.metric
    delta = delta_vs_baseline(context, result.value)
    run.log_metrics(
        {
            f"best_{objective}": result.value,
            "best_epoch": result.best_epoch,
            "epochs_run": len(result.history),
            "seconds": result.seconds,
            **({} if delta is None else {"delta_vs_baseline": delta}),
        }
    )
    run.set_tags({"forge.events": "; ".join(result.events)} if result.events else {})
    finish(run, result.state, "FINISHED" if result.state == "finished" else "KILLED")
    attrs = {
        "metrics": finite(result.metrics),
        "epochs": len(result.history),
        "best_epoch": result.best_epoch,
        "seconds": result.seconds,
    }
    context.study.tell(asked.number, result.state, result.value, attrs=attrs)
    context.tell(
        "trial_done",
        number=asked.number,
        state=result.state,
        value=result.value,
        delta=delta,
        best=best_value(context),
        **attrs,
    )


def end_failed(context: Context, asked: Asked, run: Run, failure: TrialFailed) -> None:
    """End the run of a failed trial with its class and cause, then tell the study."""
    finish_failed(run, failure)
    context.study.tell(asked.number, "failed", None, failure=failure.failure, cause=failure.message, attrs={})
    why = {"failure": failure.failure, "cause": failure.message}
    context.tell("trial_done", number=asked.number, state="failed", value=None, best=best_value(context), **why)


def put_back(context: Context, asked: Asked, run: Run) -> None:
    """Queue an interrupted trial again, in MLflow as in the study."""
    finish(run, "waiting", "SCHEDULED")
    context.study.put_back(asked.number)


def finish(run: Run, state: str, status: Status) -> None:
    """End a run with our own state beside MLflow's status."""
    run.set_tags({"forge.state": state})
    run.finish(status)


def finish_failed(run: Run, failure: TrialFailed) -> None:
    """End a run as failed, saying why."""
    run.set_tags({"forge.failure": failure.failure, "forge.cause": failure.message})
    finish(run, "failed", "FAILED")


def stop_if_asked(context: Context) -> None:
    """Leave the sweep where the user asked to."""
    if context.stopping():
        raise Interrupted


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


def rank(context: Context, value: float) -> float:
    """A key that sorts the best objective first."""
    return -value if context.experiment.direction == "maximize" else value


def finite(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics that JSON can hold."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
