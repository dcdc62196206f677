"""What a person sees: the MLflow UI behind the printed link, in a real browser."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from forge_sweep import sweep
from forge_sweep.bundle.card import Section, card
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


WHOLE = """
<script>
const broken = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  for (const found of walker.currentNode.data.matchAll(/[^\\s-]+/g)) {
    const range = document.createRange();
    range.setStart(walker.currentNode, found.index);
    range.setEnd(walker.currentNode, found.index + found[0].length);
    if (new Set([...range.getClientRects()].map((box) => Math.round(box.top))).size > 1) broken.push(found[0]);
  }
}
document.title = `broken: ${broken.join(" ") || "none"}`;
</script>
"""
"""Names every word of a page that stands on more than one line; a hyphen is a place to break."""


@pytest.mark.parametrize("width", [500, 800, 1400])  # a headless Chromium is no narrower than 500
def test_no_word_of_a_card_is_broken_in_a_narrow_column(browser: str, tmp_path: Path, width: int) -> None:
    """Tables that are wider than the window scroll; cells keep their words whole, categories and digests too."""
    names = ["customer_lifetime_value_in_francs", "missing", "Seniority"]
    kinds = ["categorical", "numeric", "numeric"]
    columns = [
        {"name": name, "kind": kind, "missing": True, "low": None, "high": None, "categories": ["Graubünden"] * 20}
        for name, kind in zip(names, kinds, strict=True)
    ]
    about = {
        "kind": "network",
        "threshold": 0.5,
        "packages": {"tensorflow": "2.21.0", "scikit-learn": "1.9.1"},
        "metadata": {"dataset_version": "loans@0123456789ab", "dataset_digest": "0123456789abcdef" * 4},
    }
    task = {"targets": ["label"], "kind": "binary", "classes": ["no", "yes"]}
    words = "an uncommonly elaborate justification that nobody reads"
    changes = tuple(("2026-05-01T12:00:00", "promote: version 1 -> version 2", "anna@host", words) for _ in range(3))
    registry = Section("Registry", (), ("when (UTC)", "change", "who", "why"), changes)
    page = card(about, task, {"columns": columns}, registry).html()
    free = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    (tmp_path / "card.html").write_text(free.replace("</body>", f"{WHOLE}</body>"), encoding="utf-8")
    flags = [flag for flag in FLAGS if "window-size" not in flag]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [browser, *flags, f"--window-size={width},1200", f"--user-data-dir={profile}"]
        command.append((tmp_path / "card.html").as_uri())
        shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "<title>broken: none</title>" in shown, re.findall("<title>.*</title>", shown)
