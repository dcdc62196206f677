"""Untuned models that a network has to beat, on the same arrays and in the same shape of outputs.

A network that does not beat gradient-boosted trees on tables is the rule rather than the exception (Grinsztajn et al.
2022, https://arxiv.org/abs/2207.08815), hence they are fitted first.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forge_sweep.errors import DataError, InputError, TrialFailed
from forge_sweep.experiment import Params
from forge_sweep.task import Task

KINDS = ("constant", "random_forest", "hist_gradient_boosting", "xgboost")


@dataclass(frozen=True, eq=False)
class Baseline:
    """One fitted baseline.

    Attributes:
        kind: one of `KINDS`.
        model: ``constant``: a tuple of ``task.units`` floats. ``random_forest`` and ``hist_gradient_boosting``: the
            fitted scikit-learn estimator (the latter inside ``MultiOutputClassifier`` or ``MultiOutputRegressor`` where
            there are several outputs). ``xgboost``: an ``XGBClassifier`` or ``XGBRegressor``, one for all outputs.
        params: the parameters that were used, library defaults included.
        task: what is predicted.
    """

    kind: str
    model: Any
    params: Params
    task: Task

    def outputs(self, x: np.ndarray) -> np.ndarray:
        """What a network without logits would give for (n, features) preprocessed features.

        Returns:
            (n, task.units) float32: probabilities, or standardised regression values.
        """
        if self.kind == "constant":
            return np.tile(np.asarray(self.model, dtype=np.float32), (len(x), 1))
        if self.task.kind == "regression":
            found = self.model.predict(x)
        else:
            found = _probabilities(self.task, self.model.predict_proba(x), self.model.classes_)
        return np.asarray(found, dtype=np.float32).reshape(len(x), self.task.units)


STEP = 10
"""Trees, or boosting iterations, between two looks at the clock."""

QUICK_S = 1.0
"""Where the first `STEP` took no longer, the rest is fitted at once: boosting that is taken up bins all rows anew."""


def fit(
    kind: str,
    task: Task,
    x_train: np.ndarray,
    y_train: np.ndarray,
    *,
    seed: int,
    class_weight: str | None = None,
    timeout_s: float | None = None,
) -> Baseline:
    """Fit one baseline with its library's defaults on all cores. The same seed gives the same model.

    Args:
        kind: one of `KINDS`. ``constant`` predicts the class shares of train, or its mean.
        task: what is predicted.
        x_train: (n, features) preprocessed features.
        y_train: targets as ``task.encode`` gives them.
        seed: of the trees.
        class_weight: ``balanced`` weighs rows by the inverse frequency of their class, as the networks do; ``constant``
            ignores it, since its shares are what it is for.
        timeout_s: seconds after which fitting is given up; a fit that ends before gives the same model as without.

    Raises:
        TrialFailed: the time is over (``time-out``).
        InputError: no such kind.
        DataError: ``balanced`` for a task that is neither binary nor multiclass.
    """
    if kind == "constant":
        if not len(y_train):
            raise DataError("there are no train rows", hint="give train more rows under [data.split]")
        return Baseline(kind, task.constant(y_train), {}, task)
    labels, weight = labels_of(task, y_train), row_weights(task, y_train, class_weight)
    single = estimator(kind, task, seed)
    clock = Clock(kind, timeout_s)
    if kind == "hist_gradient_boosting" and labels.ndim > 1:
        model = _per_output(single, task, x_train, labels, clock)
    else:
        model = single
        _fit_in_time(model, x_train, labels, weight, clock)
    if kind == "random_forest":
        # Threads add up the trees' votes in the order they finish, which moves the last bits from call to call.
        model.set_params(n_jobs=1)
    return Baseline(kind, model, params_of(single, class_weight), task)


def params_of(model: Any, class_weight: str | None) -> Params:
    """The parameters of an estimator that are plain values, library defaults included."""
    plain = {name: value for name, value in model.get_params().items() if isinstance(value, bool | int | float | str)}
    used: Params = {name: value for name, value in plain.items() if isinstance(value, str) or not math.isnan(value)}
    return used if class_weight is None else used | {"class_weight": class_weight}


def row_weights(task: Task, encoded: np.ndarray, class_weight: str | None) -> np.ndarray | None:
    """The weight (n,) of each row; None where all weigh the same."""
    if class_weight != "balanced":
        return None
    weights = task.class_weights(encoded)
    return np.asarray([weights[code] for code in labels_of(task, encoded).tolist()])


def load_xgboost(path: Path, task: Task) -> Any:
    """The ``XGBClassifier`` or ``XGBRegressor`` that its own ``save_model(path)`` wrote, as UBJ or JSON."""
    import xgboost

    model = xgboost.XGBRegressor() if task.kind == "regression" else xgboost.XGBClassifier()
    model.load_model(path)
    return model


def estimator(kind: str, task: Task, seed: int) -> Any:
    """An unfitted estimator with its library's defaults."""
    regression = task.kind == "regression"
    if kind == "random_forest":
        from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

        return (RandomForestRegressor if regression else RandomForestClassifier)(random_state=seed, n_jobs=-1)
    if kind == "hist_gradient_boosting":
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        return (HistGradientBoostingRegressor if regression else HistGradientBoostingClassifier)(random_state=seed)
    if kind == "xgboost":
        from xgboost import XGBClassifier, XGBRegressor

        return (XGBRegressor if regression else XGBClassifier)(random_state=seed, n_jobs=-1)
    raise InputError(f'baselines.kinds has "{kind}", which is unknown', hint=f"use some of {', '.join(KINDS)}")


def _per_output(single: Any, task: Task, x_train: np.ndarray, labels: np.ndarray, clock: Clock) -> Any:
    """One fitted estimator per output, for estimators that have one output only."""
    from sklearn.base import clone
    from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor

    model = MultiOutputRegressor(single) if task.kind == "regression" else MultiOutputClassifier(single)
    model.estimators_ = [clone(single) for _ in range(labels.shape[1])]
    for one, column in zip(model.estimators_, labels.T, strict=True):
        _fit_in_time(one, x_train, column, None, clock)
    if task.kind != "regression":
        model.classes_ = [one.classes_ for one in model.estimators_]
    model.n_features_in_ = x_train.shape[1]
    return model


class Clock:
    """What a fit may still take."""

    def __init__(self, kind: str, timeout_s: float | None) -> None:
        self.kind, self.timeout_s, self.began = kind, timeout_s, time.monotonic()

    @property
    def over(self) -> bool:
        """Whether the limit is reached."""
        return self.timeout_s is not None and time.monotonic() - self.began > self.timeout_s

    def check(self) -> None:
        """Raise TrialFailed where it is."""
        if self.over:
            raise TrialFailed(
                "time-out",
                f"{self.kind} was not fitted within {self.timeout_s:g} s",
                hint="raise baselines.timeout_s, or leave it out of baselines.kinds",
            )


def _fit_in_time(model: Any, x: np.ndarray, labels: np.ndarray, weight: np.ndarray | None, clock: Clock) -> None:
    """Fit an estimator, step by step where there is a limit; scikit-learn's warm start ends at the same model."""
    if clock.timeout_s is None:
        model.fit(x, labels, sample_weight=weight)
        return
    steps = {"random_forest": "n_estimators", "hist_gradient_boosting": "max_iter"}.get(clock.kind)
    if steps is None:
        from xgboost.callback import TrainingCallback

        class Stopping(TrainingCallback):
            def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
                return clock.over

        model.set_params(callbacks=[Stopping()])
        model.fit(x, labels, sample_weight=weight)
        model.set_params(callbacks=None)
        clock.check()
        return
    wanted, done, began = model.get_params()[steps], 0, time.monotonic()
    model.set_params(warm_start=True)
    while done < wanted:
        quick = done and time.monotonic() - began <= QUICK_S
        done = wanted if quick else min(done + STEP, wanted)
        model.set_params(**{steps: done})
        model.fit(x, labels, sample_weight=weight)
        if done < wanted:
            if getattr(model, "n_iter_", done) < done:  # it has stopped early
                break
            clock.check()
    model.set_params(warm_start=False, **{steps: wanted})
    clock.check()


def labels_of(task: Task, encoded: np.ndarray) -> np.ndarray:
    """Targets as scikit-learn takes them: (n,) class codes or values, or (n, units) where there are several outputs."""
    if task.one_hot:
        return np.asarray(encoded.argmax(axis=1))
    flat = encoded.ravel() if encoded.ndim > 1 and encoded.shape[1] == 1 else encoded
    return np.asarray(flat if task.kind == "regression" else flat.astype(np.int64))


def _probabilities(task: Task, found: Any, classes: Any) -> np.ndarray:
    """Probabilities (n, units) from ``predict_proba`` and ``classes_``.

    ``found`` is (n, classes); for multilabel it is a list of such arrays in scikit-learn, and (n, labels) in XGBoost.
    """
    if isinstance(found, list):
        return np.column_stack([_share_of(1, p, seen) for p, seen in zip(found, classes, strict=True)])
    if task.kind == "binary":
        return _share_of(1, found, classes)
    if task.kind == "multilabel":
        return np.asarray(found)
    return np.column_stack([_share_of(code, found, classes) for code in range(task.units)])


def _share_of(code: int, probabilities: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Probability (n,) of one class code; 0 for a class that train did not have."""
    columns = np.flatnonzero(np.asarray(classes) == code)
    return np.asarray(probabilities[:, columns[0]]) if len(columns) else np.zeros(len(probabilities))
