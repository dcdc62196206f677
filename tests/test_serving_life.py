"""A server's life: load, hot swap, SIGTERM, and callers who mean harm."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from forge_sweep import tracking
from forge_sweep.bundle import Bundle
from forge_sweep.tracking import Tracker
from tests.serving import Api, customers, fitted, need_the_extra, records, serving
from tests.test_serving import FILE, ROW, STREAM, as_csv, as_file, as_stream

need_the_extra()

CALLERS = 8


@dataclass
class Caller:
    """Asks again and again over one connection, as long as it is let.

    Attributes:
        answers: what was answered.
        lost: requests that were sent and not answered.
    """

    api: Api
    body: bytes
    stop: threading.Event
    answers: list[dict[str, Any]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.api.port, timeout=60)
        while not self.stop.is_set():
            try:
                connection.connect() if connection.sock is None else None
            except OSError:
                return  # nobody listens any more: it was not accepted
            try:
                connection.request("POST", "/predict", self.body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                content = answer.read()
                assert answer.status == 200, content
                self.answers.append(json.loads(content))
            except Exception as error:
                self.lost.append(repr(error))
                return
        connection.close()


def calling(api: Api, body: bytes, act: Callable[[], None]) -> list[Caller]:
    """Callers who ask all the while that something is done to the server."""
    stop = threading.Event()
    callers = [Caller(api, body, stop) for _ in range(CALLERS)]
    threads = [threading.Thread(target=caller.run) for caller in callers]
    for thread in threads:
        thread.start()
    try:
        while not all(caller.answers or caller.lost for caller in callers):
            time.sleep(0.01)
        act()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    return callers


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tree: as quick as the server itself."""
    folder = tmp_path_factory.mktemp("life") / "tree"
    fitted("xgboost").save(folder, customers())
    return folder


# SIGTERM


def test_sigterm_under_load_loses_no_request_and_ends_with_0(tree: Path, tmp_path: Path) -> None:
    with serving(tree, tmp_path) as api:
        codes: list[int] = []
        callers = calling(api, json.dumps(ROW).encode(), lambda: codes.append(api.end()))
        assert [caller.lost for caller in callers] == [[]] * CALLERS
        assert codes == [0]
        said = [json.loads(line) for line in api.out.read_text().splitlines()]
        answered = [line for line in said if line["path"] == "/predict" and line["status"] == 200]
        assert len(answered) == sum(len(caller.answers) for caller in callers)


def test_a_request_that_has_begun_is_answered_after_sigterm(tree: Path, tmp_path: Path) -> None:
    body = json.dumps(ROW).encode()
    with serving(tree, tmp_path) as api:
        with socket.create_connection(("127.0.0.1", api.port), timeout=60) as begun:
            begun.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body))
            begun.sendall(body[:5])
            time.sleep(0.2)
            api.process.send_signal(signal.SIGTERM)
            refused = False
            for _ in range(300):
                try:
                    socket.create_connection(("127.0.0.1", api.port), timeout=5).close()
                except OSError:
                    refused = True
                    break
                time.sleep(0.05)
            assert refused and api.process.poll() is None
            time.sleep(1.0)
            begun.sendall(body[5:])
            answer = begun.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"connection: close" in answer.lower()
        assert api.process.wait(60) == 0


# Hot swap


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of its own, with short-lived addresses."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mlruns"


def register(store: Path, key: str, bundle: Bundle, name: str = "fraud") -> str:
    """A new version, which the alias ``challenger`` then means."""
    folder = store.parent / key
    frame = customers()[list(bundle.preprocessor.schema.names)]
    bundle.save(folder, frame)
    with Tracker("fraud", store) as tracker:
        tracker.run(key, key, kind="confirm").finish("FINISHED")
        needed = tracking.requirements(bundle.kind)
        return tracker.register(
            key, folder, model_name=name, columns=list(frame.columns), requirements=needed, tags={"forge.kind": "x"}
        )


def wait_for(condition: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


def test_the_alias_moves_under_load_without_an_error_or_a_mixed_answer(store: Path, tmp_path: Path) -> None:
    bundles = {"1": fitted("xgboost"), "2": fitted("random_forest", threshold=0.9)}
    assert register(store, "a", bundles["1"]) == "1"
    expected = {version: told(bundle) for version, bundle in bundles.items()}
    assert expected["1"] != expected["2"]
    with serving("models:/fraud@challenger", tmp_path / "s", "--store", str(store), "--poll-s", "0.2") as api:
        assert api.get("/readyz").json["alias"] == "challenger"

        def move() -> None:
            assert register(store, "b", bundles["2"]) == "2"
            wait_for(lambda: api.get("/readyz").json["version"] == "2")
            time.sleep(0.5)

        callers = calling(api, json.dumps(records(customers(20))).encode(), move)
        assert [caller.lost for caller in callers] == [[]] * CALLERS
        seen = set()
        for caller in callers:
            versions = [answer["version"] for answer in caller.answers]
            assert versions == sorted(versions) and versions[-1] == "2"
            seen |= set(versions)
            for answer in caller.answers:
                found = answer["threshold"], [each["probabilities"]["yes"] for each in answer["predictions"]]
                assert found == expected[answer["version"]]
        assert seen == {"1", "2"}
        assert api.metric('forge_sweep_swaps_total{result="done"}') == 1
        assert api.get("/drift").json["seen"] < 20 * sum(len(caller.answers) for caller in callers)


def told(bundle: Bundle) -> tuple[float, list[float]]:
    """Threshold and probabilities of a version."""
    return bundle.threshold, bundle.scores(customers(20))[:, 0].tolist()


def test_a_version_that_callers_could_not_use_is_not_taken(store: Path, tmp_path: Path) -> None:
    register(store, "a", fitted("constant"))
    with serving("fraud@challenger", tmp_path / "s", "--store", str(store), "--poll-s", "0.2") as api:
        register(store, "b", fitted("constant", "regression"))
        wait_for(lambda: api.get("/readyz").json["registry"]["failed"] is not None)
        ready = api.get("/readyz")
        assert (ready.status, ready.json["ready"], ready.json["version"]) == (200, True, "1")
        failed = ready.json["registry"]["failed"]
        assert failed["version"] == "2" and "fraud/2 has other task, targets, classes than fraud/1" in failed["why"]
        assert (api.metric("forge_sweep_behind"), api.metric('forge_sweep_swaps_total{result="failed"}')) == (1, 1)
        assert api.predict(ROW).json["version"] == "1"


def test_a_damaged_version_and_a_lost_registry_leave_the_old_one_in_service(store: Path, tmp_path: Path) -> None:
    register(store, "a", fitted("constant"))
    with serving("fraud@challenger", tmp_path / "s", "--store", str(store), "--poll-s", "0.2") as api:
        register(store, "b", fitted("random_forest"))
        # the second version was saved whole; what is downloaded from here on is damaged
        wait_for(lambda: api.get("/readyz").json["version"] == "2")
        [damaged] = [path for path in (store / "artifacts").rglob("tree.skops")]
        damaged.write_bytes(damaged.read_bytes() + b"x")
        with Tracker("fraud", store) as tracker:
            client = tracker.session.client if hasattr(tracker, "session") else tracker._session.client
            client.set_registered_model_alias("fraud", "challenger", "1")
            wait_for(lambda: api.get("/readyz").json["version"] == "1")
            client.set_registered_model_alias("fraud", "challenger", "2")
            wait_for(lambda: api.get("/readyz").json["registry"]["failed"] is not None)
            assert "changed: tree.skops" in api.get("/readyz").json["registry"]["failed"]["why"]
            client.delete_registered_model_alias("fraud", "challenger")
        wait_for(lambda: api.get("/readyz").json["registry"]["why"] is not None)
        assert api.metric("forge_sweep_registry_up") == 0
        assert (api.predict(ROW).status, api.predict(ROW).json["version"]) == (200, "1")


def test_a_version_by_number_stays_what_it_is(store: Path, tmp_path: Path) -> None:
    register(store, "a", fitted("constant"))
    with serving("models:/fraud/1", tmp_path / "s", "--store", str(store), "--poll-s", "0.1") as api:
        register(store, "b", fitted("constant"))
        time.sleep(1)
        assert (api.get("/readyz").json["version"], api.get("/readyz").json["alias"]) == ("1", None)


# Callers who mean harm


@pytest.mark.slow
def test_schemathesis_finds_no_error(tree: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("schemathesis") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("schemathesis has to be installed in CI: pip install '.[dev]'")
        pytest.skip("schemathesis is not installed")
    with serving(tree, tmp_path) as api:
        # That valid data is accepted cannot be asked for: OpenAPI cannot say what a CSV file holds.
        options = ["--exclude-checks", "positive_data_acceptance", "--continue-on-failure", "--seed", "1"]
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{api.port}/openapi.json"]
        done = subprocess.run(
            [*command, *options, "--max-examples", "300"], capture_output=True, text=True, timeout=280, cwd=tmp_path
        )
        assert done.returncode == 0, done.stdout[-5000:]
        assert "Tested: 6" in done.stdout
        assert "failed" not in api.err.read_text()


def damaged(chance: random.Random, body: bytes) -> bytes:
    """A body with some bytes changed, cut off, repeated or added."""
    content = bytearray(body)
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(content) + 1)
        match chance.randrange(4):
            case 0:
                content[at : at + 1] = chance.randbytes(1)
            case 1:
                del content[at : at + chance.randint(1, 40)]
            case 2:
                content[at:at] = content[: chance.randint(0, 40)]
            case 3:
                content[at:at] = chance.randbytes(chance.randint(1, 20))
    return bytes(content)


def hostile(chance: random.Random) -> tuple[str, bytes]:
    """A media type and a body."""
    frame = customers(chance.randint(0, 5))
    bodies: list[tuple[str, Callable[[pd.DataFrame], bytes]]] = [
        ("application/json", lambda rows: json.dumps(records(rows)).encode()),
        ("text/csv", as_csv),
        (STREAM, as_stream),
        (FILE, as_file),
    ]
    media, write = chance.choice(bodies)
    match chance.randrange(4):
        case 0:
            return media, chance.randbytes(chance.randint(0, 300))
        case 1 if media == "application/json":
            return media, json.dumps([{name: odd(chance, 3) for name in [*ROW, "x"][: chance.randint(3, 5)]}]).encode()
        case 2:
            return chance.choice(["application/json", "text/csv", STREAM, FILE, "x/y"]), write(frame)
        case _:
            return media, damaged(chance, write(frame))


def odd(chance: random.Random, depth: int) -> Any:
    """A JSON value."""
    if depth and chance.random() < 0.2:
        return chance.choice([[odd(chance, depth - 1)] * 3, {"a": odd(chance, depth - 1)}])
    return chance.choice([None, True, 0, -1, 1e308, -1e-320, 10**30, "", "Bern", "\u0000", "\U0001f600" * 50, 3.5])


def bodies_of(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    chance = random.Random(seed)
    for _ in range(count):
        yield hostile(chance)


@pytest.mark.slow
def test_ten_thousand_hostile_bodies_are_all_answered_and_none_is_a_failure(tree: Path, tmp_path: Path) -> None:
    statuses: dict[int, int] = {}
    lock = threading.Lock()
    with serving(tree, tmp_path, "--no-access-log") as api:

        def caller(seed: int) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=60)
            for media, body in bodies_of(seed, 2_500):
                connection.request("POST", "/predict", body, {"Content-Type": media})
                answer = connection.getresponse()
                content = json.loads(answer.read())
                with lock:
                    statuses[answer.status] = statuses.get(answer.status, 0) + 1
                assert ("predictions" in content) == (answer.status == 200), (seed, media, body, content)
            connection.close()

        threads = [threading.Thread(target=caller, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(statuses.values()) == 10_000
        assert set(statuses) == {200, 400, 415, 422}, (statuses, api.err.read_text()[-3000:])
        assert api.predict(ROW).status == 200
        assert "failed" not in api.err.read_text()


@pytest.mark.slow
def test_what_is_no_http_leaves_the_server_as_it_was(tree: Path, tmp_path: Path) -> None:
    chance = random.Random(1)
    with serving(tree, tmp_path) as api:
        before = api.predict(ROW).json
        for _ in range(300):
            head = chance.choice([b"POST /predict HTTP/1.1\r\n", b"GET / HTTP/9\r\n", b"PRI * HTTP/2.0\r\n", b""])
            with socket.create_connection(("127.0.0.1", api.port), timeout=30) as connection:
                connection.sendall(head + chance.randbytes(chance.randint(0, 200)))
        for _ in range(20):  # callers who leave before they are answered
            with socket.create_connection(("127.0.0.1", api.port), timeout=30) as connection:
                connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{")
        assert api.predict(ROW).json == before
        assert api.end() == 0
