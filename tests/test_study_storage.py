"""What a trial costs on the study's database, and that nothing but the cost differs from Optuna's own storage."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.distributions import FloatDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from forge_sweep import sweep
from forge_sweep.errors import TrialTaken
from forge_sweep.experiment import Experiment, parse
from forge_sweep.study import Study, open_study, pruners
from forge_sweep.study.database import Database, Full, Outage
from forge_sweep.study.storage import embedded_url, open_storage
from tests.postgres import database, server  # noqa: F401
from tests.surface import experiment, fake_run, no_network

DATASET = {"version": "cards@abc", "digest": "a" * 64, "split_digest": "b" * 64}


@pytest.fixture(autouse=True)
def embedded_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORGE_SWEEP_STORAGE", raising=False)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return embedded_url(tmp_path)


@pytest.fixture
def postgres_url(request: pytest.FixtureRequest) -> str:
    make: Callable[[], str] = request.getfixturevalue("database")
    return make().replace("postgresql://", "postgresql+psycopg://")


def write_everything(storage: Database | RDBStorage, name: str) -> None:
    """Trials of every state with every kind of value, through Optuna's cache as a sweep writes them."""
    study = optuna.create_study(storage=storage, study_name=name)
    study_id = storage.get_study_id_from_name(name)
    for number in range(6):
        trial = study.ask()
        id = storage.get_trial_id_from_study_id_trial_number(study_id, number)
        trial.suggest_int("width", 16, 256, log=True)
        trial.suggest_float("rate", 1e-4, 1e-2, log=True)
        if number % 2:
            trial.suggest_categorical("optimizer", ["adam", "sgd", None, 1.5, True])
        trial.set_user_attr("params", {"width": 64, "name": "ä"})
        trial.set_user_attr("params", {"width": 65})
        storage.set_trial_system_attr(id, "completed_rung_0", 0.5)
        for step, value in enumerate((0.5, math.nan, math.inf, -math.inf), start=1):
            trial.report(value, step)
        if number < 2:
            study.tell(trial, [1.5, math.inf][number])
        elif number == 2:
            study.tell(trial, state=TrialState.FAIL)
        elif number == 3:
            trial.report(0.25, 5)
            study.tell(trial, state=TrialState.PRUNED)
        elif number == 5:
            storage.set_trial_state_values(id, TrialState.WAITING)


def seen(trials: list[optuna.trial.FrozenTrial]) -> list[Any]:
    """Trials without their ids, times and drawn values; NaN as a word."""
    return [
        (
            trial.number,
            trial.state,
            repr(trial.values),
            list(trial.params),
            trial.distributions,
            trial.user_attrs,
            trial.system_attrs,
            repr(sorted(trial.intermediate_values.items())),
            trial.datetime_complete is not None and trial.datetime_start <= trial.datetime_complete,
        )
        for trial in trials
    ]


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def test_trials_are_written_and_read_as_by_optuna(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """What one of them wrote, both read alike, all at once, one by one, and what a cache asks for."""
    url = request.getfixturevalue(f"{kind}_url")
    ours = open_storage(url, tmp_path)
    theirs = RDBStorage(url)
    write_everything(ours, "ours")
    write_everything(theirs, "theirs")
    read: dict[str, list[Any]] = {}
    for name in ("ours", "theirs"):
        study_id = theirs.get_study_id_from_name(name)
        trials = theirs.get_all_trials(study_id)
        assert [repr(trial) for trial in ours.get_all_trials(study_id)] == [repr(trial) for trial in trials]
        ids = [ours.get_trial_id_from_study_id_trial_number(study_id, trial.number) for trial in trials]
        assert [repr(ours.get_trial(id)) for id in ids] == [repr(trial) for trial in trials]
        read[name] = seen(trials)
    assert read["ours"] == read["theirs"]
    for storage in (ours, theirs):
        with pytest.raises(KeyError):
            storage.get_trial(10_000)
        with pytest.raises(KeyError):
            storage.get_all_trials(10_000)
        with pytest.raises(KeyError):
            storage.get_study_user_attrs(10_000)
        with pytest.raises(KeyError):
            storage.set_trial_user_attr(10_000, "key", 1)
        storage.engine.dispose()


def test_more_trials_than_one_statement_can_name_are_read(sqlite_url: str, tmp_path: Path) -> None:
    """In parts; parameters drawn from equal ranges share one object."""
    storage = open_storage(sqlite_url, tmp_path)
    study = optuna.create_study(storage=storage, study_name="many")
    ranges = {"x": FloatDistribution(0, 1)}
    study.add_trials([optuna.create_trial(params={"x": n / 1100}, distributions=ranges, value=n) for n in range(1100)])
    trials = optuna.load_study(storage=open_storage(sqlite_url, tmp_path), study_name="many").trials
    assert [trial.params["x"] for trial in trials] == [n / 1100 for n in range(1100)]
    assert [trial.value for trial in trials] == list(range(1100))


def test_a_trial_that_has_ended_takes_no_more(sqlite_url: str, tmp_path: Path) -> None:
    """As with Optuna's storage, whatever is written."""
    storage = open_storage(sqlite_url, tmp_path)
    study = optuna.create_study(storage=storage, study_name="ended")
    study.ask()
    id = storage.get_trial_id_from_study_id_trial_number(storage.get_study_id_from_name("ended"), 0)
    storage.set_trial_state_values(id, TrialState.COMPLETE, [1.0])
    late: list[Callable[[], object]] = [
        lambda: storage.set_trial_user_attr(id, "a", 1),
        lambda: storage.set_trial_system_attr(id, "a", 1),
        lambda: storage.set_trial_intermediate_value(id, 1, 1.0),
        lambda: storage.set_trial_param(id, "x", 1.0, FloatDistribution(0, 1)),
        lambda: storage.set_trial_state_values(id, TrialState.FAIL),
    ]
    for write in late:
        with pytest.raises(UpdateFinishedTrialError):
            write()
    (trial,) = storage.get_all_trials(storage.get_study_id_from_name("ended"))
    assert (trial.state, trial.value, trial.user_attrs) == (TrialState.COMPLETE, 1.0, {})


def test_a_parameter_keeps_its_kind_within_a_study(sqlite_url: str, tmp_path: Path) -> None:
    """Also for a process that has not yet seen where it was drawn from first."""
    first = open_storage(sqlite_url, tmp_path)
    study = optuna.create_study(storage=first, study_name="kinds")
    study.ask().suggest_int("x", 1, 3)
    later = open_storage(sqlite_url, tmp_path)
    trial = optuna.load_study(storage=later, study_name="kinds").ask()
    with pytest.raises(ValueError, match="different distribution kind"):
        trial.suggest_float("x", 0, 1)
    trial.suggest_categorical("y", [1, 2])
    with pytest.raises(ValueError, match="dynamic value space"):
        study.ask().suggest_categorical("y", [1, 3])


def test_a_collected_trial_is_written_in_one_transaction_or_not_at_all(sqlite_url: str, tmp_path: Path) -> None:
    """A kill leaves all of it or nothing; so does an exception."""
    storage = open_storage(sqlite_url, tmp_path)
    storage.owner = "me"
    study = optuna.create_study(storage=storage, study_name="together")

    def create() -> optuna.Trial:
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        trial.suggest_int("y", 0, 9)
        trial.set_user_attr("a", 1)
        return trial

    with pytest.raises(ZeroDivisionError), storage.collecting():
        create()
        raise ZeroDivisionError
    assert storage.get_all_trials(storage.get_study_id_from_name("together")) == []

    with counted() as counts:
        with storage.collecting():
            trial = create()
            looked = counts["optuna"]
        assert counts["optuna"] - looked == 2, "the trial, and the look whether it got its number"
    trial.report(0.5, 1)
    study.tell(trial, 1.0)
    (left,) = open_storage(sqlite_url, tmp_path).get_all_trials(storage.get_study_id_from_name("together"))
    assert (left.state, left.params, left.value) == (TrialState.COMPLETE, trial.params, 1.0)
    assert (left.user_attrs, left.intermediate_values) == ({"a": 1, "forge.owner": "me"}, {1: 0.5})


@pytest.mark.parametrize(("limit", "error"), [(9, TrialTaken), (1, Full)])
def test_a_trial_that_another_process_made_under_the_same_number_is_not_run(
    sqlite_url: str, tmp_path: Path, limit: int, error: type[Exception]
) -> None:
    """It takes a lost turn: the process that comes second lets its trial wait to be found, or ends it."""
    storage, other = (open_storage(sqlite_url, tmp_path) for _ in range(2))
    storage.owner, storage.limit = "me", limit
    study = optuna.create_study(storage=storage, study_name="twice")
    with pytest.raises(error), storage.collecting():
        study.ask()
        other.create_new_trial(storage.get_study_id_from_name("twice"))
    first, second = study.get_trials()
    assert first.user_attrs == {} and second.user_attrs["forge.owner"] == "me"
    assert second.state == (TrialState.RUNNING if error is TrialTaken else TrialState.FAIL)


@pytest.mark.parametrize("owned", [False, True])
def test_a_cache_sees_what_other_processes_did(sqlite_url: str, tmp_path: Path, owned: bool) -> None:
    """New trials, ended ones and changed ones, whether this process is sure of its own or not."""
    here, there = (open_storage(sqlite_url, tmp_path) for _ in range(2))
    here.owner, here.surely_alive = "me", lambda: owned
    study = optuna.create_study(storage=here, study_name="seen")
    with here.collecting():
        mine = study.ask()
    assert [trial.number for trial in study.get_trials()] == [0]
    others = optuna.load_study(storage=there, study_name="seen")
    one, two = others.ask(), others.ask()
    one.set_user_attr("a", 1)
    others.tell(two, 2.0)
    mine.set_user_attr("b", 1)
    assert [trial.user_attrs.get("a") for trial in study.get_trials()] == [None, 1, None]
    assert [trial.user_attrs.get("b") for trial in study.get_trials()] == [1, None, None]
    assert [trial.state.name for trial in study.get_trials()] == ["RUNNING", "RUNNING", "COMPLETE"]
    one.set_user_attr("a", 2)
    others.tell(one, 1.0)
    assert [trial.value for trial in study.get_trials(states=(TrialState.COMPLETE,))] == [1.0, 2.0]
    study.tell(mine, 0.0)
    assert [trial.value for trial in study.get_trials(states=(TrialState.COMPLETE,))] == [0.0, 1.0, 2.0]
    assert repr(study.get_trials()) == repr(others.get_trials())


def test_an_outage_that_one_call_did_not_wait_for_ends_with_the_next_one(
    sqlite_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A report is not waited for; that the database is back is said by whatever call comes first, and once."""
    storage = open_storage(sqlite_url, tmp_path)
    for _ in range(2):
        storage.say_down(Outage("the study database does not answer"))
        storage.get_all_studies()
        storage.get_all_studies()
    said = [text for text in caplog.messages if "study database" in text]
    assert len(said) == 4 and said[1] == said[3] == "the study database answers again"


def test_a_deleted_study_is_not_remembered_by_its_name(sqlite_url: str, tmp_path: Path) -> None:
    """The name may be given again."""
    storage = open_storage(sqlite_url, tmp_path)
    optuna.create_study(storage=storage, study_name="again")
    optuna.create_study(storage=storage, study_name="other")
    storage.delete_study(storage.get_study_id_from_name("again"))
    with pytest.raises(KeyError):
        storage.get_study_id_from_name("again")


# Pruners are asked only where they have a say


def spec_of(pruner: str, epochs: int = 20, startup_trials: int = 3) -> Experiment:
    return parse(
        {
            "name": "fraud",
            "data": {"source": "file", "path": "x.csv", "target": "y", "task": "binary"},
            "model": {"search": {"width": {"type": "int", "low": 1, "high": 1000}}},
            "objective": {"metric": "val_auc"},
            "study": {
                "pruner": pruner,
                "n_trials": 40,
                "epochs": epochs,
                "warmup_epochs": 2,
                "startup_trials": startup_trials,
            },
        },
        root=Path(),
    )


def pruned_at(study: Study) -> list[tuple[int, int]]:
    """Run all trials, some of them interrupted by a death on the way; where each ended."""
    ends = []
    with study.hold():
        study.requeue()
        while asked := study.ask():
            height = float(asked.params["width"]) / 100
            for epoch in range(20):
                value = math.nan if asked.number == 11 and epoch > 4 else height * (epoch + 1) / 20
                if study.report(asked.number, epoch, value):
                    break
                if asked.attempt == 1 and asked.number % 7 == 3 and epoch == asked.number % 11:
                    study.lose(asked.number)
                    break
            else:
                ends.append((asked.number, 20))
                study.tell(asked.number, "finished", height)
                continue
            if asked.number in study._running:
                ends.append((asked.number, epoch))
                study.tell(asked.number, "pruned", height)
    return ends


@pytest.mark.parametrize("pruner", ["hyperband", "successive_halving", "median"])
def test_a_pruner_that_is_asked_at_its_rungs_alone_prunes_the_same_trials(
    pruner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the same epochs as one that is asked after each, and reads all trials each time."""
    ends = pruned_at(open_study(spec_of(pruner), dataset=DATASET, store=tmp_path / "rungs"))
    monkeypatch.setattr(pruners, "has_a_say", lambda spec, before, step: True)
    assert ends == pruned_at(open_study(spec_of(pruner), dataset=DATASET, store=tmp_path / "always"))
    assert len(ends) == 40 and 5 < sum(epoch < 20 for _, epoch in ends) < 40


def test_rungs_are_those_of_the_pruner_and_a_gap_is_made_up_for() -> None:
    """First rung 2, then 6 and 18; after a gap, the rung within it counts."""
    spec = spec_of("hyperband").study
    assert [step for step in range(1, 21) if pruners.has_a_say(spec, step - 1, step)] == [2, 6, 18]
    assert pruners.has_a_say(spec, 0, 20) and pruners.has_a_say(spec, 5, 7)
    assert not pruners.has_a_say(spec, 6, 17)
    assert not pruners.has_a_say(spec_of("none").study, 0, 20)
    median = spec_of("median").study
    assert [pruners.has_a_say(median, step - 1, step) for step in (1, 2, 3)] == [False, True, True]


@pytest.mark.parametrize("pruner", ["median", "percentile"])
def test_a_trial_that_another_process_completed_counts_at_the_next_epoch(pruner: str, tmp_path: Path) -> None:
    spec = spec_of(pruner, startup_trials=1)
    study, other = (open_study(spec, dataset=DATASET, store=tmp_path) for _ in range(2))
    with study.join(), other.join():
        mine, theirs = study.ask(), other.ask()
        assert mine is not None and theirs is not None
        for epoch in range(8):
            assert not other.report(theirs.number, epoch, 0.9)
        assert not any(study.report(mine.number, epoch, 0.1) for epoch in range(2, 5))
        other.tell(theirs.number, "finished", 0.9)
        assert study.report(mine.number, 5, 0.1)


def test_between_the_ends_of_trials_the_pruner_reads_no_trial(tmp_path: Path) -> None:
    """An epoch costs the report, and a look whether there is a new trial."""
    study = open_study(spec_of("median", startup_trials=1), dataset=DATASET, store=tmp_path)
    first = study.ask()
    assert first is not None
    study.report(first.number, 0, 0.5)
    study.tell(first.number, "finished", 0.5)
    second = study.ask()
    assert second is not None
    for epoch in range(3):
        study.report(second.number, epoch, 0.6)
    with counted() as transactions:
        for epoch in range(3, 9):
            assert not study.report(second.number, epoch, 0.6)
    assert transactions["optuna"] == 2 * 6


@pytest.mark.parametrize(
    ("pruner", "steps"),
    [("none", []), ("hyperband", [2, 6, 18]), ("median", [*range(1, 20)]), ("wilcoxon", [*range(1, 20)])],
)
def test_optuna_has_the_reports_that_a_pruner_reads_and_the_study_has_all(
    pruner: str, steps: list[int], tmp_path: Path
) -> None:
    """Also where the trial went through two processes, and after a fork with another pruner."""
    study = open_study(spec_of(pruner), dataset=DATASET, store=tmp_path)
    asked = study.ask()
    assert asked is not None
    for epoch in range(20):
        assert not study.report(asked.number, epoch, 0.5)
    study.tell(asked.number, "finished", 0.5)
    (row,), (kept,) = study.rows(), optuna.load_study(storage=study.url, study_name="fraud").trials
    assert sorted(kept.intermediate_values) == steps
    assert (row.epochs, row.attrs) == (20, {}) and study.reports(0) == dict.fromkeys(range(20), 0.5)


def test_reports_that_are_no_numbers_are_kept(tmp_path: Path) -> None:
    study = open_study(spec_of("none"), dataset=DATASET, store=tmp_path)
    asked = study.ask()
    assert asked is not None
    for epoch, value in enumerate((0.5, math.nan, math.inf)):
        study.report(asked.number, epoch, value)
    study.tell(asked.number, "failed", failure="diverged", cause="nan")
    assert repr(study.reports(0)) == "{0: 0.5, 1: nan, 2: inf}"


# The cost of a trial


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Transactions by database, on every engine of this process."""
    counts = Counter[str]()

    def begin(connection: sqlalchemy.Connection) -> None:
        counts[Path(str(connection.engine.url.database)).stem] += 1

    sqlalchemy.event.listen(sqlalchemy.Engine, "begin", begin)
    try:
        yield counts
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "begin", begin)


@contextmanager
def statements() -> Iterator[Counter[str]]:
    """Statements by database."""
    counts = Counter[str]()

    def execute(connection: sqlalchemy.Connection, *_: Any) -> None:
        counts[Path(str(connection.engine.url.database)).stem] += 1

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", execute)
    try:
        yield counts
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", execute)


@pytest.mark.parametrize(("pruner", "more"), [("none", 0), ("hyperband", 12)])
def test_a_trial_costs_twelve_transactions_in_mlflow_and_a_few_in_the_study(
    pruner: str, more: int, tmp_path: Path
) -> None:
    """However many epochs it has; counted from the second trial to the last."""
    counts: list[dict[str, int]] = []
    spec = experiment(study__n_trials=6, study__pruner=pruner, study__sampler="random")
    with counted() as count, no_network(fake_run()):

        def watch(event: sweep.Event) -> None:
            if event.kind == "trial_done":
                counts.append(dict(count))

        sweep.run(spec, store=tmp_path, watch=watch)
    for before, after in itertools.pairwise(counts[1:]):
        assert after["mlflow"] - before["mlflow"] == 12  # six requests of MLflow's client
        assert after["optuna"] - before["optuna"] <= 12 + more


def test_a_trial_costs_as_much_after_a_hundred_trials_as_after_ten(tmp_path: Path) -> None:
    """Finished trials are read once; what is asked for later does not grow with them."""
    study = open_study(spec_of("hyperband", epochs=3), dataset=DATASET, store=tmp_path)
    study._experiment = spec_of("hyperband", epochs=3).model_copy(
        update={"study": study._experiment.study.model_copy(update={"n_trials": 110})}
    )
    costs = []
    with study.hold():
        for number in range(110):
            with statements() as counts:
                asked = study.ask()
                assert asked is not None
                for epoch in range(3):
                    study.report(number, epoch, number / 100)
                study.tell(number, "finished", number / 100)
                study.best()
                study.failing_streak()
            costs.append(counts["optuna"])
    assert max(costs[100:]) <= max(costs[10:20])
