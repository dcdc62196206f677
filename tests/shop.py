"""A store with registered models that take no network to make: real bundles of trees on real rows, real MLflow."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from forge_sweep import sources, trial
from forge_sweep.bundle import Bundle, Comparison, Evaluation, ScoredModel, files
from forge_sweep.experiment import Experiment, parse, restore
from forge_sweep.sources import Dataset
from forge_sweep.task import METRICS, RESAMPLES, Answers, gains
from forge_sweep.tracking import Tracker, prepare_store, requirements

NAME = "loans"


def loans(rows: int = 1_200, seed: int = 0) -> pd.DataFrame:
    """A label that follows from two numbers, three cities, and noise."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(rng.normal(size=(rows, 4)), columns=["a", "b", "c", "d"])
    frame["city"] = rng.choice(["Bern", "Basel", "Genf"], rows)
    frame["label"] = (frame["a"] * frame["b"] + frame["c"] / 2 + rng.normal(scale=0.4, size=rows) > 0).astype(int)
    return frame


def experiment(root: Path, **changes: Any) -> Experiment:
    """The experiment; ``section__key=value`` overrides."""
    raw: dict[str, Any] = {
        "name": NAME,
        "description": "Who pays back",
        "seed": 3,
        "data": {"path": "loans.csv", "target": "label", "task": "binary"},
        "objective": {"metric": "val_auc"},
        "model": {"search": {"width": {"type": "int", "low": 4, "high": 8}}},
        "study": {"n_trials": 1},
        "baselines": {"kinds": ["constant", "hist_gradient_boosting"], "tune": False},
        "promotion": {"max_latency_ms": 60_000.0, "max_ece_loss": 0.5},  # a busy machine, and few rows
    }
    for path, value in changes.items():
        section, _, key = path.partition("__")
        if key:
            raw[section] = {**raw.get(section, {}), key: value}
        else:
            raw[section] = value
    return parse(raw, root=root)


@dataclass(frozen=True)
class Shop:
    """A folder with rows, an experiment, and a store.

    Attributes:
        folder: all of it.
    """

    folder: Path

    @property
    def store(self) -> Path:
        """The embedded stores."""
        return self.folder / "mlruns"

    def experiment(self, **changes: Any) -> Experiment:
        """The experiment with changes."""
        return experiment(self.folder, **changes)

    def dataset(self, spec: Experiment | None = None) -> Dataset:
        """The rows of an experiment."""
        spec = spec or self.experiment()
        return sources.load(spec.data, root=spec.root, seed=spec.seed)

    def bundle(
        self,
        kind: str = "hist_gradient_boosting",
        spec: Experiment | None = None,
        change: Callable[[Dataset], Dataset] = lambda dataset: dataset,
        seed: int = 1,
        **metadata: Any,
    ) -> Bundle:
        """A tree on the training rows, perhaps changed, which says of itself what a sweep would."""
        spec = spec or self.experiment()
        made = trial.run_baseline(spec, change(self.dataset(spec)), kind, seed).bundle
        about = {"baselines": {"constant": 0.5}, **made.metadata, **metadata}
        return dataclasses.replace(made, metadata=about)

    def register(
        self,
        bundle: Bundle,
        *,
        card: bool = True,
        tags: dict[str, str] | None = None,
        edit: Callable[[Path], None] = lambda folder: None,
        model: str = NAME,
        against: Sequence[Bundle] | None = None,
    ) -> str:
        """Register a bundle as the next version; ``edit`` may change its files, whose hashes are made anew.

        ``against`` are the other models of its one look at the test rows, which is made, recorded and kept with it;
        without them it is a version of before that was kept.
        """
        with Tracker(NAME, self.store) as tracker:
            key = f"{model}/{len(list(self.folder.glob('bundle-*')))}"
            folder = self.folder / f"bundle-{key.replace('/', '-')}"
            run = tracker.run(key, key, kind="confirm")
            run.finish("FINISHED")
            looked = None if against is None else self.evaluation(bundle, against, str(run.run_id))
            bundle.save(folder, self.dataset().train.features, card=card, evaluation=looked)
            edit(folder)
            (folder / files.MANIFEST).unlink()
            files.write_manifest(folder)
            return tracker.register(
                key,
                folder,
                model_name=model,
                columns=bundle.preprocessor.schema.names,
                requirements=requirements(bundle.kind),
                tags={
                    "forge.image_digest": "none",
                    "forge.kind": bundle.kind,
                    "forge.root": str(self.folder),
                    "forge.dataset_version": str(bundle.metadata["dataset_version"]),
                    **(tags or {}),
                },
            )

    def evaluation(self, bundle: Bundle, others: Sequence[Bundle], run: str) -> Evaluation:
        """What the look of a sweep at the test rows keeps: the registered model first, then the best baseline."""
        dataset = self.dataset(restore(bundle.metadata["experiment"], root=self.folder))
        rows = dataset.look_at_test("final score of a sweep", self.store / "test_looks.jsonl", run=run)
        encoded = bundle.task.encode(rows.targets)
        answers = [Answers(each.scores(rows.features), each.threshold) for each in (bundle, *others)]
        models = tuple(
            ScoredModel(each.kind, each.kind if i else "winner", each.kind, 0, said.threshold, said.scores)
            for i, (each, said) in enumerate(zip((bundle, *others), answers, strict=True))
        )
        compared = tuple(
            Comparison(
                "winner", model.label, gains(bundle.task, encoded, answers[0], said, (metric,))[metric], RESAMPLES
            )
            for model, said in zip(models[1:], answers[1:], strict=True)
            for metric in METRICS[bundle.task.kind]
        )
        prints = dataset.fingerprints["test"]
        return Evaluation(dataset.digest, dataset.split_digest, prints, models, compared, 1)

    def toml(self, **promotion: Any) -> Path:
        """An experiment file with this section ``[promotion]``."""
        settings = {"max_latency_ms": 60_000.0, "max_ece_loss": 0.5, **promotion}
        lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
        text = f"""
        name = "{NAME}"
        seed = 3
        [data]
        path = "loans.csv"
        target = "label"
        task = "binary"
        [objective]
        metric = "val_auc"
        [model.search]
        width = {{ type = "int", low = 4, high = 8 }}
        [promotion]
        """
        path = self.folder / "terms.toml"
        path.write_text("\n".join([*(line.strip() for line in text.splitlines()), *lines]))
        return path


def opened(folder: Path) -> Shop:
    """A shop with rows and an empty store."""
    loans().to_csv(folder / "loans.csv", index=False)
    shop = Shop(folder)
    prepare_store(f"sqlite:///{shop.store.absolute()}/mlflow.db", shop.store)
    return shop


def copied(shop: Shop, folder: Path) -> Shop:
    """The same rows and models in a store of one's own, which takes less time than to make them anew."""
    database = "mlruns/mlflow.db"
    with closing(sqlite3.connect(shop.folder / database)) as original:
        original.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copytree(shop.folder, folder, dirs_exist_ok=True)
    with closing(sqlite3.connect(folder / database)) as mine, mine:
        tables = [row[0] for row in mine.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            kinds = mine.execute(f"PRAGMA table_info({table})").fetchall()
            for column in [row[1] for row in kinds if "CHAR" in row[2] or "TEXT" in row[2]]:
                mine.execute(  # MLflow keeps absolute paths
                    f"UPDATE {table} SET {column} = replace({column}, ?, ?) WHERE {column} LIKE ?",
                    (str(shop.folder), str(folder), f"%{shop.folder}%"),
                )
    return Shop(folder)
