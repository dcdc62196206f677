"""The append-only history of a model's champions, which also decides between concurrent promotions.

MLflow has neither transactions nor locks, but a run's parameter can be logged only once and never be changed. The
entries are the parameters ``entry.000001``, ``entry.000002`` ... of one run per model: of two processes that append
entry 7 exactly one succeeds, on SQLite, PostgreSQL or a server, and no entry is ever rewritten. ``done.000007`` records
its outcome: that the aliases were moved, or why not.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from forge_sweep import jsons
from forge_sweep.errors import InputError, TrackingDown
from forge_sweep.tracking import client as clients
from forge_sweep.tracking.models import Registry

if TYPE_CHECKING:
    from mlflow import MlflowClient

LEDGER_TAG = "forge.ledger"
LONGEST = 5000  # characters of an entry: MLflow silently truncates parameters beyond 6,000
PAUSES = (0.1, 0.4, 1.5)  # seconds between attempts to read a value back: replicas and proxies may lag behind

_ENTRY = re.compile(r"entry\.(\d{6})")
_STEP = re.compile(r"step\.(\d{6})\.(\d{3})")


@dataclass(frozen=True)
class Entry:
    """One entry, with JSON values."""

    number: int  # from 1
    content: Mapping[str, Any]
    done: Mapping[str, Any] = field(default_factory=dict)  # its outcome; empty while in progress, or after a kill
    steps: tuple[Mapping[str, Any], ...] = ()  # what was noted in between, the oldest first


class Ledger:
    """The ledger of one model. Every method raises TrackingDown if the store cannot be reached."""

    def __init__(self, registry: Registry, name: str) -> None:
        self._registry = registry
        self._name = name
        with self._asking() as client:
            self._run_id: str | None = client.get_registered_model(name).tags.get(LEDGER_TAG)

    def entries(self) -> tuple[Entry, ...]:
        """All entries in order."""
        if self._run_id is None:
            return ()
        with self._asking() as client:
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
        """Append an entry; False if another process was first with this number. `content` is unique: include an id."""
        return self._log(f"entry.{number:06d}", content)

    def note(self, entry: Entry, step: Mapping[str, Any]) -> bool:
        """Record a step of an entry as last read; False if another process was first."""
        return self._log(f"step.{entry.number:06d}.{len(entry.steps) + 1:03d}", step)

    def finish(self, number: int, done: Mapping[str, Any]) -> bool:
        """Record the outcome of an entry; False if there is one."""
        return self._log(f"done.{number:06d}", done)

    def attach(self, path: str, lines: Sequence[Mapping[str, Any]]) -> None:
        """Write a new file of JSON lines beside the entries."""
        clients.refuse_read_only(self._registry.uri)
        text = "".join(jsons.dumps(line) + "\n" for line in lines)
        with self._asking() as client:
            client.log_text(self._run(client), text, path)

    def attached(self, path: str) -> list[dict[str, Any]]:
        """The lines of such a file; none if it is missing."""
        if self._run_id is None:
            return []
        with self._asking() as client:
            text = clients.text_of(client, self._run_id, path)
        return [json.loads(line) for line in (text or "").splitlines()]

    def _asking(self) -> AbstractContextManager[MlflowClient]:
        return self._registry.asking(f"the ledger of {self._name}")

    def _log(self, key: str, content: Mapping[str, Any]) -> bool:
        """Log a parameter unless it exists; returns whether it is ours, which the value that is read back decides."""
        clients.refuse_read_only(self._registry.uri)
        text = jsons.dumps(content, sort_keys=True)
        if len(text) > LONGEST:
            hint = "give a shorter reason"
            raise InputError(f"an entry of {len(text)} characters; expected at most {LONGEST}", hint=hint)
        with self._asking() as client:
            return _logged(client, self._run(client), key, text) == text

    def _run(self, client: MlflowClient) -> str:
        """The run of the ledger, created by the first append.

        If two processes create one at once, a parameter of the oldest version's run decides.
        """
        if self._run_id is not None:
            return self._run_id
        runs = [each.run_id for each in self._registry.versions(self._name) if each.run_id]
        if not runs:
            hint = "register models with forge-sweep run"
            raise InputError(f"no version of {self._name!r} names the run that trained it", hint=hint)
        anchor = client.get_run(runs[0])
        key = f"{LEDGER_TAG}.{self._name}"
        run_id = anchor.data.params.get(key)
        if run_id is None:
            tags = {"mlflow.runName": f"champions of {self._name}", "forge.kind": "ledger", "forge.model": self._name}
            made = client.create_run(anchor.info.experiment_id, tags=tags).info.run_id
            client.set_terminated(made, "FINISHED")
            run_id = _logged(client, anchor.info.run_id, key, made)
            if run_id != made:
                client.delete_run(made)
        self._run_id = run_id
        clients.surely(lambda: client.set_registered_model_tag(self._name, LEDGER_TAG, run_id))
        return run_id


def _logged(client: MlflowClient, run_id: str, key: str, text: str) -> str:
    """Log a parameter of a run unless it exists; returns the value on record."""
    with clients.tolerating("INVALID_PARAMETER_VALUE"):
        # Synchronous regardless of MLFLOW_ENABLE_ASYNC_LOGGING: a value that is only queued decides nothing.
        client.log_param(run_id, key, text, synchronous=True)
    for pause in (*PAUSES, None):
        found = client.get_run(run_id).data.params.get(key)
        if found is not None:
            return str(found)
        if pause is not None:
            time.sleep(pause)
    raise TrackingDown(
        f"MLflow accepted {key} of run {run_id} and does not have it {sum(PAUSES):g} s later; it may still appear",
        hint="unset MLFLOW_ENABLE_ASYNC_LOGGING where it is set; then run the same command again, which completes it",
    )
