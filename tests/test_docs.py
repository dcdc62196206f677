"""The documentation says what the code does."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.main import get_command

from forge_sweep import cli
from forge_sweep.errors import FAILURES
from forge_sweep.experiment import HYPERPARAMETERS, Experiment, flatten, load, parse
from forge_sweep.feature_store.commands import app as data_app

ROOT = Path(__file__).parents[1]


def generator() -> ModuleType:
    """docs/generate.py as a module."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["experiment.md", "cli.md", "api.md"])
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
    assert {name for name in get_command(data_app).commands if f"forge-sweep data {name}" not in store} == set()
    assert {name for name in FAILURES if f"`{name}`" not in guide} == set()


def test_every_command_has_a_counterpart_in_python_that_is_described() -> None:
    """Nothing can be done in one way only; of a class, the members that the table names are described."""
    commands: list[str] = []
    for name, command in {**get_command(cli.app).commands, "data": get_command(data_app)}.items():
        commands += [f"{name} {each}" for each in command.commands] if hasattr(command, "commands") else [name]
    made = generator()
    assert sorted(made.PYTHON) == sorted(commands)
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert [name for name in made.PYTHON.values() if f'<a id="{made.anchor(name)}"></a>' not in page] == []


def test_links_between_pages_lead_somewhere() -> None:
    """Every relative link in the Markdown files names a file that is there."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    links = [
        (page, link) for page in pages for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    ]
    assert links
    assert [(page.name, link) for page, link in links if not (page.parent / link).exists()] == []


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "experiments").rglob("*.md"))]

YOURS = {
    *("data/fraud.csv", "broken.toml", "row.json", "new.csv", "new.parquet", "fraud.parquet"),
    *("churn.toml", "fraud.toml", "experiments/fraud.toml", "fraud.csv"),
}
"""Files of the reader, which the pages use as examples and do not ship."""

PLACEHOLDER = re.compile(r"[A-Z][A-Z_]*(=[A-Z_]+)?$|.*[A-Z]{3,}.*|\.\.\.|<.*>|\[.*\]|.*\$.*|.*\{\{.*")
"""A word that stands for one of the reader's: in capitals, as in the usage of a command."""


def commands_of(page: Path) -> list[str]:
    """Every `forge-sweep ...` of a page: in blocks of a shell, and in running text."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = []
    for kind, block in re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        if kind in ("", "console", "sh", "bash", "shell"):
            found = (re.search(r"(?:^|\s)(forge-sweep\s.*)$", line) for line in block.splitlines())
            lines += [each.group(1) for each in found if each and not each.string.lstrip().startswith(("#", "error"))]
    outside = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines += [" ".join(each.split()) for each in re.findall(r"`(forge-sweep [^`]+)`", outside)]
    return lines


def words_of(line: str) -> list[str]:
    """The arguments of a command line, without its comment and what follows it in the shell."""
    words = shlex.split(line, comments=True)[1:]
    ends = [place for place, word in enumerate(words) if re.fullmatch(r"[|;&<>]+|2>.*|>.*", word)]
    return words[: min(ends, default=len(words))]


ALL_COMMANDS = [
    pytest.param(line, id=f"{page.name}: {line[:60]}")
    for page in PAGES
    if page.name != "cli.md"  # generated from the commands themselves
    for line in dict.fromkeys(commands_of(page))
]


@pytest.mark.parametrize("line", ALL_COMMANDS)
def test_every_command_of_the_pages_is_one(line: str) -> None:
    """Its name, options and number of arguments are those of the real parser; the experiment it names is shipped."""
    words = words_of(line.partition(", then ")[0])
    command: Any = get_command(cli.app)
    context = command.make_context("forge-sweep", [], resilient_parsing=True)
    leading = [word for word in words if word == "--debug"]
    words = words[len(leading) :]
    while hasattr(command, "commands") and words:
        found = command.get_command(context, words[0])
        assert found or PLACEHOLDER.match(words[0]), f"no command {words[0]!r}"
        if PLACEHOLDER.match(words[0]) or not found:
            return
        command = found
        del words[0]
    if hasattr(command, "commands") or not words or any(word in ("...", "--help") for word in words):
        return  # only the name of a command
    numbers = {"PORT": "8080", "SECONDS": "1"}
    command.make_context("forge-sweep", [numbers.get(word, word) for word in words], parent=context)
    for word in words:
        if word.endswith((".toml", ".csv", ".csv.gz", ".parquet", ".json")) and not PLACEHOLDER.match(word):
            made = words[words.index(word) - 1] in ("-o", "--output", "--rejects")
            made = made or line.startswith("forge-sweep data export") or "give_me_some_credit" in word
            assert made or word in YOURS or (ROOT / word).exists(), f"{word} is not shipped"
        if word.endswith(".toml") and (ROOT / word).exists():
            load(ROOT / word, [each for each in words if re.match(r"[a-z_.]+=", each)])


def test_pages_name_no_package_that_is_not_released() -> None:
    """The package is in no index yet: its extras come from a checkout."""
    named = [page.name for page in PAGES if re.search(r"install ['\"]?forge-sweep", page.read_text(encoding="utf-8"))]
    assert named == []


def test_every_file_that_the_pages_name_is_there() -> None:
    """Paths below the folders of this repository."""
    pattern = re.compile(r"`((?:forge_sweep|tests|experiments|docs|benchmarks|compose)/[\w./-]+\.\w+)`")
    found = [(page.name, path) for page in PAGES for path in pattern.findall(page.read_text(encoding="utf-8"))]
    missing = [
        (page, path) for page, path in found if not (ROOT / path).exists() and "give_me_some_credit.csv" not in path
    ]
    assert found and missing == []
