"""The Optuna study behind a sweep: which parameters come next, when a trial is pruned, and what survives a crash."""

from forge_sweep.study.budget import PHASES, Over, Progress, Spent, over, phases_words, span, union_s
from forge_sweep.study.resume import (
    find_shared,
    find_study,
    join_study,
    no_study,
    open_study,
    require_packages,
    resumable,
)
from forge_sweep.study.storage import check_storage, state, storage_url
from forge_sweep.study.study import Asked, Requeued, Shared, Study
from forge_sweep.study.trials import (
    NO_COST,
    PHASES_NOTE,
    SESSION,
    Attr,
    Cost,
    StateCost,
    StudyView,
    TrialCost,
    TrialRow,
    TrialState,
)

__all__ = [
    "NO_COST",
    "PHASES",
    "PHASES_NOTE",
    "SESSION",
    "Asked",
    "Attr",
    "Cost",
    "Over",
    "Progress",
    "Requeued",
    "Shared",
    "Spent",
    "StateCost",
    "Study",
    "StudyView",
    "TrialCost",
    "TrialRow",
    "TrialState",
    "check_storage",
    "find_shared",
    "find_study",
    "join_study",
    "no_study",
    "open_study",
    "over",
    "phases_words",
    "require_packages",
    "resumable",
    "span",
    "state",
    "storage_url",
    "union_s",
]
