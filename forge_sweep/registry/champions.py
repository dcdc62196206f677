"""Who is, was and will be champion: the ledger decides, the aliases follow.

A change is four steps: the whole record goes into a file, the entry into the ledger (which decides between two changes
at once), the aliases are moved (when, is noted right before), the end is recorded. A process that dies between them
leaves an entry without an end; the next command that changes anything completes it, or revokes it where its version is
gone.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from forge_sweep import environment, jsons
from forge_sweep.checks.findings import Finding
from forge_sweep.errors import GateRefused, InputError
from forge_sweep.tracking import Entry, Ledger, Registry

CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"
TAG = "forge.promotion"
REASON_LENGTH = 1000

PROMOTE, ROLLBACK, OUTSIDE = "promote", "rollback", "outside"


@dataclass(frozen=True)
class Change:
    """One change of champion, the ``number``-th in the ledger; times are UTC, ISO 8601.

    Attributes:
        action: ``promote``, ``rollback``, or ``outside``: an alias that was moved by other means, noticed later.
        to: the new champion's version; None where there is none any more.
        before: the champion until then; None where there was none.
        previous: what ``previous`` stands for since.
        done: when the aliases had been moved; "" while that is not on record.
        revoked: why the aliases were not moved, else "".
        forced: codes of the gates that refused it and were overruled.
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
    def unfinished(self) -> bool:
        """Whether its end is not on record."""
        return not self.done and not self.revoked

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "forced": list(self.forced)}


@dataclass(frozen=True)
class Term:
    """How long (UTC) a version was champion, or nobody was, and the change that began it; ``until`` is None so far."""

    version: str | None
    since: datetime
    until: datetime | None
    change: Change

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        until = None if self.until is None else self.until.isoformat()
        return {"version": self.version, "since": self.since.isoformat(), "until": until, "by": self.change.to_dict()}


class Champions:
    """The champions of one model; InputError where there is none of that name."""

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
        held = [change for change in self.history() if change.done and not change.revoked]
        begins = [datetime.fromisoformat(change.done) for change in held]
        ends = [*begins[1:], None][: len(begins)]
        return tuple(Term(c.to, since, until, c) for c, since, until in zip(held, begins, ends, strict=True))

    def at(self, moment: str) -> tuple[Term, ...]:
        """Who was champion in the course of a day (``2026-05-01``, UTC), or at a moment (``2026-05-01T12:00``)."""
        since, until = _span(moment)
        return tuple(t for t in self.terms() if t.since <= until and (t.until is None or t.until > since))

    def settle(self) -> tuple[str, ...]:
        """Complete what a dead process left half done and record what was changed by other means; says what it did."""
        said = []
        last = self.seen()
        if last is not None and last.unfinished:
            said.append(self._complete(last))
            last = self.seen()
        if (moved := self.moved_outside(last)) is not None:
            now = self.registry.aliases(self.name)
            reason = f"by other means than forge-sweep, noticed now: {self._lost(_champion(last))}"
            with contextlib.suppress(GateRefused):  # another process has just noticed it, too
                self.change(OUTSIDE, now.get(CHAMPION), reason, previous=now.get(PREVIOUS), seen=last)
            said.append(moved)
        return tuple(said)

    def moved_outside(self, last: Change | None = None) -> str | None:
        """How the alias champion differs from the ledger; None where it does not."""
        last = last or self.seen()
        if last is not None and last.unfinished:
            return None
        recorded = _champion(last)
        found = self.registry.aliases(self.name).get(CHAMPION)
        if found == recorded:
            return None
        how = self._lost(recorded)
        return f"the champion of {self.name} is {shown(found)} and was {shown(recorded)} by the ledger: {how}"

    def unfinished(self) -> str | None:
        """Which change waits to be completed; None where none does."""
        last = self.seen()
        if last is None or not last.unfinished:
            return None
        return f"change {last.number} ({last.action} {shown(last.to)}) is not complete: the next change completes it"

    def disagreements(self) -> tuple[str, ...]:
        """What does not agree with the ledger, or waits to be completed; changes nothing."""
        return tuple(text for text in (self.unfinished(), self.moved_outside()) if text)

    def rival(self, wanted: str) -> tuple[str | None, str]:
        """What a version has to be better than, and what became of the champion by the ledger where it is another one.

        That is the alias ``champion``. Where the version or the alias was deleted, it is the last champion that still
        exists: nothing is to become champion unseen because the one before was deleted.
        """
        version = self.registry.aliases(self.name).get(CHAMPION)
        if version is not None:
            return version, ""
        existing = {each.version for each in self.registry.versions(self.name)}
        held = [change.to for change in reversed(self.history()) if not change.revoked and change.to is not None]
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
        history = self.history()
        return history[-1] if history else None

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
        """Make a version the champion; GateRefused, and nothing changed, where ``seen`` is not the last change now."""
        refuse_long(reason)
        number, unique = (0 if seen is None else seen.number) + 1, secrets.token_hex(6)
        when = _now()
        path = f"promotions/{when[:19].replace(':', '')}-{unique}.jsonl"
        content = {
            "action": action,
            "to": to,
            "before": self.registry.aliases(self.name).get(CHAMPION) if action != OUTSIDE else _champion(seen),
            "previous": previous,
            "who": f"{environment.user()}@{socket.gethostname()}",
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

    def _complete(self, change: Change) -> str:
        """Move the aliases as an entry says and record its end; safe to repeat. Says what it did."""
        if change.to is not None and not self._exists(change.to):
            gone = f"version {change.to} was deleted meanwhile"
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
        newest = [each for each in self.history() if not each.revoked][-1]
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
        deleted = champion is not None and not self._exists(champion)
        return f"{shown(champion)} was deleted" if deleted else "the alias was moved by other means"

    def _exists(self, version: str) -> bool:
        return version in {each.version for each in self.registry.versions(self.name)}

    def _beaten(self, number: int, to: str | None) -> GateRefused:
        """What the slower one of two is told."""
        first = next((change for change in self.history() if change.number == number), None)
        whose = "" if first is None else f": {first.action} of {shown(first.to)} by {first.who} at {first.when}"
        seen, expected = f"another change of champion came first{whose}", "the champion that the gates compared with"
        fix = "run the same command again: it compares with the new champion"
        finding = Finding("error", "beaten", f"{self.name} {shown(to)}", seen, expected, fix)
        return GateRefused(f"{shown(to)} of {self.name} was not promoted; nothing was changed", [finding])


def refuse_long(reason: str) -> None:
    """Raise InputError for a reason that has no room in the ledger."""
    if len(reason) > REASON_LENGTH:
        text = f"the reason has {len(reason)} characters; expected at most {REASON_LENGTH}"
        raise InputError(text, hint="give a shorter one")


def shown(version: str | None) -> str:
    """``version 3``, or ``none``."""
    return "none" if version is None else f"version {version}"


def _champion(change: Change | None) -> str | None:
    return None if change is None else change.before if change.revoked else change.to


def _span(moment: str) -> tuple[datetime, datetime]:
    try:
        if len(moment) == len("2026-05-01"):
            since = datetime.combine(date.fromisoformat(moment), time(), UTC)
            return since, since + timedelta(days=1) - timedelta(microseconds=1)
        found = datetime.fromisoformat(moment)
        found = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        text = f"{moment!r} is not a date; expected 2026-05-01 (UTC), or 2026-05-01T12:00+02:00"
        raise InputError(text, hint="give a day, or a moment with its zone") from None
    return found, found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
