"""A sweep: baselines, search, confirmation and registration, as one command that can be killed anywhere and goes on."""

from forge_sweep.sweep.context import Event, Interrupted, Watch, ignore
from forge_sweep.sweep.join import Joined, join
from forge_sweep.sweep.null import NullSweep, null_sweep, refuse_null
from forge_sweep.sweep.reconcile import Difference, Reconciled, reconcile
from forge_sweep.sweep.result import LINKED, SweepResult, result_of
from forge_sweep.sweep.run import check, check_stores, refuse_gpu_budget, run

__all__ = [
    "LINKED",
    "Difference",
    "Event",
    "Interrupted",
    "Joined",
    "NullSweep",
    "Reconciled",
    "SweepResult",
    "Watch",
    "check",
    "check_stores",
    "ignore",
    "join",
    "null_sweep",
    "reconcile",
    "refuse_gpu_budget",
    "refuse_null",
    "result_of",
    "run",
]
