"""Who is, was and will be champion: the ledger decides, the aliases follow.

A change of champion is four steps: the whole record goes into a file, the entry into the ledger (here two changes at
once are decided), the aliases are moved (when, is noted right before), the end is recorded. A process that dies between
them leaves an entry without an end, and the next command that changes anything completes it, or revokes it where its
version is gone.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from forge_sweep import jsons
from forge_sweep.checks.findings import Finding
from forge_sweep.errors import GateRefused, InputError
from forge_sweep.tracking import Entry, Ledger, Registry

CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"
TAG = "forge.promotion"
REASON_LENGTH = 1000

PROMOTE, ROLLBACK, OUTSIDE = "promote", "rollback", "outside"


@dataclass(frozen=True)
class Change:
    """One change of champion.

    Attributes:
        number: its place in the ledger, from 1.
        action: ``promote``, ``rollback``, or ``outside``: an alias that was moved by other means, noticed later.
        to: the new champion's version; None where there is none any more.
        before: the champion until then; None where there was none.
        previous: what ``previous`` stands for since.
        who: user@host.
        when: UTC, ISO 8601: when it was decided.
        done: UTC, ISO 8601: when the aliases had been moved, whoever recorded it; "" while that is not on record.
        revoked: why the aliases were not moved, else "".
        reason: in words.
        forced: codes of the gates that refused it and were overruled.
        figures: the figures of the decision.
        file: path of the whole record, gates included, among the ledger's artifacts.
    """

    number: int
    action: str
    to: str | None
    before: str | None
    previous: str | None
    who: str
    when: str
    reason: str
    done: str = ""
    revoked: str = ""
    forced: tuple[str, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)
    file: str = ""

    @classmethod
    def of(cls, entry: Entry) -> Change:
        """What an entry of the ledger says."""
        content = {name: value for name, value in entry.content.items() if name != "id"}
        content["forced"] = tuple(content.get("forced", ()))
        done = {name: str(entry.done.get(name, "")) for name in ("done", "revoked")}
        return cls(number=entry.number, **{**content, **done})

    @property
    def holds(self) -> bool:
        """Whether it took place."""
        return not self.revoked

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "forced": list(self.forced)}


@dataclass(frozen=True)
class Term:
    """How long a version was champion.

    Attributes:
        version: which; None for a time without one.
        since: UTC.
        until: UTC; None while it lasts.
        change: what began it.
    """

    version: str | None
    since: datetime
    until: datetime | None
    change: Change

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        until = None if self.until is None else self.until.isoformat()
        return {"version": self.version, "since": self.since.isoformat(), "until": until, "by": self.change.to_dict()}


class Champions:
    """The champions of one model.

    Args:
        registry: where the model is.
        name: the model.

    Raises:
        InputError: there is no such model.
        TrackingDown: the store cannot be reached.
    """

    def __init__(self, registry: Registry, name: str) -> None:
        registry.aliases(name)
        self.registry = registry
        self.name = name
        self._ledger = Ledger(registry, name)

    def history(self) -> tuple[Change, ...]:
        """Every change, the oldest first."""
        return tuple(map(Change.of, self._ledger.entries()))

    def record(self, change: Change) -> list[dict[str, Any]]:
        """The whole record of a change: one line about it, then one per gate."""
        return self._ledger.attached(change.file)

    def terms(self) -> tuple[Term, ...]:
        """Who was champion when, the oldest first."""
        held = [change for change in self.history() if change.holds and change.done]
        begins = [datetime.fromisoformat(change.done) for change in held]
        ends = [*begins[1:], None][: len(begins)]
        return tuple(Term(c.to, since, until, c) for c, since, until in zip(held, begins, ends, strict=True))

    def at(self, moment: str) -> tuple[Term, ...]:
        """Who was champion at a moment, or in the course of a day (UTC).

        Args:
            moment: ``2026-05-01``, or ``2026-05-01T12:00`` with or without a zone.

        Raises:
            InputError: it is neither.
        """
        since, until = _span(moment)
        return tuple(t for t in self.terms() if t.since <= until and (t.until is None or t.until > since))

    def settle(self) -> tuple[str, ...]:
        """Complete what a dead process left half done and record what was changed by other means; says what it did."""
        said = []
        last = self._last()
        if last is not None and not last.done and not last.revoked:
            said.append(self._complete(last))
            last = self._last()
        if (moved := self.moved_outside(last)) is not None:
            now = self.registry.aliases(self.name)
            reason = f"by other means than forge-sweep, noticed now: {self._lost(_champion(last))}"
            with contextlib.suppress(GateRefused):  # another process has just noticed it, too
                self.change(OUTSIDE, now.get(CHAMPION), reason, previous=now.get(PREVIOUS), seen=last)
            said.append(moved)
        return tuple(said)

    def moved_outside(self, last: Change | None = None) -> str | None:
        """What is to be said where the alias champion is not where the ledger has it, else None."""
        last = last or self._last()
        if last is not None and not last.done and not last.revoked:
            return None
        recorded = _champion(last)
        found = self.registry.aliases(self.name).get(CHAMPION)
        if found == recorded:
            return None
        how = self._lost(recorded)
        return f"the champion of {self.name} is {shown(found)} and was {shown(recorded)} by the ledger: {how}"

    def unfinished(self) -> str | None:
        """What is to be said where a change waits to be completed, else None."""
        last = self._last()
        if last is None or last.done or last.revoked:
            return None
        return f"change {last.number} ({last.action} {shown(last.to)}) is not complete: the next change completes it"

    def disagreements(self) -> tuple[str, ...]:
        """What does not agree with the ledger, or waits to be completed; changes nothing."""
        return tuple(text for text in (self.unfinished(), self.moved_outside()) if text)

    def rival(self, wanted: str) -> tuple[str | None, str]:
        """What a version has to be better than, and what became of the champion by the ledger where it is another one.

        That is the alias ``champion``. Where it is gone, since the version or the alias was deleted, it is the last
        champion that still exists: nothing is to become champion unseen because somebody deleted the one before.

        Args:
            wanted: the version that is to become the champion.
        """
        version = self.registry.aliases(self.name).get(CHAMPION)
        if version is not None:
            return version, ""
        existing = {each.version for each in self.registry.versions(self.name)}
        held = [change.to for change in reversed(self.history()) if change.holds and change.to is not None]
        if not held:
            return None, ""
        gone = (
            f"{shown(held[0])}, the last champion by the ledger, "
            f"{'has lost the alias champion' if held[0] in existing else 'was deleted'}"
        )
        left = next((version for version in held if version in existing), None)
        return (None, f"{gone}, and was this version itself") if left == wanted else (left, gone)

    def seen(self) -> Change | None:
        """The last change, for `change` to be compared with."""
        return self._last()

    def change(
        self,
        action: str,
        to: str | None,
        reason: str,
        *,
        previous: str | None,
        seen: Change | None,
        gates: Sequence[Finding] = (),
        forced: Iterable[str] = (),
        figures: Mapping[str, Any] | None = None,
    ) -> Change:
        """Make a version the champion.

        Args:
            action: ``promote``, ``rollback`` or ``outside``.
            to: the version.
            reason: in words.
            previous: what ``previous`` is to stand for.
            seen: the last change that this one was decided upon.
            gates: every finding.
            forced: codes of the gates that were overruled.
            figures: of the decision.

        Raises:
            GateRefused: another process was first; nothing was changed.
        """
        refuse_long(reason)
        number, unique = (0 if seen is None else seen.number) + 1, secrets.token_hex(6)
        when = _now()
        path = f"promotions/{when[:19].replace(':', '')}-{unique}.jsonl"
        content = {
            "action": action,
            "to": to,
            "before": self.registry.aliases(self.name).get(CHAMPION) if action != OUTSIDE else _champion(seen),
            "previous": previous,
            "who": f"{_user()}@{socket.gethostname()}",
            "when": when,
            "reason": reason,
            "forced": list(forced),
            "figures": dict(figures or {}),
            "file": path,
        }
        self._ledger.attach(path, [{"number": number, **content}, *({"gate": asdict(gate)} for gate in gates)])
        if not self._ledger.append(number, {"id": unique, **content}):
            raise self._beaten(number, to)
        made = Change.of(Entry(number, content))
        self._complete(made)
        return next(change for change in self.history() if change.number == number)

    def _last(self) -> Change | None:
        history = self.history()
        return history[-1] if history else None

    def _complete(self, change: Change) -> str:
        """Move the aliases as an entry says and record its end; safe to repeat. Says what it did."""
        gone = None if change.to is None or self._exists(change.to) else f"version {change.to} was deleted meanwhile"
        if gone is not None:
            self._ledger.finish(change.number, {"revoked": gone, "when": _now()})
            return f"change {change.number} of {self.name} was revoked: {gone}"
        moved = ""
        if change.action != OUTSIDE:
            entry = next(each for each in self._ledger.entries() if each.number == change.number)
            if self.registry.aliases(self.name).get(CHAMPION) != change.to:
                self._ledger.note(entry, {"moving": _now()})
            elif entry.steps:  # moved by a process that died before it could say so: right after it noted this
                moved = str(entry.steps[-1].get("moving", ""))
            self._move(change)
        self._tag(change)
        self._ledger.finish(change.number, {"done": moved or _now()})
        newest = [each for each in self.history() if each.holds][-1]
        if newest.number > change.number:  # this process slept, and others went on
            self._move(newest)
        return f"change {change.number} of {self.name} ({change.action} {shown(change.to)}) was completed"

    def _move(self, change: Change) -> None:
        """The aliases as they are after a change; ``champion``, which others read, goes second."""
        kept = change.previous if change.previous is not None and self._exists(change.previous) else None
        now = self.registry.aliases(self.name)
        for alias, version in ((PREVIOUS, kept), (CHAMPION, change.to)):
            if now.get(alias) != version:
                self.registry.set_alias(self.name, alias, version)
        if change.to is not None and now.get(CHALLENGER) == change.to:
            self.registry.set_alias(self.name, CHALLENGER, None)

    def _tag(self, change: Change) -> None:
        """The change on the versions that it is about, where the UI shows it."""
        values = {name: value for name, value in change.to_dict().items() if name not in ("done", "revoked")}
        for version in {change.to, change.before} - {None}:
            if self._exists(str(version)):
                self.registry.tag(self.name, str(version), f"{TAG}.{change.number:06d}", jsons.dumps(values))

    def _lost(self, champion: str | None) -> str:
        """How the alias came off the champion by the ledger."""
        deleted = champion is not None and not self._exists(champion)
        return f"{shown(champion)} was deleted" if deleted else "the alias was moved by other means"

    def _exists(self, version: str) -> bool:
        return version in {each.version for each in self.registry.versions(self.name)}

    def _beaten(self, number: int, to: str | None) -> GateRefused:
        """What the slower one of two is told."""
        first = next((change for change in self.history() if change.number == number), None)
        whose = "" if first is None else f": {first.action} of {shown(first.to)} by {first.who} at {first.when}"
        finding = Finding(
            "error",
            "beaten",
            f"{self.name} {shown(to)}",
            f"another change of champion came first{whose}",
            "the champion that the gates compared with",
            "run the same command again: it compares with the new champion",
        )
        return GateRefused(f"{shown(to)} of {self.name} was not promoted; nothing was changed", [finding])


def refuse_long(reason: str) -> None:
    """Raise InputError for a reason that has no room in the ledger."""
    if len(reason) > REASON_LENGTH:
        raise InputError(
            f"the reason has {len(reason)} characters; expected at most {REASON_LENGTH}", hint="give a shorter one"
        )


def shown(version: str | None) -> str:
    """A version for people."""
    return "none" if version is None else f"version {version}"


def _champion(change: Change | None) -> str | None:
    """The champion after a change, by the ledger."""
    return None if change is None else change.to if change.holds else change.before


def _span(moment: str) -> tuple[datetime, datetime]:
    """First and last instant that a text names."""
    try:
        if len(moment) == len("2026-05-01"):
            since = datetime.combine(date.fromisoformat(moment), time(), UTC)
            return since, since + timedelta(days=1) - timedelta(microseconds=1)
        found = datetime.fromisoformat(moment)
        found = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        raise InputError(
            f"{moment!r} is no date; expected 2026-05-01 (UTC), or 2026-05-01T12:00+02:00",
            hint="give a day, or a moment with its zone",
        ) from None
    return found, found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid-{os.getuid()}"
