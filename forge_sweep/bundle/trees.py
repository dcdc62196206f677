"""Scikit-learn's forests and boosters by skops: our own list of types, and a look at the nodes."""

from __future__ import annotations

import itertools
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from forge_sweep.bundle import archives
from forge_sweep.errors import BundleError

LEAF = -1
"""In a node table, the left child of a node that has none."""

_LOSSES = ("HalfBinomialLoss", "HalfMultinomialLoss", "HalfSquaredError")

TRUSTED_TYPES = frozenset(
    {
        *(f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "str", "tuple")),
        *(f"numpy.{name}" for name in ("float32", "float64", "int32", "int64", "ndarray", "uint64")),
        "numpy.random._generator.Generator",
        "sklearn.ensemble._forest.RandomForestClassifier",
        "sklearn.ensemble._forest.RandomForestRegressor",
        "sklearn.ensemble._hist_gradient_boosting.binning._BinMapper",
        "sklearn.ensemble._hist_gradient_boosting.gradient_boosting.HistGradientBoostingClassifier",
        "sklearn.ensemble._hist_gradient_boosting.gradient_boosting.HistGradientBoostingRegressor",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn.multioutput.MultiOutputClassifier",
        "sklearn.multioutput.MultiOutputRegressor",
        "sklearn.preprocessing._label.LabelEncoder",
        "sklearn.tree._classes.DecisionTreeClassifier",
        "sklearn.tree._classes.DecisionTreeRegressor",
        "sklearn.tree._tree.Tree",
        *(f"sklearn._loss._loss.Cy{name}" for name in _LOSSES),
        *(f"sklearn._loss.loss.{name}" for name in _LOSSES),
        *(f"sklearn._loss.link.{name}" for name in ("IdentityLink", "Interval", "LogitLink", "MultinomialLogit")),
    }
)
"""Every type that a tree file may name: what a fitted forest or histogram booster is made of, and nothing else.

Closed on purpose, where skops' own list has every scikit-learn estimator in it and grows with its versions.
"""


def save(model: Any, path: Path) -> None:
    """Write a fitted forest or booster."""
    import skops.io

    skops.io.dump(model, path, compression=zipfile.ZIP_DEFLATED)


def load(path: Path, n_features: int) -> Any:
    """Read what `save` wrote.

    Args:
        path: the file.
        n_features: columns of the arrays that the model will be given.

    Raises:
        BundleError: the file names a type outside `TRUSTED_TYPES`, or a node points where nothing is.
    """
    import skops.io

    archives.check_zip(path, r"schema\.json|\d+\.npy")
    archives.check_arrays(path, lambda name: name.endswith(".npy"))
    foreign = declared_types(path) - TRUSTED_TYPES or set(skops.io.get_untrusted_types(file=path)) - TRUSTED_TYPES
    if foreign:
        raise BundleError(
            f"{path} holds types that are not trusted: {', '.join(sorted(foreign))}",
            hint="only forests and histogram boosters are read; do not use this folder",
        )
    model = skops.io.load(path, trusted=sorted(TRUSTED_TYPES))
    check_nodes(model, n_features, path)
    return model


def declared_types(path: Path) -> set[str]:
    """Every type that a skops file names, those that skops itself trusts included."""
    with zipfile.ZipFile(path) as archive:
        waiting = [json.loads(archive.read("schema.json"))]
    types = set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict) and "__class__" in node:
            types.add(f"{node.get('__module__')}.{node['__class__']}")
        waiting.extend(node.values() if isinstance(node, dict) else node if isinstance(node, list) else ())
    return types


def check_nodes(model: Any, n_features: int, path: Path) -> None:
    """Refuse a tree whose nodes point outside the tree, outside the features, or back.

    Scikit-learn follows these indices unchecked, so that a crafted file reads foreign memory or never returns
    (https://github.com/scikit-learn/scikit-learn/pull/34558).
    """
    for left, right, feature in node_tables(model):
        inner = np.flatnonzero(left != LEAF)
        children = np.stack([left[inner], right[inner]])
        ahead = (children > inner) & (children < len(left))
        known = (feature[inner] >= 0) & (feature[inner] < n_features)
        if not (len(left) and ahead.all() and known.all()):
            raise BundleError(f"{path} has a tree with nodes that point nowhere", hint="do not use this folder")


def node_tables(model: Any) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of every tree that ``model`` predicts with, one entry per node: left child or `LEAF`, right child, feature.

    Goes by type, not by attribute: a crafted estimator could carry a decoy.
    """
    from sklearn import ensemble, multioutput, tree
    from sklearn.ensemble._hist_gradient_boosting.predictor import TreePredictor

    forests = (ensemble.RandomForestClassifier, ensemble.RandomForestRegressor)
    if isinstance(model, (*forests, multioutput.MultiOutputClassifier, multioutput.MultiOutputRegressor)):
        for part in model.estimators_:
            yield from node_tables(part)
    elif isinstance(model, tree.DecisionTreeClassifier | tree.DecisionTreeRegressor):
        yield from node_tables(model.tree_)
    elif isinstance(model, tree._tree.Tree):
        yield model.children_left, model.children_right, model.feature
    elif isinstance(model, ensemble.HistGradientBoostingClassifier | ensemble.HistGradientBoostingRegressor):
        for part in itertools.chain.from_iterable(model._predictors):
            yield from node_tables(part)
    elif isinstance(model, TreePredictor):
        nodes = model.nodes
        left = np.where(nodes["is_leaf"] != 0, LEAF, nodes["left"].astype(np.int64))
        # A split by category would look into further tables; our features are numbers, so that there is none.
        feature = np.where(nodes["is_categorical"] != 0, -1, nodes["feature_idx"])
        yield left, nodes["right"].astype(np.int64), feature
    else:
        raise TypeError(f"a {type(model).__name__} stands where a tree was expected")
