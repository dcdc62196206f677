"""Samplers of OptunaHub by name, from a folder that stands for the hub: the network is not needed."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from forge_sweep import reproduce, sweep
from forge_sweep.errors import ExperimentError, InputError, MissingExtra, ResumeRefused
from forge_sweep.experiment import Experiment, load
from forge_sweep.study import find_study, join_study
from tests.killed import kill
from tests.surface import experiment as on_surface
from tests.surface import fake_run
from tests.test_study import DATASET, MIXED, drive, embedded_store, experiment, opened, swept
from tests.test_sweep import run, runs

__all__ = ["embedded_store"]

ROOT = Path(__file__).parents[1]
REGISTRY = ROOT / "experiments" / "registry"
WRONG = Path(__file__).parent / "assets" / "registry"
"""Packages that cannot be used as they are."""
NUMBERS = {name: each for name, each in MIXED.items() if name in ("width", "depth", "dropout", "learning_rate")}


@pytest.fixture
def hub() -> None:
    """What needs `optunahub` is left out where that is not installed, but not in CI, which installs it."""
    if importlib.util.find_spec("optunahub") is None:
        assert not os.environ.get("CI"), "CI has to install the extra hub"
        pytest.skip("optunahub is not installed: pip install -e '.[hub]'")


def near_best(space: Any = MIXED, name: str = "hub:samplers/near_best", **study: Any) -> Experiment:
    return experiment(space, sampler=name, **{"sampler_folder": str(REGISTRY), **study})


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("space", [MIXED, NUMBERS])
def test_a_sampler_of_a_folder_suggests_the_same_however_often_it_is_interrupted(space: Any, tmp_path: Path) -> None:
    whole = swept(tmp_path / "whole", near_best(space, n_trials=12))
    for _ in range(3):
        study = opened(tmp_path / "cut", near_best(space, n_trials=12))
        drive(study, at_most=3)
        with study.hold():
            study.requeue()
            assert study.ask() is not None  # and its process dies
    cut = swept(tmp_path / "cut", near_best(space, n_trials=12))
    assert [row.params for row in cut.rows()] == [row.params for row in whole.rows()]
    random = swept(tmp_path / "random", experiment(space, sampler="random", n_trials=12))
    assert [row.params for row in random.rows()] != [row.params for row in whole.rows()]
    assert {type(value) for row in whole.rows() for value in row.params.values()} <= {int, float, str, bool}


@pytest.mark.usefixtures("hub")
def test_which_files_it_was_is_recorded_and_other_ones_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "registry"
    shutil.copytree(REGISTRY, folder)
    spec = near_best(sampler_folder=str(folder), n_trials=4)
    swept(tmp_path / "store", spec)
    view = find_study("fraud", tmp_path / "store")
    assert view is not None
    note = view.notes("sampler")["sampler"]
    assert (note["package"], note["name"], note["ref"]) == ("samplers/near_best", "NearBestSampler", "")
    assert len(note["digest"]) == 64 and note["version"]
    (folder / "samplers/near_best/sampler.py").write_text(
        "# another\n" + (REGISTRY / "samplers/near_best/sampler.py").read_text()
    )
    elsewhere = tmp_path / "elsewhere"  # what is loaded stays loaded: another process would find it so
    folder.rename(elsewhere)
    (tmp_path / "registry").symlink_to(elsewhere)
    with pytest.raises(
        ResumeRefused, match=r"another version of samplers/near_best:\n  digest of its files"
    ) as refused:
        opened(tmp_path / "store", spec)
    assert "study.sampler_ref" in refused.value.hint
    with pytest.raises(ResumeRefused):
        join_study(spec, dataset=DATASET, store=tmp_path / "store")


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("name", "said", "fix"),
    [
        ("hub:samplers/shifty", "ShiftySampler takes no seed", "argument seed"),
        ("hub:samplers/two", "samplers/two has 2 samplers", '"hub:samplers/two:PlainSampler"'),
        ("hub:samplers/two:NeedySampler", "cannot be built without search_space", "study.sampler_folder"),
        ("hub:samplers/two:Other", "has no sampler Other", '"hub:samplers/two:NeedySampler"'),
        ("hub:samplers/too", "has no package samplers/too", "samplers/two"),
    ],
)
def test_what_cannot_be_used_is_refused_before_there_is_a_study(name: str, said: str, fix: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said) as refused:
        opened(tmp_path, near_best(name=name, sampler_folder=str(WRONG)))
    assert fix in refused.value.hint and find_study("fraud", tmp_path) is None
    assert (
        swept(tmp_path, near_best(name="hub:samplers/two:PlainSampler", n_trials=2, sampler_folder=str(WRONG))).n_done
        == 2
    )


@pytest.mark.usefixtures("hub")
def test_a_package_that_does_not_run_says_why(tmp_path: Path) -> None:
    (tmp_path / "samplers/broken").mkdir(parents=True)
    (tmp_path / "samplers/broken/__init__.py").write_text("import no_such_package_of_theirs\n")
    with pytest.raises(InputError, match=r"cannot be imported: No module named 'no_such_package_of_theirs'"):
        opened(tmp_path, near_best(name="hub:samplers/broken", sampler_folder=str(tmp_path)))
    (tmp_path / "samplers/broken/__init__.py").write_text("1 / 0\n")
    with pytest.raises(InputError, match=r"cannot be loaded: ZeroDivisionError: division by zero"):
        opened(tmp_path, near_best(name="hub:samplers/broken", sampler_folder=str(tmp_path)))


@pytest.mark.usefixtures("hub")
def test_the_hub_is_asked_for_the_package_and_the_ref(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`auto` is Optuna's AutoSampler, from `main` where no ref is stated; a hub that cannot be reached is said."""
    import optunahub

    asked = []

    def fetch(package: str, *, ref: str) -> Any:
        asked.append((package, ref))
        raise ConnectionError("github.com cannot be reached")

    monkeypatch.setattr(optunahub, "load_module", fetch)
    for study in ({"sampler": "auto"}, {"sampler": "hub:samplers/smac", "sampler_ref": "0123abcd"}):
        with pytest.raises(InputError, match=r"cannot be loaded: ConnectionError: github\.com") as refused:
            opened(tmp_path, experiment(**study))
        assert "OPTUNAHUB_CACHE_HOME" in refused.value.hint
    assert asked == [("samplers/auto_sampler", "main"), ("samplers/smac", "0123abcd")]


@pytest.mark.usefixtures("hub")
def test_a_changed_space_and_repeats(tmp_path: Path) -> None:
    swept(tmp_path, near_best(n_trials=2))
    with pytest.raises(ResumeRefused, match=r"another search space") as refused:
        opened(tmp_path, near_best({**MIXED, "depth": 2}))
    assert "may keep where it is" in refused.value.hint
    few = swept(
        tmp_path / "few",
        near_best(
            {**NUMBERS, **dict.fromkeys(("width", "dropout"), 0), "width": 16, "dropout": 0.1, "learning_rate": 1e-3},
            n_trials=9,
        ),
    )
    assert few.n_done == 4  # depth 1 to 4, each once


def test_without_optunahub_the_install_command_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "optunahub" else find(name, *more)
    )
    for name in ("auto", "hub:samplers/near_best"):
        with pytest.raises(MissingExtra, match=rf'study\.sampler = "{name}" needs packages') as missing:
            opened(tmp_path, experiment(sampler=name))
        assert "pip install '.[hub]'" in missing.value.hint


@pytest.mark.parametrize(
    ("study", "said"),
    [
        ({"sampler": "hub"}, "study.sampler"),
        ({"sampler": "hub:../evil"}, "study.sampler"),
        ({"sampler": "tpe", "sampler_ref": "main"}, "which is not of OptunaHub"),
        ({"sampler": "auto", "sampler_ref": "main", "sampler_folder": "here"}, "nothing beside sampler_folder"),
        ({"sampler": "auto", "sampler_ref": "--upload-pack=evil"}, "study.sampler_ref"),
    ],
)
def test_what_names_no_sampler_is_refused(study: dict[str, str], said: str) -> None:
    with pytest.raises(ExperimentError) as refused:
        experiment(**study)
    assert said in str(refused.value)


@pytest.mark.usefixtures("hub")
def test_a_whole_sweep_tags_its_run_with_the_sampler(tmp_path: Path) -> None:
    spec = on_surface(
        study={"n_trials": 4, "epochs": 6, "sampler": "hub:samplers/near_best", "sampler_folder": str(REGISTRY)}
    )
    result = run(spec, tmp_path, fake_run())
    assert result.trials
    (parent,) = runs(tmp_path, "sweep")
    assert '"package": "samplers/near_best"' in parent.data.tags["forge.sampler"]


@pytest.mark.slow
@pytest.mark.usefixtures("hub")
def test_the_example_of_a_sampler_of_ones_own(tmp_path: Path) -> None:
    """experiments/own_sampler.toml, whose sampler lies beside it, killed in its second trial."""
    words = ["study.n_trials=3", "study.epochs=2", "confirm.top=1", "confirm.seeds=1", 'baselines.kinds=["constant"]']
    kill("own_sampler", tmp_path, "epoch", 1, 2, words)
    result = sweep.run(load(ROOT / "experiments/own_sampler.toml", words), store=tmp_path)
    assert sum(result.trials.values()) == 3
    assert [row.attempt for row in find_study("own_sampler", tmp_path).rows()] == [1, 2, 1]
    (last,) = (child for child in runs(tmp_path, "trial") if child.info.run_name == "trial-0002")
    assert reproduce.reproduce(last.info.run_id, store=tmp_path).verdict.word == "exact"
