"""What a bundle's folder holds, as one flat folder of plain data.

```
bundle.json          format version, kind, threshold, metadata, package versions
task.json            targets, labels, head, target scale
schema.json          columns that `predict` takes (a copy for readers; the preprocessor has its own)
preprocessor.json    impute, encode and scale: settings ...
preprocessor.npz     ... and learned arrays
model.keras          the network            | tree.json: XGBoost's own JSON | tree.skops: scikit-learn | constant.json
raw.keras            with model.preprocessing = "in_model": the network with its preprocessing inside, for plain Keras;
                     raw.keras.inputs.json says which input takes which column
scaler.joblib        the fitted scikit-learn scaler for people who load it themselves; absent with scaler = "none"
golden.json          some train rows as they came, their scores when the bundle was saved, and the profile of train
member0.model.keras  of an ensemble, in place of the model: its members in their order, under the names above;
                     bundle.json has their weights, and which preprocessor is theirs
preprocessor1.json   of an ensemble, with .npz: the preprocessors that differ from the first one
evaluation.npz       of a registered model: its test evaluation, see `Evaluation`
card.md, card.html   of a registered model: its card
code.NAME.py         of a network of the user's own: its source, one file per module, as it was
manifest.json        SHA-256 of every other file
```

An ensemble has format 2, everything else format 1: versions that know of no ensembles refuse one by its format.
A later format may change everything but the layout of ``manifest.json`` and the key ``format`` in ``bundle.json``.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from forge_sweep import __version__
from forge_sweep.bundle import files
from forge_sweep.checks.profile import Profile
from forge_sweep.errors import BundleError, ExperimentError
from forge_sweep.experiment import Code
from forge_sweep.experiment.code import from_files, is_own
from forge_sweep.preprocessing import cells as tensor_cells
from forge_sweep.preprocessing import in_memory, is_tensor

FORMAT = 1
ENSEMBLE_FORMAT = 2
ENSEMBLE = "ensemble"
MOST_MEMBERS = 1000

MODEL_FILES = {
    "network": "model.keras",
    "constant": "constant.json",
    "random_forest": "tree.skops",
    "hist_gradient_boosting": "tree.skops",
    "xgboost": "tree.json",
}
RAW = "raw.keras"
RAW_FILES = {RAW, f"{RAW}.inputs.json"}
GOLDEN = "golden.json"
EVALUATION = "evaluation.npz"
MARKDOWN, HTML = "card.md", "card.html"
CARD_FILES = frozenset({MARKDOWN, HTML})
SCALER = "scaler.joblib"
CODE = re.compile(r"code\.([A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*)\.py", re.ASCII)

REQUIRED = {"bundle.json", "task.json", "schema.json", "preprocessor.json", "preprocessor.npz", GOLDEN}

GOLDEN_ROWS = 20
GOLDEN_VALUES = 2_000_000  # of arrays in golden rows: fewer rows are kept where they are large images

TENSOR = "array of "
"""In golden.json before the type of the numbers of a column of arrays."""


def read_about(folder: Path, listed: set[str]) -> dict[str, Any]:
    """``bundle.json``, once its format is known and the ``listed`` files are exactly those of its kind."""
    files.refuse(folder, {"missing": {"bundle.json"} - listed})
    path = folder / "bundle.json"
    about = files.read_json(path)
    if not isinstance(about, dict):
        raise BundleError(f"{path} is not a table")
    if (about.get("format"), about.get("kind") == ENSEMBLE) not in ((FORMAT, False), (ENSEMBLE_FORMAT, True)):
        writer = about.get("packages", {}).get("forge-sweep", "a later one")
        raise BundleError(
            f"{folder} has bundle format {about.get('format')!r}, and forge-sweep {__version__} reads format {FORMAT} "
            f"(of an ensemble: {ENSEMBLE_FORMAT})",
            hint=f"install the forge-sweep that wrote it: {writer}",
        )
    if absent := {"kind", "threshold", "metadata", "packages"} - about.keys():
        raise BundleError(f"{path} lacks {', '.join(sorted(absent))}")
    if about["kind"] == ENSEMBLE and (wrong := _wrong_members(about.get("members"))):
        raise BundleError(f"{path}: {wrong}", hint="do not use this folder")
    if about["kind"] not in (ENSEMBLE, *MODEL_FILES):
        raise BundleError(f"{path}: kind {about['kind']!r} is none of {', '.join((*MODEL_FILES, ENSEMBLE))}")
    expected = REQUIRED | {name for _, name in model_files(about)}
    if about["kind"] == ENSEMBLE:
        others = sorted({member["preprocessor"] for member in about["members"]})[1:]
        expected |= {f"{preprocessor_name(i)}.{ending}" for i in others for ending in ("json", "npz")}
    if about["kind"] == "network" and listed & RAW_FILES:  # both or none, and of networks only
        expected |= RAW_FILES
    if "network" in kinds_of(about) and own_builder(about["metadata"]):
        expected |= {name for name in listed if CODE.fullmatch(name)}
    optional = {SCALER, EVALUATION, *CARD_FILES}
    files.refuse(folder, {"missing": expected - listed, "unexpected": listed - expected - optional})
    return about


def kinds_of(about: Mapping[str, Any]) -> tuple[str, ...]:
    """The kinds of the models that a bundle holds: one, or those of an ensemble's members in their order."""
    if about["kind"] == ENSEMBLE:
        return tuple(member["kind"] for member in about["members"])
    return (about["kind"],)


def model_files(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Kind and file of every model that a bundle holds."""
    if about["kind"] != ENSEMBLE:
        return [(about["kind"], MODEL_FILES[about["kind"]])]
    return [(kind, f"member{i}.{MODEL_FILES[kind]}") for i, kind in enumerate(kinds_of(about))]


def preprocessor_name(position: int) -> str:
    """Name of the files of a preprocessor, without their endings."""
    return f"preprocessor{position}" if position else "preprocessor"


def _wrong_members(members: Any) -> str:
    """What is wrong with the list of an ensemble's members; "" for nothing."""
    if not isinstance(members, list) or not 1 <= len(members) <= MOST_MEMBERS:
        return f"an ensemble has 1 to {MOST_MEMBERS} members"
    for member in members:
        if not isinstance(member, dict) or member.keys() != {"kind", "preprocessor", "weight"}:
            return "a member of the ensemble is not given by kind, preprocessor and weight"
        if not isinstance(member["kind"], str) or member["kind"] not in MODEL_FILES:
            return f"a member of kind {member['kind']!r}, which is none of {', '.join(MODEL_FILES)}"
        if type(member["preprocessor"]) is not int:
            return f"a member with the preprocessor {member['preprocessor']!r}"
        if type(member["weight"]) is not float or not 0 < member["weight"] <= 1:
            return f"a member of weight {member['weight']!r}; expected a share above 0"
    if abs(sum(member["weight"] for member in members) - 1) > 1e-9:
        return "the weights of the members do not sum to 1"
    if (found := {member["preprocessor"] for member in members}) != set(range(len(found))):
        return "the members name preprocessors that are not there"
    return ""


def own_builder(metadata: Mapping[str, Any]) -> str:
    """The function of the user's own that built a model, or ""."""
    try:
        builder = metadata["experiment"]["model"]["builder"]
    except (KeyError, TypeError):
        return ""
    return str(builder) if is_own(builder) else ""


def write_code(folder: Path, code: Code) -> None:
    """Write the source of an own builder."""
    for name, text in code.files.items():
        (folder / f"code.{name}.py").write_text(text, encoding="utf-8", newline="")


def read_code(folder: Path, about: Mapping[str, Any]) -> Code | None:
    """The source of an own builder, where the bundle holds it; none of it is run."""
    named = {path.name: found[1] for path in folder.iterdir() if (found := CODE.fullmatch(path.name))}
    builder = own_builder(about["metadata"])
    if not named or not builder:
        return None
    try:
        texts = {name: (folder / path).read_bytes().decode("utf-8") for path, name in named.items()}
        module, _, function = builder.partition(":")
        code = from_files(module, function, texts)
    except (ExperimentError, UnicodeDecodeError) as error:
        raise BundleError(f"{folder} holds source that cannot be read: {error}") from error
    recorded = about["metadata"]["experiment"]["model"].get("code")
    if recorded != code.digest:
        raise BundleError(
            f"{folder} holds other source than its metadata name: digest {code.digest[:12]}, recorded "
            f"{str(recorded)[:12]}",
            hint="do not use this folder",
        )
    return code


def choose_golden(frame: pd.DataFrame) -> pd.DataFrame:
    """At most `GOLDEN_ROWS` rows in their order: up to a quarter with missing values, and the first others.

    Of large arrays there are fewer, see `GOLDEN_VALUES`.
    """
    if not len(frame):
        raise BundleError("a bundle needs golden rows, and none was given", hint="give some rows of train")
    size = sum(frame[name].iloc[0].size for name in frame.columns if is_tensor(frame[name]))
    most = max(2, min(GOLDEN_ROWS, GOLDEN_VALUES // size)) if size else GOLDEN_ROWS
    gaps = np.flatnonzero(frame.isna().any(axis=1))[: most // 4]
    others = np.setdiff1d(np.arange(len(frame)), gaps)[: most - len(gaps)]
    return in_memory(frame.iloc[np.sort(np.concatenate([gaps, others]))])


def write_golden(folder: Path, frame: pd.DataFrame, scores: np.ndarray, profile: Profile | None = None) -> None:
    """Write rows, scores and the profile of train as JSON: every float reads back as the same float.

    Arrays are base64 of their values in little-endian order; bundles of before that have nested lists.
    """
    if not np.isfinite(scores).all():
        raise BundleError("the model gives scores that are not finite; such a model is not saved")
    cells = [[as_json(cell) for cell in frame[name].tolist()] for name in frame.columns]
    arrays = {name: f"{TENSOR}{frame[name].iloc[0].dtype}" for name in frame.columns if is_tensor(frame[name])}
    shapes = {name: list(frame[name].iloc[0].shape) for name in arrays}
    golden = {
        "columns": list(frame.columns),
        **({"shapes": shapes} if shapes else {}),
        "dtypes": [arrays.get(name, str(frame[name].dtype)) for name in frame.columns],
        "rows": [list(row) for row in zip(*cells, strict=True)],
        "scores": scores.tolist(),
        "profile": None if profile is None else profile.to_dict(),
    }
    files.write_json(folder / GOLDEN, golden)


def as_json(cell: Any) -> Any:
    """A cell as JSON has it; a missing one is null."""
    if isinstance(cell, np.ndarray):
        return base64.b64encode(cell.astype(cell.dtype.newbyteorder("<")).tobytes()).decode()
    if pd.isna(cell):
        return None
    return cell.item() if isinstance(cell, np.generic) else cell


def read_golden(folder: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """The golden rows and their scores, (rows, units)."""
    golden = files.read_json(folder / GOLDEN)
    try:
        cells = zip(*golden["rows"], strict=True)
        columns = zip(golden["columns"], golden["dtypes"], cells, strict=True)
        shapes = golden.get("shapes", {})
        kept = {name: _column(values, dtype, shapes.get(name)) for name, dtype, values in columns}
        frame = pd.DataFrame(kept)
        scores = np.asarray(golden["scores"], dtype=np.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{folder / GOLDEN} cannot be read: {error}") from error
    if not len(frame) or len(scores) != len(frame):
        raise BundleError(f"{folder / GOLDEN} has {len(frame)} rows and {len(scores)} scores")
    return frame, scores


def _column(values: Sequence[Any], dtype: str, shape: Sequence[int] | None) -> pd.Series:
    if dtype.startswith(TENSOR):
        kind = np.dtype(dtype.removeprefix(TENSOR))
        if shape is None:
            return pd.Series(tensor_cells(np.asarray(values, kind)), dtype=object)
        flat = (np.frombuffer(base64.b64decode(text, validate=True), kind.newbyteorder("<")) for text in values)
        return pd.Series(tensor_cells(np.stack([each.reshape(shape) for each in flat]).astype(kind)), dtype=object)
    return pd.Series(values, dtype=dtype if is_numeric_dtype(dtype) else "object")


def read_profile(folder: Path) -> Profile | None:
    """How the training rows were distributed; None for a bundle that was saved before bundles kept it."""
    values = files.read_json(folder / GOLDEN).get("profile")
    try:
        return None if values is None else Profile.from_dict(values)
    except (AttributeError, KeyError, TypeError) as error:
        raise BundleError(f"{folder / GOLDEN} has a profile that cannot be read: {error}") from error
