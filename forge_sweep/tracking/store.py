"""Where MLflow writes: the address, the embedded SQLite store, and what its failures mean."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from forge_sweep.environment import without_credentials
from forge_sweep.errors import ForgeSweepError, InputError, TrackingDown, masked

if TYPE_CHECKING:
    from mlflow import MlflowClient

VARIABLE = "MLFLOW_TRACKING_URI"
LOCAL_UI = "http://127.0.0.1:5000"

ATTEMPTS = 3
"""Of a write that another process may be making at the same moment."""

_SERVERS = ("http", "https")
_BROKEN = re.compile(r"UNIQUE constraint failed|duplicate key value", re.IGNORECASE)
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")

# An outage must cost seconds: MLflow's own defaults (7 retries, 120 s) stop training for many minutes. A request is not
# repeated below us, because a repeated create-run makes a second run; our journal repeats safely.
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "PGCONNECT_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


def default_uri(store: Path) -> str:
    """The tracking address: ``MLFLOW_TRACKING_URI`` as it is where set, else SQLite in ``store``.

    Args:
        store: the folder of the embedded stores, usually ``mlruns``.

    Raises:
        InputError: the variable names a file store or a scheme MLflow does not know.
    """
    declared = os.environ.get(VARIABLE, "").strip()
    if not declared:
        if (path := store.absolute() / "mlflow.db").is_dir():  # MLflow would try for minutes to open it
            raise InputError(f"{path} is a folder, not a database", hint="remove it, or give another --store")
        return f"sqlite:///{path}"
    _check(declared)
    return declared


def existing_uri(store: Path) -> str:
    """`default_uri`, for those who only read: nothing is made where nothing was ever stored.

    Raises:
        InputError: there is no store, or see `default_uri`.
    """
    uri = default_uri(store)
    path = sqlite_path(uri)
    if path is not None and not path.exists():
        raise InputError(f"there is no MLflow store at {path}", hint=f"give --store, or set {VARIABLE}")
    return uri


def prepare_store(uri: str, store: Path) -> None:
    """Create the store's folder and, for a direct database, its schema; once, however many processes call this.

    Several processes that open a new SQLite store at once corrupt it for good, so the schema is made under a lock in a
    file beside it that is renamed when complete: a store that exists is a whole store, even after a kill.
    """
    from filelock import FileLock

    store.mkdir(parents=True, exist_ok=True)
    if (path := sqlite_path(uri)) is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists() or not path.stat().st_size:
                _create_sqlite(path, store)
    elif is_database(uri):
        with FileLock(str(store / ".mlflow-schema.lock")):
            _create_schema(uri, store)


def connect(uri: str, store: Path) -> MlflowClient:
    """A client for the store, created first where it has to be."""
    _quiet()
    from mlflow import MlflowClient

    _probe(uri)
    prepare_store(uri, store)
    return MlflowClient(uri, os.environ.get("MLFLOW_REGISTRY_URI") or uri)


def is_database(uri: str) -> bool:
    """Whether the client writes to a database itself, not through a server."""
    return _scheme(uri) in _DATABASES


def artifact_location(uri: str, store: Path, folder: str) -> str | None:
    """Where a new experiment's artifacts go; None leaves it to the server."""
    return (store.absolute() / "artifacts" / folder).as_uri() if is_database(uri) else None


def ui_address(uri: str) -> str:
    """The address of the UI: the server itself, or the one that ``forge-sweep ui`` starts."""
    return without_credentials(uri).rstrip("/") if _scheme(uri) in _SERVERS else LOCAL_UI


@contextmanager
def current(uri: str) -> Iterator[None]:
    """Make `uri` the process's tracking address for a while.

    Only for registering: MLflow's registry on a database looks the model up there, whatever its client was given.
    """
    from mlflow.tracking._tracking_service.utils import _use_tracking_uri

    before = os.environ.get(VARIABLE)
    try:
        with _use_tracking_uri(uri):
            yield
    finally:
        if before is not None:  # MLflow takes it away
            os.environ[VARIABLE] = before


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn what MLflow raises into one of two things the caller can act on.

    Args:
        what: the write, for the message.

    Raises:
        TrackingDown: the store cannot be reached; the same write may succeed later.
        InputError: the store refused the write and will refuse it again.
    """
    _quiet()
    from mlflow.exceptions import MlflowException

    try:
        yield
    except ForgeSweepError:
        raise
    except Exception as error:
        if _is_outage(error):
            raise TrackingDown(_one_line(error)) from error
        if _is_missing_driver(error):
            hint = (
                "install the driver; for postgresql+psycopg://, in a checkout of forge-sweep: pip install '.[postgres]'"
            )
            raise InputError(f"{VARIABLE} needs a package: {_one_line(error)}", hint=hint) from error
        if isinstance(error, MlflowException):
            raise InputError(f"MLflow refused {what}: {_one_line(error)}", hint=_hint(error)) from error
        raise


def surely(write: Callable[[], object]) -> None:
    """Make a write that may be made twice, and that another process may be making at the same moment.

    MLflow looks for a tag or an alias and then inserts it: where two processes do, one breaks a unique constraint, and
    finds the row when it tries again.
    """
    from mlflow.exceptions import MlflowException

    for left in reversed(range(ATTEMPTS)):
        try:
            write()
            return
        except MlflowException as error:
            if not left or not _BROKEN.search(str(error)):
                raise


def _check(uri: str) -> None:
    scheme = _scheme(uri)
    if scheme in ("", "file"):
        raise InputError(
            f"{VARIABLE} = {uri!r} is a file store, which MLflow refuses since 3.13",
            hint=f"unset it for the embedded store, or set sqlite:///{Path('mlruns').absolute() / 'mlflow.db'}",
        )
    if scheme not in (*_SERVERS, *_DATABASES, "databricks"):
        known = ", ".join(f"{each}://" for each in (*_SERVERS, *_DATABASES))
        raise InputError(f"{VARIABLE} has the scheme {scheme!r}; expected one of {known}", hint="correct the variable")
    try:
        host = urlsplit(uri).hostname
    except ValueError as error:
        raise InputError(f"{VARIABLE} is no address: {error}", hint="correct the variable") from None
    if scheme in _SERVERS and not host:
        raise InputError(f"{VARIABLE} = {masked(uri)!r} names no server", hint="set http://HOST:PORT")
    if uri.startswith("postgresql://") and importlib.util.find_spec("psycopg") is None:
        raise InputError(
            f"{VARIABLE} starts with postgresql://, which means psycopg 3 since SQLAlchemy 2.1; it is not installed",
            hint="write postgresql+psycopg://, with pip install '.[postgres]' in a checkout of forge-sweep, or name the "
            "driver you have",
        )


def _scheme(uri: str) -> str:
    """``postgresql`` for ``postgresql+psycopg://...``; "" for a path."""
    if uri == "databricks":
        return uri
    found = re.match(r"([a-z][a-z0-9]+)(?:\+[a-z0-9_]+)?:", uri, flags=re.IGNORECASE)
    return found.group(1).lower() if found else ""


def sqlite_path(uri: str) -> Path | None:
    """The file of an SQLite store; None for any other store."""
    if _scheme(uri) != "sqlite":
        return None
    from sqlalchemy.engine import make_url

    database = make_url(uri).database
    return Path(database).absolute() if database and database != ":memory:" else None


def _create_sqlite(path: Path, store: Path) -> None:
    new = path.with_name(f".{path.name}.new")
    for leftover in path.parent.glob(f"{new.name}*"):
        leftover.unlink()
    _create_schema(f"sqlite:///{new}", store)
    # Write-ahead logging is kept in the file: small writes cost half and a reading UI does not block writers.
    with closing(sqlite3.connect(new)) as database:
        database.execute("PRAGMA journal_mode=WAL")
    new.replace(path)


def _create_schema(uri: str, store: Path) -> None:
    _quiet()
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    made = SqlAlchemyStore(uri, (store.absolute() / "artifacts").as_uri())  # type: ignore[no-untyped-call]
    made.engine.dispose()


def _probe(uri: str) -> None:
    """Connect once to a database server: MLflow itself tries for 100 s before it says that nobody answers."""
    if is_database(uri) and _scheme(uri) != "sqlite":
        import sqlalchemy

        engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
        engine.connect().close()


def _quiet() -> None:
    """MLflow's defaults for a program that prints its own messages; what the user set stays."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    # It logs a traceback for each failed write to a database; we say once that the store is down.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def _is_outage(error: Exception) -> bool:
    """Whether the same write may succeed later: no connection, 5xx, 429, a locked or full database, a full disk."""
    import requests
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return _is_mlflow_outage(error)
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code >= 500 or error.response.status_code in (408, 429)
    if isinstance(error, OSError) or _is_broken_database(error):
        return True
    # Artifact stores raise their own; which of them pass is unknown, so they are tried again.
    return type(error).__module__.partition(".")[0] in ("boto3", "botocore", "azure", "google", "urllib3")


def _is_mlflow_outage(error: Exception) -> bool:
    from mlflow.exceptions import MlflowException

    assert isinstance(error, MlflowException)
    if "out-of-date database schema" in str(error):
        return False
    status: int = error.get_http_status_code()  # type: ignore[no-untyped-call]
    return (status >= 500 and status != 501) or status == 429 or _is_broken_database(error.__cause__)


def _is_broken_database(error: BaseException | None) -> bool:
    """A failure of the database itself, not of the statement."""
    from sqlalchemy import exc

    statement = exc.IntegrityError | exc.ProgrammingError | exc.DataError
    return isinstance(error, exc.DBAPIError) and not isinstance(error, statement)


def _is_missing_driver(error: Exception) -> bool:
    from sqlalchemy.exc import NoSuchModuleError

    return isinstance(error, ModuleNotFoundError | NoSuchModuleError)


def _hint(error: Exception) -> str:
    if "out-of-date database schema" in str(error):
        return "the store belongs to another MLflow version: install that one, or `mlflow db upgrade` after a backup"
    return "correct what the message names; nothing else was changed"


def _one_line(error: Exception) -> str:
    """The cause in one line, credentials of a URL taken out."""
    from sqlalchemy.exc import DBAPIError

    cause = error.__cause__ if isinstance(error.__cause__, DBAPIError) else error
    text = str(cause.orig if isinstance(cause, DBAPIError) else cause).strip() or type(error).__name__
    return masked(text.splitlines()[0])[:400]
