"""Runs that are written while training goes on, whether MLflow answers or not."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from forge_sweep import jsons
from forge_sweep.environment import NONE, UNKNOWN, Environment
from forge_sweep.errors import InputError, TrackingDown
from forge_sweep.tracking import client as clients
from forge_sweep.tracking import registration, writes
from forge_sweep.tracking.journal import Record
from forge_sweep.tracking.writes import PARAM_LENGTH, TAG_LENGTH, Row, Status, Write, now_ms, stored

FIRST_EPOCH = 1  # of a curve, and for ``best_epoch``, as in Optuna's steps and in Keras' own lines
FLUSH_S = 5.0
FLUSH_POINTS = 800
RETRY_S = 15.0  # least time between two attempts to reach a store that is down
RETRY_COST = 10  # and at least this many times what the last attempt took: an outage costs at most a tenth of the time
QUICK_S = 1.0

_log = logging.getLogger("forge_sweep")


class Tracker(registration.Connection):
    """Writes the runs of one MLflow experiment. Threads may share it, each with its own runs; processes may not.

    While the store is unreachable, writes are queued in ``<store>/journal/<experiment>.jsonl``; a journal left by an
    earlier process is replayed first, in order. A write that MLflow refuses raises `InputError` at once (during a
    replay it is set aside with a warning).

    Args:
        experiment_name: the MLflow experiment, created with the first write.
        store: folder of the embedded stores and the journal, usually ``mlruns``.
        description: Markdown shown with a new experiment.
        uri: tracking address; `default_uri` when None.
        retry_s: minimum seconds between two attempts to reach a store that is down.
        flush_s: seconds for which the points of a curve are collected before they are written.
        sweep: key of an earlier sweep to resume; its runs are found even where their experiment was renamed.
    """

    def __init__(
        self,
        experiment_name: str,
        store: Path,
        *,
        description: str = "",
        uri: str | None = None,
        retry_s: float = RETRY_S,
        flush_s: float = FLUSH_S,
        sweep: str = "",
    ) -> None:
        super().__init__(experiment_name, store, sweep, description=description, uri=uri)
        self._flush_s = flush_s
        self._retry_s = retry_s
        self._open: dict[str, Run] = {}
        self._down = False
        self._next_attempt = -math.inf
        self._worked = False
        self.retry()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pending(self) -> int:
        """Writes that wait in the journal."""
        return len(self._journal)

    @property
    def set_aside(self) -> int:
        """Writes that MLflow refused; the next `Tracker` tries them again."""
        return self._journal.set_aside

    def missing(self) -> str:
        """Which writes have not reached MLflow, and what to do; "" if none."""
        if waiting := self.pending:
            return f"MLflow at {self.address} lacks {waiting} writes, which wait in {self._journal.path}; run again"
        if refused := self.set_aside:
            return (
                f"MLflow at {self.address} refused {refused} writes, which are set aside with the reasons in "
                f"{self._journal.refused}: fix the cause and run again, or delete that file"
            )
        return ""

    def run(
        self,
        key: str,
        name: str,
        *,
        kind: str,
        parent: str | None = None,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        dataset: Mapping[str, Any] | None = None,
        new: bool = False,
    ) -> Run:
        """Open a run; an existing one with this key is set to RUNNING again and keeps its curves and params.

        `key` is its permanent name in the experiment, such as ``fraud/trial-0007``, and `kind` one of ``sweep``,
        ``trial``, ``baseline`` and ``confirm``; `dataset` is what `Run.log_dataset` would be given, by name. `new`
        skips the search for an existing run, which is slow in a large experiment: only where no process can have opened
        this key, or there would be two runs.
        """
        if "'" in key:
            raise InputError(f"the run key {key!r} holds a quote", hint="leave ' out of experiment and study names")
        tags, params = stored({**(tags or {}), "forge.kind": kind}, TAG_LENGTH), stored(params or {}, PARAM_LENGTH)
        self._write(writes.Open(key, name, parent, tags, params, now_ms(), dataset, new))
        self._open[key] = Run(key, self)
        return self._open[key]

    def existing(self, key: str) -> Run:
        """A run that another process owns; its status is not changed here."""
        return Run(key, self)

    def has(self, key: str) -> bool:
        """Whether the store has a run with this key; False while it cannot be reached."""
        return bool(self.run_id(key))

    def run_id(self, key: str) -> str:
        """MLflow's id of the run with this key; "" where it is not written yet, or the store cannot be reached."""
        try:
            with self._lock, clients.translated(f"a look for the run {key!r}"):
                return self._session.find(key) or ""
        except TrackingDown:
            return ""

    def drop(self, run: Run) -> None:
        """Leave a run to another process and discard its buffered points."""
        with self._lock:
            run._rows.clear()
            self._open.pop(run.key, None)
            self._session.closed(run.key)

    def reap(self, parent: str, states: Mapping[str, str]) -> None:
        """End the child runs that no live process is writing, so that MLflow agrees with the study.

        `states` is what the study says of each run key: a final status, SCHEDULED, or RUNNING for a run that is alive.
        An unfinished child that is not listed becomes FAILED with the failure ``lost-worker``.
        """
        self._write(writes.Reap(parent, dict(states), now_ms()))

    def register(
        self,
        run_key: str,
        bundle_folder: Path,
        *,
        model_name: str,
        columns: Sequence[str],
        requirements: Sequence[str],
        tags: Mapping[str, str],
        step: int = 0,
    ) -> str:
        """Register a bundle as a model version with the alias ``challenger``; returns the version.

        A version that an earlier call made for this run key and form is returned (completed, if that call was killed).

        `columns` are the raw ones, in any order; `requirements` are complete (inferring them costs 6 s); `step` is the
        epoch that the model stands for, where its run has no ``best_epoch``.

        Raises:
            TrackingDown: the store cannot be reached; the bundle stays where it is.
            InputError: MLflow refused it, such as a name with a slash.
        """
        what = f"the model {model_name!r}"
        if "'" in model_name:
            raise InputError(f"tracking.model_name = {model_name!r} holds a quote", hint="leave it out")
        if not self.replay():
            raise TrackingDown(
                f"{what} is not registered: MLflow at {self.address} cannot be reached; {self.pending} writes wait",
                hint=f"start it and run the same command again; the bundle is in {bundle_folder}",
            )
        candidate = registration.Submission(run_key, bundle_folder, model_name, columns, requirements, tags, step)
        with self._lock, clients.translated(what), clients.current(self.uri):
            return registration.register(self._session, candidate)

    def register_again(self, run_key: str, model_name: str) -> str | None:
        """Register a model whose version was deleted again, from the files of its run; None if they are gone, too."""
        with self._lock, clients.translated(f"the model {model_name!r}"), clients.current(self.uri):
            return registration.again(self._session, run_key, model_name)

    def link(self, parent: str, metric: str, direction: str) -> str:
        """The UI's page with the curves of a sweep's trials, best first; "" while the parent is not written."""
        run_id = self._session.known_id(parent)
        if run_id is None:
            return ""
        condition = quote(f"tags.mlflow.parentRunId = '{run_id}' and tags.`forge.kind` = 'trial'", safe="'")
        # Sorted by date, the UI would fold the trials away.
        order = quote(f"metrics.`{metric}`", safe="")
        server = self.address.rstrip("/") if self.uri.lower().startswith("http") else "http://127.0.0.1:5000"
        return (
            f"{server}/#/experiments/{self._session.experiment_id}/runs"
            f"?compareRunsMode=CHART&workflowType=machine_learning&searchFilter={condition}"
            f"&orderByKey={order}&orderByAsc={str(direction == 'minimize').lower()}"
        )

    def retry(self) -> bool:
        """Retry refused and queued writes; returns whether the queue is empty."""
        with self._lock:
            if again := self._journal.readmit():
                _log.warning("retrying %d writes that MLflow had refused", again)
            return self.replay()

    def replay(self) -> bool:
        """Try to write what is queued; returns whether the queue is empty."""
        with self._lock:
            if self._journal.waiting:
                self._drain()
            return not self._journal.waiting

    def close(self) -> None:
        """Write what is buffered and queued; what cannot be written stays queued for the next process."""
        for run in list(self._open.values()):
            run.flush()
        if not self.replay():
            _log.warning("MLflow at %s is down: %d writes wait in %s", self.address, self.pending, self._journal.path)

    def _write(self, write: Write) -> None:
        """Apply a write, or queue it; TrackingDown if the disk of the journal is full."""
        with self._lock:
            if isinstance(write, writes.End):
                self._open.pop(write.key, None)
            if self._journal.waiting and time.monotonic() >= self._next_attempt:
                self._drain()
            if not self._journal.waiting:
                try:
                    self._apply(write)
                    return
                except TrackingDown as error:
                    self._went_down(error)
            try:
                self._journal.append(write.kept(self._journal).to_record())
            except OSError as error:
                where = f"the journal {self._journal.path}"
                hint = "free space on that disk"
                raise TrackingDown(f"MLflow is down and {where} cannot be written: {error}", hint=hint) from error

    def _apply(self, write: Write, *, late: bool = False) -> None:
        """Apply a write; once more if it failed quickly, since a server that closed an idle connection is not down."""
        began = time.monotonic()
        for last in (False, True):
            try:
                with clients.translated(f"{write.op} of the run {write.key!r}"):
                    write.late(self._session) if late else write.apply(self._session)
                self._worked = True
                return
            except InputError as error:
                if self._worked and clients.is_locked_out(error.__cause__):  # a login that ran out, not a wrong one
                    raise TrackingDown(error.message) from error
                raise
            except TrackingDown:
                took = time.monotonic() - began
                if last or took > QUICK_S:
                    self._next_attempt = time.monotonic() + max(self._retry_s, RETRY_COST * took)
                    raise
                write = write.again()

    def _drain(self) -> None:
        try:
            replayed = self._journal.drain(self._replay_one)
        except TrackingDown as error:
            self._went_down(error)
            return
        self._down = False
        if replayed:
            _log.warning("MLflow at %s answers: %d waiting writes were replayed", self.address, replayed)

    def _replay_one(self, record: Record) -> bool:
        """Apply a queued write, or set it aside if the store refuses it for good; after an outage it stays queued."""
        known = {name: value for name, value in record.items() if name != "late"}
        try:
            self._apply(writes.from_record(known), late=bool(record.get("late")))
        except InputError as error:
            if clients.is_locked_out(error.__cause__):
                raise TrackingDown(error.message) from error
            self._journal.refuse(known, str(error))
            _log.warning("a queued write was refused and is set aside in %s: %s", self._journal.refused, error)
            return False
        return True

    def _went_down(self, error: TrackingDown) -> None:
        if not self._down:
            said = "MLflow at %s cannot be reached (%s). Training goes on; writes wait in %s"
            _log.warning(said, self.address, error.message, self._journal.path)
        self._down = True


def environment_tags(environment: Environment) -> dict[str, str]:
    """Tags of a run: MLflow's own names where it has them, ours where the UI hides its own."""
    tags = {
        "mlflow.user": environment.user,
        "mlflow.source.name": "forge-sweep",
        "mlflow.source.type": "LOCAL",
        "forge.image_digest": environment.image_digest,
        "forge.git_dirty": str(environment.git_dirty).lower(),
        "forge.backend": environment.backend,
        "forge.gpus": "; ".join(environment.gpus) or NONE,
        "forge.host": environment.host,
    }
    known = {
        "mlflow.docker.image.id": environment.image_digest,
        "mlflow.source.git.commit": environment.git_commit,
        "mlflow.source.git.repoURL": environment.git_remote,
    }
    return tags | {name: value for name, value in known.items() if value not in (UNKNOWN, NONE)}


class Run:
    """An open run; made by `Tracker.run`."""

    def __init__(self, key: str, tracker: Tracker) -> None:
        self.key = key
        self._tracker = tracker
        self._rows: list[Row] = []
        self._flushed = time.monotonic()

    @property
    def run_id(self) -> str | None:
        """MLflow's id; None while the run is only queued in the journal."""
        return self._tracker._session.known_id(self.key)

    def log_epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Add one point to each curve at the step ``epoch``; written within seconds, by `flush` or by `finish`.

        An epoch that is already logged keeps its point; values that are not finite are dropped.
        """
        self._rows += _rows(metrics, epoch)
        if len(self._rows) >= FLUSH_POINTS or time.monotonic() - self._flushed >= self._tracker._flush_s:
            self.flush()

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Write metrics at once; values that are not finite are dropped."""
        if rows := _rows(metrics, step):
            self._tracker._write(writes.Metrics(self.key, rows, once=False))

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log params; existing ones keep their values."""
        self._tracker._write(writes.Params(self.key, stored(params, PARAM_LENGTH)))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self._tracker._write(writes.Tags(self.key, stored(tags, TAG_LENGTH)))

    def log_dataset(self, name: str, **about: Any) -> None:
        """Record the dataset as the run's input: the fields of `writes.DatasetUse`."""
        self._tracker._write(writes.DatasetUse(self.key, name, **about))

    def log_environment(self, environment: Environment, folder: str = "environment") -> None:
        """Save the whole environment as ``environment.json`` and ``git.diff`` in an artifact folder."""
        values = environment.to_dict()
        difference = values.pop("git_diff")
        self.log_text(jsons.dumps(values, indent=2, sort_keys=True), f"{folder}/environment.json")
        if difference:
            self.log_text(difference, f"{folder}/git.diff")

    def log_text(self, text: str, path: str) -> None:
        """Save a text as the artifact `path`."""
        self._tracker._write(writes.Text(self.key, text, path))

    def log_file(self, path: Path, folder: str = "") -> None:
        """Save a file as an artifact, under its own name in `folder`; InputError if there is none."""
        if not path.is_file():
            raise InputError(f"{path} is not a file", hint="only files can be logged")
        self._tracker._write(writes.File(self.key, str(path.absolute()), folder))

    def flush(self) -> None:
        """Write the buffered points."""
        self._flushed = time.monotonic()
        if self._rows:
            self._send(writes.Metrics(self.key, tuple(self._rows), once=True))

    def finish(
        self, status: Status, *, metrics: Mapping[str, float] | None = None, tags: Mapping[str, str] | None = None
    ) -> None:
        """Write the buffered points, final metrics and tags in one batch, then the final status."""
        curves, figures = tuple(self._rows), tuple(_rows(metrics or {}, 0))
        self._send(writes.End(self.key, curves, figures, stored(tags or {}, TAG_LENGTH), status, now_ms()))

    def _send(self, write: Write) -> None:
        try:
            self._tracker._write(write)
        except InputError:  # refused for good: retrying would only keep the run from finishing
            self._rows.clear()
            raise
        self._rows.clear()


def _rows(metrics: Mapping[str, float], step: int) -> list[Row]:
    now = now_ms()
    return [(name, float(value), now, step) for name, value in metrics.items() if math.isfinite(value)]
