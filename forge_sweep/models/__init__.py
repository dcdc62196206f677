"""Networks: from hyperparameters to a compiled Keras model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forge_sweep import plugins
from forge_sweep.errors import InputError
from forge_sweep.experiment import Code, hyperparameters_of
from forge_sweep.experiment.importing import cause, where
from forge_sweep.models import ft_transformer, mlp, own, realmlp, resnet, tabm
from forge_sweep.models.general import adjust
from forge_sweep.models.heads import Head, Heads
from forge_sweep.models.own import WrongOutput, callbacks
from forge_sweep.preprocessing.inputs import FEATURES

if TYPE_CHECKING:
    import keras

    from forge_sweep.experiment import Params
    from forge_sweep.preprocessing import Spec
    from forge_sweep.task import Task

__all__ = ["BUILDERS", "Builder", "Head", "Heads", "WrongOutput", "build", "callbacks", "cause", "size", "where"]


@dataclass(frozen=True)
class Builder:
    """One kind of network: of this package, or the value of an entry point of the group ``forge_sweep.builders``.

    Attributes:
        build: (n_features, task, params) to a compiled model; ``compile`` is its last step.
        size: (n_features, task, params) to (parameters, values per row that its layers give), without building it.
        learns: whether `build` takes ``rows`` besides, see `preprocessing.InputSpec`: layers of it learn from them.
    """

    build: Callable[..., keras.Model]
    size: Callable[[int, Task, Params], tuple[int, int]]
    learns: bool = False


BUILDERS = {
    "mlp": Builder(mlp.build, mlp.size, learns=True),
    "realmlp": Builder(realmlp.build, realmlp.size, learns=True),
    "tabm": Builder(tabm.build, tabm.size, learns=True),
    "resnet": Builder(resnet.build, resnet.size),
    "ft_transformer": Builder(ft_transformer.build, ft_transformer.size),
}
"""The package's own."""


def build(builder: str | Code, spec: Spec, task: Task, params: Params) -> keras.Model:
    """Build and compile a network.

    Initial weights follow the backend's random state: call ``training.seed_everything`` first for the same ones again.

    Args:
        builder: `Experiment.builder`: a key of `BUILDERS`, the name of a plugin, or the source of an own function.
        spec: the inputs of the model.
        task: what is predicted; gives the head and the loss.
        params: hyperparameters; those not named have the builder's defaults.

    Returns:
        A compiled model that maps rows to (rows, task.units) float32. It takes an array where ``spec`` has one input,
        else a dict of arrays by name.

    Raises:
        InputError: no such builder, the distribution that declares it is broken, or it cannot take these inputs; see
            also `general.adjust`.
        TrialFailed: an own function raised, or gave no model that fits; says where.
    """
    params = _typed(builder, params)
    if isinstance(builder, Code):
        return adjust(own.build(builder, spec, task, params), params)
    known, width = _known(builder), _width(builder, spec)
    rows = {"rows": spec[FEATURES].rows} if known.learns else {}
    return adjust(known.build(width, task, params, **rows), params)


def size(builder: str | Code, spec: Spec, task: Task, params: Params) -> tuple[int, int]:
    """How large a network would be, from arithmetic alone: the largest one may not fit into memory.

    A network of the user's own has to be built for that.

    Returns:
        (parameters, values per row that its layers give); arguments and errors as in `build`.
    """
    params = _typed(builder, params)
    if isinstance(builder, Code):
        return own.size(builder, spec, task, params)
    return _known(builder).size(_width(builder, spec), task, params)


def _typed(builder: str | Code, params: Params) -> Params:
    """Hyperparameters that are numbers with a point as such: an experiment file may say ``learning_rate = 1``."""
    known = builder.hyperparameters if isinstance(builder, Code) else hyperparameters_of(builder)
    floats = {name for name, each in known.items() if each.type == "float"}
    return {name: float(value) if name in floats else value for name, value in params.items()}


def _known(name: str) -> Builder:
    if name in BUILDERS:
        return BUILDERS[name]
    found = plugins.load(plugins.BUILDERS, name, ["build", "size"])
    return Builder(found.build, found.size)


def _width(name: str, spec: Spec) -> int:
    """Columns of the one matrix that a `Builder` takes."""
    if list(spec) == [FEATURES] and len(spec[FEATURES].shape) == 1 and spec[FEATURES].vocabulary is None:
        return spec[FEATURES].shape[0]
    found = ", ".join(f"{name} {each.shape}{' of codes' * bool(each.vocabulary)}" for name, each in spec.items())
    raise InputError(
        f'model.builder = "{name}" takes one matrix of features; the inputs of this experiment are {found}',
        hint="take [data.inputs] out, or name a builder that takes these inputs",
    )
