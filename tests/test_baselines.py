"""Untuned models on the same arrays as the networks."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn import datasets

from forge_sweep import baselines
from forge_sweep.baselines import fitting
from forge_sweep.bundle.bundle import weights_digest
from forge_sweep.errors import DataError, InputError, TrialFailed
from forge_sweep.task import Task

TREES = ("random_forest", "hist_gradient_boosting", "xgboost")


def prepared(name):
    """(task, features, encoded targets) of one real set: 250 rows, the first 150 for training."""
    loader = {"binary": "breast_cancer", "regression": "diabetes"}.get(name, "digits")
    x, y = getattr(datasets, f"load_{loader}")(return_X_y=True)
    kept = np.flatnonzero((y < 4) | (loader != "digits"))[:250]
    x, y = x[kept].astype(np.float32), y[kept]
    frames = {
        "binary": pd.DataFrame({"benign": y}),
        "multiclass": pd.DataFrame({"digit": y}),
        "one_hot": pd.DataFrame({f"is_{digit}": (y == digit).astype(int) for digit in range(4)}),
        "multilabel": pd.DataFrame({"even": (y % 2 == 0).astype(int), "small": (y < 2).astype(int)}),
        "regression": pd.DataFrame({"progression": y}),
    }
    kind = "multiclass" if name == "one_hot" else name
    task = Task.learn(kind, frames[name])
    return task, x, task.encode(frames[name])


@pytest.mark.parametrize("kind", baselines.KINDS)
@pytest.mark.parametrize("name", ["binary", "multiclass", "one_hot", "multilabel", "regression"])
def test_every_kind_gives_the_outputs_of_a_network_and_trees_beat_the_constant(kind, name):
    task, x, y = prepared(name)
    fitted = baselines.fit(kind, task, x[:150], y[:150], seed=1)
    outputs = fitted.outputs(x[150:])
    assert outputs.shape == (100, task.units)
    assert outputs.dtype == np.float32
    if task.kind != "regression":
        assert outputs.min() >= 0
        assert outputs.max() <= 1
    if task.kind == "multiclass":
        assert np.allclose(outputs.sum(axis=1), 1, atol=1e-5)
    if kind != "constant":
        metric = "r2" if task.kind == "regression" else "auc"
        constant = baselines.fit("constant", task, x[:150], y[:150], seed=1).outputs(x[150:])
        better, worse = (task.score(y[150:], task.to_scores(found))[metric] for found in (outputs, constant))
        assert better > worse + 0.1


@pytest.mark.parametrize("kind", TREES)
@pytest.mark.parametrize("name", ["binary", "regression"])
def test_the_same_seed_gives_the_same_outputs(kind, name):
    task, x, y = prepared(name)
    first, second = (baselines.fit(kind, task, x[:150], y[:150], seed=7).outputs(x[150:]) for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize("kind", TREES)
def test_a_row_has_the_same_outputs_alone_as_among_others(kind):
    task, x, y = prepared("multiclass")
    fitted = baselines.fit(kind, task, x[:150], y[:150], seed=7)
    assert np.array_equal(fitted.outputs(x[150:])[3:4], fitted.outputs(x[153:154]))


@pytest.mark.parametrize("kind", baselines.KINDS)
def test_a_label_that_is_constant_in_train_is_predicted_as_it_was(kind):
    task, x, y = prepared("multilabel")
    never, always = y[:150].copy(), y[:150].copy()
    never[:, 1], always[:, 1] = 0, 1
    assert baselines.fit(kind, task, x[:150], never, seed=1).outputs(x[150:])[:, 1].max() < 0.01
    assert baselines.fit(kind, task, x[:150], always, seed=1).outputs(x[150:])[:, 1].min() > 0.99


def test_the_constant_is_the_class_shares_or_the_mean():
    task, x, y = prepared("binary")
    assert baselines.fit("constant", task, x, y, seed=1).model == pytest.approx([y.mean()])
    task, x, y = prepared("multiclass")
    assert baselines.fit("constant", task, x, y, seed=1).model == pytest.approx(np.bincount(y) / len(y))
    task, x, y = prepared("regression")
    assert baselines.fit("constant", task, x, y, seed=1).model == pytest.approx([0.0], abs=1e-5)


@pytest.mark.parametrize("kind", TREES)
def test_balanced_weights_lift_the_rare_class(kind):
    task, x, y = prepared("binary")
    rare = np.concatenate([np.flatnonzero(y[:150, 0] == 0), np.flatnonzero(y[:150, 0] == 1)[:8]])
    plain = baselines.fit(kind, task, x[rare], y[rare], seed=1)
    balanced = baselines.fit(kind, task, x[rare], y[rare], seed=1, class_weight="balanced")
    assert balanced.params["class_weight"] == "balanced"
    assert balanced.outputs(x[150:]).mean() > plain.outputs(x[150:]).mean()


def test_balanced_weights_are_refused_where_classes_have_none():
    task, x, y = prepared("regression")
    with pytest.raises(DataError, match="class_weight"):
        baselines.fit("xgboost", task, x, y, seed=1, class_weight="balanced")


def test_the_parameters_used_are_recorded_as_plain_values():
    task, x, y = prepared("binary")
    params = baselines.fit("random_forest", task, x[:150], y[:150], seed=3).params
    assert params["n_estimators"] == 100
    assert params["random_state"] == 3
    assert all(type(value) in (bool, int, float, str) for value in params.values())


@pytest.mark.parametrize("name", ["binary", "multilabel", "regression"])
def test_xgboost_comes_back_from_its_own_file(name, tmp_path):
    task, x, y = prepared(name)
    fitted = baselines.fit("xgboost", task, x[:150], y[:150], seed=1)
    fitted.model.save_model(tmp_path / "tree.ubj")
    loaded = baselines.Baseline("xgboost", baselines.load_xgboost(tmp_path / "tree.ubj", task), {}, task)
    assert np.array_equal(loaded.outputs(x[150:]), fitted.outputs(x[150:]))


def test_an_unknown_kind_is_refused_with_the_known_ones():
    task, x, y = prepared("binary")
    with pytest.raises(InputError, match="constant, random_forest, hist_gradient_boosting, xgboost"):
        baselines.fit("catboost", task, x, y, seed=1)


@pytest.mark.parametrize("kind", TREES)
@pytest.mark.parametrize("name", ["binary", "multiclass", "multilabel", "regression"])
def test_a_limit_that_is_not_reached_changes_no_bit(kind, name, monkeypatch):
    """Whether the rest is fitted at once or step by step: numbers of older sweeps stay what they are."""
    task, x, y = prepared(name)
    whole = baselines.fit(kind, task, x[:150], y[:150], seed=7)
    for quick_s in (60.0, 0.0):
        monkeypatch.setattr(fitting, "QUICK_S", quick_s)
        stepped = baselines.fit(kind, task, x[:150], y[:150], seed=7, timeout_s=600)
        assert np.array_equal(whole.outputs(x[150:]), stepped.outputs(x[150:]))
        assert whole.params == stepped.params
        assert weights_digest(whole) == weights_digest(stepped)


def test_boosting_that_stops_early_does_so_at_the_same_iteration_with_a_limit(monkeypatch):
    """Above 10,000 rows scikit-learn holds out a tenth of train and stops by it; no validation row is asked."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(10_500, 3)).astype(np.float32)
    task = Task.learn("binary", pd.DataFrame({"y": [0, 1] * 3}))
    y = task.encode(pd.DataFrame({"y": (x[:, 0] + rng.normal(size=len(x)) > 0).astype(int)}))
    whole = baselines.fit("hist_gradient_boosting", task, x, y, seed=7)
    monkeypatch.setattr(fitting, "QUICK_S", 0.0)
    stepped = baselines.fit("hist_gradient_boosting", task, x, y, seed=7, timeout_s=600)
    assert whole.model.n_iter_ == stepped.model.n_iter_ < 100
    assert np.array_equal(whole.outputs(x), stepped.outputs(x)) and weights_digest(whole) == weights_digest(stepped)


@pytest.mark.parametrize("kind", TREES)
@pytest.mark.parametrize("name", ["binary", "multilabel"])
def test_a_baseline_over_its_time_is_stopped(kind, name):
    """After a step of it, not after all of them."""
    task, x, y = prepared(name)
    with pytest.raises(TrialFailed, match=rf"{kind} was not fitted within 1e-06 s") as stopped:
        baselines.fit(kind, task, x[:150], y[:150], seed=7, timeout_s=1e-6)
    assert stopped.value.failure == "time-out" and "baselines.timeout_s" in str(stopped.value.hint)
