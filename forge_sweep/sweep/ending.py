"""Whether a search goes on, and what is said and kept where a budget ended it before its last trial."""

from __future__ import annotations

import shutil

from forge_sweep.errors import SweepStopped
from forge_sweep.experiment import Experiment
from forge_sweep.study import StudyView
from forge_sweep.sweep.context import Context
from forge_sweep.sweep.trials import trial_name


def goes_on(experiment: Experiment, study: StudyView) -> bool:
    """Whether there are trials left to run, and something to spend on them."""
    limits = experiment.study.model_dump()
    return study.n_done < experiment.study.n_trials and study.over(limits) is None


def why_over(context: Context) -> str:
    """Why the search is over, as the end of a sentence about it; "" where it is not."""
    study = context.study
    if study.n_done >= study.n_trials:
        return f": {study.n_done} trials are done"
    over = study.over(context.experiment.study.model_dump())
    return f" with {study.n_done} of {study.n_trials} trials: {over.text}; raise it to go on" if over else ""


def refuse_nothing_finished(context: Context) -> None:
    """A budget that ends the search before a trial finished leaves nothing to confirm: it was too small."""
    over, study = context.budget.ended_by(), context.study
    if over is None or study.best() is not None:
        return
    rows = [row for row in study.rows() if row.cost is not None]
    costs = [
        f"trial {row.number} took {row.cost.total.words()} for {row.epochs} epochs" for row in rows[:3] if row.cost
    ]
    raise SweepStopped(
        f"{over.text}, and no trial finished: {'; '.join(costs) or 'none was begun'}",
        hint=f"raise {over.key} and run again, which goes on from here (a trial has up to "
        f"{context.experiment.study.epochs} epochs), or lower the upper ends of [model.search]",
    )


def clear_checkpoints(context: Context) -> None:
    """Remove what a complete sweep needs no more; trials that wait for a larger budget keep what is theirs."""
    waiting = tuple(trial_name(row.number) for row in context.study.rows() if row.state == "waiting")
    for path in context.checkpoints.glob("*") if waiting else [context.checkpoints]:
        if not (waiting and path.name.lstrip(".").startswith(waiting)):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def ended_by(context: Context) -> str:
    """The key of the budget that ended the search."""
    over = context.budget.ended_by()
    return "study.n_trials" if over is None else over.key


def cut_short(context: Context) -> str:
    """A sentence about the budget that ended the search before its ``n_trials``; "" where none did."""
    over, study = context.budget.ended_by(), context.study
    if over is None:
        return ""
    return f" The search ended with {study.n_done} of {study.n_trials} trials: {over.text}."
