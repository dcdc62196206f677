"""Where trials run. One interface, one file per backend."""

from forge_sweep.experiment import WorkersSpec
from forge_sweep.workers.base import Job, Workers
from forge_sweep.workers.serial import SerialWorkers

__all__ = ["Job", "SerialWorkers", "Workers", "make"]


def make(spec: WorkersSpec) -> Workers:
    """The workers of ``workers.kind``."""
    match spec.kind:
        case "serial":
            return SerialWorkers()
