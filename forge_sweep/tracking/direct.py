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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import sqlalchemy
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

MLFLOW = "3.17.2"
"""The version whose rows these are."""

STORE = "SqlAlchemyStore"
"""Its class for a database without workspaces; named, since a client of a server need not import it."""

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

    store: Any = client._tracking_client.store
    if (mlflow.__version__, type(store).__name__) != (MLFLOW, STORE) or store.read_engine is not None:
        return None
    return Direct(uri) if uri.startswith(("sqlite", "postgresql")) and ":memory:" not in uri else None


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
            insert, row = self._statements.insert, self._run(connection, experiment, run_id, name, started, tags)
            _insert(connection, insert["runs"], row)
            _insert(connection, insert["tags"], *_pairs(run_id, all_tags))
            _insert(connection, insert["params"], *_pairs(run_id, params))
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
                connection.execute(self._statements.tags, list(_pairs(run_id, tags)))

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
    def _statements(self) -> Statements:
        return Statements(self._engine.dialect.name)

    @contextmanager
    def _transaction(self, *, durable: bool = False) -> Iterator[sqlalchemy.Connection]:
        """One transaction; a durable one also survives a loss of power, with all that came before it."""
        from sqlalchemy import exc

        try:
            with self._engine.connect().execution_options(forge_durable=durable) as connection, connection.begin():
                yield connection
        except (exc.IntegrityError, exc.ProgrammingError, exc.DataError) as error:
            raise Unusual from error

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
        from mlflow.utils import uri

        append_to: Any = uri.append_to_uri_path
        found = connection.execute(self._statements.experiment, {"id": experiment}).one_or_none()
        if found is None or found.lifecycle_stage != "active":
            raise Unusual
        return {
            "run_uuid": run_id,
            "experiment_id": experiment,
            "name": name,
            "artifact_uri": append_to(found.artifact_location, run_id, "artifacts"),
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
        if status is None:
            count = len(connection.execute(self._statements.active, {"id": run_id}).all())
        elif status == "SCHEDULED":
            count = connection.execute(self._statements.status, {"id": run_id, "new_status": status}).rowcount
        else:
            end = {"id": run_id, "new_status": status, "new_end": ended}
            count = connection.execute(self._statements.end, end).rowcount
        if count != 1:
            raise Unusual

    def _add(self, connection: sqlalchemy.Connection, run_id: str, rows: Sequence[Row]) -> None:
        """Add points, and keep the newest of each metric where MLflow's searches look for it."""
        if not rows:
            return
        connection.execute(self._statements.metrics, [_point(run_id, row) for row in rows])
        newest: dict[str, Row] = {}
        for row in rows:
            newest[row[0]] = max(newest.get(row[0], row), row, key=_age)
        # Sorted as MLflow does: no two writers lock each other's rows crosswise.
        connection.execute(self._statements.latest, [_point(run_id, newest[name]) for name in sorted(newest)])

    def _use(self, connection: sqlalchemy.Connection, experiment: int, run_id: str, used: DatasetInput) -> None:
        """Link a dataset to a run that has none."""
        source, input_id = self._dataset(connection, experiment, used), uuid.uuid4().hex
        link = {"source_type": "DATASET", "source_id": source, "destination_type": "RUN", "destination_id": run_id}
        _insert(connection, self._statements.insert["inputs"], {"input_uuid": input_id, **link})
        tags = ({"input_uuid": input_id, "name": tag.key, "value": tag.value} for tag in used.tags)
        _insert(connection, self._statements.insert["input_tags"], *tags)

    def _dataset(self, connection: sqlalchemy.Connection, experiment: int, used: DatasetInput) -> str:
        """The id of a dataset, made where it is missing."""
        dataset = used.dataset
        key = {"of": experiment, "called": dataset.name, "digested": dataset.digest}
        found = connection.execute(self._statements.dataset, key).scalar_one_or_none()
        if found is not None:
            return str(found)
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
        connection.execute(self._statements.datasets, [row])
        return str(connection.execute(self._statements.dataset, key).scalar_one())


class Statements:
    """Statements on MLflow's tables: making one takes longer than executing it.

    Args:
        dialect: ``sqlite`` or ``postgresql``.
    """

    def __init__(self, dialect: str) -> None:
        from mlflow.store.tracking.dbmodels import models
        from sqlalchemy import bindparam, tuple_
        from sqlalchemy.dialects import postgresql, sqlite

        tables: Mapping[str, sqlalchemy.Table] = models.Base.metadata.tables  # type: ignore[attr-defined]
        upsert: Any = (sqlite if dialect == "sqlite" else postgresql).insert
        names = ("runs", "tags", "params", "inputs", "input_tags")
        self.insert = {name: tables[name].insert() for name in names}
        self.metrics = upsert(tables["metrics"]).on_conflict_do_nothing()
        self.datasets = upsert(tables["datasets"]).on_conflict_do_nothing()

        tags = upsert(tables["tags"])
        self.tags = tags.on_conflict_do_update(index_elements=["key", "run_uuid"], set_={"value": tags.excluded.value})
        latest, now = upsert(tables["latest_metrics"]), tables["latest_metrics"].c
        new = latest.excluded
        self.latest = latest.on_conflict_do_update(
            index_elements=["key", "run_uuid"],
            set_={name: new[name] for name in ("value", "timestamp", "step", "is_nan")},
            where=tuple_(new.step, new.timestamp, new.value) > tuple_(now.step, now.timestamp, now.value),
        )
        runs = tables["runs"]
        its = (runs.c.run_uuid == bindparam("id")) & (runs.c.lifecycle_stage == "active")
        self.active = runs.select().with_only_columns(runs.c.run_uuid).where(its)
        self.status = runs.update().where(its).values(status=bindparam("new_status"))
        self.end = self.status.values(end_time=bindparam("new_end"))
        experiments = tables["experiments"]
        self.experiment = experiments.select().where(experiments.c.experiment_id == bindparam("id"))
        datasets = tables["datasets"].c
        self.dataset = (
            tables["datasets"]
            .select()
            .with_only_columns(datasets.dataset_uuid)
            .where(
                datasets.experiment_id == bindparam("of"),
                datasets.name == bindparam("called"),
                datasets.digest == bindparam("digested"),
            )
        )


def _insert(connection: sqlalchemy.Connection, statement: Any, *rows: Mapping[str, Any]) -> None:
    if rows:
        connection.execute(statement, list(rows))


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
    validation = _validation()
    for name in metrics:
        _check_metric(name)
    for name, value in params.items():
        validation._validate_param(name, value)
    for name, value in tags.items():
        validation._validate_tag(name, value)


@lru_cache(maxsize=1000)
def _check_metric(name: str) -> None:
    validation = _validation()
    validation._validate_metric(name, 0.0, 0, 0)
    validation._validate_length_limit("Metric name", validation.MAX_ENTITY_KEY_LENGTH, name)


def _validation() -> Any:
    from mlflow.utils import validation

    return validation


def _pairs(run_id: str, values: Mapping[str, str]) -> Iterator[dict[str, str]]:
    return ({"run_uuid": run_id, "key": key, "value": value} for key, value in values.items())


def _point(run_id: str, row: Row) -> dict[str, Any]:
    name, value, time, step = row
    return {"run_uuid": run_id, "key": name, "value": value, "timestamp": time, "step": step, "is_nan": False}


def _age(row: Row) -> tuple[int, int, float]:
    """MLflow's order of the points of one metric."""
    _, value, time, step = row
    return step, time, value
