"""How a sweep ended, for people: the winner first, then the verdict, the candidates, and what the test rows said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from forge_sweep.cli.printing import cell, echo, print_table, say
from forge_sweep.task.words import MARK, Rows, Titles, between, figure, side_by_side

if TYPE_CHECKING:
    from forge_sweep.study import TrialRow
    from forge_sweep.sweep import SweepResult


def print_result(name: str, result: SweepResult) -> None:
    """The end of a sweep."""
    from forge_sweep.study import phases_words

    echo()
    print_table(*candidates(result))
    if result.evaluation is not None:
        echo()
        print_table(*side_by_side(result.evaluation))
    echo()
    counts = ", ".join(f"{count} {state}" for state, count in result.trials.items())
    lines = {
        "winner": winner_words(result.winner, result.objective),
        "verdict": result.verdict,
        **({} if result.evaluation is not None else {"test": listed(result.test)}),
        "search": f"best in the search: {searched(result.best, result.objective)}",
        "trials": f"{counts}{'' if result.ended_by == 'study.n_trials' else f'; ended by {result.ended_by}'}",
        **({"took": phases_words(result.phases)} if result.phases else {}),
        "run": result.run_id,
        "model": result.model,
        "look": f"forge-sweep ui {name}, then {result.link}",
    }
    for title, text in lines.items():
        if title == "look":  # a link stays in one piece
            echo(f"{title:<10}{text}")
        else:
            say(f"{title:<10}{text}")


def candidates(result: SweepResult) -> tuple[Titles, Rows]:
    """Every confirmed candidate, the registered one first, then the baselines that were fitted once."""
    seeds = max((len(row["values"]) for row in result.confirmed), default=1)
    titles = ("model", f"{result.objective}, search", f"mean of {seeds} seed{'s' * (seeds > 1)}", "95 %", "spread")
    rows: Rows = []
    for row in result.confirmed:
        mark = MARK if row["label"] == result.winner["label"] else ""
        several = len(row["values"]) > 1
        spread = figure(row["spread"]) if several and row["spread"] else "-"
        figures = figure(row["searched"]), figure(row["mean"]), between(row.get("interval")), spread
        rows.append((row["words"] + mark, *figures))
    known = {row["baseline"] for row in result.confirmed}
    rows += [(kind, figure(value), "-", "-", "-") for kind, value in result.baselines.items() if kind not in known]
    return titles, rows


def winner_words(winner: Mapping[str, Any], objective: str) -> str:
    """What is registered, with its score and its parameters."""
    seeds = len(winner["values"])
    chosen = {} if winner["baseline"] else winner["params"]  # a baseline's are its library's defaults
    params = ", ".join(f"{name} {cell(value)}" for name, value in chosen.items())
    mean = f"{objective} {figure(winner['mean'])} over {seeds} seed{'s' * (seeds > 1)}"
    return f"{winner['words']}, {mean}{f'; {params}' if params else ''}"


def searched(best: Mapping[str, Any] | TrialRow | None, objective: str) -> str:
    """The trial with the best single score."""
    if not best:
        return "no trial finished"
    number, value = (best["number"], best["value"]) if isinstance(best, Mapping) else (best.number, best.value)
    return f"trial {number}, {objective} {figure(value)}"


def listed(metrics: Mapping[str, float]) -> str:
    """Metrics in one line."""
    return ", ".join(f"{name} {figure(value)}" for name, value in metrics.items())
