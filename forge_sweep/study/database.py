"""Optuna's database storage, made fit for several processes on several machines.

- *Leases.* A running trial belongs to the process that its `Attr.OWNER` names, and trials change hands in turns only. A
  process whose heartbeat is not recent looks the owner up, in a turn, before it writes.
- *New trials* are written in one transaction, with owner and parameters: a kill leaves all of a trial or nothing. None
  is created beyond the sweep's total.
- *Outages.* Calls that fail because the server does not answer are retried, for a while.
- *Reads.* Ended trials do not change: each is read once.

Everything goes through the public interface of `optuna.storages.RDBStorage`, which makes a transaction of every call.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState

from forge_sweep.errors import SweepStopped, TrialTaken
from forge_sweep.study.repeats import averaged
from forge_sweep.study.trials import Attr

if TYPE_CHECKING:
    from forge_sweep.study.growth import Lens

OUTAGE_S = 600.0  # how long a process that runs trials waits for a database that does not answer, before it stops
PAUSES_S = (0.2, 0.5, 1.0, 2.0, 5.0)  # between two attempts; the last one is repeated
TURN_S = 60  # a server takes the turn from a process that is silent for so long: its machine may have lost its power
UNFINISHED = (TrialState.RUNNING, TrialState.WAITING)

_T = TypeVar("_T")
_log = logging.getLogger("forge_sweep")


class Outage(SweepStopped):
    """The database server cannot be reached; the same call may succeed later."""


class Full(Exception):
    """The study has all of its trials."""


class _Here(threading.local):
    """What holds for one thread."""

    drafts: dict[int, tuple[int, FrozenTrial]] | None = None  # by provisional id, study id and trial; see `collecting`
    owners: tuple[str, ...] = ()  # whose trials it may write to besides its own
    looked: set[int] | None = None  # ids of the studies whose trials it need not read again; see `one_look`
    impatient = False  # whether an `Outage` is let through at once

    @contextlib.contextmanager
    def having(self, name: str, value: Any) -> Iterator[None]:
        before = getattr(self, name)
        setattr(self, name, value)
        try:
            yield
        finally:
            setattr(self, name, before)


def _retried(name: str) -> Any:
    """The method of `RDBStorage` of that name, retried through an outage; made twice, it does the same."""

    def call(self: Database, *words: Any, **options: Any) -> Any:
        return self.outlast(lambda: getattr(self.backend, name)(*words, **options))

    return call


def _remembered(name: str) -> Any:
    """The same for what never changes about a study: it is asked for once."""

    def call(self: Database, key: Any) -> Any:
        if (name, key) not in self._studies:
            self._studies[name, key] = self.outlast(lambda: getattr(self.backend, name)(key))
        return self._studies[name, key]

    return call


class Database(BaseStorage):
    """See the module. Without an `owner` it behaves as Optuna's own.

    Attributes:
        owner: id of the process, as trials carry it; "" for one that runs none.
        limit: number of trials that the study may have, imported ones included; None for no limit.
        outage_s: seconds to wait for a server that does not answer.
        stopping: asked while waiting; true ends it.
        surely_alive: whether nobody can have taken this process for dead.
        exclusive: the turn in which trials of the study change hands; may be nested.
        lens: shows the trials of a study whose search space changed, where one did.
        averages: whether finished trials are shown with the mean over all seeds of their configuration.
    """

    def __init__(self, url: str, engine_kwargs: dict[str, Any]) -> None:
        self.backend = RDBStorage(url, engine_kwargs=engine_kwargs)
        self.owner = ""
        self.limit: int | None = None
        self.outage_s = 0.0
        self.stopping: Callable[[], bool] = lambda: False
        self.surely_alive: Callable[[], bool] = lambda: False
        self.exclusive: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
        self.lens: Lens | None = None
        self.averages = False
        self._here = _Here()
        self._down = False
        self._lock = threading.RLock()
        self._trials: dict[int, dict[int, FrozenTrial]] = {}  # by study id and number, as they were read last
        self._trial_ids: dict[tuple[int, int], int] = {}  # by study id and number
        self._keys: dict[int, dict[int, str]] = {}  # of the configurations of ended trials, by study id and number
        self._mine: set[int] = set()  # ids of the trials that this process runs: while it lives, nobody changes them
        self._ended: set[int] = set()  # ids of trials that this process ended, or put back, since it read them
        self._unread: set[int] = set()  # ids of trials that this process wrote to since it read them
        self._written: dict[int, int] = {}  # by the id of a draft, that of the trial that it became
        self._draft_ids = itertools.count(-2, -1)
        self._studies: dict[tuple[str, Any], Any] = {}  # by the method that was asked, and its argument

    @property
    def engine(self) -> sqlalchemy.Engine:
        """SQLAlchemy's."""
        return self.backend.engine

    # Studies.

    create_new_study = _retried("create_new_study")
    set_study_user_attr = _retried("set_study_user_attr")
    set_study_system_attr = _retried("set_study_system_attr")
    get_study_user_attrs = _retried("get_study_user_attrs")
    get_study_system_attrs = _retried("get_study_system_attrs")
    get_all_studies = _retried("get_all_studies")
    get_study_id_from_name = _remembered("get_study_id_from_name")
    get_study_name_from_id = _remembered("get_study_name_from_id")  # Hyperband asks at every step
    get_study_directions = _remembered("get_study_directions")

    def delete_study(self, study_id: int) -> None:
        """See `BaseStorage`."""
        self._studies.clear()
        self._trials.pop(study_id, None)
        self._keys.pop(study_id, None)
        self.outlast(lambda: self.backend.delete_study(study_id))

    # Trials, written.

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """In a `collecting` block the trial is written at the end of the block; `Full` where there are enough."""
        drafts = self._here.drafts
        if template_trial is not None or drafts is None:
            return self.outlast(lambda: self.backend.create_new_trial(study_id, template_trial))
        number = len(self.get_all_trials(study_id, deepcopy=False))
        if self.limit is not None and number >= self.limit:
            raise Full
        draft_id, attrs = next(self._draft_ids), {Attr.OWNER: self.owner} if self.owner else {}
        draft = FrozenTrial(number, TrialState.RUNNING, None, datetime.now(), None, {}, {}, attrs, {}, {}, draft_id)
        drafts[draft_id] = study_id, draft
        return draft_id

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        """Write the trials that this thread creates in the block at its end; an exception leaves nothing written.

        Raises TrialTaken where another process made a trial meanwhile (this one waits to be found), or else Full.
        """
        drafts: dict[int, tuple[int, FrozenTrial]] = {}
        with self._here.having("drafts", drafts):
            yield
        for draft_id, (study_id, draft) in drafts.items():
            self._written[draft_id] = trial_id = self._create(study_id, draft)
            self._trial_ids[study_id, draft.number] = trial_id
            self._mine.add(trial_id)

    def _create(self, study_id: int, draft: FrozenTrial) -> int:
        """Write a trial under the number that its parameters were suggested for."""
        number, attempts = draft.number, itertools.count(1)

        def find() -> int | None:
            with contextlib.suppress(KeyError):
                return int(self.backend.get_trial_id_from_study_id_trial_number(study_id, number))
            return None

        def create() -> int:
            found = None if next(attempts) == 1 else find()
            if found is None:
                return int(self.backend.create_new_trial(study_id, self.lens.stored(draft) if self.lens else draft))
            if self.backend.get_trial(found).user_attrs.get(Attr.OWNER) != self.owner:
                raise TrialTaken(f"another process made trial {number} meanwhile")
            return found  # made in an attempt whose answer was lost

        trial_id = self.outlast(create)
        if self.outlast(find) == trial_id:
            return trial_id
        # Two processes made a trial at the same time, since a server took the turn from this one in between.
        made = self.outlast(lambda: self.backend.get_trial(trial_id)).number
        if self.limit is None or made < self.limit:
            raise TrialTaken(f"another process made trial {number} meanwhile")  # `Study.ask` finds this one again
        cause = "one trial too many: its process lost the turn"
        for key, value in {Attr.FAILURE: "lost-worker", Attr.CAUSE: cause}.items():
            self.backend.set_trial_user_attr(trial_id, key, value)
        self.backend.set_trial_state_values(trial_id, TrialState.FAIL)
        raise Full

    def _draft(self, trial_id: int) -> FrozenTrial | None:
        return (self._here.drafts or {}).get(trial_id, (0, None))[1]

    def _id(self, trial_id: int) -> int:
        return self._written.get(trial_id, trial_id)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """See `BaseStorage`."""
        if (draft := self._draft(trial_id)) is not None:
            draft.user_attrs[key] = value
            return
        if key == Attr.OWNER and value != self.owner:
            self._mine.discard(self._id(trial_id))
        self._write(trial_id, lambda id: self.backend.set_trial_user_attr(id, key, value))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """See `BaseStorage`."""
        if (draft := self._draft(trial_id)) is not None:
            draft.system_attrs[key] = value
        else:
            self._write(trial_id, lambda id: self.backend.set_trial_system_attr(id, key, value))

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """See `BaseStorage`."""
        self._write(trial_id, lambda id: self.backend.set_trial_intermediate_value(id, step, intermediate_value))

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """See `BaseStorage`."""
        if (draft := self._draft(trial_id)) is not None:
            draft.params[param_name] = distribution.to_external_repr(param_value_internal)
            draft.distributions[param_name] = distribution
        else:
            name = self.lens.names.get(param_name, param_name) if self.lens else param_name
            given = (name, param_value_internal, distribution)
            self._write(trial_id, lambda id: self.backend.set_trial_param(id, *given))

    def _write(self, trial_id: int, write: Callable[[int], None]) -> None:
        """Write to a trial that this process may write to; made twice, ``write`` does the same."""
        own_id = self._id(trial_id)

        def attempt() -> None:
            with self._allowed(own_id):
                write(own_id)

        try:
            self.outlast(attempt)
        finally:
            self._changed(own_id)

    def _changed(self, trial_id: int) -> None:
        self._unread.add(trial_id)
        if self._here.looked is not None:
            self._here.looked.clear()

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set a trial's state; a second attempt that finds it set (or the trial gone on) has nothing left to do."""
        own_id, attempts = self._id(trial_id), itertools.count(1)

        def attempt() -> bool:
            first = next(attempts) == 1
            try:
                with contextlib.nullcontext() if state == TrialState.RUNNING else self._allowed(own_id):
                    return bool(self.backend.set_trial_state_values(own_id, state, values))
            except (UpdateFinishedTrialError, TrialTaken):
                if first or self.backend.get_trial(own_id).state != state:
                    raise
                return True

        try:
            done = self.outlast(attempt)
        finally:
            self._changed(own_id)
        if state == TrialState.RUNNING and done and self.owner:
            self._mine.add(own_id)
        elif own_id in self._mine and state != TrialState.RUNNING:
            self._mine.discard(own_id)
            self._ended.add(own_id)
        return done

    @contextlib.contextmanager
    def _allowed(self, trial_id: int) -> Iterator[None]:
        """Write to a trial in the block; raises TrialTaken where it does not run, or belongs to another process."""
        owners = self._here.owners
        if not self.owner or (not owners and self.surely_alive()):
            yield
            return
        with self.exclusive():
            trial = self.backend.get_trial(trial_id)
            self.backend.check_trial_is_updatable(trial_id, trial.state)
            owner = trial.user_attrs.get(Attr.OWNER, "")
            if trial.state != TrialState.RUNNING or owner not in (*owners, self.owner):
                raise TrialTaken(f"trial {trial.number} belongs to another process; nothing was written to it")
            yield

    def on_behalf_of(self, *owners: str) -> contextlib.AbstractContextManager[None]:
        """Let this thread write to trials of others in a block: of dead ones, or of nobody ("")."""
        return self._here.having("owners", owners)

    # Trials, read.

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        """See `BaseStorage`."""
        key = study_id, trial_number
        if key not in self._trial_ids:
            found = self.outlast(lambda: self.backend.get_trial_id_from_study_id_trial_number(*key))
            self._trial_ids[key] = int(found)
        return self._trial_ids[key]

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """See `BaseStorage`."""
        if (draft := self._draft(trial_id)) is not None:
            return copy.deepcopy(draft)
        trial = self.outlast(lambda: self.backend.get_trial(self._id(trial_id)))
        return self.lens.show(trial) if self.lens else trial

    def get_trial_param(self, trial_id: int, param_name: str) -> float:
        """See `BaseStorage`."""
        name = self.lens.names.get(param_name, param_name) if self.lens else param_name
        return float(self.outlast(lambda: self.backend.get_trial_param(self._id(trial_id), name)))

    def get_trial_system_attrs(self, trial_id: int) -> dict[str, Any]:
        """Asked for each parameter that is suggested."""
        if (draft := self._draft(trial_id)) is not None:
            return dict(draft.system_attrs)
        return dict(self.outlast(lambda: self.backend.get_trial_system_attrs(self._id(trial_id))))

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """A trial that has ended is read once."""
        looked = self._here.looked
        with self._lock:
            if looked is None or study_id not in looked:
                self.outlast(lambda: self._read(study_id, states))
                if looked is not None and (states is None or TrialState.RUNNING in states):
                    looked.add(study_id)
            known = self._trials[study_id]
            trials = [known[number] for number in sorted(known)]
            if self.lens is not None and self.lens.study_id == study_id:
                trials = [self.lens.show(trial) for trial in trials]
            trials = averaged(trials, self._keys.setdefault(study_id, {})) if self.averages else trials
        trials = [trial for trial in trials if states is None or trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def one_look(self) -> contextlib.AbstractContextManager[None]:
        """In the block, this thread reads the trials of a study again only after it wrote to one of them."""
        return self._here.having("looked", set())

    def _read(self, study_id: int, states: Container[TrialState] | None) -> None:
        """Read what may have changed since the last time: trials that had not ended, and new ones."""
        backend, known = self.backend, self._trials.get(study_id)
        if known is None:
            self._trials[study_id] = {t.number: t for t in backend.get_all_trials(study_id, deepcopy=False)}
            return
        unfinished = [number for number, trial in known.items() if not trial.state.is_finished()]
        ids = {number: self.get_trial_id_from_study_id_trial_number(study_id, number) for number in unfinished}
        if self.surely_alive() and (self._mine | self._ended).issuperset(ids.values()):
            ended_only = states is not None and not any(state in states for state in UNFINISHED)
            changed = self._ended if ended_only else self._unread | self._ended
            again = [number for number, id in ids.items() if id in changed]
        else:
            trials = backend.get_all_trials(study_id, deepcopy=False, states=UNFINISHED)
            known.update({trial.number: trial for trial in trials})
            again = sorted(set(unfinished).difference(trial.number for trial in trials))
        for number in again:
            self._unread.discard(ids[number])
            try:
                known[number] = backend.get_trial(ids[number])
            except BaseException:
                self._unread.add(ids[number])
                raise
            self._ended.discard(ids[number])
        for number in itertools.count():
            if number not in known:
                try:
                    trial_id = self.get_trial_id_from_study_id_trial_number(study_id, number)
                except KeyError:
                    return
                known[number] = backend.get_trial(trial_id)

    # Outages and turns.

    def impatient(self) -> contextlib.AbstractContextManager[None]:
        """Let an `Outage` through at once in a block of this thread."""
        return self._here.having("impatient", True)

    def outlast(self, work: Callable[[], _T]) -> _T:
        """Do some work; where the server does not answer, again and again for `outage_s`, and then raise Outage."""
        try:
            result = work()
        except Outage as error:
            if not self.outage_s or self._here.impatient:
                raise
            outage = error
        else:
            self._say_up()
            return result
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

    def turn(self, name: str, folder: Path, idle_s: int = TURN_S) -> contextlib.AbstractContextManager[None]:
        """Be the only process, wherever it is, in the block of this name.

        Args:
            name: of what is done, such as a study's.
            folder: for the lock file, where the database is SQLite.
            idle_s: after which a server takes the turn away from a process that says nothing.
        """
        if self.engine.dialect.name == "sqlite":
            return file_turn(name, folder)
        return _until_closed(self.outlast(lambda: _locked(self.engine, name, idle_s)))


@contextlib.contextmanager
def file_turn(name: str, folder: Path) -> Iterator[None]:
    """The turn among the processes of one machine."""
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{name}.lock"):
        yield


def server_turn(url: str, name: str, connect_args: Mapping[str, int]) -> contextlib.AbstractContextManager[None]:
    """The turn among all processes that use a server, before there is a storage."""
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args=dict(connect_args))
    return _until_closed(_locked(engine, name, TURN_S))


@contextlib.contextmanager
def _until_closed(connection: sqlalchemy.Connection) -> Iterator[None]:
    try:
        yield
    finally:
        with contextlib.suppress(Exception):  # the server gave the turn up itself when it lost us
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
