"""The MLflow UI and optuna-dashboard, started on an experiment's own stores."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from forge_sweep.errors import ForgeSweepError, InputError
from forge_sweep.tracking import check_store, default_uri, prepare_store

if TYPE_CHECKING:
    from forge_sweep.study import StudyView

HOST = "127.0.0.1"

STARTING_S = 60
"""How long the MLflow UI may take to start before no browser is opened any more."""

DASHBOARD = """
import os
import optuna_dashboard
optuna_dashboard.run_server(os.environ["FORGE_SWEEP_STORAGE"], host="{host}", port={port})
"""


def serve(study: StudyView, store: Path, port: int, *, echo: Callable[[str], None], open_browser: bool = False) -> None:
    """Start both, print their addresses and wait; Ctrl-C ends both.

    Where MLFLOW_TRACKING_URI names a server, that server has the UI and only the dashboard is started.

    Args:
        study: the study to show.
        store: folder of the embedded stores.
        port: of the MLflow UI; the dashboard takes the next one.
        echo: prints a line.
        open_browser: show the sweep's page in the user's browser once it is served.

    Raises:
        ForgeSweepError: a server exited, for instance because its port is in use.
    """
    for wanted in (port, port + 1):
        _refuse_taken(wanted)
    check_store(store)
    uri = default_uri(store)
    prepare_store(uri, store)  # MLflow's own first opening of a new database is not safe beside a `run`
    commands = {} if uri.startswith("http") else {"MLflow UI": mlflow_command(store, port)}
    commands["optuna-dashboard"] = [sys.executable, "-c", DASHBOARD.format(host=HOST, port=port + 1)]
    link = str(study.notes("sweep:").get("sweep:link", ""))
    where = link[link.find("/#/") :] if link else ""
    shown = link if uri.startswith("http") else f"http://{HOST}:{port}{where}"
    echo(f"MLflow: {shown}")
    echo(f"Optuna: http://{HOST}:{port + 1}")
    # Addresses of databases may hold passwords, which the arguments of a process would show to everybody.
    addresses = {"MLFLOW_BACKEND_STORE_URI": uri, "FORGE_SWEEP_STORAGE": study.url}
    environment = {**os.environ, **addresses, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    running = {name: subprocess.Popen(command, env=environment) for name, command in commands.items()}
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended by a supervisor: end the servers too
    try:
        if open_browser:
            local = None if uri.startswith("http") else port
            threading.Thread(target=show, args=(shown, local), daemon=True).start()
        for name, process in itertools.cycle(running.items()):
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(timeout=0.5)
                hint = "see its own message above; another --port may help"
                raise ForgeSweepError(f"{name} ended with exit code {code}", hint=hint)
    finally:
        signal.signal(signal.SIGTERM, before)
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()


def has_browser() -> bool:
    """Whether a desktop browser is likely: a terminal with a display, not CI, a container or ssh."""
    if not sys.stdout.isatty():
        return False
    if sys.platform in ("darwin", "win32"):
        return "SSH_CONNECTION" not in os.environ
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))


def show(address: str, port: int | None) -> None:
    """Open a page in the browser, once the server on a port of this machine takes connections."""
    if port is not None:
        for _ in range(STARTING_S):
            with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
                break
            time.sleep(1)
        else:
            return
    with contextlib.suppress(webbrowser.Error):
        webbrowser.open(address)


def _refuse_taken(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            hint = f"choose a port that is free along with the next one, such as --port {port + 10}"
            raise InputError(f"port {port} cannot be used: {error.strerror}", hint=hint) from None


def mlflow_command(store: Path, port: int) -> list[str]:
    """The server on the embedded store: one worker (two add 44 ms to each request), this machine only."""
    artifacts = (store / "artifacts").resolve().as_uri()  # a path would be cut off at a ? or #
    where = ["--artifacts-destination", artifacts, "--host", HOST, "--port", str(port)]
    return [sys.executable, "-m", "mlflow", "server", *where, "--workers", "1"]
