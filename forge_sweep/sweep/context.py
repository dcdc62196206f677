"""What every phase of a sweep needs, as one value."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_sweep.baselines import SPACES, tuned_name, untuned_kind
from forge_sweep.checks import findings
from forge_sweep.environment import Environment
from forge_sweep.errors import TrialFailed
from forge_sweep.experiment import Experiment
from forge_sweep.predictions import NOTE
from forge_sweep.sources import Dataset
from forge_sweep.study import Study
from forge_sweep.sweep import budget
from forge_sweep.sweep.budget import Budget, Stopwatch
from forge_sweep.tracking import EPOCH_TAG, Run, Status, Tracker, environment_tags

if TYPE_CHECKING:
    from forge_sweep.bundle import Bundle


class Interrupted(KeyboardInterrupt):
    """The user asked to stop; the running trial went back into the queue. No `Exception`: nothing may swallow it."""


class BudgetOver(Interrupted):
    """A budget of the search was exhausted in mid-trial; the trial went back into the queue, and the sweep goes on."""


@dataclass(frozen=True)
class Event:
    """Something that happened, for whoever watches.

    Attributes:
        kind: ``phase``, ``features``, ``finding``, ``message``, ``baseline_started``, ``baseline``, ``trial_started``,
            ``epoch`` (within the ``part`` of a trial that has several: folds or rungs), ``part``, ``trial_done``,
            ``confirming``, ``confirm_started``, ``confirm``, ``audit_started`` or ``audit``.
        data: JSON values.
    """

    kind: str
    data: Mapping[str, Any] = field(default_factory=dict)


Watch = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Watch nothing."""


def message(watch: Watch, text: str, severity: str = "info") -> None:
    """Say something to people."""
    watch(Event("message", {"text": text, "severity": severity}))


def warn_all(watch: Watch, texts: Iterable[str]) -> None:
    """Warn of each."""
    for text in texts:
        message(watch, text, "warning")


@dataclass(frozen=True, eq=False)
class Context:
    """One running sweep."""

    experiment: Experiment
    dataset: Dataset  # the test split is behind `Dataset.look_at_test`
    study: Study
    tracker: Tracker
    environment: Environment
    store: Path  # folder of the embedded stores and of checkpoints
    key: str  # of the parent run; the keys of its children begin with it
    watch: Watch
    stopping: Callable[[], bool]
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)  # keeps nothing for a process that joined
    fitted: dict[str, tuple[float, Bundle]] = field(default_factory=dict, repr=False)  # by kind; see `remember`
    loaded: dict[str, Bundle] = field(default_factory=dict, repr=False)  # by name; see `confirm.waiting_bundle`

    def enter(self, phase: str, **data: Any) -> None:
        """A phase begins."""
        self.stopwatch.enter(phase)
        self.tell("phase", name=phase, **data)

    def tell(self, kind: str, **data: Any) -> None:
        """Tell whoever watches; a watcher need not be made for threads."""
        with self.lock:
            self.watch(Event(kind, data))

    def warn(self, text: str) -> None:
        """Warn whoever watches."""
        self.tell("message", text=text, severity="warning")

    def inform(self, text: str) -> None:
        """Say what need not worry anybody."""
        self.tell("message", text=text, severity="info")

    def remember(self, kind: str, value: float, bundle: Bundle) -> None:
        """Keep boosted trees of one of the best two kinds: the test evaluation compares with such a one.

        They are small; a forest may take gigabytes, and is fitted again where it is wanted.
        """
        if (untuned_kind(kind) or kind) not in SPACES:
            return
        if kind not in self.fitted or rank(self, value) < rank(self, self.fitted[kind][0]):
            self.fitted[kind] = value, bundle
            for worst in sorted(self.fitted, key=lambda each: rank(self, self.fitted[each][0]))[2:]:
                del self.fitted[worst]

    @property
    def checkpoints(self) -> Path:
        """Folder of everything that is deleted once the sweep is complete."""
        return self.store / "checkpoints" / self.study.name

    @property
    def arrays(self) -> Path:
        """Folder of the arrays that the workers of this process share."""
        return self.checkpoints / ("arrays" if self.study.coordinates else f"arrays-{self.study.owner}")

    @property
    def link(self) -> str:
        """The UI's page with the curves of this sweep's trials, best first."""
        objective = self.experiment.objective.metric
        return self.tracker.link(self.key, f"best_{objective}", self.experiment.direction)

    @functools.cached_property
    def first_epoch(self) -> int:
        """Number that people see of the first epoch; a sweep that an older version began goes on counting from 0."""
        return int(self.study.notes("sweep:")["sweep:begin"].get("first_epoch", 0))

    @functools.cached_property
    def kept_rows(self) -> str:
        """Fingerprint of the validation rows, whose predictions are kept; "" where they are not. See `sweep.kept`."""
        return str(self.study.notes("predictions:").get(NOTE, {}).get("rows", ""))

    @functools.cached_property
    def budget(self) -> Budget:
        """What the search may still spend."""
        return Budget(self.study, self.study.resolved["study"], self.warn, budget.CLOCKS, self.stopwatch)

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

    def open_run(
        self,
        name: str,
        kind: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
        *,
        new: bool = False,
    ) -> Run:
        """Open a child run, or the one that an earlier process left; none is looked for where it is ``new``."""
        return self.tracker.run(
            f"{self.key}/{name}",
            name,
            kind=kind,
            parent=self.key,
            tags={**self.provenance, "forge.state": "running", **(tags or {})},
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
    """The objective of every fitted baseline, tuned ones included, the best one first."""
    notes = context.study.notes("baseline:")
    values = {
        name.removeprefix("baseline:"): note["value"] for name, note in notes.items() if note["value"] is not None
    }
    baselines = context.experiment.baselines
    wanted = [*baselines.kinds, *(map(tuned_name, baselines.kinds) if baselines.tune else ())]
    wanted = [kind for kind in wanted if kind in values]
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
    tags = {"forge.failure": failure.failure, "forge.cause": failure.message}
    finish(run, "failed", "FAILED", tags=tags | findings.tags(failure.findings))


def stop_if_asked(context: Context) -> None:
    """Leave the sweep where the user asked to, or where another process runs it by now."""
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
