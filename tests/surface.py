"""A fake `trial.run` with a known surface, for the sweep's own logic: no network is trained, all services are real.

Run as a script it is a sweep that a test can kill: `python -m tests.surface STORE N_TRIALS SECONDS_PER_EPOCH [POINT]`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.ensemble

from forge_sweep import sweep, training, trial
from forge_sweep.baselines import Baseline
from forge_sweep.bundle import Bundle
from forge_sweep.errors import TrialFailed
from forge_sweep.experiment import Experiment, Params, parse
from forge_sweep.sources import Dataset
from forge_sweep.sweep import pool
from forge_sweep.training import OnEpoch
from forge_sweep.trial import Arrays, TrialResult

EPOCHS = 6
STORY: Any = importlib.import_module("forge_sweep.sweep.run")
"""The module; `sweep.run` is its function."""


def experiment(**values: Any) -> Experiment:
    """A small experiment on real data; ``section__key=value`` overrides."""
    raw: dict[str, Any] = {
        "name": "surface",
        "seed": 3,
        "data": {"source": "sample", "name": "wine", "target": "target", "task": "multiclass"},
        "model": {
            "search": {
                "width": {"type": "int", "low": 4, "high": 64, "log": True},
                "dropout": {"type": "float", "low": 0.0, "high": 0.5},
            }
        },
        "objective": {"metric": "val_auc"},
        "study": {"n_trials": 6, "epochs": EPOCHS, "startup_trials": 1, "warmup_epochs": 1},
        "baselines": {"kinds": ["constant"]},
        "confirm": {"top": 2, "seeds": 2},
    }
    for path, value in values.items():
        *parents, last = path.split("__")
        functools.reduce(lambda table, key: table.setdefault(key, {}), parents, raw)[last] = value
    return parse(raw, root=Path())


def height(params: Params) -> float:
    """The surface: best at width 64 and dropout 0."""
    return 0.6 + 0.3 * float(params["width"]) / 64 - 0.2 * float(params["dropout"])


def never(params: Params) -> TrialFailed | None:
    """No trial fails."""
    return None


def network_like(experiment: Experiment, splits: Dataset | Arrays) -> Bundle:
    """A model that beats the constant predictor and no tree, quick to fit: its bundle stands for every network's."""
    prepared = trial.arrays_of(splits, trial.Recipe.of(experiment, experiment.scalers[0]))
    data, task = prepared.data, dataclasses.replace(prepared.task, from_logits=False)
    (x_train,), (x_valid,) = training.leaves(data.x_train), training.leaves(data.x_valid)
    forest = (
        sklearn.ensemble.RandomForestRegressor if task.kind == "regression" else sklearn.ensemble.RandomForestClassifier
    )
    labels = data.y_train.argmax(axis=1) if task.one_hot else data.y_train.squeeze()
    model = forest(n_estimators=3, max_depth=2, random_state=0).fit(x_train, labels)
    baseline = Baseline("random_forest", model, {}, task)
    scores = task.to_scores(baseline.outputs(x_valid))
    return trial.as_bundle(experiment, prepared, baseline, scores, {"params": {}, "seed": 0})


def blurred(bundle: Bundle, experiment: Experiment, splits: Dataset | Arrays, params: Params, seed: int) -> np.ndarray:
    """Scores (n, units) of the validation rows: that model's, with less noise the higher the surface is."""
    (x_valid,) = training.leaves(
        trial.arrays_of(splits, trial.Recipe.of(experiment, experiment.scalers[0])).data.x_valid
    )
    scores = bundle.task.to_scores(bundle.model.outputs(x_valid))
    noise = np.random.default_rng(seed).random(scores.shape) * (1 - height(params))
    whole = scores + noise
    return whole / whole.sum(axis=1, keepdims=True) if bundle.task.kind == "multiclass" else whole / whole.max(axis=0)


@dataclass(frozen=True)
class fake_run:  # stands where a function does; a class, since a worker process has to unpickle it
    """A `trial.run` that climbs to `height` in `EPOCHS` epochs."""

    seconds_per_epoch: float = 0.0
    fail: Callable[[Params], TrialFailed | None] = never

    def __call__(
        self,
        experiment: Experiment,
        splits: Dataset | Arrays,
        params: Params,
        seed: int,
        on_epoch: OnEpoch,
        *,
        checkpoint: training.Checkpoint | None = None,
        deadline_s: float | None = None,
        halvings: int = 0,
        on_resume: training.OnResume = training.begin_anew,
    ) -> TrialResult:
        failure = self.fail(params)
        if failure is not None:
            raise failure
        noise = (seed % 1000) / 1e6
        history = []
        for epoch in range(EPOCHS):
            time.sleep(self.seconds_per_epoch)
            value = height(params) * (epoch + 1) / EPOCHS + noise
            losses = {"loss": 1 - value, "val_loss": 1 - value, "val_log_loss": 1 - value}
            history.append({**losses, "val_auc": value, "lr": 1e-3})
            if on_epoch(epoch, history[-1]):
                break
        bundle = network_like(experiment, splits)
        metrics = {name: value for name, value in history[-1].items() if name.startswith("val_")}
        state = "finished" if len(history) == EPOCHS else "pruned"
        value, best_epoch = history[-1][experiment.objective.metric], len(history) - 1
        scores = blurred(bundle, experiment, splits, params, seed)
        kept: Any = {"state": state, "seconds": 0.1, "batch_size": 32, "events": (), "bundle": bundle, "scores": scores}
        return TrialResult(value=value, metrics=metrics, history=tuple(history), best_epoch=best_epoch, **kept)


@dataclass(frozen=True)
class NoBackend:
    """In place of `training.Setup`: a process for fakes needs no TensorFlow."""

    backend: str
    threads: int

    def __call__(self) -> None:
        """Nothing to do."""


@contextmanager
def no_network(run: Callable[..., TrialResult]) -> Iterator[None]:
    """Put a fake in the place of `trial.run` and of the pre-flight, and leave TensorFlow out."""
    before = trial.run, STORY.try_models, training.load_backend, pool.PRELOAD, pool.setup_of
    trial.run, STORY.try_models = run, lambda experiment, dataset, watch: ()
    training.load_backend = lambda: None
    pool.PRELOAD, pool.setup_of = ("forge_sweep.sweep.jobs",), NoBackend
    try:
        yield
    finally:
        trial.run, STORY.try_models, training.load_backend, pool.PRELOAD, pool.setup_of = before


def die_after(point: str) -> None:
    """Let the process end, as by `kill -9`, when the function ``module:name`` has done its work once.

    A module without a dot is one of the sweep, another one is named from the package on.
    """
    module, _, name = point.partition(":")
    home = importlib.import_module(f"forge_sweep.{module if '.' in module else f'sweep.{module}'}")
    original = getattr(home, name)

    def last(*words: Any, **options: Any) -> None:
        original(*words, **options)
        os._exit(9)

    for user in (STORY, home):
        if hasattr(user, name):
            setattr(user, name, last)


if __name__ == "__main__":
    from tests import schemas

    schemas.copy_one()
    for point in sys.argv[4:]:
        die_after(point)
    with no_network(fake_run(float(sys.argv[3]))):
        sweep.run(experiment(study__n_trials=int(sys.argv[2])), store=Path(sys.argv[1]))
