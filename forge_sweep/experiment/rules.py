"""Contradictions that no single field shows: one small function per rule, each yielding its mistakes."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from forge_sweep.errors import Key, Mistake
from forge_sweep.experiment.code import Code, file_name, is_own
from forge_sweep.experiment.space import Dimension, Hyperparameter, Scalar
from forge_sweep.experiment.spec import (
    BaselinesSpec,
    DataSpec,
    ModelSpec,
    ObjectiveSpec,
    PreprocessingSpec,
    StudySpec,
    WorkersSpec,
)
from forge_sweep.task import check_pairing, pairings

Mistakes = Iterator[Mistake]

SHOWN = 200
"""Characters of a value in a message."""


def as_toml(value: Any) -> str:
    """A value as it would stand in the file; a long one is cut."""
    if isinstance(value, dict):
        text = f"{{ {', '.join(value)} }}"
    else:
        text = json.dumps(value, default=str, ensure_ascii=False)
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def wrong(path: str, value: Any, expected: str, hint: str = "") -> Mistake:
    """A mistake that shows the value."""
    return Mistake(path, as_toml(value), expected, hint)


def missing(path: str, expected: str, hint: str = "") -> Mistake:
    """A mistake without a value to show."""
    return Mistake(path, "", expected, hint)


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """``did you mean "width"?`` or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f'did you mean "{close[0]}"?' if close else ""


SYNONYMS: dict[str, str] = {
    **dict.fromkeys(("lr", "eta", "alpha", "step_size", "learningrate", "learning-rate"), "learning_rate"),
    **dict.fromkeys(("units", "neurons", "hidden_units", "n_units", "num_units", "hidden", "hidden_size"), "width"),
    **dict.fromkeys(("hidden_dim", "nodes", "size"), "width"),
    **dict.fromkeys(("layers", "n_layers", "num_layers", "hidden_layers", "blocks", "n_hidden"), "depth"),
    **dict.fromkeys(("l2_reg", "l2_penalty", "regularization", "regularizer", "kernel_l2"), "l2"),
    **dict.fromkeys(("wd", "decay", "weightdecay", "decoupled_weight_decay"), "weight_decay"),
    **dict.fromkeys(("clipnorm", "global_clipnorm", "grad_clip", "gradient_clip", "max_grad_norm"), "clip_norm"),
    **dict.fromkeys(("lr_schedule", "lr_scheduler", "scheduler", "learning_rate_schedule"), "schedule"),
    **dict.fromkeys(("warm_up", "warmup_ratio", "warmup_steps", "warmup_share"), "warmup"),
    **dict.fromkeys(("ema_momentum", "ema_decay", "use_ema", "polyak"), "ema"),
    **dict.fromkeys(("smoothing", "smooth", "labelsmoothing"), "label_smoothing"),
    **dict.fromkeys(("drop_out", "dropout_rate", "drop_rate"), "dropout"),
    **dict.fromkeys(("batch", "batchsize", "bs", "minibatch"), "batch_size"),
    **dict.fromkeys(("opt", "optim"), "optimizer"),
    **dict.fromkeys(("batchnorm", "batch_normalization", "bn"), "batch_norm"),
    **dict.fromkeys(("act", "nonlinearity"), "activation"),
    **dict.fromkeys(("trials", "max_trials", "num_trials", "n_iter", "max_evals"), "n_trials"),
    **dict.fromkeys(("n_epochs", "num_epochs", "max_epochs"), "epochs"),
    **dict.fromkeys(("early_stopping", "early_stopping_rounds"), "patience"),
    **dict.fromkeys(("timeout", "time_limit", "max_time"), "timeout_s"),
    **dict.fromkeys(("random_state", "random_seed"), "seed"),
    **dict.fromkeys(("label", "labels", "y", "outcome"), "target"),
    **dict.fromkeys(("file", "filename", "csv", "filepath"), "path"),
    **dict.fromkeys(("sep", "delimiter", "delim"), "separator"),
    **dict.fromkeys(("id", "index", "index_col"), "key"),
    **dict.fromkeys(("valid_size", "validation", "val"), "valid"),
    **dict.fromkeys(("workers", "n_jobs", "n_workers", "jobs"), "n"),
}
"""What other tools call our keys and hyperparameters."""

PLACE: dict[str, str] = {"file": "path", "sample": "name", "postgres": "version"}
"""The key that says where the rows are, by source."""

INGESTED = ("key", "drop", "categorical", "separator", "split")
"""What was decided when a version was ingested."""


def source_fits(data: DataSpec) -> Mistakes:
    """A file has a path, a sample has a name, a version in the store has its name, and none has another's."""
    own = is_own(data.source)
    for key in ("path", "name") if own else ("code", "digest"):
        if (value := getattr(data, key)) is not None:
            hint = "its function says where the rows are" if own else 'only of your own source, "module:function"'
            yield wrong(f"data.{key}", value, f'nothing beside data.source = "{data.source}"', hint)
    if data.source not in PLACE:  # a plugin says itself what it needs
        return
    if getattr(data, PLACE[data.source]) is None:
        yield missing(f"data.{PLACE[data.source]}", f'a value, since data.source = "{data.source}"')
    for source, other in (("file", "path"), ("sample", "name")):
        value = getattr(data, other)
        if source != data.source and value is not None:
            hint = f"remove it, or set data.source = {as_toml(source)}"
            yield wrong(f"data.{other}", value, f'nothing beside data.source = "{data.source}"', hint)
    if data.source == "postgres":
        for key in INGESTED:
            if key in data.model_fields_set:
                expected = 'nothing beside data.source = "postgres"'
                yield missing(f"data.{key}", expected, "it was decided at `data ingest`")


def split_fits(data: DataSpec) -> Mistakes:
    """Shares sum to 1, the named column stands beside its kind, and one path per split means kind `files`."""
    split, paths = data.split, data.path
    total = split.train + split.valid + split.test
    if split.kind in ("random", "group", "time") and not math.isclose(total, 1.0, abs_tol=1e-6):
        yield Mistake("data.split", f"train + valid + test = {total:g}", "shares that sum to 1")
    for kind in ("column", "group", "time"):
        path, named, setting = f"data.split.{kind}", getattr(split, kind), Key("data.split.kind", as_toml(kind))
        if split.kind == kind and named is None:
            yield missing(path, f"a column name, since {setting:is}")
        if split.kind != kind and named is not None:
            yield wrong(path, named, "nothing", f"set {setting:is} or remove it")
    if isinstance(paths, dict) and set(paths) != {"train", "valid", "test"}:
        yield wrong("data.path", paths, "train, valid and test, each with a path")
    if isinstance(paths, dict) and split.kind != "files":
        yield wrong("data.split.kind", split.kind, '"files", since data.path has one path per split')
    if not isinstance(paths, dict) and split.kind == "files":
        yield wrong("data.split.kind", split.kind, "one path per split in data.path")


def columns_have_one_role(data: DataSpec) -> Mistakes:
    """A target is not dropped, a key is not the target, and so on."""
    roles: dict[str, str] = {}
    single = {"data.key": data.key, **{f"data.split.{k}": getattr(data.split, k) for k in ("column", "group", "time")}}
    named = {path: (column,) for path, column in single.items() if column}
    for path, columns in {"data.target": data.target, **named, "data.drop": data.drop}.items():
        for column in columns:
            if column in roles:
                yield wrong(path, column, f"a column that is not {Key(roles[column])} already")
            roles.setdefault(column, path)
    for column in data.categorical:
        if column in roles:
            yield wrong("data.categorical", column, f"a feature, not {Key(roles[column])}")


INPUT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def inputs_have_names(data: DataSpec) -> Mistakes:
    """Keras takes the name of an input, and its columns are features."""
    split = data.split
    single = {"data.key": data.key, **{f"data.split.{k}": getattr(split, k) for k in ("column", "group", "time")}}
    roles = dict.fromkeys(data.target, "data.target") | dict.fromkeys(data.drop, "data.drop")
    roles |= {column: path for path, column in single.items() if column}
    for name, group in data.inputs.items():
        if not INPUT_NAME.fullmatch(name):
            yield missing(f"data.inputs.{name}", "a name of letters, digits and _, beginning with a letter")
        for key, columns in {"columns": group.columns, "column": (group.column,)}.items():
            for column in columns:
                if column in roles:
                    yield wrong(f"data.inputs.{name}.{key}", column, f"a feature, not {Key(roles[column])}")


def inputs_fit_their_kind(data: DataSpec) -> Mistakes:
    """A table has columns, arrays have one, and only an image has a shape."""
    for name, group in data.inputs.items():
        path, table = f"data.inputs.{name}", group.kind == "table"
        for key in ("columns", "column", "shape", "encode"):
            given = key in group.model_fields_set and getattr(group, key) is not None
            needed = key == ("columns" if table else "column")
            if needed and not getattr(group, key):
                yield missing(f"{path}.{key}", f'a value, since {path}.kind = "{group.kind}"')
            elif given and not needed and not (table and key == "encode") and (group.kind, key) != ("image", "shape"):
                hint = {"shape": 'set kind = "image"', "column": 'set kind = "tensor" or "image"'}.get(key, "remove it")
                yield wrong(f"{path}.{key}", getattr(group, key), f'nothing beside kind = "{group.kind}"', hint)
        if group.shape is not None and (len(group.shape) != 3 or group.shape[2] not in (1, 3, 4)):
            yield wrong(f"{path}.shape", group.shape, "height, width and 1, 3 or 4 channels")


def target_fits_task(data: DataSpec) -> Mistakes:
    """One column for binary and regression, several for multilabel; a positive label only for binary."""
    for path, head in data.tasks.items():
        if head.task in ("binary", "regression") and len(head.target) > 1:
            hint = 'task = "multilabel", or "multiclass" for one-hot columns' if head.task == "binary" else ""
            yield wrong(f"{path}.target", head.target, f"one column for {head.task}", hint)
        if head.task == "multilabel" and len(head.target) < 2:
            yield wrong(f"{path}.target", head.target, "two or more columns of 0 and 1 for multilabel")
        if head.positive is not None and head.task != "binary":
            expected = f"nothing for {head.task}: only binary has a positive label"
            yield wrong(f"{path}.positive", head.positive, expected)


HEAD_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
NO_HEAD = ("train", "val", "test", "total", "loss")
"""What a head's metrics would be taken for something else with."""


def heads_are_several(data: DataSpec) -> Mistakes:
    """Two heads or more, each with targets of its own and a name that an output of Keras can have."""
    if not data.heads:
        if data.task == "joint":
            yield wrong(
                "data.task", data.task, "the task of one target", "give each target its table under [data.heads]"
            )
        return
    if len(data.heads) < 2:
        hint = "with one head, set data.target and data.task"
        yield Mistake("data.heads", as_toml(data.heads), "two heads or more", hint)
    seen: dict[str, str] = {}
    for name, head in data.heads.items():
        path = f"data.heads.{name}"
        if not HEAD_NAME.fullmatch(name) or name in NO_HEAD:
            beside = f", but not {', '.join(NO_HEAD)}"
            yield missing(path, f"a name of letters, digits and _, beginning with a letter{beside}")
        if name in data.inputs:
            yield missing(path, "another name than that of an input: both are layers of the network")
        if head.task == "joint":
            yield wrong(f"{path}.task", head.task, "binary, multiclass, multilabel or regression")
        for column in head.target:
            if column in seen:
                yield wrong(f"{path}.target", column, f"a column that is not {Key(seen[column])} already")
            seen.setdefault(column, f"{path}.target")
    for key, value, follows in (("target", data.target, tuple(seen)), ("task", data.task, "joint")):
        if value != follows:
            yield wrong(f"data.{key}", value, "nothing beside [data.heads]", "remove it: each head has its own")
    if data.positive is not None:
        yield wrong("data.positive", data.positive, "nothing beside [data.heads]", "give it to the head that it is of")
    if data.source == "postgres":
        hint = 'export the rows to a file and set data.source = "file"'
        yield Mistake("data.heads", as_toml(data.heads), 'nothing beside data.source = "postgres"', hint)


def heads_have_no_trees(data: DataSpec, baselines: BaselinesSpec) -> Mistakes:
    """A baseline of several heads is a constant."""
    if data.heads and set(baselines.kinds) - {"constant"}:
        expected = '["constant"] or [] beside [data.heads]: a tree predicts one target'
        yield wrong("baselines.kinds", baselines.kinds, expected, "sweep each target by itself to compare with trees")


def objective_is_of_validation(objective: ObjectiveSpec) -> Mistakes:
    """The metric is one of the validation split."""
    path, metric = "objective.metric", objective.metric
    if metric.startswith("test_"):
        yield wrong(path, metric, "a validation metric", "the test split is evaluated once, at the end")
    elif not metric.startswith("val_"):
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
    known = {f"val_{name}": better for name, better in objective.metrics(data).items()} | {"val_loss": "minimize"}
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


def _sum_fits_heads(objective: ObjectiveSpec, data: DataSpec) -> Mistakes:
    """The terms of a weighted sum are metrics of heads, and more of it is better or worse."""
    if not data.heads:
        yield Mistake("objective.sum", as_toml(objective.sum), "nothing without [data.heads]", "remove it")
        return
    known = objective.model_copy(update={"sum": {}}).metrics(data)
    for name, weight in objective.sum.items():
        if name not in known:
            yield wrong(f"objective.sum.{name}", weight, f"one of {', '.join(known)}", nearest(name, known))
        elif not weight:
            yield wrong(f"objective.sum.{name}", weight, "a weight that is not 0")
    if objective.metric.removeprefix("val_") in (*known, "loss"):
        yield wrong("objective.metric", objective.metric, "a name of your own for the sum, such as val_both")
    elif all(name in known for name in objective.sum):
        try:
            objective.metrics(data)
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
    if model.builder != "mlp" or not share or loss in ("binary_crossentropy", "categorical_crossentropy"):
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
            yield wrong(where, value, f"standard, minmax, robust or none, {since}", hint)
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


RULES: tuple[tuple[Callable[..., Mistakes], tuple[str, ...]], ...] = (
    (source_fits, ("data",)),
    (split_fits, ("data",)),
    (columns_have_one_role, ("data",)),
    (inputs_have_names, ("data",)),
    (inputs_fit_their_kind, ("data",)),
    (target_fits_task, ("data",)),
    (heads_are_several, ("data",)),
    (heads_have_no_trees, ("data", "baselines")),
    (objective_is_of_validation, ("objective",)),
    (objective_fits_task, ("objective", "data")),
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
)
"""Each rule with the sections that it takes; it is left out where one of them could not be read."""
