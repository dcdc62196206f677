"""A registered version as it is judged: its bundle, the experiment that made it, and the rows it is judged on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_sweep import sources
from forge_sweep.bundle import Bundle, Evaluation, ready_backend
from forge_sweep.errors import BundleError, DataError, ForgeSweepError
from forge_sweep.experiment import Experiment, PromotionSpec, load, restore
from forge_sweep.task import direction

if TYPE_CHECKING:
    from forge_sweep.sources import Dataset
    from forge_sweep.tracking import ModelVersion, Registry

ROOT_TAG = "forge.root"

STAND_IN = {"mse": "rmse", "mae": "mae"}
"""The metric that stands for ``val_loss`` of a regression; of all other tasks it is ``log_loss``."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A version with its bundle, loaded and its hashes checked.

    Attributes:
        version: the version.
        folder: its bundle.
        bundle: the same, loaded.
        packages: versions that the bundle was saved with.
        requirements: what the registered model says has to be installed; None where it says nothing.
        evaluation: what its sweep's look at the test rows gave; None in versions of before that was kept.
    """

    version: ModelVersion
    folder: Path
    bundle: Bundle
    packages: Mapping[str, str]
    requirements: tuple[str, ...] | None
    evaluation: Evaluation | None

    @property
    def metadata(self) -> dict[str, Any]:
        """What the bundle says of itself."""
        return self.bundle.metadata

    @property
    def frozen(self) -> tuple[str, str]:
        """Digests of the dataset and of its split."""
        return str(self.metadata.get("dataset_digest")), str(self.metadata.get("split_digest"))

    @property
    def metric(self) -> str:
        """The objective on any split."""
        name = str(self.metadata["experiment"]["objective"]["metric"]).removeprefix("val_")
        if name != "loss":
            return name
        task = self.bundle.task
        return STAND_IN.get(task.loss, "rmse") if task.kind == "regression" else "log_loss"

    @property
    def direction(self) -> str:
        """Whether more or less of it is better."""
        return direction(self.bundle.task.kind, self.metric)

    def experiment(self, root: Path | None) -> Experiment:
        """The experiment that made it, as it was recorded.

        Args:
            root: folder that its paths start from; default: where they started from then.

        Raises:
            DataError: it recorded none that this version of forge-sweep reads.
        """
        try:
            recorded = self.metadata["experiment"]
            home = root or Path(self.version.tags.get(ROOT_TAG, "."))
            return restore(recorded, root=home)
        except (KeyError, TypeError, ForgeSweepError) as error:
            raise DataError(f"{self.version.uri} recorded no experiment that can be read: {error}") from error

    def dataset(self, root: Path | None) -> Dataset:
        """The rows it was trained on, if they are still the same.

        Raises:
            DataError: they are gone, or others stand in their place.
            StoreDown: the store of the rows cannot be reached.
        """
        experiment = self.experiment(root)
        found = sources.load(experiment.data, root=experiment.root, seed=experiment.seed)
        if (found.digest, found.split_digest) != self.frozen:
            what = "rows" if found.digest != self.frozen[0] else "split"
            recorded = self.metadata.get("dataset_version")
            raise DataError(
                f"the {what} at {found.source} are {found.version}, split {found.split_digest[:12]}; "
                f"{self.version.uri} was trained on {recorded}, split {self.frozen[1][:12]}",
                hint="restore the rows it was trained on, or train on the new ones: forge-sweep run EXPERIMENT",
            )
        return found


@contextlib.contextmanager
def opened(registry: Registry, version: ModelVersion) -> Iterator[Candidate]:
    """A version with its bundle, for a while.

    Raises:
        BundleError: a hash does not match, or it cannot be read.
        TrackingDown: the store cannot be reached.
    """
    with registry.bundle(version) as folder:
        ready_backend(folder)
        bundle = Bundle.load(folder)
        about = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
        requirements = requirements_beside(folder)
        found = Candidate(version, folder, bundle, about["packages"], requirements, Evaluation.load(folder))
        if found.evaluation is not None and not found.evaluation.is_of(*found.frozen):
            raise BundleError(
                f"the evaluation in {version.uri} is not of the test rows that the bundle names",
                hint="register the model again from its sweep",
            )
        yield found


def requirements_beside(folder: Path) -> tuple[str, ...] | None:
    """The lines of ``requirements.txt`` in MLflow's part of the model."""
    for above in list(folder.parents)[:2]:
        path = above / "requirements.txt"
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            return tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    return None


@dataclass(frozen=True)
class Terms:
    """What a promotion is judged by.

    Attributes:
        settings: the section ``[promotion]``.
        root: folder that paths of data start from; None for that of the sweep.
    """

    settings: PromotionSpec
    root: Path | None = None

    @classmethod
    def of(cls, recorded: Mapping[str, Any], experiment: Path | None) -> Terms:
        """Those of an experiment file, or else those that the bundle recorded.

        Args:
            recorded: metadata of the bundle.
            experiment: the file, if one was named.

        Raises:
            ExperimentError: it has mistakes.
        """
        if experiment is not None:
            named = load(experiment)
            return cls(named.promotion, named.root)
        section = recorded.get("experiment", {}).get("promotion")
        return cls(PromotionSpec.model_validate(section or {}))
