"""Whether features say anything of a target: a shallow tree on validation rows against permuted targets.

Pure. A tree that was fitted on train rows predicts validation rows; under the hypothesis that these predictions and the
targets are independent, every order of the targets is as likely as the one there is (Ojala and Garriga 2010,
https://www.jmlr.org/papers/v11/ojala10a.html, test 1, with the predictor held fixed). The p-value counts the order that
was seen among the permuted ones (Phipson and Smyth 2010, https://doi.org/10.2202/1544-6115.1585).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

PERMUTATIONS = 199
MOST_ROWS = 4000
MOST_COLUMNS = 2000
FEWEST_ROWS = 20
DEPTH = 3

UNRELATED = 0.05
"""p-value above which nothing is known against features that say nothing."""


@dataclass(frozen=True)
class Relation:
    """How a shallow tree did.

    Attributes:
        score: on validation rows, in ``metric``: the share of the constant's error that the tree takes away
            (``R2``; of the class probabilities' squared error, the Brier score, where there are classes).
        p: of a score as good under permuted targets.
    """

    score: float
    p: float
    metric: str = "R2"

    @property
    def found(self) -> bool:
        """Whether there is a relation."""
        return self.p <= UNRELATED and self.score > 0


def p_value(score: Callable[[np.ndarray], float], rows: int, random: np.random.Generator) -> float:
    """The p-value of a score among those of `PERMUTATIONS` orders; ``score`` takes the order of the rows (n,)."""
    mine = score(np.arange(rows))
    others = [score(random.permutation(rows)) for _ in range(PERMUTATIONS)]
    return (1 + sum(other >= mine - 1e-12 for other in others)) / (1 + PERMUTATIONS)


def relation(
    x_train: np.ndarray, y_train: np.ndarray, x_valid: np.ndarray, y_valid: np.ndarray, *, classes: bool, seed: int = 0
) -> Relation | None:
    """Fit a tree of depth `DEPTH` and test its validation score; None where rows are too few or columns too many.

    Args:
        x_train: (rows, features), or more dimensions, which are laid flat.
        y_train: (rows,) class codes, or (rows, targets) numbers.
        x_valid: as ``x_train``.
        y_valid: as ``y_train``.
        classes: whether targets are class codes.
        seed: of the rows that are taken where there are more than `MOST_ROWS`, and of the permutations.
    """
    from sklearn.tree import DecisionTreeRegressor

    random = np.random.default_rng(seed)
    x_train, x_valid = (np.asarray(x).reshape(len(x), -1) for x in (x_train, x_valid))
    if min(len(x_train), len(x_valid)) < FEWEST_ROWS or not 0 < x_train.shape[1] <= MOST_COLUMNS:
        return None
    some = [np.sort(random.permutation(len(x))[:MOST_ROWS]) for x in (x_train, x_valid)]
    x_train, x_valid = x_train[some[0]], x_valid[some[1]]
    y_train, y_valid = np.asarray(y_train)[some[0]], np.asarray(y_valid)[some[1]]
    if classes:  # a column of 0 and 1 for each class: the tree then minimises the Gini impurity
        known = np.unique(y_train)
        y_train, y_valid = ((y.reshape(-1, 1) == known).astype(np.float64) for y in (y_train, y_valid))
    y_train, y_valid = (y.reshape(len(y), -1).astype(np.float64) for y in (y_train, y_valid))
    leaf = max(1, len(y_train) // 50)
    tree = DecisionTreeRegressor(max_depth=DEPTH, min_samples_leaf=leaf, random_state=seed).fit(x_train, y_train)
    found = np.asarray(tree.predict(x_valid)).reshape(len(y_valid), -1)
    whole = float(((y_valid - y_train.mean(axis=0)) ** 2).sum())
    if whole == 0:
        return None

    def score(y: np.ndarray) -> float:
        return 1 - float(((y - found) ** 2).sum()) / whole

    return Relation(score(y_valid), p_value(lambda order: score(y_valid[order]), len(y_valid), random))
