"""A local search: numbers near those of the best trial so far. An example of a sampler of one's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState


class NearBestSampler(BaseSampler):
    """Half of the numbers are those of the best trial, a little further on; the rest is random."""

    def __init__(self, *, seed: int | None = None, spread: float = 0.1) -> None:
        self._rng = np.random.default_rng(seed)
        self._spread = spread
        self._random = RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Numbers that all finished trials have."""
        space = optuna.search_space.intersection_search_space(study.get_trials(deepcopy=False))
        return {name: each for name, each in space.items() if not isinstance(each, CategoricalDistribution)}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """See class."""
        done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if not done:
            return {}
        sign = 1 if study.direction == StudyDirection.MAXIMIZE else -1
        best, found = max(done, key=lambda each: sign * (each.value or 0.0)), dict[str, Any]()
        for name, each in search_space.items():
            if self._rng.random() < 0.5:
                wide = (each.high - each.low) * self._spread  # type: ignore[attr-defined]
                value = np.float64(best.params[name]) + wide * self._rng.standard_normal()
                value = np.clip(value, each.low, each.high)  # type: ignore[attr-defined]
                found[name] = np.int64(round(value)) if isinstance(best.params[name], int) else value
        return found

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """At random."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)
