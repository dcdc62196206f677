"""The commands that would bring back the environment of a run. They are printed, never run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from forge_sweep.environment import NONE, UNKNOWN
from forge_sweep.tracking import Record

OURS = "forge-sweep"


def commands(record: Record) -> tuple[str, ...]:
    """Shell commands, in order; lines that begin with ``#`` say what cannot be restored."""
    if not record.environment:
        return (f"# run {record.run_id} has no environment on record",)
    return (*_code(record), *_image(record), *_packages(record), *_variables(record))


def _code(record: Record) -> Iterator[str]:
    commit, remote = record.environment.get("git_commit", UNKNOWN), record.environment.get("git_remote", UNKNOWN)
    if commit == UNKNOWN:
        yield "# the commit was not recorded: the experiment was not in a git repository"
        return
    if remote != UNKNOWN:
        yield f"git clone {shlex.quote(remote)} restored && cd restored"
    yield f"git checkout {commit}"
    if record.git_diff:
        path = f"{record.environment_folder}/git.diff"
        yield f"mlflow artifacts download --run-id {record.parent_id} --artifact-path {path} --dst-path ."
        yield f"git apply {path if '/' not in path else path.rpartition('/')[2]}"
        yield from (line for line in record.git_diff.splitlines() if line.startswith("# untracked: "))


def _image(record: Record) -> Iterator[str]:
    digest = record.environment.get("image_digest", NONE)
    if digest == UNKNOWN:
        yield "# it ran in a container whose digest was not recorded"
    elif "@" in digest:
        yield f"docker pull {shlex.quote(digest)}"
    elif digest != NONE:
        yield f"docker pull IMAGE@{digest}  # put the name of the image in the place of IMAGE"


def _packages(record: Record) -> Iterator[str]:
    """Exact pins of everything that was installed."""
    yield f"python{'.'.join(record.environment.get('python', '3').split('.')[:2])} -m venv .venv"
    pins = [
        f"{name}=={version.partition('+')[0]}"
        for name, version in sorted(record.environment.get("packages", {}).items())
        if name not in (OURS, "pip", "setuptools", "wheel")
    ]
    yield f".venv/bin/pip install --no-deps {' '.join(map(shlex.quote, pins))}"
    version = record.environment.get("packages", {}).get(OURS, UNKNOWN)
    yield f".venv/bin/pip install --no-deps CHECKOUT  # put the path of forge-sweep {version} in the place of CHECKOUT"


def _variables(record: Record) -> Iterator[str]:
    """Variables that decide on numbers."""
    groups = ("threads", "flags", "variables")
    known = {name: value for group in groups for name, value in record.environment.get(group, {}).items()}
    for name, value in sorted(known.items()):
        yield f"export {name}={shlex.quote(value)}"
