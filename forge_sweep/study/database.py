"""Optuna's database storage, made fit for several processes on several machines.

- *Owners.* A trial that runs belongs to one process, by its attribute `OWNER`. A process writes only to its own,
  looked up in the transaction of the write unless it was heard so shortly ago that nobody can have taken it for dead:
  a process that was paused so long that others took its trial over changes nothing.
- *Limit.* No trial is created beyond the sweep's total, looked up in the transaction that creates it.
- *Turns.* What has to be done by one process at a time is done under a lock of the database.
- *Outages.* What fails since the server does not answer is tried again, for a while.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import IntegrityError

from forge_sweep.errors import SweepStopped, TrialTaken
from forge_sweep.study.rows import Changes, Storage
from forge_sweep.study.view import OWNER

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

OUTAGE_S = 600.0
"""How long a process that runs trials waits for a database that does not answer, before it stops."""

PAUSES_S = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Between two attempts; the last one is repeated."""

TURN_S = 60
"""A server takes the turn from a process that says nothing for so long: its machine may have lost its power."""

OWN: tuple[str, ...] = ()
"""No other owner's trials may be written to."""

_FINISHED = UpdateFinishedTrialError
_OWNER_OF = sqlalchemy.text('SELECT value_json FROM trial_user_attributes WHERE trial_id = :trial AND "key" = :key')
_DROP = sqlalchemy.text('DELETE FROM study_user_attributes WHERE study_id = :study AND "key" = :key')

_T = TypeVar("_T")
_log = logging.getLogger("forge_sweep")


class Outage(SweepStopped):
    """The database server cannot be reached; the same call may succeed later."""


class Full(Exception):
    """The study has all of its trials."""


def _outlasting(name: str) -> Any:
    """The method of Optuna's storage of that name, tried again through an outage; it may be made twice."""
    plain = getattr(Storage, name)

    def call(self: Database, *words: Any, **options: Any) -> Any:
        return self.outlast(lambda: plain(self, *words, **options))

    return call


class Database(Storage):
    """See the module. Without an `owner` it behaves as Optuna's own.

    Args:
        url: of the database.
        engine_kwargs: for SQLAlchemy.

    Attributes:
        owner: id of the process, as trials carry it; "" for one that runs none.
        limit: number of trials that the study may have, imported ones included; None for no limit.
        outage_s: seconds to wait for a server that does not answer.
        stopping: asked while waiting; true ends it.
        surely_alive: whether nobody can have taken this process for dead.
    """

    def __init__(self, url: str, engine_kwargs: dict[str, Any]) -> None:
        self.owner = ""
        self.limit: int | None = None
        self.outage_s = 0.0
        self.stopping: Callable[[], bool] = lambda: False
        self.surely_alive: Callable[[], bool] = lambda: False
        self._here = threading.local()
        self._down = False
        super().__init__(url, engine_kwargs=engine_kwargs)

    # What is only looked at, or written to the same end however often.
    get_all_studies = _outlasting("get_all_studies")
    get_study_id_from_name = _outlasting("get_study_id_from_name")
    get_study_name_from_id = _outlasting("get_study_name_from_id")
    get_study_directions = _outlasting("get_study_directions")
    get_study_user_attrs = _outlasting("get_study_user_attrs")
    get_study_system_attrs = _outlasting("get_study_system_attrs")
    get_trial = _outlasting("get_trial")
    get_trial_id_from_study_id_trial_number = _outlasting("get_trial_id_from_study_id_trial_number")
    _get_trials = _outlasting("_get_trials")
    n_complete = _outlasting("n_complete")
    _get_best_trial_id = _outlasting("_get_best_trial_id")
    set_study_user_attr = _outlasting("set_study_user_attr")
    set_study_system_attr = _outlasting("set_study_system_attr")
    set_trial_user_attr = _outlasting("set_trial_user_attr")
    set_trial_system_attr = _outlasting("set_trial_system_attr")
    set_trial_intermediate_value = _outlasting("set_trial_intermediate_value")
    # A trial that was created although the answer got lost has an owner who does not know it: `Study.ask` finds it.
    _create_new_trial = _outlasting("_create_new_trial")

    def _set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
        previous_distribution: BaseDistribution | None = None,
    ) -> None:
        """Write a parameter once; where an attempt got through although its answer was lost, the value is there."""
        attempts = 0

        def write() -> None:
            nonlocal attempts
            attempts += 1
            try:
                args = (trial_id, param_name, param_value_internal, distribution, previous_distribution)
                Storage._set_trial_param(self, *args)
            except IntegrityError:
                if attempts == 1:
                    raise

        self.outlast(write)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set a trial's state; a second attempt that finds it set (or the trial gone on) has nothing left to do."""
        attempts = 0

        def write() -> bool:
            nonlocal attempts
            attempts += 1
            try:
                with self.anybody() if state == TrialState.RUNNING else contextlib.nullcontext():
                    return Storage.set_trial_state_values(self, trial_id, state, values)
            except (_FINISHED, TrialTaken):
                if attempts == 1 or not self._is(trial_id, state):
                    raise
                return True

        return self.outlast(write)

    def write(self, trial_id: int, changes: Changes) -> None:
        """Write to a trial; where a second attempt finds that the first one ended it, nothing is left to do."""
        attempts = 0

        def write() -> None:
            nonlocal attempts
            attempts += 1
            try:
                Storage.write(self, trial_id, changes)
            except (_FINISHED, TrialTaken):
                if attempts == 1 or changes.end is None or not self._is(trial_id, changes.end[0]):
                    raise

        self.outlast(write)

    def _is(self, trial_id: int, state: TrialState) -> bool:
        return bool(Storage.get_trial(self, trial_id).state == state)

    def check_trial_is_updatable(self, trial_id: int, trial_state: TrialState) -> None:
        """Called in the transaction of each write to a trial.

        Raises:
            TrialTaken: the trial does not run, or belongs to another process.
        """
        super().check_trial_is_updatable(trial_id, trial_state)
        allowed = getattr(self._here, "allowed", OWN)
        if not self.owner or allowed is None:
            return
        running = trial_state == TrialState.RUNNING
        if running and allowed is OWN and self.surely_alive():
            return
        if not running or self._owner_of(self.scoped_session(), trial_id) not in (*allowed, self.owner):
            raise TrialTaken(f"trial (id {trial_id}) belongs to another process by now; nothing was written to it")

    def _owner_of(self, session: Session, trial_id: int) -> str:
        found = session.execute(_OWNER_OF, {"trial": trial_id, "key": OWNER}).scalar()
        return "" if found is None else str(json.loads(found))

    def _get_prepared_new_trial(self, study_id: int, template_trial: FrozenTrial | None, session: Session) -> Any:
        """Create a trial with its owner, in one transaction, unless there are enough."""
        if template_trial is None and self.owner:
            template_trial = create_trial(state=TrialState.RUNNING, user_attrs={OWNER: self.owner})
            template_trial.datetime_start = datetime.now()
        with self.anybody():
            trial = super()._get_prepared_new_trial(study_id, template_trial, session)
        if self.owner and self.limit is not None and trial.number >= self.limit:
            raise Full
        return trial

    @contextlib.contextmanager
    def on_behalf_of(self, *owners: str) -> Iterator[None]:
        """Write to trials of others: of dead ones, or of nobody (""). For the thread that asks."""
        with self._allowing(owners):
            yield

    @contextlib.contextmanager
    def anybody(self) -> Iterator[None]:
        """Write to trials whoever they belong to. For the thread that asks."""
        with self._allowing(None):
            yield

    @contextlib.contextmanager
    def _allowing(self, owners: tuple[str, ...] | None) -> Iterator[None]:
        before = getattr(self._here, "allowed", OWN)
        self._here.allowed = owners
        try:
            yield
        finally:
            self._here.allowed = before

    @contextlib.contextmanager
    def impatient(self) -> Iterator[None]:
        """Let an `Outage` through at once. For the thread that asks."""
        self._here.impatient = True
        try:
            yield
        finally:
            self._here.impatient = False

    def outlast(self, work: Callable[[], _T]) -> _T:
        """Do some work; where the server does not answer, again and again for `outage_s`.

        Raises:
            Outage: it did not answer all that time, or is not to be waited for.
        """
        try:
            return work()
        except Outage as outage:
            if not self.outage_s or getattr(self._here, "impatient", False):
                raise
            return self._again(work, outage)

    def _again(self, work: Callable[[], _T], outage: Outage) -> _T:
        began = time.monotonic()
        self.say_down(outage)
        for pause in itertools.chain(PAUSES_S, itertools.repeat(PAUSES_S[-1])):
            if self.stopping() or time.monotonic() - began > self.outage_s:
                self.outage_s = 0.0  # what is left to do gets one attempt: the next command takes up the rest
                raise outage
            time.sleep(pause)
            try:
                result = work()
            except Outage as error:
                outage = error
                continue
            self._say_up()
            return result
        raise AssertionError("unreachable: the pauses have no end")

    def say_down(self, outage: Outage) -> None:
        """Say once that the database does not answer."""
        if not self._down:
            self._down = True
            text = "%s. It is tried again for %g s; training goes on meanwhile as far as it can"
            _log.warning(text, outage.message, self.outage_s)

    def _say_up(self) -> None:
        if self._down:
            self._down = False
            _log.warning("the study database answers again")

    def drop_study_user_attr(self, study_id: int, key: str) -> None:
        """Remove an attribute of a study, which Optuna cannot."""

        def drop() -> None:
            with self.engine.begin() as connection:
                connection.execute(_DROP, {"study": study_id, "key": key})

        self.outlast(drop)

    @contextlib.contextmanager
    def turn(self, name: str, folder: Path, idle_s: int = TURN_S) -> Iterator[None]:
        """Be the only process, wherever it is, in the block of this name.

        Args:
            name: of what is done, such as a study's.
            folder: for the lock file, where the database is SQLite.
            idle_s: after which a server takes the turn away from a process that says nothing.
        """
        if self.engine.dialect.name == "sqlite":
            with file_turn(name, folder):
                yield
            return
        connection = self.outlast(lambda: _locked(self.engine, name, idle_s))
        try:
            yield
        finally:
            with contextlib.suppress(Exception):  # the server gave the turn up itself when it lost us
                connection.rollback()
            connection.close()


@contextlib.contextmanager
def file_turn(name: str, folder: Path) -> Iterator[None]:
    """The turn among the processes of one machine."""
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{name}.lock"):
        yield


@contextlib.contextmanager
def server_turn(url: str, name: str, connect_args: Mapping[str, int]) -> Iterator[None]:
    """The turn among all processes that use a server, before there is a storage."""
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args=dict(connect_args))
    connection = _locked(engine, name, TURN_S)
    try:
        yield
    finally:
        with contextlib.suppress(Exception):
            connection.rollback()
        connection.close()


def _locked(engine: sqlalchemy.Engine, name: str, idle_s: int) -> sqlalchemy.Connection:
    """A connection in a transaction that holds the lock of this name; it ends with the transaction."""
    key = int.from_bytes(hashlib.sha256(f"forge_sweep/{name}".encode()).digest()[:8], "big", signed=True)
    connection = engine.connect()
    try:
        connection.exec_driver_sql(
            f"SET LOCAL idle_in_transaction_session_timeout = '{idle_s}s'; SET LOCAL lock_timeout = 0; "
            f"SET LOCAL statement_timeout = 0; SELECT pg_advisory_xact_lock({key})"
        )
    except BaseException:
        connection.close()
        raise
    return connection
