"""Untuned models that a network has to beat, on the same arrays and in the same shape of outputs.

A network that does not beat gradient-boosted trees on tables is the rule rather than the exception (Grinsztajn et al.
2022, https://arxiv.org/abs/2207.08815), hence they are fitted first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forge_sweep.errors import DataError, InputError
from forge_sweep.experiment import Params
from forge_sweep.task import Task

if TYPE_CHECKING:
    from collections.abc import Callable

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
        """What a network without logits would give.

        Args:
            x: (n, features) preprocessed features.

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


def fit(
    kind: str, task: Task, x_train: np.ndarray, y_train: np.ndarray, *, seed: int, class_weight: str | None = None
) -> Baseline:
    """Fit one baseline with its library's defaults on all cores. The same seed gives the same model.

    Args:
        kind: one of `KINDS`. ``constant`` predicts the class shares of train, or its mean.
        task: what is predicted.
        x_train: (n, features) preprocessed features.
        y_train: targets as ``task.encode`` gives them.
        seed: seeds the trees.
        class_weight: ``balanced`` weighs rows by the inverse frequency of their class, as the networks do; ``constant``
            ignores it, since its shares are what it is for.

    Raises:
        InputError: no such kind.
        DataError: ``balanced`` for a task that is neither binary nor multiclass.
    """
    if kind == "constant":
        return Baseline(kind, _constant(task, y_train), {}, task)
    labels = _labels(task, y_train)
    weight = _sample_weight(task, labels, y_train) if class_weight == "balanced" else None
    single = _estimator(kind, task, seed)
    model = _per_output(single, task) if kind == "hist_gradient_boosting" and labels.ndim > 1 else single
    model.fit(x_train, labels, sample_weight=weight)
    if kind == "random_forest":
        # Threads add up the trees' votes in the order they finish, which moves the last bits from call to call.
        model.set_params(n_jobs=1)
    weighing: Params = {} if class_weight is None else {"class_weight": class_weight}
    return Baseline(kind, model, {**_scalars(single.get_params()), **weighing}, task)


def load_xgboost(path: Path, task: Task) -> Any:
    """The ``XGBClassifier`` or ``XGBRegressor`` that its own ``save_model(path)`` wrote, as UBJ or JSON."""
    import xgboost

    model = xgboost.XGBRegressor() if task.kind == "regression" else xgboost.XGBClassifier()
    model.load_model(path)
    return model


def _estimator(kind: str, task: Task, seed: int) -> Any:
    """An unfitted estimator with its library's defaults."""
    makers: dict[str, Callable[[Task, int], Any]] = {
        "random_forest": _random_forest,
        "hist_gradient_boosting": _hist_gradient_boosting,
        "xgboost": _xgboost,
    }
    if kind not in makers:
        raise InputError(f'baselines.kinds has "{kind}", which is unknown', hint=f"use some of {', '.join(KINDS)}")
    return makers[kind](task, seed)


def _random_forest(task: Task, seed: int) -> Any:
    from sklearn import ensemble

    maker = ensemble.RandomForestRegressor if task.kind == "regression" else ensemble.RandomForestClassifier
    return maker(random_state=seed, n_jobs=-1)


def _hist_gradient_boosting(task: Task, seed: int) -> Any:
    from sklearn import ensemble

    regression = task.kind == "regression"
    maker = ensemble.HistGradientBoostingRegressor if regression else ensemble.HistGradientBoostingClassifier
    return maker(random_state=seed)


def _xgboost(task: Task, seed: int) -> Any:
    import xgboost

    maker = xgboost.XGBRegressor if task.kind == "regression" else xgboost.XGBClassifier
    return maker(random_state=seed, n_jobs=-1)


def _per_output(single: Any, task: Task) -> Any:
    """One estimator per output, for estimators that have one output only."""
    from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor

    return MultiOutputRegressor(single) if task.kind == "regression" else MultiOutputClassifier(single)


def _labels(task: Task, encoded: np.ndarray) -> np.ndarray:
    """Targets as scikit-learn takes them: (n,) class codes or values, or (n, units) where there are several outputs."""
    if task.one_hot:
        return np.asarray(encoded.argmax(axis=1))
    flat = encoded.ravel() if encoded.ndim > 1 and encoded.shape[1] == 1 else encoded
    return np.asarray(flat if task.kind == "regression" else flat.astype(np.int64))


def _sample_weight(task: Task, labels: np.ndarray, encoded: np.ndarray) -> np.ndarray:
    """Balanced class weights, row by row."""
    weights = task.class_weights(encoded)
    return np.asarray([weights[code] for code in labels.tolist()])


def _constant(task: Task, encoded: np.ndarray) -> tuple[float, ...]:
    """Share of each class or label in train, or the mean."""
    if not len(encoded):
        raise DataError("there are no train rows", hint="give train more rows under [data.split]")
    if task.kind == "multiclass" and not task.one_hot:
        return tuple((np.bincount(encoded, minlength=task.units) / len(encoded)).tolist())
    return tuple(encoded.mean(axis=0, dtype=np.float64).tolist())


def _probabilities(task: Task, found: Any, classes: Any) -> np.ndarray:
    """Probabilities (n, units) from ``predict_proba``, in whatever form the estimator has them.

    Args:
        task: what is predicted.
        found: (n, classes); or a list with one such array per label, as scikit-learn has multilabel; or (n, labels), as
            XGBoost has it.
        classes: the estimator's ``classes_``, a list where ``found`` is one.
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


def _scalars(params: dict[str, Any]) -> Params:
    """The parameters that are plain values; unset ones and nan are left out."""
    plain = {name: value for name, value in params.items() if isinstance(value, bool | int | float | str)}
    return {name: value for name, value in plain.items() if not (isinstance(value, float) and math.isnan(value))}
