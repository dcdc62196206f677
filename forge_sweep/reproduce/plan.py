"""From a record to what is to be trained: parameters with their types, seed, batch, epochs, threads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from forge_sweep.errors import InputError
from forge_sweep.experiment import Dimension, Experiment, Params, Scalar, derived_seed
from forge_sweep.tracking import Record

HALVED = re.compile(r"out of memory: batch size (\d+) -> (\d+)")


@dataclass(frozen=True)
class Plan:
    """What is trained again.

    Attributes:
        baseline: its kind; "" for a network.
        params: every hyperparameter of a network.
        seed: of the training.
        recorded_seed: the same, as it was recorded.
        derived_seed: what follows from the experiment's own seed.
        halvings: how often the batch was halved when memory ran out.
        epochs: after how many a pruned trial was stopped; None for one that ran to its end.
        threads: that one operation could use; 0 for all of this machine, as then.
    """

    baseline: str
    params: Params
    seed: int
    recorded_seed: int
    derived_seed: int
    halvings: int
    epochs: int | None
    threads: int


def plan(record: Record, experiment: Experiment, seed: int | None = None) -> Plan:
    """What a record says was trained.

    Args:
        record: the run.
        experiment: its experiment.
        seed: train with this one in its place.

    Raises:
        InputError: the run did not come to an end, or lacks a parameter.
    """
    state = record.tags.get("forge.state", "")
    if state not in ("finished", "pruned"):
        raise InputError(
            f"run {record.run_id} is {state or 'in no state'}", hint="give one that finished or was pruned"
        )
    baseline = record.params.get("baseline", "")
    recorded = int(_param(record, "seed"))
    return Plan(
        baseline=baseline,
        params={} if baseline else typed(experiment.space, record),
        seed=recorded if seed is None else seed,
        recorded_seed=recorded,
        derived_seed=_derived(record, experiment, baseline),
        halvings=_halvings(record.tags.get("forge.events", "")),
        epochs=int(record.metrics["epochs_run"]) if state == "pruned" else None,
        threads=_threads(record, baseline),
    )


def typed(space: Mapping[str, Dimension | Scalar], record: Record) -> Params:
    """The hyperparameters of a run with the types that the experiment's space gives them; MLflow keeps text."""
    return {name: _value(known, record.params[name]) for name, known in space.items() if name in record.params}


def _value(known: Dimension | Scalar, text: str) -> Scalar:
    if not isinstance(known, Dimension):
        return known if str(known) == text else type(known)(text)
    if known.type == "int":
        return int(text)
    if known.type == "float":
        return float(text)
    return next((choice for choice in known.choices or () if str(choice) == text), text)


def _param(record: Record, name: str) -> str:
    try:
        return record.params[name]
    except KeyError:
        raise InputError(f"run {record.run_id} has no param {name!r}", hint="give a run of forge-sweep run") from None


def _derived(record: Record, experiment: Experiment, baseline: str) -> int:
    """The seed that the sweep gives such a run."""
    if record.kind == "baseline":
        return derived_seed(experiment.seed, "baseline", baseline)
    number = 0 if baseline else int(_param(record, "trial_number"))
    if record.kind == "trial":
        return derived_seed(experiment.seed, "trial", number)
    return derived_seed(experiment.seed, "confirm", baseline or f"{number:04d}", int(_param(record, "confirm_seed")))


def _halvings(events: str) -> int:
    """How often a batch was halved, by the sizes before and after."""
    found = HALVED.search(events)
    if found is None:
        return 0
    asked, used = map(int, found.groups())
    return next(halvings for halvings in range(asked.bit_length() + 1) if asked >> halvings <= used)


def _threads(record: Record, baseline: str) -> int:
    """Threads of a worker process as tagged; a serial sweep, and every baseline, had all cores of its machine."""
    if not baseline and (tagged := record.tags.get("forge.threads", "")).isdigit():
        return int(tagged)
    recorded: Any = record.environment.get("cores", 0)
    return int(recorded)
