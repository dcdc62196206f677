"""The embedded store and the version of MLflow that is installed: nothing is migrated unasked."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from forge_sweep.addresses import sqlite_url
from forge_sweep.cli import app
from forge_sweep.errors import InputError
from forge_sweep.tracking import Registry, prepare_store, schema, upgrade_store

pytestmark = pytest.mark.slow


NEVER = "0123456789ab"
"""A revision that no MLflow has yet."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the installed MLflow with a run in it."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("made") / "mlruns"
    prepare_store(url(folder), folder)
    client = MlflowClient(url(folder), url(folder))
    client.log_metric(client.create_run(client.create_experiment("surface")).info.run_id, "loss", 0.5)
    return folder


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    """A copy of its own."""
    target = tmp_path / "mlruns"
    target.mkdir()
    with closing(sqlite3.connect(made / "mlflow.db")) as one, closing(sqlite3.connect(target / "mlflow.db")) as other:
        one.backup(other)
    return target


@pytest.fixture
def older(store: Path) -> Path:
    """The same as the MLflow before the newest migration of this one left it."""
    from alembic import command
    from alembic.config import Config
    from mlflow.store import db_migrations

    config = Config()
    config.set_main_option("script_location", os.path.dirname(str(db_migrations.__file__)))
    config.set_main_option("sqlalchemy.url", url(store))
    command.downgrade(config, "-1")
    return store


@pytest.fixture
def newer(store: Path) -> Path:
    """The same as a later MLflow would leave it."""
    stamp(store, NEVER)
    return store


def url(store: Path) -> str:
    return sqlite_url(store / "mlflow.db")


def stamp(store: Path, revision: str) -> None:
    with closing(sqlite3.connect(store / "mlflow.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = ?", (revision,))


def content(store: Path) -> str:
    """Everything in the database, as one digest."""
    with closing(sqlite3.connect(store / "mlflow.db")) as database:
        return hashlib.sha256("\n".join(database.iterdump()).encode()).hexdigest()


def losses(store: Path) -> list[float]:
    from mlflow import MlflowClient

    client = MlflowClient(url(store), url(store))
    return [run.data.metrics["loss"] for run in client.search_runs(["1"])]


def forge_sweep(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(word) for word in words])
    return done.exit_code, done.output if done.exception is None or done.exit_code != 1 else repr(done.exception)


def test_a_store_that_fits_is_remembered_beside_it(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second check reads no migration; a database that changed since is checked again."""
    schema.refuse_other_schema(url(store))
    monkeypatch.setattr(schema, "_scripts", lambda: pytest.fail("the migrations were read again"))
    schema.refuse_other_schema(url(store))
    monkeypatch.undo()
    stamp(store, NEVER)
    with pytest.raises(InputError, match="written by a newer MLflow"):
        schema.refuse_other_schema(url(store))


def test_an_older_store_is_not_migrated_but_refused(older: Path) -> None:
    """By whatever opens it; the words name both versions and the command."""
    before = content(older)
    for opening in (
        lambda: prepare_store(url(older), older),
        lambda: Registry(older).versions("any"),
    ):
        with pytest.raises(InputError) as refusal:
            opening()
        assert (
            "would migrate it" in refusal.value.message
            and importlib.metadata.version("mlflow") in refusal.value.message
        )
        assert f"forge-sweep store upgrade --store {older}" in refusal.value.hint
    assert content(older) == before


def test_the_upgrade_copies_first_and_keeps_every_run(older: Path) -> None:
    before = content(older)
    done = upgrade_store(url(older))
    assert done.before != done.after and done.copy is not None and done.copy.name == f"mlflow.db.{done.before}"
    assert losses(older) == [0.5]
    kept = older / "kept"
    kept.mkdir()
    done.copy.rename(kept / "mlflow.db")
    assert content(kept) == before
    again = upgrade_store(url(older))
    assert again.copy is None and again.after == done.after


def test_the_command_says_what_it_did(older: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    code, text = forge_sweep("store", "upgrade", "--store", older, "--json")
    assert code == 0 and json.loads(text)["copy"].startswith(str(older))
    assert "nothing was changed" in forge_sweep("store", "upgrade", "--store", older)[1]


def test_a_newer_store_is_refused_with_the_way_back(newer: Path) -> None:
    before = content(newer)
    for opening in (lambda: prepare_store(url(newer), newer), lambda: upgrade_store(url(newer))):
        with pytest.raises(InputError, match=rf"newer MLflow \(schema {NEVER}\)") as refusal:
            opening()
        assert "pip install" in refusal.value.hint
    assert content(newer) == before


@pytest.fixture
def reader(older: Path) -> Iterator[int]:
    """Another process that has the database open."""
    script = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT 1 FROM runs'); print(1); input()"
    command = [sys.executable, "-u", "-c", script, str(older / "mlflow.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


def test_a_store_in_use_is_not_upgraded(older: Path, reader: int) -> None:
    with pytest.raises(InputError, match=rf"in use by process {reader}"):
        upgrade_store(url(older))
    assert not list(older.glob("mlflow.db.*[0-9a-f]"))


def test_a_migration_that_fails_leaves_the_store_as_it_was(older: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of it was done when it failed."""
    before = content(older)
    script = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).executescript('DROP TABLE metrics'); sys.exit('no')"
    real = subprocess.run

    def failing(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        return real([sys.executable, "-c", script, str(older / "mlflow.db")], **options)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(schema.subprocess, "run", failing)
    with pytest.raises(Exception, match=r"could not migrate .*: no") as refusal:
        upgrade_store(url(older))
    assert "the store is as it was before" in str(refusal.value) and content(older) == before


@pytest.mark.parametrize(
    ("address", "words"), [("http://127.0.0.1:9", "not an SQLite store"), (None, "no MLflow store")]
)
def test_what_cannot_be_upgraded_says_why(address: str | None, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        upgrade_store(address or url(tmp_path))
