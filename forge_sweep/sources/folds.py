"""Folds of the training and validation rows: which rows of both together train and which validate, time after time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from forge_sweep.errors import DataError, Key
from forge_sweep.sources.splits import TRAIN, VALID, class_numbers, ranked, without_target

if TYPE_CHECKING:
    import pandas as pd

    from forge_sweep.experiment import DataSpec

Positions = tuple[np.ndarray, np.ndarray]
"""Of one fold: the rows (n,) that train and those (m,) that validate, as positions among the rows of all folds."""


def positions(frame: pd.DataFrame, spec: DataSpec, roles: np.ndarray, seed: int) -> tuple[Positions, ...]:
    """The folds of ``data.split``; none where there is one split. Test rows are in no fold.

    The rows of all folds are those of train, then those of valid. Each of them is validated once in each repeat, with
    classes in equal shares (``stratify``) or groups whole; by time a fold trains on what is older than what it
    validates, so that the oldest rows never are.

    Args:
        frame: all rows in canonical order, with the columns that split.
        spec: the section ``[data]``.
        roles: (n,) of every row, as `splits.assign` gives them.
        seed: decides random and group folds.

    Raises:
        DataError: a class, or the groups or moments, are too few for so many folds.
    """
    split = spec.split
    if split.folds == 1:
        return ()
    pool = np.concatenate([np.flatnonzero(roles == TRAIN), np.flatnonzero(roles == VALID)])
    rows = frame.iloc[pool]
    found = _by_time(rows[split.time], split.folds) if split.kind == "time" else _divided(rows, spec, seed)
    for head in (each for each in spec.tasks.values() if each.task in ("binary", "multiclass")):
        _refuse_untaught(rows[list(head.target)], found)
    return found


def _divided(rows: pd.DataFrame, spec: DataSpec, seed: int) -> tuple[Positions, ...]:
    """At random, or by groups."""
    from sklearn import model_selection

    split, pool = spec.split, rows.index

    codes, groups = np.zeros(len(pool), np.int64), None
    heads = [list(head.target) for head in spec.tasks.values() if head.task in ("binary", "multiclass")]
    stratified = split.stratify and bool(heads)
    if stratified:  # the audit refuses rows without a target, with their numbers
        codes, labels = class_numbers(rows[heads[0]])
        _refuse_rare(codes[~without_target(rows[heads[0]])], labels, split.folds)
    if split.kind == "group":
        groups, found = ranked(rows[split.group], "group", "groups", "more groups")
        _refuse_few(found, split.folds, "groups", str(split.group))
    elif len(pool) < 2 * split.folds:
        _refuse_few(len(pool) // 2, split.folds, "pairs of rows", "")
    folds: list[Positions] = []
    for repeat in range(split.repeats):
        how = {"n_splits": split.folds, "shuffle": True, "random_state": int(seed + repeat) % 2**32}
        if groups is not None:
            # Where no class is to be kept in shares, one class makes it the balance of rows alone.
            folds += model_selection.StratifiedGroupKFold(**how).split(codes, codes, groups)
        elif stratified:
            folds += model_selection.StratifiedKFold(**how).split(codes, codes)
        else:
            folds += model_selection.KFold(**how).split(codes)
    return tuple(folds)


def _by_time(values: pd.Series, folds: int) -> tuple[Positions, ...]:
    """The rows in ``folds`` + 1 blocks of about one size: each but the oldest is validated by what is older."""
    codes, found = ranked(values, "time", "different times", "finer times")
    _refuse_few(found - 1, folds, "different times after the oldest", str(values.name))
    ends = np.cumsum(np.bincount(codes))  # rows up to and with each moment
    last = -1
    cuts = []  # the last moment of each block but the newest one: rows of one moment stay together
    for block in range(1, folds + 1):
        room = found - 1 - (folds - block)  # as many moments are left for the blocks after it
        wanted = len(codes) * block / (folds + 1)
        last = last + 1 + int(np.argmin(abs(ends[last + 1 : room] - wanted)))
        cuts.append(last)
    block_of = np.searchsorted(cuts, codes, side="left")
    return tuple((np.flatnonzero(block_of < fold), np.flatnonzero(block_of == fold)) for fold in range(1, folds + 1))


def _refuse_rare(codes: np.ndarray, labels: list[str], folds: int) -> None:
    counts = np.bincount(codes, minlength=len(labels))
    rarest = int(counts.argmin())
    if counts[rarest] < folds:
        fewer = Key("data.split.folds", str(max(counts[rarest], 1)))
        raise DataError(
            f"{Key('data.split.folds', str(folds)):is}: class {labels[rarest]} has {counts[rarest]} of the "
            f"{len(codes)} rows that train and validate; expected at least one for each fold",
            hint=f"set {fewer}, give more rows of the class, or set {Key('data.split.stratify', 'false')}",
        )


def _refuse_untaught(targets: pd.DataFrame, folds: tuple[Positions, ...]) -> None:
    """Raise DataError for a fold that has no training row of a class: its model could not know it."""
    codes, labels = class_numbers(targets)
    usable = ~without_target(targets)
    for number, (train, _) in enumerate(folds, start=1):
        if unknown := set(codes[usable].tolist()) - set(codes[train][usable[train]].tolist()):
            raise DataError(
                f"{Key('data.split.folds', str(len(folds))):is}: fold {number} trains on {len(train)} rows, and none "
                f"has class {labels[min(unknown)]}",
                hint="set fewer folds, or another data.split.kind; with one split the same rows may do",
            )


def _refuse_few(found: int, folds: int, what: str, column: str) -> None:
    if found < folds:
        named = f" in column {column!r}" if column else ""
        raise DataError(
            f"{Key('data.split.folds', str(folds)):is}: there are {found} {what}{named} among the rows that train and "
            "validate; expected at least one for each fold",
            hint=f"set {Key('data.split.folds', str(max(found, 1)))}, or give more rows",
        )
