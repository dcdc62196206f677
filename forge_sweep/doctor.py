"""What is wrong with this machine, its packages, variables and stores, and what to do about it: ``forge-sweep doctor``.

Each area is a function from plain values, or from where they stand, to findings; `examine` runs them all.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import forge_sweep
from forge_sweep import addresses, environment, plugins, study, sweep, tracking, training
from forge_sweep.checks.findings import Finding, Findings, Severity
from forge_sweep.errors import ForgeSweepError, InputError, masked
from forge_sweep.experiment.fields import is_of_hub
from forge_sweep.preflight import unused_gpu
from forge_sweep.training import devices
from forge_sweep.workers import SHARING_A_GPU

if TYPE_CHECKING:
    from forge_sweep.experiment import Experiment

FEATURES = "FORGE_SWEEP_DATABASE_URL"
USERS = ("gpu", "jax", "torch", "gp", "hub", "ray", "postgres", "serve", "export")
"""Extras that users install; those for developing and for benchmarks are not looked at."""

SHOWN = ("CUDA_", "FORGE_SWEEP_", "JAX_", "KERAS_", "MLFLOW_", "NVIDIA_", "OPTUNA_", "RAY_", "TORCH_", "XLA_")
SHOWN_TOO = frozenset(environment.SETTINGS)
SECRET = re.compile(r"KEY|PASS|SECRET|TOKEN|CREDENTIAL|USERNAME|AUTH", re.IGNORECASE)

LEAST_CPU_GFLOPS = 1.0
"""In float32. One core without vector instructions does one to two; there is no table of what each CPU should do."""

LEAST_SHARE = 0.3
SHEETS: Mapping[str, Mapping[str, float]] = {
    r"\bH[12]00\b": {"float32": 51e3, "bfloat16": 756e3, "float16": 756e3},  # of the PCIe card, the slowest of them
    r"\bA100\b": {"float32": 19.5e3, "bfloat16": 312e3, "float16": 312e3},
    r"\bL40S\b": {"float32": 91.6e3, "bfloat16": 362e3, "float16": 362e3},
    r"\bL4\b": {"float32": 30.3e3, "bfloat16": 121e3, "float16": 121e3},
    r"\bV100\b": {"float32": 14e3, "float16": 112e3},
    r"\bT4\b": {"float32": 8.1e3, "float16": 65e3},
    r"\bRTX 4090\b": {"float32": 82.6e3, "bfloat16": 165e3, "float16": 165e3},
    r"\bRTX 3090\b": {"float32": 35.6e3, "bfloat16": 71e3, "float16": 71e3},
}
"""Dense GFLOP/s of NVIDIA's data sheets by a GPU's name. float32 is that of the plain cores: TF32 may exceed it."""

BASE_MB, RUN_MB = 50, 1
"""Megabytes that a sweep leaves on the disk in any case, and for each trial or confirmation: 12 were measured for 4
trials and 9 confirmations of experiments/quickstart.toml. Networks of many millions of weights take more, which is not
known before the data are read: each trial that runs keeps its weights and what the optimizer holds, in a checkpoint."""


def examine(
    experiment: Experiment | None = None, *, store: Path = Path("mlruns"), quick: bool = False
) -> dict[str, Findings]:
    """Look at packages, variables, devices, stores and disk, and change nothing.

    Args:
        experiment: checks what it asks for too: its backend alone is started, its extras have to be installed, its
            GPUs and its feature store have to be there.
        store: folder of the embedded stores.
        quick: start no backend: nothing is said of what it computes on and how fast.

    Returns:
        Findings by area: ``versions``, ``variables``, ``devices``, ``stores`` and ``disk``. What is as it should be is
        an ``info``.
    """
    environ = dict(os.environ)
    spec, wanted = experiment, frozenset[str]()
    if spec is not None:
        asked = {"ray": spec.workers.kind == "ray", "postgres": spec.data.source == "postgres"}
        asked |= {"gp": spec.study.sampler in ("gp", "auto"), "hub": is_of_hub(spec.study.sampler)}
        asked |= {spec.backend: spec.backend in USERS}
        wanted = frozenset(name for name, is_asked in asked.items() if is_asked)
    gpus, cuda = environment.gpus(), environment.cuda_version()
    lock = Path(forge_sweep.__file__).parents[1] / "requirements.lock"
    areas = {
        "versions": [*versions(wanted), *locked(lock)],
        "variables": list(variables(spec)),  # before MLflow is imported, which sets some of its own
        "devices": list(machine(environ, gpus, cuda, spec)),
    }
    if not quick:
        names = [spec.backend] if spec else [each for each in training.BACKENDS if _has(each)]
        usable = not any(found.severity == "error" and found.code == "backend" for found in areas["variables"])
        for name in names if usable else ():
            areas["devices"] += computing(name, {**environ, "KERAS_BACKEND": name}, gpus, cuda)
    return {
        **{area: Findings(found) for area, found in areas.items()},
        "stores": Findings(stores(store, features=bool(environ.get(FEATURES, "").strip()) or "postgres" in wanted)),
        "disk": Findings(disk((store, Path(tempfile.gettempdir())), spec)),
    }


def versions(wanted: frozenset[str] = frozenset()) -> Iterator[Finding]:
    """The installed packages against the ranges that this version of forge-sweep declares, whose ends CI tests.

    Args:
        wanted: extras whose packages have to be there and to fit; of others, what is installed should fit.
    """
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    try:
        about = importlib.metadata.distribution("forge-sweep")
    except importlib.metadata.PackageNotFoundError:
        seen = "forge-sweep is used from its source tree without being installed: the ranges are not known"
        yield Finding("warning", "not-installed", "forge-sweep", seen, "an installed one", "pip install -e .")
        return
    python, fits = platform.python_version(), about.metadata["Requires-Python"]
    if not SpecifierSet(fits).contains(python, prereleases=True):
        fix = f"make an environment with Python {fits}"
        yield Finding("error", "python", "Python", f"version {python}", fits, fix)
    right = 0
    for need in map(Requirement, about.requires or ()):
        is_base = need.marker is None or need.marker.evaluate({"extra": ""})
        extras = [extra for extra in USERS if need.marker and need.marker.evaluate({"extra": extra})]
        if not is_base and not extras:
            continue
        is_needed = is_base or not wanted.isdisjoint(extras)
        install = f"pip install '{need.name}{need.specifier}'"
        try:
            version = importlib.metadata.version(need.name)
        except importlib.metadata.PackageNotFoundError:
            if is_needed:
                install = install if is_base else f"in a checkout of forge-sweep: pip install '.[{extras[0]}]'"
                yield Finding("error", "package-missing", need.name, "not installed", str(need.specifier), install)
            continue
        if need.specifier.contains(version, prereleases=True):
            right += 1
        else:
            expected = f"{need.specifier}, the range that is tested"
            severity: Severity = "error" if is_needed else "warning"
            yield Finding(severity, "package-range", need.name, f"version {version}", expected, install)
    seen = f"Python {python}; {right} packages are in the ranges of forge-sweep {about.version}"
    yield _fine("ranges", "packages", seen)


def locked(lock: Path) -> Iterator[Finding]:
    """The installed packages against a lock, the exact versions that CI tests, which lies in a checkout only."""
    from packaging.version import Version

    if not lock.exists():
        seen = (
            "no requirements.lock beside the package: an installed one has ranges only, and each run records versions"
        )
        yield _fine("lock", "requirements.lock", seen)
        return
    other, same = [], 0
    for name, pinned in re.findall(r"^([\w.-]+)==([^\s;\\]+)", lock.read_text(encoding="utf-8"), re.MULTILINE):
        if _has_distribution(name):
            version = importlib.metadata.version(name)
            is_same = Version(version).public == Version(pinned).public
            same += is_same
            other += [] if is_same else [f"{name} {version} (locked: {pinned})"]
    if other:
        more = f" and {len(other) - 5} more" if len(other) > 5 else ""
        seen = f"{len(other)} of {same + len(other)} packages differ: {', '.join(other[:5])}{more}"
        fix = "make install, which installs the lock; or go on, in the ranges"
        yield Finding("warning", "lock", str(lock), seen, "the versions that CI tests", fix)
    else:
        yield _fine("lock", str(lock), f"all {same} packages that are locked and installed are the same")


def variables(experiment: Experiment | None = None) -> Iterator[Finding]:
    """Environment variables and Keras' file that change behaviour, without what may be secret."""
    asked = training.running_backend() or "tensorflow"
    name, deterministic = (experiment.backend, experiment.deterministic) if experiment else (asked, None)
    fits = f"unset, or {name}" if experiment else f"one of {', '.join(training.BACKENDS)}, installed"
    yield from _refused("backend", "KERAS_BACKEND", fits, lambda: training.check_backend(name, deterministic))
    legacy = os.environ.get("TF_USE_LEGACY_KERAS", "")
    if legacy in ("1", "true", "True"):
        # A built-in network never asks for tf.keras, one of the user's may.
        severity: Severity = "warning" if experiment is not None and experiment.code is None else "error"
        beside = (
            "is another library than keras" if _has("tf_keras") else "cannot be imported: tf_keras is not installed"
        )
        seen = f"set to {legacy}: tf.keras {beside}, and layers of it fit into no model here"
        yield Finding(severity, "legacy-keras", "TF_USE_LEGACY_KERAS", seen, "Keras 3", "unset TF_USE_LEGACY_KERAS")
    if said := environment.ignored_settings():
        fixed = ", ".join(f"{key} = {value}" for key, value in environment.KERAS_SETTINGS.items())
        fix = "remove these lines, so that other programs compute alike"
        yield Finding("warning", "keras-file", str(environment.keras_file()), said, fixed, fix)
    for key, value in sorted(os.environ.items()):
        if key.startswith(SHOWN) or key in SHOWN_TOO:
            hidden = "://***" if "://" in value else "***" if SECRET.search(key) else ""
            shown = f"{value.partition('://')[0]}://***" if hidden == "://***" else hidden or masked(value) or "empty"
            yield _fine("variable", key, shown)


def machine(
    environ: Mapping[str, str], gpus: Sequence[str], cuda: str, experiment: Experiment | None = None
) -> Iterator[Finding]:
    """The image, the processor, and NVIDIA GPUs against what was asked for.

    Args:
        environ: environment variables.
        gpus: as `environment.gpus` has them.
        cuda: newest version that the driver can run.
        experiment: what asks for GPUs besides ``CUDA_VISIBLE_DEVICES``.
    """
    contained = environment.in_container(environ=environ)
    expected = "sha256:<64 hex digits> in a container"
    try:
        digest = environment.image_digest(environ, contained)
        yield (
            _fine("image", "container image", digest)
            if digest != environment.UNKNOWN
            else Finding(
                "warning",
                "image",
                environment.IMAGE_VARIABLE,
                "not set in this container: runs record the digest 'unknown'",
                expected,
                f"pass it in (`make image-run` does): {environment.IMAGE_VARIABLE}=sha256:...",
            )
        )
    except InputError as error:
        yield _refusal("image", environment.IMAGE_VARIABLE, expected, error)
    memory = environment.memory()
    free = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB of memory are available"
    yield _fine("machine", "machine", f"{environment.cores()} cores; {free}")
    listed = "; ".join(gpus) + f"; the driver runs CUDA up to {cuda}" if gpus else "none"
    yield _fine("gpus", "NVIDIA GPUs", listed)
    visible = environ.get("CUDA_VISIBLE_DEVICES", "").strip()
    numbers = [int(each) for each in visible.split(",") if each.strip().isdigit()]
    if visible and not visible.startswith("-") and (not gpus or max(numbers, default=0) >= len(gpus)):
        seen = f"asks for {visible}, but " + (f"there are {len(gpus)} GPUs, from 0 on" if gpus else "there is no GPU")
        yield _no_gpu("CUDA_VISIBLE_DEVICES", seen, "unset it, or set it to -1 to compute on the CPU")
    if experiment is not None:
        workers = experiment.workers
        yield from _refused(
            "gpu-missing", "study.gpu_budget_s", "a GPU", lambda: sweep.refuse_gpu_budget(experiment, gpus)
        )
        address = workers.address or environ.get("RAY_ADDRESS") or "local"
        if workers.gpus and address == "local" and not gpus:
            seen = f"each trial asks for {workers.gpus:g}, but this machine, which is the whole cluster, has no GPU"
            yield _no_gpu("workers.gpus", seen, "remove workers.gpus, or name a cluster with GPUs in workers.address")
        elif workers.gpus:
            seen = f"each trial asks the Ray cluster {address} for {workers.gpus:g}; it was not looked at"
            yield _fine("ray", "workers.gpus", seen)


def _no_gpu(subject: str, seen: str, fix: str) -> Finding:
    fix = f"{fix}; or make the GPU visible: install NVIDIA's driver, give a container --gpus all, see nvidia-smi"
    return Finding("error", "gpu-missing", subject, seen, "a GPU that is there", fix)


def computing(name: str, environ: Mapping[str, str], gpus: Sequence[str], cuda: str) -> Iterator[Finding]:
    """Start a backend, and judge what it says of itself.

    Args:
        name: of the backend.
        environ: variables of its process.
        gpus: as `environment.gpus` has them.
        cuda: newest version that the driver can run.
    """
    try:
        found = devices.ask(name, environ)
    except ForgeSweepError as error:
        yield _refusal("backend-start", name, "a backend that starts", error)
        return
    hidden = environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    yield from judged(found, () if hidden else gpus, cuda)


def judged(found: devices.Backend, gpus: Sequence[str], cuda: str) -> Iterator[Finding]:
    """A backend's devices and speeds, and its CUDA against the driver's.

    A driver runs builds for its own major version of CUDA and for older ones; cuDNN has to be of the same major version
    as the build's, and not older (NVIDIA's notes on compatibility of both).

    Args:
        found: what it said.
        gpus: those that were not hidden from it.
        cuda: newest version that the driver can run, ``none`` or ``unknown``.
    """
    built = [f"{what} {version}" for what, version in (("CUDA", found.cuda), ("cuDNN", found.cudnn)) if version]
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    on = ", ".join(f"{each.name} {each.model}".strip() for each in found.devices)
    seen = f"{versions} compute on {on}; built for {' and '.join(built) or 'no CUDA'}"
    yield _fine("backend", found.name, seen + (" (no GPU to run it)" if built and not gpus else ""))
    driver, wants, cudnn, loaded = map(_numbers, (cuda, found.cuda, found.cudnn, found.cudnn_loaded))
    if gpus and driver and wants and driver[0] < wants[0]:
        seen = f"built for CUDA {found.cuda}, but the driver runs CUDA up to {cuda}"
        fix = f"update NVIDIA's driver, or install a build of {found.name} for CUDA {driver[0]}"
        yield Finding("error", "driver", found.name, seen, f"a driver for CUDA {wants[0]} or newer", fix)
    if gpus and cudnn and loaded and (loaded[0] != cudnn[0] or loaded < cudnn):
        fix = f"pip install 'nvidia-cudnn-cu{wants[0] if wants else 12}=={cudnn[0]}.*'"
        seen = f"built for cuDNN {found.cudnn}, but {found.cudnn_loaded} is installed"
        yield Finding("error", "cudnn", found.name, seen, f"cuDNN {found.cudnn}, or newer within {cudnn[0]}", fix)
    if gpus and all(each.name.startswith("cpu") for each in found.devices):
        yield unused_gpu(found.name, gpus)
    if found.preallocates:
        words = " ".join(f"{key}={value}" for key, value in SHARING_A_GPU.items())
        seen = f"takes nearly all memory of a GPU when it starts; to share one with other programs: {words}"
        yield _fine("memory-growth", found.name, seen)
    for device in found.devices:
        yield from _speeds(found.name, device)


def _speeds(backend: str, device: devices.Device) -> Iterator[Finding]:
    sheet = next((rates for pattern, rates in SHEETS.items() if re.search(pattern, device.model)), {})
    is_cpu = device.name.startswith("cpu")
    said, subject = [], f"{backend} on {device.name}"
    for precision, rate in device.gflops.items():
        if isinstance(rate, str):
            if is_cpu and precision != "float32":
                said.append(f"{precision} does not work")
                continue
            fix = "free the device's memory (nvidia-smi shows who has it), or use another precision"
            yield Finding("warning", "speed", subject, f"{precision}: {rate}", "a product of two matrices", fix)
            continue
        said.append(f"{precision} {rate:,.0f}")
        least = LEAST_CPU_GFLOPS * (precision == "float32") if is_cpu else LEAST_SHARE * sheet.get(precision, 0.0)
        if rate < least:
            source = "what one core does without vector instructions"
            source = source if is_cpu else f"{LEAST_SHARE:.0%} of the {sheet[precision]:,.0f} of NVIDIA's data sheet"
            fix = "see what else computes here, and what limits it (a container's cores, nvidia-smi -q -d PERFORMANCE)"
            seen = f"{precision}: {rate:,.1f} GFLOP/s"
            yield Finding("warning", "speed", subject, seen, f"at least {least:,.0f}, {source}", fix)
    against = (
        "a CPU is slow below 1 in float32" if is_cpu else "against the data sheet" if sheet else "no data sheet known"
    )
    rows = devices.SIZES["cpu" if is_cpu else "gpu"]
    seen = f"GFLOP/s of a product of two {rows} x {rows} matrices: {', '.join(said)} ({against})"
    yield _fine("speed", subject, seen)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


def stores(store: Path, *, features: bool = False) -> Iterator[Finding]:
    """Whether each store is there, can be written, and has the schema of what is installed.

    Args:
        store: folder of the embedded stores.
        features: ask the feature store too.
    """
    yield from _refused("store", str(store), "a folder that can be written", lambda: addresses.refuse_unwritable(store))
    asked: list[tuple[str, Callable[[], str]]] = [
        ("MLflow", lambda: tracking.state(store)),
        ("Optuna", lambda: study.state(store)),
    ]
    if features:
        asked.append(("the feature store", lambda: plugins.load(plugins.SOURCES, "postgres")().state()))
    for name, state in asked:
        try:
            yield _fine("store", name, state())
        except ForgeSweepError as error:
            expected = "a store that answers, can be written, and has the schema of the installed packages"
            yield _refusal("store", name, expected, error)


def disk(places: Iterable[Path], experiment: Experiment | None = None) -> Iterator[Finding]:
    """Free space where a sweep writes, against what it needs at least: see `BASE_MB`.

    Args:
        places: folders, which need not exist yet.
        experiment: how many trials it has; without one, a sweep of a hundred is taken.
    """
    runs = 100
    if experiment is not None:
        runs = experiment.study.n_trials + experiment.confirm.top * experiment.confirm.seeds
    need = (BASE_MB + RUN_MB * runs) * 1_000_000
    for place in dict.fromkeys(places):
        home = next(each for each in (place.absolute(), *place.absolute().parents) if each.exists())
        free = shutil.disk_usage(home).free
        seen, least = f"{free / 1e9:.2f} GB are free", f"{need / 1e9:.2f} GB for {runs} trials of small networks"
        if free < need:
            fix = "free space on that disk, or give another --store (or TMPDIR)"
            yield Finding("error", "disk-full", str(place), seen, least, fix)
        else:
            yield _fine("disk", str(place), f"{seen}; a sweep needs at least {least}")


def _refused(code: str, subject: str, expected: str, check: Callable[[], object]) -> Iterator[Finding]:
    try:
        check()
    except InputError as error:
        yield _refusal(code, subject, expected, error)


def _refusal(code: str, subject: str, expected: str, error: ForgeSweepError) -> Finding:
    fix = masked(error.hint) or "start that server, or correct the variable that names it"  # an outage has no hint
    return Finding("error", code, subject, masked(error.message), expected, fix)


def _fine(code: str, subject: str, seen: str) -> Finding:
    return Finding("info", code, subject, seen, "", "")


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _has_distribution(name: str) -> bool:
    return any(importlib.metadata.distributions(name=name))
