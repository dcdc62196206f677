"""Fitting one Keras model: the fit, its callbacks, the backend and the classes of failure."""

from __future__ import annotations

from forge_sweep.training.backend import (
    BACKENDS,
    Setup,
    accelerators,
    as_variables,
    check_backend,
    dtype_policy,
    fix_operations,
    load_backend,
    precision_of,
    release,
    running_backend,
    seed_everything,
    select_backend,
    settle,
)
from forge_sweep.training.checkpoint import Checkpoint, FileCheckpoint
from forge_sweep.training.data import (
    Features,
    TrainingData,
    chunk_rows,
    data_loss,
    each,
    leaves,
    outputs,
)
from forge_sweep.training.explain import explain
from forge_sweep.training.failures import classify
from forge_sweep.training.fit import FitResult, FitSpec, OnEpoch, OnResume, Schedule, begin_anew, fit
from forge_sweep.training.looks import (
    chain,
    clipping,
    compiled_loss,
    is_half_unscaled,
    is_of_training,
    learning_rates,
    loss_settings,
    penalty,
    training_outputs,
    variables_in,
)
from forge_sweep.training.networks import forget, reuse

__all__ = [
    "BACKENDS",
    "Checkpoint",
    "Features",
    "FileCheckpoint",
    "FitResult",
    "FitSpec",
    "OnEpoch",
    "OnResume",
    "Schedule",
    "Setup",
    "TrainingData",
    "accelerators",
    "as_variables",
    "begin_anew",
    "chain",
    "check_backend",
    "chunk_rows",
    "classify",
    "clipping",
    "compiled_loss",
    "data_loss",
    "dtype_policy",
    "each",
    "explain",
    "fit",
    "fix_operations",
    "forget",
    "is_half_unscaled",
    "is_of_training",
    "learning_rates",
    "leaves",
    "load_backend",
    "loss_settings",
    "outputs",
    "penalty",
    "precision_of",
    "release",
    "reuse",
    "running_backend",
    "seed_everything",
    "select_backend",
    "settle",
    "training_outputs",
    "variables_in",
]
