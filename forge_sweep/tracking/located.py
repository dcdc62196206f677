"""From the name of a model, as a user writes it, to the folder of its bundle."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from forge_sweep.errors import InputError
from forge_sweep.tracking import store as stores
from forge_sweep.tracking.registry import Registry
from forge_sweep.tracking.trained_on import TrainedModel, downloaded

if TYPE_CHECKING:
    from mlflow import MlflowClient

REFERENCE = re.compile(r"(?:models:/)?(?P<name>[^/@:]+)(?:@(?P<alias>[A-Za-z0-9_-]+)|/(?P<version>\d+))")


ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""What MLflow calls a model, a version or an alias that is not there."""


@dataclass(frozen=True)
class Located:
    """Which model a reference means at the moment.

    Attributes:
        name: registered model, or the folder's name.
        version: its version; of a folder the first 12 digits of its manifest's SHA-256.
        alias: the alias that was asked for; "" where it was a version or a folder, which never mean another model.
        tags: of the version.
        folder: the bundle itself; None where it has to be fetched from the registry.
        run_id: of the run that made the version; "" for a folder.
    """

    name: str
    version: str
    alias: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None
    run_id: str = ""

    @property
    def uri(self) -> str:
        """``models:/NAME/VERSION``, or the folder."""
        return f"models:/{self.name}/{self.version}" if self.folder is None else str(self.folder)


def locate(reference: str | Path, store: Path | str) -> Located:
    """Look a model up; reads names only, a few milliseconds on a database.

    Args:
        reference: ``models:/NAME@ALIAS``, ``models:/NAME/3``, either without ``models:/``, or the folder of a bundle.
        store: folder of the embedded stores; ``MLFLOW_TRACKING_URI`` goes first.

    Raises:
        InputError: it is none of these, or there is no such model, version or alias.
        TrackingDown: the store cannot be reached.
    """
    if os.path.isdir(reference):  # False too for what no folder can be called, where Path raises
        return of_folder(Path(reference))
    reference, store = str(reference), Path(store)
    found = REFERENCE.fullmatch(reference)
    if found is None:
        raise InputError(
            f"{reference!r} names no model; expected NAME@ALIAS, NAME/VERSION, or the folder of a bundle",
            hint="write models:/NAME@champion, such as models:/credit@challenger",
        )
    uri = stores.existing_uri(store)
    with stores.translated(f"the look-up of {reference}"):
        from mlflow.exceptions import MlflowException

        client = _client(uri, store)
        try:
            if found["alias"]:
                version = client.get_model_version_by_alias(found["name"], found["alias"])
            else:
                version = client.get_model_version(found["name"], found["version"])
        except MlflowException as error:
            if error.error_code not in ABSENT:
                raise
            # Raises what there is in its place.
            Registry(store).version(found["name"], f"@{found['alias']}" if found["alias"] else found["version"])
            raise
    return Located(
        found["name"], str(version.version), found["alias"] or "", dict(version.tags), run_id=str(version.run_id)
    )


@functools.lru_cache(maxsize=4)
def _client(uri: str, store: Path) -> MlflowClient:
    """A client that is kept: a server looks the same alias up for ever, and connecting to a database takes a second."""
    return stores.connect(uri, store, reading=True)


@contextlib.contextmanager
def fetched(located: Located, store: Path) -> Iterator[Path]:
    """The folder of the bundle, for a while.

    Raises:
        TrackingDown: the store cannot be reached.
        BundleError: the model is none of ours.
    """
    if located.folder is not None:
        yield located.folder
        return
    with downloaded(TrainedModel(located.name, located.version, ()), store) as folder:
        yield folder


def of_folder(folder: Path) -> Located:
    """A bundle that is not registered."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        raise InputError(f"the folder {folder} has no manifest.json: it is no bundle", hint="give the bundle itself")
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    return Located(folder.resolve().name, digest[:12], folder=folder)
