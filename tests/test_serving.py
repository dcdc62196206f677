"""`forge-sweep serve`: raw rows over HTTP get the bundle's own predictions, and all else a refusal in words."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import feather

from forge_sweep.bundle import Bundle, files
from forge_sweep.errors import InputError
from forge_sweep.preprocessing import NO_TENSORS
from forge_sweep.serving.settings import Settings, api_key
from forge_sweep.task import TaskKind
from tests.serving import COMMAND, Api, customers, fitted, need_the_extra, records, serving

need_the_extra()

from forge_sweep.serving.batching import Batcher, Busy  # noqa: E402
from forge_sweep.serving.bodies import Rows  # noqa: E402
from forge_sweep.serving.predict import Answer, Served, Window, load  # noqa: E402
from forge_sweep.serving.server import bound, listen  # noqa: E402
from forge_sweep.tracking import locate  # noqa: E402

KEY = "a-very-secret-key"
STREAM, FILE = "application/vnd.apache.arrow.stream", "application/vnd.apache.arrow.file"
ROW = {"age": 33.5, "orders": 9, "member": True, "city": "Bern"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved network."""
    folder = tmp_path_factory.mktemp("serving") / "bundle"
    fitted().save(folder, customers())
    return folder


@pytest.fixture(scope="module")
def api(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A server that many tests share."""
    options = ("--max-rows", "1000", "--max-body-mb", "0.2", "--timeout-s", "5", "--drift-least", "100")
    with serving(bundle, tmp_path_factory.mktemp("api"), *options) as running:
        yield running


def probabilities(answer: Any) -> list[float]:
    return [prediction["probabilities"]["yes"] for prediction in answer["predictions"]]


def as_csv(frame: pd.DataFrame) -> bytes:
    return frame.to_csv(index=False).encode()


def as_stream(frame: pd.DataFrame) -> bytes:
    table, sink = pa.Table.from_pandas(frame), io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def as_file(frame: pd.DataFrame, compression: str = "uncompressed") -> bytes:
    sink = io.BytesIO()
    feather.write_feather(frame, sink, compression=compression)
    return sink.getvalue()


# What is answered


def test_rows_get_the_predictions_of_the_bundle_bit_by_bit(api: Api, bundle: Path) -> None:
    frame = customers()[["city", "member", "orders", "age"]]
    expected = Bundle.load(bundle).predict(frame)
    answer = api.predict(records(frame)).json
    assert probabilities(answer) == expected["probability"].tolist()
    assert [prediction["label"] for prediction in answer["predictions"]] == expected["label"].tolist()
    assert (answer["threshold"], answer["model"]) == (0.4, "bundle")
    single = [api.predict(row).json["predictions"] for row in records(frame.head(10))]
    assert [each for found in single for each in found] == answer["predictions"][:10]


@pytest.mark.parametrize(("media", "write"), [("text/csv", as_csv), (STREAM, as_stream), (FILE, as_file)])
def test_tables_get_the_same_predictions_as_json(api: Api, media: str, write: Any) -> None:
    frame = customers()
    answer = api.call("POST", "/predict", write(frame), Content_Type=f"{media}; charset=utf-8")
    assert answer.status == 200, answer.body
    assert answer.json == api.predict(records(frame)).json


def test_no_rows_are_answered_with_no_predictions(api: Api) -> None:
    assert api.predict([]).json["predictions"] == []
    assert api.call("POST", "/predict", as_csv(customers(0)), Content_Type="text/csv").json["predictions"] == []


def test_what_train_did_not_have_is_predicted_with_a_warning(api: Api) -> None:
    before = api.metric('forge_sweep_row_warnings_total{code="above-range"}') if counted(api) else 0.0
    rows = [ROW, {**ROW, "orders": 500, "city": "Rom"}, {**ROW, "age": -3, "member": None}, {**ROW, "age": None}]
    found = [
        [(warning["column"], warning["code"], warning["seen"]) for warning in prediction["warnings"]]
        for prediction in api.predict(rows).json["predictions"]
    ]
    assert found == [
        [],
        [("orders", "above-range", 500), ("city", "unknown-category", "Rom")],
        [("age", "below-range", -3), ("member", "missing", None)],
        [],
    ]
    assert api.metric('forge_sweep_row_warnings_total{code="above-range"}') == before + 1
    csv = as_csv(pd.DataFrame(rows[1:2]))
    warnings = api.call("POST", "/predict", csv, Content_Type="text/csv").json["predictions"][0]["warnings"]
    assert [(warning["code"], warning["seen"]) for warning in warnings] == [
        ("above-range", 500.0),
        ("unknown-category", "Rom"),
    ]


def counted(api: Api) -> bool:
    return 'row_warnings_total{code="above-range"}' in api.get("/metrics").body.decode()


def test_csv_has_the_types_of_the_schema_not_those_it_looks_like(api: Api) -> None:
    text = b"age,orders,member,city\n 33.5 ,+9,TRUE,Bern\nNA,1e1,0,\n"
    answer = api.call("POST", "/predict", text, Content_Type="text/csv")
    rows = [ROW, {"age": None, "orders": 10, "member": False, "city": None}]
    assert answer.json["predictions"] == api.predict(rows).json["predictions"]


@pytest.mark.parametrize("task_kind", ["binary", "multiclass", "multilabel", "regression"])
@pytest.mark.parametrize("kind", ["network", "xgboost"])
def test_answers_of_every_task_say_what_the_bundle_says(kind: str, task_kind: TaskKind, tmp_path: Path) -> None:
    frame = customers(25)
    fitted(kind, task_kind).save(tmp_path / "m", customers())
    served = load(locate(str(tmp_path / "m"), tmp_path), Settings(drift_window=10, drift_least=10))
    raw = served.transform.read_frame(frame)
    found = served.render(Rows(raw, lambda row, name: None), served.answer(raw))["predictions"]
    expected = served.bundle.predict(frame).to_dict("records")
    for prediction, row in zip(found, expected, strict=True):
        task = served.bundle.task
        if task_kind == "binary":
            assert prediction["probabilities"] == {"no": 1 - row["probability"], "yes": row["probability"]}
            assert prediction["label"] == row["label"]
        elif task_kind == "multiclass":
            assert prediction["probabilities"] == {str(c): row[f"probability_{c}"] for c in task.classes}
            assert prediction["label"] == row["label"]
        elif task_kind == "multilabel":
            assert prediction["probabilities"] == {c: row[f"probability_{c}"] for c in task.classes}
            assert prediction["labels"] == {c: row[c] for c in task.classes}
        else:
            assert prediction["values"] == row


# What is refused


@pytest.mark.parametrize(
    ("media", "body", "status", "code"),
    [
        ("application/json", b"{", 400, "unreadable"),
        ("application/json", b"", 400, "unreadable"),
        ("application/json", b'{"age": NaN}', 400, "unreadable"),
        ("application/json", b"\xff\xfe", 400, "unreadable"),
        ("application/json", b"[" * 5000, 400, "unreadable"),
        ("application/json", b"3", 422, "rows"),
        ("application/json", b"[3]", 422, "rows"),
        ("application/json", b"{}", 422, "rows"),
        ("application/json", json.dumps({**ROW, "age": "x"}).encode(), 422, "rows"),
        ("application/json", json.dumps({**ROW, "id": 1}).encode(), 422, "rows"),
        ("application/json", json.dumps({**ROW, "age": 1e300}).encode(), 422, "rows"),
        ("application/json", json.dumps([ROW] * 1001).encode(), 422, "too-many-rows"),
        ("text/csv", b"", 400, "unreadable"),
        ("text/csv", b"age,orders\n1,2,3\n", 400, "unreadable"),
        ("text/csv", b"age,orders,member,city\nx,1,true,Bern\n", 422, "rows"),
        ("text/csv", b"age,age,member,city\n1,1,true,Bern\n", 422, "rows"),
        (STREAM, b"", 400, "unreadable"),
        (STREAM, b"ARROW1", 400, "unreadable"),
        (STREAM, as_stream(customers(20))[:-300], 400, "unreadable"),
        (STREAM, as_stream(pd.DataFrame({"age": [[1.0]]})), 400, "unreadable"),
        (STREAM, as_stream(customers(20).assign(age="33")), 422, "rows"),
        (FILE, as_file(customers(20), "zstd"), 400, "unreadable"),
        ("text/html", b"{}", 415, "media-type"),
    ],
)
def test_a_body_that_cannot_be_answered_is_refused_in_words(
    api: Api, media: str, body: bytes, status: int, code: str
) -> None:
    answer = api.call("POST", "/predict", body, Content_Type=media)
    assert (answer.status, answer.json["error"]["code"]) == (status, code), answer.body
    assert answer.json["error"]["message"]


def test_a_refusal_names_row_column_and_what_was_expected(api: Api) -> None:
    error = api.predict([ROW, {**ROW, "age": "old"}, {**ROW, "orders": 1e300}]).json["error"]
    assert error["misfits"] == [
        {"row": 1, "column": "age", "code": "mistyped", "seen": "text 'old'", "expected": "numbers"}
    ]
    [misfit] = api.predict([ROW, {**ROW, "orders": 1e300}]).json["error"]["misfits"]
    assert (misfit["row"], misfit["column"], misfit["code"]) == (1, "orders", "not-finite")


def test_a_row_that_the_network_has_no_finite_score_for_is_refused(tmp_path: Path) -> None:
    made = fitted()
    for variable in made.model.trainable_variables:
        variable.assign(variable * 30)
    made.save(tmp_path / "m", customers())
    served = load(locate(str(tmp_path / "m"), tmp_path), Settings(drift_window=10, drift_least=10))
    found = served.answer(served.transform.read_all([ROW, {**ROW, "age": 3e39}, {**ROW, "age": -3e39}]))
    assert {(misfit.row, misfit.code) for misfit in found.misfits} <= {(1, "no-score"), (2, "no-score")}
    assert found.misfits


def test_a_long_body_is_refused_whether_its_length_is_given_or_not(api: Api) -> None:
    body = json.dumps([ROW] * 900 + [{**ROW, "city": "x" * 200_000}]).encode()
    given = api.call("POST", "/predict", body, Content_Type="application/json")
    assert (given.status, given.json["error"]["code"]) == (413, "too-large")
    with socket.create_connection(("127.0.0.1", api.port), timeout=30) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"%x\r\n%s\r\n" % (150_000, b" " * 150_000)
        connection.sendall(chunk * 2)
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_does_not_arrive_is_given_up(api: Api) -> None:
    with socket.create_connection(("127.0.0.1", api.port), timeout=60) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert connection.recv(65536).startswith(b"HTTP/1.1 408 ")


def test_paths_and_methods_that_do_not_exist_are_refused_in_the_same_form(api: Api) -> None:
    assert api.get("/nothing").json["error"]["code"] == "no-such-path"
    answer = api.get("/predict")
    assert (answer.status, answer.headers["allow"], answer.json["error"]["code"]) == (405, "POST", "method")


# What is told


def test_probes_card_and_figures(api: Api, bundle: Path) -> None:
    assert api.get("/healthz").json == {"healthy": True}
    ready = api.get("/readyz").json
    assert (ready["ready"], ready["model"]) == (True, "bundle")
    card = api.get("/model").json
    assert card["columns"][0]["name"] == "age"
    assert (card["kind"], card["golden_difference"], card["training_rows"]) == ("network", 0.0, 300)
    assert card["version"] == ready["version"] == locate(str(bundle), bundle).version
    api.predict(ROW)
    before = (
        api.metric('forge_sweep_requests_total{path="/predict",status="200"}'),
        api.metric("forge_sweep_rows_total"),
    )
    api.predict([ROW] * 7)
    assert api.metric('forge_sweep_requests_total{path="/predict",status="200"}') == before[0] + 1
    assert api.metric("forge_sweep_rows_total") == before[1] + 7
    assert api.metric(f'forge_sweep_model_info{{model="bundle",version="{ready["version"]}"}}') == 1


def test_the_openapi_document_has_the_columns_of_the_model(api: Api) -> None:
    document = api.get("/openapi.json").json
    row = document["components"]["schemas"]["Row"]
    assert row["required"] == ["age", "orders", "member", "city"]
    assert row["properties"]["orders"]["type"] == ["number", "null"]
    assert set(row["properties"]["city"]["examples"]) == {"Bern", "Chur", "Genf"}
    assert document["components"]["schemas"]["Prediction"]["properties"]["label"] == {"enum": ["no", "yes"]}
    assert {"/predict", "/healthz", "/readyz", "/model", "/drift", "/metrics"} == set(document["paths"])


def test_the_access_log_has_a_line_for_each_request_and_none_of_the_data(api: Api) -> None:
    api.call("POST", "/predict?who=Casanova", json.dumps({**ROW, "city": "Casanova"}))
    api.get("/Casanova")
    time.sleep(0.5)
    text = api.out.read_text()
    last = [json.loads(line) for line in text.splitlines()][-2:]
    assert [(line["method"], line["path"], line["status"], line["rows"]) for line in last] == [
        ("POST", "/predict", 200, 1),
        ("GET", "(other)", 404, None),
    ]
    assert "Casanova" not in text + api.err.read_text()


def test_rows_that_differ_from_train_are_reported_as_drift(bundle: Path, tmp_path: Path) -> None:
    with serving(bundle, tmp_path, "--drift-window", "250", "--drift-least", "200") as api:
        assert api.get("/drift").json["state"] == "too-few-rows"
        api.predict(records(customers(250)))
        assert (api.get("/drift").json["state"], api.get("/drift").json["findings"]) == ("stable", [])
        api.predict(records(customers(250).assign(city="Rom")))
        drift = api.get("/drift").json
        assert (drift["state"], drift["rows"], drift["seen"]) == ("drifted", 250, 500)
        assert [finding["subject"] for finding in drift["findings"]] == ["city"]
        assert next(c for c in drift["columns"] if c["column"] == "city")["unknown_share"] == 1.0
        assert api.metric('forge_sweep_drift_drifted{column="city"}') == 1
        assert api.metric('forge_sweep_drift_drifted{column="age"}') == 0
        assert api.metric('forge_sweep_drift_psi{column="city"}') > 1
        refused = api.predict([{**ROW, "age": "x"}] * 200)
        assert (refused.status, api.get("/drift").json["seen"]) == (422, 500)


# Who may ask


def test_without_the_key_nothing_is_answered_but_the_probes(bundle: Path, tmp_path: Path) -> None:
    with serving(bundle, tmp_path, FORGE_SWEEP_API_KEY=KEY) as api:
        assert [api.get(path).status for path in ("/healthz", "/readyz")] == [200, 200]
        for path in ("/model", "/metrics", "/drift", "/openapi.json", "/nothing"):
            assert api.get(path).status == 401, path
        answer = api.predict(ROW)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        for wrong in ("", "Bearer", f"Bearer {KEY}x", f"Basic {KEY}", "Bearer ä"):
            assert api.get("/model", Authorization=wrong).status == 401, wrong
        assert api.get("/model", Authorization=f"Bearer {KEY}").status == 200
        assert api.call("POST", "/predict", json.dumps(ROW), X_API_Key=KEY).status == 200
        document = api.get("/openapi.json", X_API_Key=KEY).json
        assert document["paths"]["/predict"]["post"]["security"]
        assert "security" not in document["paths"]["/healthz"]["get"]
        assert api.end() == 0
        assert KEY not in api.out.read_text() + api.err.read_text()


def test_an_empty_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert api_key() is None
    monkeypatch.setenv("FORGE_SWEEP_API_KEY", " ")
    with pytest.raises(InputError, match="FORGE_SWEEP_API_KEY is empty"):
        api_key()


# When it does not start


def start(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, "serve", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


def test_other_golden_scores_keep_it_from_starting(bundle: Path, tmp_path: Path) -> None:
    changed = Bundle.load(bundle)
    kernel = changed.model.trainable_variables[0]
    kernel.assign(kernel * 1.01)
    fitted().save(tmp_path / "m", customers())
    changed.model.save(tmp_path / "m" / "model.keras")
    (tmp_path / "m" / files.MANIFEST).unlink()
    files.write_manifest(tmp_path / "m")
    done = start(tmp_path / "m", "--port", "0")
    assert done.returncode == 1
    assert "other golden scores than when it was saved" in done.stderr
    assert "serving on" not in done.stderr


def test_a_port_that_is_taken_is_said_before_the_model_is_loaded(bundle: Path, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        done = start(bundle, "--port", str(other.getsockname()[1]))
    assert (done.returncode, "cannot listen on" in done.stderr) == (2, True)


def test_of_two_servers_that_took_a_port_at_once_the_slower_one_ends(tmp_path: Path) -> None:
    """Both may bind it while neither listens."""
    one = bound(Settings(port=0))
    other = bound(Settings(port=one.getsockname()[1]))
    with one, other:
        listen(one, Settings())
        with pytest.raises(InputError, match="cannot listen on"):
            listen(other, Settings())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing"], "names no model"),
        (["models:/fraud@champion"], "there is no MLflow store"),
        (["nothing", "--max-waiting", "5"], "would never be answered"),
    ],
)
def test_a_model_that_is_not_there_is_said(words: list[str], said: str, tmp_path: Path) -> None:
    done = start(*words, "--store", tmp_path / "none")
    assert done.returncode == 2
    assert said in done.stderr


# The queue


class Slow(Served):
    """A version that answers when it is told to."""

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        super().__init__(bundle, locate(str(folder), folder), Window(None, 4, 0, 0))
        self.go = threading.Event()
        self.passes: list[int] = []

    def answer(self, raw: np.ndarray, tensors: Any = NO_TENSORS) -> Answer:
        self.passes.append(len(raw))
        assert self.go.wait(60)
        return super().answer(raw, tensors)


async def until(condition: Any) -> None:
    """Wait for another thread."""
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("nothing happened")


def queue(**changes: Any) -> Batcher:
    settings = {"max_batch": 16, "max_wait_s": 0.002, "max_waiting": 100, "observe": lambda requests, rows: None}
    return Batcher(**{**settings, **changes})


def test_requests_that_wait_share_a_pass_and_each_gets_its_own_answer(bundle: Path) -> None:
    loaded = Bundle.load(bundle)

    async def run() -> tuple[Slow, list[Answer]]:
        slow, batcher = Slow(loaded, bundle), queue()
        batcher.start()
        rows = slow.transform.read_frame(customers(30))
        futures = [batcher.submit(slow, rows[:1])]
        await until(lambda: slow.passes)
        futures += [batcher.submit(slow, rows[i : i + 1]) for i in range(1, 11)]
        futures += [batcher.submit(slow, rows[11:30])]
        slow.go.set()
        answers = list(await asyncio.gather(*futures))
        batcher.close()
        return slow, answers

    slow, answers = asyncio.run(run())
    assert slow.passes == [1, 10, 19]
    np.testing.assert_array_equal(np.concatenate([a.scores for a in answers]), loaded.scores(customers(30)))


def test_one_bad_row_does_not_keep_others_in_its_pass_from_their_answers(bundle: Path) -> None:
    loaded = Bundle.load(bundle)

    async def run() -> list[Answer]:
        slow, batcher = Slow(loaded, bundle), queue()
        batcher.start()
        rows = slow.transform.read_frame(customers(4))
        rows[2, 0] = 1e300
        rows[3, 1] = 500
        futures = [batcher.submit(slow, rows[:1])]
        await until(lambda: slow.passes)
        futures += [batcher.submit(slow, rows[i : i + 1]) for i in range(1, 4)]
        slow.go.set()
        answers = list(await asyncio.gather(*futures))
        batcher.close()
        return answers

    answers = asyncio.run(run())
    assert [[misfit.row for misfit in answer.misfits] for answer in answers] == [[], [], [0], []]
    assert [answer.flagged for answer in answers][3] == ((0, 1),)
    np.testing.assert_array_equal(answers[1].scores, loaded.scores(customers(4))[1:2])


def test_a_full_queue_refuses_and_a_closed_one_answers_what_it_took(bundle: Path) -> None:
    loaded = Bundle.load(bundle)

    async def run() -> list[Answer]:
        slow, batcher = Slow(loaded, bundle), queue(max_waiting=3)
        batcher.start()
        row = slow.transform.read_frame(customers(1))
        futures = [batcher.submit(slow, row)]
        await until(lambda: slow.passes)
        futures += [batcher.submit(slow, row) for _ in range(3)]
        with pytest.raises(Busy):
            batcher.submit(slow, row)
        futures[2].cancel()
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        await until(lambda: batcher._closed)
        with pytest.raises(Busy):
            batcher.submit(slow, row)
        slow.go.set()
        await closing
        assert slow.passes == [1, 2]
        return list(await asyncio.gather(*futures[:2], futures[3]))

    assert len(asyncio.run(run())) == 3


def test_a_pass_that_fails_fails_for_its_requests_only(bundle: Path) -> None:
    loaded = Bundle.load(bundle)

    async def run() -> None:
        slow, batcher = Slow(loaded, bundle), queue()
        slow.go.set()
        batcher.start()
        with pytest.raises(IndexError):
            await batcher.submit(slow, np.zeros((1, 1)))
        good = slow.transform.read_frame(customers(1))
        assert (await batcher.submit(slow, good)).scores.shape == (1, 1)
        batcher.close()

    asyncio.run(run())


def test_the_window_keeps_the_last_rows(bundle: Path) -> None:
    served = load(locate(str(bundle), bundle), Settings(drift_window=5, drift_least=2))
    window = served.window
    for start_row, rows in ((0, 2), (2, 2), (4, 3), (7, 9), (16, 1)):
        window.add(np.arange(start_row, start_row + rows)[:, None] * np.ones(4))
    assert sorted(window._rows[:, 0].tolist()) == [12, 13, 14, 15, 16]
    assert (window.rows, window.seen) == (5, 17)


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(InputError, match="--max-waiting 10 is below --max-rows 20"):
        Settings(max_waiting=10, max_rows=20)
