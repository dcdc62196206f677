"""Fitting one Keras model: the loop, its callbacks, the backend and the classes of failure."""

from __future__ import annotations

from forge_sweep.training.backend import (
    accelerators,
    fix_operations,
    forget,
    limit_threads,
    load_backend,
    release,
    reuse,
    seed_everything,
    select_backend,
    settle,
)
from forge_sweep.training.checkpoint import Checkpoint, FileCheckpoint
from forge_sweep.training.data import Features, TrainingData, each, leaves
from forge_sweep.training.failures import classify
from forge_sweep.training.loop import FitResult, FitSpec, OnEpoch, OnResume, begin_anew, fit
from forge_sweep.training.validation import Validation, data_loss, outputs

__all__ = [
    "Checkpoint",
    "Features",
    "FileCheckpoint",
    "FitResult",
    "FitSpec",
    "OnEpoch",
    "OnResume",
    "TrainingData",
    "Validation",
    "accelerators",
    "begin_anew",
    "classify",
    "data_loss",
    "each",
    "fit",
    "fix_operations",
    "forget",
    "leaves",
    "limit_threads",
    "load_backend",
    "outputs",
    "release",
    "reuse",
    "seed_everything",
    "select_backend",
    "settle",
]
