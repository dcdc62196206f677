"""Hyperparameters with which no trial can learn; a range is judged by its best end."""

from __future__ import annotations

from typing import Any

import pytest

from forge_sweep.checks.settings import of_settings
from forge_sweep.experiment import Dimension

SOUND: dict[str, Any] = {"batch_size": 64, "learning_rate": 1e-3, "optimizer": "adam", "batch_norm": True}


def found(**space: Any) -> list[tuple[str, str, str]]:
    """Findings of a training of 60 epochs over 1,000 rows, 960 steps with batches of 64."""
    seen = of_settings({**SOUND, **space}, rows=1000, epochs=60)
    return [(each.code, each.severity, each.fix) for each in seen]


def searched(low: float, high: float) -> Dimension:
    return Dimension(type="float", low=low, high=high)


def test_nothing_is_said_of_what_is_usual() -> None:
    assert found() == found(dropout=0.5, ema=0.99, momentum=0.9, label_smoothing=0.1) == []


@pytest.mark.parametrize(
    ("space", "code", "line"),
    [
        ({"batch_size": 4096}, "batch-too-large", "batch_size = 32"),
        ({"dropout": 0.9}, "dropout-too-high", "dropout = 0.2"),
        ({"label_smoothing": 0.8}, "smoothing-too-high", "label_smoothing = 0.1"),
        ({"ema": 0.9999}, "average-too-long", "ema = 0.99"),
        ({"momentum": 0.9999}, "momentum-too-high", "momentum = 0.9"),
    ],
)
def test_what_is_too_far_out_is_named_with_the_line_that_mends_it(space: dict[str, Any], code: str, line: str) -> None:
    assert found(**space) == [(code, "warning", f"{line} under [model.search]")]


def test_a_range_with_one_good_end_is_left_to_the_sampler() -> None:
    sizes = Dimension(type="categorical", choices=(64, 4096))
    assert found(dropout=searched(0.0, 0.95), ema=searched(0.9, 0.99999), batch_size=sizes) == []
    assert [code for code, *_ in found(dropout=searched(0.85, 0.95))] == ["dropout-too-high"]


def test_a_batch_of_all_rows_is_a_fact_and_no_fault() -> None:
    assert found(batch_size=1000) == []
    assert [severity for _, severity, _ in found(batch_size=1024)] == ["info"]
