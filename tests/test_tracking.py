"""Runs reach MLflow once and whole: through kills, interruptions and outages of the store."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forge_sweep import environment, tracking
from forge_sweep.errors import InputError, TrackingDown
from forge_sweep.tracking import Tracker
from forge_sweep.tracking.journal import Journal, Record
from forge_sweep.tracking.writes import file_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

DIGEST = "0123456789abcdef" * 4
REFUSED = "http://127.0.0.1:9"  # the discard port: nobody listens


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def new_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An embedded store as it is after its creation, to copy: making one takes over a second."""
    store = tmp_path_factory.mktemp("new")
    tracking.prepare_store(f"sqlite:///{store}/mlflow.db", store)
    return store


@pytest.fixture
def store(tmp_path: Path, new_store: Path) -> Path:
    folder = tmp_path / "mlruns"
    folder.mkdir()
    shutil.copy(new_store / "mlflow.db", folder)
    return folder


@pytest.fixture
def tracker(store: Path) -> Iterator[Tracker]:
    with Tracker("fraud", store, description="Card payments") as made:
        yield made


def client_of(tracker: Tracker) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(tracker.uri, tracker.uri)


def runs_of(tracker: Tracker) -> dict[str, MlflowRun]:
    """Every run of the experiment by name, as another client reads them."""
    client = client_of(tracker)
    found = client.get_experiment_by_name("fraud")
    assert found is not None
    runs = client.search_runs([found.experiment_id])
    assert len({run.info.run_name for run in runs}) == len(runs), "a run was made twice"
    return {str(run.info.run_name): run for run in runs}


def curve(tracker: Tracker, run: MlflowRun, metric: str) -> list[tuple[int, float]]:
    points = client_of(tracker).get_metric_history(run.info.run_id, metric)
    return sorted((point.step, point.value) for point in points)


def loss(epoch: int) -> float:
    return 1 / (epoch + 1)


def log_epochs(run: tracking.Run, epochs: range) -> None:
    for epoch in epochs:
        run.log_epoch(epoch, {"loss": loss(epoch), "val_auc": 1 - loss(epoch)})


# The address


def test_the_default_is_a_database_in_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An absolute path, so that a change of folder changes nothing; an empty variable counts as unset."""
    monkeypatch.chdir(tmp_path)
    assert tracking.default_uri(Path("mlruns")) == f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", " ")
    assert tracking.default_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1:5000",
        "https://mlflow.example.org/prefix",
        "sqlite:///mlflow.db",
        "postgresql+psycopg://host/db",
        "mysql+pymysql://host/db",
        "databricks",
    ],
)
def test_the_variable_is_kept_as_it_is(uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever MLflow can write to is left to MLflow."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert tracking.default_uri(tmp_path) == uri


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("./mlruns", "file store"),
        ("/srv/mlruns", "file store"),
        ("file:///srv/mlruns", "file store"),
        ("ftp://jo:pw@host/x", "scheme 'ftp'"),
        ("htttp://host", "scheme 'htttp'"),
    ],
)
def test_a_file_store_or_unknown_scheme_is_refused(
    uri: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """MLflow itself would fail later and in other words; no password is repeated."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(InputError, match=message) as refused:
        tracking.default_uri(tmp_path)
    assert "fix:" in str(refused.value) and "pw" not in str(refused.value)


def test_plain_postgresql_without_psycopg_3_names_the_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """SQLAlchemy 2.1 takes ``postgresql://`` for psycopg 3."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://host/db")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # as where the extra is not installed
    with pytest.raises(InputError, match=r"psycopg 3.*\n.*postgresql\+psycopg://"):
        tracking.default_uri(tmp_path)


# The embedded store

OPEN_AT_ONCE = """
import os, sys
from pathlib import Path
from forge_sweep.tracking import Tracker, default_uri
import mlflow.store.tracking.sqlalchemy_store  # before the forks, so that all of them open the store at one moment

def log(n):
    with Tracker("fraud", Path(sys.argv[1])) as tracker:
        run = tracker.run(f"s/{n}", f"trial-{n}", kind="trial")
        run.log_epoch(0, {"loss": 1.0})
        run.finish("FINISHED")
        assert tracker.pending == 0

children = []
for n in range(6):
    children.append(os.fork())
    if not children[-1]:
        try:
            log(n)
            os._exit(0)
        finally:
            os._exit(1)
sys.exit(sum(os.waitpid(child, 0)[1] != 0 for child in children))
"""


@pytest.mark.slow
def test_six_processes_that_open_a_new_store_at_once_make_one_store(tmp_path: Path) -> None:
    """Opened directly, a new SQLite store is corrupted for good by this (facts-mlflow, landmine 1)."""
    store = tmp_path / "mlruns"
    subprocess.run([sys.executable, "-c", OPEN_AT_ONCE, str(store)], check=True)
    runs = runs_of(Tracker("fraud", store))
    assert {name: run.info.status for name, run in runs.items()} == {f"trial-{n}": "FINISHED" for n in range(6)}


def test_a_store_is_whole_or_absent(tmp_path: Path) -> None:
    """What a kill left of an unfinished one is swept away; write-ahead logging is on; our logger still works."""
    import sqlite3

    (tmp_path / ".mlflow.db.new").write_bytes(b"half a database")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracking.prepare_store(uri, tmp_path)
    database = sqlite3.connect(tmp_path / "mlflow.db")
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    database.close()
    assert not list(tmp_path.glob(".mlflow.db.new*"))
    assert not logging.getLogger("forge_sweep").disabled


# Runs


def test_a_trial_is_a_child_with_its_params_tags_and_curves(tracker: Tracker, store: Path) -> None:
    """What the UI and `mlflow.search_runs` read: nesting, values, one point per epoch, end."""
    tracker.run("s", "fraud 2026-11-22", kind="sweep", tags={"forge.image_digest": "none"})
    trial = tracker.run(
        "s/trial-0007", "trial-0007", kind="trial", parent="s", params={"width": 64, "trial_number": 7, "dropout": 0.5}
    )
    log_epochs(trial, range(5))
    trial.log_metrics({"best_epoch": 4, "seconds": 1.5})
    trial.finish("KILLED")
    runs = runs_of(tracker)
    parent, child = runs["fraud 2026-11-22"], runs["trial-0007"]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (child.data.tags["forge.kind"], child.data.tags["forge.key"]) == ("trial", "s/trial-0007")
    assert child.data.params == {"width": "64", "trial_number": "7", "dropout": "0.5"}
    assert curve(tracker, child, "val_auc") == [(epoch, 1 - loss(epoch)) for epoch in range(5)]
    assert (child.info.status, parent.info.status) == ("KILLED", "RUNNING")
    assert child.data.metrics["best_epoch"] == 4
    child_files = ("forge-store:/fraud/", (store / "artifacts" / "fraud").as_uri())  # the latter without our plugin
    assert child.info.artifact_uri.startswith(child_files)
    experiment = client_of(tracker).get_experiment_by_name("fraud")
    assert experiment is not None and experiment.tags["mlflow.note.content"] == "Card payments"


def test_values_that_are_not_finite_are_left_out(tracker: Tracker) -> None:
    """MLflow stores an infinity as 1.8e308, which wrecks every chart."""
    run = tracker.run("s/a", "a", kind="trial")
    run.log_epoch(0, {"loss": math.inf, "val_auc": math.nan, "kept": 1.0})
    run.log_metrics({"worst": -math.inf})
    run.flush()
    assert runs_of(tracker)["a"].data.metrics == {"kept": 1.0}


def test_many_and_long_values_fit(tracker: Tracker, caplog: pytest.LogCaptureFixture) -> None:
    """Requests are split at MLflow's limits; a value that MLflow would cut in silence is cut with a warning."""
    run = tracker.run("s/a", "a", kind="trial", params={f"p{n}": n for n in range(230)})
    run.log_params({"long": "x" * 7000})
    run.set_tags({f"t{n}": "v" for n in range(130)})
    run.log_metrics({f"m{n}": n for n in range(1100)})
    data = runs_of(tracker)["a"].data
    assert (len(data.params), len(data.metrics), data.tags["t129"]) == (231, 1100, "v")
    assert data.params["long"] == "x" * 5997 + "..."
    assert "long is truncated to the 6000 characters" in caplog.text


def test_the_dataset_is_an_input_and_its_whole_digest_a_tag(tracker: Tracker) -> None:
    """MLflow's own field is too short for a SHA-256."""
    run = tracker.run("s/a", "a", kind="trial")
    for _ in range(2):  # a resumed sweep names it again
        run.log_dataset(
            "cards",
            digest=DIGEST,
            version="v3@0123",
            source="data/cards.csv",
            columns={"age": "int64"},
            profile={"num_rows": 9},
        )
    found = runs_of(tracker)["a"]
    (used,) = found.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("cards", DIGEST[:32])
    assert json.loads(used.dataset.schema)["mlflow_colspec"][0]["name"] == "age"
    assert found.data.tags["forge.dataset_digest"] == DIGEST
    assert found.data.tags["forge.dataset_version"] == "v3@0123"


def test_texts_files_and_the_environment_are_artifacts(tracker: Tracker, tmp_path: Path) -> None:
    """Long things do not go into tags, which MLflow cuts."""
    (tmp_path / "report.html").write_text("<p>hi</p>")
    run = tracker.run("s", "s", kind="sweep")
    run.log_text("{}", "audit/findings.json")
    run.log_file(tmp_path / "report.html", "audit")
    run.log_environment(environment.capture(tmp_path, "tensorflow"))
    paths = {found.path for found in client_of(tracker).list_artifacts(str(run.run_id), "audit")}
    assert paths == {"audit/findings.json", "audit/report.html"}
    assert client_of(tracker).list_artifacts(str(run.run_id), "environment")
    with pytest.raises(InputError, match="is not a file"):
        run.log_file(tmp_path / "absent.html")


def test_environment_tags_use_names_of_both_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The official image tag is hidden in the UI, so ours repeats it; unknown values set no official tag."""
    monkeypatch.setenv("FORGE_SWEEP_IMAGE_DIGEST", f"sha256:{DIGEST}")
    tags = tracking.environment_tags(environment.capture(Path(__file__).parent, "tensorflow"))
    assert tags["mlflow.docker.image.id"] == tags["forge.image_digest"] == f"sha256:{DIGEST}"
    assert tags["mlflow.user"] and tags["mlflow.source.type"] == "LOCAL"
    monkeypatch.delenv("FORGE_SWEEP_IMAGE_DIGEST")
    monkeypatch.setenv("container", "podman")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    tags = tracking.environment_tags(environment.capture(tmp_path, "tensorflow"))
    assert tags["forge.image_digest"] == "unknown"
    assert "mlflow.docker.image.id" not in tags and "mlflow.source.git.commit" not in tags


def test_a_mistake_is_refused_at_once_and_blocks_nothing(tracker: Tracker) -> None:
    """A name MLflow does not take is no outage: nothing waits for ever, and the run can still be finished."""
    run = tracker.run("s/a", "a", kind="trial")
    run.log_epoch(0, {"loss[0]": 1.0})
    with pytest.raises(InputError, match=r"MLflow refused metrics of the run 's/a'.*loss\[0\]"):
        run.flush()
    assert tracker.pending == 0
    run.finish("FINISHED")
    assert runs_of(tracker)["a"].info.status == "FINISHED"
    with pytest.raises(InputError, match="quote"):
        tracker.run("it's", "b", kind="trial")


def test_a_deleted_experiment_is_refused_with_the_fix(tracker: Tracker, store: Path) -> None:
    """MLflow keeps the name of a deleted experiment."""
    tracker.run("s", "s", kind="sweep")
    experiment = client_of(tracker).get_experiment_by_name("fraud")
    assert experiment is not None
    client_of(tracker).delete_experiment(experiment.experiment_id)
    with Tracker("fraud", store) as other, pytest.raises(InputError, match=r"was deleted\n.*restore"):
        other.run("s", "s", kind="sweep")


def test_the_link_shows_the_trials_best_first(tracker: Tracker) -> None:
    """Sorted by a metric the UI does not fold trials under their parent; empty while there is nothing to show."""
    assert tracker.link("s", "val_auc", "maximize") == ""
    run = tracker.run("s", "s", kind="sweep")
    link = tracker.link("s", "val_auc", "maximize")
    assert link.startswith("http://127.0.0.1:5000/#/experiments/1/runs?compareRunsMode=CHART")
    assert f"searchFilter=tags.mlflow.parentRunId%20%3D%20'{run.run_id}'%20and%20tags.%60forge.kind%60" in link
    assert link.endswith("orderByKey=metrics.%60val_auc%60&orderByAsc=false")
    assert tracker.link("s", "val_loss", "minimize").endswith("orderByAsc=true")


# Interruptions


def test_a_run_that_is_opened_again_keeps_its_curves_and_params(
    tracker: Tracker, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A resumed trial repeats its first epochs: each keeps one point; a changed param stays and is reported."""
    run = tracker.run("s/a", "a", kind="trial", params={"width": 64})
    log_epochs(run, range(3))
    run.log_metrics({"seconds": 1.0})
    run.finish("SCHEDULED")
    assert runs_of(tracker)["a"].info.status == "SCHEDULED"
    with Tracker("fraud", store) as later:
        again = later.run("s/a", "a", kind="trial", params={"width": 128, "depth": 2}, tags={"forge.state": "running"})
        assert again.run_id == run.run_id
        assert runs_of(later)["a"].info.status == "RUNNING"
        for epoch in range(5):
            again.log_epoch(epoch, {"loss": loss(epoch) if epoch > 2 else 99.0})
        again.log_metrics({"seconds": 2.0})
        again.finish("FINISHED")
    found = runs_of(tracker)["a"]
    assert curve(tracker, found, "loss") == [(epoch, loss(epoch)) for epoch in range(5)]
    assert found.data.metrics["seconds"] == 2.0
    assert found.data.params == {"width": "64", "depth": "2"}
    assert "keeps width = 64" in caplog.text
    assert found.info.status == "FINISHED"


LOG_FOR_EVER = """
import sys, time
from pathlib import Path
from forge_sweep.tracking import Tracker
tracker = Tracker("fraud", Path(sys.argv[1]), flush_s=0.0)
tracker.run("s", "sweep", kind="sweep")
run = tracker.run("s/a", "a", kind="trial", parent="s", params={"width": 64})
for epoch in range(10_000):
    run.log_epoch(epoch, {"loss": 1 / (epoch + 1)})
    print(epoch, flush=True)
"""


def test_a_process_killed_while_it_logs_leaves_a_run_that_can_be_opened_again(store: Path) -> None:
    """Every epoch that was written is there once, before and after."""
    process = subprocess.Popen([sys.executable, "-c", LOG_FOR_EVER, str(store)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "4":
            process.kill()
            break
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    with Tracker("fraud", store) as tracker:
        left = runs_of(tracker)["a"]
        assert left.info.status == "RUNNING"
        written = len(curve(tracker, left, "loss"))
        assert written >= 5
        tracker.run("s", "sweep", kind="sweep")
        run = tracker.run("s/a", "a", kind="trial", parent="s", params={"width": 64})
        log_epochs(run, range(written + 20))
        run.finish("FINISHED")
        found = runs_of(tracker)["a"]
        assert curve(tracker, found, "loss") == [(epoch, loss(epoch)) for epoch in range(written + 20)]
        assert (found.info.status, found.data.params) == ("FINISHED", {"width": "64"})


def test_reaping_gives_dead_children_the_status_that_the_study_knows(tracker: Tracker) -> None:
    """A living child stays; one the study does not know was lost with its worker; finished ones are not touched."""
    tracker.run("s", "sweep", kind="sweep")
    states = {"done": "FINISHED", "pruned": "KILLED", "again": "SCHEDULED", "alive": "RUNNING"}
    for name in (*states, "lost", "before"):
        tracker.run(f"s/{name}", name, kind="trial", parent="s", tags={"forge.state": "running"})
    tracker.run("s/before", "before", kind="trial", parent="s").finish("FAILED")
    tracker.run("other", "other", kind="sweep")
    tracker.reap("s", {f"s/{name}": state for name, state in states.items()})
    runs = runs_of(tracker)
    assert {name: run.info.status for name, run in runs.items()} == {
        **states,
        "lost": "FAILED",
        "before": "FAILED",
        "sweep": "RUNNING",
        "other": "RUNNING",
    }
    assert runs["lost"].data.tags["forge.failure"] == "lost-worker"
    assert [runs[name].data.tags["forge.state"] for name in ("done", "pruned", "again", "alive")] == [
        "finished",
        "pruned",
        "waiting",
        "running",
    ]


# The journal

RECORDS = st.lists(
    st.dictionaries(
        st.text(max_size=8),
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
        max_size=4,
    ),
    max_size=8,
)


@given(records=RECORDS, cut=st.integers(0, 40), failing=st.integers(0, 8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
def test_a_journal_gives_back_whole_records_in_order_once(
    tmp_path: Path, records: list[Record], cut: int, failing: int
) -> None:
    """Over a torn last line and an apply that fails at some record, in another process's hands each time."""
    folder = tmp_path / str(time.monotonic_ns())
    journal = Journal(folder, "j")
    for record in records:
        journal.append(record)
    torn = json.dumps({"op": "torn in the middle of a record"})[:cut]
    if records:
        with journal.path.open("a") as file:
            file.write(torn)
    assert len(Journal(folder, "j")) == len(records)
    seen: list[Record] = []

    def apply(record: Record) -> None:
        if len(seen) == failing and not failed:
            failed.append(record)
            raise ConnectionError
        seen.append(record)

    failed: list[Record] = []
    try:
        Journal(folder, "j").drain(apply)
    except ConnectionError:
        assert len(Journal(folder, "j")) == len(records) - failing
        Journal(folder, "j").append({"last": 1})
        Journal(folder, "j").drain(apply)
        assert seen.pop() == {"last": 1}
    assert seen == records
    assert not Journal(folder, "j").waiting


def test_a_position_that_outlived_its_records_is_forgotten(tmp_path: Path) -> None:
    """A kill between emptying the journal and forgetting the position must not hide later records."""
    journal = Journal(tmp_path, "j")
    journal.append({"n": 1})
    (tmp_path / "j.position").write_text("9999")
    seen: list[Record] = []
    journal.append({"n": 2})
    journal.drain(seen.append)
    assert seen == [{"n": 1}, {"n": 2}]


@given(st.lists(st.text(min_size=1, max_size=12), min_size=2, max_size=2, unique=True))
def test_names_of_experiments_give_safe_and_different_file_names(names: list[str]) -> None:
    """Two experiments never share a journal."""
    first, second = (file_name(name) for name in names)
    assert first != second
    assert "/" not in first and not first.startswith(".")


def test_what_cannot_be_written_waits_and_is_written_by_the_next_process(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Down from the first to the last write; said loudly once; replayed in order with the original times."""
    (tmp_path / "report.html").write_text("<p>hi</p>")
    with Tracker("fraud", store, uri=REFUSED) as down:
        down.run("s", "sweep", kind="sweep")
        trial = down.run("s/a", "a", kind="trial", parent="s", params={"width": 64})
        log_epochs(trial, range(4))
        trial.log_file(tmp_path / "report.html")
        (tmp_path / "report.html").unlink()
        trial.log_text("hi", "notes/a.txt")
        trial.finish("KILLED")
        assert (trial.run_id, down.link("s", "loss", "minimize")) == (None, "")
        assert down.pending == 5
        with pytest.raises(TrackingDown, match=r"not registered.*cannot be reached; 5 writes wait"):
            down.register("s/a", tmp_path, model_name="m", columns=[], requirements=[], tags={})
    loud = [record.message for record in caplog.records if "cannot be reached" in record.message]
    assert len(loud) == 1 and str(store / "journal" / "fraud.jsonl") in loud[0]
    before = int(time.time() * 1000)
    with Tracker("fraud", store) as up:
        assert up.pending == 0
        assert "5 waiting writes were replayed" in caplog.text
        found = runs_of(up)["a"]
        assert curve(up, found, "loss") == [(epoch, loss(epoch)) for epoch in range(4)]
        assert (found.info.status, found.data.params) == ("KILLED", {"width": "64"})
        assert found.info.start_time <= found.info.end_time <= before
        assert {each.path for each in client_of(up).list_artifacts(found.info.run_id)} == {"report.html", "notes"}
    assert not list((store / "journal").glob("*.files/*"))


def test_a_replay_that_is_cut_off_and_begun_again_duplicates_nothing(store: Path) -> None:
    """Even where the saved position is lost: every write may be made twice."""
    with Tracker("fraud", store, uri=REFUSED) as down:
        down.run("s", "sweep", kind="sweep")
        trial = down.run("s/a", "a", kind="trial", parent="s", params={"width": 64})
        log_epochs(trial, range(4))
        trial.log_metrics({"seconds": 1.0})
        trial.finish("FINISHED")
    waiting = (store / "journal" / "fraud.jsonl").read_bytes()
    Tracker("fraud", store).close()
    (store / "journal" / "fraud.jsonl").write_bytes(waiting)
    with Tracker("fraud", store) as again:
        assert again.pending == 0
        runs = runs_of(again)
        assert len(runs) == 2
        assert curve(again, runs["a"], "loss") == [(epoch, loss(epoch)) for epoch in range(4)]
        assert curve(again, runs["a"], "seconds") == [(0, 1.0)]
        assert runs["a"].info.status == "FINISHED"


def test_a_waiting_write_that_is_refused_is_set_aside_and_blocks_nothing(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is kept with the reason; an unreadable line is treated alike."""
    with Tracker("fraud", store, uri=REFUSED) as down:
        trial = down.run("s/a", "a", kind="trial")
        trial.log_metrics({"bad[0]": 1.0})
        trial.log_metrics({"good": 1.0})
    with (store / "journal" / "fraud.jsonl").open("a") as journal:
        journal.write("\0\0\0\n")
    with Tracker("fraud", store) as up:
        assert up.pending == 0
        assert runs_of(up)["a"].data.metrics == {"good": 1.0}
    refused = [json.loads(line) for line in (store / "journal" / "fraud.refused.jsonl").read_text().splitlines()]
    assert [record["op"] for record in refused] == ["metrics", "unreadable"]
    assert "bad[0]" in refused[0]["reason"]
    assert "set aside" in caplog.text


def test_a_file_that_is_gone_is_set_aside_and_blocks_nothing(store: Path) -> None:
    with Tracker("fraud", store, uri=REFUSED) as down:
        trial = down.run("s/a", "a", kind="trial")
        (store / "report.html").write_text("hi")
        trial.log_file(store / "report.html")
        trial.finish("FINISHED")
    shutil.rmtree(store / "journal" / "fraud.files")
    with Tracker("fraud", store) as up:
        assert (up.pending, up.set_aside) == (0, 1)
        assert "refused 1 writes" in up.missing()
        assert runs_of(up)["a"].info.status == "FINISHED"


def test_what_was_set_aside_is_tried_again_with_its_files_before_all_else(store: Path) -> None:
    """The experiment was deleted, everything is refused; it is restored, and everything is there, in order."""
    from mlflow import MlflowClient

    with Tracker("fraud", store) as tracker:
        tracker.run("s", "sweep", kind="sweep")
        (experiment,) = {run.info.experiment_id for run in runs_of(tracker).values()}
        client = MlflowClient(tracker.uri)
    with Tracker("fraud", store, uri=REFUSED) as down:
        trial = down.run("s/a", "a", kind="trial", parent="s", params={"width": 3})
        (store / "report.html").write_text("hi")
        trial.log_file(store / "report.html")
        trial.log_metrics({"loss": 0.5})
        trial.finish("FINISHED")
    client.delete_experiment(experiment)
    with Tracker("fraud", store) as up:
        assert up.pending == 0 and up.set_aside == 4
    client.restore_experiment(experiment)
    with Tracker("fraud", store) as again:
        assert again.set_aside == 0 and again.missing() == ""
        run = runs_of(again)["a"]
        assert (run.data.params["width"], run.data.metrics, run.info.status) == ("3", {"loss": 0.5}, "FINISHED")
        assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["report.html"]


def test_an_outage_is_probed_at_intervals_only(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes connections and never answers costs one time-out, then a line in a file per write."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        listening.setblocking(False)
        tracker = Tracker("fraud", store, uri=f"http://127.0.0.1:{listening.getsockname()[1]}")
        run = tracker.run("s/a", "a", kind="trial")
        for epoch in range(50):
            run.log_metrics({"loss": 1.0}, step=epoch)
        attempts = 0
        with pytest.raises(BlockingIOError):
            while True:
                listening.accept()[0].close()
                attempts += 1
    assert (attempts, tracker.pending) == (1, 51)


def test_a_database_driver_that_is_not_installed_is_named(store: Path) -> None:
    """It is no outage: waiting would not help."""
    with Tracker("fraud", store, uri="mysql+nosuchdriver://host/db") as tracker:
        with pytest.raises(InputError, match="nosuchdriver"):
            tracker.run("s", "s", kind="sweep")
        assert tracker.pending == 0


# A real server


class Server:
    """An MLflow server on loopback that can be stopped and started again on its stores."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        database, artifacts = f"sqlite:///{self.folder}/mlflow.db", str(self.folder / "artifacts")
        where = ["--backend-store-uri", database, "--artifacts-destination", artifacts, "--port", str(self.port)]
        scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environ = {**os.environ, "PATH": scripts, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        command = [sys.executable, "-m", "mlflow", "server", *where, "--host", "127.0.0.1", "--workers", "1"]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=environ, stdout=log, stderr=log, start_new_session=True)
        for _ in range(600):
            if self.answers():
                return
            time.sleep(0.1)
        raise TimeoutError((self.folder / "server.log").read_text())

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def stop(self) -> None:
        """Kill the server and its workers, as an outage does."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, new_store: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(new_store / "mlflow.db", folder)
    made = Server(folder)
    made.start()
    yield made
    made.stop()


@pytest.mark.slow
def test_training_goes_on_through_an_outage_of_the_server(
    server: Server, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Stopped in the middle of one trial, with a whole second trial in between, and started again in a third."""
    with Tracker("fraud", store, uri=server.uri, retry_s=0.0, flush_s=0.0) as tracker:
        parent = tracker.run("s", "sweep", kind="sweep")
        first = tracker.run("s/a", "a", kind="trial", parent="s", params={"width": 64})
        log_epochs(first, range(3))
        server.stop()
        log_epochs(first, range(3, 6))
        first.finish("FINISHED")
        second = tracker.run("s/b", "b", kind="trial", parent="s", params={"width": 32})
        log_epochs(second, range(4))
        second.log_dataset("cards", digest=DIGEST, version="v3", source="x.csv", columns={}, profile={})
        second.log_text("why", "notes/b.txt")
        second.finish("KILLED")
        third = tracker.run("s/c", "c", kind="trial", parent="s", params={"width": 16})
        log_epochs(third, range(2))
        assert tracker.pending > 10 and third.run_id is None
        server.start()
        log_epochs(third, range(2, 5))
        third.finish("FAILED")
        assert tracker.pending == 0
        parent.finish("FINISHED")
        runs = runs_of(tracker)
        for name, epochs in {"a": 6, "b": 4, "c": 5}.items():
            for metric in ("loss", "val_auc"):
                assert [step for step, _ in curve(tracker, runs[name], metric)] == list(range(epochs))
            assert runs[name].data.tags["mlflow.parentRunId"] == parent.run_id
        assert {name: run.info.status for name, run in runs.items()} == {
            "sweep": "FINISHED",
            "a": "FINISHED",
            "b": "KILLED",
            "c": "FAILED",
        }
        assert runs["b"].inputs.dataset_inputs[0].dataset.name == "cards"
        assert tracker.link("s", "loss", "minimize").startswith(f"{server.uri}/#/experiments/")
    messages = [record.getMessage() for record in caplog.records if record.name == "forge_sweep"]
    assert [("cannot be reached" in text, "were replayed" in text) for text in messages] == [
        (True, False),
        (False, True),
    ]


@pytest.mark.slow
def test_a_trial_takes_five_requests(server: Server, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run, params, dataset; the points with figures and tags; the status."""
    import requests

    made: list[str] = []
    plain = requests.Session.request

    def request(self: requests.Session, method: str, url: str, **options: Any) -> requests.Response:
        made.append(url.partition("/api/2.0/mlflow/")[2])
        return plain(self, method, url, **options)

    with Tracker("few", store, uri=server.uri) as tracker:
        tracker.run("f", "sweep", kind="sweep")
        monkeypatch.setattr(requests.Session, "request", request)
        used = {"name": "cards", "digest": DIGEST, "version": "v3", "source": "x.csv", "columns": {}, "profile": {}}
        run = tracker.run("f/a", "a", kind="trial", parent="f", params={"width": 64}, dataset=used, new=True)
        log_epochs(run, range(20))
        run.finish("FINISHED", metrics={"seconds": 1.0}, tags={"forge.state": "finished"})
        monkeypatch.undo()
        assert made == ["runs/create", "runs/log-batch", "runs/log-inputs", "runs/log-batch", "runs/update"]


# Registration


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(7)
    frame = pd.DataFrame({"age": rng.integers(20, 70, 60), "income": rng.normal(size=60)})
    frame["city"] = pd.Series(rng.choice(["Ulm", "Rom"], 60), dtype="str")
    frame["member"] = rng.random(60) > 0.5
    frame.loc[3, "income"] = np.nan
    frame.loc[4, "city"] = None
    return frame


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, frame: pd.DataFrame) -> tuple[Path, pd.DataFrame]:
    """A saved bundle of a forest, and what it predicts for the frame."""
    from forge_sweep import baselines
    from forge_sweep.bundle import Bundle
    from forge_sweep.preprocessing import Preprocessor, Schema
    from forge_sweep.task import Task

    targets = pd.DataFrame({"fraud": (frame["age"] > 45).astype(int)})
    task = Task.learn("binary", targets)
    schema = Schema.learn(frame)
    fitted = Preprocessor.fit(frame, schema, scaler="standard", impute="median", fill=0.0, max_categories=50)
    model = baselines.fit("random_forest", task, fitted.transform(frame), task.encode(targets), seed=1)
    made = Bundle(model, fitted, task, 0.5, {})
    folder = tmp_path_factory.mktemp("bundle") / "winner"
    made.save(folder, frame)
    return folder, made.predict(frame)


def register(tracker: Tracker, key: str, folder: Path, frame: pd.DataFrame, name: str = "fraud") -> str:
    return tracker.register(
        key,
        folder,
        model_name=name,
        columns=list(frame.columns),
        requirements=tracking.requirements("random_forest"),
        tags={"forge.dataset_digest": DIGEST, "forge.kind": "random_forest"},
    )


PREDICT = """
import sys
import mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
frame = pd.read_parquet(sys.argv[2])
mlflow.pyfunc.load_model("models:/fraud@challenger").predict(frame).to_parquet(sys.argv[3])
"""


@pytest.mark.slow
def test_a_registered_bundle_predicts_the_same_in_a_fresh_process_without_pickle(
    tracker: Tracker, bundle: tuple[Path, pd.DataFrame], frame: pd.DataFrame, tmp_path: Path
) -> None:
    """From shuffled columns, with unpickling forbidden."""
    folder, expected = bundle
    tracker.run("s/a", "a", kind="confirm").finish("FINISHED")
    register(tracker, "s/a", folder, frame)
    frame[["member", "city", "income", "age"]].to_parquet(tmp_path / "in.parquet")
    arguments = [tracker.uri, str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet")]
    environ = {**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    subprocess.run([sys.executable, "-c", PREDICT, *arguments], check=True, env=environ, cwd=tmp_path)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out.parquet"), expected)


def as_seen_elsewhere(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The frame in the types that a CSV, a database or JSON would give."""
    gaps = np.arange(len(frame)) > 2
    return {
        "ints where floats were": frame.assign(income=1),
        "floats with NaN": frame.assign(age=frame["age"].astype(float).where(gaps)),
        "nullable integers": frame.assign(age=frame["age"].astype("Int64").where(gaps)),
        "objects with None": frame.assign(age=[None, *frame["age"].tolist()[1:]]).astype({"age": object}),
        "object text": frame.assign(city=frame["city"].astype(object)),
        "categories": frame.assign(city=frame["city"].astype("category")),
        "nullable booleans": frame.assign(member=frame["member"].astype("boolean")),
        "an extra column": frame.assign(note="x"),
    }


@pytest.mark.slow
def test_the_registered_model_takes_raw_columns_of_any_type_and_refuses_a_missing_one(
    tracker: Tracker, bundle: tuple[Path, pd.DataFrame], frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's own types would refuse integers or missing values; the bundle's schema decides instead."""
    import mlflow

    folder, _ = bundle
    tracker.run("s/a", "a", kind="confirm").finish("FINISHED")
    version = register(tracker, "s/a", folder, frame)
    assert "MLFLOW_TRACKING_URI" not in os.environ
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uri)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    model = mlflow.pyfunc.load_model(f"models:/fraud/{version}")
    for name, seen in as_seen_elsewhere(frame).items():
        assert len(model.predict(seen)) == len(frame), name
    with pytest.raises(mlflow.exceptions.MlflowException, match=r"missing inputs \['age'\]"):
        model.predict(frame.drop(columns="age"))


def test_requirements_are_pinned_and_fit_the_kind() -> None:
    """Given, not inferred: that takes 6 s and an import of TensorFlow."""
    tree, network = tracking.requirements("xgboost"), tracking.requirements("network")
    assert all("==" in line and "+" not in line for line in tree + network)
    assert any(line.startswith("xgboost") for line in tree) and not any("tensorflow" in line for line in tree)
    assert any(line.startswith("tensorflow") for line in network) and any("mlflow==3" in line for line in tree)


def test_registering_again_gives_the_same_version(
    tracker: Tracker, bundle: tuple[Path, pd.DataFrame], frame: pd.DataFrame
) -> None:
    """A resumed sweep adds no version and does not take the alias back from a later one; a half one is completed."""
    folder, _ = bundle
    for key in ("s/a", "s/b"):
        tracker.run(key, key, kind="confirm").finish("FINISHED")
    first = register(tracker, "s/a", folder, frame)
    client = client_of(tracker)
    client.delete_registered_model_alias("fraud", "challenger")  # as a kill before the last steps leaves it
    client.delete_model_version_tag("fraud", first, "forge.registered_at")
    assert register(tracker, "s/a", folder, frame) == first
    assert str(client.get_model_version_by_alias("fraud", "challenger").version) == first
    second = register(tracker, "s/b", folder, frame)
    assert (second, register(tracker, "s/a", folder, frame)) == ("2", first)
    found = client.get_model_version_by_alias("fraud", "challenger")
    assert str(found.version) == second
    assert found.tags["forge.dataset_digest"] == DIGEST
    assert found.run_id == tracker.run("s/b", "s/b", kind="confirm").run_id
    assert len(client.search_model_versions("name = 'fraud'")) == 2


def test_a_model_name_that_mlflow_does_not_take_is_refused(
    tracker: Tracker, bundle: tuple[Path, pd.DataFrame], frame: pd.DataFrame
) -> None:
    """Before anything is uploaded where it can be seen."""
    tracker.run("s/a", "a", kind="confirm").finish("FINISHED")
    for name in ("a/b", "it's"):
        with pytest.raises(InputError, match=r"the model 'a/b'|tracking\.model_name"):
            register(tracker, "s/a", bundle[0], frame, name)


@pytest.mark.slow
def test_a_bundle_is_registered_over_http(
    server: Server, store: Path, bundle: tuple[Path, pd.DataFrame], frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version is text there and a number on a database: ours is always text."""
    import mlflow

    folder, expected = bundle
    with Tracker("fraud", store, uri=server.uri) as tracker:
        tracker.run("h/a", "h-a", kind="confirm").finish("FINISHED")
        assert register(tracker, "h/a", folder, frame) == register(tracker, "h/a", folder, frame) == "1"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    loaded: Any = mlflow.pyfunc.load_model("models:/fraud@challenger")
    pd.testing.assert_frame_equal(loaded.predict(frame), expected)


@pytest.mark.parametrize("declared", [None, "sqlite:///declared.db", " sqlite:///declared.db "])
@pytest.mark.parametrize("chosen", [None, "sqlite:///chosen.db"])
def test_the_address_of_the_process_is_afterwards_what_it_was(
    declared: str | None, chosen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the variable, `mlflow.set_tracking_uri`, both or neither say it."""
    import mlflow

    from forge_sweep.tracking.client import current

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mlflow.set_tracking_uri(chosen)  # writes the variable as well
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if declared is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", declared)
    before = mlflow.get_tracking_uri()
    try:
        with current("sqlite:///registering.db"):
            assert mlflow.get_tracking_uri() == "sqlite:///registering.db"
        assert (os.environ.get("MLFLOW_TRACKING_URI"), mlflow.get_tracking_uri()) == (declared, before)
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert mlflow.is_tracking_uri_set() == (chosen is not None)
    finally:
        mlflow.set_tracking_uri(None)
