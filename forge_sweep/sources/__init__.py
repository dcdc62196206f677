"""Where rows come from. Every kind of source gives the same `Dataset`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from forge_sweep.sources.base import ROLES, Dataset, Role, Source, Split, TestLook, test_looks
from forge_sweep.sources.feature_store.source import FeatureStoreSource
from forge_sweep.sources.files import FileSource
from forge_sweep.sources.samples import SampleSource

if TYPE_CHECKING:
    from forge_sweep.experiment import DataSpec

__all__ = ["ROLES", "SOURCES", "Dataset", "Role", "Source", "Split", "TestLook", "load", "test_looks"]

SOURCES: dict[str, Source] = {"file": FileSource(), "sample": SampleSource(), "postgres": FeatureStoreSource()}
"""The implementation behind each value of ``data.source``."""


def load(spec: DataSpec, *, root: Path, seed: int) -> Dataset:
    """Read, check, order and split the rows that ``[data]`` declares.

    Args:
        spec: the section ``[data]`` of the experiment.
        root: folder that relative paths start from.
        seed: decides random and group splits.

    Raises:
        DataError: the data cannot be read, or is not what the section says.
    """
    return SOURCES[spec.source].load(spec, root=root, seed=seed)
