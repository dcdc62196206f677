"""Scores with intervals, paired comparisons and ranks: pure functions of targets and predictions.

The intervals are percentiles of a bootstrap over test rows (Efron and Tibshirani 1993): each resample is a vector of
counts, how often each row was drawn, and every score is a function of such weights. Two sides are compared on the same
counts, so that rows which are hard for both do not count as a difference. Test rows only: what another seed of a side
would give is a second source of chance, which ``--seeds`` measures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
RESAMPLES = 1_000
SEED = 0
CHUNK = 4_000_000
"""Most counts held at once."""

PRIMARY = {"binary": "auc", "multiclass": "log_loss", "regression": "rmse"}
"""By what each side chooses on validation rows, and by what sides are ranked and compared on test rows."""
SHOWN = {"binary": ("auc", "log_loss"), "multiclass": ("log_loss", "accuracy"), "regression": ("rmse", "r2")}
BETTER = {"auc": 1, "accuracy": 1, "r2": 1, "log_loss": -1, "rmse": -1}
"""1 where more is better, -1 where less is."""

WIN, TIE, LOSS = "win", "tie", "loss"

Score = Callable[[np.ndarray], np.ndarray]
"""Weights of rows, (resamples, n), to scores, (resamples,)."""


@dataclass(frozen=True)
class Interval:
    """A score with the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Duel:
    """By how much one side is better than another on the same rows; positive is better, whatever the metric."""

    lead: Interval

    @property
    def verdict(self) -> str:
        """``tie`` where the interval includes zero."""
        if self.lead.low > 0:
            return WIN
        return LOSS if self.lead.high < 0 else TIE


def scorer(metric: str, target: np.ndarray, predicted: np.ndarray) -> Score:
    """What gives a metric of these predictions for any weights of the rows.

    Args:
        metric: a key of `BETTER`.
        target: (n,): 0 or 1, the number of the class, or the value.
        predicted: (n,) probability of 1 or value; (n, classes) probabilities.
    """
    predicted = np.asarray(predicted, dtype=np.float64)
    if metric == "auc":
        return _auc(target, predicted)
    if metric == "log_loss":
        of_target = np.where(target == 1, predicted, 1 - predicted) if predicted.ndim == 1 else _own(target, predicted)
        return _mean(-np.log(np.clip(of_target, 1e-7, 1)))
    if metric == "accuracy":
        return _mean((predicted.argmax(axis=1) == target).astype(np.float64))
    square = _mean((target - predicted) ** 2)
    if metric == "rmse":
        return lambda weights: np.sqrt(square(weights))
    mean, mean_square = _mean(target), _mean(target**2)
    return lambda weights: 1 - square(weights) / (mean_square(weights) - mean(weights) ** 2)


def _own(target: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    scaled = predicted / predicted.sum(axis=1, keepdims=True)
    own: np.ndarray = scaled[np.arange(len(target)), target.astype(np.int64)]
    return own


def _mean(values: np.ndarray) -> Score:
    return lambda weights: weights @ values / weights.sum(axis=1)


def _auc(target: np.ndarray, predicted: np.ndarray) -> Score:
    """The share of pairs in the right order, ties counting half: the Mann-Whitney statistic of weighted rows."""
    order = np.argsort(predicted, kind="stable")
    positive = np.asarray(target, dtype=np.float64)[order]
    starts = np.flatnonzero(np.r_[True, np.diff(predicted[order]) > 0])  # of each group of equal predictions

    def score(weights: np.ndarray) -> np.ndarray:
        ranked = weights[:, order].astype(np.float64)
        ones = np.add.reduceat(ranked * positive, starts, axis=1)
        zeros = np.add.reduceat(ranked * (1 - positive), starts, axis=1)
        below = np.cumsum(zeros, axis=1) - zeros / 2
        pairs = ones.sum(axis=1) * zeros.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            found: np.ndarray = (ones * below).sum(axis=1) / pairs
        return found

    return score


def resampled(n: int, resamples: int = RESAMPLES, seed: int = SEED) -> Iterator[np.ndarray]:
    """How often each of n rows was drawn, a few resamples at a time as (some, n); the same for all sides."""
    random, at_once = np.random.default_rng(seed), max(1, CHUNK // n)
    for first in range(0, resamples, at_once):
        some = min(at_once, resamples - first)
        yield np.stack([np.bincount(random.integers(0, n, n), minlength=n) for _ in range(some)])


def interval(metric: str, target: np.ndarray, predicted: np.ndarray, resamples: int = RESAMPLES) -> Interval:
    """A metric on all rows, with the percentiles of its resamples."""
    score = scorer(metric, target, predicted)
    return _interval(float(score(np.ones((1, len(target))))[0]), _over(score, len(target), resamples))


def duel(
    metric: str,
    target: np.ndarray,
    one: Sequence[np.ndarray],
    other: Sequence[np.ndarray],
    resamples: int = RESAMPLES,
) -> Duel:
    """One side against another on the same rows; where there are several seeds, the means of their scores.

    Args:
        metric: a key of `BETTER`.
        target: as `scorer` takes it.
        one: predictions of each seed.
        other: likewise; the numbers of seeds may differ.
        resamples: of the rows.
    """
    mine, theirs = ([scorer(metric, target, each) for each in side] for side in (one, other))

    def lead(weights: np.ndarray) -> np.ndarray:
        gap = np.mean([s(weights) for s in mine], axis=0) - np.mean([s(weights) for s in theirs], axis=0)
        return BETTER[metric] * np.asarray(gap)

    return Duel(_interval(float(lead(np.ones((1, len(target))))[0]), _over(lead, len(target), resamples)))


def _over(score: Score, n: int, resamples: int) -> np.ndarray:
    return np.concatenate([score(weights) for weights in resampled(n, resamples)])


def _interval(value: float, drawn: np.ndarray) -> Interval:
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def ranks(scores: Mapping[str, float], metric: str) -> dict[str, float]:
    """1 for the best side; equal ones share the mean of their places; nan, a side that failed, comes last."""
    known = {name: -BETTER[metric] * value for name, value in scores.items()}
    worst = math.inf
    keys = {name: worst if math.isnan(value) else value for name, value in known.items()}
    return {
        name: 1 + sum(other < key for other in keys.values()) + (sum(other == key for other in keys.values()) - 1) / 2
        for name, key in keys.items()
    }


def mean_ranks(tables: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean rank of each side over tables, all of which have ranked the same sides."""
    return {name: float(np.mean([ranked[name] for ranked in tables])) for name in (tables[0] if tables else {})}


def tally(duels: Sequence[str]) -> dict[str, int]:
    """Wins, ties and losses."""
    return {verdict: sum(each == verdict for each in duels) for verdict in (WIN, TIE, LOSS)}
