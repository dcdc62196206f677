"""Is more search worth it? What the next trials are expected to gain, what they cost, and what seeds alone do."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from forge_sweep.study.budget import span
from forge_sweep.task.words import figure

if TYPE_CHECKING:
    from forge_sweep.study.trials import StudyView

AHEAD = 10
"""Trials that it looks ahead."""

FEWEST = 10
"""Ended trials below which nothing can be said."""


def n_at_random(view: StudyView) -> int:
    """How many trials, counted from number 0, the sampler gave before it read a score."""
    learns = view.resolved["study"]["sampler"] not in ("random", "qmc", "grid")
    return (_startup(view) or 1) if learns else len(view.rows())


def _startup(view: StudyView) -> int:
    from forge_sweep.study.samplers import STARTUP

    return STARTUP.get(view.resolved["study"]["sampler"], 0)


@dataclass(frozen=True)
class Outlook:
    """What so many more trials are worth.

    Attributes:
        trials: how many more.
        seen: the trials that this is estimated from.
        gain: by how much they are expected to better the best score.
        noise: standard deviation of a score over seeds, from the confirmation; None before it, and with one seed.
        seconds: wall clock that they take; None where no trial has a cost.
        metric: the objective.
        ended: whether the sweep has ended.
    """

    trials: int
    seen: int
    gain: float
    noise: float | None
    seconds: float | None
    metric: str
    ended: bool = False

    @property
    def words(self) -> str:
        """In a sentence, without its full stop."""
        price = "" if self.seconds is None else f" and take about {span(self.seconds)}"
        said = f"{self.trials} more trials would gain about {figure(self.gain)} of {self.metric} on average{price}"
        if self.noise is None and self.ended:
            return f"{said}; what seeds alone do to a score is not known: one seed gives no spread (confirm.seeds)"
        if self.noise is None:
            return f"{said}; what seeds alone do to a score is known after the confirmation"
        judged = "they may be worth it" if self.gain > self.noise else "they are not worth it"
        return f"{said}, and another seed alone moves a score by {figure(self.noise)}: {judged}"

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "words": self.words}


def outlook(view: StudyView) -> Outlook | None:
    """What `AHEAD` more trials are worth, or half as many as were seen.

    None below `FEWEST` ended trials, and where the space has no more configurations.

    A pruned one counts as no better than any.
    """
    if view.all_tried:  # there are no more
        return None
    sign = 1.0 if view.direction == "maximize" else -1.0
    scores = [-math.inf if value is None else sign * value for _, value in view.objectives()]
    found = ahead(scores, _startup(view))
    if found is None:
        return None
    (n, seen, gain), final = found, view.final()
    costs = [cost.total.seconds for cost in view.costs().values()]
    workers = view.resolved.get("workers", {})
    at_once = 1 if workers.get("kind", "serial") == "serial" else workers.get("n") or 1
    return Outlook(
        trials=n,
        seen=seen,
        gain=gain,
        noise=noise_of(final or {}),
        seconds=n * statistics.fmean(costs) / at_once if costs else None,
        metric=str(view.resolved["objective"]["metric"]),
        ended=final is not None,
    )


def ahead(scores: Sequence[float], startup: int) -> tuple[int, int, float] | None:
    """For how many more trials, from how many that were seen, and what these are expected to gain; see `gain_of`.

    From the trials after the sampler's random start, where there are enough: those that it suggested are what more
    trials would be like. None where too few ended, or none has a score.

    Args:
        scores: in the order in which the trials ended, higher is better, -inf for one without a score.
        startup: how many the sampler draws at random.
    """
    start = startup if len(scores) - startup >= FEWEST else 0
    early, late = scores[:start], scores[start:]
    if len(late) < FEWEST or max(scores) == -math.inf:
        return None
    floor = max(early, default=-math.inf)
    if floor == -math.inf:
        floor = min(score for score in late if score > -math.inf)
    n = min(AHEAD, len(late) // 2)
    return n, len(late), gain_of(late, n, floor)


def gain_of(scores: Sequence[float], n: int, floor: float = -math.inf) -> float:
    """What the last ``n`` of these added to the best on average over their orders: E max(N) - E max(N - n).

    The expected maximum of independent draws is concave in their number, so that n more of them add no more than this;
    a sampler that learns may. The expected maximum over subsets is that of Dodge et al. 2019
    (https://arxiv.org/abs/1909.03004), drawn without replacement. Scores below ``floor``, the best that was known
    before, count as that.
    """
    ordered = sorted(max(score, floor) for score in scores)
    return ordered[-1] - _best_of(ordered, len(ordered) - n)


def _best_of(ordered: Sequence[float], k: int) -> float:
    """The mean, over all subsets of ``k``, of their largest; the values ascend."""
    share, mean = k / len(ordered), 0.0  # of the subsets with the i-th value as their largest, from the last one on
    for i in range(len(ordered), k - 1, -1):
        mean += share * ordered[i - 1]
        share *= (i - k) / (i - 1) if i > 1 else 0.0
    return mean


def noise_of(final: Mapping[str, Any]) -> float | None:
    """Standard deviation over seeds, pooled over the confirmed networks; None where there is none with two seeds."""
    groups = [row["values"] for row in final.get("confirmed", ()) if not row["baseline"] and len(row["values"]) > 1]
    freedom = sum(len(values) - 1 for values in groups)
    squares = sum(statistics.variance(values) * (len(values) - 1) for values in groups)
    return math.sqrt(squares / freedom) if freedom else None
