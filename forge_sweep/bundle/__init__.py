"""A model with all it needs to take raw rows, as one flat folder of plain data; `layout` lists its files.

Nothing in it is unpickled, and every file is checked before it is read; see ``docs/security.md``.
"""

from __future__ import annotations

from forge_sweep.bundle.bundle import BACKEND_TOLERANCE, GOLDEN_TOLERANCE, Bundle, ready_backend, replay_golden
from forge_sweep.bundle.evaluation import Comparison, Evaluation, ScoredModel, evaluate, figures
from forge_sweep.bundle.layout import EVALUATION, GOLDEN_ROWS, choose_golden, read_golden, read_profile
from forge_sweep.bundle.measures import latency_ms, measure

__all__ = [
    "BACKEND_TOLERANCE",
    "EVALUATION",
    "GOLDEN_ROWS",
    "GOLDEN_TOLERANCE",
    "Bundle",
    "Comparison",
    "Evaluation",
    "ScoredModel",
    "choose_golden",
    "evaluate",
    "figures",
    "latency_ms",
    "measure",
    "read_golden",
    "read_profile",
    "ready_backend",
    "replay_golden",
]
