"""The environment is recorded as it is, never guessed, and without secrets."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from forge_sweep import environment
from forge_sweep.errors import InputError

DIGEST = "sha256:" + "a1" * 32


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "train.py").write_text("width = 64\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


@pytest.mark.parametrize("declared", [DIGEST, "registry.example.org:5000/team/forge@" + DIGEST])
def test_a_declared_image_digest_is_recorded_as_it_is(declared: str) -> None:
    """Both forms that a registry prints are accepted, in a container and outside."""
    for contained in (True, False):
        assert environment.image_digest({environment.IMAGE_VARIABLE: declared}, contained) == declared


@pytest.mark.parametrize("declared", ["latest", "forge:1.0", "sha256:abc", DIGEST.upper(), "a b@" + DIGEST])
def test_anything_but_a_digest_is_refused(declared: str) -> None:
    """A tag or a short hash does not name one image; the message says what does."""
    with pytest.raises(InputError, match=r"FORGE_SWEEP_IMAGE_DIGEST.*sha256:<64 hex digits>"):
        environment.image_digest({environment.IMAGE_VARIABLE: declared}, True)


def test_without_a_digest_a_container_is_unknown_and_a_plain_machine_is_none() -> None:
    """The digest is never guessed."""
    assert environment.image_digest({}, True) == "unknown"
    assert environment.image_digest({}, False) == "none"


@pytest.mark.parametrize("mark", [".dockerenv", "run/.containerenv"])
def test_a_container_is_recognised_by_its_mark(tmp_path: Path, mark: str) -> None:
    """Docker and Podman each leave a file at the root."""
    assert not environment.in_container(tmp_path, {})
    (tmp_path / mark).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / mark).touch()
    assert environment.in_container(tmp_path, {})


def test_a_container_is_recognised_by_cgroup_or_variable(tmp_path: Path) -> None:
    """Kubernetes and systemd-nspawn leave no file, but a cgroup path or a variable."""
    assert environment.in_container(tmp_path, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"})
    assert environment.in_container(tmp_path, {"container": "podman"})
    (tmp_path / "proc/1").mkdir(parents=True)
    (tmp_path / "proc/1/cgroup").write_text("0::/init.scope\n")
    assert not environment.in_container(tmp_path, {})
    (tmp_path / "proc/1/cgroup").write_text("0::/kubepods/burstable/pod1\n")
    assert environment.in_container(tmp_path, {})


def test_a_clean_repository_gives_its_commit_and_no_difference(repository: Path) -> None:
    """Commit of HEAD, not dirty."""
    seen = environment.capture(repository, "tensorflow")
    assert len(seen.git_commit) == 40
    assert (seen.git_dirty, seen.git_diff) == (False, "")


def test_a_changed_file_and_an_untracked_one_are_in_the_difference(repository: Path) -> None:
    """Changes are recorded with content, untracked files by name only: they may hold data or secrets."""
    (repository / "train.py").write_text("width = 128\n")
    (repository / "notes.env").write_text("PASSWORD=hunter2\n")
    seen = environment.capture(repository, "tensorflow")
    assert seen.git_dirty
    assert "+width = 128" in seen.git_diff
    assert "# untracked: notes.env" in seen.git_diff
    assert "hunter2" not in seen.git_diff


def test_a_long_difference_is_cut_with_a_note(repository: Path) -> None:
    """The note tells how long the whole was."""
    (repository / "train.py").write_text("x = 1\n" * 300_000)
    diff = environment.capture(repository, "tensorflow").git_diff
    assert len(diff) < environment.DIFF_LIMIT + 1000
    assert "# cut here: the whole difference has 2" in diff


def test_without_a_repository_or_git_the_commit_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither stops anything."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment.capture(tmp_path, "tensorflow").git_commit == "unknown"
    monkeypatch.setenv("PATH", str(tmp_path))
    seen = environment.capture(tmp_path, "tensorflow")
    assert (seen.git_commit, seen.git_dirty, seen.git_remote, seen.gpus) == ("unknown", False, "unknown", ())


def test_a_repository_without_a_commit_is_dirty_and_unknown(tmp_path: Path) -> None:
    """Files that were added but never committed are recorded all the same."""
    git(tmp_path, "init", "-q")
    (tmp_path / "train.py").write_text("width = 64\n")
    git(tmp_path, "add", ".")
    seen = environment.capture(tmp_path, "tensorflow")
    assert (seen.git_commit, seen.git_dirty) == ("unknown", True)
    assert "+width = 64" in seen.git_diff


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://jo:t0ken@git.example.org/a/b.git", "https://git.example.org/a/b.git"),
        ("https://git.example.org/a/b.git?private_token=t0ken", "https://git.example.org/a/b.git"),
        ("ssh://git@git.example.org:22/a/b.git", "ssh://git.example.org:22/a/b.git"),
        ("git@git.example.org:a/b.git", "git@git.example.org:a/b.git"),
        ("/srv/git/b.git", "/srv/git/b.git"),
        ("unknown", "unknown"),
    ],
)
def test_credentials_are_taken_out_of_a_remote(url: str, kept: str) -> None:
    """Tokens are commonly kept in the URL of a remote."""
    assert environment.without_credentials(url) == kept


def test_the_record_holds_named_variables_only(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret in the process environment never reaches the record, which is plain JSON."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret-value")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
    git(repository, "remote", "add", "origin", "https://jo:t0ken@git.example.org/a/b.git")
    seen = environment.capture(repository, "jax")
    text = json.dumps(seen.to_dict())
    assert "s3cret-value" not in text and "t0ken" not in text
    assert seen.threads["OMP_NUM_THREADS"] == "3"
    assert seen.flags["XLA_FLAGS"] == "--xla_cpu_multi_thread_eigen=false"
    assert (seen.backend, seen.git_remote) == ("jax", "https://git.example.org/a/b.git")


def test_packages_are_those_that_are_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of two on the path, and none of Ray's own copies, which only a process that imported Ray sees."""
    before = environment._packages()
    for folder, name, version in (
        ("late", "twice", "2"),
        ("early", "twice", "1"),
        ("ray/thirdparty_files", "colorama", "0.0"),
    ):
        about = tmp_path / folder / f"{name}-{version}.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        monkeypatch.syspath_prepend(str(about.parent))
    assert environment._packages() == dict(sorted({**before, "twice": "1"}.items()))


def test_hardware_and_packages_are_recorded(tmp_path: Path) -> None:
    """The figures are those of this machine."""
    seen = environment.capture(tmp_path, "tensorflow")
    assert seen.packages["mlflow"].count(".") == 2
    assert seen.cores >= 1 and seen.memory_bytes > 10**8
    assert seen.cpu and seen.user and seen.host and seen.platform


def test_an_unknown_image_is_a_warning_with_its_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container without a digest warns; with one it does not."""
    monkeypatch.setenv("container", "podman")
    monkeypatch.delenv(environment.IMAGE_VARIABLE, raising=False)
    (warning,) = environment.capture(tmp_path, "tensorflow").warnings()
    assert "FORGE_SWEEP_IMAGE_DIGEST" in warning and "fix:" in warning
    monkeypatch.setenv(environment.IMAGE_VARIABLE, DIGEST)
    seen = environment.capture(tmp_path, "tensorflow")
    assert (seen.image_digest, seen.warnings()) == (DIGEST, ())


CGROUP_2 = {"memory.max": "6000000", "memory.current": "5000000", "memory.stat": "anon 1\nfile 9\ninactive_file 700000"}
CGROUP_1 = {
    "memory/memory.limit_in_bytes": "6000000",
    "memory/memory.usage_in_bytes": "5000000",
    "memory/memory.stat": "total_inactive_file 1\ninactive_file 700000\n",
}


def cgroup(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.mark.parametrize("files", [CGROUP_2, CGROUP_1], ids=["version 2", "version 1"])
def test_the_memory_of_a_container_counts_where_it_is_less(tmp_path: Path, files: dict[str, str]) -> None:
    """What it may use, and what is free of that: cached files that were not used lately can be given up."""
    assert environment.memory(cgroup(tmp_path, files)) == environment.Memory(total=6_000_000, available=1_700_000)


@pytest.mark.parametrize(
    "files",
    [
        {},
        CGROUP_2 | {"memory.max": "max"},
        CGROUP_1 | {"memory/memory.limit_in_bytes": "9223372036854771712"},
    ],
    ids=["none", "version 2", "version 1"],
)
def test_without_a_limit_the_memory_is_that_of_the_machine(tmp_path: Path, files: dict[str, str]) -> None:
    """Version 1 writes a huge number for no limit, version 2 a word."""
    import psutil

    seen = environment.memory(cgroup(tmp_path, files))
    assert seen.total == psutil.virtual_memory().total
    assert 0 < seen.available <= seen.total


def test_a_container_over_its_limit_has_no_memory_left(tmp_path: Path) -> None:
    """Never a negative number."""
    files = CGROUP_2 | {"memory.current": "7000000", "memory.stat": ""}
    assert environment.memory(cgroup(tmp_path, files)).available == 0


def test_the_recorded_memory_is_what_this_process_may_use(tmp_path: Path) -> None:
    """One figure for the record and for the pre-flight."""
    assert environment.capture(tmp_path, "tensorflow").memory_bytes == environment.memory().total
