"""The loop over epochs whose gradient steps are compiled: in `epoch` for TensorFlow, in `epoch_jax` for JAX.

Imports Keras.
"""

from __future__ import annotations

import abc
import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from forge_sweep.training import networks
from forge_sweep.training.data import TrainingData
from forge_sweep.training.rates import Rates

SEGMENT_S = 1.0
"""About how long one call may last. Between calls the deadline is checked and Ctrl-C is handled."""

RESIDENT_SHARE = 0.5
"""Most of the device's free memory that the train rows may take; the rest is for the network and its activations."""


class Epochs(abc.ABC):
    """Runs the gradient steps of one epoch after the other on a compiled model.

    The order of the rows in epoch ``k`` follows from ``seed`` and ``k`` alone, whether or not training was interrupted.
    The last batch of an epoch has what is left.
    """

    def __init__(
        self, model: keras.Model, data: TrainingData, batch_size: int, seed: int, rates: Rates | None = None
    ) -> None:
        self.model = model
        self.batch_size = batch_size
        self.rates = rates
        self.stride = 1  # steps per call: doubled as long as a call is short
        if not model.optimizer.built:  # while it is compiled it would be too late, as for all that makes variables
            model.optimizer.build(model.trainable_variables)
        self.begin(data, seed)

    def begin(self, data: TrainingData, seed: int) -> None:
        """Take other rows and another order; arguments as for the class. What is traced serves rows of equal shapes."""
        self.rows = len(data.y_train)
        self.steps = -(-self.rows // self.batch_size)
        self.seed = seed
        self.base_rate = float(self.model.optimizer.learning_rate)
        placed = self.place(data)
        self.data: Any = placed.arrays
        self.streamed = placed.streamed

    @property
    def waited_s(self) -> float:
        """Seconds that steps waited for rows since `begin`; 0 where all rows are on the device."""
        return 0.0

    def end(self) -> None:
        """Let go of the rows; `begin` comes before the next epoch."""
        self.data = None

    def fit(self, epochs: range, callbacks: Sequence[keras.callbacks.Callback]) -> None:
        """Train epochs, with what ``model.fit`` does around them."""
        model = self.model
        listed = keras.callbacks.CallbackList(
            list(callbacks), add_history=True, model=model, epochs=epochs.stop, steps=self.steps, verbose=0
        )
        model.stop_training = False
        listed.on_train_begin()
        logs: dict[str, float] = {}
        for number in epochs:
            model.reset_metrics()
            listed.on_epoch_begin(number)
            logs = self(number, listed)
            listed.on_epoch_end(number, logs)
            if model.stop_training:
                break
        model.optimizer.finalize_variable_values(model.trainable_weights)
        listed.on_train_end(logs)

    def __call__(self, epoch: int, callbacks: keras.callbacks.CallbackList) -> dict[str, float]:
        """Train one epoch, or a part of it if a callback stops training or the mean loss is no longer finite.

        The callbacks' ``on_train_batch_begin`` and ``on_train_batch_end`` are called around each call, which is one or
        more steps. Returns the model's loss and metrics, as ``model.fit`` gives them to ``on_epoch_end``.
        """
        source = self.source(epoch)
        done = 0
        while done < self.steps and not self.model.stop_training:
            callbacks.on_train_batch_begin(done)
            began = time.monotonic()
            done = self.advance(source, epoch, done, min(done + self.stride, self.steps))
            self._pace(time.monotonic() - began)
            callbacks.on_train_batch_end(done - 1, self.model.get_metrics_result())
        return dict(self.model.get_metrics_result())

    def _pace(self, seconds: float) -> None:
        """Choose the number of steps of the next call from what this one took."""
        if seconds < SEGMENT_S / 2:
            self.stride = min(2 * self.stride, self.steps)
        elif seconds > SEGMENT_S:
            self.stride = max(self.stride // 2, 1)

    @abc.abstractmethod
    def place(self, data: TrainingData) -> networks.Rows:
        """The train rows on the device of the model's weights."""

    @abc.abstractmethod
    def order(self, epoch: int) -> np.ndarray:
        """Positions of the train rows in the order in which an epoch takes them, (rows,)."""

    @abc.abstractmethod
    def source(self, epoch: int) -> Any:
        """What `advance` takes the batches of an epoch from."""

    @abc.abstractmethod
    def advance(self, source: Any, epoch: int, first: int, last: int) -> int:
        """Steps from ``first`` until ``last``, or until the mean loss is not finite; gives the step to go on with."""


def compiled_epochs(
    kind: type[Epochs], model: keras.Model, data: TrainingData, batch_size: int, seed: int, rates: Rates | None = None
) -> Epochs:
    """The `Epochs` that were compiled for this network before, or new ones of this kind."""
    known: dict[tuple[int, Rates | None], Epochs] = networks.epochs_of(model)
    key = batch_size, rates
    if key in known:
        known[key].begin(data, seed)
    else:
        known[key] = kind(model, data, batch_size, seed, rates)
    return known[key]
