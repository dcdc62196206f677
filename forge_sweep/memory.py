"""How much main memory there is, and how much of it may still be taken."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_CGROUP_MEMORY = (  # limit, usage and statistics, in version 2 and 1
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)


@dataclass(frozen=True)
class Memory:
    """Main memory that this process may use, in bytes, and what of it is free or can be freed at once."""

    total: int
    available: int


def memory(filesystem: Path = Path("/")) -> Memory:
    """Memory of the machine, or of this process's container where that is less (cgroup 1 and 2).

    A container counts files in the page cache as used; inactive ones are taken as available, as Kubernetes does for its
    working set.
    """
    import psutil

    machine = psutil.virtual_memory()
    total, available = int(machine.total), int(machine.available)
    for files in _CGROUP_MEMORY:
        limit, used, statistics = (_read(filesystem / "sys/fs/cgroup" / name).strip() for name in files)
        if limit.isdigit() and used.isdigit():
            cached = re.search(r"^inactive_file (\d+)$", statistics, flags=re.MULTILINE)
            free = int(limit) - int(used) + (int(cached.group(1)) if cached else 0)
            total, available = min(total, int(limit)), min(available, max(0, free))
    return Memory(total, available)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
