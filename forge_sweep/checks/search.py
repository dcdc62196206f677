"""What the trials of a sweep say together: what it should try next. From figures to findings.

Everything here is pure, as in `diagnose`. Each finding has a section of its name in docs/failures.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from forge_sweep.checks import luck, pruning
from forge_sweep.checks.findings import Finding
from forge_sweep.experiment import HYPERPARAMETERS, Dimension, Params, Scalar

if TYPE_CHECKING:
    from forge_sweep.task import Direction

EDGE = 0.1
"""Outermost share of a range, on its own scale, that counts as its edge."""

ENOUGH = 10
"""Finished trials below which where the best ones lie is chance."""

ENOUGH_FOR_INFLUENCE = 40
"""Finished trials below which a hyperparameter that explains a fifth of all differences can look like a random one."""

FAR = 0.1
"""Share of what the best baseline gains over a constant by which a network is far behind it."""


@dataclass(frozen=True)
class Tried:
    """A trial that ended: its number, its objective, its hyperparameters and what was said of it."""

    number: int
    value: float  # nan where it failed
    params: Params
    codes: tuple[str, ...] = ()
    state: str = "finished"  # or ``pruned`` or ``failed``
    epochs: int = 0  # that it reported
    loss: float | None = None  # on the training rows after the best epoch; unknown of older trials
    failure: str = ""  # class of the failure
    imported: bool = False  # by a fork


@dataclass(frozen=True)
class Influence:
    """The share of all differences that a hyperparameter explains, and the shares that random ones were given."""

    share: float
    random: tuple[float, ...]


@dataclass(frozen=True)
class Searched:
    """A sweep as far as it has come. What is left out is unknown, and nothing is said that would need it.

    Attributes:
        trials: those that ended, by number.
        space: every hyperparameter.
        direction: of the objective.
        metric: name of the objective.
        study: the values of ``[study]``.
        confirmed: the objective of each confirmed network over its seeds.
        baselines: objective and loss on the validation rows, by kind.
        outcome: of the verdict, such as ``worse``; "" before there is one.
        startup: how many of the first trials the sampler drew at random; None where that is no matter of number.
        influence: of each hyperparameter; see `study.importance`.
    """

    trials: Sequence[Tried]
    space: Mapping[str, Dimension | Scalar]
    direction: Direction
    metric: str = "the objective"
    study: Mapping[str, Any] = field(default_factory=dict)
    confirmed: Sequence[Sequence[float]] = ()
    baselines: Mapping[str, tuple[float, float | None]] = field(default_factory=dict)
    outcome: str = ""
    startup: int | None = None
    influence: Mapping[str, Influence] = field(default_factory=dict)

    @property
    def ranked(self) -> list[Tried]:
        """The finished trials, the best first."""
        finished = [trial for trial in self.trials if trial.state == "finished"]
        return sorted(finished, key=lambda trial: trial.value, reverse=self.direction == "maximize")


def of_sweep(seen: Searched) -> tuple[Finding, ...]:
    """What the trials of a sweep say together; little where fewer than `ENOUGH` of them finished."""
    own = [trial for trial in seen.trials if not trial.imported]
    found = pruning.of_pruner(own, seen.study, seen.metric) if seen.study else []
    ranked = seen.ranked
    if len(ranked) < ENOUGH:
        return tuple(found)
    top = ranked[: max(3, len(ranked) // 4)]
    found += [finding for name, value in seen.space.items() for finding in _edge(name, value, ranked[0], top)]
    found += [*_learning(ranked, top, seen.study), *_influence(seen, ranked), *_behind(seen, ranked[0])]
    chance = [luck.of_seeds(seen.confirmed, [trial.value for trial in ranked], seen.direction)]
    if seen.startup is not None:
        scored = [trial.value if trial.state == "finished" else math.nan for trial in own if trial.state != "failed"]
        first, later = scored[: seen.startup], scored[seen.startup :]
        chance.append(luck.of_sampler(first, later, seen.direction, seen.study["sampler"], seen.study["n_trials"]))
    return (*found, *(each for each in chance if each is not None))


def _learning(ranked: Sequence[Tried], top: Sequence[Tried], study: Mapping[str, Any]) -> Iterator[Finding]:
    """What most of the trials, or most of the best, say of themselves."""
    short = sum("still-improving" in trial.codes for trial in top)
    if short * 2 > len(top):
        seen = f"{short} of the best {len(top)} trials were still improving when their epochs were over"
        fix = f"epochs = {2 * study['epochs']} under [study]" if study else "twice as many epochs under [study]"
        yield Finding("warning", "epochs-too-few", "study.epochs", seen, "trials that end by themselves", fix)
    stuck = sum(not {"one-answer", "flat-loss"}.isdisjoint(trial.codes) for trial in ranked)
    if stuck * 2 > len(ranked):
        seen = f"{stuck} of {len(ranked)} finished trials learned nothing"
        fix = "see what is said of them: `forge-sweep diagnose NAME --trial N`"
        yield Finding("warning", "nothing-learned", "sweep", seen, "trials that learn", fix)


def _influence(seen: Searched, ranked: Sequence[Tried]) -> Iterator[Finding]:
    """Hyperparameters that explain less than all but one of several random ones beside them."""
    if len(ranked) < ENOUGH_FOR_INFLUENCE:
        return
    idle = {k: each for k, each in seen.influence.items() if sum(share < each.share for share in each.random) <= 1}
    if len(idle) == len(seen.influence):
        return  # nothing matters: that is luck with the seed, or nothing was learned
    for name, each in idle.items():
        least, most = min(each.random), max(each.random)
        said = (
            f"it explains {each.share:.1%} of the differences between {len(ranked)} trials, and a random number in its "
            f"place {least:.1%} to {most:.1%}; an influence of a fifth would have shown"
        )
        fix = f"{name} = {_toml(ranked[0].params[name])} under [model.search]"
        yield Finding("info", "no-influence", f"model.search.{name}", said, "parameters that matter", fix)


def _behind(seen: Searched, best: Tried) -> Iterator[Finding]:
    """Whether the best network is far behind the best baseline, and whether it fails on the training rows already."""
    values = {kind: value for kind, (value, _) in seen.baselines.items()}
    trees = {kind: value for kind, value in values.items() if kind != "constant"}
    if not trees or "constant" not in values or seen.outcome in ("better", "as good as"):
        return
    sign = 1 if seen.direction == "maximize" else -1
    kind = max(trees, key=lambda each: sign * trees[each])
    gain, gap = sign * (trees[kind] - values["constant"]), sign * (trees[kind] - best.value)
    if gain <= 0 or gap <= FAR * gain:
        return
    said = f"{kind} has {trees[kind]:.4g}, the best network {best.value:.4g} (trial {best.number}), a constant "
    said += f"{values['constant']:.4g}"
    other = seen.baselines[kind][1]
    if best.loss is not None and other is not None and best.loss > other:
        said += f"; the network's loss on its own training rows, {best.loss:.4g}, is above that of {kind} on rows that "
        said += f"it never saw, {other:.4g}"
        fix = next(_larger(seen.space), "") or f"epochs = {2 * seen.study.get('epochs', 30)} under [study]"
        yield Finding("warning", "underfitting", "model.search", said, "a network that fits its training rows", fix)
    else:
        fix = 'scaler = { type = "categorical", choices = ["standard", "quantile"] } under [model.search]'
        if "scaler" in seen.space:
            fix = f"n_trials = {2 * int(seen.study.get('n_trials', 20))} under [study], or ship {kind}"
        yield Finding("info", "trees-ahead", "sweep", said, "a network that is about as good", fix)


def _larger(space: Mapping[str, Dimension | Scalar]) -> Iterator[str]:
    """Lines that let a network be larger, or learn faster."""
    for name, times in (("width", 4), ("depth", 2), ("learning_rate", 10)):
        value = space.get(name)
        if isinstance(value, Dimension) and value.high is not None and value.type != "categorical":
            high = value.high * times
            if HYPERPARAMETERS[name].accepts(high):
                yield _line(name, value, low=value.low, high=high)
        elif isinstance(value, int | float) and HYPERPARAMETERS[name].accepts(value * times):
            yield f"{name} = {_toml(value * times)} under [model.search]"


def _edge(name: str, value: Dimension | Scalar, best: Tried, top: Sequence[Tried]) -> Iterator[Finding]:
    """Whether the best trials lie at one end of a range that could be wider."""
    if not isinstance(value, Dimension) or value.type == "categorical" or name not in best.params:
        return
    assert value.low is not None and value.high is not None
    scale = np.log if value.log else float
    first, last = scale(value.low), scale(value.high)
    places = [(scale(trial.params[name]) - first) / (last - first) for trial in (best, *top) if name in trial.params]
    mine, middle = places[0], float(np.median(places[1:]))
    if mine <= EDGE and middle <= 2 * EDGE:
        end, low, high = "low", _wider(value, value.low), value.high
    elif mine >= 1 - EDGE and middle >= 1 - 2 * EDGE:
        end, low, high = "high", value.low, _wider(value, value.high)
    else:
        return
    known = HYPERPARAMETERS.get(name)
    if known is not None and not (known.accepts(low) and known.accepts(high)):
        return  # there is nothing beyond
    seen = f"trial {best.number}, the best, has {best.params[name]:.4g}, and half of the best {len(top)} lie as near"
    seen += f" to {end} = {getattr(value, end):g}"
    line = _line(name, value, low=low, high=high)
    yield Finding("warning", "edge-of-range", f"model.search.{name}", seen, "the best trials inside the range", line)


def _line(name: str, value: Dimension, *, low: int | float | None, high: int | float) -> str:
    """A range with other ends, as it stands in the experiment file."""
    step = f", step = {value.step:g}" if value.step is not None else ", log = true" if value.log else ""
    when = ", ".join(f"{other} = [{', '.join(map(_toml, wanted))}]" for other, wanted in value.when.items())
    more = step + (f", when = {{ {when} }}" if when else "")
    return f'{name} = {{ type = "{value.type}", low = {low:g}, high = {high:g}{more} }} under [model.search]'


def _toml(value: Scalar) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else f"{value:.4g}" if isinstance(value, float) else str(value)


def _wider(value: Dimension, end: float) -> int | float:
    """An end of a range, moved outwards by half of the range on its own scale."""
    assert value.low is not None and value.high is not None
    outwards = -1 if end == value.low else 1
    if value.log:
        found = end * (value.high / value.low) ** (outwards / 2)
    else:
        found = end + outwards * (value.high - value.low) / 2
    return round(found) if value.type == "int" else float(f"{found:.3g}")
