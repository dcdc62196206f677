"""Outputs of a network on rows, and the exact validation metrics of one epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from forge_sweep.training.data import Features, each, leaves

if TYPE_CHECKING:
    import keras

    from forge_sweep.task import Task

SMALLEST_CHUNK = 16


def outputs(model: keras.Model, x: Features, batch_size: int = 4096) -> np.ndarray:
    """Raw outputs of a network, in inference mode.

    Rows go through in chunks that are filled up to a power of two. A backend so compiles a few shapes at most however
    many rows come, and a row has the same outputs alone as among others, as far as the backend allows: bit for bit on
    the CPUs tried.

    Args:
        model: a Keras model with one output, compiled or not.
        x: (n, features), or such an array for each input.
        batch_size: most rows per chunk.

    Returns:
        (n, units) float32.
    """
    rows = len(leaves(x)[0])
    if not rows:
        return np.empty((0, *model.output_shape[1:]), dtype=np.float32)
    starts = range(0, rows, batch_size)
    return np.concatenate(
        [_chunk_outputs(model, x, start, min(batch_size, rows - start), batch_size) for start in starts]
    )


def _chunk_outputs(model: keras.Model, x: Features, start: int, rows: int, batch_size: int) -> np.ndarray:
    """Outputs of the rows from ``start`` on, at most ``batch_size``."""
    filled = min(batch_size, max(SMALLEST_CHUNK, 1 << (rows - 1).bit_length()))

    def fill(values: np.ndarray) -> np.ndarray:
        chunk = np.zeros((filled, *values.shape[1:]), dtype=np.float32 if values.dtype.kind == "f" else values.dtype)
        chunk[:rows] = values[start : start + rows]
        return chunk

    return np.asarray(model.predict_on_batch(each(fill, x)), dtype=np.float32)[:rows]


def data_loss(model: keras.Model, encoded: np.ndarray, found: np.ndarray) -> float:
    """The compiled loss averaged over rows, without the penalty on the weights that Keras adds (``model.losses``).

    It so compares with models that have no such penalty, and among penalties of different strength. Class weights do
    not enter either.

    Args:
        model: a compiled Keras model.
        encoded: targets as ``Task.encode`` gives them.
        found: outputs as `outputs` gives them.
    """
    from keras import losses, ops

    loss = losses.get(model.loss)(ops.convert_to_tensor(encoded), ops.convert_to_tensor(found))
    return float(ops.convert_to_numpy(ops.mean(loss)))  # a function gives one value per row, a Loss their mean


class Validation:
    """Validation rows with their task: gives all ``val_*`` values of a model as it stands.

    Keras' own validation averages metrics over batches and approximates AUC over 200 thresholds; here the outputs of
    all rows are computed once and scored exactly.

    Args:
        task: what is predicted.
        x: (n, features) preprocessed validation features, or such an array for each input.
        y: their targets, as ``task.encode`` gives them.
    """

    def __init__(self, task: Task, x: Features, y: np.ndarray) -> None:
        self.task = task
        self.x = x
        self.y = y

    def __call__(self, model: keras.Model) -> dict[str, float]:
        """``val_loss`` (see `data_loss`) and every metric of the task.

        All metrics are nan where an output is not finite.
        """
        found = outputs(model, self.x)
        metrics = self.task.score(self.y, self.task.to_scores(found))
        return {"val_loss": data_loss(model, self.y, found), **{f"val_{name}": m for name, m in metrics.items()}}
