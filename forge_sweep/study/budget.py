"""The budgets of a search, and what it has spent: plain values, for the sweep that spends and for those who read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from forge_sweep.baselines import untuned_kind

if TYPE_CHECKING:
    from forge_sweep.study.trials import StudyView

PHASES = {
    "start": "start",
    "audit": "audit",
    "preflight": "pre-flight",
    "baselines": "baselines",
    "trials": "trials",
    "confirm": "confirmation",
    "audit_pruned": "audit of pruned trials",
    "publish": "test and registration",
}
"""The phases of a sweep in their order, with what people call them; ``start`` is loading, and opening the stores."""

END_S = 10.0
"""What test evaluation and registration are taken to need."""

ROOM = 1.1
"""Times the expected confirmation for which a search leaves room: it ends with an epoch, not to the second."""

CONFIRM_SHARE = 0.25
"""The most of ``study.total_s`` for which a search leaves room to confirm; a longer one would leave less to find."""

LEAST_SHARE = 0.5
"""No trial is begun in less than this share of the time that the median one took, where ``study.total_s`` is given."""

TUNED = "tuned:"
"""Prefix of the note of each configuration of trees that are tuned, such as ``tuned:xgboost_tuned:0003``."""


def span(seconds: float) -> str:
    """A time for people: seconds, or minutes or hours where there are many."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def phases_words(phases: Mapping[str, float]) -> str:
    """How long a sweep took and of what that consists, such as ``5.0 min: audit 0.4 s, trials 4.9 min``."""
    listed = ", ".join(f"{PHASES.get(name, name)} {span(seconds)}" for name, seconds in phases.items())
    return f"{span(sum(phases.values()))}: {listed}"


@dataclass(frozen=True)
class Spent:
    """What a search has used up, lost attempts included."""

    wall_s: float = 0.0  # seconds in which at least one command searched
    cpu_s: float = 0.0
    gpu_s: float = 0.0  # device-seconds
    without_gain: int = 0  # how many trials `Progress` has counted since the last gain
    total_s: float = 0.0  # seconds of all phases
    end_s: float = 0.0  # seconds that confirmation and registration are expected to take
    next_s: float = 0.0  # seconds that have to be left for a trial that is to begin


@dataclass(frozen=True)
class Over:
    """A budget that is exhausted: its TOML key, and in words what was used up."""

    key: str
    text: str


def over(limits: Mapping[str, Any], spent: Spent) -> Over | None:
    """The first exhausted budget of ``[study]``, of which an older version may lack some; None while all hold."""
    used = {
        "timeout_s": (spent.wall_s, "s of searching"),
        "cpu_budget_s": (spent.cpu_s, "CPU-seconds"),
        "gpu_budget_s": (spent.gpu_s, "GPU-seconds"),
    }
    for key, (value, unit) in used.items():
        limit = limits.get(key)
        if limit is not None and value >= limit:
            return Over(f"study.{key}", f"study.{key} = {limit:g} is exhausted ({value:.4g} {unit})")
    total = limits.get("total_s")
    if total is not None and spent.total_s + spent.end_s + spent.next_s >= total:
        text = f"study.total_s = {total:g} is exhausted ({spent.total_s:.4g} s, and about {spent.end_s:.0f} s to come "
        short = spent.total_s + spent.end_s < total
        more = f"; less than {spent.next_s:.0f} s are left, half of what a trial takes" if short else ""
        return Over("study.total_s", f"{text}for confirmation and registration{more})")
    most = limits.get("plateau_trials")
    if most is not None and spent.without_gain >= most:
        than = f" of more than {delta:g}" if (delta := limits.get("plateau_delta")) else ""
        text = f"study.plateau_trials = {most} is exhausted: as many trials without a gain{than}"
        return Over("study.plateau_trials", text)
    return None


class Progress:
    """Counts trials since the last gain, in the order in which they ended.

    The first finished trial is a gain, and so is each finished trial that is better than the last gain by more than
    ``delta``, in units of the objective. Every other finished or pruned trial counts, from the first gain on; failed
    and imported ones do not.
    """

    def __init__(self, direction: Literal["maximize", "minimize"], delta: float) -> None:
        self.sign = 1 if direction == "maximize" else -1
        self.delta = delta
        self.best: float | None = None
        self.without_gain = 0
        self._seen: set[int] = set()

    def take(self, number: int, objective: float | None) -> None:
        """Count a trial that ended, a pruned one with None; once, however often it is told."""
        if number in self._seen:
            return
        self._seen.add(number)
        if objective is not None and (self.best is None or self.sign * (objective - self.best) > self.delta):
            self.best, self.without_gain = objective, 0
        elif self.best is not None:
            self.without_gain += 1


def union_s(sessions: Iterable[Mapping[str, float]]) -> float:
    """Seconds that lie in at least one of the sessions, each with its ``began`` (since 1970) and its ``seconds``."""
    total, reached = 0.0, float("-inf")
    for session in sorted(sessions, key=lambda session: session["began"]):
        ends = session["began"] + session["seconds"]
        total += max(0.0, ends - max(session["began"], reached))
        reached = max(reached, ends)
    return total


def sides(view: StudyView) -> dict[str, dict[str, float]]:
    """What the search spent on networks and on baselines: trainings and their seconds, the confirmation aside."""
    rows = [row for row in view.rows() if not row.imported and row.state not in ("running", "waiting")]
    seconds = sum(row.seconds or 0.0 if row.cost is None else row.cost.total.seconds for row in rows)
    notes, tuned = view.notes("baseline:"), view.notes(TUNED)
    fits = [note for key, note in notes.items() if not untuned_kind(key.removeprefix("baseline:"))] + [*tuned.values()]
    of_trees = sum(float(note.get("seconds") or 0.0) for note in fits)
    return {
        "networks": {"trainings": len(rows), "seconds": seconds},
        "baselines": {"trainings": len(fits), "seconds": of_trees, "tuned": len(tuned)},
    }


def sides_words(found: Mapping[str, Mapping[str, float]]) -> str:
    """Such as ``24 trainings of networks in 5.1 min, 23 fits of baselines in 9.1 s, 20 of them to tune trees``."""
    networks, others = found["networks"], found["baselines"]
    return (
        f"{networks['trainings']:g} trainings of networks in {span(networks['seconds'])}, "
        f"{others['trainings']:g} fits of baselines in {span(others['seconds'])}, "
        f"{others['tuned']:g} of them to tune trees"
    )
