"""Paths of bundles and exports: as text, through links, and where nothing can be written."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

from forge_sweep.bundle import Bundle, ready_backend, replay_golden
from forge_sweep.errors import InputError
from forge_sweep.serving.files import predict_file
from forge_sweep.tracking import locate
from tests.serving import customers, fitted


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("paths") / "tree"
    fitted("constant").save(str(folder), customers())
    return folder


def test_paths_may_be_given_as_text(tree: Path, tmp_path: Path) -> None:
    assert Bundle.load(str(tree)).weights_sha256 == Bundle.load(tree).weights_sha256
    assert replay_golden(str(tree)) == 0.0
    ready_backend(str(tree))
    customers(5).to_csv(tmp_path / "rows.csv", index=False)
    output = str(tmp_path / "out.csv")
    assert predict_file(str(tree), str(tmp_path / "rows.csv"), output, store=str(tmp_path)).rows == 5
    assert locate(tree, str(tmp_path)).folder == tree


def test_a_link_to_a_bundle_is_that_bundle_and_stays_a_link(tree: Path, tmp_path: Path) -> None:
    first, link = tmp_path / "first", tmp_path / "link"
    fitted("constant").save(first, customers())
    link.symlink_to(first)
    assert replay_golden(link) == 0.0
    customers(5).to_csv(tmp_path / "rows.csv", index=False)
    assert predict_file(link, tmp_path / "rows.csv", tmp_path / "out.csv", store=tmp_path).rows == 5
    fitted("constant").save(link, customers(200))
    assert link.is_symlink() and sorted(os.listdir(tmp_path)) == ["first", "link", "out.csv", "rows.csv"]
    assert replay_golden(first) == 0.0


@pytest.mark.parametrize("reference", ["x" * 5000, "a\0b", "models:/x@" + "y" * 5000])
def test_a_reference_that_no_folder_can_have_names_no_model(reference: str, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        locate(reference, tmp_path)


def test_a_long_name_of_an_output_is_written(tree: Path, tmp_path: Path) -> None:
    customers(5).to_csv(tmp_path / "rows.csv", index=False)
    output = tmp_path / f"{'x' * 251}.csv"
    predict_file(tree, tmp_path / "rows.csv", output, store=tmp_path)
    assert len(pd.read_csv(output)) == 5
    with pytest.raises(InputError, match="cannot be written: File name too long"):
        predict_file(tree, tmp_path / "rows.csv", tmp_path / f"{'x' * 300}.csv", store=tmp_path)


def unwritable(tmp_path: Path) -> list[tuple[Path, str]]:
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling.onnx").symlink_to(tmp_path / "nowhere")
    return [
        (tmp_path / "folder.onnx", "exists"),
        (tmp_path / "dangling.onnx", "exists"),
        (tmp_path / "none" / "m.onnx", "there is no directory"),
        (tmp_path / "file" / "m.onnx", "cannot be written: Not a directory|there is no directory"),
        (Path("/proc/m.onnx"), "cannot be written"),
        (tmp_path / f"{'x' * 300}.onnx", "cannot be written: File name too long"),
        (tmp_path / "a\0b.onnx", "cannot be written"),
    ]


def test_an_export_says_why_its_output_cannot_be_written(tree: Path, tmp_path: Path) -> None:
    from forge_sweep.exports import export

    for path, said in unwritable(tmp_path):
        with pytest.raises(InputError, match=said):
            export(str(tree), "onnx", str(path))
    assert sorted(os.listdir(tmp_path)) == ["dangling.onnx", "file", "folder.onnx"]
