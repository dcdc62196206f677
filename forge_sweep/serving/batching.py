"""One thread that owns the model; requests that wait for it share its next forward pass."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from forge_sweep.preprocessing import NO_TENSORS
from forge_sweep.serving.predict import Answer, Served, refused_rows

logger = logging.getLogger(__name__)


class Busy(Exception):
    """Too many rows wait."""


@dataclass(eq=False, slots=True)
class _Job:
    """Raw rows (n, columns) and arrays (n, ...) of a request, and the version that answers, though old by then."""

    served: Served
    rows: np.ndarray | Sequence[Sequence[float]]
    tensors: Mapping[str, np.ndarray]
    future: asyncio.Future[Answer] = field(repr=False)


class Batcher:
    """A queue and the thread behind it, which computes up to ``max_batch`` rows of several requests in one pass.

    A free model starts at once. After a pass it waits up to ``max_wait_s`` for as many requests as it last had: those
    callers are likely to come again. A single caller therefore never waits. ``observe`` is told the requests and rows
    of each pass.
    """

    def __init__(
        self, *, max_batch: int, max_wait_s: float, max_waiting: int, observe: Callable[[int, int], None]
    ) -> None:
        self.max_batch, self.max_wait_s, self.max_waiting = max_batch, max_wait_s, max_waiting
        self.observe = observe
        self.rows_waiting = 0
        self.busy_since: float | None = None
        self._expected = 1
        self._waiting: deque[_Job] = deque()
        self._ready = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Begin to answer; to be called in the loop's thread."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the model's thread is alive."""
        return self._thread.is_alive()

    def submit(
        self,
        served: Served,
        rows: np.ndarray | Sequence[Sequence[float]],
        tensors: Mapping[str, np.ndarray] = NO_TENSORS,
    ) -> asyncio.Future[Answer]:
        """Queue rows, n > 0, with their arrays by column, or raise Busy."""
        future: asyncio.Future[Answer] = self._loop.create_future()
        with self._ready:
            if self._closed or self.rows_waiting + len(rows) > self.max_waiting:
                raise Busy
            self._waiting.append(_Job(served, rows, tensors, future))
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
            answers = _answered(jobs)
            self.busy_since = None
            self.observe(len(jobs), sum(len(job.rows) for job in jobs))
            with self._ready:
                self._expected = len(jobs) + len(self._waiting)
            self._loop.call_soon_threadsafe(_deliver, jobs, answers)

    def _take(self) -> list[_Job]:
        """The requests of the next pass, all for one version; none once the queue is closed and empty."""
        with self._ready:
            while True:
                while not self._waiting and not self._closed:
                    self._ready.wait()
                deadline = time.monotonic() + self.max_wait_s
                while len(self._waiting) < min(self._expected, self.max_batch) and not self._closed:
                    if (left := deadline - time.monotonic()) <= 0:
                        break
                    self._ready.wait(left)
                if (jobs := self._first_that_fit()) or self._closed:
                    return jobs

    def _first_that_fit(self) -> list[_Job]:
        """Take the first requests that fit together; those whose callers gave up are left out."""
        jobs, rows = list[_Job](), 0
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


def _answered(jobs: Sequence[_Job]) -> list[Answer | Exception]:
    """The answers to requests that share a pass; if it fails, all of them fail."""
    served = jobs[0].served
    try:
        raw = np.concatenate([np.asarray(job.rows, np.float64) for job in jobs])
        tensors = {name: np.concatenate([job.tensors[name] for job in jobs]) for name in jobs[0].tensors}
        answer = served.answer(raw, tensors)
        refused = refused_rows(answer.misfits)
        served.window.add(np.delete(raw, refused, axis=0) if refused else raw)
        found, end = list[Answer | Exception](), 0
        for job in jobs:
            start, end = end, end + len(job.rows)
            flagged = tuple((row - start, column) for row, column in answer.flagged if start <= row < end)
            misfits = tuple(
                replace(m, row=m.row - start) for m in answer.misfits if m.row is not None and start <= m.row < end
            )
            found.append(Answer(answer.scores[start:end], flagged, misfits))
        return found
    except Exception as error:
        logger.error("a forward pass of %s failed: %s", served.label, without_data(error))
        return [error] * len(jobs)


def _deliver(jobs: Sequence[_Job], answers: Sequence[Answer | Exception]) -> None:
    for job, answer in zip(jobs, answers, strict=True):
        if job.future.done():
            continue
        if isinstance(answer, Exception):
            job.future.set_exception(answer)
        else:
            job.future.set_result(answer)


def without_data(error: BaseException) -> str:
    """Where something failed, without its message, which may quote a row."""
    return f"{type(error).__name__}\n{''.join(traceback.format_tb(error.__traceback__))}".rstrip()
