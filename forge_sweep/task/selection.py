"""Which models to average, and whether that is more than noise.

Greedy selection with replacement (Caruana et al. 2004, https://doi.org/10.1145/1015330.1015432): start empty, add
whatever helps the metric most, keep the best prefix. It chooses among hundreds of blends by the same rows, so that its
score on them says little. The gain is therefore judged out of the bag: chosen on a resample of the rows, scored on the
rows that the resample left out, against the single model that would be shipped instead, and against a constant: the
mean of several models that know nothing is closer to the truth than any of them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from forge_sweep.task.bootstrap import LEVEL, SEED, Interval
from forge_sweep.task.task import Task

ROUNDS = 25
PATIENCE = 3
"""Rounds in a row without a gain, after which no further model is added."""

RESAMPLES = 60

MOST_ROWS = 5_000
"""Rows of a resample on which is chosen; it is scored on all that are left out."""

LEAST_ROWS = 200
"""Validation rows below which nothing is chosen: the rows left out of a resample could not tell a gain from noise."""


@dataclass(frozen=True)
class Blend:
    """How often each of the models was chosen, (models,), and the metric of their mean, greater is better."""

    counts: tuple[int, ...]
    value: float

    @property
    def weights(self) -> np.ndarray:
        """(models,) shares of the mean; they sum to 1."""
        counts = np.array(self.counts, np.float64)
        return np.asarray(counts / counts.sum())


@dataclass(frozen=True)
class OutOfBag:
    """The gain of ensembles over the ``single`` model on rows that did not choose; greater is better."""

    ensemble: float
    single: float
    gain: Interval
    over_chance: float  # low end of the gain over a constant predictor
    rows: int
    resamples: int

    @property
    def beyond_noise(self) -> bool:
        """Whether the whole interval is above 0, and so is the one against the constant."""
        return self.gain.low > 0 and self.over_chance > 0


def value_of(
    task: Task, encoded: np.ndarray, scores: np.ndarray, metric: str, threshold: float, counts: np.ndarray | None = None
) -> float:
    """A metric, the greater the better; rows count as often as ``counts`` (n,) says. nan where it is not defined."""
    once = np.ones(len(encoded)) if counts is None else counts
    with np.errstate(invalid="ignore", divide="ignore"):
        for values_of in task.parts(encoded, scores, threshold, (metric,)):
            found = values_of(once[None, :])
            if metric in found:
                value = float(found[metric][0])
                return value if metric != "loss" and task.direction(metric) == "maximize" else -value
    return float("nan")


def greedy(
    task: Task,
    encoded: np.ndarray,
    scores: np.ndarray,
    metric: str,
    threshold: float,
    *,
    rounds: int = ROUNDS,
    counts: np.ndarray | None = None,
) -> Blend:
    """Select among models by their ``scores`` (models, n, units) of the same rows.

    ``encoded`` are targets as `Task.encode` gives them; ``counts`` (n,) is how often each row counts. Of equal blends
    the one with fewer rounds is kept, so that an ensemble that is no better than its best model is that model.
    """
    models = len(scores)
    chosen, total = np.zeros(models, np.int64), np.zeros(scores.shape[1:])
    best = Blend((), -np.inf)
    since = 0
    for size in range(1, rounds + 1):
        values = np.array(
            [value_of(task, encoded, (total + scores[i]) / size, metric, threshold, counts) for i in range(models)]
        )
        values[~np.isfinite(values)] = -np.inf
        i = int(values.argmax())
        chosen[i] += 1
        total = total + scores[i]
        if values[i] > best.value:
            best, since = Blend(tuple(chosen.tolist()), float(values[i])), 0
        else:
            since += 1
        if since >= PATIENCE:
            break
    return best


def out_of_bag(
    task: Task,
    encoded: np.ndarray,
    scores: np.ndarray,
    single: int,
    metric: str,
    threshold: float,
    *,
    rounds: int = ROUNDS,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> OutOfBag:
    """Judge the selection against the model at ``single``, with the percentile interval at `LEVEL`.

    About 37 % of the rows are left out of a resample, so that the interval is about 1.3 times as wide as that of all
    rows: it errs on the side of the single model, which was moreover chosen by all of the rows.
    """
    rng, n = np.random.default_rng([seed, 3]), len(encoded)
    constant = np.asarray(task.constant(encoded), np.float32)
    chance = dataclasses.replace(task, from_logits=False).to_scores(np.tile(constant, (n, 1)))
    ours, theirs, by_chance = [], [], []
    for _ in range(resamples):
        counts = np.bincount(rng.integers(0, n, n), minlength=n).astype(np.float64)
        inside, outside = np.flatnonzero(counts), np.flatnonzero(counts == 0)
        if len(inside) > MOST_ROWS:
            inside = np.sort(rng.choice(inside, MOST_ROWS, replace=False))
        blend = greedy(
            task, encoded[inside], scores[:, inside], metric, threshold, rounds=rounds, counts=counts[inside]
        )
        if not blend.counts:
            continue
        mixed = np.tensordot(blend.weights, scores[:, outside], axes=1)
        ours.append(value_of(task, encoded[outside], mixed, metric, threshold))
        theirs.append(value_of(task, encoded[outside], scores[single, outside], metric, threshold))
        by_chance.append(value_of(task, encoded[outside], chance[outside], metric, threshold))
    gains = np.array(ours) - np.array(theirs)
    defined = np.isfinite(gains)
    if defined.sum() < max(2, resamples // 2):
        nan = float("nan")
        return OutOfBag(nan, nan, Interval(nan, nan, nan), nan, n, int(defined.sum()))
    low, high = np.quantile(gains[defined], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    over_chance = np.quantile((np.array(ours) - np.array(by_chance))[defined], (1 - LEVEL) / 2)
    return OutOfBag(
        float(np.array(ours)[defined].mean()),
        float(np.array(theirs)[defined].mean()),
        Interval(float(gains[defined].mean()), float(low), float(high)),
        float(over_chance),
        n,
        int(defined.sum()),
    )
