"""The process around a command: streams, variables, warnings, output paths, and errors as users see them."""

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

REFUSED = 3
"""Exit code of a refusing gate."""

INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM."""

_EMPTY_IS_UNSET = ("FORGE_SWEEP_", "KERAS_", "MLFLOW_", "MKL_", "OMP_", "OPENBLAS_", "RAY_", "TF_", "XLA_")
"""Prefixes of variables that count as unset when empty. An empty CUDA_VISIBLE_DEVICES means: no GPU."""

_EMPTY_IS_UNSET_TOO = (
    *("COLUMNS", "LINES", "TERM", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"),
    *("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"),
)

_REFUSED_EMPTY = "FORGE_SWEEP_API_KEY"
"""An empty key would look like protection: `serve` refuses it."""

_warned: set[str] = set()


class MaskingFormatter(logging.Formatter):
    """Log lines without credentials."""

    def format(self, record: logging.LogRecord) -> str:
        """The masked line."""
        return masked(super().format(record))


def set_up() -> None:
    """Make the standard streams accept every character, unset empty variables, and show warnings as one line."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the parent process
            setattr(sys, name, null_stream())
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=REPLACED)
    for name, value in list(os.environ.items()):
        unset = name.startswith(_EMPTY_IS_UNSET) or name in _EMPTY_IS_UNSET_TOO
        if not value and unset and name != _REFUSED_EMPTY:
            del os.environ[name]
    warnings.showwarning = _show_warning


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    text = masked(" ".join(str(message).split()))
    if text not in _warned:
        _warned.add(text)
        place = f" ({category.__name__}, {filename}:{lineno})" if _debugging() else ""
        say(f"warning: {text}{place}", err=True)


def _debugging() -> bool:
    return logging.getLogger("forge_sweep").isEnabledFor(logging.DEBUG)


def report_error(error: Exception) -> int:
    """Print an error on standard error, and with ``--json`` as an event; return the exit code."""
    known = error if isinstance(error, ForgeSweepError) else _explained(error)
    if "--json" in sys.argv:
        emit({"event": "error", "exit_code": known.exit_code, "text": known.message, "fix": known.hint}, indent=None)
    if _debugging():  # messages of libraries may repeat credentials
        sys.stderr.write(masked("".join(traceback.format_exception(error))))
    complain(masked(str(known)))
    return known.exit_code


def _explained(error: Exception) -> ForgeSweepError:
    """An exception of Python or a library as an error of ours."""
    if _disk_is_full(error):
        return ForgeSweepError(
            "the disk is full; everything written so far is kept", hint="free some space and run the same command again"
        )
    if isinstance(error, MemoryError):
        return ForgeSweepError(
            f"not enough memory: {error or 'an allocation failed'}", hint="use fewer rows, or a larger machine"
        )
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        return InputError(f"{error.object[:200]!r} is not valid text", hint="use UTF-8 names, or rename the file")
    if isinstance(error, FileNotFoundError):
        try:
            os.getcwd()
        except FileNotFoundError:
            return ForgeSweepError("the working directory was deleted", hint="change to an existing directory")
    if isinstance(error, OSError) and error.filename is not None:
        return ForgeSweepError(
            f"{error.filename}: {error.strerror}", hint="check the path and its permissions, or use another path"
        )
    words = " ".join(str(error).split())[:500]
    return ForgeSweepError(
        f"unexpected {type(error).__name__}{f': {words}' if words else ''}",
        hint="this is a bug: run `forge-sweep --debug ...` again and report the output",
    )


def _disk_is_full(error: BaseException | None) -> bool:
    """Also if the error is wrapped: SQLite's comes inside two others."""
    while error is not None:
        if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "disk is full" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def flush_quietly() -> None:
    """Flush the standard streams; redirect one whose reader is gone, so that Python does not complain at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            try:
                os.dup2(null_stream().fileno(), stream.fileno())
            except (OSError, ValueError):
                return


def null_stream() -> TextIO:
    """A stream that discards what is written."""
    return Path(os.devnull).open("w", encoding="utf-8")


def refuse_unwritable(output: Path | None, *, option: str = "--output", folder: bool = False) -> None:
    """Raise InputError, before anything is computed, if an output cannot be written; ``folder`` allows a directory."""
    if output is None:
        return
    try:
        if output.is_dir() and not folder:
            raise InputError(f"{option} {output} is a directory", hint="name a file in it")
        home = output.parent
        while not home.exists() and home != home.parent:
            home = home.parent
        if not home.is_dir():
            raise InputError(f"{option} {output}: {home} is a file, not a directory", hint="use another path")
        if max((len(os.fsencode(part)) for part in output.parts), default=0) > 255:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(output))
        target = output if output.exists() else home
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{option} {str(output)!r} cannot be written: {reason}", hint="use another path") from None
    if not os.access(target, os.W_OK):
        raise InputError(f"{option} {output}: no permission to write there", hint="use another path")
