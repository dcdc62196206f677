"""Aliases, the ledger, rollback: what a kill leaves behind, and who wins of two."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from forge_sweep.cli import app
from forge_sweep.errors import GateRefused, InputError, TrackingDown
from forge_sweep.registry import Champions, Refused, overviews, promote, promotion, rollback
from forge_sweep.registry import champions as registry_champions
from forge_sweep.tracking import Ledger, Registry, fetched
from forge_sweep.tracking import client as clients
from forge_sweep.tracking import ledger as ledgers
from tests.servers import free_port, running
from tests.shop import NAME, Shop, copied, opened

pytestmark = pytest.mark.slow


class Killed(BaseException):
    """The process is gone; nothing may catch this."""


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Rows and an empty store."""
    return opened(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def three(empty: Shop, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """A store with three versions."""
    made = copied(empty, tmp_path_factory.mktemp("three"))
    for kind in ("constant", "random_forest", "hist_gradient_boosting"):
        made.register(made.bundle(kind))
    return made


@pytest.fixture
def shop(three: Shop, tmp_path: Path) -> Shop:
    """A store of the test's own with three versions."""
    return copied(three, tmp_path / "shop")


def champions(shop: Shop) -> Champions:
    return Champions(Registry(shop.store), NAME)


def crown(shop: Shop, version: str, *, action: str = "promote", reason: str = "test") -> Any:
    """Make a version champion without gates."""
    mine = champions(shop)
    mine.settle()
    before = mine.registry.aliases(NAME).get("champion")
    return mine.change(action, version, reason, previous=before, seen=mine.seen())


def aliases(shop: Shop) -> dict[str, str]:
    return Registry(shop.store).aliases(NAME)


def test_the_old_champion_is_kept_as_previous_and_a_rollback_swaps_them(shop: Shop) -> None:
    """Challenger -> champion -> previous, and back."""
    assert aliases(shop) == {"challenger": "3"}
    crown(shop, "1")
    assert aliases(shop) == {"challenger": "3", "champion": "1"}
    crown(shop, "3")
    assert aliases(shop) == {"champion": "3", "previous": "1"}
    change = rollback(NAME, store=shop.store, reason="wrong figures in production")
    assert aliases(shop) == {"champion": "1", "previous": "3"}
    assert (change.action, change.to, change.before, change.reason) == (
        "rollback",
        "1",
        "3",
        "wrong figures in production",
    )
    rollback(NAME, store=shop.store)
    assert aliases(shop) == {"champion": "3", "previous": "1"}


def test_there_is_nothing_to_roll_back_to_before_the_second_promotion(shop: Shop) -> None:
    crown(shop, "1")
    with pytest.raises(InputError, match="no previous champion"):
        rollback(NAME, store=shop.store)


def test_the_history_says_who_when_and_why_in_tags_and_in_files(shop: Shop) -> None:
    """Each change is a parameter that MLflow never changes, a tag of both versions, and a file of its own."""
    from mlflow import MlflowClient

    crown(shop, "1", reason="the first")
    crown(shop, "2", reason="the second")
    first, second = champions(shop).history()
    assert (first.number, first.to, first.before, first.reason) == (1, "1", None, "the first")
    assert (second.to, second.before, second.previous) == ("2", "1", "1")
    assert second.who.count("@") == 1 and second.when.endswith("+00:00") and second.done >= second.when
    assert first.file != second.file
    client = MlflowClient(f"sqlite:///{shop.store.absolute()}/mlflow.db")
    tags = client.get_model_version(NAME, "1").tags
    assert json.loads(tags["forge.promotion.000001"])["reason"] == "the first"
    assert json.loads(tags["forge.promotion.000002"])["to"] == "2"
    assert champions(shop).record(second)[0]["reason"] == "the second"
    ledger = Ledger(Registry(shop.store), NAME)
    assert not ledger.append(2, {"id": "forged"}) and champions(shop).history()[1].reason == "the second"
    assert not ledger.finish(2, {"done": "earlier"})


def test_before_any_promotion_nobody_was_champion_and_a_long_reason_costs_no_look(shop: Shop) -> None:
    assert champions(shop).terms() == () and champions(shop).at("2026-01-01") == ()
    with pytest.raises(InputError, match="1001 characters"):
        promote(NAME, "1", store=shop.store, force="x" * 1001)
    assert not (shop.store / "test_looks.jsonl").exists()


def test_a_rollback_to_the_champion_itself_is_refused(shop: Shop) -> None:
    """As after the alias was moved to the previous one by other means."""
    crown(shop, "1")
    crown(shop, "2")
    Registry(shop.store).set_alias(NAME, "champion", "1")
    with pytest.raises(InputError, match="nothing to go back to"):
        rollback(NAME, store=shop.store)
    assert aliases(shop)["champion"] == "1"


def test_models_at_names_the_champion_of_a_day_and_of_a_moment(shop: Shop) -> None:
    """A day may have had several."""
    crown(shop, "1")
    crown(shop, "2")
    first, second = champions(shop).terms()
    assert first.until == second.since and second.until is None
    today = second.since.date().isoformat()
    assert {term.version for term in champions(shop).at(today)} <= {"1", "2"}
    assert [t.version for t in champions(shop).at(first.since.isoformat())] == ["1"]
    assert [t.version for t in champions(shop).at(second.since.isoformat())] == ["2"]
    assert [t.version for t in champions(shop).at("2999-01-01")] == ["2"]
    with pytest.raises(InputError, match="is not a date"):
        champions(shop).at("0001-01-01T00:00+05:00")
    assert champions(shop).at("2020-01-01") == ()
    with pytest.raises(InputError, match=r"2026-05-01"):
        champions(shop).at("yesterday")


def steps(monkeypatch: pytest.MonkeyPatch, die_before: int) -> list[str]:
    """Let the process die before its n-th write to the store; the names of the writes that were made."""
    made: list[str] = []

    def dying(owner: type, name: str) -> None:
        original = getattr(owner, name)

        def step(self: Any, *words: Any, **options: Any) -> Any:
            if len(made) == die_before:
                raise Killed
            result = original(self, *words, **options)
            made.append(name)
            return result

        monkeypatch.setattr(owner, name, step)

    for owner, names in ((Registry, ("set_alias", "tag")), (Ledger, ("attach", "append", "note", "finish"))):
        for name in names:
            dying(owner, name)
    return made


@pytest.mark.parametrize("point", range(10))
def test_a_kill_between_any_two_writes_is_mended_by_the_next_command(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, point: int
) -> None:
    """Before the entry is in the ledger nothing happened; after it, everything does, once."""
    crown(shop, "1")
    with monkeypatch.context() as patch:
        made = steps(patch, point)
        try:
            crown(shop, "3")
        except Killed:
            assert len(made) == point
        else:
            assert point == 9 and made[:2] == ["attach", "append"] and made[-1] == "finish", made
    decided = "append" in made
    said = champions(shop).settle()
    assert bool(said) == (decided and "finish" not in made)
    expected = {"champion": "3", "previous": "1"} if decided else {"champion": "1", "challenger": "3"}
    assert aliases(shop) == expected
    history = champions(shop).history()
    assert [change.to for change in history] == (["1", "3"] if decided else ["1"])
    assert all(change.done for change in history) and champions(shop).settle() == ()
    assert crown(shop, "2").number == len(history) + 1 and aliases(shop)["champion"] == "2"


@pytest.mark.parametrize("attempts", [1, 2])
def test_a_change_that_was_completed_late_counts_from_when_the_alias_was_moved(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, attempts: int
) -> None:
    """Not from when the next command, days later perhaps, noticed it; the last of several attempts moved it."""
    crown(shop, "1")
    clock = iter(f"2026-0{month}-01T00:00:00.000+00:00" for month in range(1, 10))
    monkeypatch.setattr(registry_champions, "_now", lambda: next(clock))
    if attempts == 2:  # the first dies before it moves anything
        with monkeypatch.context() as patch, pytest.raises(Killed):
            steps(patch, 3)
            crown(shop, "3")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        made = steps(patch, 5 if attempts == 1 else 3)
        if attempts == 1:
            crown(shop, "3")
        else:
            champions(shop).settle()
    assert made[-3:] == ["note", "set_alias", "set_alias"] and aliases(shop)["champion"] == "3"
    assert champions(shop).unfinished() is not None
    (said,) = champions(shop).settle()
    assert "was completed" in said
    change = champions(shop).history()[-1]
    assert (change.when, change.done) == (
        "2026-01-01T00:00:00.000+00:00",
        f"2026-0{attempts + 1}-01T00:00:00.000+00:00",
    )


def test_kill_9_of_a_real_process_in_the_middle_is_mended(shop: Shop) -> None:
    """The history and the aliases agree after the next command, which says what it mended."""
    crown(shop, "1")
    script = f"""
import os
from pathlib import Path
from forge_sweep.registry import Champions
from forge_sweep.tracking import Registry
real = Registry.set_alias
def once(self, name, alias, version):
    real(self, name, alias, version)
    os.kill(os.getpid(), 9)
Registry.set_alias = once
mine = Champions(Registry(Path({str(shop.store)!r})), {NAME!r})
mine.change("promote", "3", "killed", previous="1", seen=mine.seen())
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, timeout=120)
    assert done.returncode == -9
    assert aliases(shop) == {"champion": "1", "previous": "1", "challenger": "3"}, "previous is written first"
    assert "change 2 (promote version 3) is not complete" in str(champions(shop).unfinished())
    notes: list[str] = []
    change = rollback(NAME, store=shop.store, say=notes.append)
    assert notes == ["change 2 of loans (promote version 3) was completed"]
    assert (change.number, change.to, change.before) == (3, "1", "3")
    assert aliases(shop) == {"champion": "1", "previous": "3"}


def test_a_change_to_a_version_that_was_deleted_meanwhile_is_revoked(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The champion stays."""
    from mlflow import MlflowClient

    crown(shop, "1")
    with monkeypatch.context() as patch:
        steps(patch, 2)
        with pytest.raises(Killed):
            crown(shop, "3")
    MlflowClient(f"sqlite:///{shop.store.absolute()}/mlflow.db").delete_model_version(NAME, "3")
    (said,) = champions(shop).settle()
    assert "revoked: version 3 was deleted meanwhile" in said
    assert aliases(shop)["champion"] == "1" and [t.version for t in champions(shop).terms()] == ["1"]


def test_an_alias_that_was_moved_by_other_means_is_said_and_put_on_record(shop: Shop) -> None:
    """In the UI, for example; nothing is undone."""
    crown(shop, "1")
    Registry(shop.store).set_alias(NAME, "champion", "2")
    (overview,) = overviews(shop.store)
    assert "the champion of loans is version 2 and was version 1 by the ledger" in overview.warnings[0]
    (said,) = champions(shop).settle()
    assert "moved by other means" in said and aliases(shop)["champion"] == "2"
    last = champions(shop).history()[-1]
    assert (last.action, last.to, last.before) == ("outside", "2", "1")
    assert champions(shop).settle() == ()


def race(store: str, uri: str, version: str, barrier: Any, results: Any) -> None:
    """One of several processes that promote at once; what it was told goes into the queue."""
    if uri:
        os.environ["MLFLOW_TRACKING_URI"] = uri
    mine = Champions(Registry(Path(store)), NAME)
    seen, before = mine.seen(), mine.registry.aliases(NAME).get("champion")
    barrier.wait(timeout=100)
    try:
        change = mine.change("promote", version, f"process {version}", previous=before, seen=seen)
        results.put((version, "won", change.number))
    except GateRefused as refusal:
        results.put((version, "told", str(refusal)))
    except BaseException as error:
        results.put((version, "failed", repr(error)))


def raced(store: Path, uri: str, versions: tuple[str, ...]) -> list[tuple[str, str, Any]]:
    """What several processes were told that promoted at once."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(len(versions)), context.Queue()
    workers = [context.Process(target=race, args=(str(store), uri, v, barrier, results)) for v in versions]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=200) for _ in workers]
    for worker in workers:
        worker.join(timeout=60)
    return found


def check_race(found: list[tuple[str, str, Any]], mine: Champions, number: int) -> str:
    """Exactly one won, the others were told of it, and the aliases are the winner's; returns the winner."""
    won = [each for each in found if each[1] == "won"]
    assert len(won) == 1 and {each[1] for each in found} == {"won", "told"}, found
    assert won[0][2] == number
    for _, verdict, text in found:
        assert verdict == "won" or ("another change of champion came first" in text and won[0][0] in text), text
    assert mine.registry.aliases(NAME)["champion"] == won[0][0]
    assert mine.history()[-1].to == won[0][0] and mine.settle() == ()
    return won[0][0]


def test_of_processes_that_promote_at_once_one_wins_and_the_others_are_told(shop: Shop) -> None:
    """On the embedded store, the first of all promotions (which makes the ledger) included."""
    first = check_race(raced(shop.store, "", ("1", "2", "3")), champions(shop), 1)
    rest = tuple(version for version in ("1", "2", "3") if version != first)
    check_race(raced(shop.store, "", rest), champions(shop), 2)
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{shop.store.absolute()}/mlflow.db")
    ids = [each.experiment_id for each in client.search_experiments()]
    ledgers = [run for run in client.search_runs(ids) if run.data.tags.get("forge.kind") == "ledger"]
    assert len(ledgers) == 1


@pytest.mark.parametrize("where", ["embedded", "server"])
def test_a_tag_that_is_set_twice_at_once_is_set(where: str, shop: Shop, request: pytest.FixtureRequest) -> None:
    """MLflow looks for the row and then inserts it; the second of two that looked at once breaks its constraint."""
    uri = (
        f"sqlite:///{shop.store.absolute()}/mlflow.db" if where == "embedded" else request.getfixturevalue("server")[1]
    )
    client = clients.connect(uri, shop.store)
    if where == "server":
        client.create_registered_model(NAME)
    together = threading.Barrier(4)

    def set_all() -> None:
        for number in range(25):
            together.wait(timeout=60)
            clients.surely(functools.partial(client.set_registered_model_tag, NAME, f"tag-{number}", "x"))

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(set_all) for _ in range(4)]:
            done.result(timeout=120)
    assert {f"tag-{number}" for number in range(25)} <= client.get_registered_model(NAME).tags.keys()


@pytest.fixture
def server(empty: Shop, tmp_path: Path) -> Iterator[tuple[Shop, str]]:
    """A shop whose store is behind a real MLflow server."""
    shop, port = copied(empty, tmp_path / "behind"), free_port()
    where = [
        *("--backend-store-uri", f"sqlite:///{shop.store.absolute()}/mlflow.db", "--host", "127.0.0.1"),
        *("--artifacts-destination", str(tmp_path / "artifacts"), "--port", str(port), "--workers", "1"),
    ]
    command, uri = [sys.executable, "-m", "mlflow", "server", *where], f"http://127.0.0.1:{port}"
    log = tmp_path / "server.log"
    with running(command, f"{uri}/health", log=log, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"):
        yield shop, uri


def test_behind_a_real_server_the_same_holds(
    server: tuple[Shop, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at once, history, record, rollback, over HTTP."""
    shop, uri = server
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for kind in ("constant", "hist_gradient_boosting"):
        shop.register(shop.bundle(kind))
    winner = check_race(raced(tmp_path / "local", uri, ("1", "2")), champions(shop), 1)
    loser = {"1": "2", "2": "1"}[winner]
    crown(shop, loser)
    assert aliases(shop) == {"champion": loser, "previous": winner}
    rollback(NAME, store=shop.store)
    assert aliases(shop) == {"champion": winner, "previous": loser}
    assert [change.action for change in champions(shop).history()] == ["promote", "promote", "rollback"]
    assert champions(shop).record(champions(shop).history()[0])[0]["to"] == winner


def test_a_promotion_that_was_overtaken_while_its_gates_ran_is_told(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its gates compared with a champion that is none any more."""
    crown(shop, "1")
    judge = promotion.judge

    def slow(*words: Any, **options: Any) -> Any:
        found = judge(*words, **options)
        crown(shop, "2", reason="quicker")
        return found

    monkeypatch.setattr(promotion, "judge", slow)
    with pytest.raises(GateRefused, match="came first: promote of version 2"):
        promote(NAME, "3", store=shop.store)
    assert aliases(shop)["champion"] == "2"


def test_a_rollback_to_a_bundle_that_was_damaged_is_refused(shop: Shop) -> None:
    """Nothing is changed."""
    crown(shop, "1")
    crown(shop, "3")
    damage(shop, "1")
    with pytest.raises(GateRefused, match=r"golden\.json"):
        rollback(NAME, store=shop.store)
    assert aliases(shop) == {"champion": "3", "previous": "1"}


def damage(shop: Shop, version: str) -> None:
    """Change one byte of a registered bundle, where MLflow keeps it."""
    run = Registry(shop.store).version(NAME, version)
    with fetched(run, shop.store) as folder:
        digest = (folder / "manifest.json").read_bytes()
    for path in shop.store.glob("artifacts/**/manifest.json"):
        if path.read_bytes() == digest:
            golden = path.with_name("golden.json")
            golden.write_bytes(golden.read_bytes().replace(b"0", b"1", 1))


# The command line


def invoke(*words: str, code: int = 0) -> str:
    """Output of a command that ends with this exit code."""
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stdout


@pytest.fixture
def ask(shop: Shop) -> Callable[..., Any]:
    """Runs a command with --json and gives what it printed."""
    return lambda *words, code=0: json.loads(invoke(*words, "--store", str(shop.store), "--json", code=code))


def test_every_command_speaks_json_and_plain_words(shop: Shop, ask: Callable[..., Any], tmp_path: Path) -> None:
    """promote, rollback, models list, history, at, show, card."""
    assert ask("promote", NAME, "1", "--force", "a start")["promoted"] is True
    done = ask("promote", NAME, "@challenger", "--reason", "better")
    assert done["promoted"] and done["change"]["figures"]["champion"]["gain"] > 0
    assert ask("rollback", NAME)["to"] == "1"
    (model,) = ask("models", "list")
    assert (model["name"], model["versions"], model["aliases"]["champion"]) == (NAME, 3, "1")
    history = ask("models", "history", NAME)
    assert [each["action"] for each in history] == ["promote", "promote", "rollback"]
    assert {line["gate"]["code"] for line in history[1]["record"][1:]} >= {"golden", "beats-champion", "latency"}
    assert [each["version"] for each in ask("models", "at", NAME, "2999-01-01")] == ["1"]
    assert ask("models", "show", NAME, "@champion")["version"] == "1"
    assert ask("card", NAME, "3")["sections"][0]["title"] == "Purpose"
    for words in (
        ["models", "list"],
        ["models", "history", NAME],
        ["models", "at", NAME, "2999-01-01"],
        ["models", "show", NAME, "1"],
        ["card", NAME, "1", "-o", str(tmp_path / "card.html")],
    ):
        assert invoke(*words, "--store", str(shop.store)).strip(), words
    assert "<h1>loans</h1>" in (tmp_path / "card.html").read_text()


def test_a_refusal_exits_3_and_changes_nothing(shop: Shop, ask: Callable[..., Any]) -> None:
    """Neither an alias nor a line of the history; a dry run likewise."""
    ask("promote", NAME, "3")
    before = aliases(shop), champions(shop).history()
    refused = ask("promote", NAME, "2", code=3)
    assert refused["promoted"] is False and "beats-champion" in refused["refused"]
    assert ask("promote", NAME, "2", "--dry-run", code=3)["change"] is None
    assert ask("promote", NAME, "2", "--dry-run", "--force", "why not", code=3)["change"] is None
    assert (aliases(shop), champions(shop).history()) == before


def test_what_does_not_exist_is_named(shop: Shop) -> None:
    with pytest.raises(InputError, match="no registered model 'lones'; there is loans"):
        promote("lones", "1", store=shop.store)
    with pytest.raises(InputError, match="no version 9; it has version 1, 2, 3 and the aliases @challenger"):
        promote(NAME, "9", store=shop.store)
    with pytest.raises(InputError, match="no MLflow store at"):
        promote(NAME, "1", store=shop.folder / "nowhere")
    with pytest.raises(InputError, match="needs a reason"):
        CliRunner().invoke(app, ["promote", NAME, "1", "--force", " "], catch_exceptions=False)
    crown(shop, "1")
    with pytest.raises(InputError, match="is the champion"):
        promote(NAME, "1", store=shop.store)


def test_a_forced_promotion_names_what_it_overruled(shop: Shop) -> None:
    """In the history and in the tags; a bundle that was changed is refused all the same."""
    promote(NAME, "3", store=shop.store)
    done = promote(NAME, "2", store=shop.store, force="the auditors asked for trees")
    assert done.change is not None and "beats-champion" in done.change.forced
    assert champions(shop).history()[-1].reason == "the auditors asked for trees"
    damage(shop, "1")
    with pytest.raises(Refused, match="hashes"):
        promote(NAME, "1", store=shop.store, force="no matter what")


@pytest.mark.parametrize("first", [True, False], ids=["first promotion", "later one"])
def test_a_promotion_with_asynchronous_logging_is_made_at_once(shop: Shop, first: bool) -> None:
    """Case 19: MLflow's variable makes writes wait in a thread; the ledger waits for each of its own."""
    if not first:
        crown(shop, "2")
    words = [str(Path(sys.executable).with_name("forge-sweep")), "promote", NAME, "1", "--force", "busy machine"]
    environ = {**os.environ, "MLFLOW_ENABLE_ASYNC_LOGGING": "true"}
    done = subprocess.run(
        [*words, "--store", str(shop.store)], env=environ, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout + done.stderr
    assert aliases(shop)["champion"] == "1"
    assert [change.to for change in champions(shop).history()] == (["1"] if first else ["2", "1"])
    assert champions(shop).history()[-1].done and champions(shop).settle() == ()


def test_a_write_that_cannot_be_read_back_is_said_and_completed_by_the_next_command(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow queued it, or a proxy lost it; it may arrive later. It is no promotion that came first."""
    from mlflow import MlflowClient

    crown(shop, "1")
    queued: list[Any] = []
    real = MlflowClient.log_param
    monkeypatch.setattr(ledgers, "PAUSES", (0.0,))
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_param", lambda *words, **options: queued.append((words, options)))
        with pytest.raises(TrackingDown, match=r"accepted entry\.000002 .* does not have it"):
            crown(shop, "2")
    assert aliases(shop)["champion"] == "1"
    ((words, options),) = queued
    real(*words, **options)
    (said,) = champions(shop).settle()
    assert "change 2 of loans (promote version 2) was completed" in said and aliases(shop)["champion"] == "2"
