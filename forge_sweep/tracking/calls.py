"""How points, tags, params and the end of a run reach MLflow: at once where that can be, else request by request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice, zip_longest
from types import MappingProxyType
from typing import TypeVar

from forge_sweep.tracking.direct import Row, Unusual
from forge_sweep.tracking.session import Session

METRICS_PER_BATCH = 900  # with the next one MLflow's 1000 for one request
VALUES_PER_BATCH = 100

_T = TypeVar("_T")


def missing(session: Session, key: str, rows: Iterable[Row], *, once: bool) -> list[Row]:
    """The points that a run lacks; see `Metrics`."""
    logged = session.points(key)
    new: dict[tuple[str, int], Row] = {}
    for name, value, time, step in rows:
        seen = logged.get((name, step))
        if seen is None or not (once or seen == value):
            new.setdefault((name, step), (name, value, time, step))
    return list(new.values())


def remember(session: Session, key: str, rows: Iterable[Row]) -> None:
    """Points that were just written."""
    session.points(key).update({(name, step): value for name, value, _, step in rows})


def log(
    session: Session,
    run_id: str,
    rows: Sequence[Row] = (),
    tags: Mapping[str, str] = MappingProxyType({}),
    status: str | None = None,
    ended: int = 0,
) -> None:
    """Write points and tags, then the status where there is one: at once where it can be, else one after the other."""
    from mlflow.entities import Metric, RunTag

    if session.direct is not None and (rows or tags or status):
        with suppress(Unusual):
            return session.direct.log(run_id, rows, tags, status, ended)
    metrics = list(_parts((Metric(*row) for row in rows), METRICS_PER_BATCH))
    values = list(_parts((RunTag(name, value) for name, value in tags.items()), VALUES_PER_BATCH))
    for some_metrics, some_tags in zip_longest(metrics, values, fillvalue=()):
        session.client.log_batch(run_id, metrics=some_metrics, tags=some_tags)
    if status is not None:
        end(session, run_id, status, ended)


def log_params(session: Session, run_id: str, values: Mapping[str, str]) -> None:
    """Log params that the run does not have."""
    from mlflow.entities import Param

    for part in _parts((Param(name, value) for name, value in values.items()), VALUES_PER_BATCH):
        session.client.log_batch(run_id, params=part)


def end(session: Session, run_id: str, status: str, ended: int) -> None:
    """Set a run's status; only a final one has an end time."""
    if status == "SCHEDULED":
        session.client.update_run(run_id, status=status)
    else:
        session.client.set_terminated(run_id, status, ended)


def _parts(values: Iterable[_T], size: int) -> Iterator[list[_T]]:
    rest = iter(values)
    while part := list(islice(rest, size)):
        yield part
