"""The training itself, in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from forge_sweep import environment, sources, training, trial
from forge_sweep.bundle import Bundle
from forge_sweep.experiment import Experiment, Params
from forge_sweep.training.setup import Setup, as_variables
from forge_sweep.trial import TrialResult
from forge_sweep.workers import Limits, Plan, ProcessWorkers, Say, Worker


@dataclass(frozen=True)
class Again:
    """What a training gave this time.

    Attributes:
        weights: `Bundle.weights_sha256`.
        metrics: validation metrics at the best epoch.
        history: the metrics of every epoch; empty for a baseline.
        best_epoch: 0-based.
        seconds: wall clock.
        recorded_weights: of the recorded model; "" where none was given.
        scores_off: largest difference of a prediction on the validation rows to the recorded model's, in proportion to
            the largest one above 1; None where there is none.
    """

    weights: str
    metrics: Mapping[str, float]
    history: tuple[dict[str, float], ...]
    best_epoch: int
    seconds: float
    recorded_weights: str = ""
    scores_off: float | None = None


@dataclass(frozen=True)
class Order:
    """One training, as a value that can be pickled.

    Attributes:
        experiment: the experiment.
        baseline: kind of a baseline; "" for a network.
        params: every hyperparameter of a network.
        seed: of the training.
        halvings: how often its batch is halved.
        epochs: after how many it is stopped as pruned.
        model: folder of the recorded bundle, to compare with.
    """

    experiment: Experiment
    baseline: str
    params: Params
    seed: int
    halvings: int = 0
    epochs: int | None = None
    model: Path | None = None

    def beside(self, model: Path) -> Order:
        """The same, compared with a recorded bundle."""
        return replace(self, model=model)

    def __call__(self, say: Say) -> Again:
        """Load the rows, train and compare."""
        experiment, began = self.experiment, time.monotonic()
        dataset = sources.load(experiment.data, root=experiment.root, seed=experiment.seed)
        try:
            result = self._train(dataset)
        except Exception as error:
            raise training.classify(error) from error
        again = Again(
            weights=result.bundle.weights_sha256,
            metrics=result.metrics,
            history=result.history,
            best_epoch=result.best_epoch,
            seconds=time.monotonic() - began,
        )
        if self.model is None:
            return again
        recorded = Bundle.load(self.model)
        off = distance(result.bundle, recorded, dataset)
        return replace(again, recorded_weights=recorded.weights_sha256, scores_off=off)

    def _train(self, dataset: sources.Dataset) -> TrialResult:
        if self.baseline:
            return trial.run_baseline(self.experiment, dataset, self.baseline, self.seed)

        def on_epoch(epoch: int, metrics: dict[str, float]) -> bool:
            return self.epochs is not None and epoch + 1 >= self.epochs

        return trial.run(self.experiment, dataset, self.params, self.seed, on_epoch, halvings=self.halvings)


def distance(mine: Bundle, recorded: Bundle, dataset: sources.Dataset) -> float | None:
    """How far two models' predictions on the validation rows are apart; None where they predict different things."""
    names = list(recorded.preprocessor.schema.names)
    if mine.task.units != recorded.task.units or not set(names) <= set(dataset.valid.features):
        return None
    scores, other = mine.scores(dataset.valid.features), recorded.scores(dataset.valid.features[names])
    return float(np.abs(scores - other).max() / max(1.0, np.abs(other).max()))


def train_again(order: Order, threads: int) -> Again:
    """Run an order in a new process.

    Args:
        order: what to train.
        threads: that one operation may use; as many as there are cores is left to the libraries, as in a sweep.

    Raises:
        TrialFailed: it failed.
        WorkerLost: its process died.
    """
    limit = 0 if threads == environment.cores() else threads
    plan = Plan(
        start="spawn", shared=as_variables(limit) if limit else {}, setup=Setup(order.experiment.backend, limit)
    )
    found: list[Again] = []

    def job(worker: Worker) -> None:
        found.append(worker.call(order, lambda message: None, Limits()))

    with ProcessWorkers(plan) as workers:
        workers.run(job)
    return found[0]
