"""``scaler.joblib``: the fitted scikit-learn scaler, for people who load it themselves.

Nothing predicts with it. It is looked at all the same, since whoever loads it runs what is in it: it has to hold a
scaler of scikit-learn with the same numbers as the preprocessor, and nothing else. The reader here resolves the few
names in `NAMES` to objects that do nothing, so that looking at a file runs no code of its own choosing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from forge_sweep.errors import BundleError
from forge_sweep.preprocessing import Preprocessor

SCALER = "scaler.joblib"

CLASSES = {
    "standard": "StandardScaler",
    "minmax": "MinMaxScaler",
    "robust": "RobustScaler",
    "quantile": "QuantileTransformer",
}
"""Class in ``sklearn.preprocessing._data`` by the name of the scaler."""


class Inert:
    """Stands where an object of scikit-learn or joblib would: takes a state and does nothing with it."""


def write(preprocessor: Preprocessor, folder: Path) -> None:
    """Write the scaler where there is one."""
    import joblib

    scaler = preprocessor.sklearn_scaler()
    if scaler is not None:
        joblib.dump(scaler, folder / SCALER)


def check(folder: Path, preprocessor: Preprocessor) -> None:
    """Refuse a file that is no scaler, or not the preprocessor's own.

    Raises:
        BundleError: it names anything else than a scaler is made of, is damaged, or has other numbers.
    """
    path = folder / SCALER
    kind, state = read(path)
    if kind != CLASSES.get(preprocessor.scaler):
        raise BundleError(f"{path} holds a {kind}, and the preprocessor scales by {preprocessor.scaler}", hint=HINT)
    if other := differences(state, preprocessor.learned):
        raise BundleError(f"{path} is another scaler than the preprocessor's; {', '.join(other)} differ", hint=HINT)


HINT = "do not use this folder, and do not load the file yourself"


def read(path: Path) -> tuple[str, dict[str, Any]]:
    """Class name and attributes of a pickled scaler; none of its classes is imported by it or called.

    Raises:
        BundleError: anything else is in there.
    """
    from joblib import numpy_pickle

    class Reader(numpy_pickle.NumpyUnpickler):  # type: ignore[misc]
        """Knows `NAMES` only."""

        def find_class(self, module: str, name: str) -> Any:
            """The stand-in of a name."""
            return _stand_in(module, name, path.stat().st_size)

    try:
        with path.open("rb") as file:
            scaler = Reader(str(path), file, ensure_native_byte_order=True).load()
            rest = file.read(1)
    except BundleError:
        raise
    except Exception as error:  # a pickle may fail in any way
        raise BundleError(f"{path} cannot be read: {error}", hint=HINT) from error
    if rest or not isinstance(scaler, Inert) or type(scaler) is Inert:
        raise BundleError(f"{path} holds no scaler", hint=HINT)
    return type(scaler).__name__, vars(scaler)


def differences(state: Mapping[str, Any], learned: Mapping[str, np.ndarray]) -> list[str]:
    """Names of the learned attributes that a scaler does not have as the preprocessor has them."""
    return [name for name, values in learned.items() if not _equal(state.get(name), values)]


def _equal(seen: Any, values: np.ndarray) -> bool:
    if not isinstance(seen, np.ndarray | np.number | int | float):
        return False
    return np.array_equal(np.asarray(seen), values, equal_nan=True)


def _stand_in(module: str, name: str, size: int) -> Any:
    """What a name of the pickle means here.

    Raises:
        BundleError: it is none that a scaler is made of.
    """
    if module == "sklearn.preprocessing._data" and name in CLASSES.values():
        return type(name, (Inert,), {})
    if (module, name) == ("joblib.numpy_pickle", "NumpyArrayWrapper"):
        return _wrapper(size)
    if module in ("numpy._core.multiarray", "numpy.core.multiarray") and name == "scalar":
        return _scalar
    if module == "numpy" and name in ("ndarray", "dtype"):
        return getattr(np, name)
    raise BundleError(f"scaler.joblib holds {module}.{name}, which no scaler is made of", hint=HINT)


def _scalar(dtype: np.dtype[Any], content: bytes) -> Any:
    """A NumPy number from its bytes, as ``numpy._core.multiarray.scalar`` makes it."""
    if not isinstance(dtype, np.dtype) or dtype.kind not in "biuf":
        raise ValueError(f"a number of type {dtype}")
    return np.frombuffer(content, dtype, count=1)[0]


def _wrapper(size: int) -> type:
    """Joblib's reader of an array that stands in the file, for numbers only and no more of them than fit into it."""
    from joblib import numpy_pickle

    class Numbers(numpy_pickle.NumpyArrayWrapper):  # type: ignore[misc]
        """An array of objects would be a pickle in the pickle."""

        def __init__(self) -> None:
            """Its state follows."""

        def read(self, unpickler: Any, ensure_native_byte_order: bool) -> Any:
            """The array."""
            if self.subclass is not np.ndarray or not isinstance(self.dtype, np.dtype) or self.dtype.kind not in "biuf":
                raise ValueError(f"an array of type {self.dtype}")
            count = 1
            for length in self.shape:
                count *= int(length)
            if not 0 <= count * self.dtype.itemsize <= size:
                raise ValueError(f"an array of {count} numbers in a file of {size} bytes")
            return self.read_array(unpickler, ensure_native_byte_order)

    return Numbers
