"""Several objectives at once: which trials are on the Pareto front, which of them is chosen, which are hopeless.

Everything here is pure. Points are one trial's values, one per objective, turned so that lower is better (`turned`).
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forge_sweep.task import Direction
from forge_sweep.task.words import figure

Point = tuple[float, ...]

TAIL = 5
"""Last epochs of a trial that say by how much its objective moves from epoch to epoch."""

BEATEN_BY = 3
"""Finished trials that have to be better than one that is pruned: one or two may have been lucky."""

LEAST = 3
"""Finished trials below which it is not known how much curves still move."""


def turned(values: Iterable[float], directions: Iterable[Direction]) -> Point:
    """Values with their signs such that lower is better; the same turns them back."""
    return tuple(-v if each == "maximize" else v for v, each in zip(values, directions, strict=True))


def dominates(one: Point, other: Point) -> bool:
    """Whether one is at least as good in every objective and better in one; never with NaN."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and any(a < b for a, b in zip(one, other, strict=True))


def front_of(points: Mapping[int, Point]) -> tuple[int, ...]:
    """The numbers of the points that none dominates, ascending; of equal points the first."""
    kept: list[int] = []
    for number in sorted(points):
        point = points[number]
        if any(dominates(points[other], point) or points[other] == point for other in kept):
            continue
        kept = [other for other in kept if not dominates(point, points[other])] + [number]
    return tuple(kept)


def hypervolume(points: Iterable[Point], reference: Point) -> float:
    """The volume of what the points dominate up to ``reference``, in the product of the objectives' units.

    By slices along the last objective, which takes long for many objectives and not for the few of a sweep (While et
    al. 2006, https://doi.org/10.1109/TEVC.2005.851275).
    """
    inside = sorted({p for p in points if all(a < b for a, b in zip(p, reference, strict=True))}, key=lambda p: p[-1])
    if len(reference) == 1:
        return reference[0] - inside[0][0] if inside else 0.0
    ends = [*(point[-1] for point in inside[1:]), reference[-1]]
    volume = 0.0
    for at, end in enumerate(ends[: len(inside)]):
        if end > inside[at][-1]:
            slices = (point[:-1] for point in inside[: at + 1])
            volume += (end - inside[at][-1]) * hypervolume(slices, reference[:-1])
    return volume


def by_rule(points: Mapping[int, Point], margin: float) -> list[int]:
    """The numbers of all points, the chosen one first.

    Of those on the front whose first objective is at most ``margin`` from the best, it is the one with the best second
    objective, where these are equal the third, and so on. The best by the first objective comes next, since it is what
    the others are measured by; then the others within the margin by the same rule, the rest of the front and last what
    is dominated, these by the first objective.
    """
    if not points:
        return []
    front, last = front_of(points), [(point[0], number) for number, point in points.items()]
    best = min((points[number][0], number) for number in front)
    within = sorted(
        (number for number in front if points[number][0] <= best[0] + margin), key=lambda n: (points[n][1:], points[n])
    )
    first = [*within[:1], best[1], *within[1:]]
    rest = sorted(each for each in last if each[1] in front)
    return list(dict.fromkeys([*first, *(number for _, number in rest), *(number for _, number in sorted(last))]))


def noise(curves: Iterable[Sequence[float]]) -> float:
    """By how much the objective moves from one epoch to the next once trials have settled.

    The median over trials of the standard deviation of one epoch, from the differences of neighbours among the last
    `TAIL` around their mean, so that a curve that still climbs is no noise. 0 where no trial has three epochs.
    """
    found = []
    for curve in curves:
        tail = [value for value in curve[-TAIL:] if math.isfinite(value)]
        if len(tail) > 2:
            found.append(statistics.stdev(b - a for a, b in itertools.pairwise(tail)) / math.sqrt(2))
    return statistics.median(found) if found else 0.0


@dataclass(frozen=True)
class Track:
    """How a trial went: its points by completed epochs, and where it ended.

    What is measured of a model is in each point as it was before the training, and in ``final`` as it was after it.
    A NaN stands for what is not known.
    """

    points: Mapping[int, Point]
    final: Point | None = None  # None while it runs

    def at(self, step: int) -> Point | None:
        """What it would have ended with after so many epochs: its point at the best of them by the first objective."""
        known = [(point[0], at) for at, point in self.points.items() if at <= step and not math.isnan(point[0])]
        return self.points[min(known)[1]] if known else None


def margins(finished: Iterable[Track], step: int) -> Point | None:
    """By how much the difference of two trials still moves after so many epochs, for each objective.

    The standard deviation, over the finished trials that were still trained then, of what they gained from there to
    their end, times the square root of 2 for the two of them: learning curves that cross, a row that took longer. None
    where they are fewer than `LEAST`.
    """
    known = [
        tuple(end - now for end, now in zip(track.final, point, strict=True))
        for track in finished
        if track.final is not None and max(track.points, default=0) >= step and (point := track.at(step)) is not None
    ]
    gains = [each for each in known if all(map(math.isfinite, each))]
    if len(gains) < LEAST:
        return None
    return tuple(math.sqrt(2) * statistics.pstdev(of_one) for of_one in zip(*gains, strict=True))


def beaten_by(track: Track, finished: Mapping[int, Track], step: int) -> tuple[int, ...]:
    """The numbers of the finished trials that make one hopeless: better in every objective, by more than it moves.

    Empty where they are fewer than `BEATEN_BY`. They are compared after as many epochs. An objective that does not
    move, such as a number of parameters, has to be as good; one that is not known of either trial rules them out.
    """
    now, needed = track.at(step), margins(finished.values(), step)
    if now is None or needed is None:
        return ()
    found = []
    for number, other in finished.items():
        if (then := other.at(step)) is None:
            continue
        leads = [mine - its for mine, its in zip(now, then, strict=True)]
        beyond = all(lead > least if least else lead >= 0 for lead, least in zip(leads, needed, strict=True))
        if beyond and any(lead > 0 for lead in leads):
            found.append(number)
    return tuple(found) if len(found) >= BEATEN_BY else ()


@dataclass(frozen=True)
class Front:
    """The Pareto front of a study's finished trials.

    Attributes:
        directions: of the objectives, by name, in their order.
        points: values of each trial on the front, by number, the chosen one first; see `by_rule`.
        order: the numbers of all finished trials, in the order of `by_rule`.
        tolerance: how much of the first objective the choice may give up.
        given: whether that is ``objective.tolerance``; else it is the noise over epochs, see `noise`.
        reference: the worst value of each objective among the finished trials.
        hypervolume: what the front dominates, as a share of the box between ``reference`` and the best values.
    """

    directions: Mapping[str, Direction]
    points: Mapping[int, tuple[float, ...]]
    order: tuple[int, ...]
    tolerance: float
    given: bool
    reference: tuple[float, ...]
    hypervolume: float

    @property
    def finished(self) -> int:
        """How many trials are compared."""
        return len(self.order)

    @classmethod
    def of(
        cls,
        values: Mapping[int, Sequence[float]],
        directions: Mapping[str, Direction],
        tolerance: float | None,
        curves: Iterable[Sequence[float]] = (),
    ) -> Front | None:
        """The front of these values by trial; None where there are none. ``curves``: of the first objective."""
        points = {number: turned(each, directions.values()) for number, each in values.items()}
        if not points:
            return None
        margin = noise(curves) if tolerance is None else tolerance
        on_front, order = set(front_of(points)), by_rule(points, margin)
        worst = tuple(max(column) for column in zip(*points.values(), strict=True))
        best = tuple(min(column) for column in zip(*points.values(), strict=True))
        # An objective in which all are equal spans nothing, and is left out.
        spans = [at for at, (low, high) in enumerate(zip(best, worst, strict=True)) if high > low]
        scaled = [
            tuple((points[number][at] - best[at]) / (worst[at] - best[at]) for at in spans) for number in on_front
        ]
        return cls(
            directions=dict(directions),
            points={number: tuple(values[number]) for number in order if number in on_front},
            order=tuple(order),
            tolerance=margin,
            given=tolerance is not None,
            reference=turned(worst, directions.values()),
            hypervolume=hypervolume(scaled, (1.0,) * len(spans)) if spans else 1.0,
        )

    @property
    def chosen(self) -> int:
        """The number of the trial that the rule chooses."""
        return next(iter(self.points))

    @property
    def rule(self) -> str:
        """The rule in words, without a full stop."""
        first, *further = self.directions
        how = "objective.tolerance" if self.given else "the noise over epochs"
        best = "least" if self.directions[further[0]] == "minimize" else "most"
        return (
            f"of the trials on the front whose {first} is at most {figure(self.tolerance)} ({how}) from the best, the "
            f"one with the {best} {further[0]}"
        )

    @property
    def words(self) -> str:
        """What there is, in a sentence without its full stop."""
        worst = ", ".join(f"{name} {figure(v)}" for name, v in zip(self.directions, self.reference, strict=True))
        return (
            f"{len(self.points)} of {self.finished} finished trials are on the Pareto front, which dominates "
            f"{self.hypervolume:.1%} of the box between the best values and the worst ({worst})"
        )

    @property
    def choice(self) -> str:
        """What the rule chooses, in a sentence without its full stop."""
        return f"trial {self.chosen} ({self.figures(self.chosen)}): {self.rule}"

    def figures(self, number: int) -> str:
        """The values of a trial on the front, such as ``val_auc 0.9912, latency_ms 3.4``."""
        return ", ".join(f"{name} {figure(v)}" for name, v in zip(self.directions, self.points[number], strict=True))

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "objectives": dict(self.directions),
            "trials": [
                {"number": number, **dict(zip(self.directions, values, strict=True))}
                for number, values in self.points.items()
            ],
            "chosen": self.chosen,
            "rule": self.rule,
            "words": self.words,
            "tolerance": self.tolerance,
            "reference": dict(zip(self.directions, self.reference, strict=True)),
            "hypervolume": self.hypervolume,
            "finished": self.finished,
        }
