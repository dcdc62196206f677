"""The tables and roles of the feature store, made and brought up to date."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_sweep.errors import DataError
from forge_sweep.feature_store.connection import CONFIRM, TUNER, connect, retrying

if TYPE_CHECKING:
    import psycopg

    from forge_sweep.feature_store.connection import Address

REVISION_TABLE = "alembic_version_forge_sweep"
HEAD = "0001"
"""The revision that this version of forge_sweep works with."""

INIT_LOCK = 4_702_111_234_570_001
PARTITION = "training_features_v"

ORPHANS = f"""
SELECT c.relname FROM pg_class c
WHERE c.relkind = 'r' AND pg_table_is_visible(c.oid) AND c.relname ~ '^{PARTITION}[0-9]+$'
    AND c.relname NOT IN (SELECT '{PARTITION}' || version_id FROM dataset_versions)
"""


def init(address: Address) -> str:
    """Create the tables and roles, or bring them up to date; safe to repeat, and from several places at once.

    Args:
        address: the database, as its owner.

    Returns:
        What was done, in a line.

    Raises:
        DataError: the login may not create what is missing; says what an administrator has to run.
        StoreDown: the server does not answer.
    """
    return retrying(lambda: _init(address))


def require_schema(connection: psycopg.Connection[Any]) -> None:
    """Raise DataError where the tables are missing, out of reach, or of another version of forge_sweep."""
    if (found := _revision(connection)) != HEAD:
        database = connection.info.dbname
        seen = f"tables of revision {found}" if found else "no tables of forge_sweep"
        raise DataError(
            f"database {database!r} has {seen}; expected revision {HEAD}",
            hint="run `forge-sweep data init` as the owner of the database",
        )


def _revision(connection: psycopg.Connection[Any]) -> str | None:
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


def _init(address: Address) -> str:
    import psycopg

    with connect(address) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (INIT_LOCK,))
        _create_roles(connection)
    with connect(address, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", (INIT_LOCK,))
        before = _revision(connection)
        try:
            _migrate(address, before)
        except psycopg.errors.InsufficientPrivilege as error:
            raise DataError(
                f"{connection.info.user} may not make tables in {address}: {error.diag.message_primary}",
                hint="run `forge-sweep data init` as the owner of the database",
            ) from None
        removed = _remove_orphans(connection)
    done = "is up to date" if before == HEAD else "is ready" if before is None else f"was upgraded from {before}"
    return f"the feature store at {address} {done} (revision {HEAD})" + (f"; {removed}" if removed else "")


def _create_roles(connection: psycopg.Connection[Any]) -> None:
    """The roles that are missing; they cannot log in, logins become members of them."""
    from psycopg import errors, sql

    found = {row[0] for row in connection.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE 'forge_%%'", ())}
    missing = [role for role in (TUNER, CONFIRM) if role not in found]
    try:
        for role in missing:
            # Roles belong to the whole server, on which another database may be made ready at the same time.
            with contextlib.suppress(errors.DuplicateObject, errors.UniqueViolation), connection.transaction():
                connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(role)))
    except errors.InsufficientPrivilege:
        raise DataError(
            f"{connection.info.user} may not create roles, and the server lacks {', '.join(missing)}",
            hint="as an administrator: " + "; ".join(f"CREATE ROLE {role} NOLOGIN" for role in missing),
        ) from None


def _migrate(address: Address, before: str | None) -> None:
    import sqlalchemy
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config, pool = Config(), sqlalchemy.NullPool
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    # Our own connection: SQLAlchemy's would have the password among its variables.
    engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=lambda: connect(address), poolclass=pool)
    try:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except CommandError:
        raise DataError(
            f"the feature store at {address} has tables of revision {before}, which this version of forge_sweep does "
            f"not know; expected {HEAD}",
            hint="use the version of forge_sweep that made them, or a newer one",
        ) from None
    except sqlalchemy.exc.DBAPIError as error:
        raise (error.orig or error) from None


def _remove_orphans(connection: psycopg.Connection[Any]) -> str:
    """Drop tables of rows that no version names; an ingest is one transaction, so there should be none."""
    from psycopg import sql

    names = [row[0] for row in connection.execute(ORPHANS)]
    for name in names:
        connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(name)))
    return f"removed {', '.join(names)}, which no version names" if names else ""
