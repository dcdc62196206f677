"""``forge-sweep compare`` and ``explain``: models of a sweep on the same rows, and the story of one trial."""

from __future__ import annotations

from typing import Annotated

import typer

from forge_sweep.cli.options import MLRUNS, AsJson, Name, Store
from forge_sweep.cli.printing import emit, print_table, say
from forge_sweep.cli.run import find
from forge_sweep.errors import InputError


def compare(
    experiment: Name,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL MODEL...",
            help="trial:3 or 3, baseline:xgboost, confirm:0003:1; SWEEP#trial:3 of another sweep on the same rows.",
            show_default=False,
        ),
    ],
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", metavar="NAME", help="May be repeated. Default: the objective."),
    ] = None,
    store: Store = MLRUNS,
    as_json: AsJson = False,
) -> None:
    """Compare the first model with each other one on the validation rows: paired bootstrap intervals, no training."""
    from forge_sweep import predictions
    from forge_sweep.task.words import between, figure

    if len(models) < 2:
        raise InputError(f"MODEL: expected two or more, got {models[0]}", hint="such as: trial:3 baseline:xgboost")
    own = predictions.read(find(experiment, store), store)
    sweeps, named = {"": own, own.study: own}, []
    for words in models:
        sweep, _, label = words.rpartition("#")
        if sweep not in sweeps:
            sweeps[sweep] = predictions.read(find(sweep, store), store)
        named.append((sweeps[sweep], label))
    (first, one), *others = named
    pairs = [first.compare(one, other, name, beside=beside) for name in metric or (None,) for beside, other in others]
    if as_json:
        emit([pair.to_dict() for pair in pairs])
        return
    titles = ("metric", "one", "", "other", "", "lead of the one", "95 %", "the one is")
    cells = []
    for pair in pairs:
        gain, lead = pair.gain, pair.gain.gain
        ends = between((lead.low, lead.high)) if pair.outcome else "-"
        scores = (pair.one, figure(gain.one), pair.other, figure(gain.other), f"{lead.value:+.4g}")
        cells.append((gain.metric, *scores, ends, pair.outcome or "not defined"))
    print_table(titles, cells)
    say(
        f"over {pairs[0].resamples} paired resamples of {pairs[0].rows:,} validation rows; a lead above 0 is better, "
        "whatever the metric; it is not corrected for how these models were chosen, nor does it know other seeds"
    )


def explain(
    experiment: Name,
    trial: Annotated[int, typer.Argument(metavar="TRIAL", help="Its number.", show_default=False)],
    store: Store = MLRUNS,
    as_json: AsJson = False,
) -> None:
    """Tell the story of one trial: what was tried, where it comes from, how it ended, and what the best one has."""
    from forge_sweep.study.story import story
    from forge_sweep.task.words import figure

    study = find(experiment, store)
    row = study.row(trial)
    told = story(study, row)
    if as_json:
        emit({"trial": row.number, "state": row.state, **dict(told)})
        return
    say(f"trial {row.number} of {study.name}: {row.state}" + ("" if row.value is None else f", {figure(row.value)}"))
    for title, sentence in told:
        say(f"{title:<10}{sentence}")


COMMANDS = (compare, explain)
