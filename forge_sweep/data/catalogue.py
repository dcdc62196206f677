"""Which versions the feature store has, what is known of one, its audit, and its end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_sweep import sources
from forge_sweep.sources.feature_store import cache, versions
from forge_sweep.sources.feature_store.address import Address
from forge_sweep.sources.feature_store.connection import connect, retrying
from forge_sweep.sources.feature_store.ledger import Look, looks
from forge_sweep.sources.feature_store.source import spec_of
from forge_sweep.sources.feature_store.versions import Version

if TYPE_CHECKING:
    from forge_sweep.checks.audit import Audit
    from forge_sweep.experiment import PreprocessingSpec
    from forge_sweep.tracking import TrainedModel


@dataclass(frozen=True)
class Description:
    """All that the store says of a version.

    Attributes:
        version: the version.
        normalization: ``normalization_params`` as they are stored.
        looks: every look at its test rows, and at those of any version of the same content, the oldest first.
    """

    version: Version
    normalization: dict[str, Any]
    looks: tuple[Look, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values; fingerprints and the recipe of the preprocessor, which nobody reads, are left out."""
        shown = {name: value for name, value in self.normalization.items() if name != "recipe"}
        lines = [dataclasses.asdict(look) for look in self.looks]
        return {**as_dict(self.version), "normalization": shown, "test_looks": lines}


def listed(address: Address) -> list[Version]:
    """Every version, the oldest first.

    Raises:
        DataError: the tables are missing.
        StoreDown: nobody answers.
    """

    def work() -> list[Version]:
        with connect(address) as connection:
            return versions.versions(connection)

    return retrying(work)


def described(address: Address, name: str) -> Description:
    """What the store says of a version.

    Raises:
        DataError: there is no such version.
        StoreDown: nobody answers.
    """

    def work() -> Description:
        with connect(address) as connection:
            version = versions.find(connection, name)
            stored = versions.normalization(connection, version.normalization_version)
            return Description(version, stored, tuple(looks(connection, version.digest)))

    return retrying(work)


def audited(address: Address, name: str, preprocessing: PreprocessingSpec) -> Audit:
    """The audit that a sweep would begin with, on training and validation rows.

    Args:
        address: the store.
        name: of the version.
        preprocessing: what a sweep would scale with.

    Raises:
        DataError: there is no such version, or its rows are not those that were ingested.
        StoreDown: nobody answers.
    """
    from forge_sweep.checks.audit import audit

    spec = spec_of(described(address, name).version)
    dataset = sources.load(spec, root=Path(), seed=0)
    return audit(dataset, spec.task, preprocessing, scaled=preprocessing.scaler != "none")


def dropped(
    address: Address, name: str, store: Path, agree: Callable[[Version, tuple[TrainedModel, ...]], bool]
) -> bool:
    """Remove a version, its rows and their cache, once it is agreed to; the ledger of looks stays.

    Args:
        address: the store, as its owner.
        name: of the version.
        store: folder of the embedded MLflow store.
        agree: told what goes and which registered models were trained on it; False leaves everything as it is.

    Returns:
        Whether it was removed.

    Raises:
        DataError: there is no such version, another one was made from it, or the login is not the owner.
        StoreDown: nobody answers.
    """
    from forge_sweep.tracking import models_trained_on

    version = described(address, name).version
    if not agree(version, models_trained_on(version.version, store)):
        return False
    cache.forget(versions.drop(address, name))
    return True


def as_dict(version: Version) -> dict[str, Any]:
    """A version as JSON values, without its fingerprints."""
    values = {**dataclasses.asdict(version), "version": version.version}
    del values["test_fingerprints"], values["version_id"], values["train_print"]
    return values
