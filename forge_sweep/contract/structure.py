"""What a user's own model is made of: layers that are frozen, shared, not its own, or one too many."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from forge_sweep import training
from forge_sweep.checks.findings import Finding, Severity
from forge_sweep.contract.held import MOST_OBJECTS, inside
from forge_sweep.experiment import Code
from forge_sweep.experiment.importing import package_of

if TYPE_CHECKING:
    import keras

PROBABILITIES = ("sigmoid", "softmax")

HIGH_DROPOUT = 0.8
"""Share of dropped units above which next to nothing of a layer is left."""


def untracked(model: keras.Model, code: Code) -> Iterator[Finding]:
    """Whether own layers hold variables that the model does not know: they are neither trained nor saved."""
    package, known = package_of(code), {id(variable) for variable in model.variables}
    waiting = deque[tuple[str, Any]]((f"layer {layer.name}", layer) for layer in model.layers)
    waiting.append(("the model", model))
    seen, places = dict[int, Any](), dict[str, int]()
    while waiting and len(seen) < MOST_OBJECTS:
        where, value = waiting.popleft()
        if id(value) in seen or training.is_of_training(value):
            continue
        seen[id(value)] = value
        variables = training.variables_in(value)
        lost = [each for each in variables or () if id(each) not in known and each.dtype.startswith("float")]
        if lost:
            places[where] = sum(int(np.prod(each.shape)) for each in lost)
        elif f"{type(value).__module__}.".startswith(f"{package}.") or isinstance(value, Mapping | list | tuple):
            waiting += [(f"{where}{name}", each) for name, each in inside(value, package)]
    if places:
        shown = ", ".join(f"{where} ({count:,} numbers)" for where, count in [*places.items()][:3])
        seen_text = f"{shown}: not among the weights of the model"
        fix = (
            "make weights by self.add_weight, and keep layers as attributes of a Layer or a Model, not of other objects"
        )
        expected = "weights that are trained and saved"
        yield Finding("error", "untracked-weights", code.builder, seen_text, expected, fix)


def frozen(model: keras.Model, again: keras.Model, code: Code) -> Iterator[Finding]:
    """Whether layers are frozen at values that are random: built again they have others, so nothing was learned."""
    layers = dict.fromkeys(
        layer.name
        for layer, other in zip(model.layers, again.layers, strict=False)
        for weight, another in zip(layer.non_trainable_weights, other.non_trainable_weights, strict=False)
        if len(weight.shape) > 1 and not np.array_equal(np.array(weight), np.array(another))
    )
    if layers:
        count = sum(layer.count_params() for layer in model.layers if layer.name in layers)
        seen = f"{', '.join(layers)} ({count:,} of {model.count_params():,} numbers) keeps its random initial values"
        fix = "leave trainable = True, or load weights that were trained before"
        yield Finding("warning", "frozen-layers", code.builder, seen, "layers that learn, or that have learned", fix)


def wired(model: keras.Model, code: Code, space: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether layers are called on their own outputs, end in two activations, or drop nearly all."""
    calls, outputs = training.chain(model)
    layers = {layer.name: layer for layer in model.layers}
    for name in outputs:
        before = [layers[each] for call in calls[name] for each in call if each in layers]
        last = layers.get(name)
        if last is None or last.weights or _activation(last) not in PROBABILITIES:
            continue
        twice = [layer.name for layer in before if _activation(layer) in PROBABILITIES]
        if twice:
            already = _activation(layers[twice[0]])
            seen = f"{name} gives the {_activation(last)} of {twice[0]}, which is a {already} already"
            fix = f"take {name} out, and end the model with {twice[0]}"
            yield Finding("error", "double-activation", code.builder, seen, "one activation at the end", fix)
    shared = [name for name in calls if len(calls[name]) > 1 and layers[name].weights and _follows_itself(name, calls)]
    if shared:
        seen = f"{shared[0]} is called {len(calls[shared[0]])} times in a row, each time with the same weights"
        fix = "make a layer of its own for each call, inside of the loop"
        yield Finding("warning", "shared-weights", code.builder, seen, "weights of its own for each layer", fix)
    for layer in model.layers:
        rate = getattr(layer, "rate", 0.0)
        if "Dropout" in type(layer).__name__ and rate > HIGH_DROPOUT and rate not in space.values():
            seen = f"{layer.name} drops {rate:.0%} of its units"
            fix = f"at most {HIGH_DROPOUT:g}, or better 0.2 to 0.5, as an argument that can be searched"
            yield Finding("warning", "dropout-too-high", code.builder, seen, f"at most {HIGH_DROPOUT:.0%}", fix)


def _activation(layer: Any) -> str:
    if type(layer).__name__ == "Softmax":
        return "softmax"
    return getattr(getattr(layer, "activation", None), "__name__", "")


def _follows_itself(name: str, calls: Mapping[str, list[list[str]]]) -> bool:
    """Whether a layer's output leads to the layer again."""
    waiting, seen = [each for call in calls[name] for each in call], set[str]()
    while waiting:
        if (one := waiting.pop()) == name:
            return True
        if one not in seen:
            seen.add(one)
            waiting += [each for call in calls.get(one, ()) for each in call]
    return False


def alike(model: keras.Model, before: Mapping[str, np.ndarray], subject: str) -> Iterator[Finding]:
    """Whether all units of a layer began with the same weights and still have the same ones after a step.

    Units that are alike get the same gradient and stay one unit (Goodfellow et al. 2016, section 8.4). The first layer
    of a gate or of a residual branch may begin at 0: there one step tells its units apart.
    """
    for weight in model.trainable_weights:
        began = before.get(weight.path)
        if began is None or began.ndim < 2 or began.shape[-1] < 2:
            continue
        now = np.array(weight)
        if np.ptp(began, axis=-1).max() == 0 and np.ptp(now, axis=-1).max() <= 1e-6 * max(1e-6, np.abs(now).max()):
            layer = weight.path.rpartition("/")[0]
            value = f"all of them {began.flat[0]:g}" if np.ptp(began) == 0 else "the same in each"
            seen = f"the {began.shape[-1]} units of {layer} have the same weights ({value}), before and after a step"
            fix = f'leave out kernel_initializer for {layer}, or set it to "glorot_uniform"'
            yield Finding("error", "equal-units", subject, seen, "units that begin at random", fix)


def silent(model: keras.Model, few: training.TrainingData, subject: str) -> Iterator[Finding]:
    """Whether all units of a layer say the same of every row before training: no gradient passes through them."""
    for name, units, constant, saturated in training.idle_units(model, few.x_train):
        layer = model.get_layer(name)
        kernel = getattr(layer, "kernel", None)
        if kernel is not None and np.ptp(np.array(kernel), axis=-1).max() == 0:
            continue  # `alike` says so, once a step has changed nothing
        # One of a few units may be so by chance, behind others of which none is below 0.
        severity: Severity = "error" if units >= 8 else "warning"
        fix = f"let the biases of {name} begin at 0, and its weights at random and small"
        if saturated == 1.0:
            seen = f"all {units} units of {name} are at an end of their range for each of the rows before training"
            yield Finding(severity, "saturated-units", subject, seen, "units that answer to the row", fix)
        elif constant == 1.0:
            bias = getattr(layer, "bias", None)
            what = f"; its biases are {float(np.array(bias).mean()):.3g} in the mean" if bias is not None else ""
            seen = f"all {units} units of {name} give one value for each of the rows before training{what}"
            yield Finding(severity, "dead-units", subject, seen, "units that answer to the row", fix)
