"""Connections that cost more than a request may, before anybody knows whose it is; and SIGTERM with a full backlog."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving import Api, customers, fitted, need_the_extra, serving
from tests.test_serving import ROW

need_the_extra()
HEAD_BYTES, HEAD_S = 65_536, 10.0
CHUNKED = b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
BODY = json.dumps(ROW).encode()


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("connections") / "tree"
    fitted("xgboost").save(folder, customers())
    return folder


@pytest.fixture(scope="module")
def api(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving(tree, tmp_path_factory.mktemp("api"), FORGE_SWEEP_API_KEY="secret") as running:
        running.headers["X-API-Key"] = "secret"
        yield running


def said(connection: socket.socket) -> bytes:
    """All that the server answers until it hangs up."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def memory_mb(api: Api) -> float:
    lines = Path(f"/proc/{api.process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        (b"GET /healthz HTTP/1.1\r\n", b"a: b\r\n" * 1000),
        (b"GET /healthz HTTP/1.1\r\na: ", b"b" * 6000),
        (b"GET /healthz HTTP/1.1\r\n", b"b" * 6000),
        (b"GET /", b"b" * 6000),
        (b"G", b"G" * 6000),
        (b"", b"\r\n" * 3000),
        (CHUNKED + b"1;", b"b" * 6000),
        (CHUNKED + b"1\r\n{\r\n0\r\na: ", b"b" * 6000),
        (CHUNKED + b"1\r\n{\r\n0\r\n", b"a: b\r\n" * 1000),
    ],
    ids=["headers", "value", "name", "line", "method", "blank-lines", "extension", "trailer", "trailers"],
)
def test_what_has_no_end_is_ended_and_nothing_of_it_is_kept(begin: bytes, piece: bytes, api: Api) -> None:
    before = memory_mb(api)
    with socket.create_connection(("127.0.0.1", api.port), timeout=30) as endless:
        sent, ended = 0, False
        try:
            endless.sendall(begin)
            while sent < 50_000_000 and not ended:
                endless.sendall(piece)
                sent += len(piece)
        except OSError:
            ended = True
    assert ended
    assert memory_mb(api) - before < 20
    assert api.predict(ROW).status == 200


def headed(length: int) -> bytes:
    """A request with a head of so many bytes, and no key."""
    start, end = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\na: ", b"\r\n\r\n"
    return start + b"b" * (length - len(start) - len(end)) + end


@pytest.mark.parametrize(
    ("length", "status"), [(HEAD_BYTES, b"200"), (HEAD_BYTES + 1, b"431"), (HEAD_BYTES + 5000, b"431")]
)
def test_a_head_may_have_64_kb_and_no_byte_more(length: int, status: bytes, api: Api) -> None:
    with socket.create_connection(("127.0.0.1", api.port), timeout=30) as connection:
        connection.sendall(headed(length))
        answer = said(connection)
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert (b'"code":"head"' in answer) == (status == b"431")


def test_requests_behind_each_other_are_all_answered(api: Api) -> None:
    one = b"POST /predict HTTP/1.1\r\nHost: x\r\nX-API-Key: secret\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
    with socket.create_connection(("127.0.0.1", api.port), timeout=60) as connection:
        connection.sendall(one * 400 + headed(500))
        answer = said(connection)
    assert answer.count(b"HTTP/1.1 200") == 401
    assert b"HTTP/1.1 4" not in answer


def test_large_bodies_are_not_taken_for_heads(api: Api) -> None:
    assert api.predict([ROW] * 2000).status == 200
    with socket.create_connection(("127.0.0.1", api.port), timeout=60) as connection:
        connection.sendall(CHUNKED.replace(b"\r\n\r\n", b"\r\nX-API-Key: secret\r\nConnection: close\r\n\r\n"))
        rows = json.dumps([ROW] * 500).encode()
        for start in range(0, len(rows), 7):  # each of a few bytes
            piece = rows[start : start + 7]
            connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
        connection.sendall(b"0\r\n\r\n")
        assert said(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.slow
def test_a_head_that_does_not_arrive_is_given_up_and_others_are_answered_meanwhile(api: Api) -> None:
    address = ("127.0.0.1", api.port)
    silent = socket.create_connection(address, timeout=60)
    slow = socket.create_connection(address, timeout=60)
    later = socket.create_connection(address, timeout=60)
    with silent, slow, later:
        slow.sendall(b"GET /healthz HTTP/1.1\r\na: ")
        later.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        first = later.recv(65536)
        assert first.startswith(b"HTTP/1.1 200")
        while not first.endswith(b"}"):
            first += later.recv(65536)
        later.sendall(b"GET /hea")
        ends = time.monotonic() + HEAD_S - 2
        while time.monotonic() < ends:
            slow.sendall(b"b")  # a byte now and then does not help
            later.sendall(b"l")
            assert api.predict(ROW).status == 200
            time.sleep(0.5)
        assert said(slow).startswith(b"HTTP/1.1 408")
        assert said(later).startswith(b"HTTP/1.1 408")
        assert said(silent) == b""
    assert api.metric('forge_sweep_requests_total{path="(other)",status="408"}') >= 2


def test_a_body_that_goes_on_after_the_answer_is_cut_off(api: Api) -> None:
    with socket.create_connection(("127.0.0.1", api.port), timeout=30) as connection:
        connection.sendall(CHUNKED.replace(b"POST /predict", b"GET /healthz"))
        answer = connection.recv(65536)
        ended = False
        for _ in range(600):
            try:
                connection.sendall(b"1\r\na\r\n")
            except OSError:
                ended = True
                break
            time.sleep(0.05)
    assert answer.startswith(b"HTTP/1.1 200") and ended


def test_sigterm_answers_every_connection_that_was_made(tree: Path, tmp_path: Path) -> None:
    request = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
    with serving(tree, tmp_path) as api:
        api.process.send_signal(signal.SIGSTOP)  # nobody takes them: they wait in the backlog
        made = [socket.create_connection(("127.0.0.1", api.port), timeout=60) for _ in range(300)]
        for connection in made:
            connection.sendall(request)
        api.process.send_signal(signal.SIGTERM)
        api.process.send_signal(signal.SIGCONT)
        for _ in range(200):  # and more come while it ends
            try:
                late = socket.create_connection(("127.0.0.1", api.port), timeout=0.5)
            except OSError:
                break
            late.settimeout(60)
            late.sendall(request)
            made.append(late)
        answers = [said(connection) for connection in made]
        for connection in made:
            connection.close()
        assert [answer[:12] for answer in answers] == [b"HTTP/1.1 200"] * len(made)
        assert api.process.wait(60) == 0
