"""The documentation says what the code does."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from typer.main import get_command

from forge_sweep import cli
from forge_sweep.cli import data
from forge_sweep.errors import FAILURES
from forge_sweep.experiment import HYPERPARAMETERS, Experiment, flatten, parse

ROOT = Path(__file__).parents[1]


def generator() -> ModuleType:
    """docs/generate.py as a module."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["experiment.md", "cli.md"])
def test_generated_pages_are_up_to_date(page: str) -> None:
    """`make docs` was run after the last change of the code."""
    assert (ROOT / "docs" / page).read_text(encoding="utf-8") == generator().PAGES[page]()


def test_every_key_of_the_experiment_file_is_documented() -> None:
    """Each key of each section stands in the reference."""
    text = (ROOT / "docs" / "experiment.md").read_text(encoding="utf-8")
    raw = {"name": "x", "data": {"path": "x.csv", "target": "y", "task": "binary"}, "objective": {"metric": "val_auc"}}
    experiment = parse(raw | {"study": {"n_trials": 1}}, root=Path())
    keys = {path.rpartition(".")[2] for path in flatten(experiment.resolved())} - {"search"}
    assert {key for key in keys if f"`{key}`" not in text} == set()
    assert {name for name in HYPERPARAMETERS if f"`{name}`" not in text} == set()
    assert len(Experiment.model_fields) > 10


def test_the_readme_names_every_command_and_every_failure_class_is_in_the_guide() -> None:
    """A new command or class needs a line for users."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    commands = {*get_command(cli.app).commands}
    assert {name for name in commands if f"forge-sweep {name}" not in readme} == set()
    store = (ROOT / "docs" / "feature-store.md").read_text(encoding="utf-8")
    assert {name for name in get_command(data.app).commands if f"forge-sweep data {name}" not in store} == set()
    assert {name for name in FAILURES if f"`{name}`" not in guide} == set()


def test_links_between_pages_lead_somewhere() -> None:
    """Every relative link in the Markdown files names a file that is there."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    links = [
        (page, link) for page in pages for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    ]
    assert links
    assert [(page.name, link) for page, link in links if not (page.parent / link).exists()] == []
