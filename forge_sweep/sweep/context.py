"""What every phase of a sweep needs, as one value, and the names that runs, seeds and files get."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forge_sweep.environment import Environment
from forge_sweep.errors import TrialFailed
from forge_sweep.experiment import Experiment
from forge_sweep.sources import Dataset
from forge_sweep.study import Study
from forge_sweep.sweep import metering
from forge_sweep.sweep.budget import Budget
from forge_sweep.sweep.metering import Account
from forge_sweep.sweep.orders import Outcome
from forge_sweep.sweep.phases import Stopwatch
from forge_sweep.tracking import EPOCH_TAG, Run, Status, Tracker, environment_tags


class Interrupted(KeyboardInterrupt):
    """The user asked to stop; the running trial went back into the queue. No `Exception`: nothing may swallow it."""


class BudgetOver(Interrupted):
    """A budget of the search was used up in mid-trial; the trial went back into the queue, and the sweep goes on."""


@dataclass(frozen=True)
class Event:
    """Something that happened, for whoever watches.

    Attributes:
        kind: ``phase``, ``features``, ``finding``, ``message``, ``baseline_started``, ``baseline``, ``trial_started``,
            ``epoch``, ``trial_done``, ``confirming``, ``confirm_started`` or ``confirm``.
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
        study: the Optuna study, which this process holds or joined.
        tracker: the MLflow store.
        environment: machine, packages, image and commit.
        store: folder of the embedded stores and of checkpoints.
        key: identity of the parent run; the keys of its children begin with it.
        watch: told of every event.
        stopping: true once the user asked to stop.
        lock: one worker at a time tells.
        stopwatch: how long each phase takes; it keeps nothing for a process that joined.
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
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    def tell(self, kind: str, **data: Any) -> None:
        """Tell whoever watches; a watcher need not be made for threads."""
        with self.lock:
            self.watch(Event(kind, data))

    @property
    def checkpoints(self) -> Path:
        """Folder of everything that is deleted once the sweep is complete."""
        return self.store / "checkpoints" / self.study.name

    @property
    def arrays(self) -> Path:
        """Folder of the arrays that the workers of this process share."""
        return self.checkpoints / ("arrays" if self.study.coordinates else f"arrays-{self.study.owner}")

    @functools.cached_property
    def first_epoch(self) -> int:
        """Number that people see of the first epoch; a sweep that an older version began goes on counting from 0."""
        return int(self.study.notes("sweep:")["sweep:begin"].get("first_epoch", 0))

    @functools.cached_property
    def budget(self) -> Budget:
        """What the search may still spend."""
        say = functools.partial(self.tell, "message", severity="warning")
        return Budget(self.study, self.study.resolved["study"], lambda text: say(text=text), metering.CLOCKS)

    @functools.cached_property
    def environment_digest(self) -> str:
        """Names the environment: 12 digits of the SHA-256 over all that is known of it."""
        text = json.dumps(self.environment.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def provenance(self) -> dict[str, str]:
        """Tags that every run and the model version carry."""
        normalization = self.dataset.normalization_version
        return {
            **environment_tags(self.environment),
            "forge.dataset_version": self.dataset.version,
            "forge.dataset_digest": self.dataset.digest,
            "forge.split_digest": self.dataset.split_digest,
            **({"forge.normalization_version": normalization} if normalization else {}),
            "forge.contract": self.experiment.contract(),
            "forge.environment": self.environment_digest,
            "optuna.study_name": self.study.name,
            EPOCH_TAG: str(self.first_epoch),
        }

    def child(self, name: str, kind: str, params: Mapping[str, Any], **tags: str) -> Run:
        """Open a child run, or the one that an earlier process left; ``name`` is unique within the sweep."""
        return self.open_run(name, kind, params, tags)

    def open_run(
        self, name: str, kind: str, params: Mapping[str, Any], tags: Mapping[str, str], *, new: bool = False
    ) -> Run:
        """The same; where it is known that no process can have opened it yet (``new``), none is looked for."""
        return self.tracker.run(
            f"{self.key}/{name}",
            name,
            kind=kind,
            parent=self.key,
            tags={**self.provenance, "forge.state": "running", **tags},
            params=params,
            dataset=self.used,
            new=new,
        )

    @functools.cached_property
    def used(self) -> dict[str, Any]:
        """The data that every run is trained on, in the words of `Run.log_dataset`."""
        return {
            "name": self.dataset.name,
            "digest": self.dataset.digest,
            "version": self.dataset.version,
            "source": self.dataset.source,
            "columns": {str(name): str(dtype) for name, dtype in self.dataset.train.features.dtypes.items()},
            "profile": {"num_rows": sum(self.dataset.sizes.values()), "splits": dict(self.dataset.sizes)},
        }


def baseline_values(context: Context) -> dict[str, float]:
    """The objective of every fitted baseline, the best one first."""
    notes = context.study.notes("baseline:")
    values = {
        name.removeprefix("baseline:"): note["value"] for name, note in notes.items() if note["value"] is not None
    }
    wanted = [kind for kind in context.experiment.baselines.kinds if kind in values]
    return {kind: values[kind] for kind in sorted(wanted, key=lambda kind: rank(context, values[kind]))}


def finish(
    run: Run,
    state: str,
    status: Status,
    metrics: Mapping[str, float] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """End a run with its last figures and tags, and our own state beside MLflow's status."""
    run.finish(status, metrics=metrics, tags={**(tags or {}), "forge.state": state})


def finish_failed(run: Run, failure: TrialFailed) -> None:
    """End a run as failed, saying why."""
    finish(run, "failed", "FAILED", tags={"forge.failure": failure.failure, "forge.cause": failure.message})


def stop_if_asked(context: Context) -> None:
    """Leave the sweep where the user asked to, or where another process carries it by now."""
    if context.stopping():
        raise Interrupted
    context.study.check_held()
    context.stopwatch.tick()


def rank(context: Context, value: float) -> float:
    """A key that sorts the best objective first."""
    return -value if context.experiment.direction == "maximize" else value


def finite(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics that JSON can hold."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def summary(context: Context, outcome: Outcome) -> dict[str, float]:
    """What every training that ended says of itself, a network's or a tree's, so that all runs sort together.

    ``best_val_auc`` and so on are those of the model that is kept; the curves of the same name end where the training
    did. Of a tree there is one value, which stands under both names.
    """
    figures = {f"best_{name}": value for name, value in outcome.metrics.items()}
    figures[f"best_{context.experiment.objective.metric}"] = outcome.value
    if not outcome.epochs:
        return {**outcome.metrics, **figures}
    return {**figures, "best_epoch": outcome.best_epoch + context.first_epoch, "epochs_run": outcome.epochs}


class OnEpoch:
    """What happens after each epoch; keeps errors of its own apart from errors of the training.

    Args:
        context: the sweep.
        run: where the curves go.
        then: called with (epoch, metrics) first; its answer is whether to prune.
        account: what the training costs is put to it.

    Attributes:
        error: what went wrong in here, if anything did.
    """

    def __init__(
        self,
        context: Context,
        run: Run,
        then: Callable[[int, Mapping[str, float]], bool],
        account: Account | None = None,
    ) -> None:
        self.context = context
        self.run = run
        self.then = then
        self.account = account
        self.error: Exception | None = None

    def __call__(self, epoch: int, metrics: dict[str, float] | None) -> bool:
        """Log the epoch and ask what comes then; without metrics: so many epochs were there already."""
        if metrics is None:
            if self.account is not None:
                self.account.taken_up(epoch)
            return False
        try:
            stop_if_asked(self.context)
            prune = self.then(epoch, metrics)
            self.run.log_epoch(
                epoch + self.context.first_epoch, metrics
            )  # last: a trial that another process runs by now gets no point twice
            return prune
        except Exception as error:
            self.error = error
            raise
