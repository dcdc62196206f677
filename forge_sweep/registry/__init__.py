"""From a registered version to the champion: gates, ledger, rollback, card (docs/decisions/0016-promotion.md)."""

from __future__ import annotations

from forge_sweep.registry.champions import CHALLENGER, CHAMPION, PREVIOUS, Champions, Change, Term
from forge_sweep.registry.promotion import Overview, Promotion, Refused, make_card, overviews, promote, rollback

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "PREVIOUS",
    "Champions",
    "Change",
    "Overview",
    "Promotion",
    "Refused",
    "Term",
    "make_card",
    "overviews",
    "promote",
    "rollback",
]
