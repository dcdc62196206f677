"""A SHA-256 over what a model learned, to tell whether a training gave the same again, bit by bit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from forge_sweep.baselines import Baseline

if TYPE_CHECKING:
    import keras


def digest(model: keras.Model | Baseline) -> str:
    """SHA-256 (hex) over all weights of a network, or all nodes of a baseline, with types and shapes."""
    hashed = hashlib.sha256()
    for values in _arrays(model):
        hashed.update(f"{values.dtype.str}{values.shape}".encode())
        hashed.update(np.ascontiguousarray(values).tobytes())
    return hashed.hexdigest()


def _arrays(model: keras.Model | Baseline) -> Iterator[np.ndarray]:
    """Everything that was learned, in a fixed order."""
    if not isinstance(model, Baseline):
        yield from map(np.asarray, model.get_weights())
    elif model.kind == "constant":
        yield np.asarray(model.model, np.float64)
    elif model.kind == "xgboost":
        yield np.frombuffer(_booster(model.model), np.uint8)
    else:
        yield from _estimator(model.model)


def _booster(model: Any) -> bytes:
    """An XGBoost model as one text, without what its file has besides (attributes, version)."""
    learner = json.loads(model.get_booster().save_raw("json"))["learner"]
    kept = {name: learner[name] for name in ("gradient_booster", "learner_model_param", "objective")}
    return json.dumps(kept, sort_keys=True).encode()


def _estimator(model: Any) -> Iterator[np.ndarray]:
    """The nodes of a forest or booster of scikit-learn."""
    if hasattr(model, "_predictors"):  # a histogram booster
        yield np.asarray(model._baseline_prediction)
        for iteration in model._predictors:
            for predictor in iteration:
                yield from _fields(predictor.nodes)
    elif hasattr(model, "tree_"):
        yield np.asarray(model.tree_.value)
        yield from _fields(model.tree_.__getstate__()["nodes"])
    else:  # a forest, or one estimator per output
        for part in model.estimators_:
            yield from _estimator(part)


def _fields(nodes: np.ndarray) -> Iterator[np.ndarray]:
    """Node tables field by field: the bytes between two fields are not defined."""
    for name in nodes.dtype.names or ():
        yield nodes[name]
