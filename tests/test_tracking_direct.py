"""What is written straight into MLflow's tables is what MLflow would write, once, whole or not at all."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import exc

from forge_sweep import tracking
from forge_sweep.errors import InputError, TrackingDown
from forge_sweep.tracking import Tracker, direct, runs, tracker, writes
from forge_sweep.tracking.writes import End, Open, Write
from tests.postgres import database, server  # noqa: F401

DATASET = {
    "name": "cards",
    "digest": "0123456789abcdef" * 4,
    "version": "v3@0123",
    "source": "data/cards.csv",
    "columns": {"age": "int64"},
    "profile": {"num_rows": 9},
}
TABLES = ("runs", "tags", "params", "metrics", "latest_metrics", "datasets", "inputs", "input_tags")
BY_API = "0.0.0"
"""No version of MLflow: its client writes everything."""


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test names its store."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def new_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("new")
    tracking.prepare_store(f"sqlite:///{store}/mlflow.db", store)
    return store


@pytest.fixture
def sqlite_uri(tmp_path: Path, new_store: Path) -> Callable[[], str]:
    """Makes empty stores."""
    numbers = itertools.count()

    def make() -> str:
        path = tmp_path / f"mlflow-{next(numbers)}.db"
        shutil.copy(new_store / "mlflow.db", path)
        return f"sqlite:///{path}"

    return make


@pytest.fixture
def postgres_uri(request: pytest.FixtureRequest) -> Callable[[], str]:
    """The same on a server."""
    make: Callable[[], str] = request.getfixturevalue("database")
    return lambda: make().replace("postgresql://", "postgresql+psycopg://")


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Tracker]]:
    """Opens trackers, with times of their own that begin alike."""
    made: list[Tracker] = []

    def make(uri: str, *, by: str = direct.MLFLOW) -> Tracker:
        times = itertools.count(1_800_000_000_000)
        for module in (runs, tracker):
            monkeypatch.setattr(module, "now_ms", lambda: next(times))
        monkeypatch.setattr(direct, "MLFLOW", by)
        made.append(Tracker("fraud", tmp_path / f"store-{len(made)}", uri=uri))
        assert (made[-1]._session.direct is None) == (by == BY_API)
        return made[-1]

    yield make
    for each in made:
        each.close()


def content(uri: str) -> dict[str, list[tuple[Any, ...]]]:
    """The rows of every table that runs have a part in, random ids replaced by what they stand for."""
    engine = sqlalchemy.create_engine(uri)
    with engine.connect() as connection:
        found = {
            table: connection.execute(sqlalchemy.text(f"SELECT * FROM {table}")).mappings().all() for table in TABLES
        }
        names = {row["run_uuid"]: row["name"] for row in found["runs"]}
        names |= {row["dataset_uuid"]: row["name"] for row in found["datasets"]}
        names |= {
            row["input_uuid"]: f"{names[row['source_id']]} of {names[row['destination_id']]}" for row in found["inputs"]
        }
    engine.dispose()

    def named(value: Any) -> Any:
        if isinstance(value, str) and "/artifacts/" in value:
            return "/".join(names.get(part, part) for part in value.partition("/artifacts/")[2].split("/"))
        return names.get(value, value) if isinstance(value, str) else value

    return {
        table: sorted((tuple((name, named(value)) for name, value in row.items()) for row in rows), key=str)
        for table, rows in found.items()
    }


def log_a_sweep(made: Tracker) -> None:
    """A parent, a finished trial, one that was interrupted and goes on, one that failed."""
    made.run("s", "sweep", kind="sweep", tags={"mlflow.user": "jo"}, params={"seed": 7}, dataset=DATASET)
    for number, end in enumerate(("FINISHED", "SCHEDULED", "FAILED")):
        trial = made.run(
            f"s/{number}",
            f"trial-{number}",
            kind="trial",
            parent="s",
            tags={"mlflow.user": "jo", "forge.state": "running"},
            params={"width": 64, "empty": ""},
            dataset=DATASET,
            new=True,
        )
        for epoch in range(4):
            trial.log_epoch(epoch, {"loss": 1 / (epoch + 1), "val_auc": 0.5})
            if epoch == 1:
                trial.flush()
        trial.log_metrics({"delta": -1e-9}, step=3)
        trial.log_metrics({"delta": 2.0})  # of an earlier step: not the newest
        trial.set_tags({"forge.events": "", "forge.state": "ending"})
        trial.finish(end, metrics={"seconds": 1.5, "best_epoch": 3}, tags={"forge.state": end.lower()})
    again = made.run("s/1", "trial-1", kind="trial", parent="s", params={"width": 64, "depth": 2}, dataset=DATASET)
    for epoch in range(6):
        again.log_epoch(epoch, {"loss": 1 / (epoch + 1), "val_auc": 0.5})
    again.finish("KILLED", metrics={"seconds": 2.5, "best_epoch": 3}, tags={"forge.state": "pruned"})


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def test_all_tables_are_as_mlflows_client_leaves_them(
    kind: str, opened: Callable[..., Tracker], request: pytest.FixtureRequest
) -> None:
    """To the last column, after runs that were opened, opened again and ended in every way."""
    make: Callable[[], str] = request.getfixturevalue(f"{kind}_uri")
    straight, by_api = make(), make()
    log_a_sweep(opened(straight))
    log_a_sweep(opened(by_api, by=BY_API))
    assert content(straight) == content(by_api)
    assert len(content(straight)["metrics"]) > 40


def a_run(key: str = "s/a") -> Open:
    used = {"context": "training", **DATASET}
    return Open(key, "a", None, {"forge.kind": "trial"}, {"width": "64"}, 1_700_000_000_000, used, new=True)


def its_end(key: str = "s/a") -> End:
    curve = [("loss", 1.0 / (epoch + 1), 1_700_000_000_000 + epoch, epoch) for epoch in range(20)]
    figures = [("seconds", 1.5, 1_700_000_001_000, 0)]
    return End(key, curve, figures, {"forge.state": "finished"}, "FINISHED", 1_700_000_002_000)


@pytest.mark.parametrize("by", [direct.MLFLOW, BY_API])
def test_opening_and_ending_a_run_twice_changes_nothing(
    by: str, sqlite_uri: Callable[[], str], opened: Callable[..., Tracker]
) -> None:
    """The second time by a process that knows nothing of the first, as after a lost position in the journal."""
    uri = sqlite_uri()
    for _ in range(2):
        made = opened(uri, by=by)
        for write in (a_run().again(), its_end()):
            write.apply(made._session)
        seen = content(uri)
        assert len(seen["runs"]) == len(seen["inputs"]) == 1
        assert len(seen["metrics"]) == 21
        assert dict(seen["runs"][0])["status"] == "FINISHED"
    assert Counter(row["key"] for row in map(dict, seen["tags"]))["forge.state"] == 1


@pytest.mark.parametrize("write", [a_run().again(), its_end()])
def test_a_write_survives_the_journal(write: Write) -> None:
    """As JSON and back."""
    record = json.loads(json.dumps(write.to_record()))
    assert writes.from_record(record).to_record() == json.loads(json.dumps(write.to_record()))


def test_a_run_that_waits_in_the_journal_is_looked_for_when_it_is_written(tmp_path: Path) -> None:
    """Once it may have been made, nothing is new any more; records of earlier versions are still read."""
    with Tracker("fraud", tmp_path, uri="http://127.0.0.1:9") as down:
        down.run("s/a", "a", kind="trial", new=True, dataset=DATASET).finish("FINISHED", metrics={"seconds": 1.0})
        assert down.pending == 2
    journal = tmp_path / "journal" / "fraud.jsonl"
    opening, ending = map(json.loads, journal.read_text().splitlines())
    assert (opening["op"], opening["new"], ending["op"]) == ("open", False, "end")
    older = [{key: value for key, value in opening.items() if key not in ("dataset", "new")}]
    older += [{"op": "dataset", "key": "s/a", "context": "training", **DATASET}]
    older += [{"op": "metrics", "key": "s/a", "rows": [["loss", 0.5, 1, 0]], "once": True}]
    older += [{"op": "tags", "key": "s/a", "values": {"forge.state": "finished"}}]
    older += [{"op": "finish", "key": "s/a", "status": "FINISHED", "ended": 2}]
    journal.write_text("".join(f"{json.dumps(record)}\n" for record in [*older, opening, ending]))
    with Tracker("fraud", tmp_path) as up:
        assert up.pending == 0
        seen = content(up.uri)
    assert [dict(row)["status"] for row in seen["runs"]] == ["FINISHED"]
    assert {dict(row)["key"] for row in seen["metrics"]} == {"loss", "seconds"}


def test_a_run_whose_answer_got_lost_is_not_made_twice(
    sqlite_uri: Callable[[], str], opened: Callable[..., Tracker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was said to be new; a second attempt looks for it all the same."""
    uri = sqlite_uri()
    made = opened(uri)
    plain = direct.Direct.create
    lost: list[str] = []

    def create(self: direct.Direct, *words: Any) -> str:
        run_id = plain(self, *words)
        if not lost:
            lost.append(run_id)
            raise exc.OperationalError("COMMIT", {}, Exception("server closed the connection unexpectedly"))
        return run_id

    monkeypatch.setattr(direct.Direct, "create", create)
    run = made.run("s/a", "a", kind="trial", new=True)
    assert lost == [run.run_id]
    assert len(content(uri)["runs"]) == 1


DIE_AT = """
import os, sys
from pathlib import Path
import sqlalchemy
from forge_sweep.tracking import Tracker

def die(connection, cursor, statement, *_):
    if statement.startswith(sys.argv[2]):
        os._exit(9)

tracker = Tracker("fraud", Path(sys.argv[1]))
run = tracker.run("s/a", "a", kind="trial", params={"width": 64}, tags={"forge.state": "running"})
run.log_epoch(0, {"loss": 1.0})
sqlalchemy.event.listen(sqlalchemy.Engine, "after_cursor_execute", die)
run.finish("FINISHED", metrics={"seconds": 1.0}, tags={"forge.state": "finished"})
"""


@pytest.mark.parametrize("statement", ["UPDATE runs", "INSERT INTO metrics", "INSERT INTO latest", "INSERT INTO tags"])
def test_a_process_that_is_killed_while_it_ends_a_run_ends_it_not_at_all(
    statement: str, tmp_path: Path, new_store: Path
) -> None:
    """A run that is FINISHED has all of its points and tags."""
    store = tmp_path / "mlruns"
    store.mkdir()
    shutil.copy(new_store / "mlflow.db", store)
    done = subprocess.run([sys.executable, "-c", DIE_AT, str(store), statement], check=False)
    assert done.returncode == 9
    with Tracker("fraud", store) as again:
        left = content(again.uri)
        assert [dict(row)["status"] for row in left["runs"]] == ["RUNNING"]
        assert left["metrics"] == left["latest_metrics"] == []
        run = again.run("s/a", "a", kind="trial", params={"width": 64})
        run.log_epoch(0, {"loss": 1.0})
        run.finish("FINISHED", metrics={"seconds": 1.0}, tags={"forge.state": "finished"})
        seen = content(again.uri)
    assert [dict(row)["status"] for row in seen["runs"]] == ["FINISHED"]
    assert len(seen["metrics"]) == 2


def test_an_end_that_was_cut_off_between_two_requests_is_completed(
    sqlite_uri: Callable[[], str], opened: Callable[..., Tracker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through MLflow's client the points come before the status, and a second time adds none."""
    uri = sqlite_uri()
    made = opened(uri, by=BY_API)
    a_run().apply(made._session)
    with monkeypatch.context() as patched:

        def cut(*_: Any) -> None:
            raise KeyboardInterrupt

        patched.setattr(made._session.client, "set_terminated", cut)
        with pytest.raises(KeyboardInterrupt):
            its_end().apply(made._session)
    assert [dict(row)["status"] for row in content(uri)["runs"]] == ["RUNNING"]
    its_end().apply(opened(uri, by=BY_API)._session)
    seen = content(uri)
    assert [dict(row)["status"] for row in seen["runs"]] == ["FINISHED"]
    assert len(seen["metrics"]) == 21


def test_what_mlflow_refuses_is_refused_in_its_words_and_writes_nothing(
    sqlite_uri: Callable[[], str], opened: Callable[..., Tracker]
) -> None:
    """A wrong name, and a run that was deleted in the UI."""
    uri = sqlite_uri()
    made = opened(uri)
    run = made.run("s/a", "a", kind="trial")
    with pytest.raises(InputError, match=r"MLflow refused end of the run 's/a'.*loss\[0\]"):
        run.finish("FINISHED", metrics={"loss[0]": 1.0, "fine": 1.0})
    assert content(uri)["metrics"] == []
    made._session.client.delete_run(str(run.run_id))
    with pytest.raises(InputError, match="must be in the 'active' state"):
        run.finish("FINISHED", metrics={"fine": 1.0})
    assert made.pending == 0


def test_a_locked_database_is_an_outage(
    sqlite_uri: Callable[[], str], opened: Callable[..., Tracker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write waits in the journal, as for MLflow's client, and is made when the lock is gone."""
    monkeypatch.setattr(direct, "BUSY_MS", 10)
    uri = sqlite_uri()
    made = opened(uri)
    run = made.run("s/a", "a", kind="trial")
    blocking = sqlalchemy.create_engine(uri, isolation_level="AUTOCOMMIT").connect()
    blocking.exec_driver_sql("BEGIN IMMEDIATE")
    with pytest.raises(TrackingDown), tracking.store.translated("a try"):
        made._session.direct.log(str(run.run_id), [("loss", 1.0, 1, 0)], {})  # type: ignore[union-attr]
    run.finish("FINISHED", metrics={"seconds": 1.0})
    assert made.pending == 1
    blocking.exec_driver_sql("ROLLBACK")
    blocking.close()
    assert made.replay()
    assert [dict(row)["status"] for row in content(uri)["runs"]] == ["FINISHED"]


def test_a_status_is_on_the_disk_before_the_study_is_told(
    sqlite_uri: Callable[[], str], opened: Callable[..., Tracker]
) -> None:
    """Only the end of a run waits for the disk; power that fails before loses what is begun again anyway."""
    made = opened(sqlite_uri())
    said: list[str] = []
    engine = made._session.direct._engine  # type: ignore[union-attr]
    sqlalchemy.event.listen(engine, "before_cursor_execute", lambda _c, _cursor, statement, *_: said.append(statement))
    run = made.run("s/a", "a", kind="trial")
    run.log_metrics({"loss": 1.0})
    run.finish("FINISHED")
    assert [each for each in said if "synchronous" in each] == [
        "PRAGMA synchronous = NORMAL",
        "PRAGMA synchronous = NORMAL",
        "PRAGMA synchronous = FULL",
    ]


def test_another_version_of_mlflow_is_written_to_by_its_client(
    sqlite_uri: Callable[[], str], opened: Callable[..., Tracker]
) -> None:
    """Its tables may be others."""
    uri = sqlite_uri()
    made = opened(uri, by=BY_API)
    made.run("s/a", "a", kind="trial", new=True).finish("FINISHED")
    assert [dict(row)["status"] for row in content(uri)["runs"]] == ["FINISHED"]


def test_new_is_believed_for_a_first_attempt_only() -> None:
    """See `Open.again`."""
    assert a_run().new and not a_run().again().new
    assert replace(a_run(), new=False) == a_run().again()
