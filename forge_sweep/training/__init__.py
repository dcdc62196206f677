"""Fitting one Keras model: the loop, its callbacks, the backend and the classes of failure."""

from __future__ import annotations

from forge_sweep.training.backend import accelerators, load_backend, release, seed_everything, select_backend, settle
from forge_sweep.training.failures import classify
from forge_sweep.training.loop import FitResult, FitSpec, OnEpoch, TrainingData, fit
from forge_sweep.training.validation import Validation, outputs, regularisation, total_loss

__all__ = [
    "FitResult",
    "FitSpec",
    "OnEpoch",
    "TrainingData",
    "Validation",
    "accelerators",
    "classify",
    "fit",
    "load_backend",
    "outputs",
    "regularisation",
    "release",
    "seed_everything",
    "select_backend",
    "settle",
    "total_loss",
]
