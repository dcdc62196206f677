"""Write docs/experiment.md, docs/cli.md and docs/api.md from the code; `tests/test_docs.py` fails when they differ."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
import textwrap
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.cli import get_docs_for_click
from typer.main import get_command

from forge_sweep import errors
from forge_sweep.cli import app
from forge_sweep.experiment import (
    GENERAL,
    HYPERPARAMETERS,
    NETWORKS,
    Dimension,
    Experiment,
    HeadSpec,
    Hyperparameter,
    InputGroup,
    TuneSpec,
    json_schema,
)

FOLDER = Path(__file__).parent

INPUTS = """
Each key is the name of an input, which the builder finds in `inputs`:

```toml
[data.inputs]
amounts = { columns = ["amount", "balance_*"] }
merchant = { columns = ["merchant"], encode = "codes" }
```
"""

HEADS = """
Each key is the name of a head, which the builder finds in `heads`; see [models.md](models.md):

```toml
[data.heads.outcome]
target = "status"
task = "binary"

[data.heads.price]
target = "price"
task = "regression"
weight = 0.5
```
"""

SEARCH = """
## [model.search]

Each key is a hyperparameter. A value fixes it; a table searches it:

| table | meaning |
|---|---|
| `{ type = "int", low = 16, high = 256, log = true }` | whole numbers, on a logarithmic scale |
| `{ type = "int", low = 16, high = 256, step = 16 }` | whole numbers with a step |
| `{ type = "float", low = 0.0, high = 0.5 }` | numbers; `step` and `log` as above |
| `{ type = "categorical", choices = ["adam", "sgd"] }` | one of the values |
| `{ ..., when = { optimizer = "sgd" } }` | exists only where `optimizer` has this value, or one of a list |
"""


def experiment_reference() -> str:
    """The reference of the experiment file."""
    head = (
        "# The experiment file\n\nGenerated from the code by `make docs`. Relative paths start at the file's folder.\n"
    )
    top = table("Top level", Experiment)
    sections = [table(f"[{path}]", model, note) for path, model, note in sections_of(Experiment)]
    place = next(i for i, text in enumerate(sections) if text.startswith("## [data.split]")) + 1
    sections.insert(place, table("[data.inputs]", InputGroup, "Optional: several inputs.\n" + INPUTS.rstrip()))
    at = next(i for i, text in enumerate(sections) if text.startswith("## [baselines]")) + 1
    sections.insert(
        at, table("[baselines.tune]", TuneSpec, "Boosted trees that are tuned; see [guide.md](guide.md#tuned-trees).")
    )
    sections.insert(place + 1, table("[data.heads]", HeadSpec, "Optional: several targets.\n" + HEADS.rstrip()))
    titles = ("| hyperparameter | allowed | default | meaning |", "|---|---|---|---|")
    networks = ["", "With every network:", "", *titles]
    networks += [row_of(name, HYPERPARAMETERS[name]) for name in GENERAL]
    for builder, network in NETWORKS.items():
        known = network.hyperparameters
        networks += ["", f"Of `{builder}`:", "", *titles]
        networks += [row_of(name, each) for name, each in known.items() if name not in GENERAL]
        other = [name for name in GENERAL if known[name].default != HYPERPARAMETERS[name].default]
        told = ", ".join(f"`{name} = {toml(known[name].default)}`" for name in other)
        networks += ["", f"Its own defaults: {told}."] * bool(other)
        recipe = {**({"preprocessing.scaler": network.scaler} if network.scaler != "standard" else {})}
        recipe |= {f"study.{key}": value for key, value in network.study.items()}
        told = ", ".join(f"`{key} = {toml(value)}`" for key, value in recipe.items())
        networks += ["", f"Where the file does not say otherwise: {told}."] * bool(recipe)
        networks += ["", "Searched without a [model.search], beginning with the value after the arrow:", "", "```toml"]
        first = {name: each.default for name, each in known.items()} | network.start
        networks += [f"{name} = {range_of(each)}  # -> {toml(first[name])}" for name, each in network.search.items()]
        networks += ["```"]
    return "\n".join([head, top, *sections]) + SEARCH + "\n".join([*networks, ""])


def row_of(name: str, known: Hyperparameter) -> str:
    """One hyperparameter as a row of a table."""
    return f"| `{name}` | {known.expected} | {'-' if known.default is None else toml(known.default)} | {known.doc} |"


def range_of(dimension: Dimension) -> str:
    """What is searched, as it stands in a file."""
    told = {key: value for key, value in dimension.model_dump().items() if key in dimension.model_fields_set}
    return f"{{ {', '.join(f'{key} = {toml(list(v) if isinstance(v, tuple) else v)}' for key, v in told.items())} }}"


def sections_of(model: type[BaseModel], prefix: str = "") -> list[tuple[str, type[BaseModel], str]]:
    """Every section below ``model`` with its TOML path."""
    found: list[tuple[str, type[BaseModel], str]] = []
    for name, field in model.model_fields.items():
        if is_section(field):
            section: Any = field.annotation
            note = (section.__doc__ or "").partition(": ")[2].rstrip(".")
            found += [
                (prefix + name, section, note[:1].upper() + note[1:] + "."),
                *sections_of(section, f"{prefix}{name}."),
            ]
    return found


def is_section(field: FieldInfo) -> bool:
    """Whether a field is a table of its own."""
    return (
        isinstance(field.annotation, type)
        and issubclass(field.annotation, BaseModel)
        and field.annotation is not Dimension
    )


def table(title: str, model: type[BaseModel], note: str = "") -> str:
    """One section as a table of its keys."""
    schema = json_schema()
    properties = schema["properties"] if model is Experiment else schema["$defs"][model.__name__]["properties"]
    rows = [
        f"| `{name}` | {type_of(properties[name])} | {default_of(field)} | {field.description} |"
        for name, field in model.model_fields.items()
        if not is_section(field) and name in properties and name != "search"
    ]
    return "\n".join(
        [
            f"## {title}\n",
            f"{note}\n" if note else "",
            "| key | type | default | meaning |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def type_of(schema: dict[str, Any]) -> str:
    """A JSON schema as a person reads it."""
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " \\| ".join(f"`{value if isinstance(value, str) else toml(value)}`" for value in values)
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(type_of(option) for option in schema["anyOf"] if option.get("type") != "null"))
    if "oneOf" in schema:
        return " or ".join(dict.fromkeys(map(type_of, schema["oneOf"])))
    if schema.get("type") == "array":
        return f"{type_of(schema['items'])}, or a list"
    return {"object": "table", None: "value"}.get(schema.get("type"), schema.get("type", "value"))


def default_of(field: FieldInfo) -> str:
    """A default as TOML."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, BaseModel):
        return "a table, see there"
    return "-" if value is None or value == () else f"`{toml(value)}`"


def toml(value: Any) -> str:
    """A value as it would stand in the file."""
    return json.dumps(value)


def cli_reference() -> str:
    """The reference of the command line, by typer's own generator."""
    command = get_command(app)
    import click

    context = click.Context(command, info_name="forge-sweep")
    return (
        "# The command line\n\nGenerated from the code by `make docs`.\n\n"
        + get_docs_for_click(obj=command, ctx=context, name="forge-sweep").strip()
        + "\n"
    )


PYTHON = {
    "init": "forge_sweep.draft.draft",
    "run": "forge_sweep.Sweep.run",
    "worker": "forge_sweep.Sweep.join",
    "check": "forge_sweep.Sweep.check",
    "doctor": "forge_sweep.doctor.examine",
    "schema": "forge_sweep.experiment.json_schema",
    "status": "forge_sweep.Sweep.status",
    "trials": "forge_sweep.Sweep.trials",
    "diagnose": "forge_sweep.Sweep.findings",
    "explain": "forge_sweep.Sweep.explain",
    "replay": "forge_sweep.Sweep.replay",
    "compare": "forge_sweep.Sweep.compare",
    "best": "forge_sweep.Sweep.best",
    "report": "forge_sweep.Sweep.report",
    "ui": "forge_sweep.Sweep.ui",
    "reconcile": "forge_sweep.Sweep.reconcile",
    "promote": "forge_sweep.registry.promote",
    "rollback": "forge_sweep.registry.rollback",
    "card": "forge_sweep.registry.make_card",
    "reproduce": "forge_sweep.reproduce.reproduce",
    "export": "forge_sweep.export_model",
    "serve": "forge_sweep.serving.serve",
    "predict": "forge_sweep.serving.files.predict_file",
    "models list": "forge_sweep.registry.overviews",
    "models history": "forge_sweep.registry.Champions.history",
    "models at": "forge_sweep.registry.Champions.at",
    "models show": "forge_sweep.tracking.Registry.version",
    "store upgrade": "forge_sweep.tracking.upgrade_store",
    "data init": "forge_sweep.feature_store.schema.init",
    "data ingest": "forge_sweep.feature_store.admin.ingest_file",
    "data list": "forge_sweep.feature_store.admin.listed",
    "data show": "forge_sweep.feature_store.admin.described",
    "data audit": "forge_sweep.feature_store.admin.audited",
    "data diff": "forge_sweep.feature_store.diff.diff",
    "data drift": "forge_sweep.feature_store.drift.drift",
    "data export": "forge_sweep.feature_store.admin.export",
    "data drop": "forge_sweep.feature_store.admin.dropped",
}
"""What each command is in Python."""

API = {
    "Sweeps": ["forge_sweep.Sweep"],
    "Models": [
        "forge_sweep.load_model",
        "forge_sweep.export_model",
        "forge_sweep.bundle.Bundle",
        "forge_sweep.serving.files.predict_file",
        "forge_sweep.serving.serve",
        "forge_sweep.serving.Settings",
    ],
    "What they return": [
        "forge_sweep.sweep.SweepResult",
        "forge_sweep.sweep.Event",
        "forge_sweep.checks.findings.Finding",
        "forge_sweep.study.TrialRow",
        "forge_sweep.checks.pruning.PruningAudit",
        "forge_sweep.checks.pruning.Audited",
        "forge_sweep.study.replay.Replayed",
        "forge_sweep.predictions.Kept",
        "forge_sweep.predictions.Pair",
        "forge_sweep.sweep.Joined",
        "forge_sweep.sweep.Reconciled",
    ],
    "The registry": [
        "forge_sweep.registry.promote",
        "forge_sweep.registry.rollback",
        "forge_sweep.registry.make_card",
        "forge_sweep.registry.overviews",
        "forge_sweep.registry.Champions",
        "forge_sweep.tracking.Registry",
        "forge_sweep.reproduce.reproduce",
        "forge_sweep.reproduce.commands",
    ],
    "Experiments and stores": [
        "forge_sweep.draft.draft",
        "forge_sweep.doctor.examine",
        "forge_sweep.experiment.json_schema",
        "forge_sweep.tracking.upgrade_store",
    ],
    "Tests of your own (pytest)": [
        "forge_sweep.testing.BuilderContract",
    ],
    "The feature store": [
        "forge_sweep.feature_store.schema.init",
        "forge_sweep.feature_store.admin.ingest_file",
        "forge_sweep.feature_store.admin.ingest_version",
        "forge_sweep.feature_store.admin.listed",
        "forge_sweep.feature_store.admin.described",
        "forge_sweep.feature_store.admin.audited",
        "forge_sweep.feature_store.diff.diff",
        "forge_sweep.feature_store.drift.drift",
        "forge_sweep.feature_store.admin.export",
        "forge_sweep.feature_store.admin.dropped",
    ],
}

MEMBERS = {
    "forge_sweep.Sweep": None,
    "forge_sweep.bundle.Bundle": ("predict", "scores", "load", "save"),
    "forge_sweep.registry.Champions": ("history", "at", "record"),
    "forge_sweep.tracking.Registry": ("models", "versions", "version", "aliases"),
}
"""Methods and properties that are described; None: all public ones."""

API_HEAD = """\
# The Python API

Generated from the docstrings by `make docs`. In a notebook: [quickstart.ipynb](quickstart.ipynb).

```python
from forge_sweep import Sweep

sweep = Sweep.from_toml("experiments/quickstart.toml")
sweep.run()
```

A sweep from Python is the one of the command line: the same experiment, store, study, events, errors and models. Begin
it in a notebook, resume it in a shell, watch it from either. Errors are exceptions with the text that the command
prints; nothing exits. A script that runs a sweep with `workers.kind = "processes"` needs `if __name__ == "__main__":`
around it, as for `multiprocessing`.

## From commands to Python

| command | in Python |
|---|---|
"""


def api_reference() -> str:
    """The reference of what is public in Python."""
    rows = [f"| `forge-sweep {command}` | [`{name}`](#{anchor(name)}) |" for command, name in PYTHON.items()]
    parts = [API_HEAD + "\n".join(rows)]
    for title, names in API.items():
        parts.append(f"## {title}")
        parts += [text for name in names for text in described(name)]
    parts += ["## Errors", "All are in `forge_sweep.errors`; the message ends with how to fix it.", error_table()]
    return "\n\n".join(parts) + "\n"


def described(name: str) -> list[str]:
    """A function, or a class with its members."""
    found = resolved(name)
    parts = [heading("###", name), *signature(found, name.rpartition(".")[2]), *markdown(inspect.getdoc(found) or "")]
    if name in MEMBERS:
        chosen = MEMBERS[name]
        names = [each for each in vars(found) if not each.startswith("_")] if chosen is None else chosen
        for each in names:
            member = inspect.getattr_static(found, each)
            parts.append(heading("####", f"{name}.{each}"))
            if not isinstance(member, property):
                parts += signature(getattr(found, each), each)
            else:
                parts.append(f"Property: `{member.fget.__annotations__['return']}`.")
            parts += markdown(inspect.getdoc(member) or "")
    return parts


def resolved(name: str) -> Any:
    """The object that a dotted name stands for."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            found = getattr(found, part)
        return found
    raise LookupError(name)


def heading(level: str, name: str) -> str:
    """A heading that links lead to; of a member it names the class and not the module."""
    shown = ".".join(name.split(".")[-2:]) if level == "####" else name
    return f'{level} <a id="{anchor(name)}"></a>`{shown}`'


def anchor(name: str) -> str:
    """The name of a place of this page."""
    return name.replace(".", "-").lower()


def signature(found: Any, name: str) -> list[str]:
    """How it is called, as code."""
    if is_dataclass(found):
        made = " = ..."  # by a factory
        defaults = [default_text(each.default) if each.default_factory is MISSING else made for each in fields(found)]
        listed = [f"{each.name}: {each.type}{text}" for each, text in zip(fields(found), defaults, strict=True)]
    elif inspect.isclass(found):
        if found.__init__ is object.__init__:
            return []  # to be subclassed
        listed = parameters(inspect.signature(found.__init__))
    else:
        listed = parameters(inspect.signature(found))
    returns = "" if inspect.isclass(found) else f" -> {inspect.signature(found).return_annotation}"
    one = f"{name}({', '.join(listed)}){returns}"
    text = one if len(one) <= 110 else f"{name}(\n" + "".join(f"    {each},\n" for each in listed) + f"){returns}"
    return [f"```text\n{text}\n```"]


def parameters(found: inspect.Signature) -> list[str]:
    """The parameters, with what stands between positional ones and those by name."""
    listed: list[str] = []
    by_name = False
    for each in found.parameters.values():
        if each.name == "self":
            continue
        if each.kind is each.VAR_POSITIONAL:
            by_name = True
        if each.kind is each.KEYWORD_ONLY and not by_name:
            listed.append("*")
            by_name = True
        star = "*" if each.kind is each.VAR_POSITIONAL else ""
        annotation = "" if each.annotation is each.empty else f": {each.annotation}"
        listed.append(f"{star}{each.name}{annotation}{default_text(each.default)}")
    return listed


def default_text(value: Any) -> str:
    """A default as it would be written; what has no short form is dots."""
    if value is inspect.Parameter.empty or value is MISSING:
        return ""
    if isinstance(value, Path):
        return f' = Path("{value}")'
    return f" = {value!r}" if isinstance(value, str | int | float | tuple | None) else " = ..."


SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Example)::?$")


def markdown(text: str) -> list[str]:
    """A docstring in Google's style as paragraphs, lists and code."""
    parts: list[str] = []
    for block in re.split(r"\n\n(?=\S)", text):
        head, _, rest = block.partition("\n")
        section = SECTION.match(head)
        if block.partition("\n\n")[0].endswith("::"):
            words, _, code = block.partition("::\n\n") if section is None else (head.rstrip(":"), "", rest)
            parts.append(f"{inline(words)}:\n\n```python\n{inspect.cleandoc(code)}\n```")
        elif section is None:
            parts.append(inline(block))
        elif section[1] == "Returns":
            parts.append(f"**Returns** {inline(' '.join(rest.split()))}")
        else:
            parts.append(f"**{section[1]}**\n\n" + "\n".join(listed_in(rest)))
    return parts


def listed_in(block: str) -> list[str]:
    """The entries ``name: text`` of a section, which may go on over indented lines."""
    entries: list[str] = []
    for line in textwrap.dedent(block).splitlines():
        if line.startswith(" ") and entries:
            entries[-1] += f" {line.strip()}"
        else:
            entries.append(line)
    pairs = (entry.partition(": ") for entry in entries)
    return [f"- `{name}`: {inline(text)}" for name, _, text in pairs]


def inline(text: str) -> str:
    """Double backticks are Markdown's single ones."""
    return text.replace("``", "`")


def error_table() -> str:
    """Every exception below `ForgeSweepError`, with the exit code of a command that ends with it."""
    found = [each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, Exception)]
    found.sort(key=lambda each: (len(each.__mro__), each.__name__))
    rows = [
        f"| `{each.__name__}` | `{each.__bases__[0].__name__}` | {each.exit_code} | "
        f"{inline((inspect.getdoc(each) or '').partition(chr(10))[0])} |"
        for each in found
    ]
    return "\n".join(["| exception | is a | exit code | meaning |", "|---|---|---|---|", *rows])


PAGES = {"experiment.md": experiment_reference, "cli.md": cli_reference, "api.md": api_reference}


def main() -> None:
    """Write every page."""
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")
        sys.stdout.write(f"wrote docs/{name}\n")


if __name__ == "__main__":
    main()
