"""The writes a run can make, as plain values that may wait in a journal and may be applied twice.

Each knows its run by `key`, not by MLflow's id: while the store is down there is no id yet.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from forge_sweep import jsons
from forge_sweep.errors import InputError
from forge_sweep.tracking.calls import end, log, log_params, missing, remember
from forge_sweep.tracking.direct import Row, Unusual
from forge_sweep.tracking.journal import Journal, Record
from forge_sweep.tracking.session import KEY_TAG, PARENT_TAG, Session

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

Status = Literal["FINISHED", "KILLED", "FAILED", "SCHEDULED"]

STATES = {"FINISHED": "finished", "KILLED": "pruned", "FAILED": "failed", "SCHEDULED": "waiting"}  # tag forge.state

FINAL = ("FINISHED", "KILLED", "FAILED")

DIGEST_LENGTH = 32  # MLflow's field holds 36 characters; the whole digest is a tag
SCHEMA_LENGTH = 1_000_000

_log = logging.getLogger("forge_sweep")


@dataclass(frozen=True)
class Write(ABC):
    """One write.

    Attributes:
        key: the run's key.
    """

    op: ClassVar[str]
    key: str

    @abstractmethod
    def apply(self, session: Session) -> None:
        """Make the write; applied again, it changes nothing."""

    def kept(self, journal: Journal) -> Write:
        """The same write, safe to wait: files it names are copied."""
        return self.again()

    def again(self) -> Write:
        """The same write where an earlier attempt may have got through unseen."""
        return self

    def late(self, session: Session) -> None:
        """Make the write after others that came later: what the run got from them stays."""
        self.apply(session)

    def to_record(self) -> Record:
        """The write as JSON-able values."""
        return {"op": self.op, **asdict(self)}


@dataclass(frozen=True)
class Open(Write):
    """Create the run, or set the one with this key running again.

    Attributes:
        name: name in the UI.
        parent: key of the parent run, or None.
        tags: set on both ways.
        params: logged where the run has none of that name yet.
        started: milliseconds since 1970.
        dataset: the fields of its `DatasetUse`, or None.
        new: there cannot be a run with this key yet, so none is looked for.
    """

    op = "open"
    name: str
    parent: str | None
    tags: Mapping[str, str]
    params: Mapping[str, str]
    started: int
    dataset: Mapping[str, Any] | None = None
    new: bool = False

    def apply(self, session: Session) -> None:
        """See class."""
        tags = {**self.tags, **self._nesting(session), KEY_TAG: self.key}
        used = None if self.dataset is None else DatasetUse(self.key, **self.dataset)
        run_id = session.known_id(self.key) if self.new else session.find(self.key)
        if run_id is None:
            session.created(self.key, self._create(session, tags, used))
        else:
            self._open_again(session, run_id, tags, used)

    def again(self) -> Write:
        """See `Write`: this attempt looks for the run."""
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

    def _create(self, session: Session, tags: Mapping[str, str], used: DatasetUse | None) -> str:
        about = {**tags, **(used.tags if used else {})}
        link = used.link if used else None
        if session.direct is not None:
            with suppress(Unusual):
                return session.direct.create(session.experiment_id, self.name, self.started, about, self.params, link)
        made: str = session.client.create_run(session.experiment_id, self.started, about, self.name).info.run_id
        log_params(session, made, self.params)
        if link is not None:
            session.client.log_inputs(made, [link])
        return made

    def _open_again(self, session: Session, run_id: str, tags: Mapping[str, str], used: DatasetUse | None) -> None:
        session.closed(self.key)  # another process may have written to it since
        session.client.update_run(run_id, status="RUNNING")
        for name in sorted({"forge.failure", "forge.cause"} & set(session.client.get_run(run_id).data.tags)):
            session.client.delete_tag(run_id, name)  # of an end that is no longer the end
        Tags(self.key, tags).apply(session)
        Params(self.key, self.params).apply(session)
        if used is not None:
            used.apply(session)


@dataclass(frozen=True)
class Params(Write):
    """Log params; those the run has already stay (MLflow refuses a change)."""

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
        log_params(session, run_id, {name: value for name, value in self.values.items() if name not in logged})


@dataclass(frozen=True)
class Tags(Write):
    """Set tags."""

    op = "tags"
    values: Mapping[str, str]

    def apply(self, session: Session) -> None:
        """See class."""
        log(session, session.run_id(self.key), (), self.values)

    def late(self, session: Session) -> None:
        """See `Write`."""
        run_id = session.run_id(self.key)
        known = session.client.get_run(run_id).data.tags
        log(session, run_id, (), {name: value for name, value in self.values.items() if name not in known})


@dataclass(frozen=True)
class Metrics(Write):
    """Log points.

    Attributes:
        rows: the points, with the time they were made at.
        once: a step that the run has already is left as it is (curves); otherwise only the same value is.
    """

    op = "metrics"
    rows: Sequence[Row]
    once: bool

    def apply(self, session: Session) -> None:
        """See class."""
        new = missing(session, self.key, self.rows, once=self.once)
        log(session, session.run_id(self.key), new)
        remember(session, self.key, new)


@dataclass(frozen=True)
class DatasetUse(Write):
    """Record the dataset as the run's input, and name it in its tags.

    Attributes:
        name: name of the dataset.
        digest: all of our SHA-256 over all rows.
        version: version name.
        source: path or name it came from.
        columns: names and types.
        profile: figures such as ``num_rows``.
        context: what it was used for, such as ``training``.
    """

    op = "dataset"
    name: str
    digest: str
    version: str
    source: str
    columns: Mapping[str, str]
    profile: Mapping[str, Any]
    context: str

    def apply(self, session: Session) -> None:
        """See class."""
        session.client.log_inputs(session.run_id(self.key), [self.link])
        Tags(self.key, self.tags).apply(session)

    @property
    def tags(self) -> dict[str, str]:
        """How the run names its data."""
        return {"forge.dataset_version": self.version, "forge.dataset_digest": self.digest}

    @property
    def link(self) -> DatasetInput:
        """The dataset as MLflow's input of a run."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=self.name,
            digest=self.digest[:DIGEST_LENGTH],
            source_type="local",
            source=jsons.dumps({"uri": self.source}),
            schema=self._schema(),
            profile=jsons.dumps(self.profile),
        )
        return DatasetInput(dataset, [InputTag("mlflow.data.context", self.context)])

    def _schema(self) -> str | None:
        columns = [{"name": name, "type": kind, "required": True} for name, kind in self.columns.items()]
        text = jsons.dumps({"mlflow_colspec": columns})
        return text if len(text) <= SCHEMA_LENGTH else None


@dataclass(frozen=True)
class Text(Write):
    """Save a text as an artifact; `path` is its whole path in the run."""

    op = "text"
    text: str
    path: str

    def apply(self, session: Session) -> None:
        """See class."""
        session.client.log_text(session.run_id(self.key), self.text, self.path)


@dataclass(frozen=True)
class File(Write):
    """Save a file as an artifact under its own name in `folder` of the run ("" is the top)."""

    op = "file"
    source: str
    folder: str

    def apply(self, session: Session) -> None:
        """See class."""
        if not Path(self.source).is_file():  # here, where it was copied to: no fault of the store
            raise InputError(f"the file {self.source} of the run {self.key!r} is gone", hint="log it again")
        session.client.log_artifact(session.run_id(self.key), self.source, self.folder or None)

    def kept(self, journal: Journal) -> Write:
        """The same write of a copy: the file itself may change or go."""
        return replace(self, source=str(journal.keep(Path(self.source))))


@dataclass(frozen=True)
class Finish(Write):
    """Set the run's last status; SCHEDULED means that it will be opened again."""

    op = "finish"
    status: str
    ended: int

    def apply(self, session: Session) -> None:
        """See class."""
        end(session, session.run_id(self.key), self.status, self.ended)
        session.closed(self.key)

    def late(self, session: Session) -> None:
        """See `Write`."""
        if session.client.get_run(session.run_id(self.key)).info.status not in FINAL:
            self.apply(session)


@dataclass(frozen=True)
class End(Write):
    """The last points, figures and tags of a run, then its last status.

    Attributes:
        rows: points of curves; a step that the run has already is left as it is.
        figures: points where only the same value is left as it is.
        tags: to set.
        status: SCHEDULED means that the run will be opened again.
        ended: milliseconds since 1970.
    """

    op = "end"
    rows: Sequence[Row]
    figures: Sequence[Row]
    tags: Mapping[str, str]
    status: str
    ended: int

    def apply(self, session: Session) -> None:
        """See class."""
        run_id = session.run_id(self.key)
        curves = missing(session, self.key, self.rows, once=True)
        new = curves + missing(session, self.key, self.figures, once=False)
        log(session, run_id, new, self.tags, self.status, self.ended)
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
    """Give unfinished child runs the status that the study knows; `key` is the parent's.

    Attributes:
        states: run keys and their statuses; RUNNING marks a run that is alive. A child that is not named here was
            lost with its worker.
        ended: milliseconds since 1970.
    """

    op = "reap"
    states: Mapping[str, str]
    ended: int

    def apply(self, session: Session) -> None:
        """See class."""
        for key, run_id in session.unfinished_children(self.key):
            status = self.states.get(key, "FAILED")
            if status == "RUNNING":
                continue
            session.client.set_tag(run_id, "forge.state", STATES[status])
            if key not in self.states:
                session.client.set_tag(run_id, "forge.failure", "lost-worker")
            end(session, run_id, status, self.ended)

    def late(self, session: Session) -> None:
        """Nothing: what the study said then may be wrong by now, and each start says it anew."""


def from_record(record: Record) -> Write:
    """The write that a journal's record describes.

    Raises:
        InputError: the record is of an unknown kind or misses a field.
    """
    kinds = {kind.op: kind for kind in (Open, Params, Tags, Metrics, DatasetUse, Text, File, Finish, End, Reap)}
    fields = {name: value for name, value in record.items() if name != "op"}
    try:
        return kinds[record["op"]](**fields)
    except (KeyError, TypeError) as error:
        raise InputError(f"unreadable journal record: {error!r}") from error
