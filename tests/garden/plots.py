"""What a planted fault is, and how it is looked for: the framework of the garden.

A fault is an experiment on real rows in which one thing was done wrong. In a plain Keras loop it raises nothing. Here
it has to be said under its own name, and not be said where it was not planted.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from forge_sweep import sources, training, trial
from forge_sweep.checks.findings import Finding
from forge_sweep.errors import ExperimentError, ForgeSweepError, GateRefused, TrialFailed
from forge_sweep.experiment import Experiment, load
from forge_sweep.preflight import corner_params
from forge_sweep.sources.base import Dataset
from forge_sweep.sweep import Event
from forge_sweep.sweep.run import audit_data, load_data, try_models
from forge_sweep.trial import TrialResult

STAGES = ("file", "audit", "pre-flight", "epoch", "end", "sweep", "serving")
"""When something is said: as the file and its data are read, before any model is built, before the first trial, in an
epoch, as a trial ends, as a sweep ends, as a model is asked."""

SEEDS = (1, 2, 3)
"""Of the trainings that are compared with each other."""

TINY: dict[str, Any] = {"width": 16, "depth": 1, "learning_rate": 0.01, "batch_size": 64}
"""The one network of the garden: equal shapes share what was traced for the first of them."""


@dataclass(frozen=True)
class Said:
    """What was said of an experiment, and when: a word of `STAGES`, an epoch as ``epoch 3``."""

    code: str
    when: str
    text: str
    fix: str = ""
    severity: str = "error"


@dataclass(frozen=True)
class Fixed:
    """That the printed TOML line works: with it, `metric` is better than before by more than noise.

    Attributes:
        metric: on validation, such as ``val_auc``; the higher the better, unless it is a loss or an error.
        over: ``baseline``: better than the constant baseline; ``itself``: better than the experiment with the fault.
        seeds: of the trainings that are compared; more where the fault makes some of them unlucky, and others not.
    """

    metric: str
    over: Literal["baseline", "itself"] = "itself"
    seeds: tuple[int, ...] = SEEDS


@dataclass(frozen=True, eq=False)
class Fault:
    """One planted fault.

    Attributes:
        name: as a test is called, such as ``raw amounts``.
        what: what was done wrong, in one sentence.
        plain: a loop of plain Keras with the fault; gives its last logs and whatever else ``prints`` tells.
        prints: what the loop prints, a sentence with the figures of ``plain`` in braces.
        lay: writes data, modules and experiment into a folder, with the fault planted or without; gives the TOML.
        code: the finding, the failure, or for a refusal the key of the TOML, that has to be said.
        when: a word of `STAGES`, or ``epoch 1`` and so on.
        fixed: what is better once the printed line is applied; None where the line is not one of the TOML.
        beside: what else comes and goes with the fault.
        said: looks for it; default: `look`.
    """

    name: str
    what: str
    plain: Callable[[], Mapping[str, float]]
    prints: str
    lay: Callable[[Path, bool], Path]
    code: str
    when: str
    fixed: Fixed | None = None
    beside: frozenset[str] = field(default=frozenset())
    said: Callable[[Path], Sequence[Said]] | None = None

    def look(self, folder: Path, *, planted: bool) -> tuple[Said, ...]:
        """What is said up to the stage at which the fault has to be caught."""
        path = self.lay(folder, planted)
        return tuple(self.said(path) if self.said else look(path, self.when))


# --- laying an experiment out


def experiment(
    folder: Path, data: Mapping[str, Any], metric: str, *, seed: int = 0, **sections: Mapping[str, Any]
) -> Path:
    """Write an experiment with the tiny network, and these sections; those of ``study`` and ``model`` are added to."""
    study = {"n_trials": 1, "epochs": 8, **sections.pop("study", {})}
    model = dict(sections.pop("model", {}))
    model["search"] = {**TINY, **model.get("search", {})} if ":" not in model.get("builder", "") else model["search"]
    tables = {
        "data": data,
        "model": model,
        "objective": {"metric": metric},
        "study": study,
        "baselines": {"kinds": ["constant"]},
        "confirm": {"top": 1, "seeds": 1},
        **sections,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "experiment.toml"
    path.write_text(f'name = "garden"\nseed = {seed}\n\n' + "\n".join(_tables(tables)))
    return path


def _tables(tables: Mapping[str, Any], above: str = "") -> list[str]:
    lines = []
    for name, table in tables.items():
        of_values = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
        lines += [f"[{above}{name}]", *(f"{key} = {json.dumps(value)}" for key, value in of_values.items()), ""]
        lines += _tables({key: value for key, value in table.items() if isinstance(value, Mapping)}, f"{above}{name}.")
    return lines


# --- looking at one


def look(path: Path, when: str, *overrides: str) -> list[Said]:
    """What is said of an experiment, stage by stage, up to and with one; what is refused goes no further."""
    found: list[Said] = []
    stage = "file"

    def watch(event: Event) -> None:
        if event.kind == "finding":
            finding = event.data
            found.append(Said(finding["code"], stage, finding["seen"], finding["fix"], finding["severity"]))

    last = STAGES.index(when.split()[0])
    try:
        declared = load(path, overrides)
        rows = load_data(declared, watch)
        if last >= (at := STAGES.index(stage := "audit")):
            audit_data(declared, rows, watch)
        if last > at:
            stage = "pre-flight"
            _ready()
            try_models(declared, rows, watch)
        if last > at + 1:
            stage = "epoch"
            result = train(declared, rows, SEEDS[0])
            found += [_of_finding(each, "end") for each in result.findings]
    except GateRefused:
        pass  # its findings were said
    except ExperimentError as error:
        found += [Said(each.path, stage, str(each), each.hint) for each in error.mistakes]
    except TrialFailed as error:
        epoch = re.search(r"epoch (\d+)", error.message)
        found.append(Said(error.failure, f"epoch {epoch[1]}" if epoch else "end", error.message, error.hint))
    except ForgeSweepError as error:
        key = re.match(r"[\w.]+", error.message)
        found.append(Said(key[0] if key else "", stage, error.message, error.hint))
    return found


def _of_finding(finding: Finding, when: str) -> Said:
    return Said(finding.code, when, finding.seen, finding.fix, finding.severity)


def _ready() -> None:
    training.select_backend("tensorflow")
    training.load_backend()


def train(declared: Experiment, rows: Dataset, seed: int) -> TrialResult:
    """One trial with the smallest values of the search space, whatever the audit says of its rows."""
    _ready()
    return trial.run(declared, rows, corner_params(declared, "smallest"), seed, lambda epoch, logs: False)


# --- the printed line

_PART = re.compile(
    r'(?P<key>[A-Za-z_]\w*) = (?P<value>"[^"]*"|\[[^]]*\]|\{[^}]*\}|[-+\w.]+)'
    r"|under \[(?P<section>[\w.]+)\]|(?P<end>\b(?:or|else)\b)"
)


def overrides_of(fix: str) -> list[str]:
    """The TOML lines of a fix, as overrides ``section.key=value``: those before the first ``or``.

    A fix reads ``key = value and key = value under [section]``.
    """
    found: list[str] = []
    waiting: list[tuple[str, str]] = []
    for part in _PART.finditer(fix):
        if part["end"] and found:
            break
        if part["key"]:
            waiting.append((part["key"], part["value"]))
        elif part["section"]:
            found += [f"{part['section']}.{key}={value}" for key, value in waiting]
            waiting.clear()
    return found


def gain(fault: Fault, folder: Path, line: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The metric of a fault before and after its printed line was applied, (seeds,) each, so that more is better.

    Before is the constant baseline of the repaired experiment, or the experiment with the fault.
    """
    assert fault.fixed is not None
    path = fault.lay(folder, True)
    metric, seeds = fault.fixed.metric, fault.fixed.seeds
    sign = -1.0 if any(word in metric for word in ("loss", "rmse", "mae", "mse", "brier")) else 1.0
    declared = load(path, line)
    rows = sources.load(declared.data, root=declared.root, seed=declared.seed, code=declared.source_code)
    after = [train(declared, rows, seed).metrics[metric] for seed in seeds]
    if fault.fixed.over == "baseline":
        before = [trial.run_baseline(declared, rows, "constant", seeds[0]).metrics[metric]] * len(seeds)
    else:
        faulty = load(path)
        rows = sources.load(faulty.data, root=faulty.root, seed=faulty.seed, code=faulty.source_code)
        before = [train(faulty, rows, seed).metrics[metric] for seed in seeds]
    return sign * np.array(before), sign * np.array(after)


def beyond_noise(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether every seed is better than the best one before, and the means by twice their standard error."""
    error = np.sqrt((before.var(ddof=1) + after.var(ddof=1)) / len(before))
    return bool(after.min() > before.max() and after.mean() - before.mean() > 2 * error)


# --- the plain loop


def plain(
    x: np.ndarray,
    y: np.ndarray,
    x_valid: np.ndarray,
    y_valid: np.ndarray,
    *,
    kind: Literal["binary", "multiclass", "regression"] = "binary",
    epochs: int = 8,
) -> tuple[dict[str, float], Any]:
    """The last logs of a plain Keras loop, and its model: one hidden layer of 16, Adam at 0.01, no checks at all."""
    _ready()
    model = _network(x.shape[1], kind, int(y.max()) + 1 if kind == "multiclass" else 1)
    history = fit(model, x, y, x_valid, y_valid, epochs=epochs)
    return history, model


def fit(
    model: Any, x: np.ndarray, y: np.ndarray, x_valid: np.ndarray, y_valid: np.ndarray, *, epochs: int = 8
) -> dict[str, float]:
    """The last logs of ``model.fit`` with batches of 64."""
    kept = model.fit(
        np.asarray(x, np.float32),
        np.asarray(y, np.float32),
        validation_data=(np.asarray(x_valid, np.float32), np.asarray(y_valid, np.float32)),
        epochs=epochs,
        batch_size=64,
        verbose=0,
    ).history
    return {name: float(values[-1]) for name, values in kept.items()}


def _network(columns: int, kind: str, classes: int) -> Any:
    """A network with its first weights: what was traced for its shape is used again."""
    model, weights = _traced(columns, kind, classes)
    model.set_weights(weights)
    for variable in model.optimizer.variables:
        variable.assign(0.01 if "learning_rate" in variable.path else np.zeros(variable.shape))
    return model


@functools.lru_cache(maxsize=8)
def _traced(columns: int, kind: str, classes: int) -> tuple[Any, Any]:
    import keras

    keras.utils.set_random_seed(1)
    last = {"binary": "sigmoid", "multiclass": "softmax", "regression": "linear"}[kind]
    losses = {"binary": "binary_crossentropy", "multiclass": "sparse_categorical_crossentropy", "regression": "mse"}
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((columns,)), layers.Dense(16, activation="relu"), layers.Dense(classes, activation=last)]
    )
    metrics = [] if kind == "regression" else ["accuracy"]
    model.compile(keras.optimizers.Adam(0.01), losses[kind], metrics=metrics)
    return model, model.get_weights()
