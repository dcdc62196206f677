"""A place for tasks on the cluster: one actor, as seen from the driver."""

from __future__ import annotations

import contextlib
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray import exceptions

from forge_sweep.errors import SweepStopped, TrialFailed
from forge_sweep.workers.base import Limits, Plan, Say, T, Task, WorkerLost, WorkerUnfit
from forge_sweep.workers.ray.actor import PULSE_S, About, Actor, versions
from forge_sweep.workers.ray.cluster import Cluster
from forge_sweep.workers.ray.store import dumps
from forge_sweep.workers.watch import LOOK_EVERY_S, too_late

DIAGNOSIS_S = 5.0
"""Time in which Ray finds out that a node is gone, after its sockets were closed."""

START_S = 120.0
"""Time in which an actor that has its node has to be set up; importing a backend from a slow disk takes its time."""


class Place:
    """One actor, from the moment it is asked for.

    Args:
        cluster: has or gets room for it.
        plan: what its process gets.

    Attributes:
        about: where it is; None while there is no room for it.
    """

    def __init__(self, cluster: Cluster, plan: Plan) -> None:
        self.about: About | None = None
        self._setup = pickle.dumps(plan.setup)
        self._placed = 0.0
        options = {
            "num_cpus": cluster.cpus,
            "num_gpus": cluster.gpus,
            "max_restarts": 0,  # a new process would know nothing of the task
            "runtime_env": {"env_vars": environment(plan, cluster.gpus)},
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
        if self.about is None:
            self._settle(value)
            return False
        kind, error = value
        if isinstance(error, WorkerUnfit):  # another node, or another GPU of this one, may do
            raise WorkerLost(str(error))
        if kind == "raised":
            raise error
        return True

    def _settle(self, about: About) -> None:
        """It has a node: is it the right one?"""
        refuse_differences(about)
        self.about, self._placed = about, time.monotonic()
        self._starting = self.actor.set_up.remote(self._setup)

    def lives(self) -> bool:
        """Whether it answers, between two tasks."""
        try:
            ray.get(self.actor.about.remote(), timeout=PULSE_S)
        except exceptions.RayError:
            return False
        return True

    def call(self, task: Task[T], relay: Say, limits: Limits, given_up: Callable[[], bool]) -> T:
        """Run a task; see `Worker.call`. After any exception but `Raised` it is not to be used any more.

        Args:
            task: to run.
            relay: answers its messages.
            limits: of the task.
            given_up: asked all the time; true ends the call as KeyboardInterrupt.

        Raises:
            Raised: the task itself raised.
        """
        hear = _Ear(time.monotonic(), limits, given_up)
        with understood(self.actor):
            kind, value = self._converse(dumps(task), relay, limits, hear)
        if kind == "raised":
            raise Raised(value)
        result: T = value
        return result

    def _converse(self, task: tuple[bytes, list[Any]], relay: Say, limits: Limits, hear: _Ear) -> tuple[str, Any]:
        """Relay messages until the task has ended."""
        kind, value = hear(self.actor.start.remote(*task, limits))
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


@dataclass(frozen=True)
class _Ear:
    """Waits for the messages of one task.

    Attributes:
        began: when it began.
        limits: of the task.
        given_up: asked while waiting.
    """

    began: float
    limits: Limits
    given_up: Callable[[], bool]

    def __call__(self, reference: Any) -> tuple[str, Any]:
        """The next message. An actor that lives sends one every `PULSE_S`."""
        asked = time.monotonic()
        while not ray.wait([reference], timeout=LOOK_EVERY_S)[0]:
            self._check(time.monotonic() - asked)
        self._check(0.0)
        message: tuple[str, Any] = pickle.loads(ray.get(reference))
        return message

    def _check(self, silent_s: float) -> None:
        if self.given_up():
            raise KeyboardInterrupt
        if time.monotonic() - self.began > self.limits.seconds:
            raise too_late(self.limits)
        if silent_s > self.limits.silent_s + PULSE_S:
            raise WorkerLost(f"its node gave no sign of life for {silent_s:.0f} s")


class Raised(Exception):
    """What the task itself raised, so that it is not taken for an error of this side."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


def environment(plan: Plan, gpus: float) -> dict[str, str]:
    """Variables that are there before the first import. Which GPU it may see is Ray's matter, but none is none."""
    on_gpu = {"TF_FORCE_GPU_ALLOW_GROWTH": "true"} if gpus else {"CUDA_VISIBLE_DEVICES": "-1"}
    return {**plan.shared, **on_gpu}


def refuse_differences(about: About) -> None:
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
    """Ray's errors in the words of `Worker.call`."""
    try:
        yield
    except exceptions.OutOfMemoryError as error:
        hint = "lower width, depth or batch_size under [model.search], or give each trial more of a node: workers.cpus"
        raise TrialFailed("out-of-memory", "killed by Ray: its node ran low on memory", hint=hint) from error
    except (exceptions.ObjectStoreFullError, exceptions.OutOfDiskError) as error:
        hint = "give the nodes more object store memory (`ray start --object-store-memory`), or use less data"
        raise SweepStopped(f"Ray's object store has no room for the data: {gist(error)}", hint=hint) from error
    except exceptions.RuntimeEnvSetupError as error:
        raise SweepStopped(f"a node cannot start a process for a trial: {gist(error)}") from error
    except exceptions.RayTaskError:
        raise  # an error in our own part of the actor: no word of it is left out
    except exceptions.RayError as error:
        error = diagnosis(actor, error)
        if "ModuleNotFoundError" in str(error) or "ImportError" in str(error):
            hint = "install forge-sweep on every node, the same version as here"
            raise SweepStopped(f"a Ray node cannot import forge_sweep: {gist(error)}", hint=hint) from error
        if getattr(error, "preempted", False):
            raise WorkerLost("its node was taken away, as the cluster had announced", announced=True) from error
        raise WorkerLost(gist(error)) from error


def diagnosis(actor: Any, error: exceptions.RayError) -> exceptions.RayError:
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


def gist(error: BaseException) -> str:
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
