"""A TOML file, or the text of an override, as plain tables; what is no TOML is named as what it is."""

from __future__ import annotations

import codecs
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forge_sweep.errors import InputError

LONGEST = 1_000_000
"""Bytes of an experiment file; a long list of columns takes a few thousand."""

DEEPEST = 16
"""Levels of tables and lists in it; the deepest key of an experiment has five."""

MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""Byte order marks of encodings that TOML does not have; the longer ones first, since they begin like the others."""

SAVE = "save it as UTF-8, with or without a byte order mark"


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a file.

    Raises:
        InputError: it cannot be read, or is no TOML; the message says what it is.
    """
    what = f"experiment file {path}"
    text = decoded(what, content_of(path))
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{what} is not TOML: {error}", hint="mend the line named above") from None
    except RecursionError:
        raise InputError(f"{what} {TOO_DEEP}", hint=f"expected {FLAT}") from None
    except ValueError as error:  # a number of 5,000 digits, the 30th of February
        raise InputError(f"{what} holds a value that is none: {error}", hint="mend it") from None
    if depth(raw) > DEEPEST:
        raise InputError(f"{what} {TOO_DEEP}", hint=f"expected {FLAT}")
    return raw


TOO_DEEP = "is nested too deeply to be an experiment"
FLAT = f"at most {DEEPEST} levels of tables and lists"


def content_of(path: Path) -> bytes:
    """The bytes of the file, which may be a pipe.

    Raises:
        InputError: it does not exist, is not a file, or is too long.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LONGEST + 1)
    except FileNotFoundError:
        raise InputError(
            f"experiment file {path} does not exist", hint="give the path of a TOML file, such as experiments/NAME.toml"
        ) from None
    except IsADirectoryError:
        found = sorted(each.name for each in path.glob("*.toml"))[:5]
        hint = f"name the file: {', '.join(found)}" if found else "give the path of a TOML file"
        raise InputError(f"{path} is a folder, not an experiment file", hint=hint) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"experiment file {path} cannot be read: {reason}", hint="give a TOML file") from None
    if len(content) > LONGEST:
        raise InputError(
            f"experiment file {path} has more than {LONGEST // 1_000_000} MB; that is no experiment",
            hint="give a TOML file of some 40 lines; rows stand in a file of their own, which data.path names",
        )
    return content


def decoded(what: str, content: bytes) -> str:
    """The text, with or without the byte order mark of UTF-8.

    Raises:
        InputError: it is in another encoding, or no text at all.
    """
    for mark, encoding in MARKS.items():
        if content.startswith(mark):
            raise InputError(f"{what} is {encoding}, and TOML is UTF-8", hint=SAVE)
    zeros = content.count(0)
    if zeros and zeros > len(content) // 4 and not content.translate(None, bytes([0, *b"\r\n\t", *range(0x20, 0x7F)])):
        raise InputError(f"{what} is UTF-16 or UTF-32, and TOML is UTF-8", hint=SAVE)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if zeros:
            raise InputError(f"{what} is no text", hint="give a TOML file") from None
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{what} is not UTF-8: byte 0x{content[error.start]:02x} in line {line}", hint=SAVE) from None
    if zeros:
        raise InputError(f"{what} is no text: it holds NUL bytes", hint="give a TOML file")
    return text


def toml_value(text: str) -> Any:
    """The TOML value that ``text`` spells, or the text itself.

    Raises:
        InputError: it is a value, but nested too deeply or a number too long.
    """
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    except RecursionError:
        raise InputError(FLAT) from None
    except ValueError as error:
        raise InputError(f"a value ({error})") from None
    if depth(value) > DEEPEST:
        raise InputError(FLAT)
    return value


def depth(value: Any) -> int:
    """Levels of tables and lists, counted without recursion: a file may have thousands."""
    levels, here = 0, [value]
    while here := [each for each in here if isinstance(each, Mapping | list)]:
        levels += 1
        here = [inner for each in here for inner in (each.values() if isinstance(each, Mapping) else each)]
    return levels


def unprintable(raw: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Texts that hold NUL or halves of characters, by their TOML path: no file, column or database can have them."""
    found: dict[str, str] = {}
    for key, value in raw.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= unprintable(value, f"{path}.")
        for text in (key, *(value if isinstance(value, list) else [value])):
            if isinstance(text, str) and re.search("[\x00\ud800-\udfff]", text):
                found[path] = text
    return found
