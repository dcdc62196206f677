"""The places that a sweep holds on a cluster: in use by a worker, or idle until the next one wants it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from forge_sweep.errors import SweepStopped
from forge_sweep.workers.base import Plan, WorkerLost
from forge_sweep.workers.ray.cluster import Cluster, no_place
from forge_sweep.workers.ray.place import Place

START_ATTEMPTS = 3
"""A process that dies that often while it starts is no accident."""

PATIENCE_S = 10.0
"""Time without any place after which it is said."""

Tell = Callable[[str], None]
Asks = Callable[[], bool]


class Pool:
    """Hands out places. Threads share it.

    Args:
        cluster: where they are.
        plan: what each process gets.
        wait_s: time without any place after which the sweep stops.
        tell: told why a sweep waits.
    """

    def __init__(self, cluster: Cluster, plan: Plan, wait_s: float, tell: Tell) -> None:
        self.cluster = cluster
        self.plan = plan
        self.wait_s = wait_s
        self.tell = tell
        self._held: set[Place] = set()
        self._idle: list[Place] = []
        self._lock = threading.Lock()
        self._without_since = time.monotonic()
        self._said = False

    def begin(self) -> None:
        """Time without a place counts from here."""
        self._without_since, self._said = time.monotonic(), False

    def get(self, wanted: Asks, given_up: Asks) -> Place | None:
        """A place that waits for tasks or, once there is room, a new one.

        Returns:
            None where none is wanted any more.

        Raises:
            KeyboardInterrupt: the run is given up.
            SweepStopped: no process can be started, or there was no place for a single trial for too long.
        """
        found: Place | None = None
        asked = _Asked(lambda: Place(self.cluster, self.plan))
        try:
            while found is None and wanted():
                if given_up():
                    raise KeyboardInterrupt
                found = self._take_idle() or asked.look()
                self._check()
            return found
        finally:
            asked.withdraw_unless(found)
            if found is not None:
                with self._lock:
                    self._held.add(found)

    def _take_idle(self) -> Place | None:
        """What an earlier worker left; what died since is forgotten, at the cost of no trial."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                place = self._idle.pop()
            if place.lives():
                return place
            self.lost(place)

    def give_back(self, place: Place) -> None:
        """It waits for the next worker."""
        with self._lock:
            self._idle.append(place)

    def lost(self, place: Place) -> None:
        """End a place that is not to be used any more."""
        place.kill()
        with self._lock:
            self._held.discard(place)
            if not self._held:
                self.begin()

    def _check(self) -> None:
        """Say that nothing can be trained, and stop where it stays so."""
        if self._held:
            return
        waited = time.monotonic() - self._without_since
        if waited > self.wait_s:
            raise no_place(self.cluster.words(), self.wait_s)
        if waited > PATIENCE_S and not self._said:
            self._said = True
            self.tell(f"waiting up to {self.wait_s:g} s for a place on the Ray cluster: {self.cluster.words()}")

    def close(self) -> None:
        """End all places."""
        for place in self._held:
            place.kill()
        self._held, self._idle = set(), []


class _Asked:
    """A new place that is asked for until it is ready; one that dies on the way is asked for again.

    Args:
        ask: for a place.
    """

    def __init__(self, ask: Callable[[], Place]) -> None:
        self.ask = ask
        self.place: Place | None = None
        self.died = 0

    def look(self) -> Place | None:
        """The place, once it is ready."""
        self.place = self.place or self.ask()
        try:
            return self.place if self.place.look() else None
        except WorkerLost as lost:
            self.withdraw_unless(None)
            self.died += 1
            if self.died == START_ATTEMPTS:
                hint = "Ray's logs on the node say why (/tmp/ray/session_latest/logs)"
                raise SweepStopped(f"no process can be started on the Ray cluster: {lost}", hint=hint) from lost
            return None

    def withdraw_unless(self, wanted: Place | None) -> None:
        """Ask no longer."""
        if self.place is not None and self.place is not wanted:
            self.place.kill()
        self.place = None
