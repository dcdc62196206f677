"""The digest of what was learned."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from forge_sweep.baselines import Baseline
from forge_sweep.bundle.ensemble import Ensemble

if TYPE_CHECKING:
    import keras


def weights_digest(model: keras.Model | Baseline | Ensemble) -> str:
    """SHA-256 (hex) over all weights of a network, or all nodes of a baseline, with types and shapes.

    Of an ensemble: over those of its members, with their shares of the mean.
    """
    hashed = hashlib.sha256()
    for values in _arrays(model):
        hashed.update(f"{values.dtype.str}{values.shape}".encode())
        hashed.update(np.ascontiguousarray(values).tobytes())
    return hashed.hexdigest()


def _arrays(model: keras.Model | Baseline | Ensemble) -> Iterator[np.ndarray]:
    if isinstance(model, Ensemble):
        for member in model.members:
            yield np.asarray(member.weight, np.float64)
            yield from _arrays(member.model)
    elif not isinstance(model, Baseline):
        yield from map(np.asarray, model.get_weights())
    elif model.kind == "constant":
        yield np.asarray(model.model, np.float64)
    elif model.kind == "xgboost":
        learner = json.loads(model.model.get_booster().save_raw("json"))["learner"]
        kept = {name: learner[name] for name in ("gradient_booster", "learner_model_param", "objective")}
        yield np.frombuffer(json.dumps(kept, sort_keys=True).encode(), np.uint8)
    else:
        yield from _nodes(model.model)


def _nodes(model: Any) -> Iterator[np.ndarray]:
    """Of a forest or booster of scikit-learn."""
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
            yield from _nodes(part)


def _fields(nodes: np.ndarray) -> Iterator[np.ndarray]:
    """Field by field: the bytes between two fields are not defined."""
    for name in nodes.dtype.names or ():
        yield nodes[name]
