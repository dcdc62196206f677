"""Where trials run. One interface, one file per backend."""

import importlib.util
from collections.abc import Callable

from forge_sweep.errors import MissingExtra
from forge_sweep.experiment import WorkersSpec
from forge_sweep.workers.base import Job, Limits, Plan, Say, Task, Worker, WorkerLost, Workers, WorkerUnfit
from forge_sweep.workers.processes import ProcessWorkers
from forge_sweep.workers.serial import SerialWorkers

__all__ = [
    "Job",
    "Limits",
    "Plan",
    "ProcessWorkers",
    "Say",
    "SerialWorkers",
    "Task",
    "Worker",
    "WorkerLost",
    "WorkerUnfit",
    "Workers",
    "make",
    "require_packages",
]


def make(spec: WorkersSpec, plan: Plan | None = None, tell: Callable[[str], None] = lambda text: None) -> Workers:
    """The workers of ``workers.kind``.

    Args:
        spec: the section ``[workers]``.
        plan: what each process gets; nothing but a plain process where it is None.
        tell: told in words what happens to a cluster.

    Raises:
        MissingExtra: ``ray`` without Ray.
    """
    match spec.kind:
        case "serial":
            return SerialWorkers()
        case "processes":
            return ProcessWorkers(plan or Plan(n=spec.n or 1))
        case "ray":
            require_packages(spec)
            from forge_sweep.workers.ray import RayWorkers

            return RayWorkers(spec, plan or Plan(n=spec.n or 1), tell)


def require_packages(spec: WorkersSpec) -> None:
    """Raise MissingExtra where the workers of an experiment need packages that are not installed."""
    if spec.kind == "ray" and importlib.util.find_spec("ray") is None:
        raise MissingExtra('workers.kind = "ray"', "ray")
