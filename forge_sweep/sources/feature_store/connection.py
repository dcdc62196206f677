"""Connections that outlive a restart of the server, and that act in the role they are meant for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from forge_sweep.errors import DataError, StoreDown

if TYPE_CHECKING:
    import psycopg
    import tenacity

    from forge_sweep.sources.feature_store.address import Address

T = TypeVar("T")

TUNER = "forge_tuner"
CONFIRM = "forge_confirm"
OLDEST_SERVER = 150_000
REVISION_TABLE = "alembic_version_forge_sweep"

FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 5.0
PATIENCE_S = 30.0
LOADS = 3

PASSING = (
    *("starting up", "shutting down", "recovery", "too many clients", "remaining connection slots"),
    *("Connection refused", "No such file", "timeout", "timed out", "server closed", "terminat", "reset by peer"),
    *("could not receive", "not yet accepting", "crash of another", "Name or service", "name resolution"),
)
"""Words of libpq and of the server for a state that passes; all else, such as a wrong password, will not."""

_log = logging.getLogger("forge_sweep")


def connect(address: Address, *, role: str | None = None, autocommit: bool = False) -> psycopg.Connection[Any]:
    """Connect, waiting up to half a minute for a server that restarts.

    Args:
        address: the database.
        role: the role to act in from here on, such as `TUNER`.
        autocommit: whether each statement is a transaction of its own.

    Raises:
        DataError: the server refuses: password, name of the database, role, or its version.
        StoreDown: nobody answers.
    """
    import psycopg

    try:
        connection = _attempts(PATIENCE_S)(_open, address, autocommit)
    except psycopg.OperationalError as error:
        refusal = _refusal(address, error)
    else:
        return _ready(connection, role)
    raise refusal  # not where the error was caught, which would keep it, and with it psycopg's variables: the password


def retrying(work: Callable[[], T]) -> T:
    """What ``work`` gives; it begins again from nothing where it loses its connection, three times in all.

    Args:
        work: opens its own connections, and gives everything or raises.

    Raises:
        StoreDown: the connection was lost each time, or the server gave up, as by a time-out that it is set to.
    """
    import psycopg
    import tenacity

    again = _waiting(stop=tenacity.stop_after_attempt(LOADS), retry=tenacity.retry_if_exception(connection_was_lost))
    try:
        return again(work)
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        if connection_was_lost(error):
            what, hint = f"broke off {LOADS} times", "run the same command again"
        else:
            what, hint = "gave up", "raise the limit of the server or of the login, and run the same command again"
        raise StoreDown(f"the feature store {what}: {words(error)}", hint=hint) from None


def connection_was_lost(error: BaseException) -> bool:
    """Whether the statement may succeed on another connection: the server went away in its midst."""
    import psycopg

    if isinstance(error, psycopg.errors.AdminShutdown | psycopg.errors.CrashShutdown | psycopg.InterfaceError):
        return True
    return isinstance(error, psycopg.OperationalError) and (error.sqlstate is None or error.sqlstate.startswith("08"))


def words(error: Exception) -> str:
    """The first line that libpq or the server said; neither repeats a password."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def require_schema(connection: psycopg.Connection[Any]) -> None:
    """Raise DataError where the tables are missing, out of reach, or of another version of forge_sweep."""
    from forge_sweep.sources.feature_store.schema import HEAD

    if (found := revision(connection)) != HEAD:
        database = connection.info.dbname
        seen = f"tables of revision {found}" if found else "no tables of forge_sweep"
        raise DataError(
            f"database {database!r} has {seen}; expected revision {HEAD}",
            hint="run `forge-sweep data init` as the owner of the database",
        )


def revision(connection: psycopg.Connection[Any]) -> str | None:
    """The revision of the tables; None where there are none.

    Raises:
        DataError: the login may not read them.
    """
    import psycopg

    try:
        row = connection.execute("SELECT to_regclass(%s) IS NOT NULL", (REVISION_TABLE,)).fetchone()
        if row is None or not row[0]:
            return None
        found = connection.execute(f"SELECT version_num FROM {REVISION_TABLE}").fetchone()
        return None if found is None else str(found[0])
    except psycopg.errors.InsufficientPrivilege:
        login = connection.info.user
        raise DataError(
            f"{login} may not read the feature store in database {connection.info.dbname!r}",
            hint=f'as an administrator: GRANT {TUNER} TO "{login}"; or log in as the owner of the feature store',
        ) from None


def privileges(connection: psycopg.Connection[Any]) -> str | None:
    """Why the login could read test rows without a line in the ledger, or None where it could not."""
    row = connection.execute(
        "SELECT session_user, rolsuper, rolbypassrls, pg_has_role(session_user, c.relowner, 'MEMBER')"
        " FROM pg_roles, pg_class c WHERE rolname = session_user AND c.oid = to_regclass('training_features')"
    ).fetchone()
    if row is None:
        return None
    name, superuser, bypasses, owns = row
    words = {"is a superuser": superuser, "bypasses row-level security": bypasses, "owns training_features": owns}
    return next((f"{name} {what}" for what, holds in words.items() if holds), None)


def may_confirm(connection: psycopg.Connection[Any]) -> bool:
    """Whether the login may look at test rows, with a line in the ledger."""
    row = connection.execute("SELECT pg_has_role(session_user, %s, 'MEMBER')", (CONFIRM,)).fetchone()
    return row is not None and bool(row[0])


def _refusal(address: Address, error: psycopg.OperationalError) -> StoreDown | DataError:
    """What to raise for a connection that could not be opened."""
    if _passes(error):
        return StoreDown(
            f"the feature store at {address} does not answer: {words(error)}",
            hint="start the server or correct FORGE_SWEEP_DATABASE_URL, and run the same command again",
        )
    return DataError(
        f"the feature store at {address} refuses the connection: {words(error)}",
        hint="correct the name, password or database in FORGE_SWEEP_DATABASE_URL (or ~/.pgpass)",
    )


def _ready(connection: psycopg.Connection[Any], role: str | None) -> psycopg.Connection[Any]:
    """The connection, in its role; closed where it cannot be used."""
    try:
        _refuse_old(connection)
        if role is not None:
            _act_as(connection, role)
    except BaseException:
        connection.close()
        raise
    return connection


def _open(address: Address, autocommit: bool) -> psycopg.Connection[Any]:
    import psycopg

    return psycopg.connect(
        address.conninfo,
        autocommit=autocommit,
        **_defaults(address),
    )


def _defaults(address: Address) -> dict[str, Any]:
    """What the address does not say itself. Keepalives find out within a minute that a host went away."""
    from psycopg.conninfo import conninfo_to_dict

    ours = {"application_name": "forge-sweep", "connect_timeout": 10}
    ours |= {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
    stated = conninfo_to_dict(address.conninfo)
    return {name: value for name, value in ours.items() if name not in stated}


def _attempts(seconds: float) -> tenacity.Retrying:
    import psycopg
    import tenacity

    def passing(error: BaseException) -> bool:
        return isinstance(error, psycopg.OperationalError) and _passes(error)

    return _waiting(stop=tenacity.stop_after_delay(seconds), retry=tenacity.retry_if_exception(passing))


def _waiting(**settings: Any) -> tenacity.Retrying:
    """Attempts with exponential back-off, the last error raised as it is."""
    import tenacity

    def said(state: tenacity.RetryCallState) -> None:
        _log.info("the feature store does not answer; attempt %d follows", state.attempt_number + 1)

    wait = tenacity.wait_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S)
    return tenacity.Retrying(wait=wait, reraise=True, before_sleep=said, **settings)


def _passes(error: psycopg.OperationalError) -> bool:
    text = str(error)
    if "authentication failed" in text or "does not exist" in text.replace("No such file", ""):
        return False
    return any(word in text for word in PASSING)


def _refuse_old(connection: psycopg.Connection[Any]) -> None:
    if connection.info.server_version < OLDEST_SERVER:
        version = connection.info.server_version // 10_000
        raise DataError(f"the server is PostgreSQL {version}; expected 15 or newer", hint="upgrade the server")


def _act_as(connection: psycopg.Connection[Any], role: str) -> None:
    """SET ROLE, for the session."""
    import psycopg
    from psycopg import sql

    try:
        connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
        if not connection.autocommit:
            connection.commit()
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.InvalidParameterValue) as error:
        if isinstance(error, psycopg.errors.InvalidParameterValue):
            raise DataError(f"the server has no role {role}", hint="run `forge-sweep data init` as the owner") from None
        login = connection.info.user
        raise DataError(
            f"{login} may not act as {role}, the role that {PURPOSES[role]}",
            hint=f'as an administrator: GRANT {role} TO "{login}"',
        ) from None


PURPOSES = {
    TUNER: "reads the training and validation rows",
    CONFIRM: "may look at the test rows, with a line in the ledger for each look",
}
