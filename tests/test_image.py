"""The container image, as far as it can be judged without building it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DIGEST = "sha256:" + "4f" * 32

Instruction = tuple[str, str]


def instructions() -> list[Instruction]:
    """The Dockerfile as (keyword, arguments), with continued lines joined and comments left out."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in lines if line.strip()]


def arguments(keyword: str) -> list[str]:
    return [rest for word, rest in instructions() if word == keyword]


def versions(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==([^ ;]+)", (ROOT / lock).read_text(encoding="utf-8"), flags=re.MULTILINE))


def make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(ROOT / "Makefile", folder)
    return subprocess.run(["make", "--silent", *words], cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """An engine that notes its words and, asked to build, writes the digest where it is told to."""
    script = tmp_path / "engine"
    script.write_text(
        f"""#!/bin/sh
echo "$@" >> {tmp_path}/words
while [ $# -gt 0 ]; do [ "$1" = --iidfile ] && printf {DIGEST} > "$2"; shift; done
""",
        encoding="utf-8",
    )
    script.chmod(0o755)
    return script


def test_the_base_is_a_build_argument_pinned_by_digest() -> None:
    name, _, base = arguments("ARG")[0].partition("=")
    assert arguments("FROM") == [f"${{{name}}}"]
    assert re.fullmatch(r"python:3\.\d+-slim-\w+@sha256:[0-9a-f]{64}", base)


def test_nothing_is_installed_without_a_hash() -> None:
    installs = [command for command in arguments("RUN") if "pip install" in command]
    assert len(installs) == 2
    for command in installs:
        assert "--require-hashes" in command or ("--no-index" in command and "--no-deps" in command)
    assert not [command for command in arguments("RUN") if re.search(r"apt|curl|wget|git ", command)]


def test_dependencies_are_a_layer_below_the_source() -> None:
    steps = [f"{word} {rest}" for word, rest in instructions()]
    lock = next(i for i, step in enumerate(steps) if step.startswith("RUN") and "--require-hashes" in step)
    source = next(i for i, step in enumerate(steps) if step.startswith("COPY forge_sweep"))
    copied_before = [step for step in steps[:lock] if step.startswith("COPY")]
    assert lock < source
    assert copied_before == ["COPY ${LOCK} ./"]
    assert "LOCK=requirements-gpu.lock" in arguments("ARG")


def test_it_runs_as_a_user_without_rights_and_without_a_shell_in_between() -> None:
    assert arguments("USER") == ["forge"]
    assert instructions().index(("USER", "forge")) > max(
        i for i, (word, _) in enumerate(instructions()) if word == "RUN"
    )
    assert arguments("ENTRYPOINT") == ['["forge-sweep"]']


def test_it_sets_the_backend_and_lets_gpu_memory_grow() -> None:
    settings = " ".join(arguments("ENV"))
    assert "KERAS_BACKEND=tensorflow" in settings
    assert "TF_FORCE_GPU_ALLOW_GROWTH=true" in settings
    assert "PYTHONUNBUFFERED=1" in settings


def test_it_holds_no_secret_and_no_guess_of_its_own_digest() -> None:
    declared = " ".join(arguments("ARG") + arguments("ENV"))
    assert not re.search(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", declared, flags=re.IGNORECASE)
    assert "FORGE_SWEEP_IMAGE_DIGEST" not in declared


def test_only_what_is_named_enters_the_build_context() -> None:
    """Data, stores, environments and git history stay outside, whatever else lies in the folder."""
    rules = [
        line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] not in ("", "#")
    ]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {word for rest in arguments("COPY") for word in rest.split()[:-1]}
    assert (copied - {"${LOCK}"}) | {"requirements-gpu.lock", "requirements.lock"} == allowed


def test_the_image_runs_the_versions_that_the_tests_run() -> None:
    tested, shipped = versions("requirements.lock"), versions("requirements-gpu.lock")
    differing = {
        name: (tested[name], shipped[name]) for name in tested.keys() & shipped.keys() if tested[name] != shipped[name]
    }
    assert not differing
    assert "tensorflow" in shipped
    assert "nvidia-cudnn-cu12" in shipped
    assert "pytest" not in shipped


def test_make_image_prints_the_digest_and_image_run_passes_it_in(tmp_path: Path, engine: Path) -> None:
    built = make(tmp_path, "image", f"ENGINE={engine}")
    assert built.stdout.splitlines()[-1] == f"forge-sweep {DIGEST}"
    ran = make(tmp_path, "image-run", f"ENGINE={engine}", "EXPERIMENT=experiments/credit.toml")
    assert ran.returncode == 0
    words = (tmp_path / "words").read_text(encoding="utf-8").splitlines()[-1]
    assert f"--env FORGE_SWEEP_IMAGE_DIGEST={DIGEST}" in words
    assert words.endswith(f"{DIGEST} run experiments/credit.toml")


def test_make_image_run_before_make_image_says_what_to_do(tmp_path: Path, engine: Path) -> None:
    refused = make(tmp_path, "image-run", f"ENGINE={engine}")
    assert refused.returncode != 0
    assert "make image" in refused.stderr
