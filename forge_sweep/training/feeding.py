"""What ``model.fit`` is fed, where the compiled epoch cannot be used. Imports Keras."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from forge_sweep.preprocessing import Mapped
from forge_sweep.training.data import TrainingData, each, leaves, row_weights


def fed(data: TrainingData, batch_size: int) -> dict[str, Any]:
    """The arguments of ``model.fit`` that are the train rows, shuffled anew in each epoch.

    Rows of a file are taken out batch by batch: on PyTorch and JAX in the order in which Keras would take them from
    memory, and so with the same results; on TensorFlow in another one, which follows from NumPy's random state.
    """
    if not any(isinstance(values, Mapped) for values in leaves(data.x_train)):
        weights = row_weights(data)
        return {
            "x": data.x_train,
            "y": data.y_train,
            "sample_weight": weights,
            "batch_size": batch_size,
            "shuffle": True,
        }
    if keras.config.backend() == "torch":
        return {"x": _loader(data, batch_size)}
    return {"x": Batches(data, batch_size), "shuffle": False}


class Batches(keras.utils.PyDataset):  # type: ignore[misc]  # Keras has no types
    """Batches of rows that do not fit in memory, in another order in each epoch."""

    def __init__(self, data: TrainingData, batch_size: int) -> None:
        super().__init__()
        self.data, self.batch_size, self.weights = data, batch_size, row_weights(data)
        self.order = np.arange(len(data.y_train))

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def __getitem__(self, number: int) -> Any:
        if not number:  # an epoch begins, or Keras looks at the first batch, for which it would draw an order as well
            self.order = np.random.permutation(len(self.order))
        return batch_of(self.data, self.weights, self.order[number * self.batch_size : (number + 1) * self.batch_size])


def batch_of(data: TrainingData, weights: np.ndarray | None, rows: np.ndarray) -> Any:
    """These rows as ``model.fit`` takes a batch."""
    x = each(lambda values: values[rows], data.x_train)
    return keras.utils.pack_x_y_sample_weight(x, data.y_train[rows], None if weights is None else weights[rows])


def _loader(data: TrainingData, batch_size: int) -> Any:
    """PyTorch's own loader over the rows, with the samplers that Keras makes for arrays."""
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler

    weights = row_weights(data)

    class Rows:
        def __len__(self) -> int:
            return len(data.y_train)

        def __getitems__(self, rows: list[int]) -> Any:
            batch = batch_of(data, weights, np.array(rows))
            return keras.tree.map_structure(keras.ops.convert_to_tensor, batch)

    rows: Any = Rows()
    sampler = BatchSampler(RandomSampler(range(len(data.y_train))), batch_size, drop_last=False)
    return DataLoader(rows, batch_sampler=sampler, collate_fn=lambda batch: batch)
