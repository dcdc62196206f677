"""The end of a sweep: one test evaluation, one registered model, and the parent run's figures."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_sweep import exports, jsons, trial
from forge_sweep.bundle import Bundle, Evaluation, ScoredModel, evaluate, figures
from forge_sweep.checks.audit import Audit, histograms_html
from forge_sweep.errors import BundleError
from forge_sweep.experiment import Experiment, derived_seed
from forge_sweep.study import StudyView, infeasible_words, sides, sides_words, warm_words
from forge_sweep.study.pareto import Front
from forge_sweep.sweep import ensemble, kept
from forge_sweep.sweep.confirm import Confirmed, choice_of, judged_scores, waiting_bundle
from forge_sweep.sweep.context import Context, baseline_values, finish, finite
from forge_sweep.sweep.trials import trial_name
from forge_sweep.sweep.tuning import configuration, tuning
from forge_sweep.sweep.verdict import Verdict, in_words, reach
from forge_sweep.task.words import MARK, between, figure, side_by_side
from forge_sweep.tracking import CODE, FORM_TAG, SOURCE_CODE, Run, requirements, space_file
from forge_sweep.training import classify

if TYPE_CHECKING:
    import numpy as np

FRONT_NOTE = "sweep:front"
"""Of the trials whose runs have been tagged as of the front."""


def final_key(experiment: Experiment, study: StudyView) -> str:
    """The note of this end: a sweep that is extended, confirmed or kept otherwise, ends anew."""
    return _end_key(experiment, study) + (":in_model" if _wants_raw(experiment) else "")


def _wants_raw(experiment: Experiment) -> bool:
    """Whether a network is to be kept with its preprocessing inside as well."""
    return experiment.model.preprocessing == "in_model"


def _end_key(experiment: Experiment, study: StudyView) -> str:
    """Names the choice of the winner, whatever is kept of it."""
    confirm = experiment.confirm
    tune = tuning(experiment, study)
    tuned = "" if tune is None else f":tuned{tune.trials}"
    objective = experiment.objective
    within = f":within{objective.tolerance:g}" if len(objective.names) > 1 and objective.tolerance is not None else ""
    single = ":single" if experiment.ensemble.ship == "never" and ensemble.knows_ensembles(study) else ""
    grown = f":space{len(spaces) - 1}" if (spaces := study.spaces()) else ""
    return f"final:{study.n_done}:{confirm.top}x{confirm.seeds}:{experiment.model_name}{tuned}{single}{grown}{within}"


def publish(context: Context, parent: Run, confirmed: tuple[Confirmed, ...]) -> dict[str, Any]:
    """Reach the verdict, evaluate on test once, and register what is shipped; returns what is worth noting."""
    verdict = reach(context, confirmed)
    winner = verdict.winner
    single = bundle = waiting_bundle(context, winner.name)
    if _wants_raw(context.experiment) and bundle.kind != "network":
        context.warn(
            f'model.preprocessing = "in_model": the winner is a {bundle.kind}, which no Keras file can hold; it '
            "is registered without raw.keras, and takes raw rows as every bundle does (to have a network in any case, "
            "set baselines.kinds = [])"
        )
    # With the preprocessing in the model there has to be one model.
    chosen = None if _wants_raw(context.experiment) else _choose(context, confirmed, winner, single)
    run_name, whole = winner.name, None if chosen is None else chosen.bundle
    if chosen is not None and whole is not None:
        bundle, run_name = whole, ensemble.NAME
        _log_ensemble(context, chosen)
    on_test = score_on_test(context, parent, verdict, single, whole)
    evaluation, metric = on_test["evaluation"], bundle.task.scored_as(context.experiment.objective.metric)
    # The verdict on network and tree stands; what it says of the registered model on test is of the ensemble then.
    words = in_words(context, verdict, evaluation if whole is None else None, metric)
    if chosen is not None:
        words += chosen.words + ("" if whole is None else _ensemble_on_test(evaluation, winner, metric))
    front = context.study.front()
    if front is not None:
        choice = choice_of(context, confirmed)
        words += f" {choice.words}." if choice else ""
        words += f" In the search {front.words}."
    if (over := context.budget.over()) is not None:
        words += f" The search ended with {context.study.n_done} of {context.study.n_trials} trials: {over.text}."
    elif tried := context.study.all_tried:
        words += f" The search ended: {tried}."
    if said := warm_words(context.study.rows(), context.experiment.direction):
        words += f" {said}"
    if said := infeasible_words(context.study):
        words += f" {said}"
    budget = sides(context.study)
    if budget["baselines"]["tuned"]:
        words += f" Budget: {sides_words(budget)}."
    if verdict.nothing_learned:
        context.warn(words)
    confirmed_figures = verdict.figures()
    params = single.metadata["params"] if winner.contender.baseline else winner.contender.params
    final = {
        "verdict": words,
        "outcome": verdict.outcome,
        "budget": budget,
        "winner": {**confirmed_figures[0], "params": params, **({"ensemble": len(whole.kinds)} if whole else {})},
        "comparison": verdict.comparison(),
        "confirmed": confirmed_figures,
        "test": on_test["metrics"],
        "evaluation": None if evaluation is None else evaluation.to_dict(),
        "optimism": kept.optimism(context),
        **({} if front is None else {"front": front.to_dict()}),
        **({ensemble.NAME: chosen.about} if chosen else {}),
    }
    _log_summary(context, parent, final, metric)
    if front is not None:
        _log_front(context, parent, front)
    ready = context.checkpoints / "winner"
    about = {**bundle.metadata, "sweep": context.key, "verdict": words, "outcome": verdict.outcome}
    about |= {"confirmed": winner.figures(), "test": on_test["metrics"]}
    scores = judged_scores(context, winner.name)[0] if context.dataset.folds else None
    _save_with_card(context, dataclasses.replace(bundle, metadata=about), on_test, ready, scores)
    version = register(context, bundle, ready, f"{context.key}/{run_name}")
    return {**final, "model": f"models:/{context.experiment.model_name}/{version}", "version": version}


def _choose(
    context: Context, confirmed: tuple[Confirmed, ...], winner: Confirmed, single: Bundle
) -> ensemble.Chosen | None:
    """An ensemble is an offer: what goes wrong with it is said, and costs no sweep its single model."""
    try:
        return ensemble.choose(context, confirmed, winner, single)
    except Exception as error:
        context.warn(f"no ensemble was looked for: {classify(error).message}")
        return None


def _log_front(context: Context, parent: Run, front: Front) -> None:
    """The front on the parent run, and a tag on each run that is on it; one that was and is no more, says so."""
    parent.log_metrics({"front_trials": len(front.points), "front_hypervolume": front.hypervolume})
    listed = "; ".join(f"trial {number} ({front.figures(number)})" for number in front.points)
    parent.set_tags({"forge.front": listed, "forge.front_rule": front.rule})
    parent.log_text(jsons.dumps(front.to_dict(), indent=2), "front.json")
    before = context.study.notes(FRONT_NOTE).get(FRONT_NOTE, [])
    for number in dict.fromkeys([*before, *front.points]):
        said = "chosen" if number == front.chosen else "yes" if number in front.points else "no longer"
        context.tracker.existing(f"{context.key}/{trial_name(number)}").set_tags({"forge.front": said})
    context.study.note(FRONT_NOTE, sorted({*before, *front.points}))


def _log_ensemble(context: Context, chosen: ensemble.Chosen) -> None:
    """A run of its own, below which the model is registered: none of the members' trainings made it."""
    about = chosen.about
    told = ", ".join(f"{each['run']} ({each['weight']:.3g})" for each in about["members"])
    run = context.open_run(ensemble.NAME, ensemble.NAME, {"members": len(about["members"])}, {"forge.members": told})
    figures = {"latency_ms": about["latency_ms"], "single_latency_ms": about["single_latency_ms"]}
    figures |= {"bytes": about["bytes"], **{f"gain_{end}": value for end, value in about["gain"].items()}}
    run.log_text(jsons.dumps(about, indent=2), "ensemble.json")
    finish(run, "finished", "FINISHED", figures)


def _ensemble_on_test(evaluation: Evaluation | None, winner: Confirmed, metric: str) -> str:
    """What the test rows say of the ensemble against the single model; they chose neither."""
    if evaluation is None:
        return ""
    other = next((each for each in evaluation.models[1:] if each.label == winner.contender.label), None)
    found = None if other is None else evaluation.compared(other, metric)
    if found is None:
        return ""
    lead = found.gain.gain
    told = f"{figure(lead.value)} ({between((lead.low, lead.high))})"
    return f" On the test rows its lead over {winner.contender.words} is {told}."


def _takes_raw(context: Context, bundle: Bundle) -> bool:
    return _wants_raw(context.experiment) and bundle.kind == "network"


def _save_with_card(
    context: Context, bundle: Bundle, on_test: dict[str, Any], folder: Path, scores: np.ndarray | None = None
) -> None:
    """Save what is registered; ``scores`` of the validation rows, where the model itself has seen these."""
    here, baselines = context.environment.to_dict(), context.study.notes("baseline:")
    shown = ("image_digest", "git_commit", "git_dirty", "python", "platform", "cpu", "gpus", "cuda", "backend")
    facts = {
        "sizes": dict(context.dataset.sizes),
        "figures": {
            "validation": figures(bundle, context.dataset.judged, context.experiment.promotion.groups, scores=scores),
            **({"test": on_test["figures"]} if "figures" in on_test else {}),
        },
        "test_looks": on_test.get("looks"),
        "baselines": baseline_values(context),
        "tuned": {kind: params for kind in baseline_values(context) if (params := configuration(baselines, kind))},
        "cost": {
            "states": [each.to_dict() for each in context.study.costs_by_state()],
            "epochs": sum(row.epochs for row in context.study.rows() if not row.imported),
            "baseline_seconds": sum(float(note.get("seconds") or 0.0) for note in baselines.values()),
        },
        "environment": {name: here[name] for name in shown},
    }
    whole = dataclasses.replace(bundle, metadata={**bundle.metadata, **facts})
    shutil.rmtree(folder, ignore_errors=True)
    evaluation, golden = on_test.get("evaluation"), context.dataset.learned_from.features
    raw = exports.write_raw if _takes_raw(context, bundle) else None
    whole.save(folder, golden, card=True, raw=raw, evaluation=evaluation)


def score_on_test(
    context: Context, parent: Run, verdict: Verdict, single: Bundle, whole: Bundle | None = None
) -> dict[str, Any]:
    """The test evaluation of the winner ``single``, or of the ensemble ``whole`` that is registered in its place.

    ``metrics`` and ``figures`` of the registered model, ``looks``, and the ``evaluation`` of every model that was
    scored, None where an older version looked. A sweep that was killed after it does not evaluate again.
    """
    key = f"test:{_end_key(context.experiment, context.study)}"
    noted = context.study.notes("test:").get(key)
    label, bundle = verdict.winner.contender.label if whole is None else ensemble.NAME, whole or single
    if noted is not None and noted["label"] == label:
        return {**noted, "evaluation": _evaluated_before(context, noted)}
    models = [(_scored_model(verdict.winner, single), single), *_compared_with(context, verdict)]
    if whole is not None:
        said = f"the ensemble of {len(whole.kinds)} models"
        models.insert(0, (ScoredModel(ensemble.NAME, ensemble.NAME, said, 0, whole.threshold, None), whole))
    ledger = context.store / "test_looks.jsonl"
    purpose = f"final score of sweep {context.key}, {' and '.join(model.words for model, _ in models)}"
    key_of_run = f"{context.key}/{verdict.winner.name if whole is None else ensemble.NAME}"
    judged = context.study.notes("look:").get(f"look:{purpose}")
    if judged is None:  # noted first: MLflow may be down, or up again, when a killed evaluation goes on
        judged = context.tracker.run_id(key_of_run) or key_of_run
        context.study.note(f"look:{purpose}", judged)
    split = context.dataset.look_at_test(purpose, ledger, run=judged, once=True)  # as a promotion of it names it
    looks = context.dataset.count_looks(ledger)
    evaluation = evaluate(
        models,
        split,
        context.dataset,
        objective=bundle.task.scored_as(context.experiment.objective.metric),
        resamples=context.experiment.promotion.resamples,
        looks=looks,
    )
    scores = {f"test_{name}": interval.value for name, interval in evaluation.registered.metrics.items()}
    metrics = finite(scores)
    if undefined := sorted(set(scores) - set(metrics)):
        context.warn(f"{', '.join(undefined)} cannot be computed on the {len(split.rows)} test rows")
    found = figures(bundle, split, context.experiment.promotion.groups, evaluation.registered.metrics)
    evaluation.save(context.checkpoints)
    note = {"label": label, "metrics": metrics, "figures": found, "looks": looks}
    context.study.note(key, {**note, "evaluation": evaluation.to_dict()})
    parent.set_tags({"forge.test_looks": str(looks)})
    if looks > 1:
        text = f"this is test evaluation {looks} of {context.dataset.version}"
        context.warn(f"{text}: scores grow more optimistic with each")
    return {**note, "evaluation": evaluation}


def _evaluated_before(context: Context, noted: dict[str, Any]) -> Evaluation | None:
    """What an earlier process found; without the scores, where their file went with the other checkpoints."""
    values = noted.get("evaluation")
    if values is None:
        return None
    with contextlib.suppress(BundleError):
        kept = Evaluation.load(context.checkpoints)
        if kept is not None and kept.to_dict() == values:
            return kept
    return Evaluation.from_dict(values, context.dataset.fingerprints["test"])


def _scored_model(confirmed: Confirmed, bundle: Bundle) -> ScoredModel:
    contender = confirmed.contender
    kind = contender.baseline or "network"
    return ScoredModel(kind, contender.label, contender.words, confirmed.typical, bundle.threshold, None)


def _compared_with(context: Context, verdict: Verdict) -> list[tuple[ScoredModel, Bundle]]:
    """What is scored beside the registered model: the best other baseline and the best network."""
    found = [
        (_scored_model(each, bundle), bundle)
        for each in (verdict.baseline, verdict.network)
        if each is not None and each is not verdict.winner
        for bundle in [waiting_bundle(context, each.name)]
    ]
    if registered := verdict.winner.contender.baseline:
        others = [kind for kind in baseline_values(context) if kind != registered]
        for kind in [kind for kind in others if kind != "constant"][:1] or others[:1]:
            seed = derived_seed(context.experiment.seed, "baseline", kind)
            try:  # fitted before the search; where that model was not kept, the same seed gives it again
                if kind in context.fitted:
                    _, bundle = context.fitted[kind]
                else:
                    params = configuration(context.study.notes("baseline:"), kind)
                    bundle = trial.run_baseline(context.experiment, context.dataset, kind, seed, params).bundle
            except Exception as error:
                context.warn(f"baseline {kind} could not be fitted again for the test: {classify(error).message}")
                continue
            found.insert(0, (ScoredModel(kind, kind, kind, 0, bundle.threshold, None), bundle))
    return found


def _log_summary(context: Context, parent: Run, final: dict[str, Any], metric: str) -> None:
    winner, objective = final["winner"], context.experiment.objective.metric
    baselines, best = baseline_values(context), context.study.best()
    compared, optimism = final["comparison"], final["optimism"] or {}
    corrected = {name: optimism.get(name) for name in ("corrected", "low", "high")}
    searched: dict[str, float] = {}
    if best is not None and best.value is not None:
        searched = {f"best_{objective}": best.value, "best_trial": best.number}
    parent.log_metrics(
        {
            f"confirmed_{objective}": winner["mean"],
            f"confirmed_{objective}_std": winner["spread"],
            "confirm_gap": winner["gap"],
            **({"best_baseline": next(iter(baselines.values()))} if baselines else {}),
            **_defined({name: compared.get(name) for name in ("lead", "low", "high")}, "lead", {"lead": ""}),
            **searched,
            **_defined(corrected, "best_corrected", {"corrected": ""}),
            **final["test"],
            **_of_others(final["evaluation"], metric),
        }
    )
    parent.set_tags(
        {
            "forge.verdict": final["verdict"],
            "forge.outcome": final["outcome"] or "nothing to compare",
            "forge.winner": winner["words"],
            "forge.best_params": jsons.dumps(winner["params"]),
            **({} if best is None else {"forge.best_in_search": f"trial {best.number}, {best.value:.6g}"}),
            "mlflow.note.content": _as_markdown(context, final),
        }
    )
    parent.log_text(jsons.dumps(final["confirmed"], indent=2), "confirmation.json")
    parent.log_text(jsons.dumps(final["evaluation"], indent=2), "evaluation.json")
    parent.log_text(jsons.dumps(context.study.notes("baseline:"), indent=2), "baselines.json")
    parent.log_text("\n".join(context.study.figures_html().values()), "plots.html")


def _defined(values: dict[str, float | None], name: str, endings: dict[str, str] | None = None) -> dict[str, float]:
    """The figures that are there, as ``<name>_low`` and so on."""
    ends = {key: f"_{key}" for key in values} | (endings or {})
    return {f"{name}{ends[key]}": value for key, value in values.items() if value is not None}


def _of_others(evaluation: dict[str, Any] | None, metric: str) -> dict[str, float]:
    """Test metrics of the models beside the registered one, and its lead over them by the objective.

    ``baseline_test_auc`` is the best other baseline's, ``network_test_auc`` the best network's.
    """
    found: dict[str, float] = {}
    if evaluation is None:
        return found
    for model in evaluation["models"][1:]:
        role = "network" if model["kind"] == "network" else "baseline"
        values = {name: ends[0] for name, ends in model["metrics"].items()}
        found |= {f"{role}_test_{name}": value for name, value in values.items() if value is not None}
        for each in evaluation["comparisons"]:
            gain = each["gain"]
            if (each["other"], gain["metric"]) == (model["label"], metric):
                found |= _defined(gain["gain"], f"test_lead_over_{role}", {"value": ""})
    return found


def _as_markdown(context: Context, final: dict[str, Any]) -> str:
    objective = context.experiment.objective.metric
    lines = [f"**{final['verdict']}**", "", f"| candidate | {objective} in the search | mean over seeds | 95 % |"]
    lines.append("|---|---|---|---|")
    for row in final["confirmed"]:
        mark = MARK if row["label"] == final["winner"]["label"] else ""
        figures = figure(row["searched"]), figure(row["mean"]), between(row["interval"])
        lines.append(f"| {row['words']}{mark} | {' | '.join(figures)} |")
    if final["optimism"] is not None:
        lines += ["", f"In the search, {final['optimism']['words']}."]
    if final["evaluation"] is None:
        return "\n".join([*lines, "", f"Test: {', '.join(f'{k} {figure(v)}' for k, v in final['test'].items())}"])
    titles, rows = side_by_side(final["evaluation"])
    lines += ["", f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def register(context: Context, bundle: Bundle, folder: Path, run_key: str) -> str:
    """The winner as a version of the registered model, alias challenger; its run is the one that trained it."""
    return context.tracker.register(
        run_key,
        folder,
        model_name=context.experiment.model_name,
        columns=bundle.preprocessor.schema.names,
        requirements=requirements(bundle.kind, context.experiment.backend, bundle.kinds),
        tags={
            **context.provenance,
            "forge.kind": bundle.kind,
            **({FORM_TAG: "in_model"} if _takes_raw(context, bundle) else {}),
            "forge.sweep": context.key,
            "forge.root": str(context.experiment.root.absolute()),
        },
    )


def log_space(context: Context, parent: Run) -> None:
    """After the search space changed: the one that holds, and in the runs of its trials which of them lie outside.

    The record of a run is read with the experiment of its contract: a trial of before is reproduced as it was.
    """
    spaces = context.study.spaces()
    key = f"space:{len(spaces) - 1}"
    if not spaces or key in context.study.notes("space:"):
        return
    last, before = spaces[-1], spaces[-2]
    contract = context.experiment.contract()
    parent.log_text(jsons.dumps(context.experiment.resolved(), indent=2), space_file(contract))
    parent.set_tags({"forge.contract": contract, "forge.space": "; ".join(last["changes"])})
    if not context.tracker.has(context.key):  # MLflow does not answer; the next run says the rest
        return
    for number in sorted({*map(int, last["outside"]), *map(int, before["outside"])}):
        if context.tracker.has(name := f"{context.key}/{trial_name(number)}"):
            context.tracker.existing(name).set_tags({"forge.outside": last["outside"].get(str(number), "")})
    context.study.note(key, contract)


def log_setting(context: Context, parent: Run, audit: Audit) -> None:
    """Everything that is known before the first trial: experiment, environment, audit."""
    parent.log_text(jsons.dumps(context.experiment.resolved(), indent=2), "experiment.json")
    for folder, code in ((CODE, context.experiment.code), (SOURCE_CODE, context.experiment.source_code)):
        for name, text in ({} if code is None else code.files).items():
            parent.log_text(text, f"{folder}/{name}.py")
    findings = [dataclasses.asdict(finding) for finding in audit.findings]
    parent.log_text(jsons.dumps(findings, indent=2), "audit/findings.json")
    parent.log_text(audit.features.to_csv(), "audit/features.csv")
    parent.log_text(histograms_html(context.dataset), "audit/histograms.html")
