"""Nested parts of the training rows: with a ninth, then a third of them it is seen early which trials are hopeless."""

from __future__ import annotations

import dataclasses
import functools
import hashlib

import numpy as np

from forge_sweep.errors import DataError, Key
from forge_sweep.sources.base import Dataset, Fold, Split
from forge_sweep.sources.splits import class_numbers

LEAST_ROWS = 100
"""Of the smallest part: on fewer rows, trials rank otherwise than on all of them."""


@functools.lru_cache(maxsize=4)
def rungs(dataset: Dataset, strata: tuple[str, ...], shares: tuple[float, ...], seed: int) -> tuple[Fold[Dataset], ...]:
    """The dataset with so many of its training rows, each part with the rows of the one before, the last one as it is.

    Args:
        dataset: with one split.
        strata: target columns of the classes whose shares are alike in all parts; empty for none.
        shares: ascending, the last one 1.
        seed: decides which rows they are.

    Raises:
        DataError: the smallest part has fewer than `LEAST_ROWS` rows, or lacks a class.
    """
    n, every = len(dataset.train.rows), np.arange(len(dataset.valid.rows))
    sizes = [int(np.ceil(share * n)) for share in shares]
    key = Key("study.fidelity", '"rows"')
    if sizes[0] < LEAST_ROWS:
        raise DataError(
            f"{key:is}: the smallest part of the {n} training rows has {sizes[0]}; expected at least {LEAST_ROWS}",
            hint=f"remove {Key('study.fidelity')}: it is for many rows",
        )
    order = np.random.default_rng(seed).permutation(n)
    if strata:
        codes, labels = class_numbers(dataset.train.targets[list(strata)])
        order = _interleaved(codes, order)
        if len(lost := set(range(len(labels))) - set(codes[order[: sizes[0]]].tolist())):
            rare = min(lost)
            raise DataError(
                f"{key:is}: class {labels[rare]} has {int((codes == rare).sum())} of the {n} training rows, and none "
                f"of the {sizes[0]} of the smallest part",
                hint=f"give more rows of the class, or remove {Key('study.fidelity')}",
            )
    found = []
    for share, size in zip(shares, sizes, strict=True):
        if share == 1:
            found.append(Fold(dataset, every))
            continue
        rows, split = np.sort(order[:size]), dataset.train
        part = Split(split.features.iloc[rows], split.targets.iloc[rows], split.rows[rows])
        digest = hashlib.sha256(f"{dataset.split_digest} rows".encode())
        digest.update(np.ascontiguousarray(rows, "<i8").tobytes())
        own = dataclasses.replace(
            dataset,
            train=part,
            sizes={**dataset.sizes, "train": size},
            split_digest=digest.hexdigest(),
            known=dataset.train,
        )
        found.append(Fold(own, every))
    return tuple(found)


def _interleaved(codes: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The rows (n,) of ``order`` so that each beginning of them has the classes in their shares, as far as it can."""
    shuffled = codes[order]
    counts, place = np.bincount(codes), np.empty(len(codes))
    for code in np.flatnonzero(counts):
        its = np.flatnonzero(shuffled == code)
        place[its] = (np.arange(len(its)) + 0.5) / len(its)
    return np.asarray(order[np.argsort(place, kind="stable")])
