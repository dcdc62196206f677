"""XGBoost's own JSON, looked at before XGBoost reads it: it follows indices that a file gives it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from forge_sweep.bundle.files import read_json
from forge_sweep.errors import BundleError

LEAF = -1
PER_NODE = ("left_children", "right_children", "split_indices", "split_conditions", "split_type", "base_weights")


def check(path: Path, n_features: int) -> None:
    """Refuse a booster of another kind than trees, or one with nodes that point nowhere.

    Args:
        path: what ``save_model`` wrote, as JSON.
        n_features: columns of the arrays that the model will be given.

    Raises:
        BundleError: as said, or the file is not what ``save_model`` writes.
    """
    try:
        problem = _problem(read_json(path)["learner"], n_features)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        problem = f"no booster: {type(error).__name__} {error}"
    if problem:
        raise BundleError(f"{path} holds {problem}", hint="do not use this folder")


def _problem(learner: Mapping[str, Any], n_features: int) -> str:
    """What is wrong with a booster; "" where nothing is."""
    booster = learner["gradient_booster"]
    if booster["name"] != "gbtree":
        return f"a booster of kind {booster['name']!r}, not gbtree"
    if int(learner["learner_model_param"]["num_feature"]) != n_features:
        return f"trees over {learner['learner_model_param']['num_feature']} features, not {n_features}"
    model = booster["model"]
    trees, rounds = model["trees"], np.asarray(model["iteration_indptr"], np.int64)
    outputs = _outputs(learner["learner_model_param"])
    groups = np.asarray(model["tree_info"], np.int64)
    if len(groups) != len(trees) or int(model["gbtree_model_param"]["num_trees"]) != len(trees):
        return "another number of trees than it says"
    if ((groups < 0) | (groups >= outputs)).any() or rounds[0] != 0 or rounds[-1] != len(trees):
        return "trees for outputs that are not there"
    if (np.diff(rounds) < 0).any():
        return "rounds that go back"
    return next(("a tree with nodes that point nowhere" for tree in trees if not _is_sound(tree, n_features)), "")


def _outputs(param: Mapping[str, str]) -> int:
    return max(int(param["num_class"]), int(param["num_target"]), 1)


def _is_sound(tree: Mapping[str, Any], n_features: int) -> bool:
    """Whether every inner node has both its children further on, and a feature that is there."""
    columns = [np.asarray(tree[name], np.float64) for name in PER_NODE]
    left, right, feature = (np.asarray(tree[name], np.int64) for name in PER_NODE[:3])
    n = int(tree["tree_param"]["num_nodes"])
    if n < 1 or any(column.shape != (n,) for column in columns) or any(tree["split_type"]):
        return False
    if int(tree["tree_param"]["size_leaf_vector"]) > 1 or int(tree["tree_param"]["num_feature"]) != n_features:
        return False
    inner = np.flatnonzero(left != LEAF)
    children = np.stack([left[inner], right[inner]])
    ahead = (children > inner) & (children < n)
    return bool(ahead.all() and ((feature[inner] >= 0) & (feature[inner] < n_features)).all())
