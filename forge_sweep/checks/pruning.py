"""What a pruner did to a sweep: nothing, too much, or the wrong trials. Pure."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from forge_sweep.checks.findings import Finding

if TYPE_CHECKING:
    from forge_sweep.checks.search import Tried

ENOUGH_ENDED = 5
"""Ended trials from which on it is said that none of them finished."""

ENOUGH_JUDGED = 20
"""Trials that a pruner let pass, one after the other, before it is said that it prunes nothing."""

FIXES = {
    "diverged": "the upper end of learning_rate ten times lower, under [model.search]",
    "out-of-memory": "the upper ends of width, depth and batch_size lower, under [model.search]",
    "time-out": "trial_timeout_s = {timeout_s} under [study]",
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
    by_rank = pruner in ("median", "percentile")
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
