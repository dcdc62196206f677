"""How a sweep ended: as `run` returns it, and as it is read from the study of one that ended before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from forge_sweep import html
from forge_sweep.baselines import tuned_name
from forge_sweep.study import StudyView
from forge_sweep.task.words import MARK, Cells, Titles, between, figure, side_by_side

LINKED = "the trials in MLflow, best first"
"""What the link of a sweep leads to."""


@dataclass(frozen=True)
class SweepResult:
    """How a sweep ended.

    Attributes:
        trials: number of trials by state.
        best: number, value and parameters of the best trial of the search; empty where none finished. What won is
            `winner`.
        baselines: objective of each baseline, best first.
        verdict: who won by how much, in words.
        winner: figures and parameters of what is registered: the best network where it is better than the best
            baseline, or as good and clearly cheaper; the baseline otherwise.
        test: the winner's metrics on the test split.
        model: ``models:/NAME/VERSION``.
        link: the MLflow UI on this sweep's trials.
        confirmed: the figures of every candidate.
        ended_by: the key of the budget that ended the search: ``study.n_trials``, ``study.timeout_s`` and so on;
            ``model.search`` where all configurations of the space were tried.
        costs: what the trials of each state cost; see `StateCost`.
        missing: what MLflow lacks of it, and what to do; "" where it lacks nothing.
        outcome: ``better``, ``as good as`` or ``worse``, of the best network against the best baseline on validation;
            "" where there is nothing to compare.
        comparison: the same in figures: ``lead`` (positive is better) with ``low`` and ``high``; see `Judgement`. Under
            ``costs`` what one row (``latency_ms``) and a training (``seconds``) take with ``network`` and ``baseline``.
        evaluation: every model of the test evaluation, with intervals and differences; see
            `forge_sweep.bundle.Evaluation`. None for a sweep of an older version.
        phases: seconds of each phase, over interruptions; see `StudyView.phases`.
        findings: what the trials say together; see `Finding.to_dict`.
        optimism: what the best trial of the search is worth once corrected for having been chosen, in figures and in
            ``words``; None where predictions were not kept. See `forge_sweep.predictions.optimism`.
        audit: what the audit of pruned trials found; None without ``study.audit_pruned``. See `PruningAudit`.
        front: with several objectives the Pareto front of the search; None with one. See `StudyView.front`.
    """

    study: str
    trials: dict[str, int]
    objective: str
    best: dict[str, Any]
    baselines: dict[str, float]
    verdict: str
    winner: dict[str, Any]
    test: dict[str, float]
    run_id: str
    model: str
    link: str
    confirmed: list[dict[str, Any]] = field(default_factory=list)
    ended_by: str = "study.n_trials"
    costs: list[dict[str, Any]] = field(default_factory=list)
    missing: str = ""
    outcome: str = ""
    comparison: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] | None = None
    phases: dict[str, float] = field(default_factory=dict)
    findings: list[dict[str, Any]] = field(default_factory=list)
    audit: dict[str, Any] | None = None
    optimism: dict[str, Any] | None = None
    front: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    def candidates(self) -> tuple[Titles, Cells]:
        """A table of the confirmed candidates and of the other baselines: titles, and rows of text."""
        seeds = max((len(row["values"]) for row in self.confirmed), default=1)
        titles = ("model", f"{self.objective}, search", f"mean of {seeds} seed{'s' * (seeds > 1)}", "95 %", "spread")
        rows: Cells = []
        for row in self.confirmed:
            mark = MARK if row["label"] == self.winner["label"] else ""
            several = len(row["values"]) > 1
            spread = figure(row["spread"]) if several and row["spread"] else "-"
            figures = figure(row["searched"]), figure(row["mean"]), between(row.get("interval")), spread
            rows.append((row["words"] + mark, *figures))
        known = {row["baseline"] for row in self.confirmed}
        rows += [(kind, figure(value), "-", "-", "-") for kind, value in self.baselines.items() if kind not in known]
        return titles, rows

    def _repr_html_(self) -> str:
        counts = ", ".join(f"{count} {state}" for state, count in self.trials.items())
        lines = [("verdict", self.verdict), ("model", self.model), ("trials", counts), ("run", self.run_id)]
        if self.missing:
            lines.append(("missing", self.missing))
        parts = [html.table((), lines, caption=self.study), html.table(*self.candidates())]
        if self.evaluation is not None:
            parts.append(html.table(*side_by_side(self.evaluation)))
        return "".join([*parts, html.link(self.link, LINKED)])


def result_of(study: StudyView, final: Mapping[str, Any]) -> SweepResult:
    """The result of a sweep that ended with the note ``final``; one of an older version lacks some of the fields."""
    best, experiment, audit = study.best(), study.resolved, study.audit()
    notes = study.notes("baseline:")
    kinds = [*experiment["baselines"]["kinds"]]
    kinds += [tuned_name(kind) for kind in kinds if experiment["baselines"].get("tune")]
    known = {kind: notes.get(f"baseline:{kind}", {}).get("value") for kind in kinds}
    found = {kind: value for kind, value in known.items() if value is not None}
    best_first = sorted(found, key=lambda kind: found[kind], reverse=study.direction == "maximize")
    values = {
        "study": study.name,
        "trials": {str(state): count for state, count in study.counts().items()},
        "objective": experiment["objective"]["metric"],
        "best": {} if best is None else {"number": best.number, "value": best.value, "params": best.params},
        "baselines": {kind: found[kind] for kind in best_first},
        "costs": [cost.to_dict() for cost in study.costs_by_state()],
        "phases": study.phases(),
        "findings": final["findings"] if "findings" in final else [each.to_dict() for each in study.findings(final)],
        "audit": None if audit is None else audit.to_dict(),
    }
    return SweepResult(**{**{one.name: final[one.name] for one in fields(SweepResult) if one.name in final}, **values})
