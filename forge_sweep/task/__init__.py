"""What is predicted: the head of the network, its loss, its metrics, and how targets become arrays and back."""

from __future__ import annotations

from forge_sweep.task.bootstrap import (
    LEVEL,
    RESAMPLES,
    SEED,
    Answers,
    Gain,
    Interval,
    Judgement,
    Seeds,
    draw,
    gains,
    intervals,
    judge,
    of_one,
    resampled,
)
from forge_sweep.task.joint import Joint, task_of
from forge_sweep.task.metrics import METRICS, Direction, Pairing, TaskKind, check_pairing, direction, pairings
from forge_sweep.task.task import DEFAULT_THRESHOLD, Task

__all__ = [
    "DEFAULT_THRESHOLD",
    "LEVEL",
    "METRICS",
    "RESAMPLES",
    "SEED",
    "Answers",
    "Direction",
    "Gain",
    "Interval",
    "Joint",
    "Judgement",
    "Pairing",
    "Seeds",
    "Task",
    "TaskKind",
    "check_pairing",
    "direction",
    "draw",
    "gains",
    "intervals",
    "judge",
    "of_one",
    "pairings",
    "resampled",
    "task_of",
]
