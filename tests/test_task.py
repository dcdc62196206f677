"""Targets to arrays, outputs to scores, scores to metrics; and the pairing table in both directions."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge_sweep.errors import DataError, InputError
from forge_sweep.task import METRICS, Pairing, Task, TaskKind, check_pairing, direction, pairings

RIGHT = [
    ("binary", False, "sigmoid", "binary_crossentropy"),
    ("multiclass", False, "softmax", "sparse_categorical_crossentropy"),
    ("multiclass", True, "softmax", "categorical_crossentropy"),
    ("multilabel", False, "sigmoid", "binary_crossentropy"),
    ("regression", False, "linear", "mse"),
    ("regression", False, "linear", "mae"),
]
ACTIVATIONS = ["linear", "sigmoid", "softmax", "relu"]
LOSSES = ["binary_crossentropy", "categorical_crossentropy", "sparse_categorical_crossentropy", "mse", "mae", "hinge"]
TASKS: list[tuple[TaskKind, bool]] = [
    ("binary", False),
    ("multiclass", False),
    ("multiclass", True),
    ("multilabel", False),
    ("regression", False),
]


def frame(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame(columns)


# --- the pairing table


def test_exactly_the_pairing_table_is_accepted_without_logits() -> None:
    accepted = [
        (kind, one_hot, activation, loss)
        for (kind, one_hot), activation, loss in itertools.product(TASKS, ACTIVATIONS, LOSSES)
        if check_pairing(kind, one_hot, activation, loss, from_logits=False) is None
    ]
    assert accepted == RIGHT


def test_with_logits_exactly_the_linear_heads_of_classifications_are_accepted() -> None:
    accepted = [
        (kind, one_hot, activation, loss)
        for (kind, one_hot), activation, loss in itertools.product(TASKS, ACTIVATIONS, LOSSES)
        if check_pairing(kind, one_hot, activation, loss, from_logits=True) is None
    ]
    assert accepted == [(kind, one_hot, "linear", loss) for kind, one_hot, _, loss in RIGHT if kind != "regression"]


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (
            ("binary", False, "softmax", "binary_crossentropy", False),
            ["1 unit is always 1.0", 'activation = "sigmoid"'],
        ),
        (("binary", False, "sigmoid", "categorical_crossentropy", False), ['loss = "binary_crossentropy"']),
        (("binary", False, "sigmoid", "mse", False), ['"mse" is no loss', '"binary_crossentropy"']),
        (("binary", False, "linear", "binary_crossentropy", False), ["raw outputs", "from_logits = true"]),
        (("binary", False, "sigmoid", "binary_crossentropy", True), ["on top of sigmoid", 'activation = "sigmoid"']),
        (("multiclass", False, "softmax", "categorical_crossentropy", False), ["integer", '"sparse_categorical']),
        (("multiclass", True, "softmax", "sparse_categorical_crossentropy", False), ["one-hot", '= "categorical_']),
        (("multiclass", False, "sigmoid", "sparse_categorical_crossentropy", False), ["sum to 1", '"softmax"']),
        (("multilabel", False, "softmax", "binary_crossentropy", False), ["several may hold", '"sigmoid"']),
        (("regression", False, "sigmoid", "mse", False), ["0 and 1", 'activation = "linear"']),
        (("regression", False, "linear", "binary_crossentropy", False), ["quantities", '"mse" or "mae"']),
        (("regression", False, "linear", "mse", True), ["no logits", '"mse" or "mae"']),
    ],
)
def test_a_wrong_head_is_refused_with_the_reason_and_what_is_right(head: Any, words: list[str]) -> None:
    sentence = check_pairing(*head)
    assert sentence is not None
    assert all(word in sentence for word in words), sentence
    assert "\n" not in sentence


def test_the_first_pairing_is_the_default_head() -> None:
    assert pairings("regression", False) == (Pairing("linear", "mse"), Pairing("linear", "mae"))
    task = Task.learn("regression", frame(y=[1.0, 2.0]))
    assert (task.activation, task.loss, task.from_logits) == ("linear", "mse", False)


def test_logits_make_the_default_activation_linear() -> None:
    assert Task.learn("binary", frame(y=[0, 1, 0, 1]), from_logits=True).activation == "linear"


def test_a_head_override_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="softmax over 1 unit"):
        Task.learn("binary", frame(y=[0, 1, 0, 1]), activation="softmax")


# --- metrics: names and direction


@pytest.mark.parametrize("kind", METRICS)
def test_every_metric_has_a_direction_with_and_without_its_split(kind: TaskKind) -> None:
    for name, better in METRICS[kind].items():
        assert direction(kind, name) == direction(kind, f"val_{name}") == direction(kind, f"test_{name}") == better
    assert direction(kind, "val_loss") == "minimize"


@pytest.mark.parametrize("name", ["val_auc", "val_val_rmse", "val_", "accuracy"])
def test_a_metric_of_another_task_is_refused_with_the_valid_names(name: str) -> None:
    with pytest.raises(ValueError, match="rmse, mae, r2, medae and loss"):
        direction("regression", name)


# --- learning


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([1, 0, 0, 1], (0, 1)),
        ([True, False, True, False], (False, True)),
        (["no", "yes", "no", "yes"], ("no", "yes")),
        ([2.5, -1.0, 2.5, -1.0], (-1.0, 2.5)),
    ],
)
def test_the_greater_label_is_positive_by_default_and_labels_keep_their_type(labels: list[Any], classes: Any) -> None:
    task = Task.learn("binary", frame(y=labels))
    assert task.classes == classes
    assert [type(label) for label in task.classes] == [type(label) for label in classes]
    assert task.units == 1


def test_the_positive_label_can_be_chosen() -> None:
    task = Task.learn("binary", frame(y=["bad", "good", "bad", "good"]), positive="bad")
    assert task.classes == ("good", "bad")
    assert task.encode(frame(y=["bad", "good"])).tolist() == [[1.0], [0.0]]


def test_a_positive_label_that_is_none_of_the_two_is_refused() -> None:
    with pytest.raises(DataError, match="positive = 'ugly' is not a label of target 'y', which has 'bad', 'good'"):
        Task.learn("binary", frame(y=["bad", "good", "bad", "good"]), positive="ugly")


@pytest.mark.parametrize(
    ("kind", "targets", "words"),
    [
        ("binary", frame(y=[0.0, 1.0, None, 1.0]), ["'y'", "missing or infinite in 1 of 4 rows (rows 2)"]),
        ("regression", frame(y=[0.0, 1.0, math.inf]), ["'y'", "rows 2"]),
        ("multiclass", frame(y=["a", "b", None]), ["'y'", "rows 2"]),
        ("binary", frame(y=[0, 1, 2, 0, 1, 2]), ["'y' has 3 distinct values", "exactly 2", "multiclass"]),
        ("binary", frame(y=[1, 1, 1]), ["'y' has 1 distinct values"]),
        ("multiclass", frame(y=["a", "a"]), ["'y' has 1 distinct values", "at least 2"]),
        ("multiclass", frame(y=["a", "a", "b", "b", "c"]), ["1 classes with 1 train row ('c')"]),
        ("regression", frame(y=["a", "b"]), ["'y' is", "expected numbers"]),
        ("regression", frame(y=[3.0, 3.0, 3.0]), ["'y' has standard deviation 0"]),
        ("multilabel", frame(a=[0, 1, 0, 1], b=[0, 2, 1, 1]), ["'b' holds 2.0 (rows 1)"]),
        ("multilabel", frame(a=[0, 1, 0, 1], b=[0, 0, 0, 1]), ["'b' is 1 in 1 of 4"]),
        ("multiclass", frame(a=[1, 1, 0, 0], b=[0, 1, 1, 1]), ["a, b", "exactly one 1 in 1 rows (rows 1)"]),
    ],
)
def test_targets_that_cannot_be_learned_are_refused_by_column_and_row(
    kind: TaskKind, targets: pd.DataFrame, words: list[str]
) -> None:
    with pytest.raises(DataError) as caught:
        Task.learn(kind, targets)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_regression_learns_mean_and_population_deviation_of_train() -> None:
    task = Task.learn("regression", frame(y=[1.0, 3.0], z=[10, 30]))
    assert task.mean == (2.0, 20.0)
    assert task.std == (1.0, 10.0)


# --- encoding


@pytest.mark.parametrize(
    ("kind", "targets", "shape", "dtype"),
    [
        ("binary", frame(y=[0, 1, 0, 1]), (4, 1), np.float32),
        ("multiclass", frame(y=list("abab")), (4,), np.int32),
        ("multiclass", frame(a=[1, 0, 1, 0], b=[0, 1, 0, 1]), (4, 2), np.float32),
        ("multilabel", frame(a=[True, False, True, False], b=[1, 1, 0, 0]), (4, 2), np.float32),
        ("regression", frame(y=[0, 1, 0, 1]), (4, 1), np.float32),
    ],
)
def test_encoded_targets_have_the_shape_the_loss_takes(
    kind: TaskKind, targets: pd.DataFrame, shape: tuple[int, ...], dtype: type
) -> None:
    encoded = Task.learn(kind, targets).encode(targets)
    assert encoded.shape == shape
    assert encoded.dtype == np.dtype(dtype)


def test_a_label_train_does_not_have_is_refused_by_column_and_source_row() -> None:
    task = Task.learn("multiclass", frame(y=list("aabb")))
    with pytest.raises(DataError, match=r"'y' holds 'c' \(rows 40\), which train does not have; train has 'a', 'b'"):
        task.encode(pd.DataFrame({"y": ["a", "c"]}, index=[20, 40]))


def test_a_missing_target_column_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="target column 'y' is missing"):
        Task.learn("binary", frame(y=[0, 1, 0, 1])).encode(frame(z=[1]))


def test_the_order_of_target_columns_does_not_matter() -> None:
    targets = frame(a=[0, 1, 0, 1], b=[1, 1, 0, 0])
    task = Task.learn("multilabel", targets)
    assert np.array_equal(task.encode(targets[["b", "a"]]), task.encode(targets))


def test_a_label_matches_an_equal_number_of_another_type() -> None:
    task = Task.learn("multiclass", frame(y=[0, 1, 2] * 2))
    assert task.encode(frame(y=[2.0, 0.0])).tolist() == [2, 0]


labels = st.one_of(
    st.lists(st.integers(-(2**40), 2**40), min_size=2, max_size=6, unique=True),
    st.lists(st.text(min_size=1, max_size=5), min_size=2, max_size=6, unique=True),
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=6, unique=True),
    st.just([True, False]),
)


@settings(max_examples=50, deadline=None)  # time says nothing on a busy machine
@given(labels, st.randoms(use_true_random=False))
def test_encoding_and_predicting_gives_the_labels_back(classes: list[Any], random: Any) -> None:
    column = classes * 3
    random.shuffle(column)
    for kind in ("binary", "multiclass"):
        if kind == "binary" and len(classes) != 2:
            continue
        task = Task.learn(kind, frame(y=column))
        encoded = task.encode(frame(y=column))
        scores = encoded if kind == "binary" else np.eye(task.units)[encoded]
        assert task.predictions(task.to_scores(scores))["label"].tolist() == column


@settings(max_examples=50, deadline=None)
@given(labels)
def test_a_task_survives_json_with_the_type_of_its_labels(classes: list[Any]) -> None:
    task = Task.learn("multiclass", frame(y=classes * 2))
    again = Task.from_dict(json.loads(json.dumps(task.to_dict())))
    assert again == task
    assert [type(label) for label in again.classes] == [type(label) for label in task.classes]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=30).filter(lambda values: np.std(values) > 1e-3))
def test_a_regression_round_trips_through_standardised_units(values: list[float]) -> None:
    task = Task.learn("regression", frame(y=values))
    task = Task.from_dict(json.loads(json.dumps(task.to_dict())))
    back = task.to_scores(task.encode(frame(y=values)))
    assert np.allclose(back[:, 0], values, rtol=1e-6, atol=1e-5 * task.std[0] + 1e-6 * abs(task.mean[0]))


# --- scores


def test_logits_become_probabilities_and_extreme_ones_do_not_overflow() -> None:
    binary = Task.learn("binary", frame(y=[0, 1, 0, 1]), from_logits=True)
    assert binary.to_scores(np.array([[0.0], [-1e4], [1e4]], np.float32)).tolist() == [[0.5], [0.0], [1.0]]
    multi = Task.learn("multiclass", frame(y=list("aabbcc")), from_logits=True)
    scores = multi.to_scores(np.array([[1e4, 0, -1e4], [0, 0, 0]], np.float32))
    assert np.allclose(scores, np.array([[1, 0, 0], [1 / 3] * 3]))


def test_class_probabilities_of_a_float32_network_sum_to_one_in_float64() -> None:
    task = Task.learn("multiclass", frame(y=list("aabbcc")))
    scores = task.to_scores(np.random.default_rng(0).dirichlet(np.ones(3), 50).astype(np.float32))
    assert np.allclose(scores.sum(axis=1), 1, rtol=1e-15)


def test_predictions_name_labels_and_probabilities() -> None:
    binary = Task.learn("binary", frame(y=["no", "yes"] * 2))
    shown = binary.predictions(np.array([[0.4], [0.6]]), 0.35)
    assert shown.to_dict("list") == {"probability": [0.4, 0.6], "label": ["yes", "yes"]}

    multi = Task.learn("multiclass", frame(y=[3, 5, 9] * 2))
    shown = multi.predictions(np.array([[0.2, 0.3, 0.5]]), 0.5)
    assert shown.to_dict("list") == {
        "label": [9],
        "probability_3": [0.2],
        "probability_5": [0.3],
        "probability_9": [0.5],
    }

    labels = Task.learn("multilabel", frame(a=[0, 1, 0, 1], b=[0, 0, 1, 1]))
    shown = labels.predictions(np.array([[0.2, 0.5]]), 0.5)
    assert shown.to_dict("list") == {"probability_a": [0.2], "probability_b": [0.5], "a": [0], "b": [1]}

    quantity = Task.learn("regression", frame(price=[1.0, 2.0]))
    assert quantity.predictions(np.array([[7.5]]), 0.5).to_dict("list") == {"price": [7.5]}
