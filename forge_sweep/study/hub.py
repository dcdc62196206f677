"""Samplers of OptunaHub by name: ``study.sampler = "auto"`` or ``"hub:samplers/NAME"``, and those of a folder.

A package of the hub is Python files that `optunahub` fetches from a repository, at a git ref, or reads from a folder.
They are code that runs here: the experiment names it, as it names a builder.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler

from forge_sweep.errors import InputError, MissingExtra, ResumeRefused
from forge_sweep.experiment.fields import HUB, is_of_hub
from forge_sweep.experiment.words import nearest

if TYPE_CHECKING:
    from types import ModuleType

    from forge_sweep.experiment import Experiment

AUTO = "samplers/auto_sampler:AutoSampler"
"""What ``auto`` stands for: Optuna's AutoSampler."""

REF = "main"
"""Git ref of the hub's registry where the experiment states none; what it was at the first use stays in the cache."""


@dataclass(frozen=True)
class Loaded:
    """A sampler of a package.

    Attributes:
        package: its path in the registry, such as ``samplers/auto_sampler``.
        name: of the class.
        ref: git ref that it was asked for at; "" of a folder.
        digest: SHA-256 (hex) of the package's Python files.
        version: of ``optunahub``.
    """

    package: str
    name: str
    ref: str
    digest: str
    version: str
    build: Callable[[int], BaseSampler] = field(compare=False, repr=False)

    def to_dict(self) -> dict[str, str]:
        """JSON values: what a study records."""
        return {name: getattr(self, name) for name in ("package", "name", "ref", "digest", "version")}


def load(experiment: Experiment) -> Loaded:
    """The sampler that an experiment names.

    Raises:
        MissingExtra: `optunahub` is not installed.
        InputError: there is no such package or class, it needs what is not installed, or it takes no seed.
    """
    study = experiment.study
    if importlib.util.find_spec("optunahub") is None:
        raise MissingExtra(f'study.sampler = "{study.sampler}"', "hub")
    folder = None if study.sampler_folder is None else (experiment.root / study.sampler_folder).resolve()
    wanted = AUTO if study.sampler == "auto" else study.sampler.removeprefix(HUB)
    package, _, name = wanted.partition(":")
    return _load(study.sampler, package, name, study.sampler_ref or REF, folder)


@functools.cache
def _load(sampler: str, package: str, name: str, ref: str, folder: Path | None) -> Loaded:
    said = f'study.sampler = "{sampler}"'
    module = _module(said, package, ref, folder)
    found = {
        each.__name__: each
        for each in vars(module).values()
        if inspect.isclass(each) and issubclass(each, BaseSampler) and each.__module__.startswith(module.__name__)
    }
    public = [each for each in found if each in getattr(module, "__all__", found)]
    if not name and len(public) != 1:
        raise InputError(f"{said}: {package} has {len(public)} samplers", hint=f"name one: {_named(package, public)}")
    name = name or public[0]
    if name not in found:
        raise InputError(f"{said}: {package} has no sampler {name}", hint=_named(package, public))
    kind = found[name]
    parameters = inspect.signature(kind).parameters
    if "seed" not in parameters:
        raise InputError(
            f"{said}: {name} takes no seed, so that no suggestion could be made again",
            hint="choose a sampler whose constructor has an argument seed",
        )
    needed = [
        each.name
        for each in parameters.values()
        if each.default is each.empty and each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    ]
    if other := [each for each in needed if each != "seed"]:
        raise InputError(
            f"{said}: {name} cannot be built without {', '.join(other)}, which no experiment file can give",
            hint="wrap it in a sampler of your own, in a folder: study.sampler_folder",
        )

    def build(seed: int) -> BaseSampler:
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            return cast("BaseSampler", cast(Any, kind)(seed=seed))

    return Loaded(package, name, "" if folder else ref, digest_of(module), _version(), build)


def _module(said: str, package: str, ref: str, folder: Path | None) -> ModuleType:
    try:
        import optunahub  # which looks for the program git

        found: ModuleType = (
            optunahub.load_module(package, ref=ref)
            if folder is None
            else optunahub.load_local_module(package, registry_root=str(folder))
        )
        return found
    except FileNotFoundError as error:
        where = f"OptunaHub at {ref}" if folder is None else str(folder)
        known = (
            []
            if folder is None
            else sorted(str(path.parent.relative_to(folder)) for path in folder.glob("*/*/__init__.py"))
        )
        hint = nearest(package, known) or "name a folder of it with an __init__.py, such as samplers/auto_sampler"
        raise InputError(f"{said}: {where} has no package {package}", hint=hint) from error
    except ImportError as error:
        hint = "install what it asks for; its page on hub.optuna.org says what that is"
        raise InputError(f"{said}: {package} cannot be imported: {_first_line(error)}", hint=hint) from error
    except Exception as error:  # of git, of GitHub's client, or of the package itself
        raise InputError(
            f"{said}: {package} cannot be loaded: {type(error).__name__}: {_first_line(error)}",
            hint="the hub is on github.com: fetch the package once where that can be reached and copy the folder that "
            "OPTUNAHUB_CACHE_HOME names, or lay the package in a folder of yours: study.sampler_folder",
        ) from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or ["no reason given"])[0][:300]


def _named(package: str, names: list[str]) -> str:
    return ", ".join(f'"{HUB}{package}:{name}"' for name in names) or "it has none"


def digest_of(module: ModuleType) -> str:
    """SHA-256 (hex) of a package's Python files and of where in it they are; its tests are none of it."""
    assert module.__file__ is not None  # a package that was loaded from files
    folder, digest = Path(module.__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder)
        if name.parts[0] not in ("tests", "example.py"):
            digest.update(f"{name.as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _version() -> str:
    import optunahub

    return str(optunahub.__version__)


def refuse_other(experiment: Experiment, recorded: Mapping[str, Any] | None, study: str) -> None:
    """Raise ResumeRefused where the sampler of a study was other files than are found now: it would suggest otherwise.

    ``recorded`` is what `Loaded.to_dict` gave; None of a study that has recorded none.
    """
    if recorded is None or not is_of_hub(experiment.study.sampler):
        return
    now, then = load(experiment), str(recorded["digest"])
    if then != now.digest:
        ref = f" (git ref {recorded['ref']})" if recorded["ref"] else ""
        raise ResumeRefused(
            f"study {study} was begun with another version of {now.package}:\n"
            f"  digest of its files: {then[:12]}{ref} -> {now.digest[:12]}",
            hint="put the files of before back: study.sampler_ref pins a commit, study.sampler_folder names a copy",
        )
