"""The notebook of the documentation, executed from its first cell to its last."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "quickstart.ipynb"


def test_the_notebook_runs_in_an_empty_folder(tmp_path: Path) -> None:
    """A kernel of its own; the tables of the sweep, the findings and the result are shown as tables."""
    try:
        import ipykernel  # noqa: F401
        import nbclient
        import nbformat
    except ImportError:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip("needs a kernel: pip install nbclient ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs: list[Any] = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [output["data"]["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    assert len([page for page in shown if page.startswith("<table>")]) == 4
    assert "not begun; 3 to run" in shown[0]
    refused = [output for output in outputs if output["output_type"] == "error"]
    assert [output["ename"] for output in refused] == ["ExperimentError"]
    assert "golden" in shown[-1], "the gates of the promotion"
    printed = "".join(output["text"] for output in outputs if output.get("name") == "stdout")
    assert "trials: 0 of 3 done" in printed and "\x1b" not in printed, "lines, and no live view"
    assert not [output["text"] for output in outputs if output.get("name") == "stderr"], "no noise of libraries"
    assert (tmp_path / "report.html").exists() and (tmp_path / "mlruns" / "mlflow.db").exists()


def test_the_notebook_is_kept_without_outputs() -> None:
    """They would hold paths and figures of the machine that it was last run on."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    kept = [cell for cell in cells if cell["cell_type"] == "code" and (cell["outputs"] or cell["execution_count"])]
    assert kept == []
