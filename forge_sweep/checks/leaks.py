"""Audit rules about features that give the target away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from forge_sweep.checks import groups
from forge_sweep.checks.evidence import Evidence, Seen, drop_fix, rule, values_of

MIN_ROWS = 10
SAMPLE_ROWS = 20_000
SAMPLE_CELLS = 1_500_000
SUSPECT_AUC, LEAK_AUC = 0.995, 0.9999
SUSPECT_R, LEAK_R = 0.9999, 0.999999
MIN_ROWS_FOR_LEAK = 30
MAX_LEAVES = 16


@rule("error", "target-leak-copy", expected="features that are known before the target is")
def target_copy(evidence: Evidence) -> Iterator[Seen]:
    """Features that are the target under another name: equal, or one value for each value of the target."""
    for feature, (target, rows) in copies(evidence).items():
        seen = f"one to one with target {target!r} in {rows} of {evidence.dataset.sizes['train']} train rows"
        yield Seen(feature, seen, drop_fix(feature))


@rule("warning", "target-leak")
def target_leak(evidence: Evidence) -> Iterator[Seen]:
    """Features that alone predict the target on validation.

    Classification: AUC of a tree of 16 leaves over the one feature (for text: of the class shares per value), learned
    on train and scored on validation, one class against the rest, averaged; for two classes also of the values
    themselves. Regression: Pearson's or Spearman's correlation. Warning from 0.995 (0.9999 for a correlation), error
    from 0.9999 (0.999999) when train says the same and there are enough rows to tell.
    """
    known = groups.found(evidence)
    suspect, leak = (SUSPECT_R, LEAK_R) if evidence.kind == "regression" else (SUSPECT_AUC, LEAK_AUC)
    figure = "|correlation|" if evidence.kind == "regression" else "AUC"
    expected = f"{figure} below {suspect} for a single feature"
    for sample, strengths in singles(evidence):
        for name, (on_train, on_valid) in strengths.items():
            if name in known or on_valid < suspect:
                continue
            sure = min(on_train, on_valid) >= leak and len(sample.y_valid) >= MIN_ROWS_FOR_LEAK
            seen = f"alone predicts target {sample.target!r} with {figure} {on_valid:.6g} over {len(sample.y_valid)} "
            seen += f"validation rows ({on_train:.6g} on train)"
            fix = f"{drop_fix(name)} if it is not known before the target is"
            yield Seen(name, seen, fix, severity="error" if sure else "warning", expected=expected)


@rule("warning", "groups-across-splits", expected="all rows of one group in one split")
def groups_across_splits(evidence: Evidence) -> Iterator[Seen]:
    """Rows of one thing (a patient, a machine) that has one target, in train and in valid; see `groups.found`.

    A network that recognises the thing knows its target, and is right on valid for that reason alone. An error where
    the column alone predicts the target as `target_leak` has it, which leaves it to this rule.
    """
    sure = set[str]()
    named = groups.found(evidence)
    for sample, strengths in singles(evidence) if named else ():
        if len(sample.y_valid) >= MIN_ROWS_FOR_LEAK:
            leak = LEAK_AUC if sample.classes else LEAK_R
            sure |= {name for name, strength in strengths.items() if min(strength) >= leak}
    for name, (target, count, alike, shared) in named.items():
        seen = f"{count} values recur, rows of one value have one target {target!r} ({alike:.1%} of its variation lies "
        seen += f"between them), and {shared:.0%} of the valid rows have a value that train has too"
        fix = f'kind = "group" and group = "{name}" under [data.split]'
        yield Seen(name, seen, fix, severity="error" if name in sure else "warning")


def singles(evidence: Evidence) -> list[tuple[Sample, dict[str, tuple[float, float]]]]:
    """How well each feature alone predicts each target on (train, valid); those that copy it are left out."""

    def make() -> list[tuple[Sample, dict[str, tuple[float, float]]]]:
        known = copies(evidence)
        return [
            (sample, {name: sample.strength(name) for name in map(str, sample.x_valid) if name not in known})
            for sample in samples(evidence)
        ]

    found: list[tuple[Sample, dict[str, tuple[float, float]]]] = evidence.once("singles", make)
    return found


def copies(evidence: Evidence) -> dict[str, tuple[str, int]]:
    """Features that are one to one with a target column in train, each with that column and the number of such rows."""
    train = evidence.dataset.train
    found: dict[str, tuple[str, int]] = {}
    for target in train.targets:
        known = train.targets[target].notna().to_numpy(dtype=bool)
        if known.sum() < MIN_ROWS or train.targets[target].nunique() < 2:
            continue
        truth = train.targets[target][known]
        for name in evidence.features.index:
            if name not in found and (rows := _copied_rows(train.features[name][known], truth)):
                found[str(name)] = str(target), rows
    return found


@dataclass(frozen=True, eq=False)
class Sample:
    """Rows to measure single features on, for one target.

    The targets are class codes, or regression values where ``classes`` is 0.
    """

    target: str
    x_train: pd.DataFrame
    x_valid: pd.DataFrame
    y_train: np.ndarray
    y_valid: np.ndarray
    classes: int

    def strength(self, name: str) -> tuple[float, float]:
        """How well one feature predicts the target on (train, valid): AUC or absolute correlation."""
        return self.strength_of(self.x_train[name], self.x_valid[name])

    def strength_of(self, train: pd.Series, valid: pd.Series) -> tuple[float, float]:
        """The same of any column of these rows."""
        if not self.classes:
            if not is_numeric_dtype(train):  # text is as good as the mean of the target per value
                means = pd.Series(self.y_train).groupby(train.astype(object).to_numpy()).mean()
                train, valid = train.map(means), valid.map(means)
            return _correlation(values_of(train), self.y_train), _correlation(values_of(valid), self.y_valid)
        if is_numeric_dtype(train) and not np.isfinite(values_of(train)).any():
            return 0.0, 0.0
        on_train, on_valid = _cells(train, valid, self.y_train, self.classes)
        cells = int(max(on_train.max(), on_valid.max())) + 1
        learned, seen = (  # rows per cell and class
            np.bincount(at * self.classes + codes, minlength=cells * self.classes).reshape(cells, self.classes)
            for at, codes in ((on_train, self.y_train), (on_valid, self.y_valid))
        )
        prior = learned.sum(axis=0) / learned.sum()
        shares = (learned + prior) / (learned.sum(axis=1, keepdims=True) + 1)
        return max((_mean_auc(shares, learned), _mean_auc(shares, seen)), self.ranking(train, valid), key=min)

    def ranking(self, train: pd.Series, valid: pd.Series) -> tuple[float, float]:
        """AUC of the values themselves, rising or falling as train says; 0 for text or more than two classes."""
        if self.classes > 2 or not is_numeric_dtype(train) or min(np.ptp(self.y_train), np.ptp(self.y_valid)) == 0:
            return 0.0, 0.0
        before, after = (np.nan_to_num(x[:, 0], nan=-1.0) for x in _ranks(values_of(train), values_of(valid)))
        rising = _auc(before, self.y_train, 1 - self.y_train), _auc(after, self.y_valid, 1 - self.y_valid)
        return rising if rising[0] >= 0.5 else (1 - rising[0], 1 - rising[1])


def samples(evidence: Evidence) -> Iterator[Sample]:
    """One sample per target; none where targets are missing, which is an error by itself."""
    train, valid = evidence.dataset.train, evidence.dataset.valid
    if train.targets.isna().to_numpy().any() or valid.targets.isna().to_numpy().any():
        return
    limit = min(SAMPLE_ROWS, max(1_000, SAMPLE_CELLS // max(train.features.shape[1], 1)))
    on_train, on_valid = _pick(len(train.rows), limit), _pick(len(valid.rows), limit)
    if min(len(on_train), len(on_valid)) < MIN_ROWS:
        return
    targets = [
        (name, before, after, len(labels)) for name, before, after, labels in evidence.classes() if len(labels) > 1
    ]
    if evidence.kind == "regression":
        for name in train.targets:
            columns = train.targets[name], valid.targets[name]
            if all(map(is_numeric_dtype, columns)):
                targets.append((str(name), values_of(columns[0]), values_of(columns[1]), 0))
    x_train, x_valid = train.features.iloc[on_train], valid.features.iloc[on_valid]
    for name, before, after, classes in targets:
        yield Sample(name, x_train, x_valid, before[on_train], after[on_valid], classes)


def _pick(rows: int, limit: int) -> np.ndarray:
    """All positions, or a sample of them that is the same every time."""
    return np.arange(rows) if rows <= limit else np.sort(np.random.default_rng(0).choice(rows, limit, replace=False))


def _copied_rows(feature: pd.Series, target: pd.Series) -> int:
    """Rows in which a feature is one to one with the target: all (missing is a value then), those present, or none."""
    if _one_to_one(feature, target):
        return len(target)
    present = feature.notna().to_numpy(dtype=bool)
    if not max(MIN_ROWS, len(target) / 2) <= present.sum() < len(target) or feature.nunique() < 2:
        return 0
    return int(present.sum()) if _one_to_one(feature[present], target[present]) else 0


def _one_to_one(feature: pd.Series, target: pd.Series) -> bool:
    """Whether each value of one belongs to one value of the other.

    Where target values hardly recur, any two columns without ties are one to one: there a numeric feature that rises or
    falls strictly with the target counts.
    """
    if 2 * target.nunique() <= len(target):
        patterns = (
            [pd.factorize(x.iloc[:rows], use_na_sentinel=False)[0] for x in (feature, target)]
            for rows in (1_000, len(target))
        )
        return all(np.array_equal(one, other) for one, other in patterns)
    if not is_numeric_dtype(feature) or not is_numeric_dtype(target):
        return False
    order = np.argsort(values_of(target), kind="stable")
    values, truth = values_of(feature)[order], values_of(target)[order]
    before, after = values[:-1], values[1:]
    same_ties = np.array_equal(before == after, truth[:-1] == truth[1:])
    return same_ties and bool((before <= after).all() or (before >= after).all())


def _cells(train: pd.Series, valid: pd.Series, y_train: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Cell of each (train, valid) row: the leaf of a tree for numbers, the value for text; unseen ones share one."""
    from sklearn.tree import DecisionTreeClassifier

    if not is_numeric_dtype(train):
        codes, uniques = pd.factorize(train.astype(object), use_na_sentinel=False)
        found = pd.Index(uniques).get_indexer(pd.Index(valid.astype(object)))
        return codes, np.where(found < 0, len(uniques), found)
    before, after = _ranks(values_of(train), values_of(valid))
    tree = DecisionTreeClassifier(max_leaf_nodes=max(MAX_LEAVES, 2 * classes), random_state=0).fit(before, y_train)
    return tree.apply(before), tree.apply(after)


def _ranks(train: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as positions (n, 1) among the distinct train values: trees compute in float32 and take no infinity."""
    known = np.unique(train[np.isfinite(train)])
    positions = np.arange(len(known))
    with np.errstate(all="ignore"):
        before, after = (np.interp(np.clip(x, known[0], known[-1]), known, positions)[:, None] for x in (train, valid))
    return before, after


def _mean_auc(shares: np.ndarray, counts: np.ndarray) -> float:
    """AUC of one class against the rest, averaged over the classes present, where all rows of a cell share a score."""
    total = counts.sum(axis=0)
    present = np.flatnonzero((total > 0) & (total < total.sum()))
    if not len(present):
        return 0.0
    rows = counts.sum(axis=1)
    return float(np.mean([_auc(shares[:, code], counts[:, code], rows - counts[:, code]) for code in present]))


def _auc(score: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a positive row scores above a negative one, ties by half, from counts per score."""
    tie = np.unique(score, return_inverse=True)[1]
    positive, negative = np.bincount(tie, positive), np.bincount(tie, negative)
    below = np.cumsum(negative) - negative / 2
    return float((positive * below).sum() / (positive.sum() * negative.sum()))


def _correlation(feature: np.ndarray, target: np.ndarray) -> float:
    """The greater of Pearson's and Spearman's absolute correlation over complete rows; 0 where undefined."""
    complete = np.isfinite(feature) & np.isfinite(target)
    feature, target = feature[complete], target[complete]
    if len(feature) < MIN_ROWS or feature.min() == feature.max() or target.min() == target.max():
        return 0.0
    ranks = pd.Series(feature).rank().to_numpy(), pd.Series(target).rank().to_numpy()
    with np.errstate(all="ignore"):
        found = [abs(float(np.corrcoef(*pair)[0, 1])) for pair in ((feature, target), ranks)]
    return max(value if np.isfinite(value) else 0.0 for value in found)
