"""Where trials run. One interface, one file per backend."""

from forge_sweep.workers.base import (
    SHARING_A_GPU,
    Job,
    Limits,
    Plan,
    Say,
    Task,
    Tell,
    Worker,
    WorkerLost,
    Workers,
    WorkerUnfit,
)
from forge_sweep.workers.kinds import make, require_packages
from forge_sweep.workers.processes import ProcessWorkers
from forge_sweep.workers.serial import SerialWorkers

__all__ = [
    "SHARING_A_GPU",
    "Job",
    "Limits",
    "Plan",
    "ProcessWorkers",
    "Say",
    "SerialWorkers",
    "Task",
    "Tell",
    "Worker",
    "WorkerLost",
    "WorkerUnfit",
    "Workers",
    "make",
    "require_packages",
]
