"""The feature store when its server goes away or refuses: all of the rows or a clear error, and never the password."""

from __future__ import annotations

import itertools
import logging
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import pytest
from sqlalchemy.engine import make_url

from forge_sweep.errors import DataError, ForgeSweepError, StoreDown
from forge_sweep.feature_store import cache, codec, connection, reading, versions
from forge_sweep.feature_store.connection import Address, connect
from forge_sweep.feature_store.schema import init
from forge_sweep.feature_store.versions import Version, find
from tests.postgres import OwnServer, ask, at, get, put_frame, run_sql

ROWS = 20_000
SECRET = "un:gu?essa#ble"
"""With signs that libpq takes in a URL as they are."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits half a minute for a server that does not come back."""
    monkeypatch.setattr(connection, "PATIENCE_S", 0.05)
    monkeypatch.setattr(connection, "FIRST_WAIT_S", 0.01)


def numbers(rows: int = ROWS) -> pd.DataFrame:
    """Some megabytes, so that sockets do not hold all of it."""
    values = np.random.default_rng(0).normal(size=(rows, 20))
    return pd.DataFrame(values, columns=[f"x{i}" for i in range(20)]).assign(y=np.arange(rows) % 2)


def kill_others(url: str) -> None:
    """End every other connection to the database, as an administrator would."""
    others = "datname = current_database() AND pid <> pg_backend_pid()"
    run_sql(url, f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {others}")


# Reading


@pytest.fixture
def version(store: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Version:
    """A version of many blocks."""
    monkeypatch.setattr(codec, "BLOCK_ROWS", 500)
    return put_frame(numbers(), tmp_path, store)


def break_off(url: str, times: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Let the server end the connection of so many readings in the midst of their rows; counts them."""
    begun, stream = itertools.count(1), reading.stream

    def interrupted(*arguments: Any) -> Iterator[codec.Block]:
        number = next(begun)
        for position, block in enumerate(stream(*arguments)):
            if position == 3 and number <= times:
                kill_others(url)
            yield block

    monkeypatch.setattr(reading, "stream", interrupted)
    return begun


def test_a_load_that_is_broken_off_begins_again(
    version: Version, store: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And gives every row once."""
    begun = break_off(store.conninfo, 2, monkeypatch)
    dataset = get(version)
    assert next(begun) == 4
    assert (len(dataset.train.features), len(dataset.valid.features)) == (14_000, 3_000)
    assert sorted(set(dataset.train.rows) | set(dataset.valid.rows)) == sorted(
        [*dataset.train.rows, *dataset.valid.rows]
    )


def test_a_load_that_is_broken_off_each_time_gives_no_rows(
    version: Version, store: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so, and leaves nothing in the cache."""
    break_off(store.conninfo, 3, monkeypatch)
    with pytest.raises(StoreDown, match=r"(?s)lost the connection 3 times: .*run the same command again"):
        get(version)
    assert list(cache.folder().iterdir()) == []


def test_a_look_that_is_broken_off_leaves_a_line_for_each_session(
    version: Version, store: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = get(version)
    break_off(store.conninfo, 1, monkeypatch)
    assert len(dataset.look_at_test("a look", tmp_path / "looks.jsonl").features) == 3_000
    assert dataset.count_looks(tmp_path / "looks.jsonl") == 2


def test_a_statement_that_the_server_cancels_is_no_crash(
    version: Version, store: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time-out that an administrator set will not pass, so nothing is tried again."""
    monkeypatch.setenv("FORGE_SWEEP_DATABASE_URL", f"{store.conninfo}&options=-c%20statement_timeout%3D1")
    with pytest.raises(StoreDown, match="statement timeout"):
        get(version)


def test_a_restart_between_two_loads_is_not_noticed(
    own_server: OwnServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second load waits for the server, and reads everything again."""
    store = Address.parse(own_server.url)
    monkeypatch.setenv("FORGE_SWEEP_DATABASE_URL", own_server.url)
    monkeypatch.setenv("FORGE_SWEEP_CACHE", str(tmp_path / "cache"))
    init(store)
    version = put_frame(numbers(300), tmp_path, store)
    first = get(version)
    cache.forget(version)
    own_server.control("restart", "-m", "immediate")
    monkeypatch.setattr(connection, "PATIENCE_S", 30.0)
    pd.testing.assert_frame_equal(get(version).train.features, first.train.features)


# Ingesting


@pytest.mark.parametrize("phase", ["storing", "freezing"])
def test_an_ingest_that_is_broken_off_stores_nothing(phase: str, store: Address, tmp_path: Path) -> None:
    def progress(current: str, done: int, total: int | None) -> None:
        if current == phase:
            kill_others(store.conninfo)

    with pytest.raises(StoreDown, match=r"was lost while .* was ingested: .*; nothing was stored"):
        ingest_numbers(store, tmp_path, progress)
    nothing_stored(store)
    ingest_numbers(store, tmp_path)


def test_a_crash_of_the_server_stores_nothing(own_server: OwnServer, tmp_path: Path) -> None:
    store = new_store(own_server, "crashed")

    def progress(phase: str, done: int, total: int | None) -> None:
        if phase == "freezing":
            own_server.control("stop", "-m", "immediate")

    with pytest.raises(StoreDown, match="nothing was stored"):
        ingest_numbers(store, tmp_path, progress)
    own_server.control("start")
    nothing_stored(store)
    assert "is up to date (revision 0001)" in init(store)
    ingest_numbers(store, tmp_path)


def test_a_connection_that_is_lost_after_the_commit_leaves_no_doubt(own_server: OwnServer, tmp_path: Path) -> None:
    """Another one finds the version; here the server had committed, and waited for a standby that never came."""
    store = new_store(own_server, "committed")
    run_sql(own_server.url, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'", "SELECT pg_reload_conf()")
    try:
        with ThreadPoolExecutor(1) as other:
            killed = other.submit(kill_waiting, store.conninfo, "SyncRep")
            version = ingest_numbers(store, tmp_path)
    finally:
        run_sql(own_server.url, "ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")
    assert killed.result()
    assert ask(store.conninfo, "SELECT digest FROM dataset_versions") == [(version.digest,)]


def test_a_connection_that_is_lost_before_the_commit_leaves_nothing(own_server: OwnServer, tmp_path: Path) -> None:
    """Even where it is lost so late that only another connection can tell."""
    store = new_store(own_server, "not_committed")
    slow = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(60); RETURN NULL; END'"
    trigger = "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON dataset_versions DEFERRABLE INITIALLY DEFERRED"
    run_sql(store.conninfo, slow, f"{trigger} FOR EACH ROW EXECUTE FUNCTION slow()")
    with ThreadPoolExecutor(1) as other:
        killed = other.submit(kill_waiting, store.conninfo, "PgSleep")
        with pytest.raises(StoreDown, match="nothing was stored"):
            ingest_numbers(store, tmp_path)
    assert killed.result()
    nothing_stored(store)


def new_store(server: OwnServer, name: str) -> Address:
    """A feature store in a database of its own."""
    run_sql(server.url, f"CREATE DATABASE {name}")
    store = Address.parse(at(server.url, name))
    init(store)
    return store


def kill_waiting(url: str, event: str) -> bool:
    """End our connection once it waits for an event; whether it came to that."""
    query = (
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'forge-sweep' AND wait_event = %s"
    )
    for _ in range(1000):
        if ask(url, query, event):
            return True
        time.sleep(0.02)
    return False


def test_a_drop_that_is_broken_off_removes_nothing(
    version: Version, store: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says how to find out."""
    describe = versions._drop_description

    def broken_off(*arguments: Any) -> None:
        kill_others(store.conninfo)
        describe(*arguments)

    monkeypatch.setattr(versions, "_drop_description", broken_off)
    with pytest.raises(StoreDown, match=r"(?s)was lost while .* was dropped: .*forge-sweep data list"):
        versions.drop(store, version.name)
    assert get(version).digest == version.digest


def ingest_numbers(
    store: Address, folder: Path, progress: Callable[[str, int, int | None], None] = lambda *_: None
) -> Version:
    return put_frame(numbers(), folder, store, progress=progress)


def nothing_stored(store: Address) -> None:
    """Neither a version, nor a table of rows, nor what was learned."""
    for name in ("dataset_versions", "normalization_params", "training_features"):
        assert ask(store.conninfo, f"SELECT count(*) FROM {name}") == [(0,)]
    assert ask(store.conninfo, "SELECT relname FROM pg_class WHERE relname LIKE 'training_features_v%'") == []


# Refused, or nobody there; and the password


def told(error: BaseException, caplog: pytest.LogCaptureFixture) -> str:
    """All that an error may show anywhere: itself, its causes, their tracebacks with variables, and logs."""
    shown, each = [caplog.text], error
    while each is not None:
        frames = each.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename == __file__:  # these know the password
            frames = frames.tb_next
        whole = traceback.TracebackException(type(each), each, frames, capture_locals=True)
        shown += [str(each), repr(each), *whole.format(chain=False)]
        each = each.__cause__ or each.__context__
    return "\n".join(shown)


def with_password(url: str, password: str = SECRET, **changes: Any) -> str:
    """A URL with a password as it may stand there unescaped."""
    changed = make_url(url).set(password="MARK", **changes).render_as_string(hide_password=False)
    return changed.replace("MARK", password)


WRONG = {
    "a wrong password": (lambda url: with_password(url), DataError, "authentication failed"),
    "a database that is not there": (
        lambda url: with_password(url, username="postgres", database="nowhere"),
        DataError,
        '"nowhere" does not exist',
    ),
    "nobody there": (lambda url: f"postgresql://me:{SECRET}@127.0.0.1:1/x", StoreDown, "does not answer"),
    "no such host": (lambda url: f"postgresql://me:{SECRET}@nowhere.invalid/x", StoreDown, "does not answer"),
    "a setting that is none": (
        lambda url: f"postgresql://me:{SECRET}@127.0.0.1:1/x?sslmode=bogus",
        DataError,
        "sslmode",
    ),
    "an unescaped @": (lambda url: f"postgresql://me:a@{SECRET}@127.0.0.1:1/x", DataError, "%-escapes"),
    "an unescaped /": (lambda url: f"postgresql://me:12/{SECRET}@127.0.0.1:1/x", DataError, "%-escapes"),
    "an unescaped / in front": (lambda url: f"postgresql://me:/{SECRET}@127.0.0.1:1/x", DataError, "%-escapes"),
    "another scheme": (lambda url: f"mysql://me:{SECRET}@127.0.0.1:1/x", DataError, "is not a PostgreSQL URL"),
    "no URL": (lambda url: SECRET, DataError, "is not a PostgreSQL URL"),
    "another setting": (lambda url: f"postgresql://me:{SECRET}@h/x?pasword=1", DataError, "is not a PostgreSQL URL"),
}


@pytest.mark.parametrize("what", WRONG)
def test_no_error_shows_the_password(
    what: str,
    store: Address,
    login: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nor does its cause, its traceback with variables, or a log; it says what is wrong."""
    caplog.set_level(logging.DEBUG)
    wrong, kind, message = WRONG[what]
    monkeypatch.setenv("FORGE_SWEEP_DATABASE_URL", wrong(login(store)))
    for attempt in (lambda: connect(Address.from_environment()), lambda: init(Address.from_environment())):
        with pytest.raises(ForgeSweepError, match=message) as caught:
            attempt()
        assert caught.type is kind
        shown = told(caught.value, caplog)
        assert SECRET not in shown
        assert "essa#ble" not in shown


def test_an_error_in_the_midst_shows_no_password_either(
    version: Version,
    store: Address,
    login: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    url = login(store, "forge_tuner", password="unguessable")
    monkeypatch.setenv("FORGE_SWEEP_DATABASE_URL", url)
    break_off(store.conninfo, 3, monkeypatch)
    with pytest.raises(StoreDown) as caught:
        get(version)
    assert "unguessable" not in told(caught.value, caplog)


def test_an_address_shows_neither_password_nor_query() -> None:
    """To libpq the first @ ends a password; all other signs may stand in it."""
    address = Address.parse(f"postgresql://me:{SECRET}@one:5432,two:5433/features?sslmode=verify-full")
    assert str(address) == address.masked == "postgresql://me@one:5432,two:5433/features"
    assert SECRET not in repr(address) + repr(vars(address))
    assert address.login == "me"


def test_a_password_with_any_sign_opens_the_store(
    version: Version, store: Address, login: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Escaped in the URL as every URL wants it."""
    word = '/ @:#?%&=é"$\\'
    url = with_password(login(store, "forge_tuner", password=word), quote(word, safe=""))
    monkeypatch.setenv("FORGE_SWEEP_DATABASE_URL", url)
    assert get(version).digest == version.digest


def test_the_settings_of_the_url_reach_the_server(store: Address) -> None:
    """Those of libpq and of the server; ours are only where the URL says nothing."""
    more = "&sslmode=allow&application_name=mine&options=-c%20work_mem%3D77kB"
    with connect(Address.parse(store.conninfo + more)) as opened:
        assert opened.info.get_parameters()["sslmode"] == "allow"
        assert opened.execute("SHOW application_name").fetchone() == ("mine",)
        assert opened.execute("SHOW work_mem").fetchone() == ("77kB",)
    with connect(store) as opened:
        assert opened.execute("SHOW application_name").fetchone() == ("forge-sweep",)


def attempts(caplog: pytest.LogCaptureFixture) -> int:
    """How often a connection was tried again."""
    return sum("does not answer; attempt" in record.message for record in caplog.records)


def test_a_stopped_server_is_waited_for_and_then_named(own_server: OwnServer, caplog: pytest.LogCaptureFixture) -> None:
    """It is tried several times, and the message says what to do."""
    caplog.set_level(logging.INFO)
    own_server.control("stop", "-m", "fast")
    with pytest.raises(StoreDown, match=r"(?s)does not answer: .*start the server or correct FORGE_SWEEP_DATABASE_URL"):
        connect(Address.parse(own_server.url))
    own_server.control("start")
    assert attempts(caplog) > 1


def test_a_wrong_password_is_not_tried_again(
    store: Address, login: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(DataError, match="authentication failed"):
        connect(Address.parse(with_password(login(store), "wrong")))
    assert attempts(caplog) == 0


def test_the_variable_is_named_where_it_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORGE_SWEEP_DATABASE_URL", raising=False)
    with pytest.raises(DataError, match="FORGE_SWEEP_DATABASE_URL is not set"):
        Address.from_environment()


def test_another_version_is_suggested_by_name(version: Version, store: Address) -> None:
    with connect(store) as opened, pytest.raises(DataError, match=f"no such version; there are {version.name}"):
        find(opened, version.name + "x")
