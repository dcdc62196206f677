"""A search space that changes within its study: trials of before that lie in the new one stay, the others step aside.

What is stored of a trial is never rewritten. A study keeps its spaces, one after the other, in one attribute; the last
of them holds, so that a change of space is one write. A `Lens` then shows every trial as the last space would have made
it: with its ranges, or, where it lies outside, as one that Optuna takes nothing from. A space that is put back brings
its trials back.
"""

from __future__ import annotations

import copy
import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState

from forge_sweep.experiment import Dimension
from forge_sweep.experiment.words import as_toml
from forge_sweep.study.space import Space, distributions, misfit, searched
from forge_sweep.study.trials import OUR_STATES, Attr

if TYPE_CHECKING:
    from collections.abc import Iterable

    from forge_sweep.experiment import Experiment


def read(space: Mapping[str, Any]) -> dict[str, Any]:
    """A space as it is kept, or as an experiment's record has ``model.search``."""
    return {name: Dimension.model_validate(v) if isinstance(v, Mapping) else v for name, v in space.items()}


def _kept(space: Space) -> dict[str, Any]:
    return {name: v.model_dump(mode="json") if isinstance(v, Dimension) else v for name, v in space.items()}


def with_search(experiment: Experiment, search: Mapping[str, Any]) -> Space:
    """The whole space of an experiment that has another ``[model.search]``."""
    model = experiment.model.model_copy(update={"search": read(search)})
    return experiment.model_copy(update={"model": model}).space


def changed(
    experiment: Experiment, attrs: Mapping[str, Any], trials: Iterable[FrozenTrial], search: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The spaces of a study after that of ``experiment`` has become its last.

    Args:
        experiment: with the new space.
        attrs: of the study.
        trials: of the study as they are stored.
        search: ``[model.search]`` of before, as it was recorded.
    """
    before, now = with_search(experiment, search), experiment.space
    known = attrs.get(Attr.SPACES) or [{"search": search, "space": _kept(before), "trials": 0, "outside": {}}]
    first, outside, n_trials = read(known[0]["space"]), dict[str, str](), 0
    for trial in trials:
        n_trials += 1
        why = misfit(_params(trial, first, now), now)
        if why:
            outside[str(trial.number)] = why
    names = dict.fromkeys((*now, *before))
    return [
        *known,
        {
            "search": experiment.resolved()["model"]["search"],
            "space": _kept(now),
            "trials": n_trials,
            "outside": outside,
            "at": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "changes": [
                f"model.search.{name}: {shown(before.get(name))} -> {shown(now.get(name))}"
                for name in names
                if before.get(name) != now.get(name) or type(before.get(name)) is not type(now.get(name))
            ],
        },
    ]


def _params(trial: FrozenTrial, first: Space, now: Space) -> dict[str, Any]:
    """Every hyperparameter of a trial; of one that waits and was never begun, values that it may have.

    What it was not given is drawn, or fixed, when it is begun. A warm start gives a whole configuration of the
    ``first`` space, whose fixed values go without saying.
    """
    if Attr.PARAMS in trial.user_attrs:
        return dict(trial.user_attrs[Attr.PARAMS])
    base = first if Attr.WARM in trial.user_attrs else now
    params: dict[str, Any] = {name: value for name, value in base.items() if not isinstance(value, Dimension)}
    params |= {_plain(name): value for name, value in trial.params.items()}
    params |= trial.system_attrs.get("fixed_params", {})  # where Optuna keeps what `enqueue_trial` was given
    for name, dimension in searched(now).items():
        if dimension.active(params):
            params.setdefault(name, dimension.extremes()[0])  # it will be drawn from this range
    return params


def shown(value: Any) -> str:
    """A value or a range in words, such as ``16..128 (log)``."""
    if not isinstance(value, Dimension):
        return "(none)" if value is None else as_toml(value)
    if value.type == "categorical":
        said = f"[{', '.join(map(as_toml, value.choices))}]"
    else:
        said = f"{value.low:g}..{value.high:g}"
    more = [
        *(["log"] if value.log else []),
        *([f"step {value.step:g}"] if value.step is not None else []),
        *(f"when {name} is {' or '.join(map(as_toml, wanted))}" for name, wanted in value.when.items()),
    ]
    return f"{said} ({', '.join(more)})" if more else said


def words(name: str, spaces: Sequence[Mapping[str, Any]]) -> str:
    """What became of the trials when the last of a study's spaces took its place."""
    last = spaces[-1]
    n, outside = int(last["trials"]), [*last["outside"]]
    stay = f"all {n} trials fit and stay" if not outside else f"{n - len(outside)} of {n} trials fit and stay"
    if outside:
        some = ", ".join(outside[:10]) + (f" and {len(outside) - 10} more" if len(outside) > 10 else "")
        stay += f", trial{'s' * (len(outside) > 1)} {some} {'do' if len(outside) > 1 else 'does'} not"
    return f"the space of {name} has changed: {'; '.join(last['changes'])}; {stay if n else 'there is no trial yet'}"


def _plain(stored: str) -> str:
    """The hyperparameter that is stored under a name; see `Lens.names`."""
    return stored.partition(" (")[0]


def _alike(one: Any, other: Dimension) -> bool:
    """Whether Optuna lets both be ranges of one parameter of a study."""
    if not isinstance(one, Dimension) or one.type != other.type:
        return False
    return one.choices == other.choices if one.type == "categorical" else one.log == other.log


@dataclass
class Lens:
    """Shows the trials of a study as its last space would have made them.

    Attributes:
        study_id: of the study in Optuna's storage.
        spaces: of the study; see `changed`.
        names: under which name Optuna stores a hyperparameter. It refuses other choices, another kind or another scale
            of a parameter that the study has; such a hyperparameter has another one from there on, ``activation (1)``.
    """

    study_id: int
    spaces: Sequence[Mapping[str, Any]]
    names: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self._space = read(self.spaces[-1]["space"])
        self._outside = {int(number): why for number, why in self.spaces[-1]["outside"].items()}
        self._seen: dict[int, tuple[FrozenTrial, FrozenTrial]] = {}  # as stored and as shown, by number
        every, names = [read(each["space"]) for each in self.spaces], {}
        for name, wanted in searched(self._space).items():
            ranges = [space.get(name) for space in every]
            first = next(i for i, each in enumerate(ranges) if isinstance(each, Dimension))
            like = next(i for i, each in enumerate(ranges) if _alike(each, wanted))
            names[name] = name if like == first else f"{name} ({like})"
        self.names = names

    def show(self, trial: FrozenTrial) -> FrozenTrial:
        """A stored trial in terms of the last space."""
        known = self._seen.get(trial.number)
        if known is None or known[0] is not trial:
            known = self._seen[trial.number] = trial, self._shown(trial)
        return known[1]

    def _shown(self, trial: FrozenTrial) -> FrozenTrial:
        why = self._outside.get(trial.number)
        if why is not None:
            other = copy.copy(trial)
            other.state = TrialState.FAIL  # of which samplers and pruners take nothing
            other.user_attrs = {**trial.user_attrs, Attr.OUTSIDE: {"why": why, "state": OUR_STATES[trial.state.name]}}
            other.params, other.distributions = {}, {}
            other.system_attrs = {}  # successive halving reads those of failed trials, too
            return other
        params = trial.user_attrs.get(Attr.PARAMS)
        if params is None:  # it waits, or its process died while it was made
            stored = {_plain(name): value for name, value in trial.params.items()}
            params = {name: stored[name] for name, each in searched(self._space).items() if name in stored}
            wanted = {name: each for name, each in distributions(self._space, params).items() if name in params}
        else:
            wanted = distributions(self._space, params)
        if wanted == trial.distributions:
            return trial
        other = copy.copy(trial)
        other.params, other.distributions = {name: params[name] for name in wanted}, wanted
        return other

    def stored(self, trial: FrozenTrial) -> FrozenTrial:
        """A new trial as it is stored."""
        if all(self.names.get(name, name) == name for name in trial.params):
            return trial
        other = copy.copy(trial)
        other.params, other.distributions = {}, {}
        other.params = {self.names.get(name, name): value for name, value in trial.params.items()}
        other.distributions = {self.names.get(name, name): each for name, each in trial.distributions.items()}
        return other
