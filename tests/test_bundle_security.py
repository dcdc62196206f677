"""Attacks on a bundle: each is refused before anything in it is executed. Every digest is right but in the first tests.

`tests/test_bundle.py` has those on the manifest, on trees and on golden rows.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import logging
import os
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import joblib
import numpy as np
import pytest

from forge_sweep.bundle import Bundle, bundle, files, security
from forge_sweep.errors import BundleError, InputError
from forge_sweep.experiment import Code
from forge_sweep.experiment.code import from_files
from forge_sweep.experiment.importing import module_of, package_of
from forge_sweep.task import TaskKind
from forge_sweep.tracking import _load_pyfunc
from forge_sweep.training import checkpoint
from tests.test_bundle import METADATA, customers, edit, fitted, sign

SCALED = ("standard", "minmax", "robust", "quantile")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Saved bundles, each made once; copy before you change one."""
    root = tmp_path_factory.mktemp("shelf")

    @functools.cache
    def saved(kind: str, task_kind: TaskKind = "binary", scaled: str = "standard") -> Path:
        folder = root / f"{kind}-{task_kind}-{scaled}"
        fitted(kind, task_kind, scaled).save(folder, customers())
        return folder

    return saved


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "copy"))


# Digests before anything else


@pytest.mark.parametrize("kind", ["network", "random_forest", "xgboost"])
def test_nothing_is_parsed_before_all_digests_were_compared(
    kind: str, shelf: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One byte anywhere, a missing and an extra file, a scaler of another bundle: no reader is called."""
    whole = shelf(kind, "regression")
    other = shelf("constant", "binary", "minmax")

    def parsed(*words: Any, **options: Any) -> None:
        raise AssertionError("a file was parsed")

    monkeypatch.setattr("forge_sweep.bundle.bundle.read_about", parsed)
    changes: list[Callable[[Path], Any]] = [
        lambda folder: (folder / "golden.json").unlink(),
        lambda folder: (folder / "sitecustomize.py").write_text("import os"),
        lambda folder: shutil.copy(other / "preprocessor.npz", folder),
        lambda folder: shutil.copy(other / "scaler.joblib", folder),
    ]
    changes += [functools.partial(flip, name=path.name) for path in whole.iterdir()]
    for number, change in enumerate(changes):
        folder = copy(whole, tmp_path / str(number))
        change(folder)
        with pytest.raises(BundleError, match=r"not as it was saved|cannot be read|not JSON|plain file name|SHA-256"):
            Bundle.load(folder)


def flip(folder: Path, name: str) -> None:
    """Change one bit in the middle."""
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)


def test_a_model_that_mlflow_loads_goes_through_the_same_checks(shelf: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy(shelf("constant"), tmp_path)
    flip(folder, "constant.json")
    with pytest.raises(BundleError, match=r"changed: constant\.json"):
        _load_pyfunc(str(folder))


# The scaler for people


class Exploit:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("kind", SCALED)
def test_the_scaler_of_every_kind_is_read_as_the_preprocessors_own(kind: str, shelf: Callable[..., Path]) -> None:
    folder = shelf("constant", "binary", kind)
    name, state = security.read_scaler(folder / "scaler.joblib")
    assert name == security.SCALER_CLASSES[kind]
    assert security.scaler_differences(state, fitted("constant", "binary", kind).preprocessor.learned) == []
    assert Bundle.load(folder).preprocessor.scaler == kind


@pytest.mark.parametrize("place", ["alone", "in an attribute", "in an array"])
def test_a_malicious_pickle_in_the_scaler_is_refused_and_never_run(
    place: str, shelf: Callable[..., Path], tmp_path: Path
) -> None:
    marker = tmp_path / "owned"
    folder = copy(shelf("constant"), tmp_path)
    good = joblib.load(folder / "scaler.joblib")
    good.extra = Exploit(marker) if place == "in an attribute" else np.array([Exploit(marker)], object)
    attack = Exploit(marker) if place == "alone" else good
    joblib.dump(attack, folder / "scaler.joblib")
    sign(folder)
    # The array by us: some versions of joblib unpickle an array of objects without asking who may be found in it.
    why = "cannot be read: an array of type object" if place == "in an array" else "holds [a-z]+.system"
    with pytest.raises(BundleError, match=rf"scaler\.joblib {why}"):
        Bundle.load(folder)
    assert not marker.exists()
    joblib.load(folder / "scaler.joblib")
    assert marker.exists(), "the attack itself works"


@pytest.mark.parametrize("what", ["values", "kind", "none", "trailing", "compressed", "huge"])
def test_another_scaler_is_refused(what: str, shelf: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy(shelf("constant"), tmp_path)
    path = folder / "scaler.joblib"
    good = joblib.load(path)
    if what == "values":
        good.mean_[0] += 1
        joblib.dump(good, path)
    elif what == "kind":
        shutil.copy(shelf("constant", "binary", "robust") / "scaler.joblib", path)
    elif what == "none":
        joblib.dump({"mean_": good.mean_}, path)
    elif what == "trailing":
        path.write_bytes(path.read_bytes() + pickle.dumps(Exploit(tmp_path / "owned")))
    elif what == "compressed":
        joblib.dump(good, path, compress=3)
    else:
        path.write_bytes(path.read_bytes().replace(b"K\x02\x85", b"J\xff\xff\xff\x7f\x85"))  # the shape (2,)
    sign(folder)
    with pytest.raises(BundleError, match=r"scaler\.joblib" if what != "huge" else "numbers in a file of"):
        Bundle.load(folder)


def test_a_swapped_preprocessor_is_refused_though_it_is_listed(shelf: Callable[..., Path], tmp_path: Path) -> None:
    """Its numbers are not those of the scaler beside it."""
    folder = copy(shelf("network"), tmp_path)
    with np.load(folder / "preprocessor.npz") as arrays:
        changed = {name: arrays[name] + 1 for name in arrays.files}
    np.savez(folder / "preprocessor.npz", **changed)
    sign(folder)
    with pytest.raises(BundleError, match=r"another scaler than the preprocessor's; .*mean_"):
        Bundle.load(folder)


# Archives


def rezip(path: Path, change: Callable[[dict[str, bytes], zipfile.ZipFile], None]) -> None:
    """Write an archive again; ``change`` may write more into it, or change what is in it."""
    with zipfile.ZipFile(path) as old:
        content = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        change(content, new)
        for name, data in content.items():
            new.writestr(name, data)


def link(content: dict[str, bytes], archive: zipfile.ZipFile) -> None:
    entry = zipfile.ZipInfo(next(iter(content)))
    entry.create_system, entry.external_attr = 3, 0o120777 << 16
    archive.writestr(entry, content.pop(entry.filename) and "/etc/passwd")


def named(name: str) -> Callable[[dict[str, bytes], zipfile.ZipFile], None]:
    return lambda content, archive: archive.writestr(name, b"x")


def twice(content: dict[str, bytes], archive: zipfile.ZipFile) -> None:
    name = next(iter(content))
    with pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(name, b"x")
        archive.writestr(name, content.pop(name))


def bomb(content: dict[str, bytes], archive: zipfile.ZipFile) -> None:
    name = list(content)[-1]
    content.pop(name)
    with archive.open(name, "w") as file:
        for _ in range(80):
            file.write(bytes(1_000_000))


ARCHIVES = {"network": "model.keras", "random_forest": "tree.skops", "constant": "preprocessor.npz"}
TRAPS = {
    "../../evil.py": named("../../evil.py"),
    "/tmp/evil.py": named("/tmp/evil.py"),
    "assets/evil.txt": named("assets/evil.txt"),
    "C:\\\\evil": named("C:\\evil"),
    "evil.pkl": named("evil.pkl"),
    "links or folders": link,
    "names that come twice": twice,
    "bytes when unpacked": bomb,
}


@pytest.mark.parametrize("kind", ARCHIVES)
@pytest.mark.parametrize("trap", TRAPS)
def test_an_archive_that_could_write_elsewhere_or_fill_memory_is_refused(
    kind: str, trap: str, shelf: Callable[..., Path], tmp_path: Path
) -> None:
    folder = copy(shelf(kind, "regression"), tmp_path)
    rezip(folder / ARCHIVES[kind], TRAPS[trap])
    sign(folder)
    with pytest.raises(BundleError, match="not an archive of ours") as refused:
        Bundle.load(folder)
    assert trap in str(refused.value)
    assert not [path for path in tmp_path.rglob("evil*")]


@pytest.mark.parametrize("kind", ["random_forest", "constant"])
@pytest.mark.parametrize("what", ["objects", "more than it has"])
def test_an_array_of_objects_or_of_more_than_is_there_is_refused(
    kind: str, what: str, shelf: Callable[..., Path], tmp_path: Path
) -> None:
    marker = tmp_path / "owned"
    folder = copy(shelf(kind, "regression"), tmp_path)
    written = io.BytesIO()
    if what == "objects":
        np.save(written, np.array([Exploit(marker)], object), allow_pickle=True)
    else:
        np.lib.format.write_array_header_1_0(written, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)})

    def change(content: dict[str, bytes], archive: zipfile.ZipFile) -> None:
        content[next(name for name in content if name.endswith(".npy"))] = written.getvalue()

    rezip(folder / ARCHIVES[kind], change)
    sign(folder)
    with pytest.raises(BundleError, match=r"holds Python objects|announces 8000000000000 bytes and has 0"):
        Bundle.load(folder)
    assert not marker.exists()


def test_entries_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """A quine of a zip file: two names for one content."""
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"x" * 1000)
        archive.writestr("b.npy", b"")
        first, second = archive.infolist()
        second.header_offset, second.compress_size, second.file_size = first.header_offset, 1000, 1000
        second.CRC = first.CRC
    with pytest.raises(BundleError, match="share their bytes"):
        security.check_npz(path)


def test_a_checkpoint_of_objects_is_not_unpickled(tmp_path: Path) -> None:
    """The progress of a training is read back by whoever runs the same sweep: `training.checkpoint`."""
    content = io.BytesIO()
    np.savez(content, about=np.array([Exploit(tmp_path / "owned")], object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        checkpoint.unpack(content.getvalue())
    assert not (tmp_path / "owned").exists()


# Networks


def reconfigure(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the configuration in a network's archive, and sign the bundle."""

    def edited(content: dict[str, bytes], archive: zipfile.ZipFile) -> None:
        config = json.loads(content["config.json"])
        change(config)
        content["config.json"] = json.dumps(config).encode()

    rezip(folder / "model.keras", edited)
    sign(folder)


def as_layer(**values: Any) -> Callable[[dict[str, Any]], Any]:
    """Let a layer be another one."""
    return lambda config: config["config"]["layers"][1].update(values)


FOREIGN = {
    "keras.layers.Lambda": as_layer(class_name="Lambda"),
    "keras.layers.TFSMLayer": as_layer(class_name="TFSMLayer", config={"filepath": "/etc"}),
    "keras.layers.StringLookup": as_layer(class_name="StringLookup", config={"vocabulary": "/etc/passwd"}),
    "keras.utils.get_file": as_layer(module="keras.utils", class_name="get_file"),
    "keras.initializers.deserialize": as_layer(module="keras.initializers", class_name="deserialize"),
    "os.system": as_layer(module="os", class_name="function", config="system"),
    "builtins.eval": lambda config: config["config"]["layers"][1]["config"].update(
        activation={"module": "builtins", "class_name": "function", "config": "eval", "registered_name": "function"}
    ),
    "__lambda__": lambda config: config["config"]["layers"][1]["config"].update(
        activation={"class_name": "__lambda__", "config": {"value": "4wEAAA=="}}
    ),
    "json.JSONDecoder": lambda config: config.update(
        compile_config={"x": {"module": "json", "class_name": "JSONDecoder"}}
    ),
}


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("name", FOREIGN)
def test_what_a_network_names_beside_stock_layers_is_refused_by_name(
    name: str, trust: bool, shelf: Callable[..., Path], tmp_path: Path
) -> None:
    folder = copy(shelf("network"), tmp_path)
    reconfigure(folder, FOREIGN[name])
    with pytest.raises(BundleError, match=f"(?s)objects that are not trusted: {name}.*do not use this folder"):
        Bundle.load(folder, trust=trust)


OWN = """
import pathlib
import keras
pathlib.Path("MARK").touch()
def build(inputs, heads): ...
class Twice(keras.layers.Layer):
    def call(self, inputs):
        return inputs * 2
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The bundle of an experiment with a builder of its own, in the module ``own_layers``."""
    import keras

    mark = tmp_path / "imported"
    code = from_files("own_layers", "build", {"own_layers": OWN.replace("MARK", str(mark))})
    bundle = fitted("network", "binary")
    width = len(bundle.preprocessor.output_names)
    layers = [keras.Input((width,)), module_of(code).Twice(), keras.layers.Dense(1, activation="sigmoid")]
    metadata = {**METADATA, "experiment": {"model": {"builder": "own_layers:build", "code": code.digest}}}
    dataclasses.replace(bundle, model=keras.Sequential(layers), metadata=metadata, code=code).save(
        tmp_path / "bundle", customers()
    )
    forget(code)
    mark.unlink()
    return tmp_path / "bundle"


def forget(code: Code) -> None:
    """As in a new process."""
    for name in [name for name in sys.modules if name.startswith(package_of(code))]:
        del sys.modules[name]


def test_the_code_of_a_bundle_runs_only_with_trust(own: Path) -> None:
    with pytest.raises(BundleError, match=r"(?s)of the code that came with it: own_layers\.Twice.*--trust"):
        Bundle.load(own)
    assert not own.with_name("imported").exists(), "nothing was run"
    loaded = Bundle.load(own, verify=True, trust=True)
    assert len(loaded.predict(customers())) == 90
    assert own.with_name("imported").exists()
    assert loaded.code is not None and loaded.code.files["own_layers"] == (own / "code.own_layers.py").read_text()


def test_trust_in_one_source_is_trust_in_no_other(own: Path) -> None:
    digest = json.loads((own / "bundle.json").read_text())["metadata"]["experiment"]["model"]["code"]
    assert Bundle.load(own, trust=digest).code is not None
    with pytest.raises(BundleError, match="code that came with it"):
        Bundle.load(own, trust="0" * 64)


def test_mlflow_trusts_only_what_its_caller_says(own: Path) -> None:
    with pytest.raises(BundleError, match="code that came with it") as refused:
        _load_pyfunc(str(own))
    assert f"read code.own_layers.py in {own}, and give mlflow.pyfunc model_config={{" in refused.value.hint
    assert len(_load_pyfunc(str(own), {"trust": True}).predict(customers())) == 90
    with pytest.raises(InputError, match="model_config has 'trusted'"):
        _load_pyfunc(str(own), {"trusted": True})


def test_a_registered_model_cannot_say_that_it_is_trusted(own: Path, tmp_path: Path) -> None:
    """MLflow mixes a model's own settings with those of its caller."""
    folder = tmp_path / "model" / "data" / "bundle"
    shutil.copytree(own, folder)
    written = {"flavors": {"python_function": {"loader_module": "forge_sweep.tracking", "config": {"trust": True}}}}
    (tmp_path / "model" / "MLmodel").write_text(json.dumps(written))
    with pytest.raises(BundleError, match="it is not trusted"):
        _load_pyfunc(str(folder), {"trust": True})
    assert not own.with_name("imported").exists()


def test_source_that_the_metadata_do_not_name_is_refused(own: Path) -> None:
    (own / "code.own_layers.py").write_text(OWN + "# changed")
    sign(own)
    with pytest.raises(BundleError, match="other source than its metadata name"):
        Bundle.load(own, trust=True)


def test_source_has_no_place_in_a_bundle_of_another_builder(shelf: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy(shelf("network"), tmp_path)
    (folder / "code.net.py").write_text("")
    sign(folder)
    with pytest.raises(BundleError, match=r"unexpected: code\.net\.py"):
        Bundle.load(folder)


def test_trust_does_not_reach_other_modules(own: Path) -> None:
    def elsewhere(config: dict[str, Any]) -> None:
        config["config"]["layers"][1].update(module="antigravity")

    reconfigure(own, elsewhere)
    with pytest.raises(BundleError, match="not trusted: antigravity"):
        Bundle.load(own, trust=True)
    assert "antigravity" not in sys.modules


def test_trust_does_not_reach_what_the_code_imports(own: Path) -> None:
    """Its names are those that it defines."""

    def imported(config: dict[str, Any]) -> None:
        config["config"]["layers"][1].update(class_name="pathlib")

    reconfigure(own, imported)
    with pytest.raises(BundleError, match="does not define"):
        Bundle.load(own, trust=True)


def external(file: h5py.File) -> None:
    file.create_dataset("secret", (8,), "u1", external=[("/etc/hostname", 0, 8)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((8,), "u1")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", (8,))
    file.create_virtual_dataset("secret", layout)


WEIGHTS: dict[str, Callable[[h5py.File], Any]] = {
    "a link": lambda file: file.__setitem__("secret", h5py.ExternalLink("/etc/hostname", "/")),
    "a link at 'soft'": lambda file: file.__setitem__("soft", h5py.SoftLink("/")),
    "not a plain array at '/secret'": external,
    "not a plain array": virtual,
    "not a plain array at '/zip'": lambda file: file.create_dataset("zip", data=np.zeros(9**4), compression="gzip"),
    "not a plain array at '/huge'": lambda file: file.create_dataset("huge", (10**12,), "f4", chunks=(1024,)),
    "not a plain array at '/text'": lambda file: file.create_dataset("text", data=[b"a"], dtype=h5py.string_dtype()),
    "the same object twice": lambda file: file.__setitem__("loop", file["layers"]),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_lie_elsewhere_are_refused(name: str, shelf: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy(shelf("network"), tmp_path)

    def change(content: dict[str, bytes], archive: zipfile.ZipFile) -> None:
        written = io.BytesIO(content["model.weights.h5"])
        with h5py.File(written, "r+") as file:
            WEIGHTS[name](file)
        content["model.weights.h5"] = written.getvalue()

    rezip(folder / "model.keras", change)
    sign(folder)
    with pytest.raises(BundleError, match=rf"model\.weights\.h5 has .*{name}"):
        Bundle.load(folder)


# XGBoost


BOOSTERS: dict[str, Callable[[dict[str, Any]], None]] = {
    "nodes that point nowhere": lambda learner: tree(learner)["left_children"].__setitem__(0, 10**6),
    "nodes that point nowhere ": lambda learner: tree(learner)["right_children"].__setitem__(0, 0),
    "nodes  that point nowhere": lambda learner: tree(learner)["split_indices"].__setitem__(0, 99),
    "nodes that  point nowhere": lambda learner: tree(learner)["split_type"].__setitem__(0, 1),
    "nodes that point  nowhere": lambda learner: tree(learner)["base_weights"].pop(),
    "trees over 3 features": lambda learner: learner["learner_model_param"].update(num_feature="3"),
    "of kind 'dart'": lambda learner: learner["gradient_booster"].update(name="dart"),
    "outputs that are not there": lambda learner: learner["gradient_booster"]["model"]["tree_info"].__setitem__(0, 9),
    "no booster": lambda learner: learner["gradient_booster"]["model"].pop("trees"),
}


def tree(learner: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = learner["gradient_booster"]["model"]["trees"][1]
    return found


@pytest.mark.parametrize("name", BOOSTERS)
def test_a_booster_whose_indices_point_nowhere_is_refused(
    name: str, shelf: Callable[..., Path], tmp_path: Path
) -> None:
    folder = copy(shelf("xgboost", "multilabel"), tmp_path)
    content = json.loads((folder / "tree.json").read_text())
    BOOSTERS[name](content["learner"])
    (folder / "tree.json").write_text(json.dumps(content))
    sign(folder)
    with pytest.raises(BundleError, match=rf"tree\.json holds .*{' '.join(name.split())}"):
        Bundle.load(folder)


# Other versions


@pytest.fixture
def elsewhere(shelf: Callable[..., Path], tmp_path: Path) -> Path:
    """A bundle that says it was made with other versions."""
    folder = copy(shelf("network"), tmp_path)
    written = {**json.loads((folder / "bundle.json").read_text())["packages"], "keras": "3.0.0", "CUDA": "12.4"}
    edit(folder / "bundle.json", packages=written)
    sign(folder)
    return folder


def test_other_versions_with_the_same_golden_scores_are_a_warning_that_names_them(
    elsewhere: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "forge_sweep"):
        assert len(Bundle.load(elsewhere).predict(customers())) == 90
    (record,) = caplog.records
    assert f"keras==3.0.0 (here {bundle.versions()['keras']})" in record.message
    assert "CUDA==12.4 (here none)" in record.message and "same scores" in record.message


def test_other_versions_are_refused_by_policy(elsewhere: Path, shelf: Callable[..., Path]) -> None:
    with pytest.raises(BundleError, match=r"(?s)keras==3\.0\.0.*policy is to refuse"):
        Bundle.load(elsewhere, policy="refuse")
    assert Bundle.load(shelf("network"), policy="refuse").kind == "network"
    with pytest.raises(InputError, match="policy = 'maybe' is unknown"):
        Bundle.load(elsewhere, policy="maybe")  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", ["warn", "refuse"])
def test_other_versions_with_other_golden_scores_are_refused_whatever_the_policy(
    policy: bundle.Policy, elsewhere: Path
) -> None:
    golden = json.loads((elsewhere / "golden.json").read_text())["scores"]
    edit(elsewhere / "golden.json", scores=[[golden[0][0] + 0.01], *golden[1:]])
    sign(elsewhere)
    with pytest.raises(BundleError, match=r"(?s)other golden scores .*: 0\.01 off.*keras==3\.0\.0"):
        Bundle.load(elsewhere, policy=policy)


def test_what_does_not_compute_a_model_may_differ(shelf: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy(shelf("xgboost"), tmp_path)
    edit(folder / "bundle.json", packages={**bundle.versions(), "tensorflow": "2.0", "pandas": "1.0", "CUDA": "12.4"})
    sign(folder)
    assert Bundle.load(folder, policy="refuse").kind == "xgboost"


def test_a_cleared_manifest_is_never_enough(shelf: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy(shelf("constant"), tmp_path)
    (folder / files.MANIFEST).write_text("{}\n")
    with pytest.raises(BundleError, match=r"unexpected: bundle\.json"):
        Bundle.load(folder)
