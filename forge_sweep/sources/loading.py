"""The kinds of sources, by the names that ``data.source`` calls them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from forge_sweep import plugins
from forge_sweep.experiment.code import Code, is_own
from forge_sweep.preprocessing import Schema, by_default, declared, is_tensor, resolved
from forge_sweep.sources.base import Dataset, Source
from forge_sweep.sources.files import FileSource
from forge_sweep.sources.own import OwnSource
from forge_sweep.sources.samples import SampleSource

if TYPE_CHECKING:
    from forge_sweep.experiment import DataSpec

SOURCES: dict[str, Source] = {"file": FileSource(), "sample": SampleSource()}
"""Sources of this room; others are entry points of the group ``forge_sweep.sources``."""


def source(name: str) -> Source:
    """The implementation behind a value of ``data.source``.

    Raises:
        InputError: there is none, or the distribution that declares it is broken.
    """
    if name in SOURCES:
        return SOURCES[name]
    if is_own(name):
        return OwnSource()
    found: Source = plugins.load(plugins.SOURCES, name, ["load"])()
    return found


def load(spec: DataSpec, *, root: Path, seed: int, code: Code | None = None) -> Dataset:
    """Read, check, order and split the rows that ``[data]`` declares, see `Source.load`.

    ``code`` is that of the user's own source, where it is read already (`Experiment.source_code`).

    Raises:
        InputError: there is no such source.
        DataError: the data cannot be read, or is not what the section says, or ``[data.inputs]`` do not fit it.
    """
    chosen = source(spec.source) if code is None else OwnSource(code)
    dataset = chosen.load(spec, root=root, seed=seed)
    features = dataset.train.features
    if spec.inputs or any(is_tensor(features[name]) for name in features):  # refused before the rows are used
        schema = Schema.learn(features, dataset.categorical)
        if groups := declared(spec.inputs) or by_default(schema):
            resolved(groups, schema)
    return dataset
