"""Fitting one Keras model: the loop, its callbacks, the backend and the classes of failure."""

from __future__ import annotations

from forge_sweep.training.backend import (
    accelerators,
    limit_threads,
    load_backend,
    release,
    seed_everything,
    select_backend,
    settle,
)
from forge_sweep.training.data import Features, TrainingData, each, leaves
from forge_sweep.training.failures import classify
from forge_sweep.training.loop import FitResult, FitSpec, OnEpoch, fit
from forge_sweep.training.validation import Validation, data_loss, outputs

__all__ = [
    "Features",
    "FitResult",
    "FitSpec",
    "OnEpoch",
    "TrainingData",
    "Validation",
    "accelerators",
    "classify",
    "data_loss",
    "each",
    "fit",
    "leaves",
    "limit_threads",
    "load_backend",
    "outputs",
    "release",
    "seed_everything",
    "select_backend",
    "settle",
]
