"""What a sweep prints: a live view on a terminal, plain lines elsewhere, or JSON; and its result at the end."""

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

from forge_sweep.cli.printing import cell, echo, emit, print_table, say, shown, wrapped
from forge_sweep.cli.surroundings import null_stream
from forge_sweep.task.words import figure, side_by_side

if TYPE_CHECKING:
    from forge_sweep.experiment import Experiment
    from forge_sweep.study import TrialRow
    from forge_sweep.sweep import Event, SweepResult, Watch

_ENDED = ("finished", "pruned", "failed")
INFEASIBLE = "infeasible"  # a failure for the search, and nothing that went wrong
_COLOURS = {"error": "bold red", "warning": "yellow", "info": "dim"}

_ALIKE = 3
"""Findings of one kind that are printed; the rest are counted."""

_SHOWN_NOW = 4
"""Running trials in the live view."""


@contextmanager
def watching(experiment: Experiment, *, as_json: bool, console: Console) -> Iterator[Watch]:
    """The watcher that fits the output: JSON lines, a live view, or plain lines."""
    if as_json:
        yield _unbroken(json_lines)
        return
    lines = PlainLines(console, Pace(experiment))
    try:
        if console.is_terminal and not console.is_dumb_terminal:
            live = LiveView(lines)
            with Live(live, console=console, refresh_per_second=4, transient=True):
                yield _unbroken(live.watch)
        else:
            yield _unbroken(lines.watch)
    finally:
        lines.close()


def _unbroken(watch: Watch) -> Watch:
    """A watcher that goes silent, without ending the sweep, once its output is closed (`| head`, a lost terminal)."""
    open_ = True

    def listen(event: Event) -> None:
        nonlocal open_
        if not open_:
            return
        try:
            watch(event)
        except OSError as error:
            open_ = False
            sys.stdout = null_stream()
            say(f"warning: output closed ({error.strerror}); the sweep continues without it", err=True)

    return listen


def json_lines(event: Event) -> None:
    """Print an event as one line of JSON."""
    emit({"event": event.kind, **event.data}, indent=None)


class Pace:
    """Counts the steps of a phase and estimates how long the rest will take."""

    def __init__(self, experiment: Experiment) -> None:
        from forge_sweep.experiment import Dimension

        self.searched = [name for name, value in experiment.space.items() if isinstance(value, Dimension)]
        self.epochs, self.parts, self.step = experiment.study.epochs, experiment.trainings, experiment.step
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
        elif event.kind in ("baseline", "confirm", "audit", "trial_done"):
            self.done += 1
            if data.get("state") == "finished":
                self.finished_s.append(data["seconds"])

    @property
    def left_s(self) -> float | None:
        """Estimated seconds left in this phase, during trials including the confirmation; None: unknown yet."""
        here, left = self.done - self.before, self.total - self.done
        if here < 1 or left < 0:
            return None
        seconds = (time.monotonic() - self.began) / here * left
        if self.phase == "trials" and self.finished_s:
            seconds += self.to_confirm * sum(self.finished_s) / len(self.finished_s)
        return seconds

    @property
    def words(self) -> str:
        """``3 of 12, about 40 s left``, or "" if the number of steps is unknown."""
        if not self.total:
            return ""
        done, left = f"{self.done} of {self.total}", self.left_s
        if left is None or self.done >= self.total:
            return done
        if left < 100:
            return f"{done}, about {left:.0f} s left"
        return f"{done}, about " + (f"{left / 60:.1f} min left" if left < 6000 else f"{left / 3600:.1f} h left")


_PHASES = {
    "audit": "audit of {dataset}",
    "preflight": "pre-flight: smallest and largest model",
    "baselines": "baselines",
    "trials": "trials: {done} of {total} done",
    "confirm": "confirmation over several seeds",
    "audit_pruned": "audit of {total} pruned trials, trained again to their ends",
    "publish": "test evaluation and registration",
}


def _params_words(params: Mapping[str, Any], names: Sequence[str]) -> str:
    return ", ".join(f"{name} {cell(params[name])}" for name in names if name in params)


def _trial_line(data: Mapping[str, Any], pace: Pace) -> str:
    params = _params_words(data.get("params", {}), pace.searched)
    if data["state"] == "failed":
        tried = f"  ({params})" if params else ""
        how = data["failure"] if data["failure"] == INFEASIBLE else f"failed ({data['failure']})"
        return f"  trial {data['number']:<4} {how}: {data['cause']}{tried}"
    best = "" if data["best"] is None else f"  best {figure(data['best'])}"
    delta = "" if data["delta"] is None else f"  vs. baseline {data['delta']:+.4f}"
    cost = f"{data['epochs']} {pace.step}{'s' * (data['epochs'] != 1)}, {data['seconds']:.1f} s"
    further = "".join(f"  {name} {figure(value)}" for name, value in data.get("further", {}).items())
    parts = [f"  trial {data['number']:<4} {data['state']:<8} {figure(data['value'])}{further}{best}{delta}", cost]
    return "  ".join([*parts, *(f"({words})" for words in (pace.words,) if words), *([params] if params else [])])


class PlainLines:
    """Prints one line per event that matters; repetitions are counted. Keeps the pace."""

    def __init__(self, console: Console, pace: Pace) -> None:
        self.console = console
        self.pace = pace
        self.said: Counter[str] = Counter()
        self.alike: dict[str, list[str]] = {}

    def watch(self, event: Event) -> None:
        """Print an event."""
        self.pace.take(event)
        data = event.data
        match event.kind:
            case "phase":
                self.close()
                self._print(_PHASES[data["name"]].format_map(data))
                if groups := data.get("groups"):
                    each = "train {train}, validation {valid}, test {test}".format_map(groups)
                    self._print(f"  groups: {sum(groups.values())} ({each})")
            case "finding" if data["severity"] == "warning":
                # errors are printed by the refusal that follows
                subjects = self.alike.setdefault(data["code"], [])
                subjects.append(data["subject"])
                if len(subjects) <= _ALIKE:
                    self._label("warning", data["text"])
            case "message":
                self.said[data["text"]] += 1
                if self.said[data["text"]] == 1:
                    self._label(data["severity"], data["text"])
            case "baseline":
                words = f"{data['seconds']:.1f} s" + f"; {self.pace.words}" * bool(self.pace.words)
                self._print(f"  {data['name']:<24} {figure(data['value'])}  ({words})")
            case "trial_done" if data["state"] == "failed" and data["failure"] != INFEASIBLE:
                self._label("warning", _trial_line(data, self.pace), named=False)
            case "trial_done":
                self._print(_trial_line(data, self.pace))
            case "confirm":
                words = f"  ({self.pace.words})" if self.pace.words else ""
                self._print(f"  {data['words']:<24} seed {data['seed']}  {figure(data['value'])}{words}")

            case "audit":
                words = f"  ({self.pace.words})" if self.pace.words else ""
                self._print(f"  trial {data['number']:<4} audited  {figure(data['value'])}{words}")

    def close(self) -> None:
        """Print the counts of repeated findings and messages."""
        for code, subjects in self.alike.items():
            if len(subjects) > _ALIKE:
                more = len(subjects) - _ALIKE
                names = ", ".join(subjects[_ALIKE : _ALIKE + 10]) + ", ..." * (more > 10)
                self._label("warning", f"{more} more {code} warnings: {names}")
        self.alike.clear()
        for text, count in self.said.items():
            if count > 1:
                self._label("info", f"repeated {count} times: {text[:120]}")
        self.said.clear()

    def _label(self, severity: str, text: str, *, named: bool = True) -> None:
        label = "" if not named or text.startswith(severity) or severity == "info" else f"{severity}: "
        self._print(f"{label}{text}", style=_COLOURS[severity])

    def _print(self, text: str, style: str = "") -> None:
        say(text, style=style, to=self.console)


class LiveView:
    """The running trials and the progress, redrawn below the lines of finished steps."""

    def __init__(self, lines: PlainLines) -> None:
        self.lines = lines
        self.pace = lines.pace
        self.states: Counter[str] = Counter()
        self.best: float | None = None
        self.baselines: dict[str, float] = {}
        self.now: dict[Any, str] = {}

    def watch(self, event: Event) -> None:
        """Update the view with an event, and print it if it is final."""
        data = event.data
        match event.kind:
            case "phase":
                self.now.clear()
                if data["name"] == "trials":
                    self.baselines, self.best, self.states = data["baselines"], data["best"], Counter(data["states"])
            case "baseline_started":
                self.now = {data["name"]: data["name"]}
            case "confirm_started":
                self.now[data["name"]] = f"{data['words']}, seed {data['seed']}"
            case "audit_started":
                self.now[data["name"]] = f"audit of trial {data['number']}"
            case "confirm" | "audit":
                self.now.pop(data["name"], None)
            case "trial_started":
                params = _params_words(data["params"], self.pace.searched)
                self.now[data["number"]] = f"trial {data['number']}: {params}"
            case "epoch":
                losses = ", ".join(f"{name} {figure(data['metrics'].get(name))}" for name in ("loss", "val_loss"))
                where = f"epoch {data['epoch']} of {self.pace.epochs}"
                if "part" in data:
                    where = f"{data['part'].replace('_', ' ')} of {self.pace.parts}, {where}"
                self.now[data["number"]] = f"trial {data['number']}, {where}: {losses}"
            case "trial_done":
                self.now.pop(data["number"], None)
                self.states[data["state"]] += 1
                self.best = data["best"]
        self.lines.watch(event)

    def __rich__(self) -> Text:
        lines = []
        if self.pace.phase == "trials":
            counts = ", ".join(f"{self.states[state]} {state}" for state in _ENDED)
            best = [f"best {figure(self.best)}"]
            best += [f"best baseline {name} {figure(value)}" for name, value in list(self.baselines.items())[:1]]
            lines += [f"trials {self.pace.words}", counts, ", ".join(best)]
        elif self.pace.words:
            lines.append(f"{self.pace.phase} {self.pace.words}")
        now = list(self.now.values())
        lines += [f"now {text}" for text in now[:_SHOWN_NOW]]
        if len(now) > _SHOWN_NOW:
            lines.append(f"and {len(now) - _SHOWN_NOW} more")
        return Text(wrapped(shown("\n".join(lines)), self.lines.console.width) if lines else "", style="bold")


def print_result(name: str, result: SweepResult) -> None:
    """Print the winner, the verdict, all candidates, and the test evaluation."""
    from forge_sweep.study import phases_words

    echo()
    print_table(*result.candidates())
    if result.evaluation is not None:
        echo()
        print_table(*side_by_side(result.evaluation))
    echo()
    counts = ", ".join(f"{count} {state}" for state, count in result.trials.items())
    ended = "" if result.ended_by == "study.n_trials" else f"; ended by {result.ended_by}"
    say(f"winner    {winner_words(result.winner, result.objective)}")
    say(f"verdict   {result.verdict}")
    if result.evaluation is None:
        say("test      " + ", ".join(f"{name} {figure(value)}" for name, value in result.test.items()))
    say(f"search    best in the search: {searched(result.best, result.objective)}")
    if result.front is not None:
        print_front(result.front)
    if result.optimism is not None:
        say(f"optimism  {result.optimism['words']}")
    say(f"trials    {counts or 'none'}{ended}")
    if result.audit is not None:
        say(f"pruning   {result.audit['words']}")
    if result.phases:
        say(f"took      {phases_words(result.phases)}")
    for each in result.findings:
        if each["severity"] == "warning":
            text = f"warning   {each['subject']}: {each['seen']}; fix: {each['fix']} [{each['section']}]"
            say(text, style=_COLOURS["warning"])
    say(f"run       {result.run_id}")
    say(f"model     {result.model}")
    echo(f"open      forge-sweep ui {name}, then {result.link}")  # a wrapped link could not be clicked


def print_front(front: Mapping[str, Any]) -> None:
    """Print a Pareto front, as `Front.to_dict` gives it: a table of its trials, the chosen one first, and the rule."""
    names = list(front["objectives"])
    rows = [
        (f"{each['number']}{' (chosen)' * (each['number'] == front['chosen'])}", *(figure(each[n]) for n in names))
        for each in front["trials"]
    ]
    print_table(("on the Pareto front", *names), rows)
    say(f"front     {front['words']}")
    say(f"rule      {front['rule']}")


def winner_words(winner: Mapping[str, Any], objective: str) -> str:
    """The registered model with its mean score and its parameters."""
    seeds = len(winner["values"])
    chosen = {} if winner["baseline"] else winner["params"]  # a baseline's are its library's defaults
    params = ", ".join(f"{name} {cell(value)}" for name, value in chosen.items())
    mean = f"{objective} {figure(winner['mean'])} over {seeds} seed{'s' * (seeds > 1)}"
    together = f"an ensemble of {winner['ensemble']} models; the best alone: " if winner.get("ensemble") else ""
    return f"{together}{winner['words']}, {mean}{f'; {params}' if params else ''}"


def searched(best: Mapping[str, Any] | TrialRow | None, objective: str) -> str:
    """The trial with the best single score, such as ``trial 9, val_auc 0.9994``."""
    if not best:
        return "no trial finished"
    number, value = (best["number"], best["value"]) if isinstance(best, Mapping) else (best.number, best.value)
    seeds = 1 if isinstance(best, Mapping) else best.seeds
    return f"trial {number}, {objective} {figure(value)}" + (f", the mean of {seeds} seeds" if seeds > 1 else "")
