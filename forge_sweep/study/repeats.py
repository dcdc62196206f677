"""Configurations that were trained with several seeds, taken for what they are worth on average."""

from __future__ import annotations

import copy
import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from forge_sweep.study.space import key_of
from forge_sweep.study.trials import Attr, attrs_of

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

AVERAGE = "average"
"""The value of ``study.repeats`` with which trials are shown so."""


def averaged(trials: Sequence[FrozenTrial], keys: dict[int, str] | None = None) -> list[FrozenTrial]:
    """The trials as samplers are to see them: a finished one with the mean over all that have its configuration.

    What it scored itself stays with it, in `Attr.VALUE`. Pruned, failed, infeasible and imported ones are not averaged.
    ``keys`` of their configurations, by number, are kept there from call to call.
    """
    keys = {} if keys is None else keys
    alike: defaultdict[str, list[FrozenTrial]] = defaultdict(list)
    for trial in trials:
        attrs = attrs_of(trial)
        counts = Attr.PARAMS in attrs and not {Attr.FAILURE, Attr.IMPORTED} & attrs.keys()
        if trial.state.name == "COMPLETE" and trial.value is not None and counts:
            if trial.number not in keys:
                keys[trial.number] = key_of(attrs[Attr.PARAMS])
            alike[keys[trial.number]].append(trial)
    shown: dict[int, FrozenTrial] = {}
    for group in alike.values():
        mean = statistics.fmean(trial.value or 0.0 for trial in group)
        for trial in group:
            other = shown[trial.number] = copy.copy(trial)
            other.user_attrs = {Attr.VALUE: trial.value, **trial.user_attrs, Attr.SEEDS: len(group)}
            other.value = mean
    return [shown.get(trial.number, trial) for trial in trials]
