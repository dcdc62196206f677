"""The environment guard: a bundle under other versions than it was made with has to give its golden scores first."""

from __future__ import annotations

import functools
import importlib.metadata
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from forge_sweep import __version__, environment
from forge_sweep.errors import BundleError, InputError

Policy = Literal["warn", "refuse"]
"""What happens where versions differ and the golden rows give the same scores."""

PACKAGES = ("numpy", "pandas", "scikit-learn", "skops", "keras", "tensorflow", "jax", "torch", "xgboost-cpu", "xgboost")

COMPUTE = {
    "network": ("keras",),
    "random_forest": ("skops",),
    "hist_gradient_boosting": ("skops",),
    "xgboost": ("xgboost", "xgboost-cpu"),
    "constant": (),
}
"""Packages that compute a kind of model, besides NumPy and scikit-learn; a network's backend comes on top."""

CUDA = "CUDA"

_log = logging.getLogger("forge_sweep")


@functools.cache
def versions() -> dict[str, str]:
    """Versions of the packages that decide whether a model file can be read, and of the GPU driver's CUDA."""
    found = {"forge-sweep": __version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found | {CUDA: environment.cuda_version()}


def differences(about: Mapping[str, Any]) -> list[str]:
    """What computes here in another version than where the bundle was saved, such as ``keras 3.14.0 (here 3.15.1)``.

    Args:
        about: ``bundle.json``.
    """
    return _compared(about["packages"], computing(about))


def computing(about: Mapping[str, Any]) -> tuple[str, ...]:
    """The packages that a bundle's predictions are computed by."""
    kind = about["kind"]
    if kind != "network":
        return ("numpy", "scikit-learn", *COMPUTE[kind])
    experiment = about["metadata"].get("experiment")
    backend = experiment.get("backend", "tensorflow") if isinstance(experiment, dict) else "tensorflow"
    return ("numpy", "scikit-learn", *COMPUTE[kind], str(backend), CUDA)


def judge(folder: Path, other: list[str], policy: Policy) -> None:
    """Warn of other versions, or refuse; the golden rows gave the same scores.

    Raises:
        BundleError: the policy is to refuse.
        InputError: there is no such policy.
    """
    if policy not in ("warn", "refuse"):
        raise InputError(f"policy = {policy!r} is unknown", hint="use warn or refuse")
    if not other:
        return
    text = f"{folder} was made with {', '.join(other)}"
    if policy == "refuse":
        raise BundleError(
            f"{text}; its golden rows give the same scores here, and the policy is to refuse other versions",
            hint="install these versions, or load it with policy warn",
        )
    _log.warning("%s; its golden rows give the same scores here", text)


def hint(written: Mapping[str, str]) -> str:
    """The fix for a file that this installation reads otherwise than it was written."""
    other = _compared(written, tuple(written))
    return f"install what it was written with: {', '.join(other)}" if other else "save it again from its run"


def _compared(written: Mapping[str, str], names: tuple[str, ...]) -> list[str]:
    here = versions()
    return [
        f"{name}=={written[name]} (here {here.get(name, 'none')})"
        for name in names
        if name in written and written[name] != here.get(name)
    ]
