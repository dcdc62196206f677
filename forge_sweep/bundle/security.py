"""Files that are checked before a library reads them: zip archives, and ``scaler.joblib``.

Nothing predicts with ``scaler.joblib``, the fitted scikit-learn scaler for people who load it themselves. Since whoever
loads it runs what is in it, it has to hold the preprocessor's scaler and nothing else. Its names resolve to
stand-ins that do nothing, so checking a file runs no code of the file's choosing.
"""

from __future__ import annotations

import math
import re
import stat
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from forge_sweep.bundle.layout import SCALER
from forge_sweep.errors import BundleError
from forge_sweep.preprocessing import Preprocessor

MOST_TIMES = 100  # its own size, to which an archive may unpack beyond SMALL bytes
SMALL = 64_000_000
ENCRYPTED = 1  # bit of an entry's flags


def check_zip(path: Path, names: str) -> None:
    """Refuse an archive that could write elsewhere, fill memory, or hide an entry.

    ``names`` is the pattern of every entry's name. Nothing of ours extracts to disk, but a later version of a library
    may do anything with a name.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    names_of = [entry.filename for entry in entries]
    problems = {
        "names that do not belong there": [name for name in names_of if not re.fullmatch(names, name)],
        "links or folders": [
            e.filename for e in entries if stat.S_IFMT(e.external_attr >> 16) not in (0, stat.S_IFREG) or e.is_dir()
        ],
        "encrypted entries": [e.filename for e in entries if e.flag_bits & ENCRYPTED],
        "names that come twice": sorted({name for name in names_of if names_of.count(name) > 1}),
    }
    found = [f"{problem}: {', '.join(map(repr, seen))}" for problem, seen in problems.items() if seen]
    size, declared = path.stat().st_size, sum(e.file_size for e in entries)
    if sum(e.compress_size for e in entries) > size:
        found.append("entries that share their bytes")
    if declared > max(SMALL, MOST_TIMES * size):
        found.append(f"{declared} bytes when unpacked, from {size}")
    if found:
        raise BundleError(f"{path} is not an archive of ours; {'; '.join(found)}", hint="do not use this folder")


def check_npz(path: Path) -> None:
    """Refuse a ``.npz`` file whose arrays are objects, or larger than what is there."""
    check_zip(path, r"\w[\w.]*\.npy")
    check_arrays(path)


def check_arrays(path: Path) -> None:
    """Refuse ``.npy`` entries that announce objects, or another number of bytes than they have."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if not entry.filename.endswith(".npy"):
                continue
            with archive.open(entry) as file:
                # The header is a literal, evaluated by NumPy as such.
                shape, _, dtype = readers[np.lib.format.read_magic(file)](file)
                held = entry.file_size - file.tell()
            if dtype.hasobject:
                raise BundleError(f"{path}: {entry.filename} holds Python objects", hint="do not use this folder")
            announced = math.prod(map(int, shape)) * int(dtype.itemsize)
            if announced != held:
                raise BundleError(
                    f"{path}: {entry.filename} announces {announced} bytes and has {held}",
                    hint="do not use this folder",
                )


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a JSON value, however deep."""
    waiting = [value]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
        waiting.extend(node.values() if isinstance(node, dict) else node if isinstance(node, list) else ())


# The scaler

_HINT = "do not use this folder, and do not load the file yourself"

SCALER_CLASSES = {  # in sklearn.preprocessing._data
    "standard": "StandardScaler",
    "minmax": "MinMaxScaler",
    "robust": "RobustScaler",
    "quantile": "QuantileTransformer",
}


class _Inert:
    """Stands where an object of scikit-learn or joblib would: takes a state and does nothing with it."""


def write_scaler(preprocessor: Preprocessor, folder: Path) -> None:
    """Write the scaler where there is one."""
    import joblib

    scaler = preprocessor.sklearn_scaler()
    if scaler is not None:
        joblib.dump(scaler, folder / SCALER)


def check_scaler(folder: Path, preprocessor: Preprocessor) -> None:
    """Refuse a file that is not a scaler, or not the preprocessor's own."""
    path = folder / SCALER
    kind, state = read_scaler(path)
    if kind != SCALER_CLASSES.get(preprocessor.scaler):
        raise BundleError(f"{path} holds a {kind}, and the preprocessor scales by {preprocessor.scaler}", hint=_HINT)
    if other := scaler_differences(state, preprocessor.learned):
        raise BundleError(f"{path} is another scaler than the preprocessor's; {', '.join(other)} differ", hint=_HINT)


def read_scaler(path: Path) -> tuple[str, dict[str, Any]]:
    """Class name and attributes of a pickled scaler; none of its classes is imported or called."""
    from joblib import numpy_pickle

    size = path.stat().st_size

    class Array(numpy_pickle.NumpyArrayWrapper):  # type: ignore[misc]
        """Joblib's array in the file: of numbers only, since one of objects would be a pickle in the pickle."""

        def __init__(self) -> None:
            """Its state follows."""

        def read(self, unpickler: Any, ensure_native_byte_order: bool) -> Any:
            """The array, as joblib asks for it."""
            if self.subclass is not np.ndarray or not isinstance(self.dtype, np.dtype) or self.dtype.kind not in "biuf":
                raise ValueError(f"an array of type {self.dtype}")
            count = math.prod(map(int, self.shape))
            if not 0 <= count * self.dtype.itemsize <= size:
                raise ValueError(f"an array of {count} numbers in a file of {size} bytes")
            return self.read_array(unpickler, ensure_native_byte_order)

    class Reader(numpy_pickle.NumpyUnpickler):  # type: ignore[misc]
        def find_class(self, module: str, name: str) -> Any:
            if module == "sklearn.preprocessing._data" and name in SCALER_CLASSES.values():
                return type(name, (_Inert,), {})
            if (module, name) == ("joblib.numpy_pickle", "NumpyArrayWrapper"):
                return Array
            if module in ("numpy._core.multiarray", "numpy.core.multiarray") and name == "scalar":
                return _scalar
            if module == "numpy" and name in ("ndarray", "dtype"):
                return getattr(np, name)
            raise BundleError(f"scaler.joblib holds {module}.{name}, which no scaler is made of", hint=_HINT)

    try:
        with path.open("rb") as file:
            scaler = Reader(str(path), file, ensure_native_byte_order=True).load()
            rest = file.read(1)
    except BundleError:
        raise
    except Exception as error:  # a pickle may fail in any way
        raise BundleError(f"{path} cannot be read: {error}", hint=_HINT) from error
    if rest or not isinstance(scaler, _Inert) or type(scaler) is _Inert:
        raise BundleError(f"{path} does not hold a scaler", hint=_HINT)
    return type(scaler).__name__, vars(scaler)


def _scalar(dtype: np.dtype[Any], content: bytes) -> Any:
    """A NumPy number from its bytes, as ``numpy._core.multiarray.scalar`` makes it."""
    if not isinstance(dtype, np.dtype) or dtype.kind not in "biuf":
        raise ValueError(f"a number of type {dtype}")
    return np.frombuffer(content, dtype, count=1)[0]


def scaler_differences(state: Mapping[str, Any], learned: Mapping[str, np.ndarray]) -> list[str]:
    """Names of the learned attributes that a scaler does not have as the preprocessor has them."""

    def same(seen: Any, values: np.ndarray) -> bool:
        plain = isinstance(seen, np.ndarray | np.number | int | float)
        return plain and np.array_equal(np.asarray(seen), values, equal_nan=True)

    return [name for name, values in learned.items() if not same(state.get(name), values)]
