"""The browser that `ui` opens, and the one that reads the server's page."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from forge_sweep import ui
from tests.serving import customers, fitted, need_the_extra, serving


@pytest.mark.parametrize(
    ("terminal", "variables", "there"),
    [
        (True, {"DISPLAY": ":0"}, True),
        (True, {"WAYLAND_DISPLAY": "wayland-0"}, True),
        (True, {"BROWSER": "firefox"}, True),
        (True, {}, False),
        (True, {"DISPLAY": ""}, False),
        (False, {"DISPLAY": ":0"}, False),
    ],
)
def test_a_browser_is_opened_where_somebody_sits_before_one(
    terminal: bool, variables: dict[str, str], there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    assert ui.has_browser() == there


def test_the_page_is_opened_once_it_is_served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened = tmp_path / "opened"
    monkeypatch.setattr(ui.webbrowser, "open", lambda url: opened.write_text(url))
    with socket.create_server(("127.0.0.1", 0)) as server:
        ui.show("http://127.0.0.1/x#/y", server.getsockname()[1])
    assert opened.read_text() == "http://127.0.0.1/x#/y"


def test_the_server_has_a_page_of_its_paths_which_a_flag_takes_away(tmp_path: Path) -> None:
    need_the_extra()
    fitted("constant").save(tmp_path / "bundle", customers())
    with serving(tmp_path / "bundle", tmp_path / "with") as api:
        page = api.get("/docs")
        assert page.status == 200 and "text/html" in page.headers["content-type"]
        assert "/openapi.json" in page.body.decode()
        assert "/docs" not in api.get("/openapi.json").json["paths"]
        assert api.get("/redoc").status == 404
    with serving(tmp_path / "bundle", tmp_path / "without", "--no-docs", FORGE_SWEEP_API_KEY="k") as api:
        assert api.get("/docs").status == 401
        assert api.get("/docs", X_API_Key="k").status == 404
        assert api.get("/openapi.json", X_API_Key="k").status == 200
