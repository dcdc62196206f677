"""The ``.keras`` archive: checked against a closed list before Keras reads it.

Keras' own ``safe_mode`` keeps Lambda layers out. Beyond it, a configuration may name layers that read files or wrap
other code, and HDF5 can point to other files; all of these are refused here.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import threading
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_sweep.bundle import security
from forge_sweep.errors import BundleError, NotTrusted, TrialFailed
from forge_sweep.experiment import Code
from forge_sweep.experiment.importing import module_of, package_of

if TYPE_CHECKING:
    import keras

ENTRIES = r"metadata\.json|config\.json|model\.weights\.h5"

# Stock layers that compute and do nothing else: none takes code, a file or another model.
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
        *("Conv1DTranspose", "Conv2DTranspose", "UpSampling1D", "UpSampling2D", "Cropping1D", "Cropping2D"),
        *("CenterCrop", "Resizing", "RandomCrop", "RandomFlip", "RandomRotation", "RandomTranslation", "RandomZoom"),
        *("RandomBrightness", "RandomContrast", "RandomErasing", "RandomHue", "RandomSaturation", "RandomShear"),
        *("MultiHeadAttention", "Attention", "LSTM", "GRU", "SimpleRNN"),
    }
)
# Our own layers compute and do nothing else, and refuse sizes that only a huge file could stand for. The loss of
# members is written with the network, and never read.
OWN = frozenset(
    {
        *(("forge_sweep.models.layers.numbers", name) for name in ("Periodic", "PiecewiseLinear")),
        *(
            ("forge_sweep.models.layers.members", name)
            for name in ("Members", "MemberDense", "MemberOutput", "MemberLoss")
        ),
        ("forge_sweep.models.layers.tokens", "FeatureTokens"),
        *(("forge_sweep.models.layers.tangent", name) for name in ("NTPDense", "ParametricActivation", "Scale")),
    }
)
MODELS = {
    ("forge_sweep.models.joint", "JointLoss"),  # of several heads; it is written with the network, and never read
    *(("keras", "Sequential"), ("keras.src.models.sequential", "Sequential")),
    *(("keras", "Functional"), ("keras.src.models.functional", "Functional")),
}
# How Keras writes plain values:
MARKS = {(None, "__keras_tensor__"), (None, "__tuple__"), (None, "__slice__"), ("builtins", "__keras_tensor__")}
# `keras.ops` as functional models write them, such as ``x + y``: arithmetic on tensors, and no argument of theirs is a
# function, a file or a model.
OPERATIONS = frozenset(
    (f"keras.src.ops.{home}", name)
    for home, names in {
        "numpy": """
            Abs Absolute Add All Amax Amin Any Argmax Argmin Average Ceil Clip Concatenate Cos Cross Cumsum Divide Dot
            Einsum Equal Exp ExpandDims Expm1 Flip Floor GetItem Greater GreaterEqual Less LessEqual Log Log1p
            LogicalAnd LogicalNot LogicalOr Matmul Max Maximum Mean Min Minimum Moveaxis Multiply Negative NotEqual
            OnesLike Outer
            Power Prod Ravel Reciprocal Reshape Roll Sign Sin Sqrt Square Squeeze Stack Std Subtract Sum Swapaxes Take
            Tan Tanh Tensordot Transpose TrueDivide Var Where ZerosLike
        """,
        "nn": """
            Celu Elu Gelu HardSigmoid HardSilu HardTanh LeakyRelu LogSigmoid LogSoftmax Normalize OneHot Relu Relu6 Selu
            Sigmoid Silu Softmax Softplus Softsign
        """,
        "math": "Erf Logsumexp Rsqrt",
        "core": "Cast",
    }.items()
    for name in names.split()
)
# What `exports.keras` writes of preprocessing and task, besides LAYERS, OPERATIONS and lookups:
CONSTANT = (None, "__numpy__")
# The classes of these modules that may be named: those below a base in the module.
BASES = {
    "keras": "DTypePolicy",
    "keras.constraints": "Constraint",
    "keras.dtype_policies": "DTypePolicy",
    "keras.initializers": "Initializer",
    "keras.losses": "Loss",
    "keras.metrics": "Metric",
    "keras.optimizers": "Optimizer",
    "keras.optimizers.schedules": "LearningRateSchedule",
    "keras.regularizers": "Regularizer",
}
HINT = "do not use this folder"

_registry = threading.Lock()


def save(model: keras.Model, path: Path) -> None:
    """Write a network. Optimizers of PyTorch's own are written as those of `keras.optimizers`, which stand for them.

    Otherwise no process without PyTorch could read the file with its optimizer.
    """
    model.save(path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(entries["config.json"])
    of_torch = [
        node for node in security.objects(config) if str(node.get("module")).startswith("keras.src.backend.torch.optim")
    ]
    if not of_torch:
        return
    for node in of_torch:
        node.update(module="keras.optimizers", registered_name=None)
    entries["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def load(path: Path, code: Code | None = None, *, trust: bool = False) -> keras.Model:
    """Read a network, without its loss and optimizer, once `check` has accepted it."""
    custom = check(path, code, trust=trust)
    import keras

    from forge_sweep.models import layers  # noqa: F401  registered with Keras

    with _registered(custom):
        return keras.saving.load_model(path, compile=False, safe_mode=True)


@contextlib.contextmanager
def _registered(objects: Mapping[str, Any]) -> Iterator[None]:
    """Keras knows these objects, and not those that another version of the code registered under the same names.

    A scope (`keras.saving.custom_object_scope`) ends where Keras 3.15 reads the parts of a layer.
    """
    import keras

    known = keras.saving.get_custom_objects()
    with _registry:
        before = {name: known[name] for name in objects if name in known}
        known.update(objects)
        try:
            yield
        finally:
            for name in objects:
                known.pop(name)
            known.update(before)


def check(path: Path, code: Code | None = None, *, trust: bool = False, raw: bool = False) -> dict[str, Any]:
    """Refuse a network that could do anything else than compute; nothing is built.

    With ``trust``, ``code`` is imported and the objects that it defines are taken; they are returned by name. With
    ``raw``, preprocessing and task as `exports.keras` writes them are taken as well.
    """
    security.check_zip(path, ENTRIES)
    with zipfile.ZipFile(path) as archive:
        config, weights = json.loads(archive.read("config.json")), archive.read("model.weights.h5")
    import h5py

    with h5py.File(io.BytesIO(weights), "r") as file:
        problems = list(_beyond_arrays(file, len(weights), set()))
    if problems:
        raise BundleError(f"{path}: model.weights.h5 has {', '.join(problems)}", hint=HINT)
    named = [node for node in security.objects(config) if "class_name" in node]  # a class or a function
    foreign = [node for node in named if not (_is_stock(*_name(node)) or (raw and _prepares(node)))]
    if not foreign:
        return {}
    package = "" if code is None else f"{package_of(code)}."
    outside = [node for node in foreign if not package or not str(node.get("module")).startswith(package)]
    names = sorted({".".join(filter(None, _name(node))) for node in outside or foreign})
    listed = ", ".join(name.removeprefix(package) for name in names)
    if outside or code is None:
        raise BundleError(f"{path} holds objects that are not trusted: {listed}", hint=HINT)
    if not trust:
        raise NotTrusted(
            f"{path} holds objects of the code that came with it: {listed}",
            hint=f"read {', '.join(f'code.{name}.py' for name in code.files)} in {path.parent}, and give --trust "
            "(trust=True) to run that code",
        )
    return dict(_defined(path, foreign, code))


def _defined(path: Path, nodes: list[dict[str, Any]], code: Code) -> Iterator[tuple[str, Any]]:
    """The objects that nodes name, under each of their names."""
    try:
        module_of(code)
        for node in nodes:
            module, name = _name(node)
            found = getattr(importlib.import_module(str(module)), name, None)
            if getattr(found, "__module__", None) != module:
                raise BundleError(f"{path} needs {name}, which its code does not define at the top of a module")
            yield from ((known, found) for known in (name, node.get("registered_name")) if known)
    except (ImportError, TrialFailed) as error:
        raise BundleError(f"{path}: the code that came with it cannot be imported: {error}") from error


def _name(node: Mapping[str, Any]) -> tuple[str | None, str]:
    name = node["config"] if node["class_name"] == "function" else node["class_name"]
    return node.get("module"), str(name)


def _is_stock(module: str | None, name: str) -> bool:
    import keras

    if (module, name) in MARKS | MODELS | OPERATIONS | OWN:
        return True
    if module == "keras.layers":
        return name in LAYERS
    if module not in BASES:
        return False
    home = importlib.import_module(module)
    found = getattr(home, name, None)
    return (
        isinstance(found, type)
        and issubclass(found, getattr(home, BASES[module]))
        and not issubclass(found, keras.Layer)
    )


def _prepares(node: Mapping[str, Any]) -> bool:
    """Whether a part belongs to preprocessing or task. A lookup whose vocabulary is a text would read that file."""
    if _name(node) != ("keras.layers", "StringLookup"):
        return _name(node) == CONSTANT
    config = node["config"]
    texts = config.get("vocabulary") if isinstance(config, Mapping) else None
    return isinstance(texts, list) and all(isinstance(text, str) for text in texts)


def _beyond_arrays(group: Any, size: int, seen: set[int]) -> Iterator[str]:
    """What a group holds besides plain arrays: weights outside the file, or that claim more room than it has."""
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
            yield from _beyond_arrays(child, size, seen)
        elif not isinstance(child, h5py.Dataset) or not _is_plain(child, size):
            yield f"not a plain array at {child.name!r}"


def _is_plain(dataset: Any, size: int) -> bool:
    """Whether an array of numbers stands in the file itself, unfiltered."""
    kept_here = not dataset.is_virtual and not dataset.external and dataset.compression is None
    return bool(kept_here and dataset.dtype.kind in "biuf" and dataset.id.get_storage_size() == dataset.nbytes <= size)
