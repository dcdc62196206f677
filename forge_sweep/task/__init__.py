"""What is predicted: the head of the network, its loss, its metrics, and how targets become arrays and back."""

from __future__ import annotations

from forge_sweep.task.outcome import Judgement, Outcome, Seeds, judge, of_one, part_that_counts
from forge_sweep.task.pairing import METRICS, Direction, Pairing, TaskKind, check_pairing, direction, pairings
from forge_sweep.task.resampling import (
    LEVEL,
    RESAMPLES,
    SEED,
    Answers,
    Gain,
    Interval,
    gain,
    gains,
    intervals,
    resampled,
)
from forge_sweep.task.targets import Label
from forge_sweep.task.task import DEFAULT_THRESHOLD, Task
from forge_sweep.task.undefined import Gap

__all__ = [
    "DEFAULT_THRESHOLD",
    "LEVEL",
    "METRICS",
    "RESAMPLES",
    "SEED",
    "Answers",
    "Direction",
    "Gain",
    "Gap",
    "Interval",
    "Judgement",
    "Label",
    "Outcome",
    "Pairing",
    "Seeds",
    "Task",
    "TaskKind",
    "check_pairing",
    "direction",
    "gain",
    "gains",
    "intervals",
    "judge",
    "of_one",
    "pairings",
    "part_that_counts",
    "resampled",
]
