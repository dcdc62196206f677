"""Seeds that follow from the experiment's one."""

from __future__ import annotations

import hashlib


def derived_seed(root: int, *purpose: str | int) -> int:
    """A 32-bit seed from the experiment's seed and what it is for, such as ``("trial", 7)``.

    Hashed (BLAKE2b), so that neighbouring trials and experiments share nothing; equal in every process and on every
    machine.
    """
    text = ":".join(map(str, (root, *purpose)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")
