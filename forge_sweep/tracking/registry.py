"""What the model registry holds: models, versions, aliases, tags; and the folder of a version's bundle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from forge_sweep.errors import InputError
from forge_sweep.experiment.rules import nearest
from forge_sweep.tracking import store as stores
from forge_sweep.tracking.trained_on import TrainedModel, downloaded

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion as MlflowVersion

LISTED = 10_000
"""So many models or versions are read at most."""

SHOWN = 12
"""So many names are listed in a message."""


@dataclass(frozen=True)
class ModelVersion:
    """One version of a registered model.

    Attributes:
        name: registered model.
        version: its number, as text.
        run_id: run that trained it.
        created: UTC, ISO 8601.
        tags: what was recorded at registration, and since.
        aliases: such as ``champion``.
    """

    name: str
    version: str
    run_id: str
    created: str
    tags: Mapping[str, str]
    aliases: tuple[str, ...]

    @property
    def uri(self) -> str:
        """``models:/NAME/VERSION``."""
        return f"models:/{self.name}/{self.version}"


class Registry:
    """The models of one store.

    Args:
        store: folder of the embedded stores; ``MLFLOW_TRACKING_URI`` goes first.

    Raises:
        InputError: there is no store.
        TrackingDown: it cannot be reached.
    """

    def __init__(self, store: Path) -> None:
        self.store = store
        self.uri = stores.existing_uri(store)

    @cached_property
    def client(self) -> MlflowClient:
        """The client; the first use connects."""
        return stores.connect(self.uri, self.store, reading=True)

    @contextmanager
    def asking(self, what: str) -> Iterator[MlflowClient]:
        """The client, and our own errors for what it raises.

        Args:
            what: the request, for messages.
        """
        with stores.translated(what), stores.current(stores.readable(self.uri)):
            yield self.client

    def models(self) -> tuple[str, ...]:
        """Names of all registered models, in order."""
        with self.asking("the list of models") as client:
            found, token = [], None
            while True:
                page = client.search_registered_models(max_results=100, page_token=token)
                found += [str(each.name) for each in page]
                token = page.token
                if not token:
                    return tuple(sorted(found))

    def versions(self, name: str) -> tuple[ModelVersion, ...]:
        """All versions of a model, the oldest first.

        Raises:
            InputError: there is no such model.
        """
        aliases = self.aliases(name)
        with self.asking(f"the versions of {name}") as client:
            found = client.search_model_versions(f"name = '{name}'", max_results=LISTED)
        return tuple(sorted((_version(each, aliases) for each in found), key=lambda one: int(one.version)))

    def version(self, name: str, version: str) -> ModelVersion:
        """One version.

        Args:
            name: registered model.
            version: its number, or an alias as ``@challenger``.

        Raises:
            InputError: there is no such model or version; names those that there are.
        """
        found, aliases = self.versions(name), self.aliases(name)
        number = aliases.get(version[1:]) if version.startswith("@") else version
        for each in found:
            if each.version == number:
                return each
        raise _absent(name, version, [each.version for each in found], aliases)

    def aliases(self, name: str) -> dict[str, str]:
        """Version by alias.

        Raises:
            InputError: there is no such model; names those that there are.
        """
        from mlflow.exceptions import MlflowException

        if "'" in name:
            raise InputError(f"the model name {name!r} holds a quote", hint="forge-sweep models list")
        with self.asking(f"the look-up of {name}") as client:
            try:
                return {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        known = self.models()
        raise InputError(
            f"there is no registered model {name!r}; there is {_shown(known)}",
            hint=nearest(name, known) or "register one: forge-sweep run EXPERIMENT",
        )

    def set_alias(self, name: str, alias: str, version: str | None) -> None:
        """Let an alias stand for a version, or for none; one atomic write."""
        stores.refuse_read_only(self.uri)
        with self.asking(f"the alias {alias} of {name}") as client:
            if version is None:
                client.delete_registered_model_alias(name, alias)
            else:
                stores.surely(lambda: client.set_registered_model_alias(name, alias, version))

    def tag(self, name: str, version: str, key: str, value: str) -> None:
        """Set a tag of a version."""
        stores.refuse_read_only(self.uri)
        with self.asking(f"a tag of {name} {version}") as client:
            stores.surely(lambda: client.set_model_version_tag(name, version, key, value))

    def attach(self, version: ModelVersion, path: str, text: str) -> None:
        """Write a text file among the artifacts of the run that trained a version; what stands there is replaced."""
        with self.asking(f"a file of {version.uri}") as client:
            client.log_text(version.run_id, text, path)

    def artifact(self, version: ModelVersion, path: str) -> str | None:
        """Such a file; None where there is none.

        Args:
            version: whose.
            path: folder and name.
        """
        with self.asking(f"a file of {version.uri}") as client, TemporaryDirectory(prefix="forge-sweep-") as folder:
            if path not in {file.path for file in client.list_artifacts(version.run_id, path.rpartition("/")[0])}:
                return None
            return Path(client.download_artifacts(version.run_id, path, folder)).read_text(encoding="utf-8")

    def bundle(self, version: ModelVersion) -> AbstractContextManager[Path]:
        """The folder of a version's bundle, for a while.

        Raises:
            TrackingDown: the store cannot be reached.
            BundleError: the version is none of ours.
        """
        return downloaded(TrainedModel(version.name, version.version, ()), self.store)


def _absent(name: str, version: str, versions: Sequence[str], aliases: Mapping[str, str]) -> InputError:
    """What is said of a version or an alias that a model does not have: those that it has."""
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
    """Names for a message, the last ones where there are many."""
    dropped = len(names) - SHOWN
    return (f"{dropped} more, " if dropped > 0 else "") + ", ".join(names[-SHOWN:]) or "none"


def _version(found: MlflowVersion, aliases: Mapping[str, str]) -> ModelVersion:
    number = str(found.version)  # int from a database, str over HTTP
    return ModelVersion(
        name=found.name,
        version=number,
        run_id=str(found.run_id or ""),
        created=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
        tags=dict(found.tags),
        aliases=tuple(sorted(alias for alias, version in aliases.items() if version == number)),
    )
