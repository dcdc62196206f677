"""Audit rules about rows and labels that do not belong together, and about the order of rows.

They look at the rows of train and valid in the order of their source, and at ranks: a feature and a target are related
where the mean ranks of the classes differ (Kruskal and Wallis 1952, https://doi.org/10.1080/01621459.1952.10483441; its
statistic is close to chi-squared). A quantity counts as five classes, its fifths.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from forge_sweep.checks import groups
from forge_sweep.checks.evidence import Evidence, Seen, drop_fix, rule, values_of
from forge_sweep.checks.relation import p_value

MOST_ROWS, MOST_CELLS = 5_000, 1_500_000
LEAST_TRAIN, LEAST_VALID, LEAST_CLASS = 100, 30, 20
MOST_CATEGORIES = 20
FIFTHS = 5
SURE, CHANCE = 1e-9, 0.01
STRONGER = 8.0
"""Factor by which labels of the next row are told better than a row's own, and than those of the row before, where all
of them stand one row off. In rows that repeat, as twelve months do, every neighbour is told."""

IN_ORDER, EVENLY, FOLLOWS = 0.999, 0.99, 0.10
"""Correlation with the row number, of ranks and of the values themselves, of a column that counts rows; share of the
variance of the target's ranks that their order explains."""

TREES = 50


@dataclass(frozen=True, eq=False)
class Rows:
    """Visible rows as they follow each other in the source, against one target.

    Attributes:
        target: its name.
        positions: (n,) in the source, rising.
        ranks: (n, columns) of features, each with mean 0 and variance 1: numbers by rank, a column per frequent
            category, 0 where a value is missing.
        names: (columns,) of the features.
        codes: (n,) classes of the target.
        valid: (n,) whether the row is one of valid.
    """

    target: str
    positions: np.ndarray
    ranks: np.ndarray
    names: tuple[str, ...]
    codes: np.ndarray
    valid: np.ndarray

    def statistic(self, lag: int = 0) -> np.ndarray:
        """Kruskal-Wallis's H of each column (columns,) against the target that stands ``lag`` rows further on."""
        if not lag:
            return statistic(self.ranks, self.codes)
        follows = self.positions[1:] == self.positions[:-1] + 1
        mine, theirs = (follows.nonzero()[0] + shift for shift in ((0, 1) if lag > 0 else (1, 0)))
        return statistic(self.ranks[mine], self.codes[theirs])


def statistic(ranks: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Kruskal-Wallis's H (columns,) of standardised ranks (n, columns) against classes (n,)."""
    if len(codes) < 2:
        return np.zeros(ranks.shape[1])
    counts = np.bincount(codes)
    members = np.zeros((len(counts), len(codes)), np.float32)
    members[codes, np.arange(len(codes))] = 1.0
    sums = (members @ ranks).astype(np.float64)
    between = (sums**2 / np.maximum(counts, 1)[:, None]).sum(axis=0) - sums.sum(axis=0) ** 2 / len(codes)
    return np.asarray((len(codes) - 1) * between / len(codes))


@rule("warning", "labels-shifted", expected="labels on the rows that they belong to")
def labels_shifted(evidence: Evidence) -> Iterator[Seen]:
    """Features that tell the label of the row before or after, and not that of their own row.

    Not asked where rows are split by time: there a feature may well be what was the target a moment ago.
    """
    from scipy.stats import chi2

    for rows in () if evidence.split == "time" else ordered(evidence):
        own = rows.statistic()
        for lag, word in ((1, "next"), (-1, "previous")):
            other, opposite = rows.statistic(lag), rows.statistic(-lag)
            best = int(other.argmax())
            p = float(chi2.sf(other[best], int(rows.codes.max()))) * 2 * len(own)
            if p < SURE and other[best] > STRONGER * max(own.max(), opposite.max()):
                seen = f"features tell the target of the {word} row (strongest: {rows.names[best]!r}, H = "
                seen += f"{other[best]:.0f}), and hardly that of their own (H = {own.max():.0f})"
                fix = f"move the labels one row {'up' if lag > 0 else 'down'} in the file; "
                fix += "a shift() or a lost first line moves them"
                yield Seen(rows.target, seen, fix)
                break


@rule("warning", "labels-unrelated", expected="features that say something of the target")
def labels_unrelated(evidence: Evidence) -> Iterator[Seen]:
    """Features of which none is related to the target beyond chance, nor do trees over all of them predict it.

    A chi-squared test at 0.01 over all features together (Bonferroni), and then a random forest on valid against
    permuted targets. Features that matter only weakly, over few rows, look alike.
    """
    from scipy.stats import chi2

    shifted = {each.subject for each in labels_shifted(evidence)}
    for rows in ordered(evidence):
        train, valid = rows.codes[~rows.valid], rows.codes[rows.valid]
        if len(train) < LEAST_TRAIN or len(valid) < LEAST_VALID or np.bincount(rows.codes).min() < LEAST_CLASS:
            continue
        found = rows.statistic()
        best = int(found.argmax())
        p = min(1.0, float(chi2.sf(found[best], int(rows.codes.max()))) * len(found))
        if p < CHANCE or rows.target in shifted or (by_trees := _by_trees(rows)) < CHANCE:
            continue
        seen = f"none of {len(found)} columns is related to it beyond chance over {len(rows.codes)} rows (strongest: "
        seen += f"{rows.names[best]!r}, p = {p:.2g}), and a random forest predicts it no better than chance "
        seen += f"(p = {by_trees:.2g})"
        fix = "check that rows and labels belong together: a join without a key, a sort or a shuffle parts them"
        yield Seen(rows.target, seen, fix)


@rule("warning", "row-order")
def row_order(evidence: Evidence) -> Iterator[Seen]:
    """A feature that counts the rows where the target goes with their order: it predicts nothing outside this file.

    It rises or falls evenly with the row number, other than a feature that the file happens to be sorted by.
    """
    if evidence.split == "time":
        return
    grouped = groups.found(evidence)  # they are said by themselves
    expected = "features that say nothing of where a row stands in a file that is sorted by the target"
    for rows in ordered(evidence):
        place = _standard_ranks(rows.positions[:, None].astype(float))
        follows = float(statistic(place, rows.codes)[0]) / max(len(rows.codes) - 1, 1)
        if follows < FOLLOWS:
            continue
        with_place = np.abs((rows.ranks * place).mean(axis=0))
        for column in np.flatnonzero(with_place >= IN_ORDER):
            name = rows.names[column]
            if name in grouped or not _evenly(evidence, name):
                continue
            seen = f"rises or falls with the row number (rank correlation {with_place[column]:.4f}), and the rows are "
            seen += f"sorted by {rows.target!r}: their order explains {follows:.0%} of it"
            yield Seen(name, seen, drop_fix(name), expected=expected)


def _evenly(evidence: Evidence, name: str) -> bool:
    train = evidence.dataset.train
    values = values_of(train.features[name])
    known = np.isfinite(values)
    return bool(abs(np.corrcoef(values[known], train.rows[known])[0, 1]) >= EVENLY)


def ordered(evidence: Evidence) -> tuple[Rows, ...]:
    """The rows against each target; none where targets are missing, which is an error by itself.

    At most `MOST_ROWS` that follow each other, from a place that a fixed seed chose.
    """
    found: tuple[Rows, ...] = evidence.once("rows in order", lambda: tuple(_ordered(evidence)))
    return found


def _ordered(evidence: Evidence) -> Iterator[Rows]:
    train, valid = evidence.dataset.train, evidence.dataset.valid
    if (
        train.targets.isna().to_numpy().any()
        or valid.targets.isna().to_numpy().any()
        or not len(train.features.columns)
    ):
        return
    targets = [(name, np.concatenate([before, after])) for name, before, after, _ in evidence.classes()]
    if evidence.kind == "regression":
        both = pd.concat([train.targets, valid.targets])
        for name in both.select_dtypes("number"):
            fifths = pd.qcut(both[name].replace([np.inf, -np.inf], np.nan), FIFTHS, labels=False, duplicates="drop")
            if fifths.notna().all():
                targets.append((str(name), fifths.to_numpy(np.int64)))
    positions = np.concatenate([train.rows, valid.rows])
    order = np.argsort(positions, kind="stable")
    most = min(MOST_ROWS, max(500, MOST_CELLS // train.features.shape[1]))
    first = int(np.random.default_rng(0).integers(max(len(order) - most, 0) + 1))
    chosen = order[first : first + most]
    of_train = chosen < len(train.rows)
    picked = [train.features.iloc[chosen[of_train]], valid.features.iloc[chosen[~of_train] - len(train.rows)]]
    features = pd.concat(picked).iloc[np.argsort(np.argsort(~of_train, kind="stable"))]
    ranks, names = _ranks(features)
    if not names:
        return
    for name, codes in targets:
        known = np.unique(codes[chosen], return_inverse=True)[1]
        if known.max() > 0:
            yield Rows(name, positions[chosen], ranks, names, known, ~of_train)


def _ranks(features: pd.DataFrame) -> tuple[np.ndarray, tuple[str, ...]]:
    """Standardised ranks (n, columns) and names of the columns that vary."""
    columns, names = list[np.ndarray](), list[str]()
    for name in features:
        if is_numeric_dtype(features[name]):
            columns.append(values_of(features[name]))
            names.append(str(name))
            continue
        common = features[name].value_counts().index[:MOST_CATEGORIES]
        columns += [(features[name] == value).to_numpy(float, na_value=0.0) for value in common]
        names += [str(name)] * len(common)
    if not columns:
        return np.empty((len(features), 0)), ()
    ranks = _standard_ranks(np.stack(columns, axis=1))
    varies = ranks.any(axis=0)
    return ranks[:, varies], tuple(np.array(names, object)[varies].tolist())


def _standard_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks of each column with mean 0 and variance 1, float32; all 0 where a column has one value."""
    ranks = pd.DataFrame(values).rank().to_numpy()
    missing = np.isnan(ranks)
    if missing.any():
        ranks = np.where(missing, np.nanmean(np.where(missing.all(axis=0), 0.0, ranks), axis=0), ranks)
    deviation = ranks.std(axis=0)
    return np.asarray((ranks - ranks.mean(axis=0)) / np.where(deviation > 0, deviation, np.inf), np.float32)


def _by_trees(rows: Rows) -> float:
    """p-value of a random forest's likelihood on valid, under permuted targets."""
    from sklearn.ensemble import RandomForestClassifier

    forest = RandomForestClassifier(TREES, min_samples_leaf=5, random_state=0)
    forest.fit(rows.ranks[~rows.valid], rows.codes[~rows.valid])
    truth = rows.codes[rows.valid]
    place = np.minimum(np.searchsorted(forest.classes_, truth), len(forest.classes_) - 1)
    logs = np.log(np.maximum(forest.predict_proba(rows.ranks[rows.valid]), 1e-3))
    every = np.arange(len(place))
    return p_value(lambda order: float(logs[every, place[order]].sum()), len(place), np.random.default_rng(0))
