"""Where the stores are: addresses, folders of any name, stores that are damaged, read-only, moved, or none at all."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from forge_sweep import addresses, tracking
from forge_sweep.errors import ForgeSweepError, InputError
from forge_sweep.study import check_storage, find_study, storage_url
from forge_sweep.sweep import check_stores
from forge_sweep.tracking import Registry, Tracker, locate
from forge_sweep.tracking import client as clients
from forge_sweep.ui import mlflow_command
from tests.servers import free_port, running
from tests.surface import experiment
from tests.test_sweep import run

NAMES = [
    "why?",
    "rel%2F1.2",
    "my%20runs",
    "a #b",
    "a;b:c@d&e=f+g",
    'it\'s "quoted"',
    "two\nlines",
    "Größe 数据",
    "~",
    "-x",
    "{SCHEMA_VERSION}",
    "n" * 200,
]


# Case 01: any name of a folder


@pytest.mark.parametrize("name", NAMES)
def test_both_databases_lie_in_the_store_whatever_its_name(name: str, tmp_path: Path) -> None:
    """A path pasted into a URL is cut at ``?`` and changed at ``%``: the files would be elsewhere."""
    store = tmp_path / name / "mlruns"
    assert addresses.sqlite_file(tracking.default_uri(store)) == store / "mlflow.db"
    assert addresses.sqlite_file(storage_url(store)) == store / "optuna.db"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["why?", "rel%2F1.2", "a #b;c:'d'\n\"é\" {x}"])
def test_a_sweep_runs_in_a_folder_of_any_name_and_writes_nothing_outside(name: str, tmp_path: Path) -> None:
    """Both databases, the artifacts and the model are in the store; the folder above it has one entry, as before."""
    store = tmp_path / name / "mlruns"
    result = run(experiment(study__n_trials=1), store)
    assert [each.name for each in tmp_path.iterdir()] == [name]
    assert [each.name for each in (tmp_path / name).iterdir()] == ["mlruns"]
    assert {"mlflow.db", "optuna.db", "artifacts"} <= {each.name for each in store.iterdir()}
    with tracking.fetched(locate(result.model, store), store) as bundle:
        assert (bundle / "manifest.json").exists()


def test_a_folder_that_is_not_utf_8_is_refused_by_name(tmp_path: Path) -> None:
    """No database address can hold it."""
    with pytest.raises(InputError, match=r"caf\\xe9.* not UTF-8"):
        tracking.default_uri(tmp_path / os.fsdecode(b"caf\xe9"))


# Case 15: stores that do not outlive the command

FLEETING = [
    "sqlite://",
    "sqlite:///",
    "sqlite:///:memory:",
    "SQLite:///:memory:",
    "sqlite+pysqlite:///:memory:",
    "sqlite:///file::memory:?cache=shared&uri=true",
    "sqlite:///file:shared?mode=memory&cache=shared&uri=true",
    "sqlite:///x.db?mode=memory",
]


@pytest.mark.parametrize("url", FLEETING)
def test_a_database_in_memory_is_refused(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its model would be gone with the command that says it registered it; its trials likewise."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    with pytest.raises(InputError, match=r"MLFLOW_TRACKING_URI = .* in memory"):
        check_stores(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("FORGE_SWEEP_STORAGE", url)
    with pytest.raises(InputError, match=r"FORGE_SWEEP_STORAGE = .* in memory"):
        check_stores(tmp_path)


def test_an_empty_variable_is_an_unset_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that MLflow reads as a number or a truth value, and fails over."""
    monkeypatch.setenv("FORGE_SWEEP_STORAGE", " ")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "")
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_LOGGING", "")
    assert storage_url(tmp_path).endswith("/optuna.db")
    check_stores(tmp_path)
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "20"


# Case 17: what answers is not MLflow

ANSWERS: dict[str, tuple[int, dict[str, str], bytes, str]] = {
    "a login page": (200, {"Content-Type": "text/html"}, b"<html>Sign in</html>", "answers, but not as MLflow: 200"),
    "another JSON": (200, {"Content-Type": "application/json"}, b'{"ok": true}', "answers, but not as MLflow: 200"),
    "a JSON list": (200, {"Content-Type": "application/json"}, b"[1]", "answers, but not as MLflow: 200"),
    "no such page": (404, {"Content-Type": "text/html"}, b"nope", "answers, but not as MLflow: 404"),
    "another 404": (404, {"Content-Type": "application/json"}, b'{"detail": "x"}', "answers, but not as MLflow: 404"),
    "nothing": (204, {}, b"", "answers, but not as MLflow: 204"),
    "a wrong password": (401, {"WWW-Authenticate": "Basic"}, b"", "refuses the login: it answers 401"),
    "no right": (403, {}, b"", "refuses the login: it answers 403"),
    "a circle": (302, {"Location": "/again"}, b"", "MLFLOW_TRACKING_URI = .*"),
}


@contextlib.contextmanager
def answering(code: int, headers: dict[str, str], body: bytes) -> Iterator[str]:
    """A server that says the same to everybody."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("what", ANSWERS)
def test_an_address_that_answers_otherwise_than_mlflow_is_refused_at_the_start(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what starts a sweep, and by each command that reads models, with what was answered and the fix."""
    code, headers, body, words = ANSWERS[what]
    with answering(code, headers, body) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        for ask in (check_stores, lambda store: locate("models:/a@b", store), lambda store: Registry(store).models()):
            with pytest.raises(InputError, match=words) as refused:
                ask(tmp_path)
            assert "fix:" in str(refused.value)


@pytest.mark.parametrize("code", [500, 502, 503, 429])
def test_a_fault_that_may_pass_stops_no_start(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a server that is down: the journal keeps what is written meanwhile."""
    with answering(code, {}, b"") as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        check_stores(tmp_path)
    check_stores(tmp_path)  # now nobody listens


def test_a_service_without_http_and_https_on_a_plain_port_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An SSH server greets first; a plain server does not understand the handshake."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet() -> None:
            for _ in range(2):
                connection, _address = listening.accept()
                with connection:
                    connection.recv(1)
                    connection.sendall(b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n\r\n")
                    connection.recv(65536)

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        for scheme in ("http", "https"):
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://127.0.0.1:{listening.getsockname()[1]}")
            with pytest.raises(InputError, match=r"answers, but not as MLflow|no secure connection"):
                check_stores(tmp_path)
        thread.join(timeout=10)


@pytest.mark.parametrize(
    "uri",
    [
        "htp://host",
        "http:/x",
        "http:host",
        "http://",
        "http://:5000",
        "http://host:99999",
        "http://host:port",
        "http://a host",
        "http://host/#/experiments/1",
        "postgresql+psycopg://host:port/db",
    ],
)
def test_a_malformed_address_is_refused_at_the_start(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not after a whole sweep."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(InputError, match="MLFLOW_TRACKING_URI"):
        check_stores(tmp_path)


@pytest.mark.parametrize("url", ["postgresql+psycopg://me:secret@host:port/db", "mysql://h/d", "http://h", "x y"])
def test_a_malformed_storage_is_refused_at_the_start(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the variable's name and without its password."""
    monkeypatch.setenv("FORGE_SWEEP_STORAGE", url)
    with pytest.raises(InputError, match="FORGE_SWEEP_STORAGE") as refused:
        check_stores(tmp_path)
    assert "secret" not in str(refused.value)


def test_a_registry_elsewhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its versions would name runs and files that it does not have."""
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://user:secret@models.example.org")
    with pytest.raises(InputError, match="MLFLOW_REGISTRY_URI") as refused:
        clients.connect(tracking.default_uri(tmp_path), tmp_path)
    assert "secret" not in str(refused.value)


# Case 19: what is written is read back at once


def test_asynchronous_logging_is_switched_off_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A parameter of the ledger that a thread writes later is one that two promotions miss."""
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_LOGGING", "true")
    client = clients.connect(tracking.default_uri(tmp_path), tmp_path)
    made = client.create_run("0")
    client.log_param(made.info.run_id, "entry.000001", "mine")
    assert client.get_run(made.info.run_id).data.params == {"entry.000001": "mine"}
    assert "MLFLOW_ENABLE_ASYNC_LOGGING=true is overridden with false" in caplog.text


# Damaged, empty, foreign, read-only and full stores


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a finished sweep, its logs written back so that each database is one file."""
    store = tmp_path_factory.mktemp("swept") / "mlruns"
    run(experiment(study__n_trials=1), store)
    for name in ("mlflow.db", "optuna.db"):
        with contextlib.closing(sqlite3.connect(store / name)) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return store


@pytest.fixture
def store(swept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(swept, tmp_path / "mlruns"))


def break_pages(path: Path) -> None:
    """Overwrite the inner pages of a database; its head is as it was."""
    content = bytearray(path.read_bytes())
    content[4096 : len(content) - 4096] = os.urandom(len(content) - 8192)
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:10_000])


def replace_by_text(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\n")


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("harm", [break_pages, cut, replace_by_text, replace_by_folder])
@pytest.mark.parametrize("name", ["mlflow.db", "optuna.db"])
def test_a_damaged_database_is_refused_at_the_start_by_name(name: str, harm: Any, store: Path) -> None:
    """It was taken for an outage, and the whole sweep ran for nothing; readers say the same."""
    harm(store / name)
    before = {each.name for each in store.iterdir()}
    with pytest.raises(InputError, match=name) as refused:
        check_stores(store)
    assert "fix:" in str(refused.value) and "outage" not in str(refused.value)
    with pytest.raises(InputError, match=name):
        find_study("surface", store) if name == "optuna.db" else Registry(store).models()
    assert {each.name for each in store.iterdir()} == before


def test_a_sound_store_and_an_empty_one_are_accepted(store: Path, tmp_path: Path) -> None:
    """A kill between the making of a file and that of its tables leaves an empty one."""
    check_stores(store)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "optuna.db").touch()
    check_stores(tmp_path / "new")


def test_tables_of_another_optuna_are_named_as_such(store: Path) -> None:
    """Not as a database whose driver is missing."""
    with contextlib.closing(sqlite3.connect(store / "optuna.db")) as database:
        database.execute("UPDATE version_info SET schema_version = 99")
        database.execute("UPDATE alembic_version SET version_num = 'v9.0.0'")
        database.commit()
    with pytest.raises(InputError, match="study database") as refused:
        find_study("surface", store)
    assert "driver" not in str(refused.value)


def test_a_store_that_cannot_be_written_is_read_and_refused_to_write_to(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status, models and bundles are read from a copy; nothing is written to that copy, where it would be lost."""
    before = {each: each.read_bytes() for each in store.rglob("*") if each.is_file()}
    # Whoever runs the tests may be allowed everything: only what the operating system is asked for is changed.
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK and may(path, mode))
    study = find_study("surface", store)
    assert study is not None and study.counts()["finished"] == 1
    registry = Registry(store)
    (name,) = registry.models()
    with tracking.fetched(registry.version(name, "1"), store) as bundle:
        assert (bundle / "manifest.json").exists()
    for write in (
        lambda: registry.tag(name, "1", "a", "b"),
        lambda: registry.set_alias(name, "champion", "1"),
        lambda: check_storage(store),
        lambda: tracking.check_store(store),
    ):
        with pytest.raises(InputError, match="cannot be written"):
            write()
    assert {each: each.read_bytes() for each in store.rglob("*") if each.is_file()} == before


FULL = """
import resource, signal, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
from forge_sweep.errors import InputError
from forge_sweep.study.storage import open_storage, storage_url
from forge_sweep.sweep import check_stores
store = Path(sys.argv[1])
try:
    check_stores(store) if sys.argv[2] == "0" else open_storage(storage_url(store), store)
except InputError as error:
    print(error)
"""


@pytest.mark.parametrize("size", ["0", "20000"])
def test_a_full_disk_is_named_as_the_cause(size: str, tmp_path: Path) -> None:
    """Not a missing driver. Where no byte can be written, and where a few can."""
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path), size], capture_output=True, text=True, check=True)
    assert "cannot be written" in done.stdout and "free space" in done.stdout and "driver" not in done.stdout


def test_a_store_below_a_file_is_refused(tmp_path: Path) -> None:
    """In one sentence with the path."""
    (tmp_path / "file").touch()
    for where in (tmp_path / "file", tmp_path / "file" / "mlruns", tmp_path / ("n" * 300)):
        with pytest.raises(InputError, match="cannot be written") as refused:
            check_stores(where)
        assert "fix:" in str(refused.value)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 0


# Case 22: the store moves

plugin = pytest.mark.skipif(
    not tracking.artifacts.is_installed(), reason="forge-sweep was installed before it had the plugin: pip install -e ."
)


def files(folder: Path) -> set[Path]:
    return {each.relative_to(folder) for each in folder.rglob("*") if each.is_file() and "db" not in each.name}


@plugin
def test_a_copied_store_writes_into_itself_and_a_moved_one_keeps_its_models(store: Path, tmp_path: Path) -> None:
    """More trials, a fork and the model, all at the new place."""
    copy = Path(shutil.copytree(store, tmp_path / "copy" / "mlruns"))
    before = files(store)
    result = run(experiment(study__n_trials=2), copy)
    run(experiment(study__n_trials=1, study__patience=3), copy, fork=True)
    assert files(store) == before
    shutil.move(copy, tmp_path / "renamed?")
    shutil.rmtree(store)
    with tracking.fetched(locate(result.model, tmp_path / "renamed?"), tmp_path / "renamed?") as bundle:
        assert (bundle / "manifest.json").exists()
    assert sum(run(experiment(study__n_trials=3), tmp_path / "renamed?").trials.values()) == 3


@plugin
def test_plain_mlflow_finds_artifacts_of_a_moved_store(store: Path, tmp_path: Path) -> None:
    """Through its own plugin interface, from a database address alone, relative as in the README."""
    shutil.move(store, tmp_path / "moved")
    script = (
        "import mlflow; mlflow.set_tracking_uri('sqlite:///moved/mlflow.db');"
        "print(mlflow.artifacts.download_artifacts('models:/surface@challenger', dst_path='out'))"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True)
    assert list((tmp_path / "out").rglob("manifest.json"))


def test_an_address_of_an_artifact_does_not_leave_the_store(tmp_path: Path) -> None:
    """Whoever changed the database by hand does not choose our files."""
    for path in ("a/../../b", "a/%2e%2e/b"):
        with pytest.raises(InputError, match="leaves its store"):
            tracking.artifacts.store_artifacts(f"forge-store:/{path}", f"sqlite:///{tmp_path}/mlflow.db")


def test_an_old_store_that_was_copied_is_refused_to_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are named by absolute paths: a copy would write into the original."""
    monkeypatch.setattr(tracking.artifacts, "is_installed", lambda: False)
    old = tmp_path / "old"
    with Tracker("fraud", old) as tracker:
        tracker.run("s", "s", kind="sweep").finish("FINISHED")
    with Tracker("fraud", old) as tracker:  # where it was made it goes on
        tracker.run("t", "t", kind="sweep").finish("FINISHED")
    copy = Path(shutil.copytree(old, tmp_path / "copy"))
    with pytest.raises(ForgeSweepError, match="was copied or moved") as refused, Tracker("fraud", copy) as tracker:
        tracker.run("u", "u", kind="sweep")
    assert str(old) in str(refused.value) and str(copy) in str(refused.value)


@plugin
@pytest.mark.slow
def test_the_ui_of_a_moved_store_shows_and_takes_files(store: Path, tmp_path: Path) -> None:
    """Its server resolves the same addresses, for browsers and for clients of its own."""
    from mlflow import MlflowClient

    moved, port = Path(shutil.move(store, tmp_path / "moved?")), free_port()
    uri, server = tracking.default_uri(moved), f"http://127.0.0.1:{port}"
    variables = {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with running(mlflow_command(moved, port), f"{server}/health", log=tmp_path / "log", **variables):
        client = MlflowClient(server, server)
        found = client.get_experiment_by_name("surface")
        assert found is not None
        (parent,) = client.search_runs([found.experiment_id], "tags.`forge.kind` = 'sweep'")
        address = f"{server}/get-artifact?run_uuid={parent.info.run_id}&path=experiment.json"
        with urllib.request.urlopen(address, timeout=60) as answer:
            assert b'"surface"' in answer.read()
        # In a process of its own: MLflow remembers by the run's id where this one wrote its files before the move.
        upload = (
            "import sys; from mlflow import MlflowClient as C; C(sys.argv[1]).log_text(sys.argv[2], 'x', 'new.txt')"
        )
        subprocess.run([sys.executable, "-c", upload, server, parent.info.run_id], check=True, timeout=120)
    assert len(list((moved / "artifacts" / "surface").rglob("new.txt"))) == 1


def test_looking_a_database_over_leaves_the_locks_of_this_process_on_it(tmp_path: Path) -> None:
    """Else a process that comes and goes takes itself for the last one, and deletes the log that this one writes to."""
    path = tmp_path / "mlflow.db"
    with contextlib.closing(sqlite3.connect(path)) as mine:
        mine.execute("PRAGMA journal_mode=WAL")
        mine.execute("CREATE TABLE t (x)")
        mine.commit()
        addresses.refuse_damaged(path, "runs")
        other = (
            "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM t').fetchall(); c.close()"
        )
        subprocess.run([sys.executable, "-c", other, str(path)], check=True, timeout=60)
        assert path.with_name("mlflow.db-wal").exists()
        mine.execute("INSERT INTO t VALUES (1)")
        mine.commit()
    with contextlib.closing(sqlite3.connect(path)) as again:
        assert again.execute("SELECT count(*) FROM t").fetchone() == (1,)
