"""Looking at the runs of a sweep as MLflow has them, and putting single ones right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from forge_sweep.environment import without_credentials
from forge_sweep.errors import InputError, TrackingDown
from forge_sweep.tracking import calls, registration, writes
from forge_sweep.tracking import store as stores
from forge_sweep.tracking.journal import Journal
from forge_sweep.tracking.runs import EPOCH_TAG, now_ms, stored_params
from forge_sweep.tracking.session import KEY_TAG, PARENT_TAG, Session, file_name

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

SHARED_TAGS = ("forge.dataset_", "forge.contract", EPOCH_TAG, "optuna.study_name", "mlflow.source")
"""Tags of a parent that hold for each of its trials."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Found:
    """A run as MLflow has it.

    Attributes:
        key: its key, "" for one that is not ours.
        id: MLflow's id.
        name: in the UI.
        status: FINISHED, KILLED, FAILED, SCHEDULED or RUNNING.
        tags: all of them.
        metrics: last value of each.
    """

    key: str
    id: str
    name: str
    status: str
    tags: Mapping[str, str]
    metrics: Mapping[str, float]


def _asked(method: Callable[Concatenate[Review, _P], _T]) -> Callable[Concatenate[Review, _P], _T]:
    """Turn what MLflow raises into `TrackingDown` or `InputError`."""

    @wraps(method)
    def call(self: Review, /, *words: _P.args, **options: _P.kwargs) -> _T:
        with stores.translated("the review of a sweep's runs"):
            return method(self, *words, **options)

    return call


class Review:
    """The runs of one MLflow experiment. Reading writes nothing, not even what waits in the journal.

    Args:
        experiment_name: the MLflow experiment.
        store: folder of the embedded stores and the journal.
        sweep: key of the sweep, whose runs are found wherever they are by now.
    """

    def __init__(self, experiment_name: str, store: Path, sweep: str = "") -> None:
        self._session = Session(stores.default_uri(store), store, experiment_name, "", sweep=sweep)
        self._journal = Journal(store.absolute() / "journal", file_name(experiment_name))

    @property
    def address(self) -> str:
        """The tracking address without credentials, for people."""
        return without_credentials(self._session.uri)

    @property
    def is_embedded(self) -> bool:
        """Whether the store is the database in its own folder."""
        return self._session.uri == stores.embedded_uri(self._session.store)

    @property
    def unwritten(self) -> str:
        """Writes that wait in the journal, and those that MLflow refused, in words; "" where there are none."""
        waiting, refused = len(self._journal), self._journal.set_aside
        words = [f"{waiting} writes wait"] * bool(waiting) + [f"{refused} writes were refused"] * bool(refused)
        return ", ".join(words)

    @_asked
    def with_key(self, key: str) -> list[Found]:
        """Runs with this key."""
        if not self._homes():
            return []
        return [_found(run) for run in self._session.all_runs(f"tags.`{KEY_TAG}` = '{key}'", self._homes())]

    def _homes(self) -> list[str]:
        """The experiments that may hold runs of the sweep; none where nothing was ever written."""
        found = self._session.client.get_experiment_by_name(self._session.experiment)
        if found is not None and found.lifecycle_stage != "active" and not self._session.homes:
            return [self._session.experiment_id]  # which says how to get it back
        own = [] if found is None else [str(found.experiment_id)]
        return list(dict.fromkeys([*self._session.homes, *own]))

    @_asked
    def below(self, key: str, parent: Found | None) -> list[Found]:
        """All runs of a sweep but its parent: by their keys, whatever they are under, and what is under the parent."""
        if not self._homes():
            return []
        found = self._session.all_runs(f"tags.`{KEY_TAG}` LIKE '{key}/%'", self._homes())
        if parent is not None:
            found += self._session.all_runs(f"tags.{PARENT_TAG} = '{parent.id}'", self._homes())
        return list({run.info.run_id: _found(run) for run in found}.values())

    @_asked
    def sweeps(self, study: str) -> list[Found]:
        """The parent runs of sweeps of a study by this name, whichever study that was."""
        if not self._homes():
            return []
        condition = f"tags.`forge.kind` = 'sweep' and tags.`optuna.study_name` = '{study}'"
        return [_found(run) for run in self._session.all_runs(condition, self._homes())]

    @_asked
    def half_registered(self, runs: Sequence[Found]) -> list[tuple[Found, str]]:
        """Runs with the id of a logged model that a kill left incomplete."""
        return [(run, model) for run in runs for model in registration.unfinished(self._session, run.id)]

    @_asked
    def remove_model(self, model_id: str) -> None:
        """Move a logged model to MLflow's bin."""
        self._session.client.delete_logged_model(model_id)

    @_asked
    def is_registered(self, model: str) -> bool:
        """Whether ``models:/NAME/VERSION`` is there, with its files."""
        name, _, version = model.removeprefix("models:/").rpartition("/")
        return registration.is_there(self._session.client, name, version)

    @_asked
    def has_lost_alias(self, model: str) -> bool:
        """See `Tracker.has_lost_alias`."""
        name, _, version = model.removeprefix("models:/").rpartition("/")
        return registration.lacks_alias(self._session.client, name, version)

    @_asked
    def set_alias(self, model: str) -> None:
        """Make ``models:/NAME/VERSION`` the challenger."""
        name, _, version = model.removeprefix("models:/").rpartition("/")
        registration.set_alias(self._session.client, name, version)

    @_asked
    def curves(self, run: Found) -> Counter[tuple[str, int]]:
        """How many points there are of each (metric, step)."""
        client = self._session.client
        return Counter((name, p.step) for name in run.metrics for p in client.get_metric_history(run.id, name))

    @_asked
    def end(self, run: Found, status: str) -> None:
        """Set a status, and our own state with it."""
        self._session.client.set_tag(run.id, "forge.state", writes.STATES[status])
        calls.end(self._session, run.id, status, now_ms())

    @_asked
    def set_tags(self, run: Found, tags: Mapping[str, str]) -> None:
        """Set tags; those with an empty value are removed."""
        for name, value in tags.items():
            if value:
                self._session.client.set_tag(run.id, name, value)
            elif name in run.tags:
                self._session.client.delete_tag(run.id, name)

    @_asked
    def log(self, run: Found, metrics: Mapping[str, float], step: int = 0) -> None:
        """Add points."""
        for name, value in metrics.items():
            self._session.client.log_metric(run.id, name, value, now_ms(), step)

    @_asked
    def make(
        self,
        key: str,
        name: str,
        kind: str,
        parent: Found | None,
        params: Mapping[str, object],
        tags: Mapping[str, object],
    ) -> Found:
        """A run that is missing, under its parent and with what the parent says of data and code."""
        above = {} if parent is None else {PARENT_TAG: parent.id}
        shared = {
            name: value for name, value in (parent.tags if parent else {}).items() if name.startswith(SHARED_TAGS)
        }
        own = {"forge.kind": kind, "forge.reconciled": "from the study", KEY_TAG: key, **above}
        all_tags = {**shared, **{name: str(value) for name, value in tags.items()}, **own}
        client = self._session.client
        made = client.create_run(self._session.experiment_id, now_ms(), all_tags, name)
        calls.log_params(self._session, made.info.run_id, stored_params(params))
        return _found(client.get_run(made.info.run_id))

    @_asked
    def restore(self, key: str) -> bool:
        """Take a run back from MLflow's bin, of several the one with the most curves; False where none is there."""
        from mlflow.entities import ViewType

        client = self._session.client
        condition = f"tags.`{KEY_TAG}` = '{key}'"
        where = self._homes() or [self._session.experiment_id]
        binned = client.search_runs(where, condition, run_view_type=ViewType.DELETED_ONLY)
        if not binned:
            return False
        client.restore_run(max(binned, key=lambda run: len(run.data.metrics)).info.run_id)
        return True

    @_asked
    def delete(self, run: Found) -> None:
        """Move a run to MLflow's bin."""
        self._session.client.delete_run(run.id)

    @_asked
    def rewrite(self, run: Found, end: int | None = None) -> None:
        """Put a copy in a run's place that has the first point of each step only; MLflow deletes no single point.

        Args:
            run: the run.
            end: steps from there on are left out; None leaves none out.
        """
        from mlflow.entities import Metric, Param

        client = self._session.client
        old = client.get_run(run.id)
        first: dict[tuple[str, int], Metric] = {}
        for name in run.metrics:
            for point in client.get_metric_history(run.id, name):
                if end is None or point.step < end:
                    first.setdefault((name, point.step), point)
        made = client.create_run(old.info.experiment_id, old.info.start_time, dict(old.data.tags), run.name)
        id = made.info.run_id
        params = [Param(name, value) for name, value in old.data.params.items()]
        for i in range(0, len(params), calls.VALUES_PER_BATCH):
            client.log_batch(id, params=params[i : i + calls.VALUES_PER_BATCH])
        points = list(first.values())
        for i in range(0, len(points), calls.METRICS_PER_BATCH):
            client.log_batch(id, metrics=points[i : i + calls.METRICS_PER_BATCH])
        if old.inputs is not None:
            client.log_inputs(id, old.inputs.dataset_inputs)
        calls.end(self._session, id, run.status, old.info.end_time or now_ms())
        client.delete_run(run.id)


def model_is_there(model: str, store: Path) -> bool | None:
    """Whether ``models:/NAME/VERSION`` is there with its files; None where the store does not answer.

    Makes no store where there is none.
    """
    try:
        uri = stores.existing_uri(store)
    except InputError:
        return False
    name, _, version = model.removeprefix("models:/").rpartition("/")
    try:
        with stores.translated(f"a look for {model}"):
            return registration.is_there(stores.connect(uri, store, reading=True), name, version)
    except (TrackingDown, InputError):
        return None


def _found(run: MlflowRun) -> Found:
    tags = dict(run.data.tags)
    info = run.info
    return Found(tags.get(KEY_TAG, ""), info.run_id, info.run_name or "", info.status, tags, dict(run.data.metrics))
