"""Registered models by the data they were trained on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from forge_sweep.errors import ForgeSweepError
from forge_sweep.tracking import store as stores
from forge_sweep.tracking.mlmodel import bundle_in

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class TrainedModel:
    """A version of a registered model.

    Attributes:
        name: registered model.
        version: its version.
        aliases: such as ``champion``.
    """

    name: str
    version: str
    aliases: tuple[str, ...]

    @property
    def uri(self) -> str:
        """``models:/NAME/VERSION``."""
        return f"models:/{self.name}/{self.version}"


def models_trained_on(dataset_version: str, store: Path) -> tuple[TrainedModel, ...]:
    """Every registered version that was trained on this dataset version: those with an alias first, then the newest.

    Args:
        dataset_version: ``<name>@<first digits of the digest>``, as runs record it.
        store: folder of the embedded stores; where there is none, none is made, and no model is found.

    Raises:
        TrackingDown: the store cannot be reached.
    """
    client = _client(store)
    if client is None:
        return ()
    with stores.translated("the search for registered models"):
        condition = f"tags.`forge.dataset_version` = '{dataset_version}'"
        found = list(client.search_model_versions(condition))
        aliases = {name: client.get_registered_model(name).aliases for name in {each.name for each in found}}
    models = [
        TrainedModel(
            each.name,
            str(each.version),
            tuple(sorted(alias for alias, v in aliases[each.name].items() if str(v) == str(each.version))),
        )
        for each in found
    ]
    return tuple(sorted(models, key=lambda model: (not model.aliases, model.name, -int(model.version))))


@contextlib.contextmanager
def downloaded(model: TrainedModel, store: Path) -> Iterator[Path]:
    """The folder of a model's bundle, for a while.

    Raises:
        TrackingDown: the store cannot be reached.
        BundleError: the model is none of ours, or more was put beside its bundle than registration does.
    """
    with TemporaryDirectory(prefix="forge-sweep-") as folder:
        bundle = bundle_in(_download(model, store, Path(folder)), model.uri)
        try:
            yield bundle
        except ForgeSweepError as error:  # the copy is gone when somebody reads of it
            error.message, error.hint = (
                text.replace(f"{bundle}{os.sep}", f"{model.uri}: ").replace(str(bundle), model.uri)
                for text in (error.message, error.hint)
            )
            raise


def _download(model: TrainedModel, store: Path, folder: Path) -> Path:
    with stores.translated(f"the download of {model.uri}"):
        from mlflow import artifacts

        uri = stores.readable(stores.default_uri(store))
        with stores.current(uri):
            return Path(artifacts.download_artifacts(artifact_uri=model.uri, dst_path=str(folder), tracking_uri=uri))


def _client(store: Path) -> MlflowClient | None:
    """A client, or None where nothing was ever stored."""
    uri = stores.default_uri(store)
    path = stores.sqlite_path(uri)
    if path is not None and not path.exists():
        return None
    with stores.translated("a request"):
        return stores.connect(uri, store, reading=True)
