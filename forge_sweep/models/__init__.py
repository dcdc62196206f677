"""Networks: from hyperparameters to a compiled Keras model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forge_sweep.errors import InputError
from forge_sweep.models import mlp

if TYPE_CHECKING:
    import keras

    from forge_sweep.experiment import Params
    from forge_sweep.task import Task

__all__ = ["BUILDERS", "Builder", "build", "size"]


@dataclass(frozen=True)
class Builder:
    """One kind of network.

    Attributes:
        build: (n_features, task, params) to a compiled model; ``compile`` is its last step.
        size: (n_features, task, params) to (parameters, values per row that its layers give), without building it.
    """

    build: Callable[[int, Task, Params], keras.Model]
    size: Callable[[int, Task, Params], tuple[int, int]]


BUILDERS = {"mlp": Builder(mlp.build, mlp.size)}


def build(builder: str, n_features: int, task: Task, params: Params) -> keras.Model:
    """Build and compile a network.

    Initial weights follow the backend's random state: call ``training.seed_everything`` first for the same ones again.

    Args:
        builder: ``model.builder`` of the experiment, a key of `BUILDERS`.
        n_features: columns of the preprocessed features.
        task: what is predicted; gives the head and the loss.
        params: hyperparameters; those not named have the defaults of ``experiment.HYPERPARAMETERS``.

    Returns:
        A compiled model that maps (rows, n_features) float32 to (rows, task.units) float32.

    Raises:
        InputError: no such builder.
    """
    return _known(builder).build(n_features, task, params)


def size(builder: str, n_features: int, task: Task, params: Params) -> tuple[int, int]:
    """How large a network would be, from arithmetic alone: the largest one may not fit into memory.

    Returns:
        (parameters, values per row that its layers give); arguments and errors as in `build`.
    """
    return _known(builder).size(n_features, task, params)


def _known(builder: str) -> Builder:
    """The builder of that name, or InputError."""
    if builder not in BUILDERS:
        raise InputError(f'model.builder = "{builder}" is unknown', hint=f"use one of {', '.join(BUILDERS)}")
    return BUILDERS[builder]
