"""Several whole models as one: the weighted mean of their probabilities, or of their values.

See Caruana et al. 2004, "Ensemble Selection from Libraries of Models", https://doi.org/10.1145/1015330.1015432.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from forge_sweep import training
from forge_sweep.baselines import Baseline
from forge_sweep.bundle import security
from forge_sweep.bundle.layout import ENSEMBLE, model_files, preprocessor_name
from forge_sweep.errors import BundleError
from forge_sweep.preprocessing import Batch, Preprocessor
from forge_sweep.task import Task

if TYPE_CHECKING:
    import keras
    import pandas as pd


def scores_of(model: keras.Model | Baseline, task: Task, features: training.Features) -> np.ndarray:
    """What one model says of n > 0 rows: (n, task.units) probabilities, or values in original units."""
    if isinstance(model, Baseline):
        (matrix,) = training.leaves(features)
        # A baseline gives probabilities even where the networks of its experiment give logits.
        return dataclasses.replace(task, from_logits=False).to_scores(model.outputs(matrix))
    return task.to_scores(training.outputs(model, features))


@dataclass(frozen=True, eq=False)
class Member:
    """A model of an ensemble; ``weight`` is its share of the mean."""

    model: keras.Model | Baseline
    preprocessor: Preprocessor
    weight: float

    @property
    def kind(self) -> str:
        """``network``, or the kind of the baseline."""
        return self.model.kind if isinstance(self.model, Baseline) else "network"


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Models of the same columns and targets, with weights that sum to 1."""

    members: tuple[Member, ...]

    @functools.cached_property
    def preprocessors(self) -> tuple[Preprocessor, ...]:
        """The distinct ones: rows are prepared once for all members that take them alike."""
        found: list[Preprocessor] = []
        for member in self.members:
            if not any(_same(member.preprocessor, known) for known in found):
                found.append(member.preprocessor)
        return tuple(found)

    @functools.cached_property
    def positions(self) -> tuple[int, ...]:
        """The position in `preprocessors` of each member's."""
        return tuple(
            next(i for i, known in enumerate(self.preprocessors) if _same(member.preprocessor, known))
            for member in self.members
        )

    def feed(self, raw: np.ndarray, tensors: Mapping[str, np.ndarray]) -> Batch:
        """Raw numbers and arrays as `scores` takes them; see `Preprocessor.feed`."""
        return self._merged(lambda preprocessor: preprocessor.feed(raw, tensors))

    def batch(self, frame: pd.DataFrame) -> Batch:
        """Raw rows as `scores` takes them; raises as `Preprocessor.batch`."""
        return self._merged(lambda preprocessor: preprocessor.batch(frame))

    def _merged(self, of: Callable[[Preprocessor], np.ndarray | Batch]) -> Batch:
        merged: Batch = {}
        for i, preprocessor in enumerate(self.preprocessors):
            made = of(preprocessor)
            inputs = made if isinstance(made, dict) else {"": made}  # "": the one matrix of a model without inputs
            merged |= {f"{i}.{name}": values for name, values in inputs.items()}
        return merged

    def scores(self, task: Task, features: training.Features) -> np.ndarray:
        """(n, task.units) the weighted mean of the members' scores."""
        by_preprocessor = []
        for i in range(len(self.preprocessors)):
            own = {
                name.removeprefix(f"{i}."): values
                for name, values in cast(Batch, features).items()
                if name.startswith(f"{i}.")
            }
            by_preprocessor.append(own.get("", own))
        parts = [
            member.weight * scores_of(member.model, task, by_preprocessor[i])
            for member, i in zip(self.members, self.positions, strict=True)
        ]
        return np.asarray(np.sum(parts, axis=0), np.float64)

    def about(self) -> list[dict[str, Any]]:
        """What ``bundle.json`` says of the members."""
        return [
            {"kind": member.kind, "preprocessor": i, "weight": member.weight}
            for member, i in zip(self.members, self.positions, strict=True)
        ]

    def save(self, folder: Path, write: Callable[[Any, Path], None]) -> None:
        """Write every model by ``write``, and the preprocessors but the first, which the bundle itself writes."""
        about = {"kind": ENSEMBLE, "members": self.about()}
        for member, (_, name) in zip(self.members, model_files(about), strict=True):
            write(member.model, folder / name)
        for i, preprocessor in enumerate(self.preprocessors[1:], start=1):
            preprocessor.save(folder, preprocessor_name(i))


def load(
    folder: Path, about: Mapping[str, Any], first: Preprocessor, read: Callable[[str, Path, int], Any]
) -> Ensemble:
    """What `Ensemble.save` wrote; ``read`` gives a model by kind, file and number of columns once it has checked it."""
    preprocessors = [first]
    for i in range(1, 1 + max(member["preprocessor"] for member in about["members"])):
        security.check_npz(folder / f"{preprocessor_name(i)}.npz")
        preprocessors.append(Preprocessor.load(folder, preprocessor_name(i)))
        if preprocessors[-1].schema != first.schema:
            raise BundleError(f"{folder}: the members of the ensemble describe different columns")
    members = []
    for member, (kind, name) in zip(about["members"], model_files(about), strict=True):
        preprocessor = preprocessors[member["preprocessor"]]
        model = read(kind, folder / name, len(preprocessor.output_names))
        members.append(Member(model, preprocessor, float(member["weight"])))
    return Ensemble(tuple(members))


def refuse_wrong(weights: list[float]) -> None:
    """Raise for weights that are no shares of one whole."""
    if not all(math.isfinite(weight) and weight > 0 for weight in weights) or abs(math.fsum(weights) - 1) > 1e-9:
        raise BundleError(f"the weights of an ensemble have to be above 0 and sum to 1; these are {weights}")


def _same(one: Preprocessor, other: Preprocessor) -> bool:
    """Whether both make the same numbers of the same rows."""
    if one is other:
        return True
    alike = (one.schema, one.settings, one.groups) == (other.schema, other.settings, other.groups)
    return (
        alike
        and np.array_equal(one.fills, other.fills, equal_nan=True)
        and one.learned.keys() == other.learned.keys()
        and all(np.array_equal(one.learned[name], other.learned[name], equal_nan=True) for name in one.learned)
    )
