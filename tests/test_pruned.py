"""A sample of the pruned trials is trained to its end, outside the result, whatever dies meanwhile."""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from forge_sweep import sweep
from forge_sweep.api import Sweep
from forge_sweep.checks.pruning import Audited, PruningAudit, of_audit
from forge_sweep.cli import app
from forge_sweep.errors import TrialFailed
from forge_sweep.experiment import parse
from forge_sweep.study import find_shared
from forge_sweep.study.diagnosis import sample
from forge_sweep.sweep import SweepResult
from tests.forked import Forked
from tests.surface import EPOCHS, die_after, experiment, fake_run, no_network
from tests.sweeps import STUDY
from tests.test_sweep import curve, runs, study_of

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

PRUNING = {"study__n_trials": 10, "study__sampler": "random", "study__warmup_epochs": 2}


def run(store: Path, share: float, **values: Any) -> SweepResult:
    """A sweep on the known surface, of which some trials are pruned."""
    with no_network(fake_run()):
        return sweep.run(experiment(**PRUNING | values, study__audit_pruned=share), store=store)


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SweepResult, SweepResult]:
    """The store of a complete sweep whose pruned trials were all audited later; its result then, and before."""
    store = tmp_path_factory.mktemp("audit")
    plain = run(store, 0.0)
    return store, run(store, 1.0), plain


def test_an_audit_trains_pruned_trials_to_their_end_and_changes_nothing_of_the_result(audited: Any) -> None:
    store, result, plain = audited
    study = study_of(store)
    pruned = [row for row in study.rows() if row.state == "pruned"]
    assert pruned and result.trials == plain.trials and sum(result.trials.values()) == 10
    for field in ("winner", "best", "test", "verdict", "model", "ended_by", "costs"):
        assert getattr(result, field) == getattr(plain, field)
    audit = result.audit
    assert audit is not None and plain.audit is None
    assert [each["number"] for each in audit["trials"]] == [row.number for row in pruned]
    assert all(each["epochs"] == EPOCHS and each["off"] == 0.0 for each in audit["trials"])
    assert audit["better"] == [] and audit["share"][0] == 0.0 and 0 < audit["share"][1] < 1
    beyond = sum(EPOCHS - row.epochs for row in pruned)
    assert audit["saved"]["epochs"] == beyond > 0 and audit["took"]["seconds"] > 0
    assert "audit_pruned" in result.phases and "audit_pruned" not in plain.phases
    assert study.n_done == 10 and not (store / "checkpoints" / "surface").exists()


def test_nothing_but_the_audit_was_done_and_nothing_of_it_is_done_twice(audited: Any) -> None:
    store, result, _ = audited
    kinds = ("trial", "confirm", "baseline", "sweep", "audit")
    counts = [len(runs(store, kind)) for kind in kinds]
    assert counts == [10, 6, 1, 1, len(result.audit["trials"])]
    again = run(store, 1.0)
    assert again.audit == result.audit and [len(runs(store, kind)) for kind in kinds] == counts


def test_an_audited_trial_is_a_run_of_its_own_kind_below_the_sweep(audited: Any) -> None:
    store, result, _ = audited
    found = runs(store, "audit")
    assert [each.info.status for each in found] == ["FINISHED"] * len(result.audit["trials"])
    assert {each.data.tags["forge.audits"] for each in found} == {
        f"trial-{each['number']:04d}" for each in result.audit["trials"]
    }
    assert curve(store, found[0].info.run_id, "val_auc") == list(range(1, EPOCHS + 1))
    (parent,) = runs(store, "sweep")
    assert parent.data.tags["forge.audit"] == result.audit["words"]
    assert parent.data.metrics["audited"] == len(found) and parent.data.metrics["audited_better"] == 0
    assert parent.data.metrics["seconds_audit_pruned"] >= 0
    assert sweep.reconcile("surface", store, repair=False).differences == ()


def test_an_audit_is_shown_wherever_people_look(audited: Any, tmp_path: Path) -> None:
    store, result, _ = audited
    words = result.audit["words"]

    def invoke(*given: str) -> str:
        done = CliRunner().invoke(app, [*given, "--store", str(store)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    assert f"audit: {words}" in invoke("diagnose", "surface")
    assert json.loads(invoke("diagnose", "surface", "--json"))[-1]["of"] == "audit"
    assert words in invoke("status", "surface")
    assert json.loads(invoke("status", "surface", "--json"))["audit"]["words"] == words
    own = Sweep.open("surface", store=store)
    assert own.audit is not None and own.audit.words() == words
    assert own.result is not None and own.result.audit == json.loads(json.dumps(result.audit)) | {
        "trials": own.result.audit["trials"],
        "share": own.result.audit["share"],
    }
    page = own.report(tmp_path / "report.html").read_text()
    assert "<h2>Diagnosis</h2>" in page and f"Audit of pruned trials: {words}" in page


def test_a_replay_knows_audited_trials_to_their_end(audited: Any) -> None:
    store, result, _ = audited
    own, none = Sweep.open("surface", store=store).replay("median", "none")
    assert (own.trials, own.known, own.unknown) == (10, 10, {}) and none.unknown == {}
    assert own.pruned == len(result.audit["trials"]) and own.epochs_saved == result.audit["saved"]["epochs"]
    assert own.false_prune_rate == 0 and own.winner_survives


@pytest.mark.slow
def test_deaths_in_an_audit_are_made_up_for_by_the_same_command(audited: Any, tmp_path: Path) -> None:
    """First after a run has ended and nothing is noted, then after another one is noted."""
    for point in ("pruned:log_end", "pruned:forget_progress"):
        assert Forked("tests.test_pruned", tmp_path, point).wait() == 9
    assert 0 < len(study_of(tmp_path).notes("audit:")) < len(audited[1].audit["trials"])
    result, whole = run(tmp_path, 1.0), audited[1]
    assert result.audit is not None
    for key in ("better", "share", "best", "pruned", "wanted", "differing"):
        assert result.audit[key] == whole.audit[key]
    assert result.audit["saved"]["epochs"] == whole.audit["saved"]["epochs"]
    assert len(runs(tmp_path, "audit")) == len(whole.audit["trials"])
    assert {each.info.status for each in runs(tmp_path, "audit")} == {"FINISHED"}
    assert result.winner == whole.winner and result.trials == whole.trials


def test_an_audited_training_that_fails_is_noted_and_not_tried_again(tmp_path: Path) -> None:
    small = {"study__n_trials": 5, "confirm__top": 1, "confirm__seeds": 1}
    assert run(tmp_path, 0.0, **small).trials["pruned"]
    with no_network(fake_run(fail=lambda params: TrialFailed("diverged", "nan"))):
        result = sweep.run(experiment(**PRUNING | small, study__audit_pruned=1.0), store=tmp_path)
    assert result.audit is not None and {each["cause"] for each in result.audit["trials"]} == {"diverged: nan"}
    assert "has a score yet" in result.audit["words"] and result.audit["share"] is None
    assert {each.info.status for each in runs(tmp_path, "audit")} == {"FAILED"}
    assert run(tmp_path, 1.0, **small).audit == result.audit


def test_the_sample_follows_from_seed_and_number_and_grows(audited: Any) -> None:
    store, _, _ = audited
    study = study_of(store)
    samples = [{row.number for row in sample(study, share)} for share in (0.0, 0.01, 0.4, 0.7, 1.0)]
    assert samples[0] == set() and len(samples[1]) == 1
    assert all(less <= more for less, more in itertools.pairwise(samples))
    assert samples[-1] == {row.number for row in study.rows() if row.state == "pruned"}


@pytest.mark.slow
def test_real_networks_go_their_recorded_way_on_processes_too(tmp_path: Path) -> None:
    """Two epochs more of one small network: in a worker process, with its own threads."""
    table: dict[str, Any] = {
        **{"name": "real", "objective": {"metric": "val_auc"}, "baselines": {"kinds": ["constant"]}, "seed": 3},
        "data": {"source": "sample", "name": "breast_cancer", "target": "target", "task": "binary"},
        "study": {
            **{"n_trials": 4, "epochs": 5, "sampler": "random", "startup_trials": 1, "warmup_epochs": 1},
            "audit_pruned": 0.1,
        },
        "confirm": {"top": 1, "seeds": 1},
        "model": {"search": {"width": 8, "learning_rate": {"type": "float", "low": 1e-5, "high": 1e-2, "log": True}}},
        "workers": {"kind": "processes", "n": 1},
    }
    result = sweep.run(parse(table, root=tmp_path), store=tmp_path / "mlruns")
    assert result.audit is not None and result.trials["pruned"] > 0
    (one,) = result.audit["trials"]
    assert one["off"] == 0.0 and one["epochs"] > one["pruned_at"] and one["cpu_s"] > 0
    study = find_shared("real", tmp_path / "mlruns")
    assert study is not None and study.audit() is not None


# Of figures alone

ONE = Audited(number=7, pruned_at=5, value=0.93, epochs=30, seconds=12.0, off=0.0)


def audit_of(*trials: Audited, direction: Any = "maximize", best: float = 0.92) -> PruningAudit:
    """An audit of twenty pruned trials."""
    return PruningAudit(direction, pruned=20, wanted=len(trials), best=best, trials=trials)


def test_a_pruned_winner_is_a_finding_with_its_interval() -> None:
    audit = audit_of(ONE, replace(ONE, number=8, value=0.8), replace(ONE, number=9, value=0.7))
    (found,) = of_audit(audit, STUDY)
    assert found.code == "winner-pruned" and "trial 7, pruned after 5 of 30 epochs, comes to 0.93" in found.seen
    assert "1 % to 91 %" in found.seen.replace("%", " %") and found.fix.startswith("warmup_epochs = 10 under [study]")
    assert audit.saved == (20 * 25, pytest.approx(20 * 10.0))
    assert list(of_audit(audit_of(replace(ONE, value=0.9)), STUDY)) == []
    assert [each.number for each in audit_of(ONE, direction="minimize", best=0.94).better] == [7]


def test_a_trial_that_went_another_way_is_said() -> None:
    assert "did not go its recorded way" in audit_of(replace(ONE, off=0.01)).words()
    assert "did not go" not in audit_of(ONE).words()


if __name__ == "__main__":
    from tests import schemas

    schemas.copy_one()
    die_after(sys.argv[2])
    run(Path(sys.argv[1]), 1.0)
