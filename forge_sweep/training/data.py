"""What a network is trained on: arrays that are read only, for one input or for several."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from forge_sweep.errors import TrialFailed

Features = np.ndarray | Mapping[str, np.ndarray] | tuple[np.ndarray, ...]
"""One array with a row per example, or one per input of the model: by the input's name, or in the inputs' order."""


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Preprocessed arrays. They are read only.

    Attributes:
        x_train: (rows, features) float32, or several such arrays for a model with several inputs.
        y_train: targets as ``Task.encode`` gives them.
        x_valid: (rows, features) float32, in the structure of ``x_train``.
        y_valid: targets as ``Task.encode`` gives them.
        class_weight: weight of each class code in the training loss, not in validation; None for equal weights.
        sample_weight: (rows,) weight of each train row in the training loss, multiplied by its class weight; None for
            equal weights.
    """

    x_train: Features
    y_train: np.ndarray
    x_valid: Features
    y_valid: np.ndarray
    class_weight: dict[int, float] | None = None
    sample_weight: np.ndarray | None = None


def leaves(features: Features) -> list[np.ndarray]:
    """The arrays of all inputs."""
    if isinstance(features, Mapping):
        return list(features.values())
    return list(features) if isinstance(features, tuple | list) else [features]


def each(function: Callable[[np.ndarray], Any], features: Features) -> Any:
    """The function's value for the array of each input, in the same structure."""
    if isinstance(features, Mapping):
        return {name: function(values) for name, values in features.items()}
    return tuple(map(function, features)) if isinstance(features, tuple | list) else function(features)


def row_weights(data: TrainingData) -> np.ndarray | None:
    """The weight of every train row, (rows,) float32; None where all are equal.

    A row has the weight of its class as in Keras' ``class_weight``: the class of several columns is the greatest one,
    and a class without a weight has 1.
    """
    weights = data.sample_weight
    if data.class_weight is not None:
        codes = _class_codes(data.y_train)
        known, inverse = np.unique(codes, return_inverse=True)
        by_class = np.array([data.class_weight.get(int(code), 1.0) for code in known], dtype=np.float32)[inverse]
        weights = by_class if weights is None else by_class * weights
    return None if weights is None else np.asarray(weights, dtype=np.float32)


def _class_codes(encoded: np.ndarray) -> np.ndarray:
    """The class code of each row, (rows,) integers."""
    several = encoded.ndim > 1 and encoded.shape[-1] != 1
    codes = encoded.argmax(axis=-1) if several else encoded.reshape(-1)
    return np.asarray(np.rint(codes), dtype=np.int64)


def check_data(data: TrainingData) -> None:
    """Raise TrialFailed for no rows, or for features that are not finite, which would look like a diverged network."""
    for name, x, y in (("train", data.x_train, data.y_train), ("validation", data.x_valid, data.y_valid)):
        if not len(y):
            raise TrialFailed("data", f"there are no {name} rows", hint="give them a share under [data.split]")
        finite = [np.isfinite(values).reshape(len(values), -1).all(axis=1) for values in leaves(x)]
        if bad := int((~np.logical_and.reduce(finite)).sum()):
            seen = f"{bad} {name} rows have NaN or Inf after preprocessing"
            raise TrialFailed("data", seen, hint="look at [preprocessing] and the audit of the data")
