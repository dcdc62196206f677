"""What every command prints with, and the options that many of them share."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from forge_sweep.study import StateCost

Store = Annotated[Path, typer.Option("--store", help="Folder of the embedded MLflow and Optuna stores.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
MLRUNS = Path("mlruns")


def complain(text: str) -> None:
    """An error for people, on standard error."""
    Console(stderr=True).print(f"[bold red]error:[/bold red] {escape(text)}", soft_wrap=True, highlight=False)


def emit(value: Any, indent: int | None = 2) -> None:
    """Print JSON."""
    typer.echo(json.dumps(value, indent=indent, default=str))


def cell(value: Any) -> str:
    """A value in a table."""
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def wide() -> Console:
    """A console for tables: nothing is cut where the output goes to a file or a pipe."""
    return Console() if sys.stdout.isatty() else Console(width=1000)


def print_costs(costs: list[StateCost]) -> None:
    """What the trials of each state cost, and all of them together."""
    if not any(row.cost.seconds for row in costs):
        return
    table = Table("cost of", "count", "seconds", "CPU s", "GPU s", "share", box=None)
    for row in costs:
        figures = (row.cost.seconds, row.cost.cpu_s, row.cost.gpu_s)
        table.add_row(row.state, str(row.count), *(f"{figure:.1f}" for figure in figures), f"{row.share:.0%}")
    wide().print(table)


def print_features(rows: list[dict[str, Any]]) -> None:
    """The audit's figures of every feature, over the training rows."""
    table = Table(*rows[0], box=None)
    for row in rows:
        table.add_row(*map(cell, row.values()))
    wide().print(table)
