"""The end of a sweep: one look at the test split, one registered model, and the parent run's figures."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from forge_sweep import jsons, trial
from forge_sweep.bundle import Bundle
from forge_sweep.bundle.figures import figures
from forge_sweep.checks.audit import Audit, histograms_html
from forge_sweep.experiment import Experiment
from forge_sweep.study import StudyView
from forge_sweep.sweep.confirm import Confirmed, bundle_folder, scored, verdict
from forge_sweep.sweep.context import Context, baseline_values, finite
from forge_sweep.sweep.ending import cut_short
from forge_sweep.tracking import FORM_TAG, Run, requirements


def final_key(experiment: Experiment, study: StudyView) -> str:
    """The note of this end: a sweep that is extended, confirmed or kept otherwise, ends anew."""
    return end_key(experiment, study) + (":in_model" if in_model(experiment) else "")


def in_model(experiment: Experiment) -> bool:
    """Whether a network is to be kept with its preprocessing inside as well."""
    return experiment.model.preprocessing == "in_model"


def end_key(experiment: Experiment, study: StudyView) -> str:
    """Names the choice of the winner, whatever is kept of it."""
    confirm = experiment.confirm
    return f"final:{study.n_done}:{confirm.top}x{confirm.seeds}:{experiment.model_name}"


def publish(context: Context, parent: Run, confirmed: tuple[Confirmed, ...]) -> dict[str, Any]:
    """Score the winner once on test and register it; returns what is worth noting.

    Raises:
        TrackingDown: the MLflow store cannot be reached; running the sweep again registers the model.
    """
    winner, words = confirmed[0], verdict(context, confirmed) + cut_short(context)
    name = f"confirm-{winner.candidate.label}-s{winner.typical}"
    bundle = Bundle.load(bundle_folder(context, name))
    if winner.candidate.baseline == "constant":
        context.tell("message", text=words, severity="warning")
    if in_model(context.experiment) and not takes_raw(context, bundle):
        context.tell("message", text=no_raw(bundle.kind), severity="warning")
    test, on_test = score_on_test(context, parent, bundle, winner)
    log_summary(context, parent, confirmed, words, test)
    ready = context.checkpoints / "winner"
    about = {**bundle.metadata, "sweep": context.key, "verdict": words, "confirmed": winner.figures(), "test": test}
    save_with_card(context, dataclasses.replace(bundle, metadata=about), on_test, ready)
    version = register(context, bundle, ready, f"{context.key}/{name}")
    return {
        "verdict": words,
        "winner": winner.figures(),
        "confirmed": [c.figures() for c in confirmed],
        "test": test,
        "model": f"models:/{context.experiment.model_name}/{version}",
        "version": version,
    }


def takes_raw(context: Context, bundle: Bundle) -> bool:
    """Whether it is registered with its preprocessing inside as well."""
    return in_model(context.experiment) and bundle.kind == "network"


def no_raw(kind: str) -> str:
    """What is said where the winner cannot have what the experiment asks for."""
    return (
        f'model.preprocessing = "in_model": the winner is a {kind}, which no Keras file can hold; it '
        "is registered without raw.keras, and takes raw rows as every bundle does (to have a network in any case, set "
        "baselines.kinds = [])"
    )


def save_with_card(context: Context, bundle: Bundle, on_test: dict[str, Any], folder: Path) -> None:
    """Save what is registered, with all that its card says."""
    here, baselines = context.environment.to_dict(), context.study.notes("baseline:")
    shown = ("image_digest", "git_commit", "git_dirty", "python", "platform", "cpu", "gpus", "cuda", "backend")
    facts = {
        "sizes": dict(context.dataset.sizes),
        "figures": {
            "validation": figures(bundle, context.dataset.valid, context.experiment.promotion.groups),
            **({"test": on_test["figures"]} if "figures" in on_test else {}),
        },
        "test_looks": on_test.get("looks"),
        "baselines": baseline_values(context),
        "cost": {
            "states": [each.to_dict() for each in context.study.costs_by_state()],
            "epochs": sum(row.epochs for row in context.study.rows() if not row.imported),
            "baseline_seconds": sum(float(note.get("seconds") or 0.0) for note in baselines.values()),
        },
        "environment": {name: here[name] for name in shown},
    }
    whole = dataclasses.replace(bundle, metadata={**bundle.metadata, **facts})
    shutil.rmtree(folder, ignore_errors=True)
    whole.save(folder, context.dataset.train.features, card=True, raw=takes_raw(context, bundle))


def score_on_test(
    context: Context, parent: Run, bundle: Bundle, winner: Confirmed
) -> tuple[dict[str, float], dict[str, Any]]:
    """The winner's metrics on the test split, and what is noted of the look: all figures that are ever shown of it.

    A sweep that was killed after its look does not look again.
    """
    key = f"test:{end_key(context.experiment, context.study)}"
    noted = context.study.notes("test:").get(key)
    if noted is not None and noted["label"] == winner.candidate.label:
        return dict(noted["metrics"]), dict(noted)
    ledger = context.store / "test_looks.jsonl"
    purpose = f"final score of sweep {context.key}, {winner.candidate.words}"
    judged = context.tracker.run_id(f"{context.key}/confirm-{winner.candidate.label}-s{winner.typical}")
    split = context.dataset.look_at_test(purpose, ledger, run=judged)  # a promotion of it names the same run
    scored = trial.score(bundle, split, "test")
    metrics = finite(scored)
    if undefined := sorted(set(scored) - set(metrics)):
        text = f"{', '.join(undefined)} cannot be computed on the {len(split.rows)} test rows"
        context.tell("message", text=text, severity="warning")
    looks = context.dataset.count_looks(ledger)
    found = figures(bundle, split, context.experiment.promotion.groups)
    note = {"label": winner.candidate.label, "metrics": metrics, "figures": found, "looks": looks}
    context.study.note(key, note)
    parent.set_tags({"forge.test_looks": str(looks)})
    if looks > 1:
        text = f"this is look {looks} at the test split of {context.dataset.version}"
        context.tell("message", text=f"{text}: its score is the more optimistic for it", severity="warning")
    return metrics, note


def log_summary(
    context: Context, parent: Run, confirmed: tuple[Confirmed, ...], words: str, test: dict[str, float]
) -> None:
    """The winner's figures, the verdict and the tables on the parent run."""
    winner, objective = confirmed[0], context.experiment.objective.metric
    baselines = baseline_values(context)
    parent.log_metrics(
        {
            f"confirmed_{objective}": winner.mean,
            f"confirmed_{objective}_std": winner.spread,
            "confirm_gap": winner.mean - winner.candidate.searched,
            **({"best_baseline": next(iter(baselines.values()))} if baselines else {}),
            **test,
        }
    )
    best = context.study.best()
    if best is not None and best.value is not None:
        parent.log_metrics({f"best_{objective}": best.value, "best_trial": best.number})
    parent.set_tags(
        {
            "forge.verdict": words,
            "forge.winner": winner.candidate.words,
            "forge.best_params": jsons.dumps(best.params if best is not None else {}),
            "mlflow.note.content": as_markdown(context, confirmed, words, test),
        }
    )
    parent.log_text(jsons.dumps([c.figures() for c in confirmed], indent=2), "confirmation.json")
    parent.log_text(jsons.dumps(context.study.notes("baseline:"), indent=2), "baselines.json")
    parent.log_text("\n".join(context.study.figures_html().values()), "plots.html")


def as_markdown(context: Context, confirmed: tuple[Confirmed, ...], words: str, test: dict[str, float]) -> str:
    """The note that MLflow shows on the parent run's page."""
    objective = context.experiment.objective.metric
    rows = [f"| {c.candidate.words} | {c.candidate.searched:.4f} | {scored(c)} |" for c in confirmed]
    tested = ", ".join(f"{name} {value:.4f}" for name, value in test.items())
    head = [
        f"**{words}**",
        "",
        f"| candidate | {objective} in the search | over {len(confirmed[0].values)} seeds |",
        "|---|---|---|",
    ]
    return "\n".join([*head, *rows, "", f"Test, looked at once by the winner: {tested}"])


def register(context: Context, bundle: Bundle, folder: Path, run_key: str) -> str:
    """The winner as a version of the registered model, alias challenger; its run is the one that trained it."""
    return context.tracker.register(
        run_key,
        folder,
        model_name=context.experiment.model_name,
        columns=bundle.preprocessor.schema.names,
        requirements=requirements(bundle.kind, context.experiment.backend),
        tags={
            **context.provenance,
            "forge.kind": bundle.kind,
            **({FORM_TAG: "in_model"} if takes_raw(context, bundle) else {}),
            "forge.sweep": context.key,
            "forge.root": str(context.experiment.root.absolute()),
        },
    )


def log_audit(parent: Run, audit: Audit, histograms: str) -> None:
    """Findings, the table of features and their histograms on the parent run."""
    parent.log_text(
        jsons.dumps([dataclasses.asdict(finding) for finding in audit.findings], indent=2), "audit/findings.json"
    )
    parent.log_text(audit.features.to_csv(), "audit/features.csv")
    parent.log_text(histograms, "audit/histograms.html")


def log_setting(context: Context, parent: Run, audit: Audit) -> None:
    """Everything that is known before the first trial: experiment, environment, audit."""
    parent.log_text(jsons.dumps(context.experiment.resolved(), indent=2), "experiment.json")
    log_audit(parent, audit, histograms_html(context.dataset))
