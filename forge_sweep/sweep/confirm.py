"""Confirmation: the best configurations again over several seeds, so that luck with one seed does not win.

The best baseline is confirmed beside the networks: choosing a network by its best of many trials and a tree by its only
fit would compare a maximum with a mean (see Bouthillier et al. 2021, "Accounting for variance in machine learning
benchmarks").
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forge_sweep import trial
from forge_sweep.errors import SweepStopped, TrialFailed
from forge_sweep.experiment import Direction, Params, derived_seed
from forge_sweep.study import TrialRow
from forge_sweep.sweep.context import (
    Context,
    OnEpoch,
    baseline_values,
    finish,
    finish_failed,
    finite,
    rank,
    stop_if_asked,
    summary,
)
from forge_sweep.sweep.crew import Crew, forget_progress
from forge_sweep.sweep.orders import Outcome
from forge_sweep.tracking import Run
from forge_sweep.training import classify
from forge_sweep.workers import Worker, WorkerLost, WorkerUnfit

ATTEMPTS = 3
"""A training whose process died this often has failed, as in the search."""


@dataclass(frozen=True)
class Candidate:
    """A configuration to confirm.

    Attributes:
        label: ``0007`` for trial 7, or the kind of a baseline.
        searched: its objective in the search.
        params: hyperparameters of a network; empty for a baseline.
        baseline: kind of a baseline; empty for a network.
    """

    label: str
    searched: float
    params: Params
    baseline: str = ""

    @property
    def about(self) -> Params:
        """What its runs have as params."""
        if self.baseline:
            return {"baseline": self.baseline}
        return {**self.params, "trial_number": int(self.label)}

    @property
    def words(self) -> str:
        """What people call it."""
        return self.baseline or f"trial {int(self.label)}"


@dataclass(frozen=True)
class Confirmed:
    """A candidate with its objective for every seed.

    Attributes:
        candidate: what was trained.
        values: its objective for every seed.
        seeds: the numbers of the seeds.
        direction: of the objective.
        epochs: the most epochs that one of the trainings could choose among; 1 for a baseline.
    """

    candidate: Candidate
    values: tuple[float, ...]
    seeds: tuple[int, ...]
    direction: Direction
    epochs: int = 1

    @property
    def mean(self) -> float:
        """Mean objective over the seeds."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """Sample standard deviation over the seeds; 0 for one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    @property
    def typical(self) -> int:
        """The seed of the median objective, of two the worse: it stands for the configuration without a lucky draw."""
        return typical_seed(self.values, self.direction, self.seeds)

    @property
    def name(self) -> str:
        """Name of the run, and of the folder, of the typical seed."""
        return confirm_name(self.candidate.label, self.typical)

    def figures(self) -> dict[str, Any]:
        """For notes, tags and tables."""
        return {
            "label": self.candidate.label,
            "words": self.candidate.words,
            "baseline": self.candidate.baseline,
            "params": self.candidate.params,
            "searched": self.candidate.searched,
            "mean": self.mean,
            "spread": self.spread,
            "values": list(self.values),
            "gap": self.mean - self.candidate.searched,
        }


def typical_seed(values: tuple[float, ...], direction: Direction, seeds: tuple[int, ...] = ()) -> int:
    """The seed of the median objective, of two the worse; seeds count from 1 by default."""
    median = statistics.median_low if direction == "maximize" else statistics.median_high
    return (seeds or tuple(range(1, len(values) + 1)))[values.index(median(values))]


def candidates(context: Context) -> tuple[Candidate, ...]:
    """The top k finished trials and the best baseline.

    Raises:
        SweepStopped: there is neither.
    """
    finished = [
        row for row in context.study.rows() if row.state == "finished" and row.value is not None and not row.imported
    ]
    finished.sort(key=lambda row: (rank(context, row.value or 0.0), row.number))
    distinct: dict[str, TrialRow] = {}
    for row in finished:
        distinct.setdefault(repr(sorted(row.params.items())), row)
    best = list(distinct.values())[: context.experiment.confirm.top]
    top = [Candidate(f"{row.number:04d}", row.value or 0.0, row.params) for row in best]
    baseline = [Candidate(kind, value, {}, kind) for kind, value in list(baseline_values(context).items())[:1]]
    if not top and not baseline:
        raise SweepStopped(
            "no trial finished and no baseline has a score", hint="see `forge-sweep trials` for the cause of each"
        )
    return (*top, *baseline)


def confirm(context: Context, crew: Crew) -> tuple[Confirmed, ...]:
    """Run every candidate with every seed; the best mean comes first.

    A configuration that fails with one of the seeds is left out: in production it would fail as often.
    """
    chosen, seeds = candidates(context), tuple(range(1, context.experiment.confirm.seeds + 1))
    context.tell("confirming", runs=len(chosen) * len(seeds))
    found = run_all(context, crew, [(candidate, s) for candidate in chosen for s in seeds])
    confirmed = []
    for candidate in chosen:
        values = [found[candidate.label, s] for s in seeds]
        kept = tuple(value for value in values if value is not None)
        if len(kept) < len(values):
            context.tell("message", text=f"{candidate.words} failed under another seed; left out", severity="warning")
            continue
        epochs = 1 if candidate.baseline else most_epochs(context, candidate)
        confirmed.append(Confirmed(candidate, kept, seeds, context.experiment.direction, epochs))
    if not confirmed:
        raise SweepStopped("every candidate failed under another seed", hint="look at forge.cause of the confirm runs")
    confirmed.sort(key=lambda c: (rank(context, c.mean), not c.candidate.baseline))
    return tuple(confirmed)


def most_epochs(context: Context, candidate: Candidate) -> int:
    """The most epochs of one of its trainings; all of them where an older version did not note it."""
    notes = context.study.notes(f"confirm:{candidate.label}:")
    limit = context.experiment.study.epochs
    return max((int(note.get("epochs", limit)) for note in notes.values()), default=limit)


def confirm_name(label: str, s: int) -> str:
    """Name of the run of a candidate with one seed."""
    return f"confirm-{label}-s{s}"


def run_all(context: Context, crew: Crew, todo: list[tuple[Candidate, int]]) -> dict[tuple[str, int], float | None]:
    """The objective of every candidate with every seed, by label and seed; None where it failed."""
    left, found = deque(todo), dict[tuple[str, int], float | None]()

    def job(worker: Worker) -> None:
        while left and not worker.stopping:
            try:
                candidate, s = left.popleft()
            except IndexError:  # another worker took the last one
                return
            try:
                found[candidate.label, s] = confirm_one(context, crew, worker, candidate, s)
            except WorkerUnfit:
                left.append((candidate, s))
                raise

    crew.run(job)
    return found


def confirm_one(context: Context, crew: Crew, worker: Worker, candidate: Candidate, s: int) -> float | None:
    """Train one candidate with one seed unless that is done, and keep its bundle until the choice.

    Returns:
        The objective, or None where it failed. Only a divergence is noted for good, since it would come again; what may
        have had a passing cause (a full disk, no memory) is tried again by the next process.
    """
    name, key = confirm_name(candidate.label, s), f"confirm:{candidate.label}:{s}"
    note = context.study.notes("confirm:").get(key)
    if note is not None and (note["value"] is None or bundle_folder(context, name).is_dir()):
        context.tell("confirm", name=name, words=candidate.words, seed=s, value=note["value"])
        return None if note["value"] is None else float(note["value"])
    stop_if_asked(context)
    context.tell("confirm_started", name=name, words=candidate.words, seed=s)
    seed = derived_seed(context.experiment.seed, "confirm", candidate.label, s)
    run = context.child(
        name,
        "confirm",
        {**candidate.about, "seed": seed, "confirm_seed": s},
        **{"forge.confirms": candidate.words, **({} if candidate.baseline else crew.tags)},
    )
    try:
        result = train(context, crew, worker, candidate, seed, run, name)
    except TrialFailed as failure:
        finish_failed(run, failure)
        if failure.failure == "diverged":
            context.study.note(key, {"value": None, "cause": failure.message})
        forget_progress(progress_of(bundle_folder(context, name)))
        return None
    except BaseException:
        finish(run, "interrupted", "KILLED")
        raise
    context.study.note(key, {"value": result.value, "metrics": finite(result.metrics), "epochs": result.epochs})
    forget_progress(progress_of(bundle_folder(context, name)))
    context.tell("confirm", name=name, words=candidate.words, seed=s, value=result.value)
    return result.value


def train(
    context: Context, crew: Crew, worker: Worker, candidate: Candidate, seed: int, run: Run, name: str
) -> Outcome:
    """Train a network or a tree, keep its bundle, and end its run; nothing prunes it."""
    folder = bundle_folder(context, name)
    if candidate.baseline:
        result = train_baseline(context, candidate.baseline, seed, folder)
    else:
        result = train_network(context, crew, worker, candidate, seed, run, folder)
    figures = {**summary(context, result), "seconds": result.seconds, "threshold": result.threshold}
    finish(run, "finished", "FINISHED", figures, result.tags)
    return result


def train_baseline(context: Context, kind: str, seed: int, folder: Path) -> Outcome:
    """Fit a tree, in this process, and keep its bundle."""
    try:
        result = trial.run_baseline(context.experiment, context.dataset, kind, seed)
    except Exception as error:
        raise classify(error) from error
    result.bundle.save(folder, context.dataset.train.features)
    return Outcome.of(result)


def train_network(
    context: Context, crew: Crew, worker: Worker, candidate: Candidate, seed: int, run: Run, folder: Path
) -> Outcome:
    """Train a network on a worker, which keeps the bundle; anew where the worker dies."""
    checkpoint = progress_of(folder)
    died = 0
    while died < ATTEMPTS:
        on_epoch = OnEpoch(context, run, lambda epoch, metrics: False)
        try:
            return crew.train(worker, candidate.params, seed, checkpoint, on_epoch, keep=folder)
        except TrialFailed:
            if on_epoch.error is not None:
                raise on_epoch.error from None
            raise
        except WorkerLost as lost:
            why, died = str(lost), died + (not lost.announced)
            context.tell("message", text=f"{folder.name} was lost and runs again: {why}", severity="warning")
    raise TrialFailed("lost-worker", f"the process ended {ATTEMPTS} times before the training did: {why}")


def progress_of(folder: Path) -> Path:
    """The file that holds the progress of a training until its bundle is in the folder and noted."""
    return folder.with_name(f"{folder.name}.npz")


def bundle_folder(context: Context, name: str) -> Path:
    """Where the bundle of a confirmed candidate waits."""
    return context.checkpoints / name
