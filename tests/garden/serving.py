"""Faults of callers of a model that is sound."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from forge_sweep import sources
from forge_sweep.checks.profile import Profile
from forge_sweep.experiment import load
from forge_sweep.preprocessing import RowTransform
from forge_sweep.serving.predict import Window
from tests.garden.data import cancer, cut, scaled, table
from tests.garden.plots import SEEDS, Fault, Said, plain, train

SWAPPED = ["mean perimeter", "mean area"]


def served(path: Path) -> list[Said]:
    """What `/drift` says once the rows of ``sent.csv`` were answered."""
    declared = load(path)
    rows = sources.load(declared.data, root=declared.root, seed=declared.seed)
    transform = RowTransform(train(declared, rows, SEEDS[0]).bundle.preprocessor)
    raw = transform.read_frame(pd.read_csv(path.parent / "sent.csv"))
    window = Window(Profile.learn(rows.train.features, transform), raw.shape[1], size=1_000, least=100)
    window.add(raw)
    return [Said(f["code"], "serving", f["seen"], f["fix"], f["severity"]) for f in window.report()["findings"]]


def _lay(folder: Path, sent: pd.DataFrame) -> Path:
    path = table(folder, cancer(), "target", "val_auc")
    sent.drop(columns="target").to_csv(folder / "sent.csv", index=False)
    return path


def _swapped(planted: bool) -> pd.DataFrame:
    names = {one: other for one, other in zip(SWAPPED, reversed(SWAPPED), strict=True)} if planted else {}
    return cancer().rename(columns=names)[list(cancer())]


def _standardised(planted: bool) -> pd.DataFrame:
    frame = cancer()
    return ((frame - frame.mean()) / frame.std()).assign(target=frame["target"]) if planted else frame


def _asked(sent: pd.DataFrame) -> dict[str, float]:
    """Validation accuracy of a plain loop, and on the same rows as they are sent."""
    x, y, x_valid, y_valid = cut(cancer())
    logs, model = plain(*scaled(x, y, x_valid, y_valid))
    wrong = scaled(x, y, cut(sent)[2], y_valid)[2]
    found = ((model.predict(wrong, verbose=0)[:, 0] >= 0.5) == y_valid).mean()
    return {**logs, "sent": float(found)}


FAULTS: tuple[Fault, ...] = (
    Fault(
        name="swapped columns",
        what="A caller sends perimeters as areas, and areas as perimeters.",
        plain=lambda: _asked(_swapped(True)),
        prints="val_accuracy {val_accuracy:.2f}; {sent:.2f} on what is sent, which nothing prints.",
        lay=lambda folder, planted: _lay(folder, _swapped(planted)),
        code="swapped-columns",
        when="serving",
        said=served,
        beside=frozenset({"drift"}),
    ),
    Fault(
        name="another scaler",
        what="A caller scales the rows before it sends them.",
        plain=lambda: _asked(_standardised(True)),
        prints="val_accuracy {val_accuracy:.2f}; {sent:.2f} on what is sent, which nothing prints.",
        lay=lambda folder, planted: _lay(folder, _standardised(planted)),
        code="rescaled",
        when="serving",
        said=served,
        beside=frozenset({"drift"}),
    ),
)
