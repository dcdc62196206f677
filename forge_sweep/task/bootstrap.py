"""How far a metric may be off by chance: the bootstrap over rows, and over rows and seeds together.

A resample draws as many rows as there are, with replacement (Efron and Tibshirani 1993, "An Introduction to the
Bootstrap", chapters 10 and 13: percentile intervals). Drawing a row twice is counting it twice, so every metric is
computed from counts per row, hundreds of resamples at once: 100,000 rows take seconds. Two models are compared on the
same resamples (paired): what makes a row hard for both of them cancels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from forge_sweep.task.task import Task

RESAMPLES = 1000
LEVEL = 0.95
SEED = 0

AT_ONCE = 200_000
"""So many counts are held in memory at once, and a few arrays of that size beside them: what fits into a core's cache
takes half of the time."""


@dataclass(frozen=True, eq=False)
class Answers:
    """One model's scores of the rows (n, units), and the probability from which a label holds."""

    scores: np.ndarray
    threshold: float


@dataclass(frozen=True)
class Interval:
    """A figure over the rows as they are, with the ends of its percentile interval."""

    value: float
    low: float
    high: float

    def times(self, sign: float) -> Interval:
        """The same figure the other way round, where ``sign`` is -1: an error as what is to be made great."""
        return self if sign > 0 else Interval(-self.value, -self.high, -self.low)


@dataclass(frozen=True)
class Gain:
    """By how much ``one`` model's metric is better than the ``other``'s on the same rows; positive is better."""

    metric: str
    one: float
    other: float
    gain: Interval

    @property
    def beyond_noise(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.gain.low > 0


@dataclass(frozen=True, eq=False)
class Drawn:
    """Metrics of several models on the same rows and resamples; models count from 0.

    ``values`` are by metric, each (models, resamples), nan where a resample does not define the metric.
    """

    task: Task
    exact: Sequence[dict[str, float]]
    values: dict[str, np.ndarray]

    def interval(self, model: int, metric: str, resamples: int | None = None) -> Interval:
        """One model's metric with its interval at `LEVEL`, over the first ``resamples`` or all of them."""
        return Interval(self.exact[model][metric], *_ends(self.values[metric][model, :resamples]))

    def gain(self, one: int, other: int, metric: str, resamples: int | None = None) -> Gain:
        """By how much one model is better than another one, with its interval at `LEVEL`."""
        sign = 1.0 if self.task.direction(metric) == "maximize" else -1.0
        first, second = self.exact[one][metric], self.exact[other][metric]
        apart = sign * (self.values[metric][one, :resamples] - self.values[metric][other, :resamples])
        return Gain(metric, first, second, Interval(sign * (first - second), *_ends(apart)))


def draw(
    task: Task,
    encoded: np.ndarray,
    models: Sequence[Answers],
    metrics: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Drawn:
    """Metrics of models over resamples; ``encoded`` are targets as `Task.encode` gives them.

    The first resamples of a longer drawing are those of a shorter one.
    """
    exact = [task.score(encoded, each.scores, threshold=each.threshold) for each in models]
    return Drawn(task, exact, _resampled(task, encoded, models, metrics, resamples, seed))


def intervals(
    task: Task, encoded: np.ndarray, answers: Answers, *, resamples: int = RESAMPLES, seed: int = SEED
) -> dict[str, Interval]:
    """Every metric of the task with its interval at `LEVEL`; see `draw`."""
    names = tuple(task.metrics)
    drawn = draw(task, encoded, (answers,), names, resamples=resamples, seed=seed)
    return {name: drawn.interval(0, name) for name in names}


def gains(
    task: Task,
    encoded: np.ndarray,
    one: Answers,
    other: Answers,
    metrics: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> dict[str, Gain]:
    """By how much ``one`` is better than ``other``, by metric, with intervals at `LEVEL` over paired resamples."""
    drawn = draw(task, encoded, (one, other), metrics, resamples=resamples, seed=seed)
    return {name: drawn.gain(0, 1, name) for name in metrics}


def resampled(
    task: Task, encoded: np.ndarray, answers: Answers, metric: str, *, resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[float, np.ndarray]:
    """A metric, or ``loss`` without any penalty, over the rows as they are and over each resample.

    The resamples (resamples,) are the same for every model; nan where one does not define the metric.
    """
    drawn = _resampled(task, encoded, (answers,), (metric,), resamples, seed)[metric][0]
    if metric == "loss":
        (values_of,) = task.parts(encoded, answers.scores, answers.threshold, (metric,))
        return float(values_of(np.ones((1, len(encoded))))[metric][0]), drawn
    return task.score(encoded, answers.scores, threshold=answers.threshold)[metric], drawn


def _resampled(
    task: Task, encoded: np.ndarray, models: Sequence[Answers], metrics: Sequence[str], resamples: int, seed: int
) -> dict[str, np.ndarray]:
    """Metrics by name, each (models, resamples)."""
    found = {name: np.full((len(models), resamples), np.nan) for name in metrics}
    if not len(encoded) or any(not np.isfinite(model.scores).all() for model in models):
        return found
    metrics = [name for name in metrics if not any(gap.whole and name in gap.metrics for gap in task.gaps(encoded))]
    by_model = [task.parts(encoded, model.scores, model.threshold, metrics) for model in models]
    done = 0
    for counts in _counts(len(encoded), resamples, seed):
        place = slice(done, done + len(counts))
        for i, each in enumerate(by_model):
            for values_of in each:
                for name, values in values_of(counts).items():
                    if name in metrics:
                        found[name][i, place] = values
        done += len(counts)
    return found


def _counts(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each row is in each resample, (some resamples, n) float64, until there are enough."""
    rng, at_once = np.random.default_rng(seed), max(1, AT_ONCE // n)
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        picks = rng.integers(0, n, size=(size, n))
        picks += (np.arange(size) * n)[:, None]
        yield np.bincount(picks.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)


def _ends(values: np.ndarray) -> tuple[float, float]:
    """The percentile interval over the resamples in which the metric is defined; nan where it is in none."""
    defined = values[np.isfinite(values)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


# Is a network better than a baseline, as good as it, or worse?
#
# Two things are up to chance: which rows validation holds, and which seed a training was given. The rows are resampled,
# for all models and seeds alike; a mean over S seeds is off by an error of its own besides (Bouthillier et al. 2021,
# "Accounting for Variance in Machine Learning Benchmarks"). Each variance is known by so many degrees of freedom, and
# their sum by those of Satterthwaite 1946 (https://doi.org/10.2307/3002019), with whose quantile of Student's t the
# interval is widened. The sum counts twice what rows and seeds have in common, which errs on the safe side (Owen 2007,
# "The pigeonhole bootstrap").
# And both sides were chosen by the rows that they are judged by: their configuration among all, a network's epoch in
# every training anew. The best of m looks better than it is by E[max of m normal draws] times s^2 / S, where s is how
# far configurations differ by the rows alone and S how far their scores differ in all (Efron 2011, "Tweedie's formula
# and selection bias", https://doi.org/10.1198/jasa.2011.tm11181): all of it where they are equally good, little where
# one is plainly the best. The lead and both ends of its interval are corrected by it.

Outcome = Literal["better", "as good as", "worse"]

DRAWS = 20_000
"""Draws of the interval; each resample of rows meets several draws of the seeds."""


@dataclass(frozen=True, eq=False)
class Seeds:
    """One configuration, trained with several seeds and scored on the same rows and resamples; greater is better.

    ``values`` are (seeds,), ``drawn`` (seeds, resamples). ``searched`` is its metric in the search, by another seed;
    each training could choose among so many ``epochs``, 1 where nothing was chosen, on all the rows or on one of as
    many ``parts`` of them.
    """

    values: np.ndarray
    drawn: np.ndarray
    searched: float
    epochs: int = 1
    parts: int = 1

    @property
    def spread(self) -> tuple[float, int]:
        """Variance over seeds, and its degrees of freedom.

        Two seeds alone have a quantile of 12.7, so the search's training counts as one more where there are fewer than
        three; it was selected, and is rather further off.
        """
        known = self.values if len(self.values) > 2 else np.append(self.values, self.searched)
        return float(np.var(known, ddof=1)), len(known) - 1

    @property
    def error(self) -> tuple[float, int]:
        """Standard error of the mean over seeds, and its degrees of freedom."""
        variance, dof = self.spread
        return (variance / len(self.values)) ** 0.5, dof


@dataclass(frozen=True)
class Judgement:
    """A network against a baseline, and what it comes from.

    ``lead`` is by how much the network is better, with its interval at `LEVEL` over rows and seeds; both are corrected
    for what was chosen on these rows. ``apparent`` is the difference of the means; ``optimism`` was taken from it for
    the choice among so many ``configurations`` and ``epochs``, and ``baseline_optimism`` was added for the choice among
    so many ``baselines``.
    """

    outcome: Outcome
    lead: Interval
    apparent: float
    optimism: float
    baseline_optimism: float
    configurations: int
    baselines: int
    epochs: int
    seeds: int
    rows: int
    resamples: int


def judge(
    networks: Sequence[Seeds],
    baseline: Seeds,
    *,
    rows: int,
    smallest: int,
    configurations: int,
    baselines: int,
    searched: Sequence[float] = (),
    fitted: Sequence[float] = (),
) -> Judgement:
    """The best network, the first of all confirmed ones, against the best baseline.

    Args:
        networks: all that were confirmed.
        baseline: the best one, confirmed.
        rows: of validation.
        smallest: what `Task.fewest` gives.
        configurations: the networks were chosen among so many.
        baselines: the baseline was chosen among so many: its kinds, and each configuration of one that is tuned.
        searched: what networks scored in the search, greater is better; how far they differ tells how much of the
            first place is luck. Without, they count as equally good.
        fitted: the same of the baselines.
    """
    network = networks[0]
    gap = float(network.values.mean() - baseline.values.mean())
    apart = network.drawn.mean(axis=0) - baseline.drawn.mean(axis=0) - gap
    defined = np.isfinite(apart) & np.all([np.isfinite(each.drawn).all(axis=0) for each in networks], axis=0)
    about = {"configurations": configurations, "baselines": baselines, "epochs": network.epochs}
    about |= {"seeds": len(network.values), "rows": rows, "resamples": int(defined.sum())}
    if not np.isfinite(gap) or about["resamples"] < 2:
        nothing = Interval(gap, float("nan"), float("nan"))
        return Judgement("as good as", nothing, gap, 0.0, 0.0, **about | {"resamples": 0})
    apart, (error, dof) = apart[defined], _pooled_error(networks)
    ends = _spread(apart, smallest, (error, dof), baseline.error)
    drawn, of_baseline = [each.drawn[:, defined] for each in networks], baseline.drawn[:, defined].mean(axis=0)
    means = np.stack([each.mean(axis=0) for each in drawn])
    several = len(means) > 1
    by_configuration = _rows_alone([means] if several else drawn, of_baseline)
    by_training = _rows_alone(drawn if about["seeds"] > 1 or not several else [means], of_baseline)
    by_seed = error * about["seeds"] ** 0.5
    optimism = (
        # Chance is greater on a part of the rows, by the square root of how many parts there are; it is their mean.
        by_training * network.parts**0.5 * expected_max(network.epochs)
        + luck(by_configuration, by_seed, configurations, searched)
        + luck(error, by_configuration, len(networks))
    )
    of_other = luck(by_configuration, baseline.spread[0] ** 0.5, baselines, fitted)
    lead = Interval(*(gap - optimism + of_other + end for end in (0.0, *ends)))
    outcome: Outcome = "better" if lead.low > 0 else "worse" if lead.high < 0 else "as good as"
    return Judgement(outcome, lead, gap, optimism, of_other, **about)


def luck(lasting: float, passing: float, m: int, scores: Sequence[float] = ()) -> float:
    """By how much the best of m looks better than it is.

    Args:
        lasting: how far the m differ by chance, as far as it is in the figure that is to be corrected.
        passing: the same, as far as it was in the choice and is not in that figure.
        m: how many there were to choose among.
        scores: what they were chosen by. How far they differ in all is taken from their upper half, between the median
            and the quantile that lies a standard deviation above it: what fails altogether is no rival of the best.
    """
    if not lasting or m < 2:
        return 0.0
    known = [each for each in scores if np.isfinite(each)]
    median, above = np.quantile(known, [0.5, 0.8413]) if len(known) > 2 else (0.0, 0.0)
    return lasting**2 / max(float(np.hypot(lasting, passing)), float(above - median)) * expected_max(m)


def _spread(off: np.ndarray, smallest: int, *errors: tuple[float, int]) -> tuple[float, float]:
    """The ends of what is up to chance: deviations over resamples, and errors of means with degrees of freedom."""
    from scipy import stats

    few, rng = max(smallest, 2), np.random.default_rng([SEED, 1])
    rows = (few / (few - 1)) ** 0.5
    drawn = np.resize(off * rows, DRAWS)
    parts = [(float(off.var()) * rows**2, few - 1)]
    for error, dof in errors:
        drawn = drawn + error * rng.standard_normal(DRAWS)
        parts.append((error**2, dof))
    total, known_by = sum(variance for variance, _ in parts), sum(variance**2 / dof for variance, dof in parts)
    tail = (1 + LEVEL) / 2
    wide = stats.t.ppf(tail, total**2 / known_by) / stats.norm.ppf(tail) if known_by else 1.0
    low, high = _ends(drawn * wide)
    return low, high


def of_one(model: Seeds, smallest: int) -> Interval:
    """The mean over seeds with its interval at `LEVEL` over rows and seeds; nothing is corrected for choices."""
    mean = float(model.values.mean())
    off = model.drawn.mean(axis=0) - mean
    off = off[np.isfinite(off)]
    if not len(off):
        return Interval(mean, float("nan"), float("nan"))
    low, high = _spread(off, smallest, model.error)
    return Interval(mean, mean + low, mean + high)


def _pooled_error(networks: Sequence[Seeds]) -> tuple[float, int]:
    """Standard error of the first network's mean over seeds, and its degrees of freedom.

    Similar configurations spread alike, so their variances are pooled; its own where that is greater.
    """
    variances, dofs = zip(*(each.spread for each in networks), strict=True)
    together = float(np.average(variances, weights=dofs))
    return float(np.sqrt(max(variances[0], together) / len(networks[0].values))), int(sum(dofs))


def _rows_alone(groups: Sequence[np.ndarray], of_baseline: np.ndarray) -> float:
    """How far scores (trainings, resamples) of a group differ from each other by the rows alone."""
    several = [each for each in groups if len(each) > 1]
    if not several:  # then the whole distance from the baseline stands for it, which is more
        return float((groups[0] - of_baseline).std())
    squares = [((each - each.mean(axis=0)).var(axis=1)).sum() / (len(each) - 1) for each in several]
    return float(np.sqrt(np.mean(squares)))


def expected_max(m: int) -> float:
    """Mean of the greatest of m standard normal draws, within 0.01 (Royston 1982, AS 177, by Blom's formula)."""
    from scipy import stats

    return float(stats.norm.ppf((m - 0.375) / (m + 0.25))) if m > 1 else 0.0
