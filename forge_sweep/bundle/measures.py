"""What a model costs whoever serves it: time for a row, parameters, megabytes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from forge_sweep.baselines import Baseline
from forge_sweep.bundle.bundle import Bundle
from forge_sweep.bundle.ensemble import Ensemble

if TYPE_CHECKING:
    import pandas as pd

TIMED = 15


def measure(
    bundle: Bundle,
    wanted: Collection[str],
    golden: pd.DataFrame,
    folder: Path | None = None,
    raw: Callable[[Bundle, Path], None] | None = None,
) -> dict[str, float]:
    """The ``wanted`` measures of a model, each under the name that it has in ``[constraints]``.

    Args:
        bundle: the model.
        wanted: any of ``latency_ms``, ``parameters`` and ``bundle_mb``.
        golden: raw rows to score, and to save with the bundle.
        folder: where the bundle was saved; one that is not there is saved for the measurement.
        raw: as of `Bundle.save`, where that form is kept too; then ``folder`` is not looked at.

    Raises:
        BundleError: it cannot be saved.
    """
    found: dict[str, float] = {}
    if "latency_ms" in wanted:
        found["latency_ms"] = latency_ms(bundle, golden.iloc[:1])
    if "parameters" in wanted:
        found["parameters"] = float(parameters(bundle))
    if "bundle_mb" in wanted:
        with tempfile.TemporaryDirectory(prefix="forge-sweep-") as name:
            if folder is None or raw is not None or not folder.is_dir():
                folder = Path(name) / "bundle"
                bundle.save(folder, golden, raw=raw)
            found["bundle_mb"] = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    return found


def latency_ms(bundle: Bundle, row: pd.DataFrame) -> float:
    """Milliseconds from a raw row to its scores, in this process: the quickest of some, for others only add to it."""
    took = []
    for _ in range(TIMED):
        began = time.perf_counter()
        bundle.scores(row)
        took.append(time.perf_counter() - began)
    return 1000 * min(took)


def parameters(bundle: Bundle) -> int:
    """Parameters of the network, those that are not trained included; of an ensemble, of all its networks."""
    models = [each.model for each in bundle.model.members] if isinstance(bundle.model, Ensemble) else [bundle.model]
    return sum(int(model.count_params()) for model in models if not isinstance(model, Baseline))
