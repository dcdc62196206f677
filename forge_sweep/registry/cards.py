"""The card of a registered version, with what the registry knows of it."""

from __future__ import annotations

from pathlib import Path

from forge_sweep.bundle.card import Card, Section, card_of
from forge_sweep.bundle.files import check_manifest
from forge_sweep.registry.champions import Champions, Change, shown
from forge_sweep.tracking import ModelVersion, Registry


def make_card(model: str, version: str, *, store: Path) -> tuple[ModelVersion, Card]:
    """The card of a version, made anew; nothing is scored for it.

    Args:
        model: registered model.
        version: its number, or an alias as ``@champion``.
        store: folder of the embedded stores.

    Raises:
        InputError: there is no such version.
        BundleError: the bundle was changed.
        TrackingDown: the store cannot be reached.
    """
    registry = Registry(store)
    wanted = registry.version(model, version)
    changes = [each for each in Champions(registry, model).history() if wanted.version in (each.to, each.before)]
    with registry.bundle(wanted) as folder:
        check_manifest(folder)
        return wanted, card_of(folder, registered(wanted, changes))


def registered(version: ModelVersion, changes: list[Change]) -> Section:
    """Which version it is, and how it became and ceased to be the champion."""
    aliases = ", ".join(version.aliases) or "none"
    lines = [f"{version.uri}, registered {version.created}; aliases: {aliases}."]
    rows = tuple(
        (
            change.done[:19] or ("revoked" if change.revoked else "under way"),
            f"{change.action}: {shown(change.before)} -> {shown(change.to)}",
            change.who,
            change.reason,
            ", ".join(change.forced) or "-",
        )
        for change in changes
    )
    return Section("Registry", tuple(lines), ("when (UTC)", "change", "who", "why", "gates overruled"), rows)
