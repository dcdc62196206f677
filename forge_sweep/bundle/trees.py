"""Trees: scikit-learn's forests and boosters by skops, XGBoost's own JSON; types and nodes are checked.

Both libraries follow indices that a file gives them unchecked, so that a crafted file reads foreign memory or never
returns (https://github.com/scikit-learn/scikit-learn/pull/34558).
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from forge_sweep.bundle import security
from forge_sweep.bundle.files import read_json
from forge_sweep.errors import BundleError

LEAF = -1  # in a node table, the left child of a node that has none

_LOSSES = ("HalfBinomialLoss", "HalfMultinomialLoss", "HalfSquaredError")

# What a fitted forest or histogram booster is made of. skops' own list has all of scikit-learn, and grows.
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


def save(model: Any, path: Path) -> None:
    """Write a fitted forest or histogram booster."""
    import skops.io

    skops.io.dump(model, path, compression=zipfile.ZIP_DEFLATED)


def load(path: Path, n_features: int) -> Any:
    """Read what `save` wrote, a model of ``n_features`` columns.

    A type outside `TRUSTED_TYPES`, or a tree whose nodes point outside the tree, outside the features, or back, is
    refused.
    """
    import skops.io

    security.check_zip(path, r"schema\.json|\d+\.npy")
    security.check_arrays(path)
    with zipfile.ZipFile(path) as archive:
        schema = json.loads(archive.read("schema.json"))
    # Those that skops itself trusts, too.
    types = {
        f"{each.get('__module__')}.{each['__class__']}" for each in security.objects(schema) if "__class__" in each
    }
    foreign = types - TRUSTED_TYPES or set(skops.io.get_untrusted_types(file=path)) - TRUSTED_TYPES
    if foreign:
        raise BundleError(
            f"{path} holds types that are not trusted: {', '.join(sorted(foreign))}",
            hint="only forests and histogram boosters are read; do not use this folder",
        )
    model = skops.io.load(path, trusted=sorted(TRUSTED_TYPES))
    for left, right, feature in _node_tables(model):
        if not (len(left) and _points_ahead(left, right, feature, n_features)):
            raise BundleError(f"{path} has a tree with nodes that point nowhere", hint="do not use this folder")
    return model


def _points_ahead(left: np.ndarray, right: np.ndarray, feature: np.ndarray, n_features: int) -> bool:
    """Whether every inner node has both its children further on, and a feature that is there."""
    inner = np.flatnonzero(left != LEAF)
    children = np.stack([left[inner], right[inner]])
    ahead = (children > inner) & (children < len(left))
    return bool(ahead.all() and ((feature[inner] >= 0) & (feature[inner] < n_features)).all())


def _node_tables(model: Any) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Left children (or `LEAF`), right children and features of every tree in a model, whatever attribute holds it."""
    from sklearn import ensemble, multioutput, tree

    estimators = (
        *(ensemble.RandomForestClassifier, ensemble.RandomForestRegressor),
        *(ensemble.HistGradientBoostingClassifier, ensemble.HistGradientBoostingRegressor),
        *(multioutput.MultiOutputClassifier, multioutput.MultiOutputRegressor),
    )
    if not isinstance(model, estimators):
        raise TypeError(f"a {type(model).__name__} stands where a tree was expected")
    # The class of a tree has no public name.
    of_forest = type(tree.DecisionTreeRegressor().fit([[0.0], [1.0]], [0.0, 1.0]).tree_)
    waiting, seen = [model], set[int]()
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, of_forest):
            yield each.children_left, each.children_right, each.feature
        elif isinstance(each, np.ndarray):
            if "is_leaf" in (each.dtype.names or ()):
                left = np.where(each["is_leaf"] != 0, LEAF, each["left"].astype(np.int64))
                # A split by category would look into further tables; our features are numbers, so there is none.
                feature = np.where(each["is_categorical"] != 0, -1, each["feature_idx"])
                yield left, each["right"].astype(np.int64), feature
            elif each.dtype.hasobject:
                waiting.extend(each.ravel().tolist())
        elif isinstance(each, dict):
            waiting.extend(each.values())
        elif isinstance(each, list | tuple | set):
            waiting.extend(each)
        elif hasattr(each, "__dict__"):
            waiting.extend(vars(each).values())


# XGBoost

_PER_NODE = ("left_children", "right_children", "split_indices", "split_conditions", "split_type", "base_weights")


def check_booster(path: Path, n_features: int) -> None:
    """Refuse anything but trees over ``n_features`` as ``save_model`` writes them, and nodes that point nowhere."""
    try:
        problem = _problem(read_json(path)["learner"], n_features)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        problem = f"no booster: {type(error).__name__} {error}"
    if problem:
        raise BundleError(f"{path} holds {problem}", hint="do not use this folder")


def _problem(learner: Mapping[str, Any], n_features: int) -> str:
    booster, param = learner["gradient_booster"], learner["learner_model_param"]
    if booster["name"] != "gbtree":
        return f"a booster of kind {booster['name']!r}, not gbtree"
    if int(param["num_feature"]) != n_features:
        return f"trees over {param['num_feature']} features, not {n_features}"
    model = booster["model"]
    trees, rounds = model["trees"], np.asarray(model["iteration_indptr"], np.int64)
    outputs = max(int(param["num_class"]), int(param["num_target"]), 1)
    groups = np.asarray(model["tree_info"], np.int64)
    if len(groups) != len(trees) or int(model["gbtree_model_param"]["num_trees"]) != len(trees):
        return "another number of trees than it says"
    if ((groups < 0) | (groups >= outputs)).any() or rounds[0] != 0 or rounds[-1] != len(trees):
        return "trees for outputs that are not there"
    if (np.diff(rounds) < 0).any():
        return "rounds that go back"
    return "" if all(_is_sound(tree, n_features) for tree in trees) else "a tree with nodes that point nowhere"


def _is_sound(tree: Mapping[str, Any], n_features: int) -> bool:
    columns = [np.asarray(tree[name], np.float64) for name in _PER_NODE]
    left, right, feature = (np.asarray(tree[name], np.int64) for name in _PER_NODE[:3])
    n = int(tree["tree_param"]["num_nodes"])
    if n < 1 or any(column.shape != (n,) for column in columns) or any(tree["split_type"]):
        return False
    if int(tree["tree_param"]["size_leaf_vector"]) > 1 or int(tree["tree_param"]["num_feature"]) != n_features:
        return False
    return _points_ahead(left, right, feature, n_features)
