"""Writes the tables of the garden into docs/failures.md: ``python -m tests.garden [data] [training]``."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from tests.garden import data, serving, training
from tests.garden.proof import HEAD, PAGE, caught, line

KINDS = {"data": (*data.FAULTS, *serving.FAULTS), "training": training.FAULTS}

for kind in sys.argv[1:] or KINDS:
    begin, end = f"<!-- garden {kind}: written by `python -m tests.garden {kind}` -->", f"<!-- garden {kind}: end -->"
    with tempfile.TemporaryDirectory() as folder:
        faults = enumerate(KINDS[kind])
        lines = [line(fault, caught(fault, Path(folder) / str(at))) for at, fault in faults]
    table = f"{begin}\n\n{HEAD}" + "\n".join(lines) + f"\n\n{end}"
    text = re.sub(f"{re.escape(begin)}.*{re.escape(end)}", lambda _: table, PAGE.read_text(), flags=re.DOTALL)  # noqa: B023
    PAGE.write_text(text)
