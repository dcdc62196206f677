"""The bundle: predict, save, load, replay."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from forge_sweep import __version__, baselines, environment, training
from forge_sweep.baselines import Baseline
from forge_sweep.bundle import ensemble, files, layout, network, security, trees
from forge_sweep.bundle.card import card_of
from forge_sweep.bundle.ensemble import Ensemble, Member
from forge_sweep.bundle.evaluation import Evaluation
from forge_sweep.bundle.layout import (
    ENSEMBLE,
    RAW,
    SCALER,
    choose_golden,
    kinds_of,
    model_files,
    read_about,
    read_golden,
    write_golden,
)
from forge_sweep.bundle.weights import weights_digest
from forge_sweep.checks.profile import Profile
from forge_sweep.errors import BundleError, ForgeSweepError, InputError
from forge_sweep.experiment import Code
from forge_sweep.preprocessing import Batch, Preprocessor, RowTransform, Schema
from forge_sweep.task import Task, task_of

if TYPE_CHECKING:
    import keras
    import pandas as pd

GOLDEN_TOLERANCE = 1e-5  # largest accepted difference of a golden score, in proportion to the largest one above 1
BACKEND_TOLERANCE = 1e-4  # the same on another backend than the network was trained on: other kernels, other roundings
Policy = Literal["warn", "refuse"]  # other versions, where the golden rows give the same scores
PACKAGES = (
    *("numpy", "pandas", "scikit-learn", "skops", "keras", "tensorflow", "jax", "jaxlib", "torch"),
    *("xgboost-cpu", "xgboost"),
)

_CUDA = "CUDA"

_log = logging.getLogger("forge_sweep")


@dataclass(frozen=True, eq=False)
class Bundle:
    """A model that takes raw rows.

    Attributes:
        model: the network, the fitted baseline, or an ensemble of such.
        preprocessor: schema, imputation, encoding and scaling, learned on train; of an ensemble that of its first
            member, the others have the same schema.
        task: what is predicted.
        threshold: probability from which a label holds (binary, multilabel); chosen on validation.
        metadata: where the model comes from: dataset, experiment, parameters, seed. Plain JSON values.
        code: the source of a network of the user's own.
    """

    model: keras.Model | Baseline | Ensemble
    preprocessor: Preprocessor
    task: Task
    threshold: float
    metadata: dict[str, Any]
    code: Code | None = None

    def __repr__(self) -> str:
        columns = len(self.preprocessor.schema.columns)
        return f"Bundle({self.kind}: {self.task.kind} of {', '.join(self.task.targets)} from {columns} columns)"

    @property
    def kind(self) -> str:
        """``network``, the kind of the baseline, or ``ensemble``."""
        if isinstance(self.model, Ensemble):
            return ENSEMBLE
        return self.model.kind if isinstance(self.model, Baseline) else "network"

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of all its models: one, or those of an ensemble's members."""
        return tuple(each.kind for each in self.model.members) if isinstance(self.model, Ensemble) else (self.kind,)

    @classmethod
    def ensemble(
        cls, bundles: Sequence[Bundle], weights: Sequence[float], *, threshold: float, metadata: dict[str, Any]
    ) -> Bundle:
        """One bundle of several of the same sweep; ``weights`` are above 0 and sum to 1.

        Raises:
            BundleError: they take other columns, predict other targets or run other code, or the weights are wrong.
        """
        ensemble.refuse_wrong(list(weights))
        first = bundles[0]
        code = next((each.code for each in bundles if each.code is not None), None)
        for each in bundles:
            same = each.preprocessor.schema == first.preprocessor.schema and each.task.to_dict() == first.task.to_dict()
            if not same or isinstance(each.model, Ensemble):
                raise BundleError(f"{each} cannot stand in one ensemble with {first}")
            if each.code is not None and code is not None and each.code.digest != code.digest:
                raise BundleError(f"{each} runs other code than another member of the ensemble")
        members = tuple(
            Member(each.model, each.preprocessor, weight)
            for each, weight in zip(bundles, weights, strict=True)
            if not isinstance(each.model, Ensemble)
        )
        return cls(Ensemble(members), first.preprocessor, first.task, threshold, metadata, code)

    @property
    def weights_sha256(self) -> str:
        """Names what was learned, bit by bit: equal for the same weights, saved and loaded or not."""
        return weights_digest(self.model)

    @functools.cached_property
    def others(self) -> frozenset[str]:
        """Columns of the training rows that are no features: target, key, split, dropped ones. Raw rows may have them.

        A bundle that was made without an experiment knows of none.
        """
        experiment = self.metadata.get("experiment")
        data = (experiment.get("data") if isinstance(experiment, dict) else None) or {}
        split, target = data.get("split") or {}, data.get("target") or ()
        named = [*([target] if isinstance(target, str) else target), *(data.get("drop") or ()), data.get("key")]
        named += [split.get("column"), split.get("group"), split.get("time")]
        return frozenset(filter(None, named)) - {*self.preprocessor.schema.names}

    def scores(self, frame: pd.DataFrame) -> np.ndarray:
        """Probabilities, or regression values in original units, of raw rows with their columns in any order.

        Returns:
            (n, task.units) float64; n may be 0.

        Raises:
            SchemaError: missing, extra or mistyped columns, by name; `others` are left out.
        """
        if known := [name for name in frame.columns if name in self.others]:
            frame = frame.drop(columns=known)
        if not len(frame):
            self.preprocessor.schema.align(frame)
            return np.empty((0, self.task.units))
        source = self.model if isinstance(self.model, Ensemble) else self.preprocessor
        return self.scores_of(source.batch(frame))

    @property
    def feed(self) -> Callable[[np.ndarray, Mapping[str, np.ndarray]], np.ndarray | Batch]:
        """What makes the features of raw numbers (n, columns) and arrays; see `RowTransform`."""
        return self.model.feed if isinstance(self.model, Ensemble) else self.preprocessor.feed

    def scores_of(self, features: training.Features) -> np.ndarray:
        """What `scores` gives, of n > 0 rows as `feed` gives them."""
        if isinstance(self.model, Ensemble):
            return self.model.scores(self.task, features)
        return ensemble.scores_of(self.model, self.task, features)

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Predictions as a user reads them, see `Task.predictions`, with the index of ``frame``; raises as `scores`."""
        return self.task.predictions(self.scores(frame), self.threshold).set_axis(frame.index, axis=0)

    def save(
        self,
        folder: Path | str,
        golden: pd.DataFrame,
        *,
        card: bool = False,
        raw: Callable[[Bundle, Path], None] | None = None,
        evaluation: Evaluation | None = None,
    ) -> None:
        """Write the bundle to a hidden sibling, load it from there, replay its golden rows, and rename it.

        A process that dies leaves no half bundle. A bundle at ``folder`` is replaced, anything else is refused.

        Args:
            folder: where to; its parents are made.
            golden: raw features, all train rows as a rule. At most `GOLDEN_ROWS` are kept, some of them with missing
                values if there are any, and the distribution of all of them, to compare later rows with.
            card: whether to write the model card as well.
            raw: writes the network with its preprocessing inside as well: `forge_sweep.exports.write_raw`.
            evaluation: the test evaluation, kept beside the model as ``evaluation.npz``.

        Raises:
            BundleError: something else stands at ``folder``, a score is not finite, the metadata is not plain JSON, or
                the bundle as read back gives other scores; or ``raw.keras`` does, or it cannot hold this bundle.
        """

        def write(temporary: Path) -> None:
            about = {"format": layout.FORMAT, "kind": self.kind, "threshold": self.threshold, "metadata": self.metadata}
            if isinstance(self.model, Ensemble):
                about |= {"format": layout.ENSEMBLE_FORMAT, "members": self.model.about()}
            files.write_json(temporary / "bundle.json", {**about, "packages": versions()})
            files.write_json(temporary / "task.json", self.task.to_dict())
            files.write_json(temporary / "schema.json", self.preprocessor.schema.to_dict())
            self.preprocessor.save(temporary)
            security.write_scaler(self.preprocessor, temporary)
            if isinstance(self.model, Ensemble):
                self.model.save(temporary, _write_model)
            else:
                _write_model(self.model, temporary / layout.MODEL_FILES[self.kind])
            if self.code is not None and "network" in self.kinds:
                layout.write_code(temporary, self.code)
            rows, profile = choose_golden(golden), Profile.learn(golden, RowTransform(self.preprocessor))
            write_golden(temporary, rows, self.scores(rows), profile)
            if raw is not None:
                raw(self, temporary)
            if evaluation is not None:
                evaluation.save(temporary)
            if card:
                for name, text in card_of(temporary).texts().items():
                    (temporary / name).write_text(text, encoding="utf-8")
            files.write_manifest(temporary)
            # Trusted: this process has built its model with that code.
            Bundle.load(temporary, verify=True, trust=True)

        files.replace_whole(Path(folder), write)

    @classmethod
    def load(
        cls, folder: Path | str, *, verify: bool = False, trust: bool | str = False, policy: Policy = "warn"
    ) -> Bundle:
        """Read a bundle; no code in it is run without ``trust``, and nothing is parsed before every file was checked.

        Under other versions of what computes it (Keras and its backend, NumPy, scikit-learn, XGBoost, CUDA) than it was
        saved with, the golden rows are always replayed.

        Args:
            folder: what `save` wrote, or a copy.
            verify: also replay the golden rows under the same versions.
            trust: run the source of the user's own network that lies in the bundle, where its layers need it; or only
                source with this digest, see `forge_sweep.experiment.Code`.
            policy: under other versions, with the same golden scores: ``warn`` in the log, or ``refuse``.

        Raises:
            BundleError: a file is missing, unexpected, changed or not a regular file (by name), cannot be read or holds
                what is not trusted; the format is unknown, a golden score differs, or versions do and the policy
                is to refuse.
        """
        folder = Path(folder)
        about = read_about(folder, files.check_manifest(folder))
        with _readable(folder / "task.json", about):
            task = task_of(files.read_json(folder / "task.json"))
        with _readable(folder / "preprocessor.json", about):
            security.check_npz(folder / "preprocessor.npz")
            preprocessor = Preprocessor.load(folder)
            # Others go by the copies beside it, which therefore have to say the same.
            if Schema.from_dict(files.read_json(folder / "schema.json")) != preprocessor.schema:
                raise BundleError(f"{folder}: schema.json and preprocessor.json describe different columns")
            if (folder / SCALER).exists():
                security.check_scaler(folder, preprocessor)
        ((_, first), *_) = model_files(about)
        with _readable(folder / first, about):
            code = layout.read_code(folder, about)
            trusted = trust is True or (code is not None and trust == code.digest)

            def read(kind: str, path: Path, columns: int) -> keras.Model | Baseline:
                with _readable(path, about):
                    return _read_model(kind, path, about, task, columns, code, trusted)

            if about["kind"] == ENSEMBLE:
                model: keras.Model | Baseline | Ensemble = ensemble.load(folder, about, preprocessor, read)
            else:
                model = read(about["kind"], folder / first, len(preprocessor.output_names))
        if (folder / RAW).exists():
            with _readable(folder / RAW, about):
                network.check(folder / RAW, code, trust=trusted, raw=True)
        Evaluation.load(folder)  # nothing predicts with it, but an unreadable file is refused like the others
        bundle = cls(model, preprocessor, task, float(about["threshold"]), about["metadata"], code)
        other, tolerance = _compared(about["packages"], _computing(about)), GOLDEN_TOLERANCE
        if "network" in kinds_of(about) and (running := training.running_backend()) != _backend(about):
            other.append(f"backend {_backend(about)} (here {running})")
            tolerance = BACKEND_TOLERANCE
        if verify or other:
            frame, scores = read_golden(folder)
            difference = float(np.abs(bundle.scores(frame) - scores).max())
            allowed = tolerance * max(1.0, float(np.abs(scores).max()))
            if not difference <= allowed:
                raise BundleError(
                    f"{folder} gives other golden scores than when it was saved: {difference:.3g} off, "
                    f"{allowed:.1g} allowed",
                    hint=_hint(about["packages"]),
                )
        if policy not in ("warn", "refuse"):
            raise InputError(f"policy = {policy!r} is unknown", hint="use warn or refuse")
        if other:
            text = f"{folder} was made with {', '.join(other)}; its golden rows give the same scores here"
            if policy == "refuse":
                hint = "install these versions, or load it with policy warn"
                raise BundleError(f"{text}, and the policy is to refuse other versions", hint=hint)
            _log.warning("%s", text)
        return bundle


def ready_backend(folder: Path | str) -> None:
    """Load Keras, without its backend's noise, on that which a bundle's network was trained on.

    Where Keras runs already, or ``KERAS_BACKEND`` names another backend, that one predicts: `Bundle.load` then compares
    the golden scores, see `BACKEND_TOLERANCE`.

    Raises:
        InputError: that backend is not installed.
    """
    folder = Path(folder)
    about = read_about(folder, files.check_manifest(folder))
    if "network" in kinds_of(about):
        training.select_backend(training.running_backend() or _backend(about))
        training.load_backend()


def replay_golden(folder: Path | str, bundle: Bundle | None = None) -> float:
    """The largest difference of a golden score when a saved bundle predicts again, or ``bundle`` in its place."""
    folder = Path(folder)
    if bundle is None:
        bundle = Bundle.load(folder)
    else:
        files.check_manifest(folder)
    frame, scores = read_golden(folder)
    return float(np.abs(bundle.scores(frame) - scores).max())


def _write_model(model: keras.Model | Baseline, path: Path) -> None:
    if not isinstance(model, Baseline):
        network.save(model, path)
    elif model.kind == "constant":
        files.write_json(path, list(model.model))
    elif model.kind == "xgboost":
        model.model.save_model(path)
    else:
        trees.save(model.model, path)


@contextlib.contextmanager
def _readable(path: Path, about: dict[str, Any]) -> Iterator[None]:
    """Errors of the libraries become ours, which name the file and the versions it was written with."""
    try:
        yield
    except ForgeSweepError:
        raise
    except Exception as error:
        raise BundleError(f"{path} cannot be read: {error}", hint=_hint(about["packages"])) from error


def _read_model(
    kind: str, path: Path, about: dict[str, Any], task: Task, n_features: int, code: Code | None, trust: bool
) -> keras.Model | Baseline:
    if kind == "network":
        return network.load(path, code, trust=trust)
    if kind == "constant":
        model: Any = tuple(float(value) for value in files.read_json(path))
    elif kind == "xgboost":
        trees.check_booster(path, n_features)
        model = baselines.load_xgboost(path, task)
    else:
        model = trees.load(path, n_features)
    return Baseline(kind, model, about["metadata"].get("params", {}), task)


# Versions: under others than it was made with, a bundle has to give its golden scores first


@functools.cache
def versions() -> dict[str, str]:
    """Versions of the packages that decide whether a model file can be read, and of the GPU driver's CUDA."""
    found = {"forge-sweep": __version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found | {_CUDA: environment.cuda_version()}


def _computing(about: Mapping[str, Any]) -> tuple[str, ...]:
    """The packages that compute a bundle's predictions."""
    backend = _backend(about)
    engine = ("jax", "jaxlib") if backend == "jax" else (backend,)
    by_kind = {"network": ("keras", *engine, _CUDA), "xgboost": ("xgboost", "xgboost-cpu"), "constant": ()}
    engines = (name for kind in kinds_of(about) for name in by_kind.get(kind, ("skops",)))
    return ("numpy", "scikit-learn", *dict.fromkeys(engines))


def _backend(about: Mapping[str, Any]) -> str:
    """The backend that a bundle's network was trained on; one made without an experiment is taken for TensorFlow's."""
    experiment = about["metadata"].get("experiment")
    return str(experiment.get("backend", "tensorflow") if isinstance(experiment, dict) else "tensorflow")


def _hint(written: Mapping[str, str]) -> str:
    other = _compared(written, tuple(written))
    return f"install what it was written with: {', '.join(other)}" if other else "save it again from its run"


def _compared(written: Mapping[str, str], names: tuple[str, ...]) -> list[str]:
    """What has another version here, such as ``keras==3.14.0 (here 3.15.1)``."""
    here = versions()
    return [
        f"{name}=={written[name]} (here {here.get(name, 'none')})"
        for name in names
        if name in written and written[name] != here.get(name)
    ]
