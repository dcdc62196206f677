"""The audit rule about rows that belong together and stand in several splits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from pandas.api.types import is_integer_dtype, is_numeric_dtype

from forge_sweep.checks.evidence import Evidence, Seen, rule, values_of

LEAST_GROUPS, LEAST_SIZE = 20, 2.0
SHARED = 0.5
ALIKE, SAME = 0.90, 0.999
IN_ORDER = 0.5
RUNS = 1.2
"""Runs per group, in the source, up to which the rows of a group stand together."""


@rule("warning", "groups-across-splits")
def groups_across_splits(evidence: Evidence) -> Iterator[Seen]:
    """Rows of one thing (a patient, a machine) that has one target, in train and in valid.

    A network that recognises the thing knows its target, and is right on valid for that reason alone. A column names
    such things where at least 20 values recur, twice on average, and the target hardly differs between rows of one
    value: at least 0.9 of what there is to explain is explained, beyond chance. Where the target goes with the order of
    the numbers, as with a score, the rows of a value have to stand together in the source too. Not asked where rows are
    split by time: there it is the same things that are predicted later on.
    """
    expected = "all rows of one group in one split"
    for name, (target, groups, alike, shared) in found(evidence).items():
        seen = (
            f"{groups} values recur, rows of one value have one target {target!r} ({alike:.1%} of its variation lies "
        )
        seen += f"between them), and {shared:.0%} of the valid rows have a value that train has too"
        fix = f'kind = "group" and group = "{name}" under [data.split]'
        yield Seen(name, seen, fix, severity="error" if alike >= SAME else "warning", expected=expected)


def found(evidence: Evidence) -> dict[str, tuple[str, int, float, float]]:
    """Columns that name groups, each with target, number of groups, how alike their rows are, and the shared rows."""
    named: dict[str, tuple[str, int, float, float]] = evidence.once("groups", lambda: dict(_found(evidence)))
    return named


def _found(evidence: Evidence) -> Iterator[tuple[str, tuple[str, int, float, float]]]:
    train, valid = evidence.dataset.train, evidence.dataset.valid
    if evidence.split in ("time", "group") or train.targets.isna().to_numpy().any():
        return
    for name in map(str, train.features):
        column = train.features[name]
        if is_numeric_dtype(column) and not is_integer_dtype(column):
            continue
        codes, values = pd.factorize(column, sort=is_numeric_dtype(column))
        if len(values) < LEAST_GROUPS or (codes >= 0).sum() < LEAST_SIZE * len(values):
            continue
        shared = float(valid.features[name].isin(values).mean())
        if shared < SHARED:
            continue
        for target, truth in _targets(evidence):
            alike, in_order = _alike(codes[codes >= 0], truth[codes >= 0])
            if alike >= ALIKE and not (in_order and is_numeric_dtype(column) and not _together(column, train.rows)):
                yield name, (target, len(values), alike, shared)
                break


def _targets(evidence: Evidence) -> Iterator[tuple[str, np.ndarray]]:
    """Train targets as (n, k): a column per class, or the quantity."""
    for name, codes, _, labels in evidence.classes():
        yield name, np.eye(len(labels))[codes]
    if evidence.kind == "regression":
        targets = evidence.dataset.train.targets
        yield from ((str(name), values_of(targets[name])[:, None]) for name in targets.select_dtypes("number"))


def _alike(codes: np.ndarray, truth: np.ndarray) -> tuple[float, bool]:
    """(share of the variance of the target between groups, beyond chance; whether it goes with the groups' order)."""
    n, groups = len(codes), int(codes.max()) + 1
    sizes = np.bincount(codes, minlength=groups)[:, None]
    means = np.stack([np.bincount(codes, column, groups) for column in truth.T], axis=1) / np.maximum(sizes, 1)
    whole = float(((truth - truth.mean(axis=0)) ** 2).sum())
    if n <= groups or whole == 0:
        return 0.0, False
    within = float(((truth - means[codes]) ** 2).sum())
    alike = 1 - (within / (n - groups)) / (whole / (n - 1))
    steps = float(((means[1:] - means[:-1]) ** 2).sum())
    spread = 2 * float(((means - means.mean(axis=0)) ** 2).sum())  # of steps between groups in any order
    return alike, steps < IN_ORDER * spread


def _together(column: pd.Series, rows: np.ndarray) -> bool:
    """Whether the rows of a value follow each other in the source."""
    values = column.to_numpy()[np.argsort(rows, kind="stable")]
    return bool((values[1:] != values[:-1]).sum() + 1 <= RUNS * column.nunique())
