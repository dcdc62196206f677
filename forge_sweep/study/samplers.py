"""Samplers whose suggestion follows from the experiment's seed, the trial's number and the trials done before it.

No random stream outlives a trial, as in Optuna: a resumed sweep suggests what an uninterrupted one does.
Every argument that decides a suggestion is stated: Optuna's defaults change between releases.
"""

from __future__ import annotations

import abc
import functools
import importlib.util
import itertools
import math
import random
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from optuna import create_study, create_trial, samplers
from optuna.exceptions import ExperimentalWarning

from forge_sweep.errors import MissingExtra
from forge_sweep.experiment import Dimension, Experiment, Params, Scalar, derived_seed
from forge_sweep.study import hub
from forge_sweep.study.space import Space, configurations, distributions, key_of, searched, suggest

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

Build = Callable[[int], samplers.BaseSampler]

STARTUP = {"tpe": 10, "gp": 10}
"""How many trials a sampler draws at random before it suggests any; the others make no such difference."""

STARTUP_OF_TREES = 4
"""The same where trees are tuned, which is done with few."""


def make(
    experiment: Experiment, n_imported: int = 0, known: Sequence[Mapping[str, Scalar]] = (), before: int = 0
) -> samplers.BaseSampler:
    """The sampler of ``study.sampler``; raises MissingExtra for one whose packages are not installed.

    Args:
        experiment: with the search space.
        n_imported: trials that a fork brought in; they have the first numbers of the study.
        known: the points of a grid that are not to be tried: parameters of imported trials and, where the space has
            changed, of those of before that lie in it.
        before: trials that the study had when its space changed last.
    """
    build: Build
    match experiment.study.sampler:
        case "qmc":
            return SobolSampler(experiment.space, experiment.seed, n_imported)
        case "grid":
            return GridSampler(experiment.space, experiment.seed, known, max(before, n_imported))
        case "random":
            build = _random
        case "tpe":
            build = functools.partial(_tpe, experiment)
        case "cmaes":
            build = functools.partial(_cmaes, experiment)
        case "gp":
            build = _gp
        case _:
            return SeededSampler(hub.load(experiment).build, experiment.seed, experiment.space, prepares=True)
    return SeededSampler(build, experiment.seed, experiment.space)


def _random(seed: int) -> samplers.BaseSampler:
    return samplers.RandomSampler(seed=seed)


def _tpe(experiment: Experiment, seed: int) -> samplers.BaseSampler:
    conditional = any(dimension.when for dimension in searched(experiment.space).values())
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):  # of group
        return samplers.TPESampler(
            seed=seed,
            n_startup_trials=STARTUP["tpe"],
            n_ei_candidates=24,
            multivariate=True,
            group=conditional,
            constant_liar=experiment.workers.parallel,
        )


def _cmaes(experiment: Experiment, seed: int) -> samplers.BaseSampler:
    """CMA-ES keeps its state with the trials; it counts pruned trials under Hyperband, as Optuna's authors advise."""
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):  # of consider_pruned_trials
        return samplers.CmaEsSampler(
            seed=seed,
            n_startup_trials=1,
            independent_sampler=_random(seed),
            warn_independent_sampling=False,  # categorical and conditional hyperparameters are drawn at random
            consider_pruned_trials=experiment.study.pruner == "hyperband",
            popsize=None,  # 4 + 3 ln(dimensions), as in Hansen 2016 (https://arxiv.org/abs/1604.00772)
            use_separable_cma=False,
            with_margin=False,
            lr_adapt=False,
            source_trials=None,
        )


def _gp(seed: int) -> samplers.BaseSampler:
    if importlib.util.find_spec("torch") is None:
        raise MissingExtra('study.sampler = "gp"', "gp")
    return samplers.GPSampler(
        seed=seed,
        independent_sampler=_random(seed),
        n_startup_trials=STARTUP["gp"],
        deterministic_objective=False,
        warn_independent_sampling=False,
    )


ATTEMPTS = 20
"""How often another configuration is drawn where one was tried before, until one that was not is taken at random."""


class FreshSampler(samplers.BaseSampler):
    """Draws a whole configuration for each trial, one that is not among those that were ``tried``.

    Who asks for a trial sets these before. A space whose configurations were all tried gives one of them again.
    `after_trial` is not passed on: Optuna's samplers use it for constraints only.
    """

    tried: Collection[str] = frozenset()
    """Of the other trials; see `space.key_of`."""

    def __init__(self, space: Space, root_seed: int) -> None:
        self._space = space
        self._root_seed = root_seed
        self._point: Params | None = None

    @abc.abstractmethod
    def draw(self, study: Study, trial: FrozenTrial, attempt: int) -> Params:
        """A configuration, another one for each attempt, which count from 0."""

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Draw nothing yet: a trial that waited has its configuration."""
        self._point = None

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """None: what is sampled together is part of the configuration that was drawn."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing."""
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The parameter's value in the trial's configuration; one of its own where fixed values made it active."""
        if self._point is None:
            self._point = self._fresh(study, trial)
        if param_name in self._point:
            return self._point[param_name]
        alone = _random(derived_seed(self._root_seed, "sampler", trial.number, param_name))
        return alone.sample_independent(study, trial, param_name, param_distribution)

    def _fresh(self, study: Study, trial: FrozenTrial) -> Params:
        for attempt in range(ATTEMPTS):
            point = self.draw(study, trial, attempt)
            if key_of(point) not in self.tried:
                return point
        left = [params for params in configurations(self._space) or () if key_of(params) not in self.tried]
        return random.Random(derived_seed(self._root_seed, "untried", trial.number)).choice(left) if left else point


class SeededSampler(FreshSampler):
    """Delegates to a sampler that is built anew for each trial, with a seed of its own.

    Parameters drawn one by one have a seed each, so that a trial that was killed between two draws gets the same rest.
    """

    def __init__(self, build: Build, root_seed: int, space: Space, *, prepares: bool = False) -> None:
        super().__init__(space, root_seed)
        self._build = build
        self._prepares = prepares  # whether it has to be told of a trial before it draws a single parameter
        build(root_seed)  # an optional dependency that is missing is found here, not at the first trial

    def draw(self, study: Study, trial: FrozenTrial, attempt: int) -> Params:
        """What the sampler gives for several parameters at once, then the others in the order of the space."""
        purpose = (trial.number, *([attempt] if attempt else []))
        inner = self._build(derived_seed(self._root_seed, "sampler", *purpose))
        inner.before_trial(study, trial)
        together = inner.infer_relative_search_space(study, trial)
        with warnings.catch_warnings():
            # A CUDA build of PyTorch says at its first gradient that there is no driver; "gp" fits its Gaussian process
            # on the CPU in any case.
            warnings.filterwarnings("ignore", "CUDA initialization: ", UserWarning)
            values = inner.sample_relative(study, trial, together)
        params: Params = {}
        for name, value in self._space.items():
            if not isinstance(value, Dimension):
                params[name] = value
            elif value.active(params):
                if name not in values or not value.holds(values[name]):
                    alone = self._build(derived_seed(self._root_seed, "sampler", *purpose, name))
                    distribution = distributions(self._space, params)[name]
                    if self._prepares:
                        alone.before_trial(study, trial)
                    values = {**values, name: alone.sample_independent(study, trial, name, distribution)}
                params[name] = _plain(values[name])
        return params


def _plain(value: Any) -> Scalar:
    """Samplers of others give numbers of NumPy."""
    return cast(Scalar, value.item() if hasattr(value, "item") else value)


class SequenceSampler(FreshSampler):
    """The i-th new trial of a study gets the i-th point of a fixed sequence, or the next one that was not tried.

    Optuna's own QMC and grid samplers count in the storage: a kill between the count and the trial loses a point, and
    two workers can take the same one. ``n_before`` trials stand before the first new one.
    """

    size: int | None = None
    """Number of points; None where the sequence has no end."""

    def __init__(self, space: Space, root_seed: int, n_before: int) -> None:
        super().__init__(space, root_seed)
        self._dimensions = searched(space)
        self._n_before = n_before

    @abc.abstractmethod
    def point(self, index: int) -> Params:
        """The ``index``-th point (from 0), inactive hyperparameters included."""

    def draw(self, study: Study, trial: FrozenTrial, attempt: int) -> Params:
        """The trial's point, or one of those after it."""
        index, params = trial.number - self._n_before + attempt, Params()
        point = self.point(index if self.size is None else index % self.size)
        for name, value in self._space.items():
            if not isinstance(value, Dimension):
                params[name] = value
            elif value.active(params):
                params[name] = point[name]
        return params


class SobolSampler(SequenceSampler):
    """Scrambled Sobol sequence (Owen 1998) over all searched hyperparameters, also conditional and categorical ones."""

    def point(self, index: int) -> Params:
        """The ``index``-th point of the sequence."""
        from scipy.stats import qmc

        if not self._dimensions:
            return {}
        engine = qmc.Sobol(len(self._dimensions), scramble=True, rng=self._root_seed)
        if index:  # scipy cannot go forward by nothing
            engine.fast_forward(index)
        units = dict(zip(self._dimensions, engine.random(1)[0].tolist(), strict=True))
        return {name: at(unit, self._dimensions[name]) for name, unit in units.items()}


def at(unit: float, dimension: Dimension) -> Scalar:
    """The value at ``unit`` (0 <= unit < 1) of a range, as uniform as its scale says."""
    values = None if dimension.log else dimension.grid()
    if values is not None:
        return values[int(unit * len(values))]
    assert dimension.low is not None and dimension.high is not None  # held by the rules of the experiment file
    low, high = dimension.low, dimension.high
    if not dimension.log:
        return low + unit * (high - low)
    half = 0.5 if dimension.type == "int" else 0.0  # whole numbers get equal shares of the scale, the ends included
    value = math.exp(math.log(low - half) + unit * (math.log(high + half) - math.log(low - half)))
    value = min(max(value, low), high)
    return round(value) if dimension.type == "int" else value


class GridSampler(SequenceSampler):
    """Every point of the grid once, in shuffled order; ``known`` points, which trials of before have, are left out."""

    def __init__(self, space: Space, seed: int, known: Sequence[Mapping[str, Scalar]], n_before: int) -> None:
        super().__init__(space, seed, n_before)
        self._values = {name: dimension.grid() or () for name, dimension in self._dimensions.items()}
        taken = {self._key(params) for params in known}
        self._total = math.prod(map(len, self._values.values()))
        self.size = self._total - len(taken)
        self._unused = (point for point in self._shuffled(seed) if self._key(point) not in taken)
        self._points: list[Params] = []

    def point(self, index: int) -> Params:
        """The ``index``-th point that no trial of before has."""
        self._points += itertools.islice(self._unused, max(0, index + 1 - len(self._points)))
        return self._points[index]

    def _key(self, params: Mapping[str, Scalar]) -> tuple[Scalar, ...]:
        return tuple(params[name] for name in self._values)

    def _shuffled(self, seed: int) -> Iterator[Params]:
        """All points in an order that does not depend on how many are drawn; needs memory for the drawn ones only."""
        stream, moved = random.Random(seed), dict[int, int]()
        for i in range(self._total):  # Fisher-Yates
            j = stream.randrange(i, self._total)
            index, point = moved.get(j, j), Params()
            moved[j] = moved.get(i, i)
            for name, values in self._values.items():
                index, digit = divmod(index, len(values))
                point[name] = values[digit]
            yield point


def next_point(
    space: Mapping[str, Dimension],
    told: Sequence[tuple[Params, float]],
    *,
    direction: Literal["maximize", "minimize"],
    seed: int,
) -> Params:
    """The point of ``space`` that TPE tries after those in ``told``, each with its objective.

    It follows from the arguments alone, so that who notes what was tried needs no study to go on.
    """
    sampler = samplers.TPESampler(
        seed=seed, n_startup_trials=STARTUP_OF_TREES, n_ei_candidates=24, multivariate=True, constant_liar=False
    )
    study = create_study(sampler=sampler, direction=direction)
    for params, value in told:
        study.add_trial(create_trial(params=params, distributions=distributions(space, params), value=value))
    return suggest(study.ask(distributions(space, {})), space)
