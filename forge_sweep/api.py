"""Sweeps from Python: the objects of the command line, without its process around them (docs/api.md)."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from forge_sweep import html
from forge_sweep.cli.printing import console, echo
from forge_sweep.cli.run import stop_on_signals
from forge_sweep.cli.surroundings import refuse_unwritable
from forge_sweep.cli.watchers import watching
from forge_sweep.errors import ExperimentError, ForgeSweepError, InputError
from forge_sweep.experiment import Experiment, load, parse, restore
from forge_sweep.experiment.code import read as read_code
from forge_sweep.task.words import figure

if TYPE_CHECKING:
    import pandas as pd

    from forge_sweep.bundle import Bundle
    from forge_sweep.checks.findings import Findings
    from forge_sweep.checks.pruning import PruningAudit
    from forge_sweep.exports import Exported
    from forge_sweep.predictions import Kept, Pair
    from forge_sweep.study import Shared, TrialRow
    from forge_sweep.study.pareto import Front
    from forge_sweep.study.replay import Replayed
    from forge_sweep.sweep import Joined, NullSweep, Reconciled, SweepResult, Watch

if "ipykernel" in sys.modules:  # Optuna imports tqdm, which then warns that it cannot draw its bars; none is drawn here
    with warnings.catch_warnings(action="ignore"), contextlib.suppress(ImportError):
        importlib.import_module("tqdm.auto")

STORE = "mlruns"
"""Folder of the embedded stores where none is given, below the working directory."""


class Sweep:
    """The sweep of one experiment: about to begin, running in any process, or complete.

    Making one checks the experiment and starts nothing. What is read of it (`trials`, `best`, `result`, ...) is read
    from the store each time, so it may have been run before, by the command line, or be running elsewhere. As on the
    command line, ``MLFLOW_TRACKING_URI`` and ``FORGE_SWEEP_STORAGE`` name other stores, and an experiment that changed
    keeps its name: what is read is its newest study.

    Args:
        experiment: the tables of an experiment file as dictionaries, such as ``{"name": "fraud", "data": {...}, ...}``;
            or an `Experiment`. Paths, tuples and NumPy's numbers are taken as what TOML has for them.
        root: folder that relative paths start from; default: the working directory.
        store: folder of the embedded stores.
        builder: your own function ``build(inputs, heads, *, width: int = 64)``, in place of ``model.builder``. Every
            process of the sweep reads it from its file, so it has to be in one, beside ``root`` or on Python's path;
            one that was typed into a notebook is refused (``%%writefile`` puts a cell into a file).

    Attributes:
        experiment: the experiment, complete and checked.
        store: folder of the embedded stores.

    Raises:
        ExperimentError: the experiment has mistakes; all of them are listed.

    Example::

        import forge_sweep

        sweep = forge_sweep.Sweep.from_toml("experiments/quickstart.toml", "study.n_trials=4")
        result = sweep.run()
        sweep.model.predict(rows)
    """

    experiment: Experiment
    store: Path

    def __init__(
        self,
        experiment: Experiment | Mapping[str, Any],
        *,
        root: str | os.PathLike[str] | None = None,
        store: str | os.PathLike[str] = STORE,
        builder: Callable[..., Any] | None = None,
    ) -> None:
        home = Path.cwd() if root is None else Path(root)
        if builder is not None and isinstance(experiment, Mapping):
            _refuse_import()
            experiment = _with_builder(experiment, _name_of(builder, home))
        if isinstance(experiment, Experiment):
            if builder is not None:
                raise InputError("a builder was given with an Experiment", hint="give the tables, or name it in them")
            self.experiment = experiment if root is None else experiment.model_copy(update={"root": Path(root)})
        elif isinstance(experiment, Mapping):
            self.experiment = parse(_as_toml_has_it(experiment), root=home)
        else:
            raise InputError(
                f"an experiment was given as {type(experiment).__name__}; expected its tables as a dictionary",
                hint="Sweep.from_toml(path) reads a file, Sweep.open(name) finds a sweep that was begun",
            )
        self.store = Path(store)

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str], *overrides: str, store: str | os.PathLike[str] = STORE) -> Self:
        """The sweep of an experiment file.

        Args:
            path: the TOML file; its relative paths start at its folder.
            *overrides: as on the command line: ``"study.n_trials=4"``, ``"model.search.depth=3"``.
            store: folder of the embedded stores.

        Raises:
            InputError: the file cannot be read or is not TOML.
            ExperimentError: the experiment has mistakes; all of them are listed.
        """
        return cls(load(Path(path), overrides), store=store)

    @classmethod
    def open(
        cls, name: str, *, root: str | os.PathLike[str] | None = None, store: str | os.PathLike[str] = STORE
    ) -> Self:
        """The sweep of an experiment that was begun, by its name, with the experiment that it was last run with.

        Args:
            name: of the experiment.
            root: folder that relative paths start from where it is run again; default: the working directory.
            store: folder of the embedded stores.

        Raises:
            InputError: it has no study in the store; the experiments that have one are listed.
        """
        recorded = _study(name, Path(store)).resolved
        return cls(restore(recorded, root=Path.cwd() if root is None else Path(root)), store=store)

    @property
    def name(self) -> str:
        """Name of the experiment."""
        return self.experiment.name

    def check(self, *, watch: Watch | None = None) -> Findings:
        """Audit the data and build the smallest and the largest model, without starting a sweep.

        Args:
            watch: told of every `Event`; default: prints what ``forge-sweep check`` prints.

        Returns:
            All findings, none of them an error.

        Raises:
            GateRefused: there are errors among the findings; its ``findings`` are these errors.
            InputError: `run` would not begin.
        """
        from forge_sweep import sweep

        with self._watching(watch) as watch:
            return sweep.check(self.experiment, store=self.store, watch=watch)

    def run(
        self, *, watch: Watch | None = None, fork: bool = False, stopping: Callable[[], bool] | None = None
    ) -> SweepResult:
        """Run the sweep to completion, or resume it.

        Ctrl-C, or interrupting the kernel of a notebook, stops it once the running epoch ends; a second one aborts.
        Finished trials are kept in any case, and `run` goes on from there.

        Args:
            watch: told of every `Event`, in one thread at a time; default: prints what ``forge-sweep run`` prints.
                ``forge_sweep.sweep.ignore`` is silent.
            fork: if the experiment changed, start a new study from the old trials.
            stopping: asked after every epoch; true stops as Ctrl-C does. Signals reach the main thread only: elsewhere
                this is the one way to stop.

        Raises:
            GateRefused: the audit or the pre-flight found errors; nothing was trained.
            ResumeRefused: the experiment or its data changed since the study began.
            SweepStopped: three trials in a row failed alike, or nothing can be confirmed.
            TrackingDown: the end cannot be registered; run again.
            Interrupted: it was stopped. No `Exception`, like the `KeyboardInterrupt` that it is.
        """
        from forge_sweep import sweep

        _refuse_import()
        resumes = "finished trials are kept; run() again resumes"
        with self._watching(watch) as watch, _stoppable(stopping, resumes) as stopping:
            result = sweep.run(self.experiment, store=self.store, fork=fork, watch=watch, stopping=stopping)
            if result.missing:
                text = f"the sweep is complete, but {result.missing}"
                watch(sweep.Event("message", {"text": text, "severity": "warning"}))
            return result

    def join(
        self, *, wait_s: float = 600.0, watch: Watch | None = None, stopping: Callable[[], bool] | None = None
    ) -> Joined:
        """Join the sweep that another process runs, and run its trials until none are left.

        Args:
            wait_s: how long to wait for that sweep to search.
            watch: as of `run`.
            stopping: as of `run`.

        Raises:
            ResumeRefused: the experiment or its data differ from those that the sweep was begun with.
            SweepStopped: no such sweep was there in time, or three trials in a row failed alike.
            Interrupted: it was stopped; its running trials wait for another worker.
        """
        from forge_sweep import sweep

        _refuse_import()
        waits = "its running trials wait for another worker or the next run"
        with self._watching(watch) as watch, _stoppable(stopping, waits) as stopping:
            return sweep.join(self.experiment, store=self.store, wait_s=wait_s, watch=watch, stopping=stopping)

    def reconcile(self, *, dry_run: bool = False) -> Reconciled:
        """Compare the trials in Optuna with the runs in MLflow, and repair the differences.

        Args:
            dry_run: change nothing.
        """
        from forge_sweep import sweep

        return sweep.reconcile(self.name, self.store, repair=not dry_run, say=lambda text: echo(text, err=True))

    def status(self) -> dict[str, Any]:
        """How far it is, as ``status --json`` prints it.

        Trials by state, best score, cost, exhausted budget, time per phase; ``carried``: whether a process runs it.
        """
        return self._study().status()

    @property
    def findings(self) -> Findings:
        """What the finished trials say together, as ``forge-sweep diagnose`` prints it; see docs/failures.md.

        What one trial says of itself is in the column ``findings`` of `trials`, by its code.
        """
        from forge_sweep.checks.findings import Findings

        return Findings(self._study().findings())

    def explain(self, number: int) -> dict[str, str]:
        """The story of one trial in sentences, by title, as ``forge-sweep explain`` prints it.

        Titles are ``tried``, ``from``, ``course``, ``ended``, ``measured``, ``cost``, ``findings`` and ``beside``:
        those of which there is something to tell.

        Raises:
            InputError: there is no trial of this number.
        """
        from forge_sweep.study.story import story

        study = self._study()
        return dict(story(study, study.row(number)))

    def null_sweep(
        self, permutations: int, *, watch: Watch | None = None, stopping: Callable[[], bool] | None = None
    ) -> NullSweep:
        """Train the first configurations of the complete sweep on so many permutations of the targets, for a p-value.

        Args:
            permutations: how many; what was trained before is not trained again.
            watch: as of `run`.
            stopping: as of `run`.

        Raises:
            InputError: the sweep has not ended, or its rows may not be permuted.
            Interrupted: it was stopped; what was trained stays.
        """
        from forge_sweep import sweep

        _refuse_import()
        resumes = "what was trained is kept; null_sweep() again resumes"
        with self._watching(watch) as watch, _stoppable(stopping, resumes) as stopping:
            return sweep.null_sweep(self.experiment, permutations, store=self.store, watch=watch, stopping=stopping)

    @property
    def audit(self) -> PruningAudit | None:
        """What a sample of the pruned trials would have become (``study.audit_pruned``); None where there is none."""
        return self._study().audit()

    def replay(self, *pruners: str, **settings: int | float) -> list[Replayed]:
        """What other pruners would have done, as ``forge-sweep replay`` shows it; it trains nothing.

        Args:
            *pruners: ``hyperband``, ``median``, ``none`` and so on, as of ``study.pruner``; default: all of them.
            **settings: ``startup_trials``, ``warmup_epochs`` and ``percentile``, where they differ from the study's.

        Raises:
            InputError: there is no such pruner or setting, or no trial has reported an epoch.
            ExperimentError: a setting has a value that it cannot have.
        """
        from forge_sweep.study.replay import replay_study

        return replay_study(self._study(), pruners, settings)

    @property
    def predictions(self) -> Kept:
        """The validation predictions of trials, baselines and confirmed trainings that the sweep kept so far.

        ``predictions.scores`` holds them by label, and ``predictions.score("pr_auc")`` gives any metric of each.

        Raises:
            InputError: it kept none; says why.
            TrackingDown: MLflow cannot be reached.
        """
        from forge_sweep.predictions import read

        return read(self._study(), self.store)

    def compare(self, one: str, other: str, metric: str | None = None) -> Pair:
        """By how much one model is better than another on the validation rows, as ``forge-sweep compare`` shows it.

        Args:
            one: ``trial:3``, ``baseline:xgboost`` or ``confirm:0003:1``.
            other: likewise.
            metric: such as ``pr_auc``; default: the objective.

        Raises:
            InputError: there are no predictions, no such model or no such metric.
            TrackingDown: MLflow cannot be reached.
        """
        return self.predictions.compare(one, other, metric)

    @property
    def optimism(self) -> dict[str, Any] | None:
        """What the best finished trial is worth, corrected for having been chosen; None for fewer than two.

        See `forge_sweep.predictions.optimism`; raises as `predictions`.
        """
        from forge_sweep.predictions import optimism

        return optimism(self._study(), self.store)

    @property
    def trials(self) -> pd.DataFrame:
        """Every trial, one per row, by its number.

        Columns: ``state``, ``value`` (the objective at the best epoch; NaN while a trial runs and where it failed),
        ``epochs``, ``seconds``, ``cpu_s``, ``gpu_s``, ``attempt``, ``failure``, ``cause``, ``imported`` (the trial that
        a fork took it from), ``findings``, ``params_<name>`` for each hyperparameter, where models are measured
        ``latency_ms``, ``parameters`` and ``bundle_mb``, and with several objectives each of the further ones by its
        name and ``front``, whether a trial is on the Pareto front.
        """
        import pandas as pd

        study = self._study()
        rows, front = study.rows(), study.front()
        totals = [None if row.cost is None else row.cost.total for row in rows]
        columns: dict[str, list[Any]] = {
            "number": [row.number for row in rows],
            "state": [row.state for row in rows],
            "value": [row.value for row in rows],
            "epochs": [row.epochs for row in rows],
            "seconds": [row.seconds for row in rows],
            "cpu_s": [None if total is None else total.cpu_s for total in totals],
            "gpu_s": [None if total is None else total.gpu_s for total in totals],
            "attempt": [row.attempt for row in rows],
            "failure": [row.failure for row in rows],
            "cause": [row.cause for row in rows],
            "imported": [row.imported for row in rows],
            "findings": [", ".join(each.code for each in row.findings) for row in rows],
        }
        names = dict.fromkeys(name for row in rows for name in row.measured)
        columns |= {name: [row.measured.get(name) for row in rows] for name in names}
        for at, name in enumerate(study.directions):
            if at and name not in names:
                columns[name] = [row.values[at] if row.values else None for row in rows]
        if front is not None:
            columns["front"] = [row.number in front.points for row in rows]
        names = dict.fromkeys(name for row in rows for name in row.params)
        columns |= {f"params_{name}": [row.params.get(name) for row in rows] for name in names}
        numbers = dict.fromkeys(("value", "seconds", "cpu_s", "gpu_s"), float)  # also where all are missing
        return pd.DataFrame(columns).astype(numbers).set_index("number")

    @property
    def best(self) -> TrialRow | None:
        """The trial with the best single score so far; None before the first. `winner` is what was confirmed."""
        return self._study().best()

    @property
    def front(self) -> Front | None:
        """The Pareto front of the finished trials; None with one objective, and before the first."""
        return self._study().front()

    @property
    def winner(self) -> dict[str, Any] | None:
        """Figures and parameters of the confirmed winner; None before the sweep ended."""
        final = self._study().final()
        return None if final is None else dict(final["winner"])

    @property
    def result(self) -> SweepResult | None:
        """How the sweep ended last, as `run` returned it, in whichever process; None before."""
        from forge_sweep.sweep import result_of

        study = self._study()
        final = study.final()
        return None if final is None else result_of(study, final)

    @property
    def model(self) -> Bundle:
        """The registered winner, ready to predict raw rows: see `load_model`.

        The code of your own builder that lies in it is run where its layers need it and it is the very source that this
        experiment names.

        Raises:
            InputError: the sweep has not ended, or the model was deleted.
        """
        code = self.experiment.code
        return load_model(self._registered(), store=self.store, trust=False if code is None else code.digest)

    @property
    def link(self) -> str:
        """The page of the MLflow UI with the trials, best first; "" before the first. `ui` serves an embedded store."""
        return str(self._study().notes("sweep:").get("sweep:link", ""))

    @property
    def run_id(self) -> str | None:
        """Id of the MLflow run that the trials are children of; None before the sweep ended."""
        final = self._study().final()
        return None if final is None else str(final["run_id"])

    def report(self, path: str | os.PathLike[str] = "report.html") -> Path:
        """Write tables and plots of the finished or running sweep to one self-contained HTML file; returns its path."""
        from forge_sweep.report import write_report

        refuse_unwritable(output := Path(path), option="path")
        write_report(self._study(), output)
        return output

    def ui(self, *, port: int = 5000, open_browser: bool | None = None) -> None:
        """Serve the MLflow UI and optuna-dashboard on this sweep's stores until Ctrl-C.

        Args:
            port: of the MLflow UI; optuna-dashboard takes the next one.
            open_browser: default: if there seems to be a desktop.
        """
        from forge_sweep.ui import has_browser, serve

        wanted = has_browser() if open_browser is None else open_browser
        with contextlib.suppress(KeyboardInterrupt):
            serve(self._study(), self.store, port, echo=echo, open_browser=wanted)

    def __repr__(self) -> str:
        return f"Sweep({self.name!r}, store={str(self.store)!r})"

    def _repr_html_(self) -> str:
        from forge_sweep.sweep import LINKED

        experiment = self.experiment
        lines = [("experiment", experiment.name)]
        if experiment.description:
            lines.append(("description", experiment.description))
        lines.append(("objective", f"{experiment.objective.metric}, to {experiment.direction}"))
        address = ""
        try:
            study = _find(experiment.name, self.store)
            if study is None:
                lines.append(("trials", f"not begun; {experiment.study.n_trials} to run"))
            else:
                best, final, over = study.best(), study.final(), study.ended_by()
                counts = ", ".join(f"{count} {state}" for state, count in study.counts().items())
                lines.append(("trials", f"{study.n_done} of {study.n_trials} done" + f" ({counts})" * bool(counts)))
                lines += [] if over is None else [("ended", over.text)]
                lines += [] if best is None else [("best in the search", f"trial {best.number}, {figure(best.value)}")]
                if final is not None:
                    winner = final["winner"]
                    lines.append(("winner", f"{winner['words']}, {figure(winner['mean'])}"))
                    lines += [("verdict", final["verdict"]), ("model", final["model"])]
                elif not study.is_carried():
                    lines.append(("state", "no process is running this sweep; run() resumes it"))
                address = str(study.notes("sweep:").get("sweep:link", ""))
        except ForgeSweepError as error:
            lines.append(("store", error.message))
        return html.table((), lines) + (html.link(address, LINKED) if address else "")

    def _study(self) -> Shared:
        return _study(self.name, self.store)

    def _registered(self) -> str:
        final = self._study().final()
        if final is None:
            raise InputError(
                f"{self.name} has no model yet: the sweep has not ended",
                hint="run() goes on with it; status() says where",
            )
        return str(final["model"])

    @contextlib.contextmanager
    def _watching(self, watch: Watch | None) -> Iterator[Watch]:
        if watch is not None:
            yield watch
            return
        # A kernel says that it is a terminal (FORCE_COLOR), and shows a live view as hundreds of lines.
        terminal = None if sys.stdout.isatty() else False
        with watching(self.experiment, as_json=False, console=console(terminal=terminal)) as lines:
            yield lines


def load_model(
    reference: str | os.PathLike[str], *, store: str | os.PathLike[str] = STORE, trust: bool | str = False
) -> Bundle:
    """Load a registered model, or a bundle, after checking its files and replaying its golden rows.

    ``load_model("models:/credit@champion").predict(frame)`` takes raw rows, their columns in any order.

    Args:
        reference: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, or the folder of a bundle.
        store: folder of the embedded stores.
        trust: run the code that came with a model of your own builder, where its layers need it; or only code with
            this digest (`Experiment.code`).

    Raises:
        InputError: there is no such model, version or alias.
        BundleError: the model is damaged, holds what is not trusted, or gives other golden scores than when it was
            saved.
        TrackingDown: the store cannot be reached.
    """
    from forge_sweep.bundle import Bundle, ready_backend
    from forge_sweep.tracking import fetched, locate

    home = Path(store)
    with fetched(locate(os.fspath(reference), home), home) as folder:
        ready_backend(folder)
        return Bundle.load(folder, verify=True, trust=trust)


def export_model(
    reference: str | os.PathLike[str],
    kind: str,
    output: str | os.PathLike[str],
    *,
    preprocessing: bool = True,
    trust: bool = False,
    store: str | os.PathLike[str] = STORE,
) -> Exported:
    """Export a network with its preprocessing, after checking its scores on the bundle's golden rows.

    Args:
        reference: as of `load_model`.
        kind: ``keras``, ``saved_model``, ``onnx`` or ``tflite``.
        output: file or folder to write.
        preprocessing: whether it takes raw columns; else preprocessed features.
        trust: as of `load_model`.
        store: folder of the embedded stores.

    Raises:
        InputError: there is no such model, it is no network, or the format cannot hold it.
    """
    from forge_sweep import training
    from forge_sweep.tracking import fetched, locate

    refuse_unwritable(target := Path(output), option="output", folder=True)
    home = Path(store)
    training.select_backend("tensorflow")
    training.load_backend()
    from forge_sweep import exports

    with fetched(locate(os.fspath(reference), home), home) as folder:
        return exports.export(folder, kind, target, preprocessing=preprocessing, trust=trust)


def _find(name: str, store: Path) -> Shared | None:
    from forge_sweep.study import find_shared

    return find_shared(name, store)


def _study(name: str, store: Path) -> Shared:
    from forge_sweep.study import no_study

    study = _find(name, store)
    if study is None:
        raise no_study(name, store)
    return study


def _with_builder(experiment: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The tables with this ``model.builder``."""
    model = experiment.get("model", {})
    if not isinstance(model, Mapping):
        return dict(experiment)  # said where the experiment is checked
    if model.get("builder", name) != name:
        raise InputError(f"the builder was given as {name}, and model.builder = {model['builder']!r}", hint="give one")
    return {**experiment, "model": {**model, "builder": name}}


def _name_of(builder: Callable[..., Any], root: Path) -> str:
    """A function as ``model.builder`` names it; InputError unless that name leads to the file that it is in."""
    if (
        not inspect.isfunction(builder)
        or builder.__qualname__ != builder.__name__
        or not builder.__name__.isidentifier()
    ):
        seen = getattr(builder, "__qualname__", repr(builder))
        hint = "define it with def at the top level of a file, and import it from there"
        raise InputError(f"the builder {seen} is no function of a module", hint=hint)
    path = Path(builder.__code__.co_filename)
    if not path.is_file():
        raise InputError(
            f"the builder {builder.__name__} was typed into a notebook or a shell: no other process could read it",
            hint=f"begin its cell with %%writefile net.py, imports included, then from net import {builder.__name__}",
        )
    module = path.stem if builder.__module__ == "__main__" else builder.__module__
    name = f"{module}:{builder.__name__}"
    try:
        paths = read_code(name, root).paths
    except ExperimentError as error:
        if any(each.path != "model.builder" for each in error.mistakes) or importlib.util.find_spec(module):
            raise
        raise InputError(f"{name} is not found from {root}", hint=f"give root={str(path.parent)!r}") from None
    found = Path(paths.get(module) or paths[f"{module}.__init__"])
    if found.resolve() != path.resolve():
        raise InputError(
            f"the builder is in {path}, but {name} leads to {found}", hint=f"give root={str(path.parent)!r}"
        )
    return name


def _refuse_import() -> None:
    """Whatever imports the script that runs the sweep, for its builder or as a worker, would run it once more."""
    from forge_sweep.experiment.importing import PREFIX

    frame = inspect.currentframe()
    while frame is not None:
        name = str(frame.f_globals.get("__name__"))
        if frame.f_code.co_name == "<module>" and (name == "__mp_main__" or name.startswith(PREFIX)):
            raise InputError(
                f"the trials of {Path(frame.f_code.co_filename).name} import it, and would each run its sweep",
                hint='put what the script runs under `if __name__ == "__main__":`',
            )
        frame = frame.f_back


@contextlib.contextmanager
def _stoppable(stopping: Callable[[], bool] | None, words: str) -> Iterator[Callable[[], bool]]:
    """Whether to stop: on Ctrl-C and SIGTERM where signals arrive, that is in the main thread, or as ``stopping`` says.

    What stopped or aborted the sweep says ``words``.
    """
    from forge_sweep.sweep import Interrupted

    asked = stopping or (lambda: False)
    try:
        if threading.current_thread() is threading.main_thread():
            with stop_on_signals() as signalled:
                yield lambda: signalled() or asked()
        else:
            yield asked
    except KeyboardInterrupt:
        raise Interrupted(words) from None


def _as_toml_has_it(value: Any) -> Any:
    """Tables as `tomllib` gives them, of what Python writes in other ways."""
    if isinstance(value, Mapping):
        return {str(key): _as_toml_has_it(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_as_toml_has_it(each) for each in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value  # NumPy's
