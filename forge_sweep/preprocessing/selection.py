"""Exact medians of columns that are too long for memory.

Selection by radix: the 64 bits of a float64, put in an order that is that of the numbers, are found 16 at a time from
the top, by counting how many values have each of the 65,536 continuations of what is known. Once few enough values are
left they are collected and sorted. Knuth, The Art of Computer Programming 3, 5.2.5 and 5.3.3, describe both halves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

DIGIT = 16
"""Bits per pass."""

COLLECTED = 65_536
"""Values of one column that are sorted in memory at most."""

SIGN = np.uint64(1 << 63)


@dataclass
class Search:
    """The search for one value of one column.

    Attributes:
        column: which column.
        rank: 0-based rank of the value among those that share the known bits.
        known: bits that are known, from the top.
        bits: how many they are.
        left: how many values share them.
    """

    column: int
    rank: int
    left: int
    known: int = 0
    bits: int = 0


def medians(blocks: Callable[[], Iterable[np.ndarray]], present: np.ndarray) -> np.ndarray:
    """The median of every column without its NaN, as `numpy.median` gives it; 0 where there is no value.

    Args:
        blocks: gives the rows from the start each time it is called, (n, columns) float64.
        present: (columns,) values that are no NaN.
    """
    # An even number of values has two middle ones.
    pairs = [(Search(i, (n - 1) // 2, n), Search(i, n // 2, n)) for i, n in enumerate(present.tolist()) if n]
    searches = [search for pair in pairs for search in pair]
    while pending := [each for each in searches if each.left > COLLECTED and each.bits < 64]:
        _narrow(blocks(), pending)
    found = _collect(blocks(), searches) if searches else {}
    result = np.zeros(len(present))
    for low, high in pairs:
        result[low.column] = np.mean([found[id(low)], found[id(high)]])
    return result


def ordered(values: np.ndarray) -> np.ndarray:
    """Float64 as uint64 in the same order; both zeros are the same."""
    bits = (values + 0.0).view(np.uint64)
    return np.where(bits & SIGN, ~bits, bits | SIGN)


def number(bits: int) -> float:
    """The float64 that `ordered` gave these bits."""
    raw = bits ^ (1 << 63) if bits >> 63 else bits ^ ((1 << 64) - 1)
    return float(np.uint64(raw).view(np.float64))


def _narrow(blocks: Iterable[np.ndarray], searches: list[Search]) -> None:
    """Find the next bits of every search in one pass; two that share all they know are counted once."""
    counts = {_state(search): np.zeros(1 << DIGIT, np.int64) for search in searches}
    for block in blocks:
        for (column, known, bits), count in counts.items():
            keys = _sharing(block[:, column], known, bits)
            digits = (keys >> np.uint64(64 - bits - DIGIT)) & np.uint64((1 << DIGIT) - 1)
            count += np.bincount(digits.astype(np.intp), minlength=1 << DIGIT)
    for search in searches:
        count = counts[_state(search)]
        below = np.cumsum(count)
        digit = int(np.searchsorted(below, search.rank, side="right"))
        search.rank -= int(below[digit] - count[digit])
        search.left = int(count[digit])
        search.known, search.bits = search.known << DIGIT | digit, search.bits + DIGIT


def _state(search: Search) -> tuple[int, int, int]:
    return search.column, search.known, search.bits


def _collect(blocks: Iterable[np.ndarray], searches: list[Search]) -> dict[int, float]:
    """The value of every search: what its 64 bits say, or the one of its rank among the few that are left."""
    parts: dict[tuple[int, int, int], list[np.ndarray]] = {_state(each): [] for each in searches if each.bits < 64}
    for block in blocks if parts else ():
        for (column, known, bits), part in parts.items():
            part.append(_sharing(block[:, column], known, bits))
    left = {state: np.sort(np.concatenate(part)) for state, part in parts.items()}
    return {
        id(each): number(each.known if each.bits == 64 else int(left[_state(each)][each.rank])) for each in searches
    }


def _sharing(values: np.ndarray, known: int, bits: int) -> np.ndarray:
    """The ordered bits of the values, NaN left out, that begin with the known ones."""
    keys = ordered(np.ascontiguousarray(values[~np.isnan(values)]))
    return keys[keys >> np.uint64(64 - bits) == np.uint64(known)] if bits else keys
