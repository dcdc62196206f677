"""The compiled epoch: all gradient steps of an epoch as one call of one TensorFlow function.

``model.fit`` comes back to Python after each step, which takes a small network several times as long as its arithmetic.
Here the loop over the batches is part of the graph; one step is Keras' own ``train_step``. Imports TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from forge_sweep import environment
from forge_sweep.preprocessing import Mapped
from forge_sweep.training import networks
from forge_sweep.training.data import TrainingData
from forge_sweep.training.loop import RESIDENT_SHARE, Epochs

PREFETCH = 8
"""Most batches that are made ready ahead of the step that needs them, where rows are streamed."""

PREFETCH_BYTES = 256_000_000
"""Most bytes of such batches, unless one alone takes more."""


class CompiledEpoch(Epochs):
    """See `Epochs`.

    The rows are copied to the device of the model's weights, or streamed to it where they are too large (see
    `RESIDENT_SHARE`).
    """

    def __init__(self, *arguments: Any) -> None:
        with tf.device("CPU:0"):
            self._waited = tf.Variable(0.0, dtype=tf.float64, trainable=False)
        super().__init__(*arguments)
        self._run = tf.function(self._steps, autograph=False)

    def place(self, data: TrainingData) -> networks.Rows:
        """See `Epochs.place`."""
        self.device = str(self.model.variables[0].value.device)
        return networks.rows_on(self.device, data, place)

    @property
    def waited_s(self) -> float:
        """See `Epochs.waited_s`."""
        return float(self._waited)

    def begin(self, data: TrainingData, seed: int) -> None:
        """See `Epochs.begin`."""
        super().begin(data, seed)
        self._waited.assign(0.0)

    def order(self, epoch: int) -> np.ndarray:
        """See `Epochs.order`."""
        return np.asarray(shuffled(self.rows, tf.constant((self.seed, epoch), tf.int64)))

    def source(self, epoch: int) -> Any:
        """All rows and the epoch, or an iterator over batches."""
        seeds = tf.constant((self.seed, epoch), tf.int64)
        if self.streamed:
            return iter(batches(self.data, shuffled(self.rows, seeds), self.batch_size))
        return self.data, seeds

    def advance(self, source: Any, epoch: int, first: int, last: int) -> int:
        """See `Epochs.advance`."""
        begins = tf.constant(epoch * self.steps, tf.int64), tf.constant(self.base_rate)
        return int(self._run(source, tf.constant(first), tf.constant(last), begins))

    def _steps(self, source: Any, first: tf.Tensor, last: tf.Tensor, begins: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        """Steps from ``first`` until ``last``, or until the mean loss is not finite; gives the step to go on with.

        ``begins`` are the steps of the epochs before, and the learning rate of the fit's beginning.
        """
        optimizer, (before, base_rate) = self.model.optimizer, begins
        train_step, next_batch = self.model.train_step, self._batches(source)
        if self.model.jit_compile:  # XLA where Keras would use it, which is on accelerators only
            train_step = tf.function(train_step, jit_compile=True, reduce_retracing=True, autograph=False)

        def go_on(step: tf.Tensor, loss: tf.Tensor) -> tf.Tensor:
            return tf.logical_and(step < last, tf.math.is_finite(loss))

        def one(step: tf.Tensor, loss: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            if self.rates is not None:
                now = tf.convert_to_tensor(optimizer.learning_rate)
                optimizer.learning_rate = self.rates.at(before + tf.cast(step, tf.int64), base_rate, now)
            logs = train_step(next_batch(step))
            return step + 1, tf.cast(logs["loss"], tf.float32)

        with tf.device(self.device):
            return tf.while_loop(go_on, one, (first, tf.constant(0.0)))[0]

    def _batches(self, source: Any) -> Callable[[tf.Tensor], Any]:
        """From the number of a step to its rows, in graph."""
        if self.streamed:

            def waited_for(step: tf.Tensor) -> Any:
                began = tf.timestamp()
                with tf.control_dependencies([began]):
                    found = source.get_next()
                with tf.control_dependencies(tf.nest.flatten(found)):
                    self._waited.assign_add(tf.timestamp() - began)
                return found

            return waited_for
        data, seeds = source
        order = shuffled(self.rows, seeds)

        def gathered(step: tf.Tensor) -> Any:
            rows = order[step * self.batch_size : (step + 1) * self.batch_size]
            return tf.nest.map_structure(lambda tensor: tf.gather(tensor, rows), data)

        return gathered


def place(arrays: Any, device: str) -> tuple[Any, bool]:
    """Train rows as tensors on the device and False, or the arrays and True where they have to be streamed."""
    flat = tf.nest.flatten(arrays)
    in_file = any(isinstance(array, Mapped) for array in flat)
    streamed = in_file or sum(array.nbytes for array in flat) > RESIDENT_SHARE * free_bytes(device)
    with tf.device("CPU:0" if streamed else device):
        return (arrays if streamed else tf.nest.map_structure(resident, arrays)), streamed


ALIGNMENT = 64
"""Bytes at a multiple of which TensorFlow wants its data to begin."""


def resident(array: np.ndarray) -> tf.Tensor:
    """An array as a tensor. A memory map on the CPU is taken as it is, so that processes share its pages."""
    shareable = isinstance(array, np.memmap) and array.size and array.dtype.kind in "fi"
    if shareable and array.ctypes.data % ALIGNMENT == 0 and "CPU:" in tf.constant(0).device:
        return tf.experimental.dlpack.from_dlpack(np.asarray(array).__dlpack__())
    return tf.convert_to_tensor(array)


def shuffled(rows: int, seeds: tf.Tensor) -> tf.Tensor:
    """The permutation for the seed of a fit and the number of an epoch, (2,) int64."""
    return tf.random.experimental.stateless_shuffle(tf.range(rows), seed=seeds)


def batches(arrays: Any, order: tf.Tensor, batch_size: int) -> tf.data.Dataset:
    """The batches of one epoch, gathered from arrays on the host, or files, while earlier ones are trained on."""
    flat = tf.nest.flatten(arrays)
    size = batch_size * sum(array.nbytes for array in flat) // max(len(flat[0]), 1)
    ahead = max(1, min(PREFETCH, PREFETCH_BYTES // max(size, 1)))

    def gather(rows: np.ndarray) -> list[np.ndarray]:
        return [array[rows] for array in flat]

    def fetch(rows: tf.Tensor) -> Any:
        found = tf.numpy_function(gather, [rows], [array.dtype for array in flat], stateful=False)
        for tensor, array in zip(found, flat, strict=True):
            tensor.set_shape((None, *array.shape[1:]))
        return tf.nest.pack_sequence_as(arrays, found)

    return tf.data.Dataset.from_tensor_slices(order).batch(batch_size).map(fetch).prefetch(ahead)


def free_bytes(device: str) -> int:
    """Memory that is left on a device: of the machine for a CPU, of what TensorFlow may take for a GPU."""
    kind, number = device.split(":")[-2:]
    if kind == "CPU":
        return environment.memory().available
    from tensorflow.python.client import device_lib  # the only place that tells TensorFlow's limit

    name = f"{kind}:{number}"
    limit = next(found.memory_limit for found in device_lib.list_local_devices() if found.name.endswith(name))
    return int(limit - tf.config.experimental.get_memory_info(name)["current"])
