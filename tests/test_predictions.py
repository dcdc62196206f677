"""Predictions that a sweep kept: the file, comparisons, other metrics, and what choosing the best of many costs."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from forge_sweep import predictions
from forge_sweep.errors import InputError
from forge_sweep.predictions import Kept
from forge_sweep.task import Answers, Task
from forge_sweep.task.optimism import best_of

ROWS = 400
RNG = np.random.default_rng(0)
TRUTH = RNG.integers(0, 2, ROWS)
TASK = Task.learn("binary", pd.DataFrame({"y": TRUTH}))
ENCODED = TASK.encode(pd.DataFrame({"y": TRUTH}))


def scores(noise: float, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(ROWS, 1))
    return (1 / (1 + np.exp(-(ENCODED - 0.5) - noise * drawn))).astype(np.float32)


KEPT = Kept(
    "credit",
    TASK,
    ENCODED,
    "0123456789abcdef",
    "val_auc",
    {"trial:0": scores(0.3, 0), "trial:7": scores(3.0, 1), "baseline:xgboost": scores(0.3, 2)},
    ("trial:0", "trial:7"),
    {"trial:3": "it failed (diverged)"},
)


def test_a_file_gives_the_scores_back():
    about, arrays = predictions._unpacked(predictions.pack(scores(1.0, 0), "abc"))
    assert about["rows"] == "abc" and (arrays["scores"] == scores(1.0, 0)).all() and not arrays["offset"].any()


def test_a_large_offset_costs_no_digits():
    seconds = 1.7e9 + RNG.normal(size=(50, 1))
    _, arrays = predictions._unpacked(predictions.pack(seconds, "abc"))
    assert np.abs(arrays["scores"] + arrays["offset"] - seconds).max() < 1e-6


def test_predictions_that_are_not_finite_are_kept_as_they_are():
    _, arrays = predictions._unpacked(predictions.pack(np.array([[np.inf], [5.0], [np.nan]]), "abc"))
    assert np.isinf(arrays["scores"][0, 0]) and np.isnan(arrays["scores"][2, 0])


def test_the_better_of_two_is_told_from_the_worse_and_not_from_its_like():
    better, like = KEPT.compare("trial:0", "7"), KEPT.compare("0", "xgboost")
    assert (better.one, better.other, better.outcome) == ("trial:0", "trial:7", "better")
    assert KEPT.compare("7", "0").gain.gain.value == -better.gain.gain.value
    assert (like.other, like.outcome, like.gain.metric) == ("baseline:xgboost", "as good as", "auc")
    assert better.to_dict()["low"] > 0


def test_any_metric_is_known_afterwards_and_an_unknown_one_is_refused():
    assert KEPT.score("val_pr_auc")["trial:0"] > KEPT.score("pr_auc")["trial:7"]
    with pytest.raises(InputError, match="no metric 'rmse' of a binary task") as refusal:
        KEPT.score("rmse")
    assert "pr_auc" in str(refusal.value.hint)


def test_a_model_without_predictions_is_named_with_the_cause():
    with pytest.raises(InputError, match=r"no predictions of trial:3: it failed \(diverged\)"):
        KEPT.compare("0", "3")
    with pytest.raises(InputError, match="no model 'forest'"):
        KEPT.compare("0", "forest")


def test_other_rows_are_refused_with_both_fingerprints():
    other = dataclasses.replace(KEPT, study="credit-2", rows="fedcba9876543210")
    with pytest.raises(InputError, match=r"0123456789abcdef .* and fedcba9876543210"):
        KEPT.compare("0", "0", beside=other)
    same = dataclasses.replace(KEPT, study="credit-2")
    assert KEPT.compare("0", "7", beside=same).other == "credit-2#trial:7"


def test_the_best_of_many_equal_ones_is_corrected_to_what_they_are():
    """All guess: the best by 60 rows of 40 looks far better than 0.5, and is 0.5 on rows that did not choose it."""
    found = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        truth = rng.permutation(np.arange(60) % 2).astype(np.float32)[:, None]
        guesses = [Answers(rng.random((60, 1)), 0.5) for _ in range(40)]
        found.append(best_of(TASK, truth, guesses, "auc", resamples=200))
    assert np.mean([each.value for each in found]) > 0.62
    assert abs(np.mean([each.corrected.value for each in found]) - 0.5) < 0.05
    assert all(each.corrected.low < 0.5 < each.corrected.high for each in found)


def test_the_best_by_far_needs_no_correction_and_the_rest_is_left_out_without_changing_that():
    models = [Answers(np.asarray(scores(noise, i), np.float64), 0.5) for i, noise in enumerate([3.0, 0.2, 3.0, 3.0])]
    found = best_of(TASK, ENCODED, models, "log_loss", resamples=300)
    assert (found.best, found.n, found.often) == (1, 4, 1.0)
    assert found.corrected.low < found.value < found.corrected.high
    assert abs(found.corrected.value - found.value) < 0.01
