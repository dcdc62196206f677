"""Optuna's database storage with what a trial does most as a few plain statements.

Optuna makes an object of every row, and a transaction of every parameter, attribute and report: 44 ms of a trial of 20
epochs, nearly all of it spent in Python. These are the same rows in the same tables, and the same trials read from them
(tests/test_study_rows.py compares). See docs/decisions/0014-cost-of-a-trial.md.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import threading
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import optuna
import sqlalchemy
from optuna.distributions import (
    BaseDistribution,
    check_distribution_compatibility,
    distribution_to_json,
    json_to_distribution,
)
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.dialects import postgresql, sqlite

from forge_sweep import jsons

OPTUNA = "5.0."
"""The versions whose rows these are."""

IDS_PER_STATEMENT = 500

_TRIALS = models.TrialModel.__table__
_PARAMS = models.TrialParamModel.__table__
_VALUES = models.TrialValueModel.__table__
_USER_ATTRS = models.TrialUserAttributeModel.__table__
_SYSTEM_ATTRS = models.TrialSystemAttributeModel.__table__
_REPORTS = models.TrialIntermediateValueModel.__table__
_STUDY_ATTRS = models.StudyUserAttributeModel.__table__

_trial: Any = sqlalchemy.bindparam("trial")
_study: Any = sqlalchemy.bindparam("study")
_after: Any = sqlalchemy.bindparam("after")
_ids: Any = sqlalchemy.bindparam("ids", expanding=True)

_STATE = sqlalchemy.select(_TRIALS.c.state).where(_TRIALS.c.trial_id == _trial)
_STATE_LOCKED = _STATE.with_for_update()
_ONE = sqlalchemy.select(_TRIALS).where(_TRIALS.c.trial_id == _trial)
_LATER = sqlalchemy.select(_TRIALS).where(_TRIALS.c.study_id == _study, _TRIALS.c.trial_id > _after)
_LATER_OR = sqlalchemy.select(_TRIALS).where(
    _TRIALS.c.study_id == _study, (_TRIALS.c.trial_id > _after) | _TRIALS.c.trial_id.in_(_ids)
)
_N_COMPLETE = sqlalchemy.select(sqlalchemy.func.count()).where(
    _TRIALS.c.study_id == _study, _TRIALS.c.state == TrialState.COMPLETE
)
_PARTS = {
    table: sqlalchemy.select(table).where(table.c.trial_id.in_(_ids)).order_by(*order)
    for table, order in (
        (_PARAMS, [_PARAMS.c.param_id]),
        (_VALUES, [_VALUES.c.objective]),
        (_USER_ATTRS, []),
        (_SYSTEM_ATTRS, []),
        (_REPORTS, []),
    )
}
_ATTRS_OF_STUDY = sqlalchemy.select(_STUDY_ATTRS.c.key, _STUDY_ATTRS.c.value_json).where(
    _STUDY_ATTRS.c.study_id == _study
)
_STUDY_OF = sqlalchemy.select(_TRIALS.c.study_id).where(_TRIALS.c.trial_id == _trial).scalar_subquery()
_EARLIER = (
    sqlalchemy.select(_PARAMS.c.distribution_json)
    .join(_TRIALS, _TRIALS.c.trial_id == _PARAMS.c.trial_id)
    .where(_TRIALS.c.study_id == _STUDY_OF, _PARAMS.c.param_name == sqlalchemy.bindparam("name"))
    .limit(1)
)

_stored_value = models.TrialValueModel.value_to_stored_repr
_value = models.TrialValueModel.stored_repr_to_value
_stored_report = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr
_report = models.TrialIntermediateValueModel.stored_repr_to_intermediate_value


@dataclass
class Changes:
    """What is to be written of one trial, in the order of the fields.

    Attributes:
        params: name, internal value and distribution.
        user_attrs: by key.
        system_attrs: by key.
        reports: intermediate values by step.
        end: a state that ends or interrupts the trial, and its values.
    """

    params: list[tuple[str, float, BaseDistribution]] = field(default_factory=list)
    user_attrs: dict[str, Any] = field(default_factory=dict)
    system_attrs: dict[str, Any] = field(default_factory=dict)
    reports: dict[int, float] = field(default_factory=dict)
    end: tuple[TrialState, Sequence[float] | None] | None = None


class Plain(RDBStorage):
    """Optuna's own storage, for versions of it that were not compared with."""

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Nothing is kept back."""
        yield

    def n_complete(self, study_id: int) -> int | None:
        """Not known without reading the trials."""
        return None

    @contextlib.contextmanager
    def unread(self) -> Iterator[None]:
        """All is read."""
        yield


class Rows(RDBStorage):
    """See the module."""

    def __init__(self, *words: Any, **options: Any) -> None:
        super().__init__(*words, **options)
        self._kept = threading.local()
        self._study_ids: dict[str, int] = {}

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Keep back what this thread writes of trials, and write it in one transaction at the end of the block.

        An exception in the block leaves nothing written. What is kept back is not read in the block.
        """
        kept: dict[int, Changes] = defaultdict(Changes)
        self._kept.changes = kept
        try:
            yield
        finally:
            del self._kept.changes
        for trial_id, changes in kept.items():
            self.write(trial_id, changes)

    def n_complete(self, study_id: int) -> int | None:
        """How many trials of a study are complete; once they are, they stay as they are."""
        with self._connection() as connection:
            return int(connection.execute(_N_COMPLETE, {"study": study_id}).scalar_one())

    @contextlib.contextmanager
    def unread(self) -> Iterator[None]:
        """In the block, this thread sees the trials as Optuna's cache has them."""
        self._kept.unread = True
        try:
            yield
        finally:
            self._kept.unread = False

    @contextlib.contextmanager
    def _changing(self, trial_id: int) -> Iterator[Changes]:
        """What is to be written of a trial, then write it or keep it back."""
        kept = getattr(self._kept, "changes", None)
        if kept is not None:
            yield kept[trial_id]
            return
        changes = Changes()
        yield changes
        self.write(trial_id, changes)

    def write(self, trial_id: int, changes: Changes) -> None:
        """Write all of it or nothing; written again, it changes nothing, unless it ends the trial.

        Raises:
            UpdateFinishedTrialError: the trial has ended.
        """
        with self._connection() as connection:
            asked = _STATE_LOCKED if changes.end else _STATE
            state = connection.execute(asked, {"trial": trial_id}).scalar_one_or_none()
            if state is None:
                raise KeyError(models.NOT_FOUND_MSG)
            self.check_trial_is_updatable(trial_id, state)
            write = functools.partial(_write, connection, trial_id)
            write(_PARAMS, "param_name", map(_param_row, changes.params))
            write(_USER_ATTRS, "key", map(_attr_row, changes.user_attrs.items()))
            write(_SYSTEM_ATTRS, "key", map(_attr_row, changes.system_attrs.items()))
            write(_REPORTS, "step", map(_report_row, changes.reports.items()))
            if changes.end is not None:
                new, values = changes.end
                write(_VALUES, "objective", map(_value_row, enumerate(values or ())))
                completed = {"datetime_complete": _utc_now()} if new.is_finished() else {}
                its = _TRIALS.update().where(_TRIALS.c.trial_id == trial_id)
                connection.execute(its.values(state=new, **completed))

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """See `BaseStorage`."""
        with self._changing(trial_id) as changes:
            changes.user_attrs[key] = value

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """See `BaseStorage`."""
        with self._changing(trial_id) as changes:
            changes.system_attrs[key] = value

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """See `BaseStorage`."""
        with self._changing(trial_id) as changes:
            changes.reports[step] = intermediate_value

    def _set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
        previous_distribution: BaseDistribution | None = None,
    ) -> None:
        """Optuna's cache calls this; the first value of a parameter, with nothing to compare with, is Optuna's."""
        if previous_distribution is None:
            previous_distribution = self._distribution(trial_id, param_name)
        if previous_distribution is not None:
            check_distribution_compatibility(previous_distribution, distribution)
        with self._changing(trial_id) as changes:
            changes.params.append((param_name, param_value_internal, distribution))

    def _distribution(self, trial_id: int, name: str) -> BaseDistribution | None:
        """What a parameter was drawn from in an earlier trial of the same study."""
        with self._connection() as connection:
            found = connection.execute(_EARLIER, {"trial": trial_id, "name": name}).scalar_one_or_none()
        return None if found is None else json_to_distribution(found)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """See `BaseStorage`; taking up a waiting trial, which one of several wins, is Optuna's."""
        if state == TrialState.RUNNING:
            return super().set_trial_state_values(trial_id, state, values)
        with self._changing(trial_id) as changes:
            changes.end = (state, values)
        return True

    def get_study_id_from_name(self, study_name: str) -> int:
        """See `BaseStorage`; Hyperband asks at every step."""
        if study_name not in self._study_ids:
            self._study_ids[study_name] = super().get_study_id_from_name(study_name)
        return self._study_ids[study_name]

    def delete_study(self, study_id: int) -> None:
        """See `BaseStorage`."""
        self._study_ids.clear()
        super().delete_study(study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """See `BaseStorage`."""
        with self._connection() as connection:
            found = connection.execute(_ATTRS_OF_STUDY, {"study": study_id}).all()
        if not found:  # perhaps there is no such study
            return super().get_study_user_attrs(study_id)
        return {key: json.loads(value) for key, value in found}

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """See `BaseStorage`."""
        found = self._read(_ONE, {"trial": trial_id})
        if not found:
            raise KeyError(models.NOT_FOUND_MSG)
        return found[0]

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """Optuna's cache calls this, for the trials that it does not know to be finished."""
        if getattr(self._kept, "unread", False):
            return []
        included = [trial_id for trial_id in included_trial_ids if trial_id <= trial_id_greater_than]
        if states is not None or len(included) > IDS_PER_STATEMENT:
            return super()._get_trials(study_id, states, included_trial_ids, trial_id_greater_than)
        wanted = {"study": study_id, "after": trial_id_greater_than}
        found = self._read(_LATER_OR, {**wanted, "ids": included}) if included else self._read(_LATER, wanted)
        if not found and trial_id_greater_than < 0:  # perhaps there is no such study
            return super()._get_trials(study_id, states, included_trial_ids, trial_id_greater_than)
        return found

    def _read(self, asked: sqlalchemy.Select[Any], values: dict[str, Any]) -> list[FrozenTrial]:
        """Trials in the order of their ids."""
        with self._connection() as connection:
            rows = sorted(connection.execute(asked, values).all(), key=lambda row: row.trial_id)
            parts = _Parts(connection, [row.trial_id for row in rows])
        return [parts.trial(row) for row in rows]

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlalchemy.Connection]:
        """One transaction, in the session in which `check_trial_is_updatable` would look."""
        with _create_scoped_session(self.scoped_session) as session:
            yield session.connection()


def _write(
    connection: sqlalchemy.Connection,
    trial_id: int,
    table: sqlalchemy.Table,
    key: str,
    rows: Iterable[dict[str, Any]],
) -> None:
    """Write rows of a trial that are told apart by a key."""
    given = [{"trial_id": trial_id, **row} for row in rows]
    if given:
        connection.execute(_upsert(connection.dialect.name, table, key, tuple(given[0])), given)


@functools.cache
def _upsert(dialect: str, table: sqlalchemy.Table, key: str, columns: tuple[str, ...]) -> sqlalchemy.Executable:
    """The statement, which takes longer to make than to execute."""
    insert: Any = (sqlite if dialect == "sqlite" else postgresql).insert(table)
    changed = {name: insert.excluded[name] for name in columns if name not in ("trial_id", key)}
    made: sqlalchemy.Executable = insert.on_conflict_do_update(index_elements=["trial_id", key], set_=changed)
    return made


class _Parts:
    """What belongs to some trials, by trial."""

    def __init__(self, connection: sqlalchemy.Connection, ids: list[int]) -> None:
        def by_trial(table: sqlalchemy.Table) -> dict[int, list[Any]]:
            found: dict[int, list[Any]] = defaultdict(list)
            for at in range(0, len(ids), IDS_PER_STATEMENT):
                for row in connection.execute(_PARTS[table], {"ids": ids[at : at + IDS_PER_STATEMENT]}):
                    found[row.trial_id].append(row)
            return found

        self.params, self.values = by_trial(_PARAMS), by_trial(_VALUES)
        self.user_attrs, self.system_attrs = by_trial(_USER_ATTRS), by_trial(_SYSTEM_ATTRS)
        self.reports = by_trial(_REPORTS)

    def trial(self, row: Any) -> FrozenTrial:
        """One of the trials."""
        id = row.trial_id
        params = [(p.param_name, p.param_value, _distribution(p.distribution_json)) for p in self.params.get(id, ())]
        values = [_value(each.value, each.value_type) for each in self.values.get(id, ())]
        return FrozenTrial(
            number=row.number,
            state=row.state,
            value=None,
            values=values or None,
            datetime_start=_local(row.datetime_start),
            datetime_complete=_local(row.datetime_complete),
            params={name: distribution.to_external_repr(value) for name, value, distribution in params},
            distributions={name: distribution for name, _, distribution in params},
            user_attrs={each.key: json.loads(each.value_json) for each in self.user_attrs.get(id, ())},
            system_attrs={each.key: json.loads(each.value_json) for each in self.system_attrs.get(id, ())},
            intermediate_values={
                each.step: _report(each.intermediate_value, each.intermediate_value_type)
                for each in self.reports.get(id, ())
            },
            trial_id=id,
        )


@functools.lru_cache(maxsize=1000)
def _distribution(text: str) -> BaseDistribution:
    """One object for all trials that drew from it; nothing changes a distribution."""
    return json_to_distribution(text)


def _param_row(param: tuple[str, float, BaseDistribution]) -> dict[str, Any]:
    name, value, distribution = param
    return {"param_name": name, "param_value": value, "distribution_json": distribution_to_json(distribution)}


def _attr_row(attr: tuple[str, Any]) -> dict[str, Any]:
    return {"key": attr[0], "value_json": jsons.dumps(attr[1])}


def _report_row(report: tuple[int, float]) -> dict[str, Any]:
    value, kind = _stored_report(report[1])
    return {"step": report[0], "intermediate_value": value, "intermediate_value_type": kind}


def _value_row(value: tuple[int, float]) -> dict[str, Any]:
    stored, kind = _stored_value(value[1])
    return {"objective": value[0], "value": stored, "value_type": kind}


def _utc_now() -> datetime.datetime:
    """As Optuna keeps times: UTC that does not say so."""
    return datetime.datetime.now(datetime.UTC).replace(tzinfo=None)


def _local(utc: datetime.datetime | None) -> datetime.datetime | None:
    return None if utc is None else utc.replace(tzinfo=datetime.UTC).astimezone().replace(tzinfo=None)


if TYPE_CHECKING:
    Storage = Rows
else:
    Storage = Rows if optuna.__version__.startswith(OPTUNA) else Plain
