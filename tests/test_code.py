"""A user's own builder, as the experiment reads it: nothing is imported, the signature is the schema of the search."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from forge_sweep.errors import ExperimentError, ResumeRefused
from forge_sweep.experiment import Experiment, json_schema, parse, restore
from forge_sweep.experiment.code import read
from tests.test_study import drive, opened

NET = """
from typing import Annotated, Literal, Optional
raise SystemExit("imported")
WIDTH = 64
UNITS = Annotated[int, "Units of a block.", (4, 512)]
def build(inputs, heads, *, width: UNITS = WIDTH, depth: int = 2, dropout=0.0, l2: float | None = None,
          kind: Literal["plain", "residual"] = "plain", kernel: Literal[3, 5] = 3, norm: bool = True,
          rate: Annotated[float, Field(gt=0, le=1)] = 1, size: "Optional[int]" = None, name: str = "x",
          learning_rate: float = 0.01):
    ...
"""


def raw(**search: Any) -> dict[str, Any]:
    """An experiment with a builder of its own."""
    data = {"source": "sample", "name": "wine", "target": "target", "task": "multiclass"}
    study = {"n_trials": 1}
    model = {"builder": "net:build", "search": search}
    return {"name": "own", "data": data, "objective": {"metric": "val_auc"}, "study": study, "model": model}


def made(root: Path, source: str = NET, /, **search: Any) -> Experiment:
    """The experiment with ``net.py`` beside it."""
    (root / "net.py").write_text(source)
    return parse(raw(**search), root=root)


def mistakes(root: Path, source: str = NET, /, **search: Any) -> str:
    """What is said of it."""
    with pytest.raises(ExperimentError) as caught:
        made(root, source, **search)
    return str(caught.value)


def test_the_signature_is_the_schema_of_the_search(tmp_path):
    known = made(tmp_path).hyperparameters
    width, rate, kernel = known["width"], known["rate"], known["kernel"]
    assert (width.type, width.default, width.low, width.high, width.doc) == ("int", 64, 4, 512, "Units of a block.")
    assert (rate.type, rate.default, rate.high) == ("float", 1.0, 1) and 0 < rate.low < 1e-300
    assert (kernel.choices, kernel.default) == ((3, 5), 3) and not kernel.accepts("3")
    assert (known["dropout"].type, known["norm"].type, known["name"].accepts("any text")) == ("float", "bool", True)
    assert known["l2"].default is None and known["size"].default is None


def test_the_space_has_the_functions_defaults_and_no_optimizer_that_nobody_named(tmp_path):
    """A model that comes compiled has its own; a record must not name another."""
    assert made(tmp_path, width=8).space == {
        **{"learning_rate": 0.01, "batch_size": 128, "width": 8, "depth": 2, "dropout": 0.0, "kind": "plain"},
        **{"kernel": 3, "norm": True, "rate": 1.0, "name": "x"},
    }
    assert made(tmp_path, optimizer="sgd", momentum=0.9).space["optimizer"] == "sgd"


def test_names_and_values_are_checked_against_it(tmp_path):
    said = mistakes(tmp_path, widht=8, kernel=4, depth=2.5, rate={"type": "float", "low": 0.5, "high": 2.0})
    assert (
        "model.search.widht = 8: expected a hyperparameter of net:build: " in said and 'did you mean "width"?' in said
    )
    assert "model.search.kernel = 4: expected one of 3, 5" in said
    assert "model.search.depth = 2.5: expected a whole number" in said
    assert "model.search.rate.high = 2.0: expected a number from" in said


def test_a_parameter_without_a_default_has_to_be_in_the_search(tmp_path):
    source = "def build(inputs, heads, *, width: int): ..."
    assert "model.search.width: expected a value: net:build has no default for it" in mistakes(tmp_path, source)
    choice = {"type": "categorical", "choices": ["adam", "sgd"]}
    width = {"type": "int", "low": 1, "high": 9, "when": {"optimizer": "sgd"}}
    assert "width.when: expected no condition" in mistakes(tmp_path, source, optimizer=choice, width=width)
    assert made(tmp_path, source, width=3).space["width"] == 3


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def biuld(inputs, heads): ...", r'which has no build; it has biuld; did you mean "biuld"'),
        ("class build: ...", "build of net.py is a class; write a function"),
        ("from other import build", "net.py imports it from other"),
        ("def build(inputs, heads:", r"net.py:1: "),
        ("def build(inputs): ...", r"two arguments first, inputs and heads; they are inputs \(net.py:1\)"),
        ("def build(inputs, heads, **params): ...", r"every hyperparameter by its name; it takes \*params"),
        ("def build(inputs, heads, *, width): ...", "width to be int.*neither a type nor a default"),
        ("def build(inputs, heads, *, width: list = 1): ...", "width to be int.*its type is list"),
        ("def build(inputs, heads, *, width: int = f()): ...", r"a default of width that is a number.*it is f\(\)"),
        (
            "def build(inputs, heads, *, width: Annotated[int, (1, 4)] = 9): ...",
            "width that is a whole number from 1 to 4",
        ),
        ("def build(inputs, heads, *, width: Annotated[int, Even()] = 2): ...", r"it has Even\(\), expected bounds"),
    ],
)
def test_a_function_that_cannot_be_a_builder_is_refused_with_its_line(source, said, tmp_path):
    import re

    found = mistakes(tmp_path, source)
    assert re.search(said, found, re.DOTALL), found
    assert found.startswith("experiment: 1 mistake\n  model.builder = ")


@pytest.mark.parametrize(
    ("builder", "said"),
    [
        ("nt:build", "there is no nt.py"),
        ("net.py:build", 'did you mean "net:build"'),
        ("net:build()", 'did you mean "net:build"'),
        ("net", "expected one of mlp"),
    ],
)
def test_a_builder_that_is_not_there_is_named(builder, said, tmp_path):
    (tmp_path / "net.py").write_text(NET)
    with pytest.raises(ExperimentError, match=said):
        parse({**raw(), "model": {"builder": builder}}, root=tmp_path)


def test_the_digest_is_of_the_file_and_of_the_local_modules_that_it_imports(tmp_path):
    source = "import os, numpy, blocks\nfrom nets.deep import Deep\ndef build(inputs, heads): ..."
    (tmp_path / "nets").mkdir()
    for name, text in {
        "blocks": "",
        "nets/__init__": "",
        "nets/deep": "from . import more",
        "nets/more": "x = 1",
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "unused.py").write_text("")
    first = made(tmp_path, source)
    assert list(first.code.files) == ["blocks", "net", "nets.__init__", "nets.deep", "nets.more"]
    (tmp_path / "nets" / "more.py").write_bytes(b"x = 1\r\n")
    changed = made(tmp_path, source)
    assert changed.code.digest != first.code.digest and changed.contract() != first.contract()
    (tmp_path / "nets" / "more.py").write_text("x = 1\n")
    assert made(tmp_path, source).code.digest == changed.code.digest, "line ends are no content"
    assert changed.differences(first.resolved()) == {
        "model.code": f'model.code: "{first.code.digest}" -> "{changed.code.digest}"'
    }


def test_the_digest_can_be_pinned(tmp_path):
    digest = made(tmp_path).code.digest
    table = raw()
    table["model"]["code"] = digest
    assert parse(table, root=tmp_path).contract() == made(tmp_path).contract()
    table["model"]["code"] = "0" * 64
    with pytest.raises(ExperimentError, match=f'model.code = .*expected "{digest}", the digest of .*net.py'):
        parse(table, root=tmp_path)


def test_a_module_on_the_path_comes_after_one_beside_the_experiment(tmp_path, monkeypatch):
    (tmp_path / "path" / "lab").mkdir(parents=True)
    (tmp_path / "path" / "lab" / "__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "path" / "lab" / "deep.py").write_text("import lab.blocks\ndef build(inputs, heads): ...")
    (tmp_path / "path" / "lab" / "blocks.py").write_text("import net")
    (tmp_path / "path" / "net.py").write_text("def other(inputs, heads): ...")
    monkeypatch.syspath_prepend(tmp_path / "path")
    (tmp_path / "net.py").write_text(NET)
    assert read("net:build", tmp_path).files == {"net": NET}
    assert list(read("lab.deep:build", tmp_path).files) == ["lab.__init__", "lab.blocks", "lab.deep"]


def test_an_experiment_with_its_source_travels(tmp_path):
    """To worker processes and other machines, where no such file is."""
    experiment = made(tmp_path)
    assert pickle.loads(pickle.dumps(experiment)) == experiment
    assert pickle.loads(pickle.dumps(experiment)).code.files == {"net": NET}


def test_a_record_finds_its_source_again_while_it_is_as_it_was(tmp_path):
    values = json.loads(json.dumps(made(tmp_path).resolved()))
    assert restore(values, root=tmp_path).code is not None
    (tmp_path / "net.py").write_text(NET + "\n")
    lost = restore(values, root=tmp_path)
    assert lost.code is None
    with pytest.raises(Exception, match="the source of net:build is not here"):
        _ = lost.builder


def test_the_schema_for_editors_takes_both_kinds_of_builder():
    builder = json_schema()["$defs"]["ModelSpec"]["properties"]["builder"]
    assert builder["anyOf"][0]["enum"][0] == "mlp" and builder["anyOf"][1]["pattern"] == ":"
    assert "code" not in json_schema()["properties"]


def test_reading_a_builder_does_not_import_keras(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    program = (
        "import sys; from forge_sweep.experiment.code import read; read('net:build', __import__('pathlib').Path('.'))"
    )
    program += "; assert not {'keras', 'tensorflow', 'net'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)


def test_a_changed_source_is_another_sweep_and_its_fork_imports_no_trial(tmp_path):
    store, width = tmp_path / "store", {"type": "int", "low": 4, "high": 64}
    drive(opened(store, made(tmp_path, width=width, dropout={"type": "float", "low": 0.0, "high": 0.5})))
    changed = made(tmp_path, f"{NET}# another\n", width=width, dropout={"type": "float", "low": 0.0, "high": 0.5})
    with pytest.raises(ResumeRefused, match=r"model\.code: net\.py was edited"):
        opened(store, changed)
    fork = opened(store, changed, fork=True)
    assert fork.skipped.startswith("no trial of own was imported: model.code")
