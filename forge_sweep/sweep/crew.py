"""The workers of one sweep: how many, what each may use, and how they are handed a training."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

import pandas as pd

from forge_sweep import environment, trial, workers
from forge_sweep.bundle import choose_golden
from forge_sweep.experiment import Experiment, Params
from forge_sweep.sweep.arrays import SharedArrays
from forge_sweep.sweep.context import Context, OnEpoch
from forge_sweep.sweep.orders import Order, Outcome, Setup, as_variables
from forge_sweep.trial import Recipe
from forge_sweep.workers import Job, Limits, Plan, Worker

GRACE_S = 60.0
"""How much longer than its own deadline a training may take, to prepare and to save, before its process is killed."""

PROCESS_BYTES = 1_500_000_000
"""What a worker process takes with a network of usual size, by which their number is chosen."""

SHARE = 0.9
"""Share of the available memory that all workers together may take."""

PRELOAD = ("forge_sweep.sweep.preload",)

setup_of: Callable[[str, int], Callable[[], None]] = Setup


class Crew:
    """The workers of a sweep, with all that stays the same from one training to the next.

    Args:
        context: the sweep.
    """

    def __init__(self, context: Context) -> None:
        spec = context.experiment.workers
        self.context = context
        self.plan = plan(context.experiment, len(context.environment.gpus), context.environment.cores)
        self.workers = workers.make(spec, self.plan)
        self.arrays = SharedArrays(context.dataset, context.checkpoints / "arrays") if spec.kind != "serial" else None
        if spec.kind != "serial":
            context.tell("message", text=words(self.plan), severity="info")

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.workers.close()
        if self.arrays is not None:
            self.arrays.close()

    @property
    def tags(self) -> dict[str, str]:
        """What a run should say of where it was trained: convolutions depend on the number of threads."""
        if self.arrays is None:
            return {"forge.workers": "serial"}
        threads = self.plan.shared.get("OMP_NUM_THREADS", "")
        return {"forge.workers": f"{self.plan.n} processes", "forge.threads": threads}

    def run(self, job: Job) -> None:
        """Run a job on every worker; see `Workers.run`."""
        self.workers.run(job)

    def train(
        self, worker: Worker, params: Params, seed: int, checkpoint: Path, on_epoch: OnEpoch, keep: Path | None = None
    ) -> Outcome:
        """Train one network on a worker.

        Args:
            worker: runs it.
            params: every hyperparameter.
            seed: of this training.
            checkpoint: file for the best weights while it runs.
            on_epoch: called here after each epoch.
            keep: folder for the bundle, where it is wanted.

        Raises:
            TrialFailed: it cannot give a score.
            WorkerLost: its process died.
        """
        experiment = self.context.experiment
        limit = experiment.study.trial_timeout_s
        order = Order(
            run=trial.run,
            experiment=experiment,
            rows=self.context.dataset if self.arrays is None else self.arrays.of(recipe_of(experiment, params)),
            params=params,
            seed=seed,
            checkpoint=checkpoint.absolute(),
            deadline_s=limit,
            keep=keep and keep.absolute(),
            golden=None if keep is None else self._golden(),
        )
        limits = Limits() if limit is None else Limits(seconds=limit + GRACE_S)
        try:
            return worker.call(order, lambda epoch: on_epoch(*epoch), limits)
        finally:
            checkpoint.unlink(missing_ok=True)

    def _golden(self) -> pd.DataFrame:
        """Train rows to try a bundle on; to a process goes no more than a bundle keeps."""
        features = self.context.dataset.train.features
        return features if self.arrays is None else choose_golden(features)


def recipe_of(experiment: Experiment, params: Params) -> Recipe:
    """How the rows of a training become arrays."""
    return Recipe.of(experiment, params.get("scaler"))


def plan(experiment: Experiment, gpus: int, cores: int) -> Plan:
    """How many processes, with what in hand.

    Args:
        experiment: its ``[workers]`` may state any of it.
        gpus: of this machine.
        cores: that this process may use.
    """
    spec = experiment.workers
    devices = visible_devices(gpus, os.environ)
    available = environment.memory().available
    n = spec.n or min(default_n(cores, available, len(devices) * spec.per_gpu), experiment.study.n_trials)
    threads = spec.threads or max(1, cores // n)
    limit = spec.memory_limit_mb
    return Plan(
        n=n,
        environment=tuple(gpu_variables(device) for device in devices for _ in range(spec.per_gpu)) or ({},),
        shared=as_variables(threads),
        start="spawn" if devices or experiment.backend != "tensorflow" else "forkserver",
        preload=PRELOAD,
        setup=setup_of(experiment.backend, threads),
        memory_bytes=limit * 1_000_000 if limit else int(SHARE * available / n),
    )


def default_n(cores: int, available: int, gpu_places: int) -> int:
    """As many workers as there are places on GPUs; without one, as many as cores and memory allow."""
    return gpu_places or max(1, min(cores, int(SHARE * available) // PROCESS_BYTES))


def visible_devices(gpus: int, variables: Mapping[str, str]) -> list[str]:
    """The GPUs to spread workers over: those that the user left visible."""
    chosen = variables.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return [str(number) for number in range(gpus)]
    return [device.strip() for device in chosen.split(",") if device.strip() not in ("", "-1")] if gpus else []


def gpu_variables(device: str) -> dict[str, str]:
    """What ties a process to one GPU, and lets others have a part of it."""
    return {"CUDA_VISIBLE_DEVICES": device, "TF_FORCE_GPU_ALLOW_GROWTH": "true"}


def words(planned: Plan) -> str:
    """The plan for people."""
    threads = next(iter(planned.shared.values()), "?")
    devices = [device for given in planned.environment if (device := given.get("CUDA_VISIBLE_DEVICES"))]
    parts = [
        f"{planned.n} worker process{'es' if planned.n > 1 else ''}",
        f"{threads} thread{'s' if threads != '1' else ''} each",
        *([f"on GPU {', '.join(dict.fromkeys(devices))}"] if devices else []),
        *([f"at most {planned.memory_bytes / 1e9:.1f} GB each"] if planned.memory_bytes else []),
    ]
    return ", ".join(parts)
