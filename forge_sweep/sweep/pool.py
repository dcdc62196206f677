"""The worker pool of a sweep: how many workers, what each may use, how the rows reach them, how one trains."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from forge_sweep import environment, trial, workers
from forge_sweep.bundle import choose_golden
from forge_sweep.errors import InputError, SweepStopped, TrialFailed
from forge_sweep.experiment import Experiment, Params, WorkersSpec
from forge_sweep.preprocessing import Mapped, mapped
from forge_sweep.sources import Dataset, Fold
from forge_sweep.sweep import budget
from forge_sweep.sweep.context import Context
from forge_sweep.sweep.jobs import Monitor, Outcome, RemoteJob, Stopped, TrainJob, unpack
from forge_sweep.training import FileCheckpoint, Setup, TrainingData, as_variables, each
from forge_sweep.trial import Prepared, Recipe, Several
from forge_sweep.workers import SHARING_A_GPU, Limits, Plan, Worker, WorkerLost

GRACE_S = 60.0
"""How much longer than its own deadline a training may take, to prepare and to save, before its process is killed."""

PROCESS_BYTES = 1_500_000_000
"""What a worker process takes with a network of usual size, by which their number is chosen."""

LEAST_BYTES = 500_000_000  # What a worker takes with its backend loaded and no data, at the least
ATTEMPTS = 3  # A training whose process died this often has failed, as in the search
SHARE = 0.9  # Share of the available memory that all workers together may take

PRELOAD = ("forge_sweep.sweep.preload",)

setup_of: Callable[[str, int], Callable[[], None]] = Setup

Made = TypeVar("Made")


class WorkerPool:
    """The workers of a sweep, with all that stays the same from one training to the next."""

    def __init__(self, context: Context) -> None:
        spec = context.experiment.workers
        self.context = context
        self.plan = plan(context.experiment, len(context.environment.gpus), context.environment.cores)
        self.remote = spec.kind == "ray"
        self.arrays: SharedArrays | ClusterArrays | None = None  # how the rows reach the workers that are not here
        several = trial.several(context.experiment, context.dataset)
        if spec.kind == "processes":
            self.arrays = SharedArrays(context.dataset, context.arrays, several)
        elif spec.kind == "ray":
            from forge_sweep.workers.ray import Stored as StoredInRay

            features = context.dataset.learned_from.features
            if names := [str(name) for name in features if mapped(features[name]) is not None]:
                raise InputError(
                    f'workers.kind = "ray": the arrays of {", ".join(names)} do not fit in memory and lie in files of '
                    "this machine, which others do not see",
                    hint='set workers.kind = "processes"',
                )
            self.arrays = ClusterArrays(context.dataset, StoredInRay.put, several)
        self.workers = workers.make(
            spec, self.plan, lambda text, severity="info": context.tell("message", text=text, severity=severity)
        )
        self.run = self.workers.run
        if spec.kind == "processes":
            context.inform(_words(self.plan))

    def __enter__(self) -> WorkerPool:
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
        devices = _visible_devices(len(self.context.environment.gpus), os.environ)
        return gpus_held(self.context.experiment.workers, len(devices), self.plan.n)

    def train(
        self,
        worker: Worker,
        params: Params,
        seed: int,
        checkpoint: FileCheckpoint,
        monitor: Monitor,
        keep: Path | None = None,
        *,
        needed: bool = True,
    ) -> Outcome:
        """Train one network, or go on where it was cut off; with a smaller batch where memory runs out.

        Its bundle goes to the folder ``keep``; see `TrainJob.needed`. Its state stays in the checkpoint until
        `forget_progress`. `monitor` is called here with each `Progress`.

        Raises:
            TrialFailed: it cannot give a score.
            WorkerLost: its process died, or lost its GPU.
        """
        experiment, dataset, golden = self.context.experiment, self.context.dataset, None
        if keep is not None or experiment.measures:  # to a process goes no more than a bundle keeps
            features = dataset.learned_from.features
            golden = features if self.arrays is None else choose_golden(features)
        limit = experiment.study.trial_timeout_s
        limits = Limits() if limit is None else Limits(seconds=limit + GRACE_S)
        monitor.checkpoint = checkpoint
        while True:
            job = TrainJob(
                run=trial.run,
                experiment=experiment,
                rows=dataset if self.arrays is None else self.arrays.rows(Recipe.of(experiment, params.get("scaler"))),
                params=params,
                seed=seed,
                checkpoint=checkpoint,
                deadline_s=limit,
                halvings=halved(checkpoint),
                keep=keep and keep.absolute(),
                needed=needed,
                golden=golden,
                clocks=budget.CLOCKS,
                kept_rows=self.context.kept_rows,
                measures_first=monitor.asked is not None and experiment.prunes_by_measures,
            )
            try:
                with contextlib.nullcontext() if monitor.account is None else monitor.account.job():
                    if not self.remote:
                        return worker.call(job, monitor, limits)
                    outcome, archive = worker.call(RemoteJob.of(job), monitor, limits)
                if job.keep is not None and archive:
                    unpack(archive, job.keep)
                return outcome
            except Stopped:
                assert monitor.wish is not None
                raise monitor.wish from None
            except TrialFailed as failure:
                if monitor.error is not None:
                    raise monitor.error from None
                if failure.failure == "lost-worker":  # this process itself; of another one the worker says so
                    hint = "check nvidia-smi, then run the same command: the trial goes on where it was"
                    raise SweepStopped(f"the GPU is gone: {failure.message}", hint=hint) from failure
                if failure.failure != "out-of-memory" or not trial.can_halve(params, job.halvings + 1):
                    raise
                self._halve(params, checkpoint, job.halvings + 1, monitor.run.key)

    def attempts(self, name: str) -> Iterator[contextlib.AbstractContextManager[None]]:
        """Blocks to `train` in, until one ends whose process did not die; for what no trial of the study stands for.

        Raises:
            TrialFailed: its process died `ATTEMPTS` times.
        """
        died, done = 0, False

        @contextlib.contextmanager
        def attempt() -> Iterator[None]:
            nonlocal died, done
            try:
                yield
                done = True
            except WorkerLost as lost:
                died += not lost.announced
                self.context.warn(f"{name} was lost and runs again: {lost}")
                if died >= ATTEMPTS:
                    text = f"the process ended {ATTEMPTS} times before the training did: {lost}"
                    raise TrialFailed("lost-worker", text) from lost

        while not done:
            yield attempt()

    def _halve(self, params: Params, checkpoint: FileCheckpoint, halvings: int, key: str) -> None:
        """Note beside the checkpoint that the batch is halved from now on, and say so."""
        checkpoint.path.parent.mkdir(parents=True, exist_ok=True)
        halvings_file(checkpoint).write_text(str(halvings))
        sizes = [trial.smaller(params, times)["batch_size"] for times in (halvings - 1, halvings)]
        name = key.rpartition("/")[2]
        self.context.warn(f"{name} ran out of memory with batches of {sizes[0]} and goes on with {sizes[1]}")


def halvings_file(checkpoint: FileCheckpoint) -> Path:
    """Where it stands how often the batch of a training was halved."""
    return checkpoint.path.with_suffix(".halvings")


def halved(checkpoint: FileCheckpoint) -> int:
    """How often the batch of a training was halved so far, by an earlier process too."""
    try:
        return int(halvings_file(checkpoint).read_text())
    except (FileNotFoundError, ValueError):  # none, or half-written by a process that was killed
        return 0


def forget_progress(checkpoint: FileCheckpoint) -> None:
    """Remove what is kept of a training that has ended."""
    checkpoint.clear()
    halvings_file(checkpoint).unlink(missing_ok=True)


def plan(experiment: Experiment, gpus: int, cores: int) -> Plan:
    """How many processes, with what in hand; ``cores`` are those that this process may use."""
    spec = experiment.workers
    if spec.kind == "ray":
        threads = spec.threads or spec.cpus or 1
        return Plan(  # how many there are is the cluster's matter
            n=max(experiment.study.n_trials, experiment.confirm.top * experiment.confirm.seeds),
            shared=as_variables(threads),
            setup=setup_of(experiment.backend, threads),
            memory_bytes=spec.memory_limit_mb and spec.memory_limit_mb * 1_000_000,
        )
    devices = _visible_devices(gpus, os.environ)
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
        environment=tuple(_gpu_variables(device) for device in devices for _ in range(spec.per_gpu)) or ({},),
        shared=as_variables(threads),
        start="spawn" if devices or experiment.backend != "tensorflow" else "forkserver",
        preload=PRELOAD,
        setup=setup_of(experiment.backend, threads),
        memory_bytes=each,
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


def _visible_devices(gpus: int, variables: Mapping[str, str]) -> list[str]:
    chosen = variables.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return [str(number) for number in range(gpus)]
    return [device.strip() for device in chosen.split(",") if device.strip() not in ("", "-1")] if gpus else []


def _gpu_variables(device: str) -> dict[str, str]:
    """What ties a process to one GPU, and lets others have a part of it."""
    return {"CUDA_VISIBLE_DEVICES": device, **SHARING_A_GPU}


def _words(planned: Plan) -> str:
    threads = next(iter(planned.shared.values()), "?")
    devices = [device for given in planned.environment if (device := given.get("CUDA_VISIBLE_DEVICES"))]
    parts = [
        f"{planned.n} worker process{'es' if planned.n > 1 else ''}",
        f"{threads} thread{'s' if threads != '1' else ''} each",
        *([f"on GPU {', '.join(dict.fromkeys(devices))}"] if devices else []),
        *([f"at most {planned.memory_bytes / 1e9:.1f} GB each"] if planned.memory_bytes else []),
    ]
    return ", ".join(parts)


# Prepared rows, of which all workers of a machine read one copy: files, whose pages are shared, or a cluster's store.

SHAREABLE = ("x_train", "y_train", "x_valid", "y_valid", "sample_weight")
"""Fields that are arrays, one per row."""

FIELDS = [field.name for field in dataclasses.fields(TrainingData)]


@dataclass(frozen=True)
class SavedArrays:
    """The rows of one recipe in files, in the place of a `Dataset`. Small, and can be pickled."""

    folder: Path

    def prepared(self, recipe: Recipe) -> Prepared:
        """As memory maps; see `trial.Arrays`."""
        saved, found = _load(self.folder)
        assert saved == recipe, f"{self.folder} was made by {saved}"
        return found


@functools.cache
def _load(folder: Path) -> tuple[Recipe, Prepared]:
    """Cached: there are as many as scalers, and an array takes no memory until it is read."""
    import joblib

    recipe, task, preprocessor, rest, origin, names = joblib.load(folder / "about.joblib")
    arrays: Any = {field: _mapped(folder, kept) for field, kept in names.items()}
    return recipe, Prepared(task, preprocessor, TrainingData(**arrays, **rest), origin)


def _mapped(folder: Path, names: Any) -> Any:
    """Writing to one would change this process's pages only."""
    if isinstance(names, dict):
        return {key: _mapped(folder, name) for key, name in names.items()}
    if isinstance(names, tuple):
        return tuple(_mapped(folder, name) for name in names)
    if isinstance(names, Mapped):
        return names
    return np.load(folder / names, mmap_mode="c")  # NumPy aligns what it writes as TensorFlow wants it


def save(prepared: Prepared, recipe: Recipe, folder: Path) -> None:
    """Write everything into a new folder."""
    import joblib

    folder.mkdir(parents=True)
    count = iter(range(10_000))

    def write(values: np.ndarray) -> str | Mapped:
        if isinstance(values, Mapped):  # in a file already, which the sweep's process keeps in place
            return values
        name = f"{next(count)}.npy"
        np.save(folder / name, np.ascontiguousarray(values))
        return name

    data = {field: getattr(prepared.data, field) for field in FIELDS}
    names = {field: each(write, data[field]) for field in SHAREABLE if data[field] is not None}
    rest = {field: value for field, value in data.items() if field not in names}
    about = (recipe, prepared.task, prepared.preprocessor, rest, prepared.origin, names)
    joblib.dump(about, folder / "about.joblib")


class _OncePerRecipe(Generic[Made]):
    """What is made of each recipe once, when it is first asked for. Threads may share it."""

    def __init__(self, dataset: Dataset, several: Several | None = None) -> None:
        self.dataset = dataset
        self.several = several
        self._made: dict[tuple[Dataset, Recipe], Made] = {}
        self._lock = threading.Lock()

    def rows(self, recipe: Recipe) -> Made | Several:
        """What a job gets: the rows of a recipe, of a trial of several trainings those of each."""
        if self.several is None:
            return self.of(recipe)
        parts = tuple(Fold(self.of(recipe, part.rows), part.at) for part in self.several.parts)
        return Several(parts, self.of(recipe, self.several.whole), self.several.split_digest)

    def of(self, recipe: Recipe, part: Dataset | None = None) -> Made:
        """The rows of a recipe, or of a part of them."""
        dataset = self.dataset if part is None else part
        with self._lock:
            if (dataset, recipe) not in self._made:
                self._made[dataset, recipe] = self._make(dataset, recipe, trial.arrays_of(dataset, recipe))
            return self._made[dataset, recipe]

    def _make(self, dataset: Dataset, recipe: Recipe, prepared: Prepared) -> Made:
        raise NotImplementedError

    def close(self) -> None:
        """Refer to none of them any more."""
        self._made.clear()


class SharedArrays(_OncePerRecipe[SavedArrays]):
    """Writes the rows of each recipe to a folder; what an earlier process left there is removed."""

    def __init__(self, dataset: Dataset, folder: Path, several: Several | None = None) -> None:
        super().__init__(dataset, several)
        self.folder = folder.absolute()
        self.close()

    def _make(self, dataset: Dataset, recipe: Recipe, prepared: Prepared) -> SavedArrays:
        # a process that lives on from an earlier sweep knows the files by their names
        part = "" if dataset is self.dataset else dataset.split_digest
        name = hashlib.sha256(f"{recipe} {self.dataset.digest}{part} {os.getpid()}".encode()).hexdigest()[:12]
        save(prepared, recipe, self.folder / name)
        return SavedArrays(self.folder / name)

    def close(self) -> None:
        """Remove the files; a process that still reads them keeps its pages."""
        shutil.rmtree(self.folder, ignore_errors=True)
        super().close()


class Stored(Protocol):
    """A value in the object store of a cluster; small, and can be pickled."""

    def get(self) -> Any:
        """The value, on whatever machine."""


@dataclass(frozen=True)
class StoredArrays:
    """The recipe and the rows made by it, in the store of a cluster, in the place of a `Dataset`."""

    stored: Stored

    def prepared(self, recipe: Recipe) -> Prepared:
        """As views of this machine's copy, which cannot be written to; see `trial.Arrays`."""
        saved, found = self.stored.get()
        assert saved == recipe, f"{self.stored} was made by {saved}"
        prepared: Prepared = found
        return prepared


class ClusterArrays(_OncePerRecipe[StoredArrays]):
    """Puts the rows of each recipe into the store of a cluster."""

    def __init__(self, dataset: Dataset, put: Callable[[Any], Stored], several: Several | None = None) -> None:
        super().__init__(dataset, several)
        self.put = put

    def _make(self, dataset: Dataset, recipe: Recipe, prepared: Prepared) -> StoredArrays:
        return StoredArrays(self.put((recipe, contiguous(prepared))))


def contiguous(prepared: Prepared) -> Prepared:
    """With arrays that a store keeps apart from the rest, so that they are mapped and not read."""
    data = {field: getattr(prepared.data, field) for field in SHAREABLE}
    laid = {field: each(np.ascontiguousarray, values) for field, values in data.items() if values is not None}
    return dataclasses.replace(prepared, data=dataclasses.replace(prepared.data, **laid))
