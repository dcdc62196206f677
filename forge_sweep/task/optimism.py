"""How much better the best of many looks than it is, from the predictions of all of them on the same rows.

Bootstrap bias corrected: in each resample of the rows the best configuration is chosen by the rows that were drawn, and
scored on those that were not (Tsamardinos, Greasidou and Borboudakis 2018, "Bootstrapping the out-of-sample predictions
for efficient and accurate cross-validation", https://doi.org/10.1007/s10994-018-5714-4, BBC-CV for one split). The
rows alone are up to chance here: that another seed trains another network is in no resample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from forge_sweep.task.bootstrap import SEED, Answers, Interval, _counts, _ends
from forge_sweep.task.task import Task

MOST, FEWEST = 1000, 100
"""Resamples: as many as rows and configurations allow."""

BUDGET = 10**9
"""Resamples times rows times units times configurations: about half a minute for an AUC, seconds for a mean."""

PILOT = 20
"""Resamples after which a configuration that is never near the best is left out of the rest."""

HOPELESS = 6.0
"""Standard deviations of its distance from the best: chosen once in a billion resamples."""


@dataclass(frozen=True)
class Optimism:
    """The best of ``n`` configurations, as chosen, and corrected for having been chosen by the same rows.

    ``corrected`` is the mean over resamples of the score on rows that did not choose, with the percentile interval of
    that score. ``often`` is the share of the resamples that choose the ``best`` (its place among the configurations).
    """

    metric: str
    n: int
    best: int
    value: float
    corrected: Interval
    often: float
    rows: int
    resamples: int


def best_of(
    task: Task,
    encoded: np.ndarray,
    models: Sequence[Answers],
    metric: str,
    *,
    resamples: int | None = None,
    seed: int = SEED,
) -> Optimism:
    """What the best of the models is worth, by a metric of the task, on rows that did not choose it.

    Args:
        task: of which ``metric`` is one.
        encoded: targets as `Task.encode` gives them.
        models: scores of the same rows.
        metric: such as ``auc``.
        resamples: default: `MOST`, fewer for many rows and models, never under `FEWEST`.
        seed: of the resamples.
    """
    sign = 1.0 if task.direction(metric) == "maximize" else -1.0
    n, units = models[0].scores.shape
    if resamples is None:
        resamples = max(FEWEST, min(MOST, BUDGET // max(1, n * units * len(models))))
    parts = [task.parts(encoded, each.scores, each.threshold, (metric,)) for each in models]

    def score(model: int, counts: np.ndarray) -> np.ndarray:
        found = next(values for of in parts[model] if metric in (values := of(counts)))
        return np.nan_to_num(sign * found[metric], nan=-np.inf, posinf=-np.inf)

    whole = np.array([score(each, np.ones((1, n)))[0] for each in range(len(models))])
    best = int(whole.argmax())
    left, seen = np.arange(len(models)), np.empty((len(models), 0))
    outside, chosen = [], []
    for counts in _counts(n, resamples, seed):
        within = np.stack([score(int(each), counts) for each in left])
        choice = left[within.argmax(axis=0)]
        unseen = (counts == 0).astype(np.float64)
        scored = np.full(len(counts), -np.inf)
        for each in np.unique(choice):
            scored[choice == each] = score(int(each), unseen[choice == each])
        outside.append(scored)
        chosen.append(choice)
        if len(left) > 1:
            seen = np.concatenate([seen, within], axis=1)
            behind = seen - seen.max(axis=0)
            if seen.shape[1] >= PILOT and np.isfinite(behind).all():
                near = behind.mean(axis=1) + HOPELESS * behind.std(axis=1) >= 0
                left, seen = left[near], seen[near]
    drawn = np.concatenate(outside)
    drawn = sign * drawn[np.isfinite(drawn)]
    mean = float(drawn.mean()) if len(drawn) else float("nan")
    often = float((np.concatenate(chosen) == best).mean())
    return Optimism(
        metric, len(models), best, float(sign * whole[best]), Interval(mean, *_ends(drawn)), often, n, resamples
    )
