"""Experiments with images and arrays, from the files of experiments/ to predictions from raw input."""

from __future__ import annotations

import asyncio
import base64
import functools
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from forge_sweep import exports, sweep
from forge_sweep.bundle import Bundle
from forge_sweep.errors import InputError
from forge_sweep.experiment import load
from forge_sweep.serving.files import predict_file
from forge_sweep.serving.settings import Settings
from forge_sweep.tracking import fetched, locate
from tests.serving import need_the_extra

need_the_extra()

from forge_sweep.serving import openapi  # noqa: E402
from forge_sweep.serving.app import build  # noqa: E402
from forge_sweep.serving.predict import Served  # noqa: E402
from forge_sweep.serving.predict import load as load_served  # noqa: E402
from forge_sweep.serving.service import Service  # noqa: E402

ROOT = Path(__file__).parents[1]
SMALL = ["study.n_trials=1", "study.epochs=6", 'baselines.kinds=["constant"]', "confirm.top=1", "ensemble.ship=never"]

FRESH = """
import json, sys
import mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
for name in ("digits_cnn", "table_and_image"):
    model = mlflow.pyfunc.load_model(f"models:/{name}/1")
    print(json.dumps(model.predict(pd.read_json(f"{name}.json", orient="records")).to_dict("list")))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of experiments/ with its digits."""
    copy = tmp_path_factory.mktemp("images") / "experiments"
    shutil.copytree(ROOT / "experiments", copy, ignore=shutil.ignore_patterns("digits", "digits.csv", "digits.npz"))
    runpy.run_path(str(copy / "data/make_digits.py"), run_name="__main__")
    return copy


@pytest.fixture(scope="module")
def store(folder: Path) -> Path:
    """Where both experiments were swept: each registered its network."""
    store = folder.parent / "mlruns"
    for name in ("digits_cnn", "table_and_image"):
        result = sweep.run(load(folder / f"{name}.toml", SMALL), store=store)
        assert result.model == f"models:/{name}/1" and bundle(store, name).kind == "network"
    return store


def bundle(store: Path, name: str) -> Bundle:
    with fetched(locate(f"models:/{name}/1", store), store) as found:
        return Bundle.load(found)


def raw(folder: Path, n: int = 12) -> dict[str, Any]:
    """Raw rows of both models as JSON has them: nested lists, and a table whose images are base64."""
    table = pd.read_csv(folder / "data/digits.csv").head(n)
    table["image"] = [base64.b64encode((folder / "data" / path).read_bytes()).decode() for path in table["image"]]
    with np.load(folder / "data/digits.npz") as arrays:
        lists = [{"X": cell.tolist()} for cell in arrays["X"][:n]]
    return {"digits_cnn": lists, "table_and_image": table.drop(columns="digit").to_dict("records")}


@pytest.mark.slow
def test_a_fresh_process_predicts_raw_rows_of_either_through_mlflow(folder: Path, store: Path, tmp_path: Path) -> None:
    for name, rows in raw(folder).items():
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, "-c", FRESH, f"sqlite:///{store.absolute()}/mlflow.db"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for (name, rows), line in zip(raw(folder).items(), done.stdout.splitlines()[-2:], strict=True):
        answer = pd.DataFrame(json.loads(line))
        wanted = bundle(store, name).predict(pd.DataFrame(rows))
        pd.testing.assert_frame_equal(answer, wanted, check_dtype=False, atol=1e-6)


# Files


def test_predict_takes_an_archive_and_a_table_of_paths_as_python_does(
    folder: Path, store: Path, tmp_path: Path
) -> None:
    for name, rows in (("digits_cnn", "digits.npz"), ("table_and_image", "digits.csv")):
        done = predict_file(f"models:/{name}/1", folder / "data" / rows, tmp_path / "out.csv", store=store)
        assert (done.rows, done.ignored) == (1797, ("y",) if rows == "digits.npz" else ("digit",))
        wanted = bundle(store, name).predict(pd.DataFrame(raw(folder)[name]))
        found = pd.read_csv(tmp_path / "out.csv", nrows=12)[list(wanted)]
        pd.testing.assert_frame_equal(found, wanted, atol=1e-7)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.zeros((2, 8, 8, 1))}, "(?s)X: the column is missing.*x: no such column"),
        ({"X": np.zeros((2, 9, 8, 1))}, r"row 0: X: array of shape \(9, 8, 1\), float32; expected .* \(8, 8, 1\)"),
        ({"X": np.zeros((2, 8, 8, 1)), "z": np.zeros(2)}, "z: no such column"),
        ({"X": np.full((2, 8, 8, 1), np.nan)}, "float32 does not have in 2 rows"),
    ],
)
def test_an_archive_of_other_names_or_shapes_is_refused(arrays: Any, words: str, store: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "new.npz", **arrays)
    with pytest.raises(InputError, match=words):
        predict_file("models:/digits_cnn/1", tmp_path / "new.npz", tmp_path / "out.csv", store=store)
    assert not (tmp_path / "out.csv").exists()


def test_nested_lists_in_parquet_are_arrays_and_one_of_another_shape_is_named(store: Path, tmp_path: Path) -> None:
    cells = [np.full((8, 8, 1), row / 4).tolist() for row in range(4)]
    pd.DataFrame({"X": cells}).to_parquet(tmp_path / "new.parquet")
    assert predict_file("models:/digits_cnn/1", tmp_path / "new.parquet", None, store=store).rows == 4
    pd.DataFrame({"X": [*cells, cells[0][:7]]}).to_parquet(tmp_path / "new.parquet")
    with pytest.raises(InputError, match=r"row 4: X: .*expected arrays of shape \(8, 8, 1\)") as caught:
        predict_file("models:/digits_cnn/1", tmp_path / "new.parquet", None, store=store)
    assert "row 3" not in str(caught.value)


def test_images_that_cannot_be_taken_are_named_by_row_and_path(folder: Path, store: Path, tmp_path: Path) -> None:
    (tmp_path / "wide.png").write_bytes(png(np.zeros((8, 9), np.uint8)))
    (tmp_path / "deep.png").write_bytes(png(np.zeros((8, 8), np.uint16)))
    table = pd.read_csv(folder / "data/digits.csv").head(3).assign(image=["wide.png", "gone.png", "deep.png"])
    table.to_csv(tmp_path / "new.csv", index=False)
    with pytest.raises(InputError) as caught:
        predict_file("models:/table_and_image/1", tmp_path / "new.csv", tmp_path / "out.csv", store=store)
    for said in (
        "row 0: image: wide.png: 8 x 9 pixels, not 8 x 8; expected a PNG or JPEG of 8 x 8 pixels",
        "row 1: image: gone.png: there is no such file",
        "row 2: image: deep.png: more than 8 bits per channel",
    ):
        assert said in str(caught.value)


# Serving


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def call(store: Path, name: str, requests: list[tuple[str, bytes]], **settings: Any) -> list[tuple[int, Any]]:
    """Status and answer of each request (media type, body), all at a time, by the server's application."""
    chosen = Settings(store=store, access_log=False, **settings)

    async def one(gate: Any, media: str, body: bytes) -> tuple[int, Any]:
        sent = list[Any]()

        async def receive() -> Any:
            return {"type": "http.request", "body": body}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"content-type", media.encode()), (b"content-length", str(len(body)).encode())]
        scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": headers}
        await gate(scope, receive, send)
        return sent[0]["status"], json.loads(sent[1]["body"])

    async def all_of_them() -> list[tuple[int, Any]]:
        service = Service(f"models:/{name}/1", served(store, name), chosen)
        service.batcher.start()
        try:
            gate = build(service, None)
            return await asyncio.gather(*(one(gate, media, body) for media, body in requests))
        finally:
            service.batcher.close()

    return asyncio.run(all_of_them())


@functools.cache
def served(store: Path, name: str) -> Served:
    return load_served(locate(f"models:/{name}/1", store), Settings(store=store))


def form(fields: dict[str, Any], file: bytes) -> tuple[str, bytes]:
    parts = [
        b'--cut\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), str(value).encode())
        for name, value in fields.items()
    ]
    head = b'--cut\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    return "multipart/form-data; boundary=cut", b"".join([*parts, head, file, b"\r\n--cut--\r\n"])


def arrow(table: pa.Table) -> tuple[str, bytes]:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return "application/vnd.apache.arrow.stream", sink.getvalue()


def scores(answer: Any) -> np.ndarray:
    return np.array([list(row["probabilities"].values()) for row in answer["predictions"]])


def test_arrays_are_served_as_nested_lists_and_as_arrow(folder: Path, store: Path) -> None:
    rows = raw(folder)["digits_cnn"]
    x = np.array([row["X"] for row in rows], np.float32)
    lists = pa.table({"X": [row["X"] for row in rows]})
    tensors = pa.table({"X": pa.FixedShapeTensorArray.from_numpy_ndarray(x)})
    asked = [("application/json", json.dumps(rows).encode()), arrow(lists), arrow(tensors)]
    answers = call(store, "digits_cnn", asked)
    wanted = bundle(store, "digits_cnn").scores(pd.DataFrame(rows))
    for status, answer in answers:
        assert status == 200, answer
        np.testing.assert_array_equal(scores(answer), wanted)


def test_images_are_served_as_base64_as_uploads_and_as_bytes_in_arrow(folder: Path, store: Path) -> None:
    rows = raw(folder)["table_and_image"]
    files = [base64.b64decode(row["image"]) for row in rows]
    table = pa.Table.from_pylist([{**row, "image": file} for row, file in zip(rows, files, strict=True)])
    uploads = [
        form({k: v for k, v in row.items() if k != "image"}, file) for row, file in zip(rows, files, strict=True)
    ]
    uri = json.dumps({**rows[0], "image": f"data:image/png;base64,{rows[0]['image']}"}).encode()
    asked = [("application/json", json.dumps(rows).encode()), arrow(table), ("application/json", uri), *uploads]
    answers = call(store, "table_and_image", asked)
    assert [status for status, _ in answers] == [200] * len(asked), answers
    wanted = bundle(store, "table_and_image").scores(pd.DataFrame(rows))
    for (_, answer), expected in zip(answers[:3], (wanted, wanted, wanted[:1]), strict=True):
        np.testing.assert_array_equal(scores(answer), expected)
    np.testing.assert_array_equal(np.concatenate([scores(answer) for _, answer in answers[3:]]), wanted)


def test_what_cannot_be_decoded_is_refused_with_the_name_of_the_field(folder: Path, store: Path) -> None:
    row = raw(folder)["table_and_image"][0]
    wide = base64.b64encode(png(np.zeros((8, 9), np.uint8))).decode()
    image = {"wide": wide, "words": "no base64!", "none": None, "text": base64.b64encode(b"text").decode()}
    asked = [("application/json", json.dumps({**row, "image": value}).encode()) for value in image.values()]
    media, body = form({"ink": "much", "width": 3, "upper": 0.5}, png(np.zeros((8, 8), np.uint8)))
    asked += [(media, body), (media, body[:-10]), form({"ink": 0.3}, b""), (media, body.replace(b"ink", b"image"))]
    answers = [answer["error"] for _, answer in call(store, "table_and_image", asked)]
    for error, why in zip(answers, ["8 x 9 pixels", "not base64", "no image is given", "neither PNG"], strict=False):
        (misfit,) = error["misfits"]
        assert (misfit["column"], misfit["code"]) == ("image", "image") and why in misfit["seen"]
    assert answers[4]["misfits"][0]["column"] == "ink" and "boundary" in answers[5]["message"]
    assert {each["column"] for each in answers[6]["misfits"]} == {"width", "upper"}
    assert "'image' twice" in answers[7]["message"]


@pytest.mark.parametrize(
    "value",
    [
        [[[0.0]] * 8] * 7,
        [[["x" * 1000]] * 8] * 8,
        [[[None]] * 8] * 8,
        "0.5",
        0.5,
        [[[1e300]] * 8] * 8,
        [[[0.0]] * 8] * 7 + [[[0.0]] * 7],
    ],
)
def test_lists_that_are_no_such_array_are_refused_with_the_name_of_the_field(value: Any, store: Path) -> None:
    ((status, answer),) = call(store, "digits_cnn", [("application/json", json.dumps([{"X": value}]).encode())])
    (misfit,) = answer["error"]["misfits"]
    assert (status, misfit["row"], misfit["column"], misfit["code"]) == (422, 0, "X", "mistyped")
    assert "arrays of shape (8, 8, 1)" in misfit["expected"]


def test_limits_hold_before_anything_is_decoded(folder: Path, store: Path) -> None:
    """What a megabyte of images decodes to is bounded by ``--max-array-mb``, as rows."""
    rows = [{**row, "image": "no image"} for row in raw(folder)["table_and_image"][:5]]
    asked = [("application/json", json.dumps(rows[:n]).encode()) for n in (4, 5)]
    few, many = call(store, "table_and_image", asked, max_array_mb=4 * 4 * 64 / 1e6)
    assert few[1]["error"]["code"] == "rows" and many[1]["error"]["code"] == "too-many-rows"
    assert many[1]["error"]["max_rows"] == 4
    wide = pa.table({"X": pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((2, 64, 64, 1), np.float32))})
    ((status, answer),) = call(store, "digits_cnn", [arrow(wide)])
    assert status == 400 and "'X' holds more values than 2 arrays" in answer["error"]["message"]


def test_the_openapi_document_describes_arrays_and_images(store: Path) -> None:
    documents = {
        name: openapi.complete({"paths": {}}, served(store, name).bundle, Settings(), key=False)
        for name in ("digits_cnn", "table_and_image")
    }
    x = documents["digits_cnn"]["components"]["schemas"]["Row"]["properties"]["X"]
    assert (x["minItems"], x["items"]["items"]["maxItems"], x["items"]["items"]["items"]) == (8, 1, {"type": "number"})
    body = documents["table_and_image"]["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert body["multipart/form-data"]["schema"]["properties"]["image"]["format"] == "binary"
    image = documents["table_and_image"]["components"]["schemas"]["Row"]["properties"]["image"]["anyOf"][0]
    assert image["contentEncoding"] == "base64" and "8 x 8 pixels" in image["description"]


# Exports


@pytest.mark.parametrize("kind", ["keras", "onnx"])
@pytest.mark.parametrize("name", ["digits_cnn", "table_and_image"])
def test_an_export_takes_raw_arrays_and_pixels(name: str, kind: str, store: Path, tmp_path: Path) -> None:
    """The golden rows are compared by the export itself; augmentation is not in it."""
    path = tmp_path / ("out.keras" if kind == "keras" else "out.onnx")
    with fetched(locate(f"models:/{name}/1", store), store) as found:
        done = exports.export(found, kind, path)
    column = "X" if name == "digits_cnn" else "image"
    (about,) = (each for each in done.inputs if each["column"] == column)
    assert (about["type"], about["shape"]) == ("float32" if column == "X" else "uint8", [8, 8, 1])


def test_raw_keras_takes_pixels_beside_columns(folder: Path, store: Path, tmp_path: Path) -> None:
    loaded, table = bundle(store, "table_and_image"), pd.DataFrame(raw(folder)["table_and_image"])
    loaded.save(tmp_path / "bundle", loaded.preprocessor.with_images(table), raw=exports.write_raw)
    assert Bundle.load(tmp_path / "bundle", verify=True)
    assert (tmp_path / "bundle/raw.keras").exists()
