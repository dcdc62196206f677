"""What samples of a network's activations, gradients and updates say of why it learned nothing.

From figures to findings. Everything here is pure: `forge_sweep.training.probe` takes the samples. Each finding has a
section of its name in docs/failures.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from forge_sweep.checks.findings import Finding
from forge_sweep.checks.settings import MOST_DROPOUT

DEAD = 0.5
"""Share of units with one value for every row, or at an end of their range, from which a layer is called dead."""

UNSCALED = 100.0
"""Root mean square of an input's column above which it was not scaled; a standardised one has 1."""

SLOW_UPDATES = 1e-3
"""Size of all updates of a training together, against the weights, below which a network stays as it was made.

One step of a network that learns changes its weights by about a thousandth (https://cs231n.github.io/neural-networks-3/).
"""

VANISHED = 1e-4
"""Gradient of the first layer, as a share of that of the last one, below which it vanishes on the way."""

NO_GRADIENT = 1e-10
"""Norm of a gradient that moves nothing."""

PENALTY = 0.9
"""Share of the loss from which it is the penalty on the weights that is minimised."""

OVERFLOWED = 0.5
"""Share of the steps that a loss scale may leave out for gradients that are not finite in half precision."""


@dataclass(frozen=True)
class LayerSample:
    """One layer on the sampled rows; a figure is None where the layer has none, or where it could not be sampled.

    Attributes:
        name: of the layer.
        constant: share of the units of its activation function that have one value for all rows.
        saturated: share of the units within a hundredth of an end of their sigmoid or tanh, for 95 % of the rows.
        gradient: norm of the gradient of its weights.
        weights: norm of its weights.
        moved: norm of the change of its trainable weights since training began, as a share of their norm then.
        trainable: share of its weights that may be trained.
        rate: of a Dropout.
    """

    name: str
    constant: float | None = None
    saturated: float | None = None
    gradient: float | None = None
    weights: float | None = None
    moved: float | None = None
    trainable: float | None = None
    rate: float | None = None


@dataclass(frozen=True)
class Sample:
    """A network on a few train rows after some of its epochs.

    Attributes:
        epochs: completed.
        steps: gradient steps until then.
        rows: how many were looked at.
        layers: in the order in which the network has them.
        columns: by input column, its root mean square; the names are the preprocessor's where they are known.
        penalty: share of the loss that is a penalty on weights; None where the loss was not sampled.
        scale: of the loss in half precision, with ``applied``, how many steps were not left out; None without one.
        missing: what could not be sampled, and why.
        seconds: that it took.
    """

    epochs: int
    steps: int
    rows: int
    layers: tuple[LayerSample, ...] = ()
    columns: tuple[tuple[str, float], ...] = ()
    penalty: float | None = None
    scale: float | None = None
    applied: int | None = None
    missing: tuple[str, ...] = ()
    seconds: float = 0.0


def causes(sample: Sample, earlier: Sequence[Sample] = ()) -> Iterator[Finding]:
    """What in a sample explains a network that learned nothing, the root first; ``earlier`` ones say since when."""
    yield from _unscaled(sample)
    yield from _frozen(sample)
    yield from _half_precision(sample)
    yield from _dropout_and_penalty(sample)
    yield from _layers(sample, earlier)
    yield from _updates(sample)


def _unscaled(sample: Sample) -> Iterator[Finding]:
    if sample.columns:
        name, size = max(sample.columns, key=lambda column: column[1])
        many = sum(value > UNSCALED for _, value in sample.columns)
        if size > UNSCALED:
            seen = f"{many} of {len(sample.columns)} columns are larger than {UNSCALED:g} in the root mean square"
            seen += f", {name} the most: {size:.3g}"
            fix = 'scaler = "standard" under [preprocessing]'
            yield Finding("warning", "unscaled-input", name, seen, "about 1, as scaled columns have", fix)


def _frozen(sample: Sample) -> Iterator[Finding]:
    """Whether layers with weights cannot learn: by ``trainable = False``, or since the optimizer leaves them out."""
    weighty = [layer for layer in sample.layers if layer.weights is not None]
    frozen = [layer.name for layer in weighty if layer.trainable == 0]
    if frozen:
        seen = f"{len(frozen)} of {len(weighty)} layers with weights are not trainable: {', '.join(frozen[:3])}"
        fix = f"trainable = True for {frozen[0]} in the builder"
        yield Finding("warning", "frozen-layers", frozen[0], seen, "layers that learn", fix)
    moving = any(layer.moved for layer in weighty)
    stuck = [layer.name for layer in weighty if moving and layer.moved == 0 and (layer.gradient or 0) > NO_GRADIENT]
    if stuck:
        seen = f"{', '.join(stuck[:3])} never moved in {sample.steps} steps, though a gradient reaches them"
        fix = f"let the optimizer have the variables of {stuck[0]}"
        yield Finding("warning", "frozen-layers", stuck[0], seen, "layers that learn", fix)


def _half_precision(sample: Sample) -> Iterator[Finding]:
    """Whether the range of float16 was too small: gradients that are 0, or a loss scale that went down to nothing."""
    if sample.scale is None or sample.applied is None:
        return
    left_out = 1 - sample.applied / max(sample.steps, 1)
    dead = any((layer.constant or 0) >= DEAD for layer in sample.layers)
    lost = [layer.name for layer in sample.layers if layer.gradient == 0 and layer.trainable and not dead]
    if sample.scale < 1 or left_out > OVERFLOWED:
        seen = f"{left_out:.0%} of {sample.steps} steps were left out, since gradients overflow in float16"
        seen += f", at a loss scale of {sample.scale:.3g}"
    elif lost:
        seen = f"the gradient of {', '.join(lost[:3])} is 0 in float16, at a loss scale of {sample.scale:.3g}"
    else:
        return
    fix = 'precision = "mixed_bfloat16", or precision = "float32"'
    yield Finding("warning", "half-precision-range", "precision", seen, "gradients within the range of float16", fix)


def _dropout_and_penalty(sample: Sample) -> Iterator[Finding]:
    for layer in sample.layers:
        if layer.rate is not None and layer.rate > MOST_DROPOUT:
            seen = f"dropout {layer.rate:.3g} in {layer.name}"
            fix = "dropout = 0.0 under [model.search]"
            yield Finding("warning", "dropout-too-high", layer.name, seen, "at most half of the units dropped", fix)
            break
    if sample.penalty is not None and sample.penalty > PENALTY:
        seen = f"{sample.penalty:.1%} of the loss is the penalty on the weights"
        fix = "l2 = 0.0 under [model.search]"
        yield Finding("warning", "penalty-too-high", "l2", seen, "a loss that is about the targets", fix)


def _layers(sample: Sample, earlier: Sequence[Sample]) -> Iterator[Finding]:
    """Where the gradient gets lost, and the first layer that says the same for every row."""
    zero = [layer.name for layer in sample.layers if layer.weights == 0]
    if zero:
        seen = f"all weights of {zero[0]} are 0, after {sample.steps} steps"
        fix = f'kernel_initializer = "glorot_uniform" for {zero[0]} in the builder'
        yield Finding("warning", "zero-weights", zero[0], seen, "weights that differ from unit to unit", fix)
    reached = [layer for layer in sample.layers if layer.gradient is not None and layer.trainable]
    largest = max((layer.gradient or 0.0 for layer in reached), default=0.0)
    # A gradient that is 0 to the last bit is that of dead units, or of weights that are 0.
    if not zero and largest > NO_GRADIENT and 0 < (reached[0].gradient or 0.0) < VANISHED * largest:
        seen = f"the gradient of {reached[0].name} has norm {reached[0].gradient:.2g}, the largest one {largest:.2g}"
        fix = "batch_norm = true under [model.search], a smaller depth, or skip connections"
        yield Finding("warning", "vanishing-gradients", reached[0].name, seen, "gradients of one size", fix)
    for layer in sample.layers:
        if layer.saturated is not None and layer.saturated >= DEAD:
            seen = (
                f"{layer.saturated:.0%} of the units of {layer.name} are at an end of their range for nearly every row"
            )
            fix = 'activation = "gelu" under [model.search], or smaller initial weights'
            yield Finding("warning", "saturated-units", layer.name, seen, "units that answer to the row", fix)
            return
        if layer.constant is not None and layer.constant >= DEAD:
            seen = f"{layer.constant:.0%} of the units of {layer.name} give one value for every row"
            then = [(each.epochs, one.constant) for each in earlier for one in each.layers if one.name == layer.name]
            seen += "".join(f", {share:.0%} after epoch {n}" for n, share in then[:1] if share is not None)
            fix = 'activation = "gelu" under [model.search], or a lower learning_rate'
            yield Finding("warning", "dead-units", layer.name, seen, "units that answer to the row", fix)
            return


def _updates(sample: Sample) -> Iterator[Finding]:
    """Whether all steps together hardly changed a weight, though a gradient is there."""
    moved = [layer.moved for layer in sample.layers if layer.moved is not None]
    gradients = [layer.gradient for layer in sample.layers if layer.gradient is not None]
    if moved and max(moved) < SLOW_UPDATES and sample.steps and (not gradients or max(gradients) > NO_GRADIENT):
        seen = f"{sample.steps} steps changed the weights by {max(moved):.2g} of their size at the most"
        fix = "learning_rate = 1e-3 under [model.search]"
        yield Finding("warning", "rate-too-low", "learning_rate", seen, "about a thousandth in each step", fix)
