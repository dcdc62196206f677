"""Names and values from the data in a line of text: no line breaks or control signs, and not endless."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

LONGEST = 60
SHOWN = 10


def named(name: object) -> str:
    """A column name or a category as it is, quoted where it is empty or has blanks or signs that are not printable."""
    text = str(name)
    return shortened(text if text.isprintable() and text and text == text.strip() else repr(text))


def valued(value: Any) -> str:
    """A value: texts quoted, missing ones as ``missing``."""
    return "missing" if value is None else shortened(repr(value))


def listed(names: Iterable[object], count: int | None = None) -> str:
    """The first names, and how many more there are.

    Args:
        names: what is listed.
        count: how many there are, where ``names`` are the first of them.
    """
    known = list(names)
    more = (len(known) if count is None else count) - min(len(known), SHOWN)
    return ", ".join(map(named, known[:SHOWN])) + (f" and {more:,} more" if more else "")


def counted(number: int, noun: str) -> str:
    """``1 row``, ``2,000 rows``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def shortened(text: str) -> str:
    """At most `LONGEST` signs, the middle left out: a path tells more by its end."""
    half = LONGEST // 2 - 2
    return text if len(text) <= LONGEST else f"{text[:half]}...{text[-half:]}"
