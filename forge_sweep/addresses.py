"""Addresses of databases, made of paths and taken apart; what can be said of an SQLite file before it is used."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import sqlite3
import tempfile
from pathlib import Path
from urllib.parse import quote

from forge_sweep.errors import InputError

PROBE_BYTES = 65_536


def variable(name: str) -> str:
    """An environment variable without blanks around it; an empty one is an unset one."""
    return os.environ.get(name, "").strip()


def sqlite_url(path: Path) -> str:
    """SQLAlchemy's URL of an SQLite file: ``?``, ``#`` and ``%`` would mean something in it and are quoted.

    A quoted one names the driver too: MLflow makes the folder of what follows ``sqlite:///``, quoted as it stands.

    Raises:
        InputError: the path is not valid text, which databases and MLflow need.
    """
    try:
        quoted = quote(str(path))
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="backslashreplace")
        raise InputError(f"the path {shown} is not UTF-8", hint="rename the folder, or give another --store") from None
    return f"sqlite:///{quoted}" if quoted == str(path) else f"sqlite+pysqlite:///{quoted}"


def sqlite_file(url: str) -> Path | None:
    """The file of an SQLite URL; None for another database, or for one that is in memory."""
    if not url.lower().startswith("sqlite"):
        return None
    from sqlalchemy.engine import make_url

    database = make_url(url).database
    return None if not database or is_fleeting(url) else Path(database).absolute()


def is_fleeting(url: str) -> bool:
    """Whether an SQLite URL names no file of its own: a database in memory, or SQLite's own ``file:`` notation."""
    from sqlalchemy.engine import make_url

    parsed = make_url(url)
    database = parsed.database or ""
    return parsed.get_backend_name().lower() == "sqlite" and (
        database in ("", ":memory:") or database.lower().startswith("file:") or parsed.query.get("mode") == "memory"
    )


def refuse_fleeting(url: str, name: str, example: str) -> None:
    """Refuse a database that ends with the command, and with it every run or trial.

    Args:
        url: SQLAlchemy's.
        name: environment variable it comes from.
        example: file that the hint proposes.
    """
    if is_fleeting(url):
        raise InputError(
            f"{name} = {url!r} is a database in memory, or no plain file: nothing of it outlives the command",
            hint=f"unset {name} for the store's own database, or name a file: {sqlite_url(Path(example).absolute())}",
        )


def refuse_unwritable(folder: Path) -> None:
    """Write to a folder once, before anything is trained; one that is made for that is taken away again.

    Raises:
        InputError: it cannot be made or written to; names the cause, such as a full disk.
    """
    made = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\1" * PROBE_BYTES)
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise unwritable(folder, error) from error
    finally:
        for each in made:  # the innermost first; another process may have put something into it by now
            with contextlib.suppress(OSError):
                each.rmdir()


def unwritable(path: Path, error: OSError) -> InputError:
    """What to say of a store that cannot be written to."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        hint = "free space on that disk (or raise the quota), or give another --store; then run the same command again"
    elif isinstance(error, NotADirectoryError | FileExistsError):
        hint = "a file stands where a folder is needed; give a folder: --store mlruns"
    else:
        hint = "make the folder writable for this user, or give another --store"
    return InputError(f"the store {path} cannot be written: {error.strerror or error}", hint=hint)


def refuse_damaged(path: Path, what: str) -> None:
    """Look an SQLite file over before anything is built on it. One that is missing or empty is a new one.

    Args:
        path: the file.
        what: it holds, such as ``MLflow's runs and models``.

    Raises:
        InputError: it is no database, is damaged, or may not be read; nothing was changed.
    """
    kept = f"it holds {what}; nothing was changed"
    if path.is_dir():
        raise InputError(
            f"{path} is a directory; expected an SQLite database", hint=f"move it away, or give another store; {kept}"
        )
    # Asked of SQLite alone: whoever closes the file by other means takes away the locks that connections of this
    # process hold on it, and another process may then delete the log (https://www.sqlite.org/howtocorrupt.html, 2.2).
    try:
        state = path.stat()
        if not state.st_size:
            return
    except FileNotFoundError:
        return
    except OSError as error:
        hint = f"let this user read it; {kept}"
        raise InputError(f"{path} cannot be read: {error.strerror}", hint=hint) from None
    if not os.access(path, os.R_OK):
        raise InputError(f"{path} cannot be read: permission denied", hint=f"let this user read it; {kept}")
    restore = (
        f"put a backup of {path.name} back, or save what is left: sqlite3 {path.name} .recover | sqlite3 new.db; "
        f"or move it away, with {path.name}-wal and {path.name}-shm, to begin anew; {kept}"
    )
    known = str(path.absolute()), state.st_ino, state.st_size, state.st_mtime_ns
    if known in _sound:
        return
    if (said := _damage(path)) == "ok":
        _sound.add(known)
        return
    if "not a database" in said:
        with path.open("rb") as file:
            raise InputError(f"{path} is no SQLite database: it begins with {file.read(16)!r}", hint=restore)
    raise InputError(f"the database {path} is damaged: {said[:200]}", hint=restore)


_sound: set[tuple[str, int, int, int]] = set()
"""Files that this process has looked over, as they were: 280 MB take half a second, and a run opens each four times."""


def _damage(path: Path) -> str:
    """What SQLite finds wrong with a file, or ``ok``."""
    mode = "immutable=1" if is_read_only(path) and not _has_log(path) else "mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?{mode}", uri=True)) as database:
            return " ".join(str(database.execute("PRAGMA quick_check(1)").fetchone()[0]).split())
    except sqlite3.OperationalError:  # locked, or of a folder that cannot be written: the opening itself will say
        return "ok"
    except sqlite3.DatabaseError as error:
        return str(error)


def _has_log(path: Path) -> bool:
    log = path.with_name(f"{path.name}-wal")
    return log.exists() and log.stat().st_size > 0


def is_read_only(path: Path) -> bool:
    """Whether an existing SQLite file, or the folder that its log has to lie in, cannot be written to."""
    return path.exists() and not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK | os.X_OK))


def to_read(path: Path) -> Path:
    """The file itself, or a copy for as long as this process lives where only reading is allowed.

    SQLite needs to write beside a database in write-ahead mode even to read it.
    """
    return _copied(path, path.stat().st_mtime_ns) if is_read_only(path) else path


_copies = contextlib.ExitStack()


@functools.lru_cache(maxsize=16)
def _copied(path: Path, _changed: int) -> Path:
    folder = Path(_copies.enter_context(tempfile.TemporaryDirectory(prefix="forge-sweep-read-only-")))
    for suffix in ("", "-wal"):
        if (part := path.with_name(path.name + suffix)).exists():
            copy = folder / part.name
            shutil.copyfile(part, copy)
    # Beside the copy as beside the database: what the store's artifacts are named by.
    if (path.parent / "artifacts").is_dir():
        (folder / "artifacts").symlink_to(path.parent.absolute() / "artifacts")
    return folder / path.name
