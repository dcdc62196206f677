"""Reading an experiment: TOML in, one frozen and closed `Experiment` out, or all mistakes of the file at once.

The first pass checks each section by itself; the second applies the rules that look across sections, to each section
without its bad keys.
"""

from __future__ import annotations

import codecs
import contextlib
import copy
import difflib
import re
import tomllib
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from forge_sweep import plugins
from forge_sweep.errors import ExperimentError, InputError, Mistake
from forge_sweep.experiment.code import Code, is_own
from forge_sweep.experiment.code import read as read_code
from forge_sweep.experiment.data import DataSpec, HeadSpec, InputGroup
from forge_sweep.experiment.networks import NETWORKS, UNNAMED, hyperparameters_of
from forge_sweep.experiment.rules import RULES
from forge_sweep.experiment.space import Dimension, Hyperparameter, as_tuple
from forge_sweep.experiment.spec import Experiment, PreprocessingSpec, TuneSpec, section_of
from forge_sweep.experiment.words import SYNONYMS, as_toml, missing, nearest, wrong

INTERNAL = ("root", "overrides", "code", "source_code")
"""Fields of `Experiment` that are no keys of a file."""

TABLES: dict[str, type[BaseModel]] = {"search": Dimension, "inputs": InputGroup, "heads": HeadSpec, "tune": TuneSpec}
"""Tables whose keys the user names, and what each holds; and those that may be something else than a table."""

SECTIONS = {name: section for name, field in Experiment.model_fields.items() if (section := section_of(field))}


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
    what = f"experiment file {path}"
    text = _decoded(what, _content_of(path))
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{what} is not TOML: {error}", hint="fix the line named above") from None
    except RecursionError:
        raise InputError(f"{what} {TOO_DEEP}", hint=f"expected {FLAT}") from None
    except ValueError as error:  # a number of 5,000 digits, the 30th of February
        raise InputError(f"{what} holds an invalid value: {error}", hint="fix it") from None
    return parse(raw, root=path.resolve().parent, overrides=overrides, source=str(path))


def parse(
    raw: Mapping[str, Any], *, root: Path, overrides: Sequence[str] = (), source: str = "experiment"
) -> Experiment:
    """Check tables as `tomllib` gives them and return the experiment; see `load`.

    Relative paths start from ``root``; ``source`` is what error messages call the experiment.
    """
    if _depth(raw) > DEEPEST:
        raise InputError(f"{source} {TOO_DEEP}", hint=f"expected {FLAT}")
    tables: dict[str, Any] = copy.deepcopy(dict(raw))
    mistakes = [mistake for word in overrides if (mistake := _apply_override(tables, word))]
    expected = "a text of whole characters, without NUL"
    mistakes += [wrong(path, text, expected) for path, text in _unprintable(tables).items()]
    data = tables.get("data")
    if isinstance(data, dict) and isinstance(data.get("path"), dict):  # says already how the rows are split
        split = data.setdefault("split", {})
        if isinstance(split, dict):
            split.setdefault("kind", "files")
    if isinstance(data, dict) and (targets := _targets_of_heads(data.get("heads"))):
        data.setdefault("target", targets)
        data.setdefault("task", "joint")
        if isinstance(baselines := tables.setdefault("baselines", {}), dict):
            baselines.setdefault("kinds", ["constant"])
    mistakes += _with_first_objective(tables)
    code: Code | None = None
    builder = _with_defaults(tables)
    hyperparameters: Mapping[str, Hyperparameter] | None = hyperparameters_of(builder)
    if own := _own(tables, "model", "builder"):
        hyperparameters = None
        try:
            named = tables["model"].get("callbacks", ())
            code = read_code(own, root, callbacks=[each for each in as_tuple(named) if isinstance(each, str)])
            hyperparameters = code.hyperparameters
        except ExperimentError as error:
            mistakes += error.mistakes
    source_code: Code | None = None
    if own_source := _own(tables, "data", "source"):
        try:
            source_code = read_code(own_source, root, source=True)
        except ExperimentError as error:
            mistakes += error.mistakes
    if not own and not plugins.is_known(plugins.BUILDERS, builder):
        hyperparameters = None  # of which network, cannot be told
    mistakes += _field_mistakes(tables, builder if builder in NETWORKS or own else "mlp", hyperparameters)
    of_heads = [mistake for mistake in mistakes if mistake.path.startswith("data.heads")]
    sections = {name: _lenient(section, tables.get(name, {})) for name, section in SECTIONS.items()}
    sections["preprocessing"] = sections["preprocessing"] or PreprocessingSpec()  # its defaults contradict nothing
    sections |= {"backend": str(tables.get("backend")), "code": code, "hyperparameters": hyperparameters}
    sections["source_code"] = source_code
    for rule, names in RULES:
        needed = [sections[name] for name in names]
        if not any(each is None for each in needed):
            mistakes += rule(*needed)
    if of_heads:  # a head that could not be read is not there for what was compared with it
        follow = ("data.target", "data.task", "data.heads", "objective.sum", "objective.metric")
        mistakes = [*of_heads, *(each for each in mistakes if not each.path.startswith(follow))]
    if any(mistake.path.startswith("model.search.") for mistake in mistakes):
        # a search value that could not be read may have been the one that is searched
        mistakes = [mistake for mistake in mistakes if mistake.path != "model.search"]
    if mistakes:
        raise ExperimentError(source, list(dict.fromkeys(mistakes)))
    experiment = Experiment.model_validate({**tables, "root": root, "overrides": tuple(overrides)})
    objective = experiment.objective
    better = {**objective.known(experiment.data), "loss": "minimize"}[objective.metric.removeprefix("val_")]
    resolved: dict[str, Any] = {"direction": better}
    if len(objective.metrics) == 1:
        resolved["metrics"] = ()
    update: dict[str, Any] = {"objective": experiment.objective.model_copy(update=resolved)}
    if code is not None:
        update |= {"code": code, "model": experiment.model.model_copy(update={"code": code.digest})}
    if source_code is not None:
        data_with = experiment.data.model_copy(update={"code": source_code.digest})
        update |= {"source_code": source_code, "data": data_with}
    return experiment.model_copy(update=update)


def _with_defaults(tables: dict[str, Any]) -> str:
    """Fill in what follows from the builder where the file does not say it, and give its name.

    With several trials that is the search space; of a network with a recipe its scaler, epochs and patience besides. A
    file with neither builder nor space has the network that is best with its own.
    """
    model, study = (tables.get(name, {}) for name in ("model", "study"))
    if not isinstance(model, dict) or not isinstance(study, dict):
        return "mlp"
    searched = "search" not in model and study.get("n_trials") != 1 and study.get("sampler") != "grid"
    data = tables.get("data")
    if searched and "builder" not in model and not (isinstance(data, dict) and data.get("inputs")):
        model["builder"] = UNNAMED
    builder = str(model.get("builder", "mlp"))
    known = NETWORKS.get(builder)
    if known is None:
        return builder
    if searched:
        model["search"] = {
            name: {key: value for key, value in each.model_dump().items() if key in each.model_fields_set}
            for name, each in known.search.items()
        }
        tables["model"] = model
    for key, value in known.study.items():
        study.setdefault(key, value)
        tables["study"] = study
    preprocessing = tables.get("preprocessing", {})
    if known.scaler != "standard" and isinstance(preprocessing, dict) and "scaler" not in model.get("search", {}):
        tables["preprocessing"] = {"scaler": known.scaler, **preprocessing}
    return builder


def _with_first_objective(tables: dict[str, Any]) -> Iterator[Mistake]:
    """Fill in ``metric`` from ``metrics``, and the pruner that several objectives have."""
    objective = tables.get("objective")
    names = as_tuple(objective.get("metrics")) if isinstance(objective, dict) else None
    if not (isinstance(objective, dict) and isinstance(names, tuple) and names and isinstance(names[0], str)):
        return
    if objective.setdefault("metric", names[0]) != names[0]:
        expected = f"the first of objective.metrics, {as_toml(names[0])}"
        yield wrong("objective.metric", objective["metric"], expected, "leave it out, or put it first")
    if len(names) > 1 and isinstance(study := tables.setdefault("study", {}), dict):
        study.setdefault("pruner", "dominated")


def _targets_of_heads(heads: Any) -> list[Any]:
    """The targets of all heads, in their order, as far as they can be read."""
    of_heads = (
        [head.get("target", []) for head in heads.values() if isinstance(head, dict)] if isinstance(heads, dict) else []
    )
    names = [name for names in of_heads for name in (names if isinstance(names, list) else [names])]
    return list(dict.fromkeys(name for name in names if isinstance(name, str)))


def _own(tables: Mapping[str, Any], section: str, key: str) -> str:
    """The own builder or source that an experiment names, or ""."""
    table = tables.get(section)
    name = table.get(key) if isinstance(table, dict) else None
    return name if isinstance(name, str) and is_own(name) else ""


def restore(values: Mapping[str, Any], *, root: Path) -> Experiment:
    """The experiment that `Experiment.resolved` described; a key that is younger than the record takes its default.

    It has the code of its own builder and source where that lies below ``root`` as it was.
    """
    try:
        experiment = Experiment.model_validate({**values, "root": root})
    except ValidationError as error:
        mistakes = [_as_mistake(detail) for detail in error.errors(include_url=False)]
        raise ExperimentError("the recorded experiment", mistakes) from None
    found: dict[str, Code] = {}
    for field, name, digest in (
        ("code", experiment.model.builder, experiment.model.code),
        ("source_code", experiment.data.source, experiment.data.code),
    ):
        with contextlib.suppress(ExperimentError):
            source = field == "source_code"
            named = () if source else experiment.model.callbacks
            if is_own(name) and (code := read_code(name, root, source=source, callbacks=named)).digest == digest:
                found[field] = code
    return experiment.model_copy(update=found)


def parse_data(sections: Mapping[str, Any]) -> tuple[DataSpec, PreprocessingSpec]:
    """Check ``data`` and ``preprocessing`` alone, as they stand in an experiment file."""
    rest = {"name": "data", "objective": {"metric": "val_loss"}, "study": {"n_trials": 1}}
    experiment = parse({**rest, **sections}, root=Path())
    return experiment.data, experiment.preprocessing


def json_schema() -> dict[str, Any]:
    """JSON schema of the experiment file, for editors."""
    schema = Experiment.model_json_schema()
    for internal in INTERNAL:
        schema["properties"].pop(internal)
    return schema


def _apply_override(raw: dict[str, Any], word: str) -> Mistake | None:
    path, equals, text = word.partition("=")
    if not equals or not path.strip():
        return missing(word, "an override of the form key=value, such as study.n_trials=4")
    *parents, last = (part.strip() for part in path.strip().split("."))
    if len(parents) >= DEEPEST:
        return missing(f"{path[:40]}...", FLAT)
    table = raw
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            return Mistake(path, text, f"a table at {parent}, which has a value")
    try:
        table[last] = toml_value(text.strip())
    except InputError as error:
        return wrong(path, text, error.message)
    return None


def _field_mistakes(
    raw: Mapping[str, Any], builder: str, hyperparameters: Mapping[str, Hyperparameter] | None
) -> Iterator[Mistake]:
    """Unknown keys, missing keys and wrong types, section by section."""
    unknown = [] if hyperparameters is None else _unknown_hyperparameters(raw, builder, hyperparameters)
    yield from unknown
    paths = [mistake.path for mistake in unknown]
    try:
        Experiment.model_validate(raw)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            found = _as_mistake(detail)
            if not any(found.path == path or found.path.startswith(f"{path}.") for path in paths):
                yield found
    for internal in INTERNAL:
        if internal in raw:
            yield wrong(internal, raw[internal], "nothing: unknown key")


def _unknown_hyperparameters(
    raw: Mapping[str, Any], builder: str, hyperparameters: Mapping[str, Hyperparameter]
) -> list[Mistake]:
    """Names under [model.search] that no builder knows: their values cannot be judged."""
    model = raw.get("model")
    search = model.get("search") if isinstance(model, dict) else None
    if not isinstance(search, dict):
        return []
    expected = f"a hyperparameter of {builder}: {', '.join(hyperparameters)}"
    return [
        Mistake(
            f"model.search.{name}",
            "" if isinstance(value, dict) else as_toml(value),
            expected,
            _meant(name, hyperparameters),
        )
        for name, value in search.items()
        if name not in hyperparameters
    ]


def _meant(name: str, hyperparameters: Mapping[str, Hyperparameter]) -> str:
    """What somebody who wrote ``name`` under [model.search] may have meant."""
    word = SYNONYMS.get(name.lower(), name)
    if word in hyperparameters:
        return f'did you mean "{word}"?'
    elsewhere = _elsewhere(word)
    if elsewhere.startswith("did you mean model.search."):
        elsewhere = ""  # of another builder
    if word in _key_names() and elsewhere:
        return elsewhere
    return nearest(word, hyperparameters) or nearest(name, hyperparameters) or elsewhere


def _as_mistake(detail: Any) -> Mistake:
    """One of pydantic's errors as a mistake with its TOML path."""
    location, kind, value = _location(detail), detail["type"], detail["input"]
    path, hint = ".".join(location), ""
    if kind == "missing":
        return missing(path, "a value: this key is required")
    if kind == "string_too_long":
        seen = f'{as_toml(value[:20])[:-1]}..." ({len(value)} characters)'
        return Mistake(path, seen, f"at most {detail['ctx']['max_length']} characters")
    if kind == "extra_forbidden":
        *parents, key = location
        siblings = _fields_at(parents)
        expected = f"a known key, one of {', '.join(siblings)}"
        meant = SYNONYMS.get(key.lower(), key)
        hint = f'did you mean "{meant}"?' if meant in siblings else nearest(meant, siblings, 0.75)
        hint = hint or _elsewhere(key) or nearest(key, siblings)
    elif kind == "value_error":  # of `one_scalar`
        expected = str(detail["ctx"]["error"])
        if location[:2] == ["model", "search"] and isinstance(value, list) and len(location) == 3:
            choices = f'{{ type = "categorical", choices = {as_toml(value)} }}'
            hint = f"to search a list, write {location[-1]} = {choices}"
    elif kind == "literal_error":
        words = [word.strip("'") for word in detail["ctx"]["expected"].replace(" or ", ", ").split(", ")]
        expected, hint = f"one of {', '.join(words)}", nearest(str(value), words)
        if path == "baselines.tune":
            expected, hint = "false or a table [baselines.tune]", "leave it out for the default, which is on"
        if not hint and path in ("model.builder", "data.source"):
            function = "build" if path == "model.builder" else "load"
            expected += f", or a function of your own such as {str(value).removesuffix('.py')}:{function}"
    elif kind == "string_pattern_mismatch":
        expected = "letters, digits, _ . and -, beginning with a letter or a digit"
        if path == "data.separator":
            expected = "one ASCII character that is no quotation mark or line break"
    elif kind == "model_type":
        expected, hint = f"a table [{path}]", _elsewhere(path)
    else:
        expected = EXPECTED.get(kind, _in_words)(detail)
    return wrong(path, value, expected, hint)


def _location(detail: Any) -> list[str]:
    return [part for part in map(str, detail["loc"]) if part not in ("table", "value", "[key]")]


def _in_words(detail: Any) -> str:
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
    "dict_type": lambda detail: f"a table, such as [{'.'.join(_location(detail))}.NAME]",
}
"""Pydantic's words where ours are better."""


def _fields_at(location: Sequence[str]) -> list[str]:
    """The keys that a table at ``location`` may have."""
    model: type[BaseModel] = Experiment
    for part in location:
        if part in TABLES:
            return list(TABLES[part].model_fields)
        model = typing.cast(type[BaseModel], model.model_fields[part].annotation)
    return [name for name in model.model_fields if name not in INTERNAL]


def _elsewhere(word: str) -> str:
    """The key of another section that ``word`` may stand for, with its whole path."""
    paths, word = _key_names(), SYNONYMS.get(word.lower(), word)
    close = [word] if word in paths else difflib.get_close_matches(word, paths, n=1, cutoff=0.75)
    return f"did you mean {paths[close[0]]}?" if close else ""


def _key_names() -> dict[str, str]:
    """Every key and hyperparameter with its whole path."""
    names = {name: f"model.search.{name}" for each in NETWORKS.values() for name in each.hyperparameters}
    return names | {path.rpartition(".")[2]: path for path in _key_paths(Experiment)}


def _key_paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if section := section_of(field):
            yield from _key_paths(section, f"{prefix}{name}.")
        elif name not in INTERNAL:
            yield prefix + name


def _lenient(section: type[BaseModel], raw: Any) -> Any:
    """The section without its bad keys, or None where too little is left."""
    if not isinstance(raw, dict):
        return None
    raw = copy.deepcopy(raw)
    for _ in range(2):
        try:
            return section.model_validate(raw)
        except ValidationError as error:
            for detail in error.errors():
                _remove(raw, _location(detail))
    return None


def _remove(raw: dict[str, Any], location: Sequence[str]) -> None:
    """Delete the key at ``location``; of a search range that is the whole hyperparameter, of an input all of it."""
    *parents, key = location[:2] if location[0] in TABLES else location
    table: Any = raw
    for part in parents:
        if not isinstance(table.get(part), dict):
            raw.pop(location[0], None)
            return
        table = table[part]
    table.pop(key, None)


# A TOML file as plain tables


LONGEST = 1_000_000
"""Bytes of an experiment file; a long list of columns takes a few thousand."""

DEEPEST = 16
"""Levels of tables and lists in it; the deepest key of an experiment has five."""

TOO_DEEP = "is nested too deeply to be an experiment"
FLAT = f"at most {DEEPEST} levels of tables and lists"

MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""Byte order marks of encodings that TOML does not have; the longer ones first, since they begin like the others."""

SAVE = "save it as UTF-8, with or without a byte order mark"


def _content_of(path: Path) -> bytes:
    """The bytes of the file, which may be a pipe."""
    try:
        with path.open("rb") as file:
            content = file.read(LONGEST + 1)
    except FileNotFoundError:
        hint = "give the path of a TOML file, such as experiments/NAME.toml"
        raise InputError(f"experiment file {path} does not exist", hint=hint) from None
    except IsADirectoryError:
        found = sorted(each.name for each in path.glob("*.toml"))[:5]
        hint = f"name the file: {', '.join(found)}" if found else "give the path of a TOML file"
        raise InputError(f"{path} is a directory, not an experiment file", hint=hint) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"experiment file {path} cannot be read: {reason}", hint="give a TOML file") from None
    if len(content) > LONGEST:
        raise InputError(
            f"experiment file {path} has more than {LONGEST // 1_000_000} MB; that is too long for an experiment",
            hint="give a TOML file of some 40 lines; rows stand in a file of their own, which data.path names",
        )
    return content


def _decoded(what: str, content: bytes) -> str:
    """The text, with or without the byte order mark of UTF-8."""
    for mark, encoding in MARKS.items():
        if content.startswith(mark):
            raise InputError(f"{what} is {encoding}, and TOML is UTF-8", hint=SAVE)
    zeros = content.count(0)
    if zeros and zeros > len(content) // 4 and not content.translate(None, bytes([0, *b"\r\n\t", *range(0x20, 0x7F)])):
        raise InputError(f"{what} is UTF-16 or UTF-32, and TOML is UTF-8", hint=SAVE)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if zeros:
            raise InputError(f"{what} is not text", hint="give a TOML file") from None
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{what} is not UTF-8: byte 0x{content[error.start]:02x} in line {line}", hint=SAVE) from None
    if zeros:
        raise InputError(f"{what} is not text: it holds NUL bytes", hint="give a TOML file")
    return text


def toml_value(text: str) -> Any:
    """The TOML value that ``text`` spells, or the text itself; InputError for one too deep or a number too long."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    except RecursionError:
        raise InputError(FLAT) from None
    except ValueError as error:
        raise InputError(f"a value ({error})") from None
    if _depth(value) > DEEPEST:
        raise InputError(FLAT)
    return value


def _depth(value: Any) -> int:
    """Levels of tables and lists, counted without recursion: a file may have thousands."""
    levels, here = 0, [value]
    while here := [each for each in here if isinstance(each, Mapping | list)]:
        levels += 1
        here = [inner for each in here for inner in (each.values() if isinstance(each, Mapping) else each)]
    return levels


def _unprintable(raw: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Texts that hold NUL or halves of characters, by their TOML path: no file, column or database can have them."""
    found: dict[str, str] = {}
    for key, value in raw.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= _unprintable(value, f"{path}.")
        for text in (key, *(value if isinstance(value, list) else [value])):
            if isinstance(text, str) and re.search("[\x00\ud800-\udfff]", text):
                found[path] = text
    return found
