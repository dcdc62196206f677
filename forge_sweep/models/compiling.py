"""Compiling: the optimizer and the loss that the hyperparameters and the task ask for, whatever the network is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forge_sweep.experiment import HYPERPARAMETERS
from forge_sweep.task import Joint

if TYPE_CHECKING:
    import keras

    from forge_sweep.experiment import Params
    from forge_sweep.task import Task


def compile_model(model: keras.Model, task: Task, params: Params) -> None:
    """Compile a network; what ``params`` lack of `GENERAL` has its default.

    jit_compile stays "auto": Keras turns XLA off where there are CPUs only, since TensorFlow is slower there with it.
    """
    model.compile(optimizer=optimizer(params), loss=loss(task))


def optimizer(params: Params) -> Any:
    """The optimizer; ``momentum`` reaches the two that have one."""
    from keras import optimizers

    known = {
        "adam": optimizers.Adam,
        "adamw": optimizers.AdamW,
        "nadam": optimizers.Nadam,
        "rmsprop": optimizers.RMSprop,
        "sgd": optimizers.SGD,
    }
    name = str(params.get("optimizer", HYPERPARAMETERS["optimizer"].default))
    rate = params.get("learning_rate", HYPERPARAMETERS["learning_rate"].default)
    momentum = {"momentum": params["momentum"]} if name in ("sgd", "rmsprop") and "momentum" in params else {}
    return known[name](learning_rate=rate, **momentum)


def loss(task: Task) -> Any:
    """The task's loss as Keras takes it; only the cross-entropies know ``from_logits``."""
    from keras import losses

    if isinstance(task, Joint):
        from forge_sweep.models.joint import JointLoss

        units = [head.units for head in task.tasks]
        return JointLoss([loss(head) for head in task.tasks], task.widths, units, task.weights)
    known = {
        "binary_crossentropy": losses.BinaryCrossentropy,
        "categorical_crossentropy": losses.CategoricalCrossentropy,
        "sparse_categorical_crossentropy": losses.SparseCategoricalCrossentropy,
    }
    return known[task.loss](from_logits=task.from_logits) if task.loss in known else task.loss
