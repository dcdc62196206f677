"""Runs that are read back: to reproduce one, or to reconcile those of a sweep with its study."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_sweep import jsons
from forge_sweep.errors import InputError, TrackingDown
from forge_sweep.experiment.code import is_own
from forge_sweep.tracking import client as clients
from forge_sweep.tracking import registration, writes
from forge_sweep.tracking.models import ModelVersion, Registry, locate
from forge_sweep.tracking.writes import EPOCH_TAG, KEY_TAG, PARAM_LENGTH, PARENT_TAG, now_ms, stored

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

TRAININGS = ("trial", "baseline", "confirm", "audit")  # kinds of runs that train a model
SHOWN = 5  # runs in a message
CODE = "code"  # artifact folder of a sweep's run: the source of its own builder, by dotted module name
SOURCE_CODE = "source_code"  # likewise: the code of its own source of rows


def space_file(contract: str) -> str:
    """Artifact of a sweep's run with the experiment of this contract, where its search space changed on the way."""
    return f"spaces/{contract[:12]}.json"


@dataclass(frozen=True)
class Record:
    """Everything on record about one run."""

    run_id: str
    parent_id: str
    name: str  # such as ``trial-0007``
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]  # last value of each
    curves: Mapping[str, Mapping[int, float]]  # by name and epoch; epochs count from 0, whatever the run's numbers
    experiment: Mapping[str, Any]  # resolved
    environment: Mapping[str, Any]  # `Environment.to_dict` without ``git_diff``; empty if not recorded
    git_diff: str  # uncommitted changes
    root: str  # folder of the experiment file at the time; "" if not recorded
    model: ModelVersion | None  # registered from the run
    code: Mapping[str, str] = field(default_factory=dict)  # source of an own builder, as `experiment.Code.files`
    source_code: Mapping[str, str] = field(default_factory=dict)  # likewise, of an own source of rows
    best_epoch: int | None = None  # whose weights were kept, counted from 0; None for a baseline

    @property
    def kind(self) -> str:
        """``trial``, ``baseline`` or ``confirm``."""
        return self.tags.get("forge.kind", "")

    @property
    def environment_folder(self) -> str:
        """Artifact folder of the environment, in the sweep's run."""
        return f"environment/{self.tags.get('forge.environment', '')}"


def read_record(reference: str, store: Path) -> Record:
    """Read everything on record about a run, by its id, or about the one that made a model (``models:/NAME@alias``).

    Raises:
        InputError: there is no such run or model, or it is not a forge-sweep training.
        TrackingDown: the store cannot be reached.
    """
    run_id, model = reference, None
    if reference.startswith("models:"):
        located = locate(reference, store)
        run_id, model = located.run_id, ModelVersion(located.name, located.version)
    with Registry(store).asking(f"the record of {reference}") as client:
        return _read(client, run_id, model)


def write_verdict(record: Record, tags: Mapping[str, str], report: Mapping[str, Any], name: str, store: Path) -> None:
    """Set tags on the run and keep a report as the artifact ``reproduced/<name>.json``."""
    uri = clients.default_uri(store)
    with clients.translated(f"the verdict on {record.run_id}"), clients.current(uri):
        client = clients.connect(uri, store)
        client.log_text(record.run_id, jsons.dumps(report, indent=2), f"reproduced/{name}.json")
        for key, value in tags.items():
            client.set_tag(record.run_id, key, value)


def _read(client: MlflowClient, run_id: str, model: ModelVersion | None) -> Record:
    run = _run(client, run_id)
    tags, parent_id = dict(run.data.tags), run.data.tags.get(PARENT_TAG, "")
    if tags.get("forge.kind") == "ensemble":
        raise InputError(
            f"run {run_id} made an ensemble by no training of its own: the mean of {tags.get('forge.members')}",
            hint="reproduce its members, each by the id of its run below the same sweep: trial-0007 for kept-0007",
        )
    if tags.get("forge.kind") not in TRAININGS or not parent_id:
        raise InputError(
            f"run {run_id} is not a forge-sweep training but {tags.get('forge.kind', 'something else')!r}",
            hint="give the id of a trial's, a baseline's or a confirmation's run, or a model: models:/NAME/VERSION",
        )
    of_space = clients.text_of(client, parent_id, space_file(tags.get("forge.contract", "")))
    experiment = json.loads(of_space or clients.text_of(client, parent_id, "experiment.json") or "{}")
    if not experiment:
        raise InputError(f"the sweep's run {parent_id} has no experiment.json", hint="its artifacts were deleted")
    folder = f"environment/{tags.get('forge.environment', '')}"
    if model is None and (versions := client.search_model_versions(f"run_id = '{run_id}'")):
        model = ModelVersion(versions[0].name, str(versions[0].version))
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
        environment=json.loads(clients.text_of(client, parent_id, f"{folder}/environment.json") or "{}"),
        git_diff=clients.text_of(client, parent_id, f"{folder}/git.diff") or "",
        root=client.get_run(parent_id).data.tags.get("forge.root", ""),
        model=model,
        code=_code(client, parent_id, CODE) if is_own(experiment.get("model", {}).get("builder")) else {},
        source_code=_code(client, parent_id, SOURCE_CODE) if is_own(experiment.get("data", {}).get("source")) else {},
        best_epoch=int(metrics["best_epoch"]) - first if "best_epoch" in metrics else None,
    )


def _code(client: MlflowClient, run_id: str, folder: str) -> dict[str, str]:
    paths = [file.path for file in client.list_artifacts(run_id, folder)]
    return {Path(path).stem: clients.text_of(client, run_id, path) or "" for path in paths}


def _run(client: MlflowClient, run_id: str) -> MlflowRun:
    """The run with this id; the error lists runs with this name, or the newest ones."""
    with clients.tolerating(*clients.ABSENT):
        return client.get_run(run_id)
    experiments = {each.experiment_id: each.name for each in client.search_experiments()}
    found = client.search_runs([*experiments], max_results=1000) if experiments else []
    newest = [run for run in found if run.data.tags.get("forge.kind") in TRAININGS]
    meant = [run for run in newest if run.info.run_name == run_id or run.info.run_id.startswith(run_id)] or newest
    words = [f"{run.info.run_id} ({run.info.run_name} of {experiments[run.info.experiment_id]})" for run in meant]
    models = [each.name for each in client.search_registered_models()]
    known = f"runs are {', '.join(words[:SHOWN])}" if words else "no training is on record"
    if (name := run_id.partition("/")[0].partition("@")[0]) in models:
        aliases = sorted(client.get_registered_model(name).aliases)  # the champion, or else the challenger
        version = run_id.removeprefix(name) or (f"@{aliases[0]}" if aliases else "/1")
        raise InputError(f"there is no run {run_id!r}; {name!r} is a model", hint=f"write models:/{name}{version}")
    raise InputError(
        f"there is no run {run_id!r}; {'the newest ' if meant is newest and words else ''}{known}",
        hint="give the id of a run, 32 hex digits, or a model: models:/NAME/VERSION",
    )


def _curves(client: MlflowClient, run_id: str, names: list[str], first: int) -> dict[str, dict[int, float]]:
    """Metrics of every epoch, without duplicates. A tree's values are at step 0."""
    wanted = [name for name in names if name.startswith("val_") or name in ("loss", "lr", "learning_rate")]
    found = {name: client.get_metric_history(run_id, name) for name in wanted}
    curves = {name: {p.step - first: p.value for p in points if p.step >= first} for name, points in found.items()}
    older = curves.pop("learning_rate", None)  # its name in older runs
    return curves if older is None else {"lr": older, **curves}


SHARED_TAGS = ("forge.dataset_", "forge.contract", EPOCH_TAG, "optuna.study_name", "mlflow.source")
"""Tags of a parent run that also apply to its trials."""

_asked = clients.translated("the review of a sweep's runs")


@dataclass(frozen=True)
class Found:
    """A run as stored in MLflow: its key, "" if it is not ours, and the last value of each metric."""

    key: str
    id: str
    name: str
    status: str
    tags: Mapping[str, str]
    metrics: Mapping[str, float]


class Review(registration.Connection):
    """The runs of one MLflow experiment, and of a sweep in whichever one. The journal is not replayed."""

    @property
    def unwritten(self) -> str:
        """Queued and refused writes, in words; "" if there are none."""
        waiting, refused = len(self._journal), self._journal.set_aside
        words = [f"{waiting} writes wait"] * bool(waiting) + [f"{refused} writes were refused"] * bool(refused)
        return ", ".join(words)

    @_asked
    def with_key(self, key: str) -> list[Found]:
        """Runs with this key."""
        return self._runs(f"tags.`{KEY_TAG}` = '{key}'")

    @_asked
    def below(self, key: str, parent: Found | None) -> list[Found]:
        """All runs of a sweep except its parent: those with its keys, and all children of the parent."""
        runs = self._runs(f"tags.`{KEY_TAG}` LIKE '{key}/%'")
        if parent is not None:
            runs += self._runs(f"tags.{PARENT_TAG} = '{parent.id}'")
        return list({run.id: run for run in runs}.values())

    @_asked
    def sweeps(self, study: str) -> list[Found]:
        """The parent runs of all sweeps with a study of this name."""
        return self._runs(f"tags.`forge.kind` = 'sweep' and tags.`optuna.study_name` = '{study}'")

    def _runs(self, condition: str) -> list[Found]:
        homes = self._homes()
        return [_found(run) for run in self._session.all_runs(condition, homes)] if homes else []

    def _homes(self) -> list[str]:
        """Experiments that may contain runs of the sweep; none if nothing was ever written."""
        found = self._session.client.get_experiment_by_name(self._session.experiment)
        if found is not None and found.lifecycle_stage != "active" and not self._session.homes:
            return [self._session.experiment_id]  # raises, with the command that restores it
        own = [] if found is None else [str(found.experiment_id)]
        return list(dict.fromkeys([*self._session.homes, *own]))

    @_asked
    def half_registered(self, runs: Sequence[Found]) -> list[tuple[Found, str]]:
        """Runs with the id of a logged model that a kill left incomplete."""
        return [(run, model) for run in runs for model in registration.unfinished(self._session, run.id)]

    @_asked
    def remove_model(self, model_id: str) -> None:
        """Delete a logged model (MLflow can restore it)."""
        self._session.client.delete_logged_model(model_id)

    @_asked
    def curves(self, run: Found) -> Counter[tuple[str, int]]:
        """Number of points of each (metric, step)."""
        client = self._session.client
        return Counter((name, p.step) for name in run.metrics for p in client.get_metric_history(run.id, name))

    @_asked
    def end(self, run: Found, status: str) -> None:
        """Set the status, and our own state."""
        self._session.client.set_tag(run.id, "forge.state", writes.STATES[status])
        writes.end(self._session, run.id, status, now_ms())

    @_asked
    def set_tags(self, run: Found, tags: Mapping[str, str]) -> None:
        """Set tags; those with an empty value are removed."""
        for name, value in tags.items():
            if value:
                self._session.client.set_tag(run.id, name, value)
            elif name in run.tags:
                self._session.client.delete_tag(run.id, name)

    @_asked
    def log(self, run: Found, metrics: Mapping[str, float], step: int = 0) -> None:
        """Add points."""
        for name, value in metrics.items():
            self._session.client.log_metric(run.id, name, value, now_ms(), step)

    @_asked
    def make(
        self, key: str, name: str, kind: str, parent: Found | None, params: Mapping[str, Any], tags: Mapping[str, Any]
    ) -> Found:
        """Create a missing run below its parent, with the parent's tags on data and code."""
        all_tags = {name: str(value) for name, value in tags.items()}
        all_tags |= {"forge.kind": kind, "forge.reconciled": "from the study", KEY_TAG: key}
        if parent is not None:
            shared = {name: value for name, value in parent.tags.items() if name.startswith(SHARED_TAGS)}
            all_tags = {**shared, **all_tags, PARENT_TAG: parent.id}
        client = self._session.client
        made = client.create_run(self._session.experiment_id, now_ms(), all_tags, name)
        writes.log_batch(self._session, made.info.run_id, params=stored(params, PARAM_LENGTH))
        return _found(client.get_run(made.info.run_id))

    @_asked
    def restore(self, key: str) -> bool:
        """Restore a deleted run, of several the one with the most metrics; False if there is none."""
        from mlflow.entities import ViewType

        client = self._session.client
        where = self._homes() or [self._session.experiment_id]
        binned = client.search_runs(where, f"tags.`{KEY_TAG}` = '{key}'", ViewType.DELETED_ONLY)
        if not binned:
            return False
        client.restore_run(max(binned, key=lambda run: len(run.data.metrics)).info.run_id)
        return True

    @_asked
    def delete(self, run: Found) -> None:
        """Delete a run (MLflow can restore it)."""
        self._session.client.delete_run(run.id)

    @_asked
    def rewrite(self, run: Found, end: int | None = None) -> None:
        """Replace a run by a copy with the first point of each step before `end`: MLflow cannot delete points."""
        client = self._session.client
        old = client.get_run(run.id)
        first: dict[tuple[str, int], writes.Row] = {}
        for name in run.metrics:
            for point in client.get_metric_history(run.id, name):
                if end is None or point.step < end:
                    first.setdefault((name, point.step), (name, point.value, point.timestamp, point.step))
        made = client.create_run(old.info.experiment_id, old.info.start_time, dict(old.data.tags), run.name)
        id = made.info.run_id
        writes.log_batch(self._session, id, list(first.values()), params=old.data.params)
        if old.inputs is not None:
            client.log_inputs(id, old.inputs.dataset_inputs)
        writes.end(self._session, id, run.status, old.info.end_time or now_ms())
        client.delete_run(run.id)


def model_is_there(model: str, store: Path) -> bool | None:
    """Whether ``models:/NAME/VERSION`` exists with its files; None if the store does not answer. Creates no store."""
    try:
        registry = Registry(store)
    except InputError:
        return False
    try:
        with registry.asking(f"a look for {model}") as client:
            return registration.is_there(client, model)
    except (TrackingDown, InputError):
        return None


def _found(run: MlflowRun) -> Found:
    tags = dict(run.data.tags)
    info = run.info
    return Found(tags.get(KEY_TAG, ""), info.run_id, info.run_name or "", info.status, tags, dict(run.data.metrics))
