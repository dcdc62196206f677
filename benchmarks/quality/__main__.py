"""`make bench-quality` and its parts.

    python -m benchmarks.quality tables                                       # what is measured, and by which half
    python -m benchmarks.quality run                                          # what is not there yet, then the report
    python -m benchmarks.quality run --tables credit ames --sides ours xgboost --seconds 30
    python -m benchmarks.quality report                                       # of what is there

A run that was stopped goes on where it was; `--again` measures anew. Failed measurements are results; `--again` with
their table and side tries them anew.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from benchmarks.quality import measuring, report
from benchmarks.quality.results import Results
from benchmarks.quality.sides import SIDES
from benchmarks.quality.tables import TABLES

FOLDER = Path(__file__).parent / "results"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        "python -m benchmarks.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("command", choices=("run", "report", "tables"))
    add("--tables", nargs="+", choices=TABLES, default=list(TABLES), metavar="TABLE", help=", ".join(TABLES))
    add("--half", choices=report.HALVES, help="only the tables of this half; who chooses defaults asks for choose")
    add("--sides", nargs="+", choices=SIDES, default=list(SIDES), metavar="SIDE", help=", ".join(SIDES))
    add("--seeds", nargs="+", type=int, default=[1], help="of the sides, never of the split (1)")
    add("--seconds", type=float, default=90.0, help="wall-clock of each side on each table (90)")
    add("--results", type=Path, default=FOLDER, help="folder of the results (benchmarks/quality/results)")
    add("--again", action="store_true", help="measure also what is there")
    return made


def main() -> None:
    """Run one command."""
    asked = parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as for Ctrl-C: what was started ends too
    names = [name for name in asked.tables if asked.half in (None, TABLES[name].half)]
    results = Results(asked.results.absolute(), asked.seconds)
    if asked.command == "tables":
        report.show_tables(names)
        return
    if asked.command == "run":
        measuring.run(results, names, asked.sides, asked.seeds, again=asked.again)
    report.show(results, names, asked.sides)


if __name__ == "__main__":
    main()
