"""Which study an experiment belongs to: create it, resume it, refuse it, or fork it."""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_sweep.errors import InputError, ResumeRefused
from forge_sweep.experiment import LATER_KEYS, Experiment, flatten, is_budget
from forge_sweep.experiment.rules import nearest
from forge_sweep.study.shared import Shared
from forge_sweep.study.space import Space, distributions, fits
from forge_sweep.study.storage import CREATING, exists, locks_of, open_storage, open_to_read, storage_url
from forge_sweep.study.study import Study
from forge_sweep.study.view import ACCEPTED, FAILURE, IMPORTED, PARAMS, PREFIX, RESOLVED, SKIPPED, VALUE, StudyView

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from forge_sweep.study.database import Database

EXPERIMENT = "forge.experiment"
"""Written last: a study without it was never completed, or is not ours."""

COMPARABLE = (
    "objective.metric",
    "data.task",
    "data.target",
    "data.positive",
    "model.builder",
    "model.activation",
    "model.loss",
    "model.from_logits",
)
"""Fields that two experiments must share, besides data and split, for the values of one to mean something in the other.

Others, such as ``study.epochs``, ``study.patience``, ``preprocessing`` and ``model.class_weight``, shift the values of
good and bad parameters alike: trials are imported, and the differences are said.
"""

SEARCH = "model.search"
"""Decided trial by trial: see `fits`."""

CREATION_S = 3600
"""How long the import of old trials into a fork may take."""

Studies = dict[str, dict[str, Any]]
"""Attributes of the studies of one experiment by name, newest first."""

SHOWN = 12
"""So many experiments are listed in a message."""


@dataclass(frozen=True)
class Identity:
    """What a study is the study of.

    Attributes:
        experiment: the experiment, with its budget.
        dataset: its ``version``, ``digest`` and ``split_digest``.
    """

    experiment: Experiment
    dataset: Mapping[str, str]

    def attrs(self) -> dict[str, Any]:
        """The study's attributes, in the order in which they are written."""
        return {
            "forge.contract": self.experiment.contract(),
            RESOLVED: self.experiment.resolved(),
            **{f"forge.dataset_{key}": self.dataset[key] for key in ("version", "digest", "split_digest")},
            EXPERIMENT: self.experiment.name,
        }

    def differences(self, attrs: Mapping[str, Any]) -> list[str]:
        """Where the study with ``attrs`` is another one, as ``study.epochs: 20 -> 30``; empty for the same study."""
        return [*self.field_differences(attrs).values(), *self.data_differences(attrs)]

    def field_differences(self, attrs: Mapping[str, Any]) -> dict[str, str]:
        """The fields that differ, budget aside, by TOML path."""
        old = {**LATER_KEYS, **flatten(attrs[RESOLVED])}
        new = flatten(json.loads(json.dumps(self.experiment.resolved())))
        paths = [path for path in [*new, *sorted(set(old) - set(new))] if not is_budget(path)]
        return {p: f"{p}: {_shown(old, p)} -> {_shown(new, p)}" for p in paths if old.get(p, ...) != new.get(p, ...)}

    def data_differences(self, attrs: Mapping[str, Any]) -> list[str]:
        """The rows and their split, where they differ; versions are names and are not compared."""
        words = {"digest": "content of the data", "split_digest": "split of the rows"}
        pairs = {word: (attrs[f"forge.dataset_{key}"], self.dataset[key]) for key, word in words.items()}
        return [f"{word}: {old[:12]} -> {new[:12]}" for word, (old, new) in pairs.items() if old != new]

    def newest_of(self, studies: Studies) -> str | None:
        """Name of the newest study without differences, or None."""
        return next((name for name, attrs in studies.items() if not self.differences(attrs)), None)


def _shown(fields: Mapping[str, Any], path: str) -> str:
    return json.dumps(fields[path]) if path in fields else "(none)"


def open_study(experiment: Experiment, *, dataset: Mapping[str, str], store: Path, fork: bool = False) -> Study:
    """The study of an experiment: the one that was begun with it, or a new one where there is none.

    Budget and labels (`BUDGET_FIELDS`) may differ from those the study was begun with.

    Args:
        experiment: the experiment.
        dataset: ``version``, ``digest`` and ``split_digest`` of its data.
        store: folder of the embedded stores, such as ``mlruns``.
        fork: where studies exist and all were begun with another content, begin a new one instead of refusing, and
            import the finished and pruned trials of the newest that fit the new search space. Trials that differ in a
            fixed value or lack a searched hyperparameter do not fit; none fits where data, split or one of `COMPARABLE`
            changed. `Study.skipped` says what was left behind, `Study.accepted` what differs all the same. Repeated
            after an interruption it goes on with the fork.

    Raises:
        ResumeRefused: studies of this experiment exist and all were begun with another content; every difference to the
            newest is listed.
        InputError: the database cannot be used.
        MissingExtra: the sampler needs packages that are not installed.
    """
    from forge_sweep.study import samplers

    samplers.make(experiment)  # says what is missing before anything is created
    identity, url = Identity(experiment, dataset), storage_url(store)
    storage = open_storage(url, store)
    with storage.turn(CREATING, locks_of(url, store), CREATION_S):
        studies = _studies_of(storage, experiment.name)
        name = identity.newest_of(studies)
        if name is None and studies and not fork:
            raise _refusal(studies, identity)
        name = name or _create(storage, identity, studies)
    return _study(storage, url, name, experiment, store)


def join_study(experiment: Experiment, *, dataset: Mapping[str, str], store: Path) -> Study | None:
    """The study of an experiment that another process began, to run trials of it; None where there is none yet.

    Args:
        experiment: the experiment; its budget does not count, that of the study does.
        dataset: ``version``, ``digest`` and ``split_digest`` of its data.
        store: folder of the embedded stores, such as ``mlruns``.

    Raises:
        ResumeRefused: studies of this experiment exist and all were begun with another content.
        InputError: the database cannot be used.
    """
    identity, url = Identity(experiment, dataset), storage_url(store)
    if not exists(url):
        return None
    storage = open_storage(url, store)
    studies = _studies_of(storage, experiment.name)
    name = identity.newest_of(studies)
    if name is None and studies:
        raise _refusal(studies, identity)
    return None if name is None else _study(storage, url, name, experiment, store)


def find_shared(experiment_name: str, store: Path) -> Shared | None:
    """The newest study of an experiment, to put its trials in order; None where there is none."""
    url = storage_url(store)
    if not exists(url):
        return None
    import optuna

    storage = open_storage(url, store)
    name = next(iter(_studies_of(storage, experiment_name)), None)
    if name is None:
        return None
    return Shared(optuna.load_study(study_name=name, storage=storage), storage, url, store)


def no_study(experiment_name: str, store: Path) -> InputError:
    """What is said where `find_shared` found none: the experiments that have one, the newest first."""
    url = storage_url(store)
    studies = reversed(open_storage(url, store).get_all_studies()) if exists(url) else ()
    known = list(
        dict.fromkeys(str(study.user_attrs[EXPERIMENT]) for study in studies if EXPERIMENT in study.user_attrs)
    )
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    there = f"there is {', '.join(known[:SHOWN])}{more}" if known else "there is no study at all"
    hint = nearest(experiment_name, known) or "begin it with `forge-sweep run EXPERIMENT`, or give --store"
    return InputError(f"experiment {experiment_name!r} has no study in {store}; {there}", hint=hint)


def find_study(experiment_name: str, store: Path) -> StudyView | None:
    """The newest study of an experiment, for reading; None where there is none. Creates no database."""
    return _view(store, experiment_name, lambda studies: next(iter(studies), None))


def require_packages(experiment: Experiment) -> None:
    """Raise MissingExtra where the sampler of an experiment needs packages that are not installed."""
    from forge_sweep.study import samplers

    samplers.make(experiment)


def resumable(experiment: Experiment, *, dataset: Mapping[str, str], store: Path) -> StudyView | None:
    """The study that `open_study` would go on with, for reading; None where it would create one or refuse.

    Creates no database and no study.

    Args:
        experiment: the experiment.
        dataset: ``version``, ``digest`` and ``split_digest`` of its data.
        store: folder of the embedded stores, such as ``mlruns``.

    Raises:
        InputError: the database cannot be used.
    """
    return _view(store, experiment.name, Identity(experiment, dataset).newest_of)


def _view(store: Path, experiment_name: str, choose: Callable[[Studies], str | None]) -> StudyView | None:
    """The study of an experiment that ``choose`` names."""
    url = storage_url(store)
    if not exists(url):
        return None
    import optuna

    storage = open_to_read(url, store)
    name = choose(_studies_of(storage, experiment_name))
    return None if name is None else StudyView(optuna.load_study(study_name=name, storage=storage), url)


def _studies_of(storage: Database, experiment_name: str) -> Studies:
    studies = {study.study_name: study.user_attrs for study in reversed(storage.get_all_studies())}
    return {name: attrs for name, attrs in studies.items() if attrs.get(EXPERIMENT) == experiment_name}


def _refusal(studies: Studies, identity: Identity) -> ResumeRefused:
    """Every difference to the newest study."""
    name, attrs = next(iter(studies.items()))
    title = f"study {name} was begun with another experiment:"
    return ResumeRefused(
        "\n".join([title, *(f"  {difference}" for difference in identity.differences(attrs))]),
        hint="put the old values back to go on with it, or begin a new study that imports the trials that fit: --fork",
    )


def _create(storage: Database, identity: Identity, parents: Studies) -> str:
    """Create a study that imports from the newest of ``parents``; returns its name."""
    import optuna

    experiment = identity.experiment
    name = _free_name(storage, experiment.name)
    study = optuna.create_study(study_name=name, storage=storage, direction=experiment.direction)
    *attrs, completed = identity.attrs().items()
    for key, value in attrs:
        study.set_user_attr(key, value)
    for parent in list(parents.items())[:1]:
        _import(storage, study, identity, *parent)
    study.set_user_attr(*completed)
    return name


def _free_name(storage: Database, experiment_name: str) -> str:
    """``fraud``, ``fraud-2``, ...: the first that is free once the remains of a killed process are removed."""
    import optuna

    taken = {study.study_name: study.user_attrs for study in storage.get_all_studies()}
    for n in itertools.count(1):
        name = experiment_name if n == 1 else f"{experiment_name}-{n}"
        if name in taken and _half_made(storage, name, taken[name]):
            optuna.delete_study(study_name=name, storage=storage)
            del taken[name]
        if name not in taken:
            return name
    raise AssertionError("unreachable: itertools.count has no end")


def _half_made(storage: Database, name: str, attrs: Mapping[str, Any]) -> bool:
    """Whether a process died between creating a study and completing it; such a study has no trial of its own."""
    if EXPERIMENT in attrs or not all(key.startswith(PREFIX) for key in attrs):
        return False
    trials = storage.get_all_trials(storage.get_study_id_from_name(name), deepcopy=False)
    return all(IMPORTED in trial.user_attrs for trial in trials)


def _import(
    storage: Database, study: optuna.Study, identity: Identity, parent: str, parent_attrs: Mapping[str, Any]
) -> None:
    """Copy the trials of ``parent`` that mean something in ``study``, and keep what must be said of them."""
    if why := _incomparable(identity, parent_attrs):
        study.set_user_attr(SKIPPED, f"no trial of {parent} was imported: {'; '.join(why)}")
        return
    trials = storage.get_all_trials(storage.get_study_id_from_name(parent), deepcopy=False)
    ended = [trial for trial in trials if trial.state.name in ("COMPLETE", "PRUNED") and PARAMS in trial.user_attrs]
    done = [trial for trial in ended if FAILURE not in trial.user_attrs]
    fitting = [trial for trial in done if fits(trial.user_attrs[PARAMS], identity.experiment.space)]
    study.add_trials([_imported(trial, parent, identity.experiment.space) for trial in fitting])
    if left := len(done) - len(fitting):
        study.set_user_attr(SKIPPED, f"{left} of {len(done)} trials of {parent} lie outside the new search space")
    if fitting:
        study.set_user_attr(ACCEPTED, "; ".join(_accepted(identity, parent_attrs)))


def _incomparable(identity: Identity, attrs: Mapping[str, Any]) -> list[str]:
    """Differences for which values of the study with ``attrs`` say nothing here."""
    changed = [text for path, text in identity.field_differences(attrs).items() if path in COMPARABLE]
    return [*changed, *identity.data_differences(attrs)]


def _accepted(identity: Identity, attrs: Mapping[str, Any]) -> list[str]:
    """The other differences, after those that the study with ``attrs`` accepted for the trials it imported itself."""
    earlier = [attrs[ACCEPTED]] if attrs.get(ACCEPTED) else []
    changed = identity.field_differences(attrs).items()
    return [*earlier, *(text for path, text in changed if path != SEARCH and not path.startswith(f"{SEARCH}."))]


def _imported(trial: FrozenTrial, study_name: str, space: Space) -> FrozenTrial:
    """A finished or pruned trial with the distributions of the new space; a pruned one keeps its reports."""
    import optuna

    params = trial.user_attrs[PARAMS]
    searched = distributions(space, params)
    attrs = {PARAMS: params, IMPORTED: trial.user_attrs.get(IMPORTED, f"{study_name}#{trial.number}")}
    if VALUE in trial.user_attrs:
        attrs[VALUE] = trial.user_attrs[VALUE]
    return optuna.trial.create_trial(
        state=trial.state,
        value=trial.value,
        params={name: params[name] for name in searched},
        distributions=searched,
        user_attrs=attrs,
        intermediate_values=trial.intermediate_values,
    )


def _study(storage: Database, url: str, name: str, experiment: Experiment, store: Path) -> Study:
    """Load a study with the sampler and pruner of the experiment; Optuna stores neither."""
    import optuna

    from forge_sweep.study import pruners, samplers

    trials = storage.get_all_trials(storage.get_study_id_from_name(name), deepcopy=False)
    imported = [trial.user_attrs[PARAMS] for trial in trials if IMPORTED in trial.user_attrs]
    sampler, pruner = samplers.make(experiment, imported), pruners.make(experiment.study)
    study = optuna.load_study(study_name=name, storage=storage, sampler=sampler, pruner=pruner)
    if study.metric_names is None:  # what optuna-dashboard calls the value
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([experiment.objective.metric])
    return Study(study, storage, url, experiment, store)
