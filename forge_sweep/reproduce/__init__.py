"""Make a recorded training again, and say whether it is the same.

Nothing is checked out or installed. What differs between the record and here is listed; then the training is run again
from its recorded parameters, seed and number of threads in a process of its own, and compared.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from forge_sweep import environment, jsons, sources, tracking
from forge_sweep.experiment import Experiment, restore
from forge_sweep.reproduce.again import Again, Order, train_again
from forge_sweep.reproduce.differences import Difference, compare
from forge_sweep.reproduce.plan import Plan, plan
from forge_sweep.reproduce.restoring import commands
from forge_sweep.reproduce.verdict import TOLERANCE, Verdict, judge
from forge_sweep.tracking import Record, downloaded, read_record

__all__ = ["TOLERANCE", "Difference", "Reproduction", "Verdict", "commands", "read_record", "reproduce"]

TAG = "forge.reproduced"


@dataclass(frozen=True)
class Reproduction:
    """A training that was made again.

    Attributes:
        run_id: the recorded run.
        name: its name.
        verdict: whether it gave the same, and how far it is off.
        differences: what differs between the record and here.
        when: ISO time.
        seconds: of the training.
    """

    run_id: str
    name: str
    verdict: Verdict
    differences: tuple[Difference, ...]
    when: str
    seconds: float

    @property
    def tag(self) -> str:
        """The verdict in one line, as the run has it."""
        count = len(self.differences)
        noun = "difference" if count == 1 else "differences"
        return f"{self.verdict.word} at {self.when}: {self.verdict.text}; {count or 'no'} {noun} to the record"

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "differences": [asdict(each) for each in self.differences]}


def reproduce(
    reference: str,
    *,
    store: Path = Path("mlruns"),
    root: Path | None = None,
    seed: int | None = None,
    tolerance: float = TOLERANCE,
) -> Reproduction:
    """Train a recorded run again and write the verdict on it.

    Args:
        reference: a run's id, ``models:/NAME/VERSION`` or ``models:/NAME@alias``.
        store: folder of the embedded stores.
        root: folder that the experiment's paths start from; default: the recorded one, else the working directory.
        seed: train with this one in place of the recorded one; the verdict is then not written.
        tolerance: largest difference of a metric or a prediction that still counts as the same, in proportion to its
            size above 1.

    Raises:
        InputError: there is no such run, it did not finish, or its data cannot be read.
        TrackingDown: the store cannot be reached.
        TrialFailed: the training failed this time.
    """
    record = read_record(reference, store)
    experiment = restore(record.experiment, root=_root(record, root))
    planned = plan(record, experiment, seed)
    dataset = sources.load(experiment.data, root=experiment.root, seed=experiment.seed)
    here = environment.capture(experiment.root, experiment.backend)
    differences = compare(record, experiment, planned, dataset, here)
    again = _train(record, experiment, planned, store)
    verdict = judge(record, planned, again, tolerance)
    found = Reproduction(record.run_id, record.name, verdict, differences, _now(), again.seconds)
    if seed is None:
        name = found.when.replace(":", "").replace("+0000", "Z")
        tracking.write_verdict(record, {TAG: found.tag}, jsons.plain(found.to_dict()), name, store)
    return found


def _train(record: Record, experiment: Experiment, planned: Plan, store: Path) -> Again:
    """Train in a new process, beside the recorded model where there is one."""
    order = Order(experiment, planned.baseline, planned.params, planned.seed, planned.halvings, planned.epochs)
    if record.model is None:
        return train_again(order, planned.threads)
    with downloaded(record.model, store) as folder:
        return train_again(order.beside(folder), planned.threads)


def _root(record: Record, root: Path | None) -> Path:
    """Where relative paths start: as asked, as recorded if that is here, or here."""
    if root is not None:
        return root
    return Path(record.root) if record.root and Path(record.root).is_dir() else Path()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
