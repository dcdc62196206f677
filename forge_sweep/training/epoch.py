"""The compiled epoch: all gradient steps of an epoch as one call of one TensorFlow function.

``model.fit`` fetches each batch from a pipeline and comes back to Python after each step; for a network of a few
thousand parameters that takes several times as long as its arithmetic. Here the rows lie on the model's device as
tensors, and the loop over the batches is part of the graph. One step is Keras' own ``train_step``, so that losses,
weights, penalties, moving statistics, mixed precision, loss scaling and metrics are what ``model.fit`` makes of them.

Imported by `loop` when a fit on TensorFlow begins.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from forge_sweep import environment
from forge_sweep.training import networks
from forge_sweep.training.data import TrainingData

SEGMENT_S = 1.0
"""About how long one call may last. Between calls the deadline is looked at and Ctrl-C is heard."""

RESIDENT_SHARE = 0.5
"""Most of the device's free memory that the train rows may take; the rest is for the network and its activations."""

PREFETCH = 8
"""Batches that are made ready ahead of the step that needs them, where rows are streamed."""


class CompiledEpoch:
    """Runs the gradient steps of one epoch after the other on a compiled model.

    The order of the rows in epoch ``k`` is a function of ``seed`` and ``k`` alone, so that training which is taken up
    again at epoch ``k`` sees the rows as it would have without the interruption.

    Args:
        model: a compiled model on the TensorFlow backend.
        data: its train rows; they are copied to the device of the model's weights, or streamed to it batch by batch
            where they would take more than ``RESIDENT_SHARE`` of its free memory.
        batch_size: rows per gradient step; the last batch of an epoch has what is left.
        seed: decides the order of the rows.
    """

    def __init__(self, model: keras.Model, data: TrainingData, batch_size: int, seed: int) -> None:
        self.model = model
        self.batch_size = batch_size
        self.device = device_of(model)
        self.stride = 1  # steps per call: doubled as long as a call is short
        if not model.optimizer.built:  # inside the function it would be traced twice, as for all that makes variables
            model.optimizer.build(model.trainable_variables)
        self._run = tf.function(self._steps, autograph=False)
        self.begin(data, seed)

    def begin(self, data: TrainingData, seed: int) -> None:
        """Take other rows and another order; arguments as for the class. What is traced serves rows of equal shapes."""
        self.rows = len(data.y_train)
        self.steps = -(-self.rows // self.batch_size)
        self.seed = seed
        placed = networks.rows_on(self.device, data, place)
        self.data: Any = placed.arrays
        self.streamed = placed.streamed

    def end(self) -> None:
        """Let go of the rows; `begin` comes before the next epoch."""
        self.data = None

    def __call__(self, epoch: int, callbacks: keras.callbacks.CallbackList) -> dict[str, float]:
        """Train one epoch, or a part of it if a callback stops training or the mean loss is no longer finite.

        Args:
            epoch: its number.
            callbacks: their ``on_train_batch_begin`` and ``on_train_batch_end`` are called around each call, which is
                one or more steps.

        Returns:
            The model's loss and metrics over the epoch, as ``model.fit`` gives them to ``on_epoch_end``.
        """
        source = self._source(epoch)
        done = 0
        while done < self.steps and not self.model.stop_training:
            callbacks.on_train_batch_begin(done)
            began = time.monotonic()
            last = min(done + self.stride, self.steps)
            done = int(self._run(source, tf.constant(done), tf.constant(last)))
            self._pace(time.monotonic() - began)
            callbacks.on_train_batch_end(done - 1, self.model.get_metrics_result())
        return dict(self.model.get_metrics_result())

    def _pace(self, seconds: float) -> None:
        """Choose the number of steps of the next call from what this one took."""
        if seconds < SEGMENT_S / 2:
            self.stride = min(2 * self.stride, self.steps)
        elif seconds > SEGMENT_S:
            self.stride = max(self.stride // 2, 1)

    def _source(self, epoch: int) -> Any:
        """Where the steps of an epoch take their batches from: all rows and the epoch, or an iterator over batches."""
        seeds = tf.constant((self.seed, epoch), tf.int64)
        if self.streamed:
            return iter(batches(self.data, shuffled(self.rows, seeds), self.batch_size))
        return self.data, seeds

    def _steps(self, source: Any, first: tf.Tensor, last: tf.Tensor) -> tf.Tensor:
        """Gradient steps ``first`` to ``last - 1``, or up to the first one after which the mean loss is not finite.

        Returns:
            The number of the step to go on with.
        """
        train_step, next_batch = self._train_step(), self._batches(source)

        def go_on(step: tf.Tensor, loss: tf.Tensor) -> tf.Tensor:
            return tf.logical_and(step < last, tf.math.is_finite(loss))

        def one(step: tf.Tensor, loss: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            logs = train_step(next_batch(step))
            return step + 1, tf.cast(logs["loss"], tf.float32)

        with tf.device(self.device):
            return tf.while_loop(go_on, one, (first, tf.constant(0.0)))[0]

    def _train_step(self) -> Callable[[Any], dict[str, tf.Tensor]]:
        """Keras' own step; through XLA where Keras would use it, which is on accelerators only."""
        step: Callable[[Any], dict[str, tf.Tensor]] = self.model.train_step
        if self.model.jit_compile:
            step = tf.function(step, jit_compile=True, reduce_retracing=True, autograph=False)
        return step

    def _batches(self, source: Any) -> Callable[[tf.Tensor], Any]:
        """From the number of a step to its rows, in graph."""
        if self.streamed:
            return lambda step: source.get_next()
        data, seeds = source
        order = shuffled(self.rows, seeds)

        def gathered(step: tf.Tensor) -> Any:
            rows = order[step * self.batch_size : (step + 1) * self.batch_size]
            return tf.nest.map_structure(lambda tensor: tf.gather(tensor, rows), data)

        return gathered


def compiled_epoch(model: keras.Model, data: TrainingData, batch_size: int, seed: int) -> CompiledEpoch:
    """A `CompiledEpoch`, the one that was compiled for this network before where there is one; see `networks`."""
    known: dict[int, CompiledEpoch] = networks.epochs_of(model)
    if batch_size in known:
        known[batch_size].begin(data, seed)
    else:
        known[batch_size] = CompiledEpoch(model, data, batch_size, seed)
    return known[batch_size]


def place(arrays: Any, device: str) -> tuple[Any, bool]:
    """Train rows where a network can take them from.

    Returns:
        Tensors on the device and False, or the arrays and True where they have to be streamed.
    """
    streamed = size_of(arrays) > RESIDENT_SHARE * free_bytes(device)
    with tf.device("CPU:0" if streamed else device):
        return (arrays if streamed else tf.nest.map_structure(resident, arrays)), streamed


ALIGNMENT = 64
"""Bytes at a multiple of which TensorFlow wants its data to begin."""


def resident(array: np.ndarray) -> tf.Tensor:
    """An array as a tensor. A memory map on the CPU is taken as it is, so that processes share its pages."""
    shareable = isinstance(array, np.memmap) and array.size and array.dtype.kind in "fi"
    if shareable and array.ctypes.data % ALIGNMENT == 0 and on_cpu():
        return tf.experimental.dlpack.from_dlpack(np.asarray(array).__dlpack__())
    return tf.convert_to_tensor(array)


def on_cpu() -> bool:
    """Whether tensors are made on the CPU here."""
    return "CPU:" in tf.constant(0).device


def row_order(rows: int, seed: int, epoch: int) -> tf.Tensor:
    """A permutation of the rows that depends on these three numbers only, (rows,) int32."""
    return shuffled(rows, tf.constant((seed, epoch), tf.int64))


def shuffled(rows: int, seeds: tf.Tensor) -> tf.Tensor:
    """The permutation for the seed of a fit and the number of an epoch, (2,) int64."""
    return tf.random.experimental.stateless_shuffle(tf.range(rows), seed=seeds)


def batches(arrays: Any, order: tf.Tensor, batch_size: int) -> tf.data.Dataset:
    """The batches of one epoch, gathered from arrays on the host while earlier ones are trained on.

    Args:
        arrays: NumPy arrays in any structure, memory maps among them.
        order: the rows' order.
        batch_size: rows of all batches but the last.
    """
    flat = tf.nest.flatten(arrays)

    def gather(rows: np.ndarray) -> list[np.ndarray]:
        return [array[rows] for array in flat]

    def fetch(rows: tf.Tensor) -> Any:
        found = tf.numpy_function(gather, [rows], [array.dtype for array in flat], stateful=False)
        for tensor, array in zip(found, flat, strict=True):
            tensor.set_shape((None, *array.shape[1:]))
        return tf.nest.pack_sequence_as(arrays, found)

    return tf.data.Dataset.from_tensor_slices(order).batch(batch_size).map(fetch).prefetch(PREFETCH)


def device_of(model: keras.Model) -> str:
    """The device of the model's weights, such as ``/job:localhost/replica:0/task:0/device:GPU:0``."""
    return str(model.variables[0].value.device)


def size_of(arrays: Any) -> int:
    """Bytes of NumPy arrays in any structure."""
    return sum(array.nbytes for array in tf.nest.flatten(arrays))


def free_bytes(device: str) -> int:
    """Memory that is left on a device: of the machine for a CPU, of what TensorFlow may take for a GPU."""
    kind, number = device.split(":")[-2:]
    if kind == "CPU":
        return environment.memory().available
    from tensorflow.python.client import device_lib  # the only place that tells TensorFlow's limit

    name = f"{kind}:{number}"
    limit = next(found.memory_limit for found in device_lib.list_local_devices() if found.name.endswith(name))
    return int(limit - tf.config.experimental.get_memory_info(name)["current"])
