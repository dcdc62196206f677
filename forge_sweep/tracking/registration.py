"""Register a bundle as a version of a model; what writers and readers of an experiment share of its models."""

from __future__ import annotations

import contextlib
import importlib.metadata
import tempfile
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from forge_sweep import jsons
from forge_sweep.environment import without_credentials
from forge_sweep.tracking import client as clients
from forge_sweep.tracking.journal import Journal
from forge_sweep.tracking.mlmodel import ALWAYS, BY_BACKEND, BY_KIND, LOADER, UNTRUSTED
from forge_sweep.tracking.writes import KEY_TAG, Session, file_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

ALIAS = "challenger"
DONE_TAG = "forge.registered_at"
FORM_TAG = "forge.preprocessing"  # ``in_model`` if the bundle contains ``raw.keras``


@dataclass(frozen=True)
class Submission:
    """What to register: see `Tracker.register`. There is at most one version per run key and `FORM_TAG`."""

    run_key: str
    bundle: Path
    model_name: str
    columns: Sequence[str]
    requirements: Sequence[str]
    tags: Mapping[str, str]
    step: int


def requirements(kind: str, backend: str = "tensorflow", members: Sequence[str] = ()) -> list[str]:
    """Pinned requirements for loading a bundle of this kind, such as ``network``, at the versions installed here.

    ``members`` are the kinds of the models of an ensemble.
    """
    engines = [
        name
        for each in members or [kind]
        for name in (("keras", *BY_BACKEND.get(backend, (backend,))) if each == "network" else BY_KIND[each])
    ]
    pinned = []
    for name in dict.fromkeys((*ALWAYS, *engines)):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(name).partition("+")[0]  # +cpu and the like are not on the index
            pinned.append(f"{name}=={version}")
    return pinned


def register(session: Session, candidate: Submission) -> str:
    """Create the version of a candidate, or complete and return the one that an earlier call created.

    The alias is set last, so that it never points at an incomplete version. A complete registration is not touched
    again, so that a resumed sweep does not take the alias back from a later one.
    """
    client, run_key, name = session.client, candidate.run_key, candidate.model_name
    run_id, form = session.run_id(run_key), candidate.tags.get(FORM_TAG)
    versions = client.search_model_versions(f"name = '{name}' and tags.`{KEY_TAG}` = '{run_key}'")
    found = next((each for each in versions if each.run_id == run_id and each.tags.get(FORM_TAG) == form), None)
    if found is not None and not is_there(client, f"models:/{name}/{found.version}"):
        model_id = _model_id(found)
        if model_id in {str(each.model_id) for each in _models_of(session, run_id)}:
            _upload(session, candidate, run_id, model_id)
        else:
            found = None
    made = found or _version_of(session, _log_model(session, candidate), run_id, run_key, name, candidate.tags)
    version = str(made.version)  # int from a database, str over HTTP
    if found is None or DONE_TAG not in found.tags:
        set_alias(client, f"models:/{name}/{version}")
        client.set_model_version_tag(name, version, DONE_TAG, datetime.now(UTC).isoformat())
        clients.sync(session.uri)
    return version


def is_there(client: MlflowClient, model: str) -> bool:
    """Whether a version exists, with the files of its logged model."""
    with clients.tolerating(*clients.ABSENT):
        found = client.get_model_version(*_name_and_version(model))
        is_logged = str(found.source).startswith("models:/")
        return not is_logged or bool(client.list_logged_model_artifacts(_model_id(found)))
    return False


def set_alias(client: MlflowClient, model: str) -> None:
    """Make a version the challenger."""
    name, version = _name_and_version(model)
    clients.surely(lambda: client.set_registered_model_alias(name, ALIAS, version))


def _name_and_version(model: str) -> tuple[str, str]:
    name, _, version = model.removeprefix("models:/").rpartition("/")
    return name, version


def _model_id(version: ModelVersion) -> str:
    return str(version.source).rpartition("models:/")[2]


def _version_of(
    session: Session, model_id: str, run_id: str, run_key: str, model_name: str, tags: Mapping[str, str]
) -> ModelVersion:
    with clients.tolerating(clients.EXISTS):
        session.client.create_registered_model(model_name)
    source, all_tags = f"models:/{model_id}", {**tags, KEY_TAG: run_key}
    version = session.client.create_model_version(model_name, source, run_id, tags=all_tags, model_id=model_id)
    link = [{"name": model_name, "version": str(version.version)}]
    session.client.set_logged_model_tags(model_id, {"mlflow.modelVersions": jsons.dumps(link)})  # the UI's link
    return version


def _log_model(session: Session, candidate: Submission) -> str:
    # These are the steps of `mlflow.pyfunc.log_model`, which only works on the active run at the global address.
    from mlflow.entities import LoggedModelOutput

    client, run_id = session.client, session.run_id(candidate.run_key)
    for half in unfinished(session, run_id):  # a kill in the middle of an earlier registration
        client.delete_logged_model(half)
    form = candidate.tags.get(FORM_TAG)
    for whole in _models_of(session, run_id):  # or just before its version was made
        if (whole.status, whole.name, whole.tags.get(FORM_TAG)) == ("READY", candidate.model_name, form):
            if not client.list_logged_model_artifacts(str(whole.model_id)):
                _upload(session, candidate, run_id, str(whole.model_id))
            return str(whole.model_id)
    run = client.get_run(run_id).data
    params, step = run.params, int(run.metrics.get("best_epoch", candidate.step))
    model = client.create_logged_model(
        session.experiment_id, candidate.model_name, run_id, dict(candidate.tags), params, "forge_sweep"
    )
    model_id = str(model.model_id)
    _upload(session, candidate, run_id, model_id)
    client.finalize_logged_model(model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model_id, step)])
    return model_id


def _upload(session: Session, candidate: Submission, run_id: str, model_id: str) -> None:
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, Schema

    # The signature lists the columns and leaves their types to the bundle's schema: MLflow's ``double`` refuses
    # integers and its ``long`` refuses missing values.
    anything = AnyType()  # type: ignore[no-untyped-call]
    inputs = Schema([ColSpec(anything, name, required=True) for name in candidate.columns])
    about = Model(run_id=run_id, model_uuid=model_id, model_id=model_id, metadata=dict(candidate.tags))
    with tempfile.TemporaryDirectory(prefix="forge-sweep-") as folder:
        path = str(Path(folder) / "model")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*input example was not provided")  # the bundle has golden rows
            pyfunc.save_model(
                path,
                loader_module=LOADER,
                data_path=str(candidate.bundle),
                model_config=UNTRUSTED if any(candidate.bundle.glob("code.*.py")) else None,
                signature=ModelSignature(inputs=inputs),
                pip_requirements=list(candidate.requirements),
                mlflow_model=about,
            )
        session.client.log_model_artifacts(model_id, path)


def unfinished(session: Session, run_id: str) -> list[str]:
    """Ids of a run's logged models whose upload was interrupted; MLflow keeps them PENDING for ever."""
    return [str(each.model_id) for each in _models_of(session, run_id) if each.status == "PENDING"]


def _models_of(session: Session, run_id: str) -> list[LoggedModel]:
    home = str(session.client.get_run(run_id).info.experiment_id)
    found: list[LoggedModel] = session.client.search_logged_models([home], f"source_run_id = '{run_id}'")
    return found


def again(session: Session, run_key: str, model_name: str) -> str | None:
    """Register a model whose version was deleted again, from the files of its run; None if the files are gone."""
    from mlflow.exceptions import MlflowException

    run_id = session.find(run_key)
    if run_id is None:
        return None
    kept = [each for each in _models_of(session, run_id) if each.status == "READY" and each.name == model_name]
    model = next((each for each in kept if session.client.list_logged_model_artifacts(each.model_id)), None)
    if model is None:
        return None
    tags = {name: value for name, value in model.tags.items() if not name.startswith("mlflow.")}
    version = str(_version_of(session, str(model.model_id), run_id, run_key, model_name, tags).version)
    try:
        session.client.get_model_version_by_alias(model_name, ALIAS)
    except MlflowException:  # no version has it
        set_alias(session.client, f"models:/{model_name}/{version}")
    session.client.set_model_version_tag(model_name, version, DONE_TAG, datetime.now(UTC).isoformat())
    clients.sync(session.uri)
    return version


class Connection:
    """One MLflow experiment, the journal of its writes, and its models. Raises TrackingDown if it cannot be reached."""

    def __init__(
        self, experiment_name: str, store: Path, sweep: str = "", *, description: str = "", uri: str | None = None
    ) -> None:
        self.uri = uri or clients.default_uri(store)
        self._session = Session(self.uri, store, experiment_name, description, sweep)
        self._journal = Journal(store.absolute() / "journal", file_name(experiment_name))
        self._lock = threading.RLock()  # one write at a time, in the order in which they wait in the journal

    @property
    def address(self) -> str:
        """The tracking address without credentials, for people."""
        return without_credentials(self.uri)

    @property
    def is_embedded(self) -> bool:
        """Whether the store is the database in its own folder."""
        return self.uri == clients.embedded_uri(self._session.store)

    def is_registered(self, model: str) -> bool:
        """Whether ``models:/NAME/VERSION`` still exists, including its files."""
        with self._lock, clients.translated(f"a look for {model}"):
            return is_there(self._session.client, model)

    def has_lost_alias(self, model: str) -> bool:
        """Whether a version is the newest of its model and has no alias, and no version is the challenger.

        (A promotion replaces the alias by another one, and a later version takes it over.)
        """
        with self._lock, clients.translated(f"a look for {model}"):
            name, version = _name_and_version(model)
            aliases = self._session.client.get_registered_model(name).aliases
            versions = [int(each.version) for each in self._session.client.search_model_versions(f"name = '{name}'")]
        return ALIAS not in aliases and int(version) == max(versions) and version not in map(str, aliases.values())

    def set_alias(self, model: str) -> None:
        """Make ``models:/NAME/VERSION`` the challenger."""
        with self._lock, clients.translated(f"the alias of {model}"):
            set_alias(self._session.client, model)
