"""What a pruner did to a sweep: nothing, too much, or the wrong trials. Pure."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from forge_sweep.checks.findings import Finding

if TYPE_CHECKING:
    from forge_sweep.checks.search import Tried
    from forge_sweep.task import Direction

ENOUGH_ENDED = 5
"""Ended trials from which on it is said that none of them finished."""

ENOUGH_JUDGED = 20
"""Trials that a pruner let pass, one after the other, before it is said that it prunes nothing."""

REPRODUCED = 1e-6
"""How far the curve of an audited trial may be from the recorded one: the same seed gives the same on a CPU."""

FIXES = {
    "diverged": "the upper end of learning_rate ten times lower, under [model.search]",
    "out-of-memory": "the upper ends of width, depth and batch_size lower, under [model.search]",
    "time-out": "trial_timeout_s = {timeout_s} under [study]",
    "infeasible": "the upper ends of width and depth lower under [model.search], or higher limits under [constraints]",
}


def of_pruner(trials: Sequence[Tried], study: Mapping[str, Any], metric: str) -> list[Finding]:
    """Whether any trial finished, and whether the pruner ever pruned one.

    Args:
        trials: all that ended, imported ones aside.
        study: the values of ``[study]``.
        metric: the objective.
    """
    return [found for found in (_none_finished(trials, study), _never_prunes(trials, study, metric)) if found]


def _none_finished(trials: Sequence[Tried], study: Mapping[str, Any]) -> Finding | None:
    states = Counter(trial.state for trial in trials)
    if len(trials) < ENOUGH_ENDED or states["finished"]:
        return None
    seen = f"of {len(trials)} ended trials none finished: {states['pruned']} were pruned, {states['failed']} failed"
    if states["failed"] > states["pruned"]:
        (failure, count), *_ = Counter(trial.failure for trial in trials if trial.failure).most_common(1)
        fix = FIXES.get(failure, "see what `forge-sweep trials NAME` says of them")
        seen += f" ({count} of them as {failure})"
        return Finding("warning", "none-finished", "sweep", seen, "trials that finish", fix.format(**_times(study)))
    fix = 'pruner = "median" under [study], with --fork: it lets the first trials finish'
    if study["pruner"] == "median":
        fix = f"startup_trials = {max(5, len(trials))} under [study], with --fork"
    return Finding("warning", "none-finished", "study.pruner", seen, "trials that finish", fix)


def _times(study: Mapping[str, Any]) -> dict[str, Any]:
    return {"timeout_s": f"{2 * (study.get('trial_timeout_s') or 0):g}"}


def _never_prunes(trials: Sequence[Tried], study: Mapping[str, Any], metric: str) -> Finding | None:
    """Whether a pruner has had its chances and taken none. Wilcoxon's may well: it wants proof of each."""
    pruner, warmup, startup = study["pruner"], study["warmup_epochs"], study["startup_trials"]
    if study.get("trainings", 1) > 1:  # judged from the first fold or rung on
        warmup, study = 1, {**study, "epochs": study["trainings"]}
    by_rank = pruner in ("median", "percentile", "dominated")
    scored = [trial for trial in trials if trial.state in ("finished", "pruned")]
    if pruner == "none" or len(scored) < ENOUGH_JUDGED or any(trial.state == "pruned" for trial in scored):
        return None
    seen = f'none of {len(scored)} trials was pruned by study.pruner = "{pruner}": '
    longest, typical = max(t.epochs for t in scored), int(statistics.median(t.epochs for t in scored))
    first = max(1, warmup if by_rank or pruner == "wilcoxon" else min(warmup, study["epochs"]))
    if longest == 0:
        seen, fix = f"{seen}none of them ever reported {metric}", 'pruner = "none" under [study]'
    elif longest <= first or study["epochs"] <= first:
        seen += f"the longest had {longest} of {study['epochs']} epochs, and no trial is judged before it had {first}"
        fix = f"warmup_epochs = {max(1, min(typical, longest - 1) // 3)} under [study]"
    elif by_rank and startup >= len(scored):
        seen, fix = f"{seen}the first {startup} are not judged", "startup_trials = 5 under [study]"
    elif pruner == "wilcoxon" or (pruner == "percentile" and study["percentile"] > 75):
        return None
    else:
        judged = len(scored) - (startup if by_rank else 0)
        if judged < ENOUGH_JUDGED:
            return None
        seen += f"each of the {judged} that it judged was among the better ones, so it saves nothing"
        fix = 'pruner = "none" under [study]'
    return Finding("warning", "never-prunes", "study.pruner", seen, "trials that are pruned", f"{fix}, with --fork")


@dataclass(frozen=True)
class Audited:
    """A pruned trial that was trained again, from its first epoch to its end.

    Attributes:
        number: of the trial.
        pruned_at: epochs after which it was pruned.
        value: its objective at the best epoch; None where the training failed, and ``cause`` says why.
        epochs: that it had in the end.
        seconds: that this took.
        cpu_s: CPU-seconds likewise.
        off: greatest distance of its objective from the recorded one, over the epochs before it was pruned.
    """

    number: int
    pruned_at: int
    value: float | None
    epochs: int
    seconds: float
    cpu_s: float = 0.0
    off: float | None = None
    cause: str = ""


@dataclass(frozen=True)
class PruningAudit:
    """What a sample of the pruned trials would have become.

    Attributes:
        direction: of the objective.
        pruned: how many trials were pruned.
        wanted: how many of them are in the sample; while it runs, more than there are in ``trials``.
        best: the objective of the best trial of the search, one seed like theirs.
        trials: those that were audited.
    """

    direction: Direction
    pruned: int
    wanted: int
    best: float | None
    trials: tuple[Audited, ...]

    @property
    def known(self) -> list[Audited]:
        """Those whose training gave a score."""
        return [each for each in self.trials if each.value is not None]

    @property
    def better(self) -> list[Audited]:
        """Those that would have beaten the best trial of the search."""
        sign, best = (1 if self.direction == "maximize" else -1), self.best
        return [each for each in self.known if best is None or sign * ((each.value or 0.0) - best) > 0]

    @property
    def share(self) -> tuple[float, float] | None:
        """Within which share of all pruned trials would have won: 95 %, Clopper and Pearson 1934; None: unknown."""
        from scipy import stats

        if not self.known:
            return None
        ends = stats.binomtest(len(self.better), len(self.known)).proportion_ci(0.95, method="exact")
        return float(ends.low), float(ends.high)

    @property
    def differing(self) -> list[Audited]:
        """Those that did not go the recorded way before they were pruned."""
        return [each for each in self.known if each.off is None or each.off > REPRODUCED]

    @property
    def saved(self) -> tuple[float, float]:
        """Epochs and seconds that pruning saved: what the sample took beyond, in proportion to all pruned trials."""
        if not self.known:
            return 0.0, 0.0
        times = self.pruned / len(self.known)
        beyond = [each.epochs - each.pruned_at for each in self.known]
        seconds = sum(each.seconds * rest / each.epochs for each, rest in zip(self.known, beyond, strict=True))
        return times * sum(beyond), times * seconds

    def words(self) -> str:
        """For people."""
        if not self.known:
            failed = f"; {len(self.trials)} failed" if self.trials else ""
            return f"none of the {self.wanted} in the sample of {self.pruned} pruned trials has a score yet{failed}"
        assert self.share is not None
        low, high = self.share
        epochs, seconds = self.saved
        said = (
            f"{len(self.better)} of {len(self.known)} audited trials would have beaten the best of the search: of all "
            f"{self.pruned} pruned ones, {low:.0%} to {high:.0%} (95 %). Pruning saved about {epochs:.0f} epochs, "
            f"{seconds:.1f} s; the audit took {sum(each.seconds for each in self.trials):.1f} s"
        )
        if self.wanted > len(self.trials):
            said += f". {self.wanted - len(self.trials)} of the sample are left: the same command goes on"
        if self.differing:
            numbers = ", ".join(str(each.number) for each in self.differing)
            said += f". Trial {numbers} did not go its recorded way up to where it was pruned: read these with care"
        return said

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        epochs, seconds = self.saved
        return {
            **asdict(self),
            "better": [each.number for each in self.better],
            "share": self.share,
            "saved": {"epochs": round(epochs, 1), "seconds": round(seconds, 3)},
            "took": {
                "seconds": round(sum(each.seconds for each in self.trials), 3),
                "cpu_s": round(sum(each.cpu_s for each in self.trials), 3),
            },
            "differing": [each.number for each in self.differing],
            "words": self.words(),
        }


def of_audit(audit: PruningAudit, study: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether the pruner stopped a trial that would have won."""
    if not audit.better or audit.best is None or audit.share is None:
        return
    first = max(audit.better, key=lambda each: abs((each.value or 0.0) - (audit.best or 0.0)))
    step = study.get("step", "epoch")
    seen = (
        f"{len(audit.better)} of {len(audit.known)} audited trials would have beaten the best of the search: trial "
        f"{first.number}, pruned after {first.pruned_at} of {first.epochs} {step}s, comes to {first.value:.4g} and the "
        f"best is {audit.best:.4g}; of all {audit.pruned} pruned trials, {audit.share[0]:.0%} to {audit.share[1]:.0%}"
    )
    warmup = min(int(study["epochs"]) - 1, max(2 * int(study["warmup_epochs"]), first.pruned_at + 1))
    setting = f"warmup_epochs = {max(1, warmup)}" if step == "epoch" else 'pruner = "none"'
    fix = f"{setting} under [study], with --fork"
    yield Finding("warning", "winner-pruned", "study.pruner", seen, "pruned trials that would have lost", fix)
