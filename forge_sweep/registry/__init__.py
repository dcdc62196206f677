"""From a registered version to the champion: gates, the ledger of champions, rollback, the card.

A registered model is a claim. The gates check it in this environment and on the frozen test rows; each is a finding
with the figure that was seen. The aliases are ``challenger``, ``champion`` and ``previous``; the ledger says who was
champion when, who decided it and why. See docs/decisions/0016-promotion.md.
"""

from __future__ import annotations

from forge_sweep.registry.cards import make_card
from forge_sweep.registry.champions import CHALLENGER, CHAMPION, PREVIOUS, Champions, Change, Term
from forge_sweep.registry.promotion import Overview, Promotion, Refused, overviews, promote, rollback

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
