"""Where the feature store is, without ever showing how to get in."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, field

from forge_sweep.errors import DataError, MissingExtra

VARIABLE = "FORGE_SWEEP_DATABASE_URL"
EXAMPLE = "postgresql://NAME:PASSWORD@HOST:5432/features"
SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")


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
            DataError: this is no PostgreSQL URL.
            MissingExtra: psycopg is not installed.
        """
        url = Hidden(url)
        if importlib.util.find_spec("psycopg") is None or importlib.util.find_spec("alembic") is None:
            raise MissingExtra('data.source = "postgres"', "postgres")
        if not _understood(url):
            raise DataError(
                f"{VARIABLE} is no PostgreSQL URL (it is not repeated here: it may hold a password)",
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
