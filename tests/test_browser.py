"""What a person sees: the MLflow UI behind the printed link, in a real browser."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from forge_sweep import sweep
from tests.servers import ui
from tests.surface import experiment, fake_run, no_network

pytestmark = pytest.mark.slow

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1600,1200",
    "--virtual-time-budget=30000",
    "--dump-dom",
]


@pytest.fixture
def browser() -> str:
    """A Chromium; its absence is a failure in CI."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None and os.environ.get("CI") == "true":
        pytest.fail("CI has no Chromium: .ci/run installs it")
    if found is None:
        pytest.skip("no Chromium on this machine")
    return found


def test_the_printed_link_shows_this_sweeps_trials_with_their_curves(browser: str, tmp_path: Path) -> None:
    """Every trial by name, no baseline and no confirmation among them, and a chart of val_auc."""
    with no_network(fake_run()):
        result = sweep.run(experiment(study__n_trials=4), store=tmp_path / "mlruns")
    with ui(tmp_path / "mlruns") as link, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        assert result.run_id in link
        command = [browser, *FLAGS, f"--user-data-dir={profile}", link]
        page = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    for number in range(4):
        assert f"trial-{number:04d}" in page
    assert "confirm-" not in page and "baseline-" not in page
    assert "val_auc" in page and "matching run" in page
