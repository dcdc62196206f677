"""One worker: the calling thread."""

from __future__ import annotations

import os

from forge_sweep.workers.base import Job


class SerialWorkers:
    """Runs the job in the calling thread, where Ctrl-C and debuggers reach it directly."""

    def run(self, job: Job) -> None:
        """Run the job once; see `Workers`."""
        job(f"serial-{os.getpid()}")
