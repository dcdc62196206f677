"""Which study an experiment belongs to: create it, resume it, refuse it, or fork it."""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_sweep.errors import InputError, ResumeRefused
from forge_sweep.experiment import Experiment
from forge_sweep.experiment.code import file_name
from forge_sweep.experiment.fields import is_of_hub
from forge_sweep.experiment.words import nearest
from forge_sweep.study.repeats import AVERAGE, averaged
from forge_sweep.study.space import Space, distributions, fits
from forge_sweep.study.storage import CREATING, exists, locks_of, open_storage, open_to_read, storage_url
from forge_sweep.study.study import Shared, Study
from forge_sweep.study.trials import PREFIX, SAMPLER_NOTE, Attr, StudyView, attrs_of, curve, recorded
from forge_sweep.study.warm import enqueue

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from forge_sweep.study.database import Database

DATA = {"digest": "content of the data", "split_digest": "split of the rows"}
"""What is compared of a dataset; versions are names."""

COMPARABLE = (
    "objective.metric",
    "objective.metrics",
    "data.task",
    "data.target",
    "data.positive",
    "data.split.folds",
    "data.split.repeats",
    "study.fidelity",
    "model.builder",
    "model.code",
    "model.activation",
    "model.loss",
    "model.from_logits",
    *DATA.values(),
)
"""What two experiments must share for the values of one to mean something in the other.

Others, such as ``study.epochs``, shift the values of good and bad parameters alike: the differences are said.
"""

HEADS = ("data.heads", "objective.sum")
"""Tables of which the same holds."""

CODE_FOLDERS = {"model.code": "code/", "data.code": "source_code/"}
"""Where the run of a sweep in MLflow has the files of the user's own, by the key that has their digest."""

SEARCH = "model.search"  # decided trial by trial: see `fits`
CREATION_S = 3600  # how long the import of old trials into a fork may take

Studies = dict[str, dict[str, Any]]
"""Attributes of the studies of one experiment by name, newest first."""

SHOWN = 12  # so many experiments are listed in a message


def open_study(experiment: Experiment, *, dataset: Mapping[str, str], store: Path, fork: bool = False) -> Study:
    """The study of an experiment: the one that was begun with it, or a new one where there is none.

    Budget and labels (`BUDGET_FIELDS`) may differ from those the study was begun with. So may ``[model.search]``: the
    newest study then goes on with another space, from `Study.hold` on.

    Args:
        experiment: the experiment.
        dataset: ``version``, ``digest`` and ``split_digest`` of its data.
        store: folder of the embedded stores, such as ``mlruns``.
        fork: where studies exist and all were begun with another content, begin a new one instead of refusing, and
            import the finished and pruned trials of the newest that fit the new search space; none fits where data,
            split or one of `COMPARABLE` changed. `Study.skipped` says what was left behind, `Study.accepted` what
            differs all the same. Repeated after an interruption it goes on with the fork.

    Raises:
        ResumeRefused: studies of this experiment exist and all were begun with another content; every difference to the
            newest is listed.
        InputError: the database cannot be used.
        MissingExtra: the sampler needs packages that are not installed.
    """
    require_packages(experiment)
    url = storage_url(store)
    storage = open_storage(url, store)
    with storage.turn(CREATING, locks_of(url, store), CREATION_S):
        studies = _studies_of(storage, experiment.name)
        name = _newest(studies, experiment, dataset)
        if name is None and studies and not fork:
            name = _with_other_space(studies, experiment, dataset)
        name = name or _create(storage, experiment, dataset, studies, _earlier(storage, experiment, store))
    return _study(storage, url, name, experiment, store)


def join_study(experiment: Experiment, *, dataset: Mapping[str, str], store: Path) -> Study | None:
    """The study of an experiment that another process began, whose budget counts; None where there is none yet.

    Raises:
        ResumeRefused: studies of this experiment exist and all were begun with another content.
        InputError: the database cannot be used.
    """
    url = storage_url(store)
    if not exists(url):
        return None
    storage = open_storage(url, store)
    studies = _studies_of(storage, experiment.name)
    name = _newest(studies, experiment, dataset)
    if name is None and studies:
        raise _refusal(studies, experiment, dataset)
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
    _look(storage, name)
    return Shared(optuna.load_study(study_name=name, storage=storage), storage, url, store)


def no_study(experiment_name: str, store: Path) -> InputError:
    """What is said where `find_shared` found none: the experiments that have one, the newest first."""
    url = storage_url(store)
    studies = [study.user_attrs for study in open_storage(url, store).get_all_studies()] if exists(url) else []
    named = (str(attrs[Attr.EXPERIMENT]) for attrs in reversed(studies) if Attr.EXPERIMENT in attrs)
    known = list(dict.fromkeys(named))
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


def resumable(
    experiment: Experiment, *, dataset: Mapping[str, str], store: Path, fork: bool = False
) -> StudyView | None:
    """The study that `open_study` would go on with, for reading; None where it would create one.

    None, too, where it would go on with another search space. Creates no database. Raises as `open_study` does.
    """

    def choose(studies: Studies) -> str | None:
        name = _newest(studies, experiment, dataset)
        if name is None and studies and not fork:
            _with_other_space(studies, experiment, dataset)
        return name

    return _view(store, experiment.name, choose)


def _view(store: Path, experiment_name: str, choose: Callable[[Studies], str | None]) -> StudyView | None:
    url = storage_url(store)
    if not exists(url):
        return None
    import optuna

    storage = open_to_read(url, store)
    name = choose(_studies_of(storage, experiment_name))
    if name is None:
        return None
    _look(storage, name)
    return StudyView(optuna.load_study(study_name=name, storage=storage), url)


def _look(storage: Database, name: str) -> None:
    """Show the trials of a study, in all that this storage reads from here on, as it takes them now."""
    from forge_sweep.study.growth import Lens

    study_id = storage.get_study_id_from_name(name)
    attrs = storage.get_study_user_attrs(study_id)
    if spaces := attrs.get(Attr.SPACES):
        storage.lens = Lens(study_id, spaces)
    storage.averages = attrs.get(Attr.RESOLVED, {}).get("study", {}).get("repeats") == AVERAGE


def _studies_of(storage: Database, experiment_name: str) -> Studies:
    studies = {study.study_name: study.user_attrs for study in reversed(storage.get_all_studies())}
    return {name: attrs for name, attrs in studies.items() if attrs.get(Attr.EXPERIMENT) == experiment_name}


def _differences(experiment: Experiment, dataset: Mapping[str, str], attrs: Mapping[str, Any]) -> dict[str, str]:
    """By what differs from the study with ``attrs``, budget aside, words such as ``study.epochs: 20 -> 30``."""
    found = experiment.differences(recorded(attrs))
    begun, now = attrs.get(Attr.CODE, {}), _files(experiment)
    for key in (key for key in found if key in begun and key in now):
        old, new = begun[key], now[key]
        texts = [
            f"{name} {'is new' if name not in old else 'is gone' if name not in new else 'was edited'}"
            for name in sorted({*old, *new})
            if old.get(name) != new.get(name)
        ]
        if texts:
            found[key] = f"{key}: {', '.join(texts)}; comments count"
    for key, what in DATA.items():
        then, today = attrs[f"forge.dataset_{key}"], dataset[key]
        if then != today:
            found[what] = f"{what}: {then[:12]} -> {today[:12]}"
    return found


def _files(experiment: Experiment) -> dict[str, dict[str, str]]:
    """A digest of each file of the user's own code, by the key of the experiment that stands for all of them."""
    codes = {"model.code": experiment.code, "data.code": experiment.source_code}
    return {
        key: {file_name(name): hashlib.sha256(text.encode()).hexdigest()[:12] for name, text in code.files.items()}
        for key, code in codes.items()
        if code is not None
    }


def _newest(studies: Studies, experiment: Experiment, dataset: Mapping[str, str]) -> str | None:
    """Name of the newest study without differences."""
    return next((name for name, attrs in studies.items() if not _differences(experiment, dataset, attrs)), None)


def _with_other_space(studies: Studies, experiment: Experiment, dataset: Mapping[str, str]) -> str:
    """Name of the newest study, where nothing but its search space is to change; ResumeRefused where something is."""
    name, attrs = next(iter(studies.items()))
    differences = _differences(experiment, dataset, attrs)
    if not all(f"{what}.".startswith(f"{SEARCH}.") for what in differences):
        raise _refusal(studies, experiment, dataset)
    sampler = experiment.study.sampler
    if sampler == "cmaes" or is_of_hub(sampler):
        keeps = "keeps" if sampler == "cmaes" else "may keep"
        raise ResumeRefused(
            "\n  ".join([f"study {name} was begun with another search space:", *differences.values()]),
            hint=f'study.sampler = "{sampler}" {keeps} where it is with the trials, in terms of the space of before; '
            "put the old values back, or begin a new study that imports the trials that fit: --fork",
        )
    return name


def _refusal(studies: Studies, experiment: Experiment, dataset: Mapping[str, str]) -> ResumeRefused:
    name, attrs = next(iter(studies.items()))
    differences = _differences(experiment, dataset, attrs)
    folders = [folder for key, folder in CODE_FOLDERS.items() if key in differences]
    run = attrs.get(f"{Attr.NOTE}sweep:run", f"in forge-sweep ui {experiment.name}")
    source = f"; the old source is in {' and '.join(folders)} of its run {run}" if folders else ""
    if any(f"{what}.".startswith(f"{SEARCH}.") for what in differences) and len(differences) > 1:
        source += "; [model.search] alone may change within a study"
    fitting = "without its trials" if _incomparable(differences) else "that imports the trials that fit"
    return ResumeRefused(
        "\n  ".join([f"study {name} was begun with another experiment:", *differences.values()]),
        hint=f"put the old values back to go on with it, or begin a new study {fitting}: --fork{source}",
    )


def _incomparable(differences: Mapping[str, str]) -> list[str]:
    """The differences because of which a value means nothing in the other experiment."""
    return [text for what, text in differences.items() if what in COMPARABLE or what.startswith(HEADS)]


def _earlier(
    storage: Database, experiment: Experiment, store: Path
) -> list[tuple[str, Mapping[str, Any], list[FrozenTrial]]]:
    """Name, attributes and trials of the newest study of each experiment in ``study.warm_start``."""
    found: list[tuple[str, Mapping[str, Any], list[FrozenTrial]]] = []
    for wanted in experiment.study.warm_start:
        studies = _studies_of(storage, wanted)
        if not studies:
            known = sorted(
                {str(study.user_attrs.get(Attr.EXPERIMENT)) for study in storage.get_all_studies()} - {"None"}
            )
            hint = nearest(wanted, known) or f"name one of {', '.join(known[:SHOWN]) or 'none: there is no study yet'}"
            raise InputError(f"study.warm_start: there is no study of {wanted!r} in {store}", hint=hint)
        name, attrs = next(iter(studies.items()))
        trials = storage.get_all_trials(storage.get_study_id_from_name(name), deepcopy=False)
        found.append((name, attrs, averaged(trials) if recorded(attrs)["study"].get("repeats") == AVERAGE else trials))
    return found


def _create(
    storage: Database,
    experiment: Experiment,
    dataset: Mapping[str, str],
    parents: Studies,
    earlier: Sequence[tuple[str, Mapping[str, Any], list[FrozenTrial]]],
) -> str:
    """Create a study that imports from the newest of ``parents`` and begins with the best of ``earlier``; its name."""
    import optuna

    name = _free_name(storage, experiment.name)
    study = optuna.create_study(study_name=name, storage=storage, directions=list(experiment.directions.values()))
    study.set_user_attr("forge.contract", experiment.contract())
    study.set_user_attr(Attr.RESOLVED, experiment.resolved())
    study.set_user_attr(Attr.CODE, _files(experiment))
    for key in ("version", "digest", "split_digest"):
        study.set_user_attr(f"forge.dataset_{key}", dataset[key])
    for parent, attrs in list(parents.items())[:1]:
        if (
            experiment.study.sampler == "gp" and experiment.constraints.limits
        ):  # wants the same constraints of each trial
            why = 'study.sampler = "gp" takes none beside [constraints]'
            study.set_user_attr(Attr.SKIPPED, f"no trial of {parent} was imported: {why}")
            continue
        _import(storage, study, experiment, parent, attrs, _differences(experiment, dataset, attrs))
    enqueue(study, experiment, earlier)
    study.set_user_attr(Attr.EXPERIMENT, experiment.name)
    return name


def _free_name(storage: Database, experiment_name: str) -> str:
    """``fraud``, ``fraud-2``, ...: the first that is free once the remains of a killed process are removed."""
    taken = {study.study_name: study.user_attrs for study in storage.get_all_studies()}
    names = itertools.chain([experiment_name], (f"{experiment_name}-{n}" for n in itertools.count(2)))
    name = next(name for name in names if name not in taken or _half_made(storage, name, taken[name]))
    if name in taken:
        storage.delete_study(storage.get_study_id_from_name(name))
    return name


def _half_made(storage: Database, name: str, attrs: Mapping[str, Any]) -> bool:
    """Whether a process died between creating a study and completing it; such a study has no trial of its own."""
    if Attr.EXPERIMENT in attrs or not all(key.startswith(PREFIX) for key in attrs):
        return False
    trials = storage.get_all_trials(storage.get_study_id_from_name(name), deepcopy=False)
    return all(Attr.IMPORTED in trial.user_attrs or Attr.WARM in trial.user_attrs for trial in trials)


def _import(
    storage: Database,
    study: optuna.Study,
    experiment: Experiment,
    parent: str,
    parent_attrs: Mapping[str, Any],
    differences: Mapping[str, str],
) -> None:
    """Copy the trials of ``parent`` that mean something in ``study``, and keep what must be said of them."""
    if why := _incomparable(differences):
        study.set_user_attr(Attr.SKIPPED, f"no trial of {parent} was imported: {'; '.join(why)}")
        return
    trials = storage.get_all_trials(storage.get_study_id_from_name(parent), deepcopy=False)
    ended = [t for t in trials if t.state.name in ("COMPLETE", "PRUNED") and Attr.PARAMS in t.user_attrs]
    done, space = [trial for trial in ended if Attr.FAILURE not in attrs_of(trial)], experiment.space
    inside = [trial for trial in done if fits(trial.user_attrs[Attr.PARAMS], space)]
    fitting = [trial for trial in inside if not experiment.constraints.missed(attrs_of(trial).get("measured", {}))]
    study.add_trials([_imported(trial, parent, space) for trial in fitting])
    left = {
        "lie outside the new search space": len(done) - len(inside),
        "are above a new limit": len(inside) - len(fitting),
    }
    if why := [f"{count} of {len(done)} trials of {parent} {how}" for how, count in left.items() if count]:
        study.set_user_attr(Attr.SKIPPED, "; ".join(why))
    if fitting:
        accepted = [parent_attrs.get(Attr.ACCEPTED, "")]  # for the trials that it imported itself
        accepted += [text for what, text in differences.items() if not f"{what}.".startswith(f"{SEARCH}.")]
        study.set_user_attr(Attr.ACCEPTED, "; ".join(filter(None, accepted)))


def _imported(trial: FrozenTrial, study_name: str, space: Space) -> FrozenTrial:
    """A finished or pruned trial with the distributions of the new space; a pruned one keeps its reports."""
    import optuna

    params = trial.user_attrs[Attr.PARAMS]
    searched = distributions(space, params)
    attrs = {Attr.PARAMS: params, Attr.IMPORTED: trial.user_attrs.get(Attr.IMPORTED, f"{study_name}#{trial.number}")}
    kept = (Attr.VALUE, Attr.VALUES, Attr.POINTS, "measured")
    attrs |= {name: attrs_of(trial)[name] for name in kept if name in attrs_of(trial)}
    return optuna.trial.create_trial(
        state=trial.state,
        values=trial.values,
        params={name: params[name] for name in searched},
        distributions=searched,
        user_attrs=attrs,
        intermediate_values={} if Attr.POINTS in attrs else curve(trial),  # of several Optuna takes none
    )


def _study(storage: Database, url: str, name: str, experiment: Experiment, store: Path) -> Study:
    """Load a study with the sampler and pruner of the experiment; Optuna stores neither."""
    import optuna

    from forge_sweep.study import hub, pruners

    attrs = storage.get_study_user_attrs(storage.get_study_id_from_name(name))
    hub.refuse_other(experiment, attrs.get(f"{Attr.NOTE}{SAMPLER_NOTE}"), name)
    _look(storage, name)
    study = optuna.load_study(study_name=name, storage=storage, pruner=pruners.make(experiment.steps))
    if study.metric_names is None:  # what optuna-dashboard calls the value
        with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
            study.set_metric_names(list(experiment.objective.names))
    return Study(study, storage, url, experiment, store)
