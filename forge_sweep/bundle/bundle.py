"""The bundle: predict, save, load, replay."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forge_sweep import __version__, baselines, training
from forge_sweep.baselines import Baseline
from forge_sweep.bundle import archives, boosters, files, golden_rows, guard, network, scaler, trees, weights
from forge_sweep.bundle.card import CARD_FILES, card_of
from forge_sweep.bundle.evaluation import EVALUATION, Evaluation
from forge_sweep.bundle.guard import Policy
from forge_sweep.bundle.scaler import SCALER
from forge_sweep.checks.profile import Profile
from forge_sweep.errors import BundleError, ForgeSweepError
from forge_sweep.preprocessing import Preprocessor, RowTransform, Schema
from forge_sweep.task import Task

if TYPE_CHECKING:
    import keras
    import pandas as pd

FORMAT = 1
GOLDEN_TOLERANCE = 1e-5
"""Largest accepted difference of a golden score when it is verified; in proportion to the largest score above 1."""

MODEL_FILES = {
    "network": "model.keras",
    "constant": "constant.json",
    "random_forest": "tree.skops",
    "hist_gradient_boosting": "tree.skops",
    "xgboost": "tree.json",
}
RAW = "raw.keras"
RAW_FILES = {RAW, f"{RAW}.inputs.json"}
"""The network with its preprocessing inside, and which of its inputs takes which column."""

OTHER_FILES = {"bundle.json", "task.json", "schema.json", "preprocessor.json", "preprocessor.npz", golden_rows.GOLDEN}


@dataclass(frozen=True, eq=False)
class Bundle:
    """A model that takes raw rows.

    Attributes:
        model: the network, or the fitted baseline.
        preprocessor: schema, imputation, encoding and scaling, learned on train.
        task: what is predicted.
        threshold: probability from which a label holds (binary, multilabel); chosen on validation.
        metadata: where the model comes from: dataset, experiment, parameters, seed. Plain JSON values.
    """

    model: keras.Model | Baseline
    preprocessor: Preprocessor
    task: Task
    threshold: float
    metadata: dict[str, Any]

    @property
    def kind(self) -> str:
        """``network``, or the kind of the baseline."""
        return self.model.kind if isinstance(self.model, Baseline) else "network"

    @property
    def weights_sha256(self) -> str:
        """Names what was learned, bit by bit: equal for the same weights, saved and loaded or not."""
        return weights.digest(self.model)

    def scores(self, frame: pd.DataFrame) -> np.ndarray:
        """Probabilities, or regression values in original units.

        Args:
            frame: raw rows, none included; the order of the columns does not matter.

        Returns:
            (n, task.units) float64.

        Raises:
            SchemaError: missing, extra or mistyped columns, by name.
        """
        if not len(frame):
            self.preprocessor.schema.align(frame)
            return np.empty((0, self.task.units))
        return self.scores_of(self.preprocessor.transform(frame))

    def scores_of(self, features: np.ndarray) -> np.ndarray:
        """What `scores` gives, for rows that are preprocessed already: (n, outputs) float32, n > 0."""
        if isinstance(self.model, Baseline):
            # A baseline gives probabilities even where the networks of its experiment give logits.
            return dataclasses.replace(self.task, from_logits=False).to_scores(self.model.outputs(features))
        return self.task.to_scores(training.outputs(self.model, features))

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Predictions as a user reads them (see `Task.predictions`), with the index of ``frame``.

        Raises:
            SchemaError: missing, extra or mistyped columns, by name.
        """
        return self.task.predictions(self.scores(frame), self.threshold).set_axis(frame.index, axis=0)

    def save(
        self,
        folder: Path | str,
        golden: pd.DataFrame,
        *,
        card: bool = False,
        raw: bool = False,
        evaluation: Evaluation | None = None,
    ) -> None:
        """Write the bundle: what then stands at ``folder`` is whole, on disk, and has given its golden scores again.

        It is written to a hidden sibling, loaded from there, replayed, and renamed: a process that dies leaves no half
        bundle. A bundle that stands at ``folder`` is replaced, as a file would be; anything else is refused.

        Args:
            folder: where to; its parents are made.
            golden: raw features to take the golden rows from, all train rows as a rule; at most `GOLDEN_ROWS` are kept:
                some with missing values, if there are any, and the first others. The distribution of all of them is
                kept as well, to compare rows with that come later.
            card: whether to write the model card as well, from what the metadata says.
            raw: whether to write the network with its preprocessing inside as well: ``raw.keras``, which takes raw
                columns in plain Keras, and ``raw.keras.inputs.json``.
            evaluation: what the look at the test rows gave, kept beside the model as ``evaluation.npz``.

        Raises:
            BundleError: something else stands at ``folder``, a score is not finite, the metadata is not plain JSON, or
                the bundle as read back gives other scores; or ``raw.keras`` does, or it cannot hold this bundle.
        """

        def write(temporary: Path) -> None:
            _write(self, temporary, golden, card, raw, evaluation)
            # Trusted: what this process has built its model with is imported already.
            Bundle.load(temporary, verify=True, trust=True)

        files.replace_whole(Path(folder), write)

    @classmethod
    def load(cls, folder: Path | str, *, verify: bool = False, trust: bool = False, policy: Policy = "warn") -> Bundle:
        """Read a bundle; no code in it is run, and nothing is parsed before every file was checked.

        Under other versions of what computes it than it was saved with (Keras and its backend, NumPy, scikit-learn,
        XGBoost, CUDA), the golden rows are replayed in any case.

        Args:
            folder: what `save` wrote, or a copy.
            verify: also replay the golden rows and refuse scores other than when it was saved.
            trust: import the module of the experiment's own builder, and take the custom Keras objects it defines.
            policy: under other versions, with the same golden scores: ``warn`` in the log, or ``refuse``.

        Raises:
            BundleError: a file is missing, unexpected, changed or not a regular file (by name), the format version is
                unknown, a file cannot be read or holds what is not trusted, a golden score differs, or versions do and
                the policy is to refuse.
        """
        folder = Path(folder)
        about = _read_about(folder, files.check_manifest(folder))
        with _readable(folder / "task.json", about):
            task = Task.from_dict(files.read_json(folder / "task.json"))
        with _readable(folder / "preprocessor.json", about):
            preprocessor = _read_preprocessor(folder)
        with _readable(folder / MODEL_FILES[about["kind"]], about):
            model = _read_model(folder, about, task, len(preprocessor.output_names), trust)
        if (folder / RAW).exists():
            with _readable(folder / RAW, about):
                network.check(folder / RAW, about["metadata"], trust=trust, raw=True)
        Evaluation.load(folder)  # nothing predicts with it; a file that nobody could read is refused with the others
        bundle = cls(model, preprocessor, task, float(about["threshold"]), about["metadata"])
        other = guard.differences(about)
        if verify or other:
            _verify(folder, bundle, about["packages"])
        guard.judge(folder, other, policy)
        return bundle


def ready_backend(folder: Path | str) -> None:
    """Load Keras on the backend that a bundle was trained on, without that backend's noise; nothing for a tree.

    Raises:
        BundleError: as `Bundle.load`, of what can be told before Keras is needed.
        InputError: that backend is not installed, or Keras runs on another one, or is to.
    """
    folder = Path(folder)
    about = _read_about(folder, files.check_manifest(folder))
    if about["kind"] == "network":
        with contextlib.suppress(KeyError, TypeError):  # made without an experiment: on any backend
            training.select_backend(about["metadata"]["experiment"]["backend"])
            training.load_backend()


def replay_golden(folder: Path | str, bundle: Bundle | None = None) -> float:
    """Predict the golden rows of a saved bundle again.

    Args:
        folder: the saved bundle.
        bundle: predicts in its place, such as the same trial run again; default: the one in ``folder``.

    Returns:
        The largest absolute difference of a score: a probability, or in the target's units.

    Raises:
        BundleError: as `Bundle.load`.
    """
    folder = Path(folder)
    if bundle is None:
        bundle = Bundle.load(folder)
    else:
        files.check_manifest(folder)
    frame, scores = golden_rows.read(folder)
    return float(np.abs(bundle.scores(frame) - scores).max())


def _verify(folder: Path, bundle: Bundle, packages: dict[str, str]) -> None:
    """Refuse a bundle that gives other golden scores than when it was saved."""
    difference, (_, scores) = replay_golden(folder, bundle), golden_rows.read(folder)
    allowed = GOLDEN_TOLERANCE * max(1.0, float(np.abs(scores).max()))
    if not difference <= allowed:
        raise BundleError(
            f"{folder} gives other golden scores than when it was saved: {difference:.3g} off, {allowed:.1g} allowed",
            hint=guard.hint(packages),
        )


def _write(
    bundle: Bundle, folder: Path, train: pd.DataFrame, card: bool, raw: bool, evaluation: Evaluation | None
) -> None:
    """Write every file of a bundle, the manifest last."""
    rows = golden_rows.choose(train)
    about = {"format": FORMAT, "kind": bundle.kind, "threshold": bundle.threshold, "metadata": bundle.metadata}
    files.write_json(folder / "bundle.json", {**about, "packages": guard.versions()})
    files.write_json(folder / "task.json", bundle.task.to_dict())
    files.write_json(folder / "schema.json", bundle.preprocessor.schema.to_dict())
    bundle.preprocessor.save(folder)
    scaler.write(bundle.preprocessor, folder)
    _write_model(bundle.model, folder / MODEL_FILES[bundle.kind])
    profile = Profile.learn(train, RowTransform(bundle.preprocessor))
    golden_rows.write(folder, rows, bundle.scores(rows), profile)
    if raw:
        from forge_sweep.bundle import exports  # they read bundles themselves

        exports.write_raw(bundle, folder)
    if evaluation is not None:
        evaluation.save(folder)
    if card:
        for name, text in card_of(folder).texts().items():
            (folder / name).write_text(text, encoding="utf-8")
    files.write_manifest(folder)


def _write_model(model: keras.Model | Baseline, path: Path) -> None:
    """The model in the format of its own library."""
    if not isinstance(model, Baseline):
        model.save(path)
    elif model.kind == "constant":
        files.write_json(path, list(model.model))
    elif model.kind == "xgboost":
        model.model.save_model(path)
    else:
        trees.save(model.model, path)


def _read_about(folder: Path, listed: set[str]) -> dict[str, Any]:
    """``bundle.json``, once its format is known and the folder has exactly the files of its kind."""
    files.refuse(folder, {"missing": {"bundle.json"} - listed})
    about = files.read_json(folder / "bundle.json")
    if not isinstance(about, dict):
        raise BundleError(f"{folder / 'bundle.json'} is not a table")
    if about.get("format") != FORMAT:
        writer = about.get("packages", {}).get("forge-sweep", "a later one")
        raise BundleError(
            f"{folder} has bundle format {about.get('format')!r}, and forge-sweep {__version__} reads format {FORMAT}",
            hint=f"install the forge-sweep that wrote it: {writer}",
        )
    if absent := {"kind", "threshold", "metadata", "packages"} - about.keys():
        raise BundleError(f"{folder / 'bundle.json'} lacks {', '.join(sorted(absent))}")
    if about["kind"] not in MODEL_FILES:
        raise BundleError(f"{folder / 'bundle.json'}: kind {about['kind']!r} is none of {', '.join(MODEL_FILES)}")
    expected = OTHER_FILES | {MODEL_FILES[about["kind"]]}
    if about["kind"] == "network" and listed & RAW_FILES:  # both or none, and of networks only
        expected |= RAW_FILES
    files.refuse(
        folder, {"missing": expected - listed, "unexpected": listed - expected - {SCALER, EVALUATION, *CARD_FILES}}
    )
    return about


@contextlib.contextmanager
def _readable(path: Path, about: dict[str, Any]) -> Iterator[None]:
    """Whatever a library cannot read becomes an error that names the file and the versions it was written with."""
    try:
        yield
    except ForgeSweepError:
        raise
    except Exception as error:
        raise BundleError(f"{path} cannot be read: {error}", hint=guard.hint(about["packages"])) from error


def _read_preprocessor(folder: Path) -> Preprocessor:
    """The preprocessor, if the files beside it, which others go by, say the same."""
    archives.check_npz(folder / "preprocessor.npz")
    preprocessor = Preprocessor.load(folder)
    if Schema.from_dict(files.read_json(folder / "schema.json")) != preprocessor.schema:
        raise BundleError(f"{folder}: schema.json and preprocessor.json describe different columns")
    if (folder / SCALER).exists():
        scaler.check(folder, preprocessor)
    return preprocessor


def _read_model(
    folder: Path, about: dict[str, Any], task: Task, n_features: int, trust: bool
) -> keras.Model | Baseline:
    """The network without its loss and optimizer, or the baseline with the parameters in the metadata."""
    kind, path = about["kind"], folder / MODEL_FILES[about["kind"]]
    if kind == "network":
        return network.load(path, about["metadata"], trust=trust)
    if kind == "constant":
        model: Any = tuple(float(value) for value in files.read_json(path))
    elif kind == "xgboost":
        boosters.check(path, n_features)
        model = baselines.load_xgboost(path, task)
    else:
        model = trees.load(path, n_features)
    return Baseline(kind, model, about["metadata"].get("params", {}), task)
