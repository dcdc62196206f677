"""MLflow's schema, created once and copied: its migrations take two seconds, too long for hundreds of new stores.

What is copied is what MLflow made, without its first experiment, whose address is that of the store; `SqlAlchemyStore`
adds that to each copy.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from forge_sweep import addresses
from forge_sweep.tracking import client

VARIABLE = "TESTS_MLFLOW_SCHEMA"
"""Where the original is; processes that a test starts inherit it."""

_create = client._create_schema


def copy_one(original: Path | None = None) -> None:
    """Have each new SQLite store of this process begin with a copy; the first need makes the original."""
    if original is not None:
        os.environ[VARIABLE] = str(original)
    client._create_schema = _create_from_copy


def _create_from_copy(uri: str, store: Path) -> None:
    path, original = addresses.sqlite_file(uri), os.environ.get(VARIABLE)
    if path is not None and original:
        if not Path(original).exists():
            new = Path(f"{original}.{os.getpid()}")
            _create(addresses.sqlite_url(new), store)
            with closing(sqlite3.connect(new)) as database, database:
                database.execute("DELETE FROM experiments")
            new.replace(original)
        shutil.copyfile(original, path)
    _create(uri, store)
