"""How much each hyperparameter matters, beside random ones that cannot: from the finished trials of a study."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.importance import MeanDecreaseImpurityImportanceEvaluator, get_param_importances
from optuna.trial import TrialState, create_trial

from forge_sweep.checks.search import Influence

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

RANDOM = 5  # random parameters that each one is compared with, one at a time
TREES = 32  # of the forest of one evaluation: five of them take half a second with 60 trials


def influences(study: optuna.Study) -> Mapping[str, Influence]:
    """The importance of each hyperparameter that all finished trials have, and that of random ones beside them.

    A random forest says which share of the differences each hyperparameter explains (mean decrease of impurity). Every
    column gets some of it, the more the fewer trials there are; so a column of random numbers is put beside them, five
    times anew, and what it gets is what chance gives (Kursa and Rudnicki 2010, https://doi.org/10.18637/jss.v036.i11).
    Imported trials count. Empty where fewer than two hyperparameters vary.
    """
    finished = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
    names = [name for name in (finished[0].params if finished else {}) if _varies(name, finished)]
    if len(names) < 2:
        return {}
    own: dict[str, list[float]] = {name: [] for name in names}
    random: list[float] = []
    for seed in range(RANDOM):
        stream = np.random.default_rng(seed)
        beside = optuna.create_study(direction=study.directions[0])
        for trial in finished:
            params = {name: trial.params[name] for name in names}
            ranges = {name: trial.distributions[name] for name in names}
            params[_RANDOM], ranges[_RANDOM] = float(stream.random()), FloatDistribution(0.0, 1.0)
            beside.add_trial(create_trial(value=trial.values[0], params=params, distributions=ranges))
        with warnings.catch_warnings(action="ignore"):
            forest = MeanDecreaseImpurityImportanceEvaluator(n_trees=TREES, seed=seed)
            found = get_param_importances(beside, evaluator=forest)
        random.append(float(found[_RANDOM]))
        for name in names:
            own[name].append(float(found[name]))
    return {name: Influence(float(np.mean(shares)), tuple(random)) for name, shares in own.items()}


_RANDOM = "forge.random"  # no hyperparameter has a name with a dot


def _varies(name: str, trials: list[FrozenTrial]) -> bool:
    ranges = {trial.distributions.get(name) for trial in trials}
    return len(ranges) == 1 and None not in ranges and len({trial.params[name] for trial in trials}) > 1
