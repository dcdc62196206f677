"""Contradictions within ``[data]``, as in `rules`."""

from __future__ import annotations

import math
import re

from forge_sweep.errors import Key, Mistake
from forge_sweep.experiment.code import is_own
from forge_sweep.experiment.data import DataSpec, SplitSpec
from forge_sweep.experiment.spec import BaselinesSpec
from forge_sweep.experiment.words import Mistakes, as_toml, missing, wrong

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


def folds_fit_split(data: DataSpec) -> Mistakes:
    """Folds divide the rows themselves, and what goes with them needs them."""
    split = data.split
    if split.folds == 1:
        for key in ("repeats", "final"):
            if (value := getattr(split, key)) != SplitSpec.model_fields[key].default:
                yield wrong(f"data.split.{key}", value, "nothing without folds", "set folds = 5 under [data.split]")
    elif split.kind in ("column", "files"):
        named = "a column says" if split.kind == "column" else "files say"
        yield wrong("data.split.folds", split.folds, f"1, since {named} which rows validate", 'kind = "random"')
    elif split.kind == "time" and split.repeats > 1:
        yield wrong("data.split.repeats", split.repeats, "1: there is one order of time", "remove it")


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
