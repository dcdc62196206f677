"""Write docs/experiment.md and docs/cli.md from the code; `tests/test_docs.py` fails when they differ."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.cli import get_docs_for_click
from typer.main import get_command

from forge_sweep.cli import app
from forge_sweep.experiment import HYPERPARAMETERS, Dimension, Experiment, json_schema

FOLDER = Path(__file__).parent

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

| hyperparameter | allowed | default | meaning |
|---|---|---|---|
"""


def experiment_reference() -> str:
    """The reference of the experiment file."""
    head = (
        "# The experiment file\n\nGenerated from the code by `make docs`. Relative paths start at the file's folder.\n"
    )
    top = table("Top level", Experiment)
    sections = [table(f"[{path}]", model, note) for path, model, note in sections_of(Experiment)]
    rows = [
        f"| `{name}` | {known.expected} | {'-' if known.default is None else toml(known.default)} | {known.doc} |"
        for name, known in HYPERPARAMETERS.items()
    ]
    return "\n".join([head, top, *sections]) + SEARCH + "\n".join(rows) + "\n"


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
        return " \\| ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
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


PAGES = {"experiment.md": experiment_reference, "cli.md": cli_reference}


def main() -> None:
    """Write every page."""
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")
        sys.stdout.write(f"wrote docs/{name}\n")


if __name__ == "__main__":
    main()
