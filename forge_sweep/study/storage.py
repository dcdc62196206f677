"""Where studies are kept, and the lock that lets one process at a time run a study."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_sweep.errors import InputError, MissingExtra, SweepStopped

if TYPE_CHECKING:
    from forge_sweep.study.rows import Storage

SQLITE = "sqlite:///"
LOCKED_TIMEOUT_S = 60


def storage_url(store: Path) -> str:
    """URL of the database that holds the studies.

    Args:
        store: folder of the embedded stores, such as ``mlruns``.

    Returns:
        ``FORGE_SWEEP_STORAGE`` where it is set, else SQLite in ``store``. It may hold a password: do not log it.
        Many machines and store folders may share the former, but each study must be run by one of them at a time: the
        lock of a run is a file in ``store``.
    """
    return os.environ.get("FORGE_SWEEP_STORAGE") or embedded_url(store)


def embedded_url(store: Path) -> str:
    """URL of the SQLite file in ``store``."""
    return f"{SQLITE}{store.resolve() / 'optuna.db'}"


def exists(url: str) -> bool:
    """Whether there is anything to read; a database server always counts as being there."""
    return not url.startswith(SQLITE) or Path(url.removeprefix(SQLITE)).exists()


def open_storage(url: str, store: Path) -> Storage:
    """Connect, and create the tables where they are missing.

    Several processes that create the tables of one new database at once break it, so that is done under a lock.

    Raises:
        InputError: ``FORGE_SWEEP_STORAGE`` names no database that can be used.
        MissingExtra: it names a PostgreSQL, and psycopg is not installed.
    """
    import optuna
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with creating(store):
            return _sqlite(url) if url.startswith("sqlite") else _server(url)
    except (ArgumentError, ImportError, SQLAlchemyError) as error:
        raise _unusable(url, error) from error


def _unusable(url: str, error: Exception) -> InputError:
    """What to say of a database that could not be opened: of its URL the scheme alone, the rest may hold a password."""
    scheme = url.partition(":")[0]
    if isinstance(error, ImportError) and scheme in ("postgresql", "postgresql+psycopg"):
        return MissingExtra(f"FORGE_SWEEP_STORAGE = {scheme}://...", "postgres")
    return InputError(
        f"the study database ({scheme}:...) cannot be used: {_words(error)}",
        hint="set FORGE_SWEEP_STORAGE to a reachable SQLAlchemy URL and install its driver, or unset it for SQLite",
    )


def _words(error: Exception | None) -> str:
    """What the server said, or the kind of error: a driver's own words may repeat a part of the URL."""
    said = re.search(r"FATAL: +(.+)", str(getattr(error, "orig", "")))
    return said.group(1) if said else type(error).__name__


def _sqlite(url: str) -> Storage:
    """SQLite that several processes of one machine can share.

    Optuna counts on ``SELECT ... FOR UPDATE``, which SQLite ignores: two workers would pop the same waiting trial
    (optuna#4002). BEGIN IMMEDIATE takes the write lock at the start of each transaction instead.
    """
    import sqlalchemy

    from forge_sweep.study.rows import Storage

    storage = Storage(url, engine_kwargs={"connect_args": {"timeout": LOCKED_TIMEOUT_S}})

    @sqlalchemy.event.listens_for(storage.engine, "connect")
    def set_pragmas(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions are begun below, not by the driver
        connection.execute("pragma journal_mode=wal")
        connection.execute("pragma synchronous=normal")

    @sqlalchemy.event.listens_for(storage.engine, "begin")
    def begin_immediate(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    storage.engine.dispose()  # drop the connection that was made before the hooks
    return storage


def _server(url: str) -> Storage:
    """A database server; a connection that broke while a trial trained is replaced before it is used.

    Connections are closed when the storage is dropped: a server has few of them.
    """
    import sqlalchemy

    from forge_sweep.study.rows import Storage

    storage = Storage(url, engine_kwargs={"pool_pre_ping": True})
    weakref.finalize(storage, storage.engine.dispose)

    # Optuna would speak of invalid data in a commit.
    @sqlalchemy.event.listens_for(storage.engine, "handle_error")
    def stop_the_sweep(context: sqlalchemy.ExceptionContext) -> None:
        unreachable = context.connection is None and isinstance(
            context.sqlalchemy_exception, sqlalchemy.exc.OperationalError
        )
        if (context.is_disconnect or unreachable) and not context.is_pre_ping:
            raise SweepStopped(
                f"the study database does not answer: {_words(context.sqlalchemy_exception)}",
                hint="once it does, run the same command again: finished trials stay finished",
            )

    return storage


@contextlib.contextmanager
def creating(store: Path) -> Iterator[None]:
    """The lock under which tables and studies are created."""
    from filelock import FileLock

    with FileLock(_lock_path(store, ".creating")):
        yield


@contextlib.contextmanager
def holding(store: Path, study_name: str) -> Iterator[None]:
    """The lock of the one process that runs a study; the operating system drops it when the process dies.

    It guards one machine and one store folder: on a shared database, processes of others are not seen.

    Raises:
        SweepStopped: another process holds it; the message names its pid.
    """
    from filelock import FileLock, Timeout

    path = _lock_path(store, study_name)
    lock, owner = FileLock(path, timeout=0), path.with_suffix(".owner")
    try:
        lock.acquire()
    except Timeout:
        holder = _read_owner(owner)
        raise SweepStopped(
            f"study {study_name} is being run by {holder}", hint="wait until it has ended, or stop that process"
        ) from None
    try:
        owner.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _lock_path(store: Path, name: str) -> Path:
    folder = store / "locks"  # no experiment can be called .creating: names begin with a letter or a digit
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.lock"


def _read_owner(path: Path) -> str:
    """``process 4711 on lab-3``, or a vaguer word in the instant before the holder has written it."""
    try:
        owner = json.loads(path.read_text())
    except (OSError, ValueError):
        return "another process"
    return f"process {owner['pid']} on {owner['host']}"
