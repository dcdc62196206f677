"""One thread that owns the model; requests that wait for it share its next forward pass."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from forge_sweep.serving.served import Answer, Served, refused_rows

logger = logging.getLogger(__name__)


class Busy(Exception):
    """Too many rows wait."""


@dataclass(eq=False, slots=True)
class Job:
    """Rows of one request.

    Attributes:
        served: the version that answers them, whatever the alias means by then.
        rows: raw numbers, (n, columns).
        future: becomes the `Answer`.
    """

    served: Served
    rows: np.ndarray | Sequence[Sequence[float]]
    future: asyncio.Future[Answer] = field(repr=False)


class Batcher:
    """A queue and the thread behind it.

    A free model starts at once. One that comes back from a pass waits up to ``max_wait_s`` for as many requests as it
    last had at hand: those callers are likely to come again. A single caller therefore never waits.

    Args:
        max_batch: most rows of several requests in a pass; a longer request has its own.
        max_wait_s: see above.
        max_waiting: most rows in the queue.
        observe: is told the requests and rows of each pass.
    """

    def __init__(
        self, *, max_batch: int, max_wait_s: float, max_waiting: int, observe: Callable[[int, int], None]
    ) -> None:
        self.max_batch = max_batch
        self.max_wait_s = max_wait_s
        self.max_waiting = max_waiting
        self.observe = observe
        self.rows_waiting = 0
        self.busy_since: float | None = None
        self._expected = 1
        self._waiting: deque[Job] = deque()
        self._ready = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Begin to answer; to be called in the loop's thread."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether anybody answers."""
        return self._thread.is_alive()

    def submit(self, served: Served, rows: np.ndarray | Sequence[Sequence[float]]) -> asyncio.Future[Answer]:
        """Queue rows, n > 0.

        Raises:
            Busy: too many rows wait.
        """
        future: asyncio.Future[Answer] = self._loop.create_future()
        with self._ready:
            if self._closed or self.rows_waiting + len(rows) > self.max_waiting:
                raise Busy
            self._waiting.append(Job(served, rows, future))
            self.rows_waiting += len(rows)
            if len(self._waiting) in (1, self._expected):
                self._ready.notify()
        return future

    def close(self) -> None:
        """Answer what waits, then end."""
        with self._ready:
            self._closed = True
            self._ready.notify()
        self._thread.join()

    def _run(self) -> None:
        while jobs := self._take():
            self.busy_since = time.monotonic()
            answers = answered(jobs)
            self.busy_since = None
            self.observe(len(jobs), sum(len(job.rows) for job in jobs))
            with self._ready:
                self._expected = len(jobs) + len(self._waiting)
            self._loop.call_soon_threadsafe(deliver, jobs, answers)

    def _take(self) -> list[Job]:
        """The requests of the next pass, all for one version; none once the queue is closed and empty."""
        with self._ready:
            while True:
                while not self._waiting and not self._closed:
                    self._ready.wait()
                self._gather()
                if jobs := self._next():
                    return jobs
                if self._closed:
                    return []

    def _gather(self) -> None:
        """Wait for those who are expected."""
        deadline = time.monotonic() + self.max_wait_s
        while len(self._waiting) < min(self._expected, self.max_batch) and not self._closed:
            if (left := deadline - time.monotonic()) <= 0:
                return
            self._ready.wait(left)

    def _next(self) -> list[Job]:
        """Take the first requests that fit together; those whose callers gave up are left out."""
        jobs, rows = list[Job](), 0
        while self._waiting:
            job = self._waiting[0]
            if jobs and (job.served is not jobs[0].served or rows + len(job.rows) > self.max_batch):
                break
            self._waiting.popleft()
            self.rows_waiting -= len(job.rows)
            if not job.future.cancelled():
                jobs.append(job)
                rows += len(job.rows)
        return jobs


def answered(jobs: Sequence[Job]) -> list[Answer | Exception]:
    """The answers to requests that share a pass; where that fails, it fails for all of them."""
    served = jobs[0].served
    try:
        raw = np.concatenate([np.asarray(job.rows, np.float64) for job in jobs])
        answer = served.answer(raw)
        refused = refused_rows(answer.misfits)
        served.window.add(np.delete(raw, refused, axis=0) if refused else raw)
        return list(parts(answer, [len(job.rows) for job in jobs]))
    except Exception as error:
        logger.error("a forward pass of %s failed: %s", served.label, without_data(error))
        return [error] * len(jobs)


def parts(answer: Answer, lengths: Sequence[int]) -> list[Answer]:
    """The answer of a pass, cut into those of its requests."""
    found, start = [], 0
    plain = not answer.flagged and not answer.misfits
    for length in lengths:
        scores, end = answer.scores[start : start + length], start + length
        if plain:
            found.append(Answer(scores))
        else:
            flagged = tuple((row - start, column) for row, column in answer.flagged if start <= row < end)
            misfits = tuple(
                replace(m, row=m.row - start) for m in answer.misfits if m.row is not None and start <= m.row < end
            )
            found.append(Answer(scores, flagged, misfits))
        start = end
    return found


def deliver(jobs: Sequence[Job], answers: Sequence[Answer | Exception]) -> None:
    """Wake the requests, in the loop's thread."""
    for job, answer in zip(jobs, answers, strict=True):
        if job.future.done():
            continue
        if isinstance(answer, Exception):
            job.future.set_exception(answer)
        else:
            job.future.set_result(answer)


def without_data(error: BaseException) -> str:
    """Where something failed. What it says may quote a row, and is left out."""
    return f"{type(error).__name__}\n{''.join(traceback.format_tb(error.__traceback__))}".rstrip()
