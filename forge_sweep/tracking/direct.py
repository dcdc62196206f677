"""What a trial writes most, in one transaction each, into the tables of an MLflow store on SQLite or PostgreSQL.

MLflow's own client spends 40 ms on a trial of 20 epochs, nearly all of it in making objects of rows and in transactions
within transactions. These rows are the same, to the last column (tests/test_tracking_direct.py compares all tables).
Only for the version of MLflow that they were compared with; its client writes everything else, and these writes too
where anything is unusual. See docs/decisions/0014-cost-of-a-trial.md.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import sqlalchemy
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

MLFLOW = "3.17.2"
"""The version whose rows these are."""

BUSY_MS = 20_000
"""How long a writer waits for another one, as in MLflow's own sessions."""

Row = tuple[str, float, int, int]  # metric, value, milliseconds since 1970, step


class Unusual(Exception):
    """Nothing was written; MLflow's client has to do it, or to say why it does not."""


def direct(client: MlflowClient, uri: str) -> Direct | None:
    """A writer for the client's store, or None where its client alone may write: a server, another version or database.

    Args:
        client: connected, so that MLflow has compared the tables with its own.
        uri: tracking address.
    """
    import mlflow
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = client._tracking_client.store
    if mlflow.__version__ != MLFLOW or type(store) is not SqlAlchemyStore or store.read_engine is not None:
        return None
    return Direct(uri) if uri.startswith(("sqlite:", "postgresql")) and ":memory:" not in uri else None


class Direct:
    """Writes whole runs.

    Args:
        uri: address of the database.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def create(
        self,
        experiment_id: str,
        name: str,
        started: int,
        tags: Mapping[str, str],
        params: Mapping[str, str],
        dataset: DatasetInput | None,
    ) -> str:
        """Make a run with all that is known of it at its start; returns its id.

        Raises:
            Unusual: the experiment is not active.
            MlflowException: MLflow does not take a name or a value.
        """
        run_id, experiment = uuid.uuid4().hex, int(experiment_id)
        all_tags = {**tags, "mlflow.runName": name}
        _check_names(params, all_tags, ())
        with self._transaction() as connection:
            self._insert("runs", connection, self._run(connection, experiment, run_id, name, started, tags))
            self._insert("tags", connection, *_pairs(run_id, all_tags))
            self._insert("params", connection, *_pairs(run_id, params))
            if dataset is not None:
                self._use(connection, experiment, run_id, dataset)
        return run_id

    def log(
        self, run_id: str, rows: Sequence[Row], tags: Mapping[str, str], status: str | None = None, ended: int = 0
    ) -> None:
        """Add points and tags, and end the run where a status is given; all of it or nothing.

        Args:
            run_id: MLflow's id.
            rows: finite points; one that is there already stays.
            tags: set, or set anew.
            status: last status; SCHEDULED has no end.
            ended: milliseconds since 1970.

        Raises:
            Unusual: the run is not active, or a value is one that only MLflow's client treats.
            MlflowException: MLflow does not take a name or a value.
        """
        _check_names({}, tags, tuple({row[0] for row in rows}))
        if "mlflow.runName" in tags or not all(math.isfinite(row[1]) for row in rows):
            raise Unusual
        with self._transaction(durable=status is not None) as connection:
            self._touch(connection, run_id, status, ended)
            self._add(connection, run_id, rows)
            if tags:
                insert = self._upsert("tags")
                chosen = insert.on_conflict_do_update(
                    index_elements=["key", "run_uuid"], set_={"value": insert.excluded.value}
                )
                connection.execute(chosen, list(_pairs(run_id, tags)))

    def close(self) -> None:
        """Give the connections back."""
        if "_engine" in self.__dict__:
            self._engine.dispose()

    @cached_property
    def _engine(self) -> sqlalchemy.Engine:
        import sqlalchemy

        if not self._uri.startswith("sqlite"):
            return sqlalchemy.create_engine(self._uri, pool_pre_ping=True)
        engine = sqlalchemy.create_engine(self._uri)
        sqlalchemy.event.listen(engine, "connect", _prepare)
        sqlalchemy.event.listen(engine, "begin", _begin)
        return engine

    @cached_property
    def _tables(self) -> Mapping[str, sqlalchemy.Table]:
        from mlflow.store.tracking.dbmodels.models import Base

        tables: Mapping[str, sqlalchemy.Table] = Base.metadata.tables
        return tables

    @cached_property
    def _dialect(self) -> ModuleType:
        from sqlalchemy.dialects import postgresql, sqlite

        return sqlite if self._engine.dialect.name == "sqlite" else postgresql

    @contextmanager
    def _transaction(self, *, durable: bool = False) -> Iterator[sqlalchemy.Connection]:
        """One transaction; a durable one also survives a loss of power, with all that came before it."""
        from sqlalchemy import exc

        try:
            with self._engine.connect().execution_options(forge_durable=durable) as connection, connection.begin():
                yield connection
        except (exc.IntegrityError, exc.ProgrammingError, exc.DataError) as error:
            raise Unusual from error

    def _upsert(self, table: str) -> Any:
        return self._dialect.insert(self._tables[table])

    def _insert(self, table: str, connection: sqlalchemy.Connection, *rows: Mapping[str, Any]) -> None:
        if rows:
            connection.execute(self._tables[table].insert(), list(rows))

    def _run(
        self,
        connection: sqlalchemy.Connection,
        experiment: int,
        run_id: str,
        name: str,
        started: int,
        tags: Mapping[str, str],
    ) -> dict[str, Any]:
        """The row of a run."""
        from mlflow.utils.uri import append_to_uri_path

        table = self._tables["experiments"]
        asked = table.select().where(table.c.experiment_id == experiment)
        found = connection.execute(asked).one_or_none()
        if found is None or found.lifecycle_stage != "active":
            raise Unusual
        return {
            "run_uuid": run_id,
            "experiment_id": experiment,
            "name": name,
            "artifact_uri": append_to_uri_path(found.artifact_location, run_id, "artifacts"),
            "source_type": "UNKNOWN",
            "source_name": "",
            "entry_point_name": "",
            "source_version": "",
            "user_id": tags.get("mlflow.user", "unknown"),
            "status": "RUNNING",
            "start_time": started,
            "lifecycle_stage": "active",
        }

    def _touch(self, connection: sqlalchemy.Connection, run_id: str, status: str | None, ended: int) -> None:
        """Set the status where there is one; the run has to be active in any case."""
        table = self._tables["runs"]
        active = (table.c.run_uuid == run_id) & (table.c.lifecycle_stage == "active")
        if status is None:
            found = connection.execute(table.select().with_only_columns(table.c.run_uuid).where(active)).all()
            count = len(found)
        else:
            new = {"status": status} if status == "SCHEDULED" else {"status": status, "end_time": ended}
            count = connection.execute(table.update().where(active).values(new)).rowcount
        if count != 1:
            raise Unusual

    def _add(self, connection: sqlalchemy.Connection, run_id: str, rows: Sequence[Row]) -> None:
        """Add points, and keep the newest of each metric where MLflow's searches look for it."""
        if not rows:
            return
        connection.execute(self._upsert("metrics").on_conflict_do_nothing(), [_point(run_id, row) for row in rows])
        newest: dict[str, Row] = {}
        for row in rows:
            newest[row[0]] = max(newest.get(row[0], row), row, key=_age)
        insert, table = self._upsert("latest_metrics"), self._tables["latest_metrics"]
        names = ("value", "timestamp", "step", "is_nan")
        connection.execute(
            insert.on_conflict_do_update(
                index_elements=["key", "run_uuid"],
                set_={name: insert.excluded[name] for name in names},
                where=_is_newer(insert.excluded, table.c),
            ),
            [_point(run_id, newest[name]) for name in sorted(newest)],  # in MLflow's order: no two writers lock crosswise
        )

    def _use(self, connection: sqlalchemy.Connection, experiment: int, run_id: str, used: DatasetInput) -> None:
        """Link a dataset to a run that has none."""
        source, input_id = self._dataset(connection, experiment, used), uuid.uuid4().hex
        link = {"source_type": "DATASET", "source_id": source, "destination_type": "RUN", "destination_id": run_id}
        self._insert("inputs", connection, {"input_uuid": input_id, **link})
        tags = ({"input_uuid": input_id, "name": tag.key, "value": tag.value} for tag in used.tags)
        self._insert("input_tags", connection, *tags)

    def _dataset(self, connection: sqlalchemy.Connection, experiment: int, used: DatasetInput) -> str:
        """The id of a dataset, made where it is missing."""
        dataset, table = used.dataset, self._tables["datasets"]
        row = {
            "experiment_id": experiment,
            "name": dataset.name,
            "digest": dataset.digest,
            "dataset_uuid": uuid.uuid4().hex,
            "dataset_source_type": dataset.source_type,
            "dataset_source": dataset.source,
            "dataset_schema": dataset.schema,
            "dataset_profile": dataset.profile,
        }
        its = (table.c.experiment_id == experiment) & (table.c.name == dataset.name) & (table.c.digest == dataset.digest)
        asked = table.select().with_only_columns(table.c.dataset_uuid).where(its)
        found = connection.execute(asked).scalar_one_or_none()
        if found is None:
            connection.execute(self._upsert("datasets").on_conflict_do_nothing(), [row])
            found = connection.execute(asked).scalar_one()
        return str(found)


def _prepare(connection: Any, _: Any) -> None:
    """What MLflow's own sessions set; transactions are begun in `_begin`, not by the driver."""
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")


def _begin(connection: sqlalchemy.Connection) -> None:
    """Take the write lock at once: it cannot be got later where another writer was quicker.

    In a write-ahead log, NORMAL loses nothing at a kill; what it may lose when power fails is the last transactions,
    and the next durable one saves them too.
    """
    full = connection.get_execution_options().get("forge_durable", True) or not _has_log(connection)
    connection.exec_driver_sql(f"PRAGMA synchronous = {'FULL' if full else 'NORMAL'}")
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _has_log(connection: sqlalchemy.Connection) -> bool:
    known = connection.info.get("forge_wal")
    if known is None:
        known = connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        connection.info["forge_wal"] = known
    return bool(known)


def _check_names(params: Mapping[str, str], tags: Mapping[str, str], metrics: Iterable[str]) -> None:
    """Let MLflow say whether it takes them."""
    from mlflow.utils import validation

    for name in metrics:
        _check_metric(name)
    for name, value in params.items():
        validation._validate_param(name, value)
    for name, value in tags.items():
        validation._validate_tag(name, value)


@lru_cache(maxsize=1000)
def _check_metric(name: str) -> None:
    from mlflow.utils import validation

    validation._validate_metric(name, 0.0, 0, 0)
    validation._validate_length_limit("Metric name", validation.MAX_ENTITY_KEY_LENGTH, name)


def _pairs(run_id: str, values: Mapping[str, str]) -> Iterator[dict[str, str]]:
    return ({"run_uuid": run_id, "key": key, "value": value} for key, value in values.items())


def _point(run_id: str, row: Row) -> dict[str, Any]:
    name, value, time, step = row
    return {"run_uuid": run_id, "key": name, "value": value, "timestamp": time, "step": step, "is_nan": False}


def _age(row: Row) -> tuple[int, int, float]:
    """MLflow's order of the points of one metric."""
    _, value, time, step = row
    return step, time, value


def _is_newer(new: Any, old: Any) -> Any:
    from sqlalchemy import tuple_

    return tuple_(new.step, new.timestamp, new.value) > tuple_(old.step, old.timestamp, old.value)
