"""One connection to the store and what is known of the runs written over it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from forge_sweep.errors import InputError
from forge_sweep.tracking import store as stores
from forge_sweep.tracking.direct import Direct, direct

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

KEY_TAG = "forge.key"
PARENT_TAG = "mlflow.parentRunId"

_log = logging.getLogger("forge_sweep")

Points = dict[tuple[str, int], float]  # (metric, step) -> value


class Session:
    """Looks things up once and remembers them; a failed look-up is tried again with the next write.

    Args:
        uri: tracking address.
        store: folder of the embedded stores.
        experiment: name of the experiment, created with the first write.
        description: Markdown shown with it.
        reading: nothing will be written.
        sweep: key of a sweep that was begun before; its runs are looked for in all experiments, since an experiment may
            be renamed. "" for a new one.
    """

    def __init__(
        self, uri: str, store: Path, experiment: str, description: str, *, reading: bool = False, sweep: str = ""
    ) -> None:
        self.uri = uri
        self.store = store
        self.experiment = experiment
        self._description = description
        self._reading = reading
        self._sweep = sweep
        self._ids: dict[str, str] = {}
        self._points: dict[str, Points] = {}

    @cached_property
    def client(self) -> MlflowClient:
        """The client; the first use connects and creates the store where it has to be."""
        return stores.connect(self.uri, self.store, reading=self._reading)

    @cached_property
    def direct(self) -> Direct | None:
        """What writes whole runs at once, where the store is a database that this can be done to."""
        return direct(self.client, self.uri)

    @cached_property
    def experiment_id(self) -> str:
        """The experiment's id; the first use creates it."""
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(self.experiment)
        named = "" if found is None or found.lifecycle_stage != "active" else str(found.experiment_id)
        if (homes := self.homes) and named not in homes:
            name = self.client.get_experiment(homes[0]).name
            _log.warning("the MLflow experiment %s was renamed to %s: its sweep goes on there", self.experiment, name)
            return homes[0]
        if found is None:
            try:
                return str(self._create())
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            found = self.client.get_experiment_by_name(self.experiment)  # another process was quicker
        if found is None or found.lifecycle_stage != "active":
            id = "ID" if found is None else found.experiment_id
            raise InputError(
                f"the MLflow experiment {self.experiment!r} was deleted",
                hint=f"restore it: mlflow experiments restore --experiment-id {id}, or choose another name",
            )
        if not self._reading:
            stores.refuse_moved(str(found.artifact_location), self.uri, self.store)
        return str(found.experiment_id)

    @cached_property
    def homes(self) -> list[str]:
        """Ids of the experiments that hold runs of the sweep, the one with its oldest run first."""
        if not self._sweep:
            return []
        ids, token, first = list[str](), None, dict[str, int]()
        while True:
            page = self.client.search_experiments(page_token=token)
            ids += [str(each.experiment_id) for each in page]
            token = page.token
            if not token:
                break
        for run in self.all_runs(f"tags.`{KEY_TAG}` LIKE '{self._sweep}%'", ids):
            home = str(run.info.experiment_id)
            first[home] = min(first.get(home, run.info.start_time), run.info.start_time)
        return sorted(first, key=lambda home: first[home])

    def known_id(self, key: str) -> str | None:
        """The run's id if it was seen in this session."""
        return self._ids.get(key)

    def find(self, key: str) -> str | None:
        """The id of the run with this key, the oldest if there are several."""
        if key not in self._ids:
            condition = f"tags.`{KEY_TAG}` = '{key}'"
            order = ["attributes.start_time ASC"]
            where = list(dict.fromkeys([self.experiment_id, *self.homes]))
            runs = self.client.search_runs(where, condition, max_results=1, order_by=order)
            if not runs:
                return None
            self._ids[key] = runs[0].info.run_id
        return self._ids[key]

    def run_id(self, key: str) -> str:
        """The id of the run with this key.

        Raises:
            InputError: there is none in this experiment.
        """
        run_id = self.find(key)
        if run_id is None:
            raise InputError(f"no run with the key {key!r} in the MLflow experiment {self.experiment!r}")
        return run_id

    def points(self, key: str) -> Points:
        """Points that the run has; the caller adds those it writes."""
        if key not in self._points:
            self._points[key] = self._read_points(self.run_id(key))
        return self._points[key]

    def created(self, key: str, run_id: str) -> None:
        """Remember a run that was just made: it has no points."""
        self._ids[key] = run_id
        self._points[key] = {}

    def closed(self, key: str) -> None:
        """Forget the points of a run, which is most of the memory."""
        self._points.pop(key, None)

    def unfinished_children(self, parent: str) -> Iterator[tuple[str, str]]:
        """Key and id of each child that has no final status."""
        finals = " and ".join(f"attributes.status != '{status}'" for status in ("FINISHED", "KILLED", "FAILED"))
        condition = f"tags.{PARENT_TAG} = '{self.run_id(parent)}' and {finals}"
        for run in self.all_runs(condition):
            yield run.data.tags.get(KEY_TAG, ""), run.info.run_id

    def close(self) -> None:
        """Give connections back; a later write takes new ones."""
        if (made := self.__dict__.get("direct")) is not None:
            made.close()

    def all_runs(self, condition: str, experiments: Sequence[str] = ()) -> list[MlflowRun]:
        """Every run, read before the caller changes what the condition asks for; of these experiments, else of ours."""
        runs: list[MlflowRun] = []
        token: str | None = None
        while True:
            where = list(experiments) or [self.experiment_id]
            page = self.client.search_runs(where, condition, max_results=1000, page_token=token)
            runs += page
            token = page.token
            if not token:
                return runs

    def _read_points(self, run_id: str) -> Points:
        metrics = self.client.get_run(run_id).data.metrics
        return {
            (name, point.step): point.value
            for name in metrics
            for point in self.client.get_metric_history(run_id, name)
        }

    def _create(self) -> str:
        tags = {"mlflow.experimentKind": "custom_model_development"}
        if self._description:
            tags["mlflow.note.content"] = self._description
        location = stores.artifact_location(self.uri, self.store, file_name(self.experiment))
        return self.client.create_experiment(self.experiment, location, tags)


def file_name(name: str) -> str:
    """A name as a safe file name; different names stay different."""
    safe = re.sub(r"[^\w.-]", lambda found: f"={ord(found.group()):02x}", name)
    return f"={safe}" if safe.startswith(".") else safe
