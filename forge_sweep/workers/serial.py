"""One worker: the calling thread."""

from __future__ import annotations

import os
from types import TracebackType

from forge_sweep.workers.base import Job, Limits, Say, T, Task


class SerialWorker:
    """The calling thread as a worker: tasks run right here, and no limit is watched from outside."""

    stopping = False

    def __init__(self) -> None:
        self.id = f"serial-{os.getpid()}"

    def call(self, task: Task[T], relay: Say, limits: Limits) -> T:
        """Run the task; see `Worker`."""
        return task(relay)


class SerialWorkers:
    """Runs the job in the calling thread, where Ctrl-C and debuggers reach it directly."""

    def run(self, job: Job) -> None:
        """Run the job once; see `Workers`."""
        job(SerialWorker())

    def close(self) -> None:
        """Nothing is kept."""

    def __enter__(self) -> SerialWorkers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
