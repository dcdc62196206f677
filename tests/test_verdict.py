"""A sweep's verdict end to end: noise is never better, and every number that `run` prints can be computed again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import ensemble, metrics
from typer.testing import CliRunner

from forge_sweep import sources, sweep
from forge_sweep.bundle import Bundle, Evaluation
from forge_sweep.cli import app
from forge_sweep.experiment import load, parse
from forge_sweep.sources import test_looks as looks_at_test
from forge_sweep.study import find_study
from forge_sweep.tracking import Registry, fetched
from tests.surface import EPOCHS, STORY, experiment, fake_run, network_like, no_network

# Keras 3.15 turns its variables into arrays in a way that NumPy 2 deprecates, in ReduceLROnPlateau among others.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]

NAMES = [f"x{i}" for i in range(12)]

SEARCH = """
[model.search]
width = { type = "int", low = 8, high = 16 }
depth = 1
learning_rate = { type = "float", low = 3e-3, high = 3e-2, log = true }
batch_size = 64
"""


def noise(folder: Path, seed: int, task: str = "binary") -> dict[str, Any]:
    """A table in which nothing can be learned."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({f"x{i}": rng.normal(size=240) for i in range(5)})
    y = rng.normal(size=240) if task == "regression" else rng.integers(0, 2 if task == "binary" else 3, 240)
    frame.assign(y=y).to_csv(folder / "noise.csv", index=False)
    metric = {"binary": "val_auc", "multiclass": "val_balanced_accuracy", "regression": "val_r2"}[task]
    return {
        "name": f"noise-{seed}",
        "seed": seed,
        "data": {"path": "noise.csv", "target": "y", "task": task},
        "objective": {"metric": metric},
        "model": {"search": {"width": {"type": "int", "low": 8, "high": 16}, "depth": 1, "batch_size": 64}},
        "study": {"n_trials": 2, "epochs": 4, "pruner": "none"},
        "baselines": {"kinds": ["constant", "hist_gradient_boosting"], "tune": False},
        "confirm": {"top": 2, "seeds": 3},
    }


@pytest.mark.parametrize("seed", range(5))
def test_on_pure_noise_the_verdict_never_says_better(seed: int, tmp_path: Path) -> None:
    """Networks are chosen by validation rows three times over; that alone is no lead, and the baseline is shipped."""
    task = ("binary", "multiclass", "regression", "binary", "multiclass")[seed]
    result = sweep.run(parse(noise(tmp_path, seed, task), root=tmp_path), store=tmp_path / "mlruns")
    assert result.outcome in ("as good as", "worse")
    assert result.winner["baseline"] in ("constant", "hist_gradient_boosting")
    assert "beats" not in result.verdict or result.outcome == "worse"


def test_a_tree_that_is_better_by_a_known_margin_is_shipped(tmp_path: Path) -> None:
    """Steps of six columns, one label in twenty turned; the networks are small forests that cannot add up so many."""
    rng = np.random.default_rng(1)

    def rows(n: int) -> pd.DataFrame:
        x = pd.DataFrame({f"x{i}": rng.normal(size=n) for i in range(6)})
        return x.assign(y=((np.sign(x).sum(axis=1) + 0.1 > 0) ^ (rng.random(n) < 0.05)).astype(int))

    rows(2000).to_csv(tmp_path / "steps.csv", index=False)
    spec = noise(tmp_path, 9) | {"name": "steps", "data": {"path": "steps.csv", "target": "y", "task": "binary"}}
    spec["model"] = experiment().model.model_dump(include={"search"}, exclude_none=True)
    told, fresh = parse(spec | {"study": {"n_trials": 3, "epochs": EPOCHS}}, root=tmp_path), rows(20_000)
    with no_network(fake_run()):
        result = sweep.run(told, store=tmp_path / "mlruns")
    registry = Registry(tmp_path / "mlruns")
    with fetched(registry.version("steps", "1"), registry.store) as folder:
        shipped = Bundle.load(folder)
    loser = network_like(told, sources.load(told.data, root=told.root, seed=told.seed))
    tree, network = (metrics.roc_auc_score(fresh["y"], each.scores(fresh)[:, 0]) for each in (shipped, loser))
    assert tree - network > 0.05, "the margin, on rows that nobody chose by"
    assert result.outcome == "worse" and shipped.kind == result.winner["baseline"] == "hist_gradient_boosting"


def test_a_network_without_a_baseline_is_told_from_chance(tmp_path: Path) -> None:
    spec = noise(tmp_path, 0) | {"baselines": {"kinds": []}, "study": {"n_trials": 1, "epochs": 1}}
    result = sweep.run(parse(spec, root=tmp_path), store=tmp_path / "mlruns")
    assert "it is not shown to beat the constant predictor (0." in result.verdict
    assert "against 0.5000)" in result.verdict and result.winner["label"] == "0000"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A sweep that a network wins, with all its bundles, and what `run` printed of it."""
    folder = tmp_path_factory.mktemp("told")
    rng = np.random.default_rng(3)
    frame = pd.DataFrame({name: rng.normal(size=1500) for name in NAMES})
    frame = frame.assign(y=(2 * frame.sum(axis=1) + rng.logistic(size=1500) > 0).astype(int))  # hard for a tree
    frame.to_csv(folder / "rows.csv", index=False)
    (folder / "told.toml").write_text(
        'name = "told"\nseed = 5\n[data]\npath = "rows.csv"\ntarget = "y"\ntask = "binary"\n[objective]\n'
        'metric = "val_auc"\n[study]\nn_trials = 3\nepochs = 12\npruner = "none"\n[baselines]\n'
        'kinds = ["constant", "hist_gradient_boosting"]\ntune = false\n[confirm]\ntop = 2\nseeds = 3\n' + SEARCH
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(STORY, "clear_checkpoints", lambda context: None)  # the test scores the confirmed bundles again
        arguments = ["run", str(folder / "told.toml"), "--store", str(folder / "mlruns")]
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return folder, done.output


def table(printed: str, first: str) -> list[dict[str, str]]:
    """The rows under the title that begins with ``first``, by column."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in printed.splitlines()]
    start = next(i for i, cells in enumerate(lines) if cells[0].startswith(first) and len(cells) > 2)
    rows = []
    for cells in lines[start + 1 :]:
        if len(cells) != len(lines[start]):
            break
        rows.append(dict(zip(lines[start], cells, strict=True)))
    return rows


def shown(value: float, ends: tuple[float, float] | None = None) -> str:
    """A figure as it is printed."""
    if ends is not None:
        return f"{shown(value)} ({shown(ends[0])} to {shown(ends[1])})"
    return f"{value:.4f}" if value == 0 or 0.001 <= abs(value) < 10_000 else f"{value:.2g}"


def picks(n: int, resamples: int = 1000) -> np.ndarray:
    """(resamples, n) rows of each resample, as the seed 0 draws them."""
    return np.random.default_rng(0).integers(0, n, size=(resamples, n))


def ends(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


SCORED = {
    "auc": lambda truth, score, cut: metrics.roc_auc_score(truth, score),
    "pr_auc": lambda truth, score, cut: metrics.average_precision_score(truth, score),
    "accuracy": lambda truth, score, cut: metrics.accuracy_score(truth, score >= cut),
    "balanced_accuracy": lambda truth, score, cut: metrics.balanced_accuracy_score(truth, score >= cut),
    "f1": lambda truth, score, cut: metrics.f1_score(truth, score >= cut),
    "precision": lambda truth, score, cut: metrics.precision_score(truth, score >= cut, zero_division=0.0),
    "recall": lambda truth, score, cut: metrics.recall_score(truth, score >= cut),
    "mcc": lambda truth, score, cut: metrics.matthews_corrcoef(truth, score >= cut),
    "log_loss": lambda truth, score, cut: metrics.log_loss(truth, score),
    "brier": lambda truth, score, cut: metrics.brier_score_loss(truth, score),
}
RESAMPLED = ("auc", "log_loss", "brier")
"""Metrics whose intervals are computed again: each takes scikit-learn a second or two."""


def test_every_number_of_the_search_and_the_confirmation_is_in_the_stores(told: tuple[Path, str]) -> None:
    """Trials from Optuna and MLflow, baselines fitted again with plain scikit-learn, means and spreads by NumPy."""
    from mlflow import MlflowClient

    folder, printed = told
    study = find_study("told", folder / "mlruns")
    assert study is not None
    client = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    ids = [e.experiment_id for e in client.search_experiments() if e.name == "told"]
    runs = {run.info.run_name: run for run in client.search_runs(ids, max_results=100)}
    values = {row.number: row.value for row in study.rows()}
    for number, value in values.items():
        assert runs[f"trial-{number:04d}"].data.metrics["best_val_auc"] == pytest.approx(value)
        assert re.search(rf"trial {number}\s+finished\s+{shown(value or 0)}", printed), printed
    best = max(values, key=lambda number: values[number] or 0.0)
    assert f"best in the search: trial {best}, val_auc {shown(values[best] or 0)}" in printed

    spec = load(folder / "told.toml")
    dataset = sources.load(spec.data, root=spec.root, seed=spec.seed)
    train, valid = ((s.features[NAMES], s.targets["y"]) for s in (dataset.train, dataset.valid))
    mean, std = train[0].mean(), train[0].std(ddof=0)
    arrays = [((x - mean) / std).to_numpy(np.float32) for x, _ in (train, valid)]
    trees = {}
    for name, run in runs.items():
        if run.data.params.get("baseline") == "hist_gradient_boosting":
            tree = ensemble.HistGradientBoostingClassifier(random_state=int(run.data.params["seed"]))
            score = tree.fit(arrays[0], train[1]).predict_proba(arrays[1])[:, 1]
            trees[name] = metrics.roc_auc_score(valid[1], score)
    assert len(trees) == 4, "the search's own and three seeds"

    rows = {row["model"].removesuffix(" (registered)"): row for row in table(printed, "model")}
    assert set(rows) == {"constant", "hist_gradient_boosting", *(w for w in rows if w.startswith("trial "))}
    assert rows["constant"]["val_auc, search"] == shown(0.5)
    for words, row in rows.items():
        if words == "constant":
            continue
        label = f"{int(words.split()[1]):04d}" if words.startswith("trial") else words
        of_seeds = [
            trees[f"confirm-{label}-s{s}"]
            if label in words
            else runs[f"confirm-{label}-s{s}"].data.metrics["best_val_auc"]
            for s in (1, 2, 3)
        ]
        once = trees["baseline-hist_gradient_boosting"] if label in words else values[int(label)]
        assert row["val_auc, search"] == shown(once or 0.0) and row["mean of 3 seeds"] == shown(np.mean(of_seeds))
        spread = np.std(of_seeds, ddof=1)
        assert row["spread"] == (shown(spread) if spread else "-")


def test_the_verdict_and_its_interval_follow_from_the_confirmed_models(told: tuple[Path, str]) -> None:
    """By rows picked and copied, AUC by ranks, Student's t: the method of decisions 25 and 47 a second time."""
    folder, printed = told
    spec = load(folder / "told.toml")
    valid = sources.load(spec.data, root=spec.root, seed=spec.seed).valid
    truth, study = valid.targets["y"].to_numpy(), find_study("told", folder / "mlruns")
    assert study is not None
    final = study.final()
    assert final is not None
    drawn, values = {}, {}
    resampled = picks(len(truth))
    for row in final["confirmed"]:
        folders = [folder / "mlruns" / "checkpoints" / "told" / f"confirm-{row['label']}-s{s}" for s in (1, 2, 3)]
        scores = [Bundle.load(each).scores(valid.features)[:, 0] for each in folders]
        values[row["label"]] = np.array([metrics.roc_auc_score(truth, score) for score in scores])
        distinct = {score.tobytes(): np.array([quick_auc(truth[p], score[p]) for p in resampled]) for score in scores}
        drawn[row["label"]] = np.stack([distinct[score.tobytes()] for score in scores])
    networks = sorted((label for label in values if label.isdigit()), key=lambda label: -values[label].mean())
    first, tree = networks[0], "hist_gradient_boosting"
    gap = values[first].mean() - values[tree].mean()

    few = min(truth.sum(), (1 - truth).sum())
    wide = np.sqrt(few / (few - 1))

    def off(apart: np.ndarray, *errors: tuple[float, int]) -> tuple[float, float]:
        rng, drawn = np.random.default_rng([0, 1]), np.resize(apart * wide, 20_000)
        for error, _ in errors:
            drawn = drawn + error * rng.standard_normal(20_000)
        parts = [(apart.var() * wide**2, few - 1), *((error**2, dof) for error, dof in errors)]
        dof = sum(v for v, _ in parts) ** 2 / sum(v**2 / d for v, d in parts)  # Satterthwaite
        return ends(drawn * stats.t.ppf(0.975, dof) / stats.norm.ppf(0.975))

    variances = [values[label].var(ddof=1) for label in networks]
    error = np.sqrt(max(variances[0], np.mean(variances)) / 3)
    apart = drawn[first].mean(axis=0) - drawn[tree].mean(axis=0) - gap
    low, high = off(apart, (error, 4), (np.sqrt(values[tree].var(ddof=1) / 3), 2))

    def best_of(m: float) -> float:
        return 0.0 if m == 1 else float(stats.norm.ppf((m - 0.375) / (m + 0.25)))

    def luck(lasting: float, passing: float, m: int, *scores: float | None) -> float:
        found = [each for each in scores if each is not None]
        in_all = np.quantile(found, 0.8413) - np.median(found) if found else 0.0
        return lasting**2 / max(np.hypot(lasting, passing), in_all) * best_of(m)

    by_training = np.sqrt(np.mean([((d - d.mean(axis=0)).var(axis=1)).sum() / 2 for d in (drawn[n] for n in networks)]))
    means = np.stack([drawn[label].mean(axis=0) for label in networks])
    by_configuration = np.sqrt((means - means.mean(axis=0)).var(axis=1).sum())
    epochs = max(note["epochs"] for key, note in study.notes("confirm:").items() if f":{first}:" in key)
    optimism = by_training * best_of(epochs) + luck(error, by_configuration, 2)
    optimism += luck(by_configuration, error * np.sqrt(3), 3, *(row.value for row in study.rows()))
    lead = gap - optimism, (gap - optimism + low, gap - optimism + high)
    assert final["comparison"]["optimism"] == pytest.approx(optimism, rel=1e-6)
    assert [final["comparison"][end] for end in ("low", "high")] == pytest.approx(lead[1], abs=1e-9)
    assert final["comparison"]["apparent"] == pytest.approx(gap) and final["comparison"]["baseline_optimism"] == 0.0
    assert f"the network's lead is {shown(*lead)[:-1]}; 95% over" in printed
    assert f"seen were {shown(gap)}, of which choosing among 3 configurations" in printed
    assert final["outcome"] == "better" and f"trial {int(first)}" in printed.split("verdict")[1]

    rows = {row["model"].removesuffix(" (registered)"): row for row in table(printed, "model")}
    own = off(drawn[first].mean(axis=0) - values[first].mean(), (np.sqrt(values[first].var(ddof=1) / 3), 2))
    low, high = np.clip(values[first].mean() + np.array(own), 0, 1)
    assert rows[f"trial {int(first)}"]["95 %"] == f"{shown(low)} to {shown(high)}"


def quick_auc(truth: np.ndarray, score: np.ndarray) -> float:
    """AUC by ranks (Mann and Whitney); `roc_auc_score` gives the same, more slowly."""
    ranks, positives = stats.rankdata(score), truth.sum()
    return float((ranks[truth == 1].sum() - positives * (positives + 1) / 2) / (positives * (len(truth) - positives)))


def test_the_figures_of_the_test_rows_follow_from_the_registered_bundle_and_the_raw_rows(
    told: tuple[Path, str],
) -> None:
    """Both models' metrics, their intervals and the paired differences; one look, and no targets are kept."""
    folder, printed = told
    spec = load(folder / "told.toml")
    dataset = sources.load(spec.data, root=spec.root, seed=spec.seed)
    ledger = folder / "mlruns" / "test_looks.jsonl"
    assert len(looks_at_test(ledger, dataset.digest)) == 1
    registry = Registry(folder / "mlruns")
    with fetched(registry.version("told", "1"), registry.store) as bundle_folder:
        bundle, evaluation = Bundle.load(bundle_folder), Evaluation.load(bundle_folder)
        card = (bundle_folder / "card.md").read_text()
    assert evaluation is not None and evaluation.is_of(dataset.digest, dataset.split_digest)
    split = dataset.look_at_test("a test", folder / "elsewhere.jsonl")
    truth = split.targets["y"].to_numpy()
    assert (evaluation.fingerprints == dataset.fingerprints["test"]).all()
    own, tree = evaluation.registered, evaluation.baseline
    assert own.kind == "network" and tree is not None and tree.kind == "hist_gradient_boosting"
    assert own.scores is not None and tree.scores is not None
    np.testing.assert_allclose(bundle.scores(split.features), own.scores, atol=1e-6)

    rows = {row[f"on {len(truth)} test rows"]: row for row in table(printed, f"on {len(truth)} test rows")}
    assert set(rows) == set(SCORED)
    resampled = picks(len(truth))
    for name, scored in SCORED.items():
        sign = -1.0 if name in ("log_loss", "brier") else 1.0
        found = [scored(truth, m.scores[:, 0], m.threshold) for m in (own, tree)]  # type: ignore[index]
        cells = list(rows[name].values())[1:]
        if name not in RESAMPLED:
            wanted = [shown(each) for each in (*found, sign * (found[0] - found[1]))]
            assert [cell.split(" (")[0] for cell in cells] == wanted, name
            continue
        over = [
            np.array([scored(truth[p], m.scores[p, 0], m.threshold) for p in resampled])  # type: ignore[index]
            for m in (own, tree)
        ]
        lead = sign * (found[0] - found[1]), ends(sign * (over[0] - over[1]))
        assert cells == [shown(found[0], ends(over[0])), shown(found[1], ends(over[1])), shown(*lead)], name
        kept = evaluation.compared(tree, name)
        assert kept is not None and kept.gain.gain.value == pytest.approx(lead[0], abs=1e-12)
        if name == "auc":
            assert (kept.gain.gain.low, kept.gain.gain.high) == pytest.approx(lead[1], abs=1e-12)
            assert f"{shown(*lead)[:-1]}) by auc" in printed
    assert "## Compared on test" in card and f"| auc | {rows['auc']['hist_gradient_boosting']}" not in card
    assert rows["auc"]["hist_gradient_boosting"] in card


def test_best_status_and_the_report_show_the_winner_first(told: tuple[Path, str]) -> None:
    """With its parameters; the best score of the search is named as that. MLflow has both models' test figures."""
    from mlflow import MlflowClient

    folder, _ = told
    store = ["--store", str(folder / "mlruns")]
    said = CliRunner().invoke(app, ["best", "told", *store]).output
    final = json.loads(CliRunner().invoke(app, ["best", "told", "--json", *store]).output)
    winner = final["winner"]
    assert said.startswith(f"winner: {winner['words']}, val_auc {shown(winner['mean'])} over 3 seeds")
    assert f"width = {winner['params']['width']}" in said
    assert f"best in the search: trial {final['best']['number']}, val_auc {shown(final['best']['value'])}" in said
    status = CliRunner().invoke(app, ["status", "told", *store]).output
    assert f"winner: {winner['words']}" in status and status.index("winner") < status.index("best in the search")
    page = folder / "report.html"
    CliRunner().invoke(app, ["report", "told", "-o", str(page), *store], catch_exceptions=False)
    text = page.read_text()
    assert text.index(f"<strong>{winner['words']}</strong>") < text.index("Best in the search")
    client = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    parent = client.get_run(final["final"]["run_id"])
    assert json.loads(parent.data.tags["forge.best_params"]) == winner["params"]
    assert parent.data.tags["forge.outcome"] == "better"
    assert f"trial {final['best']['number']}, " in parent.data.tags["forge.best_in_search"]
    evaluation = final["final"]["evaluation"]
    for role, model in zip(("test", "baseline_test"), evaluation["models"], strict=True):
        for name, (value, _, _) in model["metrics"].items():
            assert parent.data.metrics[f"{role}_{name}"] == pytest.approx(value)
    assert {"lead", "lead_low", "lead_high", "test_lead_over_baseline_low"} <= parent.data.metrics.keys()
