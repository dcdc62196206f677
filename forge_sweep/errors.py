"""Exceptions, drawn as a tree that says what the caller can do.

ForgeSweepError
├── InputError              fix the input                     exit code 2
│   ├── ExperimentError     the experiment file (all mistakes at once)
│   ├── DataError           the data file or its declaration
│   ├── SchemaError         a frame that does not fit the schema
│   ├── ResumeRefused       the experiment changed since its study began
│   └── MissingExtra        an optional dependency is not installed
├── GateRefused             findings of severity "error"      exit code 3
├── TrialFailed             skip this trial                   recorded with its failure class
├── TrialTaken              drop this trial                   another process runs it by now
├── BundleError             a model folder that is incomplete, changed or unsafe    exit code 1
├── TrackingDown            retry later, nothing is lost      exit code 1
├── StoreDown               retry later, nothing was changed  exit code 1
└── SweepStopped            stop the sweep                    exit code 1
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from forge_sweep.checks.findings import Finding

Failure = Literal["out-of-memory", "diverged", "data", "code", "time-out", "lost-worker"]
FAILURES: tuple[Failure, ...] = get_args(Failure)


_LOGIN = re.compile(r"://[^/\s'\"]*@")
_PASSWORD = re.compile(r"(password\s*=\s*)('[^']*'|[^&\s'\"]+)", re.IGNORECASE)


def masked(text: str) -> str:
    """The text without the logins of URLs and without ``password=...``: fit to be shown, logged and stored."""
    return _PASSWORD.sub(r"\1***", _LOGIN.sub("://***@", text))


_SOURCE = re.compile(r"\s*\(?(?:in |from |at )?[^\s()'\"]*(?:site|dist)-packages/[^\s()'\"]*\)?")


def one_line(message: Warning | str) -> str:
    """A library's warning as one line for people: without logins, and without where its code lies."""
    return masked(" ".join(_SOURCE.sub("", str(message)).split()))


class ForgeSweepError(Exception):
    """Base of every error this package raises on purpose.

    Args:
        message: what came in and what was expected.
        hint: how to fix it; printed on a line of its own.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  fix: {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by state: an error of a worker process arrives whole, whatever arguments its class takes."""
        return _revived, (type(self), self.args), self.__dict__


def _revived(kind: type[ForgeSweepError], args: tuple[Any, ...]) -> ForgeSweepError:
    """An unpickled error, before its state."""
    return kind.__new__(kind, *args)


class InputError(ForgeSweepError):
    """The input is wrong; nothing was started and nothing was lost."""

    exit_code = 2


@dataclass(frozen=True)
class Mistake:
    """One mistake in an experiment file.

    Attributes:
        path: TOML path of the key, such as ``study.n_trials``.
        value: what stands there, as TOML text, or "" where the key is missing.
        expected: what was expected.
        hint: how to fix it, such as the nearest valid spelling.
    """

    path: str
    value: str
    expected: str
    hint: str = ""

    def __str__(self) -> str:
        seen = f" = {self.value}" if self.value else ""
        return f"{self.path}{seen}: expected {self.expected}" + (f"; {self.hint}" if self.hint else "")


LISTED = 50
"""Mistakes that a message names; a file with more of them is something else."""


class ExperimentError(InputError):
    """An experiment file with one or more mistakes, listed together."""

    def __init__(self, source: str, mistakes: Sequence[Mistake]) -> None:
        count = f"{len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''}"
        more = [f"  and {len(mistakes) - LISTED} more"] if len(mistakes) > LISTED else []
        super().__init__("\n".join([f"{source}: {count}", *(f"  {m}" for m in mistakes[:LISTED]), *more]))
        self.mistakes = tuple(mistakes)


class DataError(InputError):
    """A data file that cannot be read as the experiment declares it."""


class SchemaError(InputError):
    """A frame with missing, extra or mistyped columns."""


class ResumeRefused(InputError):
    """The experiment or its data changed since the study began."""


class MissingExtra(InputError):
    """An optional dependency is not installed.

    Args:
        feature: what was asked for, such as ``study.sampler = "gp"``.
        extra: the extra of ``forge-sweep`` that brings it.
    """

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs packages that are not installed",
            hint=f"in a checkout of forge-sweep: pip install '.[{extra}]'",
        )


class GateRefused(ForgeSweepError):
    """A check found errors; the findings say which, with figures and fixes."""

    exit_code = 3

    def __init__(self, title: str, findings: Sequence[Finding]) -> None:
        super().__init__("\n".join([title, *(f"  {finding}" for finding in findings)]))
        self.findings = tuple(findings)


class TrialFailed(ForgeSweepError):
    """One trial failed; the sweep goes on.

    Args:
        failure: the failure class, one of ``FAILURES``.
        message: the cause, in one line. Equal causes give equal messages.
    """

    def __init__(self, failure: Failure, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.failure: Failure = failure


class TrialTaken(ForgeSweepError):
    """A trial that this process ran belongs to another one: this one was not heard for too long."""


class BundleError(ForgeSweepError):
    """A model folder that is incomplete, was changed, or holds something unsafe."""


class TrackingDown(ForgeSweepError):
    """The MLflow store cannot be reached; what was not written waits in the local journal."""


class StoreDown(ForgeSweepError):
    """The feature store cannot be reached, or broke off; nothing was changed, and no part of any rows was used."""


class SweepStopped(ForgeSweepError):
    """The sweep cannot go on; what finished stays finished."""
