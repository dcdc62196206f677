"""What a run ran in: code, packages, image and hardware, found without importing an engine.

Only the environment variables named below are recorded, none of which holds a secret.
"""

from __future__ import annotations

import getpass
import importlib.metadata
import json
import os
import platform
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from forge_sweep.errors import InputError
from forge_sweep.memory import Memory as Memory
from forge_sweep.memory import memory as memory

UNKNOWN = "unknown"
NONE = "none"
IMAGE_VARIABLE = "FORGE_SWEEP_IMAGE_DIGEST"
DIFF_LIMIT = 1_000_000  # characters of the recorded git diff
UNTRACKED_LIMIT = 200  # names of untracked files listed with it

_DIGEST = re.compile(r"(?:[^\s@]+@)?sha256:[0-9a-f]{64}")
_CONTAINER_CGROUP = re.compile(r"docker|kubepods|containerd|libpod|lxc|buildkit")
_THREADS = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"),
    *("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "PJRT_NPROC"),
)
_FLAGS = (
    *("KERAS_BACKEND", "CUDA_VISIBLE_DEVICES", "XLA_FLAGS", "TF_XLA_FLAGS"),
    *("TF_DETERMINISTIC_OPS", "TF_CUDNN_DETERMINISTIC", "TF_ENABLE_ONEDNN_OPTS"),
    *("TF_FORCE_GPU_ALLOW_GROWTH", "TF_GPU_ALLOCATOR", "NVIDIA_TF32_OVERRIDE", "PYTHONHASHSEED"),
)
_VARIABLES = (  # what changes numbers besides; apart from the two above, which older records have without these names
    *("KERAS_NNX_ENABLED", "KERAS_TORCH_DEVICE", "TF_USE_LEGACY_KERAS", "TF_KERAS"),
    *("TF_ENABLE_AUTO_MIXED_PRECISION", "TF_ENABLE_AUTO_MIXED_PRECISION_GRAPH_REWRITE"),
    *("TF_SET_ONEDNN_FPMATH_MODE", "TF_ENABLE_MKL_NATIVE_FORMAT", "TF_DISABLE_MKL", "TF_CUDNN_USE_AUTOTUNE"),
    *("TF_CUDNN_USE_FRONTEND", "TF_USE_CUBLASLT", "TF_GPU_THREAD_MODE", "TF_OVERRIDE_GLOBAL_THREADPOOL"),
    *("DNNL_DEFAULT_FPMATH_MODE", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "ONEDNN_MAX_CPU_ISA"),
    *("ONEDNN_CPU_ISA_HINTS", "CUBLAS_WORKSPACE_CONFIG", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"),
    *("JAX_ENABLE_X64", "JAX_DEFAULT_DTYPE_BITS", "JAX_DEFAULT_MATMUL_PRECISION", "JAX_PLATFORMS"),
    *("JAX_DEFAULT_PRNG_IMPL", "JAX_THREEFRY_PARTITIONABLE", "JAX_RANDOM_SEED_OFFSET", "ATEN_CPU_CAPABILITY"),
    *("OMP_DYNAMIC", "OMP_SCHEDULE", "OMP_THREAD_LIMIT", "OPENBLAS_CORETYPE", "OPENBLAS_DEFAULT_NUM_THREADS"),
    *("GOTO_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"),
    *("MKL_CBWR", "MKL_DYNAMIC", "MKL_ENABLE_INSTRUCTIONS", "KMP_DETERMINISTIC_REDUCTION"),
    *("NPY_DISABLE_CPU_FEATURES", "NPY_ENABLE_CPU_FEATURES", "LOKY_MAX_CPU_COUNT"),
)

KERAS_SETTINGS: Mapping[str, str | float] = MappingProxyType(
    {"floatx": "float32", "epsilon": 1e-7, "image_data_format": "channels_last"}
)
"""What Keras computes with, whatever ``keras.json`` says: numbers must not depend on a file in somebody's home."""


@dataclass(frozen=True)
class Environment:
    """Where a run ran, for the record and for ``reproduce``.

    Attributes:
        image_digest: the digest that was passed in; ``unknown`` in a container without one; ``none`` outside.
        in_container: whether this process runs in a container.
        git_commit: full hash of HEAD, ``unknown`` without a repository, a commit or git.
        git_dirty: whether the working tree differs from that commit, untracked files included.
        git_diff: the difference as text, with the names of untracked files; at most 1 MB, "" when clean.
        git_remote: URL of ``origin`` without credentials, ``unknown`` without one.
        platform: operating system, kernel, machine.
        cores: cores this process may use.
        memory_bytes: memory this process may use (a container's limit counts).
        gpus: one text per NVIDIA GPU, empty without one.
        cuda: CUDA version of the driver, ``none`` without a GPU.
        threads: thread counts set by environment variables.
        flags: compiler, determinism and device flags set by environment variables.
        keras: `KERAS_SETTINGS`, as text; empty in a record from before they were fixed.
        variables: other environment variables that change numbers; empty in a record from before they were recorded.
    """

    image_digest: str
    in_container: bool
    git_commit: str
    git_dirty: bool
    git_diff: str
    git_remote: str
    packages: dict[str, str]
    python: str
    platform: str
    cpu: str
    cores: int
    memory_bytes: int
    gpus: tuple[str, ...]
    cuda: str
    backend: str
    threads: dict[str, str]
    flags: dict[str, str]
    user: str
    host: str
    keras: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-able values."""
        return {**asdict(self), "gpus": list(self.gpus)}

    def warnings(self) -> tuple[str, ...]:
        """What is missing for making a number again, with the fix; empty when nothing is."""
        if self.image_digest != UNKNOWN:
            return ()
        return (
            f"this is a container, but {IMAGE_VARIABLE} is not set: the image digest is recorded as {UNKNOWN!r}. "
            f"fix: pass it in (`make image-run` does), such as {IMAGE_VARIABLE}=sha256:<64 hex digits>",
        )


def capture(root: Path, backend: str) -> Environment:
    """The environment of this process; ``root`` is a folder of the researcher's repository.

    Raises:
        InputError: ``FORGE_SWEEP_IMAGE_DIGEST`` holds something that is not a digest.
    """
    contained = in_container()
    commit, dirty, diff, remote = _git_state(root)
    found = gpus()
    return Environment(
        image_digest=image_digest(os.environ, contained),
        in_container=contained,
        git_commit=commit,
        git_dirty=dirty,
        git_diff=diff,
        git_remote=remote,
        packages=_packages(),
        python=platform.python_version(),
        platform=platform.platform(),
        cpu=_cpu(),
        cores=cores(),
        memory_bytes=memory().total,
        gpus=found,
        cuda=_cuda() if found else NONE,
        backend=backend,
        threads=_variables(_THREADS),
        flags=_variables(_FLAGS),
        user=user(),
        host=socket.gethostname(),
        keras={name: str(value) for name, value in KERAS_SETTINGS.items()},
        variables=_variables(_VARIABLES),
    )


def unset_empty_variables() -> None:
    """Take variables that are set to nothing for unset ones, in this process and its children.

    TensorFlow ends the process over some of them. ``CUDA_VISIBLE_DEVICES`` stays: empty, it means no GPU.
    """
    for name in SETTINGS:
        if os.environ.get(name) == "" and name != "CUDA_VISIBLE_DEVICES":
            del os.environ[name]


KERAS_LIMITS = ("KERAS_MAX_EPOCHS", "KERAS_MAX_STEPS_PER_EPOCH")
"""Variables that cut every training short, which Keras has for debugging."""

SETTINGS = (*_THREADS, *_FLAGS, *_VARIABLES, *KERAS_LIMITS, "KERAS_HOME")
"""Variables that change what is computed, or how."""


def keras_file() -> Path:
    """Where Keras looks for the user's settings."""
    home = Path.home() if os.access(Path.home(), os.W_OK) else Path("/tmp")
    return Path(os.environ.get("KERAS_HOME") or home / ".keras").expanduser() / "keras.json"


def ignored_settings() -> str:
    """What ``keras.json`` asks for and does not get, in one sentence; "" for nothing."""
    try:
        asked = json.loads(_read(keras_file()) or "{}")
    except ValueError:  # Keras passes over it as well
        return ""
    if not isinstance(asked, dict):
        return ""
    other = {name: fixed for name, fixed in KERAS_SETTINGS.items() if asked.get(name, fixed) != fixed}
    if not other:
        return ""
    wanted = ", ".join(f"{name} = {asked[name]}" for name in other)
    return f"{keras_file()} asks for {wanted}; it is not followed: forge-sweep computes with " + ", ".join(
        f"{name} = {fixed}" for name, fixed in other.items()
    )


def image_digest(environ: Mapping[str, str], contained: bool) -> str:
    """The image digest as passed in, never guessed.

    Raises:
        InputError: the variable holds something else than ``sha256:<64 hex>`` or ``name@sha256:<64 hex>``.
    """
    declared = environ.get(IMAGE_VARIABLE, "").strip()
    if not declared:
        return UNKNOWN if contained else NONE
    if not _DIGEST.fullmatch(declared):
        raise InputError(
            f"{IMAGE_VARIABLE} = {declared!r}: expected sha256:<64 hex digits> or name@sha256:<64 hex digits>",
            hint="a tag can be moved, a digest cannot: `make image` prints it",
        )
    return declared


def in_container(filesystem: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process runs in a container, by the marks that Docker, Podman, Kubernetes and LXC leave."""
    if (filesystem / ".dockerenv").exists() or (filesystem / "run/.containerenv").exists():
        return True
    if environ.get("container") or environ.get("KUBERNETES_SERVICE_HOST"):
        return True
    return bool(_CONTAINER_CGROUP.search(_read(filesystem / "proc/1/cgroup")))


def cuda_version() -> str:
    """CUDA version of the driver, ``none`` without a GPU."""
    return _cuda() if gpus() else NONE


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def without_credentials(url: str) -> str:
    """The URL without user name, password, query and fragment; ``git@host:path`` stays, it holds no secret."""
    parts = urlsplit(url)
    if not parts.scheme or not parts.netloc:
        return url
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _git_state(root: Path) -> tuple[str, bool, str, str]:
    """Commit, whether dirty, the difference, the remote.

    The difference has the changes of tracked files, and the names of untracked ones, whose content may be data or
    secrets.
    """
    if _git(root, "rev-parse", "--is-inside-work-tree") is None:
        return UNKNOWN, False, "", UNKNOWN
    head = _git(root, "rev-parse", "--verify", "HEAD")
    commit = (head or UNKNOWN).strip()
    remote = without_credentials((_git(root, "config", "--get", "remote.origin.url") or UNKNOWN).strip())
    if not _git(root, "status", "--porcelain"):
        return commit, False, "", remote
    changes = _git(root, "diff", "--no-color", "--no-ext-diff", "HEAD" if head else "--cached") or ""
    untracked = (_git(root, "ls-files", "--others", "--exclude-standard", ":/") or "").splitlines()
    names = "".join(f"# untracked: {name}\n" for name in untracked[:UNTRACKED_LIMIT])
    if len(untracked) > UNTRACKED_LIMIT:
        names += f"# and {len(untracked) - UNTRACKED_LIMIT} more untracked files\n"
    if len(changes) > DIFF_LIMIT:
        changes = changes[:DIFF_LIMIT] + f"\n# cut here: the whole difference has {len(changes)} characters\n"
    return commit, True, names + changes, remote


def _git(root: Path, *arguments: str) -> str | None:
    return _output("git", "-C", str(root), *arguments)


def _output(*command: str, timeout_s: float = 20.0) -> str | None:
    """Standard output of a command; None when it is not installed, fails or takes too long."""
    if shutil.which(command[0]) is None:
        return None
    # Optional locks are for a user's own git; ours only looks and must not disturb it.
    environ = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, env=environ, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", errors="replace")


def _packages() -> dict[str, str]:
    """Of a name that is there twice, the one that is imported; not the copies that Ray brings once it is imported."""
    found: dict[str, str] = {}
    for each in importlib.metadata.distributions():
        if "thirdparty_files" not in Path(str(each.locate_file(""))).parts:
            found.setdefault(str(each.metadata["Name"]).lower(), each.version)
    return dict(sorted(found.items()))


def gpus() -> tuple[str, ...]:
    """One line per GPU from nvidia-smi, or model names from the kernel driver where nvidia-smi is not installed."""
    query = "--query-gpu=name,memory.total,driver_version"
    lines = (_output("nvidia-smi", query, "--format=csv,noheader") or "").splitlines()
    if not lines:
        reports = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
        lines = [line for report in reports for line in re.findall(r"Model:\s*(.+)", _read(report))]
    return tuple(line.strip() for line in lines if line.strip())


def _cuda() -> str:
    found = re.search(r"CUDA Version:\s*([\d.]+)", _output("nvidia-smi") or "")
    return found.group(1) if found else UNKNOWN


def _cpu() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _read(Path("/proc/cpuinfo")), flags=re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def _variables(names: tuple[str, ...]) -> dict[str, str]:
    """Those that are set; an empty one is not, but for that which says that there is no GPU."""
    given = {name: os.environ[name] for name in names if name in os.environ}
    return {name: value for name, value in given.items() if value or name == "CUDA_VISIBLE_DEVICES"}


def user() -> str:
    """The login name; in a container without one, the user's number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an arbitrary uid without an entry in the container's passwd
        return f"uid-{os.getuid()}"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
