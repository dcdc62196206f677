"""`forge-sweep doctor` names what is wrong with packages, variables, devices, stores and disk, and nothing else."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from forge_sweep import doctor, environment, study, tracking
from forge_sweep.checks.findings import Finding
from forge_sweep.cli import app
from forge_sweep.feature_store.connection import Address
from forge_sweep.study.storage import open_storage
from forge_sweep.training import devices
from tests.postgres import run_sql
from tests.surface import experiment

NOWHERE = "127.0.0.1:1"
H100 = "NVIDIA H100 80GB HBM3, 81559 MiB, 580.65.06"


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a GPU and without the variables of whoever runs the tests."""
    for name in ("KERAS_BACKEND", "CUDA_VISIBLE_DEVICES", "TF_USE_LEGACY_KERAS", "TF_DETERMINISTIC_OPS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(environment.IMAGE_VARIABLE, "sha256:" + "a1" * 32)
    monkeypatch.setattr(environment, "gpus", lambda: ())


@pytest.fixture
def mlruns(tmp_path: Path) -> Path:
    """A store with both databases."""
    folder = tmp_path / "mlruns"
    tracking.prepare_store(tracking.default_uri(folder), folder)
    open_storage(study.storage_url(folder), folder).engine.dispose()
    return folder


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts a file system of a few megabytes, and changes how it is mounted."""
    folder = tmp_path / "disk"

    def do(options: str) -> Path:
        folder.mkdir(exist_ok=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
        if done.returncode:
            pytest.skip("needs to mount a tmpfs, which takes root")
        return folder

    yield do
    subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True)


def wrong(store: Path, **values: Any) -> dict[tuple[str, str], Finding]:
    """Errors and warnings by code and subject; no backend is started."""
    areas = doctor.examine(experiment(**values), store=store, quick=True)
    found = {(each.code, each.subject): each for area in areas.values() for each in area if each.severity != "info"}
    assert all(each.fix and each.expected for each in found.values()), "what to do about it is said"
    return found


@pytest.mark.slow
def test_on_a_healthy_machine_every_backend_computes_and_nothing_is_wrong(tmp_path: Path) -> None:
    """On real backends, each in a process of its own. How fast they are is this machine's matter."""
    done = CliRunner().invoke(app, ["doctor", "--json", "--store", str(tmp_path / "mlruns")], catch_exceptions=False)
    areas = json.loads(done.stdout)["findings"]
    every = [each for area in areas.values() for each in area]
    assert [each for each in every if each["severity"] != "info" and each["code"] != "speed"] == []
    assert done.exit_code == 0 and set(areas) == {"versions", "variables", "devices", "stores", "disk"}
    started = {each["subject"] for each in areas["devices"] if each["code"] == "backend"}
    assert "tensorflow" in started
    timed = [each for each in areas["devices"] if each["code"] == "speed" and each["severity"] == "info"]
    assert {each["subject"] for each in timed} >= {f"{name} on cpu:0" for name in started}
    assert all("float32 " in each["seen"] for each in timed)
    assert not (tmp_path / "mlruns").exists(), "it looks and makes nothing"


def test_a_store_that_is_there_is_named_with_its_schema(mlruns: Path) -> None:
    assert wrong(mlruns) == {}
    found = {each.subject: each.seen for each in doctor.stores(mlruns)}
    assert "has schema" in found["MLflow"] and "has schema" in found["Optuna"]


def test_a_backend_variable_that_contradicts_the_experiment(mlruns: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    ((code, finding),) = wrong(mlruns).items()
    assert code == ("backend", "KERAS_BACKEND") and finding.severity == "error" and "unset" in finding.fix
    monkeypatch.setenv("KERAS_BACKEND", "theano")
    ((code, finding),) = wrong(mlruns).items()
    assert code == ("backend", "KERAS_BACKEND") and "theano" in finding.seen


def test_legacy_keras(mlruns: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error where a network of one's own may ask for tf.keras; the built-in one does not."""
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "1")
    ((code, finding),) = wrong(mlruns).items()
    assert code == ("legacy-keras", "TF_USE_LEGACY_KERAS") and finding.severity == "warning"
    done = CliRunner().invoke(app, ["doctor", "--quick", "--store", str(mlruns)])
    assert done.exit_code == 3 and "legacy-keras" in done.stdout and "1 error" in done.stderr


def test_stores_of_a_newer_schema(mlruns: Path) -> None:
    for name in ("mlflow.db", "optuna.db"):
        with contextlib.closing(sqlite3.connect(mlruns / name)) as database:
            database.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
            database.commit()
    found = wrong(mlruns)
    assert set(found) == {("store", "MLflow"), ("store", "Optuna")}
    assert "newer MLflow (schema ffffffffffff)" in found["store", "MLflow"].seen
    assert "optuna" in found["store", "Optuna"].seen and "Optuna" in found["store", "Optuna"].fix


def test_the_feature_store_and_one_of_a_newer_schema(
    store: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGE_SWEEP_DATABASE_URL", store.conninfo)
    assert wrong(tmp_path / "mlruns") == {}
    run_sql(store.conninfo, "UPDATE alembic_version_forge_sweep SET version_num = '0099'")
    ((code, finding),) = wrong(tmp_path / "mlruns").items()
    assert code == ("store", "the feature store") and "0099" in finding.seen


def test_a_store_that_may_only_be_read(mount: Callable[..., Path]) -> None:
    folder = mount("size=64m") / "mlruns"
    tracking.prepare_store(tracking.default_uri(folder), folder)
    open_storage(study.storage_url(folder), folder).engine.dispose()
    mount("remount,ro")
    found = wrong(folder)
    assert set(found) == {("store", str(folder)), ("store", "MLflow"), ("store", "Optuna")}
    assert all("cannot be written" in each.seen for each in found.values())


def test_a_full_disk(mount: Callable[..., Path]) -> None:
    folder = mount("size=1m")
    with contextlib.suppress(OSError), (folder / "rest").open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)
    found = wrong(folder / "mlruns")
    assert ("disk-full", str(folder / "mlruns")) in found
    assert "No space left" in found["store", str(folder / "mlruns")].seen
    assert {code for code, _ in found} == {"disk-full", "store"}


def test_a_package_out_of_range_or_missing(mlruns: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an extra that the experiment does not ask for, it is a warning."""
    for name, version in {"optuna": "4.2.0", "jax": "0.4.1", "h5py": "3.99"}.items():
        folder = tmp_path / "site" / f"{name}-{version}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    found = wrong(mlruns)
    ranges = {subject: each.severity for (code, subject), each in found.items() if code == "package-range"}
    assert ranges == {"optuna": "error", "jax": "warning"}
    assert found["package-range", "optuna"].seen == "version 4.2.0"
    assert found["package-range", "optuna"].fix == "pip install 'optuna<6,>=5.0'"
    (lock,) = (each for (code, _), each in found.items() if code == "lock")
    assert "optuna 4.2.0 (locked: " in lock.seen and lock.severity == "warning"


def test_servers_that_nobody_reaches_and_passwords_that_nobody_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:geheim@{NOWHERE}")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "geheim")
    monkeypatch.setenv("FORGE_SWEEP_STORAGE", f"postgresql+psycopg://me:geheim@{NOWHERE}/studies")
    monkeypatch.setenv("FORGE_SWEEP_DATABASE_URL", f"postgresql://me:geheim@{NOWHERE}/features")
    words = ["doctor", "--quick", "--store", str(tmp_path / "mlruns")]
    done = CliRunner().invoke(app, [*words, "--json"])
    found = json.loads(done.stdout)
    assert done.exit_code == 3 and found["errors"] == 3 and "geheim" not in done.output
    bad = {each["subject"]: each for each in found["findings"]["stores"] if each["severity"] == "error"}
    assert set(bad) == {"MLflow", "Optuna", "the feature store"}
    assert all("does not answer" in each["seen"] and each["fix"] for each in bad.values())
    assert "geheim" not in CliRunner().invoke(app, words).output


def test_a_gpu_that_was_asked_for_and_is_not_there(mlruns: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(wrong(mlruns, study__gpu_budget_s=60.0)) == {("gpu-missing", "study.gpu_budget_s")}
    no_ray = set() if importlib.util.find_spec("ray") else {("package-missing", "ray")}  # as on a user's machine
    assert set(wrong(mlruns, workers={"kind": "ray", "gpus": 0.5})) == {("gpu-missing", "workers.gpus")} | no_ray
    assert set(wrong(mlruns, workers={"kind": "ray", "gpus": 0.5, "address": "head:6379"})) == no_ray
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert set(wrong(mlruns)) == {("gpu-missing", "CUDA_VISIBLE_DEVICES")}
    monkeypatch.setattr(environment, "gpus", lambda: (H100,))
    assert wrong(mlruns, study__gpu_budget_s=60.0) == {}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert set(wrong(mlruns)) == {("gpu-missing", "CUDA_VISIBLE_DEVICES")}


def backend(**changes: Any) -> devices.Backend:
    """TensorFlow on an H100, as it should be."""
    speeds = {"float32": 150e3, "bfloat16": 600e3, "float16": 620e3}
    gpu = devices.Device("gpu:0", "NVIDIA H100 80GB HBM3", speeds)
    return replace(
        devices.Backend("tensorflow", {"tensorflow": "2.21.0"}, (gpu,), "12.5.1", "9", "9.3.0", True), **changes
    )


def judged(cuda: str = "12.8", **changes: Any) -> set[str]:
    """Codes of what is wrong with a backend beside one H100."""
    found = list(doctor.judged(backend(**changes), (H100,), cuda))
    assert all(each.fix for each in found if each.severity != "info")
    return {each.code for each in found if each.severity != "info"}


def test_a_backend_is_judged_against_driver_cudnn_and_data_sheet() -> None:
    """On plain values: this machine has no GPU."""
    assert judged() == set() and judged(cuda="13.0") == set() and judged(cuda="12.0") == set()
    assert judged(cuda="11.8") == {"driver"}
    assert judged(cudnn_loaded="8.9.7") == {"cudnn"}
    assert judged(cudnn="9.3", cudnn_loaded="9.1.0") == {"cudnn"}
    cpu = devices.Device("cpu:0", "", {"float32": 50.0, "bfloat16": 0.1, "float16": "TypeError: not implemented"})
    assert judged(devices=(cpu,), cuda="none") == {"gpu-unused"}
    slow = devices.Device("gpu:0", "NVIDIA H100 PCIe", {"float32": 40e3, "bfloat16": 20e3, "float16": "out of memory"})
    (few, full) = (each for each in doctor.judged(backend(devices=(slow,)), (H100,), "12.8") if each.severity != "info")
    assert few.seen == "bfloat16: 20,000.0 GFLOP/s" and "30% of the 756,000 of NVIDIA's data sheet" in few.expected
    assert full.seen == "float16: out of memory"
    crawling = replace(cpu, gflops={"float32": 0.4})
    assert [
        each.code for each in doctor.judged(backend(devices=(crawling,)), (), "none") if each.severity != "info"
    ] == ["speed"]


def test_a_backend_that_cannot_start_is_an_error_with_what_it_said(tmp_path: Path) -> None:
    """A broken package in front of the real one, in a real process."""
    (tmp_path / "keras.py").write_text("raise ImportError('libcudart.so.12: cannot open shared object file')\n")
    environ = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[1]}"}
    (finding,) = doctor.computing("tensorflow", environ, (), "none")
    assert finding.code == "backend-start" and "libcudart.so.12" in finding.seen and finding.severity == "error"


def test_a_wrong_image_digest_is_an_error_and_keras_file_a_warning(
    mlruns: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(environment.IMAGE_VARIABLE, "latest")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "keras.json").write_text('{"floatx": "float16"}')
    found = wrong(mlruns)
    assert {each.code: each.severity for each in found.values()} == {"image": "error", "keras-file": "warning"}


def test_looking_starts_no_backend() -> None:
    """Nor does the module itself; `--help` does not even import that."""
    code = "import sys; from forge_sweep.cli import app; assert 'forge_sweep.doctor' not in sys.modules; " + (
        "from forge_sweep import doctor; assert not {'keras', 'tensorflow', 'torch', 'jax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
