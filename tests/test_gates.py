"""Every gate refuses once, with its figure; what cannot be known is said."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forge_sweep import sources
from forge_sweep.bundle import Bundle
from forge_sweep.checks.findings import Finding
from forge_sweep.errors import NotTrusted
from forge_sweep.experiment import DataSpec
from forge_sweep.feature_store.connection import Address
from forge_sweep.feature_store.ingest import ingest
from forge_sweep.registry import Refused, candidate, gates, promote, promotion
from forge_sweep.sources import Dataset
from forge_sweep.sources import test_looks as looks_at_test
from forge_sweep.tracking import ModelVersion, Registry
from tests.shop import NAME, Shop, copied, loans, opened

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """A store with one good version, which is the champion."""
    made = opened(tmp_path_factory.mktemp("gates"))
    made.register(made.bundle())
    done = promote(NAME, "1", store=made.store)
    assert done.change is not None and not done.refused
    return made


@pytest.fixture
def shop(good: Shop, tmp_path: Path) -> Shop:
    """A store of the test's own."""
    return copied(good, tmp_path / "shop")


def judged(shop: Shop, version: str, **options: Any) -> dict[str, list[Finding]]:
    """Findings of a dry run by their code."""
    found: dict[str, list[Finding]] = {}
    try:
        gates = promote(NAME, version, store=shop.store, dry_run=True, **options).gates
    except Refused as refusal:
        gates = refusal.promotion.gates
    for finding in gates:
        found.setdefault(finding.code, []).append(finding)
    return found


def refused(found: dict[str, list[Finding]]) -> set[str]:
    """Codes that refuse."""
    return {code for code, findings in found.items() if any(each.severity == "error" for each in findings)}


def edited(name: str, change: Callable[[Any], None]) -> Callable[[Path], None]:
    """Changes a JSON file of a bundle before its hashes are made."""

    def edit(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        change(values)
        (folder / name).write_text(json.dumps(values))

    return edit


def test_the_first_promotion_has_to_beat_the_best_baseline(good: Shop) -> None:
    """It did, in the fixture: the figures are on record; one that does not is refused."""
    (change,) = [each for each in history(good) if each.to == "1"]
    found = change.figures["baseline"]
    assert found["kind"] == "constant" and found["other"] == 0.5 and found["low"] > 0.1
    assert found["low"] < found["gain"] < found["high"]


def history(shop: Shop) -> Any:
    from forge_sweep.registry import Champions

    return Champions(Registry(shop.store), NAME).history()


def test_one_that_is_not_better_than_the_best_baseline_is_refused(shop: Shop) -> None:
    """The best one of the sweep is fitted again, and gives the validation score that it had."""
    spec = shop.experiment()
    best = shop.bundle(seed=9)
    value = valid_auc(shop, best)
    version = shop.register(shop.bundle("random_forest", spec, baselines={"hist_gradient_boosting": value}))
    found = judged(shop, version)
    (finding,) = found["beats-baseline"]
    assert finding.severity == "error" and "of the baseline hist_gradient_boosting on 180 test rows" in finding.seen
    assert "1,000 paired bootstrap resamples, seed 0" in finding.seen
    other = shop.register(shop.bundle("random_forest", spec, baselines={"hist_gradient_boosting": 0.123}))
    (warning,) = judged(shop, other)["baseline-differs"]
    assert warning.severity == "warning" and "the sweep had 0.123" in warning.seen


def valid_auc(shop: Shop, bundle: Bundle) -> float:
    """AUC on validation of the baseline that is fitted again for the gate; its seed decides nothing on these rows."""
    from forge_sweep import trial

    return trial.score(bundle, shop.dataset().valid, "val")["val_auc"]


def test_the_same_model_again_is_not_better_than_the_champion(shop: Shop) -> None:
    """A gain of 0 is not beyond noise; calibration is the same."""
    version = shop.register(shop.bundle())
    found = judged(shop, version)
    assert refused(found) == {"beats-champion"}
    (finding,) = found["beats-champion"]
    assert "a gain of 0.0000 (0.0000 to 0.0000" in finding.seen and "models:/loans/1" in finding.seen


def test_a_changed_byte_is_refused_before_anything_else(shop: Shop) -> None:
    """No other gate runs, and the test rows are not looked at."""
    version = shop.register(shop.bundle())
    manifest = newest(shop, "manifest.json")
    scores = manifest.with_name("golden.json")
    scores.write_bytes(scores.read_bytes().replace(b"0", b"1", 1))
    looks = len(looked(shop))
    found = judged(shop, version)
    assert set(found) == {"hashes"} and "golden.json" in found["hashes"][0].seen
    assert len(looked(shop)) == looks


def newest(shop: Shop, name: str) -> Path:
    """The newest file of this name among the registered bundles."""
    return max(shop.store.glob(f"artifacts/**/{name}"), key=lambda path: path.stat().st_mtime_ns)


def looked(shop: Shop) -> list[Any]:
    """Looks at the test rows."""
    return looks_at_test(shop.store / "test_looks.jsonl", shop.dataset().digest)


def test_other_golden_scores_are_refused_without_a_look_at_the_test_rows(shop: Shop) -> None:
    """A gate that needs no test row refuses first. Then all run: one look, whose figures the forced promotion takes."""

    def spoil(golden: Any) -> None:
        golden["scores"][0][0] += 0.01

    version = shop.register(shop.bundle(), edit=edited("golden.json", spoil))
    looks = len(looked(shop))
    found = judged(shop, version)
    assert refused(found) == {"golden"} and "0.01 off" in found["golden"][0].seen
    assert "beats-champion" not in found and len(looked(shop)) == looks
    assert refused(judged(shop, version, experiment=shop.toml(max_golden_difference=0.02))) == {"beats-champion"}
    done = promote(NAME, version, store=shop.store, force="known")
    assert done.change is not None and set(done.change.forced) == {"golden", "beats-champion"}
    last = looked(shop)[-1]
    assert (
        len(looked(shop)) == looks + 1
        and last.purpose == "promotion of models:/loans/2 against models:/loans/1 and constant"
    )
    assert last.run == Registry(shop.store).version(NAME, version).run_id


def test_a_model_without_a_card_is_refused(shop: Shop) -> None:
    found = judged(shop, shop.register(shop.bundle(), card=False))
    assert refused(found) == {"card"} and "card.html, card.md missing" in found["card"][0].seen


def test_other_packages_are_refused_by_name_and_version(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that have no part in this kind of model are not asked for."""
    monkeypatch.setattr(
        "tests.shop.requirements", lambda kind: ["scikit-learn==1.0.2", f"skops=={version_of('skops')}"]
    )

    def older(about: Any) -> None:
        about["packages"] |= {"scikit-learn": "1.0.2", "keras": "3.0.0"}

    found = judged(shop, shop.register(shop.bundle(), edit=edited("bundle.json", older)))
    assert refused(found) == {"packages"}
    assert "scikit-learn 1.0.2 (here 1." in found["packages"][0].seen and "keras" not in found["packages"][0].seen


def test_an_unknown_image_is_a_warning_and_an_error_where_it_is_required(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two known digests have to be the same, whatever name stands before them."""
    one, other = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"
    version = shop.register(shop.bundle("random_forest"), tags={"forge.image_digest": one})
    (finding,) = judged(shop, version)["image"]
    assert finding.severity == "warning" and one in finding.seen
    assert "image" in refused(judged(shop, version, experiment=shop.toml(image="required")))
    monkeypatch.setenv("FORGE_SWEEP_IMAGE_DIGEST", f"registry/fraud@{one}")
    assert judged(shop, version, experiment=shop.toml(image="required"))["image"][0].severity == "info"
    monkeypatch.setenv("FORGE_SWEEP_IMAGE_DIGEST", other)
    assert refused(judged(shop, version)) >= {"image"}


def test_a_slow_model_is_refused(shop: Shop) -> None:
    version = shop.register(shop.bundle())
    found = judged(shop, version, experiment=shop.toml(max_latency_ms=0.0001))
    assert refused(found) == {"latency"} and "at most 0.0001 ms" in found["latency"][0].expected


def test_worse_probabilities_are_refused(shop: Shop) -> None:
    """Of a constant predictor the Brier score, of sure ones the calibration error; margins are the experiment's."""
    version = shop.register(shop.bundle("constant"))
    found = judged(shop, version)
    assert refused(found) == {"beats-baseline", "beats-champion", "calibration"}
    ece, brier = found["calibration"]
    assert ece.severity == "info" and brier.severity == "error" and brier.seen.startswith("brier 0.2")
    assert "calibration" not in refused(judged(shop, version, experiment=shop.toml(max_brier_loss=0.5)))
    promote(NAME, version, store=shop.store, force="for the test")
    found = judged(shop, "1", experiment=shop.toml(max_ece_loss=0.0))
    assert refused(found) == {"calibration"} and found["calibration"][0].severity == "error"
    assert "of the champion (by chance 0.0" in found["calibration"][0].seen


def test_a_group_that_is_worse_off_is_refused_by_name(shop: Shop) -> None:
    """Trained on wrong labels in one city; the others are named with their figures."""

    def wrong_in_genf(dataset: Dataset) -> Dataset:
        targets = dataset.train.targets.copy()
        there = (dataset.train.features["city"] == "Genf").to_numpy()
        targets.loc[there, "label"] = 1 - targets.loc[there, "label"]
        return dataclasses.replace(dataset, train=dataclasses.replace(dataset.train, targets=targets))

    version = shop.register(shop.bundle("hist_gradient_boosting", change=wrong_in_genf))
    terms = shop.toml(groups=["city"], min_group_rows=20)
    found = judged(shop, version, experiment=terms)
    assert {each.subject for each in found["groups"]} == {"city = Bern", "city = Basel", "city = Genf"}
    assert [each.subject for each in found["groups"] if each.severity == "error"] == ["city = Genf"]
    few = judged(shop, version, experiment=shop.toml(groups=["city"], min_group_rows=1_000))["groups"]
    assert all("too few to judge" in each.seen for each in few)
    (absent,) = judged(shop, version, experiment=shop.toml(groups=["town"]))["groups"]
    assert absent.severity == "error" and absent.subject == "town" and "city" in absent.fix


def test_rows_that_the_champion_was_trained_on_are_left_out(shop: Shop) -> None:
    """The candidate comes from another split of the same rows: the champion knows some of its test rows."""
    spec = shop.experiment(seed=4)
    version = shop.register(shop.bundle("random_forest", spec))
    found = judged(shop, version)
    mine, its = shop.dataset(spec), shop.dataset()
    known = np.isin(mine.fingerprints["test"], np.concatenate([its.fingerprints["train"], its.fingerprints["valid"]]))
    (finding,) = found["leakage"]
    assert finding.severity == "warning" and f"without the {known.sum()} of 180" in finding.seen
    assert f"on {180 - known.sum()} test rows" in found["beats-champion"][0].seen


def test_new_rows_are_said_where_the_champion_never_saw_them_and_where_nobody_can_tell(shop: Shop) -> None:
    """Another version of the data; and the champion's rows are gone."""
    loans(seed=7).to_csv(shop.folder / "newer.csv", index=False)
    spec = shop.experiment(data__path="newer.csv")
    version = shop.register(shop.bundle("random_forest", spec))
    (finding,) = judged(shop, version)["leakage"]
    assert finding.severity == "info" and "none of which it has seen" in finding.seen
    (shop.folder / "loans.csv").unlink()
    (finding,) = judged(shop, version)["leakage"]
    assert finding.severity == "warning" and "cannot be read" in finding.seen


def test_rows_that_changed_since_are_refused(shop: Shop) -> None:
    """One value of the file the model was trained on; the figures would be of other rows."""
    version = shop.register(shop.bundle())
    frame = loans()
    frame.loc[0, "a"] += 1
    frame.to_csv(shop.folder / "loans.csv", index=False)
    found = judged(shop, version)
    assert refused(found) == {"dataset"} and "was trained on loans@" in found["dataset"][0].seen
    (shop.folder / "loans.csv").unlink()
    found = judged(shop, version)
    assert refused(found) == {"dataset"} and "--experiment FILE" in found["dataset"][0].fix


def test_a_champion_that_predicts_something_else_cannot_be_beaten(shop: Shop) -> None:
    """It is refused, and can be forced: that is a decision and not a comparison."""
    frame = loans()
    frame["label"] = frame["label"].map({0: "no", 1: "yes"})
    frame.to_csv(shop.folder / "words.csv", index=False)
    spec = shop.experiment(data__path="words.csv")
    version = shop.register(shop.bundle("hist_gradient_boosting", spec))
    found = judged(shop, version)
    assert refused(found) == {"beats-champion"}
    assert "cannot be compared with the champion: it predicts label (binary" in found["beats-champion"][0].seen
    assert promote(NAME, version, store=shop.store, force="new labels").change is not None


def test_a_champion_of_own_code_is_compared_with_trust_only(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def untrusted(registry: Registry, version: ModelVersion, *given: Any, **options: Any) -> Any:
        if version.version == "1":
            raise NotTrusted("it holds objects of its code: net.Gate", hint="read code.net.py, and give --trust")
        return candidate.opened(registry, version, *given, **options)

    monkeypatch.setattr(promotion, "opened", untrusted)
    found = judged(shop, shop.register(shop.bundle(seed=2)))
    assert refused(found) == {"beats-champion"}
    assert found["beats-champion"][0].fix.startswith("read code.net.py, and give --trust; --force REASON promotes")
    assert found["calibration"][0].seen.endswith("; not compared with the champion")
    promote(NAME, "2", store=shop.store, force="a test")
    with pytest.raises(Refused) as refusal:
        promote(NAME, "1", store=shop.store, force="a gate that --force does not overrule")
    assert [each.code for each in refusal.value.promotion.refused] == ["trust"]


def test_a_regression_is_judged_by_its_errors(tmp_path: Path) -> None:
    """Less is better, margins are shares, and there is nothing to calibrate."""
    shop = opened(tmp_path)
    rng = np.random.default_rng(0)
    frame = loans()
    frame["label"] = 100 * frame["a"] + rng.normal(size=len(frame))
    frame.to_csv(tmp_path / "prices.csv", index=False)
    data = {"path": "prices.csv", "target": "label", "task": "regression"}
    spec = shop.experiment(data=data, objective__metric="val_loss", baselines__kinds=["constant"])
    for kind in ("random_forest", "hist_gradient_boosting", "constant"):
        shop.register(shop.bundle(kind, spec, baselines={"constant": 1.0}))
    promote(NAME, "3", store=shop.store, force="something to begin with")
    done = promote(NAME, "1", store=shop.store)
    assert done.figures["metric"] == "rmse" and done.figures["champion"]["gain"] > 50
    assert [each.seen for each in done.gates if each.code == "calibration"] == ["a regression has no probabilities"]


# Versions of the feature store


@pytest.fixture
def put(store: Address, tmp_path: Path) -> Callable[..., Any]:
    """Ingests a frame under a name."""

    def put(name: str, frame: pd.DataFrame, parent: str | None = None) -> Any:
        frame.to_parquet(tmp_path / f"{name}.parquet")
        spec = DataSpec(path=f"{name}.parquet", target="label", task="binary")  # type: ignore[arg-type]
        return ingest(spec, name=name, root=tmp_path, seed=0, address=store, parent=parent)

    return put


def test_a_version_with_a_drifted_descendant_is_superseded(store: Address, put: Callable[..., Any]) -> None:
    """A descendant that did not drift leaves it in place; another family does not count."""
    feature_store = sources.source("postgres")
    assert isinstance(feature_store, sources.Versioned)
    first = put("v1", loans())
    put("other", loans(seed=3).assign(a=lambda frame: frame["a"] + 9))
    assert gates.newer_versions(feature_store, first.version).seen == "no version was made from it"
    put("v2", loans(seed=1), parent="v1")
    assert gates.newer_versions(feature_store, first.version).severity == "info"
    put("v3", loans(seed=2).assign(b=lambda frame: frame["b"] * 3), parent="v2")
    finding = gates.newer_versions(feature_store, first.version)
    assert finding.severity == "error" and finding.seen.endswith("made from it, drifted in b")
    assert "forge-sweep data drift v1 v3" in finding.fix


def test_a_feature_store_that_cannot_be_asked_refuses(shop: Shop) -> None:
    """Whether the data still holds is not known; FORGE_SWEEP_DATABASE_URL is not set."""
    bundle = shop.bundle()
    about = json.loads(json.dumps(bundle.metadata))
    about["experiment"]["data"] |= {"source": "postgres", "version": "v1", "path": None}
    version = shop.register(dataclasses.replace(bundle, metadata=about))
    found = judged(shop, version)
    assert refused(found) == {"superseded"} and "was not asked" in found["superseded"][0].seen
