"""The connection to a cluster: an existing one, or a local one for as long as it is used."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import ray

from forge_sweep.errors import InputError, SweepStopped
from forge_sweep.experiment import WorkersSpec
from forge_sweep.workers.forkserver import variables

log = logging.getLogger(__name__)

CONNECT_S = 10.0
"""Time in which an address has to answer; Ray itself tries for minutes."""

QUIET = {"RAY_USAGE_STATS_ENABLED": "0"}
"""What a local Ray is started with unless the user said otherwise: it reports to nobody."""

LOOPBACK = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"
"""Ray takes 127.0.0.1 for a slip and replaces it by an outside address; Linux has the whole of 127.0.0.0/8."""


class Cluster:
    """A Ray cluster, as a place for trials.

    Args:
        spec: ``[workers]``.
    """

    def __init__(self, spec: WorkersSpec) -> None:
        self.spec = spec
        self.cpus = spec.cpus or spec.threads or 1
        self.gpus = spec.gpus or 0.0
        self.local = False
        self._ours = False
        self._held = 0

    @property
    def request(self) -> dict[str, float]:
        """What one trial is given, in Ray's words."""
        return {"CPU": float(self.cpus), **({"GPU": self.gpus} if self.gpus else {})}

    def connect(self) -> None:
        """Connect, or start a local Ray; nothing to do where that is done, by the user too.

        Raises:
            InputError: no cluster answers at the address.
        """
        if ray.is_initialized():
            refuse_other(self.spec.address)
            return
        address = self.spec.address or os.environ.get("RAY_ADDRESS") or "local"
        common = {"log_to_driver": False, "logging_level": logging.ERROR}
        self.local = address == "local"
        with signals(), variables({name: os.environ.get(name, value) for name, value in QUIET.items()}):
            if self.local:
                cpus = max(cores(), self.cpus * (self.spec.n or 1))  # who asks for more processes than cores gets them
                more = {"num_cpus": cpus, "include_dashboard": False, "_node_ip_address": LOOPBACK}
                ray.init(address="local", **more, **common)  # without an address a stale file decides where to
            else:
                connect_to(address, common)
        self._ours = True
        keep_off_stdout()

    def close(self) -> None:
        """Leave the cluster; a local one ends."""
        if self._ours and ray.is_initialized():
            with signals():
                ray.shutdown()
        self._ours = False

    def holds(self) -> int:
        """How many trials all nodes together have room for, were nobody else there; while Ray is dumb, as before."""
        with contextlib.suppress(ray.exceptions.RayError):
            self._held = sum(fits(node, self.cpus, self.gpus) for node in nodes())
        return self._held

    def words(self) -> str:
        """What was asked for and what there is."""
        found = [f"{named(node, self.request)}" for node in nodes()]
        free = named(ray.available_resources(), self.request)
        listed = "; ".join(found) or "none"
        return f"each trial asks for {named(self.request)}; {len(found)} node(s): {listed}; free in all: {free}"

    def idle_gpus(self) -> float:
        """GPUs of the cluster, where trials ask for none."""
        return 0.0 if self.gpus else sum(node.get("GPU", 0.0) for node in nodes())


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def connect_to(address: str, options: Mapping[str, Any]) -> None:
    """Connect to a cluster that is there, or say what is wrong with the address."""
    if "://" in address:
        hint = 'run forge-sweep on a machine of the cluster, with workers.address = "auto"'
        raise InputError(f"workers.address = {address!r}: Ray's client is too far away from the rows", hint=hint)
    hint = "start one (`ray start --head`), or correct workers.address (host:port, or auto) or RAY_ADDRESS"
    try:
        answers(address)
        ray.init(address=address, **options)
    except (ConnectionError, OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        ray.shutdown()
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"workers.address = {address!r}: no Ray cluster to work with: {why}", hint=hint) from error


def refuse_other(address: str | None) -> None:
    """Raise InputError where the user connected this process to another cluster than the experiment names."""
    here = ray.get_runtime_context().gcs_address
    if address not in (None, "auto", "local", here):
        hint = "leave workers.address out, or call ray.shutdown() before"
        raise InputError(f"workers.address = {address!r}: this process is connected to {here} already", hint=hint)


def answers(address: str) -> None:
    """Raise OSError where nobody listens at ``host:port``; other addresses are Ray's matter."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()


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


def named(resources: Mapping[str, float], like: Mapping[str, float] | None = None) -> str:
    """``2 CPU, 0.5 GPU``: of some resources those that another table names."""
    return ", ".join(f"{resources.get(name, 0.0):g} {name}" for name in (like or resources))


@contextlib.contextmanager
def signals() -> Iterator[None]:
    """Keep the handlers of signals as they are: Ray takes SIGTERM for itself."""
    here = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if here and before is not None:
            signal.signal(signal.SIGTERM, before)


def keep_off_stdout() -> None:
    """Ray prints to standard output when a process dies, amid what others read there; it goes to the log."""
    from ray._private import worker

    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda data, **options: log.info("%s", "\n".join(data.get("lines", [])))


def no_place(words: str, waited_s: float) -> SweepStopped:
    """No place for a single trial."""
    return SweepStopped(
        f"no place for a trial on the Ray cluster for {waited_s:g} s: {words}",
        hint="lower workers.cpus or workers.gpus, add nodes, or raise workers.wait_s where they come later",
    )
