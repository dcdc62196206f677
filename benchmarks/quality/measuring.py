"""Run the sides on the tables, one process after the other, and keep what is missing."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Any

from benchmarks.quality.results import FAILED, FINISHED, Result, Results, where
from benchmarks.quality.sides import SIDES
from benchmarks.quality.work import Work, prepare
from benchmarks.running import SideFailed, call, folder
from benchmarks.tables import note

GRACE_S = 900.0
"""Seconds beyond three budgets after which a side is killed and has failed."""


def run(results: Results, names: Sequence[str], sides: Sequence[str], seeds: Sequence[int], *, again: bool) -> None:
    """Measure what is not there yet; what cannot be measured here is said.

    Args:
        results: where to.
        names: tables.
        sides: who.
        seeds: of the sides; the split stays.
        again: measure also what is there.
    """
    able = [name for name in sides if not (lack := SIDES[name].missing()) or note(f"{name} is skipped: {lack}")]
    for table in names:
        with folder() as place:
            try:
                about = prepare(table, str(place))
            except (ImportError, OSError, subprocess.CalledProcessError) as failed:
                note(f"{table} is skipped: {failed}")
                continue
            results.keep_table(about, Work(str(place), "", 0).parts()["test"][1])
            for side, seed in ((side, seed) for seed in seeds for side in able):
                if again or results.get(table, side, seed, about["digest"]) is None:
                    measure(results, about, str(place), side, seed)


def measure(results: Results, about: dict[str, Any], place: str, side: str, seed: int) -> Result:
    """One side on one table, whose failure is a result too."""
    here, path = where(), results.path(about["table"], side, seed, "npz")
    common = {"table": about["table"], "side": side, "seed": seed, "seconds": results.seconds, "where": here}
    with folder() as store:
        try:
            found = call(
                "quality.work:measure",
                python=SIDES[side].python,
                timeout_s=3 * results.seconds + GRACE_S,
                module=side,
                folder=place,
                store=str(store),
                seconds=results.seconds,
                seed=seed,
                output=str(path.absolute()),
            )
            result = Result(**common, digest=about["digest"], state=FINISHED, **found)
        except SideFailed as failed:
            result = Result(**common, digest=about["digest"], state=FAILED, error=str(failed)[-3000:])
    results.add(result)
    took = result.error.strip().splitlines()[-1:] if result.took_s is None else f"{result.took_s:.1f} s"
    note(f"{about['table']}, {side}, seed {seed}: {result.state}, {took}")
    return result
