"""Hyperparameters so far out that no trial can learn, whatever the network is. From a space to findings.

Everything here is pure. A range is judged by its best end: a sampler leaves the other one. docs/failures.md has
each of the findings under "Before training".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from forge_sweep.checks.findings import Finding, Severity
from forge_sweep.experiment import Dimension, Scalar

MOST_DROPOUT = 0.8
"""Share of dropped units above which next to nothing of a layer is left."""

MOST_SMOOTHING = 0.5
"""Share of a target that is spread over all classes above which the right one hardly stands out."""

REMEMBERED = 0.5
"""Share of its beginning that a moving average still has at the end of a training where it is longer than that."""


def of_settings(space: Mapping[str, Dimension | Scalar], rows: int, epochs: int) -> Iterator[Finding]:
    """What no trial of a space can get around.

    Args:
        space: `Experiment.space`.
        rows: of train.
        epochs: most of one trial.
    """
    least = {name: value for name in space if (value := _least(space[name])) is not None}
    batch = int(least["batch_size"])
    steps = epochs * -(-rows // batch)
    if batch > rows:
        seen = f"the least batch_size is {batch:,}, train has {rows:,} rows: one step in an epoch, {steps:,} in a trial"
        fix = f"batch_size = {_power(rows / 16)} under [model.search]"
        expected = f"at most the {rows:,} rows, or better a tenth of them"
        severity: Severity = "warning" if batch >= 2 * rows else "info"
        yield Finding(severity, "batch-too-large", "model.search.batch_size", seen, expected, fix)
    if (dropout := least.get("dropout", 0.0)) > MOST_DROPOUT:
        seen, fix = f"dropout is {dropout:g} at the least", "dropout = 0.2 under [model.search]"
        yield _far("dropout-too-high", "dropout", seen, f"at most {MOST_DROPOUT:g}", fix)
    if (share := least.get("label_smoothing", 0.0)) > MOST_SMOOTHING:
        seen = f"label_smoothing is {share:g} at the least: {share:.0%} of each target is the same for every class"
        fix = "label_smoothing = 0.1 under [model.search]"
        yield _far("smoothing-too-high", "label_smoothing", seen, f"at most {MOST_SMOOTHING:g}", fix)
    for name, code, what in (
        ("ema", "average-too-long", "the average that is validated is still the initial weights"),
        ("momentum", "momentum-too-high", "the first gradient is still in every step"),
    ):
        value = least.get(name, 0.0)
        if (share := value**steps) > REMEMBERED:
            seen = f"{name} is {value:g} at the least: after all {steps:,} steps {share:.0%} of {what}"
            wanted = 0.9 if name == "momentum" else max(0.0, 1 - 10 / steps)
            fix = f"{name} = {float(f'{wanted:.3g}'):g} under [model.search]"
            yield _far(code, name, seen, f"1 / (1 - {name}) far below the {steps:,} steps", fix)


def _least(value: Dimension | Scalar) -> float | None:
    """The least number that is tried; None of words."""
    ends = value.extremes() if isinstance(value, Dimension) else (value,)
    numbers = [float(each) for each in ends if not isinstance(each, str)]
    return min(numbers) if len(numbers) == len(ends) else None


def _power(number: float) -> int:
    """The greatest power of two that is at most the number, 8 at the least."""
    return max(8, 1 << max(0, int(number).bit_length() - 1))


def _far(code: str, name: str, seen: str, expected: str, fix: str) -> Finding:
    return Finding("warning", code, f"model.search.{name}", seen, expected, fix)
