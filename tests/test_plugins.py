"""What other distributions add: a source, a builder, an export format, a command; and our own room reached that way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sklearn.datasets import load_breast_cancer
from typer.testing import CliRunner

from forge_sweep import exports, models, plugins, sources
from forge_sweep.cli import app
from forge_sweep.cli.entry import HELP
from forge_sweep.errors import ExperimentError, InputError
from forge_sweep.experiment import json_schema, parse
from forge_sweep.testing import BuilderContract, FormatContract, SourceContract, table

EXAMPLE = Path(__file__).with_name("plugin")

EXPERIMENT = """
name = "plugged"
[data]
source = "jsonlines"
path = "rows.jsonl"
target = "target"
task = "binary"
[model]
builder = "linear"
search.learning_rate = { type = "float", low = 0.05, high = 0.2 }
search.batch_size = 32

[objective]
metric = "val_auc"
[study]
n_trials = 2
epochs = 10
[baselines]
kinds = ["constant"]
[confirm]
seeds = 2
"""

Install = Callable[..., Path]


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example is installed."""
    monkeypatch.syspath_prepend(str(EXAMPLE))


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """A distribution with entry points of one group, installed."""

    def put(name: str, group: plugins.Group, **targets: str) -> Path:
        folder = tmp_path / name
        info = folder / f"{name}-2.1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.1\n")
        lines = [f"{entry} = {target}" for entry, target in targets.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{group.name}]", *lines]))
        monkeypatch.syspath_prepend(str(folder))
        return folder

    return put


class TestJsonLines(SourceContract):
    """The example's source promises what every source promises."""

    @pytest.fixture(autouse=True)
    def installed(self, plugin: None) -> None:
        """For every test."""

    def declare(self, folder: Path) -> dict[str, Any]:
        """See `SourceContract`."""
        frame = table().drop(columns=["booked", "part"])
        frame.to_json(folder / "rows.jsonl", orient="records", lines=True)
        return {"source": "jsonlines", "path": "rows.jsonl", "target": "label", "task": "binary"}


class TestLinear(BuilderContract):
    """Its builder what every builder promises."""

    builder = "linear"

    @pytest.fixture(autouse=True)
    def installed(self, plugin: None) -> None:
        """For every test."""


class TestCoefficients(FormatContract):
    """And its format what every format promises."""

    format, builder, preprocessing = "coefficients", "linear", False

    @pytest.fixture(autouse=True)
    def installed(self, plugin: None) -> None:
        """For every test."""


class TestOnnx(FormatContract):
    """As ours do."""

    format = "onnx"


@pytest.mark.slow
def test_a_sweep_runs_on_a_source_and_a_builder_and_exports_to_a_format_of_another_distribution(
    plugin: None, tmp_path: Path
) -> None:
    """From the experiment file to the exported file, by name alone."""
    load_breast_cancer(as_frame=True).frame.iloc[:, -8:].to_json(tmp_path / "rows.jsonl", orient="records", lines=True)
    (tmp_path / "plugged.toml").write_text(EXPERIMENT)
    store, output = ["--store", str(tmp_path / "mlruns")], tmp_path / "model.json"
    ended = CliRunner().invoke(app, ["run", str(tmp_path / "plugged.toml"), *store], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    words = ["export", "models:/plugged/1", "--format", "coefficients", "-o", str(output), *store]
    refused = CliRunner().invoke(app, words)
    assert "or export with --without-preprocessing" in str(refused.exception)
    exported = CliRunner().invoke(app, [*words, "--without-preprocessing"], catch_exceptions=False)
    assert exported.exit_code == 0 and len(json.loads(output.read_text())["weights"]) == 7


def test_a_command_of_another_distribution_is_listed_and_runs(plugin: None) -> None:
    """With the summary of its distribution; nothing of it is imported before it is called."""
    sys.modules.pop("forge_sweep_example", None)
    listed = CliRunner().invoke(app, ["--help"]).stdout
    assert "JSON lines, logistic regression" in listed and HELP["data"][:30] in listed
    assert "forge_sweep_example" not in sys.modules
    assert CliRunner().invoke(app, ["example", "greet", "Ada"], catch_exceptions=False).stdout == "hello Ada\n"
    assert "No such command 'exampel'" in CliRunner().invoke(app, ["exampel"]).output


def test_names_of_plugins_are_known_to_the_experiment_file(plugin: None) -> None:
    """In its check, and in the schema for editors."""
    definitions = json_schema()["$defs"]
    known = ["file", "sample", "postgres", "jsonlines"]
    assert definitions["DataSpec"]["properties"]["source"]["anyOf"][0]["enum"] == known
    assert definitions["ModelSpec"]["properties"]["builder"]["anyOf"][0]["enum"] == [*plugins.BUILDERS.own, "linear"]
    raw = tomllib.loads(EXPERIMENT)
    assert parse(raw, root=Path()).data.source == "jsonlines"
    raw["data"]["source"] = "jsonlins"
    with pytest.raises(ExperimentError, match='one of file, sample, postgres, jsonlines; did you mean "jsonlines"'):
        parse(raw, root=Path())


FIND: dict[str, tuple[plugins.Group, Callable[[str], object]]] = {
    'data.source = "lake"': (plugins.SOURCES, sources.source),
    'model.builder = "lake"': (plugins.BUILDERS, lambda name: models.size(name, {}, None, {})),  # type: ignore[arg-type]
    "--format lake": (plugins.FORMATS, lambda name: exports.export("bundle", name, "x")),
    "forge-sweep lake": (plugins.COMMANDS, lambda name: _called([name, "greet"])),
}


def _called(words: list[str]) -> None:
    """Call a command, and raise what it raises."""
    CliRunner().invoke(app, words, catch_exceptions=False)


@pytest.mark.parametrize("said", FIND)
def test_two_distributions_that_declare_one_name_are_refused(said: str, install: Install) -> None:
    """Both are named, and how to be left with one."""
    group, find = FIND[said]
    install("one", group, lake="one:THING")
    install("two", group, lake="two:THING")
    with pytest.raises(InputError, match=r"(one|two) 2\.1 and (one|two) 2\.1 each declare") as caught:
        find("lake")
    assert caught.value.message.startswith(said) and "pip uninstall" in caught.value.hint


@pytest.mark.parametrize("said", FIND)
@pytest.mark.parametrize("code", ["import a_module_that_is_not_there", "raise RuntimeError('broken')", ""])
def test_a_plugin_that_cannot_be_imported_is_named(said: str, code: str, install: Install) -> None:
    """With its distribution, the cause and the fix."""
    group, find = FIND[said]
    name = f"broken{abs(hash((said, code)))}"
    folder = install(name, group, lake=f"{name}:THING")
    (folder / f"{name}.py").write_text(code)
    with pytest.raises(InputError, match=rf"{name}:THING of {name} 2\.1 cannot be imported") as caught:
        find("lake")
    assert caught.value.message.startswith(said) and f"pip uninstall {name}" in caught.value.hint


@pytest.mark.parametrize("said", FIND)
def test_a_plugin_of_another_kind_is_named(said: str, install: Install) -> None:
    """It lacks what is called on it."""
    group, find = FIND[said]
    folder = install("other", group, lake="other_kind:THING")
    (folder / "other_kind.py").write_text("THING = 3")
    with pytest.raises(InputError, match=r"other 2\.1 is no .*: it has no "):
        find("lake")


@pytest.mark.parametrize("said", [said for said in FIND if "forge-sweep" not in said])
def test_an_unknown_name_says_which_there_are(said: str) -> None:
    """And how one is added."""
    group, find = FIND[said]
    with pytest.raises(InputError, match=f"no such {group.noun}; expected one of {', '.join(group.own)}") as caught:
        find("lake")
    assert group.name in caught.value.hint


def test_our_own_names_cannot_be_taken(install: Install) -> None:
    """Whatever is installed, `file` is a file and `data` is the feature store."""
    install("thief", plugins.SOURCES, file="thief:X", postgres="thief:X")
    assert isinstance(sources.source("file"), type(sources.SOURCES["file"]))
    assert type(sources.source("postgres")).__name__ == "FeatureStoreSource"


def test_the_feature_store_is_declared_as_an_installed_distribution_declares_it() -> None:
    """`plugins.DECLARED`, for source trees, is what pyproject.toml says."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    declared = {
        (group, name, value)
        for group, entries in project["entry-points"].items()
        if group.startswith("forge_sweep.")
        for name, value in entries.items()
    }
    assert {(*name, value) for name, value in plugins.DECLARED.items()} == declared


def test_own_names_are_those_that_the_rooms_have() -> None:
    """The tables are in their rooms; the names stand in one place for the check of an experiment file."""
    assert (*sources.SOURCES, "postgres") == plugins.SOURCES.own
    assert tuple(models.BUILDERS) == plugins.BUILDERS.own
    assert tuple(exports.FORMATS) == plugins.FORMATS.own


WITHOUT_EXTRAS = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("psycopg", "alembic", "tenacity"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in ("psycopg", "alembic") else find_spec(name, *rest)
import forge_sweep.cli

sys.argv = ["forge-sweep", *sys.argv[1:]]
try:
    forge_sweep.cli.main()
finally:
    print(sorted(name for name in sys.modules if name.partition(".")[0] in ("numpy", "pandas", "keras", "optuna")
        or name.startswith("forge_sweep.feature_store")), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [(["--help"], 0, "[]\n"), (["data", "list"], 2, "fix: in a checkout of forge-sweep: pip install '.[postgres]'")],
)
def test_without_the_extra_packages_help_works_and_a_command_says_what_to_install(
    words: list[str], code: int, said: str
) -> None:
    """And `--help` imports nothing heavy, nor the feature store."""
    environment = {**os.environ, "FORGE_SWEEP_DATABASE_URL": "postgresql://me@localhost/features"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS, *words], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done.stderr
    assert said in done.stderr


def test_the_help_of_the_feature_store_is_its_own() -> None:
    """The line in the list, which imports nothing, is that of the command."""
    from forge_sweep.feature_store.commands import app as data

    assert data.info.help == HELP["data"]
