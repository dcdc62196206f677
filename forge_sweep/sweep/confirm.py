"""Confirmation: the best configurations again over several seeds, so that luck with one seed does not win.

The best baseline is confirmed beside the networks: the best of many trials against a tree's only fit would compare a
maximum with a mean (see Bouthillier et al. 2021, "Accounting for variance in machine learning benchmarks").
"""

from __future__ import annotations

import contextlib
import io
import math
import statistics
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from forge_sweep import trial
from forge_sweep.bundle import Bundle
from forge_sweep.errors import SweepStopped, TrialFailed
from forge_sweep.experiment import Params, derived_seed
from forge_sweep.study import END_S, TrialRow, key_of
from forge_sweep.study.pareto import by_rule, turned
from forge_sweep.sweep.context import Context, baseline_values, finish, finish_failed, finite, rank, stop_if_asked
from forge_sweep.sweep.jobs import Monitor, Outcome, infeasible, of_baseline
from forge_sweep.sweep.kept import keep
from forge_sweep.sweep.pool import WorkerPool, forget_progress
from forge_sweep.sweep.tuning import configuration
from forge_sweep.task import Direction
from forge_sweep.task.words import figure
from forge_sweep.tracking import Run
from forge_sweep.training import FileCheckpoint, classify
from forge_sweep.workers import Worker, WorkerUnfit


@dataclass(frozen=True)
class Contender:
    """A configuration to confirm: a network's, or a kind of baseline, whose params are those of tuned models."""

    label: str  # ``0007`` for trial 7, or the kind of a baseline
    searched: float  # its objective in the search
    params: Params
    baseline: str = ""  # its kind; empty for a network
    epochs: int | None = None  # after which its trial was ended, for the time of the whole sweep

    @property
    def about(self) -> Params:
        """What its runs have as params."""
        if self.baseline:
            return {"baseline": self.baseline, **self.params}
        return {**self.params, "trial_number": int(self.label)}

    @property
    def words(self) -> str:
        """What people call it."""
        return self.baseline or f"trial {int(self.label)}"


@dataclass(frozen=True)
class Confirmed:
    """A contender with its objective for every seed."""

    contender: Contender
    values: tuple[float, ...]
    seeds: tuple[int, ...]
    direction: Direction
    epochs: int = 1  # the most that one of the trainings could choose among; 1 for a baseline
    further: dict[str, float] = field(default_factory=dict)  # means of the other objectives of several, by name

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
        return confirm_name(self.contender.label, self.typical)

    def figures(self) -> dict[str, Any]:
        """For notes, tags and tables."""
        return {
            "label": self.contender.label,
            "words": self.contender.words,
            "baseline": self.contender.baseline,
            "params": self.contender.params,
            "searched": self.contender.searched,
            "mean": self.mean,
            "spread": self.spread,
            "values": list(self.values),
            "gap": self.mean - self.contender.searched,
            **({"further": self.further} if self.further else {}),
        }


def typical_seed(values: tuple[float, ...], direction: Direction, seeds: tuple[int, ...] = ()) -> int:
    """The seed of the median objective, of two the worse; seeds count from 1 by default."""
    median = statistics.median_low if direction == "maximize" else statistics.median_high
    return (seeds or tuple(range(1, len(values) + 1)))[values.index(median(values))]


def _sizes(context: Context) -> tuple[int, int]:
    """How many configurations are confirmed, and with how many seeds: fewer where ``study.total_s`` leaves no time.

    Noted, so that a confirmation that was cut off goes on as it began.
    """
    confirm, limit = context.experiment.confirm, context.experiment.study.total_s
    top, seeds = confirm.top, confirm.seeds
    if limit is None:
        return top, seeds
    key = f"sizes:{context.study.n_done}:{top}x{seeds}:{limit:g}"
    if (noted := context.study.notes("sizes:").get(key)) is not None:
        return noted["top"], noted["seeds"]
    context.budget.is_over(afresh=True, begins=True)
    left, wanted = limit - context.budget.total_s - END_S, context.study.confirm_s(top, seeds)
    top, seeds = context.study.confirmable(top, seeds, left)
    if (top, seeds) != (confirm.top, confirm.seeds):
        context.warn(
            f"study.total_s = {limit:g}: {max(left, 0.0):.0f} s are left to confirm, and {confirm.top} configurations "
            f"with {confirm.seeds} seeds each would take about {wanted:.0f} s; confirmed are {top} with {seeds}"
        )
    context.study.note(key, {"top": top, "seeds": seeds})
    return top, seeds


def _contenders(context: Context, most: int) -> tuple[Contender, ...]:
    """The ``most`` best finished trials, of several objectives those by the rule, and the best baseline."""
    ranked, front = context.study.ranked(), context.study.front()
    if front is not None:
        ranked.sort(key=lambda row: front.order.index(row.number))
    distinct: dict[str, TrialRow] = {}
    for row in ranked:
        distinct.setdefault(key_of(row.params), row)
    best = list(distinct.values())[:most]
    top = [
        Contender(f"{row.number:04d}", row.value or 0.0, row.params, epochs=row.attrs.get("ended_after"))
        for row in best
    ]
    notes, known = context.study.notes("baseline:"), list(baseline_values(context).items())[:1]
    baseline = [Contender(kind, value, configuration(notes, kind) or {}, kind) for kind, value in known]
    if not top and not baseline:
        above = sum(row.failure == "infeasible" for row in context.study.rows())
        said = f"; {above} trials were infeasible: their models are above a limit of [constraints]" if above else ""
        raise SweepStopped(
            f"no trial finished and no baseline has a score{said}",
            hint=("raise the limits with --fork, or search for smaller models; " if above else "")
            + "see `forge-sweep trials` for the cause of each",
        )
    return (*top, *baseline)


class Confirmation:
    """Runs every contender with every seed, and keeps the bundles until the choice. Its workers share it."""

    def __init__(self, context: Context, pool: WorkerPool) -> None:
        self.context = context
        self.pool = pool
        top, seeds = _sizes(context)
        self.contenders = _contenders(context, top)
        self.seeds = tuple(range(1, seeds + 1))
        self._left = deque((contender, s) for contender in self.contenders for s in self.seeds)
        self._found: dict[tuple[str, int], float | None] = {}
        self._figures: dict[tuple[str, int], dict[str, float]] = {}
        self._why: dict[str, str] = {}  # it failed under another seed, by label
        context.tell("confirming", runs=len(self._left))

    def work(self, worker: Worker) -> None:
        """The loop of one worker: train what is left."""
        while self._left and not worker.stopping:
            try:
                contender, s = self._left.popleft()
            except IndexError:  # another worker took the last one
                return
            folder = bundle_folder(self.context, confirm_name(contender.label, s))
            seed = derived_seed(self.context.experiment.seed, "confirm", contender.label, s)
            try:
                if self._is_done(contender, s):
                    continue
                with self._trained(contender, s, seed, folder) as (checkpoint, monitor):
                    if contender.baseline:
                        monitor.outcome = _train_baseline(self.context, contender, seed, folder)
                        continue
                    for attempt in self.pool.attempts(folder.name):
                        with attempt:
                            monitor.outcome = self.pool.train(
                                worker, contender.params, seed, checkpoint, monitor, keep=folder
                            )
            except WorkerUnfit:
                self._left.append((contender, s))
                raise

    def _is_done(self, contender: Contender, s: int) -> bool:
        name = confirm_name(contender.label, s)
        note = self.context.study.notes("confirm:").get(f"confirm:{contender.label}:{s}")
        if note is None or (note["value"] is not None and not _is_kept(self.context, name)):
            return False
        self._found[contender.label, s] = None if note["value"] is None else float(note["value"])
        self._figures[contender.label, s] = {**note.get("metrics", {}), **note.get("measured", {})}
        if "cause" in note:
            self._why[contender.label] = note["cause"]
        self.context.tell("confirm", name=name, words=contender.words, seed=s, value=note["value"])
        return True

    @contextlib.contextmanager
    def _trained(
        self, contender: Contender, s: int, seed: int, folder: Path
    ) -> Iterator[tuple[FileCheckpoint, Monitor]]:
        """Train one with one seed within the block, as a child run; log its end and note its objective.

        A divergence, and a model above a limit, is noted for good, since it would come again; what may have had a
        passing cause (a full disk, no memory) is tried again by the next process.
        """
        context, name, key = self.context, confirm_name(contender.label, s), f"confirm:{contender.label}:{s}"
        stop_if_asked(context)
        context.tell("confirm_started", name=name, words=contender.words, seed=s)
        params = {**contender.about, "seed": seed, "confirm_seed": s}
        tags = {"forge.confirms": contender.words, **({} if contender.baseline else self.pool.tags)}
        run = context.open_run(name, "confirm", params, tags)
        checkpoint = FileCheckpoint(folder.with_name(f"{folder.name}.npz").absolute())
        monitor = Monitor(context, run, epochs=contender.epochs)
        try:
            yield checkpoint, monitor
            assert monitor.outcome is not None
            outcome = monitor.outcome
            if (missed := infeasible(context.experiment, outcome)) is not None:
                raise missed
            if outcome.out_of_fold is not None:
                content = io.BytesIO()
                np.save(content, outcome.out_of_fold)
                FileCheckpoint(_out_of_fold(context, name)).save(content.getvalue())
            log_end(context, run, outcome)
        except TrialFailed as failure:
            finish_failed(run, failure)
            if failure.failure in ("diverged", "infeasible"):
                context.study.note(key, {"value": None, "cause": failure.message})
                self._why[contender.label] = failure.message
            forget_progress(checkpoint)
            self._found[contender.label, s] = None
            return
        except BaseException:
            finish(run, "interrupted", "KILLED")
            raise
        value = self._found[contender.label, s] = outcome.value
        self._figures[contender.label, s] = finite(outcome.figures)
        note = {"value": value, "metrics": finite(outcome.metrics), "epochs": outcome.longest}
        measured = {"measured": outcome.measured} if outcome.measured else {}
        context.study.note(key, {**note, "seconds": outcome.seconds, **measured})
        forget_progress(checkpoint)  # last: its state is kept until the bundle is in the folder and noted
        context.tell("confirm", name=name, words=contender.words, seed=s, value=value)

    def result(self) -> tuple[Confirmed, ...]:
        """The contenders with their objectives, the best mean first; call it after the workers are done.

        With several objectives the network that the rule chooses comes first of all; see `choice_of`.

        A configuration that fails with one of the seeds is left out: in production it would fail as often.
        """
        context, confirmed = self.context, []
        for contender in self.contenders:
            values = [self._found[contender.label, s] for s in self.seeds]
            kept = tuple(value for value in values if value is not None)
            if len(kept) < len(values):
                why = f": {said}" if (said := self._why.get(contender.label)) else ""
                context.warn(f"{contender.words} failed under another seed{why}; left out")
                continue
            epochs = 1 if contender.baseline else _most_epochs(context, contender)
            further = self._further(contender)
            confirmed.append(Confirmed(contender, kept, self.seeds, context.experiment.direction, epochs, further))
        if not confirmed:
            hint = "see forge.cause of the confirm runs"
            raise SweepStopped("every candidate failed under another seed", hint=hint)
        confirmed.sort(key=lambda c: (rank(context, c.mean), not c.contender.baseline))
        if (choice := choice_of(context, confirmed)) is not None:
            confirmed.sort(key=lambda c: c.contender.label != choice.label)
        return tuple(confirmed)

    def _further(self, contender: Contender) -> dict[str, float]:
        """The other objectives of several, as means over the seeds; trees have no parameters."""
        found = {}
        for name in self.context.experiment.objective.names[1:]:
            values = [self._figures[contender.label, s].get(name) for s in self.seeds]
            if None not in values:
                found[name] = statistics.fmean(value for value in values if value is not None)
        return found


@dataclass(frozen=True)
class Choice:
    """Which confirmed network the rule chooses among several objectives."""

    label: str
    words: str  # without a full stop


def choice_of(context: Context, confirmed: Sequence[Confirmed]) -> Choice | None:
    """The rule of `pareto.by_rule` on the means over seeds; None with one objective, or without a network.

    What may be given up is ``objective.tolerance``, or else one standard error of a mean, pooled over the networks (the
    rule of Breiman et al. 1984, "Classification and Regression Trees", section 3.4.3); with one seed the noise over
    epochs.
    """
    front, networks = context.study.front(), [each for each in confirmed if not each.contender.baseline]
    if front is None or not networks:
        return None
    ways, seeds = context.experiment.directions, len(networks[0].values)
    margin, how = front.tolerance, "objective.tolerance" if front.given else "the noise over epochs"
    if not front.given and seeds > 1:
        pooled = statistics.fmean(statistics.variance(each.values) for each in networks)
        margin, how = (pooled / seeds) ** 0.5, "one standard error over seeds"
    worst = {name: math.inf if way == "minimize" else -math.inf for name, way in ways.items()}
    means = [{**worst, context.experiment.objective.metric: each.mean, **each.further} for each in networks]
    points = {at: turned([each[name] for name in ways], ways.values()) for at, each in enumerate(means)}
    chosen = by_rule(points, margin)[0]
    first, second, *_ = ways
    told = ", ".join(f"{name} {figure(value)}" for name, value in means[chosen].items())
    of = f"Of {len(networks)} confirmed network{'s' * (len(networks) != 1)} {networks[chosen].contender.words}"
    least = "least" if ways[second] == "minimize" else "most"
    return Choice(
        networks[chosen].contender.label,
        f"{of} is chosen ({told}): the one with the {least} {second} of those whose {first} is at most "
        f"{figure(margin)} ({how}) from the best",
    )


def log_end(context: Context, run: Run, outcome: Outcome) -> None:
    """The figures of a confirmed training on its run, which ends."""
    figures = outcome.summary(context.experiment.objective.metric, context.first_epoch)
    more = {"seconds": outcome.seconds, "threshold": outcome.threshold}
    tags = {**outcome.tags, **keep(context, run, outcome.predictions)}
    finish(run, "finished", "FINISHED", {**figures, **more}, tags)


def _most_epochs(context: Context, contender: Contender) -> int:
    """All of them where an older version did not note it."""
    notes = context.study.notes(f"confirm:{contender.label}:")
    limit = context.experiment.study.epochs
    return max((int(note.get("epochs", limit)) for note in notes.values()), default=limit)


def confirm_name(label: str, s: int) -> str:
    """Name of the run of a contender with one seed."""
    return f"confirm-{label}-s{s}"


def _train_baseline(context: Context, contender: Contender, seed: int, folder: Path) -> Outcome:
    kind, params = contender.baseline, contender.params or None
    try:
        result = trial.run_baseline(context.experiment, context.dataset, kind, seed, params)
    except Exception as error:
        raise classify(error) from error
    result.bundle.save(folder, context.dataset.learned_from.features)
    outcome = of_baseline(context, result, folder)
    return replace(outcome, out_of_fold=result.repeated) if context.dataset.folds else outcome


def bundle_folder(context: Context, name: str) -> Path:
    """Where the bundle of a confirmed contender waits."""
    return context.checkpoints / name


def _out_of_fold(context: Context, name: str) -> Path:
    """Where the predictions lie that a contender made out of fold."""
    return context.checkpoints / f"{name}.scores.npy"


def _is_kept(context: Context, name: str) -> bool:
    return bundle_folder(context, name).is_dir() and (not context.dataset.folds or _out_of_fold(context, name).exists())


def judged_scores(context: Context, name: str) -> np.ndarray:
    """(repeats, n, units): what a contender says of the rows of `Dataset.judged`, none of which it was trained on.

    With folds of each repeat; else there is one.
    """
    if context.dataset.folds:
        return np.asarray(np.load(_out_of_fold(context, name), allow_pickle=False))
    return waiting_bundle(context, name).scores(context.dataset.judged.features)[None]


SMALL = 30_000_000
"""Bytes of a bundle that stays in memory until the end: trees of many classes take seconds to load, and are wanted by
the verdict, the ensemble and the test evaluation."""


def waiting_bundle(context: Context, name: str) -> Bundle:
    """The bundle of a confirmed contender; its code is that of the experiment, and so needs no trust."""
    if name not in context.loaded:
        folder = bundle_folder(context, name)
        bundle = Bundle.load(folder, trust=context.experiment.model.code or False)
        if sum(path.stat().st_size for path in folder.iterdir()) > SMALL:
            return bundle
        context.loaded[name] = bundle
    return context.loaded[name]
