"""Contradictions that no single field shows: one small function per rule, each yielding its mistakes."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from forge_sweep.errors import Mistake
from forge_sweep.experiment.space import HYPERPARAMETERS, Dimension, Hyperparameter, Scalar
from forge_sweep.experiment.spec import (
    DataSpec,
    ModelSpec,
    ObjectiveSpec,
    PreprocessingSpec,
    StudySpec,
    WorkersSpec,
)
from forge_sweep.task import METRICS, check_pairing, direction, pairings


@dataclass(frozen=True)
class Sections:
    """The sections that could be read; None where one could not."""

    data: DataSpec | None
    preprocessing: PreprocessingSpec | None
    model: ModelSpec | None
    objective: ObjectiveSpec | None
    study: StudySpec | None
    workers: WorkersSpec | None
    backend: str = "tensorflow"


Rule = Callable[[Sections], Iterator[Mistake]]


def as_toml(value: Any) -> str:
    """A value as it would stand in the file; a long one is cut."""
    text = (
        f"{{ {', '.join(value)} }}" if isinstance(value, dict) else json.dumps(value, default=str, ensure_ascii=False)
    )
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


SHOWN = 200
"""Characters of a value in a message."""


def nearest(word: str, known: Iterable[str]) -> str:
    """``did you mean "width"?`` or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f'did you mean "{close[0]}"?' if close else ""


SYNONYMS: dict[str, str] = {
    **dict.fromkeys(("lr", "eta", "alpha", "step_size", "learningrate", "learning-rate"), "learning_rate"),
    **dict.fromkeys(("units", "neurons", "hidden_units", "n_units", "num_units", "hidden", "hidden_size"), "width"),
    **dict.fromkeys(("hidden_dim", "nodes", "size"), "width"),
    **dict.fromkeys(("layers", "n_layers", "num_layers", "hidden_layers", "blocks", "n_hidden"), "depth"),
    **dict.fromkeys(("weight_decay", "wd", "l2_reg", "l2_penalty", "regularization", "regularizer", "kernel_l2"), "l2"),
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


def source_fits(sections: Sections) -> Iterator[Mistake]:
    """A file has a path, a sample has a name, a version in the store has its name, and none has another's."""
    data = sections.data
    if data is None:
        return
    if getattr(data, PLACE[data.source]) is None:
        yield Mistake(f"data.{PLACE[data.source]}", "", f'a value, since data.source = "{data.source}"')
    for source, other in (("file", "path"), ("sample", "name")):
        if source != data.source and getattr(data, other) is not None:
            yield Mistake(
                f"data.{other}",
                as_toml(getattr(data, other)),
                f'nothing beside data.source = "{data.source}"',
                f"remove it, or set data.source = {as_toml(source)}",
            )
    if data.source == "postgres":
        yield from (
            Mistake(f"data.{key}", "", 'nothing beside data.source = "postgres"', "it was decided at `data ingest`")
            for key in INGESTED
            if key in data.model_fields_set
        )


def split_fits(sections: Sections) -> Iterator[Mistake]:
    """Shares sum to 1, the named column stands beside its kind, and one path per split means kind `files`."""
    if sections.data is None:
        return
    split, paths = sections.data.split, sections.data.path
    total = split.train + split.valid + split.test
    if split.kind in ("random", "group", "time") and not math.isclose(total, 1.0, abs_tol=1e-6):
        yield Mistake("data.split", f"train + valid + test = {total:g}", "shares that sum to 1")
    for kind in ("column", "group", "time"):
        named = getattr(split, kind)
        if split.kind == kind and named is None:
            yield Mistake(f"data.split.{kind}", "", f'a column name, since data.split.kind = "{kind}"')
        if split.kind != kind and named is not None:
            yield Mistake(
                f"data.split.{kind}", as_toml(named), "nothing", f'set data.split.kind = "{kind}" or remove it'
            )
    if isinstance(paths, dict) and set(paths) != {"train", "valid", "test"}:
        yield Mistake("data.path", as_toml(paths), "train, valid and test, each with a path")
    if isinstance(paths, dict) != (split.kind == "files"):
        expected = (
            '"files", since data.path has one path per split'
            if isinstance(paths, dict)
            else "one path per split in data.path"
        )
        yield Mistake("data.split.kind", as_toml(split.kind), expected)


def columns_have_one_role(sections: Sections) -> Iterator[Mistake]:
    """A target is not dropped, a key is not the target, and so on."""
    data = sections.data
    if data is None:
        return
    roles: dict[str, str] = {}
    named = [
        ("data.key", data.key),
        *((f"data.split.{k}", getattr(data.split, k)) for k in ("column", "group", "time")),
    ]
    for path, columns in [
        ("data.target", data.target),
        *((p, (c,) if c else ()) for p, c in named),
        ("data.drop", data.drop),
    ]:
        for column in columns:
            if column in roles:
                yield Mistake(path, as_toml(column), f"a column that is not {roles[column]} already")
            roles.setdefault(column, path)
    for column in data.categorical:
        if column in roles:
            yield Mistake("data.categorical", as_toml(column), f"a feature, not {roles[column]}")


def target_fits_task(sections: Sections) -> Iterator[Mistake]:
    """One column for binary and regression, several for multilabel; a positive label only for binary."""
    data = sections.data
    if data is None:
        return
    if data.task in ("binary", "regression") and len(data.target) > 1:
        hint = 'task = "multilabel", or "multiclass" for one-hot columns' if data.task == "binary" else ""
        yield Mistake("data.target", as_toml(data.target), f"one column for {data.task}", hint)
    if data.task == "multilabel" and len(data.target) < 2:
        yield Mistake("data.target", as_toml(data.target), "two or more columns of 0 and 1 for multilabel")
    if data.positive is not None and data.task != "binary":
        yield Mistake(
            "data.positive", as_toml(data.positive), f"nothing for {data.task}: only binary has a positive label"
        )


def objective_fits_task(sections: Sections) -> Iterator[Mistake]:
    """The metric exists for the task, on the validation split, in its own direction."""
    data, objective = sections.data, sections.objective
    if objective is None:
        return
    metric = objective.metric
    if metric.startswith("test_"):
        yield Mistake(
            "objective.metric", as_toml(metric), "a validation metric", "the test split is looked at once, at the end"
        )
        return
    if not metric.startswith("val_"):
        yield Mistake(
            "objective.metric", as_toml(metric), "a metric of the validation split", f'did you mean "val_{metric}"?'
        )
        return
    if data is None:
        return
    valid = [f"val_{name}" for name in (*METRICS[data.task], "loss")]
    if metric not in dict.fromkeys(valid):
        yield Mistake(
            "objective.metric",
            as_toml(metric),
            f"a metric of {data.task}: {', '.join(dict.fromkeys(valid))}",
            nearest(metric, valid),
        )
    elif objective.direction not in (None, direction(data.task, metric)):
        expected = f'"{direction(data.task, metric)}", the direction of {metric}'
        yield Mistake(
            "objective.direction", as_toml(objective.direction), expected, "leave it out: it follows from the metric"
        )


def head_fits_task(sections: Sections) -> Iterator[Mistake]:
    """Output activation and loss are a pair that fits the task."""
    data, model = sections.data, sections.model
    if data is None or model is None:
        return
    default = pairings(data.task, data.one_hot)[0]
    activation = model.activation or ("linear" if model.from_logits else default.activation)
    problem = check_pairing(data.task, data.one_hot, activation, model.loss or default.loss, model.from_logits)
    if problem:
        given = {key: getattr(model, key) for key in ("activation", "loss", "from_logits") if getattr(model, key)}
        seen = ", ".join(f"{key} = {as_toml(value)}" for key, value in given.items())
        yield Mistake("model", seen, f"an output layer and a loss that fit {data.task}", problem)
    if model.class_weight and data.task not in ("binary", "multiclass"):
        yield Mistake(
            "model.class_weight",
            as_toml(model.class_weight),
            f"nothing for {data.task}",
            "class weights need one class per row",
        )


def search_values_are_known(sections: Sections) -> Iterator[Mistake]:
    """Every value under [model.search] lies in the range of its hyperparameter."""
    for name, value in (sections.model.search if sections.model else {}).items():
        path = f"model.search.{name}"
        known = HYPERPARAMETERS.get(name)
        if known is None:
            continue  # said where fields are checked
        if isinstance(value, Dimension):
            yield from dimension_mistakes(path, value, known)
        elif not known.accepts(value):
            yield Mistake(path, as_toml(value), known.expected)


def dimension_mistakes(path: str, dimension: Dimension, known: Hyperparameter) -> Iterator[Mistake]:
    """What is wrong with one search range."""
    if dimension.type == "categorical":
        yield from categorical_mistakes(path, dimension, known)
        return
    if known.type in ("choice", "bool"):
        yield Mistake(f"{path}.type", as_toml(dimension.type), '"categorical"', f"{path} takes {known.expected}")
        return
    if known.type == "int" and dimension.type == "float":
        yield Mistake(f"{path}.type", '"float"', '"int"', f"{path} takes {known.expected}")
    if dimension.choices:
        yield Mistake(
            f"{path}.choices",
            as_toml(dimension.choices),
            f'nothing beside type = "{dimension.type}"',
            'type = "categorical"',
        )
    bounds = {"low": dimension.low, "high": dimension.high}
    for key, value in bounds.items():
        if value is None:
            yield Mistake(f"{path}.{key}", "", "a number")
        elif dimension.type == "int" and not isinstance(value, int):
            yield Mistake(f"{path}.{key}", as_toml(value), "a whole number")
        elif not known.accepts(value):
            yield Mistake(f"{path}.{key}", as_toml(value), known.expected)
    if dimension.low is not None and dimension.high is not None:
        yield from range_mistakes(path, dimension, dimension.low, dimension.high)


def range_mistakes(path: str, dimension: Dimension, low: float, high: float) -> Iterator[Mistake]:
    """What is wrong between the two ends of a range."""
    if low >= high:
        yield Mistake(
            path, f"low = {low:g}, high = {high:g}", "low below high", "a fixed value is written without a table"
        )
    if dimension.log and low <= 0:
        yield Mistake(f"{path}.low", as_toml(low), "a number above 0, since log = true")
    if dimension.step is not None and (dimension.step <= 0 or dimension.step > high - low):
        yield Mistake(
            f"{path}.step", as_toml(dimension.step), f"a number above 0 and at most high - low = {high - low:g}"
        )
    if dimension.step is not None and dimension.type == "int" and not isinstance(dimension.step, int):
        yield Mistake(f"{path}.step", as_toml(dimension.step), "a whole number")
    if dimension.step is not None and dimension.log:
        yield Mistake(f"{path}.step", as_toml(dimension.step), "nothing beside log = true")
    if dimension.step and dimension.step > 0 and (high - low) / dimension.step > MOST_VALUES:
        expected = f"at least {(high - low) / MOST_VALUES:.3g}: a range has at most {MOST_VALUES:,} steps"
        yield Mistake(f"{path}.step", as_toml(dimension.step), expected, "leave step out: any value is tried then")


MOST_VALUES = 1_000_000


def categorical_mistakes(path: str, dimension: Dimension, known: Hyperparameter) -> Iterator[Mistake]:
    """What is wrong with a list of choices."""
    for key in ("low", "high", "step"):
        if getattr(dimension, key) is not None:
            yield Mistake(f"{path}.{key}", as_toml(getattr(dimension, key)), 'nothing beside type = "categorical"')
    if dimension.log:
        yield Mistake(f"{path}.log", "true", 'nothing beside type = "categorical"')
    if not dimension.choices:
        yield Mistake(f"{path}.choices", "", "a list of values")
    if len(set(map(repr, dimension.choices))) < len(dimension.choices):
        yield Mistake(f"{path}.choices", as_toml(dimension.choices), "each value once")
    for choice in dimension.choices:
        if not known.accepts(choice):
            yield Mistake(f"{path}.choices", as_toml(choice), known.expected, nearest(str(choice), known.choices))


def conditions_can_hold(sections: Sections) -> Iterator[Mistake]:
    """`when` names another, unconditional hyperparameter and values that it can take."""
    search = sections.model.search if sections.model else {}
    for name, value in search.items():
        for other, wanted in (value.when if isinstance(value, Dimension) else {}).items():
            path, target = f"model.search.{name}.when.{other}", search.get(other)
            if target is None or other == name:
                yield Mistake(
                    path,
                    "",
                    f"another hyperparameter under [model.search]: {', '.join(n for n in search if n != name)}",
                    nearest(other, search),
                )
            elif isinstance(target, Dimension) and target.when:
                yield Mistake(path, "", "a hyperparameter that has no condition of its own")
            else:
                yield from (
                    Mistake(path, as_toml(w), f"a value that {other} can take") for w in wanted if not can_be(target, w)
                )


def can_be(value: Dimension | Scalar, wanted: Scalar) -> bool:
    """Whether a fixed or searched hyperparameter can have the value ``wanted``."""
    if not isinstance(value, Dimension):
        return value == wanted
    if value.type == "categorical":
        return wanted in value.choices
    low, high = value.low, value.high
    return not isinstance(wanted, str) and low is not None and high is not None and low <= wanted <= high


def momentum_has_a_user(sections: Sections) -> Iterator[Mistake]:
    """Momentum under an optimizer that ignores it would be searched in vain."""
    search = sections.model.search if sections.model else {}
    momentum, optimizer = search.get("momentum"), search.get("optimizer", "adam")
    if momentum is None or (isinstance(momentum, Dimension) and "optimizer" in momentum.when):
        return
    possible = optimizer.choices if isinstance(optimizer, Dimension) else (optimizer,)
    ignoring = [str(name) for name in possible if name not in ("sgd", "rmsprop")]
    if ignoring and (isinstance(momentum, Dimension) or len(ignoring) == len(possible)):
        hint = 'add when = { optimizer = "sgd" }'
        yield Mistake(
            "model.search.momentum",
            "",
            f"an optimizer that has momentum (sgd, rmsprop); {', '.join(ignoring)} ignores it",
            hint,
        )


def sampler_fits_space(sections: Sections) -> Iterator[Mistake]:
    """A grid needs an end, and something must be searched."""
    model, study = sections.model, sections.study
    if model is None or study is None:
        return
    searched = {name: value for name, value in model.search.items() if isinstance(value, Dimension)}
    if not searched and study.n_trials > 1:
        yield Mistake("model.search", "", "at least one searched hyperparameter", "or set study.n_trials = 1")
    if study.sampler != "grid":
        return
    for name, value in searched.items():
        if value.when:
            yield Mistake(
                f"model.search.{name}.when",
                "",
                'nothing under sampler = "grid": every point of a grid has every coordinate',
            )
        if value.type == "float" and value.step is None:
            yield Mistake(
                f"model.search.{name}.step",
                "",
                'a step, since study.sampler = "grid"',
                'or type = "categorical" with choices',
            )
    if all(dimension_is_whole(value) for value in searched.values()):
        size = math.prod(value.size or 0 for value in searched.values())
        if searched and study.n_trials > size:
            yield Mistake("study.n_trials", str(study.n_trials), f"at most {size}, the number of points in the grid")


def dimension_is_whole(value: Dimension) -> bool:
    """Whether a range has all that its grid needs."""
    if value.type == "categorical":
        return bool(value.choices)
    ends = value.low is not None and value.high is not None and value.low < value.high
    return ends and (value.type == "int" or value.step is not None) and (value.step is None or value.step > 0)


def scaler_is_named_once(sections: Sections) -> Iterator[Mistake]:
    """A scaler in [model.search] overrides [preprocessing]; two different fixed ones contradict each other."""
    search = sections.model.search if sections.model else {}
    stated = (
        sections.preprocessing.scaler
        if sections.preprocessing and "scaler" in sections.preprocessing.model_fields_set
        else None
    )
    if stated is not None and "scaler" in search:
        yield Mistake(
            "model.search.scaler",
            as_toml(search["scaler"]) if not isinstance(search["scaler"], Dimension) else "",
            f"one place for the scaler; preprocessing.scaler = {as_toml(stated)} too",
            "remove one of them",
        )


def preprocessing_fits_in_model(sections: Sections) -> Iterator[Mistake]:
    """What a Keras file cannot hold is refused where it would have to: quantiles, and files of other backends."""
    model, preprocessing = sections.model, sections.preprocessing
    if model is None or model.preprocessing != "in_model":
        return
    since, instead = 'since model.preprocessing = "in_model"', 'or set model.preprocessing = "bundle"'
    searched = model.search.get("scaler")
    stated = {
        "preprocessing.scaler": preprocessing.scaler if preprocessing else None,
        "model.search.scaler": None if isinstance(searched, Dimension) else searched,
        "model.search.scaler.choices": searched.choices if isinstance(searched, Dimension) else None,
    }
    for path, value in stated.items():
        if value == "quantile" or (isinstance(value, tuple) and "quantile" in value):
            hint = f"the quantile scaler is no formula that a Keras file could hold: take another one, {instead}"
            yield Mistake(path, as_toml(value), f"standard, minmax, robust or none, {since}", hint)
    if sections.backend in ("jax", "torch"):
        hint = f"TensorFlow writes and verifies raw.keras; take it, {instead} and use `forge-sweep export` later"
        yield Mistake("backend", as_toml(sections.backend), f'"tensorflow", {since}', hint)


OF_KIND: dict[str, tuple[str, ...]] = {
    "serial": (),
    "processes": ("n", "threads", "per_gpu", "memory_limit_mb"),
    "ray": ("n", "threads", "memory_limit_mb", "address", "cpus", "gpus", "wait_s"),
}
"""What each kind of workers has."""


def workers_fit_kind(sections: Sections) -> Iterator[Mistake]:
    """What only another kind of workers has is not set."""
    workers = sections.workers
    if workers is None:
        return
    for key, field in type(workers).model_fields.items():
        value = getattr(workers, key)
        if key == "kind" or key in OF_KIND[workers.kind] or value == field.default or (key, value) == ("n", 1):
            continue
        hint = f"set workers.gpus = {1 / value:.3g}" if (workers.kind, key) == ("ray", "per_gpu") else kind_with(key)
        yield Mistake(f"workers.{key}", as_toml(value), f'nothing beside workers.kind = "{workers.kind}"', hint)


def kind_with(key: str) -> str:
    """What to set for a key of ``[workers]``."""
    return f"set workers.kind = {as_toml(next(kind for kind, keys in OF_KIND.items() if key in keys))}"


def gpus_can_be_shared(sections: Sections) -> Iterator[Mistake]:
    """Ray gives whole GPUs, or a part of one."""
    gpus = None if sections.workers is None else sections.workers.gpus
    if gpus is not None and gpus > 1 and gpus != int(gpus):
        yield Mistake("workers.gpus", as_toml(gpus), "a part of one GPU, or whole ones", f"set it to {math.ceil(gpus)}")


def plateau_is_whole(sections: Sections) -> Iterator[Mistake]:
    """A least gain means nothing without the number of trials that may pass without one."""
    study = sections.study
    if study is not None and study.plateau_delta and study.plateau_trials is None:
        yield Mistake("study.plateau_trials", "", "a number of trials, since study.plateau_delta is set")


RULES: tuple[Rule, ...] = (
    source_fits,
    split_fits,
    columns_have_one_role,
    target_fits_task,
    objective_fits_task,
    head_fits_task,
    search_values_are_known,
    conditions_can_hold,
    momentum_has_a_user,
    sampler_fits_space,
    scaler_is_named_once,
    preprocessing_fits_in_model,
    workers_fit_kind,
    gpus_can_be_shared,
    plateau_is_whole,
)
