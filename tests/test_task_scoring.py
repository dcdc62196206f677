"""Scores equal scikit-learn's own functions, over every row and in every corner."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from sklearn.utils.class_weight import compute_class_weight

from forge_sweep.errors import DataError
from forge_sweep.task import METRICS, Task, TaskKind


def frame(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame(columns)


def learned(kind: TaskKind, n: int = 400, seed: int = 0) -> tuple[Task, np.ndarray, np.ndarray]:
    """A task, its encoded targets and scores that are better than chance."""
    rng = np.random.default_rng(seed)
    if kind == "binary":
        targets = frame(y=rng.integers(0, 2, n))
    elif kind == "multiclass":
        targets = frame(y=rng.integers(0, 4, n))
    elif kind == "multilabel":
        targets = pd.DataFrame(rng.integers(0, 2, (n, 3)), columns=["a", "b", "c"])
    else:
        targets = pd.DataFrame(rng.normal(50, 9, (n, 2)), columns=["a", "b"])
    task = Task.learn(kind, targets)
    encoded = task.encode(targets)
    signal = np.eye(4)[encoded] if kind == "multiclass" else encoded
    noise = rng.normal(size=signal.shape) if kind == "regression" else rng.random(signal.shape)
    outputs = signal * 0.3 + noise * (1.0 if kind == "regression" else 0.7)
    return task, encoded, task.to_scores(outputs)


def test_binary_scores_equal_scikit_learns() -> None:
    task, encoded, scores = learned("binary")
    truth, score = encoded[:, 0].astype(int), scores[:, 0]
    for threshold in (None, 0.3):
        guess = (score >= (threshold or 0.5)).astype(int)
        assert task.score(encoded, scores, threshold=threshold) == pytest.approx(
            {
                "auc": metrics.roc_auc_score(truth, score),
                "pr_auc": metrics.average_precision_score(truth, score),
                "accuracy": metrics.accuracy_score(truth, guess),
                "balanced_accuracy": metrics.balanced_accuracy_score(truth, guess),
                "f1": metrics.f1_score(truth, guess),
                "precision": metrics.precision_score(truth, guess),
                "recall": metrics.recall_score(truth, guess),
                "mcc": metrics.matthews_corrcoef(truth, guess),
                "log_loss": metrics.log_loss(truth, score),
                "brier": metrics.brier_score_loss(truth, score),
            },
            abs=1e-12,
        )


def test_multiclass_scores_equal_scikit_learns() -> None:
    task, encoded, scores = learned("multiclass")
    guess = scores.argmax(axis=1)
    assert task.score(encoded, scores) == pytest.approx(
        {
            "auc": metrics.roc_auc_score(encoded, scores, multi_class="ovr"),
            "accuracy": metrics.accuracy_score(encoded, guess),
            "balanced_accuracy": metrics.balanced_accuracy_score(encoded, guess),
            "f1": metrics.f1_score(encoded, guess, average="macro"),
            "log_loss": metrics.log_loss(encoded, scores),
            "mcc": metrics.matthews_corrcoef(encoded, guess),
        },
        abs=1e-12,
    )


def test_multilabel_scores_equal_scikit_learns() -> None:
    task, encoded, scores = learned("multilabel")
    guess = (scores >= 0.5).astype(int)
    assert task.score(encoded, scores) == pytest.approx(
        {
            "auc": metrics.roc_auc_score(encoded, scores),
            "pr_auc": metrics.average_precision_score(encoded, scores),
            "f1": metrics.f1_score(encoded, guess, average="macro"),
            "accuracy": metrics.accuracy_score(encoded, guess),
            "hamming_loss": metrics.hamming_loss(encoded, guess),
            "log_loss": np.mean([metrics.log_loss(encoded[:, i], scores[:, i]) for i in range(3)]),
        },
        abs=1e-12,
    )


def test_regression_scores_equal_scikit_learns_in_original_units() -> None:
    rng = np.random.default_rng(1)
    targets = pd.DataFrame(rng.normal(1000, 50, (200, 2)), columns=["a", "b"])
    task = Task.learn("regression", targets)
    scores = targets.to_numpy() + rng.normal(0, 10, (200, 2))
    assert task.score(task.encode(targets), scores) == pytest.approx(
        {
            "rmse": metrics.root_mean_squared_error(targets, scores),
            "mae": metrics.mean_absolute_error(targets, scores),
            "r2": metrics.r2_score(targets, scores),
            "medae": metrics.median_absolute_error(targets, scores),
        },
        rel=1e-5,
    )


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=2, max_size=40))
def test_binary_ranking_metrics_are_exact_with_ties_and_without_one_class(rows: list[tuple[bool, float]]) -> None:
    task = Task.learn("binary", frame(y=[False, True] * 2))
    truth, score = (np.array(column) for column in zip(*rows, strict=True))
    found = task.score(truth.astype(np.float32)[:, None], score[:, None])
    assert list(found) == list(METRICS["binary"])
    if truth.all() or not truth.any():
        assert math.isnan(found["auc"]) and math.isnan(found["pr_auc"])
    else:
        assert found["auc"] == pytest.approx(metrics.roc_auc_score(truth, score), abs=1e-12)
        assert found["pr_auc"] == pytest.approx(metrics.average_precision_score(truth, score), abs=1e-12)
    assert not math.isnan(found["log_loss"])


def test_multiclass_auc_is_the_mean_over_the_classes_present_in_validation() -> None:
    task, encoded, scores = learned("multiclass")
    keep = encoded != 3
    encoded, scores = encoded[keep], scores[keep]
    expected = np.mean([metrics.roc_auc_score(encoded == code, scores[:, code]) for code in range(3)])
    found = task.score(encoded, scores)
    assert found["auc"] == pytest.approx(expected, abs=1e-12)
    assert found["log_loss"] == pytest.approx(metrics.log_loss(encoded, scores, labels=range(4)), abs=1e-12)
    assert math.isnan(task.score(encoded[encoded == 0], scores[encoded == 0])["auc"])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12))
@pytest.mark.filterwarnings("ignore:A single label was found", "ignore:y_pred contains classes not in y_true")
def test_metrics_of_decisions_are_scikit_learns_where_classes_are_missing_too(rows: list[tuple[int, int]]) -> None:
    task = Task.learn("multiclass", frame(y=[0, 1, 2, 3] * 2))
    truth, guess = (np.array(column) for column in zip(*rows, strict=True))
    scores = np.full((len(rows), 4), 0.01)
    scores[np.arange(len(rows)), guess] = 0.97
    found = task.score(truth.astype(np.int32), scores)
    expected = {
        "accuracy": metrics.accuracy_score(truth, guess),
        "balanced_accuracy": metrics.balanced_accuracy_score(truth, guess),
        "f1": metrics.f1_score(truth, guess, average="macro", zero_division=0.0),
        "log_loss": metrics.log_loss(truth, scores, labels=range(4)),
        "mcc": metrics.matthews_corrcoef(truth, guess),
    }
    if len(set(truth)) == 1:  # then no prediction gives these a meaning, whatever scikit-learn puts in their place
        assert all(math.isnan(found[name]) for name in ("balanced_accuracy", "f1", "mcc"))
        expected = {name: expected[name] for name in ("accuracy", "log_loss")}
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.3, 0.5, 1.0])), min_size=1, max_size=12))
def test_binary_decisions_and_losses_are_scikit_learns_where_a_class_is_missing_too(
    rows: list[tuple[bool, float]],
) -> None:
    task = Task.learn("binary", frame(y=[False, True] * 2))
    truth, score = (np.array(column) for column in zip(*rows, strict=True))
    found = task.score(truth.astype(np.float32)[:, None], score[:, None])
    expected = {
        "precision": metrics.precision_score(truth, score >= 0.5, zero_division=0.0),
        "recall": metrics.recall_score(truth, score >= 0.5, zero_division=0.0),
        "f1": metrics.f1_score(truth, score >= 0.5, zero_division=0.0),
        "log_loss": metrics.log_loss(truth, score, labels=[False, True]),
        "brier": metrics.brier_score_loss(truth, score, pos_label=True),
    }
    if len(set(truth)) == 1:
        assert all(math.isnan(found[name]) for name in ("precision", "recall", "f1"))
        expected = {name: expected[name] for name in ("log_loss", "brier")}
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_one_hot_and_integer_targets_score_alike() -> None:
    task, encoded, scores = learned("multiclass")
    one_hot = pd.DataFrame(np.eye(4, dtype=int)[encoded], columns=list("abcd"))
    other = Task.learn("multiclass", one_hot)
    assert other.one_hot and other.classes == tuple("abcd")
    assert other.score(other.encode(one_hot), scores) == task.score(encoded, scores)


@pytest.mark.parametrize("kind", METRICS)
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_predictions_that_are_not_finite_score_nan_in_every_metric(kind: TaskKind, poison: float) -> None:
    task, encoded, scores = learned(kind)
    scores = scores.copy()
    scores[3, 0] = poison
    found = task.score(encoded, scores)
    assert list(found) == list(METRICS[kind])
    assert all(math.isnan(value) for value in found.values())


@pytest.mark.parametrize("kind", METRICS)
def test_scores_are_plain_floats_and_no_rows_score_nan(kind: TaskKind) -> None:
    task, encoded, scores = learned(kind)
    assert {type(value) for value in task.score(encoded, scores).values()} == {float}
    assert all(math.isnan(value) for value in task.score(encoded[:0], scores[:0]).values())


# --- class weights, threshold, predictions


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_class_weights_are_scikit_learns_balanced_ones(kind: TaskKind) -> None:
    task, encoded, _ = learned(kind)
    codes = encoded.ravel().astype(int)
    expected = compute_class_weight("balanced", classes=np.unique(codes), y=codes)
    assert task.class_weights(encoded) == dict(enumerate(expected))


@pytest.mark.parametrize("kind", ["multilabel", "regression"])
def test_tasks_without_one_class_per_row_have_no_class_weights(kind: TaskKind) -> None:
    task, encoded, _ = learned(kind)
    with pytest.raises(DataError, match="class_weight"):
        task.class_weights(encoded)


def test_the_best_threshold_has_the_highest_f1_of_all() -> None:
    task, encoded, scores = learned("binary", n=60)
    best = task.best_threshold(encoded, scores)
    candidates = [task.score(encoded, scores, threshold=float(cut))["f1"] for cut in np.unique(scores)]
    assert task.score(encoded, scores, threshold=best)["f1"] == pytest.approx(max(candidates), abs=1e-12)
    assert best not in scores


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.2, 0.25, 0.5, 1.0])), min_size=2, max_size=20))
def test_the_best_threshold_is_best_with_ties(rows: list[tuple[bool, float]]) -> None:
    task = Task.learn("binary", frame(y=[False, True] * 2))
    truth, score = (np.array(column)[:, None] for column in zip(*rows, strict=True))
    encoded = truth.astype(np.float32)
    best = task.best_threshold(encoded, score)
    if truth.any() and not truth.all():
        tried = [task.score(encoded, score, threshold=cut)["f1"] for cut in (0.0, 0.1, 0.22, 0.3, 0.7)]
        assert task.score(encoded, score, threshold=best)["f1"] == pytest.approx(max(tried))
    else:
        assert best == 0.5


@pytest.mark.parametrize("kind", ["multiclass", "multilabel", "regression"])
def test_other_tasks_keep_one_half_as_threshold(kind: TaskKind) -> None:
    task, encoded, scores = learned(kind)
    assert task.best_threshold(encoded, scores) == 0.5
