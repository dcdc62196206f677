"""Registered models on the rows of a newer version than the one they were trained on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from forge_sweep import training, trial
from forge_sweep.bundle import Bundle, ready_backend
from forge_sweep.data.rows import TRAIN, VAL, Rows
from forge_sweep.errors import DataError, ForgeSweepError
from forge_sweep.sources import Split
from forge_sweep.sources.feature_store.source import as_split
from forge_sweep.task import direction

if TYPE_CHECKING:
    from forge_sweep.sources.feature_store.versions import Version
    from forge_sweep.tracking import TrainedModel

SCORED = 20
"""So many models are scored: those with an alias, then the newest."""

STAND_IN = {"mse": "rmse", "mae": "mae"}
"""The metric that stands for ``val_loss`` of a regression; of all other tasks it is ``log_loss``."""


@dataclass(frozen=True)
class ModelScore:
    """A registered model that was trained on A, on the validation rows of A and of B.

    Attributes:
        uri: ``models:/NAME/VERSION``.
        aliases: such as ``champion``.
        kind: ``network``, or the kind of the baseline; "" where it could not be read.
        objective: metric that its sweep optimised, such as ``auc``; likewise.
        better: whether more (``maximize``) or less of it is better; likewise.
        a: its metrics on A by name; nan where one cannot be computed; empty where it was not scored.
        b: its metrics on B, likewise.
        why: why it was not scored, or "".
    """

    uri: str
    aliases: tuple[str, ...]
    kind: str = ""
    objective: str = ""
    better: str = ""
    a: dict[str, float] = field(default_factory=dict)
    b: dict[str, float] = field(default_factory=dict)
    why: str = ""

    @property
    def worse(self) -> bool:
        """Whether the objective is worse on B."""
        if not (self.a and self.b):
            return False
        change = self.b[self.objective] - self.a[self.objective]
        return change < 0 if self.better == "maximize" else change > 0


@dataclass(frozen=True, eq=False)
class ValidationRows:
    """What models are scored on.

    Attributes:
        a: the version they were trained on.
        b: the newer one.
        of_a: validation rows of A.
        of_b: those of B whose features are not those of a training row of A.
        known: how many are, and were left out: the model has seen them.
    """

    a: Version
    b: Version
    of_a: Split
    of_b: Split
    known: int

    @classmethod
    def of(cls, a: Rows, b: Rows) -> ValidationRows:
        """From the visible rows of both."""
        valid = b.of_split(VAL)
        prints, seen = valid.prints_as(a.version), a.of_split(TRAIN).prints()
        known = np.zeros(len(valid.block.splits), bool) if prints is None else np.isin(prints, seen)
        unseen = valid.block.take(np.flatnonzero(~known))
        on_a = as_split(a.version, a.of_split(VAL).block)
        return cls(a.version, b.version, on_a, as_split(b.version, unseen), int(known.sum()))


def scored(models: Sequence[TrainedModel], validation: ValidationRows, store: Path) -> tuple[ModelScore, ...]:
    """Score models that were trained on A; one that cannot be scored says why. Keras is loaded for networks only.

    Args:
        models: in order.
        validation: what they are scored on.
        store: folder of the embedded stores.
    """
    found = [score(model, validation, store) for model in models[:SCORED]]
    why = f"only the first {SCORED} models are scored, those with an alias and then the newest"
    return (*found, *(ModelScore(model.uri, model.aliases, why=why) for model in models[SCORED:]))


def score(model: TrainedModel, validation: ValidationRows, store: Path) -> ModelScore:
    """Score one model."""
    from forge_sweep.tracking import downloaded

    about = ModelScore(model.uri, model.aliases)
    try:
        with downloaded(model, store) as folder:
            ready_backend(folder)
            bundle = Bundle.load(folder)
        about = described(about, bundle)
        refuse_other(bundle, validation)
        return replace(about, a=metrics(bundle, validation.of_a), b=metrics(bundle, validation.of_b))
    except ForgeSweepError as error:
        return replace(about, why=" ".join(error.message.split()))
    finally:
        training.release()  # does nothing where Keras is not loaded


def described(about: ModelScore, bundle: Bundle) -> ModelScore:
    """The entry of a model with what its bundle says of itself."""
    declared = bundle.metadata.get("experiment", {}).get("objective", {}).get("metric", "val_loss")
    metric = str(declared).removeprefix("val_")
    if metric == "loss":
        metric = STAND_IN.get(bundle.task.loss, "rmse") if bundle.task.kind == "regression" else "log_loss"
    return replace(about, kind=bundle.kind, objective=metric, better=direction(bundle.task.kind, metric))


def refuse_other(bundle: Bundle, validation: ValidationRows) -> None:
    """Raise DataError where the scores on A and on B could not be compared."""
    a, b = validation.a, validation.b
    if bundle.metadata.get("split_digest") != a.split_digest:
        raise DataError(f"it was trained on another split of the rows of {a.version}")
    if bundle.task.kind != b.task:
        raise DataError(f"it is for a {bundle.task.kind} task, and {b.name} is for {b.task}")
    if not len(validation.of_b.rows):
        raise DataError(f"every validation row of {b.name} is a training row of {a.name}")


def metrics(bundle: Bundle, split: Split) -> dict[str, float]:
    """Metrics of a bundle by name; columns that it does not know are no reason to fail."""
    wanted = [name for name in bundle.preprocessor.schema.names if name in split.features]
    found = trial.score(bundle, replace(split, features=split.features[wanted]), "on")
    return {name.removeprefix("on_"): value for name, value in found.items()}


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics as JSON values."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
