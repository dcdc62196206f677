"""A bundle folder becomes a version of a registered model."""

from __future__ import annotations

import importlib.metadata
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from forge_sweep import jsons
from forge_sweep.tracking.mlmodel import ALWAYS, BY_BACKEND, BY_KIND, LOADER
from forge_sweep.tracking.session import KEY_TAG, Session
from forge_sweep.tracking.store import surely

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

ALIAS = "challenger"
DONE_TAG = "forge.registered_at"
FORM_TAG = "forge.preprocessing"
"""``in_model`` where the bundle holds ``raw.keras``."""


@dataclass(frozen=True)
class Candidate:
    """What is registered.

    Attributes:
        run_key: key of the run it comes from; at most one version per key and form.
        bundle: folder of the bundle.
        model_name: name of the registered model.
        columns: names of the raw input columns.
        requirements: pip requirements, complete (inferring them costs 6 s).
        tags: of the version; `FORM_TAG` among them where the bundle holds more than others of its run.
        step: epoch that the model stands for, where its run has no ``best_epoch``.
    """

    run_key: str
    bundle: Path
    model_name: str
    columns: Sequence[str]
    requirements: Sequence[str]
    tags: Mapping[str, str]
    step: int


def requirements(kind: str, backend: str = "tensorflow") -> list[str]:
    """Pinned requirements for loading a bundle, at the versions installed here.

    Args:
        kind: the bundle's kind, ``network`` or that of a baseline.
        backend: the Keras backend of a network.
    """
    engines = ("keras", *BY_BACKEND.get(backend, (backend,))) if kind == "network" else BY_KIND[kind]
    return [pinned for name in (*ALWAYS, *engines) for pinned in _pinned(name)]


def register(session: Session, candidate: Candidate) -> str:
    """The version that holds the candidate, made now or by an earlier, perhaps interrupted, call.

    The alias is set last: whoever loads by it never sees half a version. A finished registration is not touched again,
    so that a resumed sweep does not take the alias back from a later one.
    """
    client = session.client
    found = _existing(session, candidate)
    if found is not None and not is_there(client, candidate.model_name, str(found.version)):
        found = found if _filled(session, candidate, found) else None
    version = str((found or _create_version(session, candidate)).version)  # int from a database, str over HTTP
    if found is None or DONE_TAG not in found.tags:
        set_alias(client, candidate.model_name, version)
        client.set_model_version_tag(candidate.model_name, version, DONE_TAG, datetime.now(UTC).isoformat())
    return version


def is_there(client: MlflowClient, name: str, version: str) -> bool:
    """Whether a version exists, and its logged model with files."""
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_model_version(name, version)
        model_id = str(found.source).rpartition("models:/")[2]
        return not str(found.source).startswith("models:/") or bool(client.list_logged_model_artifacts(model_id))
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return False
        raise


def _existing(session: Session, candidate: Candidate) -> ModelVersion | None:
    condition = f"name = '{candidate.model_name}' and tags.`{KEY_TAG}` = '{candidate.run_key}'"
    run_id, form = session.run_id(candidate.run_key), candidate.tags.get(FORM_TAG)
    found = session.client.search_model_versions(condition)
    return next((each for each in found if each.run_id == run_id and each.tags.get(FORM_TAG) == form), None)


def _filled(session: Session, candidate: Candidate, version: ModelVersion) -> bool:
    """Put the files of a version's model back in their place; false where the model itself is gone."""
    run_id, model_id = session.run_id(candidate.run_key), str(version.source).rpartition("models:/")[2]
    if model_id not in {str(each.model_id) for each in _models_of(session, run_id)}:
        return False
    _upload(session, candidate, run_id, model_id)
    return True


def lacks_alias(client: MlflowClient, name: str, version: str) -> bool:
    """Whether the newest version of a model is neither the challenger nor anything else, and nobody is the challenger.

    A promotion takes the alias away and gives another one; a later version takes it over.
    """
    aliases = client.get_registered_model(name).aliases
    versions = [int(each.version) for each in client.search_model_versions(f"name = '{name}'")]
    return ALIAS not in aliases and int(version) == max(versions) and version not in map(str, aliases.values())


def set_alias(client: MlflowClient, name: str, version: str) -> None:
    """Make a version the challenger."""
    surely(lambda: client.set_registered_model_alias(name, ALIAS, version))


def _create_version(session: Session, candidate: Candidate) -> ModelVersion:
    run_id = session.run_id(candidate.run_key)
    model_id = _log_model(session, candidate)
    return _version_of(session, model_id, run_id, candidate.run_key, candidate.model_name, candidate.tags)


def _version_of(
    session: Session, model_id: str, run_id: str, run_key: str, model_name: str, tags: Mapping[str, str]
) -> ModelVersion:
    """The version that a logged model becomes."""
    from mlflow.exceptions import MlflowException

    try:
        session.client.create_registered_model(model_name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = session.client.create_model_version(
        model_name,
        source=f"models:/{model_id}",
        run_id=run_id,
        tags={**tags, KEY_TAG: run_key},
        model_id=model_id,
    )
    link = [{"name": model_name, "version": str(version.version)}]
    session.client.set_logged_model_tags(model_id, {"mlflow.modelVersions": jsons.dumps(link)})  # the UI's link
    return version


def _log_model(session: Session, candidate: Candidate) -> str:
    """Log the bundle as a model of its run; returns the model's id.

    These are the steps of `mlflow.pyfunc.log_model`, which works on the process's active run and global address only.
    """
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


def _upload(session: Session, candidate: Candidate, run_id: str, model_id: str) -> None:
    with tempfile.TemporaryDirectory(prefix="forge-sweep-") as folder:
        path = Path(folder) / "model"
        _save(path, candidate, run_id, model_id)
        session.client.log_model_artifacts(model_id, str(path))


def unfinished(session: Session, run_id: str) -> list[str]:
    """Ids of logged models of a run whose files never came to be complete: for MLflow they are PENDING for ever."""
    return [str(each.model_id) for each in _models_of(session, run_id) if each.status == "PENDING"]


def _models_of(session: Session, run_id: str) -> list[LoggedModel]:
    home = str(session.client.get_run(run_id).info.experiment_id)
    found: list[LoggedModel] = session.client.search_logged_models([home], f"source_run_id = '{run_id}'")
    return found


def again(session: Session, run_key: str, model_name: str) -> str | None:
    """A new version of a model whose version was deleted, from the files that its run keeps; None where these are gone.

    The alias is set only where nobody has it by now.
    """
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
    except MlflowException:
        set_alias(session.client, model_name, version)
    session.client.set_model_version_tag(model_name, version, DONE_TAG, datetime.now(UTC).isoformat())
    return version


def _save(path: Path, candidate: Candidate, run_id: str, model_id: str) -> None:
    """Write the model in MLflow's format.

    The signature names the columns and leaves their types to the bundle's schema: MLflow's own ``double`` refuses
    integers and its ``long`` refuses missing values. A missing column is refused by name.
    """
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, Schema

    anything = AnyType()  # type: ignore[no-untyped-call]
    inputs = Schema([ColSpec(anything, name, required=True) for name in candidate.columns])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*input example was not provided")  # the bundle holds golden rows
        pyfunc.save_model(
            str(path),
            loader_module=LOADER,
            data_path=str(candidate.bundle),
            signature=ModelSignature(inputs=inputs),
            pip_requirements=list(candidate.requirements),
            mlflow_model=Model(run_id=run_id, model_uuid=model_id, model_id=model_id, metadata=dict(candidate.tags)),
        )


def _pinned(name: str) -> Iterator[str]:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return
    yield f"{name}=={version.partition('+')[0]}"  # a local version such as +cpu is not on the index
