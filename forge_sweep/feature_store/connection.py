"""Where the feature store is, and connections to it: they outlive a restart, and act in the role they are meant for."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from forge_sweep.errors import DataError, MissingExtra, StoreDown

if TYPE_CHECKING:
    import psycopg
    import tenacity

T = TypeVar("T")

VARIABLE = "FORGE_SWEEP_DATABASE_URL"
EXAMPLE = "postgresql://NAME:PASSWORD@HOST:5432/features"
SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")

TUNER = "forge_tuner"
CONFIRM = "forge_confirm"
PURPOSES = {
    TUNER: "reads the training and validation rows",
    CONFIRM: "may look at the test rows, with a line in the ledger for each look",
}
OLDEST_SERVER = 150_000

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


@dataclass(frozen=True)
class Address:
    """A PostgreSQL database. Shown without password and query, wherever it is printed.

    Attributes:
        conninfo: the libpq URI, secrets included; its query (``sslmode``, ``sslrootcert``, ``host``, ...) reaches libpq
            as it is.
    """

    conninfo: str = field(repr=False)

    @classmethod
    def from_environment(cls) -> Address:
        """The address in ``FORGE_SWEEP_DATABASE_URL``.

        Raises:
            DataError: the variable is not set, or holds no PostgreSQL URL.
            MissingExtra: psycopg is not installed.
        """
        url = Hidden(os.environ.get(VARIABLE, "").strip())
        if not url:
            raise DataError(
                f"{VARIABLE} is not set; expected the URL of the feature store",
                hint=f"export {VARIABLE}={EXAMPLE}; the password may be left to ~/.pgpass or PGPASSWORD",
            )
        return cls.parse(url)

    @classmethod
    def parse(cls, url: str) -> Address:
        """The address of a URL; errors repeat nothing of it, since any part may be a misplaced password.

        Raises:
            DataError: the URL is not a PostgreSQL URL.
            MissingExtra: psycopg is not installed.
        """
        url = Hidden(url)
        if importlib.util.find_spec("psycopg") is None or importlib.util.find_spec("alembic") is None:
            raise MissingExtra('data.source = "postgres"', "postgres")
        if not _understood(url):
            raise DataError(
                f"{VARIABLE} is not a PostgreSQL URL (not repeated here: it may hold a password)",
                hint=f"write it as {EXAMPLE}, with %-escapes for signs such as / @ : # ? % in name and password",
            )
        return cls(Hidden(f"postgresql://{url.partition('://')[2]}"))

    @property
    def masked(self) -> str:
        """The address without password and query."""
        login, at, place = _parts(self.conninfo)
        return f"postgresql://{login.partition(':')[0]}{at}{place}"

    @property
    def login(self) -> str:
        """The user name in the URL, or ""."""
        from psycopg.conninfo import conninfo_to_dict

        return str(conninfo_to_dict(self.conninfo).get("user") or "")

    def __str__(self) -> str:
        return self.masked


class Hidden(str):
    """Text that is not shown where a traceback shows variables."""

    def __repr__(self) -> str:
        return "'***'"


def _understood(url: str) -> bool:
    """Whether libpq takes the URL, and nothing of a password ends up in host, port or database."""
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        stated = conninfo_to_dict(f"postgresql://{url.partition('://')[2]}")
    except psycopg.ProgrammingError:
        return False
    ports = [port for port in str(stated.get("port", "")).split(",") if port]
    known = url.partition("://")[0] in SCHEMES and bool(stated)
    return known and all(map(str.isdecimal, ports)) and "@" not in _parts(url)[2]


def _parts(url: str) -> tuple[str, str, str]:
    """Login with password, ``@`` or "", and hosts with database, as libpq takes a URL apart.

    A login ends at the first ``@``, which stands before the first ``/``; any other sign may be part of a password.
    """
    authority, slash, path = url.partition("://")[2].partition("/")
    login, at, hosts = authority.partition("@") if "@" in authority else ("", "", authority)
    return login, at, f"{hosts}{slash}{path}".partition("?")[0]


def connect(
    address: Address, *, role: str | None = None, autocommit: bool = False, patience_s: float | None = None
) -> psycopg.Connection[Any]:
    """Connect, waiting for a server that restarts.

    Args:
        address: the database.
        role: the role to act in from here on, such as `TUNER`.
        autocommit: whether each statement is a transaction of its own.
        patience_s: how long to try again; default: `PATIENCE_S`.

    Raises:
        DataError: the server refuses: password, name of the database, role, or its version.
        StoreDown: the server does not answer.
    """
    import psycopg

    try:
        connection = _attempts(PATIENCE_S if patience_s is None else patience_s)(_open, address, autocommit)
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
        StoreDown: the connection was lost each time, or the server cancelled the statement, as by its time-out.
    """
    import psycopg
    import tenacity

    again = _waiting(stop=tenacity.stop_after_attempt(LOADS), retry=tenacity.retry_if_exception(_connection_was_lost))
    try:
        return again(work)
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        if _connection_was_lost(error):
            what, hint = f"lost the connection {LOADS} times", "run the same command again"
        else:
            what, hint = (
                "cancelled the statement",
                "raise the limit of the server or of the login, and run the same command again",
            )
        raise StoreDown(f"the feature store {what}: {words(error)}", hint=hint) from None


def _connection_was_lost(error: BaseException) -> bool:
    """Whether the statement may succeed on another connection: the connection was lost while it ran."""
    import psycopg

    if isinstance(error, psycopg.errors.AdminShutdown | psycopg.errors.CrashShutdown | psycopg.InterfaceError):
        return True
    return isinstance(error, psycopg.OperationalError) and (error.sqlstate is None or error.sqlstate.startswith("08"))


def words(error: Exception) -> str:
    """The first line that libpq or the server said; neither repeats a password."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


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
