"""Planted faults of rows, labels and serving: each is said under its own name, and only where it was planted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.garden import data, serving
from tests.garden.plots import Fault
from tests.garden.proof import caught, in_page, line, masked, works

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.mark.parametrize("fault", (*data.FAULTS, *serving.FAULTS), ids=lambda fault: fault.name)
def test_a_planted_fault_is_said_and_its_printed_line_works(fault: Fault, tmp_path: Path) -> None:
    said = caught(fault, tmp_path)
    assert masked(line(fault, said)) == masked(in_page(fault)), "python -m tests.garden writes the table"
    if fault.fixed is not None:
        works(fault, said, tmp_path)
