"""`promote` and `rollback`, told from top to bottom."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from forge_sweep.checks.findings import Finding, errors
from forge_sweep.errors import BundleError, GateRefused, InputError
from forge_sweep.registry import champions as names
from forge_sweep.registry.candidate import Candidate, Terms, opened
from forge_sweep.registry.champions import Champions, Change, refuse_long
from forge_sweep.registry.contest import Contest, contest
from forge_sweep.registry.gates import without_test
from forge_sweep.tracking import ForeignModel, ModelVersion, Registry

UNFIT = ("hashes", "loader")
"""Gates that ``--force`` does not overrule: nobody could serve such a version, or nobody should."""

Tell = Callable[[Finding], None]
Say = Callable[[str], None]


def nothing(told: Any) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Promotion:
    """How a promotion ended.

    Attributes:
        model: registered model.
        version: which was to become the champion.
        champion: the champion until then; None where there was none.
        gates: findings of every gate, in order.
        figures: of the comparison.
        change: the change that was made; None where it was refused, or only tried.
    """

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
    """A promotion that gates refused; nothing was changed.

    Attributes:
        promotion: how it ended.
    """

    def __init__(self, promotion: Promotion) -> None:
        super().__init__(
            f"version {promotion.version} of {promotion.model} is not promoted; nothing was changed", promotion.refused
        )
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
    tell: Tell = nothing,
    say: Say = nothing,
) -> Promotion:
    """Make a version the champion, if every gate lets it.

    Args:
        model: registered model.
        version: its number, or an alias as ``@challenger``.
        store: folder of the embedded stores and of the ledger of looks.
        dry_run: judge only; where that takes a look at the test rows, it is recorded, and its figures are kept for the
            next call.
        force: promote whatever the gates say, for this reason; it is recorded with the gates that refused. A bundle
            that cannot be loaded, or that MLflow would load with other code than ours, is refused all the same.
        reason: why, for the record.
        experiment: file whose section ``[promotion]`` and folder are used; default: what the sweep recorded.
        tell: told every finding as it comes.
        say: told what was mended first.

    Raises:
        Refused: gates refused it; nothing was changed.
        GateRefused: another promotion was faster; nothing was changed.
        InputError: there is no such version, or it is the champion.
        TrackingDown: the store cannot be reached.
    """
    refuse_long(force or reason)
    registry = Registry(store)
    wanted = registry.version(model, version)
    champions = Champions(registry, model)
    for text in champions.disagreements() if dry_run else champions.settle():
        say(text)
    seen, aliases = champions.seen(), registry.aliases(model)
    champion = aliases.get(names.CHAMPION)
    if champion == wanted.version:
        raise InputError(
            f"version {wanted.version} of {model} is the champion", hint=f"forge-sweep models history {model}"
        )
    rival, gone = champions.rival(wanted.version)
    found = judge(registry, wanted, rival, experiment, tell, gone=gone, forced=bool(force))
    judged = Promotion(model, wanted.version, champion, found.findings, found.figures)
    unfit = any(finding.code in UNFIT for finding in judged.refused)
    if judged.refused and (not force or unfit or dry_run):
        raise Refused(judged)
    if dry_run:
        return judged
    forced = tuple(dict.fromkeys(finding.code for finding in judged.refused))
    change = champions.change(
        names.PROMOTE,
        wanted.version,
        force or reason or "the gates let it",
        previous=champion or aliases.get(names.PREVIOUS),
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
    tell: Tell = nothing,
    *,
    gone: str = "",
    forced: bool = False,
) -> Contest:
    """Every gate, those that cost nothing first: what they refuse costs no look at the test rows, unless forced.

    Args:
        registry: of the models.
        wanted: which version is judged.
        rival: the version to be compared with, see `Champions.rival`.
        experiment: file whose section ``[promotion]`` and folder are used; default: what the sweep recorded.
        tell: told every finding as it comes.
        gone: what became of the champion by the ledger, where it is none any more, or "".
        forced: whether to go on where a gate refuses.
    """
    findings: list[Finding] = []

    def keep(found: Finding) -> None:
        findings.append(found)
        tell(found)

    with contextlib.ExitStack() as stack:
        try:
            candidate = stack.enter_context(opened(registry, wanted))
        except BundleError as error:
            keep(unreadable(wanted, error))
            return Contest(tuple(findings))
        terms = Terms.of(candidate.metadata, experiment)
        for finding in without_test(candidate, terms):
            keep(finding)
        if errors(findings) and not forced:
            return Contest(tuple(findings))
        other, unknown = open_champion(stack, registry, wanted.name, rival)
        found = contest(candidate, other, terms, registry, unknown=unknown, gone=gone)
        for finding in found.findings:
            keep(finding)
    return Contest(tuple(findings), found.figures)


def open_champion(
    stack: contextlib.ExitStack, registry: Registry, model: str, champion: str | None
) -> tuple[Candidate | None, str]:
    """The champion, loaded; or why it cannot be."""
    if champion is None:
        return None, ""
    try:
        return stack.enter_context(opened(registry, registry.version(model, champion))), ""
    except (BundleError, InputError) as error:
        return None, f"version {champion} cannot be loaded: {error.message}"


def rollback(model: str, *, store: Path, reason: str = "", say: Say = nothing) -> Change:
    """Make the previous champion the champion again, and the champion the previous one.

    Args:
        model: registered model.
        store: folder of the embedded stores.
        reason: why, for the record.
        say: told what was mended first.

    Raises:
        InputError: there is no previous champion.
        GateRefused: it cannot be loaded, or another change was faster; nothing was changed.
        TrackingDown: the store cannot be reached.
    """
    refuse_long(reason)
    registry = Registry(store)
    champions = Champions(registry, model)
    for text in champions.settle():
        say(text)
    seen, aliases = champions.seen(), registry.aliases(model)
    back = aliases.get(names.PREVIOUS)
    if back is None:
        hint = f"promote another version; see `forge-sweep models history {model}`"
        raise InputError(f"{model} has no previous champion to go back to", hint=hint)
    if back == aliases.get(names.CHAMPION):
        hint = f"promote the version that you want; see `forge-sweep models history {model}`"
        raise InputError(
            f"version {back} of {model} is the champion and `previous` too: nothing to go back to", hint=hint
        )
    refuse_unreadable(registry, registry.version(model, back))
    words = reason or "rolled back"
    return champions.change(names.ROLLBACK, back, words, previous=aliases.get(names.CHAMPION), seen=seen)


def refuse_unreadable(registry: Registry, version: ModelVersion) -> None:
    """Raise GateRefused for a bundle that cannot be served."""
    try:
        with opened(registry, version):
            pass
    except BundleError as error:
        title = f"{version.uri} cannot be made champion again; nothing was changed"
        raise GateRefused(title, [unreadable(version, error)]) from error


def unreadable(version: ModelVersion, error: BundleError) -> Finding:
    """A version that nobody may load, as a finding."""
    code, seen = "loader" if isinstance(error, ForeignModel) else "hashes", " ".join(error.message.split())
    fix = error.hint or "register it again"
    return Finding("error", code, version.uri, seen, "a model as it was registered, with our loader and no code", fix)


@dataclass(frozen=True)
class Overview:
    """A registered model.

    Attributes:
        name: its name.
        versions: how many.
        aliases: version by alias.
        warnings: what does not agree with its ledger.
    """

    name: str
    versions: int
    aliases: Mapping[str, str]
    warnings: tuple[str, ...]


def overviews(store: Path) -> Iterator[Overview]:
    """Every registered model.

    Raises:
        TrackingDown: the store cannot be reached.
    """
    registry = Registry(store)
    for name in registry.models():
        champions = Champions(registry, name)
        yield Overview(name, len(registry.versions(name)), registry.aliases(name), champions.disagreements())
