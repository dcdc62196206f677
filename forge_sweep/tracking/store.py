"""Where MLflow writes: the address, the embedded SQLite store, and what its failures mean."""

from __future__ import annotations

import contextlib
import errno
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
from urllib.request import url2pathname

from forge_sweep.addresses import (
    is_read_only,
    refuse_damaged,
    refuse_fleeting,
    sqlite_file,
    sqlite_url,
    to_read,
    unwritable,
    variable,
)
from forge_sweep.environment import without_credentials
from forge_sweep.errors import ForgeSweepError, InputError, TrackingDown, masked
from forge_sweep.tracking import answering, artifacts

if TYPE_CHECKING:
    from mlflow import MlflowClient

_log = logging.getLogger("forge_sweep")

VARIABLE = "MLFLOW_TRACKING_URI"
LOCAL_UI = "http://127.0.0.1:5000"

WHAT = "MLflow's runs and models"

ATTEMPTS = 3
"""Of a write that another process may be making at the same moment."""

_SERVERS = ("http", "https")
_BROKEN = re.compile(r"UNIQUE constraint failed|duplicate key value", re.IGNORECASE)
_DAMAGED = re.compile(r"database disk image is malformed|file is not a database")
_LOCKED_OUT = (401, 403, 407)
_PASSING = (408, 425, 429)
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


# What is written is read back at once, by us and by others: a promotion that waits in a thread is one that got lost.
_FIXED = {"MLFLOW_ENABLE_ASYNC_LOGGING": "false"}


def default_uri(store: Path) -> str:
    """The tracking address: ``MLFLOW_TRACKING_URI`` as it is where set, else SQLite in ``store``.

    Args:
        store: the folder of the embedded stores, usually ``mlruns``.

    Raises:
        InputError: the variable names a file store, a database in memory, or what MLflow does not know.
    """
    declared = variable(VARIABLE)
    if not declared:
        return embedded_uri(store)
    _check(declared)
    return declared


def embedded_uri(store: Path) -> str:
    """The address of the store's own database."""
    return sqlite_url(store.absolute() / "mlflow.db")


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


def check_store(store: Path) -> None:
    """Before anything is trained: what the address answers, and whether the database is sound.

    A server that does not answer now may do so later: training goes on without it, and so does this.

    Raises:
        InputError: the address answers, but not as MLflow; the login is refused; the database is damaged.
    """
    uri = default_uri(store)
    _quiet()
    if (path := sqlite_path(uri)) is not None:
        refuse_damaged(path, WHAT)
        refuse_read_only(uri)
    with contextlib.suppress(TrackingDown), translated("the first request"):
        _probe(uri)


def prepare_store(uri: str, store: Path) -> None:
    """Create the store's folder and, for a direct database, its schema; once, however many processes call this.

    Several processes that open a new SQLite store at once corrupt it for good, so the schema is made under a lock in a
    file beside it that is renamed when complete: a store that exists is a whole store, even after a kill.
    """
    from filelock import FileLock

    if (path := sqlite_path(uri)) is not None and is_read_only(path):
        return
    store.mkdir(parents=True, exist_ok=True)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists() or not path.stat().st_size:
                _create_sqlite(path, store)
    elif is_database(uri):
        with FileLock(str(store / ".mlflow-schema.lock")):
            _create_schema(uri, store)


def connect(uri: str, store: Path, *, reading: bool = False) -> MlflowClient:
    """A client for the store, created first where it has to be.

    Args:
        uri: tracking address.
        store: folder of the embedded stores.
        reading: nothing will be written: of a store that cannot be, a client of a copy will do.
    """
    _quiet()
    from mlflow import MlflowClient

    _refuse_other_registry(uri)
    if (path := sqlite_path(uri)) is not None:
        refuse_damaged(path, WHAT)
    _probe(uri)
    prepare_store(uri, store)
    if not reading:
        refuse_read_only(uri)
    address = readable(uri)
    return MlflowClient(address, address)


def refuse_read_only(uri: str) -> None:
    """Raise InputError where an SQLite store cannot be written."""
    if (path := sqlite_path(uri)) is not None and is_read_only(path):
        raise unwritable(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def readable(uri: str) -> str:
    """The address itself; where an SQLite store cannot be written, that of a copy to read."""
    path = sqlite_path(uri)
    return uri if path is None or not is_read_only(path) else sqlite_url(to_read(path))


def _refuse_other_registry(uri: str) -> None:
    """A version names the run and the files of the store that it is registered in."""
    other = variable("MLFLOW_REGISTRY_URI")
    if other and other.rstrip("/") != uri.rstrip("/"):
        raise InputError(
            f"MLFLOW_REGISTRY_URI = {masked(other)} is another store than that of the runs, {masked(uri)}",
            hint="unset it: models are registered where their runs are",
        )


def is_database(uri: str) -> bool:
    """Whether the client writes to a database itself, not through a server."""
    return _scheme(uri) in _DATABASES


def artifact_location(uri: str, store: Path, folder: str) -> str | None:
    """Where a new experiment's artifacts go; None leaves it to the server.

    Those of the embedded store are named by their place in it, so that it can be copied and moved; those of another
    database, which does not move with them, by their path.
    """
    if not is_database(uri):
        return None
    if uri == embedded_uri(store) and artifacts.is_installed():
        return artifacts.location(folder)
    if uri == embedded_uri(store):
        _log.warning(
            "this installation of forge-sweep is older than its code: artifacts are named by the absolute path of %s, "
            "which therefore must not be moved or copied; install it again (pip install -e .)",
            store,
        )
    return (store.absolute() / "artifacts" / folder).as_uri()


def refuse_moved(location: str, uri: str, store: Path) -> None:
    """Refuse to write to an experiment whose artifacts would go to another store than the one that it is read from.

    Only those of older versions: see `artifact_location`.
    """
    if uri != embedded_uri(store) or not location.startswith("file:"):
        return
    there, here = Path(url2pathname(urlsplit(location).path)), store.absolute() / "artifacts"
    if not there.resolve().is_relative_to(here.resolve()):
        raise InputError(
            f"the store {store.absolute()} was copied or moved: this experiment's files belong in {there}, "
            "which an older version wrote into it as an absolute path",
            hint=f"move it back; or, where {there.parent.parent} is gone, link it: ln -s {store.absolute()} "
            f"{there.parent.parent}; or run under another name, which begins a new sweep",
        )


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
        if _DAMAGED.search(str(error)):
            hint = "put a backup back, or move the file away; forge-sweep status names it"
            raise InputError(f"MLflow's database is damaged: {_one_line(error)}", hint=hint) from error
        if isinstance(error, MlflowException):
            raise InputError(f"MLflow refused {what}: {_one_line(error)}", hint=_hint(error)) from error
        if _http_status(error) is not None:  # of an artifact
            raise InputError(f"MLflow refused {what}: {_one_line(error)}", hint=_hint(error)) from error
        raise


def is_locked_out(error: BaseException | None) -> bool:
    """Whether the store refused who asks, not what was asked: the same write succeeds with another login."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.get_http_status_code() in _LOCKED_OUT  # type: ignore[no-untyped-call]
    return _http_status(error) in _LOCKED_OUT


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
            hint=f"unset it for the embedded store, or set {embedded_uri(Path('mlruns'))}",
        )
    if scheme not in (*_SERVERS, *_DATABASES, "databricks"):
        known = ", ".join(f"{each}://" for each in (*_SERVERS, *_DATABASES))
        raise InputError(f"{VARIABLE} has the scheme {scheme!r}; expected one of {known}", hint="correct the variable")
    if scheme in _SERVERS:
        answering.check_address(uri, VARIABLE)
    if scheme in _DATABASES:
        _check_database(uri)
    if uri.startswith("postgresql://") and importlib.util.find_spec("psycopg") is None:
        raise InputError(
            f"{VARIABLE} starts with postgresql://, which means psycopg 3 since SQLAlchemy 2.1; it is not installed",
            hint="in a checkout of forge-sweep: pip install '.[postgres]', then write postgresql+psycopg://; or name "
            "the driver you have",
        )


def _check_database(uri: str) -> None:
    from sqlalchemy.exc import ArgumentError

    try:
        refuse_fleeting(uri, VARIABLE, "mlruns/mlflow.db")
    except (ArgumentError, ValueError) as error:
        hint = f"correct it; special characters of a password are written %40 and so on; or unset {VARIABLE}"
        raise InputError(f"{VARIABLE} is no address of a database: {masked(uri)}", hint=hint) from error


def _scheme(uri: str) -> str:
    """``postgresql`` for ``postgresql+psycopg://...``; "" for a path."""
    if uri == "databricks":
        return uri
    found = re.match(r"([a-z][a-z0-9]+)(?:\+[a-z0-9_]+)?:", uri, flags=re.IGNORECASE)
    return found.group(1).lower() if found else ""


def sqlite_path(uri: str) -> Path | None:
    """The file of an SQLite store; None for any other store."""
    return sqlite_file(uri)


def _create_sqlite(path: Path, store: Path) -> None:
    new = path.with_name(f".{path.name}.new")
    for leftover in path.parent.glob(f"{new.name}*"):
        leftover.unlink()
    _create_schema(sqlite_url(new), store)
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
    """Ask once: MLflow itself tries a database for 100 s, and takes a login page for a server that is down."""
    if _scheme(uri) in _SERVERS:
        answering.ask(uri, VARIABLE)
    if is_database(uri) and _scheme(uri) != "sqlite":
        import sqlalchemy

        engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
        engine.connect().close()


def _quiet() -> None:
    """MLflow's defaults for a program that prints its own messages; what the user set stays."""
    for name, value in _DEFAULTS.items():
        os.environ[name] = variable(name) or value
    for name, value in _FIXED.items():
        if (found := variable(name)).lower() not in ("", value, "0"):
            _log.warning("%s=%s is set to %s: what is written is read back at once", name, found, value)
        os.environ[name] = value
    # It logs a traceback for each failed write to a database; we say once that the store is down.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def _is_outage(error: Exception) -> bool:
    """Whether the same write may succeed later: no connection, 5xx, 429, a locked or full database, a full disk."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return _is_mlflow_outage(error)
    if (status := _http_status(error)) is not None:
        return status >= 500 or status in _PASSING
    if isinstance(error, OSError) or _is_broken_database(error):
        return True
    # Artifact stores raise their own; which of them pass is unknown, so they are tried again.
    return type(error).__module__.partition(".")[0] in ("boto3", "botocore", "azure", "google", "urllib3")


def _is_mlflow_outage(error: Exception) -> bool:
    from mlflow.exceptions import MlflowException

    assert isinstance(error, MlflowException)
    if "out-of-date database schema" in str(error) or _DAMAGED.search(str(error)):
        return False
    status: int = error.get_http_status_code()  # type: ignore[no-untyped-call]
    return (status >= 500 and status != 501) or status in _PASSING or _is_broken_database(error.__cause__)


def _http_status(error: BaseException | None) -> int | None:
    """The status of an HTTP answer that was no success; None for anything else."""
    import requests

    answer = error.response if isinstance(error, requests.HTTPError) else None
    return None if answer is None else answer.status_code


def _is_broken_database(error: BaseException | None) -> bool:
    """A failure of the database itself, not of the statement."""
    from sqlalchemy import exc

    statement = exc.IntegrityError | exc.ProgrammingError | exc.DataError
    if error is not None and _DAMAGED.search(str(error)):
        return False
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
