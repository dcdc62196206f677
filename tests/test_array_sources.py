"""Where arrays come from: folders of images, archives, lists in Parquet. Read, digested, and refused in words."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from sklearn.datasets import load_digits

from forge_sweep import sources
from forge_sweep.errors import DataError
from forge_sweep.experiment import DataSpec
from forge_sweep.sources import Dataset
from forge_sweep.testing import SourceContract

X = (load_digits().images[:120] * 15.9).astype(np.uint8)
Y = load_digits().target[:120] % 3
PICTURE = {"picture": {"kind": "image", "column": "image", "shape": (8, 8, 1)}}


def read(folder: Path, path: Any, target: Any = "y", **section: Any) -> Dataset:
    spec = DataSpec(**{"path": path, "target": target, "task": "multiclass", **section})
    return sources.load(spec, root=folder, seed=0)


def classes(folder: Path, x: np.ndarray = X, y: np.ndarray = Y) -> Path:
    """A folder of images, one sub-folder per class."""
    for row, (pixels, label) in enumerate(zip(x, y, strict=True)):
        (folder / f"kind{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"kind{label}" / f"{row:03}.png")
    return folder


def read_classes(folder: Path, path: Any = "pictures", **section: Any) -> Dataset:
    return read(folder, path, "label", **{"inputs": PICTURE, **section})


class TestImageFolder(SourceContract):
    """A folder of images is a source as any other."""

    def declare(self, folder: Path) -> dict[str, Any]:
        """See `SourceContract`."""
        classes(folder / "pictures")
        return {"path": "pictures", "target": "label", "task": "multiclass", "inputs": PICTURE}


class TestArchive(SourceContract):
    """So is an archive."""

    def declare(self, folder: Path) -> dict[str, Any]:
        """See `SourceContract`."""
        np.savez(folder / "d.npz", X=X / 16.0, y=Y)
        return {"path": "d.npz", "target": "y", "task": "multiclass"}


def test_a_folder_of_images_has_the_digest_of_its_pixels_and_classes(tmp_path: Path) -> None:
    first = read_classes(classes(tmp_path / "pictures").parent)
    assert first.train.features["image"].iloc[0].shape == (8, 8, 1)
    assert set(first.train.targets["label"]) == {"kind0", "kind1", "kind2"} and first.sizes["train"] == 84
    (tmp_path / "pictures/.DS_Store").write_text("")
    (tmp_path / "pictures/LICENSE.txt").write_text("")
    (tmp_path / "pictures/kind0/more").mkdir()
    os.replace(tmp_path / "pictures/kind0/000.png", tmp_path / "pictures/kind0/00.bmp.png")
    again = read_classes(tmp_path)
    assert again.digest == first.digest
    assert again.warnings == (f"{tmp_path}/pictures: left out, being in the folder of no class: LICENSE.txt",)
    Image.fromarray(X[1] ^ np.eye(8, dtype=np.uint8)).save(tmp_path / "pictures/kind1/001.png")
    assert read_classes(tmp_path).digest != first.digest
    with_key = read_classes(tmp_path, key="file")
    assert list(with_key.train.features) == ["image"] and with_key.digest != first.digest


def test_folders_of_images_can_be_one_per_split(tmp_path: Path) -> None:
    for split, rows in {"train": slice(60), "valid": slice(60, 90), "test": slice(90, 120)}.items():
        classes(tmp_path / split, X[rows], Y[rows])
    found = read_classes(
        tmp_path, {"train": "train", "valid": "valid", "test": "test"}, split={"kind": "files"}, name=None
    )
    assert found.sizes == {"train": 60, "valid": 30, "test": 30}
    np.savez(tmp_path / "d.npz", X=X, y=Y)
    with pytest.raises(DataError, match=r"d\.npz is of another kind than .*train"):
        read_classes(tmp_path, {"train": "train", "valid": "d.npz", "test": "test"}, split={"kind": "files"})


def test_a_folder_of_images_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DataError, match="has no sub-folders with images"):
        read_classes(tmp_path)
    (tmp_path / "pictures/empty").mkdir()
    with pytest.raises(DataError, match="pictures/empty holds no images"):
        read_classes(tmp_path)
    (tmp_path / "pictures/empty").rmdir()
    classes(tmp_path / "pictures")
    for words, section in {
        r"expected data\.inputs, which says their size": {"inputs": {}},
        "whose sub-folders are classes": {"task": "regression"},
        r"data\.drop = 'filename': no such column": {"drop": ["filename"]},
    }.items():
        with pytest.raises(DataError, match=words):
            read_classes(tmp_path, **section)
    (tmp_path / "pictures/kind1/notes.txt").write_text("no image")
    (tmp_path / "pictures/kind2/torn.png").write_bytes((tmp_path / "pictures/kind0/000.png").read_bytes()[:60])
    Image.fromarray(np.zeros((9, 8), np.uint8)).save(tmp_path / "pictures/kind2/wide.png")
    with pytest.raises(DataError, match="3 images of column 'image' cannot be taken") as caught:
        read_classes(tmp_path)
    for said in ("kind1/notes.txt: it is neither", "torn.png: it is damaged", "wide.png: 9 x 8 pixels, not 8 x 8"):
        assert said in str(caught.value)


def test_paths_of_images_start_at_the_table_and_their_pixels_are_content(tmp_path: Path) -> None:
    classes(tmp_path / "data/img")
    paths = sorted(str(each.relative_to(tmp_path / "data")) for each in (tmp_path / "data/img").rglob("*.png"))
    pd.DataFrame({"image": paths, "y": [path[8] for path in paths]}).to_csv(tmp_path / "data/rows.csv", index=False)
    first = read(tmp_path, "data/rows.csv", inputs=PICTURE)
    Image.fromarray(X[0] ^ np.eye(8, dtype=np.uint8)).save(tmp_path / "data" / paths[-1])
    assert read(tmp_path, "data/rows.csv", inputs=PICTURE).digest != first.digest


def test_what_would_not_fit_in_memory_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: Any) -> None:
    classes(tmp_path / "pictures")
    np.savez(tmp_path / "d.npz", X=X, y=Y, unused=np.zeros((120, 2000)))
    lists = pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), 64)
    parquet.write_table(pa.table({"X": lists, "y": Y}), tmp_path / "d.parquet")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"total": 24_000, "available": 24_000})())
    assert read(tmp_path, "d.npz", drop=["unused"]).sizes["train"] == 84  # what is dropped is not read
    for path, words in {"d.npz": r"d\.npz takes .* GB of memory", "d.parquet": "which take .* GB of memory"}.items():
        with pytest.raises(DataError, match=words):
            read(tmp_path, path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"total": 7_000, "available": 7_000})())
    with pytest.raises(DataError, match=r"120 images of data\.inputs\.picture\.shape = \[8, 8, 1\] takes"):
        read_classes(tmp_path)


def test_a_matrix_of_targets_is_named_by_its_columns(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", X=X, y=np.eye(3)[Y], z=Y[:, None])
    named = read(tmp_path, "d.npz", ["y_0", "y_1", "y_2"], drop=["z"])
    assert list(named.train.targets) == ["y_0", "y_1", "y_2"] and list(named.train.features) == ["X"]
    with pytest.raises(DataError, match=r"has \(3,\) values per row there(?s:.*)target = \['y_0', 'y_1', 'y_2'\]"):
        read(tmp_path, "d.npz", drop=["z"])
    assert read(tmp_path, "d.npz", "z", drop=["y"]).train.targets["z"].dtype == np.int64
    with pytest.raises(DataError, match=r"data\.drop = 'yy': .* has no such array(?s:.*)did you mean \"y\""):
        read(tmp_path, "d.npz", "z", drop=["yy"])
    with pytest.raises(DataError, match=r"X, y: features that hold arrays, beside others; expected data\.inputs"):
        read(tmp_path, "d.npz", "z")
    inputs = {"a": {"column": "X", "kind": "tensor"}, "b": {"column": "y", "kind": "tensor"}}
    assert list(read(tmp_path, "d.npz", "z", inputs=inputs).train.features) == ["X", "y"]


@pytest.mark.parametrize("kind", ["fixed", "nested", "free", "tensor"])
def test_lists_in_parquet_are_arrays_with_their_shape(kind: str, tmp_path: Path) -> None:
    """Fixed-size lists, nested ones, lists that happen to have one length, and Arrow's tensors."""
    values = (X / 16).astype(np.float32)
    flat = pa.array(values.reshape(-1))
    shape = (64,) if kind == "fixed" else (8, 8)
    column: Any = {
        "fixed": lambda: pa.FixedSizeListArray.from_arrays(flat, 64),
        "nested": lambda: pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(flat, 8), 8),
        "free": lambda: pa.array(values.tolist(), pa.list_(pa.list_(pa.float32()))),
        "tensor": lambda: pa.FixedShapeTensorArray.from_numpy_ndarray(values),
    }[kind]()
    parquet.write_table(pa.table({"X": column, "y": Y}), tmp_path / "d.parquet", row_group_size=50)
    found = read(tmp_path, "d.parquet")
    np.testing.assert_array_equal(np.stack(found.train.features["X"]), values.reshape(-1, *shape)[found.train.rows])
    np.savez(tmp_path / "d.npz", X=values.reshape(-1, *shape), y=Y)
    assert read(tmp_path, "d.npz").digest == found.digest


def test_lists_without_one_shape_are_refused(tmp_path: Path) -> None:
    for lists, words in {
        ((1.0, 2.0), (1.0,)): r"arrays of the shapes \(2,\) \(60 rows\), \(1,\) \(60 rows\)",
        ((1.0, 2.0), (1.0, None)): "float32 does not have in 60 rows",
        ((1.0, 2.0), None): "expected one shape, of numbers",
    }.items():
        parquet.write_table(pa.table({"X": [*lists] * 60, "y": Y}), tmp_path / "d.parquet")
        with pytest.raises(DataError, match=words):
            read(tmp_path, "d.parquet")
