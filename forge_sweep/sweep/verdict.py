"""The verdict of a sweep: is the best network better than the best baseline, as good as it, or worse?

Judged on the validation rows, before the test evaluation. Of two that cannot be told apart the cheaper one is shipped,
and the baseline where neither is clearly cheaper (decision 48).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from forge_sweep import trial
from forge_sweep.bundle import Evaluation
from forge_sweep.study import TUNED
from forge_sweep.sweep.confirm import Confirmed, confirm_name, judged_scores, waiting_bundle
from forge_sweep.sweep.context import Context, baseline_values
from forge_sweep.sweep.cost import Cost, cost_of
from forge_sweep.sweep.tuning import n_chosen_among
from forge_sweep.task import DEFAULT_THRESHOLD as SEARCHED_AT
from forge_sweep.task import LEVEL, Answers, Interval, Judgement, Seeds, judge, of_one, resampled
from forge_sweep.task.words import between as ends_in_words
from forge_sweep.task.words import figure

RESAMPLES = 1000
FEWEST = 200
BUDGET = 2 * 10**7  # Rows times resamples of one model, above which fewer resamples are drawn, down to `FEWEST`


@dataclass(frozen=True)
class Verdict:
    """Who won: `network` and `baseline` are the best of each, None where there is none."""

    confirmed: tuple[Confirmed, ...]  # the registered one first, the others by their means
    network: Confirmed | None
    baseline: Confirmed | None
    judgement: Judgement | None  # the one against the other
    intervals: Mapping[str, Interval]  # of each mean over seeds, by label
    chance: float | None = None  # the objective of a constant predictor, where there is no baseline
    costs: tuple[Cost, Cost] | None = None  # of network and baseline, where there are both

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
        return self.winner.contender.baseline == "constant"

    @property
    def ships_network(self) -> bool:
        """Whether a network is registered."""
        return not self.winner.contender.baseline

    def figures(self) -> list[dict[str, Any]]:
        """Figures of every contender for notes and tables, the registered one first."""
        return [each.figures() | {"interval": _ends(self.intervals[each.contender.label])} for each in self.confirmed]

    def comparison(self) -> dict[str, Any]:
        """The judgement as JSON values; empty where there is none."""
        if self.judgement is None or self.network is None or self.baseline is None or self.costs is None:
            return {}
        judgement = asdict(self.judgement)
        lead = judgement.pop("lead")
        figures = {name: value if np.isfinite(value) else None for name, value in lead.items()}
        labels = {"network": self.network.contender.label, "baseline": self.baseline.contender.label}
        ends = {"lead": figures["value"], "low": figures["low"], "high": figures["high"]}
        judgement["apparent"] = self.judgement.apparent if np.isfinite(self.judgement.apparent) else None
        costs = {side: asdict(cost) for side, cost in zip(labels, self.costs, strict=True)}
        return {**labels, **ends, **judgement, "level": LEVEL, "costs": costs}


def reach(context: Context, confirmed: tuple[Confirmed, ...]) -> Verdict:
    """Judge the confirmed contenders, the best mean first, on the validation rows."""
    trained = {each.contender.label: _scored_again(context, each) for each in confirmed}
    task = waiting_bundle(context, confirmed[0].name).task
    encoded = task.encode(context.dataset.judged.targets)
    smallest = task.fewest(encoded)
    sign = 1.0 if context.experiment.direction == "maximize" else -1.0
    low, high = task.limits(context.experiment.objective.metric.removeprefix("val_"))
    intervals = {label: _within(of_one(each, smallest).times(sign), low, high) for label, each in trained.items()}
    networks = [each for each in confirmed if not each.contender.baseline]
    trees = [each for each in confirmed if each.contender.baseline]
    if not networks or not trees:
        network, baseline = next(iter(networks), None), next(iter(trees), None)
        chance = None if trees else trial.run_baseline(context.experiment, context.dataset, "constant", 0).value
        return Verdict(confirmed, network, baseline, None, intervals, chance)
    others_tried = [row for row in context.study.rows() if row.state == "pruned" or row.imported]
    tried = [*context.study.ranked(), *(row for row in others_tried if row.state in ("finished", "pruned"))]
    # A space that is narrowed around what scored well chooses, too: those that stepped aside were seen.
    seen = len(tried) + sum(bool(row.outside) and "metrics" in row.attrs for row in context.study.rows())
    values = baseline_values(context)
    fitted = [value for kind, value in values.items() if kind != "constant"]
    fitted += [note.get("value") for note in context.study.notes(TUNED).values()]
    judgement = judge(
        [trained[each.contender.label] for each in networks],
        trained[trees[0].contender.label],
        rows=len(encoded),
        smallest=smallest,
        configurations=max(seen, len(networks)),
        baselines=n_chosen_among(context, values),
        searched=[sign * row.value for row in tried if row.state == "finished" and row.value is not None],
        fitted=[sign * value for value in fitted if value is not None],
    )
    judgement = replace(judgement, lead=_within(judgement.lead, low - high, high - low))
    network, baseline = networks[0], trees[0]
    costs = cost_of(context, network), cost_of(context, baseline)
    cheaper = judgement.outcome == "as good as" and costs[0].is_below(costs[1])
    if cheaper and (chance := values.get("constant")) is not None:  # who learned nothing is not shipped for being cheap
        interval = intervals[network.contender.label]
        cheaper = (interval.low if sign > 0 else interval.high) * sign > chance * sign
    first = network if judgement.outcome == "better" or cheaper else baseline
    others = [each for each in confirmed if each is not first]
    return Verdict((first, *others), network, baseline, judgement, intervals, costs=costs)


def _scored_again(context: Context, confirmed: Confirmed) -> Seeds:
    """The objective of every seed's model on the validation rows and on resamples of them, decided as in the search."""
    judged = context.dataset.judged
    metric = context.experiment.objective.metric.removeprefix("val_")
    sign = 1.0 if context.experiment.direction == "maximize" else -1.0
    resamples = max(FEWEST, min(RESAMPLES, BUDGET // max(len(judged.rows), 1)))
    values, drawn = [], []
    for s in confirmed.seeds:
        name = confirm_name(confirmed.contender.label, s)
        task = waiting_bundle(context, name).task
        encoded = task.encode(judged.targets)
        found = [
            resampled(task, encoded, Answers(scores, SEARCHED_AT), metric, resamples=resamples)
            for scores in judged_scores(context, name)
        ]
        values.append(sign * float(np.mean([value for value, _ in found])))
        drawn.append(sign * np.mean([over for _, over in found], axis=0))
    # Search and confirmation recorded both by the same arithmetic: their distance is that of two trainings.
    searched = values[0] + sign * (confirmed.contender.searched - confirmed.values[0])
    return Seeds(np.array(values), np.stack(drawn), searched, confirmed.epochs, context.experiment.data.split.folds)


def in_words(context: Context, verdict: Verdict, evaluation: Evaluation | None, metric: str) -> str:
    """The verdict for people; ``metric`` is the objective on any split, such as ``auc``."""
    objective, winner = context.experiment.objective.metric, verdict.winner
    network, baseline, judgement = verdict.network, verdict.baseline, verdict.judgement
    best = "best" if len(context.experiment.objective.names) == 1 else "chosen"
    if judgement is None or network is None or baseline is None:
        mean = figure(winner.mean)
        if verdict.nothing_learned:
            none = "no network could be confirmed, and " * (network is None)
            return f"{objective}: nothing was learned; {none}no model beats the constant predictor, {mean}."
        if network is None:
            return f"{objective}: no network could be confirmed; ship the baseline {winner.contender.words} {mean}."
        said = f"{objective}: the {best} network ({winner.contender.words}) {mean}; no baseline to compare with"
        interval, chance = verdict.intervals[winner.contender.label], verdict.chance
        assert chance is not None
        behind = interval.low <= chance if context.experiment.direction == "maximize" else interval.high >= chance
        if behind:
            said += (
                f", and it is not shown to beat the constant predictor ({_between(interval)} against {figure(chance)})"
            )
        return f"{said}."
    own = f"the {best} network ({network.contender.words}) {figure(network.mean)}"
    other = f"{baseline.contender.words} {figure(baseline.mean)}"
    rows = "validation rows" if not context.dataset.folds else "rows, each judged by a fold that had not seen it,"
    how = (
        f"{LEVEL:.0%} over {judgement.rows:,} {rows} and {judgement.seeds} "
        f"seed{'s' * (judgement.seeds != 1)}; seen were {figure(judgement.apparent)}, "
        f"of which choosing among {judgement.configurations} configurations and {judgement.epochs} epochs gives "
        f"{figure(judgement.optimism)}"
    )
    if judgement.baseline_optimism:
        how += f", and the baseline's among {judgement.baselines} {figure(judgement.baseline_optimism)}"
    lead = f"the network's lead is {figure(judgement.lead.value)} ({_between(judgement.lead)}; {how})"
    one_seed = judgement.seeds == 1
    if one_seed and judgement.outcome == "as good as":
        said = f"{objective}: with one seed, {own} is not shown to beat {other}: {_cheaper(verdict)}; {lead}."
    elif verdict.nothing_learned:
        said = f"{objective}: nothing was learned; {own} does not beat the predictor {other}: {lead}."
    elif judgement.outcome == "better":
        said = f"{objective}: {own} beats {other}: {lead}."
    elif judgement.outcome == "worse":
        said = f"{objective}: {other} beats {own}: ship the baseline; {lead}."
    else:
        said = f"{objective}: {own} cannot be told apart from {other}, so {_cheaper(verdict)}; {lead}."
    if one_seed:
        said += (
            " One seed gives no spread: the interval takes the search's own training for a second seed; "
            "set confirm.seeds to 3 or more."
        )
    return said + on_test(verdict, evaluation, metric)


def _cheaper(verdict: Verdict) -> str:
    """Which of two equals is shipped, and what both cost."""
    assert verdict.costs is not None
    own, other = verdict.costs
    named = "network" if verdict.ships_network else "baseline"
    clearly = own.is_below(other) if verdict.ships_network else other.is_below(own)
    said = (
        f"ship the {named}{', the cheaper one' * clearly} (one row takes {own.latency_ms:.3g} ms with the network and "
    )
    said += f"{other.latency_ms:.3g} ms with the baseline"
    if own.seconds is not None and other.seconds is not None:
        said += f", a training {own.seconds:.3g} s and {other.seconds:.3g} s"
    return said + ")"


def on_test(verdict: Verdict, evaluation: Evaluation | None, metric: str) -> str:
    """What to do after the test evaluation; where it contradicts the verdict, it is said."""
    better, ships_network, found = verdict.outcome == "better", verdict.ships_network, None
    if evaluation is not None and (other := evaluation.baseline if ships_network else evaluation.network) is not None:
        found = evaluation.compared(other, metric)
    if not better:
        if verdict.judgement is None or found is None or not found.gain.gain.high < 0:
            return ""
        lead, rival = found.gain.gain.times(-1.0), "baseline" if ships_network else "network"
        return (
            f" The test rows say otherwise: there the {rival} has a lead of {figure(lead.value)} ({_between(lead)}) by "
            f"{metric}; they do not choose, so give validation more rows or the search more trials, and run again."
        )
    if found is None or not np.isfinite([found.gain.gain.low, found.gain.gain.high]).all():
        return " Ship the network."
    lead = found.gain.gain
    words = f"a lead of {figure(lead.value)} ({_between(lead)}) by {metric}"
    if lead.low > 0:
        return f" Ship the network: on the test rows it has {words}."
    if lead.high < 0:
        return f" But the test rows contradict it, with {words}: keep the baseline; `promote` refuses this version."
    return f" The test rows do not bear it out, with {words}: there it is only as good as the baseline."


def _within(interval: Interval, low: float, high: float) -> Interval:
    """The part of an interval that the metric can have."""
    return Interval(interval.value, *(float(np.clip(end, low, high)) for end in (interval.low, interval.high)))


def _between(interval: Interval) -> str:
    """``-0.0012 to 0.0034``."""
    return ends_in_words((interval.low, interval.high))


def _ends(interval: Interval) -> list[float | None]:
    return [end if np.isfinite(end) else None for end in (interval.low, interval.high)]
