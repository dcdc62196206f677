"""The workers of each ``workers.kind``."""

import importlib.util

from forge_sweep.errors import MissingExtra
from forge_sweep.experiment import WorkersSpec
from forge_sweep.workers.base import Plan, Tell, Workers, silent
from forge_sweep.workers.processes import ProcessWorkers
from forge_sweep.workers.serial import SerialWorkers


def make(spec: WorkersSpec, plan: Plan | None = None, tell: Tell = silent) -> Workers:
    """The workers of ``workers.kind``; without a plan each process gets nothing but itself.

    Raises:
        MissingExtra: ``ray`` without Ray.
    """
    plan = plan or Plan(n=spec.n or 1)
    match spec.kind:
        case "serial":
            return SerialWorkers()
        case "processes":
            return ProcessWorkers(plan, tell)
        case "ray":
            require_packages(spec)
            from forge_sweep.workers.ray import RayWorkers

            return RayWorkers(spec, plan, tell)


def require_packages(spec: WorkersSpec) -> None:
    """Raise MissingExtra where the workers of an experiment need packages that are not installed."""
    if spec.kind == "ray" and importlib.util.find_spec("ray") is None:
        raise MissingExtra('workers.kind = "ray"', "ray")
