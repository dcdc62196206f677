"""What every phase of a sweep needs, as one value, and the names that runs, seeds and files get."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forge_sweep.environment import Environment
from forge_sweep.experiment import Experiment
from forge_sweep.sources import Dataset
from forge_sweep.study import Study
from forge_sweep.tracking import Run, Tracker, environment_tags


class Interrupted(KeyboardInterrupt):
    """The user asked to stop; the running trial went back into the queue. No `Exception`: nothing may swallow it."""


@dataclass(frozen=True)
class Event:
    """Something that happened, for whoever watches.

    Attributes:
        kind: ``phase``, ``finding``, ``message``, ``baseline``, ``trial_started``, ``epoch``, ``trial_done`` or
            ``confirm``.
        data: JSON values.
    """

    kind: str
    data: Mapping[str, Any] = field(default_factory=dict)


Watch = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Watch nothing."""


@dataclass(frozen=True, eq=False)
class Context:
    """One running sweep.

    Attributes:
        experiment: the experiment.
        dataset: its rows; the test split is behind `Dataset.look_at_test`.
        study: the Optuna study, held by this process.
        tracker: the MLflow store.
        environment: machine, packages, image and commit.
        store: folder of the embedded stores and of checkpoints.
        key: identity of the parent run; the keys of its children begin with it.
        watch: told of every event.
        stopping: true once the user asked to stop.
    """

    experiment: Experiment
    dataset: Dataset
    study: Study
    tracker: Tracker
    environment: Environment
    store: Path
    key: str
    watch: Watch
    stopping: Callable[[], bool]

    def tell(self, kind: str, **data: Any) -> None:
        """Tell whoever watches."""
        self.watch(Event(kind, data))

    @property
    def checkpoints(self) -> Path:
        """Folder of everything that is deleted once the sweep is complete."""
        return self.store / "checkpoints" / self.study.name

    @property
    def provenance(self) -> dict[str, str]:
        """Tags that every run and the model version carry."""
        return {
            **environment_tags(self.environment),
            "forge.dataset_version": self.dataset.version,
            "forge.dataset_digest": self.dataset.digest,
            "forge.contract": self.experiment.contract(),
            "optuna.study_name": self.study.name,
        }

    def child(self, name: str, kind: str, params: Mapping[str, Any], **tags: str) -> Run:
        """Open a child run, or the one that an earlier process left; ``name`` is unique within the sweep."""
        run = self.tracker.run(
            f"{self.key}/{name}",
            name,
            kind=kind,
            parent=self.key,
            tags={**self.provenance, "forge.state": "running", **tags},
            params=params,
        )
        self.log_dataset(run)
        return run

    def log_dataset(self, run: Run) -> None:
        """Name the data that a run was trained on."""
        run.log_dataset(
            self.dataset.name,
            digest=self.dataset.digest,
            version=self.dataset.version,
            source=self.dataset.source,
            columns={str(name): str(dtype) for name, dtype in self.dataset.train.features.dtypes.items()},
            profile={"num_rows": sum(self.dataset.sizes.values()), "splits": dict(self.dataset.sizes)},
        )


def seed_of(root: int, *purpose: str | int) -> int:
    """A 32-bit seed from the experiment's seed and what it is for, such as ``("trial", 7)``.

    Hashed, so that neighbouring trials and experiments share nothing.
    """
    text = ":".join(map(str, (root, *purpose)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")
