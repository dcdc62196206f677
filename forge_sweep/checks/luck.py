"""What of a sweep's ranking is chance: figures of seeds and of random trials, to findings. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from forge_sweep.checks.findings import Finding

if TYPE_CHECKING:
    from forge_sweep.task import Direction

CERTAIN = 0.95
"""Of the bounds and the tests below."""

MATTERS = 0.25
"""Part of the spread over configurations from which on a lead that seeds can turn round is worth a word."""

LEAST_RANDOM, LEAST_SUGGESTED = 8, 60
"""Trials of the start-up and after it, below which a sampler is not compared with chance: with 30 of TPE's, 6 of 100
sweeps on smooth surfaces would have been called no better than random, with 60 of them 2 or 3."""

NO_BETTER = 0.8
"""The p-value of a one-sided rank test from which on the suggestions lean the wrong way."""

MOST_SEEDS = 30
"""More seeds than this are not worth asking for: what needs them is as good as the other."""


def pooled(networks: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Standard deviation over seeds within the configurations, and its degrees of freedom; 0 of them: unknown."""
    freedom = sum(len(values) - 1 for values in networks)
    if freedom < 1:
        return 0.0, 0
    squares = sum(statistics.variance(values) * (len(values) - 1) for values in networks if len(values) > 1)
    return math.sqrt(squares / freedom), freedom


def of_seeds(networks: Sequence[Sequence[float]], searched: Sequence[float], direction: Direction) -> Finding | None:
    """Whether luck with the seed decides what the search ranks, or which of the confirmed networks is the best.

    The objectives of the search differ by what their configurations are worth and by one seed each. Where their
    variance is less than twice that of seeds alone, seeds make more of a difference than configurations do.

    Args:
        networks: the objective of each confirmed network over its seeds.
        searched: the objective of every finished trial of the search.
        direction: of the objective.
    """
    from scipy import stats  # takes a second, and whoever reads a study has this module

    noise, freedom = pooled(networks)
    if freedom < 2 or noise == 0 or len(searched) < 2:
        return None
    spread = statistics.stdev(searched)
    least = noise * math.sqrt(freedom / stats.chi2.ppf(CERTAIN, freedom))
    if spread < math.sqrt(2) * least:
        seen = (
            f"seeds alone move the objective by {noise:.3g} (standard deviation over {freedom + len(networks)} "
            f"confirmed trainings, above {least:.3g} with {CERTAIN:.0%}), and {len(searched)} configurations, a seed "
            f"each, differ by {spread:.3g}: which of them is the best is luck"
        )
        fix = f"top = {max(5, len(searched) // 4)} and seeds = {max(5, *map(len, networks))} under [confirm]"
        return Finding("warning", "seed-luck", "confirm", seen, "configurations that differ by more than seeds do", fix)
    ranked = sorted(networks, key=statistics.fmean, reverse=direction == "maximize")
    if len(ranked) < 2:
        return None
    first, second = ranked[:2]
    lead = abs(statistics.fmean(first) - statistics.fmean(second))
    error = noise * math.sqrt(1 / len(first) + 1 / len(second))
    p = float(stats.t.sf(lead / error, freedom))
    if p < 1 - CERTAIN or error < MATTERS * spread:
        return None
    seen = (
        f"the best network leads the next by {lead:.3g}, seeds move such a lead by {error:.3g} (p = {p:.2f}), where "
        f"the configurations of the search differ by {spread:.3g}"
    )
    # of a one-sided test at 5 % that finds this lead with 80 %: n = 2 (z_0.95 + z_0.8)^2 (noise / lead)^2
    needed = math.inf if lead == 0 else math.ceil(2 * (1.645 + 0.842) ** 2 * (noise / lead) ** 2)
    wanted = min(max(needed, 2 * len(first)), MOST_SEEDS)
    fix = f"seeds = {wanted:.0f} under [confirm]"
    if needed > MOST_SEEDS:
        fix += "; if they are as good as each other then, take the cheaper one"
    return Finding("info", "top-not-told-apart", "confirm.seeds", seen, "a lead beyond the noise of seeds", fix)


def of_sampler(
    random: Sequence[float], suggested: Sequence[float], direction: Direction, sampler: str, n_trials: int
) -> Finding | None:
    """Whether what a sampler suggests is no better than its own random start-up trials (Mann and Whitney 1947).

    Said only where the ranks lean the other way (p of at least `NO_BETTER`): ten random trials prove little, so that of
    five sweeps whose sampler is no better it is said of one. Both are objectives of trials that finished or, as nan,
    were pruned. A pruner lets the first ones pass and is stricter with later ones; so that this is no matter,
    all that is no better than the median of what finished counts alike, pruned or not.
    """
    from scipy import stats

    finished = [value for value in (*random, *suggested) if not math.isnan(value)]
    if len(random) < LEAST_RANDOM or len(suggested) < LEAST_SUGGESTED or not finished:
        return None
    sign = 1 if direction == "maximize" else -1
    median = statistics.median(finished)
    first, later = (
        [0.0 if math.isnan(value) else max(0.0, sign * (value - median)) for value in values]
        for values in (random, suggested)
    )
    p = float(stats.mannwhitneyu(later, first, alternative="greater").pvalue)
    if p < NO_BETTER:
        return None
    shares = [sum(value > 0 for value in values) / len(values) for values in (later, first)]
    seen = (
        f"{shares[0]:.0%} of the {len(suggested)} trials that {sampler} suggested are better than the median of the "
        f"finished, and {shares[1]:.0%} of the {len(random)} random ones before them (rank test, p = {p:.2f})"
    )
    fix = f"n_trials = {2 * n_trials} under [study]; if that changes nothing, search fewer parameters"
    return Finding("info", "sampler-no-better", "study.sampler", seen, "suggestions better than chance", fix)
