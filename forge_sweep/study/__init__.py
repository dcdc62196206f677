"""The Optuna study behind a sweep: which parameters come next, when a trial is pruned, and what survives a crash.

| file | holds |
|---|---|
| `opening` | which study an experiment belongs to: create, resume, refuse, fork |
| `study` | the worker's side: hold or join, requeue, ask, report, tell |
| `shared` | how a trial changes hands |
| `view` | the reader's side: rows, best, notes, figures; needs no experiment |
| `figures` | plots of a study; imported only when they are drawn |
| `cost` | what trials cost, and whether a budget is over: plain values |
| `space` | from `Dimension` to Optuna's distributions and suggestions |
| `samplers`, `pruners` | Optuna's, made deterministic and explicit; imported only when a study is opened |
| `storage` | the database, safe for several processes, and the lock of a run |
| `database` | Optuna's storage with owners, turns and patience; imported only when a study is opened |
| `owners` | which processes run trials, and which of them are dead |
"""

from forge_sweep.study.cost import (
    PHASES,
    Cost,
    Over,
    Progress,
    Spent,
    StateCost,
    TrialCost,
    over,
    phases_words,
    span,
    union_s,
)
from forge_sweep.study.opening import (
    find_shared,
    find_study,
    join_study,
    no_study,
    open_study,
    require_packages,
    resumable,
)
from forge_sweep.study.shared import Requeued, Shared
from forge_sweep.study.storage import check_storage, storage_url
from forge_sweep.study.study import Asked, Study
from forge_sweep.study.view import COST, PHASES_NOTE, SESSION, FailingStreak, StudyView, TrialRow, TrialState

__all__ = [
    "COST",
    "PHASES",
    "PHASES_NOTE",
    "SESSION",
    "Asked",
    "Cost",
    "FailingStreak",
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
    "storage_url",
    "union_s",
]
