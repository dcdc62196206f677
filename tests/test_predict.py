"""`forge-sweep predict`: files in, files out, with the checks of the server."""

from __future__ import annotations

import io
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from forge_sweep import baselines, sources
from forge_sweep.bundle import Bundle
from forge_sweep.errors import DataError, InputError, SchemaError
from forge_sweep.experiment import DataSpec
from forge_sweep.preprocessing import Preprocessor, RowsRefused, Schema
from forge_sweep.serving import files, tables
from forge_sweep.serving.files import predict_file
from forge_sweep.sources import reading
from forge_sweep.task import Task
from forge_sweep.tracking import Located
from tests.serving import COMMAND, customers, fitted, need_the_extra


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tree."""
    folder = tmp_path_factory.mktemp("predict") / "tree"
    fitted("xgboost").save(folder, customers())
    return folder


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHUNK_ROWS", 100)
    monkeypatch.setattr(reading, "CSV_BLOCK", 2_000)


def written(frame: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False)
    return path


def read(path: Path) -> pd.DataFrame:
    if path.suffix == ".jsonl":
        return pd.DataFrame([json.loads(line) for line in path.read_text().splitlines()])
    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, keep_default_na=False)


def test_kept_columns_of_a_csv_are_copied_as_they_stand(bundle: Path, tmp_path: Path) -> None:
    """``NA`` is a missing value in a feature, and an id like any other in a column that is carried over."""
    frame = customers().head(3).assign(id=["NA", "007", "None"])
    frame["city"] = ["NA", "Bern", None]
    rows, output = written(frame, tmp_path / "rows.csv"), tmp_path / "out.csv"
    predict_file(str(bundle), rows, output, store=tmp_path, keep=["id"])
    assert pd.read_csv(output, dtype=str, keep_default_na=False)["id"].tolist() == ["NA", "007", "None"]
    expected = Bundle.load(bundle).predict(frame.drop(columns="id").replace({"city": {"NA": None}}))
    np.testing.assert_allclose(pd.read_csv(output)["probability"], expected["probability"], atol=1e-6)


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
@pytest.mark.parametrize("source", ["csv", "csv.gz", "parquet"])
def test_a_file_gets_the_predictions_of_the_bundle(
    source: str, ending: str, bundle: Path, tmp_path: Path, small_chunks: None
) -> None:
    frame = customers().assign(id=np.arange(300))
    file, output = written(frame, tmp_path / f"rows.{source}"), tmp_path / "new" / f"out.{ending}"
    done = predict_file(str(bundle), file, output, store=tmp_path, keep=["id"])
    assert (done.rows, done.warnings) == (300, {})
    expected = Bundle.load(bundle).predict(customers())
    found = read(output)
    assert list(found) == ["id", "probability", "label", "warnings"]
    assert found["id"].astype(int).tolist() == list(range(300))
    assert found["probability"].tolist() == expected["probability"].tolist()
    assert found["label"].tolist() == expected["label"].tolist()
    assert [path.name for path in output.parent.iterdir()] == [output.name]


def test_what_train_did_not_have_is_said_beside_the_row(bundle: Path, tmp_path: Path) -> None:
    frame = customers(3).assign(orders=[1, 500, 2], city=["Bern", "Bern", "Rom"], age=30.0)
    output = tmp_path / "out.jsonl"
    done = predict_file(str(bundle), written(frame, tmp_path / "rows.csv"), output, store=tmp_path)
    assert done.warnings == {"above-range": 1, "unknown-category": 1}
    assert read(output)["warnings"].tolist() == [
        "",
        "orders: 500.0, expected at most 29.0, the largest in train",
        "city: Rom, expected one of the 3 categories of train",
    ]


@pytest.mark.parametrize("source", ["csv", "parquet"])
def test_rows_that_do_not_fit_are_named_by_their_number_and_nothing_is_written(
    source: str, bundle: Path, tmp_path: Path, small_chunks: None
) -> None:
    frame = customers().astype({"orders": object})
    frame["orders"] = frame["orders"].astype(str)
    if source == "csv":
        frame.loc[[250, 251], "orders"] = "many"
    file = written(frame, tmp_path / f"rows.{source}")
    output = tmp_path / "out.csv"
    first = "250" if source == "csv" else "0"
    with pytest.raises(RowsRefused, match=rf"row {first}: orders: text '.+'; expected numbers") as refused:
        predict_file(str(bundle), file, output, store=tmp_path)
    assert refused.value.exit_code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [file.name]


def test_a_number_that_no_model_takes_is_named_by_its_row(bundle: Path, tmp_path: Path, small_chunks: None) -> None:
    frame = customers()
    frame.loc[260, "age"] = 1e300
    with pytest.raises(RowsRefused, match=r"row 260: age: 1e\+300; expected numbers that float32 can hold"):
        predict_file(str(bundle), written(frame, tmp_path / "rows.csv"), None, store=tmp_path)


def test_other_columns_are_refused_or_dropped(bundle: Path, tmp_path: Path) -> None:
    file = written(customers(5).assign(bought="yes"), tmp_path / "rows.csv")
    with pytest.raises(RowsRefused, match="bought: no such column"):
        predict_file(str(bundle), file, tmp_path / "out.csv", store=tmp_path)
    assert predict_file(str(bundle), file, tmp_path / "out.csv", store=tmp_path, ignore_extra=True).rows == 5


def test_columns_of_the_training_rows_that_are_no_features_are_left_out_of_rows_by_every_way() -> None:
    """Of a frame and of a request; a column that is none of theirs is refused as ever."""
    need_the_extra()
    from forge_sweep.serving import bodies, openapi
    from forge_sweep.serving.predict import Served, Window
    from forge_sweep.serving.settings import Settings

    model = fitted("xgboost")
    data = {"target": "bought", "drop": ["age"], "key": "id", "split": {"time": "seen"}}  # age is a feature again
    model = replace(model, metadata={**model.metadata, "experiment": {"data": data}})
    frame, late = customers(5).assign(member=True), pd.Timestamp("2026-05-01")
    rows = frame.assign(bought="yes", id=range(5), seen=late)
    predicted = model.predict(frame)
    pd.testing.assert_frame_equal(model.predict(rows), predicted)
    assert len(model.predict(rows.head(0))) == 0
    transform = Served(model, Located("m", "1"), Window(None, 0, 0, 0)).transform
    arrow = io.BytesIO()
    with pa.ipc.new_stream(arrow, (table := pa.Table.from_pandas(rows, preserve_index=False)).schema) as stream:
        stream.write_table(table)
    sent = {
        bodies.JSON: rows.to_json(orient="records", date_format="iso", double_precision=15).encode(),
        bodies.CSV: rows.to_csv(index=False).encode(),
        bodies.ARROW[0]: arrow.getvalue(),
    }
    for media, body in sent.items():
        raw = bodies.read(media, body, transform, 100).raw
        np.testing.assert_allclose(raw, transform.read_frame(frame), rtol=1e-14, err_msg=media)
    one = json.loads(rows.to_json(orient="records", date_format="iso", double_precision=15))[0]
    with pytest.raises(RowsRefused, match="note: no such column") as refused:
        transform.read({**one, "note": 1})
    assert refused.value.count == 1
    with pytest.raises(RowsRefused, match="age: the column is missing"):
        transform.read({name: value for name, value in one.items() if name != "age"})
    with pytest.raises(SchemaError, match=r"\+ note: unknown"):
        model.predict(rows.assign(note=1))
    document = openapi.complete({"paths": {}}, model, Settings(), key=False)
    row = document["components"]["schemas"]["Row"]
    assert row["required"] == [*frame.columns] and {"bought", "id", "seen"} == {*row["properties"]} - {*frame.columns}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("sep=;\nage;orders\n1;2\n", r"first line, sep=;, is not a header(.|\n)*and set --separator ';'"),
        ("age,age,orders\n1,1,2\n", "rows.csv has several columns named age"),
        (",age,orders\n0,1,2\n", r"column 1 of .* has no name(.|\n)*leave it out with --ignore-extra"),
        ('age,"a,orders\n1,2\n",city\n1,2,Bern\n', "quotation mark of the header is not closed"),
        ('age,orders,member,city\n1,2,true,"Rom' + "\n1,2,true,Rom" * 4 + '"', "quotation mark is not closed"),
    ],
)
def test_what_is_said_of_a_header_is_what_training_says(content: str, said: str, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(content)
    with pytest.raises(DataError, match=said):
        predict_file(str(bundle), tmp_path / "rows.csv", tmp_path / "out.csv", store=tmp_path)


def test_a_labelled_file_in_the_model_s_own_separator_is_predicted_without_fuss(tmp_path: Path) -> None:
    """Target, key and dropped columns of the training file are left out with a word; other columns are refused."""
    model = fitted("xgboost")
    data = {"target": ["bought"], "drop": ["note"], "key": "id", "separator": ";", "split": {"group": "house"}}
    folder = tmp_path / "tree"
    replace(model, metadata={**model.metadata, "experiment": {"data": data}}).save(folder, customers())
    rows = customers(5).assign(bought="yes", note="x,y", id=range(5), house="a")
    rows.to_csv(tmp_path / "rows.csv", sep=";", index=False)
    done = predict_file(str(folder), tmp_path / "rows.csv", tmp_path / "out.csv", store=tmp_path, keep=["id"])
    assert (done.rows, set(done.ignored)) == (5, {"bought", "note", "house"})
    assert read(tmp_path / "out.csv")["id"].tolist() == [0, 1, 2, 3, 4]
    rows.to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(DataError, match=r"look separated by ','(.|\n)*--separator ','"):
        predict_file(str(folder), tmp_path / "rows.csv", None, store=tmp_path)
    assert predict_file(str(folder), tmp_path / "rows.csv", tmp_path / "o.csv", store=tmp_path, separator=",").rows == 5
    with pytest.raises(InputError, match="expected one ASCII character"):
        predict_file(str(folder), tmp_path / "rows.csv", None, store=tmp_path, separator=";;")


def test_hexadecimal_numbers_are_read_as_training_read_them(bundle: Path, tmp_path: Path) -> None:
    """Arrow reads 0x1d as 29 in a column of whole numbers, and 16 digits as 64 bits with a sign."""
    frame = customers(4).assign(orders=[29, 10, 11, 3])
    rows = written(frame.assign(orders=["0x1d", "0X0A", "11", "3"]), tmp_path / "rows.csv")
    predict_file(str(bundle), rows, tmp_path / "out.csv", store=tmp_path)
    expected = Bundle.load(bundle).predict(frame)
    np.testing.assert_allclose(read(tmp_path / "out.csv")["probability"], expected["probability"], atol=1e-7)
    assert tables.from_hex("0xFFFFFFFFFFFFFFFE") == pa.array(["0xFFFFFFFFFFFFFFFE"]).cast(pa.int64())[0].as_py()


def test_rows_to_predict_that_a_quotation_mark_swallows_are_refused(bundle: Path, tmp_path: Path) -> None:
    lines = written(customers(30), tmp_path / "rows.csv").read_text().splitlines()
    lines[5] = lines[5].rsplit(",", 1)[0] + ',"Bern'
    lines[20] = lines[20].rsplit(",", 1)[0] + ',Bern"'
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match="row 4, column 'city': the cell holds 16 lines"):
        predict_file(str(bundle), tmp_path / "rows.csv", tmp_path / "out.csv", store=tmp_path)
    assert not (tmp_path / "out.csv").exists()


def test_kept_columns_keep_their_types(bundle: Path, tmp_path: Path, small_chunks: None) -> None:
    """Whole numbers with gaps in one chunk and none in the next, and a column that is empty in the first."""
    numbers = [None, *range(1, 300)]
    names = [None] * 150 + ["x"] * 150
    table = pa.Table.from_pandas(customers(), preserve_index=False)
    table = table.append_column("n", pa.array(numbers, pa.int64())).append_column("name", pa.array(names, pa.string()))
    parquet.write_table(table, tmp_path / "rows.parquet")
    output = tmp_path / "out.parquet"
    predict_file(str(bundle), tmp_path / "rows.parquet", output, store=tmp_path, keep=["n", "name"])
    found = parquet.read_table(output)
    assert (found["n"].to_pylist(), found["name"].to_pylist()) == (numbers, names)
    assert (found.schema.field("n").type, found.column_names[:2]) == (pa.int64(), ["n", "name"])


@pytest.mark.parametrize(
    ("keep", "said"),
    [("age", "is a feature"), ("label", "predictions have a column of that name"), ("nope", "has no column 'nope'")],
)
def test_columns_that_cannot_be_kept_are_refused(keep: str, said: str, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        predict_file(str(bundle), written(customers(5), tmp_path / "rows.csv"), None, store=tmp_path, keep=[keep])


def test_files_of_no_known_kind_and_damaged_ones_are_refused(bundle: Path, tmp_path: Path) -> None:
    for file, output, said in (
        ("rows.txt", "out.csv", "rows.txt has an unknown suffix"),
        ("rows.csv", "out.xlsx", "out.xlsx has an unknown suffix"),
        ("rows.csv", "out.csv", "does not exist"),
    ):
        with pytest.raises(InputError, match=said):
            predict_file(str(bundle), tmp_path / file, tmp_path / output, store=tmp_path)
    for name in ("rows.csv", "rows.parquet"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(DataError, match="cannot be read"):
            predict_file(str(bundle), tmp_path / name, tmp_path / "out.csv", store=tmp_path)


def test_an_output_that_would_lose_rows_or_cannot_be_written_is_refused(bundle: Path, tmp_path: Path) -> None:
    rows = written(customers(), tmp_path / "rows.csv")
    (tmp_path / "folder.csv").mkdir()
    before = rows.read_bytes()
    for output, said in (
        (rows, "is the file of raw rows itself"),
        (tmp_path / "folder.csv", "is a directory"),
        (rows / "below.csv", "cannot be written"),
    ):
        with pytest.raises(InputError, match=said):
            predict_file(str(bundle), rows, output, store=tmp_path)
    assert rows.read_bytes() == before


def test_two_that_write_one_file_at_once_each_write_it_whole(tmp_path: Path) -> None:
    """The last to end stands there in the end."""
    output = tmp_path / "same.csv"
    with files.writing(output) as first:
        with files.writing(output) as second:
            first(pa.table({"x": [1]}))
            second(pa.table({"x": [2]}))
        assert output.read_text() == "x\n2\n"
        first(pa.table({"x": [3]}))
    assert output.read_text() == "x\n1\n3\n"
    assert [path.name for path in tmp_path.iterdir()] == ["same.csv"]


def test_no_rows_give_a_file_without_rows(bundle: Path, tmp_path: Path) -> None:
    for source in ("csv", "parquet"):
        file = written(customers(0), tmp_path / f"rows.{source}")
        assert predict_file(str(bundle), file, tmp_path / "out.parquet", store=tmp_path).rows == 0
        assert list(read(tmp_path / "out.parquet")) == ["probability", "label", "warnings"]


def test_the_command_prints_csv_and_says_on_standard_error_what_it_did(bundle: Path, tmp_path: Path) -> None:
    file = written(customers(3), tmp_path / "rows.csv")
    command = [*COMMAND, "predict", str(bundle), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[0] == "probability,label,warnings"
    assert len(done.stdout.splitlines()) == 4
    assert "3 rows predicted, no warnings" in done.stderr
    file.write_text("age,orders,member,city\nx,1,1,Bern\n")
    failed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (failed.returncode, "row 0: age: text 'x'" in failed.stderr) == (2, True)


def test_codes_with_gaps_of_a_parquet_file_are_predicted_as_they_were_trained(tmp_path: Path) -> None:
    """Nullable 64-bit integers keep their digits on the way into a frame."""
    codes = [None if i % 9 == 0 else 1234567890123456780 + i % 5 for i in range(80)]
    rows = pa.table({"code": pa.array(codes, pa.int64()), "b": np.arange(80) / 7, "y": np.arange(80) % 2})
    parquet.write_table(rows, tmp_path / "t.parquet")
    spec = DataSpec(path="t.parquet", target=("y",), task="binary", categorical=("code",))
    data = sources.load(spec, root=tmp_path, seed=0).train
    task = Task.learn("binary", data.targets)
    schema = Schema.learn(data.features, ("code",))
    settings = {"scaler": "standard", "impute": "median", "fill": 0.0, "max_categories": 50}
    preprocessor = Preprocessor.fit(data.features, schema, **settings)
    model = baselines.fit("xgboost", task, preprocessor.transform(data.features), task.encode(data.targets), seed=0)
    bundle = Bundle(model, preprocessor, task, 0.5, {"experiment": {"data": {"target": ["y"]}}})
    bundle.save(tmp_path / "tree", data.features)
    done = predict_file(str(tmp_path / "tree"), tmp_path / "t.parquet", tmp_path / "out.csv", store=tmp_path)
    assert (done.rows, done.ignored) == (80, ("y",)) and "unknown-category" not in done.warnings
    found = pd.read_csv(tmp_path / "out.csv")["probability"].to_numpy()[data.rows]
    np.testing.assert_allclose(found, bundle.predict(data.features)["probability"], atol=1e-7)
