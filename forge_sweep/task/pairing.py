"""The pairing table (which activation goes with which loss for which targets) and the metrics of each task, as data.

Nothing here needs a backend: a wrong pair is refused before Keras is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

TaskKind = Literal["binary", "multiclass", "multilabel", "regression"]
Direction = Literal["maximize", "minimize"]
METRICS: dict[TaskKind, dict[str, Direction]] = {
    "binary": {
        "auc": "maximize",
        "pr_auc": "maximize",
        "accuracy": "maximize",
        "balanced_accuracy": "maximize",
        "f1": "maximize",
        "precision": "maximize",
        "recall": "maximize",
        "mcc": "maximize",
        "log_loss": "minimize",
        "brier": "minimize",
    },
    "multiclass": {
        "auc": "maximize",
        "accuracy": "maximize",
        "balanced_accuracy": "maximize",
        "f1": "maximize",
        "log_loss": "minimize",
        "mcc": "maximize",
    },
    "multilabel": {
        "auc": "maximize",
        "pr_auc": "maximize",
        "f1": "maximize",
        "accuracy": "maximize",
        "hamming_loss": "minimize",
        "log_loss": "minimize",
    },
    "regression": {"rmse": "minimize", "mae": "minimize", "r2": "maximize", "medae": "minimize"},
}
"""Metrics that ``Task.score`` gives, without a split in front. ``loss`` (minimize) is valid for every task besides."""


@dataclass(frozen=True)
class Pairing:
    """An output activation with the loss that is right for it, in Keras' names."""

    activation: str
    loss: str


_PAIRINGS: dict[tuple[TaskKind, bool], tuple[Pairing, ...]] = {
    ("binary", False): (Pairing("sigmoid", "binary_crossentropy"),),
    ("multiclass", False): (Pairing("softmax", "sparse_categorical_crossentropy"),),
    ("multiclass", True): (Pairing("softmax", "categorical_crossentropy"),),
    ("multilabel", False): (Pairing("sigmoid", "binary_crossentropy"),),
    ("regression", False): (Pairing("linear", "mse"), Pairing("linear", "mae")),
}

# Why a head is wrong, for the pairs people write, by (task, what is wrong).
_WRONG_ACTIVATION = {
    ("binary", "softmax"): "softmax over 1 unit is always 1.0, so nothing is learned",
    ("multilabel", "softmax"): "softmax makes the labels share 1.0, but several may hold at once",
    ("multiclass", "sigmoid"): "sigmoid judges each class alone, so the class probabilities do not sum to 1",
    ("regression", "sigmoid"): "sigmoid ends at 0 and 1, while standardised targets have no bounds",
    ("regression", "softmax"): "softmax ends at 0 and 1, while standardised targets have no bounds",
}
_ONE_CLASS_ALONE = "binary_crossentropy judges each class alone and not one class against the others"
_WRONG_LOSS = {
    ("binary", "categorical_crossentropy"): "categorical_crossentropy over 1 unit is always 0",
    ("binary", "sparse_categorical_crossentropy"): "sparse_categorical_crossentropy expects one unit per class, not 1",
    ("multiclass", "categorical_crossentropy"): "categorical_crossentropy expects one-hot columns, not integer labels",
    ("multiclass", "binary_crossentropy"): _ONE_CLASS_ALONE,
    ("one-hot", "sparse_categorical_crossentropy"): "sparse_categorical_crossentropy expects integer labels",
    ("one-hot", "binary_crossentropy"): _ONE_CLASS_ALONE,
    ("multilabel", "categorical_crossentropy"): "categorical_crossentropy expects exactly one label per row",
    ("multilabel", "sparse_categorical_crossentropy"): "that loss expects exactly one label per row",
}


def direction(kind: TaskKind, metric: str) -> Direction:
    """Whether more or less of a metric is better.

    Args:
        kind: the task.
        metric: a metric's name, with or without ``train_``, ``val_`` or ``test_`` in front, such as ``val_auc``.

    Raises:
        ValueError: the task has no such metric; the message lists the ones it has.
    """
    name = metric
    for prefix in ("train_", "val_", "test_"):
        name = name.removeprefix(prefix) if name == metric else name
    if name == "loss":
        return "minimize"
    if name not in METRICS[kind]:
        raise ValueError(f"a {kind} task has no metric {metric!r}; it has {', '.join(METRICS[kind])} and loss")
    return METRICS[kind][name]


def pairings(kind: TaskKind, one_hot: bool = False) -> tuple[Pairing, ...]:
    """The heads that are right for a task; the first is the default. ``one_hot`` matters for multiclass only."""
    return _PAIRINGS[kind, one_hot and kind == "multiclass"]


def check_pairing(kind: TaskKind, one_hot: bool, activation: str, loss: str, from_logits: bool) -> str | None:
    """Whether a head is right for a task; needs no backend.

    Keras itself warns about ``from_logits`` in one direction and on one backend only, and accepts softmax with
    ``binary_crossentropy`` in silence.

    Returns:
        None when it is right, else one sentence: what was asked for, why it is wrong, what is right.
    """
    one_hot = one_hot and kind == "multiclass"
    right = pairings(kind, one_hot)
    why = _wrong_activation(kind, right, activation, from_logits) or _wrong_loss(kind, one_hot, right, loss)
    if why is None:
        return None
    asked = f'activation = "{activation}", loss = "{loss}", from_logits = {str(from_logits).lower()}'
    return f"{asked} does not fit a {_described(kind, one_hot)} task: {why}; use {_advice(kind, right)}"


def _wrong_activation(kind: TaskKind, right: Sequence[Pairing], activation: str, from_logits: bool) -> str | None:
    """Why the activation (with or without from_logits) is wrong, or None."""
    if kind == "regression" and from_logits:
        return "from_logits belongs to cross-entropies and a regression has no logits"
    if from_logits and activation != "linear":
        return f"from_logits = true makes the loss apply its own activation on top of {activation}"
    if from_logits or any(pair.activation == activation for pair in right):
        return None
    if activation == "linear":
        return "the loss would read raw outputs as probabilities although they may lie outside 0..1"
    return _WRONG_ACTIVATION.get((kind, activation), f'"{activation}" is no output activation for it')


def _wrong_loss(kind: TaskKind, one_hot: bool, right: Sequence[Pairing], loss: str) -> str | None:
    """Why the loss is wrong, or None."""
    if any(pair.loss == loss for pair in right):
        return None
    if kind == "regression" and loss.endswith("crossentropy"):
        return f"{loss} expects class probabilities and these targets are quantities"
    return _WRONG_LOSS.get(("one-hot" if one_hot else kind, loss), f'"{loss}" is no loss for it')


def _described(kind: TaskKind, one_hot: bool) -> str:
    """The task in words; says which targets a multiclass task has."""
    return f"{kind} ({'one-hot' if one_hot else 'integer'} targets)" if kind == "multiclass" else kind


def _advice(kind: TaskKind, right: Sequence[Pairing]) -> str:
    """What to write instead, as TOML."""
    losses = " or ".join(f'"{pair.loss}"' for pair in right)
    logits = "" if kind == "regression" else ', or "linear" with from_logits = true'
    return f'loss = {losses} with activation = "{right[0].activation}"{logits}'
