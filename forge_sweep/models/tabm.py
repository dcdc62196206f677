"""TabM: one network that is many, whose members share most weights (Gorishniy, Kotelnikov and Babenko, ICLR 2025).

Written from the paper, https://arxiv.org/abs/2410.24210. TabM-mini gives each member its own view of the inputs and its
own head; all share what is between. With ``full`` members also have vectors of their own around every dense layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forge_sweep.experiment import with_defaults
from forge_sweep.models.compiling import compile_published
from forge_sweep.models.heads import Heads

if TYPE_CHECKING:
    import keras
    import numpy as np

    from forge_sweep.experiment import Params
    from forge_sweep.task import Task


def build(n_features: int, task: Task, params: Params, rows: np.ndarray | None = None) -> keras.Model:
    """A compiled TabM: embedding of numbers -> views -> (dense -> ReLU -> dropout) x depth -> a head of each member.

    Its output in training is (rows, members, units), see `layers.members.MemberOutput`.

    Args:
        n_features: columns of the preprocessed features.
        task: gives units, activation and loss of the heads.
        params: hyperparameters; what they lack has its default; without numbers embedded where
            ``embedding`` is 0.
        rows: preprocessed training rows, (any number, n_features), whose quantiles are the edges of bins.

    Returns:
        A model from (rows, n_features) to (rows, task.units), float32.
    """
    import keras
    from keras import layers

    from forge_sweep.models.layers.members import Averaged, MemberDense, MemberLoss, MemberOutput, Members, uniform
    from forge_sweep.models.layers.numbers import PiecewiseLinear

    params = with_defaults("tabm", params)
    features = keras.Input((n_features,), name="features")
    members = int(params["members"])
    if params["embedding"]:
        numbers = PiecewiseLinear(int(params["embedding"]), int(params["bins"]), name="numbers")
        numbers.adapt(rows)
        hidden = numbers(features)
        hidden = Members(members, "normal", numbers.sources, name="views")(hidden)
    else:
        hidden = Members(members, name="views")(features)
    for number in range(1, int(params["depth"]) + 1):
        width, name = int(params["width"]), f"dense_{number}"
        if params["full"]:
            hidden = MemberDense(width, first=number == 1, name=name)(hidden)
        else:
            begin = uniform(int(hidden.shape[-1]))
            hidden = layers.Dense(width, kernel_initializer=begin, bias_initializer=begin, name=name)(hidden)
        hidden = layers.Activation("relu", name=f"activation_{number}")(hidden)
        if params["dropout"]:
            hidden = layers.Dropout(float(params["dropout"]), name=f"dropout_{number}")(hidden)
    outputs = {}
    heads = Heads.of(task)
    for name, head in heads.items():
        averaged: Averaged = "values"
        if head.task.from_logits:
            averaged = "softmax" if head.task.kind == "multiclass" else "sigmoid"
        of_members: Any = MemberOutput(head.units, head.activation, averaged, dtype="float32", name=head.layer_name)
        outputs[name] = of_members(hidden)
    model = keras.Model(features, heads.join(outputs), name="tabm")
    compile_published(model, task, params, MemberLoss)
    return model


def size(n_features: int, task: Task, params: Params) -> tuple[int, int]:
    """Parameters of the model, and values per row that its layers give; at most, where numbers are embedded.

    A column with few distinct values has fewer bins.
    """
    params = with_defaults("tabm", params)
    members, width, depth = int(params["members"]), int(params["width"]), int(params["depth"])
    embedding = int(params["embedding"])
    inputs = n_features * max(embedding, 1)
    parameters = members * inputs + inputs * (int(params["bins"]) + 2) * bool(embedding)
    values = n_features + inputs * (members + bool(embedding))
    for number in range(depth):
        parameters += inputs * width
        if params["full"]:
            parameters += members * (2 * width + (inputs if number else 0))
        else:
            parameters += width
        inputs = width
    layers = 2 + bool(params["dropout"])
    values += members * width * layers * depth + task.units
    return parameters + members * task.units * (inputs + 1), values + (task.units if len(task.heads) > 1 else 0)
