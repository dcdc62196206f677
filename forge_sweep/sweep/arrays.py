"""Prepared rows that all workers of a machine read one copy of: files, whose pages are shared, or a cluster's store."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from forge_sweep import trial
from forge_sweep.sources import Dataset
from forge_sweep.training import TrainingData, each
from forge_sweep.trial import Prepared, Recipe

if TYPE_CHECKING:
    import numpy as np

SHAREABLE = ("x_train", "y_train", "x_valid", "y_valid", "sample_weight")
"""Fields that are arrays, one per row."""

FIELDS = [field.name for field in dataclasses.fields(TrainingData)]


@dataclass(frozen=True)
class SavedArrays:
    """The rows of one recipe, in the place of a `Dataset`. Small, and can be pickled.

    Attributes:
        folder: where they are.
    """

    folder: Path

    def prepared(self, recipe: Recipe) -> Prepared:
        """The arrays, as memory maps; see `trial.Arrays`."""
        saved, found = _load(self.folder)
        assert saved == recipe, f"{self.folder} was made by {saved}"
        return found


@functools.cache
def _load(folder: Path) -> tuple[Recipe, Prepared]:
    """What `save` wrote. Cached: there are as many as scalers, and an array takes no memory until it is read."""
    import joblib

    recipe, task, preprocessor, rest, origin, names = joblib.load(folder / "about.joblib")
    arrays: Any = {field: _mapped(folder, kept) for field, kept in names.items()}
    return recipe, Prepared(task, preprocessor, TrainingData(**arrays, **rest), origin)


def _mapped(folder: Path, names: Any) -> Any:
    """The arrays of one field. Writing to one would change this process's pages only."""
    import numpy as np

    if isinstance(names, dict):
        return {key: _mapped(folder, name) for key, name in names.items()}
    if isinstance(names, tuple):
        return tuple(_mapped(folder, name) for name in names)
    return np.load(folder / names, mmap_mode="c")  # NumPy aligns what it writes as TensorFlow wants it


def save(prepared: Prepared, recipe: Recipe, folder: Path) -> None:
    """Write everything into a new folder."""
    import joblib
    import numpy as np

    folder.mkdir(parents=True)
    count = iter(range(10_000))

    def write(values: np.ndarray) -> str:
        name = f"{next(count)}.npy"
        np.save(folder / name, np.ascontiguousarray(values))
        return name

    data = {field: getattr(prepared.data, field) for field in FIELDS}
    names = {field: each(write, data[field]) for field in SHAREABLE if data[field] is not None}
    rest = {field: value for field, value in data.items() if field not in names}
    about = (recipe, prepared.task, prepared.preprocessor, rest, prepared.origin, names)
    joblib.dump(about, folder / "about.joblib")


class SharedArrays:
    """Writes the rows of each recipe once, when they are first asked for. Threads may share it.

    Args:
        dataset: the rows.
        folder: where the files go; what an earlier process left there is removed.
    """

    def __init__(self, dataset: Dataset, folder: Path) -> None:
        self.dataset = dataset
        self.folder = folder.absolute()
        self._made: dict[Recipe, SavedArrays] = {}
        self._lock = threading.Lock()
        self.close()

    def of(self, recipe: Recipe) -> SavedArrays:
        """The files of a recipe."""
        with self._lock:
            if recipe not in self._made:
                # a process that lives on from an earlier sweep knows the files by their names
                name = hashlib.sha256(f"{recipe} {self.dataset.digest} {os.getpid()}".encode()).hexdigest()[:12]
                save(trial.prepare(self.dataset, recipe), recipe, self.folder / name)
                self._made[recipe] = SavedArrays(self.folder / name)
            return self._made[recipe]

    def close(self) -> None:
        """Remove the files; a process that still reads them keeps its pages."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._made.clear()


class Stored(Protocol):
    """A value in the object store of a cluster; small, and can be pickled."""

    def get(self) -> Any:
        """The value, on whatever machine."""
        ...


@dataclass(frozen=True)
class StoredArrays:
    """The rows of one recipe in the store of a cluster, in the place of a `Dataset`.

    Attributes:
        stored: the recipe and what `trial.prepare` made by it.
    """

    stored: Stored

    def prepared(self, recipe: Recipe) -> Prepared:
        """The arrays, as views of this machine's copy, which cannot be written to; see `trial.Arrays`."""
        saved, found = self.stored.get()
        assert saved == recipe, f"{self.stored} was made by {saved}"
        prepared: Prepared = found
        return prepared


class ClusterArrays:
    """Puts the rows of each recipe into the store of a cluster, when they are first asked for. Threads may share it.

    Args:
        dataset: the rows.
        put: into the store.
    """

    def __init__(self, dataset: Dataset, put: Callable[[Any], Stored]) -> None:
        self.dataset = dataset
        self.put = put
        self._made: dict[Recipe, StoredArrays] = {}
        self._lock = threading.Lock()

    def of(self, recipe: Recipe) -> StoredArrays:
        """The rows of a recipe."""
        with self._lock:
            if recipe not in self._made:
                prepared = contiguous(trial.prepare(self.dataset, recipe))
                self._made[recipe] = StoredArrays(self.put((recipe, prepared)))
            return self._made[recipe]

    def close(self) -> None:
        """Refer to none of them any more."""
        self._made.clear()


def contiguous(prepared: Prepared) -> Prepared:
    """With arrays that a store keeps apart from the rest, so that they are mapped and not read."""
    import numpy as np

    data = {field: getattr(prepared.data, field) for field in SHAREABLE}
    laid = {field: each(np.ascontiguousarray, values) for field, values in data.items() if values is not None}
    return dataclasses.replace(prepared, data=dataclasses.replace(prepared.data, **laid))
