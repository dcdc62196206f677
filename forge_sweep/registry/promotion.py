"""`promote` and `rollback`; what is registered, and the card of a version."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from forge_sweep.bundle.card import Card, Section, card_of
from forge_sweep.bundle.files import check_manifest
from forge_sweep.checks.findings import Finding, Findings, errors
from forge_sweep.errors import BundleError, GateRefused, InputError, NotTrusted
from forge_sweep.experiment import PromotionSpec, load
from forge_sweep.registry.candidate import opened
from forge_sweep.registry.champions import CHAMPION, PREVIOUS, PROMOTE, ROLLBACK, Champions, Change, refuse_long, shown
from forge_sweep.registry.gates import Contest, contest, without_test
from forge_sweep.tracking import ForeignModel, ModelVersion, Registry, fetched

UNFIT = ("hashes", "loader", "trust")
"""Gates that ``--force`` does not overrule: such a version cannot be served, or should not be."""

Tell = Callable[[Finding], None]
Say = Callable[[str], None]


def _nothing(told: Any) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Promotion:
    """How a promotion ended; ``champion`` is the one until then, ``change`` is None where nothing was changed."""

    model: str
    version: str
    champion: str | None
    gates: tuple[Finding, ...]
    figures: Mapping[str, Any] = field(default_factory=dict)
    change: Change | None = None

    @property
    def refused(self) -> tuple[Finding, ...]:
        """The gates that refuse it."""
        return errors(self.gates)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "model": self.model,
            "version": self.version,
            "champion": self.champion,
            "promoted": self.change is not None,
            "refused": [finding.code for finding in self.refused],
            "gates": [asdict(gate) for gate in self.gates],
            "figures": dict(self.figures),
            "change": None if self.change is None else self.change.to_dict(),
        }


class Refused(GateRefused):
    """A promotion that gates refused; nothing was changed."""

    def __init__(self, promotion: Promotion) -> None:
        title = f"version {promotion.version} of {promotion.model} is not promoted; nothing was changed"
        super().__init__(title, promotion.refused)
        self.promotion = promotion


def promote(
    model: str,
    version: str,
    *,
    store: Path,
    dry_run: bool = False,
    force: str = "",
    reason: str = "",
    experiment: Path | None = None,
    trust: bool = False,
    tell: Tell = _nothing,
    say: Say = _nothing,
) -> Promotion:
    """Make a version (its number, or an alias as ``@challenger``) of a model the champion, if every gate lets it.

    Args:
        model: its name in the registry.
        version: which.
        store: folder of the embedded stores and of the ledger of test evaluations.
        dry_run: judge only; a test evaluation that this takes is recorded, and its figures are kept.
        force: promote whatever the gates say, for this reason; it is recorded with the gates that refused. A bundle
            that cannot be loaded, or that MLflow would load with other code than ours, is refused all the same.
        reason: why, for the record.
        experiment: file whose section ``[promotion]`` and folder are used; default: what the sweep recorded.
        trust: see `forge_sweep.bundle.Bundle.load`.
        tell: told every finding as it comes.
        say: told what was repaired first.

    Raises:
        Refused: gates refused it; nothing was changed.
        GateRefused: another promotion was faster; nothing was changed.
        InputError: there is no such version, or it is the champion.
    """
    refuse_long(force or reason)
    registry = Registry(store)
    wanted = registry.version(model, version)
    champions = Champions(registry, model)
    for text in champions.disagreements() if dry_run else champions.settle():
        say(text)
    seen, aliases = champions.seen(), registry.aliases(model)
    champion = aliases.get(CHAMPION)
    if champion == wanted.version:
        raise InputError(
            f"version {wanted.version} of {model} is the champion", hint=f"forge-sweep models history {model}"
        )
    rival, gone = champions.rival(wanted.version)
    found = judge(registry, wanted, rival, experiment, tell, gone=gone, forced=bool(force), trust=trust)
    judged = Promotion(model, wanted.version, champion, Findings(found.findings), found.figures)
    unfit = any(finding.code in UNFIT for finding in judged.refused)
    if judged.refused and (not force or unfit or dry_run):
        raise Refused(judged)
    if dry_run:
        return judged
    forced = tuple(dict.fromkeys(finding.code for finding in judged.refused))
    change = champions.change(
        PROMOTE,
        wanted.version,
        force or reason or "the gates let it",
        previous=champion or aliases.get(PREVIOUS),
        seen=seen,
        gates=judged.gates,
        forced=forced,
        figures=judged.figures,
    )
    return Promotion(model, wanted.version, champion, judged.gates, judged.figures, change)


def judge(
    registry: Registry,
    wanted: ModelVersion,
    rival: str | None,
    experiment: Path | None,
    tell: Tell = _nothing,
    *,
    gone: str = "",
    forced: bool = False,
    trust: bool = False,
) -> Contest:
    """Every gate, those that cost nothing first: what they refuse costs no test evaluation, unless ``forced``.

    ``rival`` and ``gone`` are what `Champions.rival` says; the rest is as `promote` takes it.
    """
    named = None if experiment is None else load(experiment)
    root = None if named is None else named.root
    findings: list[Finding] = []

    def keep(found: Finding) -> None:
        findings.append(found)
        tell(found)

    with contextlib.ExitStack() as stack:
        try:
            candidate = stack.enter_context(opened(registry, wanted, root, trust=trust))
        except BundleError as error:
            keep(_unreadable(wanted, error))
            return Contest(tuple(findings))
        recorded = candidate.metadata.get("experiment", {}).get("promotion")
        settings = PromotionSpec.model_validate(recorded or {}) if named is None else named.promotion
        for finding in without_test(candidate, settings):
            keep(finding)
        if errors(findings) and not forced:
            return Contest(tuple(findings))
        champion, unknown, fix = None, "", ""
        if rival is not None:
            try:
                champion = stack.enter_context(
                    opened(registry, registry.version(wanted.name, rival), root, trust=trust)
                )
            except (BundleError, InputError) as error:
                unknown, fix = f"version {rival} cannot be loaded: {error.message}", error.hint
        found = contest(candidate, champion, settings, registry, unknown=unknown, fix=fix, gone=gone)
        for finding in found.findings:
            keep(finding)
    return Contest(tuple(findings), found.figures)


def rollback(model: str, *, store: Path, reason: str = "", trust: bool = False, say: Say = _nothing) -> Change:
    """Make the previous champion the champion again, and the champion the previous one; see `promote`.

    Raises:
        InputError: there is no previous champion.
        GateRefused: it cannot be loaded, or another change was faster; nothing was changed.
    """
    refuse_long(reason)
    registry = Registry(store)
    champions = Champions(registry, model)
    for text in champions.settle():
        say(text)
    seen, aliases = champions.seen(), registry.aliases(model)
    back = aliases.get(PREVIOUS)
    if back is None:
        hint = f"promote another version; see `forge-sweep models history {model}`"
        raise InputError(f"{model} has no previous champion to go back to", hint=hint)
    if back == aliases.get(CHAMPION):
        hint = f"promote the version that you want; see `forge-sweep models history {model}`"
        raise InputError(
            f"version {back} of {model} is the champion and `previous` too: nothing to go back to", hint=hint
        )
    version = registry.version(model, back)
    try:
        with opened(registry, version, trust=trust):
            pass
    except BundleError as error:
        title = f"{version.uri} cannot be made champion again; nothing was changed"
        raise GateRefused(title, [_unreadable(version, error)]) from error
    return champions.change(ROLLBACK, back, reason or "rolled back", previous=aliases.get(CHAMPION), seen=seen)


def _unreadable(version: ModelVersion, error: BundleError) -> Finding:
    code, expected = "hashes", "a model as it was registered"
    if isinstance(error, ForeignModel):
        code, expected = "loader", f"{expected}, which MLflow loads with our loader and no other code"
    elif isinstance(error, NotTrusted):
        code, expected = "trust", "--trust, since its layers are code that came with it"
    seen, fix = " ".join(error.message.removeprefix(f"{version.uri}: ").split()), error.hint or "register it again"
    return Finding("error", code, version.uri, seen, expected, fix)


@dataclass(frozen=True)
class Overview:
    """A registered model: how many versions, the version of each alias, and what does not agree with its ledger."""

    name: str
    versions: int
    aliases: Mapping[str, str]
    warnings: tuple[str, ...]


def overviews(store: Path) -> Iterator[Overview]:
    """Every registered model."""
    registry = Registry(store)
    for name in registry.models():
        champions = Champions(registry, name)
        yield Overview(name, len(registry.versions(name)), registry.aliases(name), champions.disagreements())


def make_card(model: str, version: str, *, store: Path) -> tuple[ModelVersion, Card]:
    """The card of a version (a number, or an alias as ``@champion``), made anew; nothing is scored for it.

    Raises:
        BundleError: the bundle was changed.
    """
    registry = Registry(store)
    wanted = registry.version(model, version)
    changes = [each for each in Champions(registry, model).history() if wanted.version in (each.to, each.before)]
    with fetched(wanted, store) as folder:
        check_manifest(folder)
        return wanted, card_of(folder, _registry_section(wanted, changes))


def _registry_section(version: ModelVersion, changes: list[Change]) -> Section:
    aliases = ", ".join(version.aliases) or "none"
    line = f"{version.uri}, registered {version.created}; aliases: {aliases}."
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
    return Section("Registry", (line,), ("when (UTC)", "change", "who", "why", "gates overruled"), rows)
