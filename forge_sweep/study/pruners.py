"""Pruners with every resource stated.

A step is a number of completed epochs, so that `SuccessiveHalvingPruner(min_resource=5)` judges after exactly 5 epochs.
Optuna's ``"auto"`` resources are estimated once per process from the trials seen so far: a resumed sweep would prune by
other rungs than an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from optuna import pruners
from optuna.exceptions import ExperimentalWarning

if TYPE_CHECKING:
    from forge_sweep.experiment import StudySpec

REDUCTION_FACTOR = 3
"""Of Hyperband and successive halving; the value of Li et al. 2018 (https://arxiv.org/abs/1603.06560)."""

P_THRESHOLD = 0.1
"""Of Wilcoxon; Optuna's default."""


def make(spec: StudySpec) -> pruners.BasePruner:
    """The pruner of ``study.pruner``.

    No trial is judged before ``warmup_epochs`` completed epochs; for Hyperband and successive halving that is also the
    first rung, the next ones follow at 3, 9, 27 times as many epochs.
    """
    first_rung = _first_rung(spec)
    match spec.pruner:
        case "none":
            return pruners.NopPruner()
        case "median":
            return pruners.MedianPruner(n_startup_trials=spec.startup_trials, n_warmup_steps=spec.warmup_epochs)
        case "percentile":
            return pruners.PercentilePruner(
                spec.percentile, n_startup_trials=spec.startup_trials, n_warmup_steps=spec.warmup_epochs
            )
        case "hyperband":
            return pruners.HyperbandPruner(
                min_resource=first_rung, max_resource=spec.epochs, reduction_factor=REDUCTION_FACTOR
            )
        case "successive_halving":
            return pruners.SuccessiveHalvingPruner(min_resource=first_rung, reduction_factor=REDUCTION_FACTOR)
        case "wilcoxon":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                return pruners.WilcoxonPruner(p_threshold=P_THRESHOLD, n_startup_steps=spec.warmup_epochs)


def _first_rung(spec: StudySpec) -> int:
    return max(1, min(spec.warmup_epochs, spec.epochs))


def has_a_say(spec: StudySpec, before: int, step: int) -> bool:
    """Whether the pruner of `make` can prune a trial at a step.

    Hyperband and successive halving judge a trial once at each rung that it has reached, median and percentile after
    the warm-up; asked at other steps, they read the study for nothing.

    Args:
        spec: the study's section of the experiment.
        before: the step at which it was last asked for this trial; 0 for none.
        step: completed epochs.
    """
    if spec.pruner in ("median", "percentile"):
        return step >= spec.warmup_epochs
    if spec.pruner not in ("hyperband", "successive_halving"):
        return spec.pruner != "none"
    rung = _first_rung(spec)
    while rung <= before:
        rung *= REDUCTION_FACTOR
    return rung <= step


def looks_at_complete_trials_alone(spec: StudySpec) -> bool:
    """Whether the pruner of `make` compares a trial with those that are complete, and with no running one."""
    return spec.pruner in ("median", "percentile")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what the Wilcoxon pruner says each epoch when the best trial stopped early; it compares the rest."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*WilcoxonPruner", category=UserWarning)
        yield
