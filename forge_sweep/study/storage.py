"""Where studies are kept, and the lock that lets one process of a machine at a time run a study."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_sweep import addresses
from forge_sweep.errors import InputError, MissingExtra, SweepStopped

if TYPE_CHECKING:
    from forge_sweep.study.database import Database

VARIABLE = "FORGE_SWEEP_STORAGE"
WHAT = "the studies and their trials"
LOCKED_TIMEOUT_S = 60

CREATING = ".creating"  # no experiment can be called so: names begin with a letter or a digit


def storage_url(store: Path) -> str:
    """``FORGE_SWEEP_STORAGE`` where it is set, else SQLite in ``store``. It may hold a password: do not log it.

    A PostgreSQL may be shared by many machines and store folders, SQLite by the processes of one machine.
    """
    return addresses.variable(VARIABLE) or embedded_url(store)


def embedded_url(store: Path) -> str:
    """URL of the SQLite file in ``store``."""
    return addresses.sqlite_url(store.resolve() / "optuna.db")


def exists(url: str) -> bool:
    """Whether there is anything to read; a database server always counts as being there."""
    path = _file(url)
    return path is None or path.exists()


def locks_of(url: str, store: Path) -> Path:
    """Folder of lock files: beside an SQLite file, so that all who open it meet there; else in ``store``."""
    path = _file(url)
    return (store if path is None else path.parent) / "locks"


def _file(url: str) -> Path | None:
    """The file of an SQLite database; raises InputError for what is no address, or a database in memory."""
    from sqlalchemy.exc import ArgumentError

    try:
        addresses.refuse_fleeting(url, VARIABLE, "mlruns/optuna.db")
        return addresses.sqlite_file(url)
    except (ArgumentError, ValueError) as error:
        raise _unusable(url, error) from error


def check_storage(store: Path) -> None:
    """Raise InputError, before anything is trained, for a database that is damaged, in memory, or cannot be written."""
    url = storage_url(store)
    path = _file(url)
    if path is None:
        _refuse_other_servers(url)
        return
    addresses.refuse_damaged(path, WHAT)
    if addresses.is_read_only(path):
        raise addresses.unwritable(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def open_to_read(url: str, store: Path) -> Database:
    """`open_storage` of a database that exists, for readers: one that cannot be written is read from a copy."""
    path = _file(url)
    if path is None or not addresses.is_read_only(path):
        return open_storage(url, store)
    addresses.refuse_damaged(path, WHAT)
    copy = addresses.to_read(path)
    return open_storage(addresses.sqlite_url(copy), copy.parent)


def open_storage(url: str, store: Path) -> Database:
    """Connect, and create the tables where they are missing, under a lock: two who do so at once break the database.

    Raises:
        InputError: ``FORGE_SWEEP_STORAGE`` names no database that can be used.
        MissingExtra: it names a PostgreSQL, and psycopg is not installed.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = _file(url)
    try:
        if path is not None:
            _refuse_no_folder(path, url, store)
            addresses.refuse_damaged(path, WHAT)
            with creating(url, store):
                return _sqlite(url)
        _refuse_other_servers(url)
        with creating(url, store):
            return _server(url)
    except OSError as error:
        raise addresses.unwritable(store if path is None else path.parent, error) from error
    except (ImportError, SQLAlchemyError) as error:
        raise (_unusable(url, error) if path is None else _unusable_file(path, error)) from error
    except RuntimeError as error:  # Optuna's, of tables that another version made
        hint = "install the version of Optuna that made it, or give another store"
        raise InputError(f"the study database cannot be used: {str(error).splitlines()[0]}", hint=hint) from error


def state(store: Path) -> str:
    """Where studies are kept and of which schema that is, in a sentence; neither a file nor a table is made.

    Raises:
        InputError: it is damaged, cannot be written, was made by another version of Optuna, or is none.
        SweepStopped: its server does not answer.
    """
    import sqlalchemy

    check_storage(store)
    url = storage_url(store)
    path = _file(url)
    if path is not None and not path.exists():
        _refuse_no_folder(path, url, store)
        addresses.refuse_unwritable(path.parent)
        return f"{path} does not exist yet; the first run makes it"
    where = path or f"the {url.partition(':')[0]} server"
    try:
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args=_patience(url))
        with engine.connect() as connection:
            made = sqlalchemy.inspect(connection).has_table("version_info")
            if path is None and connection.exec_driver_sql("SHOW transaction_read_only").scalar() == "on":
                raise InputError(f"{where} of the study database may only be read", hint="name the primary server")
    except (ImportError, sqlalchemy.exc.SQLAlchemyError) as error:
        if path is None and isinstance(error, sqlalchemy.exc.OperationalError) and "FATAL" not in str(error.orig):
            hint = f"start it, or correct {VARIABLE}, or unset it for SQLite in the store"
            raise SweepStopped(f"{where} of the study database does not answer", hint=hint) from error
        raise (_unusable(url, error) if path is None else _unusable_file(path, error)) from error
    if not made:
        return f"{where} has no tables yet; the first run makes them"
    storage = open_storage(url, store)
    try:
        return f"{where} has schema {storage.backend.get_current_version()}"
    finally:
        storage.engine.dispose()


def _refuse_no_folder(path: Path, url: str, store: Path) -> None:
    if url != embedded_url(store) and not path.parent.is_dir():  # any other folder than the store may be a slip
        raise InputError(
            f"the study database cannot be used: FORGE_SWEEP_STORAGE: {path.parent} is not a directory",
            hint="create that directory, or unset FORGE_SWEEP_STORAGE for SQLite in the store",
        )


def _unusable_file(path: Path, error: Exception) -> InputError:
    """SQLite's own words hold no secret."""
    said = str(getattr(error, "orig", error)).splitlines()[0]
    if re.search(r"disk is full|disk I/O", said):
        return addresses.unwritable(
            path, OSError(errno.ENOSPC, f"{said} (no space left on the disk, or a limit of file sizes)")
        )
    if re.search(r"readonly|unable to open", said):
        return addresses.unwritable(path, PermissionError(errno.EACCES, said))
    hint = "run it again once no other process holds it" if "locked" in said else "move it away, or put a backup back"
    return InputError(f"the study database {path} cannot be used: {said}", hint=hint)


def _refuse_other_servers(url: str) -> None:
    """Owners, turns and limits are kept by PostgreSQL's locks; another server would lose trials in silence."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        make_url(url).get_dialect()
    except (ImportError, SQLAlchemyError) as error:
        raise _unusable(url, error) from error
    if not url.startswith("postgresql"):
        raise InputError(
            f"FORGE_SWEEP_STORAGE = {url.partition(':')[0]}://...: a study database is SQLite or PostgreSQL",
            hint="set postgresql+psycopg://USER@HOST/DATABASE, or unset the variable for SQLite in the store",
        )


def _unusable(url: str, error: Exception) -> InputError:
    """Of the URL the scheme alone is said: the rest may hold a password."""
    scheme = url.partition(":")[0]
    if isinstance(error, ImportError) and scheme in ("postgresql", "postgresql+psycopg"):
        return MissingExtra(f"FORGE_SWEEP_STORAGE = {scheme}://...", "postgres")
    driver = " and install its driver" if isinstance(error, ImportError) else ""
    return InputError(
        f"the study database ({scheme}:...) cannot be used: {_words(error)}",
        hint=f"set FORGE_SWEEP_STORAGE to a reachable SQLAlchemy URL{driver}, or unset it for SQLite",
    )


def _words(error: Exception | None) -> str:
    """What the server said, or the kind of error: a driver's own words may repeat a part of the URL."""
    said = re.search(r"FATAL: +(.+)", str(getattr(error, "orig", "")))
    return said.group(1) if said else type(error).__name__


def _sqlite(url: str) -> Database:
    """SQLite that several processes of one machine can share.

    Optuna counts on ``SELECT ... FOR UPDATE``, which SQLite ignores: two workers would pop the same waiting trial
    (optuna#4002). BEGIN IMMEDIATE takes the write lock at the start of each transaction instead.
    """
    import sqlalchemy

    from forge_sweep.study.database import Database

    storage = Database(url, {"connect_args": {"timeout": LOCKED_TIMEOUT_S}})

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


def _server(url: str) -> Database:
    """A database server; a connection that broke while a trial trained is replaced before it is used."""
    import sqlalchemy

    from forge_sweep.study.database import Database, Outage

    storage = Database(url, {"pool_pre_ping": True, "connect_args": _patience(url)})
    weakref.finalize(storage, storage.engine.dispose)  # a server has few connections

    # Optuna would speak of invalid data in a commit.
    @sqlalchemy.event.listens_for(storage.engine, "handle_error")
    def name_the_outage(context: sqlalchemy.ExceptionContext) -> None:
        unreachable = context.connection is None and isinstance(
            context.sqlalchemy_exception, sqlalchemy.exc.OperationalError
        )
        if (context.is_disconnect or unreachable) and not context.is_pre_ping:
            raise Outage(
                f"the study database does not answer: {_words(context.sqlalchemy_exception)}",
                hint="once it does, run the same command again: finished trials stay finished",
            )

    return storage


def _patience(url: str) -> dict[str, int]:
    """How long libpq waits for a server that says nothing, where the URL does not say: by itself for hours."""
    from sqlalchemy.engine import make_url

    parsed = make_url(url)
    if parsed.get_driver_name() not in ("psycopg", "psycopg2"):
        return {}
    return {name: value for name, value in _PATIENCE.items() if name not in parsed.query}


_PATIENCE = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""Seconds, and milliseconds for the last: libpq's own parameters."""


def creating(url: str, store: Path) -> contextlib.AbstractContextManager[None]:
    """The lock under which tables are created."""
    from forge_sweep.study.database import file_turn, server_turn

    lite = url.startswith("sqlite")
    return file_turn(CREATING, locks_of(url, store)) if lite else server_turn(url, CREATING, _patience(url))


@contextlib.contextmanager
def holding(locks: Path, study_name: str) -> Iterator[None]:
    """The lock of the one process that runs a study; the operating system drops it when the process dies.

    Raises:
        SweepStopped: another process holds it; the message names its pid.
    """
    from filelock import FileLock, Timeout

    locks.mkdir(parents=True, exist_ok=True)
    path = locks / f"{study_name}.lock"
    lock, owner = FileLock(path, timeout=0), path.with_suffix(".owner")
    try:
        lock.acquire()
    except Timeout:
        holder = "another process"
        with contextlib.suppress(OSError, ValueError):  # the holder has not written it yet
            holder = "process {pid} on host {host}".format_map(json.loads(owner.read_text()))
        raise held(study_name, holder) from None
    try:
        owner.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def held(study_name: str, holder: str) -> SweepStopped:
    """The refusal of a second process."""
    return SweepStopped(
        f"study {study_name} is being run by {holder}",
        hint="wait until it has ended, or stop that process; to run more trials beside it: forge-sweep worker",
    )
