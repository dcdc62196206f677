"""The compiled epoch on JAX: all gradient steps of an epoch as one loop that XLA compiles, over rows on the device.

One step is Keras' own stateless ``train_step``. Imports JAX.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import keras
import numpy as np
from jax import lax
from jax import numpy as jnp

from forge_sweep import environment
from forge_sweep.preprocessing import Mapped
from forge_sweep.training import networks
from forge_sweep.training.data import TrainingData
from forge_sweep.training.loop import RESIDENT_SHARE, Epochs

State = tuple[list[Any], ...]
"""Values of the trainable, the other, the optimizer's and the metrics' variables, as ``train_step`` takes them."""


class CompiledEpoch(Epochs):
    """See `Epochs`. The rows have to fit on the device, see `room`."""

    def __init__(self, model: keras.Model, *arguments: Any) -> None:
        super().__init__(model, *arguments)
        if len(model.metrics) > 1 or len(getattr(model, "outputs", None) or ()) != 1:  # more than the mean loss
            x, y, weights = keras.utils.unpack_x_y_sample_weight(jax.tree.map(lambda array: array[:1], self.data))
            found = model(x)
            model.compute_loss(x, y, found, weights)  # both make their variables at the first call
            model.compute_metrics(x, y, found, weights)
            model.reset_metrics()
        rate = model.optimizer.learning_rate
        self._rate: Any = next((n for n, variable in enumerate(model.optimizer.variables) if variable is rate), None)
        self._many, self._one = jax.jit(self._steps), jax.jit(self._step)

    def place(self, data: TrainingData) -> networks.Rows:
        """See `Epochs.place`."""
        return room(self.model, data)

    def order(self, epoch: int) -> np.ndarray:
        """See `Epochs.order`."""
        return np.asarray(shuffled(self.rows, np.uint32(self.seed), epoch))

    def source(self, epoch: int) -> Any:
        """All rows, and their order in this epoch."""
        return self.data, shuffled(self.rows, np.uint32(self.seed), epoch)

    def advance(self, source: Any, epoch: int, first: int, last: int) -> int:
        """See `Epochs.advance`.

        The state is copied, not donated: whatever interrupts a call, the variables are whole.
        """
        model, (data, order) = self.model, source
        groups = (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
        values = tuple([variable.value for variable in group] for group in groups)
        state: State = jax.device_put(values, device_of(model))  # said of each, or the second call would compile anew
        begins, full = (np.int32(epoch * self.steps), np.float32(self.base_rate)), self.rows // self.batch_size
        done, loss = first, jnp.float32(0)
        if first < min(last, full):
            step, loss, state = self._many(state, source, np.int32(first), np.int32(min(last, full)), begins)
            done = int(step)
        if done == full < last and jnp.isfinite(loss):  # the batch of what is left has a shape of its own
            loss, state = self._one(state, data, order[full * self.batch_size :], np.int32(done), begins)
            done += 1
        for group, after in zip(groups, state, strict=True):
            for variable, value in zip(group, after, strict=True):
                variable.assign(value)
        return done

    def _steps(self, state: State, source: Any, first: Any, last: Any, begins: Any) -> tuple[Any, Any, State]:
        """Whole batches, see `advance`; ``begins`` are the steps of the epochs before, and the first learning rate."""
        data, order = source

        def go_on(carried: Any) -> Any:
            return jnp.logical_and(carried[0] < last, jnp.isfinite(carried[1]))

        def one(carried: Any) -> Any:
            step, _, state = carried
            rows = lax.dynamic_slice_in_dim(order, step * self.batch_size, self.batch_size)
            return step + 1, *self._step(state, data, rows, step, begins)

        found: tuple[Any, Any, State] = lax.while_loop(go_on, one, (first, jnp.float32(0), state))
        return found

    def _step(self, state: State, data: Any, rows: Any, step: Any, begins: Any) -> tuple[Any, State]:
        """One step on these rows: the mean loss of the epoch so far, and the state after it."""
        if self.rates is not None:
            optimizer, (before, base_rate) = list(state[2]), begins
            optimizer[self._rate] = self.rates.at(before + step, base_rate, optimizer[self._rate])
            state = (*state[:2], optimizer, state[3])
        batch = jax.tree.map(lambda array: jnp.take(array, rows, axis=0), data)
        logs, after = self.model.train_step(state, batch)
        return logs["loss"].astype(jnp.float32), tuple(map(list, after))


@functools.partial(jax.jit, static_argnums=0)
def shuffled(rows: int, seed: Any, epoch: Any) -> Any:
    """The permutation for the seed of a fit and the number of an epoch, (rows,) int32."""
    return jax.random.permutation(jax.random.fold_in(jax.random.key(seed), epoch), rows)


def device_of(model: keras.Model) -> Any:
    """Where the model's weights are."""
    (device,) = model.variables[0].value.devices()
    return device


def room(model: keras.Model, data: TrainingData) -> networks.Rows:
    """The train rows on the device of the model's weights; ``streamed`` says that they have no room there."""
    device = device_of(model)

    def place(arrays: Any, name: str) -> tuple[Any, bool]:
        free = environment.memory().available
        if device.platform != "cpu" and (statistics := device.memory_stats()):
            free = statistics["bytes_limit"] - statistics["bytes_in_use"]
        flat = jax.tree.leaves(arrays)
        in_file = any(isinstance(array, Mapped) for array in flat)
        streamed = in_file or sum(array.nbytes for array in flat) > RESIDENT_SHARE * free
        return (arrays if streamed else jax.device_put(arrays, device)), streamed

    return networks.rows_on(str(device), data, place)
