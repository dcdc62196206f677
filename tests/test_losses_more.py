"""What the registry and the experiment lost, writes that come late, and a process killed at each step of the end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from forge_sweep.cli import app
from forge_sweep.errors import InputError, TrackingDown
from forge_sweep.study import find_shared
from forge_sweep.sweep import Event, reconcile
from forge_sweep.tracking import Tracker
from tests.forked import Forked
from tests.surface import experiment
from tests.test_losses import again, everything, parent_of, run, seen, store, swept  # noqa: F401  # the fixtures
from tests.test_sweep import check_nothing_is_lost, client, study_of


def test_files_of_a_version_that_are_gone_are_trained_and_put_back_in_their_place(tmp_path: Path) -> None:
    """It stays one version of one logged model, and the test rows are not looked at again."""
    spec = experiment(study__n_trials=2)
    run(spec, tmp_path)
    (files,) = (tmp_path / "artifacts" / "surface" / "models").iterdir()
    whole = {path.relative_to(files) for path in files.rglob("*")}
    shutil.rmtree(files)
    assert seen(reconcile("surface", tmp_path, repair=True)) == [("model models:/surface/1", "gone from the registry")]
    said: list[str] = []
    result = run(spec, tmp_path, watch=lambda event: said.append(str(event.data.get("text", ""))))
    assert any("and so are its files: the winner is trained again" in text for text in said)
    assert result.model == "models:/surface/1"
    assert {path.relative_to(files) for path in files.rglob("*")} == whole
    assert reconcile("surface", tmp_path, repair=False).differences == ()
    assert len((tmp_path / "test_looks.jsonl").read_text().splitlines()) == 1


def test_a_registered_model_that_was_deleted_comes_back_with_its_version(store: Path) -> None:  # noqa: F811
    client(store).delete_registered_model("surface")
    result, _ = again(store)
    name, _, version = result.model.removeprefix("models:/").rpartition("/")
    assert str(client(store).get_model_version_by_alias(name, "challenger").version) == version
    assert reconcile("surface", store, repair=False).differences == ()


@pytest.mark.parametrize("by", ["reconcile", "run"])
def test_an_alias_that_was_removed_is_set_again(store: Path, by: str) -> None:  # noqa: F811
    client(store).delete_registered_model_alias("surface", "challenger")
    if by == "run":
        assert any("is @challenger again" in text for text in again(store)[1])
    else:
        assert seen(reconcile("surface", store, repair=True)) == [("model models:/surface/1", "without an alias")]
    assert str(client(store).get_model_version_by_alias("surface", "challenger").version) == "1"
    assert reconcile("surface", store, repair=False).differences == ()


def test_an_alias_that_a_promotion_took_away_is_not_set_again(store: Path) -> None:  # noqa: F811
    client(store).delete_registered_model_alias("surface", "challenger")
    client(store).set_registered_model_alias("surface", "champion", "1")
    again(store)
    assert reconcile("surface", store, repair=True).differences == ()
    assert set(client(store).get_registered_model("surface").aliases) == {"champion"}


def test_an_experiment_that_was_deleted_is_refused_with_the_command_that_restores_it(store: Path) -> None:  # noqa: F811
    home = client(store).get_experiment_by_name("surface").experiment_id
    client(store).delete_experiment(home)
    for command in (lambda: reconcile("surface", store, repair=True), lambda: again(store)):
        with pytest.raises(InputError, match=f"was deleted(.|\\n)*restore --experiment-id {home},"):
            command()
    client(store).restore_experiment(home)
    assert reconcile("surface", store, repair=False).differences == ()


def test_the_winners_run_and_its_version_come_back_together(store: Path) -> None:  # noqa: F811
    version = client(store).get_model_version("surface", "1")
    client(store).delete_run(version.run_id)
    client(store).delete_model_version("surface", "1")
    result, said = again(store)
    assert any("had lost a part of surface: confirm-" in text for text in said)
    name, _, number = result.model.removeprefix("models:/").rpartition("/")
    assert client(store).get_model_version(name, number).run_id == version.run_id
    assert reconcile("surface", store, repair=False).differences == ()


def test_a_model_that_is_gone_is_not_announced(store: Path) -> None:  # noqa: F811
    words = ["best", "surface", "--store", str(store)]
    assert CliRunner().invoke(app, words).exit_code == 0
    client(store).delete_model_version("surface", "1")
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 1 and "models:/surface/1 is gone from MLflow" in found.stderr
    assert found.stdout == "", "the error stands in the place of the model"
    found = CliRunner().invoke(app, [*words, "--json"])
    assert found.exit_code == 1 and "gone from MLflow" in json.loads(found.stdout)["gone"]
    page = store / "report.html"
    found = CliRunner().invoke(app, ["report", "surface", "--store", str(store), "--output", str(page)])
    assert found.exit_code == 0
    assert "the report names a model: models:/surface/1 is gone from MLflow" in found.stderr


def test_writes_that_come_late_take_nothing_newer_back(store: Path) -> None:  # noqa: F811
    """What was refused long ago is filled in; statuses, tags and the trials of living processes stay."""
    study = find_shared("surface", store)
    assert study is not None
    key = study.notes("sweep:")["sweep:begin"]["key"]
    living = Tracker("surface", store)
    living.run(f"{key}/trial-0000", "trial-0000", kind="trial", parent=key)
    trial = f"{key}/trial-0001"
    records = [
        {"op": "reap", "key": key, "states": {}, "ended": 1},
        {"op": "tags", "key": key, "values": {"forge.state": "stale", "note": "late"}},
        {"op": "open", "key": trial, "name": "x", "parent": key, "tags": {"forge.state": "running"}, "params": {}}
        | {"started": 1},
        {"op": "metrics", "key": trial, "rows": [["extra", 1.0, 1, 0]], "once": True},
        {"op": "end", "key": trial, "rows": [], "figures": [], "tags": {"forge.state": "failed"}, "status": "FAILED"}
        | {"ended": 1},
    ]
    (store / "journal").mkdir(exist_ok=True)
    aside = store / "journal" / "surface.refused.jsonl"
    aside.write_text("".join(json.dumps({**record, "reason": "x"}) + "\n" for record in records))
    before = everything(store)["trial-0001"]
    with Tracker("surface", store) as tracker:
        assert tracker.missing() == ""
    after = everything(store)
    assert after["trial-0000"].info.status == "RUNNING"
    assert (after["trial-0001"].info.status, after["trial-0001"].info.end_time) == (
        before.info.status,
        before.info.end_time,
    )
    assert after["trial-0001"].data.tags == before.data.tags
    assert after["trial-0001"].data.metrics == {**before.data.metrics, "extra": 1.0}
    tags = parent_of(store).data.tags
    assert (tags["forge.state"], tags["note"]) == ("finished", "late")
    living.close()


def test_what_mlflow_refuses_is_left_by_reconcile_with_the_reason_on_record(store: Path) -> None:  # noqa: F811
    key = parent_of(store).data.tags["forge.key"]
    record = {"op": "metrics", "key": key, "rows": [["bad[0]", 1.0, 1, 0]], "once": False, "reason": "x"}
    (store / "journal").mkdir(exist_ok=True)
    aside = store / "journal" / "surface.refused.jsonl"
    aside.write_text(json.dumps(record) + "\n")
    words = ["reconcile", "surface", "--store", str(store)]
    found = CliRunner().invoke(app, [*words, "--json"])
    assert found.exit_code == 1
    (one,) = json.loads(found.stdout)["differences"]
    assert one["what"] == "journal" and not one["repaired"]
    assert "bad[0]" in json.loads(aside.read_text())["reason"]
    aside.write_text(json.dumps({**record, "rows": [["good", 1.0, 1, 0]]}) + "\n")
    assert CliRunner().invoke(app, words).exit_code == 0
    assert CliRunner().invoke(app, words).stdout == "surface: nothing to repair\n"
    assert parent_of(store).data.metrics["good"] == 1.0


END = (
    "sources.base:_append_line",
    "publish:evaluate",
    "tracking.registration:_upload",
    "tracking.registration:_log_model",
    "tracking.registration:_version_of",
    "tracking.registration:set_alias",
)
"""From the line in the ledger of looks to the alias."""


@pytest.mark.slow
def test_a_look_that_is_killed_while_mlflow_is_down_is_one_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert Forked("tests.surface", tmp_path, 1, 0.0, "publish:evaluate").wait() == 9
    with pytest.raises(TrackingDown, match="is not registered"):
        run(experiment(study__n_trials=1), tmp_path)
    (line,) = (tmp_path / "test_looks.jsonl").read_text().splitlines()
    assert json.loads(line)["run"].startswith("surface/")


@pytest.mark.slow
def test_a_sweep_that_is_killed_at_each_step_of_its_end_looks_once_and_registers_once(tmp_path: Path) -> None:
    for point in END:
        assert Forked("tests.surface", tmp_path, 2, 0.0, point).wait() == 9, point
    said: list[str] = []

    def watch(event: Event) -> None:
        said.append(str(event.data.get("text", "")))

    result = run(experiment(study__n_trials=2), tmp_path, watch=watch)
    check_nothing_is_lost(tmp_path, 2)
    assert len((tmp_path / "test_looks.jsonl").read_text().splitlines()) == 1
    assert not [text for text in said if "test evaluation 2" in text]
    assert result.model == "models:/surface/1"
    assert len(client(tmp_path).search_model_versions("name = 'surface'")) == 1
    home = client(tmp_path).get_experiment_by_name("surface").experiment_id
    (model,) = client(tmp_path).search_logged_models([home])
    assert model.status == "READY"
    assert str(client(tmp_path).get_model_version_by_alias("surface", "challenger").version) == "1"
    assert study_of(tmp_path).final() is not None
