"""Several objectives, on plain numbers: the front, its volume, the rule that chooses, and what is hopeless."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forge_sweep.study.pareto import (
    BEATEN_BY,
    LEAST,
    Front,
    Point,
    Track,
    beaten_by,
    by_rule,
    dominates,
    front_of,
    hypervolume,
    margins,
    noise,
    turned,
)

SMALL = st.integers(0, 4).map(float)
POINTS = st.integers(1, 3).flatmap(lambda n: st.lists(st.tuples(*[SMALL] * n), min_size=1, max_size=8))


@given(POINTS)
def test_the_front_is_what_none_dominates_and_all_else_is_dominated_or_equal(points: list[Point]) -> None:
    named = dict(enumerate(points))
    front = front_of(named)
    assert front and list(front) == sorted(front)
    for number, point in named.items():
        above = [other for other in front if dominates(named[other], point) or named[other] == point]
        assert above == [number] if number in front else above


@given(POINTS)
def test_the_volume_is_that_of_the_unit_cubes_that_are_dominated(points: list[Point]) -> None:
    reference = (4.0,) * len(points[0])
    cubes = itertools.product(range(4), repeat=len(reference))
    dominated = sum(any(all(p <= c for p, c in zip(point, cube, strict=True)) for point in points) for cube in cubes)
    assert hypervolume(points, reference) == dominated
    front = front_of(dict(enumerate(points)))
    assert hypervolume([points[number] for number in front], reference) == dominated, "the others add nothing"


@given(POINTS, st.sampled_from([0.0, 0.5, 1.0, 2.0, 9.0]))
def test_the_rule_puts_all_in_order_and_chooses_the_cheapest_within_the_margin(
    points: list[Point], margin: float
) -> None:
    named = dict(enumerate(points))
    order, front = by_rule(named, margin), front_of(named)
    assert sorted(order) == sorted(named) and set(order[: len(front)]) == set(front)
    best = min(point[0] for point in points)
    chosen = named[order[0]]
    assert chosen[0] <= best + margin
    assert all(chosen[1:] <= named[number][1:] for number in front if named[number][0] <= best + margin)
    assert best in {named[number][0] for number in order[:2]}, "what it is measured by is confirmed beside it"
    if margin == 0:
        assert chosen[0] == best


def test_the_rule_without_points_and_with_directions() -> None:
    assert by_rule({}, 1.0) == []
    assert turned((0.9, 3.0), ("maximize", "minimize")) == (-0.9, 3.0)
    assert turned(turned((0.9, 3.0), ("maximize", "minimize")), ("maximize", "minimize")) == (0.9, 3.0)


def test_noise_is_what_is_left_of_a_curve_once_its_trend_is_taken_off() -> None:
    climbing = [0.1 * at for at in range(12)]
    assert noise([climbing]) == pytest.approx(0)
    shaken = [0.9 + 0.01 * (-1) ** at for at in range(400)]
    assert noise([shaken]) == pytest.approx(0.01 * math.sqrt(2), rel=0.3)
    stream = np.random.default_rng(0)
    found = noise(list(0.9 + 0.002 * at + 0.01 * stream.standard_normal(20)) for at in range(200))
    assert found == pytest.approx(0.01, rel=0.2)
    assert noise([[0.5, 0.6]]) == 0.0 and noise([]) == 0.0
    assert noise([[math.nan, *climbing[:2]]]) == 0.0


# What is hopeless


def line(top: float, size: float, epochs: int = 10, final: Point | None = None, slow: float = 1.0) -> Track:
    """A trial whose loss falls to ``top``, of a model of this size."""
    points = {at: (top + slow / at, size) for at in range(1, epochs + 1)}
    return Track(points, final or points[epochs])


FINISHED = {number: line(0.1 + 0.01 * number, 10.0) for number in range(4)}


def test_what_several_finished_trials_beat_in_every_objective_is_hopeless() -> None:
    assert beaten_by(line(0.5, 10.0), FINISHED, 5) == (0, 1, 2, 3), "as large, and worse"
    assert beaten_by(line(0.5, 12.0), FINISHED, 5) == (0, 1, 2, 3)
    assert beaten_by(line(0.5, 9.0), FINISHED, 5) == (), "it is smaller than all of them"
    assert beaten_by(line(0.05, 99.0), FINISHED, 5) == (), "it is better than all of them"
    assert beaten_by(line(0.115, 12.0), FINISHED, 5) == (), "two alone are better"
    assert BEATEN_BY == 3 and beaten_by(line(0.125, 12.0), FINISHED, 5) == (0, 1, 2)


def test_equals_are_not_hopeless() -> None:
    assert beaten_by(line(0.1, 10.0), {number: line(0.1, 10.0) for number in range(4)}, 5) == ()


def test_a_lead_counts_only_beyond_what_curves_still_move() -> None:
    """Late risers among the finished trials make early leads worthless, and late ones no less worth."""
    crossing = {number: line(0.1, 10.0, slow=slow) for number, slow in enumerate((0.1, 0.1, 1.5, 1.5))}
    early, late = (margins(crossing.values(), step) for step in (2, 10))
    assert early is not None and late is not None and early[0] > 0.3 > late[0] == early[1] == 0
    assert beaten_by(line(0.3, 10.0, slow=0.1), crossing, 2) == ()
    assert beaten_by(line(0.3, 10.0, slow=0.1), crossing, 10) == (0, 1, 2, 3)


def test_a_measure_that_changes_has_a_margin_of_its_own() -> None:
    """Milliseconds are measured before and after the training: by how much they differ is not to be told apart."""
    timed = {n: line(0.1, 10.0 + off, final=(0.2, 10.0)) for n, off in enumerate((-1.0, 1.0, -1.0, 1.0))}
    found = margins(timed.values(), 10)
    assert found is not None and found[1] == pytest.approx(math.sqrt(2))
    assert beaten_by(line(0.5, 10.4), timed, 10) == (), "faster by less than that"
    assert beaten_by(line(0.5, 13.0), timed, 10) == (0, 1, 2, 3)


def test_nothing_is_judged_without_enough_finished_trials_nor_by_what_is_not_known() -> None:
    few = dict(itertools.islice(FINISHED.items(), LEAST - 1))
    assert margins(few.values(), 5) is None and beaten_by(line(0.9, 99.0), few, 5) == ()
    unknown = Track({5: (0.9, math.nan)})
    assert beaten_by(unknown, FINISHED, 5) == ()
    assert beaten_by(Track({5: (math.nan, 99.0)}), FINISHED, 5) == () and beaten_by(Track({}), FINISHED, 5) == ()
    assert beaten_by(line(0.9, 99.0), {**FINISHED, 9: Track({}, (0.0, 0.0))}, 5) == (0, 1, 2, 3)


def test_a_trial_is_compared_by_its_best_epoch_so_far() -> None:
    track = Track({1: (0.9, 1.0), 2: (0.4, 2.0), 3: (0.6, 3.0), 4: (0.1, 4.0)})
    assert [track.at(step) for step in range(5)] == [None, (0.9, 1.0), (0.4, 2.0), (0.4, 2.0), (0.1, 4.0)]


@given(st.lists(st.tuples(SMALL, SMALL), min_size=3, max_size=6), st.tuples(SMALL, SMALL), st.integers(1, 3))
def test_what_no_finished_trial_beats_is_never_pruned(ends: list[Point], mine: Point, step: int) -> None:
    finished = {at: Track({n: (end[0] + 3 - n, end[1]) for n in (1, 2, 3)}, end) for at, end in enumerate(ends)}
    track = Track({n: (mine[0] + 3 - n, mine[1]) for n in (1, 2, 3)})
    for number in beaten_by(track, finished, step):
        assert dominates(ends[number], mine), "all of them gain the same from there on"


# The front of a study

WAYS: Any = {"val_auc": "maximize", "latency_ms": "minimize"}


def test_a_front_says_what_it_is_and_what_it_chooses() -> None:
    values = {0: (0.90, 2.0), 3: (0.95, 4.0), 5: (0.949, 3.0), 7: (0.80, 6.0)}
    front = Front.of(values, WAYS, 0.002)
    assert front is not None and front.chosen == 5 and list(front.points) == [5, 3, 0] and front.order == (5, 3, 0, 7)
    assert front.reference == (0.80, 6.0) and front.finished == 4
    # Of a box of 0.15 by 4 ms: 0.1 x 4, 0.049 x 3 and 0.001 x 2.
    assert front.hypervolume == pytest.approx((0.1 * 4 + 0.049 * 3 + 0.001 * 2) / (0.15 * 4))
    assert front.choice == (
        "trial 5 (val_auc 0.9490, latency_ms 3.0000): of the trials on the front whose val_auc is at most 0.0020 "
        "(objective.tolerance) from the best, the one with the least latency_ms"
    )
    assert front.words.startswith("3 of 4 finished trials are on the Pareto front") and "0.8000" in front.words
    told = front.to_dict()
    assert told["trials"][0] == {"number": 5, "val_auc": 0.949, "latency_ms": 3.0} and told["chosen"] == 5
    strict = Front.of(values, WAYS, 0.0)
    assert strict is not None and strict.chosen == 3


def test_without_a_tolerance_it_is_the_noise_over_epochs() -> None:
    values = {0: (0.95, 4.0), 1: (0.948, 3.0)}
    shaken = [[0.94, 0.95, 0.94, 0.95, 0.94]] * 2
    front, settled = Front.of(values, WAYS, None, shaken), Front.of(values, WAYS, None, [[0.9] * 5] * 2)
    assert front is not None and settled is not None
    assert (front.chosen, settled.chosen) == (1, 0) and "the noise over epochs" in front.rule
    assert Front.of({}, WAYS, None) is None


def test_objectives_in_which_all_are_equal_take_nothing_from_the_volume() -> None:
    front = Front.of({0: (0.9, 2.0), 1: (0.8, 2.0)}, WAYS, None)
    assert front is not None and front.hypervolume == 1.0 and list(front.points) == [0]
    alone = Front.of({4: (0.9, 2.0)}, WAYS, None)
    assert alone is not None and alone.hypervolume == 1.0 and alone.chosen == 4
