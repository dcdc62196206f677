"""Three ways to watch a sweep: a live table on a terminal, plain lines elsewhere, JSON lines for machines."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from forge_sweep.sweep import Event, Watch

ENDED = ("finished", "pruned", "failed")
COLOURS = {"error": "bold red", "warning": "yellow", "info": "dim"}


@contextmanager
def watching(*, as_json: bool, console: Console) -> Iterator[Watch]:
    """The watcher that fits where the output goes."""
    if as_json:
        yield json_lines
    elif console.is_terminal:
        table = LiveTable(console)
        with Live(table, console=console, refresh_per_second=4, transient=True):
            yield table.watch
    else:
        yield PlainLines(console).watch


def json_lines(event: Event) -> None:
    """One JSON object a line, on standard output."""
    sys.stdout.write(json.dumps({"event": event.kind, **event.data}, default=str) + "\n")
    sys.stdout.flush()


def figure(value: Any) -> str:
    """A score as people read it."""
    return "-" if value is None else f"{value:.4f}"


def line(event: Event) -> str | None:
    """An event as one line of text; None for those that are too many to print."""
    data = event.data
    match event.kind:
        case "phase":
            return PHASES[data["name"]].format_map(data)
        case "finding":
            # errors are said once, by the refusal that follows
            return coloured("warning", data["text"]) if data["severity"] == "warning" else None
        case "message":
            return coloured(data["severity"], data["text"])
        case "baseline":
            return f"  {data['name']:<24} {figure(data['value'])}  ({data['seconds']:.1f} s)"
        case "trial_done":
            return trial_line(data)
        case "confirm":
            return f"  {escape(data['words']):<24} seed {data['seed']}  {figure(data['value'])}"
    return None


PHASES = {
    "audit": "audit of {dataset}",
    "preflight": "pre-flight: smallest and largest model",
    "baselines": "baselines",
    "trials": "trials: {done} of {total} done",
    "confirm": "confirmation over several seeds",
    "publish": "one look at the test split, registration",
}


def trial_line(data: Any) -> str:
    """How one trial ended."""
    if data["state"] == "failed":
        return coloured("warning", f"  trial {data['number']:<4} failed ({data['failure']}): {data['cause']}")
    delta = "" if data["delta"] is None else f"  vs. baseline {data['delta']:+.4f}"
    cost = f"{data['epochs']} epochs, {data['seconds']:.1f} s"
    return f"  trial {data['number']:<4} {data['state']:<8} {figure(data['value'])}{delta}  {cost}"


def coloured(severity: str, text: str) -> str:
    """Text in the colour of its severity."""
    colour = COLOURS[severity]
    label = "" if text.startswith(severity) or severity == "info" else f"{severity}: "
    return f"[{colour}]{label}{escape(text)}[/{colour}]"


class PlainLines:
    """One line per event that matters."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def watch(self, event: Event) -> None:
        """Print the event."""
        text = line(event)
        if text is not None:
            self.console.print(text, soft_wrap=True, highlight=False)


class LiveTable:
    """Lines for what is over, and below them a table of what runs now."""

    def __init__(self, console: Console) -> None:
        self.lines = PlainLines(console)
        self.states: Counter[str] = Counter()
        self.total = 0
        self.already = 0
        self.best: float | None = None
        self.baselines: dict[str, float] = {}
        self.current = ""
        self.began = time.monotonic()

    def watch(self, event: Event) -> None:
        """Take in an event."""
        data = event.data
        if event.kind == "phase":
            self.current = data["name"]
        if event.kind == "phase" and data["name"] == "trials":
            self.total, self.already, self.baselines = data["total"], data["done"], data["baselines"]
            self.states.update(data["states"])
            self.best = data["best"]
            self.began = time.monotonic()
        elif event.kind == "trial_started":
            self.current = f"trial {data['number']}"
        elif event.kind == "epoch":
            self.current = f"trial {data['number']}, epoch {data['epoch']}: " + ", ".join(
                f"{name} {figure(data['metrics'].get(name))}" for name in ("loss", "val_loss")
            )
        elif event.kind == "trial_done":
            self.states[data["state"]] += 1
            self.best = data["best"]
        self.lines.watch(event)

    @property
    def done(self) -> int:
        """Trials that ended, those of earlier processes included."""
        return sum(self.states[state] for state in ENDED)

    @property
    def eta(self) -> str:
        """Time left at the pace so far."""
        done, left = self.done - self.already, self.total - self.done
        if not done or left <= 0:
            return "-"
        seconds = (time.monotonic() - self.began) / done * left
        return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"

    def __rich__(self) -> Table:
        """The table."""
        table = Table(box=None, show_header=True, header_style="bold")
        for title in ("trials", *ENDED, "best", "best baseline", "time left", "now"):
            table.add_column(title)
        baseline = next(iter(self.baselines.items()), None)
        table.add_row(
            f"{self.done}/{self.total}",
            *(str(self.states[state]) for state in ENDED),
            figure(self.best),
            f"{baseline[0]} {figure(baseline[1])}" if baseline else "-",
            self.eta,
            self.current,
        )
        return table
