"""Faults of models and of their training."""

from __future__ import annotations

from tests.garden.plots import Fault

FAULTS: tuple[Fault, ...] = ()
