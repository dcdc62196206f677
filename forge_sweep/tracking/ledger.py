"""The append-only history of a model's champions, and the one place where two promotions at once are decided.

MLflow has neither transactions nor locks, but one write of its that is decided by a primary key: a run's parameter can
be logged once and never be changed. The entries are the parameters ``entry.000001``, ``entry.000002`` ... of one run
per model, so that of two processes that append entry 7 exactly one succeeds, on SQLite, PostgreSQL or a server alike,
and nobody rewrites an entry. ``done.000007`` says the same of its end: that the aliases were moved, or why not.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from forge_sweep import jsons
from forge_sweep.errors import InputError, TrackingDown
from forge_sweep.tracking import store as stores
from forge_sweep.tracking.registry import Registry
from forge_sweep.tracking.store import surely

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

LEDGER_TAG = "forge.ledger"
KIND = "ledger"
LONGEST = 5000
"""Characters of an entry; MLflow cuts parameters beyond 6,000 in silence."""

PAUSES = (0.1, 0.4, 1.5)
"""Seconds between looks for a value that was written: replicas and proxies may lag behind."""

_ENTRY = re.compile(r"entry\.(\d{6})")
_STEP = re.compile(r"step\.(\d{6})\.(\d{3})")


@dataclass(frozen=True)
class Entry:
    """One entry.

    Attributes:
        number: from 1.
        content: JSON values, as they were appended.
        done: JSON values of its end; empty while it is under way, or where its process died.
        steps: JSON values that were noted on the way, the oldest first.
    """

    number: int
    content: Mapping[str, Any]
    done: Mapping[str, Any] = field(default_factory=dict)
    steps: tuple[Mapping[str, Any], ...] = ()


class Ledger:
    """The ledger of one model.

    Args:
        registry: where the model is.
        name: the model.
    """

    def __init__(self, registry: Registry, name: str) -> None:
        self._registry = registry
        self._name = name
        self._run_id = self._found()

    def entries(self) -> tuple[Entry, ...]:
        """All entries in order; none where nothing was ever appended.

        Raises:
            TrackingDown: the store cannot be reached.
        """
        if self._run_id is None:
            return ()
        with self._registry.asking(f"the ledger of {self._name}") as client:
            params = client.get_run(self._run_id).data.params
        numbers = sorted(int(found[1]) for key in params if (found := _ENTRY.fullmatch(key)))
        steps = sorted((int(found[1]), int(found[2]), key) for key in params if (found := _STEP.fullmatch(key)))
        return tuple(
            Entry(
                n,
                json.loads(params[f"entry.{n:06d}"]),
                json.loads(params.get(f"done.{n:06d}", "{}")),
                tuple(json.loads(params[key]) for number, _, key in steps if number == n),
            )
            for n in numbers
        )

    def append(self, number: int, content: Mapping[str, Any]) -> bool:
        """Append an entry; False where another process was first with this number.

        Args:
            number: one more than that of the last entry that was seen.
            content: JSON values that no other append has, as by an id.
        """
        return self._log(f"entry.{number:06d}", content)

    def note(self, entry: Entry, step: Mapping[str, Any]) -> bool:
        """Note a step of an entry; False where another process has just noted one.

        Args:
            entry: as it was read last.
            step: JSON values.
        """
        return self._log(f"step.{entry.number:06d}.{len(entry.steps) + 1:03d}", step)

    def finish(self, number: int, done: Mapping[str, Any]) -> bool:
        """Record how an entry ended; False where that is on record."""
        return self._log(f"done.{number:06d}", done)

    def attach(self, path: str, lines: Sequence[Mapping[str, Any]]) -> None:
        """Write a new file of JSON lines beside the entries."""
        stores.refuse_read_only(self._registry.uri)
        text = "".join(jsons.dumps(line) + "\n" for line in lines)
        with self._registry.asking(f"the ledger of {self._name}") as client:
            client.log_text(self._run(client), text, path)

    def attached(self, path: str) -> list[dict[str, Any]]:
        """The lines of such a file; none where it is gone."""
        from mlflow import artifacts

        if self._run_id is None:
            return []
        with self._registry.asking(f"the ledger of {self._name}") as client:
            uri = f"{client.get_run(self._run_id).info.artifact_uri}/{path}"
            try:
                text = artifacts.load_text(uri)
            except Exception:  # what an artifact store raises for a missing file is its own
                return []
        return [json.loads(line) for line in text.splitlines()]

    def _log(self, key: str, content: Mapping[str, Any]) -> bool:
        """Log a parameter unless it is there, and say whether it is ours: what is read back decides."""
        stores.refuse_read_only(self._registry.uri)
        text = jsons.dumps(content, sort_keys=True)
        if len(text) > LONGEST:
            raise InputError(
                f"an entry of {len(text)} characters; expected at most {LONGEST}", hint="give a shorter reason"
            )
        with self._registry.asking(f"the ledger of {self._name}") as client:
            return _logged(client, self._run(client), key, text) == text

    def _found(self) -> str | None:
        """The run of the ledger, if there is one."""
        with self._registry.asking(f"the ledger of {self._name}") as client:
            run_id: str | None = client.get_registered_model(self._name).tags.get(LEDGER_TAG)
        return run_id

    def _run(self, client: MlflowClient) -> str:
        """The run of the ledger; the first append makes it.

        Of two processes that make one at once, a parameter of the oldest version's run decides.
        """
        if self._run_id is not None:
            return self._run_id
        anchor = self._anchor(client)
        key = f"{LEDGER_TAG}.{self._name}"
        made = ""
        if key not in anchor.data.params:
            tags = {"mlflow.runName": f"champions of {self._name}", "forge.kind": KIND, "forge.model": self._name}
            made = client.create_run(anchor.info.experiment_id, tags=tags).info.run_id
            client.set_terminated(made, "FINISHED")
            self._run_id = _logged(client, anchor.info.run_id, key, made)
        else:
            self._run_id = str(anchor.data.params[key])
        if made and made != self._run_id:
            client.delete_run(made)
        run_id = self._run_id
        surely(lambda: client.set_registered_model_tag(self._name, LEDGER_TAG, run_id))
        return run_id

    def _anchor(self, client: MlflowClient) -> Run:
        """The run of the oldest version that has one."""
        runs = [each.run_id for each in self._registry.versions(self._name) if each.run_id]
        if not runs:
            hint = "register models with forge-sweep run"
            raise InputError(f"no version of {self._name!r} names the run that trained it", hint=hint)
        return client.get_run(runs[0])


def _logged(client: MlflowClient, run_id: str, key: str, text: str) -> str:
    """Log a parameter of a run unless it has one; returns the value that stands there.

    Raises:
        TrackingDown: MLflow took the value and does not have it when it is asked.
    """
    from mlflow.exceptions import MlflowException

    try:
        # Synchronous whatever MLFLOW_ENABLE_ASYNC_LOGGING says: a value that is only queued decides nothing.
        client.log_param(run_id, key, text, synchronous=True)
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise
    for pause in (*PAUSES, None):
        found = client.get_run(run_id).data.params.get(key)
        if found is not None:
            return str(found)
        if pause is not None:
            time.sleep(pause)
    raise TrackingDown(
        f"MLflow accepted {key} of run {run_id} and does not have it {sum(PAUSES):g} s later; it may come yet",
        hint="run the same command again: it completes what was begun; if MLFLOW_ENABLE_ASYNC_LOGGING is set, unset it",
    )
