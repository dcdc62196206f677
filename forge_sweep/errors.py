"""Exceptions, drawn as a tree that says what the caller can do: fix the input, retry, skip this trial, stop."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

if TYPE_CHECKING:
    from forge_sweep.checks.findings import Finding

Failure = Literal["out-of-memory", "diverged", "data", "code", "time-out", "lost-worker", "infeasible"]
FAILURES: tuple[Failure, ...] = get_args(Failure)

_LOGIN = re.compile(r"://[^/\s'\"]*@")
_PASSWORD = re.compile(r"(password\s*=\s*)('[^']*'|[^&\s'\"]+)", re.IGNORECASE)
_SOURCE = re.compile(r"\s*\(?(?:in |from |at )?[^\s()'\"]*(?:site|dist)-packages/[^\s()'\"]*\)?")
_KEY = re.compile("\x02([^\x1f]*)\x1f([^\x1f]*)\x1f([^\x03]*)\x03")


def masked(text: str) -> str:
    """The text without the logins of URLs and without ``password=...``: fit to be shown, logged and stored."""
    return _PASSWORD.sub(r"\1***", _LOGIN.sub("://***@", text))


def one_line(message: Warning | str) -> str:
    """A library's warning as one line for people: without logins, and without where its code lies."""
    return masked(" ".join(_SOURCE.sub("", str(message)).split()))


class Key(str):
    """A key of the experiment file in the text of an error, so that a command can say its option instead.

    In an f-string ``{Key("data.key")}`` reads ``data.key``, ``{Key("data.key"):under}`` reads ``key under [data]``, and
    ``{Key("data.task", "'binary'")}`` reads ``task = 'binary' under [data]``, or with ``:is`` ``data.task = 'binary'``.
    """

    value: str

    def __new__(cls, path: str, value: str = "") -> Key:
        """See the class."""
        key = super().__new__(cls, path)
        key.value = value
        return key

    def __format__(self, form: str) -> str:
        return f"\x02{self!s}\x1f{self.value}\x1f{form}\x03"

    def in_toml(self, form: str) -> str:
        """As an experiment file has it."""
        if form == "is":
            return self + f" = {self.value}"
        section, _, name = self.rpartition(".")
        name = f"{name} = {self.value}" if self.value else name
        return f"{name} under [{section}]" if self.value or form == "under" else str(self)


def worded(text: str, words: Callable[[Key, str], str] = Key.in_toml) -> str:
    """A text with each `Key` in words, which are given the key and the form that it stands in."""
    return _KEY.sub(lambda found: words(Key(found[1], found[2]), found[3]), text)


class ForgeSweepError(Exception):
    """Base of every error this package raises on purpose; the hint says how to fix it, on a line of its own."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message, self.hint = worded(message), worded(hint)
        super().__init__(self.message)
        self._texts = message, hint

    def reworded(self, words: Callable[[Key, str], str]) -> Self:
        """The same error with other words for each `Key`."""
        message, hint = self._texts
        return type(self)(worded(message, words), hint=worded(hint, words))

    def __str__(self) -> str:
        return f"{self.message}\n  fix: {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by state: an error of a worker process arrives whole, whatever arguments its class takes."""
        return type(self).__new__, (type(self), *self.args), self.__dict__


class InputError(ForgeSweepError):
    """The input is wrong; nothing was started and nothing was lost."""

    exit_code = 2


@dataclass(frozen=True)
class Mistake:
    """One mistake in an experiment file; ``value`` is what stands there as TOML, "" where the key is missing."""

    path: str
    value: str
    expected: str
    hint: str = ""

    def __str__(self) -> str:
        seen = f" = {self.value}" if self.value else ""
        return worded(f"{self.path}{seen}: expected {self.expected}" + (f"; {self.hint}" if self.hint else ""))


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
    """An optional dependency is not installed: ``extra`` of ``forge-sweep`` brings what ``feature`` needs."""

    def __init__(self, feature: str, extra: str) -> None:
        hint = f"in a checkout of forge-sweep: pip install '.[{extra}]'"
        super().__init__(f"{feature} needs packages that are not installed", hint=hint)


class GateRefused(ForgeSweepError):
    """A check found errors; the findings say which, with figures and fixes."""

    exit_code = 3

    def __init__(self, title: str, findings: Sequence[Finding]) -> None:
        super().__init__("\n".join([title, *(f"  {finding}" for finding in findings)]))
        self.findings = tuple(findings)


class TrialFailed(ForgeSweepError):
    """One trial failed; the sweep goes on. The message is the cause in one line: equal causes give equal messages.

    ``findings`` say more of this one; of an infeasible one, ``excess`` says by what share of its limit each constraint
    is exceeded.
    """

    def __init__(
        self,
        failure: Failure,
        message: str,
        *,
        hint: str = "",
        findings: Sequence[Finding] = (),
        excess: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.failure: Failure = failure
        self.findings = tuple(findings)
        self.excess = dict(excess or {})


class TrialTaken(ForgeSweepError):
    """A trial of this process belongs to another one now: the lease of this one expired."""


class BundleError(ForgeSweepError):
    """A model folder that is incomplete, was changed, or holds something unsafe."""


class NotTrusted(BundleError):
    """A model that runs code of its own, and whoever loads it has not said that it may."""


class TrackingDown(ForgeSweepError):
    """The MLflow store cannot be reached; what was not written waits in the local journal."""


class StoreDown(ForgeSweepError):
    """The feature store cannot be reached, or broke off; nothing was changed, and no part of any rows was used."""


class SweepStopped(ForgeSweepError):
    """The sweep cannot go on; what finished stays finished."""
