"""The ``.keras`` archive: looked at by a closed list before Keras reads it.

Keras' own ``safe_mode`` keeps Lambda layers out. Beyond it, a configuration may name layers that read files or wrap
other code, and HDF5 can point to other files; all of these are refused here.
"""

from __future__ import annotations

import importlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_sweep.bundle import archives
from forge_sweep.errors import BundleError

if TYPE_CHECKING:
    import keras

ENTRIES = r"metadata\.json|config\.json|model\.weights\.h5"

LAYERS = frozenset(
    {
        *("InputLayer", "Dense", "EinsumDense", "Embedding", "Identity", "Masking"),
        *("Activation", "ReLU", "LeakyReLU", "PReLU", "ELU", "Softmax"),
        *("BatchNormalization", "LayerNormalization", "GroupNormalization", "UnitNormalization", "RMSNormalization"),
        *("Dropout", "AlphaDropout", "GaussianDropout", "GaussianNoise", "SpatialDropout1D", "SpatialDropout2D"),
        *("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate", "Dot"),
        *("Flatten", "Reshape", "Permute", "RepeatVector", "CategoryEncoding", "Normalization", "Rescaling"),
        *("Conv1D", "Conv2D", "SeparableConv1D", "SeparableConv2D", "DepthwiseConv1D", "DepthwiseConv2D"),
        *("MaxPooling1D", "MaxPooling2D", "AveragePooling1D", "AveragePooling2D", "ZeroPadding1D", "ZeroPadding2D"),
        *("GlobalMaxPooling1D", "GlobalMaxPooling2D", "GlobalAveragePooling1D", "GlobalAveragePooling2D"),
        *("MultiHeadAttention", "Attention", "LSTM", "GRU", "SimpleRNN"),
    }
)
"""Stock layers that compute and do nothing else: none takes code, a file or another model."""

MODELS = {
    ("keras", "Sequential"),
    ("keras", "Functional"),
    ("keras.src.models.functional", "Functional"),
    ("keras.src.models.sequential", "Sequential"),
}
MARKS = {(None, "__keras_tensor__"), (None, "__tuple__"), (None, "__slice__"), ("builtins", "__keras_tensor__")}
"""Ways in which Keras writes plain values."""

OPERATIONS = frozenset(
    {
        *(
            ("keras.src.ops.numpy", name)
            for name in ("Add", "Equal", "Multiply", "NotEqual", "Subtract", "Sum", "Take")
        ),
        *(("keras.src.ops.numpy", name) for name in ("TrueDivide", "Where")),
        *(("keras.src.ops.core", "Cast"), ("keras.src.ops.nn", "Sigmoid"), ("keras.src.ops.nn", "Softmax")),
        (None, "__numpy__"),
    }
)
"""What `exports.graph` writes of preprocessing and task, beside layers of the list and lookups."""

BASES = {
    "keras.initializers": "keras.initializers.Initializer",
    "keras.regularizers": "keras.regularizers.Regularizer",
    "keras.constraints": "keras.constraints.Constraint",
    "keras.optimizers": "keras.optimizers.Optimizer",
    "keras.optimizers.schedules": "keras.optimizers.schedules.LearningRateSchedule",
    "keras.losses": "keras.losses.Loss",
    "keras.metrics": "keras.metrics.Metric",
    "keras": "keras.dtype_policies.DTypePolicy",
    "keras.dtype_policies": "keras.dtype_policies.DTypePolicy",
}
"""Of these modules, the classes below a base may be named."""

HINT = "do not use this folder"


def load(path: Path, metadata: Mapping[str, Any], *, trust: bool = False) -> keras.Model:
    """Read a network, without its loss and optimizer.

    Args:
        path: the archive.
        metadata: of the bundle; names the experiment's builder.
        trust: also take custom objects, from the module of the experiment's own builder, which is then imported.

    Raises:
        BundleError: the archive is none, or names what is not on the list.
    """
    custom = check(path, metadata, trust=trust)
    import keras

    return keras.saving.load_model(path, custom_objects=custom, compile=False, safe_mode=True)


def check(path: Path, metadata: Mapping[str, Any], *, trust: bool = False, raw: bool = False) -> dict[str, Any]:
    """Refuse a network that could do anything else than compute; nothing is built.

    Args:
        path: as `load`.
        metadata: as `load`.
        trust: as `load`.
        raw: also take preprocessing and task, as `exports.graph` writes them.

    Returns:
        Its custom objects by name.

    Raises:
        BundleError: as `load`.
    """
    archives.check_zip(path, ENTRIES)
    with zipfile.ZipFile(path) as archive:
        config, weights = json.loads(archive.read("config.json")), archive.read("model.weights.h5")
    check_weights(path, weights)
    foreign = [node for node in named(config) if not (_is_stock(*_name(node)) or (raw and _prepares(node)))]
    return _custom(path, foreign, metadata, trust)


def named(config: Any) -> Iterator[Mapping[str, Any]]:
    """Every part of a configuration that names a class or a function."""
    waiting = [config]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            if "class_name" in node:
                yield node
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)


def _name(node: Mapping[str, Any]) -> tuple[str | None, str]:
    """Module and class, or function, that a part names."""
    name = node["config"] if node["class_name"] == "function" else node["class_name"]
    return node.get("module"), str(name)


def _is_stock(module: str | None, name: str) -> bool:
    """Whether a class is on the list."""
    import keras

    if (module, name) in MARKS | MODELS:
        return True
    if module == "keras.layers":
        return name in LAYERS
    if module not in BASES:
        return False
    *path, base = BASES[module].split(".")
    found = getattr(importlib.import_module(module), name, None)
    known = getattr(importlib.import_module(".".join(path)), base)
    return isinstance(found, type) and issubclass(found, known) and not issubclass(found, keras.Layer)


def _prepares(node: Mapping[str, Any]) -> bool:
    """Whether a part belongs to preprocessing or task: an operation of the list, or a lookup of texts that it holds.

    A lookup whose vocabulary is a text would read the file of that name.
    """
    if _name(node) != ("keras.layers", "StringLookup"):
        return _name(node) in OPERATIONS
    config = node["config"]
    texts = config.get("vocabulary") if isinstance(config, Mapping) else None
    return isinstance(texts, list) and all(isinstance(text, str) for text in texts)


def _custom(path: Path, foreign: list[Mapping[str, Any]], metadata: Mapping[str, Any], trust: bool) -> dict[str, Any]:
    """The custom objects of a network, by the names under which Keras asks for them.

    Raises:
        BundleError: they are not trusted, or not in the experiment's own module.
    """
    if not foreign:
        return {}
    listed = ", ".join(sorted({".".join(filter(None, _name(node))) for node in foreign}))
    own = own_module(metadata)
    outside = [node for node in foreign if own is None or node.get("module") != own]
    if outside or not trust:
        fix = f"load it with trust (--trust), which imports {own}" if own is not None and not outside else HINT
        raise BundleError(f"{path} holds objects that are not trusted: {listed}", hint=fix)
    assert own is not None
    module = importlib.import_module(own)
    found: dict[str, Any] = {}
    for node in foreign:
        _, name = _name(node)
        if not hasattr(module, name):
            raise BundleError(
                f"{path} needs {own}.{name}, which is not there", hint=f"install the {own} it was made by"
            )
        found |= dict.fromkeys(filter(None, (name, node.get("registered_name"))), getattr(module, name))
    return found


def own_module(metadata: Mapping[str, Any]) -> str | None:
    """The module of the experiment's builder ``package.module:function``; None for a stock one."""
    try:
        module, colon, _ = str(metadata["experiment"]["model"]["builder"]).partition(":")
    except (KeyError, TypeError):
        return None
    return module if colon else None


def check_weights(path: Path, content: bytes) -> None:
    """Refuse weights that lie outside the file, or claim more room than it has.

    Raises:
        BundleError: a link, a virtual or external array, an array with filters or of another type than numbers, one
            that is larger than the file.
    """
    import h5py

    with h5py.File(io.BytesIO(content), "r") as file:
        found = list(_outside(file, len(content), set()))
    if found:
        raise BundleError(f"{path}: model.weights.h5 has {', '.join(found)}", hint=HINT)


def _outside(group: Any, size: int, seen: set[int]) -> Iterator[str]:
    """What is wrong with a group and all that is below it."""
    import h5py

    for name in group:
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            yield f"a link at {name!r}"
            continue
        child = group[name]
        address = h5py.h5o.get_info(child.id).addr
        if address in seen:
            yield f"the same object twice at {name!r}"
            continue
        seen.add(address)
        if isinstance(child, h5py.Group):
            yield from _outside(child, size, seen)
        elif not isinstance(child, h5py.Dataset) or not _is_plain(child, size):
            yield f"no plain array at {child.name!r}"


def _is_plain(dataset: Any, size: int) -> bool:
    """Whether an array of numbers stands in the file itself as it is."""
    kept_here = not dataset.is_virtual and not dataset.external and dataset.compression is None
    return bool(kept_here and dataset.dtype.kind in "biuf" and dataset.id.get_storage_size() == dataset.nbytes <= size)
