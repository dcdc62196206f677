"""A Ray cluster as places for tasks: the connection, and actors as seen from the driver, in use by a worker or idle."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import pickle
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray
from ray import exceptions

from forge_sweep.errors import InputError, SweepStopped, TrialFailed
from forge_sweep.experiment import WorkersSpec
from forge_sweep.workers.base import (
    SHARING_A_GPU,
    START_ATTEMPTS,
    Limits,
    Plan,
    Say,
    Task,
    Tell,
    WorkerLost,
    WorkerUnfit,
)
from forge_sweep.workers.processes import LOOK_EVERY_S, too_late, variables
from forge_sweep.workers.ray.actor import PULSE_S, About, Actor, dumps, versions

log = logging.getLogger(__name__)

CONNECT_S = 10.0
"""Time in which an address has to answer; Ray itself tries for minutes."""

LOOPBACK = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"
"""Ray replaces 127.0.0.1 by an outside address; Linux has the whole of 127.0.0.0/8."""


class Cluster:
    """A Ray cluster, as a place for trials."""

    def __init__(self, spec: WorkersSpec) -> None:
        self.spec = spec
        self.cpus = spec.cpus or spec.threads or 1
        self.gpus = spec.gpus or 0.0
        self._ours = False
        self._stdout: Any = None  # as it was before the connection
        self._held = 0

    def connect(self) -> None:
        """Connect, or start a local Ray; nothing to do where that is done, by the user too.

        Raises:
            InputError: no cluster answers at the address, or the user's connection is to another one.
        """
        if ray.is_initialized():
            here = ray.get_runtime_context().gcs_address
            if self.spec.address not in (None, "auto", "local", here):
                raise InputError(
                    f"workers.address = {self.spec.address!r}: this process is connected to {here} already",
                    hint="leave workers.address out, or call ray.shutdown() before",
                )
            return
        address = self.spec.address or os.environ.get("RAY_ADDRESS") or "local"
        common = {"log_to_driver": False, "logging_level": logging.ERROR}
        statistics = os.environ.get("RAY_USAGE_STATS_ENABLED", "0")
        before = set(threading.enumerate())
        with _signals(), variables({"RAY_USAGE_STATS_ENABLED": statistics}):
            if address == "local":
                cpus = max(cores(), self.cpus * (self.spec.n or 1))  # who asks for more processes than cores gets them
                more = {"num_cpus": cpus, "include_dashboard": False, "_node_ip_address": LOOPBACK}
                ray.init(address="local", **more, **common)  # without an address a stale file decides where to
            else:
                _connect_to(address, common)
        self._ours = True
        self._stdout = sys.stdout
        sys.stdout = _Stdout(sys.stdout, set(threading.enumerate()) - before)

    def close(self) -> None:
        """Leave the cluster; a local one ends."""
        if self._ours and ray.is_initialized():
            if ours := isinstance(sys.stdout, _Stdout):
                sys.stdout.of_ray.add(threading.current_thread())  # it prints what it held back as repeated
            with _signals():
                ray.shutdown()
            if ours:
                sys.stdout = self._stdout
        self._ours = False

    def holds(self) -> int:
        """How many trials an otherwise empty cluster has room for; the last number while Ray does not answer."""
        with contextlib.suppress(exceptions.RayError):
            self._held = sum(fits(node, self.cpus, self.gpus) for node in nodes())
        return self._held

    def words(self) -> str:
        """What was asked for and what there is."""
        request = {"CPU": float(self.cpus), **({"GPU": self.gpus} if self.gpus else {})}

        def named(resources: Mapping[str, float]) -> str:
            return ", ".join(f"{resources.get(name, 0.0):g} {name}" for name in request)

        found = [named(node) for node in nodes()]
        return (
            f"each trial asks for {named(request)}; {len(found)} node(s): {'; '.join(found) or 'none'}; "
            f"free in all: {named(ray.available_resources())}"
        )

    def idle_gpus(self) -> float:
        """GPUs of the cluster, where trials ask for none."""
        return 0.0 if self.gpus else sum(node.get("GPU", 0.0) for node in nodes())


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _connect_to(address: str, options: Mapping[str, Any]) -> None:
    if "://" in address:
        hint = 'run forge-sweep on a machine of the cluster, with workers.address = "auto"'
        raise InputError(f"workers.address = {address!r}: a Ray client is not supported", hint=hint)
    try:
        host, _, port = address.rpartition(":")
        if host and port.isdecimal():  # other addresses are Ray's matter
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
        ray.init(address=address, **options)
    except (ConnectionError, OSError, ValueError, RuntimeError, exceptions.RayError) as error:
        ray.shutdown()
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"workers.address = {address!r}: no Ray cluster to work with: {why}",
            hint="start one (`ray start --head`), or correct workers.address (host:port, or auto) or RAY_ADDRESS",
        ) from error


def nodes() -> list[dict[str, float]]:
    """The resources of all nodes that are alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def fits(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    """How many trials a node has room for. A part of a GPU is never spread over two."""
    by_cpu = math.floor(node.get("CPU", 0.0) / cpus)
    if not gpus:
        return by_cpu
    has = node.get("GPU", 0.0)
    by_gpu = math.floor(has / gpus) if gpus >= 1 else math.floor(has) * math.floor(1 / gpus + 1e-9)
    return min(by_cpu, by_gpu)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Keep the handlers of signals as they are: Ray takes SIGTERM for itself."""
    here = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if here and before is not None:
            signal.signal(signal.SIGTERM, before)


class _Stdout:
    """Standard output, but for what Ray's threads print: when a process dies, amid what others read there.

    That goes to the log. No setting of Ray turns it off; ``log_to_driver`` is for what the processes themselves print.
    """

    def __init__(self, stream: Any, of_ray: set[threading.Thread]) -> None:
        self._stream = stream
        self.of_ray = of_ray

    def write(self, text: str) -> int:
        if threading.current_thread() in self.of_ray:
            if text.strip():
                log.info("%s", text.rstrip())
            return len(text)
        return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


# Actors.

DIAGNOSIS_S = 5.0
"""Time in which Ray finds out that a node is gone, after its sockets were closed."""

START_S = 120.0
"""Time in which an actor that has its node has to be set up; importing a backend from a slow disk takes its time."""


class Place:
    """One actor, from the moment it is asked for; ``about`` is None while there is no room for it."""

    def __init__(self, cluster: Cluster, plan: Plan) -> None:
        self.about: About | None = None
        self._setup = pickle.dumps(plan.setup)
        self._placed = 0.0
        # Which GPU it may see is Ray's matter, but none is none.
        on_gpu = SHARING_A_GPU if cluster.gpus else {"CUDA_VISIBLE_DEVICES": "-1"}
        options = {
            "num_cpus": cluster.cpus,
            "num_gpus": cluster.gpus,
            "max_restarts": 0,  # a new process would know nothing of the task
            "runtime_env": {"env_vars": {**plan.shared, **on_gpu}},
        }
        self.actor = ray.remote(Actor).options(**options).remote(plan.memory_bytes)
        self._starting = self.actor.about.remote()

    def look(self) -> bool:
        """Whether it is ready; waits for a moment at most.

        Raises:
            WorkerLost: its process died, or does not get ready.
            SweepStopped: its node is not made for this sweep.
        """
        with understood(self.actor):
            if not ray.wait([self._starting], timeout=LOOK_EVERY_S)[0]:
                if self.about is not None and time.monotonic() - self._placed > START_S:
                    raise WorkerLost(f"it was not ready after {START_S:g} s")
                return False
            value = pickle.loads(ray.get(self._starting))
        if self.about is None:  # it has a node: is it the right one?
            _refuse_differences(value)
            self.about, self._placed = value, time.monotonic()
            self._starting = self.actor.set_up.remote(self._setup)
            return False
        kind, error = value
        if isinstance(error, WorkerUnfit):  # another node, or another GPU of this one, may do
            raise WorkerLost(str(error))
        if kind == "raised":
            raise error
        return True

    def lives(self) -> bool:
        """Whether it answers, between two tasks."""
        try:
            ray.get(self.actor.about.remote(), timeout=PULSE_S)
        except exceptions.RayError:
            return False
        return True

    def call(self, task: Task[Any], relay: Say, limits: Limits, given_up: Callable[[], bool]) -> tuple[str, Any]:
        """Run a task: ``done`` and the result, or ``raised`` and what the task raised; see `Worker.call`.

        After an exception it is not to be used any more. ``given_up`` is asked all the time; true ends the call as
        KeyboardInterrupt.
        """
        began = time.monotonic()

        def check(silent_s: float) -> None:
            if given_up():
                raise KeyboardInterrupt
            if time.monotonic() - began > limits.seconds:
                raise too_late(limits)
            if silent_s > limits.silent_s + PULSE_S:
                raise WorkerLost(f"its node gave no sign of life for {silent_s:.0f} s")

        def hear(reference: Any) -> tuple[str, Any]:
            """The next message. An actor that lives sends one every `PULSE_S`."""
            asked = time.monotonic()
            while not ray.wait([reference], timeout=LOOK_EVERY_S)[0]:
                check(time.monotonic() - asked)
            check(0.0)
            message: tuple[str, Any] = pickle.loads(ray.get(reference))
            return message

        with understood(self.actor):
            kind, value = hear(self.actor.start.remote(*dumps(task), limits))
            while kind in ("say", "pulse"):
                words = () if kind == "pulse" else (pickle.dumps(relay(value)),)
                kind, value = hear(self.actor.next.remote(*words))
            if kind == "over":
                raise value
        return kind, value

    def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(exceptions.RayError, ValueError):
            ray.kill(self.actor)


def _refuse_differences(about: About) -> None:
    """Stop where a node would compute with other packages than the driver: the numbers could not be compared."""
    here = versions()
    differ = [
        f"{name} {about.versions.get(name) or 'missing'} instead of {here[name] or 'none'}"
        for name in here
        if about.versions.get(name) != here[name]
    ]
    if differ:
        raise SweepStopped(
            f"the Ray node {about.host} has other packages than this machine: {'; '.join(differ)}",
            hint="install the same versions everywhere, best by the same image, and run again",
        )


@contextlib.contextmanager
def understood(actor: Any) -> Iterator[None]:
    """Ray's errors as those of `Worker.call`."""
    try:
        yield
    except exceptions.OutOfMemoryError as error:
        hint = "lower width, depth or batch_size under [model.search], or give each trial more of a node: workers.cpus"
        raise TrialFailed("out-of-memory", "killed by Ray: its node ran low on memory", hint=hint) from error
    except (exceptions.ObjectStoreFullError, exceptions.OutOfDiskError) as error:
        hint = "give the nodes more object store memory (`ray start --object-store-memory`), or use less data"
        raise SweepStopped(f"Ray's object store has no room for the data: {_gist(error)}", hint=hint) from error
    except exceptions.RuntimeEnvSetupError as error:
        raise SweepStopped(f"a node cannot start a process for a trial: {_gist(error)}") from error
    except exceptions.RayTaskError:
        raise  # an error in our own part of the actor: no word of it is left out
    except exceptions.RayError as error:
        error = _diagnosis(actor, error)
        if "ModuleNotFoundError" in str(error) or "ImportError" in str(error):
            hint = "install forge-sweep on every node, the same version as here"
            raise SweepStopped(f"a Ray node cannot import forge_sweep: {_gist(error)}", hint=hint) from error
        if getattr(error, "preempted", False):
            raise WorkerLost("its node was taken away, as the cluster had announced", announced=True) from error
        raise WorkerLost(_gist(error)) from error


def _diagnosis(actor: Any, error: exceptions.RayError) -> exceptions.RayError:
    """What Ray finds out within a moment about an actor that it cannot reach."""
    until = time.monotonic() + DIAGNOSIS_S
    while isinstance(error, exceptions.ActorUnavailableError) and time.monotonic() < until:
        try:
            ray.get(actor.about.remote(), timeout=1.0)
            return error  # it lives, but what it said last is gone
        except exceptions.GetTimeoutError:
            continue
        except exceptions.RayError as found:
            error = found
        time.sleep(LOOK_EVERY_S)
    return error


def _gist(error: BaseException) -> str:
    """What happened, out of the many lines of a message of Ray's."""
    text = str(error)
    detail = text.partition("Worker exit detail: ")[2].partition(" Some common causes")[0]
    if detail:
        return f"its process died: {detail}"
    unreachable = text.partition("temporarily unavailable: ")[2].partition(" The task may")[0]
    if unreachable:
        return f"its node cannot be reached: {unreachable}"
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    telling = [line for word in ("because", "unavailable", "Error") for line in lines if word in line]
    return (telling or lines)[0][:300]


PATIENCE_S = 10.0
"""Time without any place after which it is said."""

Asks = Callable[[], bool]


class Pool:
    """Hands out places; threads share it. After ``wait_s`` without any place the sweep stops."""

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
        """A place that waits for tasks or, once there is room, a new one; None where none is wanted any more.

        Raises:
            KeyboardInterrupt: the run is given up.
            SweepStopped: no process can be started, or there was no place for a single trial for too long.
        """
        asked: Place | None = None
        died = 0
        try:
            while wanted():
                if given_up():
                    raise KeyboardInterrupt
                found = self._take_idle()
                if found is None:
                    place = asked = asked or Place(self.cluster, self.plan)
                    try:
                        if place.look():
                            found, asked = place, None
                    except WorkerLost as lost:
                        place.kill()
                        asked, died = None, died + 1
                        if died == START_ATTEMPTS:
                            hint = "Ray's logs on the node say why (/tmp/ray/session_latest/logs)"
                            text = f"no process can be started on the Ray cluster: {lost}"
                            raise SweepStopped(text, hint=hint) from lost
                if found is not None:
                    with self._lock:
                        self._held.add(found)
                    return found
                self._check()
            return None
        finally:
            if asked is not None:
                asked.kill()

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
            raise SweepStopped(
                f"no place for a trial on the Ray cluster for {self.wait_s:g} s: {self.cluster.words()}",
                hint="lower workers.cpus or workers.gpus, add nodes, or raise workers.wait_s where they come later",
            )
        if waited > PATIENCE_S and not self._said:
            self._said = True
            self.tell(f"waiting up to {self.wait_s:g} s for a place on the Ray cluster: {self.cluster.words()}")

    def close(self) -> None:
        """End all places."""
        for place in self._held:
            place.kill()
        self._held, self._idle = set(), []
