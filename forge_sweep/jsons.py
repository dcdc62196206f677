"""JSON that every reader takes: no NaN, no Infinity, no half of a surrogate pair.

Python's own ``json.dumps`` writes ``NaN``, which is no JSON: JavaScript, Go and PostgreSQL refuse the whole document.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def dumps(value: Any, *, indent: int | None = None, sort_keys: bool = False, ensure_ascii: bool = True) -> str:
    """JSON text of any value; see `plain` for what has no place in JSON."""
    return json.dumps(plain(value), indent=indent, sort_keys=sort_keys, ensure_ascii=ensure_ascii, allow_nan=False)


def plain(value: Any) -> Any:
    """The value in JSON's own types.

    A number that is not finite becomes None, a scalar of NumPy a number, a byte of a file name that is no text its
    escape, and what JSON does not know (a path, a time) its text.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {plain(key) if isinstance(key, str) else str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each) for each in value]
    if hasattr(value, "tolist"):  # NumPy's scalars and arrays
        return plain(value.tolist())
    return plain(str(value))
