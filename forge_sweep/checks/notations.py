"""Numbers that are written as people write them, and that a program therefore reads as text.

A value is taken apart from outside to inside; what had to be taken off says how it was written.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

CODES = "USD|EUR|GBP|CHF|JPY|CNY|INR|AUD|CAD|SEK|NOK|DKK|PLN|CZK|HUF|BRL|MXN|ZAR"
CURRENCY = rf"(?:[$€£¥₹₽₩₺₫฿₴₪]|{CODES}|US\$|Rs\.?|kr\.?|zł|Fr\.)"
SPACES = " \u00a0\u2009\u202f\u2007"
"""Spaces that stand between thousands: plain, no-break, thin, narrow no-break and figure space."""
MARKS = f"'\u2019_{SPACES}"
MINUS = "\u2212\u2013\u2012\ufe63\uff0d"
"""Signs that look like a minus and are none to a program: minus, en dash, figure dash, small and full-width ones."""

UNITS = re.compile(r"(?<=[0-9])\s*([A-Za-zµ°²³/]{1,8}|°)$")
WHOLE = r"[0-9]+"
FIXES = {
    "brackets": "brackets for negative numbers: write -5 for (5)",
    "sign behind": "a sign behind the number: write -5 for 5-",
    "other minus": "a minus sign that programs cannot read: write - (hyphen)",
    "currency": "a currency: write the amount alone, and name the currency in the column's name",
    "percent": "percent signs: write 0.78 or 78 for 78%",
    "decimal comma": "decimal commas: write 2.4 for 2,4",
    "thousands comma": "commas between thousands: write 35000 for 35,000",
    "thousands point": "points between thousands: write 35000 for 35.000",
    "thousands mark": "spaces or other marks between thousands: write 35000",
    "unit": "a unit behind the number: write the number alone, and name the unit in the column's name",
    "other digits": "digits that are not 0 to 9: write plain digits",
}
"""What is said of each way of writing, and how to write instead."""


@dataclass(frozen=True)
class Written:
    """The share of values that are numbers, and an example of each way of writing them, as `FIXES` calls it."""

    share: float
    ways: dict[str, str]


def written(values: Iterable[str]) -> Written:
    """How the numbers among some texts are written; plain numbers count as numbers, written in no special way."""
    examples, units = dict[str, str](), Counter[str]()
    found = [(value, ways_of(value)) for value in values]
    for value, ways in found:
        for way, detail in (ways or {}).items():
            examples.setdefault(way, value)
            if way == "unit":
                units[detail] += 1
    if "decimal comma" in examples and "thousands comma" in examples and "thousands point" not in examples:
        # 1,5 beside 1,500: one of them shows which of the two a comma is.
        del examples["thousands comma"]
    if len(units) > 1:
        return Written(0.0, {})  # 1st, 2nd, 3a: names, not quantities
    return Written(sum(ways is not None for _, ways in found) / max(len(found), 1), examples)


def ways_of(value: str) -> dict[str, str] | None:
    """The ways of writing (with the unit, where there is one) that a number shows; None where it is no number."""
    ways: dict[str, str] = {}
    text = value.strip()
    plain = "".join(str(unicodedata.decimal(letter, letter)) for letter in text)
    if plain != text:
        ways["other digits"], text = "", plain
    if any(mark in text for mark in MINUS):
        ways["other minus"] = ""
        text = re.sub(f"[{MINUS}]", "-", text)
    if found := re.fullmatch(r"(.*?)\((.+)\)(.*)", text):
        outside = found[1].strip() + found[3].strip()
        if outside and not re.fullmatch(f"{CURRENCY}|%", outside):
            return None
        ways["brackets"], text = "", (found[1] + found[2] + found[3]).strip()
    if re.search(f"^[+-]?\\s*{CURRENCY}", text) or re.search(f"{CURRENCY}\\s*[+-]?$", text):
        ways["currency"] = ""
        text = re.sub(f"^([+-]?)\\s*{CURRENCY}\\s*", r"\1", text)
        text = re.sub(f"\\s*{CURRENCY}\\s*([+-]?)$", r"\1", text)
    if found := re.fullmatch(r"(.*?)\s*[%‰]", text) or re.fullmatch(r"[%‰]\s*(.*)", text):
        ways["percent"], text = "", found[1]
    if re.fullmatch(r".*[0-9]\s*[+-]", text):
        ways["sign behind"], text = "", text[:-1].strip()
    if found := UNITS.search(text):
        ways["unit"], text = found[1], text[: found.start()].strip()
    text = re.sub(r"^[+-]\s*", "", text)
    digits = digits_of(text)
    return None if digits is None else ways | digits


def digits_of(text: str) -> dict[str, str] | None:
    """The separators that a number without anything around it shows; None where it is none."""
    if re.fullmatch(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?", text):
        return {}
    if re.fullmatch(r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?", text) or re.fullmatch(
        r"[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}(?:\.[0-9]*)?", text
    ):
        return {"thousands comma": ""}
    if re.fullmatch(r"[0-9]{1,3}(?:\.[0-9]{3})+,[0-9]+", text):
        return {"thousands point": "", "decimal comma": ""}
    if re.fullmatch(r"[0-9]{1,3}(?:\.[0-9]{3}){2,}", text):
        return {"thousands point": ""}
    if re.fullmatch(r"[0-9]*,[0-9]+(?:[eE][+-]?[0-9]+)?", text):
        return {"decimal comma": ""}
    if re.fullmatch(f"[0-9]{{1,3}}(?:[{MARKS}][0-9]{{3}})+(?:[.,][0-9]*)?", text):
        return {"thousands mark": "", **({"decimal comma": ""} if "," in text else {})}
    return None


def said(ways: dict[str, str]) -> tuple[str, str]:
    """What was seen and how to write it instead, in words."""
    seen = ", ".join(f"{FIXES[way].split(':')[0]} ({example!r})" for way, example in ways.items())
    return seen, "; ".join(FIXES[way].partition(": ")[2] for way in ways)
