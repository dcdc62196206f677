"""The writes of a run, as plain values that can be queued in a journal and applied twice; the session they go to.

Each refers to its run by `key`, since MLflow's id does not exist while the store is down. The status is written last,
so a run that has ended is complete.
"""

from __future__ import annotations

import logging
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from forge_sweep import jsons
from forge_sweep.errors import InputError
from forge_sweep.tracking import client as clients
from forge_sweep.tracking.journal import Journal, Record

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput
    from mlflow.entities import Run as MlflowRun

KEY_TAG = "forge.key"
PARENT_TAG = "mlflow.parentRunId"
EPOCH_TAG = "forge.first_epoch"  # a run's number for it; runs of sweeps that began without the tag count from 0

Status = Literal["FINISHED", "KILLED", "FAILED", "SCHEDULED"]
STATES = {"FINISHED": "finished", "KILLED": "pruned", "FAILED": "failed", "SCHEDULED": "waiting"}  # tag forge.state
FINAL = ("FINISHED", "KILLED", "FAILED")

DIGEST_LENGTH = 32  # MLflow's field holds 36 characters; the whole digest is a tag
SCHEMA_LENGTH = 1_000_000
PARAM_LENGTH, TAG_LENGTH = 6000, 8000  # MLflow cuts longer values in silence

METRICS_PER_BATCH, VALUES_PER_BATCH = 800, 100  # points, and params or tags: together MLflow's limit of 1,000

Row = tuple[str, float, int, int]  # metric, value, milliseconds since 1970, step
Points = dict[tuple[str, int], float]  # (metric, step) -> value

_log = logging.getLogger("forge_sweep")


@dataclass(frozen=True)
class Write(ABC):
    """One write to the run with this key."""

    op: ClassVar[str]
    key: str

    @abstractmethod
    def apply(self, session: Session) -> None:
        """Apply the write; idempotent."""

    def kept(self, journal: Journal) -> Write:
        """The same write, safe to queue: files it names are copied."""
        return self.again()

    def again(self) -> Write:
        """The same write, for use after an attempt whose outcome is unknown."""
        return self

    def late(self, session: Session) -> None:
        """Apply the write after newer ones, without overwriting what they wrote."""
        self.apply(session)

    def to_record(self) -> Record:
        """The write as JSON-able values."""
        return {"op": self.op, **asdict(self)}


@dataclass(frozen=True)
class Open(Write):
    """Create the run, or set the existing one with this key to RUNNING again."""

    op = "open"
    name: str
    parent: str | None  # its key
    tags: Mapping[str, str]
    params: Mapping[str, str]  # logged unless the run already has them
    started: int  # milliseconds since 1970
    dataset: Mapping[str, Any] | None = None  # the fields of its `DatasetUse`
    new: bool = False  # no run with this key can exist, so the search is skipped

    def apply(self, session: Session) -> None:
        """See class."""
        tags = {**self.tags, **self._nesting(session), KEY_TAG: self.key}
        used = None if self.dataset is None else DatasetUse(self.key, **self.dataset)
        run_id = session.known_id(self.key) if self.new else session.find(self.key)
        if run_id is None:
            tags |= used.tags if used else {}
            run_id = session.client.create_run(session.experiment_id, self.started, tags, self.name).info.run_id
            log_batch(session, run_id, params=self.params)
            if used is not None:
                session.client.log_inputs(run_id, [used.link])
            session.created(self.key, run_id)
            return
        session.closed(self.key)  # another process may have written to it since
        session.client.update_run(run_id, status="RUNNING")
        for name in sorted({"forge.failure", "forge.cause"} & set(session.client.get_run(run_id).data.tags)):
            session.client.delete_tag(run_id, name)  # of an end that is no longer the end
        Tags(self.key, tags).apply(session)
        Params(self.key, self.params).apply(session)
        if used is not None:
            used.apply(session)

    def again(self) -> Write:
        """See `Write`: this attempt searches for the run."""
        return replace(self, new=False)

    def late(self, session: Session) -> None:
        """See `Write`."""
        if session.find(self.key) is None:
            self.again().apply(session)
            return
        Tags(self.key, {**self.tags, **self._nesting(session)}).late(session)
        Params(self.key, self.params).apply(session)

    def _nesting(self, session: Session) -> dict[str, str]:
        return {} if self.parent is None else {PARENT_TAG: session.run_id(self.parent)}


@dataclass(frozen=True)
class Params(Write):
    """Log params; existing ones keep their values (MLflow refuses a change)."""

    op = "params"
    values: Mapping[str, str]

    def apply(self, session: Session) -> None:
        """See class."""
        if not self.values:
            return
        run_id = session.run_id(self.key)
        logged = session.client.get_run(run_id).data.params
        for name in (name for name, value in self.values.items() if logged.get(name, value) != value):
            _log.warning("%s keeps %s = %s: an MLflow param cannot be changed", self.key, name, logged[name])
        log_batch(session, run_id, params={k: value for k, value in self.values.items() if k not in logged})


@dataclass(frozen=True)
class Tags(Write):
    """Set tags."""

    op = "tags"
    values: Mapping[str, str]

    def apply(self, session: Session) -> None:
        """See class."""
        log_batch(session, session.run_id(self.key), tags=self.values)

    def late(self, session: Session) -> None:
        """See `Write`."""
        run_id = session.run_id(self.key)
        known = session.client.get_run(run_id).data.tags
        log_batch(session, run_id, tags={name: value for name, value in self.values.items() if name not in known})


@dataclass(frozen=True)
class Metrics(Write):
    """Log points."""

    op = "metrics"
    rows: Sequence[Row]
    once: bool  # skip steps that are already logged (curves); otherwise only identical values are skipped

    def apply(self, session: Session) -> None:
        """See class."""
        new = _missing(session, self.key, self.rows, once=self.once)
        log_batch(session, session.run_id(self.key), new)
        session.points(self.key).update({(name, step): value for name, value, _, step in new})


@dataclass(frozen=True)
class DatasetUse(Write):
    """Record the dataset as an input of the run, and in its tags."""

    op = "dataset"
    name: str
    digest: str  # our SHA-256 over all rows, 64 hex digits
    version: str
    source: str  # path or name it came from
    columns: Mapping[str, str]  # names and types, such as ``{"age": "float64"}``
    profile: Mapping[str, Any]  # JSON-able figures, such as ``{"num_rows": 569}``
    context: str = "training"

    def apply(self, session: Session) -> None:
        """See class."""
        session.client.log_inputs(session.run_id(self.key), [self.link])
        Tags(self.key, self.tags).apply(session)

    @property
    def tags(self) -> dict[str, str]:
        """Version and digest of the dataset, as tags."""
        return {"forge.dataset_version": self.version, "forge.dataset_digest": self.digest}

    @property
    def link(self) -> DatasetInput:
        """The dataset as MLflow's input of a run."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        columns = [{"name": name, "type": kind, "required": True} for name, kind in self.columns.items()]
        schema = jsons.dumps({"mlflow_colspec": columns})
        dataset = Dataset(
            name=self.name,
            digest=self.digest[:DIGEST_LENGTH],
            source_type="local",
            source=jsons.dumps({"uri": self.source}),
            schema=schema if len(schema) <= SCHEMA_LENGTH else None,
            profile=jsons.dumps(self.profile),
        )
        return DatasetInput(dataset, [InputTag("mlflow.data.context", self.context)])


@dataclass(frozen=True)
class Text(Write):
    """Save a text as an artifact; `path` is its full path in the run."""

    op = "text"
    text: str
    path: str

    def apply(self, session: Session) -> None:
        """See class."""
        session.client.log_text(session.run_id(self.key), self.text, self.path)


@dataclass(frozen=True)
class File(Write):
    """Save a file as an artifact under its own name in `folder` of the run ("" is the root)."""

    op = "file"
    source: str
    folder: str

    def apply(self, session: Session) -> None:
        """See class."""
        if not Path(self.source).is_file():  # here, where it was copied to: no fault of the store
            raise InputError(f"the file {self.source} of the run {self.key!r} is gone", hint="log it again")
        session.client.log_artifact(session.run_id(self.key), self.source, self.folder or None)

    def kept(self, journal: Journal) -> Write:
        """The same write of a copy, since the file may change or disappear."""
        return replace(self, source=str(journal.keep(Path(self.source))))


@dataclass(frozen=True)
class End(Write):
    """The last points, metrics and tags of a run, then its final status."""

    op = "end"
    rows: Sequence[Row]  # points of curves; steps that are already logged are skipped
    figures: Sequence[Row]  # other points; only identical values are skipped
    tags: Mapping[str, str]
    status: str  # SCHEDULED means that the run will be reopened
    ended: int  # milliseconds since 1970

    def apply(self, session: Session) -> None:
        """See class."""
        run_id = session.run_id(self.key)
        curves = _missing(session, self.key, self.rows, once=True)
        figures = _missing(session, self.key, self.figures, once=False)
        log_batch(session, run_id, curves + figures, tags=self.tags)
        end(session, run_id, self.status, self.ended)
        session.closed(self.key)

    def late(self, session: Session) -> None:
        """See `Write`."""
        if session.client.get_run(session.run_id(self.key)).info.status not in FINAL:
            self.apply(session)
            return
        Metrics(self.key, (*self.rows, *self.figures), once=True).apply(session)
        Tags(self.key, self.tags).late(session)
        session.closed(self.key)


@dataclass(frozen=True)
class Reap(Write):
    """Give unfinished child runs the status that the study has; `key` is the parent's."""

    op = "reap"
    states: Mapping[str, str]  # by run key; RUNNING marks a run that is alive, and one not listed died with its worker
    ended: int

    def apply(self, session: Session) -> None:
        """See class."""
        unfinished = " and ".join(f"attributes.status != '{status}'" for status in FINAL)
        for run in session.all_runs(f"tags.{PARENT_TAG} = '{session.run_id(self.key)}' and {unfinished}"):
            key, run_id = run.data.tags.get(KEY_TAG, ""), run.info.run_id
            status = self.states.get(key, "FAILED")
            if status == "RUNNING":
                continue
            session.client.set_tag(run_id, "forge.state", STATES[status])
            if key not in self.states:
                session.client.set_tag(run_id, "forge.failure", "lost-worker")
            end(session, run_id, status, self.ended)

    def late(self, session: Session) -> None:
        """Does nothing: the study may have changed since, and each start reaps again."""


def from_record(record: Record) -> Write:
    """The write that a journal's record describes; InputError if it is of an unknown kind or misses a field."""
    kinds = {kind.op: kind for kind in (Open, Params, Tags, Metrics, DatasetUse, Text, File, End, Reap)}
    fields = {name: value for name, value in record.items() if name != "op"}
    try:
        if record["op"] == "finish":  # of an earlier version
            return End(**fields, rows=(), figures=(), tags={})
        return kinds[record["op"]](**fields)
    except (KeyError, TypeError) as error:
        raise InputError(f"unreadable journal record: {error!r}") from error


def log_batch(
    session: Session,
    run_id: str,
    rows: Sequence[Row] = (),
    *,
    params: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write points, new params and tags in as few requests as MLflow takes."""
    from mlflow.entities import Metric, Param, RunTag

    def parts_of(values: list[Any], size: int) -> Iterator[list[Any]]:
        return (values[i : i + size] for i in range(0, len(values), size))

    parts = zip_longest(
        parts_of([Metric(*row) for row in rows], METRICS_PER_BATCH),
        parts_of([Param(*each) for each in (params or {}).items()], VALUES_PER_BATCH),
        parts_of([RunTag(*each) for each in (tags or {}).items()], VALUES_PER_BATCH),
        fillvalue=(),
    )
    for some_metrics, some_params, some_tags in parts:
        session.client.log_batch(run_id, some_metrics, some_params, some_tags)


def end(session: Session, run_id: str, status: str, ended: int) -> None:
    """Set a run's status, on the disk when this returns; only a final one has an end time."""
    if status == "SCHEDULED":
        session.client.update_run(run_id, status=status)
    else:
        session.client.set_terminated(run_id, status, ended)
    clients.sync(session.uri)


def _missing(session: Session, key: str, rows: Sequence[Row], *, once: bool) -> list[Row]:
    """The points that a run lacks; see `Metrics`."""
    logged = session.points(key) if rows else {}
    new: dict[tuple[str, int], Row] = {}
    for row in rows:
        (name, value, _, step), seen = row, logged.get((row[0], row[3]))
        if seen is None or not (once or seen == value):
            new.setdefault((name, step), row)
    return list(new.values())


class Session:
    """One connection to the store, with a cache of experiment, run ids and logged points.

    With the key of an earlier sweep, its runs are searched in all experiments, since an experiment may be renamed.
    """

    def __init__(self, uri: str, store: Path, experiment: str, description: str, sweep: str) -> None:
        self.uri = uri
        self.store = store
        self.experiment = experiment
        self._description = description
        self._sweep = sweep
        self._ids: dict[str, str] = {}
        self._points: dict[str, Points] = {}

    @cached_property
    def client(self) -> MlflowClient:
        """The client; the first use connects, and creates the store if necessary."""
        clients.sync_at_ends(self.uri)
        return clients.connect(self.uri, self.store)

    @cached_property
    def experiment_id(self) -> str:
        """The experiment's id; the first use creates it."""
        found = self.client.get_experiment_by_name(self.experiment)
        named = "" if found is None or found.lifecycle_stage != "active" else str(found.experiment_id)
        if (homes := self.homes) and named not in homes:
            name = self.client.get_experiment(homes[0]).name
            _log.warning("the MLflow experiment %s was renamed to %s: its sweep continues there", self.experiment, name)
            return homes[0]
        if found is None:
            tags = {"mlflow.experimentKind": "custom_model_development"}
            if self._description:
                tags["mlflow.note.content"] = self._description
            location = clients.artifact_location(self.uri, self.store, file_name(self.experiment))
            with clients.tolerating(clients.EXISTS):
                return str(self.client.create_experiment(self.experiment, location, tags))
            found = self.client.get_experiment_by_name(self.experiment)  # another process was quicker
        if found is None or found.lifecycle_stage != "active":
            id = "ID" if found is None else found.experiment_id
            raise InputError(
                f"the MLflow experiment {self.experiment!r} was deleted",
                hint=f"restore it: mlflow experiments restore --experiment-id {id}, or choose another name",
            )
        clients.refuse_moved(str(found.artifact_location), self.uri, self.store)
        return str(found.experiment_id)

    @cached_property
    def homes(self) -> list[str]:
        """Ids of the experiments that contain runs of the sweep, the one with its oldest run first."""
        if not self._sweep:
            return []
        ids = [str(each.experiment_id) for each in clients.every(self.client.search_experiments)]
        first: dict[str, int] = {}
        for run in self.all_runs(f"tags.`{KEY_TAG}` LIKE '{self._sweep}%'", ids):
            home = str(run.info.experiment_id)
            first[home] = min(first.get(home, run.info.start_time), run.info.start_time)
        return sorted(first, key=lambda home: first[home])

    def known_id(self, key: str) -> str | None:
        """The run's id, if it is cached."""
        return self._ids.get(key)

    def find(self, key: str) -> str | None:
        """The id of the run with this key, the oldest if there are several."""
        if key not in self._ids:
            where, order = list(dict.fromkeys([self.experiment_id, *self.homes])), ["attributes.start_time ASC"]
            runs = self.client.search_runs(where, f"tags.`{KEY_TAG}` = '{key}'", max_results=1, order_by=order)
            if not runs:
                return None
            self._ids[key] = runs[0].info.run_id
        return self._ids[key]

    def run_id(self, key: str) -> str:
        """The id of the run with this key; InputError if there is none in this experiment."""
        run_id = self.find(key)
        if run_id is None:
            raise InputError(f"no run with the key {key!r} in the MLflow experiment {self.experiment!r}")
        return run_id

    def points(self, key: str) -> Points:
        """The logged points of a run; the caller adds those it writes."""
        if key not in self._points:
            run_id = self.run_id(key)
            self._points[key] = {
                (name, point.step): point.value
                for name in self.client.get_run(run_id).data.metrics
                for point in self.client.get_metric_history(run_id, name)
            }
        return self._points[key]

    def created(self, key: str, run_id: str) -> None:
        """Cache a run that was just created: it has no points."""
        self._ids[key] = run_id
        self._points[key] = {}

    def closed(self, key: str) -> None:
        """Drop the points of a run, which take most of the memory."""
        self._points.pop(key, None)

    def all_runs(self, condition: str, experiments: Sequence[str] = ()) -> list[MlflowRun]:
        """Every matching run, by default of our experiment."""
        return clients.every(self.client.search_runs, list(experiments) or [self.experiment_id], condition)


def file_name(name: str) -> str:
    """A name as a safe file name; different names stay different."""
    safe = re.sub(r"[^\w.-]", lambda found: f"={ord(found.group()):02x}", name)
    return f"={safe}" if safe.startswith(".") else safe


def stored(values: Mapping[str, Any], limit: int) -> dict[str, str]:
    """Tags or params as MLflow stores them: text, up to `TAG_LENGTH` or `PARAM_LENGTH` characters."""
    texts = {name: str(value) for name, value in values.items()}
    for name in (name for name, text in texts.items() if len(text) > limit):
        _log.warning("%s is truncated to the %d characters that MLflow stores", name, limit)
        texts[name] = f"{texts[name][: limit - 3]}..."
    return texts


def now_ms() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)
