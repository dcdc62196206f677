"""Boosted trees that are tuned: what is searched, and one fit with early stopping on the validation rows.

The space and the early stopping are those of papers that compare networks with tuned trees (Gorishniy et al. 2021,
https://arxiv.org/abs/2106.11959; Grinsztajn et al. 2022, https://arxiv.org/abs/2207.08815). Which configuration comes
next is up to `forge_sweep.study`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from forge_sweep.baselines.fitting import Baseline, Clock, estimator, labels_of, params_of, row_weights
from forge_sweep.errors import InputError
from forge_sweep.experiment import Dimension, Params
from forge_sweep.task import Task

TUNED = "_tuned"


def _numbers(low: float, high: float, *, log: bool = False) -> Dimension:
    return Dimension(type="float", low=low, high=high, log=log)


SPACES: Mapping[str, Mapping[str, Dimension]] = {
    "hist_gradient_boosting": {
        "learning_rate": _numbers(0.02, 0.3, log=True),
        "max_leaf_nodes": Dimension(type="int", low=7, high=127, log=True),
        "min_samples_leaf": Dimension(type="int", low=2, high=100, log=True),
        "l2_regularization": _numbers(1e-3, 30.0, log=True),
    },
    "xgboost": {
        "learning_rate": _numbers(0.02, 0.3, log=True),
        "max_depth": Dimension(type="int", low=3, high=10),
        "min_child_weight": _numbers(0.5, 50.0, log=True),
        "subsample": _numbers(0.5, 1.0),
        "colsample_bytree": _numbers(0.5, 1.0),
        "reg_lambda": _numbers(0.01, 30.0, log=True),
        "reg_alpha": _numbers(1e-3, 10.0, log=True),
        "gamma": _numbers(1e-3, 10.0, log=True),
    },
}
"""What is searched, by the kind of baseline; the other kinds are not tuned."""

DEFAULTS: Mapping[str, Params] = {
    "hist_gradient_boosting": {
        "learning_rate": 0.1,
        "max_leaf_nodes": 31,
        "min_samples_leaf": 20,
        "l2_regularization": 1e-3,
    },
    "xgboost": {
        "learning_rate": 0.3,
        "max_depth": 6,
        "min_child_weight": 1.0,
        "subsample": 1.0,
        "colsample_bytree": 1.0,
        "reg_lambda": 1.0,
        "reg_alpha": 1e-3,
        "gamma": 1e-3,
    },
}
"""The first configuration: the library's defaults, or the least of the range where they are zero."""

TREES = {"hist_gradient_boosting": 1000, "xgboost": 2000}
"""The most boosting iterations; early stopping ends them before, as a rule."""

PATIENCE, GAIN = 50, 1e-4
"""Boosting iterations without a loss on the validation rows that is lower by `GAIN`, after which a fit ends; the best
one is kept. Without `GAIN`, leaves that hardly move would go on to the last tree."""

STEP = 25
"""Boosting iterations of scikit-learn between two looks at the clock and the validation rows."""


def tuned_name(kind: str) -> str:
    """Name of the tuned models of a kind, such as ``xgboost_tuned``."""
    return f"{kind}{TUNED}"


def untuned_kind(name: str) -> str:
    """The kind behind the name of tuned models; "" for any other name."""
    kind = name.removesuffix(TUNED)
    return kind if kind != name and kind in SPACES else ""


def one_output(kind: str, task: Task) -> bool:
    """Whether a kind takes one output only, and the task has several: it is not tuned then."""
    return kind == "hist_gradient_boosting" and task.units > 1 and task.kind != "multiclass"


def fit_tuned(
    kind: str,
    task: Task,
    train: tuple[np.ndarray, np.ndarray],
    valid: tuple[np.ndarray, np.ndarray],
    params: Params,
    *,
    seed: int,
    class_weight: str | None = None,
    timeout_s: float | None = None,
) -> Baseline:
    """Fit one configuration on all cores, with early stopping on the validation rows.

    The same arguments give the same model: the limit gives a fit up or leaves it as it is.

    Args:
        kind: one of `SPACES`.
        task: what is predicted.
        train: (n, features) preprocessed features, and targets as ``task.encode`` gives them.
        valid: the same of the validation rows, whose loss says how many trees are kept.
        params: a point of ``SPACES[kind]``.
        seed: of the trees.
        class_weight: see `fit`.
        timeout_s: seconds after which fitting is given up.

    Returns:
        A baseline of ``kind``; its params have ``trees``, the boosting iterations that were kept.

    Raises:
        TrialFailed: the time is over (``time-out``).
        InputError: the kind cannot be tuned, or not for so many outputs.
    """
    if kind not in SPACES or one_output(kind, task):
        raise InputError(
            f"{kind} cannot be tuned for this task", hint=f"tune {' or '.join(SPACES)}, or set tune = false"
        )
    (x, y), clock = train, Clock(kind, timeout_s)
    labels, weight = labels_of(task, y), row_weights(task, y, class_weight)
    model = estimator(kind, task, seed).set_params(**params)
    fit_one = _fit_xgboost if kind == "xgboost" else _fit_histograms
    model, trees = fit_one(model, task, (x, labels, weight), valid, clock)
    used = params_of(model, class_weight) | {"trees": trees}
    return Baseline(kind, model, used, task)


Rows = tuple[np.ndarray, np.ndarray, np.ndarray | None]


def _fit_xgboost(
    model: Any, task: Task, rows: Rows, valid: tuple[np.ndarray, np.ndarray], clock: Clock
) -> tuple[Any, int]:
    from xgboost.callback import EarlyStopping, TrainingCallback

    class Stopping(TrainingCallback):
        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
            return clock.over

    x, labels, weight = rows
    metric = {"regression": "rmse", "multiclass": "mlogloss"}.get(task.kind, "logloss")
    callbacks = [EarlyStopping(rounds=PATIENCE, save_best=True, min_delta=GAIN), Stopping()]
    model.set_params(n_estimators=TREES["xgboost"], eval_metric=metric, callbacks=callbacks)
    model.fit(x, labels, sample_weight=weight, eval_set=[(valid[0], labels_of(task, valid[1]))], verbose=False)
    model.set_params(callbacks=None)
    clock.check()
    return model, int(model.get_booster().num_boosted_rounds())


def _fit_histograms(
    model: Any, task: Task, rows: Rows, valid: tuple[np.ndarray, np.ndarray], clock: Clock
) -> tuple[Any, int]:
    """Always by the same steps, so that the time that is left changes nothing about the model."""
    x, labels, weight = rows
    best, lowest, most = None, math.inf, TREES[clock.kind]
    model.set_params(warm_start=True, early_stopping=False)
    for done in range(STEP, most + 1, STEP):
        model.set_params(max_iter=done)
        model.fit(x, labels, sample_weight=weight)
        clock.check()
        loss = task.loss_of(valid[1], Baseline(clock.kind, model, {}, task).outputs(valid[0]))
        if loss < lowest - GAIN or best is None:
            best, lowest = copy.deepcopy(model), loss
        elif done - best.n_iter_ >= PATIENCE:
            break
    assert best is not None
    return best.set_params(warm_start=False), int(best.n_iter_)
