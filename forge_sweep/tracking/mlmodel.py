"""MLflow's part of a registered model: what `mlflow.pyfunc.load_model` and `mlflow models serve` would run and install.

The manifest of a bundle covers the bundle. Beside it lie files that are MLflow's: ``MLmodel`` names the module that
loads it and may name code to import before, and three files list packages to install. Whoever changes these decides
what runs wherever the version is loaded, so a version counts as ours only where they are as registration wrote them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from forge_sweep.errors import BundleError

LOADER = "forge_sweep.tracking"
ALWAYS = ("forge-sweep", "mlflow", "numpy", "pandas", "scikit-learn")
BY_BACKEND = {"tensorflow": ("tensorflow", "tensorflow-cpu"), "jax": ("jax",), "torch": ("torch",)}
BY_KIND: dict[str, tuple[str, ...]] = {
    "xgboost": ("xgboost", "xgboost-cpu"),
    "random_forest": ("skops",),
    "hist_gradient_boosting": ("skops",),
    "constant": (),
}
"""Packages that a registered model requires, each pinned."""

LARGEST = 16_000_000
"""Bytes of a file of MLflow's that is parsed."""

HINT = "do not load this version, with MLflow least of all; register the model again from its sweep"

_REQUIRED = frozenset(
    {*ALWAYS, "keras", *(name for names in (*BY_BACKEND.values(), *BY_KIND.values()) for name in names)}
)
_PINNED = re.compile(r"([a-z0-9-]+)==([0-9A-Za-z.]+)")
_CONDA = re.compile(r"(python|pip)([<>=]=?[0-9.]+)?")
_BUILD = re.compile(r"(pip|setuptools|wheel)(==[0-9A-Za-z.]+)?")

_FILES = frozenset({"MLmodel", "requirements.txt", "conda.yaml", "python_env.yaml", "registered_model_meta"})
_SETTINGS = frozenset({"code", "data", "env", "loader_module", "python_version", "streamable"})


class ForeignModel(BundleError):
    """A version that MLflow would load with other code, or into other packages, than registration recorded."""


def bundle_in(model: Path, uri: str) -> Path:
    """The bundle's folder in a downloaded model, once nothing beside it can run or install anything of its own.

    Args:
        model: what was downloaded.
        uri: its name, for messages.

    Raises:
        ForeignModel: something was added or changed since it was registered.
        BundleError: it is no model of ours at all.
    """
    if not any(model.glob("**/manifest.json")):
        raise BundleError(f"{uri} holds no bundle", hint="register models with forge-sweep run")
    if problems := list(_problems(model)):
        raise ForeignModel(
            f"{uri} is not as forge-sweep registers a model: {'; '.join(problems)}",
            hint=HINT,
        )
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
    pinned = _lines(model / "requirements.txt")
    yield from _packages(pinned, model / "data" / folders[0] / "bundle.json")
    yield from _environments(model, pinned)


def _flavors(about: Any, data: str) -> Iterator[str]:
    """What ``MLmodel`` would run."""
    flavors = about.get("flavors") if isinstance(about, dict) else None
    if not isinstance(flavors, dict) or not isinstance(settings := flavors.get("python_function"), dict):
        yield "MLmodel has no flavor python_function"
        return
    if others := flavors.keys() - {"python_function"}:
        yield f"MLmodel has more flavors: {', '.join(sorted(map(str, others)))}"
    if others := settings.keys() - _SETTINGS:
        yield f"MLmodel has more settings: {', '.join(sorted(map(str, others)))}"
    expected = {"loader_module": LOADER, "code": None, "data": data}
    for name, value in expected.items():
        if settings.get(name) != value:
            yield f"MLmodel has {name} = {settings.get(name)!r}, expected {value!r}"
    files = settings.get("env") or {}
    if files not in ("conda.yaml", {}) and files != {"conda": "conda.yaml", "virtualenv": "python_env.yaml"}:
        yield f"MLmodel has env = {files!r}"


def _packages(pinned: list[str], about: Path) -> Iterator[str]:
    """Requirements are packages that models of ours need, at the versions that the bundle was saved with."""
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
    """The two files for conda and virtualenv say what ``requirements.txt`` says."""
    path = model / "conda.yaml"
    if path.is_file():
        conda = _yaml(path)
        listed = conda.get("dependencies", []) if isinstance(conda, dict) else [conda]
        tables = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else [listed]
        plain = [str(each) for each in listed if not isinstance(each, dict)] if isinstance(listed, list) else []
        known = isinstance(conda, dict) and conda.keys() <= {"channels", "dependencies", "name"}
        if (
            not known
            or conda.get("channels", ["conda-forge"]) != ["conda-forge"]
            or not all(map(_CONDA.fullmatch, plain))
            or any(table != {"pip": pinned} for table in tables)
        ):
            yield "conda.yaml asks for other packages than requirements.txt"
    path = model / "python_env.yaml"
    if path.is_file():
        env = _yaml(path)
        built = env.get("build_dependencies") or [] if isinstance(env, dict) else None
        if (
            not isinstance(built, list)
            or not env.keys() <= {"python", "build_dependencies", "dependencies"}
            or not all(_BUILD.fullmatch(str(each)) for each in built)
            or (env.get("dependencies") or ["-r requirements.txt"]) != ["-r requirements.txt"]
        ):
            yield "python_env.yaml asks for other packages than requirements.txt"


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _yaml(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())[:200]
        raise ForeignModel(f"{path.name} of a registered model is no YAML: {problem}", hint=HINT) from error
