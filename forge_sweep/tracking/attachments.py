"""Files that the runs of a sweep hold, read in one go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from forge_sweep.tracking import client as clients
from forge_sweep.tracking.models import Registry
from forge_sweep.tracking.writes import KEY_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class Attached:
    """One file of one run."""

    name: str  # of the run below the sweep, such as ``trial-0007``; "" for the sweep's own run
    tags: Mapping[str, str]
    content: bytes | None  # None where the run has no such file


def attached(key: str, path: str, tag: str, store: Path, wanted: Callable[[str], bool]) -> list[Attached]:
    """The file ``path`` of each run with this ``tag``, of the sweep with this key.

    Args:
        key: of the sweep's run; those of its children begin with it.
        path: of the artifact.
        tag: that a run has once the file was written to it.
        store: folder of the embedded stores.
        wanted: asked with the name of each run, before its file is fetched.

    Raises:
        InputError: there is no store.
        TrackingDown: it cannot be reached.
    """
    registry = Registry(store)
    found: dict[str, Attached] = {}
    with registry.asking(f"{path} of {key}") as client, TemporaryDirectory(prefix="forge-sweep-") as folder:
        homes = [str(each.experiment_id) for each in clients.every(client.search_experiments)]
        runs = clients.every(client.search_runs, homes, f"tags.`{KEY_TAG}` LIKE '{key}%'") if homes else []
        for run in sorted(runs, key=lambda run: int(run.info.start_time)):  # of two with one key, the first is meant
            tags = run.data.tags
            name = tags[KEY_TAG].removeprefix(key).removeprefix("/")
            if tag in tags and name not in found and wanted(name):
                place = Path(folder) / str(len(found))
                place.mkdir()
                found[name] = Attached(name, tags, _content(client, run.info.run_id, path, place))
    return list(found.values())


def _content(client: MlflowClient, run_id: str, path: str, folder: Path) -> bytes | None:
    """None where the run has no such file; whether it has is asked only where it does not come."""
    try:
        return Path(client.download_artifacts(run_id, path, str(folder))).read_bytes()
    except Exception:
        if path in {file.path for file in client.list_artifacts(run_id)}:
            raise
        return None
