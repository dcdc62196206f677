"""ONNX: preprocessing as ONNX's own operators, before the network as tf2onnx converts it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from forge_sweep.bundle import Bundle
from forge_sweep.exports.base import SCORES, Format, Input, Numbers
from forge_sweep.exports.keras import model_of
from forge_sweep.preprocessing import FEATURES, Codes, Preprocessor, Tensor

OPSET = 18
ML_OPSET = 2
PREPARED = "prepared_{}"
"""Output of the preprocessing, by the input of the network that it becomes."""


def _write(bundle: Bundle, inputs: tuple[Input, ...], path: Path) -> None:
    import onnx
    from onnx import compose

    numbers = Numbers.of(bundle.preprocessor, inputs) if inputs else None  # refused before anything is converted
    feed = bundle.preprocessor.feed
    model = model_of(bundle, (), "float64")
    model({name: np.zeros((1, *each.shape), each.dtype) for name, each in feed.spec.items()})  # Keras wants to see it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras and tf2onnx each bring their own, about NumPy
        model.export(str(path), format="onnx", opset_version=OPSET, verbose=False)
    if numbers is not None:
        network = onnx.load(path)
        before = _preprocessing(bundle.preprocessor, inputs, numbers, network.ir_version, [*network.opset_import])
        prefixed = compose.add_prefix(before, "prepare/", rename_inputs=False, rename_outputs=False)
        onnx.save(compose.merge_models(prefixed, network, [(PREPARED.format(name), name) for name in feed.spec]), path)


def _run(path: Path, fed: Mapping[str, np.ndarray]) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run([SCORES], dict(fed))[0])


def _preprocessing(
    preprocessor: Preprocessor, inputs: tuple[Input, ...], numbers: Numbers, ir_version: int, opsets: list[Any]
) -> Any:
    """An ONNX model from raw columns to the inputs of the network."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants, parts = list[Any](), list[Any](), list[str]()

    def add(kind: str, *arguments: str, domain: str = "", output: str = "", **attributes: Any) -> str:
        output = output or f"value_{len(nodes)}"
        nodes.append(helper.make_node(kind, list(arguments), [output], domain=domain, **attributes))
        return output

    def constant(values: Any, dtype: str) -> str:
        name = f"constant_{len(constants)}"
        constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    if numbers.inputs:
        fills, center, scale = (constant([each], "float64") for each in (numbers.fills, numbers.center, numbers.scale))
        raw = add("Concat", *(each.name for each in numbers.inputs), axis=1)
        missing = add("IsNaN", raw)
        scaled = add("Div", add("Sub", add("Where", missing, fills, raw), center), scale)
        if numbers.bend.any():
            bend, one = constant([numbers.bend], "float64"), constant(1.0, "float64")
            scaled = add("Div", scaled, add("Sqrt", add("Add", one, add("Mul", bend, add("Mul", scaled, scaled)))))
        parts.append(scaled)
        if numbers.indicated:
            parts.append(add("Gather", missing, constant(numbers.indicated, "int64"), axis=1))
    coded = dict[str, str]()
    for each in inputs:
        known, outputs = each.codes
        if each.is_text and (outputs or each.column in preprocessor.coded):
            codes: dict[str, Any] = {
                "keys_strings": known,
                "values_int64s": list(range(1, len(known) + 1)),
                "default_int64": 0,
            }
            code = add("LabelEncoder", each.name, domain="ai.onnx.ml", **codes)
            if each.column in preprocessor.coded:
                coded[each.column] = code
            else:
                parts.append(add("Equal", code, constant([outputs], "int64")))

    feed = preprocessor.feed
    whole = "" if feed.parts else PREPARED.format(FEATURES)
    if parts:
        whole = add("Concat", *(add("Cast", part, to=TensorProto.FLOAT) for part in parts), axis=1, output=whole)
    for name, part in feed.parts.items():
        if isinstance(part, Codes):
            shifted = add("Concat", *(coded[column] for column in feed.spec[name].columns), axis=1)
            shifted = add("Add", shifted, constant([part.starts], "int64"))
            add("Cast", shifted, to=TensorProto.INT32, output=PREPARED.format(name))
        elif isinstance(part, Tensor):
            (taken_by,) = (each.name for each in inputs if each.column == part.column)
            add(
                "Mul",
                add("Cast", taken_by, to=TensorProto.FLOAT),
                constant(part.scale, "float32"),
                output=PREPARED.format(name),
            )
        else:
            add("Gather", whole, constant(part.outputs, "int64"), axis=1, output=PREPARED.format(name))

    types = {
        "string": TensorProto.STRING,
        "float64": TensorProto.DOUBLE,
        "float32": TensorProto.FLOAT,
        "int32": TensorProto.INT32,
        "uint8": TensorProto.UINT8,
    }
    taken = [
        helper.make_tensor_value_info(each.name, types[each.dtype("float64")], ["rows", *each.shape]) for each in inputs
    ]
    made = [
        helper.make_tensor_value_info(PREPARED.format(name), types[each.dtype], ["rows", *[None] * len(each.shape)])
        for name, each in feed.spec.items()
    ]
    graph = helper.make_graph(nodes, "prepare", taken, made, constants)
    if all(opset.domain != "ai.onnx.ml" for opset in opsets):
        opsets = [*opsets, helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    return helper.make_model(graph, ir_version=ir_version, opset_imports=opsets)


ONNX = Format(_write, _run, tolerance=1e-4, packages=("tf2onnx", "onnx", "onnxruntime"))
