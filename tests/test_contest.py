"""What a promotion compares with, what it costs in looks at the test rows, and what may be said of the result."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from forge_sweep.bundle import Bundle
from forge_sweep.checks.findings import Finding
from forge_sweep.cli import app
from forge_sweep.errors import StoreDown
from forge_sweep.registry import Champions, Promotion, Refused, gates, promote
from forge_sweep.registry.candidate import GroupGain, Measured, Versus
from forge_sweep.sources import test_looks as looks_at_test
from forge_sweep.task import Gain, Interval
from forge_sweep.tracking import Registry
from tests.shop import NAME, Shop, copied, opened

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The latency gate is not what is looked at here."""
    monkeypatch.setattr(gates, "TIMED", 5)


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Rows and an empty store."""
    return opened(tmp_path_factory.mktemp("contest"))


@pytest.fixture
def shop(stocked: Shop, tmp_path: Path) -> Shop:
    """A store of the test's own."""
    return copied(stocked, tmp_path / "shop")


def tried(shop: Shop, version: str, *, dry_run: bool = True, **options: Any) -> Promotion:
    """How a promotion, or a dry run of one, ended."""
    try:
        return promote(NAME, version, store=shop.store, dry_run=dry_run, **options)
    except Refused as refusal:
        return refusal.promotion


def gate(found: Promotion, code: str) -> Finding:
    """The first finding of a gate."""
    return next(finding for finding in found.gates if finding.code == code)


def looks(shop: Shop) -> int:
    """How often the test rows were read."""
    return len(looks_at_test(shop.store / "test_looks.jsonl", shop.dataset().digest))


def no_fit(*words: Any) -> Any:
    raise AssertionError("a baseline was fitted again")


# Nothing is computed twice


def test_a_first_promotion_takes_its_figures_from_the_version_and_costs_no_look(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep's one look scored the winner and the best other baseline; nothing is fitted, nothing read again."""
    winner, other = shop.bundle("hist_gradient_boosting"), shop.bundle("constant")
    version = shop.register(winner, against=[other])
    monkeypatch.setattr(gates, "fit", no_fit)
    assert looks(shop) == 1, "the sweep's own"
    for dry_run in (True, True, False):
        found = tried(shop, version, dry_run=dry_run)
        assert not found.refused and found.figures["looked"] is False and looks(shop) == 1
        assert "evaluations on its test rows so far: 1" in gate(found, "test-looks").seen
    figures, rows = found.figures["baseline"], shop.dataset().look_at_test("a check", shop.folder / "elsewhere")
    by_hand = roc_auc_score(rows.targets["label"], winner.scores(rows.features)[:, 0])
    assert figures["candidate"] == pytest.approx(by_hand, abs=1e-6) and figures["other"] == 0.5
    assert (figures["kind"], figures["outcome"]) == ("constant", "better")


def test_the_comparison_with_a_champion_costs_one_look_and_is_kept(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dry run, another one and the promotion: one line in the ledger, one evaluation per candidate."""
    first = shop.register(shop.bundle("random_forest"), against=[shop.bundle("constant")])
    second = shop.register(shop.bundle("hist_gradient_boosting"), against=[shop.bundle("constant")])
    monkeypatch.setattr(gates, "fit", no_fit)
    promote(NAME, first, store=shop.store)
    assert looks(shop) == 2, "those of the two sweeps"
    found = tried(shop, second)
    assert found.figures["looked"] is True and looks(shop) == 3
    assert "evaluations on its test rows so far: 2;" in gate(found, "test-looks").seen, "one for each candidate"
    assert gate(found, "test-looks").severity == "info"
    with monkeypatch.context() as patch:
        patch.setattr(gates, "measured", no_fit)
        again = tried(shop, second)
        other = tried(shop, second, experiment=shop.toml(max_ece_loss=0.9))
    assert looks(shop) == 3 and again.figures == {**found.figures, "looked": False}
    assert other.figures == again.figures, "a margin is no other question"
    assert [each.seen for each in again.gates if each.code not in ("latency", "test-looks")] == [
        each.seen for each in found.gates if each.code not in ("latency", "test-looks")
    ]
    more = tried(shop, second, experiment=shop.toml(resamples=200, groups=["city"]))
    assert more.figures["looked"] is True and looks(shop) == 4 and "200 paired" in gate(more, "beats-champion").seen
    assert "evaluations on its test rows so far: 2;" in gate(more, "test-looks").seen


def test_the_kept_comparison_is_that_of_plain_scikit_learn(shop: Shop) -> None:
    """The champion answers from what its own sweep kept; both values are the AUC on all test rows."""
    bundles = [shop.bundle(kind) for kind in ("constant", "hist_gradient_boosting")]
    for bundle in bundles:
        shop.register(bundle, against=[shop.bundle("random_forest")])
    promote(NAME, "1", store=shop.store, force="to begin with")
    figures = tried(shop, "2").figures["champion"]
    rows = shop.dataset().look_at_test("a check", shop.folder / "elsewhere")
    its, own = (roc_auc_score(rows.targets["label"], each.scores(rows.features)[:, 0]) for each in bundles)
    assert (figures["candidate"], figures["other"]) == pytest.approx((own, its), abs=1e-6)
    assert figures["gain"] == pytest.approx(own - its, abs=2e-6) and figures["low"] < figures["gain"] < figures["high"]


def test_a_look_that_was_killed_before_its_figures_were_kept_counts_once(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows are read again, by the same candidate: that is no second evaluation."""
    shop.register(shop.bundle("random_forest"), against=[shop.bundle("constant")])
    shop.register(shop.bundle("hist_gradient_boosting"), against=[shop.bundle("constant")])
    promote(NAME, "1", store=shop.store)

    def dies(*words: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(gates, "keep", dies)
        tried(shop, "2")
    assert looks(shop) == 3
    found = tried(shop, "2")
    assert looks(shop) == 4 and "evaluations on its test rows so far: 2;" in gate(found, "test-looks").seen


def test_a_version_of_before_is_fitted_and_looked_at_once(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a stored evaluation the baseline is fitted again, in one look, whose figures are kept as well."""
    version = shop.register(shop.bundle("hist_gradient_boosting"))
    found = tried(shop, version)
    assert found.figures["looked"] and looks(shop) == 1 and found.figures["baseline"]["kind"] == "constant"
    monkeypatch.setattr(gates, "fit", no_fit)
    assert tried(shop, version, dry_run=False).change is not None and looks(shop) == 1


def test_figures_that_somebody_changed_are_measured_anew(shop: Shop) -> None:
    """They are no longer of this question, or no JSON."""
    shop.register(shop.bundle("random_forest"), against=[shop.bundle("constant")])
    shop.register(shop.bundle("hist_gradient_boosting"), against=[shop.bundle("constant")])
    promote(NAME, "1", store=shop.store)
    figures = tried(shop, "2").figures
    (kept,) = shop.store.glob("artifacts/**/promotion/*.json")
    whole = kept.read_text()
    for text in ("{", '{"of": {}}', whole.replace('"format": 1', '"format": 2'), '{"of": 1, "figures": []}', "[]"):
        kept.write_text(text)
        assert tried(shop, "2").figures == {**figures, "looked": True}, text
    assert json.loads(kept.read_text()) == json.loads(whole)


def test_other_answers_than_in_the_sweeps_look_are_said(shop: Shop) -> None:
    """As in another environment, or where somebody wrote better scores into the bundle."""
    shop.register(shop.bundle("random_forest"), against=[shop.bundle("constant")])
    good, bad = shop.bundle("hist_gradient_boosting"), shop.bundle("random_forest", seed=5)

    class Forged(Bundle):
        def scores(self, frame: Any) -> Any:
            return good.scores(frame)

    forged = Forged(**{each.name: getattr(bad, each.name) for each in dataclasses.fields(bad)})
    real = Shop.evaluation
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shop, "evaluation", lambda self, bundle, others, run: real(self, forged, others, run))
        shop.register(bad, against=[shop.bundle("constant")])
    promote(NAME, "1", store=shop.store)
    finding = gate(tried(shop, "2"), "evaluation-differs")
    assert finding.severity == "warning" and "off those of its sweep's test evaluation" in finding.seen


def test_an_evaluation_of_other_rows_is_refused(shop: Shop) -> None:
    """Its figures would be of rows that the bundle does not name."""
    real = Shop.evaluation
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Shop,
            "evaluation",
            lambda self, *words: dataclasses.replace(real(self, *words), split_digest="0" * 64),
        )
        shop.register(shop.bundle(), against=[shop.bundle("constant")])
    found = tried(shop, "1", force="no matter what", dry_run=False)
    assert gate(found, "hashes").severity == "error" and found.change is None


def test_looks_at_another_split_of_the_same_rows_do_not_count(shop: Shop) -> None:
    """Other rows are test rows there."""
    for seed in (3, 4, 5):
        spec = shop.experiment(seed=seed)
        shop.register(shop.bundle("hist_gradient_boosting", spec), against=[shop.bundle("constant", spec)])
    assert looks(shop) == 3
    assert "so far: 1;" in gate(tried(shop, "2"), "test-looks").seen


# What may be said


def versus(low: float, high: float, kind: str = "xgboost") -> Versus:
    """A comparison with this interval."""
    return Versus(kind, Gain("auc", 0.8, 0.8 - (low + high) / 2, Interval((low + high) / 2, low, high)), 100, 1000)


@pytest.mark.parametrize(
    ("low", "high", "kind", "severity", "words"),
    [
        (0.01, 0.03, "xgboost", "info", "better"),
        (-0.01, 0.03, "xgboost", "warning", "as good as"),
        (-0.03, 0.0, "xgboost", "warning", "as good as"),
        (0.0, 0.02, "xgboost", "warning", "as good as"),
        (-0.03, -0.01, "xgboost", "error", "worse"),
        (float("nan"), float("nan"), "xgboost", "error", "not comparable"),
        (0.01, 0.03, "constant", "info", "better"),
        (-0.01, 0.03, "constant", "error", "as good as"),
    ],
)
def test_only_a_worse_one_is_refused_and_within_noise_is_on_record(
    low: float, high: float, kind: str, severity: str, words: str
) -> None:
    """The constant predictor has to be beaten by more than noise."""
    candidate: Any = SimpleNamespace(version=SimpleNamespace(uri="models:/x/1"), bundle=SimpleNamespace(kind="network"))
    finding = gates.against_baseline(candidate, versus(low, high, kind))
    assert finding.severity == severity and finding.seen.startswith(f"{words}: auc 0.8000 and ")


def test_as_good_as_the_best_baseline_is_promoted_and_in_the_history(shop: Shop) -> None:
    """The README's first model: its gain over the trees is within noise."""
    version = shop.register(shop.bundle("random_forest"), against=[shop.bundle("random_forest", seed=8)])
    done = promote(NAME, version, store=shop.store)
    assert done.change is not None and gate(done, "beats-baseline").severity == "warning"
    (change,) = Champions(Registry(shop.store), NAME).history()
    assert change.figures["baseline"]["outcome"] == "as good as" and not change.forced
    assert change.figures["baseline"]["low"] <= 0 <= change.figures["baseline"]["high"]
    shown = CliRunner().invoke(app, ["models", "history", NAME, "--store", str(shop.store)], catch_exceptions=False)
    assert "none; as good as random_forest" in " ".join(shown.output.split())


@pytest.mark.parametrize("kept", [True, False], ids=["evaluated by its sweep", "of before"])
def test_a_tree_that_won_is_judged_against_the_best_other_baseline(shop: Shop, kept: bool) -> None:
    """Not against the constant, beside which everything looks good."""
    values = {"hist_gradient_boosting": 0.95, "random_forest": 0.94, "constant": 0.5}
    bundle = shop.bundle("hist_gradient_boosting", baselines=values)
    version = shop.register(bundle, against=[shop.bundle("random_forest")] if kept else None)
    found = tried(shop, version)
    assert found.figures["baseline"]["kind"] == "random_forest" and found.figures["baseline"]["other"] > 0.7


def test_without_recorded_values_the_best_of_all_others_is_fitted(shop: Shop) -> None:
    """And the constant predictor only where there is no other."""
    spec = shop.experiment(baselines__kinds=["constant", "random_forest", "hist_gradient_boosting"])
    version = shop.register(shop.bundle("random_forest", spec, baselines={}))
    assert tried(shop, version).figures["baseline"]["kind"] == "hist_gradient_boosting"


def test_a_constant_predictor_is_refused_whatever_it_is_compared_with(shop: Shop) -> None:
    version = shop.register(shop.bundle("constant"), against=[shop.bundle("random_forest")])
    assert "nothing was learned" in gate(tried(shop, version), "beats-baseline").seen


def test_figures_come_back_as_they_were() -> None:
    """With what is not defined, and with groups."""
    found = Measured(
        versus(-0.1, float("nan")),
        None,
        ({"ece": 0.1, "brier": 0.2}, None),
        (GroupGain("city", "Bern", 3, None), GroupGain("city", "Genf", 90, versus(0.0, 0.1))),
        1e-9,
        0.9,
    )
    again = Measured.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False)))
    assert again.groups == found.groups and again.calibration == found.calibration
    assert (again.off, again.refitted, again.champion) == (1e-9, 0.9, None)
    assert again.baseline is not None and np.isnan(again.baseline.gain.gain.high)


def test_a_store_that_goes_down_in_the_middle_is_no_fault_of_the_data(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command fails with the cause, and nothing is changed."""
    version = shop.register(shop.bundle("hist_gradient_boosting"))

    def down(*words: Any) -> Any:
        raise StoreDown("gone")

    monkeypatch.setattr("forge_sweep.sources.base.HeldTest.read", down)
    with pytest.raises(StoreDown):
        promote(NAME, version, store=shop.store)
    assert Registry(shop.store).aliases(NAME) == {"challenger": version}


# A champion that is gone


def client(shop: Shop) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{shop.store.absolute()}/mlflow.db")


def crowned(shop: Shop, *kinds: str) -> None:
    """Versions that became champions one after the other."""
    for kind in kinds:
        version = shop.register(shop.bundle(kind), against=[shop.bundle("constant")])
        promote(NAME, version, store=shop.store, force="for the test")


def test_where_the_champion_was_deleted_the_one_before_has_to_be_beaten(shop: Shop) -> None:
    """Nothing becomes champion unseen because somebody deleted a version; what happened is said and on record."""
    crowned(shop, "hist_gradient_boosting", "random_forest")
    client(shop).delete_model_version(NAME, "2")
    version = shop.register(shop.bundle("hist_gradient_boosting", seed=2), against=[shop.bundle("constant")])
    found = tried(shop, version)
    assert found.champion is None and [each.code for each in found.refused] == ["beats-champion"]
    assert "of models:/loans/1 on 180 test rows: a gain of 0.0" in gate(found, "beats-champion").seen
    said = gate(found, "champion-gone")
    assert said.severity == "warning"
    assert said.seen.startswith(
        "version 2, the last champion by the ledger, was deleted; compared with models:/loans/1"
    )
    notes: list[str] = []
    promote(NAME, version, store=shop.store, force="agreed", say=notes.append)
    assert notes == ["the champion of loans is none and was version 2 by the ledger: version 2 was deleted"]
    history = Champions(Registry(shop.store), NAME).history()
    assert [(each.action, each.to) for each in history][-2:] == [("outside", None), ("promote", version)]
    assert history[-2].reason.endswith("version 2 was deleted")
    assert Registry(shop.store).aliases(NAME) == {"champion": version, "previous": "1"}, "to roll back to"


def test_where_every_champion_was_deleted_the_promotion_says_so(shop: Shop) -> None:
    """There is nothing left to compare with; that is a warning, and no silent pass."""
    crowned(shop, "random_forest")
    client(shop).delete_model_version(NAME, "1")
    version = shop.register(shop.bundle(), against=[shop.bundle("constant")])
    done = promote(NAME, version, store=shop.store)
    finding = gate(done, "beats-champion")
    assert done.change is not None and finding.severity == "warning"
    assert finding.seen == "nothing to compare with: version 1, the last champion by the ledger, was deleted"


def test_where_only_the_alias_was_taken_away_its_version_has_to_be_beaten(shop: Shop) -> None:
    """And it may come back itself."""
    crowned(shop, "hist_gradient_boosting")
    client(shop).delete_registered_model_alias(NAME, "champion")
    version = shop.register(shop.bundle("random_forest"), against=[shop.bundle("constant")])
    found = tried(shop, version)
    assert "version 1, the last champion by the ledger, has lost the alias" in gate(found, "champion-gone").seen
    assert "beats-champion" in [each.code for each in found.refused]
    done = promote(NAME, "1", store=shop.store)
    assert done.change is not None and gate(done, "beats-champion").severity == "warning"
    assert gate(done, "beats-champion").seen.endswith("and was this version itself")
