"""The verdict of a sweep: is the best network better than the best baseline, as good as it, or worse?

Judged on the validation rows, by the bundles of the confirmation, before anybody looks at the test rows. Only a network
that is better is shipped: a tree is smaller, faster and needs no care (guide.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from forge_sweep.bundle import Bundle, Evaluation
from forge_sweep.sweep.confirm import Confirmed, bundle_folder, confirm_name
from forge_sweep.sweep.context import Context, baseline_values
from forge_sweep.task import DEFAULT_THRESHOLD as SEARCHED_AT
from forge_sweep.task import LEVEL, Answers, Interval, Judgement, Seeds, judge, of_one, part_that_counts, resampled
from forge_sweep.task.words import between as ends_in_words
from forge_sweep.task.words import figure

RESAMPLES = 1000
FEWEST = 200
UNBOUNDED = float("inf")
RANGES = {
    "mcc": (-1.0, 1.0),
    "r2": (-UNBOUNDED, 1.0),
    **dict.fromkeys(("loss", "log_loss", "rmse", "mae", "medae"), (0.0, UNBOUNDED)),
}
"""Values that a metric can have, where they are not those from 0 to 1: few seeds say little, but no AUC is above 1."""

BUDGET = 2 * 10**7
"""Rows times resamples of one model, above which fewer resamples are drawn, down to `FEWEST`."""


@dataclass(frozen=True)
class Verdict:
    """Who won.

    Attributes:
        confirmed: every candidate, the registered one first, the others by their means.
        network: the best network; None where none could be confirmed.
        baseline: the best baseline; None where none was fitted.
        judgement: the one against the other, where there are both.
        intervals: of each candidate's mean over seeds, by label.
    """

    confirmed: tuple[Confirmed, ...]
    network: Confirmed | None
    baseline: Confirmed | None
    judgement: Judgement | None
    intervals: Mapping[str, Interval]

    @property
    def winner(self) -> Confirmed:
        """What is registered."""
        return self.confirmed[0]

    @property
    def outcome(self) -> str:
        """``better``, ``as good as`` or ``worse``, of the network; "" where there is nothing to compare."""
        return "" if self.judgement is None else self.judgement.outcome

    @property
    def nothing_learned(self) -> bool:
        """Whether no model beats the constant predictor."""
        return self.winner.candidate.baseline == "constant"

    def rows(self) -> list[dict[str, Any]]:
        """Every candidate's figures for notes and tables, the registered one first."""
        return [each.figures() | {"interval": _ends(self.intervals[each.candidate.label])} for each in self.confirmed]

    def comparison(self) -> dict[str, Any]:
        """The judgement as JSON values; empty where there is none."""
        if self.judgement is None or self.network is None or self.baseline is None:
            return {}
        judgement = asdict(self.judgement)
        lead = judgement.pop("lead")
        figures = {name: value if np.isfinite(value) else None for name, value in lead.items()}
        labels = {"network": self.network.candidate.label, "baseline": self.baseline.candidate.label}
        return {**labels, "lead": figures["value"], "low": figures["low"], "high": figures["high"], **judgement} | {
            "level": LEVEL
        }


def reach(context: Context, confirmed: tuple[Confirmed, ...]) -> Verdict:
    """Judge the confirmed candidates on the validation rows.

    Args:
        context: the sweep.
        confirmed: the candidates, the best mean first.
    """
    trained = {each.candidate.label: scored_again(context, each) for each in confirmed}
    encoded, kind = trained_on(context, confirmed[0])
    smallest = part_that_counts(kind, encoded)
    sign = 1.0 if context.experiment.direction == "maximize" else -1.0
    low, high = RANGES.get(context.experiment.objective.metric.removeprefix("val_"), (0.0, 1.0))
    intervals = {label: within(of_one(each, smallest).times(sign), low, high) for label, each in trained.items()}
    networks = [each for each in confirmed if not each.candidate.baseline]
    trees = [each for each in confirmed if each.candidate.baseline]
    if not networks or not trees:
        network, baseline = next(iter(networks), None), next(iter(trees), None)
        return Verdict(confirmed, network, baseline, None, intervals)
    tried = [row for row in context.study.rows() if row.state in ("finished", "pruned")]
    judgement = judge(
        [trained[each.candidate.label] for each in networks],
        trained[trees[0].candidate.label],
        rows=len(encoded),
        smallest=smallest,
        configurations=max(len(tried), len(networks)),
        baselines=len(set(baseline_values(context)) - {"constant"}),
    )
    first = networks[0] if judgement.outcome == "better" else trees[0]
    others = [each for each in confirmed if each is not first]
    return Verdict((first, *others), networks[0], trees[0], judgement, intervals)


def trained_on(context: Context, confirmed: Confirmed) -> tuple[np.ndarray, str]:
    """The encoded validation targets, and the kind of the task."""
    task = Bundle.load(bundle_folder(context, confirmed.name)).task
    return task.encode(context.dataset.valid.targets), task.kind


def scored_again(context: Context, confirmed: Confirmed) -> Seeds:
    """The objective of every seed's model on the validation rows and on resamples of them, decided as in the search."""
    valid = context.dataset.valid
    metric = context.experiment.objective.metric.removeprefix("val_")
    sign = 1.0 if context.experiment.direction == "maximize" else -1.0
    resamples = max(FEWEST, min(RESAMPLES, BUDGET // max(len(valid.rows), 1)))
    values, drawn = [], []
    for s in confirmed.seeds:
        bundle = Bundle.load(bundle_folder(context, confirm_name(confirmed.candidate.label, s)))
        answers = Answers(bundle.scores(valid.features), SEARCHED_AT)
        encoded = bundle.task.encode(valid.targets)
        value, over = resampled(bundle.task, encoded, answers, metric, resamples=resamples)
        values.append(sign * value)
        drawn.append(sign * over)
    # Search and confirmation recorded both by the same arithmetic: their distance is that of two trainings.
    searched = values[0] + sign * (confirmed.candidate.searched - confirmed.values[0])
    return Seeds(np.array(values), np.stack(drawn), searched, confirmed.epochs)


def in_words(context: Context, verdict: Verdict, evaluation: Evaluation | None, metric: str) -> str:
    """The verdict for people.

    Args:
        context: the sweep.
        verdict: the verdict.
        evaluation: what the look at the test rows gave, where it is known.
        metric: the objective on any split, such as ``auc``.
    """
    objective, winner = context.experiment.objective.metric, verdict.winner
    network, baseline, judgement = verdict.network, verdict.baseline, verdict.judgement
    if judgement is None or network is None or baseline is None:
        mean = figure(winner.mean)
        if verdict.nothing_learned:
            return f"{objective}: nothing was learned; no model beats the constant predictor, {mean}."
        if network is None:
            return f"{objective}: no network could be confirmed; ship the baseline {winner.candidate.words} {mean}."
        return f"{objective}: the best network ({winner.candidate.words}) {mean}; no baseline to compare with."
    own = f"the best network ({network.candidate.words}) {figure(network.mean)}"
    other = f"{baseline.candidate.words} {figure(baseline.mean)}"
    how = (
        f"{LEVEL:.0%} over {judgement.rows:,} validation rows and {judgement.seeds} seeds, less what choosing among "
        f"{judgement.configurations} configurations and {judgement.epochs} epochs gives"
    )
    lead = f"the network's lead is {figure(judgement.lead.value)} ({between(judgement.lead)}; {how})"
    if verdict.nothing_learned:
        said = f"{objective}: nothing was learned; {own} does not beat the predictor {other}: {lead}."
    elif judgement.outcome == "better":
        said = f"{objective}: {own} beats {other}: {lead}."
    elif judgement.outcome == "worse":
        said = f"{objective}: {other} beats {own}: ship the baseline; {lead}."
    else:
        said = f"{objective}: {own} is as good as {other}: a tie, so ship the baseline; {lead}."
    if judgement.seeds == 1:
        said += (
            " One seed does not show how far seeds spread; the search's own training stands for a second one "
            "(confirm.seeds = 3 or more says more)."
        )
    return said + on_test(verdict, evaluation, metric)


def on_test(verdict: Verdict, evaluation: Evaluation | None, metric: str) -> str:
    """What to do, now that the test rows were looked at; where they contradict the verdict, it is said."""
    if verdict.outcome != "better":
        return contradicted(verdict, evaluation, metric)
    found = None
    if evaluation is not None and evaluation.baseline is not None:
        found = evaluation.compared(evaluation.baseline, metric)
    if found is None or not np.isfinite([found.gain.gain.low, found.gain.gain.high]).all():
        return " Ship the network."
    lead = found.gain.gain
    words = f"a lead of {figure(lead.value)} ({between(lead)}) by {metric}"
    if lead.low > 0:
        return f" Ship the network: on the test rows it has {words}."
    if lead.high < 0:
        return f" But the test rows contradict it, with {words}: keep the baseline; `promote` refuses this version."
    return f" The test rows do not bear it out, with {words}: there it is only as good as the baseline."


def contradicted(verdict: Verdict, evaluation: Evaluation | None, metric: str) -> str:
    """A sentence where the test rows say that the network is better after all; "" elsewhere."""
    network = evaluation.network if evaluation is not None else None
    found = evaluation.compared(network, metric) if evaluation is not None and network is not None else None
    if verdict.judgement is None or found is None or not found.gain.gain.high < 0:
        return ""
    lead = Interval(-found.gain.gain.value, -found.gain.gain.high, -found.gain.gain.low)
    return (
        f" The test rows say otherwise: there the network has a lead of {figure(lead.value)} ({between(lead)}) by "
        f"{metric}; they do not choose, so give validation more rows or the search more trials, and run again."
    )


def within(interval: Interval, low: float, high: float) -> Interval:
    """The part of an interval that the metric can have."""
    return Interval(interval.value, *(float(np.clip(end, low, high)) for end in (interval.low, interval.high)))


def between(interval: Interval) -> str:
    """``-0.0012 to 0.0034``."""
    return ends_in_words((interval.low, interval.high))


def _ends(interval: Interval) -> list[float | None]:
    return [end if np.isfinite(end) else None for end in (interval.low, interval.high)]
