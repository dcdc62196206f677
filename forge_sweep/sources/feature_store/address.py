"""Where the feature store is, without ever showing how to get in."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, field
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

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
        url = os.environ.get(VARIABLE, "").strip()
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
        if importlib.util.find_spec("psycopg") is None or importlib.util.find_spec("alembic") is None:
            raise MissingExtra('data.source = "postgres"', "postgres")
        import psycopg
        from psycopg.conninfo import conninfo_to_dict

        scheme, _, rest = url.partition("://")
        conninfo = f"postgresql://{rest}"
        try:
            understood = scheme in SCHEMES and bool(conninfo_to_dict(conninfo)) and _port(urlsplit(conninfo))
        except (psycopg.ProgrammingError, ValueError):
            understood = False
        if not understood:
            raise DataError(
                f"{VARIABLE} is no PostgreSQL URL (it is not repeated here: it may hold a password)",
                hint=f"write it as {EXAMPLE}, with %-escapes for signs such as / @ : # ? % in name and password",
            )
        return cls(conninfo)

    @property
    def masked(self) -> str:
        """The address without password and query."""
        parts = urlsplit(self.conninfo)
        login, at, host = parts.netloc.rpartition("@")
        return urlunsplit(("postgresql", f"{login.partition(':')[0]}{at}{host}", parts.path, "", ""))

    @property
    def login(self) -> str:
        """The user name in the URL, or ""."""
        return unquote(urlsplit(self.conninfo).username or "")

    @property
    def sqlalchemy_url(self) -> str:
        """The URL for SQLAlchemy with psycopg 3, secrets included."""
        return self.conninfo.replace("postgresql://", "postgresql+psycopg://", 1)

    def __str__(self) -> str:
        return self.masked


def _port(parts: SplitResult) -> bool:
    """Whether the port is one; raises ValueError where it is none."""
    return parts.port is None or parts.port > 0
