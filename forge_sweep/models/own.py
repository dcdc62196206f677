"""Networks of the user's own: a function ``build(inputs, heads, *, width: int = 64)`` that returns a Keras model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from forge_sweep.errors import TrialFailed
from forge_sweep.experiment import Code
from forge_sweep.experiment.importing import failed, module_of
from forge_sweep.models import compiling
from forge_sweep.models.heads import Heads
from forge_sweep.preprocessing.inputs import FEATURES
from forge_sweep.task import Joint

if TYPE_CHECKING:
    import keras

    from forge_sweep.experiment import Params
    from forge_sweep.preprocessing import Spec
    from forge_sweep.task import Task


class WrongOutput(TrialFailed):
    """A model whose outputs do not have the shape that the heads score."""


MEMORY = ("ResourceExhaustedError", "OutOfMemoryError", "MemoryError", "_ArrayMemoryError")


def build(code: Code, spec: Spec, task: Task, params: Params) -> keras.Model:
    """Import the function from its source, call it, and compile the model if it did not.

    Args:
        code: the source.
        spec: the inputs; one of codes has their number as its attribute ``vocabulary``, one of a table some training
            rows as its attribute ``rows``.
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
        if each.rows is not None:
            inputs[name].rows = each.rows  # for layers that learn from them, as Normalization does
    module = module_of(code)
    chosen = {name: params[name] for name in code.parameters if name in params}
    try:
        model = getattr(module, code.function)(dict(inputs), Heads.of(task), **chosen)
    except (Exception, SystemExit) as error:
        if type(error).__name__ in MEMORY:
            raise
        hint = ""
        if isinstance(error, KeyError) and error.args and error.args[0] not in (*inputs, *task.heads):
            hint = f"the inputs are {', '.join(inputs)}, the heads {', '.join(Heads.of(task))}; "
            hint += "[data.inputs] declares more inputs"
        elif isinstance(error, AttributeError) and error.name == "vocabulary":
            hint = 'set encode = "codes" for that input under [data.inputs]'
        raise failed(error, code.builder, hint) from error
    finally:
        for each in inputs.values():
            vars(each).pop("rows", None)  # else the model would hold them
    if not isinstance(model, keras.Model):
        kind = "nothing" if model is None else f"a {type(model).__name__}"
        seen = f"{code.builder} returned {kind}, expected a keras.Model"
        raise TrialFailed("code", seen, hint="end the function with return model")
    given = inputs[FEATURES] if list(inputs) == [FEATURES] else dict(inputs)
    model = _taking(model, inputs, given, code)
    try:
        output = model(given)
    except Exception as error:
        hint = f"it gets a dict of {', '.join(inputs)}: take them by name" * isinstance(given, dict)
        raise failed(error, f"the model of {code.builder} cannot be called on its inputs", hint) from error
    if isinstance(task, Joint) and isinstance(output, Mapping | list | tuple):
        model, output = _joined(model, given, output, task, code)
    _check_output(output, task, code)
    if not model.compiled:
        try:
            compiling.compile_model(model, task, params)
        except Exception as error:
            raise failed(error, f"the model of {code.builder} cannot be compiled") from error
    if model.optimizer is None:
        seen = f"the model of {code.builder} is compiled without an optimizer"
        raise TrialFailed("code", seen, hint="give compile one: its learning rate is followed, and its state is saved")
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    if scaled and type(model).train_step is not keras.Model.train_step:
        texts = "".join(code.files.values())
        if "scale_loss" not in texts and "super().train_step" not in texts:
            seen = (
                "in mixed_float16 the optimizer divides gradients by the scale of a loss that train_step does not scale"
            )
            hint = 'derive self.optimizer.scale_loss(loss), or set precision = "mixed_bfloat16", which needs no scale'
            raise TrialFailed("code", f"{type(model).__name__}: {seen}", hint=hint)
    return model


def callbacks(code: Code, names: Sequence[str]) -> list[keras.callbacks.Callback]:
    """New callbacks by their names in ``model.callbacks``: the user's classes or functions, called without arguments.

    Raises:
        TrialFailed: of kind ``code``: one raised, or is no callback of Keras.
    """
    import keras

    found = []
    for each in names:
        module, _, name = each.rpartition(":")
        try:
            made = getattr(module_of(code, module), name)()
        except TrialFailed:
            raise
        except Exception as error:
            raise failed(error, f"model.callbacks: {each}() failed") from error
        if not isinstance(made, keras.callbacks.Callback):
            seen = f"model.callbacks: {each}() gives a {type(made).__name__}, expected a keras.callbacks.Callback"
            raise TrialFailed("code", seen, hint="name a class of callbacks, or a function that returns one")
        found.append(made)
    return found


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
        _compile_alike(again, model, model.loss, (model.get_compile_config() or {}).get("loss_weights"))
    return again


def _compile_alike(again: keras.Model, model: keras.Model, loss: Any, weights: Any = None) -> None:
    """Compile a model of the same layers as another one was, with this loss; all metrics are computed apart."""
    again.compile(
        optimizer=model.optimizer,
        loss=loss,
        loss_weights=weights,
        run_eagerly=model.run_eagerly,
        jit_compile=model.jit_compile,
        steps_per_execution=model.steps_per_execution,
        auto_scale_loss=False,  # the optimizer scales already where it was to
    )


def _joined(model: keras.Model, given: Any, output: Any, task: Joint, code: Code) -> tuple[keras.Model, Any]:
    """The model with the outputs of its heads side by side, as they are trained, and that output.

    Outputs that have the names of the heads are taken by name, others in the order of the heads.
    """
    import keras

    heads, what = Heads.of(task), f"the model of {code.builder}"
    names = [*output] if isinstance(output, Mapping) else [*getattr(model, "output_names", [])]
    if not isinstance(output, Mapping):
        names = names if set(names) == set(heads) else [*heads]
        output = dict(zip(names, output, strict=True)) if len(names) == len(output) else dict(enumerate(output))
    if set(output) != set(heads):
        seen = f"{what} gives {len(output)} outputs ({', '.join(map(str, output))}), expected one for each head"
        raise WrongOutput("code", f"{seen}: {', '.join(heads)}", hint="return {name: heads[name].output(hidden), ...}")
    for name, head in heads.items():
        if (shape := getattr(output[name], "shape", None)) is None or tuple(shape[1:]) != (head.units,):
            seen = f"{what} gives {str(shape).replace('None', 'rows')} for the head {name}"
            expected = f"(rows, {head.units}) for {head.task.kind}"
            hint = f'end that branch with heads["{name}"].output(hidden)'
            raise WrongOutput("code", f"{seen}, expected {expected}", hint=hint)
    functional = any(base.__name__ == "Functional" for base in type(model).__mro__)
    if not functional and type(model).train_step is not keras.Model.train_step:
        text = f"{what} has a train_step of its own and several outputs, while targets come side by side in one array"
        raise TrialFailed("code", text, hint="let call return heads.join(outputs)")
    if functional:
        inner = model.output if isinstance(model.output, Mapping) else dict(zip(names, model.outputs, strict=True))
        again = type(model)(inputs=model.input, outputs=heads.join(inner), name=model.name)
    else:
        again = keras.Model(given, heads.join(output), name=model.name)
    if model.compiled:
        from forge_sweep.models.joint import JointLoss

        loss, weights = model.loss, model.get_compile_config().get("loss_weights")
        losses = [_of_head(loss, name, names) or head.loss for name, head in heads.items()]
        shares = [_of_head(weights, name, names) for name in heads]
        known = [own if share is None else float(share) for own, share in zip(task.weights, shares, strict=True)]
        joint = JointLoss(losses, task.widths, [head.units for head in heads.values()], known)
        _compile_alike(again, model, joint)
    return again, again.output


def _of_head(values: Any, name: str, names: Sequence[str]) -> Any:
    """What ``compile`` was given for one output: by name, in the order of the outputs, or for all."""
    if isinstance(values, Mapping):
        return values.get(name)
    return values[names.index(name)] if isinstance(values, list | tuple) else values


def _check_output(output: Any, task: Task, code: Code) -> None:
    """Whether the outputs are what the task scores."""
    shape = getattr(output, "shape", None)
    fix = FIX if len(task.heads) == 1 else "return {name: heads[name].output(hidden), ...}, one output for each head"
    if isinstance(output, dict | list | tuple) and len(output) != 1:
        raise WrongOutput("code", f"the model of {code.builder} has {len(output)} outputs, expected 1", hint=fix)
    if shape is None or tuple(shape[1:]) != (task.units,):
        seen = "no tensor" if shape is None else str(tuple(shape)).replace("None", "rows")
        raise WrongOutput(
            "code",
            f"the model of {code.builder} gives {seen}, expected (rows, {task.units}) for {task.kind} of "
            f"{', '.join(task.targets[:3])}",
            hint=f"{fix}; what only your loss needs, such as a variance, stays inside train_step (docs/models.md)",
        )
    if output.dtype in ("float16", "bfloat16"):
        seen = f"the model of {code.builder} gives {output.dtype}, in which close scores are ties"
        raise TrialFailed("code", seen, hint=f'{fix}, or give its last layer dtype="float32"')


FIX = "end the model with heads.only.output(hidden)"
