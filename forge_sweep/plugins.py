"""Sources, builders, export formats and commands that installed distributions add, found by entry point.

A distribution adds one by declaring it, for instance in its ``pyproject.toml``::

    [project.entry-points."forge_sweep.sources"]
    lake = "my_package.lake:LakeSource"

from then on ``data.source = "lake"`` is known. What a distribution declares is imported where its name is used, and
nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from forge_sweep.errors import InputError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint  # imported where it is needed: every command imports this module


@dataclass(frozen=True)
class Group:
    """One kind of plugin.

    Attributes:
        name: the group of entry points.
        noun: what one of them is, such as ``source``.
        setting: how a user names one, such as ``data.source =``.
        own: names of the package's own; no other distribution can take them.
    """

    name: str
    noun: str
    setting: str
    own: tuple[str, ...]


SOURCES = Group("forge_sweep.sources", "source", "data.source =", ("file", "sample", "postgres"))
_NETWORKS = ("mlp", "realmlp", "tabm", "resnet", "ft_transformer")
BUILDERS = Group("forge_sweep.builders", "builder", "model.builder =", _NETWORKS)
FORMATS = Group("forge_sweep.formats", "export format", "--format", ("keras", "saved_model", "onnx", "tflite"))
COMMANDS = Group("forge_sweep.commands", "command", "forge-sweep", ("data",))

DECLARED = {
    (SOURCES.name, "postgres"): "forge_sweep.feature_store.source:FeatureStoreSource",
    (COMMANDS.name, "data"): "forge_sweep.feature_store.commands:app",
}
"""What our own ``pyproject.toml`` declares: a source tree works without being installed."""


def names(group: Group) -> tuple[str, ...]:
    """Every name that is known, the package's own first; nothing is imported."""
    return (*group.own, *sorted({each.name for each in _others(group)}))


def is_known(group: Group, name: str) -> bool:
    """Whether a name can be used; the installed distributions are asked only about names that are not our own."""
    return name in group.own or name in names(group)


def summary(group: Group, name: str) -> str:
    """What the distribution behind a name says of itself, in a line."""
    found = next((each for each in _others(group) if each.name == name), None)
    if found is None or found.dist is None:
        return ""
    about = found.dist.metadata
    return about["Summary"] if "Summary" in about else f"From {_distribution(found)}."


def load(group: Group, name: str, methods: Sequence[str] = ()) -> Any:
    """Import what stands behind a name that no table of the package has.

    Args:
        group: what is looked for.
        name: of the entry point.
        methods: what the object must have, to be one of these.

    Raises:
        InputError: the name is unknown, several distributions declare it, it cannot be imported, or is something else;
            says which distribution, and what to do.
    """
    from importlib.metadata import EntryPoint

    said = f'{group.setting} "{name}"' if group.setting.endswith("=") else f"{group.setting} {name}"
    declared = [each for each in _others(group) if each.name == name]
    if (group.name, name) in DECLARED:
        declared = [EntryPoint(name, DECLARED[group.name, name], group.name)]
    if len(declared) > 1:
        raise InputError(
            f"{said}: {' and '.join(map(_distribution, declared))} each declare a {group.noun} of this name",
            hint=f"keep one of them: pip uninstall {_project(declared[-1])}",
        )
    if not declared:
        raise InputError(
            f"{said}: no such {group.noun}; expected one of {', '.join(names(group))}",
            hint=f"use one of them, or install the distribution that declares {name} in the entry points {group.name}",
        )
    chosen = declared[0]
    try:
        found = chosen.load()
    except Exception as error:  # of any kind: it is somebody else's code
        raise InputError(
            f"{said}: {chosen.value} of {_distribution(chosen)} cannot be imported: {type(error).__name__}: {error}",
            hint=f"repair or remove it: pip install --force-reinstall {_project(chosen)}, or pip uninstall "
            f"{_project(chosen)}",
        ) from error
    if lacking := [method for method in methods if not callable(getattr(found, method, None))]:
        raise InputError(
            f"{said}: {chosen.value} of {_distribution(chosen)} is no {group.noun}: it has no {' or '.join(lacking)}",
            hint=f"install a version of {_project(chosen)} that fits this forge-sweep, or remove it",
        )
    return found


def _others(group: Group) -> list[EntryPoint]:
    """What other distributions declare; one that stands twice on the path, as in two folders, counts once."""
    from importlib.metadata import entry_points

    found = entry_points(group=group.name)
    return list({(_project(each), each.name): each for each in found if each.name not in group.own}.values())


def _project(found: EntryPoint) -> str:
    return "forge-sweep" if found.dist is None else found.dist.name


def _distribution(found: EntryPoint) -> str:
    return "forge-sweep" if found.dist is None else f"{found.dist.name} {found.dist.version}"
