"""Networks of the user's own: a function ``build(inputs, heads, *, width: int = 64)`` that returns a Keras model."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from forge_sweep.errors import TrialFailed
from forge_sweep.experiment import Code
from forge_sweep.models import compiling
from forge_sweep.models.importing import failed, module_of
from forge_sweep.preprocessing.inputs import FEATURES

if TYPE_CHECKING:
    import keras

    from forge_sweep.experiment import Params
    from forge_sweep.preprocessing import Spec
    from forge_sweep.task import Task

OUTPUT = "output"
"""Name of the output layer, as of `mlp`."""


class WrongOutput(TrialFailed):
    """A model whose outputs do not have the shape that the heads score."""


MEMORY = ("ResourceExhaustedError", "OutOfMemoryError", "MemoryError", "_ArrayMemoryError")


@dataclass(frozen=True)
class Head:
    """One thing that is predicted.

    Attributes:
        name: of the target, or ``output`` where there are several columns.
        task: what its targets look like.
    """

    name: str
    task: Task

    @property
    def units(self) -> int:
        """Output units."""
        return self.task.units

    @property
    def activation(self) -> str:
        """Activation of the output layer: ``sigmoid``, ``softmax`` or ``linear``."""
        return self.task.activation

    @property
    def loss(self) -> Any:
        """The loss, as ``compile`` takes it."""
        return compiling.loss(self.task)

    def output(self, hidden: Any) -> Any:
        """The output layer on top of ``hidden``, (rows, any number): a Dense layer with these units and activation.

        It computes in float32, in mixed precision too.
        """
        return self.layer()(hidden)

    def layer(self) -> Any:
        """The output layer by itself, for a Sequential or a subclassed model."""
        from keras import layers

        return layers.Dense(self.units, activation=self.activation, dtype="float32", name=OUTPUT)


class Heads(Mapping[str, Head]):
    """What is predicted, by name; ``heads.only`` where it is one thing."""

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        self._heads = {name: Head(name, task) for name, task in tasks.items()}

    @classmethod
    def of(cls, task: Task) -> Heads:
        """The one head of a task."""
        return cls({task.targets[0] if len(task.targets) == 1 else OUTPUT: task})

    @property
    def only(self) -> Head:
        """The head, where there is one."""
        if len(self._heads) != 1:
            raise ValueError(f"there are several heads: {', '.join(self._heads)}; take each by its name")
        return next(iter(self._heads.values()))

    def __getitem__(self, name: str) -> Head:
        if name not in self._heads:
            close = difflib.get_close_matches(name, self._heads, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise KeyError(f"there is no head {name!r}, there is {', '.join(map(repr, self._heads))}{hint}")
        return self._heads[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._heads)

    def __len__(self) -> int:
        return len(self._heads)


def build(code: Code, spec: Spec, task: Task, params: Params) -> keras.Model:
    """Import the function from its source, call it, and compile the model if it did not.

    Args:
        code: the source.
        spec: the inputs; one of codes has their number as its attribute ``vocabulary``.
        task: what is predicted.
        params: hyperparameters; the function gets those that it takes.

    Returns:
        A built and compiled model that takes an array where the one input is ``features``, else a dict of arrays by
        name.

    Raises:
        TrialFailed: of kind ``code``: the function raised, or returned something else; says where.
    """
    import keras

    inputs = {name: keras.Input(each.shape, dtype=each.dtype, name=name) for name, each in spec.items()}
    for name, each in spec.items():
        if each.vocabulary is not None:
            inputs[name].vocabulary = each.vocabulary  # for the function's Embedding
    module = module_of(code)
    chosen = {name: params[name] for name in code.parameters if name in params}
    try:
        model = getattr(module, code.function)(dict(inputs), Heads.of(task), **chosen)
    except (Exception, SystemExit) as error:
        if type(error).__name__ in MEMORY:
            raise
        raise failed(error, code.builder) from error
    if not isinstance(model, keras.Model):
        kind = "nothing" if model is None else f"a {type(model).__name__}"
        seen = f"{code.builder} returned {kind}, expected a keras.Model"
        raise TrialFailed("code", seen, hint="end the function with return model")
    given = inputs[FEATURES] if list(inputs) == [FEATURES] else dict(inputs)
    model = _taking(model, inputs, given, code)
    try:
        output = model(given)
    except Exception as error:
        raise failed(error, f"the model of {code.builder} cannot be called on its inputs") from error
    _check_output(output, task, code)
    if not model.compiled:
        try:
            compiling.compile_model(model, task, params)
        except Exception as error:
            raise failed(error, f"the model of {code.builder} cannot be compiled") from error
    if model.optimizer is None:
        seen = f"the model of {code.builder} is compiled without an optimizer"
        raise TrialFailed("code", seen, hint="give compile one: its learning rate is followed, and its state is saved")
    return model


def size(code: Code, spec: Spec, task: Task, params: Params) -> tuple[int, int]:
    """Parameters and values per row that the layers give; the model is built and counted.

    Of a model whose layers have no outputs of their own, such as a subclassed one, only inputs and outputs count.
    """
    model = build(code, spec, task, params)
    values = sum(each.size for each in spec.values()) + task.units
    for layer in model.layers:
        try:
            values += math.prod(number for number in layer.output.shape[1:] if number)
        except AttributeError:  # several outputs, or none
            continue
    return model.count_params(), values


def _taking(model: keras.Model, inputs: Mapping[str, Any], given: Any, code: Code) -> keras.Model:
    """The model over the inputs as they are fed: one tensor, or a dict of all of them.

    A functional model over ``{"features": ...}`` or a list becomes one of the same layers over what is fed.
    """
    try:
        taken = model.input
    except (AttributeError, ValueError):
        return model  # subclassed: takes what it is called with
    names = {tensor.name: tensor for tensor in model.inputs}
    if isinstance(given, dict):
        if set(names) != set(inputs):
            raise TrialFailed(
                "code",
                f"the model of {code.builder} takes {', '.join(names)}, the experiment gives {', '.join(inputs)}",
                hint="use every input that [data.inputs] declares, or take it out there",
            )
        if isinstance(taken, dict) and set(taken) == set(inputs):
            return model
        fed: Any = {name: names[name] for name in inputs}
    elif len(names) > 1:
        raise TrialFailed(
            "code", f"the model of {code.builder} takes {', '.join(names)}; there is one input, {given.name}"
        )
    elif not isinstance(taken, dict | list | tuple):
        return model
    else:
        fed = model.inputs[0]
    try:
        again = type(model)(inputs=fed, outputs=model.output, name=model.name)
    except Exception:
        raise TrialFailed(
            "code",
            f"the model of {code.builder} takes its inputs as a {type(taken).__name__}, expected "
            + ("a dict of them by name" if isinstance(given, dict) else f'inputs["{given.name}"] itself'),
            hint="give the model that",
        ) from None
    if model.compiled:
        again.compile(optimizer=model.optimizer, loss=model.loss)
    return again


def _check_output(output: Any, task: Task, code: Code) -> None:
    """Whether the outputs are what the task scores."""
    shape = getattr(output, "shape", None)
    if isinstance(output, dict | list | tuple) and len(output) != 1:
        raise WrongOutput("code", f"the model of {code.builder} has {len(output)} outputs, expected 1", hint=FIX)
    if shape is None or tuple(shape[1:]) != (task.units,):
        seen = "no tensor" if shape is None else str(tuple(shape)).replace("None", "rows")
        raise WrongOutput(
            "code",
            f"the model of {code.builder} gives {seen}, expected (rows, {task.units}) for {task.kind} of "
            f"{', '.join(task.targets[:3])}",
            hint=FIX,
        )
    if output.dtype in ("float16", "bfloat16"):
        seen = f"the model of {code.builder} gives {output.dtype}, in which close scores are ties"
        raise TrialFailed("code", seen, hint=f'{FIX}, or give its last layer dtype="float32"')


FIX = "end the model with heads.only.output(hidden)"
