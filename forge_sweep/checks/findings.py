"""The one value that every check returns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from forge_sweep import html

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Finding:
    """One thing a check saw.

    Attributes:
        severity: ``error`` stops what was asked for, ``warning`` goes on and is shown, ``info`` is recorded.
        code: stable short name of the rule, such as ``unscaled-range``.
        subject: the column, TOML key or file concerned.
        seen: with its figure.
        rows: positions of the first rows concerned (0-based, at most 10), where rows are concerned.
    """

    severity: Severity
    code: str
    subject: str
    seen: str
    expected: str
    fix: str
    rows: tuple[int, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """JSON values, with the section of the documentation on findings of its code as ``section``."""
        return {**asdict(self), "section": f"docs/failures.md#{self.code}"}

    def __str__(self) -> str:
        rows = f" (rows {', '.join(map(str, self.rows))})" if self.rows else ""
        seen = f"{self.severity}: {self.subject}: {self.seen}{rows}"
        return f"{seen}; expected {self.expected}; fix: {self.fix} [{self.code}]"


class Findings(tuple[Finding, ...]):
    """Findings in the order in which they were made, shown as a table in a notebook."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        if not self:
            return "<p>no findings</p>"
        titles = ("", "rule", "where", "seen", "expected", "fix")
        rows = ((each.severity, each.code, each.subject, each.seen, each.expected, each.fix) for each in self)
        return html.table(titles, rows)


def tags(findings: Iterable[Finding]) -> dict[str, str]:
    """Findings as tags of a run, by their codes."""
    return {f"forge.finding.{each.code}": str(each) for each in findings}


def errors(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings that stop what was asked for."""
    return tuple(finding for finding in findings if finding.severity == "error")
