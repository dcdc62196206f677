"""Another pruner on recorded curves: what it would have pruned, and what that would have saved."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from forge_sweep.api import Sweep
from forge_sweep.cli import app
from forge_sweep.errors import ExperimentError, ForgeSweepError, InputError
from forge_sweep.experiment import StudySpec
from forge_sweep.study import Study, open_study
from forge_sweep.study.replay import PRUNERS, Recorded, Replayed, replay, replay_study
from tests.test_study import DATASET, experiment, surface

EPOCHS = 9


def curve(params: Any, number: int, epochs: int = EPOCHS) -> list[float]:
    """A curve that rises to the surface's height, some late and some early."""
    speed = 1 + number % 3
    return [surface(params) * (1 - math.exp(-epoch / speed)) for epoch in range(1, epochs + 1)]


def ran(store: Path, pruner: str, n: int = 14) -> Study:
    """A study that ran with one worker; its third trial failed after two epochs."""
    declared = experiment(name=pruner, sampler="random", pruner=pruner, epochs=EPOCHS, n_trials=n, warmup_epochs=2)
    study = open_study(declared, dataset=DATASET, store=store)
    with study.hold():
        while (asked := study.ask()) is not None:
            values, state, best = curve(asked.params, asked.number), "finished", 0.0
            for epoch, value in enumerate(values[:2] if asked.number == 2 else values):
                best = max(best, value)
                if study.report(asked.number, epoch, value):
                    state = "pruned"
                    break
            if asked.number == 2:
                study.tell(asked.number, "failed", None, failure="diverged", cause="nan")
            else:
                study.tell(asked.number, state, best)
    return study


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sweeps: one by Hyperband, and one that nothing was pruned of."""
    folder = tmp_path_factory.mktemp("replay") / "mlruns"
    for pruner in ("hyperband", "none"):
        ran(folder, pruner)
    return folder


def test_its_own_pruner_decides_as_it_did(store: Path, tmp_path: Path) -> None:
    """The same trials, after as many epochs."""
    for pruner in ("median", "successive_halving", "wilcoxon"):
        study = ran(tmp_path, pruner, 9)
        rows = {row.number: row for row in study.rows()}
        (found,) = replay_study(study, [pruner])
        pruned = {number for number, row in rows.items() if row.state == "pruned"}
        assert found.pruned == len(pruned) and found.trials == 8 and found.known == 8 - len(pruned)
        assert found.epochs_saved == 0 and found.unknown == {}  # of what is recorded, nothing is left to save
        assert pruned
        (other,) = replay_study(study, ["none"])
        assert other.unknown == {n: rows[n].epochs for n in pruned} and other.pruned == 0


def test_another_pruner_is_judged_by_the_trials_that_are_known_to_their_end(store: Path) -> None:
    sweep = Sweep(experiment(name="none", sampler="random", epochs=EPOCHS, warmup_epochs=2), store=store)
    found = {each.pruner: each for each in sweep.replay()}
    assert list(found) == list(PRUNERS)
    nothing = found["none"]
    assert (nothing.trials, nothing.known, nothing.pruned, nothing.epochs_saved) == (13, 13, 0, 0)
    assert nothing.winner_survives is True and nothing.false_prune_rate == 0 and nothing.epochs == 13 * EPOCHS
    median = found["median"]
    assert 0 < median.pruned < 13 and 0 < median.epochs_saved < nothing.epochs and median.unknown == {}
    assert median.winner == nothing.winner
    (late,) = sweep.replay("median", warmup_epochs=EPOCHS)
    assert late.pruned == 0 and late.settings == {"warmup_epochs": EPOCHS}


def test_the_same_from_the_command_line(store: Path) -> None:
    def invoke(*words: str) -> str:
        result = CliRunner().invoke(app, ["replay", *words, "--store", str(store)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    assert [line.split()[0] for line in invoke("hyperband").splitlines()[1:7]] == list(PRUNERS)
    shown = json.loads(invoke("none", "--pruner", "median", "--set", "warmup_epochs=1", "--json"))
    (own,) = Sweep.open("none", store=store).replay("median", warmup_epochs=1)
    assert shown == [json.loads(json.dumps(own.to_dict()))]
    for words, said in (
        (("--pruner", "hyperbnd"), 'did you mean "hyperband"?'),
        (("--set", "epochs=3"), "no setting of a pruner"),
        (("--set", "warmup_epochs"), "write it as in TOML"),
        (("--set", "percentile=200"), "study.percentile"),
    ):
        with pytest.raises(ForgeSweepError) as refused:
            invoke("none", *words)
        assert said in f"{refused.value} {refused.value.hint}"


def made(*curves: list[float], whole: bool = True) -> list[Recorded]:
    """Trials of ten seconds with these curves."""
    state = "finished" if whole else "pruned"
    return [Recorded(n, state, dict(enumerate(values, 1)), whole, 10.0) for n, values in enumerate(curves)]


def by_median(trials: list[Recorded]) -> Replayed:
    """What a median pruner makes of it that judges every trial but the first, from the first epoch on."""
    spec = StudySpec(pruner="median", startup_trials=1, warmup_epochs=1, epochs=4)
    return replay("made", trials, spec, "maximize", {})


def test_a_late_winner_that_is_pruned_is_called_false() -> None:
    early, late, worse = [0.5, 0.6, 0.7, 0.7], [0.1, 0.2, 0.5, 0.9], [0.1, 0.1, 0.1, 0.1]
    found = by_median(made(early, late, worse))
    assert found.pruned == 2 and found.would_have_won == (1,)
    assert found.winner == 1 and found.winner_survives is False
    assert (found.top, found.top_pruned, found.false_prune_rate) == (1, 1, 1.0)
    assert (found.epochs, found.epochs_saved, found.seconds_saved) == (12, 6, 15.0)


def test_what_was_pruned_is_unknown_beyond_its_record_and_wins_nothing() -> None:
    found = by_median([*made([0.5, 0.6, 0.7, 0.7]), Recorded(1, "pruned", {1: 0.6, 2: 0.9}, False, 5.0)])
    assert found.unknown == {1: 2} and found.known == 1 and found.winner == 0 and found.pruned == 0


def test_imported_trials_inform_and_are_not_counted() -> None:
    strong = Recorded(0, "finished", {1: 0.9, 2: 0.9, 3: 0.9, 4: 0.9}, True, 1.0, counts=False)
    weak = Recorded(1, "finished", {1: 0.5, 2: 0.5, 3: 0.5, 4: 0.5}, True, 10.0)
    found = by_median([strong, weak])
    assert found.trials == 1 and found.pruned == 1 and found.epochs == 4


def test_a_study_without_a_report_is_refused(tmp_path: Path) -> None:
    study = open_study(experiment(name="new"), dataset=DATASET, store=tmp_path)
    with pytest.raises(InputError, match="no trial that reported"):
        replay_study(study)
    with pytest.raises(InputError, match="is no setting"):
        replay_study(study, ["median"], {"epochs": 3})
    with pytest.raises((InputError, ExperimentError)):
        replay_study(study, ["median"], {"percentile": 200})
