"""Registered models: what the registry holds, which version a name means, and the folder of its bundle."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from forge_sweep.addresses import sqlite_file, variable
from forge_sweep.errors import ForgeSweepError, InputError, NotTrusted
from forge_sweep.experiment.words import nearest
from forge_sweep.tracking import client as clients
from forge_sweep.tracking.mlmodel import bundle_in

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion as MlflowVersion

LISTED = 10_000  # versions that are read
SHOWN = 12  # names in a message

REFERENCE = re.compile(r"(?:models:/)?(?P<name>[^/@:]+)(?:@(?P<alias>[A-Za-z0-9_-]+)|/(?P<version>\d+))")


@dataclass(frozen=True)
class ModelVersion:
    """One version of a registered model: its number as text, the run that trained it, UTC in ISO 8601."""

    name: str
    version: str
    aliases: tuple[str, ...] = ()
    run_id: str = ""
    created: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def uri(self) -> str:
        """``models:/NAME/VERSION``."""
        return f"models:/{self.name}/{self.version}"


@dataclass(frozen=True)
class Located(ModelVersion):
    """The model to which a reference currently points."""

    alias: str = ""  # as requested; "" for a version or a folder, which always mean the same model
    folder: Path | None = None  # not registered; its version is the first 12 digits of its manifest's SHA-256

    @property
    def uri(self) -> str:
        """``models:/NAME/VERSION``, or the folder."""
        return super().uri if self.folder is None else str(self.folder)


def models_trained_on(dataset_version: str, store: Path) -> tuple[ModelVersion, ...]:
    """Every version that was trained on a dataset's ``<name>@<digest>``, those with an alias first, then the newest.

    Raises:
        TrackingDown: the store cannot be reached.
    """
    uri = clients.default_uri(store)
    if (path := sqlite_file(uri)) is not None and not path.exists():
        return ()
    with Registry(store).asking("the search for registered models") as client:
        found = client.search_model_versions(f"tags.`forge.dataset_version` = '{dataset_version}'")
        aliases = {name: client.get_registered_model(name).aliases for name in {each.name for each in found}}
    models = [_version(each, aliases[each.name]) for each in found]
    return tuple(sorted(models, key=lambda model: (not model.aliases, model.name, -int(model.version))))


@contextmanager
def fetched(model: ModelVersion, store: Path) -> Iterator[Path]:
    """The folder of a model's bundle, downloaded where it is registered; it exists within the context.

    Raises:
        TrackingDown: the store cannot be reached.
        BundleError: it is not a forge-sweep model, or was changed since registration.
    """
    if isinstance(model, Located) and model.folder is not None:
        yield model.folder
        return
    with TemporaryDirectory(prefix="forge-sweep-") as folder:
        with clients.translated(f"the download of {model.uri}"):
            from mlflow import artifacts

            uri = clients.readable(clients.default_uri(store))
            with clients.current(uri):
                copy = artifacts.download_artifacts(artifact_uri=model.uri, dst_path=folder, tracking_uri=uri)
        bundle = bundle_in(Path(copy), model.uri)
        try:
            yield bundle
        except ForgeSweepError as error:  # the copy is gone by the time the message is read
            error.message, error.hint = (
                text.replace(f"{bundle}{os.sep}", f"{model.uri}: ").replace(str(bundle), model.uri)
                for text in (error.message, error.hint)
            )
            if isinstance(error, NotTrusted):
                place = "" if variable(clients.VARIABLE) else f"{clients.VARIABLE}={clients.default_uri(store)} "
                error.hint += f"; `{place}mlflow artifacts download -u {model.uri} -d FOLDER` fetches its files"
            raise


def locate(reference: str | Path, store: Path | str) -> Located:
    """Look up ``models:/NAME@ALIAS``, ``models:/NAME/3``, either without ``models:/``, or the folder of a bundle.

    Nothing is downloaded: a database takes a few milliseconds.

    Raises:
        InputError: the reference is malformed, or there is no such model, version or alias.
        TrackingDown: the store cannot be reached.
    """
    if os.path.isdir(reference):  # also False for an invalid path, where Path raises
        folder = Path(reference)
        if not (manifest := folder / "manifest.json").is_file():
            hint = "give the bundle itself"
            raise InputError(f"the folder {folder} has no manifest.json: it is not a bundle", hint=hint)
        digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
        return Located(folder.resolve().name, digest[:12], folder=folder)
    reference, store = str(reference), Path(store)
    found = REFERENCE.fullmatch(reference)
    if found is None:
        bare = reference.removeprefix("models:/")
        name = bare if re.fullmatch(r"[^/@:]+", bare) else "NAME"
        raise InputError(
            f"{reference!r} names no model; expected NAME@ALIAS, NAME/VERSION, or the folder of a bundle",
            hint=f"write models:/{name}@champion, models:/{name}@challenger, or a version: models:/{name}/1",
        )
    uri = clients.existing_uri(store)
    with clients.translated(f"the look-up of {reference}"):
        client, alias = _client(uri, store), found["alias"]
        version: Any = None
        with clients.tolerating(*clients.ABSENT):
            if alias:
                version = client.get_model_version_by_alias(found["name"], alias)
            else:
                version = client.get_model_version(found["name"], found["version"])
        if version is None:  # the error lists what exists
            version = Registry(store).version(found["name"], f"@{alias}" if alias else found["version"])
    number, run_id = str(version.version), str(version.run_id)
    return Located(found["name"], number, run_id=run_id, tags=dict(version.tags), alias=alias or "")


@functools.lru_cache(maxsize=4)
def _client(uri: str, store: Path) -> MlflowClient:
    """A cached client: a server looks the same alias up repeatedly, and connecting to a database takes a second."""
    return clients.connect(uri, store, reading=True)


class Registry:
    """The models of one store.

    Raises:
        InputError: there is no store; of the methods, also what they are asked for.
        TrackingDown: it cannot be reached.
    """

    def __init__(self, store: Path) -> None:
        self.store = store
        self.uri = clients.existing_uri(store)

    @cached_property
    def client(self) -> MlflowClient:
        """The client; the first use connects."""
        return clients.connect(self.uri, self.store, reading=True)

    @contextmanager
    def asking(self, what: str) -> Iterator[MlflowClient]:
        """The client, with its exceptions translated: see `clients.translated`."""
        with clients.translated(what), clients.current(clients.readable(self.uri)):
            yield self.client

    def models(self) -> tuple[str, ...]:
        """Names of all registered models, in order."""
        with self.asking("the list of models") as client:
            return tuple(sorted(str(each.name) for each in clients.every(client.search_registered_models)))

    def versions(self, name: str) -> tuple[ModelVersion, ...]:
        """All versions of a model, the oldest first."""
        aliases = self.aliases(name)
        with self.asking(f"the versions of {name}") as client:
            found = client.search_model_versions(f"name = '{name}'", max_results=LISTED)
        return tuple(sorted((_version(each, aliases) for each in found), key=lambda one: int(one.version)))

    def version(self, name: str, version: str) -> ModelVersion:
        """The version with this number, or with an alias, as ``@challenger``; the error lists those that exist."""
        found, aliases = self.versions(name), self.aliases(name)
        number = aliases.get(version[1:]) if version.startswith("@") else version
        for each in found:
            if each.version == number:
                return each
        raise _absent(name, version, [each.version for each in found], aliases)

    def aliases(self, name: str) -> dict[str, str]:
        """Version by alias; the error lists the models that exist."""
        if "'" in name:
            raise InputError(f"the model name {name!r} holds a quote", hint="forge-sweep models list")
        with self.asking(f"the look-up of {name}") as client, clients.tolerating(clients.MISSING):
            return {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}
        known = self.models()
        raise InputError(
            f"there is no registered model {name!r}; there is {_shown(known)}",
            hint=nearest(name, known) or "register one: forge-sweep run EXPERIMENT",
        )

    def set_alias(self, name: str, alias: str, version: str | None) -> None:
        """Point an alias at a version, or delete it; one atomic write."""
        clients.refuse_read_only(self.uri)
        with self.asking(f"the alias {alias} of {name}") as client:
            if version is None:
                client.delete_registered_model_alias(name, alias)
            else:
                clients.surely(lambda: client.set_registered_model_alias(name, alias, version))

    def tag(self, name: str, version: str, key: str, value: str) -> None:
        """Set a tag of a version."""
        clients.refuse_read_only(self.uri)
        with self.asking(f"a tag of {name} {version}") as client:
            clients.surely(lambda: client.set_model_version_tag(name, version, key, value))

    def attach(self, version: ModelVersion, path: str, text: str) -> None:
        """Write or replace a text artifact of the run that trained a version."""
        with self.asking(f"a file of {version.uri}") as client:
            client.log_text(version.run_id, text, path)

    def artifact(self, version: ModelVersion, path: str) -> str | None:
        """The text of such an artifact; None if it does not exist."""
        with self.asking(f"a file of {version.uri}") as client:
            return clients.text_of(client, version.run_id, path)


def _absent(name: str, version: str, versions: Sequence[str], aliases: Mapping[str, str]) -> InputError:
    has = f"it has version {_shown(versions)}" if versions else "it has no version"
    named = [f"@{alias} (version {number})" for alias, number in sorted(aliases.items())]
    has += f" and the aliases {_shown(named)}" if named else " and no alias"
    if not version.startswith("@"):
        close = f"@{version}" if version in aliases else ""
        hint = f'did you mean "{close}"?' if close else f"forge-sweep models show {name} VERSION"
        return InputError(f"model {name!r} has no version {version}; {has}", hint=hint)
    if version == "@champion" and versions:
        hint = f"no version is the champion yet; promote one: forge-sweep promote {name} {versions[-1]}"
    elif version == "@challenger" and "champion" in aliases:
        hint = "a challenger that was promoted is @champion; the next sweep registers the next challenger"
    else:
        hint = nearest(version[1:], aliases) or "give a number, or one of the aliases"
    return InputError(f"model {name!r} has no alias {version}; {has}", hint=hint)


def _shown(names: Sequence[str]) -> str:
    dropped = len(names) - SHOWN
    return (f"{dropped} more, " if dropped > 0 else "") + ", ".join(names[-SHOWN:]) or "none"


def _version(found: MlflowVersion, aliases: Mapping[str, str]) -> ModelVersion:
    number = str(found.version)  # int from a database, str over HTTP
    return ModelVersion(
        name=found.name,
        version=number,
        aliases=tuple(sorted(alias for alias, version in aliases.items() if str(version) == number)),
        run_id=str(found.run_id or ""),
        created=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
        tags=dict(found.tags),
    )
