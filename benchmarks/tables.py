"""Tables in Markdown, and what they are made of."""

from __future__ import annotations

import math
import platform
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

VERSIONS = ("tensorflow", "keras", "optuna", "mlflow", "numpy", "keras-tuner", "ray")


def say(text: str = "") -> None:
    """Print one line at once."""
    print(text, flush=True)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table."""
    say("| " + " | ".join(header) + " |")
    say("|" + "---|" * len(header))
    for row in rows:
        say("| " + " | ".join(map(str, row)) + " |")
    say()


def machine() -> dict[str, Any]:
    """Where and with what this was measured; the load tells whether the machine was idle."""
    import os

    import psutil

    return {
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in VERSIONS},
    }


def version(package: str) -> str:
    """Version of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def paired(ours: Mapping[str, float], theirs: Mapping[str, float]) -> tuple[float, float, int]:
    """Mean difference of the AUC of the same configurations, twice its standard error, and how many there were.

    Configurations are told by their learning rate, which a peer may have rounded to float32.
    """
    gaps = [
        auc - theirs[match]
        for rate, auc in ours.items()
        if (match := next((other for other in theirs if math.isclose(float(other), float(rate), rel_tol=1e-6)), None))
    ]
    if len(gaps) < 2:
        return (gaps[0] if gaps else math.nan), math.nan, len(gaps)
    return statistics.fmean(gaps), 2 * statistics.stdev(gaps) / math.sqrt(len(gaps)), len(gaps)


def noise(difference: float, twice_error: float) -> str:
    """A difference in words."""
    if math.isnan(difference):
        return "-"
    if math.isnan(twice_error):
        return f"{difference:+.4f}"
    verdict = "within noise" if abs(difference) <= twice_error else "beyond noise"
    return f"{difference:+.4f} ± {twice_error:.4f}, {verdict}"


def slope(values: Sequence[float]) -> float:
    """Least-squares growth per step."""
    n = len(values)
    if n < 2:
        return math.nan
    middle, mean = (n - 1) / 2, statistics.fmean(values)
    above = sum((i - middle) * (value - mean) for i, value in enumerate(values))
    return above / sum((i - middle) ** 2 for i in range(n))


def seconds(value: float | None) -> str:
    """A time for a table."""
    return "-" if value is None else f"{value:.1f}"


def note(text: str) -> None:
    """Progress, which is no part of the result."""
    print(f"  {text}", file=sys.stderr, flush=True)
