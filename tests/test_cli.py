"""The command line as a user meets it."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from forge_sweep import __version__, sweep
from forge_sweep.cli import app
from forge_sweep.cli.watchers import LiveTable
from forge_sweep.study import find_study
from forge_sweep.sweep import Event
from tests.servers import ui
from tests.surface import experiment, fake_run, no_network

FORGE_SWEEP = str(Path(sys.executable).with_name("forge-sweep"))

BROKEN = """
name = "broken"
seed = "seven"
[data]
source = "sample"
name = "diabetes"
taget = "target"
target = "target"
task = "regression"
[model.search]
widht = 3
[objective]
metric = "val_auc"
[study]
pruner = "hyperbnd"
"""


def forge_sweep(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    return subprocess.run([FORGE_SWEEP, *words], cwd=cwd, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one complete sweep on the surface."""
    folder = tmp_path_factory.mktemp("cli") / "mlruns"
    with no_network(fake_run()):
        sweep.run(experiment(), store=folder)
    return folder


def invoke(*words: str) -> str:
    """Standard output of a command that ends well."""
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_five_mistakes_give_five_messages_and_exit_code_2(tmp_path: Path) -> None:
    """All at once, with the nearest spelling, on standard error."""
    (tmp_path / "broken.toml").write_text(BROKEN)
    done = forge_sweep("run", "broken.toml", cwd=tmp_path)
    assert done.returncode == 2
    assert "5 mistakes" in done.stderr
    for word in ("seed", "data.taget", "model.search.widht", "objective.metric", "study.pruner"):
        assert f"  {word}" in done.stderr
    assert not (tmp_path / "mlruns").exists()


def test_unscaled_data_exits_3_and_names_the_range(tmp_path: Path) -> None:
    """The scaler is off and the values are large."""
    (tmp_path / "raw.toml").write_text(
        'name = "raw"\n[data]\nsource = "sample"\nname = "breast_cancer"\ntarget = "target"\ntask = "binary"\n'
        '[preprocessing]\nscaler = "none"\n[model.search]\nwidth = { type = "int", low = 4, high = 8 }\n'
        '[objective]\nmetric = "val_auc"\n'
    )
    done = forge_sweep("run", "raw.toml", cwd=tmp_path)
    assert done.returncode == 3
    assert "worst area" in done.stderr and "4254" in done.stderr.replace(",", "")


@pytest.mark.parametrize("words", [["run", "none.toml"], ["status", "nothing"], ["frobnicate"]])
def test_usage_errors_exit_2(words: list[str], tmp_path: Path) -> None:
    """A missing file, an experiment that was never run, a command that does not exist."""
    done = forge_sweep(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_store_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """Before anything is read or written."""
    (tmp_path / "store").write_text("")
    path = str(Path(__file__).parents[1] / "experiments" / "quickstart.toml")
    done = forge_sweep("run", path, "--store", "store", cwd=tmp_path)
    assert done.returncode == 2 and "store is a file" in done.stderr


def test_a_refusal_is_an_event_too_where_machines_read(tmp_path: Path) -> None:
    """The reason stands in the JSON, not only on standard error."""
    (tmp_path / "broken.toml").write_text(BROKEN)
    done = forge_sweep("run", "broken.toml", "--json", cwd=tmp_path)
    event = json.loads(done.stdout.splitlines()[-1])
    assert event["event"] == "error" and event["exit_code"] == 2 and "5 mistakes" in event["text"]


@pytest.mark.slow
def test_ctrl_c_exits_130_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """The first signal ends the epoch and keeps the books."""
    (tmp_path / "quick.toml").write_text(
        'name = "quick"\n[data]\nsource = "sample"\nname = "iris"\ntarget = "target"\ntask = "multiclass"\n'
        '[model.search]\nwidth = { type = "int", low = 4, high = 8 }\n[objective]\nmetric = "val_log_loss"\n'
        '[study]\npruner = "none"\nn_trials = 200\nepochs = 50\npatience = 50\n[baselines]\nkinds = ["constant"]\n'
    )
    words = [FORGE_SWEEP, "run", "quick.toml", "--json"]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if json.loads(line)["event"] == "epoch")
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command again" in stderr
    states = json.loads(forge_sweep("status", "quick", "--json", cwd=tmp_path).stdout)["trials"]
    assert states["waiting"] == 1 and "running" not in states
    done = sum(states.values()) - 1
    again = forge_sweep("run", "quick.toml", f"study.n_trials={done + 1}", "--json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["trials"] == {"finished": done + 1}


def test_help_and_version_import_no_engine(tmp_path: Path) -> None:
    """So that they answer at once."""
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom forge_sweep.cli import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "engines = {'tensorflow', 'keras', 'mlflow', 'optuna', 'sklearn', 'pandas'}\n"
        "assert not engines & set(sys.modules), engines & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=60)
    assert forge_sweep("--version", cwd=tmp_path).stdout.strip() == f"forge-sweep {__version__}"


def test_status_says_how_far_a_sweep_is_without_tensorflow(store: Path) -> None:
    """In words and as JSON."""
    assert "finished" in invoke("status", "surface", "--store", str(store))
    values = json.loads(invoke("status", "surface", "--store", str(store), "--json"))
    assert sum(values["trials"].values()) == 6 and values["best"]["state"] == "finished"
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom forge_sweep.cli import app\n"
        f"assert CliRunner().invoke(app, ['status', 'surface', '--store', {str(store)!r}]).exit_code == 0\n"
        "assert not {'tensorflow', 'keras', 'mlflow'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_status_says_that_nobody_carries_a_sweep_that_was_killed(store: Path, tmp_path: Path) -> None:
    assert "nobody carries" not in invoke("status", "surface", "--store", str(store))
    assert json.loads(invoke("status", "surface", "--store", str(store), "--json"))["carried"] is False
    killed = subprocess.Popen([sys.executable, "-m", "tests.surface", str(tmp_path / "new"), "50", "0.2"])
    try:
        until = time.monotonic() + 120
        while (study := find_study("surface", tmp_path / "new")) is None or not study.rows():
            assert time.monotonic() < until and killed.poll() is None
            time.sleep(0.1)
        assert "nobody carries" not in invoke("status", "surface", "--store", str(tmp_path / "new"))
    finally:
        killed.kill()
        killed.wait()
    assert "nobody carries this sweep" in invoke("status", "surface", "--store", str(tmp_path / "new"))


def test_trials_lists_every_trial_with_what_was_searched(store: Path) -> None:
    """Fixed hyperparameters are left out of the table and stand in the JSON."""
    text = invoke("trials", "surface", "--store", str(store))
    assert "width" in text and "dropout" in text and "batch_size" not in text
    rows = json.loads(invoke("trials", "surface", "--store", str(store), "--json"))
    assert [row["number"] for row in rows] == list(range(6)) and "batch_size" in rows[0]["params"]


def test_best_names_the_trial_the_verdict_and_the_model(store: Path) -> None:
    """What a user wants to know at the end."""
    text = invoke("best", "surface", "--store", str(store))
    assert text.startswith("winner: trial ") and "models:/surface/1" in text and "best in the search: trial " in text


def test_report_is_one_self_contained_html_file(store: Path, tmp_path: Path) -> None:
    """It holds verdict, trials and plots, and loads nothing from elsewhere."""
    path = tmp_path / "report.html"
    invoke("report", "surface", "--store", str(store), "-o", str(path))
    html = path.read_text(encoding="utf-8")
    assert "models:/surface/1" in html and "Plotly.newPlot" in html and "Slices" in html
    assert "is not estimated from fewer than ten finished trials" in html
    assert 'src="http' not in html and "<link" not in html


def test_the_live_table_counts_what_earlier_processes_did_and_shows_what_runs_now() -> None:
    """On a resumed sweep: states of all trials, best so far, the baseline to beat, the current loss."""
    console = Console(width=200, file=io.StringIO())
    table = LiveTable(console)
    states = {"finished": 3, "pruned": 1}
    trials = {"name": "trials", "total": 10, "done": 4, "states": states, "best": 0.9, "baselines": {"xgboost": 0.85}}
    table.watch(Event("phase", trials))
    table.watch(Event("trial_started", {"number": 4, "params": {}}))
    table.watch(Event("epoch", {"number": 4, "epoch": 2, "metrics": {"loss": 0.5, "val_loss": 0.6}}))
    failed = {"number": 4, "state": "failed", "value": None, "best": 0.9, "failure": "diverged", "cause": "loss is nan"}
    table.watch(Event("trial_done", failed))
    console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "trial 4    failed (diverged): loss is nan" in text
    row = text.splitlines()[-1].split()
    assert row[:6] == ["5/10", "3", "1", "1", "0.9000", "xgboost"]
    assert "trial 4, epoch 2: loss 0.5000, val_loss 0.6000" in text


def test_schema_is_json(tmp_path: Path) -> None:
    """For editors."""
    assert json.loads(invoke("schema"))["title"] == "Experiment"


@pytest.mark.slow
def test_ui_serves_mlflow_and_the_dashboard_on_the_sweeps_own_stores(store: Path) -> None:
    """Both answer, and the link that is printed names this sweep's parent run."""
    parent = json.loads(invoke("best", "surface", "--store", str(store), "--json"))["final"]["run_id"]
    with ui(store) as link:
        assert f"parentRunId%20%3D%20'{parent}'" in link
