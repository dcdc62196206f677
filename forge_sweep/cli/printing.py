"""How commands print: text, errors, JSON and tables.

Names of columns, classes and models come from users: they are never parsed as markup, control characters are escaped,
and characters that the output's encoding lacks are replaced.
"""

from __future__ import annotations

import codecs
import math
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from forge_sweep import jsons

if TYPE_CHECKING:
    from forge_sweep.checks.findings import Finding
    from forge_sweep.study import StateCost

REPLACED = "forge_sweep.ascii"
"""Codec error handler that replaces characters which the output's encoding lacks."""

_IN_ASCII = {
    "\u00b1": "+/-",
    "\u00b5": "u",
    "\u00d7": "x",
    "\u2013": "-",
    "\u2014": "-",
    "\u2019": "'",
    "\u2026": "...",
    "\u2192": "->",
    "\u2264": "<=",
    "\u2265": ">=",
}

_CONTROLS = (*range(0x20), *range(0x7F, 0xA0), 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))
"""Control characters, and those that change the direction of writing."""

_ESCAPED = {code: chr(code).encode("ascii", "backslashreplace").decode() for code in _CONTROLS if code > 0x7F} | {
    code: f"\\x{code:02x}" for code in _CONTROLS if code <= 0x7F and chr(code) not in "\n\t"
}


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    escaped = (_IN_ASCII.get(each) or each.encode("ascii", "backslashreplace").decode() for each in found)
    return "".join(escaped), error.end


def shown(text: object) -> str:
    """Text with its control characters escaped; line breaks stay."""
    return str(text).translate(_ESCAPED)


def console(*, err: bool = False, terminal: bool | None = None) -> Console:
    """A console without markup, emoji or highlighting; ``terminal`` overrides whether it is one."""
    return Console(stderr=err, force_terminal=terminal, force_jupyter=False, markup=False, emoji=False, highlight=False)


def echo(text: object = "", *, err: bool = False) -> None:
    """Print text without wrapping."""
    stream = sys.stderr if err else sys.stdout
    stream.write(f"{shown(text)}\n")
    stream.flush()


def say(text: object, *, err: bool = False, style: str = "", to: Console | None = None) -> None:
    """Print text; on a terminal, long lines are wrapped between words."""
    out = to or console(err=err)
    lines = shown(text)
    if out.is_terminal:
        lines = wrapped(lines, out.width)
    out.print(Text(lines, style=style), soft_wrap=True)


def wrapped(text: str, width: int) -> str:
    """Wrap lines at ``width`` between words; continuation lines are indented, long words stay whole."""
    lines = []
    for line in text.split("\n"):
        margin = len(line) - len(line.lstrip())
        indent = " " * min(margin + 4, width // 4)
        lines += textwrap.wrap(
            line,
            max(width, 20),
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
            replace_whitespace=False,
        ) or [""]
    return "\n".join(lines)


def complain(text: str) -> None:
    """Print an error on standard error."""
    out = console(err=True)
    lines = shown(f"error: {text}")
    body = Text(wrapped(lines, out.width) if out.is_terminal else lines)
    body.stylize("bold red", 0, len("error:"))
    out.print(body, soft_wrap=True)


def emit(value: Any, indent: int | None = 2) -> None:
    """Print JSON."""
    sys.stdout.write(jsons.dumps(value, indent=indent) + "\n")
    sys.stdout.flush()


def cell(value: Any) -> str:
    """A value as one line of text; "-" for None and NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else shown(value).replace("\n", "\\n").replace("\t", "\\t")


def print_table(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table without cutting cells: columns that do not fit follow below, next to the first column again."""
    out = console()
    cells = [[cell(title) for title in titles], *([cell(value) for value in row] for row in rows)]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    if not out.is_terminal:
        out = Console(markup=False, emoji=False, highlight=False, width=sum(widths) + 2 * len(widths) + 1)
    for block in _blocks(widths, out.width):
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for column in block:
            table.add_column(
                Text(cells[0][column]), no_wrap=widths[column] <= _room(widths, out.width), overflow="fold"
            )
        for row in cells[1:]:
            table.add_row(*(Text(row[column]) for column in block))
        out.print(table, crop=False)


def _room(widths: Sequence[int], width: int) -> int:
    """Width of the widest column that fits next to the first one."""
    return max(width - min(widths[0], width // 3) - 4, 10)


def _blocks(widths: Sequence[int], width: int) -> list[list[int]]:
    """The columns of each part of a table; each part starts with the first column."""
    parts, used = [[0]], widths[0] + 2
    for column in range(1, len(widths)):
        needed = min(widths[column], _room(widths, width)) + 2
        if used + needed > width + 2 and len(parts[-1]) > 1:
            parts.append([0])
            used = widths[0] + 2
        parts[-1].append(column)
        used += needed
    return parts


def print_finding(found: Finding, *, error: str = "ERROR") -> None:
    """Print a finding, with what to do where it is none of the good ones; ``error`` is the word for those that stop."""
    mark = {"info": "ok", "warning": "warning", "error": error}[found.severity]
    say(f"{mark:<8} {found.code:<15} {found.subject}: {found.seen}")
    if found.severity != "info":
        say(f"{'':<24} expected {found.expected}; fix: {found.fix}")


def print_costs(costs: list[StateCost]) -> None:
    """Print the cost of the trials of each state, and of all of them."""
    if not any(row.cost.seconds for row in costs):
        return
    titles = ("cost of", "count", "seconds", "CPU s", "GPU s", "share")
    rows = []
    for row in costs:
        seconds = (f"{value:.1f}" for value in (row.cost.seconds, row.cost.cpu_s, row.cost.gpu_s))
        rows.append((row.state, str(row.count), *seconds, f"{row.share:.0%}"))
    print_table(titles, rows)


def print_features(rows: list[dict[str, Any]]) -> None:
    """Print the audit's statistics of every feature on the training rows."""
    if rows:
        print_table(list(rows[0]), [list(row.values()) for row in rows])


codecs.register_error(REPLACED, _in_ascii)
