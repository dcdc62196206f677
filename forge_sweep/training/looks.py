"""What can be asked of a Keras model before it is trained: its layers, its loss and its learning rates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from forge_sweep.models import compiling
from forge_sweep.training.data import Features

if TYPE_CHECKING:
    import keras

    from forge_sweep.task import Task


def compiled_loss(model: keras.Model, task: Task, encoded: np.ndarray, found: np.ndarray) -> float:
    """The compiled loss of outputs as training has it, smoothed labels included; without penalties and weights."""
    from keras import losses, ops

    loss = losses.get(compiling.loss(task) if model.loss is None else model.loss)
    value = loss(ops.convert_to_tensor(encoded), ops.convert_to_tensor(np.asarray(found, np.float32)))
    return float(ops.convert_to_numpy(ops.mean(value)))


def loss_settings(model: keras.Model) -> Mapping[str, Any]:
    """``name``, ``from_logits``, ``label_smoothing`` and so on of the compiled loss; empty where it is a function."""
    from keras import losses

    loss = model.loss
    if isinstance(loss, str):
        loss = losses.get(loss)
    if isinstance(loss, losses.Loss):
        return {**loss.get_config(), "kind": type(loss).__name__}
    return {"kind": "".join(part.title() for part in getattr(loss, "__name__", "").split("_"))}


def training_outputs(model: keras.Model, x: Features) -> np.ndarray:
    """Raw outputs in training mode, (n, units) float32: dropout and augmentation are active. Of members the mean."""
    from keras import ops

    found = np.asarray(ops.convert_to_numpy(model(x, training=True)), np.float32)
    return found.mean(axis=1) if found.ndim == 3 else found


def idle_units(model: keras.Model, x: Features) -> list[tuple[str, int, float, float | None]]:
    """By hidden layer with an activation function: its units, and the shares of them that are idle on these rows.

    These are the units with one value for all rows, and those at an end of their range, None where it has none. Empty
    where the layers have no outputs of their own.
    """
    from forge_sweep.training import probe

    try:
        return [(name, each.shape[-1], *probe.of_units(each, kind)) for name, kind, each in probe.activations(model, x)]
    except Exception:  # subclassed
        return []


def penalty(model: keras.Model) -> float:
    """The sum of ``model.losses``: what regularizers add to the loss of the targets."""
    from keras import ops

    return float(sum(float(ops.convert_to_numpy(each)) for each in model.losses))


def learning_rates(model: keras.Model, steps: Sequence[int]) -> list[float]:
    """The optimizer's learning rate at each of these steps, as its own schedule has it."""
    optimizer: Any = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    now, found = int(optimizer.iterations), []
    for step in steps:
        optimizer.iterations.assign(step)
        found.append(float(optimizer.learning_rate))
    optimizer.iterations.assign(now)
    return found


def clipping(model: keras.Model) -> tuple[str, float] | None:
    """By what the optimizer clips gradients, and to how much."""
    optimizer: Any = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    for name in ("global_clipnorm", "clipnorm", "clipvalue"):
        value = getattr(optimizer, name, None)
        if value is not None:
            return name, float(value)
    return None


def is_half_unscaled(model: keras.Model) -> bool:
    """Whether layers compute in float16 and the optimizer does not scale the loss for them."""
    half = any(getattr(layer, "compute_dtype", "") == "float16" for layer in model.layers)
    return half and type(model.optimizer).__name__ != "LossScaleOptimizer"


def variables_in(value: Any) -> list[Any] | None:
    """The variables of a layer or a variable that something holds; None for anything else."""
    import keras

    if isinstance(value, keras.layers.Layer):
        return list(value.variables)
    return [value] if isinstance(value, keras.Variable) else None


def is_of_training(value: Any) -> bool:
    """Whether an object belongs to ``compile``, whose variables are no weights of the model."""
    import keras

    return isinstance(value, keras.optimizers.Optimizer | keras.Metric | keras.losses.Loss)


def chain(model: keras.Model) -> tuple[dict[str, list[list[str]]], list[str]]:
    """The graph of a functional or Sequential model: by layer, the layers each call of it takes, and the outputs.

    Both are empty for any other model.
    """
    import keras

    if isinstance(model, keras.Sequential):
        names = [layer.name for layer in model.layers]
        return {name: [[before]] for before, name in zip(["", *names[:-1]], names, strict=True)}, names[-1:]
    try:
        config = model.get_config()
        calls = {each["name"]: [[*_histories(node)] for node in each["inbound_nodes"]] for each in config["layers"]}
        return calls, [*_outputs(config["output_layers"])]
    except Exception:  # subclassed, or with objects that no configuration describes
        return {}, []


def _histories(node: Any) -> Iterator[str]:
    """Names of the layers whose tensors a call takes."""
    if isinstance(node, Mapping):
        if "keras_history" in node:
            yield node["keras_history"][0]
        for value in node.values():
            yield from _histories(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _histories(value)


def _outputs(value: Any) -> Iterator[str]:
    """Names of layers in [name, node, tensor], or in a dict or list of those."""
    if isinstance(value, Mapping):
        for one in value.values():
            yield from _outputs(one)
    elif len(value) == 3 and isinstance(value[0], str):
        yield value[0]
    else:
        for one in value:
            yield from _outputs(one)
