"""Networks of one architecture share what TensorFlow traced, or XLA compiled, for the first of them.

Tracing and the first call take a third of a small trial (docs/decisions/0009-compiled-epoch.md). The network of an
earlier trial is taken again, with the initial weights, random states and learning rate of the new one.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from forge_sweep.training.data import TrainingData, row_weights

if TYPE_CHECKING:
    import keras

MOST_NETWORKS = 8
MOST_BYTES = 64_000_000
"""Limit for the variables of all idle networks together; large networks gain little from a saved trace."""

LAYERS = {
    *("InputLayer", "Dense", "Embedding", "Conv1D", "Conv2D", "Flatten", "Reshape", "Add", "Concatenate", "Multiply"),
    *("Activation", "ReLU", "LeakyReLU", "ELU", "Softmax", "BatchNormalization", "LayerNormalization", "Dropout"),
    *("MaxPooling1D", "MaxPooling2D", "AveragePooling1D", "AveragePooling2D"),
    *("GlobalMaxPooling1D", "GlobalMaxPooling2D", "GlobalAveragePooling1D", "GlobalAveragePooling2D"),
    *("Periodic", "PiecewiseLinear", "NTPDense", "ParametricActivation", "Scale"),
}
"""Layers whose configuration and variables are all that they are."""


@dataclass(eq=False)
class Network:
    """A network that was trained here, with its compiled epochs by batch size and learning-rate schedule.

    ``fresh_optimizer`` are the optimizer's variables before the first step; ``busy``: a trial holds the model.
    """

    signature: str
    model: keras.Model
    fresh_optimizer: list[np.ndarray]
    busy: bool = True
    epochs: dict[Any, Any] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        """Memory of its variables, at four bytes a number."""
        variables = (*self.model.variables, *self.model.optimizer.variables)
        return sum(4 * math.prod(variable.shape) for variable in variables)

    def release(self) -> None:
        """Let go of the model, and of the rows it was trained on."""
        self.busy = False
        for epoch in self.epochs.values():
            epoch.end()

    def begin_as(self, model: keras.Model) -> None:
        """Take the state of a new network of the same signature."""
        rate = float(model.optimizer.learning_rate)
        for mine, new in zip(self.model.variables, model.variables, strict=True):
            mine.assign(new)
        for mine, value in zip(self.model.optimizer.variables, self.fresh_optimizer, strict=True):
            mine.assign(value)
        self.model.optimizer.learning_rate = rate


_networks: list[Network] = []  # the one that was used last comes last
_lock = threading.Lock()


def reuse(model: keras.Model) -> keras.Model:
    """The network to train in place of a new one: an idle one of the same signature in the new one's state, or itself.

    ``model`` is compiled and was not trained yet. What is returned is the caller's until `release`; on PyTorch it is
    always the new one.
    """
    kind = signature(model)
    if kind is None:
        return model
    with _lock:
        found = next((known for known in _networks if known.signature == kind and not known.busy), None)
        if found is None:
            model.optimizer.build(model.trainable_variables)
            found = Network(kind, model, [np.array(variable) for variable in model.optimizer.variables])
        else:
            _networks.remove(found)
            found.begin_as(model)
        found.busy = True
        _networks.append(found)
    return found.model


def epochs_of(model: keras.Model) -> dict[Any, Any]:
    """Compiled epochs of a network by batch size and learning-rate schedule, to be looked up and added to."""
    return next((known.epochs for known in _networks if known.model is model), {})


def release_networks() -> None:
    """Say that no caller uses a network any more; the oldest of too many are dropped."""
    with _lock:
        room, kept = MOST_BYTES, list[Network]()
        for known in reversed(_networks[-MOST_NETWORKS:]):
            room -= known.n_bytes
            if room < 0:
                break
            known.release()
            kept.insert(0, known)
        _networks[:] = kept


def forget() -> None:
    """Drop all networks and rows kept for the next trial, as when memory ran out."""
    with _lock:
        _networks.clear()
        _rows.clear()


def signature(model: keras.Model) -> str | None:
    """All of a compiled network that its traces depend on, as text; None where that cannot be told.

    The learning rate is a variable and left out.
    """
    import keras

    if keras.config.backend() == "torch" or not _is_keras(model, ("Functional", "Sequential")):
        return None
    if not all(_is_keras(layer, LAYERS) for layer in model.layers):
        return None
    compiled = model.get_compile_config()
    optimizer = compiled["optimizer"]["config"]
    # What is excluded from weight decay is not in the configuration.
    excludes = any(bool(value) for name, value in vars(model.optimizer).items() if "exclude_from_weight_decay" in name)
    if excludes or not isinstance(optimizer.get("learning_rate"), float):
        return None
    optimizer.update(learning_rate=None, name=None)
    both = {"model": model.get_config(), "compiled": compiled, "device": model.variables[0].value.device}
    known = ("keras", "forge_sweep.")  # ours is the loss of several heads
    if any(not str(module).startswith(known) for module in _values(both, "module") if module is not None):
        return None
    return json.dumps(both, sort_keys=True, default=repr)


def _is_keras(value: object, names: Collection[str]) -> bool:
    return type(value).__module__.startswith(("keras.", "forge_sweep.")) and type(value).__name__ in names


def _values(tree: Any, key: str) -> Iterator[Any]:
    """The values of a key anywhere in a configuration."""
    if isinstance(tree, dict):
        if key in tree:
            yield tree[key]
        for value in tree.values():
            yield from _values(value, key)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _values(value, key)


@dataclass(frozen=True, eq=False)
class Rows:
    """Train rows as (features, targets, weights): tensors on the device, or arrays that are streamed to it."""

    data: TrainingData
    device: str
    arrays: Any
    streamed: bool


_rows: list[Rows] = []


def rows_on(device: str, data: TrainingData, place: Callable[[Any, str], tuple[Any, bool]]) -> Rows:
    """The rows on a device. Those of the last fit are kept, since most trials of a sweep train on the same.

    Where they are not there yet, ``place(arrays, device)`` gives `Rows.arrays` and `Rows.streamed`.
    """
    import keras

    with _lock:
        found = next((known for known in _rows if known.data is data and known.device == device), None)
        if found is None:
            _rows.clear()  # first, so that they do not count as memory that is taken
            packed = keras.utils.pack_x_y_sample_weight(data.x_train, data.y_train, row_weights(data))
            found = Rows(data, device, *place(packed, device))
            _rows.append(found)
    return found
