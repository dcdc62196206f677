"""Keeps the installed MLflow from migrating a store on its own.

Opening a database with a newer MLflow migrates it, without asking and for good: no older MLflow opens it afterwards.
See docs/decisions/0029-ranges-and-the-store.md.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from forge_sweep.addresses import refuse_damaged, sqlite_file
from forge_sweep.errors import ForgeSweepError, InputError, masked

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory

CONTENT = "MLflow's runs and models"


@dataclass(frozen=True)
class Upgrade:
    """What `upgrade` did: the schema's revisions, and a `copy` of the database as it was, if it had to be migrated."""

    path: Path
    before: str
    after: str
    copy: Path | None


def refuse_other_schema(uri: str) -> str | None:
    """Refuse a database that the installed MLflow would migrate, or that it is too old to read; give its revision.

    A file beside an SQLite store names the version that was last found to fit: the next check takes 10 ms instead of
    half a second.
    """
    path, found = sqlite_file(uri), _revision(uri)
    if found is None:  # not made yet, or not MLflow's: what creates or opens it says so
        return None
    stamp = None if path is None else path.with_name(f".{path.name}.schema")
    fits = f"mlflow {_installed()} {found}\n"
    with contextlib.suppress(OSError):
        if stamp is not None and stamp.read_text(encoding="utf-8") == fits:
            return found
    scripts, where = _scripts(), path or masked(uri)
    if found == scripts.get_current_head():
        if stamp is not None:
            with contextlib.suppress(OSError):  # a store that cannot be written: the next check takes longer
                new = stamp.with_name(f"{stamp.name}.{os.getpid()}")
                new.write_text(fits, encoding="utf-8")
                new.replace(stamp)
        return found
    if all(each.revision != found for each in scripts.walk_revisions()):
        raise InputError(
            f"{where} was written by a newer MLflow (schema {found}); the installed {_installed()} cannot read it",
            hint="upgrade MLflow to the version that wrote it: pip install --upgrade 'mlflow<4'; or restore a copy "
            "that was made before the upgrade",
        )
    words = stamp.read_text(encoding="utf-8").split() if stamp is not None and stamp.exists() else []
    last = f" {words[1]}" if len(words) == 3 else ""
    upgrade_hint = (
        f"back the database up, then run: mlflow db upgrade {masked(uri)}"
        if path is None
        else f"run: forge-sweep store upgrade --store {path.parent}   (it copies the database first)"
    )
    raise InputError(
        f"{where} was written by an older MLflow{last} (schema {found}); the installed {_installed()} would migrate "
        "it, and older versions could no longer open it",
        hint=f"{upgrade_hint}; or keep the store as it is with: pip install 'mlflow<{_installed()}'",
    )


def upgrade(uri: str) -> Upgrade:
    """Migrate an SQLite store to the schema of the installed MLflow, after copying it.

    The copy lies beside the database as ``mlflow.db.<revision>``. If the migration fails, the database is as it was.

    Raises:
        InputError: it is not an SQLite store, does not exist, is in use, or was written by a newer MLflow.
        ForgeSweepError: MLflow could not migrate it; the message holds the last line of what it printed.
    """
    path = sqlite_file(uri)
    if path is None:
        raise InputError(
            f"{masked(uri)} is not an SQLite store of this machine",
            hint="back its database up, then run where that is served: mlflow db upgrade DATABASE_URL",
        )
    refuse_damaged(path, CONTENT)
    if not path.exists():
        raise InputError(f"there is no MLflow store at {path}", hint="give its directory: --store")
    with FileLock(f"{path}.lock"):
        before, scripts = _revision(uri), _scripts()
        head = str(scripts.get_current_head())
        if before is None:
            raise InputError(f"{path} is not a database of MLflow", hint="give the store's directory: --store")
        if before == head:
            return Upgrade(path, before, head, None)
        if all(each.revision != before for each in scripts.walk_revisions()):
            refuse_other_schema(uri)
        if users := _users(path):
            raise InputError(
                f"{path} is in use by {', '.join(users)}", hint="stop these processes, then run the upgrade again"
            )
        names = [f"{path.name}.{before}", *(f"{path.name}.{before}.{n}" for n in range(2, 1000))]
        copy = next(each for each in map(path.with_name, names) if not each.exists())  # an earlier copy is kept
        _copy(path, copy)
        command = [sys.executable, "-m", "mlflow", "db", "upgrade", uri]
        done = subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode or _revision(uri) != head:
            _copy(copy, path)
            lines = (done.stderr or done.stdout).strip().splitlines() or [f"it ended with exit code {done.returncode}"]
            raise ForgeSweepError(
                f"MLflow {_installed()} could not migrate {path}: {masked(lines[-1])}",
                hint=f"the store is as it was before; a copy is at {copy}",
            )
    refuse_other_schema(uri)
    return Upgrade(path, before, head, copy)


def _installed() -> str:
    return importlib.metadata.version("mlflow")


def _revision(uri: str) -> str | None:
    path = sqlite_file(uri)
    if path is not None and not (path.exists() and path.stat().st_size):
        return None
    import sqlalchemy
    from alembic.migration import MigrationContext

    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def _scripts() -> ScriptDirectory:
    from alembic.script import ScriptDirectory
    from mlflow.store import db_migrations

    return ScriptDirectory(os.path.dirname(str(db_migrations.__file__)))


def _users(path: Path) -> list[str]:
    import psutil

    users = []
    for process in psutil.process_iter(["pid", "name"]):
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and any(Path(file.path) == path for file in process.open_files()):
                users.append(f"process {process.pid} ({process.info['name']})")
    return users


def _copy(source: Path, target: Path) -> None:
    """SQLite's own backup, which takes what is still in the write-ahead log."""
    with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(target)) as other:
        one.backup(other)
