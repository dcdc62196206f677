"""Making the tables: repeated, at once from several places, with too few rights, over tables of another revision."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forge_sweep.errors import DataError
from forge_sweep.feature_store.connection import Address
from forge_sweep.feature_store.schema import REVISION_TABLE, init
from forge_sweep.feature_store.versions import Version, drop
from tests.postgres import OwnServer, ask, at, behind, get, put_frame, run_sql

TABLES = (
    *("alembic_version_forge_sweep", "dataset_versions", "normalization_params"),
    *("test_looks", "test_texts", "training_features"),
)


def frame(n: int = 60) -> pd.DataFrame:
    return pd.DataFrame({"x": np.arange(n) / 7, "y": np.arange(n) % 2})


def tables(url: str) -> tuple[str, ...]:
    query = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename"
    return tuple(name for (name,) in ask(url, query))


def test_init_is_repeated_at_will(database: Callable[..., str]) -> None:
    """The line says what was done, without a password."""
    store = Address.parse(database())
    assert init(store) == f"the feature store at {store.masked} is ready (revision 0001)"
    assert tables(store.conninfo) == TABLES
    assert init(store) == f"the feature store at {store.masked} is up to date (revision 0001)"


def test_init_leaves_rows_and_the_tables_of_others_alone(store: Address, tmp_path: Path) -> None:
    run_sql(
        store.conninfo, "CREATE TABLE alembic_version (version_num TEXT)", "CREATE TABLE training_features_vx (i INT)"
    )
    version = put_frame(frame(), tmp_path, store)
    init(store)
    assert get(version).digest == version.digest
    assert {"alembic_version", "training_features_vx"} < set(tables(store.conninfo))


def test_init_removes_rows_that_no_version_names(store: Address, tmp_path: Path) -> None:
    """Nothing of ours leaves such a table; somebody who deletes a description does."""
    version = put_frame(frame(), tmp_path, store)
    behind(store.conninfo, "DELETE FROM dataset_versions")
    assert f"removed {version.partition}, which no version names" in init(store)
    assert ask(store.conninfo, "SELECT to_regclass(%s)", version.partition) == [(None,)]


def made(url: str) -> str:
    """`init` in a process of its own."""
    return init(Address.parse(url))


def test_init_from_four_processes_at_once_makes_the_tables_once(database: Callable[..., str]) -> None:
    url = database()
    with multiprocessing.get_context("spawn").Pool(4) as processes:
        told = processes.map(made, [url] * 4)
    assert sorted("is ready" in line for line in told) == [False, False, False, True]
    assert tables(url) == TABLES


def test_init_from_four_threads_at_once_makes_the_tables_once(database: Callable[..., str]) -> None:
    url = database()
    with ThreadPoolExecutor(4) as threads:
        told = list(threads.map(made, [url] * 4))
    assert sorted("is ready" in line for line in told) == [False, False, False, True]


def test_two_databases_of_a_new_server_are_made_ready_at_once(own_server: OwnServer) -> None:
    """The roles belong to the server: one of them is second, and takes no harm."""
    for name in ("one", "two"):
        run_sql(own_server.url, f"CREATE DATABASE {name}")
    with multiprocessing.get_context("spawn").Pool(2) as processes:
        told = processes.map(made, [at(own_server.url, name) for name in ("one", "two")])
    assert all("is ready" in line for line in told)
    roles = "SELECT rolname, rolcanlogin FROM pg_roles WHERE rolname LIKE %s ORDER BY rolname"
    assert ask(own_server.url, roles, "forge_%") == [("forge_confirm", False), ("forge_tuner", False)]


def test_a_login_that_may_not_make_roles_is_told_what_to_run(own_server: OwnServer) -> None:
    run_sql(own_server.url, "CREATE ROLE plain LOGIN PASSWORD 'plain'", "CREATE DATABASE plain OWNER plain")
    for role in ("forge_tuner", "forge_confirm"):
        for name in ("one", "two"):  # where they have rights, if the test before made them
            if ask(own_server.url, "SELECT 1 FROM pg_database WHERE datname = %s", name):
                run_sql(own_server.url, f"DROP DATABASE {name} WITH (FORCE)")
        run_sql(own_server.url, f"DROP ROLE IF EXISTS {role}")
    url = at(own_server.url, "plain", username="plain", password="plain")
    needed = "(?s)plain may not create roles.*CREATE ROLE forge_tuner NOLOGIN; CREATE ROLE forge_confirm NOLOGIN"
    with pytest.raises(DataError, match=needed):
        init(Address.parse(url))
    run_sql(own_server.url, "CREATE ROLE forge_tuner NOLOGIN", "CREATE ROLE forge_confirm NOLOGIN")
    assert "is ready" in init(Address.parse(url))


def test_a_login_that_may_not_make_tables_is_told_so(
    database: Callable[..., str], login: Callable[..., str], template: str
) -> None:
    url = login(Address.parse(database()))
    with pytest.raises(DataError, match=r"(?s)may not make tables in .*as the owner of the database"):
        init(Address.parse(url))


def test_a_login_that_may_not_read_the_tables_is_told_so(store: Address, login: Callable[..., str]) -> None:
    with pytest.raises(DataError, match="may not read the feature store"):
        init(Address.parse(login(store)))


@pytest.mark.parametrize(
    "attempt",
    [
        lambda store, folder, version: get(version),
        lambda store, folder, version: put_frame(frame(), folder, store),
        lambda store, folder, version: drop(store, version.name),
    ],
    ids=["load", "ingest", "drop"],
)
@pytest.mark.parametrize("revision", ["0000", "9999", None])
def test_tables_of_another_revision_are_not_used(
    revision: str | None, attempt: Callable[..., Any], store: Address, tmp_path: Path
) -> None:
    """Not guessed at either: the message says which they are, which are expected, and the command."""
    version = put_frame(frame(), tmp_path, store)
    change = f"UPDATE {REVISION_TABLE} SET version_num = '{revision}'" if revision else f"DROP TABLE {REVISION_TABLE}"
    run_sql(store.conninfo, change)
    seen = f"tables of revision {revision}" if revision else "no tables of forge_sweep"
    with pytest.raises(DataError, match=f"(?s)has {seen}; expected revision 0001.*forge-sweep data init"):
        attempt(store, tmp_path, version)


def test_tables_of_a_newer_forge_sweep_are_left_alone(store: Address) -> None:
    run_sql(store.conninfo, f"UPDATE {REVISION_TABLE} SET version_num = '9999'")
    with pytest.raises(
        DataError, match=r"(?s)tables of revision 9999, which this version .* does not know.*a newer one"
    ):
        init(store)


# Who ingests


def test_who_is_not_the_owner_ingests_nothing(store: Address, login: Callable[..., str], tmp_path: Path) -> None:
    member = Address.parse(login(store, "forge_tuner", "forge_confirm"))
    with pytest.raises(DataError, match=f"{member.login} may not ingest"):
        put_frame(frame(), tmp_path, member)


def test_an_owner_who_is_no_superuser_needs_nothing_else(
    owned: Address, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ingest and drop; to load, the login has to be a member of the role like any other."""
    version = put_frame(frame(), tmp_path, owned)
    assert version.created_by == owned.login
    with pytest.raises(DataError, match="GRANT forge_tuner TO"):
        get(version)
    run_sql(server, f"GRANT forge_tuner, forge_confirm TO {owned.login}")
    assert len(get(version).look_at_test("a look", tmp_path / "looks.jsonl").features) == version.row_counts["test"]
    drop(owned, version.name)
    assert tables(owned.conninfo) == TABLES


def test_of_two_ingests_of_one_name_the_second_is_told(store: Address, tmp_path: Path) -> None:
    """While the first one still copies rows; the first one takes no harm."""
    storing, told = threading.Event(), threading.Event()

    def progress(phase: str, done: int, total: int | None) -> None:
        if phase == "storing":
            storing.set()
            assert told.wait(60)

    with ThreadPoolExecutor(1) as other:
        first = other.submit(put_frame, frame(), tmp_path, store, version="fraud_v1", progress=progress)
        assert storing.wait(60)
        try:
            with pytest.raises(DataError, match="another process is ingesting it"):
                put_frame(frame(90), tmp_path, store, version="fraud_v1")
        finally:
            told.set()
        assert first.result().rows == 60
    with pytest.raises(DataError, match="has this version already"):
        put_frame(frame(90), tmp_path, store, version="fraud_v1")


def test_ingests_of_other_names_run_side_by_side(store: Address, tmp_path: Path) -> None:
    """And readers do not wait for them."""
    folders = [tmp_path / str(number) for number in range(4)]
    before = put_frame(frame(), tmp_path, store)

    def ingested(folder: Path) -> Version:
        folder.mkdir()
        return put_frame(frame(), folder, store, progress=lambda *_: get(before))

    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(ingested, folders))
    assert {version.digest for version in made} == {before.digest}
    assert len({get(version).version for version in made}) == 4
