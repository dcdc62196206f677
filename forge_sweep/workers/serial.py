"""One worker: the calling thread."""

from __future__ import annotations

import os

from forge_sweep.workers.base import Job, Limits, Say, T, Task, Workers


class SerialWorker:
    """The calling thread as a worker: tasks run right here, and no limit is watched from outside."""

    stopping = False

    def __init__(self) -> None:
        self.id = f"serial-{os.getpid()}"

    def call(self, task: Task[T], relay: Say, limits: Limits) -> T:
        """Run the task; see `Worker`."""
        return task(relay)


class SerialWorkers(Workers):
    """Runs the job in the calling thread, where Ctrl-C and debuggers reach it directly."""

    def run(self, job: Job) -> None:
        """Run the job once."""
        job(SerialWorker())

    def close(self) -> None:
        """Nothing is kept."""
