"""What trials on a Ray cluster need of the rest, without a cluster: keys, bundles that travel, lost machines."""

from __future__ import annotations

import importlib.util
import io
import pickle
import zipfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from forge_sweep import trial, workers
from forge_sweep.errors import BundleError, ExperimentError, MissingExtra
from forge_sweep.experiment import Experiment, Params
from forge_sweep.sources import load as load_rows
from forge_sweep.sweep import Event, jobs, pool
from forge_sweep.sweep.jobs import Outcome, Progress, RemoteJob, TrainJob
from forge_sweep.sweep.pool import ClusterArrays
from forge_sweep.trial import Recipe, TrialResult
from forge_sweep.workers import Limits, SerialWorkers, Worker, WorkerLost
from tests.surface import experiment, fake_run
from tests.test_sweep import check_nothing_is_lost, run, study_of


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"kind": "processes", "gpus": 0.5}, r'workers\.gpus = 0\.5: .*set workers\.kind = "ray"'),
        ({"address": "auto"}, r'workers\.address = "auto": .*set workers\.kind = "ray"'),
        ({"wait_s": 5.0}, r'workers\.wait_s = 5\.0: .*beside workers\.kind = "serial"'),
        ({"kind": "ray", "per_gpu": 4}, r"workers\.per_gpu = 4: .*set workers\.gpus = 0\.25"),
        ({"kind": "ray", "gpus": 1.5}, r"workers\.gpus = 1\.5: expected a part of one GPU, or whole ones; set it to 2"),
        ({"kind": "ray", "cpus": 0}, r"workers\.cpus"),
        ({"kind": "ray", "gpu": 1.0}, r"workers\.gpu.*gpus"),
    ],
)
def test_keys_of_another_kind_are_refused_by_name(section: dict[str, Any], words: str) -> None:
    with pytest.raises(ExperimentError, match=words):
        experiment(workers=section)


def test_where_trials_run_is_no_part_of_what_they_are() -> None:
    """A study that was begun in processes goes on on a cluster."""
    assert experiment(workers={"kind": "ray", "gpus": 0.5}).contract() == experiment().contract()


def test_without_ray_the_install_command_is_named_and_nothing_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "ray" else found(name, *more))
    with pytest.raises(MissingExtra, match=r"workers\.kind = \"ray\"(?s:.*)pip install '\.\[ray\]'"):
        run(experiment(workers={"kind": "ray"}), tmp_path / "store")
    assert not (tmp_path / "store").exists()
    with pytest.raises(MissingExtra):
        workers.make(experiment(workers={"kind": "ray"}).workers)


def test_each_process_of_a_cluster_gets_the_threads_of_its_cpus() -> None:
    """The most workers that make sense are the trainings there are."""
    planned = pool.plan(experiment(workers={"kind": "ray", "cpus": 4}, confirm={"top": 5, "seeds": 4}), gpus=0, cores=2)
    assert planned.shared["OMP_NUM_THREADS"] == "4" and planned.n == 20 and planned.memory_bytes is None
    limited = experiment(workers={"kind": "ray", "cpus": 4, "threads": 2, "memory_limit_mb": 100})
    planned = pool.plan(limited, gpus=0, cores=2)
    assert planned.shared["OMP_NUM_THREADS"] == "2" and planned.memory_bytes == 100_000_000


# Bundles.


class Memory:
    """A checkpoint that the driver holds."""

    def __init__(self, content: bytes | None = None) -> None:
        self.content = content

    def load(self) -> bytes | None:
        return self.content

    def save(self, content: bytes) -> None:
        if content == b"too much":
            raise OSError("No space left on device")
        self.content = content


def train_job(keep: Path | None, run: Any = None, checkpoint: Any = None) -> TrainJob:
    spec = experiment()
    dataset = load_rows(spec.data, root=spec.root, seed=spec.seed)
    params = {"width": 8, "dropout": 0.1}
    return TrainJob(
        run or fake_run(), spec, dataset, params, 1, checkpoint or Memory(), keep=keep, golden=dataset.train.features
    )


def ship(shipped: TrainJob) -> list[Outcome]:
    """What comes back of a job that is sent to another machine; its checkpoint is kept here."""
    found: list[Outcome] = []

    def relay(progress: Progress) -> Any:
        if progress.checkpoint is None:
            return False
        try:
            assert shipped.checkpoint is not None
            shipped.checkpoint.save(progress.checkpoint)
        except OSError as error:
            return str(error)
        return None

    def work(worker: Worker) -> None:
        outcome, archive = worker.call(RemoteJob.of(shipped), relay, Limits())
        if shipped.keep is not None:
            jobs.unpack(archive, shipped.keep)
        found.append(outcome)

    SerialWorkers().run(work)
    return found


def test_a_bundle_comes_back_whole_from_a_machine_that_has_no_such_folder(tmp_path: Path) -> None:
    from forge_sweep.bundle import Bundle

    (outcome,) = ship(train_job(tmp_path / "deep" / "confirm-0001-s1"))
    bundle = Bundle.load(tmp_path / "deep" / "confirm-0001-s1", verify=True)
    assert outcome.threshold == bundle.threshold and outcome.state == "finished"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["confirm-0001-s1"]


@dataclass(frozen=True)
class Saving(fake_run):
    """Goes on from a progress, and saves another one."""

    content: bytes = b"second"

    def __call__(self, *words: Any, checkpoint: Any = None, **options: Any) -> TrialResult:
        found = checkpoint.load()
        events: tuple[str, ...] = (f"went on from {found}",)
        try:
            checkpoint.save(self.content)
        except OSError as error:
            events = (*events, str(error))
        return replace(super().__call__(*words, **options), events=events)


def test_progress_travels_with_the_job_and_comes_back_while_it_is_carried_out() -> None:
    kept = Memory(b"first")
    (outcome,) = ship(train_job(None, Saving(), kept))
    assert outcome.events == ("went on from b'first'",)
    assert kept.content == b"second"
    (outcome,) = ship(train_job(None, Saving(content=b"too much"), kept))
    assert outcome.events == ("went on from b'second'", "No space left on device")
    assert kept.content == b"second"


def test_a_job_without_a_bundle_gives_its_figures_only(tmp_path: Path) -> None:
    (outcome,) = ship(train_job(None))
    assert outcome.epochs == 6
    assert not list(tmp_path.iterdir())


def test_a_bundle_that_stands_there_is_replaced_and_a_foreign_folder_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    ship(train_job(folder))
    ship(train_job(folder))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").touch()
    with pytest.raises(BundleError, match="is not a bundle"):
        jobs.unpack(jobs.pack(folder), foreign)
    assert [path.name for path in foreign.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("name", ["../out.json", "/tmp/out.json", "sub/out.json", "..", "a\\out.json", "C:\\out.json"])
def test_an_archive_writes_nothing_outside_its_folder(tmp_path: Path, name: str) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("manifest.json", "{}")
        archive.writestr(name, "evil")
    with pytest.raises(BundleError, match="which is not a file of a bundle"):
        jobs.unpack(file.getvalue(), tmp_path / "in" / "kept")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_is_no_archive_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not an archive"):
        jobs.unpack(b"", tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


# Rows.


@dataclass(frozen=True)
class InPlace:
    """A store that keeps what it is given."""

    value: Any

    def get(self) -> Any:
        return self.value


def test_rows_are_put_into_the_store_once_per_recipe_as_arrays_that_can_be_mapped() -> None:
    spec = experiment()
    dataset = load_rows(spec.data, root=spec.root, seed=spec.seed)
    put: list[Any] = []

    def into_store(value: Any) -> InPlace:
        put.append(value)
        return InPlace(value)

    arrays = ClusterArrays(dataset, into_store)
    recipes = [Recipe.of(spec, scaler) for scaler in ("standard", "minmax", "standard")]
    stored = [arrays.of(recipe) for recipe in recipes]
    assert stored[0] is stored[2] and len(put) == 2
    there, here = stored[1].prepared(recipes[1]), trial.prepare(dataset, recipes[1])
    assert there.origin == here.origin and there.task == here.task
    for name in ("x_train", "y_train", "x_valid", "y_valid"):
        kept, made = getattr(there.data, name), getattr(here.data, name)
        assert kept.flags.c_contiguous and kept.dtype == made.dtype and (kept == made).all()
    buffers: list[pickle.PickleBuffer] = []
    rest = pickle.dumps(put[0], protocol=5, buffer_callback=buffers.append)
    assert sum(len(buffer.raw()) for buffer in buffers) >= there.data.x_train.nbytes > len(rest) // 4


# Machines that are taken away.


@dataclass(frozen=True)
class Spot(fake_run):
    """Loses its machine five times per trial."""

    marks: Path = Path()
    announced: bool = True

    def __call__(
        self, experiment: Experiment, splits: Any, params: Params, seed: int, on_epoch: Any, **options: Any
    ) -> TrialResult:
        lost = len(list(self.marks.glob(f"{seed}-*")))
        if lost < 5:
            (self.marks / f"{seed}-{lost}").touch()
            on_epoch(0, {"loss": 1.0, "val_loss": 1.0, "val_log_loss": 1.0, "val_auc": 0.5, "lr": 1e-3})
            raise WorkerLost("its node was taken away", announced=self.announced)
        return super().__call__(experiment, splits, params, seed, on_epoch, **options)


def test_a_trial_whose_machine_was_taken_away_with_a_word_waits_again_as_often_as_it_takes(tmp_path: Path) -> None:
    """It counts as no attempt, and leaves no second point in a curve."""
    marks = tmp_path / "marks"
    marks.mkdir()
    events: list[Event] = []
    spec = experiment(study__n_trials=2, study__pruner="none", baselines__kinds=["constant"], confirm__top=1)
    run(spec, tmp_path / "store", Spot(marks=marks), watch=events.append)
    check_nothing_is_lost(tmp_path / "store", 2)
    assert [row.attempt for row in study_of(tmp_path / "store").rows()] == [1, 1]
    started = Counter(event.data["number"] for event in events if event.kind == "trial_started")
    assert started == {0: 6, 1: 6}


def test_a_lost_worker_keeps_its_word_when_it_is_pickled() -> None:
    lost = pickle.loads(pickle.dumps(WorkerLost("gone", announced=True)))
    assert str(lost) == "gone" and lost.announced and not WorkerLost("gone").announced
