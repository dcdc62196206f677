"""The experiment file: TOML in, one frozen and closed `Experiment` out.

Reading is two passes. The first checks each section by itself (unknown keys, wrong types); the second applies the rules
that look across sections. A section with mistakes takes part in the second pass without its bad keys, so that all
mistakes of a file are listed at once.
"""

from __future__ import annotations

import copy
import difflib
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from forge_sweep.errors import ExperimentError, InputError, Mistake
from forge_sweep.experiment.reading import DEEPEST, FLAT, depth, read_toml, toml_value, unprintable
from forge_sweep.experiment.rules import RULES, SYNONYMS, Sections, as_toml, nearest
from forge_sweep.experiment.seeds import derived_seed
from forge_sweep.experiment.space import HYPERPARAMETERS, SCALERS, Dimension, Hyperparameter, Params, Scalar
from forge_sweep.experiment.spec import (
    BUDGET_FIELDS,
    LATER_KEYS,
    BaselineKind,
    BaselinesSpec,
    ConfirmSpec,
    DataSpec,
    Experiment,
    ModelSpec,
    ObjectiveSpec,
    PreprocessingSpec,
    PromotionSpec,
    Pruner,
    Sampler,
    Scaler,
    Schedule,
    SplitSpec,
    StudySpec,
    TrackingSpec,
    WorkersSpec,
    flatten,
    is_budget,
)
from forge_sweep.task import Direction, direction

__all__ = [
    "BUDGET_FIELDS",
    "HYPERPARAMETERS",
    "LATER_KEYS",
    "SCALERS",
    "BaselineKind",
    "BaselinesSpec",
    "ConfirmSpec",
    "DataSpec",
    "Dimension",
    "Direction",
    "Experiment",
    "Hyperparameter",
    "ModelSpec",
    "ObjectiveSpec",
    "Params",
    "PreprocessingSpec",
    "PromotionSpec",
    "Pruner",
    "Sampler",
    "Scalar",
    "Scaler",
    "Schedule",
    "SplitSpec",
    "StudySpec",
    "TrackingSpec",
    "WorkersSpec",
    "derived_seed",
    "flatten",
    "is_budget",
    "json_schema",
    "load",
    "parse",
    "parse_data",
    "restore",
    "toml_value",
]

SECTIONS: dict[str, type[BaseModel]] = {
    "data": DataSpec,
    "preprocessing": PreprocessingSpec,
    "model": ModelSpec,
    "objective": ObjectiveSpec,
    "study": StudySpec,
    "baselines": BaselinesSpec,
    "confirm": ConfirmSpec,
    "workers": WorkersSpec,
    "tracking": TrackingSpec,
    "promotion": PromotionSpec,
}


def load(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file.

    Args:
        path: a TOML file.
        overrides: words such as ``study.n_trials=4``, applied in order; the value is TOML, or else text.

    Raises:
        InputError: the file cannot be read or is not TOML.
        ExperimentError: the experiment has mistakes; all of them are listed.
    """
    path = Path(path)
    raw = read_toml(path)
    return parse(raw, root=path.resolve().parent, overrides=overrides, source=str(path))


def parse(
    raw: Mapping[str, Any], *, root: Path, overrides: Sequence[str] = (), source: str = "experiment"
) -> Experiment:
    """Check a table as `tomllib` gives it and return the experiment; see `load`.

    Args:
        raw: the tables of the file.
        root: folder that relative paths start from.
        overrides: words such as ``study.n_trials=4``.
        source: what error messages call the experiment.
    """
    if depth(raw) > DEEPEST:
        raise InputError(f"{source} is nested too deeply to be an experiment", hint=f"expected {FLAT}")
    tables: dict[str, Any] = copy.deepcopy(dict(raw))
    mistakes = [mistake for word in overrides if (mistake := apply_override(tables, word))]
    odd = unprintable(tables).items()
    mistakes += [Mistake(path, as_toml(text), "a text of whole characters, without NUL") for path, text in odd]
    imply_files(tables)
    mistakes += list(field_mistakes(tables))
    sections = Sections(
        **{
            name: lenient(SECTIONS[name], tables.get(name, {}))
            for name in Sections.__dataclass_fields__
            if name in SECTIONS
        },
        backend=str(tables.get("backend")),
    )
    mistakes += [mistake for rule in RULES for mistake in rule(sections)]
    if any(mistake.path.startswith("model.search.") for mistake in mistakes):
        # a search value that could not be read may have been the one that is searched
        mistakes = [mistake for mistake in mistakes if mistake.path != "model.search"]
    if mistakes:
        raise ExperimentError(source, list(dict.fromkeys(mistakes)))
    experiment = Experiment.model_validate({**tables, "root": root, "overrides": tuple(overrides)})
    objective = experiment.objective.model_copy(
        update={"direction": direction(experiment.data.task, experiment.objective.metric)}
    )
    return experiment.model_copy(update={"objective": objective})


def restore(values: Mapping[str, Any], *, root: Path) -> Experiment:
    """The experiment that `Experiment.resolved` described, as a run has it on record.

    Args:
        values: the whole experiment; a key that is younger than the record takes its default.
        root: folder that relative paths start from.

    Raises:
        ExperimentError: it does not fit this version of forge_sweep.
    """
    try:
        return Experiment.model_validate({**values, "root": root})
    except ValidationError as error:
        mistakes = [as_mistake(values, detail) for detail in error.errors(include_url=False)]
        raise ExperimentError("the recorded experiment", mistakes) from None


def parse_data(sections: Mapping[str, Any]) -> tuple[DataSpec, PreprocessingSpec]:
    """Check ``data`` and ``preprocessing`` alone, as they stand in an experiment file.

    Args:
        sections: the two tables.

    Raises:
        ExperimentError: they have mistakes; all of them are listed.
    """
    rest = {"name": "data", "objective": {"metric": "val_loss"}, "study": {"n_trials": 1}}
    experiment = parse({**rest, **sections}, root=Path())
    return experiment.data, experiment.preprocessing


def json_schema() -> dict[str, Any]:
    """JSON schema of the experiment file, for editors."""
    schema = Experiment.model_json_schema()
    for internal in ("root", "overrides"):
        schema["properties"].pop(internal)
    return schema


def apply_override(raw: dict[str, Any], word: str) -> Mistake | None:
    """Set one ``key=value`` in ``raw``, or say what is wrong with it."""
    path, equals, text = word.partition("=")
    if not equals or not path.strip():
        return Mistake(word, "", "an override of the form key=value, such as study.n_trials=4")
    *parents, last = (part.strip() for part in path.strip().split("."))
    if len(parents) >= DEEPEST:
        return Mistake(f"{path[:40]}...", "", FLAT)
    table = raw
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            return Mistake(path, text, f"a table at {parent}, which has a value")
    try:
        table[last] = toml_value(text.strip())
    except InputError as error:
        return Mistake(path, as_toml(text), error.message)
    return None


def imply_files(raw: dict[str, Any]) -> None:
    """One path per split says already how the rows are split."""
    data = raw.get("data")
    if isinstance(data, dict) and isinstance(data.get("path"), dict):
        split = data.setdefault("split", {})
        if isinstance(split, dict):
            split.setdefault("kind", "files")


def field_mistakes(raw: Mapping[str, Any]) -> Iterator[Mistake]:
    """Unknown keys, missing keys and wrong types, section by section."""
    unknown = unknown_hyperparameters(raw)
    yield from unknown
    paths = tuple(mistake.path for mistake in unknown)
    try:
        Experiment.model_validate(raw)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            found = as_mistake(raw, detail)
            if not any(found.path == path or found.path.startswith(f"{path}.") for path in paths):
                yield found
    for internal in ("root", "overrides"):
        if internal in raw:
            yield Mistake(internal, as_toml(raw[internal]), "nothing: unknown key")


def unknown_hyperparameters(raw: Mapping[str, Any]) -> list[Mistake]:
    """Names under [model.search] that no builder knows: their values cannot be judged."""
    model = raw.get("model")
    search = model.get("search") if isinstance(model, dict) else None
    if not isinstance(search, dict):
        return []
    expected = f"a hyperparameter of mlp: {', '.join(HYPERPARAMETERS)}"
    unknown = {name: value for name, value in search.items() if name not in HYPERPARAMETERS}
    return [Mistake(f"model.search.{name}", value_of(value), expected, meant(name)) for name, value in unknown.items()]


def value_of(value: Any) -> str:
    """A value beside an unknown name; a table says nothing there."""
    return "" if isinstance(value, dict) else as_toml(value)


def meant(name: str) -> str:
    """What somebody who wrote ``name`` under [model.search] may have meant."""
    word = SYNONYMS.get(name.lower(), name)
    if word in HYPERPARAMETERS:
        return f'did you mean "{word}"?'
    return (elsewhere(word) if word in key_names() else "") or nearest(word, HYPERPARAMETERS) or elsewhere(word)


def as_mistake(raw: Mapping[str, Any], detail: Any) -> Mistake:
    """One of pydantic's errors as a mistake with its TOML path."""
    location = [part for part in map(str, detail["loc"]) if part not in ("table", "value", "[key]")]
    path, kind = ".".join(location), detail["type"]
    if kind == "extra_forbidden":
        siblings = fields_at(raw, location[:-1])
        hint = same_here(location[-1], siblings) or elsewhere(location[-1]) or nearest(location[-1], siblings)
        return Mistake(path, as_toml(detail["input"]), f"a known key, one of {', '.join(siblings)}", hint)
    if kind == "missing":
        return Mistake(path, "", "a value: this key is required")
    if kind == "value_error":  # of `one_scalar`
        return Mistake(
            path, as_toml(detail["input"]), str(detail["ctx"]["error"]), as_choices(location, detail["input"])
        )
    if kind == "literal_error":
        choices = [word.strip("'") for word in detail["ctx"]["expected"].replace(" or ", ", ").split(", ")]
        return Mistake(
            path, as_toml(detail["input"]), f"one of {', '.join(choices)}", nearest(str(detail["input"]), choices)
        )
    if kind == "string_pattern_mismatch" and path == "data.separator":
        return Mistake(path, as_toml(detail["input"]), "one ASCII character that is no quotation mark or line break")
    if kind == "string_pattern_mismatch":
        return Mistake(path, as_toml(detail["input"]), "letters, digits, _ . and -, beginning with a letter or a digit")
    if kind == "string_too_long":
        seen = f'{as_toml(detail["input"][:20])[:-1]}..." ({len(detail["input"])} characters)'
        return Mistake(path, seen, f"at most {detail['ctx']['max_length']} characters")
    if kind == "model_type":
        return Mistake(path, as_toml(detail["input"]), f"a table [{path}]", elsewhere(path))
    return Mistake(path, as_toml(detail["input"]), EXPECTED.get(kind, in_words)(detail))


def in_words(detail: Any) -> str:
    """Pydantic's own words."""
    return str(detail["msg"]).removeprefix("Input should be ").removeprefix("a valid ").strip()


EXPECTED: Mapping[str, Callable[[Any], str]] = {
    "greater_than_equal": lambda detail: f"{detail['ctx']['ge']:,} or more",
    "less_than_equal": lambda detail: f"at most {detail['ctx']['le']:,}",
    "int_type": lambda detail: "a whole number",
    "int_from_float": lambda detail: "a whole number",
    "float_type": lambda detail: "a number",
    "string_type": lambda detail: "a text in quotes",
    "bool_type": lambda detail: "true or false",
    "finite_number": lambda detail: "a finite number",
}
"""Pydantic's words where ours are better."""


def as_choices(location: Sequence[str], value: Any) -> str:
    """How a list is searched."""
    if location[:2] != ["model", "search"] or not isinstance(value, list) or len(location) != 3:
        return ""
    return f'to search a list, write {location[-1]} = {{ type = "categorical", choices = {as_toml(value)} }}'


def same_here(word: str, siblings: Sequence[str]) -> str:
    """A key of this section that is nearly ``word``, or another name for it."""
    word = SYNONYMS.get(word.lower(), word)
    if word in siblings:
        return f'did you mean "{word}"?'
    close = difflib.get_close_matches(word, siblings, n=1, cutoff=0.75)
    return f'did you mean "{close[0]}"?' if close else ""


def fields_at(raw: Mapping[str, Any], location: Sequence[str]) -> list[str]:
    """The keys that a table at ``location`` may have."""
    model: type[BaseModel] = Experiment
    for part in location:
        if part == "search":
            return list(Dimension.model_fields)
        annotation = model.model_fields[part].annotation
        model = typing.cast(type[BaseModel], annotation)
    return [name for name in model.model_fields if name not in ("root", "overrides")]


def elsewhere(word: str) -> str:
    """The key of another section that ``word`` may stand for, with its whole path."""
    paths, word = key_names(), SYNONYMS.get(word.lower(), word)
    close = [word] if word in paths else difflib.get_close_matches(word, paths, n=1, cutoff=0.75)
    return f"did you mean {paths[close[0]]}?" if close else ""


def key_names() -> dict[str, str]:
    """Every key and hyperparameter with its whole path."""
    names = {name: f"model.search.{name}" for name in HYPERPARAMETERS}
    return names | {path.rpartition(".")[2]: path for path in key_paths(Experiment)}


def key_paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key that a file may have, as a TOML path."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from key_paths(field.annotation, f"{prefix}{name}.")
        elif name not in ("root", "overrides"):
            yield prefix + name


def lenient(section: type[BaseModel], raw: Any) -> Any:
    """The section without its bad keys, or None where too little is left."""
    if not isinstance(raw, dict):
        return None
    raw = copy.deepcopy(raw)
    for _ in range(2):
        try:
            return section.model_validate(raw)
        except ValidationError as error:
            for detail in error.errors():
                remove(raw, [part for part in map(str, detail["loc"]) if part not in ("table", "value", "[key]")])
    return None


def remove(raw: dict[str, Any], location: Sequence[str]) -> None:
    """Delete the key at ``location``; of a search range that is the whole hyperparameter."""
    depth = 2 if location and location[0] == "search" else len(location)
    table: Any = raw
    for part in location[: depth - 1]:
        if not isinstance(table, dict) or not isinstance(table.get(part), dict):
            break
        table = table[part]
    else:
        table.pop(location[depth - 1] if depth <= len(location) else location[-1], None)
        return
    raw.pop(location[0], None)
