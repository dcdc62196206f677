"""Writes the table of the garden into docs/failures.md: ``python -m tests.garden``."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from tests.garden import data, training
from tests.garden.proof import BEGIN, END, HEAD, PAGE, caught, line

with tempfile.TemporaryDirectory() as folder:
    faults = (*data.FAULTS, *training.FAULTS)
    lines = [line(fault, caught(fault, Path(folder) / str(at))) for at, fault in enumerate(faults)]
text, table = PAGE.read_text(), f"{BEGIN}\n\n{HEAD}" + "\n".join(lines) + f"\n\n{END}"
PAGE.write_text(re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda found: table, text, flags=re.DOTALL))
