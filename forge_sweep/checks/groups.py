"""Columns that name what rows belong to, such as a patient or a machine, where its rows stand in train and in valid.

`leaks.groups_across_splits` says so.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from pandas.api.types import is_integer_dtype, is_numeric_dtype

from forge_sweep.checks.evidence import Evidence, values_of

LEAST_GROUPS, LEAST_SIZE = 20, 2.0
SHARED = 0.5
ALIKE = 0.90
IN_ORDER = 0.5
RUNS, UNEQUAL = 1.2, 0.35
"""Runs per group, in the source, up to which its rows stand together; variation of sizes up to which they are alike."""


def found(evidence: Evidence) -> dict[str, tuple[str, int, float, float]]:
    """Columns that name groups, each with target, number of groups, how alike their rows are, and the shared rows.

    A column does so where at least 20 values recur, twice on average, and the target hardly differs between rows of one
    value: 0.9 of its variance lies between them, beyond chance. Where the target goes with the order of the numbers, as
    with an age or a score, the rows of a value have to stand together in the source too, and values to be about equally
    frequent. Not asked where rows are split by time: there it is the same things that are predicted later on.
    """
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
        present = len(column) - evidence.features["missing"][name]
        if not LEAST_GROUPS <= evidence.features["distinct"][name] <= present / LEAST_SIZE:
            continue
        codes, values = pd.factorize(column, sort=is_numeric_dtype(column))
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
    """Whether the rows of a value follow each other in the source, and values are about equally frequent."""
    values = column.to_numpy()[np.argsort(rows, kind="stable")]
    sizes = column.value_counts().to_numpy()
    return bool((values[1:] != values[:-1]).sum() + 1 <= RUNS * len(sizes) and sizes.std() <= UNEQUAL * sizes.mean())
