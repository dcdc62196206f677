"""Samples of a network while it is trained: activations, gradients and updates on a few train rows, at little cost.

Nothing of the training changes by it, to the last bit: layers run as in inference, and what they may have changed all
the same (states of random generators, moving statistics, metrics) is put back. Imports Keras.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from forge_sweep.checks.samples import LayerSample, Sample
from forge_sweep.training.callbacks import BetweenSteps
from forge_sweep.training.data import Features, TrainingData, chunk_rows, each, leaves, row_weights

ROWS = 256
"""Train rows that are looked at, spread evenly over all of them."""

SHARE = 0.008
"""Most of the time that samples may take, and that snapshots of the state may take besides, while all goes well."""

FIRST_COSTS_S = {"tensorflow": 0.3, "torch": 0.3, "jax": 2.0}
"""What the first sample of a process is thought to take; JAX compiles each operation for each shape."""

FLAT = 0.01
"""Share by which the loss falls at the least in the first epochs where nothing looks wrong."""

LOOK_AFTER = 3
"""Epochs after which a loss that is still flat is looked into."""

MOST_BYTES = 256_000_000
"""Largest state that is kept beside the one that is trained."""

_costs_s: dict[str, float] = {}  # of the last sample on each backend, in this process


class Probe(BetweenSteps):
    """Takes samples of a training, and keeps what its last epochs can be trained again from.

    A sample is taken after the first epoch and at the end as long as all of them take less than `SHARE` of the time,
    and in any case where the loss is still flat after `LOOK_AFTER` epochs and at the end.

    Args:
        data: that is trained on.
        names: of the columns of the features, laid side by side; () where they have none.

    Attributes:
        samples: in the order in which they were taken.
        spent_s: what samples and snapshots took.
        epochs_s: of each epoch.
        waited_s: for batches, between the steps of ``model.fit``.
        kept: (epoch, 0-based; the state before it), the latest that was kept; None where it is too large.
        rates: learning rate at the beginning of each epoch, by its number.
        step: the last one that was trained, in its epoch, 0-based.
    """

    def __init__(self, data: TrainingData, names: Sequence[str] = ()) -> None:
        super().__init__()
        self.data = data
        self.names = names
        self.samples: list[Sample] = []
        self.spent_s = 0.0
        self.kept_s = 0.0
        self.cost_s = math.inf  # of one snapshot
        self.epochs_s: list[float] = []
        self.waited_s = 0.0
        self.kept: tuple[int, list[np.ndarray]] | None = None
        self.rates: dict[int, float] = {}
        self.losses: list[float] = []
        self.before: list[np.ndarray] | None = None
        self.epoch = 0
        self.step = -1
        self.steps = 0
        self.began = self.epoch_began = self.step_ended = time.monotonic()

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Begin to count; comes after a progress was put back."""
        self.began = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Keep the state before an epoch, the first one in any case, and the others where it takes next to nothing."""
        self.epoch, self.step = epoch, -1
        began = time.monotonic()
        first = not self.rates
        if first or self.kept_s + self.cost_s < SHARE * (began - self.began):
            state = state_of(self.model)
            if not first or n_bytes(state) <= MOST_BYTES:
                self.kept = epoch, [np.array(variable) for variable in state]
                self.cost_s = time.monotonic() - began
                if first:
                    places = {id(variable): n for n, variable in enumerate(state)}
                    self.before = [self.kept[1][places[id(each)]] for each in self.model.trainable_variables]
        self.rates[epoch] = float(self.model.optimizer.learning_rate)
        self.epoch_began = self.step_ended = time.monotonic()
        self.kept_s += self.epoch_began - began
        self.spent_s += self.epoch_began - began

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Count the time since the last step."""
        self.waited_s += time.monotonic() - self.step_ended

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Remember the step."""
        self.step = batch
        self.step_ended = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Take a sample where one is due; comes last, when the trained weights are in the model."""
        now = time.monotonic()
        self.epochs_s.append(now - self.epoch_began)
        self.steps += self.step + 1
        self.losses.append(float((logs or {}).get("loss", math.nan)))
        done = len(self.losses)
        last = self.model.stop_training or epoch + 1 == self.params["epochs"]
        flat = done >= LOOK_AFTER and self.losses[0] - min(self.losses) < FLAT * abs(self.losses[0])
        wrong = flat and (done == LOOK_AFTER or last)
        cost = _costs_s.get(keras.backend.backend(), FIRST_COSTS_S[keras.backend.backend()])
        affordable = self.spent_s - self.kept_s + cost < SHARE * (now - self.began)
        if math.isfinite(self.losses[-1]) and (wrong or (affordable and (last or not self.samples))):
            self.sample(self.model, epoch + 1)

    def sample(self, model: keras.Model, epochs: int) -> Sample:
        """The network as it is now, after so many epochs; it is kept among `samples`."""
        began = time.monotonic()
        try:
            taken = sampled(model, self.data, self.names, self.before, epochs, self.steps)
        except Exception as error:  # a layer of the user's own that is like no other; no reason to end its training
            why = f"not sampled: {type(error).__name__}: {error}"[:200]
            taken = Sample(epochs, self.steps, 0, missing=(why,))
        seconds = time.monotonic() - began
        self.spent_s += seconds
        _costs_s[keras.backend.backend()] = seconds
        self.samples.append(taken)
        return taken

    @property
    def setup_s(self) -> float:
        """What the first epoch took beyond a later one: tracing and compiling, for the most part."""
        later = sorted(self.epochs_s[1:])
        return max(0.0, self.epochs_s[0] - later[len(later) // 2]) if len(later) > 1 else 0.0


def state_of(model: keras.Model) -> list[Any]:
    """All variables that the next epoch depends on."""
    return [*model.variables, *model.optimizer.variables]


def n_bytes(variables: Sequence[Any]) -> int:
    """Memory of variables, at four bytes a number."""
    return sum(4 * math.prod(variable.shape) for variable in variables)


def few(data: TrainingData) -> np.ndarray:
    """Positions of the train rows that are looked at."""
    rows = len(data.y_train)
    return np.linspace(0, rows - 1, min(rows, ROWS, chunk_rows(data.x_train))).astype(np.int64)


def sampled(
    model: keras.Model,
    data: TrainingData,
    names: Sequence[str] = (),
    before: Sequence[np.ndarray] | None = None,
    epochs: int = 0,
    steps: int = 0,
) -> Sample:
    """A sample of a network; what cannot be had of it is named in ``missing``.

    Args:
        model: compiled, and trained before.
        data: see `Probe`.
        names: see `Probe`.
        before: values of the trainable variables at the beginning.
        epochs: completed.
        steps: completed.
    """
    began = time.monotonic()
    rows = few(data)
    x, y = each(lambda values: values[rows], data.x_train), data.y_train[rows]
    whole = row_weights(data)
    weights = None if whole is None else whole[rows]
    missing: list[str] = []
    units: dict[str, tuple[float, float | None]] = {}
    found: list[np.ndarray] | None = None
    penalty = None
    with Untouched(model):
        try:
            units = {name: of_units(values, kind) for name, kind, values in activations(model, x)}
        except Exception as error:  # whatever a network of the user's own does not know
            missing.append(f"activations not sampled: {type(error).__name__}: {error}"[:200])
        try:
            found, loss, extra = gradients(model, x, y, weights)
            penalty = extra / loss if loss > 0 else None
        except Exception as error:
            missing.append(f"gradients not sampled: {type(error).__name__}: {error}"[:200])
    optimizer = model.optimizer
    scale = getattr(optimizer, "dynamic_scale", None)
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    return Sample(
        epochs=epochs,
        steps=steps,
        rows=len(rows),
        layers=tuple(of_layers(model, units, found, before)),
        columns=of_columns(x, names),
        penalty=penalty,
        scale=None if scale is None else float(scale),
        applied=None if scale is None else int(inner.iterations),
        missing=tuple(missing),
        seconds=time.monotonic() - began,
    )


class Untouched:
    """Puts back, at the end of the block, what looking at a model changed: its variables, and random states."""

    def __init__(self, model: keras.Model) -> None:
        self.variables = [*model.non_trainable_variables, *model.metrics_variables]

    def __enter__(self) -> None:
        self.values = [np.array(variable) for variable in self.variables]
        self.states = random.getstate(), np.random.get_state()
        if keras.backend.backend() == "torch":
            import torch

            self.torch = torch.get_rng_state()

    def __exit__(self, *_: object) -> None:
        for variable, value in zip(self.variables, self.values, strict=True):
            if not np.array_equal(np.array(variable), value, equal_nan=value.dtype.kind == "f"):
                variable.assign(value)
        random.setstate(self.states[0])
        np.random.set_state(self.states[1])
        if keras.backend.backend() == "torch":
            import torch

            torch.set_rng_state(self.torch)


def activations(model: keras.Model, x: Features) -> Iterator[tuple[str, str, np.ndarray]]:
    """Layers with an activation function, but for those that give the outputs: name, function, values.

    Raises:
        ValueError: the model is no graph of layers.
    """
    if not isinstance(model, keras.Model) or not getattr(model, "inputs", None):
        raise ValueError(f"{type(model).__name__} is no graph of layers")
    last = {id(tensor) for tensor in keras.tree.flatten(model.outputs)}
    wanted: list[tuple[str, str, Any]] = []
    for layer in model.layers:
        kind = getattr(getattr(layer, "activation", None), "__name__", type(layer).__name__.lower())
        if kind == "linear" or not (hasattr(layer, "activation") or kind in ("relu", "leakyrelu", "elu", "prelu")):
            continue
        try:
            output = layer.output
        except (AttributeError, ValueError):  # it is used more than once
            continue
        if id(output) not in last:
            wanted.append((layer.name, kind, output))
    if wanted:
        part = keras.Model(model.input, [output for *_, output in wanted], name="sampled")
        for (name, kind, _), values in zip(wanted, keras.tree.flatten(part(x, training=False)), strict=True):
            yield name, kind, np.asarray(keras.ops.convert_to_numpy(values), np.float32)


ENDS = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0), "hard_sigmoid": (0.0, 1.0), "softsign": (-1.0, 1.0)}
"""Of activation functions that saturate."""


SATURATED = 0.95
"""Share of the rows for which a unit is at an end of its range from which it is saturated."""


def of_units(values: np.ndarray, kind: str) -> tuple[float, float | None]:
    """Shares of the units that have one value for all rows, and that are at an end of their range for all of them."""
    flat = values.reshape(-1, values.shape[-1])
    low, high = flat.min(axis=0), flat.max(axis=0)
    constant = float((high - low <= 1e-6 * np.maximum(np.maximum(abs(high), abs(low)), 1e-6)).mean())
    if kind not in ENDS:
        return constant, None
    least, most = ENDS[kind]
    near = (most - least) / 100
    ends = (flat <= least + near) | (flat >= most - near)
    return constant, float((ends.mean(axis=0) >= SATURATED).mean())


def of_layers(
    model: keras.Model,
    units: dict[str, tuple[float, float | None]],
    found: Sequence[np.ndarray] | None,
    before: Sequence[np.ndarray] | None,
) -> Iterator[LayerSample]:
    """The figures of each layer, in the model's order."""
    gradient_of = {} if found is None else {id(v): g for v, g in zip(model.trainable_variables, found, strict=True)}
    was = {} if before is None else {id(v): b for v, b in zip(model.trainable_variables, before, strict=True)}
    for layer in model.layers:
        mine = layer.trainable_variables
        frozen = [weight for weight in layer.weights if not weight.trainable and _learnable(layer, weight)]
        now = [np.asarray(keras.ops.convert_to_numpy(weight), np.float32) for weight in (*mine, *frozen)]
        constant, saturated = units.get(layer.name, (None, None))
        moved = None
        if mine and all(id(v) in was for v in mine):
            change = norm([a - was[id(v)] for a, v in zip(now, mine, strict=False)])
            moved = change / max(norm([was[id(v)] for v in mine]), 1e-12)
        kernels = [value for value in now if value.ndim > 1]
        yield LayerSample(
            name=layer.name,
            constant=constant,
            saturated=saturated,
            gradient=norm([gradient_of[id(v)] for v in mine]) if mine and gradient_of else None,
            weights=norm(kernels) if kernels else None,
            moved=moved,
            trainable=len(mine) / len(now) if now else None,
            rate=float(layer.rate) if type(layer).__name__ == "Dropout" else None,
        )


def _learnable(layer: Any, weight: Any) -> bool:
    """Whether a weight that is not trainable would be, were its layer: moving statistics never are."""
    return not layer.trainable and "moving" not in weight.path


def frozen(model: keras.Model) -> list[str]:
    """Layers with weights none of which may be trained, though they could be."""
    return [
        str(layer.name)
        for layer in model.layers
        if not layer.trainable_variables and any(_learnable(layer, weight) for weight in layer.weights)
    ]


def of_columns(x: Features, names: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """The root mean square of each column of the tables among the inputs."""
    tables = [values for values in leaves(x) if values.ndim == 2 and values.dtype.kind == "f"]
    if not tables:
        return ()
    table = np.concatenate(tables, axis=1)
    sizes = np.sqrt((table.astype(np.float64) ** 2).mean(axis=0))
    known = names if len(names) == len(sizes) else [f"input column {n}" for n in range(len(sizes))]
    return tuple(zip(known, map(float, sizes), strict=True))


def norm(values: Sequence[np.ndarray]) -> float:
    """The Euclidean norm of all numbers of these arrays together."""
    return math.sqrt(sum(float((value.astype(np.float64) ** 2).sum()) for value in values))


def gradients(
    model: keras.Model, x: Features, y: np.ndarray, weights: np.ndarray | None
) -> tuple[list[np.ndarray], float, float]:
    """The gradient for each trainable variable, the loss, and how much of it is a penalty; layers as in inference.

    Raises:
        ValueError: the model computes its loss in a way of its own.
    """
    if model.loss is None:
        raise ValueError(f"{type(model).__name__} computes its loss in a way of its own")
    variables = model.trainable_variables
    if not variables:
        return [], math.nan, 0.0
    convert = keras.ops.convert_to_tensor
    inputs, targets = each(convert, x), convert(y)
    each_row = None if weights is None else convert(weights)
    # In half precision gradients are of the scaled loss, as they are in training.
    factor = float(getattr(model.optimizer, "dynamic_scale", 1.0))
    match keras.backend.backend():
        case "tensorflow":
            import tensorflow as tf

            with tf.GradientTape() as tape:
                loss = model.compute_loss(inputs, targets, model(inputs, training=False), each_row, training=False)
                scaled = loss * factor
            found = tape.gradient(scaled, [variable.value for variable in variables])
            found = [
                tf.zeros(v.shape) if g is None else tf.convert_to_tensor(g)
                for g, v in zip(found, variables, strict=True)
            ]
        case "jax":
            import jax

            rest, metrics = ([v.value for v in vs] for vs in (model.non_trainable_variables, model.metrics_variables))

            def total(values: list[Any]) -> Any:
                given = (values, rest, metrics, inputs, targets, each_row)
                return model.compute_loss_and_updates(*given, training=False)[0] * factor

            scaled, found = jax.jit(jax.value_and_grad(total))([variable.value for variable in variables])
            loss = scaled / factor
        case _:
            import torch

            with torch.enable_grad():
                loss = model.compute_loss(inputs, targets, model(inputs, training=False), each_row, training=False)
                tensors = [variable.value for variable in variables]
                found = torch.autograd.grad(loss * factor, tensors, allow_unused=True)
            found = [torch.zeros_like(t) if g is None else g for g, t in zip(found, tensors, strict=True)]
    numbers = [np.asarray(keras.ops.convert_to_numpy(gradient), np.float32) / np.float32(factor) for gradient in found]
    penalties = [float(keras.ops.convert_to_numpy(keras.ops.sum(each))) for each in model.losses]
    return numbers, float(keras.ops.convert_to_numpy(loss)), sum(penalties)
