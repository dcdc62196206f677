"""A registered version counts as ours only where nothing beside its bundle would run or install anything."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from forge_sweep.bundle import Bundle
from forge_sweep.cli import app
from forge_sweep.errors import BundleError
from forge_sweep.registry import Refused, promote, rollback
from forge_sweep.tracking import ForeignModel, ModelVersion, Registry, fetched, locate
from forge_sweep.tracking.mlmodel import bundle_in
from tests.shop import NAME, Shop, opened

pytestmark = pytest.mark.slow

EVIL = """
from pathlib import Path
Path({mark!r}).write_text("ran")
def _load_pyfunc(path):
    return None
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """A store with two versions; the second became champion after the first."""
    made = opened(tmp_path_factory.mktemp("foreign"))
    for kind in ("constant", "hist_gradient_boosting"):
        promote(NAME, made.register(made.bundle(kind)), store=made.store, force="for the test")
    return made


@pytest.fixture
def model(shop: Shop, tmp_path: Path) -> Path:
    """A copy of the second version as MLflow downloads it."""
    from mlflow import artifacts

    with Registry(shop.store).asking("a test"):
        return Path(artifacts.download_artifacts(artifact_uri=f"models:/{NAME}/2", dst_path=str(tmp_path / "model")))


def flavor(model: Path, **changes: Any) -> None:
    """Change settings of the flavor in MLmodel."""
    about = yaml.safe_load((model / "MLmodel").read_text())
    about["flavors"]["python_function"] |= changes
    (model / "MLmodel").write_text(yaml.safe_dump(about))


def another_flavor(model: Path) -> None:
    about = yaml.safe_load((model / "MLmodel").read_text())
    about["flavors"]["sklearn"] = {"pickled_model": "model.pkl"}
    (model / "MLmodel").write_text(yaml.safe_dump(about))


def written(name: str, text: str) -> Callable[[Path], None]:
    """Writes a file beside the bundle."""

    def write(model: Path) -> None:
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text(text)

    return write


def appended(name: str, text: str) -> Callable[[Path], None]:
    """Adds to a file beside the bundle."""
    return lambda model: (model / name).write_text((model / name).read_text().rstrip() + "\n" + text)


def replaced(name: str, old: str, new: str) -> Callable[[Path], None]:
    """Changes text of a file beside the bundle."""

    def replace(model: Path) -> None:
        text = (model / name).read_text()
        assert old in text
        (model / name).write_text(text.replace(old, new, 1))

    return replace


def linked(model: Path) -> None:
    (model / "requirements.txt").unlink()
    (model / "requirements.txt").symlink_to(model / "conda.yaml")


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "loader": (lambda model: flavor(model, loader_module="evil"), "loader_module = 'evil'"),
    "code": (lambda model: flavor(model, code="code"), "code = 'code'"),
    "code beside it": (written("code/evil.py", "boom"), "code does not belong there"),
    "our name beside it": (written("forge_sweep/tracking.py", "boom"), "forge_sweep does not belong there"),
    "python model": (lambda model: flavor(model, python_model="python_model.pkl"), "more settings: python_model"),
    "model code": (lambda model: flavor(model, model_code_path="evil.py"), "more settings: model_code_path"),
    "artifacts": (lambda model: flavor(model, artifacts={"a": {"path": "a"}}), "more settings: artifacts"),
    "pickle": (written("python_model.pkl", "cos\nsystem\n"), "python_model.pkl does not belong there"),
    "another flavor": (another_flavor, "more flavors: sklearn"),
    "another folder": (lambda model: flavor(model, data="data/other"), "data = 'data/other'"),
    "second bundle": (written("data/a/manifest.json", "{}"), "expected the bundle alone"),
    "environment": (lambda model: flavor(model, env="evil.yaml"), "env = 'evil.yaml'"),
    "requirement": (appended("requirements.txt", "evil==1.0"), "asks for 'evil==1.0'"),
    "index": (appended("requirements.txt", "--index-url http://127.0.0.1"), "asks for '--index-url"),
    "address": (appended("requirements.txt", "numpy @ http://127.0.0.1/n.whl"), "asks for 'numpy @"),
    "unpinned": (replaced("requirements.txt", "numpy==", "numpy>="), "asks for 'numpy>="),
    "another version": (replaced("requirements.txt", "pandas==", "pandas==0."), "the bundle was saved with"),
    "conda": (replaced("conda.yaml", "- pip:", "- evil\n- pip:"), "conda.yaml asks for other packages"),
    "conda pip": (replaced("conda.yaml", "- numpy==", "- evil==1.0\n  - numpy=="), "conda.yaml asks for other"),
    "channel": (replaced("conda.yaml", "conda-forge", "evil"), "conda.yaml asks for other packages"),
    "virtualenv": (appended("python_env.yaml", "- evil==1.0"), "python_env.yaml asks for other packages"),
    "build": (
        replaced("python_env.yaml", "- setuptools", "- evil==1.0\n- setuptools"),
        "python_env.yaml asks for other",
    ),
    "constraints": (written("constraints.txt", "numpy==1.0"), "constraints.txt does not belong there"),
    "link": (linked, "requirements.txt does not belong there"),
    "no MLmodel": (lambda model: (model / "MLmodel").unlink(), "there is no MLmodel"),
    "no YAML": (written("MLmodel", "a: [1"), "MLmodel of a registered model is not valid YAML"),
    "no table": (written("MLmodel", "- 1"), "has no flavor python_function"),
    "tags of Python": (written("MLmodel", "!!python/object/apply:os.system ['true']"), "is not valid YAML"),
    "brackets": (written("MLmodel", "[" * 20_000), "is not valid YAML"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_mlflow_would_run_or_install_is_refused_by_name(name: str, model: Path) -> None:
    """Each of the files beside the bundle, and each setting that brings code along."""
    assert bundle_in(model, "x").parent == model / "data"
    change, words = CHANGES[name]
    change(model)
    with pytest.raises(ForeignModel) as refusal:
        bundle_in(model, "models:/loans/2")
    assert words in str(refusal.value) and "fix: do not load this version" in str(refusal.value)


def test_a_model_without_a_bundle_says_so(tmp_path: Path) -> None:
    written("MLmodel", "flavors: {}")(tmp_path)
    with pytest.raises(BundleError, match="holds no bundle"):
        bundle_in(tmp_path, "models:/x/1")


@pytest.fixture
def hostile(shop: Shop, tmp_path: Path) -> Path:
    """The second version as somebody changed it in the store: MLflow would import code of his; the mark he leaves."""
    (registered,) = [path for path in shop.store.glob("artifacts/**/MLmodel") if kind(path) == "hist_gradient_boosting"]
    before = registered.read_bytes()
    mark = tmp_path / "mark"
    written("code/evil.py", EVIL.format(mark=str(mark)))(registered.parent)
    flavor(registered.parent, loader_module="evil", code="code")
    yield mark  # type: ignore[misc]
    registered.write_bytes(before)
    shutil.rmtree(registered.parent / "code")  # with the bytecode that MLflow's import may have left


def test_a_damaged_version_is_named_by_its_address(shop: Shop) -> None:
    """Not by the folder that it was downloaded to, which is gone when somebody reads of it."""
    task = next(shop.store.glob("artifacts/**/data/*/task.json"))
    before, kind_of_task = task.read_bytes(), kind(task.parents[2] / "MLmodel")
    version = {"constant": "1", "hist_gradient_boosting": "2"}[kind_of_task]
    task.write_text("{}")
    try:
        with (
            pytest.raises(
                BundleError, match=rf"^models:/{NAME}/{version} is not as it was saved; changed: task.json"
            ) as refusal,
            fetched(ModelVersion(NAME, version), shop.store) as folder,
        ):
            Bundle.load(folder)
    finally:
        task.write_bytes(before)
    assert str(folder) not in str(refusal.value)


def kind(mlmodel: Path) -> str:
    """The kind of model that lies there."""
    return str(json.loads(next(mlmodel.parent.glob("data/*/bundle.json")).read_text())["kind"])


def test_mlflow_itself_would_run_it_and_no_command_of_ours_takes_it(hostile: Path, shop: Shop) -> None:
    """promote, forced or not, card, predict, serve, export and rollback refuse; nothing of his has run."""
    for options in ({}, {"force": "no matter what"}, {"dry_run": True}):
        with pytest.raises(Refused) as refusal:
            promote_other_way(shop, **options)
        assert [each.code for each in refusal.value.promotion.refused] == ["loader"]
    for words in (
        ["card", NAME, "2"],
        ["predict", f"models:/{NAME}/2", str(shop.folder / "loans.csv"), "-o", str(shop.folder / "out.csv")],
        ["serve", f"models:/{NAME}/2", "--port", "0"],
        ["export", f"models:/{NAME}/2", "--format", "onnx", "-o", str(shop.folder / "out.onnx")],
    ):
        result = CliRunner().invoke(app, [*words, "--store", str(shop.store)])
        assert isinstance(result.exception, ForeignModel), (words, result.output, result.exception)
        assert "loader_module = 'evil'" in str(result.exception)
    assert not hostile.exists()
    script = f"import mlflow; mlflow.pyfunc.load_model('models:/{NAME}/2')"
    environ = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{shop.store.absolute()}/mlflow.db"}
    subprocess.run([sys.executable, "-c", script], env=environ, check=False, timeout=120, capture_output=True)
    assert hostile.read_text() == "ran", "or the test would show nothing"


def promote_other_way(shop: Shop, **options: Any) -> Any:
    """Promote the second version where the first is champion."""
    registry = Registry(shop.store)
    if registry.aliases(NAME)["champion"] != "1":
        registry.set_alias(NAME, "champion", "1")
        registry.set_alias(NAME, "previous", "2")
    return promote(NAME, "2", store=shop.store, **options)


def test_a_rollback_to_it_is_refused(hostile: Path, shop: Shop) -> None:
    registry = Registry(shop.store)
    registry.set_alias(NAME, "champion", "1")
    registry.set_alias(NAME, "previous", "2")
    with pytest.raises(Exception, match=r"loader_module = 'evil'"):
        rollback(NAME, store=shop.store)
    assert registry.aliases(NAME)["champion"] == "1" and not hostile.exists()


# What is not there


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("models:/loans@chalenger", r"no alias @chalenger; it has version 1, 2 and the aliases @champion"),
        ("models:/loans@challenger", "a challenger that was promoted is @champion"),
        ("models:/loans/7", "no version 7; it has version 1, 2 and the aliases"),
        ("models:/loan@champion", "no registered model 'loan'; there is loans\n  fix: did you mean \"loans\""),
        ("models:/other/1", "there is loans\n  fix: register one"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(shop: Shop, reference: str, words: str) -> None:
    """For every command that takes a reference."""
    with pytest.raises(Exception, match=words):
        locate(reference, shop.store)
