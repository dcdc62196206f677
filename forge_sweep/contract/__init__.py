"""The contract of a network: what a builder gives, looked at before training and trained for one step."""

from __future__ import annotations

from forge_sweep.contract.alike import ignored
from forge_sweep.contract.contract import failed, tried

__all__ = ["failed", "ignored", "tried"]
