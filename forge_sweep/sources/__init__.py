"""Where rows come from. Every kind of source gives the same `Dataset`."""

from forge_sweep.sources.base import (
    ROLES,
    Dataset,
    Fold,
    Role,
    Source,
    Split,
    Successor,
    TestLook,
    Versioned,
    test_looks,
)
from forge_sweep.sources.loading import SOURCES, load, source
from forge_sweep.sources.rungs import rungs
from forge_sweep.sources.spool import in_files

__all__ = [
    "ROLES",
    "SOURCES",
    "Dataset",
    "Fold",
    "Role",
    "Source",
    "Split",
    "Successor",
    "TestLook",
    "Versioned",
    "in_files",
    "load",
    "rungs",
    "source",
    "test_looks",
]
