"""The null sweep: could configurations that learned nothing have scored as well?

A permutation test of the pipeline, preprocessing, training and choice of the best epoch and model included. The same
configurations are trained with the same seeds on the true targets and on permuted ones; where targets and features are
independent, none of these results is special, and the p-value is uniform (Phipson and Smyth 2010,
https://doi.org/10.2202/1544-6115.1585). See decision 53 for which configurations these are.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forge_sweep import training, trial
from forge_sweep.errors import InputError, TrialFailed
from forge_sweep.experiment import Experiment, Params, derived_seed
from forge_sweep.sources import Dataset, Split
from forge_sweep.study import NULL_NOTE, StudyView, TrialRow, n_at_random, open_study, span
from forge_sweep.sweep.context import Context, Interrupted, Watch, ignore
from forge_sweep.sweep.run import identity, load_data, look_around
from forge_sweep.sweep.trials import trial_seed
from forge_sweep.task.words import figure
from forge_sweep.tracking import Tracker

CONFIGURATIONS = 3

EXCHANGEABLE = ("random", "column", "files")
"""Kinds of ``data.split`` whose rows may be permuted: groups have their targets in common, neighbours in time too."""


@dataclass(frozen=True)
class NullSweep:
    """What a null sweep found.

    Attributes:
        study: of the sweep.
        metric: the objective.
        observed: the best objective of the configurations on the true targets; None where all of them failed.
        permuted: the same on each permutation.
        trials: the trials whose configurations were trained.
        p: share of all results, the observed one among them, that are at least as good as it.
    """

    study: str
    metric: str
    observed: float | None
    permuted: tuple[float | None, ...]
    trials: tuple[int, ...]
    p: float

    @property
    def words(self) -> str:
        """In a sentence, without its full stop."""
        found = [value for value in self.permuted if value is not None]
        ends = (
            f"{figure(min(found))} to {figure(max(found))} (mean {figure(statistics.fmean(found))})"
            if found
            else "no score"
        )
        n, seen = len(self.permuted), "no score" if self.observed is None else figure(self.observed)
        several = f"{n} permutation{'s' * (n != 1)}"
        said = (
            f"the best of {len(self.trials)} configurations has {self.metric} {seen} on the true targets and {ends} on "
            f"{several} of them: p = {self.p:.3g}"
        )
        if self.p > 1 / (n + 1):
            return said
        return f"{said}, the least that {several} can show"

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "permuted": list(self.permuted), "trials": list(self.trials), "words": self.words}


def null_sweep(
    experiment: Experiment,
    permutations: int,
    *,
    store: Path = Path("mlruns"),
    watch: Watch = ignore,
    stopping: Callable[[], bool] = lambda: False,
) -> NullSweep:
    """Train the first configurations of a finished sweep on permuted targets, or go on with it; see the module.

    One training after the other, in this process. Each is noted, so that a kill costs one, and more permutations can be
    asked for later; those that are there count even where fewer are asked for. The p-value is kept with the study and
    its parent run.

    Raises:
        InputError: the sweep has not ended, or its rows may not be permuted.
        Interrupted: ``stopping`` said so; what was trained stays.
    """
    refuse_null(experiment)
    here = look_around(experiment, store, watch)
    dataset = load_data(experiment, watch)
    study = open_study(experiment, dataset=identity(dataset), store=store)
    if study.final() is None:
        raise InputError(f"{study.name} has not ended", hint="a null sweep is for a sweep that has: run it to its end")
    training.load_backend()
    key = study.notes("sweep:")["sweep:begin"]["key"]
    with (
        study.hold(stopping),
        Tracker(experiment.name, store, description=experiment.description, sweep=key) as tracker,
    ):
        context = Context(experiment, dataset, study, tracker, here, store, key, watch, stopping)
        found = _test(context, permutations)
        study.note(NULL_NOTE, found.to_dict())
        parent = tracker.existing(key)
        parent.log_metrics({"null_p": found.p, "null_permutations": len(found.permuted)})
        parent.set_tags({"forge.null": found.words})
    return found


def refuse_null(experiment: Experiment) -> None:
    """Raise InputError where the rows of an experiment may not be permuted; asked before its sweep begins."""
    kind = experiment.data.split.kind
    if kind not in EXCHANGEABLE:
        raise InputError(
            f'a null sweep permutes targets, and data.split.kind = "{kind}": rows of one {kind} may not be exchanged',
            hint=f"it takes data.split.kind = {', '.join(EXCHANGEABLE)}; leave out --null",
        )
    if (repeats := experiment.data.split.repeats) > 1:
        raise InputError(
            f"a null sweep permutes targets within each fold, and with data.split.repeats = {repeats} a row is in "
            "several",
            hint="it takes data.split.repeats = 1; leave out --null",
        )


def _test(context: Context, permutations: int) -> NullSweep:
    chosen = configurations(context.study)
    if not chosen:
        raise InputError(
            f"{context.study.name} has no trial whose configuration was drawn before the search had seen a score",
            hint="a sweep that began with configurations of earlier ones, or of a fork, has none; run it afresh",
        )
    notes = context.study.notes(f"{NULL_NOTE}:")
    known = sum(all(_key(at, row) in notes for row in chosen) for at in range(1, len(notes) + 1))
    permutations = max(permutations, known)  # what was trained counts, whatever is asked for now
    left = sum(_key(at, row) not in notes for at in range(permutations + 1) for row in chosen)
    seconds = [row.cost.total.seconds for row in context.study.rows() if row.state == "finished" and row.cost]
    about = f", about {span(statistics.median(seconds) * left)}" if seconds and left else ""
    context.inform(f"null sweep, {permutations} permutations: {left} trainings are left{about}")
    best = [_best(context, chosen, at) for at in range(permutations + 1)]
    observed, permuted = best[0], best[1:]
    found = NullSweep(
        study=context.study.name,
        metric=context.experiment.objective.metric,
        observed=observed,
        permuted=tuple(permuted),
        trials=tuple(row.number for row in chosen),
        p=p_value(observed, permuted, context.experiment.direction == "maximize"),
    )
    return found


def configurations(study: StudyView) -> list[TrialRow]:
    """The first trials that no target has chosen: drawn before the sampler had seen a score, by no earlier sweep."""
    first = [row for row in study.rows()[: n_at_random(study)] if row.params]
    rows = [row for row in first if not (row.warm or row.imported or row.outside)]
    return rows[:CONFIGURATIONS]


def _best(context: Context, chosen: Sequence[TrialRow], at: int) -> float | None:
    """The best objective of the configurations on one permutation, those that were noted before not trained again."""
    notes, values, permuted = context.study.notes(f"{NULL_NOTE}:"), list[float](), None
    for row in chosen:
        key = _key(at, row)
        if key not in notes:
            permuted = permuted or on_permuted_targets(context.dataset, context.experiment.seed, at)
            value = train(context.experiment, permuted, row.params, trial_seed(context, row.number), context.stopping)
            context.study.note(key, {"value": value})
            context.stopwatch.tick()
            notes = {**notes, key: {"value": value}}
        if (value := notes[key]["value"]) is not None:
            values.append(value)
    if permuted is not None:
        trial.prepare.cache_clear()  # arrays of which no other training has a use
        trial.prepare_part.cache_clear()
    better = max if context.experiment.direction == "maximize" else min
    return better(values, default=None)


def _key(at: int, row: TrialRow) -> str:
    return f"{NULL_NOTE}:{at:06d}:{row.number}"


def on_permuted_targets(dataset: Dataset, seed: int, at: int) -> Dataset:
    """The dataset with the targets of training and of validation rows permuted, each among themselves; 0: as it is.

    With folds, those of each fold are: classes keep their shares in it, as they have them in the observed rows.
    """
    import pandas as pd

    if at == 0:
        return dataset
    targets = pd.concat([dataset.train.targets, dataset.valid.targets])
    stream, n = np.random.default_rng(derived_seed(seed, "null", at)), len(dataset.train.rows)
    order = np.arange(n + len(dataset.valid.rows))
    for block in [valid for _, valid in dataset.in_folds] or [order[:n], order[n:]]:
        order[block] = stream.permutation(block)

    def permuted(split: Split, order: np.ndarray) -> Split:
        own = targets.iloc[order].set_axis(split.targets.index, axis="index")
        return dataclasses.replace(split, targets=own)

    return dataclasses.replace(
        dataset, train=permuted(dataset.train, order[:n]), valid=permuted(dataset.valid, order[n:])
    )


def train(
    experiment: Experiment, dataset: Dataset, params: Params, seed: int, stopping: Callable[[], bool]
) -> float | None:
    """The objective of one training at its best epoch, without pruning; None where it failed."""

    def on_epoch(epoch: int, metrics: dict[str, float]) -> bool:
        if stopping():
            raise Interrupted
        return False

    def on_inner(part: str, epoch: int, metrics: dict[str, float]) -> None:
        on_epoch(epoch, metrics)

    try:
        within: dict[str, Any] = {} if experiment.trainings == 1 else {"on_inner": on_inner}
        value = trial.run(experiment, dataset, params, seed, on_epoch, **within).value
    except TrialFailed:
        return None
    finally:
        training.release()
    return value if math.isfinite(value) else None


def p_value(observed: float | None, permuted: Sequence[float | None], maximize: bool) -> float:
    """(1 + those at least as good as the observed one) / (1 + all); one without a score is worse than any."""

    def rank(value: float | None) -> float:
        return -math.inf if value is None else value if maximize else -value

    return (1 + sum(rank(value) >= rank(observed) for value in permuted)) / (1 + len(permuted))
