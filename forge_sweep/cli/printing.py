"""What every command prints with, and the options that many of them share.

Names of columns, classes and models are the user's: nothing here takes them for markup, lets them steer the terminal,
or breaks on a character that the terminal cannot show.
"""

from __future__ import annotations

import codecs
import math
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from forge_sweep import jsons

if TYPE_CHECKING:
    from forge_sweep.study import StateCost

Store = Annotated[Path, typer.Option("--store", help="Folder of the embedded MLflow and Optuna stores.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
MLRUNS = Path("mlruns")

REPLACED = "forge_sweep.ascii"
"""Name of what happens to a character that the output's encoding lacks."""

IN_ASCII = {
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
"""Our own signs, and how they are spelt there."""

STEERING = (*range(0x20), *range(0x7F, 0xA0), 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))
"""Characters that steer a terminal, or turn the direction of writing."""

CONTROL = {code: chr(code).encode("ascii", "backslashreplace").decode() for code in STEERING if code > 0x7F} | {
    code: f"\\x{code:02x}" for code in STEERING if code <= 0x7F and chr(code) not in "\n\t"
}
"""How they are shown."""


def in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Spell out what an encoding lacks; what has no other spelling is escaped."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    escaped = (IN_ASCII.get(each) or each.encode("ascii", "backslashreplace").decode() for each in found)
    return "".join(escaped), error.end


def shown(text: object) -> str:
    """A user's text as a terminal may have it: on as many lines as it has, and with no control characters."""
    return str(text).translate(CONTROL)


def console(*, err: bool = False) -> Console:
    """A console that prints text as it is."""
    return Console(stderr=err, markup=False, emoji=False, highlight=False)


def echo(text: object = "", *, err: bool = False) -> None:
    """Print text as it is, whatever the width."""
    stream = sys.stderr if err else sys.stdout
    stream.write(f"{shown(text)}\n")
    stream.flush()


def say(text: object, *, err: bool = False, style: str = "", to: Console | None = None) -> None:
    """Print text for a person: on a terminal it is wrapped between words, elsewhere a line stays a line."""
    out = to or console(err=err)
    lines = shown(text)
    if out.is_terminal:
        lines = wrapped(lines, out.width)
    out.print(Text(lines, style=style), soft_wrap=True)


def wrapped(text: str, width: int) -> str:
    """Lines of at most ``width``, broken between words; what goes on is indented, and a long word stays whole."""
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
    """An error for people, on standard error."""
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
    """A value in a table, on one line."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else shown(value).replace("\n", "\\n").replace("\t", "\\t")


def print_table(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table in which nothing is cut: columns that a terminal has no room for go on below, beside the first one.

    Args:
        titles: names of the columns.
        rows: a value for each of them.
    """
    out = console()
    cells = [[cell(title) for title in titles], *([cell(value) for value in row] for row in rows)]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    if not out.is_terminal:
        out = Console(markup=False, emoji=False, highlight=False, width=sum(widths) + 2 * len(widths) + 1)
    for block in blocks(widths, out.width):
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for column in block:
            table.add_column(Text(cells[0][column]), no_wrap=widths[column] <= room(widths, out.width), overflow="fold")
        for row in cells[1:]:
            table.add_row(*(Text(row[column]) for column in block))
        out.print(table, crop=False)


def room(widths: Sequence[int], width: int) -> int:
    """The widest column that fits beside the first one."""
    return max(width - min(widths[0], width // 3) - 4, 10)


def blocks(widths: Sequence[int], width: int) -> list[list[int]]:
    """The columns of each part of a table; every part begins with the first one."""
    parts, used = [[0]], widths[0] + 2
    for column in range(1, len(widths)):
        needed = min(widths[column], room(widths, width)) + 2
        if used + needed > width + 2 and len(parts[-1]) > 1:
            parts.append([0])
            used = widths[0] + 2
        parts[-1].append(column)
        used += needed
    return parts


def print_costs(costs: list[StateCost]) -> None:
    """What the trials of each state cost, and all of them together."""
    if not any(row.cost.seconds for row in costs):
        return
    titles = ("cost of", "count", "seconds", "CPU s", "GPU s", "share")
    figures = ((row.state, row.count, row.cost, f"{row.share:.0%}") for row in costs)
    print_table(
        titles,
        [
            (state, str(count), *(f"{seconds:.1f}" for seconds in (cost.seconds, cost.cpu_s, cost.gpu_s)), share)
            for state, count, cost, share in figures
        ],
    )


def print_features(rows: list[dict[str, Any]]) -> None:
    """The audit's figures of every feature, over the training rows."""
    if rows:
        print_table([str(name) for name in rows[0]], [list(row.values()) for row in rows])


def print_lines(lines: Mapping[str, Any], width: int) -> None:
    """A name and a value on each line; a long value goes on below, beside its name."""
    for name, value in lines.items():
        say(f"{name:<{width}}{value}")


codecs.register_error(REPLACED, in_ascii)
