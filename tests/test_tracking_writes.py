"""A run is opened and ended in few calls, once, with all of its points before its status."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy

from forge_sweep import tracking
from forge_sweep.errors import InputError
from forge_sweep.tracking import Tracker, writes
from forge_sweep.tracking import run as run_module
from forge_sweep.tracking.writes import End, Open, Write
from tests.postgres import database, server  # noqa: F401

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

DATASET = {
    "name": "cards",
    "digest": "0123456789abcdef" * 4,
    "version": "v3@0123",
    "source": "data/cards.csv",
    "columns": {"age": "int64"},
    "profile": {"num_rows": 9},
}


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
def sqlite_uri(tmp_path: Path, new_store: Path) -> str:
    """An empty store."""
    shutil.copy(new_store / "mlflow.db", tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def postgres_uri(request: pytest.FixtureRequest) -> str:
    """The same on a server."""
    make: Callable[[], str] = request.getfixturevalue("database")
    return make().replace("postgresql://", "postgresql+psycopg://")


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[[str], Tracker]]:
    """Opens trackers, each with a journal of its own."""
    made: list[Tracker] = []

    def make(uri: str) -> Tracker:
        made.append(Tracker("fraud", tmp_path / f"store-{len(made)}", uri=uri))
        return made[-1]

    yield make
    for each in made:
        each.close()


def client_of(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(uri, uri)


def runs_of(uri: str) -> dict[str, Run]:
    """Every run by name, none twice."""
    client = client_of(uri)
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert len({run.info.run_name for run in runs}) == len(runs), "a run was made twice"
    return {str(run.info.run_name): run for run in runs}


def points(uri: str, run: Run) -> list[tuple[str, int, float]]:
    """Every point of a run, duplicates too."""
    history = client_of(uri).get_metric_history
    return sorted((name, p.step, p.value) for name in run.data.metrics for p in history(run.info.run_id, name))


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
def test_runs_that_end_in_every_way_are_whole(
    kind: str, opened: Callable[[str], Tracker], request: pytest.FixtureRequest
) -> None:
    """Each point once, also of a run that was interrupted and goes on; the newest value is the run's metric."""
    uri: str = request.getfixturevalue(f"{kind}_uri")
    log_a_sweep(opened(uri))
    runs = runs_of(uri)
    assert {name: run.info.status for name, run in runs.items()} == {
        "sweep": "RUNNING",
        "trial-0": "FINISHED",
        "trial-1": "KILLED",
        "trial-2": "FAILED",
    }
    curve = [("loss", step, 1 / (step + 1)) for step in range(6)] + [("val_auc", step, 0.5) for step in range(6)]
    figures = [("best_epoch", 0, 3.0), ("delta", 0, 2.0), ("delta", 3, -1e-9), ("seconds", 0, 1.5)]
    four = sorted([point for point in curve if point[1] < 4] + figures)
    assert points(uri, runs["trial-0"]) == points(uri, runs["trial-2"]) == four
    assert points(uri, runs["trial-1"]) == sorted([*curve, *figures, ("seconds", 0, 2.5)])
    assert runs["trial-0"].data.metrics["delta"] == -1e-9  # of the latest step, not the latest call
    assert runs["trial-0"].data.params == {"width": "64", "empty": ""}
    assert runs["trial-1"].data.params == {"width": "64", "empty": "", "depth": "2"}
    assert {name: run.data.tags["forge.state"] for name, run in runs.items() if name != "sweep"} == {
        "trial-0": "finished",
        "trial-1": "pruned",
        "trial-2": "failed",
    }
    for run in runs.values():
        (used,) = run.inputs.dataset_inputs
        assert (used.dataset.name, used.dataset.digest) == ("cards", DATASET["digest"][:32])  # type: ignore[index]
        assert run.data.tags["mlflow.user"] == "jo"


def test_a_trial_takes_five_calls(
    sqlite_uri: str, opened: Callable[[str], Tracker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many points it has, up to 800: the run with its tags, params, the dataset; points and tags; the end."""
    made = opened(sqlite_uri)
    made.run("s", "sweep", kind="sweep")
    client, calls = made._session.client, list[str]()

    def counted(name: str) -> Callable[..., Any]:
        plain = getattr(client, name)

        def call(*words: Any, **options: Any) -> Any:
            calls.append(name)
            return plain(*words, **options)

        return call

    for name in (name for name in dir(client) if not name.startswith("_") and callable(getattr(client, name))):
        monkeypatch.setattr(client, name, counted(name))
    run = made.run("s/a", "a", kind="trial", parent="s", params={"width": 64}, dataset=DATASET, new=True)
    for epoch in range(90):
        run.log_epoch(epoch, {f"m{n}": 1.0 for n in range(8)})
    run.finish("FINISHED", metrics={"seconds": 1.0}, tags={"forge.state": "finished"})
    assert calls == ["create_run", "log_batch", "log_inputs", "log_batch", "set_terminated"]


@pytest.mark.parametrize(("n_points", "n_tags"), [(800, 100), (801, 0), (2500, 250)])
def test_no_request_is_larger_than_mlflow_takes(
    n_points: int, n_tags: int, sqlite_uri: str, opened: Callable[[str], Tracker]
) -> None:
    """1,000 values, of which 100 tags."""
    made = opened(sqlite_uri)
    a_run().apply(made._session)
    rows = [("loss", 1.0, 1_700_000_000_000, step) for step in range(n_points)]
    tags = {f"tag-{n}": "x" for n in range(n_tags)}
    End("s/a", rows, (), tags, "FINISHED", 1_700_000_001_000).apply(made._session)
    run = runs_of(sqlite_uri)["a"]
    assert len(points(sqlite_uri, run)) == n_points
    assert tags.items() <= run.data.tags.items()


def a_run(key: str = "s/a") -> Open:
    used = {"context": "training", **DATASET}
    return Open(key, "a", None, {"forge.kind": "trial"}, {"width": "64"}, 1_700_000_000_000, used, new=True)


def its_end(key: str = "s/a") -> End:
    curve = [("loss", 1.0 / (epoch + 1), 1_700_000_000_000 + epoch, epoch) for epoch in range(20)]
    figures = [("seconds", 1.5, 1_700_000_001_000, 0)]
    return End(key, curve, figures, {"forge.state": "finished"}, "FINISHED", 1_700_000_002_000)


def test_opening_and_ending_a_run_twice_changes_nothing(sqlite_uri: str, opened: Callable[[str], Tracker]) -> None:
    """The second time by a process that knows nothing of the first, as after a lost position in the journal."""
    for _ in range(2):
        made = opened(sqlite_uri)
        for write in (a_run().again(), its_end()):
            write.apply(made._session)
        run = runs_of(sqlite_uri)["a"]
        assert (run.info.status, run.data.tags["forge.state"]) == ("FINISHED", "finished")
        assert len(run.inputs.dataset_inputs) == 1
        assert len(points(sqlite_uri, run)) == 21


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
        run = runs_of(up.uri)["a"]
    assert (run.info.status, set(run.data.metrics)) == ("FINISHED", {"loss", "seconds"})


@pytest.mark.parametrize("cut", ["create_run", "log_batch", "log_inputs"])
def test_a_run_whose_answer_got_lost_is_not_made_twice(
    cut: str, sqlite_uri: str, opened: Callable[[str], Tracker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was said to be new; a second attempt looks for it all the same, and adds what it lacks."""
    monkeypatch.setattr(run_module, "QUICK_S", 60.0)  # on a busy machine an attempt may take longer than a second
    made = opened(sqlite_uri)
    plain = getattr(made._session.client, cut)
    lost: list[str] = []

    def call(*words: Any, **options: Any) -> Any:
        answer = plain(*words, **options)
        if not lost:
            lost.append(cut)
            raise ConnectionError("server closed the connection unexpectedly")
        return answer

    monkeypatch.setattr(made._session.client, cut, call)
    made.run("s/a", "a", kind="trial", new=True, params={"width": 64}, dataset=DATASET).finish("FINISHED")
    assert (lost, made.pending) == ([cut], 0)
    left = runs_of(sqlite_uri)["a"]
    assert (left.info.status, left.data.params, len(left.inputs.dataset_inputs)) == ("FINISHED", {"width": "64"}, 1)


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
run.finish("FINISHED", metrics={"seconds": 1.0}, tags={"forge.state": "finished", "forge.late": "x"})
"""


@pytest.mark.parametrize("statement", ["UPDATE runs", "INSERT INTO metrics", "INSERT INTO latest", "INSERT INTO tags"])
def test_a_process_that_is_killed_while_it_ends_a_run_does_not_end_it(
    statement: str, tmp_path: Path, new_store: Path
) -> None:
    """A run that is FINISHED has all of its points and tags; the next process adds what is missing, nothing twice."""
    store = tmp_path / "mlruns"
    store.mkdir()
    shutil.copy(new_store / "mlflow.db", store)
    done = subprocess.run([sys.executable, "-c", DIE_AT, str(store), statement], check=False)
    assert done.returncode == 9
    with Tracker("fraud", store) as again:
        assert runs_of(again.uri)["a"].info.status == "RUNNING"
        run = again.run("s/a", "a", kind="trial", params={"width": 64})
        run.log_epoch(0, {"loss": 1.0})
        run.finish("FINISHED", metrics={"seconds": 1.0}, tags={"forge.state": "finished", "forge.late": "x"})
        found = runs_of(again.uri)["a"]
        assert (found.info.status, found.data.tags["forge.late"]) == ("FINISHED", "x")
        assert points(again.uri, found) == [("loss", 0, 1.0), ("seconds", 0, 1.0)]


def test_an_end_that_was_cut_off_between_two_requests_is_completed(
    sqlite_uri: str, opened: Callable[[str], Tracker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The points come before the status, and a second time adds none."""
    made = opened(sqlite_uri)
    a_run().apply(made._session)
    with monkeypatch.context() as patched:

        def cut(*_: Any) -> None:
            raise KeyboardInterrupt

        patched.setattr(made._session.client, "set_terminated", cut)
        with pytest.raises(KeyboardInterrupt):
            its_end().apply(made._session)
    assert runs_of(sqlite_uri)["a"].info.status == "RUNNING"
    its_end().apply(opened(sqlite_uri)._session)
    run = runs_of(sqlite_uri)["a"]
    assert (run.info.status, len(points(sqlite_uri, run))) == ("FINISHED", 21)


def test_what_mlflow_refuses_is_refused_in_its_words_and_writes_nothing(
    sqlite_uri: str, opened: Callable[[str], Tracker]
) -> None:
    """A wrong name, and a run that was deleted in the UI."""
    made = opened(sqlite_uri)
    run = made.run("s/a", "a", kind="trial")
    with pytest.raises(InputError, match=r"MLflow refused end of the run 's/a'.*loss\[0\]"):
        run.finish("FINISHED", metrics={"loss[0]": 1.0, "fine": 1.0})
    assert points(sqlite_uri, runs_of(sqlite_uri)["a"]) == []
    made._session.client.delete_run(str(run.run_id))
    with pytest.raises(InputError, match="must be in the 'active' state"):
        run.finish("FINISHED", metrics={"fine": 1.0})
    assert made.pending == 0


@pytest.mark.slow
def test_a_locked_database_is_an_outage(sqlite_uri: str, opened: Callable[[str], Tracker]) -> None:
    """The write waits in the journal and is made when the lock is gone."""
    made = opened(sqlite_uri)
    run = made.run("s/a", "a", kind="trial")
    blocking = sqlalchemy.create_engine(sqlite_uri, isolation_level="AUTOCOMMIT").connect()
    blocking.exec_driver_sql("BEGIN IMMEDIATE")
    run.finish("FINISHED", metrics={"seconds": 1.0})
    assert made.pending == 1
    blocking.exec_driver_sql("ROLLBACK")
    blocking.close()
    assert made.replay()
    assert runs_of(sqlite_uri)["a"].info.status == "FINISHED"


def test_a_status_is_on_the_disk_before_the_study_is_told(
    sqlite_uri: str, opened: Callable[[str], Tracker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the end of a run waits for the disk; power that fails before loses what is begun again anyway."""
    made = opened(sqlite_uri)
    modes: set[int] = set()
    synced: list[str] = []

    def ask(connection: sqlalchemy.Connection) -> None:
        assert connection.connection.dbapi_connection is not None
        modes.add(connection.connection.dbapi_connection.execute("PRAGMA synchronous").fetchone()[0])

    def fsync(_: int) -> None:
        synced.append(runs_of(sqlite_uri)["a"].info.status)

    monkeypatch.setattr(os, "fsync", fsync)
    sqlalchemy.event.listen(sqlalchemy.Engine, "begin", ask)
    try:
        run = made.run("s/a", "a", kind="trial")
        run.log_metrics({"loss": 1.0})
        assert (modes, synced) == ({1}, [])  # 1 is NORMAL
        run.finish("FINISHED")
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "begin", ask)
    assert synced == ["FINISHED"]


def test_a_database_of_somebody_else_keeps_its_own_waits(tmp_path: Path, opened: Callable[[str], Tracker]) -> None:
    """And so does a store without a write-ahead log, which a loss of power could damage."""
    opened("sqlite:///" + str(tmp_path / "new.db")).run("s", "sweep", kind="sweep")
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/other.db")
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
    engine.dispose()


def test_new_is_believed_for_a_first_attempt_only() -> None:
    """See `Open.again`."""
    assert a_run().new and not a_run().again().new
    assert replace(a_run(), new=False) == a_run().again()
