"""Workers on a Ray cluster: each is a thread of this process and an actor on some node that it hands its tasks to.

What needs the study, the tracker or the user stays here, as with `ProcessWorkers`. A worker lives as long as its place:
where that dies, the job ends (`Worker.stopping`), and a new worker begins once there is a place again.
"""

from __future__ import annotations

import os
import threading
import uuid

from forge_sweep.experiment import WorkersSpec
from forge_sweep.workers.base import (
    Job,
    Limits,
    Plan,
    Say,
    T,
    Task,
    Tell,
    WorkerLost,
    Workers,
    first_of,
    is_lost_gpu,
    silent,
)
from forge_sweep.workers.ray.places import Cluster, Place, Pool

LOOK_AT_NODES_S = 3.0
"""How often the number of workers is compared with the size of the cluster."""


class RayWorker:
    """One worker, for as long as the place lives where its tasks run."""

    def __init__(self, run: _Run, place: Place) -> None:
        self.id = f"ray-{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self.place: Place | None = place
        self._run = run

    @property
    def stopping(self) -> bool:
        """See `Worker`."""
        return self._run.stop.is_set() or self.place is None

    def call(self, task: Task[T], relay: Say, limits: Limits) -> T:
        """Run the task at this worker's place, or at a new one where that was lost; see `Worker`."""
        pool, given_up = self._run.pool, self._run.given_up.is_set
        self.place = place = self.place or pool.get(lambda: True, given_up)
        assert place is not None  # it is wanted for ever
        try:
            kind, value = place.call(task, relay, limits, given_up)
            if kind == "raised" and is_lost_gpu(value):
                raise WorkerLost(str(value)) from value
        except BaseException:
            self.place = None
            pool.lost(place)
            raise
        if kind == "raised":
            raise value
        result: T = value
        return result


class _Run:
    """One `RayWorkers.run`: the threads that are alive, and what they share."""

    def __init__(self, pool: Pool, job: Job) -> None:
        self.pool = pool
        self.job = job
        self.stop = threading.Event()
        self.given_up = threading.Event()
        self.exhausted = threading.Event()
        self.raised: list[BaseException] = []
        self.wanted = 0
        self._threads = 0
        self._changed = threading.Condition()

    def grow(self, wanted: int) -> None:
        """Start the threads that are missing, unless there is nothing left to do for them."""
        with self._changed:
            self.wanted = wanted
            missing = 0 if self.stop.is_set() or self.exhausted.is_set() else wanted - self._threads
            self._threads += max(0, missing)
        for _ in range(missing):
            threading.Thread(target=self._work, name="ray-worker", daemon=True).start()

    def await_end(self, timeout_s: float | None = None) -> bool:
        """Whether all threads have ended."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._threads, timeout_s)

    def _work(self) -> None:
        """One worker after the other, as long as there is work and a place."""
        try:
            while (place := self.pool.get(self._wants_place, self.given_up.is_set)) is not None:
                worker = RayWorker(self, place)
                try:
                    self.job(worker)
                finally:
                    if worker.place is not None:
                        self.pool.give_back(worker.place)
                if worker.place is not None:  # it found nothing left to do, and did not just stop for its place's sake
                    self.exhausted.set()
                    break
        except BaseException as error:
            self.raised.append(error)
            self.stop.set()
        finally:
            with self._changed:
                self._threads -= 1
                self._changed.notify_all()

    def _wants_place(self) -> bool:
        """Not where the run is over, nor where the cluster has become too small for all threads."""
        return not self.stop.is_set() and self._threads <= max(1, self.wanted)


class RayWorkers(Workers):
    """Runs the job in one thread per place on a Ray cluster.

    Without a number in ``spec`` there are as many as the cluster has room for, followed while it grows and shrinks, and
    never more than ``plan.n``.
    """

    def __init__(self, spec: WorkersSpec, plan: Plan, tell: Tell = silent) -> None:
        self.spec = spec
        self.plan = plan
        self.tell = tell
        self.cluster = Cluster(spec)
        self.pool = Pool(self.cluster, plan, spec.wait_s, tell)
        self._connected = False
        self._room = 0

    def run(self, job: Job) -> None:
        """Run the job on every worker."""
        if not self._connected:
            self.cluster.connect()
            self._connected = True
            self.tell(f"Ray: {self.cluster.words()}")
            if gpus := self.cluster.idle_gpus():
                self.tell(f"the cluster has {gpus:g} GPU, and no trial asks for one: set workers.gpus to use them")
        self.pool.begin()
        run = _Run(self.pool, job)
        try:
            run.grow(self._wanted())
            while not run.await_end(LOOK_AT_NODES_S):
                run.grow(self._wanted())
        except BaseException:  # the second Ctrl-C, most likely
            run.given_up.set()
            run.stop.set()
            run.await_end()
            raise
        if run.raised:
            raise first_of(run.raised)

    def _wanted(self) -> int:
        """How many workers there are to be. One at least waits for room: a cluster that grows on demand sees it."""
        if self.spec.n is not None:
            return self.spec.n
        room = self.cluster.holds()
        if self._room and room != self._room:
            self.tell(f"the Ray cluster has room for {room} trial{'s' if room != 1 else ''} now")
        self._room = room
        return max(1, min(room, self.plan.n))

    def close(self) -> None:
        """End all processes, and a local cluster."""
        self.pool.close()
        self.cluster.close()
        self._connected = False
