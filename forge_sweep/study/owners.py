"""Which processes run trials of a study, and which of them are dead.

An owner is a process that runs trials of a study; it keeps a record of itself with the study. One in the same place
(machine, boot, process namespace) as the observer is dead once its process is gone. Any other writes a growing number,
its beat, every `BEAT_S`; it is dead once an observer that could read the database saw that number stand still for
`LEASE_S` of its own time. No two clocks are compared, and time in which the database did not answer does not count.
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
from typing import Any, Literal

from forge_sweep.study.database import Database

BEAT_S = 10.0
"""Between two beats of an owner."""

LEASE_S = 60.0
"""How long an observer must see a beat stand still before it takes the owner for dead."""

RECORD = "forge.owner."
"""Beginning of the study's attributes that hold the owners' records; the rest is the owner's id."""

Role = Literal["run", "worker"]

_log = logging.getLogger("forge_sweep")
_living: set[str] = set()  # ids of the owners that this process is, between `begin` and `end`


@dataclass(frozen=True)
class Owner:
    """The record of a process that runs trials.

    Attributes:
        id: unique.
        role: ``run`` for the process that carries the sweep to its end, ``worker`` for one that only runs trials.
        host: name of its machine.
        pid: its process id there.
        started: when the process began, in whatever unit its system counts.
        place: names machine, boot and process namespace; "" where they cannot be known.
        beat: grows while it lives.
        ended: "" while it runs; else how it ended, in words.
    """

    id: str
    role: Role
    host: str
    pid: int
    started: str
    place: str
    beat: int = 0
    ended: str = ""

    @classmethod
    def here(cls, role: Role) -> Owner:
        """A record for this process."""
        host, pid = socket.gethostname(), os.getpid()
        started = _start_of(pid) or ""
        return cls(f"{host}-{pid}-{uuid.uuid4().hex[:8]}", role, host, pid, started, place_of_this_process())

    @classmethod
    def read(cls, id: str, values: Mapping[str, Any]) -> Owner:
        """The record that a study holds."""
        return cls(id=id, **values)

    def values(self) -> dict[str, Any]:
        """As the study holds it."""
        return {name: value for name, value in asdict(self).items() if name != "id"}

    @property
    def words(self) -> str:
        """For people."""
        return f"process {self.pid} on host {self.host}"

    def fate(self) -> bool | None:
        """Whether it lives, as far as that can be seen from here; None where only its beat can tell."""
        if self.ended:
            return False
        if not self.place or self.place != place_of_this_process():
            return None
        if self.pid == os.getpid() and self.started == (_start_of(self.pid) or ""):
            return self.id in _living  # another study object of this process, or one that was dropped
        return _start_of(self.pid) == self.started


def place_of_this_process() -> str:
    """Names what a process id has its meaning in: machine, boot and process namespace."""
    return _place()


@functools.cache
def _place() -> str:
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
class Sighting:
    """What an observer knows of one beat.

    Attributes:
        beat: the last one seen.
        still_s: how long it stood still while the database could be read.
        moved: whether it was ever seen to grow.
    """

    beat: int
    still_s: float = 0.0
    moved: bool = False


class Owners:
    """The owners of one study, seen from this process; one of them, from `begin` to `end`.

    Args:
        storage: the database.
        study_id: of the study in it.
        name: of the study.
        locks: folder of the lock files, where the database is SQLite.

    Attributes:
        me: the record of this process, once it is one of them.
        deposed: who carries the sweep in its place, in words, where it was taken for dead; else "".
    """

    def __init__(self, storage: Database, study_id: int, name: str, locks: Path) -> None:
        self.me: Owner | None = None
        self.deposed = ""
        self._storage = storage
        self._study_id = study_id
        self._name = name
        self._locks = locks
        self._sightings: dict[str, Sighting] = {}
        self._earlier: set[str] = set()  # coordinators that were dead when this process became one
        self._looked: float | None = None
        self._beaten = time.monotonic()
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._heart: threading.Thread | None = None

    def turn(self) -> contextlib.AbstractContextManager[None]:
        """Be the only process that hands out or takes back trials of the study."""
        return self._storage.turn(f".{self._name}.turn", self._locks)

    # Being one of them.

    def begin(self, role: Role) -> None:
        """Keep a record of this process with the study, and trials from now on with its id."""
        self.me = Owner.here(role)
        self._write(self.me)
        self._storage.owner = self.me.id
        self._beaten = time.monotonic()
        self._storage.surely_alive = self.surely_alive

    def coordinate(self, alone: bool) -> Owner | None:
        """Become the process that carries the sweep, unless another one may do so; that one is returned.

        Args:
            alone: whether a lock that this process holds shows that there is no other.
        """
        with self.turn():
            found = self.look()
            others = self._coordinators(found)
            rival = next((owner for owner in others if not alone and self.lives(owner) is not False), None)
            if rival is None:
                for owner in others:
                    self.bury(owner, "another process carries the sweep")
                self._earlier = {owner.id for owner in others}
                self.begin("run")
        return rival

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Show in the block that this process lives, and watch the others."""
        assert self.me is not None
        _living.add(self.me.id)
        self._over.clear()
        self._heart = threading.Thread(target=self._beat_on, name="forge-sweep-beat", daemon=True)
        self._heart.start()
        try:
            yield
        finally:
            self._over.set()
            self._heart.join()
            _living.discard(self.me.id)
            self._end()

    def _end(self) -> None:
        """Leave word that this process ended in order, if the database still answers."""
        assert self.me is not None
        if self.deposed:
            return
        try:
            with self._storage.impatient():
                self._write(replace(self.me, ended="in order"))
        except Exception as error:
            _log.debug("the end of this process could not be noted: %s", error)

    def _beat_on(self) -> None:
        """A beat that cannot be written is tried again with the next one: an outage must not look like a death."""
        while not self._over.wait(BEAT_S):
            try:
                with self._storage.impatient():
                    self.beat()
            except Exception as error:
                _log.debug("no beat: %s", error)

    def beat(self) -> None:
        """Show once that this process lives, and look at the others."""
        with self._lock:
            assert self.me is not None
            found = self.look()
            if self.me.role == "run":
                self.deposed = next((other.words for other in self._coordinators(found)), "")
            if not self.deposed:
                self.me = replace(self.me, beat=self.me.beat + 1)
                self._write(self.me)
                self._beaten = time.monotonic()

    def _coordinators(self, found: Mapping[str, Owner]) -> list[Owner]:
        """Others that carry the sweep, but for those that this process took over from."""
        mine = {*self._earlier, "" if self.me is None else self.me.id}
        return [owner for owner in found.values() if owner.role == "run" and not owner.ended and owner.id not in mine]

    def surely_alive(self) -> bool:
        """Whether no observer can have taken this process for dead: it was heard not long ago."""
        return time.monotonic() - self._beaten < LEASE_S / 2

    # Watching the others.

    def records(self) -> dict[str, Owner]:
        """The records that the study holds, by id."""
        attrs = self._storage.get_study_user_attrs(self._study_id)
        ids = {key.removeprefix(RECORD): values for key, values in attrs.items() if key.startswith(RECORD)}
        return {id: Owner.read(id, values) for id, values in ids.items()}

    def look(self) -> dict[str, Owner]:
        """Read the records and take in how their beats went on since the last look."""
        with self._lock:
            found = self.records()
            now = time.monotonic()
            passed = 0.0 if self._looked is None else min(now - self._looked, 2 * BEAT_S)
            self._looked = now
            for owner in found.values():
                seen = self._sightings.get(owner.id)
                if seen is None or seen.beat != owner.beat:
                    self._sightings[owner.id] = Sighting(owner.beat, moved=seen is not None)
                else:
                    seen.still_s += passed
            return found

    def watch_anew(self) -> None:
        """Forget what was seen: only what is seen from now on shows who lives."""
        with self._lock:
            self._sightings.clear()

    def is_dead(self, id: str, found: Mapping[str, Owner]) -> bool:
        """Whether an owner is known to be dead; one without a record left in order."""
        owner = found.get(id)
        return owner is None or self.lives(owner) is False

    def lives(self, owner: Owner) -> bool | None:
        """Whether an owner lives; None while that is not known."""
        fate = owner.fate()
        if fate is not None:
            return fate
        seen = self._sightings.get(owner.id)
        if seen is not None and seen.still_s >= LEASE_S:
            return False
        return True if seen is not None and seen.moved else None

    def heard_s(self, owner: Owner) -> float:
        """Seconds since an owner was heard, as far as this process watched."""
        seen = self._sightings.get(owner.id)
        return 0.0 if seen is None else seen.still_s

    def bury(self, owner: Owner, why: str) -> None:
        """Note with the study that an owner ended, so that nobody has to watch it any more."""
        if not owner.ended:
            self._write(replace(owner, ended=why))

    def clean(self, referred: set[str]) -> None:
        """Remove the records of owners that ended, except those that a trial refers to."""
        for owner in self.records().values():
            if owner.ended and owner.id not in referred:
                self._storage.drop_study_user_attr(self._study_id, f"{RECORD}{owner.id}")
                self._sightings.pop(owner.id, None)

    def _write(self, owner: Owner) -> None:
        self._storage.set_study_user_attr(self._study_id, f"{RECORD}{owner.id}", owner.values())
