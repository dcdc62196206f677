"""A plugin of MLflow: ``forge-store:/credit/RUN/artifacts`` is that folder of ``artifacts`` beside the database.

So a store can be moved: see docs/decisions/0023-store-that-moves.md. The entry point is in pyproject.toml; MLflow loads
this module at its own import, so MLflow is imported in functions only.
"""

from __future__ import annotations

import functools
from importlib.metadata import entry_points
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from forge_sweep.addresses import sqlite_file
from forge_sweep.errors import InputError

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

SCHEME = "forge-store"


@functools.cache
def is_installed() -> bool:
    """Whether MLflow finds the plugin: not where the package was installed before it had one."""
    return any(each.name == SCHEME for each in entry_points(group="mlflow.artifact_repository"))


def location(folder: str) -> str:
    """The address of a folder of the store's artifacts."""
    return f"{SCHEME}:/{quote(folder)}"


def store_artifacts(
    artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
) -> ArtifactRepository:
    """Called by MLflow for each address with our scheme; its server gives no `tracking_uri`.

    Raises:
        InputError: the address leaves the store, or MLflow is at another store.
    """
    import mlflow
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
    from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

    path, tracking = urlsplit(artifact_uri).path, tracking_uri or mlflow.get_tracking_uri()
    parts = unquote(path).strip("/").split("/")
    if ".." in parts or "" in parts:
        raise InputError(
            f"the artifact address {artifact_uri!r} leaves its store", hint="the store was changed by hand"
        )
    if tracking.startswith(("http:", "https:")):  # `forge-sweep ui` gives the same folder out
        return MlflowArtifactsRepository(f"mlflow-artifacts:{path}", tracking, registry_uri)
    database = sqlite_file(tracking)
    if database is None:
        raise InputError(
            f"the artifacts {artifact_uri!r} are those of an embedded store, and MLflow is at another address",
            hint="set MLFLOW_TRACKING_URI to the store's mlflow.db, or unset it",
        )
    folder = database.parent.joinpath("artifacts", *parts)
    return LocalArtifactRepository(folder.as_uri(), tracking, registry_uri)
