"""A metric that the targets do not define is nan, whatever is predicted, and the targets are named."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from forge_sweep.task import METRICS, Answers, Task, TaskKind, intervals

LEARNED = {
    "binary": pd.DataFrame({"y": ["no", "yes"] * 5}),
    "multiclass": pd.DataFrame({"y": ["a", "b", "c"] * 4}),
    "multilabel": pd.DataFrame({"mail": [0, 1] * 5, "shop": [1, 0] * 5}),
    "regression": pd.DataFrame({"spent": np.arange(10.0), "visits": np.arange(10.0) ** 2}),
}

CASES: list[tuple[TaskKind, dict[str, list[object]], set[str], str]] = [
    ("binary", {"y": ["no"] * 6}, {"auc", "pr_auc", "precision", "recall", "f1", "balanced_accuracy", "mcc"}, "no"),
    ("binary", {"y": ["yes"] * 6}, {"auc", "pr_auc", "precision", "recall", "f1", "balanced_accuracy", "mcc"}, "yes"),
    ("binary", {"y": ["no", "yes"] * 3}, set(), ""),
    ("multiclass", {"y": ["b"] * 6}, {"auc", "f1", "balanced_accuracy", "mcc"}, "b"),
    ("multiclass", {"y": ["a", "b", "c"] * 2}, set(), ""),
    ("multilabel", {"mail": [0] * 6, "shop": [0] * 6}, {"auc", "pr_auc", "f1"}, "mail"),
    ("multilabel", {"mail": [1] * 6, "shop": [1] * 6}, {"auc", "pr_auc"}, "mail (all 1)"),
    ("multilabel", {"mail": [0, 1] * 3, "shop": [1, 0] * 3}, set(), ""),
    ("regression", {"spent": [1.0] * 6, "visits": list(range(6))}, {"r2"}, "spent"),
    ("regression", {"spent": [1.0], "visits": [2.0]}, {"r2"}, "spent, visits"),
    ("regression", {"spent": list(range(6)), "visits": list(range(6))}, set(), ""),
]


@pytest.mark.parametrize(("kind", "rows", "undefined", "named"), CASES)
def test_what_the_targets_do_not_define_is_nan_whatever_is_predicted(
    kind: TaskKind, rows: dict[str, list[object]], undefined: set[str], named: str
) -> None:
    """And so is every resample; all other metrics have values."""
    task = Task.learn(kind, LEARNED[kind])
    encoded = task.encode(pd.DataFrame(rows))
    rng = np.random.default_rng(0)
    found = [gap for gap in task.gaps(encoded) if gap.whole]
    assert {name for gap in found for name in gap.metrics} == undefined
    assert not named or any(named in gap.seen for gap in found)
    for _ in range(5):
        scores = rng.random((len(encoded), task.units))
        scores = scores / scores.sum(axis=1, keepdims=True) if kind == "multiclass" else scores
        values = task.score(encoded, scores)
        assert {name for name, value in values.items() if math.isnan(value)} == undefined
        drawn = intervals(task, encoded, Answers(scores, 0.5), resamples=20)
        assert undefined <= {name for name, each in drawn.items() if math.isnan(each.low)}


def test_a_class_or_a_label_without_rows_is_said_to_be_left_out() -> None:
    """The averages over the others have a value, which is not that of all classes."""
    classes = Task.learn("multiclass", LEARNED["multiclass"])
    (gap,) = classes.gaps(classes.encode(pd.DataFrame({"y": ["a", "b"] * 3})))
    assert not gap.whole and set(gap.metrics) < set(METRICS["multiclass"]) and "the class c" in gap.seen
    labels = Task.learn("multilabel", LEARNED["multilabel"])
    flat, without = labels.gaps(labels.encode(pd.DataFrame({"mail": [0] * 6, "shop": [0, 1] * 3})))
    assert (flat.metrics, without.metrics) == (("auc", "pr_auc"), ("f1",)) and "mail" in flat.seen
    assert not flat.whole and not without.whole
