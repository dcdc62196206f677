"""The MLflow client: tracking address, embedded SQLite store, and the meaning of failures."""

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
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from filelock import FileLock

from forge_sweep import addresses
from forge_sweep.errors import ForgeSweepError, InputError, TrackingDown, masked
from forge_sweep.tracking import artifacts
from forge_sweep.tracking.schema import CONTENT, refuse_other_schema

if TYPE_CHECKING:
    from mlflow import MlflowClient

_log = logging.getLogger("forge_sweep")

VARIABLE = "MLFLOW_TRACKING_URI"
EXISTS = "RESOURCE_ALREADY_EXISTS"
MISSING = "RESOURCE_DOES_NOT_EXIST"
ABSENT = (MISSING, "INVALID_PARAMETER_VALUE")  # a run, model, version or alias that does not exist

_SERVERS = ("http", "https")
_BROKEN = re.compile(r"UNIQUE constraint failed|duplicate key value", re.IGNORECASE)
_DAMAGED = re.compile(r"database disk image is malformed|file is not a database")
_OTHER_SCHEMA = "out-of-date database schema"
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
_ASYNC = "MLFLOW_ENABLE_ASYNC_LOGGING"


def default_uri(store: Path) -> str:
    """The tracking address: ``MLFLOW_TRACKING_URI`` if set, else SQLite in ``store``."""
    uri = addresses.variable(VARIABLE)
    if not uri:
        return embedded_uri(store)
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
        _check_server(uri)
    if scheme in _DATABASES:
        from sqlalchemy.exc import ArgumentError

        try:
            addresses.refuse_fleeting(uri, VARIABLE, "mlruns/mlflow.db")
        except (ArgumentError, ValueError) as error:
            hint = f"correct it; special characters of a password are written %40 and so on; or unset {VARIABLE}"
            raise InputError(f"{VARIABLE} is not a database address: {masked(uri)}", hint=hint) from error
    if uri.startswith("postgresql://") and importlib.util.find_spec("psycopg") is None:
        raise InputError(
            f"{VARIABLE} starts with postgresql://, which means psycopg 3 since SQLAlchemy 2.1; it is not installed",
            hint="in a checkout of forge-sweep: pip install '.[postgres]', then write postgresql+psycopg://; or name "
            "the driver you have",
        )
    return uri


def embedded_uri(store: Path) -> str:
    """The address of the store's own database."""
    return addresses.sqlite_url(store.absolute() / "mlflow.db")


def existing_uri(store: Path) -> str:
    """`default_uri` for readers, who create no store: InputError if there is none."""
    uri = default_uri(store)
    path = addresses.sqlite_file(uri)
    if path is not None and not path.exists():
        raise InputError(f"there is no MLflow store at {path}", hint=f"give --store, or set {VARIABLE}")
    return uri


def check_store(store: Path) -> None:
    """Check the tracking address before training starts; a server that does not answer may come back."""
    uri = default_uri(store)
    if (path := addresses.sqlite_file(uri)) is not None:
        addresses.refuse_damaged(path, CONTENT)
        refuse_read_only(uri)
    with contextlib.suppress(TrackingDown), translated("the first request"):
        _probe(uri)


def prepare_store(uri: str, store: Path) -> None:
    """Create the store's folder and the schema of a database, or refuse a schema that MLflow would migrate.

    Concurrent first opens corrupt a new SQLite store for good, so the schema is created under a lock, in a file that is
    renamed when complete: a store that exists is complete, even after a kill.
    """
    if (path := addresses.sqlite_file(uri)) is not None and addresses.is_read_only(path):
        return
    store.mkdir(parents=True, exist_ok=True)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists() or not path.stat().st_size:
                new = path.with_name(f".{path.name}.new")
                for leftover in path.parent.glob(f"{new.name}*"):
                    leftover.unlink()
                _create_schema(addresses.sqlite_url(new), store)
                # Write-ahead logging is kept in the file: small writes cost half, a reading UI does not block writers.
                with closing(sqlite3.connect(new)) as database:
                    database.execute("PRAGMA journal_mode=WAL")
                new.replace(path)
        refuse_other_schema(uri)
    elif _scheme(uri) in _DATABASES:
        with FileLock(str(store / ".mlflow-schema.lock")):
            refuse_other_schema(uri)
            _create_schema(uri, store)


def connect(uri: str, store: Path, *, reading: bool = False) -> MlflowClient:
    """A client for the store, which is created if it does not exist; to read a read-only one, a copy is opened."""
    _quiet()
    from mlflow import MlflowClient

    _refuse_other_registry(uri)
    if (path := addresses.sqlite_file(uri)) is not None:
        addresses.refuse_damaged(path, CONTENT)
    _probe(uri)
    prepare_store(uri, store)
    if not reading:
        refuse_read_only(uri)
    address = readable(uri)
    return MlflowClient(address, address)


def _refuse_other_registry(uri: str) -> None:
    """A version refers to the run and the files of the store in which it is registered."""
    other = addresses.variable("MLFLOW_REGISTRY_URI")
    if other and other.rstrip("/") != uri.rstrip("/"):
        raise InputError(
            f"MLFLOW_REGISTRY_URI = {masked(other)} is another store than that of the runs, {masked(uri)}",
            hint="unset it: models are registered where their runs are",
        )


def state(store: Path) -> str:
    """Where runs go and of which schema that is, in a sentence; no store is made.

    Raises:
        InputError: it is damaged, cannot be written, has another schema than the installed MLflow's, or is none.
        TrackingDown: it does not answer.
    """
    uri = default_uri(store)
    _refuse_other_registry(uri)
    if (path := addresses.sqlite_file(uri)) is not None:
        addresses.refuse_damaged(path, CONTENT)
        refuse_read_only(uri)
        if not path.exists():
            addresses.refuse_unwritable(path.parent)
            return f"{path} does not exist yet; the first run makes it"
    with translated("the first request"):
        _probe(uri)
        if _scheme(uri) not in _DATABASES:
            return (
                f"{masked(uri)} answers as MLflow; its schema is up to it, and whether it may be written was not tried"
            )
        schema = refuse_other_schema(uri)
    return f"{path or masked(uri)} has " + (f"schema {schema}" if schema else "no tables yet; the first run makes them")


_synced_at_ends: set[str] = set()


def sync_at_ends(uri: str) -> None:
    """Stop new connections of this process to an SQLite store from waiting for the disk after each transaction.

    That took half of the time of a write. With a write-ahead log, a kill loses nothing; a loss of power may take what
    was committed since the last `sync`.
    """
    import sqlalchemy

    if (path := addresses.sqlite_file(uri)) is not None:
        _synced_at_ends.add(os.path.realpath(path))
        if not sqlalchemy.event.contains(sqlalchemy.Engine, "connect", _set_synchronous):
            sqlalchemy.event.listen(sqlalchemy.Engine, "connect", _set_synchronous)


def sync(uri: str) -> None:
    """Wait until everything that was committed to an SQLite store is on the disk: see `sync_at_ends`."""
    if (path := addresses.sqlite_file(uri)) is not None:
        # SQLite's locks are on the database and the index of the log: closing the log itself drops none of them.
        with contextlib.suppress(FileNotFoundError), open(f"{path}-wal", "rb+") as log:
            os.fsync(log.fileno())


def _set_synchronous(connection: Any, _: object) -> None:
    if not isinstance(connection, sqlite3.Connection):
        return
    with contextlib.suppress(sqlite3.Error):  # a locked or damaged file is reported by the first statement
        path = connection.execute("PRAGMA database_list").fetchone()[2]
        ours = os.path.realpath(path) in _synced_at_ends
        if ours and connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
            connection.execute("PRAGMA synchronous = NORMAL")


def refuse_read_only(uri: str) -> None:
    """Raise InputError if an SQLite store cannot be written."""
    if (path := addresses.sqlite_file(uri)) is not None and addresses.is_read_only(path):
        raise addresses.unwritable(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def readable(uri: str) -> str:
    """The address itself; for a read-only SQLite store, that of a copy."""
    path = addresses.sqlite_file(uri)
    return uri if path is None or not addresses.is_read_only(path) else addresses.sqlite_url(addresses.to_read(path))


def artifact_location(uri: str, store: Path, folder: str) -> str | None:
    """Where the artifacts of a new experiment go; None leaves it to the server."""
    if _scheme(uri) not in _DATABASES:
        return None
    if uri == embedded_uri(store):
        if artifacts.is_installed():
            return artifacts.location(folder)
        _log.warning(
            "this installation of forge-sweep is older than its code: artifacts are named by the absolute path of %s, "
            "which therefore must not be moved or copied; install it again (pip install -e .)",
            store,
        )
    return (store.absolute() / "artifacts" / folder).as_uri()


def refuse_moved(location: str, uri: str, store: Path) -> None:
    """Refuse an experiment of a copied store of an older version, whose artifacts would be written to the original."""
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


@contextmanager
def current(uri: str) -> Iterator[None]:
    """Make `uri` the process's address, at which MLflow resolves models whatever address its client was given."""
    import mlflow

    declared = os.environ.pop(VARIABLE, None)  # so that what is set by other means can be told from it
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None  # type: ignore[no-untyped-call]
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None forgets it
        os.environ.pop(VARIABLE, None)  # MLflow exports what it is given
        if declared is not None:
            os.environ[VARIABLE] = declared


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn what MLflow raises for the request `what` into one of two errors that the caller can handle.

    Raises:
        TrackingDown: the store is unreachable; the same request may succeed later.
        InputError: the store refused the request and will refuse it again.
    """
    _quiet()
    from sqlalchemy.exc import NoSuchModuleError

    try:
        yield
    except ForgeSweepError:
        raise
    except Exception as error:
        if _is_outage(error):
            raise TrackingDown(_one_line(error)) from error
        if isinstance(error, ModuleNotFoundError | NoSuchModuleError):
            hint = (
                "install the driver; for postgresql+psycopg://, in a checkout of forge-sweep: pip install '.[postgres]'"
            )
            raise InputError(f"{VARIABLE} needs a package: {_one_line(error)}", hint=hint) from error
        if _DAMAGED.search(str(error)):
            hint = "put a backup back, or move the file away; forge-sweep status names it"
            raise InputError(f"MLflow's database is damaged: {_one_line(error)}", hint=hint) from error
        if _status(error) is not None:
            hint = (
                "the store belongs to another MLflow version: install that one, or `mlflow db upgrade` after a backup"
                if _OTHER_SCHEMA in str(error)
                else "correct what the message names; nothing else was changed"
            )
            raise InputError(f"MLflow refused {what}: {_one_line(error)}", hint=hint) from error
        raise


class tolerating:
    """Suppress MLflow's errors with these codes within the context."""

    def __init__(self, *codes: str) -> None:
        self._codes = codes

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, at: object) -> bool:
        from mlflow.exceptions import MlflowException

        return isinstance(error, MlflowException) and error.error_code in self._codes


def is_locked_out(error: BaseException | None) -> bool:
    """Whether the login was refused, not the request."""
    return _status(error) in _LOCKED_OUT


def surely(write: Callable[[], object]) -> None:
    """Make a write that another process may be making at the same moment.

    MLflow looks a tag or an alias up and then inserts it. Of two processes, one violates a unique constraint; it finds
    the row when it retries.
    """
    from mlflow.exceptions import MlflowException

    for left in (2, 1, 0):
        try:
            write()
            return
        except MlflowException as error:
            if not left or not _BROKEN.search(str(error)):
                raise


def every(search: Callable[..., Any], *words: Any) -> list[Any]:
    """All pages of one of MLflow's searches, in a list, since the caller may change what the search tests."""
    page = search(*words)
    found = list(page)
    while page.token:
        page = search(*words, page_token=page.token)
        found += page
    return found


def text_of(client: MlflowClient, run_id: str, path: str) -> str | None:
    """The text of a run's artifact; None if it does not exist."""
    if path not in {file.path for file in client.list_artifacts(run_id, path.rpartition("/")[0] or None)}:
        return None
    with TemporaryDirectory(prefix="forge-sweep-") as folder:
        return Path(client.download_artifacts(run_id, path, folder)).read_text(encoding="utf-8")


def _check_server(uri: str) -> None:
    try:
        parts = urlsplit(uri)
        port, host = parts.port, parts.hostname
    except ValueError as error:
        raise InputError(f"{VARIABLE} = {masked(uri)!r}: {error}", hint="write http://HOST:PORT") from None
    if not host or port == 0 or any(letter.isspace() for letter in uri) or not uri.split(":", 1)[1].startswith("//"):
        raise InputError(f"{VARIABLE} = {masked(uri)!r} names no host and port", hint="write http://HOST:PORT")
    if parts.query or parts.fragment:
        hint = "give the address of the server, without the page that the browser shows"
        raise InputError(f"{VARIABLE} = {masked(uri)!r} is the address of a page", hint=hint)


def _scheme(uri: str) -> str:
    """``postgresql`` for ``postgresql+psycopg://...``; "" for a path."""
    if uri == "databricks":
        return uri
    found = re.match(r"([a-z][a-z0-9]+)(?:\+[a-z0-9_]+)?:", uri, flags=re.IGNORECASE)
    return found.group(1).lower() if found else ""


def _create_schema(uri: str, store: Path) -> None:
    _quiet()
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    made = SqlAlchemyStore(uri, (store.absolute() / "artifacts").as_uri())  # type: ignore[no-untyped-call]
    made.engine.dispose()


def _probe(uri: str) -> None:
    """One attempt: MLflow itself retries a database for 100 s, and takes a login page for a server that is down."""
    scheme = _scheme(uri)
    if scheme in _SERVERS:
        _ask(uri)
    elif scheme in _DATABASES and scheme != "sqlite":
        import sqlalchemy

        sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool).connect().close()


def _quiet() -> None:
    """Set defaults of MLflow for a program that prints its own messages; what the user set stays."""
    for name, value in _DEFAULTS.items():
        os.environ[name] = addresses.variable(name) or value
    # A promotion that waits in a thread is one that got lost.
    if (found := addresses.variable(_ASYNC)).lower() not in ("", "false", "0"):
        _log.warning("%s=%s is overridden with false: every write is read back at once", _ASYNC, found)
    os.environ[_ASYNC] = "false"
    # MLflow logs a traceback for each failed database write; we report an outage once.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def _is_outage(error: Exception) -> bool:
    """Whether the same write may succeed later: no connection, 5xx, 429, a locked or full database, a full disk."""
    if _OTHER_SCHEMA in str(error) or _DAMAGED.search(str(error)):
        return False
    if (status := _status(error)) is not None:
        passes = (status >= 500 and status != 501) or status in _PASSING
        return passes or _is_broken_database(error.__cause__)
    if isinstance(error, OSError) or _is_broken_database(error):
        return True
    # Artifact stores raise errors of their own; which of them pass is unknown, so they are retried.
    return type(error).__module__.partition(".")[0] in ("boto3", "botocore", "azure", "google", "urllib3")


def _status(error: BaseException | None) -> int | None:
    """The HTTP status of an error of MLflow or of an artifact store; None for any other."""
    import requests
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return int(error.get_http_status_code())  # type: ignore[no-untyped-call]
    answer = error.response if isinstance(error, requests.HTTPError) else None
    return None if answer is None else answer.status_code


def _is_broken_database(error: BaseException | None) -> bool:
    """A failure of the database itself, not of the statement."""
    from sqlalchemy import exc

    statement = exc.IntegrityError | exc.ProgrammingError | exc.DataError
    return isinstance(error, exc.DBAPIError) and not isinstance(error, statement)


def _one_line(error: Exception) -> str:
    """The cause in one line, credentials of a URL masked."""
    from sqlalchemy.exc import DBAPIError

    cause = error.__cause__ if isinstance(error.__cause__, DBAPIError) else error
    text = str(cause.orig if isinstance(cause, DBAPIError) else cause).strip() or type(error).__name__
    return masked(text.splitlines()[0])[:400]


def _ask(uri: str) -> None:
    """Request the server's first experiment; raises InputError, or TrackingDown where a retry may help."""
    import requests
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        answer = http_request(  # type: ignore[no-untyped-call]
            get_default_host_creds(uri),  # type: ignore[no-untyped-call]
            "/api/2.0/mlflow/experiments/get",
            "GET",
            max_retries=0,
            timeout=10,
            raise_on_status=False,
            params={"experiment_id": "0"},
        )
    except (MlflowException, requests.RequestException, UnicodeError) as error:
        raise _unanswered(uri, error) from error
    code = answer.status_code
    if code in (408, 429) or code >= 500:
        raise TrackingDown(f"{masked(uri)} answers {code}")
    if code in _LOCKED_OUT:
        raise InputError(
            f"{VARIABLE} = {masked(uri)} refuses the login: it answers {code} {answer.reason}",
            hint="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to one that may "
            "write (a 403 of an MLflow server in a container: its --allowed-hosts)",
        )
    try:
        body = answer.json()
    except ValueError:
        body = None
    if isinstance(body, dict):
        experiment = body.get("experiment")
        if code == 200 and isinstance(experiment, dict) and "experiment_id" in experiment:
            return
        # The first experiment may have been deleted for good; MLflow answers with an error code.
        if code in (400, 404) and isinstance(body.get("error_code"), str) and "message" in body:
            return
    moved = f", from {masked(answer.url.partition('?')[0])}" if answer.history else ""
    kind = answer.headers.get("Content-Type", "").partition(";")[0] or "no type"
    said = " ".join(answer.text[:1000].split())[:80]
    raise InputError(
        f"{VARIABLE} = {masked(uri)} answers, but not as MLflow: {code} {answer.reason}, {kind}{moved}: {said!r}",
        hint=f"set {VARIABLE} to the MLflow server itself, with its path where it has one, and behind a login page to "
        "an address for programs",
    )


def _unanswered(uri: str, error: Exception) -> InputError | TrackingDown:
    causes: list[BaseException] = [error]
    for each in causes:  # grows: some hold their cause among their arguments only
        inner = (each.__cause__, each.__context__, getattr(each, "reason", None), *each.args)
        causes += [one for one in inner if isinstance(one, BaseException) and one not in causes]
    text = masked(" ".join(str(error).split()))[:300]
    names = {type(each).__name__ for each in causes}
    if names & {"SSLError", "SSLCertVerificationError"} and "EOF" not in text:
        return InputError(
            f"{VARIABLE} = {masked(uri)}: no secure connection: {text}",
            hint="write http:// for a server without TLS; for one with its own certificate authority set "
            "MLFLOW_TRACKING_SERVER_CERT_PATH",
        )
    if names & {"BadStatusLine", "LineTooLong", "HeaderParsingError", "TooManyRedirects", "UnknownProtocol"}:
        hint = f"set {VARIABLE} to the MLflow server: another service listens there, or it wants https://"
        return InputError(f"{VARIABLE} = {masked(uri)} answers, but not as MLflow: {text}", hint=hint)
    if names & {"InvalidURL", "LocationParseError", "LocationValueError", "InvalidHeader", "UnicodeError"}:
        return InputError(f"{VARIABLE} = {masked(uri)!r} cannot be asked: {text}", hint="write http://HOST:PORT")
    return TrackingDown(f"{masked(uri)} does not answer: {text}")
