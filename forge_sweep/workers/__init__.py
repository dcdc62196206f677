"""Where trials run. One interface, one file per backend."""

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
]


def make(spec: WorkersSpec, plan: Plan | None = None) -> Workers:
    """The workers of ``workers.kind``.

    Args:
        spec: the section ``[workers]``.
        plan: what each process gets; nothing but a plain process where it is None.
    """
    match spec.kind:
        case "serial":
            return SerialWorkers()
        case "processes":
            return ProcessWorkers(plan or Plan(n=spec.n or 1))
