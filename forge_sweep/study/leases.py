"""Leases: which processes run trials of a study, and whose lease expired.

A process in the same place (machine, boot, process namespace) as the observer is dead once it is gone. The lease of any
other, which counts its heartbeats, expires once an observer that could read the database saw none for `LEASE_S` of its
own time. No two clocks are compared, and time in which the database did not answer does not count.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import platform
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from forge_sweep.study.database import Database

HEARTBEAT_S = 10.0  # between two heartbeats of a process
LEASE_S = 60.0  # how long an observer must see no heartbeat before a lease expires
RECORD = "forge.owner."  # beginning of the study's attributes that hold the owners' records; the rest is the owner's id

Role = Literal["run", "worker"]

_log = logging.getLogger("forge_sweep")
_living: set[str] = set()  # ids of the owners that this process is, between `begin` and `end`


@dataclass(frozen=True)
class Lease:
    """The record of a process that runs trials, as the study holds it."""

    id: str
    role: Role  # ``run`` for the process that runs the sweep to its end, ``worker`` for one that only runs trials
    host: str
    pid: int
    started: str  # when the process began, in whatever unit its system counts
    place: str  # names machine, boot and process namespace; "" where they cannot be known
    heartbeats: int = 0  # how many it sent; grows while it lives
    ended: str = ""  # how it ended, in words

    @classmethod
    def here(cls, role: Role) -> Lease:
        """A new one for this process."""
        host, pid = socket.gethostname(), os.getpid()
        started = _start_of(pid) or ""
        return cls(f"{host}-{pid}-{uuid.uuid4().hex[:8]}", role, host, pid, started, place_of_this_process())

    @classmethod
    def read(cls, id: str, values: Mapping[str, Any]) -> Lease:
        """What `values` gave."""
        return cls(id=id, heartbeats=values["beat"], **{key: values[key] for key in values if key != "beat"})

    def values(self) -> dict[str, Any]:
        """JSON values that `read` reads."""
        return {"beat" if key == "heartbeats" else key: value for key, value in asdict(self).items() if key != "id"}

    @property
    def words(self) -> str:
        """Names the process for people."""
        return f"process {self.pid} on host {self.host}"

    def alive_here(self) -> bool | None:
        """Whether it lives, as far as that can be seen from here; None where only its heartbeat can tell."""
        if self.ended:
            return False
        if not self.place or self.place != place_of_this_process():
            return None
        if self.pid == os.getpid() and self.started == (_start_of(self.pid) or ""):
            return self.id in _living  # another study object of this process, or one that was dropped
        return _start_of(self.pid) == self.started


@functools.cache
def place_of_this_process() -> str:
    """Names what a process id has its meaning in: machine, boot and process namespace."""
    host = socket.gethostname()
    if platform.system() != "Linux":
        return f"{host}/{platform.system()}/{uuid.getnode():x}"
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{host}/{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _start_of(pid: int) -> str | None:
    """When a process began; None where there is none (one that ended and was not waited for is none)."""
    if platform.system() == "Linux":
        try:
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return None
        return None if fields[0] in (b"Z", b"X") else fields[19].decode()
    import psutil

    try:
        return str(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


@dataclass
class Observation:
    """What an observer knows of the heartbeats of one process."""

    heartbeats: int
    unchanged_s: float = 0.0  # how long there was no other while the database could be read
    moved: bool = False  # whether there ever was another


class Leases:
    """The leases of one study, seen from this process, which holds one of them from `begin` on.

    Attributes:
        me: the record of this process, once it is one of them.
        superseded_by: who runs the sweep in its place, in words, where its lease expired; else "".
    """

    def __init__(self, storage: Database, study_id: int, name: str, locks: Path) -> None:
        self.me: Lease | None = None
        self.superseded_by = ""
        self._storage = storage
        self._study_id = study_id
        self._name = name
        self._locks = locks
        self._observations: dict[str, Observation] = {}
        self._earlier: set[str] = set()  # coordinators that were dead when this process became one
        self._looked: float | None = None
        self._renewed = time.monotonic()
        self._lapsed = False  # once it sent no heartbeat for so long that its trials may have been taken
        self._lock = threading.RLock()
        self._here = threading.local()
        self._over = threading.Event()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Be the only process that hands out or takes back trials of the study; nested blocks of a thread are one."""
        if getattr(self._here, "in_turn", False):
            yield
            return
        with self._storage.turn(f".{self._name}.turn", self._locks):
            self._here.in_turn = True
            try:
                yield
            finally:
                self._here.in_turn = False

    # Being one of them.

    def begin(self, role: Role) -> None:
        """Keep a record of this process with the study; the trials that it begins from now on carry its id."""
        self.me = Lease.here(role)
        self._write(self.me)
        self._storage.owner = self.me.id
        self._renewed, self._lapsed = time.monotonic(), False
        self._storage.surely_alive = self.surely_alive
        self._storage.exclusive = self.turn

    def coordinate(self, alone: bool) -> Lease | None:
        """Become the process that runs the sweep, unless another may (no other where ``alone``), which is returned."""
        with self.turn():
            others = self._coordinators(self.observe())
            rival = next((owner for owner in others if not alone and self.is_alive(owner) is not False), None)
            if rival is None:
                for owner in others:
                    self.mark_ended(owner, "superseded")
                self._earlier = {owner.id for owner in others}
                self.begin("run")
            return rival

    @contextlib.contextmanager
    def renewing(self) -> Iterator[None]:
        """Show in the block that this process lives, and watch the others."""
        assert self.me is not None
        _living.add(self.me.id)
        self._over.clear()
        thread = threading.Thread(target=self._renew_on, name="forge-sweep-heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()
            _living.discard(self.me.id)
            if not self.superseded_by:
                with self._tolerating("the end of this process could not be recorded: %s"):
                    self._write(replace(self.me, ended="in order"))

    def _renew_on(self) -> None:
        """A heartbeat that cannot be written is tried again with the next one: an outage must not look like a death."""
        while not self._over.wait(HEARTBEAT_S):
            with self._tolerating("no heartbeat: %s"):
                self.renew()

    @contextlib.contextmanager
    def _tolerating(self, text: str) -> Iterator[None]:
        try:
            with self._storage.impatient():
                yield
        except Exception as error:
            _log.debug(text, error)

    def renew(self) -> None:
        """Show once that this process lives, and look at the others."""
        with self._lock:
            assert self.me is not None
            found = self.observe()
            if self.me.role == "run":
                self.superseded_by = next((other.words for other in self._coordinators(found)), "")
            if not self.superseded_by:
                self._lapsed = self._lapsed or not self.is_recent()
                self.me = replace(self.me, heartbeats=self.me.heartbeats + 1)
                self._write(self.me)
                self._renewed = time.monotonic()

    def _coordinators(self, found: Mapping[str, Lease]) -> list[Lease]:
        """Others that run the sweep, but for those that this process took over from."""
        mine = {*self._earlier, "" if self.me is None else self.me.id}
        return [owner for owner in found.values() if owner.role == "run" and not owner.ended and owner.id not in mine]

    def is_recent(self) -> bool:
        """Whether the last heartbeat of this process is recent."""
        return time.monotonic() - self._renewed < LEASE_S / 2

    def surely_alive(self) -> bool:
        """Whether no observer can have taken this process for dead, and with it a trial, at any time since it began.

        After a pause (SIGSTOP, a suspended machine) the next heartbeat comes before the trial is checked: being alive
        does not give back what was taken in between.
        """
        return self.is_recent() and not self._lapsed

    # Watching the others.

    def records(self) -> dict[str, Lease]:
        """Those that the study holds, by id."""
        attrs = self._storage.get_study_user_attrs(self._study_id)
        ids = {key.removeprefix(RECORD): values for key, values in attrs.items() if key.startswith(RECORD) and values}
        return {id: Lease.read(id, values) for id, values in ids.items()}

    def observe(self) -> dict[str, Lease]:
        """Read the records and take in their heartbeats since the last time."""
        with self._lock:
            found = self.records()
            now = time.monotonic()
            passed = 0.0 if self._looked is None else min(now - self._looked, 2 * HEARTBEAT_S)
            self._looked = now
            for owner in found.values():
                seen = self._observations.get(owner.id)
                if seen is None or seen.heartbeats != owner.heartbeats:
                    self._observations[owner.id] = Observation(owner.heartbeats, moved=seen is not None)
                else:
                    seen.unchanged_s += passed
            return found

    def observe_anew(self) -> None:
        """Forget what was seen: only what is seen from now on shows who lives."""
        with self._lock:
            self._observations.clear()

    def is_dead(self, id: str, found: Mapping[str, Lease]) -> bool:
        """Whether an owner is known to be dead; one without a record left in order."""
        owner = found.get(id)
        return owner is None or self.is_alive(owner) is False

    def is_alive(self, owner: Lease) -> bool | None:
        """Whether an owner lives; None while that is not known."""
        fate = owner.alive_here()
        if fate is not None:
            return fate
        seen = self._observations.get(owner.id)
        if seen is not None and seen.unchanged_s >= LEASE_S:
            return False
        return True if seen is not None and seen.moved else None

    def silent_s(self, owner: Lease) -> float:
        """Seconds since the last heartbeat of a process, as far as this process watched."""
        seen = self._observations.get(owner.id)
        return 0.0 if seen is None else seen.unchanged_s

    def mark_ended(self, owner: Lease, why: str) -> None:
        """Record with the study that a process ended, so that nobody has to watch it any more."""
        if not owner.ended:
            self._write(replace(owner, ended=why))

    def clean(self, referred: set[str]) -> None:
        """Remove the leases of processes that ended, except those that a trial refers to."""
        for owner in self.records().values():
            if owner.ended and owner.id not in referred:
                self._storage.set_study_user_attr(self._study_id, f"{RECORD}{owner.id}", None)  # Optuna removes none
                self._observations.pop(owner.id, None)

    def _write(self, owner: Lease) -> None:
        self._storage.set_study_user_attr(self._study_id, f"{RECORD}{owner.id}", owner.values())
