"""What differs between a record and here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from forge_sweep.environment import Environment
from forge_sweep.experiment import Experiment
from forge_sweep.reproduce.plan import Plan
from forge_sweep.sources import Dataset
from forge_sweep.tracking import Record

SAME_PLACE = ("image_digest", "python", "platform", "cpu", "cores", "gpus", "cuda", "backend")
"""Fields of an `Environment` that are compared as they are."""

ABSENT = "not there"


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it was.

    Attributes:
        what: such as ``data`` or ``package numpy``.
        recorded: as the run has it.
        here: as it is now.
    """

    what: str
    recorded: str
    here: str

    def __str__(self) -> str:
        return f"{self.what}: {self.recorded} -> {self.here}"


def compare(
    record: Record, experiment: Experiment, plan: Plan, dataset: Dataset, here: Environment
) -> tuple[Difference, ...]:
    """Everything that differs: data, seed, experiment, code, packages, machine."""
    pairs = [
        *_data(record, dataset),
        ("seed", plan.recorded_seed, plan.seed),
        *_asked(record, experiment, plan),
        *_code(record, here),
        *_packages(record.environment.get("packages", {}), here.packages),
        *_machine(record.environment, here),
    ]
    return tuple(Difference(what, str(then), str(now)) for what, then, now in pairs if then != now)


Pair = tuple[str, Any, Any]


def _data(record: Record, dataset: Dataset) -> Iterator[Pair]:
    """Rows and splits by their digests; what an older version did not record is not compared."""
    tags = record.tags
    yield "data (digest of all rows)", tags.get("forge.dataset_digest", dataset.digest), dataset.digest
    yield "split (digest)", tags.get("forge.split_digest", dataset.split_digest), dataset.split_digest


def _asked(record: Record, experiment: Experiment, plan: Plan) -> Iterator[Pair]:
    """Whether the record agrees with itself."""
    yield "seed (recorded, and as it follows from the experiment's)", plan.recorded_seed, plan.derived_seed
    contract = experiment.contract()
    yield "experiment (digest recorded, and of experiment.json)", record.tags.get("forge.contract", contract), contract


def _code(record: Record, here: Environment) -> Iterator[Pair]:
    recorded = record.environment
    yield "git commit", recorded.get("git_commit", here.git_commit), here.git_commit
    if record.git_diff != here.git_diff:
        yield "uncommitted changes", _lines(record.git_diff), _lines(here.git_diff) + " (other ones)"


def _lines(diff: str) -> str:
    return f"{len(diff.splitlines())} lines of git diff" if diff else "none"


def _packages(recorded: Mapping[str, str], here: Mapping[str, str]) -> Iterator[Pair]:
    """Packages with another version, or that are on one side only; nothing where none were recorded."""
    for name in sorted({*recorded, *here}) if recorded else ():
        yield f"package {name}", recorded.get(name, ABSENT), here.get(name, ABSENT)


def _machine(recorded: Mapping[str, Any], here: Environment) -> Iterator[Pair]:
    now = here.to_dict()
    for name in SAME_PLACE:
        yield name.replace("_", " "), recorded.get(name, now[name]), now[name]
    for group, what in (("threads", "variable"), ("flags", "variable"), ("variables", "variable"), ("keras", "Keras'")):
        then = recorded.get(group, now[group])
        for name in sorted({*then, *now[group]} - {"KERAS_BACKEND"}):  # it says what the backend says
            yield f"{what} {name}", then.get(name, ABSENT), now[group].get(name, ABSENT)
