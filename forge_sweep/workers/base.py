"""The contract of a workers backend; `tests/test_workers.py` holds its conformance suite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Job = Callable[[str], None]
"""One worker's loop. Gets the worker's id; returns when nothing is left to do."""


class Workers(Protocol):
    """Runs one job on n workers and waits for all of them.

    What a backend holds to:

    - Each worker calls the job once with an id of its own, unique among the workers of all runs that are alive. A
      backend that replaces a dead worker calls the job again with a new id.
    - Jobs may run at the same time, in threads, processes or on other machines; the job says what it shares. A backend
      that leaves the process needs a job that can be pickled.
    - `run` returns when every job has returned. An exception of a job ends `run` with that exception, after the other
      workers have come to an end; none is swallowed, and none is turned into another.
    - KeyboardInterrupt reaches the jobs of this process and ends `run`.
    - A backend starts nothing before `run` and leaves nothing behind after it: no thread, process or temporary file.

    What the job holds to: it may be killed at any moment and be begun again, so that what counts is stored before it is
    acted on. How work is shared out is the job's matter: workers pull trials from the study, none is handed out here.
    """

    def run(self, job: Job) -> None:
        """Run ``job(worker_id)`` on every worker and wait.

        Args:
            job: one worker's loop.
        """
