"""What the command line makes of its surroundings: streams, variables, paths, and errors that nobody foresaw."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import TextIO

from forge_sweep.cli.printing import REPLACED, complain, emit, say
from forge_sweep.errors import ForgeSweepError, InputError, masked

EMPTY_IS_UNSET = ("FORGE_SWEEP_", "KERAS_", "MLFLOW_", "MKL_", "OMP_", "OPENBLAS_", "RAY_", "TF_", "XLA_")
"""Beginnings of variables whose empty value says nothing; with CUDA_VISIBLE_DEVICES it says that there is no GPU."""

EMPTY_TOO = (
    *("COLUMNS", "LINES", "TERM", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"),
    *("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"),
)

REFUSED_EMPTY = "FORGE_SWEEP_API_KEY"
"""An empty key would look like protection: `serve` refuses it."""


def settle() -> None:
    """Make streams that take every character, and drop variables that are empty."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started this process
            setattr(sys, name, nowhere())
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=REPLACED)
    for name, value in list(os.environ.items()):
        if not value and (name.startswith(EMPTY_IS_UNSET) or name in EMPTY_TOO) and name != REFUSED_EMPTY:
            del os.environ[name]
    warnings.showwarning = show_warning


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A library's warning for people: what it says, once, without the line of code that said it."""
    text = masked(" ".join(str(message).split()))
    if text not in _said:
        _said.add(text)
        place = f" ({category.__name__}, {filename}:{lineno})" if debugging() else ""
        say(f"warning: {text}{place}", err=True)


_said: set[str] = set()


def debugging() -> bool:
    """Whether ``--debug`` was given."""
    return logging.getLogger("forge_sweep").isEnabledFor(logging.DEBUG)


def report(error: Exception) -> int:
    """Say what went wrong, on standard error and where machines read, and return the exit code."""
    known = understood(error)
    if "--json" in sys.argv:
        emit({"event": "error", "exit_code": known.exit_code, "text": known.message, "fix": known.hint}, indent=None)
    if debugging():
        # without the logins that messages of libraries may repeat
        sys.stderr.write(masked("".join(traceback.format_exception(error))))
    complain(masked(str(known)))
    return known.exit_code


def understood(error: Exception) -> ForgeSweepError:
    """An error in our own words."""
    if isinstance(error, ForgeSweepError):
        return error
    if disk_is_full(error):
        return ForgeSweepError(
            "the disk is full; what was written is kept", hint="make room and run the same command again"
        )
    if isinstance(error, MemoryError):
        return ForgeSweepError(
            f"not enough memory: {error or 'an allocation failed'}", hint="use fewer rows, or a larger machine"
        )
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        return InputError(
            f"{error.object[:200]!r} holds bytes that are not valid text",
            hint="give names in UTF-8, or rename the file",
        )
    if isinstance(error, FileNotFoundError) and folder_is_gone():
        return ForgeSweepError("the working folder was deleted", hint="change to a folder that is there")
    if isinstance(error, OSError) and error.filename is not None:
        return ForgeSweepError(
            f"{error.filename}: {error.strerror}", hint="look at the path and its permissions, or give another one"
        )
    words = " ".join(str(error).split())[:500]
    return ForgeSweepError(
        f"unexpected {type(error).__name__}{f': {words}' if words else ''}",
        hint="this is no fault of yours: run `forge-sweep --debug ...` again and report what it prints",
    )


def folder_is_gone() -> bool:
    """Whether the working folder was deleted under this process."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def disk_is_full(error: BaseException | None) -> bool:
    """Whether an exception, or one that it came from, says so; SQLite hides it under two others."""
    while error is not None:
        if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "disk is full" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def leave_quietly() -> None:
    """Nobody reads any more: let nothing that is left in a buffer complain at the end of the process."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            mute(stream)


def nowhere() -> TextIO:
    """A stream that leads nowhere, for the rest of the process."""
    return Path(os.devnull).open("w", encoding="utf-8")


def mute(stream: TextIO) -> None:
    """Send what a stream still has to nowhere."""
    try:
        os.dup2(nowhere().fileno(), stream.fileno())
    except (OSError, ValueError):
        return


def refuse_unwritable(output: Path | None, *, option: str = "--output", folder: bool = False) -> None:
    """Raise InputError, before anything is computed, where a file could not be written.

    Args:
        output: the path that was asked for.
        option: the option that gave it, for the message.
        folder: whether a folder may stand there.
    """
    if output is None:
        return
    try:
        if output.is_dir() and not folder:
            raise InputError(f"{option} {output} is a folder", hint="name a file in it")
        home = output.parent
        while not home.exists() and home != home.parent:
            home = home.parent
        if not home.is_dir():
            raise InputError(f"{option} {output}: {home} is a file, not a folder", hint="give another path")
        name_fits(output)
        there = output.exists()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{option} {str(output)!r} cannot be written: {reason}", hint="give another path") from None
    if not os.access(output if there else home, os.W_OK):
        raise InputError(f"{option} {output}: no permission to write there", hint="give another path")


def name_fits(path: Path) -> None:
    """Raise OSError where no file system takes the name."""
    if max((len(os.fsencode(part)) for part in path.parts), default=0) > 255:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(path))
