"""What a worker is handed: one training as a value that can be pickled, and the figures that come back."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from forge_sweep import training
from forge_sweep.errors import TrialFailed
from forge_sweep.experiment import Experiment, Params
from forge_sweep.sources import Dataset
from forge_sweep.trial import Arrays, TrialResult
from forge_sweep.workers import Say, WorkerUnfit

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Outcome:
    """A `TrialResult` without its model, which stays where it was trained.

    Attributes:
        state: ``finished`` or ``pruned``.
        value: the objective at the best epoch.
        metrics: all validation metrics at the best epoch.
        epochs: how many were trained; 0 for a baseline.
        best_epoch: 0-based.
        seconds: wall clock.
        batch_size: rows per gradient step, as trained.
        events: what happened on the way.
        threshold: the decision threshold that was chosen on validation.
    """

    state: Literal["finished", "pruned"]
    value: float
    metrics: dict[str, float]
    epochs: int
    best_epoch: int
    seconds: float
    batch_size: int
    events: tuple[str, ...]
    threshold: float

    @classmethod
    def of(cls, result: TrialResult) -> Outcome:
        """The figures of a result."""
        return cls(
            state=result.state,
            value=result.value,
            metrics=result.metrics,
            epochs=len(result.history),
            best_epoch=result.best_epoch,
            seconds=result.seconds,
            batch_size=result.batch_size,
            events=result.events,
            threshold=result.bundle.threshold,
        )


@dataclass(frozen=True, eq=False)
class Order:
    """One network to train.

    Attributes:
        run: `trial.run`, or what stands in its place.
        experiment: the experiment.
        rows: a dataset, or arrays for a process that has none.
        params: every hyperparameter.
        seed: of this training.
        checkpoint: where its progress is kept; None keeps none.
        deadline_s: seconds after which it fails as ``time-out``.
        halvings: how often memory ran out before.
        keep: folder for the bundle, where it is wanted.
        golden: raw rows that the bundle is tried on.
    """

    run: Callable[..., TrialResult]
    experiment: Experiment
    rows: Dataset | Arrays
    params: Params
    seed: int
    checkpoint: training.Checkpoint | None
    deadline_s: float | None = None
    halvings: int = 0
    keep: Path | None = None
    golden: pd.DataFrame | None = None

    def __call__(self, say: Say) -> Outcome:
        """Train.

        ``say`` is told (epoch, metrics) after each epoch and answers whether to stop as pruned. Where the training is
        taken up again it is first told (epochs that are there already, None).
        """

        def on_epoch(epoch: int, metrics: dict[str, float]) -> bool:
            return bool(say((epoch, metrics)))

        def on_resume(epochs: int) -> None:
            say((epochs, None))

        try:
            return self._train(on_epoch, on_resume)
        except TrialFailed as failure:
            if failure.failure == "out-of-memory":
                training.forget()
            raise
        finally:
            training.release()

    def _train(self, on_epoch: training.OnEpoch, on_resume: training.OnResume) -> Outcome:
        result = self.run(
            self.experiment,
            self.rows,
            self.params,
            self.seed,
            on_epoch,
            checkpoint=self.checkpoint,
            deadline_s=self.deadline_s,
            halvings=self.halvings,
            on_resume=on_resume,
        )
        if self.keep is not None:
            assert self.golden is not None
            result.bundle.save(self.keep, self.golden)
        return Outcome.of(result)


@dataclass(frozen=True)
class Setup:
    """Makes a new process ready for orders.

    Attributes:
        backend: of Keras.
        threads: that one operation, and independent operations, may use.
    """

    backend: str
    threads: int

    def __call__(self) -> None:
        """Import the backend and settle its threads, before its first operation."""
        training.select_backend(self.backend)
        training.load_backend()
        training.limit_threads(self.threads)
        require_gpu(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
        training.settle()


def require_gpu(given: str) -> None:
    """Refuse to compute on the CPU in silence where a process was given a GPU that is not there, or not any more.

    Args:
        given: ``CUDA_VISIBLE_DEVICES``; empty and ``-1`` give none.

    Raises:
        WorkerUnfit: the backend sees none.
    """
    if given in ("", "-1") or training.accelerators():
        return
    raise WorkerUnfit(f"it was given GPU {given}, and the backend sees none")


def as_variables(threads: int) -> Mapping[str, str]:
    """Thread counts of the libraries that read them when they are imported."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return dict.fromkeys(names, str(threads))
