"""What trials cost, and whether a budget is over: plain values, for the sweep that spends and for those who read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from forge_sweep.study.view import TrialRow

LOST = "lost"
"""Row of a table of costs: what was spent and gave nothing."""


PHASES = {
    "start": "start",
    "audit": "audit",
    "preflight": "pre-flight",
    "baselines": "baselines",
    "trials": "trials",
    "confirm": "confirmation",
    "publish": "test and registration",
}
"""The phases of a sweep in their order, with what people call them; ``start`` is loading, and opening the stores."""


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
class Cost:
    """What a training took.

    Attributes:
        seconds: wall clock.
        cpu_s: CPU seconds of the process that trained, over all of its threads.
        gpu_s: device-seconds: wall clock times the GPUs, or the part of one, that were held.
    """

    seconds: float = 0.0
    cpu_s: float = 0.0
    gpu_s: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.seconds + other.seconds, self.cpu_s + other.cpu_s, self.gpu_s + other.gpu_s)

    def __sub__(self, other: Cost) -> Cost:
        return self + other * -1

    def __mul__(self, share: float) -> Cost:
        return Cost(self.seconds * share, self.cpu_s * share, self.gpu_s * share)

    def words(self) -> str:
        """For people, such as ``12.5 s (11.9 CPU-seconds)``."""
        more = [(self.cpu_s, "CPU-seconds"), (self.gpu_s, "GPU-seconds")]
        listed = ", ".join(f"{value:.1f} {unit}" for value, unit in more if value)
        return f"{self.seconds:.1f} s" + (f" ({listed})" if listed else "")

    def to_dict(self) -> dict[str, float]:
        """JSON values, to the millisecond."""
        return {name: round(value, 3) for name, value in asdict(self).items()}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Cost:
        """What `to_dict` gave."""
        return cls(*(float(values[field.name]) for field in fields(cls)))


NOTHING = Cost()


@dataclass(frozen=True)
class TrialCost:
    """What one trial cost so far, over all of its attempts.

    Attributes:
        total: everything.
        lost: the part of it that gave nothing: attempts whose process died, and epochs that had to be trained again.
        epochs: how many completed epochs the rest gave.
    """

    total: Cost = NOTHING
    lost: Cost = NOTHING
    epochs: int = 0

    @property
    def kept(self) -> Cost:
        """What is not lost."""
        return self.total - self.lost

    def resumed_at(self, epoch: int) -> TrialCost:
        """The same when the trial goes on with the 0-based ``epoch``: those from there on are trained again.

        What they had cost is not known singly: each counts alike, the preparations among them.
        """
        if epoch >= self.epochs:
            return self
        again = 1 - epoch / self.epochs
        return TrialCost(self.total, self.lost + self.kept * again, epoch)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**self.total.to_dict(), "lost": self.lost.to_dict(), "epochs": self.epochs}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> TrialCost:
        """What `to_dict` gave."""
        return cls(Cost.of(values), Cost.of(values["lost"]), int(values["epochs"]))


NO_COST = TrialCost()


@dataclass(frozen=True)
class StateCost:
    """What the trials of one state cost together.

    Attributes:
        state: ``finished``, ``pruned``, ``failed``, ``running``, ``waiting``, or ``lost``.
        count: trials; for ``lost``, attempts whose process died.
        cost: what was spent on them, lost parts aside, which stand under ``lost``.
        share: of the wall clock of all trials, 0 to 1.
    """

    state: str
    count: int
    cost: Cost
    share: float

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"state": self.state, "count": self.count, **self.cost.to_dict(), "share": round(self.share, 4)}


def by_state(rows: Iterable[TrialRow]) -> list[StateCost]:
    """What the trials of each state cost, imported ones aside; ``lost`` comes last, and only where there is any."""
    spent: dict[str, tuple[int, Cost]] = {}

    def add(state: str, count: int, cost: Cost) -> None:
        before, sum_before = spent.get(state, (0, NOTHING))
        spent[state] = before + count, sum_before + cost

    for row in rows:
        if row.imported:
            continue
        given_up = row.failure == "lost-worker"  # then its last attempt gave nothing either
        cost, died = row.cost or NO_COST, row.attempt - 1 + given_up
        lost = cost.total if given_up else cost.lost
        add(row.state, 1, cost.total - lost)
        if died or lost != NOTHING:
            add(LOST, died, lost)
    seconds = sum(cost.seconds for _, cost in spent.values()) or 1.0
    states = [state for state in ("finished", "pruned", "failed", "running", "waiting", LOST) if state in spent]
    return [StateCost(state, *spent[state], share=spent[state][1].seconds / seconds) for state in states]


@dataclass(frozen=True)
class Spent:
    """What a search has used up.

    Attributes:
        wall_s: seconds in which at least one command searched.
        cpu_s: CPU seconds of all trials, lost attempts included.
        gpu_s: device-seconds of all trials, lost attempts included.
        without_gain: how many trials `Progress` has counted since the last gain.
    """

    wall_s: float = 0.0
    cpu_s: float = 0.0
    gpu_s: float = 0.0
    without_gain: int = 0


@dataclass(frozen=True)
class Over:
    """A budget that is over.

    Attributes:
        key: its TOML key.
        text: which budget, and what was used up.
    """

    key: str
    text: str


def over(limits: Mapping[str, Any], spent: Spent) -> Over | None:
    """The first budget that is over; None while all hold.

    Args:
        limits: the values of ``[study]``; those of a study begun by an older version may lack some.
        spent: what the search has used up.
    """
    used = {
        "timeout_s": (spent.wall_s, "s of searching"),
        "cpu_budget_s": (spent.cpu_s, "CPU-seconds"),
        "gpu_budget_s": (spent.gpu_s, "GPU-seconds"),
    }
    for key, (value, unit) in used.items():
        limit = limits.get(key)
        if limit is not None and value >= limit:
            return Over(f"study.{key}", f"study.{key} = {limit:g} is over ({value:.4g} {unit})")
    most = limits.get("plateau_trials")
    if most is not None and spent.without_gain >= most:
        than = f" of more than {delta:g}" if (delta := limits.get("plateau_delta")) else ""
        return Over(
            "study.plateau_trials", f"study.plateau_trials = {most} is over: as many trials without a gain{than}"
        )
    return None


class Progress:
    """Counts trials since the last gain, in the order in which they ended.

    The first finished trial is a gain, and so is each finished trial that is better than the last gain by more than
    ``delta``. Every other finished or pruned trial counts, from the first gain on; failed and imported ones do not.

    Args:
        direction: whether more or less of the objective is better.
        delta: least gain, in units of the objective.
    """

    def __init__(self, direction: Literal["maximize", "minimize"], delta: float) -> None:
        self.sign = 1 if direction == "maximize" else -1
        self.delta = delta
        self.best: float | None = None
        self.without_gain = 0
        self._seen: set[int] = set()

    def take(self, number: int, objective: float | None) -> None:
        """Count a trial that ended; once, however often it is told.

        Args:
            number: the trial.
            objective: of a finished trial; None for a pruned one.
        """
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
