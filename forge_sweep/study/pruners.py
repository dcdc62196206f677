"""Pruners with every resource stated; a step is a number of completed epochs.

Optuna's ``"auto"`` resources follow from the trials that a process has seen: a resumed sweep would prune by others.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from optuna import pruners
from optuna.exceptions import ExperimentalWarning

if TYPE_CHECKING:
    from forge_sweep.experiment import StudySpec
    from forge_sweep.task import Direction

REDUCTION_FACTOR = 3
"""Of Hyperband and successive halving; the value of Li et al. 2018 (https://arxiv.org/abs/1603.06560)."""

HALVES = 2
"""The same of ``study.fidelity = "rows"``, whose three rungs are counted 1, 2 and 3: the better half goes on."""

P_THRESHOLD = 0.1  # of Wilcoxon; Optuna's default


def make(spec: StudySpec) -> pruners.BasePruner:
    """The pruner of ``study.pruner``.

    No trial is judged before ``warmup_epochs`` completed epochs; for Hyperband and successive halving that is also the
    first rung, the next ones follow at 3, 9, 27 times as many epochs.
    """
    startup, warmup = spec.startup_trials, spec.warmup_epochs
    early = {"n_startup_trials": startup, "n_warmup_steps": warmup, "interval_steps": 1, "n_min_trials": 1}
    rungs = {"min_resource": _first_rung(spec), "reduction_factor": _reduction(spec), "bootstrap_count": 0}
    match spec.pruner:
        case "none" | "dominated":  # Optuna's pruners take one objective; see `pareto.beaten_by`
            return pruners.NopPruner()
        case "median":
            return pruners.MedianPruner(**early)
        case "percentile":
            return pruners.PercentilePruner(percentile=spec.percentile, **early)
        case "hyperband":
            return pruners.HyperbandPruner(max_resource=spec.epochs, **rungs)
        case "successive_halving":
            return pruners.SuccessiveHalvingPruner(min_early_stopping_rate=0, **rungs)
        case "wilcoxon":
            with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
                return pruners.WilcoxonPruner(p_threshold=P_THRESHOLD, n_startup_steps=warmup)


def _reduction(spec: StudySpec) -> int:
    return HALVES if spec.fidelity == "rows" else REDUCTION_FACTOR


def is_behind(value: float, others: Sequence[float], spec: StudySpec, direction: Direction) -> bool:
    """Whether ``median`` or ``percentile`` prunes a trial over folds or rungs, by what ``others`` had after as many.

    Optuna's own compare the best that a trial has had so far, which of means over folds is the mean over the easiest of
    them. NaN is behind any.
    """
    if len(others) < max(spec.startup_trials, 1):
        return False
    kept = 50.0 if spec.pruner == "median" else spec.percentile
    cut = float(np.nanpercentile(others, kept if direction == "minimize" else 100 - kept))
    return not (value <= cut if direction == "minimize" else value >= cut)


def _first_rung(spec: StudySpec) -> int:
    return max(1, min(spec.warmup_epochs, spec.epochs))


def has_a_say(spec: StudySpec, before: int, step: int) -> bool:
    """Whether the pruner can prune a trial at a step that it was last asked for at ``before`` (0: never).

    Hyperband and successive halving judge a trial once at each rung that it has reached, median and percentile after
    the warm-up; asked at other steps, they read the study for nothing.
    """
    if spec.pruner in ("median", "percentile", "dominated"):
        return step >= spec.warmup_epochs
    if spec.pruner not in ("hyperband", "successive_halving"):
        return spec.pruner != "none"
    rung = _first_rung(spec)
    while rung <= before:
        rung *= _reduction(spec)
    return rung <= step


def reads_every_report(spec: StudySpec) -> bool:
    """Whether the pruner reads the reports of all epochs; the others read that of the rung alone."""
    return spec.pruner in ("median", "percentile", "wilcoxon")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what the Wilcoxon pruner says each epoch when the best trial stopped early; it compares the rest."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*WilcoxonPruner", category=UserWarning)
        yield
