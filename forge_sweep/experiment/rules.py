"""Contradictions that no single field shows: one small function per rule, each yielding its mistakes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from forge_sweep.errors import Mistake
from forge_sweep.experiment import data_rules
from forge_sweep.experiment.code import Code, file_name, is_own
from forge_sweep.experiment.data import DataSpec
from forge_sweep.experiment.fields import is_of_hub
from forge_sweep.experiment.networks import NETWORKS
from forge_sweep.experiment.space import Dimension, Hyperparameter, Scalar
from forge_sweep.experiment.spec import (
    MEASURES,
    EnsembleSpec,
    ModelSpec,
    ObjectiveSpec,
    PreprocessingSpec,
    StudySpec,
    WorkersSpec,
)
from forge_sweep.experiment.words import Mistakes, as_toml, missing, nearest, wrong
from forge_sweep.task import check_pairing, pairings


def objective_is_of_validation(objective: ObjectiveSpec) -> Mistakes:
    """The metric is one of the validation split."""
    path, metric = "objective.metric", objective.metric
    if metric.startswith("test_"):
        yield wrong(path, metric, "a validation metric", "the test split is evaluated once, at the end")
    elif not metric.startswith("val_") and not (objective.metrics and metric in MEASURES):  # said of all of them
        yield wrong(path, metric, "a metric of the validation split", f'did you mean "val_{metric}"?')


def objective_fits_task(objective: ObjectiveSpec, data: DataSpec) -> Mistakes:
    """The metric exists for the task, in its own direction."""
    metric = objective.metric
    if data.task == "joint" and (not data.heads or any(head.task == "joint" for head in data.heads.values())):
        return  # said already
    if objective.sum:
        mistakes = [*_sum_fits_heads(objective, data)]
        yield from mistakes
        if mistakes:
            return
    known = {f"val_{name}": better for name, better in objective.known(data).items()} | {"val_loss": "minimize"}
    if not metric.startswith("val_"):
        return
    if metric not in known:
        of = data.task if not data.heads else "these heads"
        hint = nearest(metric, known, 0.75 if data.heads else 0.6)
        if not hint and data.heads:
            hint = "for a weighted sum of your own, set objective.sum = { HEAD_METRIC = 1.0, ... }"
        yield wrong("objective.metric", metric, f"a metric of {of}: {', '.join(known)}", hint)
    elif objective.direction not in (None, known[metric]):
        expected = f'"{known[metric]}", the direction of {metric}'
        yield wrong("objective.direction", objective.direction, expected, "leave it out: it follows from the metric")


def further_objectives_are_known(objective: ObjectiveSpec, data: DataSpec) -> Mistakes:
    """Each is there once, and is a validation metric of the task or a measure of the model."""
    path, names = "objective.metrics", objective.metrics
    if len(names) < 2 and objective.tolerance is not None:
        expected = "nothing with one objective, whose best model is registered"
        yield wrong("objective.tolerance", objective.tolerance, expected, "remove it, or give objective.metrics")
    if len(names) < 2:
        return
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        yield wrong(path, twice[0], "each objective once")
    try:
        of_task = objective.known(data)
    except (KeyError, ValueError):  # of heads or of a sum: said already
        return
    known = [*(f"val_{name}" for name in of_task), "val_loss", *MEASURES]
    for name in (each for each in dict.fromkeys(names[1:]) if each not in known):
        hint = nearest(name, known, 0.6)
        if name.startswith("test_"):
            hint = "the test split is evaluated once, at the end"
        elif name in of_task:
            hint = f'did you mean "val_{name}"?'
        yield wrong(path, name, f"validation metrics of the task, or {', '.join(MEASURES)}: {', '.join(known)}", hint)
    if names and names[0] in MEASURES:
        hint = f'put a validation metric first, such as metrics = ["val_loss", {as_toml(names[0])}]'
        yield wrong(path, names[0], "a validation metric first: trials stop early and are judged by it", hint)


def study_fits_objectives(objective: ObjectiveSpec, study: StudySpec, ensemble: EnsembleSpec) -> Mistakes:
    """What only one objective, or only several, can have."""
    several = len(objective.metrics) > 1
    if not several:
        if study.pruner == "dominated":
            hint = 'take "median", or give objective.metrics'
            yield wrong("study.pruner", study.pruner, "another pruner: with one objective nothing is dominated", hint)
        return
    since = f"since there are {len(objective.metrics)} objectives"
    if study.pruner not in ("dominated", "none"):
        hint = "leave it out: `dominated` prunes what a finished trial beats in every objective"
        yield wrong("study.pruner", study.pruner, f'"dominated" or "none", {since}', hint)
    if study.repeats == "average":
        hint = "repeats = true, or one objective: the mean over seeds is of one"
        yield wrong("study.repeats", study.repeats, f"true or false, {since}", hint)
    if study.sampler == "cmaes":
        hint = "leave it out for tpe"
        yield wrong("study.sampler", study.sampler, f"tpe, gp, random, qmc or grid, {since}", hint)
    if study.plateau_trials is not None:
        hint = "remove it: a trial may add to the front without a gain of the first objective"
        yield wrong("study.plateau_trials", study.plateau_trials, f"nothing, {since}", hint)
    if study.audit_pruned:
        hint = "remove it: an audited trial is compared by the first objective alone"
        yield wrong("study.audit_pruned", study.audit_pruned, f"0, {since}", hint)
    if ensemble.ship == "better" and "ship" in ensemble.model_fields_set:
        hint = "remove it: an average of models is no point of the front, and none is made"
        yield wrong("ensemble.ship", ensemble.ship, f'"never", {since}', hint)


def _sum_fits_heads(objective: ObjectiveSpec, data: DataSpec) -> Mistakes:
    """The terms of a weighted sum are metrics of heads, and more of it is better or worse."""
    if not data.heads:
        yield Mistake("objective.sum", as_toml(objective.sum), "nothing without [data.heads]", "remove it")
        return
    known = objective.model_copy(update={"sum": {}}).known(data)
    for name, weight in objective.sum.items():
        if name not in known:
            yield wrong(f"objective.sum.{name}", weight, f"one of {', '.join(known)}", nearest(name, known))
        elif not weight:
            yield wrong(f"objective.sum.{name}", weight, "a weight that is not 0")
    if objective.metric.removeprefix("val_") in (*known, "loss"):
        yield wrong("objective.metric", objective.metric, "a name of your own for the sum, such as val_both")
    elif all(name in known for name in objective.sum):
        try:
            objective.known(data)
        except ValueError:
            errors = [name for name in objective.sum if known[name] == "minimize"]
            hint = f"give errors ({', '.join(errors)}) a negative weight beside metrics of which more is better"
            yield Mistake(
                "objective.sum", as_toml(objective.sum), "terms of which more is better, by their weights", hint
            )


def head_fits_task(data: DataSpec, model: ModelSpec) -> Mistakes:
    """Output activation and loss are a pair that fits the task."""
    if data.heads:
        for key in ("activation", "loss", "from_logits", "class_weight"):
            if getattr(model, key):
                hint = "set it per head" if key == "loss" else "remove it"
                yield wrong(f"model.{key}", getattr(model, key), "nothing beside [data.heads]", hint)
        for name, head in data.heads.items():
            if head.loss is None or head.task == "joint":
                continue
            activation = pairings(head.task, head.one_hot)[0].activation
            problem = check_pairing(head.task, head.one_hot, activation, head.loss, False)
            if problem:
                yield wrong(f"data.heads.{name}.loss", head.loss, f"a loss that fits {head.task}", problem)
    if data.task == "joint":
        return
    default = pairings(data.task, data.one_hot)[0]
    activation = model.activation or ("linear" if model.from_logits else default.activation)
    problem = check_pairing(data.task, data.one_hot, activation, model.loss or default.loss, model.from_logits)
    if problem:
        given = {key: getattr(model, key) for key in ("activation", "loss", "from_logits") if getattr(model, key)}
        seen = ", ".join(f"{key} = {as_toml(value)}" for key, value in given.items())
        yield Mistake("model", seen, f"an output layer and a loss that fit {data.task}", problem)
    if model.class_weight and data.task not in ("binary", "multiclass"):
        hint = "class weights need one class per row"
        yield wrong("model.class_weight", model.class_weight, f"nothing for {data.task}", hint)


def search_values_are_known(model: ModelSpec, hyperparameters: Mapping[str, Hyperparameter]) -> Mistakes:
    """Every value under [model.search] lies in the range of its hyperparameter."""
    for name, value in model.search.items():
        path = f"model.search.{name}"
        known = hyperparameters.get(name)
        if known is None:
            continue  # said where fields are checked
        if not isinstance(value, Dimension):
            if not known.accepts(value):
                yield wrong(path, value, known.expected)
        elif value.type == "categorical":
            yield from _choices_are_known(path, value, known)
        else:
            yield from _range_is_known(path, value, known)


def builder_gets_what_it_needs(model: ModelSpec, code: Code) -> Mistakes:
    """Every hyperparameter of an own builder has a value in every trial, and its source is the one that is pinned."""
    for name in code.parameters:
        path, value = f"model.search.{name}", model.search.get(name)
        if name not in code.required or name == "batch_size":
            continue
        if value is None:
            yield missing(path, f"a value: {code.builder} has no default for it")
        elif isinstance(value, Dimension) and value.when:
            yield missing(f"{path}.when", "no condition", f"or give {name} a default in {code.builder}")
    if model.code is not None and model.code != code.digest:
        read = ", ".join(sorted(code.paths.values()))
        hint = "put the source back, or remove this key"
        yield wrong("model.code", model.code, f'"{code.digest}", the digest of {read}', hint)


def source_is_as_pinned(data: DataSpec, source_code: Code) -> Mistakes:
    """The files of an own source are those that are pinned."""
    if data.code is not None and data.code != source_code.digest:
        read = ", ".join(sorted(source_code.paths.values()))
        hint = "put the source back, or remove this key"
        yield wrong("data.code", data.code, f'"{source_code.digest}", the digest of {read}', hint)


def callbacks_come_with_an_own_builder(model: ModelSpec) -> Mistakes:
    """The source that callbacks are read from is that of an own builder."""
    if model.callbacks and not is_own(model.builder):
        hint = 'write a builder of your own, builder = "net:build", and put them into its module'
        yield wrong("model.callbacks", model.callbacks, f'none with builder = "{model.builder}"', hint)


def callbacks_are_there(model: ModelSpec, code: Code) -> Mistakes:
    """Every callback is something that its module has."""
    for each in model.callbacks:
        module, _, name = each.rpartition(":")
        module = module or code.module
        if name not in (known := code.names(module)):
            expected = f"names in {file_name(module)}, which has {', '.join(known)}"
            yield wrong("model.callbacks", each, expected, nearest(name, known))


def _range_is_known(path: str, dimension: Dimension, known: Hyperparameter) -> Mistakes:
    if known.type in ("choice", "bool"):
        yield wrong(f"{path}.type", dimension.type, '"categorical"', f"{path} takes {known.expected}")
        return
    if known.type == "int" and dimension.type == "float":
        yield wrong(f"{path}.type", "float", '"int"', f"{path} takes {known.expected}")
    if dimension.choices:
        expected = f'nothing beside type = "{dimension.type}"'
        yield wrong(f"{path}.choices", dimension.choices, expected, 'type = "categorical"')
    for key, value in (("low", dimension.low), ("high", dimension.high)):
        if value is None:
            yield missing(f"{path}.{key}", "a number")
        elif dimension.type == "int" and not isinstance(value, int):
            yield wrong(f"{path}.{key}", value, "a whole number")
        elif not known.accepts(value):
            yield wrong(f"{path}.{key}", value, known.expected)
    if dimension.low is not None and dimension.high is not None:
        yield from _ends_and_step_fit(path, dimension, dimension.low, dimension.high)


MOST_VALUES = 1_000_000


def _ends_and_step_fit(path: str, dimension: Dimension, low: float, high: float) -> Mistakes:
    if low >= high:
        hint = "a fixed value is written without a table"
        yield Mistake(path, f"low = {low:g}, high = {high:g}", "low below high", hint)
    if dimension.log and low <= 0:
        yield wrong(f"{path}.low", low, "a number above 0, since log = true")
    step = dimension.step
    if step is None:
        return
    path = f"{path}.step"
    if step <= 0 or step > high - low:
        yield wrong(path, step, f"a number above 0 and at most high - low = {high - low:g}")
    if dimension.type == "int" and not isinstance(step, int):
        yield wrong(path, step, "a whole number")
    if dimension.log:
        yield wrong(path, step, "nothing beside log = true")
    if step > 0 and (high - low) / step > MOST_VALUES:
        expected = f"at least {(high - low) / MOST_VALUES:.3g}: a range has at most {MOST_VALUES:,} steps"
        yield wrong(path, step, expected, "leave step out: any value is tried then")


def _choices_are_known(path: str, dimension: Dimension, known: Hyperparameter) -> Mistakes:
    for key in ("low", "high", "step", "log"):
        value = getattr(dimension, key)
        if value is not None and value is not False:
            yield wrong(f"{path}.{key}", value, 'nothing beside type = "categorical"')
    if not dimension.choices:
        yield missing(f"{path}.choices", "a list of values")
    if len(set(map(repr, dimension.choices))) < len(dimension.choices):
        yield wrong(f"{path}.choices", dimension.choices, "each value once")
    for choice in dimension.choices:
        if not known.accepts(choice):
            yield wrong(f"{path}.choices", choice, known.expected, nearest(str(choice), map(str, known.choices)))


def conditions_can_hold(model: ModelSpec) -> Mistakes:
    """`when` names another, unconditional hyperparameter and values that it can take."""
    search = model.search
    for name, value in search.items():
        for other, wanted in (value.when if isinstance(value, Dimension) else {}).items():
            path, target = f"model.search.{name}.when.{other}", search.get(other)
            if target is None or other == name:
                others = ", ".join(n for n in search if n != name)
                expected = f"another hyperparameter under [model.search]: {others}"
                yield missing(path, expected, nearest(other, search))
            elif isinstance(target, Dimension) and target.when:
                yield missing(path, "a hyperparameter that has no condition of its own")
            else:
                for each in wanted:
                    if not _can_be(target, each):
                        yield wrong(path, each, f"a value that {other} can take")


def _can_be(value: Dimension | Scalar, wanted: Scalar) -> bool:
    if not isinstance(value, Dimension):
        return value == wanted
    if value.type == "categorical":
        return wanted in value.choices
    low, high = value.low, value.high
    return not isinstance(wanted, str) and low is not None and high is not None and low <= wanted <= high


def momentum_has_a_user(model: ModelSpec) -> Mistakes:
    """Momentum under an optimizer that ignores it would be searched in vain."""
    momentum, optimizer = model.search.get("momentum"), model.search.get("optimizer", "adam")
    if momentum is None or (isinstance(momentum, Dimension) and "optimizer" in momentum.when):
        return
    possible = optimizer.choices if isinstance(optimizer, Dimension) else (optimizer,)
    ignoring = [str(name) for name in possible if name not in ("sgd", "rmsprop")]
    if ignoring and (isinstance(momentum, Dimension) or len(ignoring) == len(possible)):
        expected = f"an optimizer that has momentum (sgd, rmsprop); {', '.join(ignoring)} ignores it"
        yield missing("model.search.momentum", expected, 'add when = { optimizer = "sgd" }')


def sampler_fits_space(model: ModelSpec, study: StudySpec) -> Mistakes:
    """A grid needs an end, and something must be searched."""
    searched = {name: value for name, value in model.search.items() if isinstance(value, Dimension)}
    if not searched and study.n_trials > 1:
        yield missing("model.search", "at least one searched hyperparameter", "or set study.n_trials = 1")
    of_hub = is_of_hub(study.sampler)
    for name in ("sampler_ref", "sampler_folder"):
        if getattr(study, name) is not None and not of_hub:
            expected = f'nothing beside sampler = "{study.sampler}", which is not of OptunaHub'
            yield wrong(f"study.{name}", getattr(study, name), expected)
    if study.sampler_ref is not None and study.sampler_folder is not None:
        yield wrong("study.sampler_ref", study.sampler_ref, "nothing beside sampler_folder, which has no git ref")
    if study.sampler != "grid":
        return
    for name, value in searched.items():
        path = f"model.search.{name}"
        if value.when:
            yield missing(f"{path}.when", 'nothing under sampler = "grid": every point of a grid has every coordinate')
        if value.type == "float" and value.step is None:
            hint = 'or type = "categorical" with choices'
            yield missing(f"{path}.step", 'a step, since study.sampler = "grid"', hint)
    if searched and all(map(_has_a_grid, searched.values())):
        size = math.prod(len(value.grid() or ()) for value in searched.values())
        if study.n_trials > size:
            yield wrong("study.n_trials", study.n_trials, f"at most {size}, the number of points in the grid")


def _has_a_grid(value: Dimension) -> bool:
    if value.type == "categorical":
        return bool(value.choices)
    ends = value.low is not None and value.high is not None and value.low < value.high
    return ends and (value.type == "int" or value.step is not None) and (value.step is None or value.step > 0)


def scaler_is_named_once(model: ModelSpec, preprocessing: PreprocessingSpec) -> Mistakes:
    """A scaler in [model.search] overrides [preprocessing]; two different fixed ones contradict each other."""
    if "scaler" in preprocessing.model_fields_set and "scaler" in model.search:
        searched = model.search["scaler"]
        seen = "" if isinstance(searched, Dimension) else as_toml(searched)
        expected = f"one place for the scaler; preprocessing.scaler = {as_toml(preprocessing.scaler)} too"
        yield Mistake("model.search.scaler", seen, expected, "remove one of them")


OF_STUDY = {"plateau": "reduce_on_plateau", "none": "constant"}
"""What ``study.schedule`` is called under [model.search], where there are more."""


def schedule_is_named_once(model: ModelSpec, study: StudySpec) -> Mistakes:
    """A schedule in [model.search] overrides the study's; one that is another there too contradicts it."""
    searched = model.search.get("schedule")
    if searched is None or "schedule" not in study.model_fields_set or searched == OF_STUDY[study.schedule]:
        return
    seen = "" if isinstance(searched, Dimension) else as_toml(searched)
    expected = f"one place for the schedule; study.schedule = {as_toml(study.schedule)} too"
    yield Mistake("model.search.schedule", seen, expected, "remove study.schedule")


def labels_can_be_smoothed(data: DataSpec, model: ModelSpec) -> Mistakes:
    """The head's loss of the package's own network is one for which Keras smooths labels."""
    share = model.search.get("label_smoothing")
    if data.task == "joint":
        return  # said when the network is built
    loss = model.loss or pairings(data.task, data.one_hot)[0].loss
    if model.builder not in NETWORKS or not share or loss in ("binary_crossentropy", "categorical_crossentropy"):
        return
    hint = "remove it"
    if loss == "sparse_categorical_crossentropy":
        hint = "remove it, or give the classes as one-hot columns: their loss is categorical_crossentropy"
    seen = "" if isinstance(share, Dimension) else as_toml(share)
    expected = f"nothing for {data.task} with loss = {as_toml(loss)}, for which Keras has no label smoothing"
    yield Mistake("model.search.label_smoothing", seen, expected, hint)


def preprocessing_fits_in_model(model: ModelSpec, preprocessing: PreprocessingSpec, backend: str) -> Mistakes:
    """A Keras file cannot hold quantiles, and only TensorFlow writes one with preprocessing inside."""
    if model.preprocessing != "in_model":
        return
    since, instead = 'since model.preprocessing = "in_model"', 'or set model.preprocessing = "bundle"'
    searched = model.search.get("scaler")
    path = "model.search.scaler.choices" if isinstance(searched, Dimension) else "model.search.scaler"
    scalers = searched.choices if isinstance(searched, Dimension) else searched
    for where, value in {"preprocessing.scaler": preprocessing.scaler, path: scalers}.items():
        if value == "quantile" or (isinstance(value, tuple) and "quantile" in value):
            hint = f"the quantile scaler is no formula that a Keras file could hold: take another one, {instead}"
            yield wrong(where, value, f"standard, minmax, robust, robust_smooth or none, {since}", hint)
    if backend in ("jax", "torch"):
        hint = f"TensorFlow writes and verifies raw.keras; take it, {instead} and use `forge-sweep export` later"
        yield wrong("backend", backend, f'"tensorflow", {since}', hint)


OF_KIND: dict[str, tuple[str, ...]] = {
    "serial": (),
    "processes": ("n", "threads", "per_gpu", "memory_limit_mb"),
    "ray": ("n", "threads", "memory_limit_mb", "address", "cpus", "gpus", "wait_s"),
}
"""What each kind of workers has."""


def workers_fit_kind(workers: WorkersSpec) -> Mistakes:
    """What only another kind of workers has is not set."""
    for key, field in type(workers).model_fields.items():
        value = getattr(workers, key)
        if key == "kind" or key in OF_KIND[workers.kind] or value == field.default or (key, value) == ("n", 1):
            continue
        hint = f"set workers.kind = {as_toml(next(kind for kind, keys in OF_KIND.items() if key in keys))}"
        if (workers.kind, key) == ("ray", "per_gpu"):
            hint = f"set workers.gpus = {1 / value:.3g}"
        yield wrong(f"workers.{key}", value, f'nothing beside workers.kind = "{workers.kind}"', hint)


def gpus_can_be_shared(workers: WorkersSpec) -> Mistakes:
    """Ray gives whole GPUs, or a part of one."""
    gpus = workers.gpus
    if gpus is not None and gpus > 1 and gpus != int(gpus):
        yield wrong("workers.gpus", gpus, "a part of one GPU, or whole ones", f"set it to {math.ceil(gpus)}")


def plateau_is_whole(study: StudySpec) -> Mistakes:
    """A least gain means nothing without the number of trials that may pass without one."""
    if study.plateau_delta and study.plateau_trials is None:
        yield missing("study.plateau_trials", "a number of trials, since study.plateau_delta is set")


MOST_FOLDS = 100
"""Trainings of one trial: as many models are kept and averaged."""


def rows_fit_the_rest(data: DataSpec, study: StudySpec) -> Mistakes:
    """Less of the rows is no less of the epochs, nor of folds."""
    if study.fidelity == "epochs":
        return
    if data.split.folds > 1:
        yield wrong("study.fidelity", study.fidelity, '"epochs" with folds', "folds are for few rows: choose one")
    if study.pruner in ("hyperband", "wilcoxon"):
        expected = "a pruner that can judge three rungs: successive_halving, median, percentile or none"
        yield wrong("study.pruner", study.pruner, expected, 'pruner = "successive_halving" under [study]')


def objectives_fit_trainings(objective: ObjectiveSpec, data: DataSpec, study: StudySpec) -> Mistakes:
    """Several objectives are pruned by their curves over epochs, which a trial of several trainings has not."""
    if len(objective.metrics) < 2:
        return
    hint = "give one objective.metric, and limits under [constraints] for what a model may cost"
    expected = f"{{}}, since there are {len(objective.metrics)} objectives, whose curves over epochs are compared"
    if data.split.folds > 1:
        yield wrong("data.split.folds", data.split.folds, expected.format("1"), hint)
    if study.fidelity == "rows":
        yield wrong("study.fidelity", study.fidelity, expected.format('"epochs"'), hint)


def folds_fit_the_rest(data: DataSpec, model: ModelSpec, study: StudySpec) -> Mistakes:
    """A pruner that judges whole folds, few enough of them, and one model where one is asked for."""
    split = data.split
    if split.folds == 1:
        return
    if split.trainings > MOST_FOLDS:
        expected = f"at most {MOST_FOLDS} folds in all, and {split.folds} times {split.repeats} are {split.trainings}"
        yield wrong("data.split.repeats", split.repeats, expected, f"repeats = {MOST_FOLDS // split.folds}")
    if study.pruner in ("hyperband", "successive_halving"):
        expected = "a pruner that can judge whole folds: median, percentile, wilcoxon or none"
        yield wrong("study.pruner", study.pruner, expected, 'pruner = "median" under [study]')
    if model.preprocessing == "in_model" and data.split.final == "average":
        expected = '"bundle", since the average of the folds\' models is registered'
        yield wrong("model.preprocessing", model.preprocessing, expected, 'set final = "refit" under [data.split]')


RULES: tuple[tuple[Callable[..., Mistakes], tuple[str, ...]], ...] = (
    (data_rules.source_fits, ("data",)),
    (data_rules.split_fits, ("data",)),
    (data_rules.folds_fit_split, ("data",)),
    (data_rules.columns_have_one_role, ("data",)),
    (data_rules.inputs_have_names, ("data",)),
    (data_rules.inputs_fit_their_kind, ("data",)),
    (data_rules.target_fits_task, ("data",)),
    (data_rules.heads_are_several, ("data",)),
    (data_rules.heads_have_no_trees, ("data", "baselines")),
    (objective_is_of_validation, ("objective",)),
    (objective_fits_task, ("objective", "data")),
    (further_objectives_are_known, ("objective", "data")),
    (study_fits_objectives, ("objective", "study", "ensemble")),
    (head_fits_task, ("data", "model")),
    (search_values_are_known, ("model", "hyperparameters")),
    (builder_gets_what_it_needs, ("model", "code")),
    (source_is_as_pinned, ("data", "source_code")),
    (callbacks_come_with_an_own_builder, ("model",)),
    (callbacks_are_there, ("model", "code")),
    (conditions_can_hold, ("model",)),
    (momentum_has_a_user, ("model",)),
    (sampler_fits_space, ("model", "study")),
    (scaler_is_named_once, ("model", "preprocessing")),
    (schedule_is_named_once, ("model", "study")),
    (labels_can_be_smoothed, ("data", "model")),
    (preprocessing_fits_in_model, ("model", "preprocessing", "backend")),
    (workers_fit_kind, ("workers",)),
    (gpus_can_be_shared, ("workers",)),
    (plateau_is_whole, ("study",)),
    (folds_fit_the_rest, ("data", "model", "study")),
    (rows_fit_the_rest, ("data", "study")),
    (objectives_fit_trainings, ("objective", "data", "study")),
)
"""Each rule with the sections that it takes; it is left out where one of them could not be read."""
