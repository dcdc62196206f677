"""Runs that are written while training goes on, whether the store answers or not."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

from forge_sweep.environment import NONE, UNKNOWN, Environment, without_credentials
from forge_sweep.errors import InputError, TrackingDown
from forge_sweep.tracking import registration, writes
from forge_sweep.tracking import store as stores
from forge_sweep.tracking.journal import Journal, Record
from forge_sweep.tracking.runs import FLUSH_S, Run, now_ms, stored_params, stored_tags
from forge_sweep.tracking.session import Session, file_name

RETRY_S = 15.0  # least time between two attempts to reach a store that is down
RETRY_COST = 10  # and at least this many times what the last attempt took: an outage costs at most a tenth of the time
QUICK_S = 1.0

_log = logging.getLogger("forge_sweep")


class Tracker:
    """Writes the runs of one MLflow experiment. Threads may share it, each with runs of its own; a process has its own.

    A write that fails because the store cannot be reached waits in ``<store>/journal/<experiment>.jsonl``, and so does
    all that follows, in order; a journal left by an earlier process is replayed first. What MLflow refuses raises
    `InputError` at once (in a replay: is set aside with a warning).

    Args:
        experiment_name: the MLflow experiment, created with the first write.
        store: folder of the embedded stores and the journal, usually ``mlruns``.
        description: Markdown shown with a new experiment.
        uri: tracking address; `default_uri` when None.
        retry_s: least seconds between two attempts to reach a store that is down.
        flush_s: seconds that points of a curve are collected before they are written.
        sweep: key of a sweep that was begun before: its runs are found wherever they are by now.

    Raises:
        InputError: the tracking address is wrong.
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
        self.uri = uri or stores.default_uri(store)
        self._flush_s = flush_s
        self._retry_s = retry_s
        self._session = Session(self.uri, store, experiment_name, description, sweep=sweep)
        self._journal = Journal(store.absolute() / "journal", file_name(experiment_name))
        self._open: dict[str, Run] = {}
        self._down = False
        self._next_attempt = -math.inf
        self._lock = threading.RLock()  # one write at a time, in the order in which they wait in the journal
        self._worked = False
        self.retry()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
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
        """What MLflow lacks of all that was written, and what to do; "" where it lacks nothing."""
        if waiting := self.pending:
            return f"MLflow at {self.address} lacks {waiting} writes, which wait in {self._journal.path}; run again"
        if refused := self.set_aside:
            return (
                f"MLflow at {self.address} refused {refused} writes, which are set aside with the reasons in "
                f"{self._journal.refused}: mend the cause and run again, or delete that file"
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
        """Open a run; one with this key that exists already is set running again and keeps its curves.

        Args:
            key: names the run for good, such as ``fraud/trial-0007``; unique in the experiment, without ``'``.
            name: shown in the UI.
            kind: ``sweep``, ``trial``, ``baseline`` or ``confirm``.
            parent: key of the parent run.
            tags: more tags.
            params: logged once; an existing run keeps those it has.
            dataset: what `Run.log_dataset` would be given, by name.
            new: no process can have opened a run with this key, so none is looked for, which takes time in a large
                experiment. Wrong where one may have: there would be two.
        """
        if "'" in key:
            raise InputError(f"the run key {key!r} holds a quote", hint="leave ' out of experiment and study names")
        all_tags = stored_tags({**(tags or {}), "forge.kind": kind})
        used = None if dataset is None else {"context": "training", **dataset}
        self._write(writes.Open(key, name, parent, all_tags, stored_params(params or {}), now_ms(), used, new))
        self._open[key] = Run(key, self._write, self._session.known_id, self._flush_s)
        return self._open[key]

    def existing(self, key: str) -> Run:
        """A run that another process opened and goes on writing: it is not set running, nor ended, here."""
        return Run(key, self._write, self._session.known_id, self._flush_s)

    def has(self, key: str) -> bool:
        """Whether the store has a run with this key; False while it cannot be reached."""
        return bool(self.run_id(key))

    def run_id(self, key: str) -> str:
        """MLflow's id of the run with this key; "" where it is not written yet, or the store cannot be reached."""
        try:
            with self._lock, stores.translated(f"a look for the run {key!r}"):
                return self._session.find(key) or ""
        except TrackingDown:
            return ""

    def drop(self, run: Run) -> None:
        """Leave a run to another process: what was collected for it is thrown away."""
        with self._lock:
            run.discard()
            self._open.pop(run.key, None)
            self._session.closed(run.key)

    def reap(self, parent: str, states: Mapping[str, str]) -> None:
        """Close the child runs that no living process writes, so that MLflow agrees with the study.

        Args:
            parent: key of the parent run.
            states: what the study says of each run key: FINISHED, KILLED, FAILED, SCHEDULED, or RUNNING for a run that
                is alive. An unfinished child that is not named becomes FAILED with the failure ``lost-worker``.
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

        A version that an earlier call made for this run key in this form is returned (and completed after a kill).

        Args:
            run_key: key of the run that made the bundle.
            bundle_folder: what `Bundle.save` wrote.
            model_name: name of the registered model.
            columns: names of the raw input columns, in any order.
            requirements: pip requirements, see `requirements`.
            tags: of the version: dataset version and digest, image digest, kind, form.
            step: epoch that the model stands for, where its run has no ``best_epoch``.

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
        candidate = registration.Candidate(run_key, bundle_folder, model_name, columns, requirements, tags, step)
        with self._lock, stores.translated(what), stores.current(self.uri):
            return registration.register(self._session, candidate)

    def is_registered(self, model: str) -> bool:
        """Whether a model version is still there, with the files of its model.

        Args:
            model: ``models:/NAME/VERSION``.

        Raises:
            TrackingDown: the store cannot be reached.
        """
        name, _, version = model.removeprefix("models:/").rpartition("/")
        with self._lock, stores.translated(f"a look for {model}"):
            return registration.is_there(self._session.client, name, version)

    def has_lost_alias(self, model: str) -> bool:
        """Whether a version that is there is no challenger any more though nobody took that over.

        Raises:
            TrackingDown: the store cannot be reached.
        """
        name, _, version = model.removeprefix("models:/").rpartition("/")
        with self._lock, stores.translated(f"a look for {model}"):
            return registration.lacks_alias(self._session.client, name, version)

    def set_alias(self, model: str) -> None:
        """Make a version the challenger.

        Raises:
            TrackingDown: the store cannot be reached.
        """
        name, _, version = model.removeprefix("models:/").rpartition("/")
        with self._lock, stores.translated(f"the alias of {model}"):
            registration.set_alias(self._session.client, name, version)

    def register_again(self, run_key: str, model_name: str) -> str | None:
        """Register a model whose version was deleted, from the files that its run keeps.

        Returns:
            The new version; None where the files are gone, too.

        Raises:
            TrackingDown: the store cannot be reached.
        """
        with self._lock, stores.translated(f"the model {model_name!r}"), stores.current(self.uri):
            return registration.again(self._session, run_key, model_name)

    def link(self, parent: str, metric: str, direction: str) -> str:
        """The UI's page with the curves of a sweep's trials, best first; "" while the parent is not written.

        Args:
            parent: key of the parent run.
            metric: metric to sort by, such as ``val_auc``. (Sorted by date, the UI would fold the trials away.)
            direction: ``maximize`` or ``minimize``.
        """
        run_id = self._session.known_id(parent)
        if run_id is None:
            return ""
        condition = quote(f"tags.mlflow.parentRunId = '{run_id}' and tags.`forge.kind` = 'trial'", safe="'")
        order = quote(f"metrics.`{metric}`", safe="")
        return (
            f"{stores.ui_address(self.uri)}/#/experiments/{self._session.experiment_id}/runs"
            f"?compareRunsMode=CHART&workflowType=machine_learning&searchFilter={condition}"
            f"&orderByKey={order}&orderByAsc={str(direction == 'minimize').lower()}"
        )

    def retry(self) -> bool:
        """Try again what MLflow refused, and what waits; returns whether nothing waits any more."""
        with self._lock:
            if again := self._journal.readmit():
                _log.warning("%d writes that MLflow had refused are tried again", again)
            return self.replay()

    def replay(self) -> bool:
        """Try now to write what waits; returns whether nothing waits any more."""
        with self._lock:
            if self._journal.waiting:
                self._drain()
            return not self._journal.waiting

    def close(self) -> None:
        """Write what is buffered and what waits; what still waits is kept for the next process."""
        for run in list(self._open.values()):
            run.flush()
        if not self.replay():
            _log.warning("MLflow at %s is down: %d writes wait in %s", self.address, self.pending, self._journal.path)
        self._session.close()

    @property
    def is_embedded(self) -> bool:
        """Whether the store is the database in its own folder."""
        return self.uri == stores.embedded_uri(self._session.store)

    @property
    def address(self) -> str:
        """The tracking address without credentials, for people."""
        return without_credentials(self.uri)

    def _write(self, write: writes.Write) -> None:
        """Make a write, or let it wait its turn.

        Raises:
            InputError: MLflow refused it.
            TrackingDown: it could neither be made nor wait, as when the disk is full.
        """
        with self._lock:
            if isinstance(write, writes.Finish | writes.End):
                self._open.pop(write.key, None)
            if self._journal.waiting and time.monotonic() >= self._next_attempt:
                self._drain()
            if self._journal.waiting:
                self._wait(write)
                return
            try:
                self._apply(write)
            except TrackingDown as error:
                self._went_down(error)
                self._wait(write)

    def _wait(self, write: writes.Write) -> None:
        try:
            self._journal.append(write.kept(self._journal).to_record())
        except OSError as error:
            raise TrackingDown(
                f"MLflow is down and the journal {self._journal.path} cannot be written: {error}",
                hint="free space on that disk",
            ) from error

    def _apply(self, write: writes.Write, *, late: bool = False) -> None:
        """Make a write, a second time if the first failed quickly: a server that closed an idle connection is not down.

        An attempt that took long (a time-out) sets the next one further off.
        """
        began = time.monotonic()
        for last in (False, True):
            try:
                with stores.translated(f"{write.op} of the run {write.key!r}"):
                    write.late(self._session) if late else write.apply(self._session)
                self._worked = True
                return
            except InputError as error:
                if self._worked and stores.is_locked_out(error.__cause__):  # a login that ran out, not a wrong one
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
        """Make a waiting write, or set it aside where the store refuses it for good.

        What the store fails at (5xx, no connection, a full disk) waits, and all after it.
        """
        known = {name: value for name, value in record.items() if name != "late"}
        try:
            self._apply(writes.from_record(known), late=bool(record.get("late")))
        except InputError as error:
            if stores.is_locked_out(error.__cause__):
                raise TrackingDown(error.message) from error
            self._set_aside(known, error)
            return False
        return True

    def _set_aside(self, record: Record, error: Exception) -> None:
        self._journal.refuse(record, str(error))
        _log.warning("a waiting write was refused and is set aside in %s: %s", self._journal.refused, error)

    def _went_down(self, error: TrackingDown) -> None:
        if not self._down:
            _log.warning(
                "MLflow at %s cannot be reached (%s). Training goes on; writes wait in %s",
                self.address,
                error.message,
                self._journal.path,
            )
        self._down = True


def environment_tags(environment: Environment) -> dict[str, str]:
    """Tags for a run: MLflow's own names where it has them, ours where its are hidden in the UI."""
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
