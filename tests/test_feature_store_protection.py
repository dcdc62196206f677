"""What protects the rows of a version: they are frozen, and test rows are shown only with a line in the ledger."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import errors, sql

from forge_sweep.errors import DataError
from forge_sweep.feature_store import versions
from forge_sweep.feature_store.connection import Address
from forge_sweep.feature_store.versions import Version, drop
from forge_sweep.testing import table
from tests.postgres import ask, get, put, run_sql

SECTION = {
    "path": "table.parquet",
    "target": "label",
    "task": "binary",
    "key": "id",
    "categorical": ["code"],
    "drop": ["booked", "part"],
    "version": "fraud_v1",
}
INSERTED = (
    "(dataset_version, split, source_row, raw_vector, scaled_vector, labels, normalization_version)"
    " VALUES ({number}, 'train', 0, '{{}}', '{{}}', '{{}}', 'x')"
)
ROW_CHANGES = [
    f"{verb} {place}{rest}"
    for place in ("training_features", "{partition}")
    for verb, rest in (
        ("UPDATE", " SET labels = labels"),
        ("UPDATE", " SET split = 'train' WHERE split = 'test'"),
        ("DELETE FROM", ""),
        ("INSERT INTO", INSERTED),
        ("TRUNCATE", ""),
    )
]
VERSION_CHANGES = [
    "UPDATE dataset_versions SET digest = 'another'",
    "UPDATE dataset_versions SET frozen_at = NULL",
    "DELETE FROM dataset_versions",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with `table` as Parquet."""
    table().to_parquet(tmp_path / "table.parquet")
    return tmp_path


@pytest.fixture(params=["superuser", "owner"])
def stored(request: pytest.FixtureRequest, folder: Path) -> tuple[str, Version]:
    """A version, and the URL of a login that owns it."""
    address = request.getfixturevalue("store" if request.param == "superuser" else "owned")
    return address.conninfo, put(SECTION, folder, 3, address)


@pytest.fixture
def version(store: Address, folder: Path) -> Version:
    return put(SECTION, folder, 3, store)


@pytest.fixture
def sessions() -> Iterator[Callable[[str], psycopg.Connection[Any]]]:
    """Opens connections that are closed with the test; each statement is a transaction of its own."""
    opened: list[psycopg.Connection[Any]] = []

    def open_session(url: str) -> psycopg.Connection[Any]:
        opened.append(psycopg.connect(url, autocommit=True))
        return opened[-1]

    yield open_session
    for connection in opened:
        connection.close()


# Frozen


def test_no_row_of_a_version_changes(stored: tuple[str, Version]) -> None:
    """Not by its owner either, through the parent or the partition; the message names the version."""
    url, version = stored
    for change in ROW_CHANGES:
        statement = change.format(partition=version.partition, number=version.version_id)
        with pytest.raises(errors.ReadOnlySqlTransaction, match="dataset version fraud_v1 is frozen"):
            run_sql(url, statement)
    assert ask(url, "SELECT count(*) FROM training_features") == [(version.rows,)]


def test_no_description_of_a_version_changes(stored: tuple[str, Version]) -> None:
    url, _ = stored
    for change in VERSION_CHANGES:
        with pytest.raises(errors.ReadOnlySqlTransaction, match="dataset version fraud_v1 is frozen"):
            run_sql(url, change)
    with pytest.raises(errors.ReadOnlySqlTransaction, match="versions are dropped one by one"):
        run_sql(url, "TRUNCATE dataset_versions CASCADE")


def test_the_ledger_only_grows(stored: tuple[str, Version], sessions: Callable[..., Any]) -> None:
    url, version = stored
    note(sessions(url), version)
    for change in ("UPDATE test_looks SET run = 'x'", "DELETE FROM test_looks", "TRUNCATE test_looks"):
        with pytest.raises(errors.ReadOnlySqlTransaction, match="the ledger only grows"):
            run_sql(url, change)
    assert ask(url, "SELECT purpose FROM test_looks") == [("a look",)]


def test_what_was_learned_does_not_change(stored: tuple[str, Version]) -> None:
    url, _ = stored
    with pytest.raises(errors.ReadOnlySqlTransaction, match="parameters are named by their content"):
        run_sql(url, "UPDATE normalization_params SET means = '{}'")
    with pytest.raises(errors.ForeignKeyViolation):
        run_sql(url, "DELETE FROM normalization_params")
    with pytest.raises(errors.ReadOnlySqlTransaction):
        run_sql(url, "TRUNCATE normalization_params CASCADE")


def test_a_dropped_version_leaves_its_ledger(version: Version, store: Address, tmp_path: Path) -> None:
    """Rows, description and parameters go; another version of the same content knows of the look."""
    get(version).look_at_test("a look", tmp_path / "looks.jsonl")
    drop(store, version.name)
    for name in ("dataset_versions", "normalization_params", "training_features"):
        assert ask(store.conninfo, f"SELECT count(*) FROM {name}") == [(0,)]
    assert ask(store.conninfo, "SELECT to_regclass(%s)", version.partition) == [(None,)]
    again = put({**SECTION, "version": "fraud_v2"}, tmp_path, 3, store)
    assert get(again).count_looks(tmp_path / "another.jsonl") == 1


def test_parameters_stay_while_a_version_uses_them(version: Version, store: Address, folder: Path) -> None:
    """Two versions of the same rows share them, by name."""
    other = put({**SECTION, "version": "fraud_v2"}, folder, 3, store)
    assert other.normalization_version == version.normalization_version
    drop(store, version.name)
    assert get(other).preprocessor is not None


def test_a_parent_is_dropped_last(version: Version, store: Address, folder: Path) -> None:
    put({**SECTION, "version": "fraud_v2"}, folder, 3, store, parent=version.name)
    with pytest.raises(DataError, match="fraud_v1 is the parent of fraud_v2"):
        drop(store, version.name)


def test_what_is_being_read_is_not_dropped(
    version: Version, store: Address, sessions: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not waited for: that would hold up every other reader."""
    monkeypatch.setattr(versions, "DROP_WAIT_MS", 50)
    reader = sessions(store.conninfo)
    with reader.transaction():
        counts(reader)
        with pytest.raises(DataError, match="fraud_v1 cannot be dropped now"):
            drop(store, version.name)
    drop(store, version.name)


def test_who_is_not_the_owner_drops_nothing(version: Version, store: Address, login: Callable[..., str]) -> None:
    member = Address.parse(login(store, "forge_tuner", "forge_confirm"))
    with pytest.raises(DataError, match="may not drop fraud_v1"):
        drop(member, version.name)
    assert get(version).digest == version.digest


# The test split


def counts(connection: psycopg.Connection[Any]) -> dict[str, int]:
    """Visible rows by split."""
    return dict(connection.execute("SELECT split, count(*) FROM training_features GROUP BY split").fetchall())


def note(connection: psycopg.Connection[Any], version: Version) -> None:
    """A line in the ledger, in whatever transaction there is."""
    connection.execute(
        "INSERT INTO test_looks (dataset_version, run, purpose, who) VALUES (%s, '', 'a look', 'me')",
        (version.version_id,),
    )


@pytest.mark.parametrize("role", [None, "forge_tuner"])
def test_a_tuner_sees_no_test_row(
    role: str | None, version: Version, store: Address, login: Callable[..., str], sessions: Callable[..., Any]
) -> None:
    """Training and validation rows only, whether the login acts in the role or inherits it."""
    session = sessions(login(store, "forge_tuner"))
    if role is not None:
        session.execute(f"SET ROLE {role}")
    assert counts(session) == {name: version.row_counts[name] for name in ("train", "val")}
    with pytest.raises(errors.InsufficientPrivilege):
        session.execute(sql.SQL("SELECT 1 FROM {}").format(sql.Identifier(version.partition)))
    with pytest.raises(errors.InsufficientPrivilege):
        note(session, version)


def test_a_login_that_reads_all_tables_sees_no_test_row_either(
    version: Version, store: Address, login: Callable[..., str], sessions: Callable[..., Any]
) -> None:
    """``pg_read_all_data`` opens the table of the partition, which shows nothing on its own."""
    session = sessions(login(store, "forge_tuner", "pg_read_all_data"))
    assert "test" not in counts(session)
    rows = session.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(version.partition))).fetchone()
    assert rows == (0,)


def test_a_line_of_the_ledger_shows_the_test_rows_once_it_is_committed(
    version: Version, store: Address, login: Callable[..., str], sessions: Callable[..., Any]
) -> None:
    """Not before, not after it was rolled back, and not to another session of the same login."""
    url = login(store, "forge_confirm")
    session, other = sessions(url), sessions(url)
    assert "test" not in counts(session)
    with session.transaction(force_rollback=True):
        note(session, version)
        assert "test" not in counts(session)
    assert "test" not in counts(session)
    note(session, version)
    assert counts(session) == version.row_counts
    assert "test" not in counts(other)


def test_a_line_is_for_one_version(
    version: Version, store: Address, folder: Path, login: Callable[..., str], sessions: Callable[..., Any]
) -> None:
    other = put({**SECTION, "version": "fraud_v2"}, folder, 3, store)
    session = sessions(login(store, "forge_confirm"))
    note(session, version)
    query = "SELECT DISTINCT dataset_version FROM training_features WHERE split = 'test'"
    assert session.execute(query).fetchall() == [(version.version_id,)]
    note(session, other)
    assert len(session.execute(query).fetchall()) == 2


def test_nobody_writes_a_line_for_another_session(
    version: Version, store: Address, login: Callable[..., str], sessions: Callable[..., Any]
) -> None:
    """Who, when, in which session and of what content is what the server says."""
    session = sessions(login(store, "forge_confirm"))
    said = {"backend": "1", "transaction": "1", "db_user": "'me'", "looked_at": "now()", "digest": "''"}
    for column, value in {**said, "version_name": "'another'"}.items():
        with pytest.raises(errors.InsufficientPrivilege):
            session.execute(
                f"INSERT INTO test_looks (dataset_version, run, purpose, who, {column})"
                f" VALUES ({version.version_id}, '', 'a look', 'me', {value})"
            )


def test_a_look_leaves_one_line_with_its_run_and_purpose(
    version: Version,
    store: Address,
    login: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The store counts the looks of every machine; the file of this one is a second record."""
    url = login(store, "forge_tuner", "forge_confirm")
    monkeypatch.setenv("FORGE_SWEEP_DATABASE_URL", url)
    dataset = get(version)
    assert dataset.count_looks(tmp_path / "looks.jsonl") == 0
    test = dataset.look_at_test("final score of fraud", tmp_path / "looks.jsonl", run="0123abc")
    assert len(test.features) == version.row_counts["test"]
    lines = ask(store.conninfo, "SELECT version_name, digest, run, purpose, db_user FROM test_looks")
    assert lines == [("fraud_v1", version.digest, "0123abc", "final score of fraud", Address.parse(url).login)]
    assert dataset.count_looks(tmp_path / "on_another_machine.jsonl") == 1


# Who may what


def test_a_login_with_no_more_rights_than_it_needs_gives_no_warning(
    version: Version, store: Address, login: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGE_SWEEP_DATABASE_URL", login(store, "forge_tuner", "forge_confirm"))
    assert get(version).warnings == ()


def test_a_superuser_is_warned_by_name(version: Version, store: Address) -> None:
    (warning,) = get(version).warnings
    assert f"{store.login} is a superuser" in warning


@pytest.mark.parametrize(("setting", "what"), [("BYPASSRLS", "bypasses row-level security"), (None, "owns")])
def test_other_logins_that_need_no_ledger_are_warned_too(
    setting: str | None,
    what: str,
    owned: Address,
    folder: Path,
    server: str,
    login: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    version = put(SECTION, folder, 3, owned)
    url = login(owned, "forge_tuner", "forge_confirm") if setting else owned.conninfo
    name = Address.parse(url).login
    run_sql(server, f"ALTER ROLE {name} {setting}" if setting else f"GRANT forge_tuner, forge_confirm TO {name}")
    monkeypatch.setenv("FORGE_SWEEP_DATABASE_URL", url)
    (warning,) = get(version).warnings
    assert f"{name} {what}" in warning


@pytest.mark.parametrize(("roles", "needed"), [((), "forge_tuner"), (("forge_confirm",), "forge_tuner")])
def test_a_login_without_the_role_is_told_what_to_grant(
    roles: tuple[str, ...],
    needed: str,
    version: Version,
    store: Address,
    login: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = login(store, *roles)
    monkeypatch.setenv("FORGE_SWEEP_DATABASE_URL", url)
    with pytest.raises(DataError, match=f'GRANT {needed} TO "forge_sweep_login_{os.getpid()}'):
        get(version)


def test_a_tuner_who_wants_test_rows_is_told_what_to_grant(
    version: Version, store: Address, login: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGE_SWEEP_DATABASE_URL", login(store, "forge_tuner"))
    dataset = get(version)
    with pytest.raises(DataError, match="GRANT forge_confirm TO"):
        dataset.look_at_test("a look", tmp_path / "looks.jsonl")
    assert ask(store.conninfo, "SELECT count(*) FROM test_looks") == [(0,)]


def test_a_login_without_any_right_gets_no_list_of_versions(
    version: Version, store: Address, login: Callable[..., str], folder: Path
) -> None:
    """Neither by dropping nor by ingesting; both say what to do."""
    nobody = Address.parse(login(store))
    for attempt in (
        lambda: drop(nobody, version.name),
        lambda: put({**SECTION, "version": "fraud_v2"}, folder, 3, nobody),
    ):
        with pytest.raises(DataError, match=r"(?s)may not read .*owner of the feature store"):
            attempt()
