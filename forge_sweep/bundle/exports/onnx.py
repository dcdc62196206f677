"""ONNX: preprocessing as ONNX's own operators, before the network as tf2onnx converts it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forge_sweep.bundle.exports.graph import FEATURES, affine
from forge_sweep.bundle.exports.inputs import Input
from forge_sweep.preprocessing import Preprocessor

if TYPE_CHECKING:
    import keras

OPSET = 18
ML_OPSET = 2
NUMBERS = "float64"


def write(model: keras.Model, path: Path) -> None:
    """Convert a model from features to scores."""
    (features,) = model.inputs
    model({FEATURES: np.zeros((1, features.shape[1]), np.float32)})  # Keras wants to have seen an input
    model.export(str(path), format="onnx", opset_version=OPSET, verbose=False)


def prepend(path: Path, preprocessor: Preprocessor, inputs: tuple[Input, ...]) -> None:
    """Put the preprocessing in front of a model from features to scores, in place."""
    import onnx
    from onnx import compose

    network = onnx.load(path)
    graph = Graph(inputs)
    graph.build(preprocessor)
    before = graph.model(network.ir_version, [*network.opset_import])
    prefixed = compose.add_prefix(before, "prepare/", rename_inputs=False, rename_outputs=False)
    onnx.save(compose.merge_models(prefixed, network, [(Graph.OUTPUT, FEATURES)]), path)


class Graph:
    """An ONNX graph from raw columns to features, built node by node.

    Args:
        inputs: the raw columns.
    """

    OUTPUT = "prepared_features"

    def __init__(self, inputs: tuple[Input, ...]) -> None:
        self.inputs = inputs
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._count = 0

    def add(self, kind: str, *arguments: str, domain: str = "", output: str = "", **attributes: Any) -> str:
        """Add a node; returns the name of its output."""
        from onnx import helper

        self._count += 1
        output = output or f"value_{self._count}"
        self.nodes.append(helper.make_node(kind, list(arguments), [output], domain=domain, **attributes))
        return output

    def constant(self, values: Any, dtype: str) -> str:
        """Add an array; returns its name."""
        from onnx import numpy_helper

        self._count += 1
        name = f"constant_{self._count}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def build(self, preprocessor: Preprocessor) -> None:
        """All nodes, up to the features."""
        from onnx import TensorProto

        parts = [*self._numbers(preprocessor), *self._categories()]
        cast = [self.add("Cast", part, to=TensorProto.FLOAT) for part in parts]
        self.add("Concat", *cast, axis=1, output=self.OUTPUT)

    def _numbers(self, preprocessor: Preprocessor) -> list[str]:
        ordered = [each for kind in ("numeric", "boolean") for each in self.inputs if each.kind == kind]
        if not ordered:
            return []
        center, scale = affine(preprocessor)
        rest = len(ordered) - len(center)
        raw = self.add("Concat", *(each.name for each in ordered), axis=1)
        missing = self.add("IsNaN", raw)
        filled = self.add("Where", missing, self.constant(preprocessor.fills[None, :], NUMBERS), raw)
        centered = self.add("Sub", filled, self.constant([[*center, *np.zeros(rest)]], NUMBERS))
        scaled = self.add("Div", centered, self.constant([[*scale, *np.ones(rest)]], NUMBERS))
        indicated = [position for position, each in enumerate(ordered) if each.missing]
        if not indicated:
            return [scaled]
        return [scaled, self.add("Gather", missing, self.constant(indicated, "int64"), axis=1)]

    def _categories(self) -> list[str]:
        blocks = []
        for each in self.inputs:
            known, outputs = each.codes
            if each.is_text and outputs:
                code = self.add(
                    "LabelEncoder",
                    each.name,
                    domain="ai.onnx.ml",
                    keys_strings=known,
                    values_int64s=list(range(1, len(known) + 1)),
                    default_int64=0,
                )
                blocks.append(self.add("Equal", code, self.constant([outputs], "int64")))
        return blocks

    def model(self, ir_version: int, opsets: list[Any]) -> Any:
        """The graph as a model, with the versions of the one it goes before."""
        from onnx import TensorProto, helper

        kinds = {True: TensorProto.STRING, False: TensorProto.DOUBLE}
        inputs = [helper.make_tensor_value_info(e.name, kinds[e.is_text], ["rows", 1]) for e in self.inputs]
        output = helper.make_tensor_value_info(self.OUTPUT, TensorProto.FLOAT, ["rows", None])
        graph = helper.make_graph(self.nodes, "prepare", inputs, [output], self.constants)
        if all(opset.domain != "ai.onnx.ml" for opset in opsets):
            opsets = [*opsets, helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
        return helper.make_model(graph, ir_version=ir_version, opset_imports=opsets)
