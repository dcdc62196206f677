"""MLflow's files of a registered model: what `mlflow.pyfunc.load_model` would run, and what it would install.

The manifest of a bundle covers only the bundle. Whoever changes the files beside it decides what runs wherever the
version is loaded, so they have to be exactly as registration wrote them. The loader that MLflow calls is here, too.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_sweep.errors import BundleError, InputError, NotTrusted

if TYPE_CHECKING:
    import pandas as pd

    from forge_sweep.bundle import Bundle

LOADER = "forge_sweep.tracking"
ALWAYS = ("forge-sweep", "mlflow", "numpy", "pandas", "scikit-learn")
BY_BACKEND = {"tensorflow": ("tensorflow", "tensorflow-cpu"), "jax": ("jax", "jaxlib"), "torch": ("torch",)}
BY_KIND: dict[str, tuple[str, ...]] = {
    "xgboost": ("xgboost", "xgboost-cpu"),
    "random_forest": ("skops",),
    "hist_gradient_boosting": ("skops",),
    "constant": (),
}
"""Packages that a registered model requires, each pinned."""

LARGEST = 16_000_000  # bytes of a file that is parsed

HINT = "do not load this version, with MLflow least of all; register the model again from its sweep"

_REQUIRED = frozenset(
    {*ALWAYS, "keras", *(name for names in (*BY_BACKEND.values(), *BY_KIND.values()) for name in names)}
)
_PINNED = re.compile(r"([a-z0-9-]+)==([0-9A-Za-z.]+)")
_CONDA = re.compile(r"(python|pip)([<>=]=?[0-9.]+)?")
_BUILD = re.compile(r"(pip|setuptools|wheel)(==[0-9A-Za-z.]+)?")

_FILES = frozenset({"MLmodel", "requirements.txt", "conda.yaml", "python_env.yaml", "registered_model_meta"})
_SETTINGS = frozenset({"code", "config", "data", "env", "loader_module", "python_version", "streamable"})

UNTRUSTED = {"trust": False}
"""The ``model_config`` of an own model: MLflow takes from its caller only settings that are there already."""


class ForeignModel(BundleError):
    """A version for which MLflow would load other code or install other packages than registration recorded."""


def bundle_in(model: Path, uri: str) -> Path:
    """The bundle's folder in a downloaded model, after checking that nothing beside it runs or installs anything else.

    Raises:
        ForeignModel: something was added or changed since registration.
        BundleError: it is not a forge-sweep model.
    """
    if not any(model.glob("**/manifest.json")):
        raise BundleError(f"{uri} holds no bundle", hint="register models with forge-sweep run")
    if problems := list(_problems(model)):
        raise ForeignModel(f"{uri} is not as forge-sweep registers a model: {'; '.join(problems)}", hint=HINT)
    return next((model / "data").iterdir())


def _problems(model: Path) -> Iterator[str]:
    with os.scandir(model) as entries:
        regular = {entry.name: entry.is_file(follow_symlinks=False) for entry in entries}
    for name in sorted(regular.keys() - {"data"}):
        if name not in _FILES or not regular[name]:
            yield f"{name} does not belong there"
        elif (model / name).stat().st_size > LARGEST:
            yield f"{name} has more than {LARGEST // 1_000_000} MB"
            return
    folders = [path.name for path in (model / "data").iterdir()] if (model / "data").is_dir() else []
    if len(folders) != 1:
        yield f"data holds {', '.join(sorted(folders)) or 'nothing'}, expected the bundle alone"
        return
    if "MLmodel" not in regular:
        yield "there is no MLmodel"
        return
    yield from _flavors(_yaml(model / "MLmodel"), f"data/{folders[0]}")
    path = model / "requirements.txt"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    pinned = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    yield from _packages(pinned, model / "data" / folders[0] / "bundle.json")
    yield from _environments(model, pinned)


def _flavors(about: Any, data: str) -> Iterator[str]:
    flavors = about.get("flavors") if isinstance(about, dict) else None
    if not isinstance(flavors, dict) or not isinstance(settings := flavors.get("python_function"), dict):
        yield "MLmodel has no flavor python_function"
        return
    if others := flavors.keys() - {"python_function"}:
        yield f"MLmodel has more flavors: {', '.join(sorted(map(str, others)))}"
    if others := settings.keys() - _SETTINGS:
        yield f"MLmodel has more settings: {', '.join(sorted(map(str, others)))}"
    for name, value in {"loader_module": LOADER, "code": None, "data": data}.items():
        if settings.get(name) != value:
            yield f"MLmodel has {name} = {settings.get(name)!r}, expected {value!r}"
    if settings.get("config") not in (None, UNTRUSTED):
        yield f"MLmodel has config = {settings.get('config')!r}"
    files = settings.get("env") or {}
    if files not in ("conda.yaml", {}) and files != {"conda": "conda.yaml", "virtualenv": "python_env.yaml"}:
        yield f"MLmodel has env = {files!r}"


def _packages(pinned: list[str], about: Path) -> Iterator[str]:
    # Only packages that our models need, at the versions with which the bundle was saved.
    try:
        saved = json.loads(about.read_text(encoding="utf-8"))["packages"]
        versions = {str(name): str(version).partition("+")[0] for name, version in saved.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        versions = {}  # a broken bundle.json is refused where the bundle is read
    for line in pinned:
        found = _PINNED.fullmatch(line)
        if found is None or found[1] not in _REQUIRED:
            yield f"requirements.txt asks for {line!r}"
        elif versions.get(found[1], found[2]) != found[2]:
            yield f"requirements.txt asks for {line!r}; the bundle was saved with {versions[found[1]]}"


def _environments(model: Path, pinned: list[str]) -> Iterator[str]:
    # The files for conda and virtualenv have to agree with requirements.txt.
    if (path := model / "conda.yaml").is_file():
        env = _yaml(path)
        listed = env.get("dependencies", []) if isinstance(env, dict) else None
        if (
            not isinstance(listed, list)
            or not env.keys() <= {"channels", "dependencies", "name"}
            or env.get("channels", ["conda-forge"]) != ["conda-forge"]
            or not all(each == {"pip": pinned} or _CONDA.fullmatch(str(each)) for each in listed)
        ):
            yield "conda.yaml asks for other packages than requirements.txt"
    if (path := model / "python_env.yaml").is_file():
        env = _yaml(path)
        built = env.get("build_dependencies") or [] if isinstance(env, dict) else None
        if (
            not isinstance(built, list)
            or not env.keys() <= {"python", "build_dependencies", "dependencies"}
            or not all(_BUILD.fullmatch(str(each)) for each in built)
            or (env.get("dependencies") or ["-r requirements.txt"]) != ["-r requirements.txt"]
        ):
            yield "python_env.yaml asks for other packages than requirements.txt"


def _yaml(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())[:200]
        raise ForeignModel(f"{path.name} of a registered model is not valid YAML: {problem}", hint=HINT) from error


class BundleModel:
    """The model that ``mlflow.pyfunc.load_model`` returns."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Predictions for raw rows, index kept, columns in any order; MLflow passes `params`, a bundle has none.

        Raises:
            SchemaError: a column is missing or mistyped.
        """
        return self.bundle.predict(model_input)


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> BundleModel:
    """Called by MLflow with the bundle's folder inside the downloaded model.

    Whoever loads a model may say ``model_config={"trust": True}``, see `Bundle.load`. Whoever registers one may not:
    MLflow mixes the two, so that a model that was registered with other settings than `UNTRUSTED` is refused.
    """
    from forge_sweep.bundle import Bundle, ready_backend

    given = dict(model_config or {})
    trust = given.pop("trust", False)
    if given or not isinstance(trust, bool):
        named = ", ".join(map(repr, sorted(map(str, given)))) or f"trust = {trust!r}"
        raise InputError(f"model_config has {named}", hint='the one setting is model_config={"trust": True}')
    about = Path(path).parent.parent / "MLmodel"
    if trust and about.is_file():
        settings = _yaml(about)
        flavors = settings.get("flavors") if isinstance(settings, dict) else None
        ours = flavors.get("python_function") if isinstance(flavors, dict) else None
        if not isinstance(ours, dict) or ours.get("config") not in (None, UNTRUSTED):
            raise ForeignModel(f"{about} has settings that forge-sweep does not register; it is not trusted", hint=HINT)
    ready_backend(path)
    try:
        return BundleModel(Bundle.load(Path(path), trust=trust))
    except NotTrusted as error:
        error.hint = error.hint.replace("--trust (trust=True)", 'mlflow.pyfunc model_config={"trust": True}')
        raise
