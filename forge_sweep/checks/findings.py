"""The one value that every check returns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Finding:
    """One thing a check saw.

    Attributes:
        severity: ``error`` stops what was asked for, ``warning`` goes on and is shown, ``info`` is recorded.
        code: stable short name of the rule, such as ``unscaled-range``.
        subject: the column, TOML key or file concerned.
        seen: what was seen, with its figure.
        expected: what was expected.
        fix: how to fix it.
        rows: positions of the first rows concerned (0-based, at most 10), where rows are concerned.
    """

    severity: Severity
    code: str
    subject: str
    seen: str
    expected: str
    fix: str
    rows: tuple[int, ...] = field(default=())

    def __str__(self) -> str:
        rows = f" (rows {', '.join(map(str, self.rows))})" if self.rows else ""
        seen = f"{self.severity}: {self.subject}: {self.seen}{rows}"
        return f"{seen}; expected {self.expected}; fix: {self.fix} [{self.code}]"


def errors(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings that stop what was asked for."""
    return tuple(finding for finding in findings if finding.severity == "error")
