"""Scores and their intervals in words, the same in the terminal, the report, the card and MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MARK = " (registered)"

Titles = tuple[str, ...]
Cells = list[tuple[str, ...]]


def figure(value: float | None) -> str:
    """A score: four decimals, or as many digits as say something."""
    if value is None or value != value:
        return "-"
    if value == 0 or 0.001 <= abs(value) < 10_000:
        return f"{value:.4f}"
    return f"{value:.2g}" if abs(value) < 0.001 else f"{value:.6g}"


def between(ends: Sequence[float | None] | None) -> str:
    """``0.8901 to 0.9312``; "-" where it is not known."""
    if ends is None or None in ends:
        return "-"
    return f"{figure(ends[0])} to {figure(ends[1])}"


def _with_interval(ends: Sequence[float | None]) -> str:
    value, *interval = ends
    return figure(value) if None in interval else f"{figure(value)} ({between(interval)})"


def side_by_side(evaluation: Mapping[str, Any]) -> tuple[Titles, Cells]:
    """Every metric of the models in one `Evaluation.to_dict`, with the first one's lead over each."""
    models = evaluation["models"]
    leads = {
        (each["other"], each["gain"]["metric"]): [each["gain"]["gain"][end] for end in ("value", "low", "high")]
        for each in evaluation["comparisons"]
    }
    titles = (
        f"on {evaluation['rows']:,} test rows",
        models[0]["words"] + MARK,
        *(title for model in models[1:] for title in (model["words"], f"lead over {model['words']}")),
    )
    rows: Cells = []
    for name, ends in models[0]["metrics"].items():
        others = [
            shown
            for each in models[1:]
            for shown in (each["metrics"][name], leads.get((each["label"], name), [None] * 3))
        ]
        rows.append((name, *map(_with_interval, [ends, *others])))
    return titles, rows
