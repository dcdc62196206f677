"""The contract of a workers backend; `tests/test_workers.py` holds its conformance suite."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType, TracebackType
from typing import Any, Literal, Protocol, Self, TypeVar

from forge_sweep.errors import TrialFailed

T = TypeVar("T")

START_ATTEMPTS = 5
"""A process that dies that often in a row while it starts will not start."""

SHARING_A_GPU: Mapping[str, str] = MappingProxyType(
    {"TF_FORCE_GPU_ALLOW_GROWTH": "true", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
)
"""Variables with which TensorFlow and JAX take a GPU's memory as they need it, as PyTorch does anyway."""

Say = Callable[[Any], Any]
"""Sends a message to the job that called the task and returns its answer."""

Task = Callable[[Say], T]
"""What a worker computes. It may be run in another process: it, its result, and what it says can be pickled."""


class WorkerLost(Exception):
    """The process of a task ended or hung, for no reason that lies in the task. The next call gets a new process.

    Args:
        message: what happened to it.
        announced: the cluster had announced that it takes the machine away: the task cannot have been the cause.
    """

    def __init__(self, message: str, *, announced: bool = False) -> None:
        super().__init__(message)
        self.announced = announced


class WorkerUnfit(Exception):
    """A worker cannot do its work any more, such as one whose GPU is gone. Others may; it is to be handed nothing."""


@dataclass(frozen=True)
class Limits:
    """What a task may use where it runs in a process of its own. Beyond that the process is killed.

    Attributes:
        seconds: wall clock of one task; the task fails as ``time-out``.
        silent_s: time in which it neither says anything nor computes; then it counts as lost.
    """

    seconds: float = math.inf
    silent_s: float = 300.0


@dataclass(frozen=True)
class Plan:
    """How many processes run, and what each of them is given.

    Attributes:
        n: number of workers.
        environment: variables of each worker; worker ``i`` has those at ``i``, modulo their number.
        shared: variables that have to be there before the first import, the same for all.
        start: ``forkserver`` shares the memory of what is imported and starts in milliseconds; ``spawn`` is for
            platforms without it, and for GPUs, whose driver does not survive a fork.
        preload: modules that the fork server imports; none may compute, since threads do not survive a fork either.
        setup: called in each process before its first task; can be pickled. May raise `WorkerUnfit`.
        memory_bytes: most memory of one process beyond what it had after ``setup``; None for no limit.
    """

    n: int = 1
    environment: tuple[Mapping[str, str], ...] = ({},)
    shared: Mapping[str, str] = field(default_factory=dict)
    start: Literal["forkserver", "spawn"] = "forkserver"
    preload: tuple[str, ...] = ()
    setup: Callable[[], None] | None = None
    memory_bytes: int | None = None


class Worker(Protocol):
    """What a job gets: its own hand in the run."""

    @property
    def id(self) -> str:
        """Unique among the workers of all runs that are alive."""
        ...

    @property
    def stopping(self) -> bool:
        """Whether nothing new should be begun: the job of another worker failed, or this worker's place is gone."""
        ...

    def call(self, task: Task[T], relay: Say, limits: Limits) -> T:
        """Run a task and return its result. What it raises is raised here.

        Args:
            task: gets a function that sends a message to ``relay`` and returns its answer.
            relay: called in this thread with each message; what it raises is raised here, and gives the task up.
            limits: what the task may use.

        Raises:
            WorkerLost: the process of the task was killed from outside, crashed, hangs, or lost its GPU.
            WorkerUnfit: what the worker was to compute on is not there.
            TrialFailed: it passed a limit: ``time-out`` or ``out-of-memory``.
            SweepStopped: no process can be started.
        """
        ...


Job = Callable[[Worker], None]
"""One worker's loop. Returns when nothing is left to do."""


def is_lost_gpu(error: BaseException) -> bool:
    """Whether a task says that its process lost what it computes on: whatever it computes from now on fails too."""
    return isinstance(error, TrialFailed) and error.failure == "lost-worker"


def first_of(raised: Sequence[BaseException]) -> BaseException:
    """The first exception of several jobs; what else went wrong is noted on it."""
    first, *others = raised
    for other in others:
        if str(other) != str(first):
            first.add_note(f"and in another worker: {type(other).__name__}: {other}")
    return first


class Tell(Protocol):
    """Told in words what happens to workers."""

    def __call__(self, text: str, severity: str = "info") -> None:
        """Tell."""


def silent(text: str, severity: str = "info") -> None:
    """Tell nobody."""


class Workers(abc.ABC):
    """Runs one job on n workers and waits for all of them.

    What a backend holds to:

    - Each worker runs the job once, with an id of its own. Jobs may run at the same time, in threads of this process;
      what they hand to `Worker.call` may run in another process. Workers may come and go while `run` lasts; one whose
      place is gone says so by `Worker.stopping`.
    - `run` returns when every job has returned. An exception of a job ends `run` with that exception, after the other
      workers have come to an end (they see `Worker.stopping`); of several the first counts, the others are noted on it.
    - KeyboardInterrupt in the thread of `run` gives up all tasks at once, reaches every job as KeyboardInterrupt from
      `Worker.call`, and ends `run`.
    - A worker whose job raises `WorkerUnfit` is given up, and the job is run once more on the others: what it held may
      have come back after they had ended. Where none is left, `run` ends with SweepStopped.
    - A process that dies, hangs or uses too much harms its own task only.
    - A backend starts nothing before `run`, keeps processes warm between two runs, and leaves nothing behind after
      `close`: no thread, process or temporary file. No process outlives this one, however it ends.

    How work is shared out is the job's matter: workers pull trials, none is handed out here.
    """

    @abc.abstractmethod
    def run(self, job: Job) -> None:
        """Run ``job(worker)`` on every worker and wait."""

    @abc.abstractmethod
    def close(self) -> None:
        """End what is kept warm."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
