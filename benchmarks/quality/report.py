"""The report, made from whatever results there are: it says what is missing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.quality.results import FAILED, Result, Results
from benchmarks.quality.sides import OURS, REFERENCE, SIDES
from benchmarks.quality.statistics import (
    LOSS,
    PRIMARY,
    SHOWN,
    TIE,
    WIN,
    Duel,
    Interval,
    duel,
    interval,
    mean_ranks,
    ranks,
    tally,
)
from benchmarks.quality.tables import TABLES
from benchmarks.tables import say, table

NETWORK = "network"
"""Our best confirmed network apart from what is shipped; it is compared, and has no rank of its own."""
OVER = 1.1
"""Of the budget: what took longer is counted as over time."""
HALVES = {
    "choose": "The half that may choose defaults",
    "report": "The half that is only reported",
}


@dataclass(frozen=True)
class Column:
    """One side on one table, over its seeds.

    Attributes:
        predictions: of each seed that has them.
        metrics: each shown metric with its interval; of several seeds the means of both.
        duel: against the reference; None for the reference itself and where either has no predictions.
        took_s: mean over seeds.
        cpu_s: likewise.
        failed: how many seeds failed.
        winner: what our sweep shipped, or the best model of AutoGluon, of each seed.
    """

    predictions: tuple[np.ndarray, ...]
    metrics: Mapping[str, Interval]
    duel: Duel | None
    took_s: float
    cpu_s: float
    failed: int
    winner: str = ""


def columns(found: Sequence[Result], truth: np.ndarray, task: str, resamples: int = 1_000) -> dict[str, Column]:
    """The sides of one table, our best network as a column of its own.

    Args:
        found: the results of the table.
        truth: targets of its test rows.
        task: of the table.
        resamples: of the bootstrap.
    """
    groups: dict[str, list[tuple[Result, str]]] = {}
    for result in found:
        groups.setdefault(result.side, []).append((result, "shipped"))
        if NETWORK in result.predictions:
            groups.setdefault(NETWORK, []).append((result, NETWORK))
    predictions = {
        name: tuple(result.predictions[key] for result, key in group if key in result.predictions)
        for name, group in groups.items()
    }
    reference = predictions.get(REFERENCE, ())
    made = {}
    for name, group in groups.items():
        mine = predictions[name]
        fought = name != REFERENCE and mine and reference
        made[name] = Column(
            predictions=mine,
            metrics={key: _mean([interval(key, truth, one, resamples) for one in mine]) for key in SHOWN[task]},
            duel=duel(PRIMARY[task], truth, mine, reference, resamples) if fought else None,
            took_s=_average([result.took_s for result, _ in group]),
            cpu_s=_average([result.cpu_s for result, _ in group]),
            failed=sum(result.state == FAILED for result, _ in group),
            winner=", ".join(sorted({str(r.facts["winner"]) for r, _ in group if "winner" in r.facts})),
        )
    return made


def _mean(intervals: Sequence[Interval]) -> Interval:
    if not intervals:
        return Interval(math.nan, math.nan, math.nan)
    ends = np.mean([(each.value, each.low, each.high) for each in intervals], axis=0)
    return Interval(*map(float, ends))


def _average(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None and not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def show(results: Results, names: Sequence[str], sides: Sequence[str]) -> None:
    """Print both halves, and what is missing."""
    measured = {name: results.of_table(name) for name in names}
    known = [result for found in measured.values() for result in found if result.side in sides]
    say(f"# Quality at {results.seconds:g} s per side and table\n")
    places: dict[str, list[float]] = {}
    for result in known:
        places.setdefault(_place(result.where), []).append(result.where.get("load_before") or 0.0)
    for text, loads in sorted(places.items()):
        say(f"- {text}; load before each measurement {min(loads):.1f} to {max(loads):.1f}, an idle machine has 0")
    say()
    for half, title in HALVES.items():
        if not (tables := [name for name in names if TABLES[name].half == half]):
            continue
        made = {
            name: columns([r for r in measured[name] if r.side in sides], results.truth(name), TABLES[name].task)
            for name in tables
            if any(r.side in sides for r in measured[name])
        }
        show_half(title, made, tables, sides, results.seconds)
    failures = [result for result in known if result.state == FAILED]
    for result in failures:
        say(f"- {result.table}, {result.side}, seed {result.seed} failed: {_last_line(result.error)}")


def _place(where: Mapping[str, Any]) -> str:
    shown = "cores", "memory_gib", "python", "tensorflow", "keras", "optuna", "scikit-learn", "xgboost-cpu"
    return f"commit {where['commit']}: " + ", ".join(f"{name} {where.get(name)}" for name in shown)


def _last_line(text: str) -> str:
    return next(iter(reversed(text.strip().splitlines())), "")[:300]


def show_half(
    title: str,
    made: Mapping[str, Mapping[str, Column]],
    tables: Sequence[str],
    sides: Sequence[str],
    seconds: float,
) -> None:
    """Scores, comparisons, ranks and cost of one half."""
    present = [name for name in sides if any(name in row for row in made.values())]
    say(f"## {title}\n")
    for name, row in made.items():
        show_table(name, row)
    if made:
        show_summary(made, present, seconds)
    if absent := [side for side in sides if side not in present]:
        say(f"- missing on every table: {', '.join(absent)}")
    for side in present:
        if lacking := [name for name in tables if side not in made.get(name, {})]:
            say(f"- missing of {side}: {', '.join(lacking)}")
    say()


def show_table(name: str, row: Mapping[str, Column]) -> None:
    """The sides of one table, best first."""
    known, task = TABLES[name], TABLES[name].task
    metric, other = SHOWN[task]
    own = {side: column.metrics[metric].value for side, column in row.items() if side != NETWORK}
    ranked = ranks(own, metric)
    say(f"### {name}: {task}, {known.rows:,} rows\n")
    order = sorted(row, key=lambda side: (ranked.get(side, math.inf), side))
    table(
        ["", "rank", metric, other, f"lead over {REFERENCE} in {metric}", "took, s", "CPU, s"],
        [
            [
                _title(side) + f" ({row[side].winner})" * bool(row[side].winner and side != NETWORK),
                f"{ranked[side]:g}" if side in ranked else "-",
                between(row[side].metrics[metric]),
                number(row[side].metrics[other].value, "{:.4f}"),
                "-" if (fought := row[side].duel) is None else f"{between(fought.lead)}: {fought.verdict}",
                number(row[side].took_s, "{:.0f}"),
                number(row[side].cpu_s, "{:.0f}"),
            ]
            for side in order
        ],
    )


def show_summary(made: Mapping[str, Mapping[str, Column]], present: Sequence[str], seconds: float) -> None:
    """Mean ranks over the tables that all sides have, and the tally against the reference."""
    complete = [name for name, row in made.items() if all(side in row for side in present)]
    means = mean_ranks([ranks({s: _primary(name, made[name][s]) for s in present}, _by(name)) for name in complete])
    say(f"### Summary over {len(made)} tables; mean ranks over the {len(complete)} that all sides have\n")
    rows = []
    networks = [NETWORK] * (OURS in present)
    for side in [*sorted(present, key=lambda side: means.get(side, math.inf)), *networks]:
        here = [row[side] for row in made.values() if side in row]
        counts = tally(list(filter(None, (verdict(row, side) for row in made.values()))))
        fought = sum(counts.values())
        rows.append(
            [
                _title(side),
                f"{means[side]:.2f}" if side in means else "-",
                f"{counts[WIN]}-{counts[TIE]}-{counts[LOSS]}" if fought else "-",
                f"{(counts[WIN] + counts[TIE]) / fought:.0%}" if fought else "-",
                number(_average([column.took_s for column in here]), "{:.0f}"),
                number(_average([column.cpu_s for column in here]), "{:.0f}"),
                str(sum(column.took_s > OVER * seconds for column in here)),
                str(sum(column.failed for column in here)),
            ]
        )
    against = f"wins-ties-losses against {REFERENCE}"
    table(["", "mean rank", against, "wins and ties", "took, mean s", "CPU, mean s", "over time", "failed"], rows)


def verdict(row: Mapping[str, Column], side: str) -> str | None:
    """Win, tie or loss against the reference on a table; a side that failed lost, and our network where ours has none.

    None for the reference itself, and where it or the side was not measured.
    """
    if side == REFERENCE or not getattr(row.get(REFERENCE), "predictions", ()):
        return None
    if side not in row:
        return LOSS if side == NETWORK and OURS in row else None
    fought = row[side].duel
    return LOSS if fought is None else fought.verdict


def _by(name: str) -> str:
    return PRIMARY[TABLES[name].task]


def _primary(name: str, column: Column) -> float:
    return column.metrics[_by(name)].value


def _title(side: str) -> str:
    return f"{SIDES[OURS].title}: its best network" if side == NETWORK else SIDES[side].title


def number(value: float, form: str) -> str:
    """A number for a table."""
    return "-" if math.isnan(value) else form.format(value)


def between(found: Interval) -> str:
    """A value with its interval."""
    return "-" if math.isnan(found.value) else f"{found.value:.4g} ({found.low:.4g} to {found.high:.4g})"


def show_tables(names: Sequence[str]) -> None:
    """What is measured."""
    shown = [(name, TABLES[name]) for name in names]
    table(
        ["table", "half", "task", "rows", "target", "source", "licence", "what", "left out"],
        [
            [n, t.half, t.task, f"{t.rows:,}", f"`{t.target}`", t.source, t.licence, t.about,
             ": ".join(filter(None, [", ".join(f"`{name}`" for name in t.drop), t.why])) or "-"]
            for n, t in shown
        ],
    )  # fmt: skip
