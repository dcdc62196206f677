"""Workers whose tasks run on a Ray cluster. Needs the extra ``ray``; see docs/decisions/0012-ray.md."""

from forge_sweep.workers.ray.actor import Stored
from forge_sweep.workers.ray.workers import RayWorkers

__all__ = ["RayWorkers", "Stored"]
