"""Compiling: the optimizer and the loss that the hyperparameters and the task ask for, whatever the network is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forge_sweep.experiment import HYPERPARAMETERS
from forge_sweep.task import Joint

if TYPE_CHECKING:
    from collections.abc import Callable

    import keras

    from forge_sweep.experiment import Params
    from forge_sweep.task import Task


UNDECAYED = ("bias", "beta", "gamma", "token_direction", "token_bias", "token_of_row")
"""Names of weights that no weight decay draws to 0: biases, and those of normalisations and tokens."""


def compile_model(model: keras.Model, task: Task, params: Params) -> None:
    """Compile a network; what ``params`` lack of `GENERAL` has its default.

    jit_compile stays "auto": Keras turns XLA off where there are CPUs only, since TensorFlow is slower there with it.
    """
    model.compile(optimizer=optimizer(params), loss=loss(task))


def compile_published(
    model: keras.Model, task: Task, params: Params, of_loss: Callable[[Any], Any] = lambda it: it
) -> None:
    """Compile one of the networks from papers: no weight decay on vectors that are added, and gradients clipped.

    Args:
        model: to compile.
        task: gives the loss.
        params: ``weight_decay`` and ``clip_norm`` are those of the paper where the trial names none.
        of_loss: makes the loss that is minimised of the task's.
    """
    made = optimizer(params)
    made.exclude_from_weight_decay(var_list=[each for each in model.trainable_variables if each.name in UNDECAYED])
    if (decay := params.get("weight_decay")) is not None:
        made.weight_decay = float(decay)
    if norm := params.get("clip_norm"):
        made.global_clipnorm = float(norm)
    model.compile(optimizer=made, loss=of_loss(loss(task)))


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
