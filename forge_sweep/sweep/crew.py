"""The workers of one sweep: how many, what each may use, and how they are handed a training."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

import pandas as pd

from forge_sweep import environment, trial, workers
from forge_sweep.bundle import choose_golden
from forge_sweep.errors import InputError, SweepStopped, TrialFailed
from forge_sweep.experiment import Experiment, Params, WorkersSpec
from forge_sweep.sweep import shipping
from forge_sweep.sweep.arrays import ClusterArrays, SharedArrays
from forge_sweep.sweep.context import Context, Interrupted, OnEpoch
from forge_sweep.sweep.orders import STOP, Order, Outcome, Setup, Stopped, as_variables
from forge_sweep.training import FileCheckpoint
from forge_sweep.trial import Recipe
from forge_sweep.workers import Job, Limits, Plan, Worker, WorkerUnfit

GRACE_S = 60.0
"""How much longer than its own deadline a training may take, to prepare and to save, before its process is killed."""

PROCESS_BYTES = 1_500_000_000
"""What a worker process takes with a network of usual size, by which their number is chosen."""

LEAST_BYTES = 500_000_000
"""What a worker takes with its backend loaded and no data, at the least."""

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
        self.workers = workers.make(spec, self.plan, lambda text: context.tell("message", text=text, severity="info"))
        self.arrays = self._shared_arrays()
        self.remote = spec.kind == "ray"
        if spec.kind == "processes":
            context.tell("message", text=words(self.plan), severity="info")

    def _shared_arrays(self) -> SharedArrays | ClusterArrays | None:
        """How the rows come to the workers; None where they are here."""
        match self.context.experiment.workers.kind:
            case "serial":
                return None
            case "processes":
                return SharedArrays(self.context.dataset, self.context.arrays)
            case "ray":
                from forge_sweep.workers.ray import Stored

                return ClusterArrays(self.context.dataset, Stored.put)

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.arrays is not None:
            self.arrays.close()  # a process that maps a file keeps its pages; a cluster has to be there to be told
        self.workers.close()

    @property
    def tags(self) -> dict[str, str]:
        """What a run should say of where it was trained: convolutions depend on the number of threads."""
        if self.arrays is None:
            return {"forge.workers": "serial"}
        threads = self.plan.shared.get("OMP_NUM_THREADS", "")
        return {"forge.workers": "ray" if self.remote else f"{self.plan.n} processes", "forge.threads": threads}

    @property
    def gpus_each(self) -> float:
        """GPUs, or the part of one, that each worker holds."""
        devices = visible_devices(len(self.context.environment.gpus), os.environ)
        return gpus_held(self.context.experiment.workers, len(devices), self.plan.n)

    def run(self, job: Job) -> None:
        """Run a job on every worker; see `Workers.run`. One that is unfit leaves its work to the others.

        Raises:
            SweepStopped: all of them are unfit.
        """
        unfit: dict[str, WorkerUnfit] = {}

        def guarded(worker: Worker) -> None:
            if worker.id in unfit:
                return
            try:
                job(worker)
            except WorkerUnfit as error:
                unfit[worker.id] = error
                self.context.tell("message", text=f"a worker is given up: {error}", severity="warning")

        before = -1
        while len(unfit) != before:  # what an unfit one held may have come back after the others had ended
            before = len(unfit)
            self.workers.run(guarded)
            if len(unfit) >= self.plan.n:
                why = next(iter(unfit.values()))
                raise SweepStopped(f"no worker is left: {why}", hint="look at nvidia-smi, then run the same command")

    def train(
        self, worker: Worker, params: Params, seed: int, checkpoint: Path, on_epoch: OnEpoch, keep: Path | None = None
    ) -> Outcome:
        """Train one network on a worker, or go on where it was cut off; with a smaller batch where memory runs out.

        Args:
            worker: runs it.
            params: every hyperparameter.
            seed: of this training.
            checkpoint: file for its progress, which stays there until `forget_progress`.
            on_epoch: called here after each epoch.
            keep: folder for the bundle, where it is wanted.

        Raises:
            TrialFailed: it cannot give a score.
            WorkerLost: its process died, or lost its GPU.
        """
        path = checkpoint.absolute()
        while True:
            halvings = halved(path)
            try:
                return self._train(worker, params, seed, path, on_epoch, keep, halvings)
            except TrialFailed as failure:
                if failure.failure == "lost-worker":  # this process itself; of another one the worker says so
                    hint = "look at nvidia-smi, then run the same command: the trial goes on where it was"
                    raise SweepStopped(f"the GPU is gone: {failure.message}", hint=hint) from failure
                if failure.failure != "out-of-memory" or not trial.can_halve(params, halvings + 1):
                    raise
                self._halve(params, path, halvings + 1, on_epoch.run.key)

    def _halve(self, params: Params, path: Path, halvings: int, key: str) -> None:
        """Note beside the progress that the batch is halved from now on, and say so."""
        path.parent.mkdir(parents=True, exist_ok=True)
        halvings_file(path).write_text(str(halvings))
        sizes = [trial.smaller(params, times)["batch_size"] for times in (halvings - 1, halvings)]
        text = f"{key.rpartition('/')[2]} ran out of memory with batches of {sizes[0]} and goes on with {sizes[1]}"
        self.context.tell("message", text=text, severity="warning")

    def _train(
        self,
        worker: Worker,
        params: Params,
        seed: int,
        path: Path,
        on_epoch: OnEpoch,
        keep: Path | None,
        halvings: int,
    ) -> Outcome:
        experiment = self.context.experiment
        limit = experiment.study.trial_timeout_s
        order = Order(
            run=trial.run,
            experiment=experiment,
            rows=self.context.dataset if self.arrays is None else self.arrays.of(recipe_of(experiment, params)),
            params=params,
            seed=seed,
            checkpoint=FileCheckpoint(path),
            deadline_s=limit,
            halvings=halvings,
            keep=keep and keep.absolute(),
            golden=None if keep is None else self._golden(),
        )
        limits = Limits() if limit is None else Limits(seconds=limit + GRACE_S)
        call = worker.call if on_epoch.account is None else functools.partial(on_epoch.account.call, worker)
        if self.remote:
            call = functools.partial(shipping.call, call)
        relay = Relay(on_epoch)
        try:
            outcome: Outcome = call(order, relay, limits)
        except Stopped:
            assert relay.wish is not None
            raise relay.wish from None
        return outcome

    def _golden(self) -> pd.DataFrame:
        """Train rows to try a bundle on; to a process goes no more than a bundle keeps."""
        features = self.context.dataset.train.features
        return features if self.arrays is None else choose_golden(features)


class Relay:
    """Hands the epochs of a training to `OnEpoch`. A wish to stop is answered first: the training saves its progress.

    Args:
        on_epoch: what is done after each epoch.

    Attributes:
        wish: to stop, once there was one.
    """

    def __init__(self, on_epoch: OnEpoch) -> None:
        self.on_epoch = on_epoch
        self.wish: Interrupted | None = None

    def __call__(self, message: tuple[int, dict[str, float] | None]) -> bool | str:
        """The answer to an epoch."""
        try:
            return self.on_epoch(*message)
        except Interrupted as wish:
            self.wish = wish
            return STOP


def halvings_file(checkpoint: Path) -> Path:
    """Where it stands how often the batch of a training was halved."""
    return checkpoint.with_suffix(".halvings")


def halved(checkpoint: Path) -> int:
    """How often the batch of a training was halved so far, by an earlier process too."""
    try:
        return int(halvings_file(checkpoint).read_text())
    except (FileNotFoundError, ValueError):  # none, or half-written by a process that was killed
        return 0


def forget_progress(checkpoint: Path) -> None:
    """Remove what is kept of a training that has ended."""
    FileCheckpoint(checkpoint).clear()
    halvings_file(checkpoint).unlink(missing_ok=True)


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
    if spec.kind == "ray":
        return plan_of_cluster(experiment)
    devices = visible_devices(gpus, os.environ)
    available = environment.memory().available
    n = spec.n or min(default_n(cores, available, len(devices) * spec.per_gpu), experiment.study.n_trials)
    threads = spec.threads or max(1, cores // n)
    limit = spec.memory_limit_mb
    each = limit * 1_000_000 if limit else int(SHARE * available / n)
    if spec.kind == "processes" and not limit and spec.n and each < LEAST_BYTES:
        raise InputError(
            f"workers.n = {n}: {SHARE * available / 1e9:.1f} GB of memory are free, {each / 1e6:.0f} MB for each of "
            f"them; a worker needs {LEAST_BYTES / 1e6:.0f} MB before it has any rows",
            hint=f"set workers.n = {default_n(cores, available, 0)}, or leave it out for as many as there is room for",
        )
    return Plan(
        n=n,
        environment=tuple(gpu_variables(device) for device in devices for _ in range(spec.per_gpu)) or ({},),
        shared=as_variables(threads),
        start="spawn" if devices or experiment.backend != "tensorflow" else "forkserver",
        preload=PRELOAD,
        setup=setup_of(experiment.backend, threads),
        memory_bytes=each,
    )


def plan_of_cluster(experiment: Experiment) -> Plan:
    """What each process on a Ray cluster gets; how many there are is the cluster's matter."""
    spec, confirm = experiment.workers, experiment.confirm
    threads = spec.threads or spec.cpus or 1
    return Plan(
        n=max(experiment.study.n_trials, confirm.top * confirm.seeds),
        shared=as_variables(threads),
        setup=setup_of(experiment.backend, threads),
        memory_bytes=spec.memory_limit_mb and spec.memory_limit_mb * 1_000_000,
    )


def default_n(cores: int, available: int, gpu_places: int) -> int:
    """As many workers as there are places on GPUs; without one, as many as cores and memory allow."""
    return gpu_places or max(1, min(cores, int(SHARE * available) // PROCESS_BYTES))


def gpus_held(spec: WorkersSpec, gpus: int, n: int) -> float:
    """GPUs, or the part of one, that each of ``n`` workers holds; one in this process holds all that it sees."""
    if spec.kind == "ray":
        return float(spec.gpus or 0)
    if not gpus or spec.kind == "serial":
        return float(gpus)
    return min(1 / spec.per_gpu, gpus / n)


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
