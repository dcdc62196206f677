"""Three ways to watch a sweep: lines and what runs now on a terminal, plain lines elsewhere, JSON for machines."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from forge_sweep.cli.printing import cell, emit, say, shown, wrapped
from forge_sweep.cli.surroundings import nowhere

if TYPE_CHECKING:
    from forge_sweep.experiment import Experiment
    from forge_sweep.sweep import Event, Watch

ENDED = ("finished", "pruned", "failed")
COLOURS = {"error": "bold red", "warning": "yellow", "info": "dim"}

ALIKE = 3
"""Findings of one kind that are printed; the others are counted."""

SHOWN_NOW = 4
"""Trials that run at once and are shown."""


@contextmanager
def watching(experiment: Experiment, *, as_json: bool, console: Console) -> Iterator[Watch]:
    """The watcher that fits where the output goes; the sweep goes on where nobody reads it any more."""
    if as_json:
        yield unbroken(json_lines)
        return
    pace = Pace(experiment)
    lines = PlainLines(console, pace)
    try:
        if console.is_terminal and not console.is_dumb_terminal:
            below = Below(console, lines, pace)
            with Live(below, console=console, refresh_per_second=4, transient=True):
                yield unbroken(below.watch)
        else:
            yield unbroken(lines.watch)
    finally:
        lines.close()


def unbroken(watch: Watch) -> Watch:
    """A watcher whose output may end (`| head`, a lost terminal) without ending the sweep."""
    heard = True

    def listen(event: Event) -> None:
        nonlocal heard
        if not heard:
            return
        try:
            watch(event)
        except OSError as error:
            heard = False
            sys.stdout = nowhere()
            say(f"warning: the output is gone ({error.strerror}); the sweep goes on without it", err=True)

    return listen


def json_lines(event: Event) -> None:
    """One JSON object a line, on standard output."""
    emit({"event": event.kind, **event.data}, indent=None)


def figure(value: Any) -> str:
    """A score as people read it."""
    return "-" if value is None else f"{value:.4f}"


def duration(seconds: float) -> str:
    """``40 s``, ``3.5 min`` or ``2.1 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class Pace:
    """How much of a phase is behind, and how long the rest will take at the pace so far.

    Args:
        experiment: says what is searched and how many trainings the confirmation takes.
    """

    def __init__(self, experiment: Experiment) -> None:
        from forge_sweep.experiment import Dimension

        self.searched = [name for name, value in experiment.space.items() if isinstance(value, Dimension)]
        self.epochs = experiment.study.epochs
        self.to_confirm = min(experiment.confirm.top, experiment.study.n_trials) * experiment.confirm.seeds
        self.phase = ""
        self.total = self.done = self.before = 0
        self.finished_s: list[float] = []
        self.began = time.monotonic()

    def take(self, event: Event) -> None:
        """Count an event."""
        data = event.data
        if event.kind == "phase":
            self.phase, self.total, self.done = data["name"], data.get("total", 0), data.get("done", 0)
            self.before, self.began = self.done, time.monotonic()
        elif event.kind == "confirming":
            self.total = data["runs"]
        elif event.kind in ("baseline", "confirm", "trial_done"):
            self.done += 1
            if data.get("state") == "finished":
                self.finished_s.append(data["seconds"])

    @property
    def left_s(self) -> float | None:
        """Seconds of this phase that are left, and while trials run those of the confirmation; None: nobody knows."""
        here, left = self.done - self.before, self.total - self.done
        if here < 1 or left < 0:
            return None
        seconds = (time.monotonic() - self.began) / here * left
        if self.phase == "trials" and self.finished_s:
            seconds += self.to_confirm * sum(self.finished_s) / len(self.finished_s)
        return seconds

    @property
    def words(self) -> str:
        """``3 of 12, about 40 s left``, or "" where the number of steps is not known."""
        if not self.total:
            return ""
        left = self.left_s
        about = "" if left is None or self.done >= self.total else f", about {duration(left)} left"
        return f"{self.done} of {self.total}{about}"


PHASES = {
    "audit": "audit of {dataset}",
    "preflight": "pre-flight: smallest and largest model",
    "baselines": "baselines",
    "trials": "trials: {done} of {total} done",
    "confirm": "confirmation over several seeds",
    "publish": "one look at the test split, registration",
}


def params_in_words(params: Mapping[str, Any], names: Sequence[str]) -> str:
    """The hyperparameters that are searched."""
    return ", ".join(f"{name} {cell(params[name])}" for name in names if name in params)


def trial_line(data: Mapping[str, Any], pace: Pace) -> str:
    """How one trial ended."""
    params = params_in_words(data.get("params", {}), pace.searched)
    if data["state"] == "failed":
        tried = f"  ({params})" if params else ""
        return f"  trial {data['number']:<4} failed ({data['failure']}): {data['cause']}{tried}"
    best = "" if data["best"] is None else f"  best {figure(data['best'])}"
    delta = "" if data["delta"] is None else f"  vs. baseline {data['delta']:+.4f}"
    cost = f"{data['epochs']} epochs, {data['seconds']:.1f} s"
    parts = [f"  trial {data['number']:<4} {data['state']:<8} {figure(data['value'])}{best}{delta}", cost]
    return "  ".join([*parts, *(f"({words})" for words in (pace.words,) if words), *([params] if params else [])])


class PlainLines:
    """One line per event that matters; what repeats itself is counted.

    Args:
        console: where they go.
        pace: how far the sweep is; told of every event here.
    """

    def __init__(self, console: Console, pace: Pace) -> None:
        self.console = console
        self.pace = pace
        self.said: Counter[str] = Counter()
        self.alike: dict[str, list[str]] = {}

    def watch(self, event: Event) -> None:
        """Print the event."""
        self.pace.take(event)
        data = event.data
        match event.kind:
            case "phase":
                self.close()
                self.print(PHASES[data["name"]].format_map(data))
            case "finding" if data["severity"] == "warning":
                # errors are said once, by the refusal that follows
                subjects = self.alike.setdefault(data["code"], [])
                subjects.append(data["subject"])
                if len(subjects) <= ALIKE:
                    self.label("warning", data["text"])
            case "message":
                self.said[data["text"]] += 1
                if self.said[data["text"]] == 1:
                    self.label(data["severity"], data["text"])
            case "baseline":
                words = f"{data['seconds']:.1f} s" + f"; {self.pace.words}" * bool(self.pace.words)
                self.print(f"  {data['name']:<24} {figure(data['value'])}  ({words})")
            case "trial_done" if data["state"] == "failed":
                self.label("warning", trial_line(data, self.pace), named=False)
            case "trial_done":
                self.print(trial_line(data, self.pace))
            case "confirm":
                words = f"  ({self.pace.words})" if self.pace.words else ""
                self.print(f"  {data['words']:<24} seed {data['seed']}  {figure(data['value'])}{words}")

    def close(self) -> None:
        """Say how often what repeated itself came."""
        for code, subjects in self.alike.items():
            if len(subjects) > ALIKE:
                more = len(subjects) - ALIKE
                names = ", ".join(subjects[ALIKE : ALIKE + 10]) + ", ..." * (more > 10)
                self.label("warning", f"{more} more of the kind {code}: {names}")
        self.alike.clear()
        for text, count in self.said.items():
            if count > 1:
                self.label("info", f"said {count} times: {text[:120]}")
        self.said.clear()

    def label(self, severity: str, text: str, *, named: bool = True) -> None:
        """Text in the colour of its severity, which stands before it."""
        label = "" if not named or text.startswith(severity) or severity == "info" else f"{severity}: "
        self.print(f"{label}{text}", style=COLOURS[severity])

    def print(self, text: str, style: str = "") -> None:
        """A line."""
        say(text, style=style, to=self.console)


class Below:
    """What runs now, below the lines of what is over.

    Args:
        console: where it is drawn.
        lines: what is over.
        pace: how far the sweep is.
    """

    def __init__(self, console: Console, lines: PlainLines, pace: Pace) -> None:
        self.console = console
        self.lines = lines
        self.pace = pace
        self.states: Counter[str] = Counter()
        self.best: float | None = None
        self.baselines: dict[str, float] = {}
        self.now: dict[Any, str] = {}

    def watch(self, event: Event) -> None:
        """Take in an event."""
        data = event.data
        if event.kind == "phase":
            self.now.clear()
        if event.kind == "phase" and data["name"] == "trials":
            self.baselines, self.best = data["baselines"], data["best"]
            self.states = Counter(data["states"])
        elif event.kind == "baseline_started":
            self.now = {data["name"]: data["name"]}
        elif event.kind == "confirm_started":
            self.now[data["name"]] = f"{data['words']}, seed {data['seed']}"
        elif event.kind == "confirm":
            self.now.pop(data["name"], None)
        elif event.kind == "trial_started":
            params = params_in_words(data["params"], self.pace.searched)
            self.now[data["number"]] = f"trial {data['number']}: {params}"
        elif event.kind == "epoch":
            losses = ", ".join(f"{name} {figure(data['metrics'].get(name))}" for name in ("loss", "val_loss"))
            where = f"epoch {data['epoch']} of {self.pace.epochs}"
            self.now[data["number"]] = f"trial {data['number']}, {where}: {losses}"
        elif event.kind == "trial_done":
            self.now.pop(data["number"], None)
            self.states[data["state"]] += 1
            self.best = data["best"]
        self.lines.watch(event)

    def __rich__(self) -> Text:
        """The lines."""
        lines = []
        if self.pace.phase == "trials":
            counts = ", ".join(f"{self.states[state]} {state}" for state in ENDED)
            baseline = next(iter(self.baselines.items()), None)
            best = f"best {figure(self.best)}" + (
                f", best baseline {baseline[0]} {figure(baseline[1])}" if baseline else ""
            )
            lines += [f"trials {self.pace.words}", counts, best]
        elif self.pace.words:
            lines.append(f"{self.pace.phase} {self.pace.words}")
        now = list(self.now.values())
        lines += [f"now {text}" for text in now[:SHOWN_NOW]]
        if len(now) > SHOWN_NOW:
            lines.append(f"and {len(now) - SHOWN_NOW} more")
        return Text(wrapped(shown("\n".join(lines)), self.console.width) if lines else "", style="bold")
