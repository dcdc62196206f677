"""Is a network better than a baseline, as good as it, or worse? From rows and seeds together.

Two things are up to chance: which rows validation holds, and which seed a training was given. The rows are resampled,
for all models and seeds alike (Efron and Tibshirani 1993, chapter 10; widened for few rows, Hesterberg 2015,
https://doi.org/10.1080/00031305.2015.1089789, section 4). A mean over S seeds is off by an error of its own: it is
drawn from Student's t with S - 1 degrees of freedom, since resampling three seeds would take (S - 1) / S of their
variance for all of it and never see a fourth (Bouthillier et al. 2021, "Accounting for Variance in Machine Learning
Benchmarks"). The sum of both counts what rows and seeds have in common twice, which errs on the safe side (Owen 2007,
"The pigeonhole bootstrap").

And the network was chosen by the rows that it is judged by: its configuration among all that were tried, its epoch
among all of the training, in every training anew. The best of m equally good ones looks better than it is by E[max of
m normal draws] times the spread of that by which they differ (Royston 1982, AS 177, for the expectation; Cawley and
Talbot 2010, JMLR 11, for what choosing does). How far networks differ on the same rows is seen among those that were
confirmed. This optimism is taken from the low end of the interval, and that of the baseline, the best of a few, is
added to the high end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from forge_sweep.task.resampling import LEVEL, SEED, Interval

if TYPE_CHECKING:
    import numpy as np

Outcome = Literal["better", "as good as", "worse"]

DRAWS = 20_000
"""Draws of the interval; each resample of rows meets several draws of the seeds."""


@dataclass(frozen=True, eq=False)
class Seeds:
    """One configuration, trained with several seeds and scored on the same rows and resamples.

    Attributes:
        values: (seeds,) the metric over the rows; greater is better.
        drawn: (seeds, resamples) the metric over each resample.
        searched: its metric in the search, by another seed: with one or two seeds it tells more of the spread.
        epochs: how many epochs each training could choose among; 1 where nothing was chosen.
    """

    values: np.ndarray
    drawn: np.ndarray
    searched: float
    epochs: int = 1

    @property
    def spread(self) -> tuple[float, int]:
        """Variance over seeds, and its degrees of freedom.

        With fewer than three, the search's training counts as one more: it was selected, so that it is rather further
        off, and two seeds alone have a quantile of 12.7.
        """
        import numpy as np

        known = self.values if len(self.values) > 2 else np.append(self.values, self.searched)
        return float(np.var(known, ddof=1)), len(known) - 1


@dataclass(frozen=True)
class Judgement:
    """A network against a baseline.

    Attributes:
        outcome: what may be said.
        lead: by how much the network is better; the interval at `LEVEL` over rows and seeds, corrected for the choices.
        optimism: what was taken from the low end, since the network was chosen by these rows.
        configurations: how many were looked at on these rows.
        epochs: how many each training could choose among.
        seeds: how many the networks were confirmed with.
        rows: how many.
        resamples: how many of the rows.
    """

    outcome: Outcome
    lead: Interval
    optimism: float
    configurations: int
    epochs: int
    seeds: int
    rows: int
    resamples: int


def judge(
    networks: Sequence[Seeds], baseline: Seeds, *, rows: int, smallest: int, configurations: int, baselines: int
) -> Judgement:
    """The first network against a baseline.

    Args:
        networks: every confirmed configuration, the best one first.
        baseline: the best baseline.
        rows: how many the metric is taken over.
        smallest: rows of the part that decides how sure the metric is, as `part_that_counts` gives them.
        configurations: how many the networks were chosen among, by these rows.
        baselines: how many the baseline was chosen among.
    """
    import numpy as np

    network = networks[0]
    gap = float(network.values.mean() - baseline.values.mean())
    apart = network.drawn.mean(axis=0) - baseline.drawn.mean(axis=0) - gap
    defined = np.isfinite(apart) & np.all([np.isfinite(each.drawn).all(axis=0) for each in networks], axis=0)
    resamples = int(defined.sum())
    if not np.isfinite(gap) or resamples < 2:
        nothing = Interval(gap, float("nan"), float("nan"))
        return Judgement("as good as", nothing, 0.0, configurations, network.epochs, len(network.values), rows, 0)
    apart = apart[defined] * widened(smallest)
    rng = np.random.default_rng([SEED, 1])
    error, dof = pooled(networks)
    low, high = _ends(np.resize(apart, DRAWS) + _of_seeds(rng, error, dof) - _of_seeds(rng, *_error(baseline)))
    optimism = (
        between_seeds(networks, baseline, defined) * expected_max(network.epochs)
        + between_configurations(networks, baseline, defined) * expected_max(configurations)
        + error * expected_max(len(networks))
    )
    lead = Interval(gap, gap + low - optimism, gap + high + float(apart.std()) * expected_max(baselines))
    outcome: Outcome = "better" if lead.low > 0 else "worse" if lead.high < 0 else "as good as"
    return Judgement(outcome, lead, optimism, configurations, network.epochs, len(network.values), rows, resamples)


def of_one(model: Seeds, smallest: int) -> Interval:
    """The mean over seeds with its interval at `LEVEL` over rows and seeds; nothing is corrected for choices."""
    import numpy as np

    mean = float(model.values.mean())
    off = model.drawn.mean(axis=0) - mean
    off = off[np.isfinite(off)]
    if not len(off):
        return Interval(mean, float("nan"), float("nan"))
    rng = np.random.default_rng([SEED, 2])
    low, high = _ends(np.resize(off * widened(smallest), DRAWS) + _of_seeds(rng, *_error(model)))
    return Interval(mean, mean + low, mean + high)


def pooled(networks: Sequence[Seeds]) -> tuple[float, int]:
    """Standard error of the first network's mean over seeds, and its degrees of freedom.

    Trainings of similar configurations spread alike, so that their variances are pooled; its own where that is greater.
    """
    import numpy as np

    variances, dofs = zip(*(each.spread for each in networks), strict=True)
    together = float(np.average(variances, weights=dofs))
    return float(np.sqrt(max(variances[0], together) / len(networks[0].values))), int(sum(dofs))


def between_seeds(networks: Sequence[Seeds], baseline: Seeds, defined: np.ndarray) -> float:
    """How far one training's score of these rows differs, by the rows alone, from another one's with other seeds."""
    import numpy as np

    several = [each.drawn[:, defined] for each in networks if len(each.values) > 1]
    if not several:  # then the whole distance from the baseline stands for it, which is more
        return float((networks[0].drawn - baseline.drawn.mean(axis=0))[:, defined].std())
    squares = [((each - each.mean(axis=0)).var(axis=1)).sum() / (len(each) - 1) for each in several]
    return float(np.sqrt(np.mean(squares)))


def between_configurations(networks: Sequence[Seeds], baseline: Seeds, defined: np.ndarray) -> float:
    """The same between configurations, each by its mean over seeds."""
    import numpy as np

    means = np.stack([each.drawn[:, defined].mean(axis=0) for each in networks])
    if len(means) < 2:
        return float((means[0] - baseline.drawn[:, defined].mean(axis=0)).std())
    return float(np.sqrt((means - means.mean(axis=0)).var(axis=1).sum() / (len(means) - 1)))


def part_that_counts(kind: str, encoded: np.ndarray) -> int:
    """Rows of the smaller class of a binary target, of an average class, or all: with fewer, metrics are less sure."""
    import numpy as np

    if kind == "binary":
        positive = int(np.count_nonzero(encoded))
        return min(positive, len(encoded) - positive)
    if kind == "multiclass":
        codes = encoded.argmax(axis=1) if encoded.ndim > 1 else encoded
        return len(codes) // max(1, len(np.unique(codes)))
    return len(encoded)


def widened(n: int) -> float:
    """By how much percentiles of so few rows are too narrow.

    The bootstrap's variance is (n - 1) / n of what it is for, and Student's quantile belongs where the normal one
    stands (Hesterberg 2015).
    """
    from scipy import stats

    n, tail = max(n, 2), (1 + LEVEL) / 2
    return float((n / (n - 1)) ** 0.5 * stats.t.ppf(tail, n - 1) / stats.norm.ppf(tail))


def expected_max(m: int) -> float:
    """Mean of the greatest of m standard normal draws, within 0.01 (Royston 1982, by Blom's formula)."""
    from scipy import stats

    return float(stats.norm.ppf((max(m, 1) - 0.375) / (max(m, 1) + 0.25))) if m > 1 else 0.0


def _error(model: Seeds) -> tuple[float, int]:
    variance, dof = model.spread
    return (variance / len(model.values)) ** 0.5, dof


def _of_seeds(rng: np.random.Generator, error: float, dof: int) -> np.ndarray:
    """(DRAWS,) how far a mean over seeds may be off."""
    return error * rng.standard_t(dof, DRAWS)


def _ends(values: np.ndarray) -> tuple[float, float]:
    import numpy as np

    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
