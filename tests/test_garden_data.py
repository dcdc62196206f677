"""Planted faults of rows, labels and serving: each is said under its own name, and only where it was planted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.garden import data, serving
from tests.garden.healthy import HEALTHY, MOST_WARNINGS
from tests.garden.plots import Fault, look
from tests.garden.proof import caught, in_page, line, masked, works

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.mark.parametrize("fault", (*data.FAULTS, *serving.FAULTS), ids=lambda fault: fault.name)
def test_a_planted_fault_is_said_and_its_printed_line_works(fault: Fault, tmp_path: Path) -> None:
    said = caught(fault, tmp_path)
    assert masked(line(fault, said)) == masked(in_page(fault)), "python -m tests.garden writes the table"
    if fault.fixed is not None:
        works(fault, said, tmp_path)


def test_ten_healthy_experiments_raise_no_error_and_hardly_a_warning(tmp_path: Path) -> None:
    said = {name: look(lay(tmp_path / name), "end") for name, lay in HEALTHY.items()}
    assert len(said) == 10
    bad = [(name, each.code, each.text) for name, every in said.items() for each in every if each.severity == "error"]
    assert not bad
    warnings = [(name, s.code, s.text) for name, every in said.items() for s in every if s.severity == "warning"]
    assert len(warnings) <= MOST_WARNINGS, warnings
