"""Artifacts of the embedded store, named by their place in it: a plugin of MLflow, as its documents describe them.

``forge-store:/credit/RUN/artifacts`` is the folder ``artifacts/credit/RUN/artifacts`` beside the database in which that
address stands, wherever both lie by now. See docs/decisions/0023-store-that-moves.md. The entry point is in
pyproject.toml; MLflow loads this module at its own import, so MLflow is imported in functions only.
"""

from __future__ import annotations

import functools
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from forge_sweep.addresses import sqlite_file
from forge_sweep.errors import InputError

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

SCHEME = "forge-store"
GROUP = "mlflow.artifact_repository"


@functools.cache
def is_installed() -> bool:
    """Whether MLflow finds the plugin: not where the package was installed before it had one."""
    return any(each.name == SCHEME for each in entry_points(group=GROUP))


def location(folder: str) -> str:
    """The address of a folder of the store's artifacts."""
    return f"{SCHEME}:/{quote(folder)}"


def store_artifacts(
    artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
) -> ArtifactRepository:
    """Called by MLflow for each address with our scheme.

    Args:
        artifact_uri: below `location`.
        tracking_uri: of the store; MLflow's own where it gives none, as its server does.
        registry_uri: not used.

    Raises:
        InputError: the address leaves the store, or the store is none that it can belong to.
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
    folder: Path = database.parent.joinpath("artifacts", *parts)
    return LocalArtifactRepository(folder.as_uri(), tracking, registry_uri)
