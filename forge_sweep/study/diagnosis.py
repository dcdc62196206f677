"""What a study says of itself: the figures of its trials, put together for `checks`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from forge_sweep.checks.findings import Finding
from forge_sweep.checks.pruning import Audited, PruningAudit, of_audit
from forge_sweep.checks.search import ENOUGH_FOR_INFLUENCE, Searched, Tried, of_sweep
from forge_sweep.experiment import Dimension, derived_seed

if TYPE_CHECKING:
    import optuna

    from forge_sweep.study.trials import StudyView, TrialRow

AUDIT_NOTE = "audit:"
"""Of the notes in which a sweep keeps how each audited trial ended, by its number in four digits."""


def findings(view: StudyView, study: optuna.Study, final: Mapping[str, Any]) -> tuple[Finding, ...]:
    """What the trials say together; ``final`` is how the sweep ended, empty before that.

    A study that cannot be read so, of whatever version, says that: a diagnosis stops no sweep.
    """
    try:
        return _findings(view, study, final)
    except Exception as error:
        seen = f"nothing could be said of the sweep: {type(error).__name__}: {error}"[:300]
        fix = "report it; `forge-sweep diagnose NAME --trial N` shows what is said of single trials"
        return (Finding("warning", "not-diagnosed", "sweep", seen, "trials that can be compared", fix),)


def _findings(view: StudyView, study: optuna.Study, final: Mapping[str, Any]) -> tuple[Finding, ...]:
    from forge_sweep.study.importance import influences
    from forge_sweep.study.samplers import STARTUP

    resolved, rows = view.resolved, view.rows()
    search, pruned_by = (
        resolved["model"]["search"],
        {**resolved["study"], "trainings": view.trainings, "step": view.step},
    )
    ended = [row for row in rows if row.state == "failed" or row.value is not None]
    baselines = {key.removeprefix("baseline:"): note for key, note in view.notes("baseline:").items()}
    # Imported trials stand in for the random ones; with several objectives the first is not what is looked for alone.
    imported = any(row.imported for row in rows)
    enough = sum(row.state == "finished" for row in ended) >= ENOUGH_FOR_INFLUENCE
    seen = Searched(
        trials=[_tried(row) for row in ended],
        space={n: Dimension.model_validate(v) if isinstance(v, dict) else v for n, v in search.items()},
        direction=view.direction,
        metric=resolved["objective"]["metric"],
        study=pruned_by,
        confirmed=[each["values"] for each in final.get("confirmed", ()) if not each["baseline"]],
        baselines={
            kind: (note["value"], note.get("metrics", {}).get("val_loss"))
            for kind, note in baselines.items()
            if note["value"] is not None
        },
        outcome=final.get("outcome", ""),
        startup=None if imported or len(view.directions) > 1 else STARTUP.get(resolved["study"]["sampler"]),
        influence=influences(study) if enough else {},
    )
    found = audit(view)
    return (*of_sweep(seen), *(() if found is None else of_audit(found, pruned_by)))


def _tried(row: TrialRow) -> Tried:
    """A trial that ended, as `checks.search` takes it."""
    return Tried(
        number=row.number,
        value=math.nan if row.value is None else row.value,
        params=row.params,
        codes=tuple(each.code for each in row.findings),
        state=row.state,
        epochs=row.epochs,
        loss=row.attrs.get("loss"),
        failure=row.failure,
        imported=bool(row.imported),
    )


def sample(view: StudyView, share: float) -> list[TrialRow]:
    """The pruned trials that are to be audited: each with this chance, and one at the least.

    Whether a trial is among them follows from the experiment's seed and its number alone: more trials, or a greater
    share, take none away but the one that stood for all.
    """
    if share == 0:
        return []
    seed = int(view.resolved["seed"])
    chance = {
        row.number: derived_seed(seed, "audit", row.number) / 2**32
        for row in view.rows()
        if row.state == "pruned" and not row.imported
    }
    first = min(chance, key=lambda number: chance[number], default=None)
    return [row for row in view.rows() if row.number == first or chance.get(row.number, 1.0) < share]


def audit(view: StudyView) -> PruningAudit | None:
    """What the audit of pruned trials found so far; None where none was asked for, or nothing was pruned."""
    notes = {int(key.removeprefix(AUDIT_NOTE)): note for key, note in view.notes(AUDIT_NOTE).items()}
    share = float(view.resolved["study"].get("audit_pruned", 0.0))
    rows = {row.number: row for row in view.rows() if row.state == "pruned" and not row.imported}
    if not rows or not (share or notes):
        return None
    best = view.best()
    return PruningAudit(
        direction=view.direction,
        pruned=len(rows),
        wanted=len({*(number for number in notes if number in rows), *(row.number for row in sample(view, share))}),
        best=None if best is None else best.value,
        trials=tuple(
            Audited(
                number=number,
                pruned_at=rows[number].epochs,
                value=note["value"],
                epochs=int(note.get("epochs", 0)),
                seconds=float(note["cost"]["seconds"]),
                cpu_s=float(note["cost"]["cpu_s"]),
                off=note.get("off"),
                cause=note.get("cause", ""),
            )
            for number, note in sorted(notes.items())
            if number in rows
        ),
    )
