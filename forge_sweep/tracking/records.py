"""What a run has on record, read back to make it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from forge_sweep import jsons
from forge_sweep.errors import InputError
from forge_sweep.tracking import store as stores
from forge_sweep.tracking.located import ABSENT, locate
from forge_sweep.tracking.runs import EPOCH_TAG
from forge_sweep.tracking.session import PARENT_TAG
from forge_sweep.tracking.trained_on import TrainedModel

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

TRAININGS = ("trial", "baseline", "confirm")
"""Kinds of runs that trained a model."""

SHOWN = 5
"""So many runs are listed in a message."""


@dataclass(frozen=True)
class Record:
    """One run, with what its sweep recorded.

    Attributes:
        run_id: MLflow's id.
        parent_id: that of the sweep's run.
        name: such as ``trial-0007``.
        params: as text.
        tags: all.
        metrics: last value of each.
        curves: metrics of each epoch by name, then by epoch, which counts from 0 here whatever the run has.
        best_epoch: whose weights were kept, by the same count; None for a baseline.
        experiment: the experiment as it was resolved.
        environment: `Environment.to_dict` without ``git_diff``; empty where it was not recorded.
        git_diff: uncommitted changes, "" for none.
        root: folder of the experiment file then; "" where it was not recorded.
        model: the registered version that the run made, if any.
    """

    run_id: str
    parent_id: str
    name: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    curves: Mapping[str, Mapping[int, float]]
    experiment: Mapping[str, Any]
    environment: Mapping[str, Any]
    git_diff: str
    root: str
    model: TrainedModel | None
    best_epoch: int | None = None

    @property
    def kind(self) -> str:
        """``trial``, ``baseline`` or ``confirm``."""
        return self.tags.get("forge.kind", "")

    @property
    def environment_folder(self) -> str:
        """Artifact folder of the environment, on the sweep's run."""
        return f"environment/{self.tags.get('forge.environment', '')}"


def read_record(reference: str, store: Path) -> Record:
    """Read all that a run, or the run of a registered model, has on record.

    Args:
        reference: a run's id, ``models:/NAME/VERSION`` or ``models:/NAME@alias``.
        store: folder of the embedded stores.

    Raises:
        InputError: there is no such run or model, or it is no training of forge_sweep.
        TrackingDown: the store cannot be reached.
    """
    run_id, model = reference, None
    if reference.startswith("models:"):
        located = locate(reference, store)
        run_id, model = located.run_id, TrainedModel(located.name, located.version, ())
    uri = stores.existing_uri(store)
    with stores.translated(f"the record of {reference}"), stores.current(stores.readable(uri)):
        return _read(stores.connect(uri, store, reading=True), run_id, model)


def write_verdict(record: Record, tags: Mapping[str, str], report: Mapping[str, Any], name: str, store: Path) -> None:
    """Set tags on the run and keep a report as the artifact ``reproduced/<name>.json``.

    Raises:
        TrackingDown: the store cannot be reached.
    """
    uri = stores.default_uri(store)
    with stores.translated(f"the verdict on {record.run_id}"), stores.current(uri):
        client = stores.connect(uri, store)
        client.log_text(record.run_id, jsons.dumps(report, indent=2), f"reproduced/{name}.json")
        for key, value in tags.items():
            client.set_tag(record.run_id, key, value)


def _read(client: MlflowClient, run_id: str, model: TrainedModel | None) -> Record:
    run = _run(client, run_id)
    tags, parent_id = dict(run.data.tags), run.data.tags.get(PARENT_TAG, "")
    if tags.get("forge.kind") not in TRAININGS or not parent_id:
        raise InputError(
            f"run {run_id} is no training of forge_sweep but {tags.get('forge.kind', 'something else')!r}",
            hint="give the id of a trial's, a baseline's or a confirmation's run, or a model: models:/NAME/VERSION",
        )
    experiment = _json(client, parent_id, "experiment.json")
    if not experiment:
        raise InputError(f"the sweep's run {parent_id} has no experiment.json", hint="its artifacts were deleted")
    folder = f"environment/{tags.get('forge.environment', '')}"
    first, metrics = int(tags.get(EPOCH_TAG, 0)), dict(run.data.metrics)
    return Record(
        run_id=run_id,
        parent_id=parent_id,
        name=str(run.info.run_name),
        params=dict(run.data.params),
        tags=tags,
        metrics=metrics,
        curves=_curves(client, run_id, list(metrics), first),
        experiment=experiment,
        environment=_json(client, parent_id, f"{folder}/environment.json"),
        git_diff=_text(client, parent_id, f"{folder}/git.diff") or "",
        root=client.get_run(parent_id).data.tags.get("forge.root", ""),
        model=model or _registered(client, run_id),
        best_epoch=int(metrics["best_epoch"]) - first if "best_epoch" in metrics else None,
    )


def _run(client: MlflowClient, run_id: str) -> Run:
    """The run with this id.

    Raises:
        InputError: there is none; names the one that is called so, or the newest.
    """
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ABSENT:
            raise
    experiments = {each.experiment_id: each.name for each in client.search_experiments()}
    found = client.search_runs([*experiments], max_results=1000) if experiments else []
    newest = [run for run in found if run.data.tags.get("forge.kind") in TRAININGS]
    meant = [run for run in newest if run.info.run_name == run_id or run.info.run_id.startswith(run_id)] or newest
    words = [f"{run.info.run_id} ({run.info.run_name} of {experiments[run.info.experiment_id]})" for run in meant]
    models = [each.name for each in client.search_registered_models()]
    known = f"runs are {', '.join(words[:SHOWN])}" if words else "no training is on record"
    if (name := run_id.partition("/")[0].partition("@")[0]) in models:
        raise InputError(f"there is no run {run_id!r}; {name!r} is a model", hint=f"write models:/{run_id}")
    raise InputError(
        f"there is no run {run_id!r}; {'the newest ' if meant is newest and words else ''}{known}",
        hint="give the id of a run, 32 hex digits, or a model: models:/NAME/VERSION",
    )


def _registered(client: MlflowClient, run_id: str) -> TrainedModel | None:
    """The version that was registered from a run."""
    found = client.search_model_versions(f"run_id = '{run_id}'")
    return TrainedModel(found[0].name, str(found[0].version), ()) if found else None


def _curves(client: MlflowClient, run_id: str, names: list[str], first: int) -> dict[str, dict[int, float]]:
    """Metrics of every epoch; a point that was logged twice counts once. A tree's values stand at the step 0."""
    wanted = [name for name in names if name.startswith("val_") or name in ("loss", "lr", "learning_rate")]
    found = {name: client.get_metric_history(run_id, name) for name in wanted}
    curves = {name: {p.step - first: p.value for p in points if p.step >= first} for name, points in found.items()}
    older = curves.pop("learning_rate", None)  # its name in older runs
    return curves if older is None else {"lr": older, **curves}


def _json(client: MlflowClient, run_id: str, path: str) -> dict[str, Any]:
    """A JSON artifact; empty where there is none."""
    values: dict[str, Any] = json.loads(_text(client, run_id, path) or "{}")
    return values


def _text(client: MlflowClient, run_id: str, path: str) -> str | None:
    """A text artifact; None where there is none."""
    folder = path.rpartition("/")[0]
    if path not in {file.path for file in client.list_artifacts(run_id, folder or None)}:
        return None
    with TemporaryDirectory(prefix="forge-sweep-") as temporary:
        return Path(client.download_artifacts(run_id, path, temporary)).read_text(encoding="utf-8")
