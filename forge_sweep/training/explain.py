"""At the end of a trial: what its curves, its answers and its samples say, as findings."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from forge_sweep.checks import diagnose
from forge_sweep.checks.diagnose import Times, Training
from forge_sweep.checks.findings import Finding
from forge_sweep.checks.relation import MOST_COLUMNS, MOST_ROWS, Relation, relation
from forge_sweep.checks.samples import Sample
from forge_sweep.training.data import TrainingData, leaves
from forge_sweep.training.fit import FitResult, FitSpec

if TYPE_CHECKING:
    import keras

    from forge_sweep.experiment import Params
    from forge_sweep.task import Task


def explain(
    model: keras.Model,
    task: Task,
    data: TrainingData,
    spec: FitSpec,
    fitted: FitResult,
    scores: np.ndarray,
    params: Params,
    before_s: float,
    seconds: float,
) -> tuple[tuple[Finding, ...], str, Times]:
    """Why a training learned nothing, or less than it could: findings, why there are none, and its times.

    Args:
        model: with the weights of the best epoch.
        task: what is predicted.
        data: that it was trained on.
        spec: how it was trained.
        fitted: what `fit` gave.
        scores: of the validation rows.
        params: its hyperparameters.
        before_s: seconds of preparing and building.
        seconds: of the trial until now.
    """
    from forge_sweep.training.probe import frozen

    began, probe = time.monotonic(), fitted.probe
    earlier = 0.0 if probe is None else probe.spent_s  # not what is sampled in here, which counts below
    times = Times() if probe is None else Times(seconds, before_s + probe.setup_s, probe.waited_s)

    def sampled() -> Sequence[Sample]:
        if probe is not None and not (probe.samples and probe.samples[-1].epochs == len(fitted.history)):
            probe.sample(model, fitted.best_epoch + 1)
        return () if probe is None else probe.samples

    findings: tuple[Finding, ...] = ()
    why_none = ""
    try:
        seen = Training(
            history=fitted.history,
            monitor=spec.monitor,
            direction=spec.direction,
            best_epoch=fitted.best_epoch,
            epochs=spec.epochs,
            task=task,
            encoded=data.y_valid,
            scores=scores,
            params=params,
            sampled=sampled,
            related=lambda: related(task, data),
            frozen=frozen(model),
            times=times,
        )
        findings = diagnose.of_training(seen)
    except Exception as error:  # a network of the user's own may be one that nothing can be asked of
        why_none = f"not diagnosed: {type(error).__name__}: {error}"[:200]
    took = time.monotonic() - began
    spent = took + earlier
    return findings, why_none, replace(times, total=seconds + took, diagnosis=spent)


def related(task: Task, data: TrainingData) -> dict[str, Relation]:
    """By head, whether a shallow tree relates features and targets; a head whose rows are too few is left out."""
    rows = [np.linspace(0, n - 1, min(n, MOST_ROWS)).astype(np.int64) for n in (len(data.y_train), len(data.y_valid))]
    if sum(math.prod(values.shape[1:]) for values in leaves(data.x_train)) > MOST_COLUMNS:
        return {}
    # Taken first, and then laid side by side: all rows may be larger than the memory.
    x_train, x_valid = (
        np.concatenate([values[some].reshape(len(some), -1) for values in leaves(x)], axis=1)
        for x, some in zip((data.x_train, data.x_valid), rows, strict=True)
    )
    found = {}
    heads = zip(_targets(task, data.y_train[rows[0]]), _targets(task, data.y_valid[rows[1]]), strict=True)
    for (name, kind, y_train), (_, _, y_valid) in heads:
        each = relation(x_train, y_train, x_valid, y_valid, classes=kind in ("binary", "multiclass"))
        if each is not None:
            found[name] = each
    return found


def _targets(task: Task, encoded: np.ndarray) -> list[tuple[str, str, np.ndarray]]:
    """Each head's name, kind and targets: class codes, or columns of numbers."""
    heads = task.apart(encoded, np.zeros((len(encoded), 1)))
    return [
        (prefix, head.kind, head.truth(its) if head.kind in ("binary", "multiclass") else its)
        for prefix, head, its, _ in heads
    ]
