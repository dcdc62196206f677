"""Planted faults of models and their training: each is said under its own name, and only where it was planted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.garden import training
from tests.garden.plots import Fault
from tests.garden.proof import caught, in_page, line, masked, works

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    # What Keras has to say of some of them, which nobody reads in a log.
    pytest.mark.filterwarnings("ignore:You are using a softmax over axis:UserWarning"),
    pytest.mark.filterwarnings("ignore:Gradients do not exist:UserWarning"),
    pytest.mark.filterwarnings("ignore:In loss categorical_crossentropy:SyntaxWarning"),
]


@pytest.fixture(autouse=True)
def _one_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """That a plain loop raises nothing shows in one."""
    monkeypatch.setattr(training, "EPOCHS", 1)


@pytest.mark.parametrize("fault", training.FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_said_and_its_printed_line_works(fault: Fault, tmp_path: Path) -> None:
    said = caught(fault, tmp_path)
    assert masked(line(fault, said)) == masked(in_page(fault)), "python -m tests.garden writes the table"
    if fault.fixed is not None:
        works(fault, said, tmp_path)
