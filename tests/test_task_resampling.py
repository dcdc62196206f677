"""Metrics of resamples equal the metrics of the rows drawn; intervals hold what they promise."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pandas as pd
import pytest

from forge_sweep.task import METRICS, Answers, Gain, Task, TaskKind, draw, gains, intervals
from forge_sweep.task.bootstrap import _counts, _resampled
from forge_sweep.task.metrics import parts
from tests.test_task_scoring import learned

KINDS: tuple[TaskKind, ...] = ("binary", "multiclass", "multilabel", "regression")


def gain(task: Task, encoded: np.ndarray, one: Answers, other: Answers, metric: str, *, resamples: int) -> Gain:
    return gains(task, encoded, one, other, (metric,), resamples=resamples)[metric]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ties", [False, True])
def test_a_resample_has_the_metrics_of_its_rows(kind: TaskKind, ties: bool) -> None:
    """Every metric, against `Task.score` on copies of the rows, equal scores among them."""
    task, encoded, scores = learned(kind, n=120)
    if ties:
        scores = np.round(scores, 1)
        scores = scores / scores.sum(axis=1, keepdims=True) if kind == "multiclass" else scores
    names = list(METRICS[kind])
    for row, counts in enumerate(next(_counts(len(encoded), 20, 3))):
        drawn = np.repeat(np.arange(len(encoded)), counts.astype(int))
        expected = task.score(encoded[drawn], scores[drawn], threshold=0.4)
        found = {}
        for values in parts(kind, task.truth(encoded), scores, 0.4, names):
            found |= {name: float(value[0]) for name, value in values(counts[None]).items() if name in names}
        assert found == pytest.approx(expected, abs=1e-9), row


def test_a_resample_without_one_class_has_no_auc() -> None:
    """It is left out of the interval."""
    task = Task.learn("binary", pd.DataFrame({"y": [0, 1] * 3}))
    encoded = task.encode(pd.DataFrame({"y": [0, 0, 0, 0, 0, 1]}))
    answers = Answers(np.linspace(0, 1, 6)[:, None], 0.5)
    drawn = _resampled(task, encoded, (answers,), ("auc", "accuracy"), 200, 0)
    assert 0 < np.isnan(drawn["auc"]).mean() < 1 and not np.isnan(drawn["accuracy"]).any()
    assert intervals(task, encoded, answers, resamples=200)["auc"].low == 1.0


@pytest.mark.parametrize("kind", ["binary", "regression"])
def test_models_that_are_drawn_together_have_the_intervals_of_each_alone(kind: TaskKind) -> None:
    """And the first resamples of many are those of few, over all chunks in which counts are drawn."""
    task, encoded, scores = learned(kind, n=9000)
    one, other = Answers(scores, 0.4), Answers(scores[::-1], 0.4)
    names = list(METRICS[kind])[:2]
    together = draw(task, encoded, (one, other), names, resamples=300)
    few = draw(task, encoded, (other,), names, resamples=40)
    apart = gains(task, encoded, one, other, names, resamples=300)
    for name in names:
        pairs = (
            (together.interval(1, name, 40), few.interval(0, name)),
            (together.gain(0, 1, name).gain, apart[name].gain),
        )
        for found, expected in pairs:
            assert astuple(found) == pytest.approx(astuple(expected), rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_better_model_gains_and_the_same_one_does_not(kind: TaskKind) -> None:
    """Whatever the direction of the metric; a model against itself is a gain of exactly 0."""
    task, encoded, scores = learned(kind, n=600)
    rng = np.random.default_rng(1)
    worse = scores[rng.permutation(len(scores))]
    for metric in METRICS[kind]:
        better = gain(task, encoded, Answers(scores, 0.5), Answers(worse, 0.5), metric, resamples=200)
        assert better.beyond_noise and better.gain.low < better.gain.value < better.gain.high, metric
        assert not gain(task, encoded, Answers(worse, 0.5), Answers(scores, 0.5), metric, resamples=200).beyond_noise
        same = gain(task, encoded, Answers(scores, 0.5), Answers(scores, 0.5), metric, resamples=50)
        assert (same.gain.value, same.gain.low, same.gain.high) == (0.0, 0.0, 0.0) and not same.beyond_noise


def test_the_interval_covers_as_often_as_it_says() -> None:
    """Mean squared errors of 300 samples of 200 rows: the truth lies inside in about 95 of 100."""
    rng, inside = np.random.default_rng(0), 0
    task = Task.learn("binary", pd.DataFrame({"y": [0, 1, 0, 1]}))
    chance = 0.3 * 0.7**2 + 0.7 * 0.3**2
    for seed in range(300):
        encoded = task.encode(pd.DataFrame({"y": (rng.random(200) < 0.3).astype(int)}))
        found = intervals(task, encoded, Answers(np.full((200, 1), 0.3), 0.5), resamples=300, seed=seed)["brier"]
        inside += found.low <= chance <= found.high
    assert 0.90 <= inside / 300 <= 0.98


def test_resamples_are_the_same_for_one_seed_however_they_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figure in a card can be made again; memory is bounded whatever the rows."""
    from forge_sweep.task import bootstrap

    task, encoded, scores = learned("binary", n=300)
    whole = gain(task, encoded, Answers(scores, 0.5), Answers(scores**2, 0.5), "auc", resamples=100)
    monkeypatch.setattr(bootstrap, "AT_ONCE", 7 * 300)
    assert gain(task, encoded, Answers(scores, 0.5), Answers(scores**2, 0.5), "brier", resamples=100).gain.low != 0
    again = gain(task, encoded, Answers(scores, 0.5), Answers(scores**2, 0.5), "auc", resamples=100)
    assert again == whole
