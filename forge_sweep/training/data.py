"""What a network is trained and validated on: read-only arrays, for one input or several; its outputs on them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from forge_sweep.errors import TrialFailed
from forge_sweep.models import compiling
from forge_sweep.preprocessing import Mapped

if TYPE_CHECKING:
    import keras

    from forge_sweep.task import Task

Features = np.ndarray | Mapping[str, np.ndarray] | tuple[np.ndarray, ...]
"""One array with a row per example, or one per input of the model: by the input's name, or in the inputs' order. A
`Mapped` may stand for any of them, whose rows lie in a file."""


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
        encoded = data.y_train
        several = encoded.ndim > 1 and encoded.shape[-1] != 1
        codes = np.rint(encoded.argmax(axis=-1) if several else encoded.reshape(-1)).astype(np.int64)
        known, inverse = np.unique(codes, return_inverse=True)
        by_class = np.array([data.class_weight.get(int(code), 1.0) for code in known], dtype=np.float32)[inverse]
        weights = by_class if weights is None else by_class * weights
    return None if weights is None else np.asarray(weights, dtype=np.float32)


def check_data(data: TrainingData) -> None:
    """Raise TrialFailed for no rows, or for features that are not finite, which would look like a diverged network."""
    for name, x, y in (("train", data.x_train, data.y_train), ("validation", data.x_valid, data.y_valid)):
        if not len(y):
            raise TrialFailed("data", f"there are no {name} rows", hint="give them a share under [data.split]")
        held = [values for values in leaves(x) if not isinstance(values, Mapped)]  # in a file all are finite
        finite = [np.ones(len(y), bool), *(np.isfinite(values).reshape(len(y), -1).all(axis=1) for values in held)]
        if bad := int((~np.logical_and.reduce(finite)).sum()):
            seen = f"{bad} {name} rows have NaN or Inf after preprocessing"
            raise TrialFailed("data", seen, hint="check [preprocessing] and the audit of the data")


SMALLEST_CHUNK, LARGEST_CHUNK = 16, 4096
CHUNK_VALUES = 4_194_304
"""Values of arrays such as images in a chunk: convolutions hold dozens of numbers for each of them."""


def chunk_rows(x: Features) -> int:
    """Most rows that go through a network at a time: a power of two, fewer where a row is an image or another array."""
    size = max((math.prod(values.shape[1:]) for values in leaves(x) if values.ndim > 2), default=1)
    return max(SMALLEST_CHUNK, min(LARGEST_CHUNK, 1 << (max(CHUNK_VALUES // size, 1).bit_length() - 1)))


def outputs(model: keras.Model, x: Features, batch_size: int | None = None) -> np.ndarray:
    """Raw outputs of a network, in inference mode.

    Rows go through in chunks that are filled up to a power of two: a backend compiles a few shapes at most, and a row
    has the same outputs alone as among others (bit for bit on the CPUs tried).

    Args:
        model: a Keras model with one output, compiled or not.
        x: (n, features), or such an array for each input.
        batch_size: most rows per chunk; default: see `chunk_rows`.

    Returns:
        (n, units) float32.
    """
    total = len(leaves(x)[0])
    if not total:
        return np.empty((0, *model.output_shape[1:]), dtype=np.float32)
    found, batch_size = list[np.ndarray](), batch_size or chunk_rows(x)
    for start in range(0, total, batch_size):
        rows = min(batch_size, total - start)
        filled = min(batch_size, max(SMALLEST_CHUNK, 1 << (rows - 1).bit_length()))
        chunk = each(functools.partial(_chunk, start=start, rows=rows, filled=filled), x)
        found.append(np.asarray(model.predict_on_batch(chunk), dtype=np.float32)[:rows])
    return np.concatenate(found)


def _chunk(values: np.ndarray, start: int, rows: int, filled: int) -> np.ndarray:
    chunk = np.zeros((filled, *values.shape[1:]), dtype=np.float32 if values.dtype.kind == "f" else values.dtype)
    chunk[:rows] = values[start : start + rows]
    return chunk


def data_loss(model: keras.Model, task: Task, encoded: np.ndarray, found: np.ndarray) -> float:
    """The compiled loss averaged over rows, without class weights, smoothed labels and penalties (``model.losses``).

    It so compares with models that have none of these. ``encoded`` are targets, ``found`` the `outputs`. A model that
    was compiled without a loss, since its ``train_step`` computes one, has that of the task.
    """
    from keras import losses, ops

    compiled = losses.get(compiling.loss(task) if model.loss is None else model.loss)
    if getattr(compiled, "label_smoothing", 0.0):
        compiled = type(compiled).from_config({**compiled.get_config(), "label_smoothing": 0.0})
    loss = compiled(ops.convert_to_tensor(encoded), ops.convert_to_tensor(found))
    return float(ops.convert_to_numpy(ops.mean(loss)))  # a function gives one value per row, a Loss their mean


@dataclass(frozen=True, eq=False)
class Validation:
    """Validation rows with their task: gives all ``val_*`` values of a model as it stands.

    Keras' own validation averages metrics over batches and approximates AUC over 200 thresholds; here the outputs of
    all rows are computed once and scored exactly.
    """

    task: Task
    x: Features
    y: np.ndarray

    def __call__(self, model: keras.Model) -> dict[str, float]:
        """``val_loss`` (see `data_loss`) and every metric of the task, nan where an output is not finite."""
        found = outputs(model, self.x)
        metrics = self.task.score(self.y, self.task.to_scores(found))
        return {
            "val_loss": data_loss(model, self.task, self.y, found),
            **{f"val_{name}": m for name, m in metrics.items()},
        }
