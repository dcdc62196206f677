"""One self-contained HTML file of a finished or running sweep: verdict, trials, baselines, plots."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_sweep import __version__, html
from forge_sweep.task.words import side_by_side

if TYPE_CHECKING:
    from forge_sweep.study import StudyView, TrialRow

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ study.name }}: sweep report</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
body { color: #1d2430; background: #fff; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.verdict { font-size: 1.1rem; border-left: 4px solid #2a6fdb; padding: .4rem 1rem; background: #f2f6fd; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #e3e7ee; white-space: nowrap; }
table.said td { white-space: normal; vertical-align: top; min-width: 6rem; }
th { font-weight: 600; } .failed { color: #b3261e; } .pruned { color: #777; } .muted { color: #667; }
</style>
</head>
<body>
<h1>{{ study.name }}</h1>
<p class="muted">{% if experiment.description %}{{ experiment.description }}. {% endif %}
{{ counts }}. Objective: {{ metric }} ({{ study.direction }}).</p>
{% if final %}<p class="verdict">{{ final.verdict }}</p>
<p>Winner: <strong>{{ final.winner.words }}</strong>, {{ metric }} {{ number(final.winner["mean"]) }} over
{% set n = final.winner["values"] | length %}{{ n }} seed{{ "s" if n != 1 }}
{%- for name, value in winner_params.items() %}; {{ name }}
{{ number(value) }}{% endfor %}. Registered as <code>{{ final.model }}</code>.</p>
{% if final.evaluation %}<div class="scroll"><table>
<tr>{% for title in tested[0] %}<th>{{ title }}</th>{% endfor %}</tr>
{% for row in tested[1] %}<tr>{% for value in row %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
<p class="muted">One test evaluation; 95 % intervals over rows, differences over the same resamples;
a lead above 0 is better, whatever the metric.</p>
{% else %}<p>Test evaluation of the winner:
{% for name, value in final.test.items() %}{{ name }} {{ number(value) }}{{ ", " if not loop.last }}{% endfor %}.</p>
{% endif %}
{% if best %}<p class="muted">Best in the search: trial {{ best.number }}, {{ number(best.value) }}: the best of many
single scores, which is optimistic{% if final.optimism %}: {{ final.optimism.words }}{% endif %}.</p>{% endif %}
{% else %}<p class="verdict">Not confirmed yet: the sweep has not ended.</p>{% endif %}
{% if final %}<h2>Confirmation</h2>
<table><tr><th>candidate</th><th>in the search</th><th>mean over seeds</th><th>95 % over rows and seeds</th>
<th>spread over seeds</th><th>gap</th></tr>
{% for row in final.confirmed %}<tr>
<td>{{ row.words }}{% if row.label == final.winner.label %} (registered){% endif %}</td>
<td>{{ number(row.searched) }}</td><td>{{ number(row["mean"]) }}</td>
<td>{% if row.interval and none not in row.interval %}{{ number(row.interval[0]) }} to {{ number(row.interval[1]) }}
{%- else %}-{% endif %}</td>
<td>{{ number(row.spread) if row.spread and row["values"] | length > 1 else "-" }}</td>
<td>{{ number(row.gap) }}</td></tr>{% endfor %}</table>{% endif %}
{% if rows %}<h2>Diagnosis</h2>
{% if findings %}<div class="scroll"><table class="said">
<tr><th></th><th>finding</th><th>where</th><th>seen</th><th>fix</th></tr>
{% for each in findings %}<tr><td>{{ each.severity }}</td><td>{{ each.code }}</td><td>{{ each.subject }}</td>
<td>{{ each.seen }}</td><td>{{ each.fix }}</td></tr>
{% endfor %}</table></div>{% else %}<p>Nothing to say of the sweep as a whole.</p>{% endif %}
{% if audit %}<p>Audit of pruned trials: {{ audit.words() }}.</p>{% endif %}
{% if said %}<table><tr><th>of single trials</th><th>how many</th><th>which</th></tr>
{% for code, numbers in said.items() %}<tr><td>{{ code }}</td><td>{{ numbers | length }}</td>
<td>{{ numbers[:12] | join(", ") }}{{ ", ..." if numbers | length > 12 }}</td></tr>
{% endfor %}</table>{% endif %}
<p class="muted">Each code has a section of its name in docs/failures.md;
<code>forge-sweep diagnose {{ experiment.name }}</code> shows what was seen of each trial.</p>{% endif %}
{% if front %}<h2>Pareto front</h2>
<p>{{ front.words }}. The rule: {{ front.rule }}.</p>
<div class="scroll"><table><tr><th>trial</th>{% for name in front.directions %}<th>{{ name }}</th>{% endfor %}</tr>
{% for number_, values in front.points.items() %}<tr><td>{{ number_ }}{{ " (chosen)" if number_ == front.chosen }}</td>
{% for value in values %}<td>{{ number(value) }}</td>{% endfor %}</tr>
{% endfor %}</table></div>{% endif %}
{% if baselines %}<h2>Baselines</h2>
{% if budget %}<p class="muted">Budget of the search: {{ budget }}.</p>{% endif %}
<table><tr><th>model</th><th>{{ metric }}</th></tr>
{% for name, note in baselines.items() %}<tr><td>{{ name }}</td>
<td>{{ number(note.value) if note.value is not none else note.cause }}</td></tr>
{% endfor %}</table>{% endif %}
<h2>Trials</h2>
{% if fixed %}<p class="muted">The same in all: {% for name, value in fixed.items() %}{{ name }} {{ number(value) }}
{{- ", " if not loop.last }}{% endfor %}.</p>{% endif %}
<div class="scroll"><table><tr><th>trial</th><th>state</th><th>{{ metric }}</th><th>{{ step }}s</th>
{% for name in costs %}<th>{{ name }}</th>{% endfor %}{% for name in names %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in rows %}<tr class="{{ row.state }}"><td>{{ row.number }}</td>
<td>{{ row.state }}{% if row.outside %}: {{ row.outside }}
{% elif row.failure %}: {{ row.failure }}, {{ row.cause }}{% endif %}</td>
<td>{{ number(row.value) }}</td><td>{{ row.epochs }}</td>
{% for value in costs_of(row) %}<td>{{ tenths(value) }}</td>{% endfor %}
{% for name in names %}<td>{{ number(row.params.get(name)) }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
{% if states %}<h2>Cost</h2>
<p class="muted">Over all workers and interruptions. Lost is what attempts took whose process died, and epochs that had
to be trained again.{% if over %} The search ended early: {{ over.text }}.{% endif %}</p>
<table><tr><th>trials</th><th>count</th><th>seconds</th><th>CPU s</th><th>GPU s</th><th>share</th></tr>
{% for row in states %}<tr><td>{{ row.state }}</td><td>{{ row.count }}</td><td>{{ tenths(row.cost.seconds) }}</td>
<td>{{ tenths(row.cost.cpu_s) }}</td><td>{{ tenths(row.cost.gpu_s) }}</td>
<td>{{ "%.0f" | format(100 * row.share) }} %</td></tr>
{% endfor %}</table>{% endif %}
{% if null %}<p>Null sweep: {{ null.words }}.</p>{% endif %}
{% if ahead %}<p>More search: {{ ahead.words }}. Estimated from the {{ ahead.seen }} trials after the
sampler's start.</p>{% endif %}
{% if phases %}<h2>Time</h2>
<p class="muted">Time of the <code>run</code> commands, summed over interruptions. The search took
{{ span(study.wall_s()) }} of wall-clock time, workers that joined included.</p>
<table><tr><th>phase</th><th>seconds</th></tr>
{% for name, seconds in phases.items() %}<tr><td>{{ phase_names.get(name, name) }}</td>
<td>{{ tenths(seconds) }}</td></tr>
{% endfor %}<tr><th>all</th><th>{{ tenths(phases.values() | sum) }}</th></tr></table>
{% elif states %}<p class="muted">The search took {{ tenths(study.wall_s()) }} s.</p>{% endif %}
{% for name, plot in plots.items() %}<h2>{{ name }}</h2>{{ plot }}{% endfor %}
{% if rows and "Importance of the hyperparameters" not in plots %}<p class="muted">The importance of the hyperparameters
is not estimated from fewer than ten finished trials that differ.</p>{% endif %}
<p class="muted">forge-sweep {{ version }}</p>
</body>
</html>
"""

COSTS = ("seconds", "CPU s", "GPU s", "lost s")

TITLES = {
    "history": "History",
    "front": "Pareto front of the trials",
    "epochs": "Curves of the objective",
    "importances": "Importance of the hyperparameters",
    "parallel_coordinate": "Parallel coordinates",
    "slice": "Slices",
}


def write_report(study: StudyView, path: Path) -> None:
    """Write the report of a finished or running study, as HTML that loads nothing from elsewhere."""
    from jinja2 import Environment
    from markupsafe import Markup

    from forge_sweep.study import PHASES, sides, sides_words, span

    rows, experiment, final = study.rows(), study.resolved, study.final()
    names = varying(rows)
    sign = -1 if study.direction == "maximize" else 1
    notes = {name.removeprefix("baseline:"): note for name, note in study.notes("baseline:").items()}
    best_first = sorted(notes.items(), key=lambda item: (item[1]["value"] is None, sign * (item[1]["value"] or 0.0)))
    # plotly escapes what it is given, and the figures hold numbers and names of hyperparameters only
    budget = sides(study)
    plots = {TITLES[name]: Markup(figure) for name, figure in study.figures_html().items()}
    said: dict[str, list[int]] = {}
    for row in rows:
        for code in dict.fromkeys(each.code for each in row.findings):
            said.setdefault(code, []).append(row.number)
    page = Environment(autoescape=True, trim_blocks=True).from_string(TEMPLATE)
    text = page.render(
        study=study,
        experiment=experiment,
        metric=experiment["objective"]["metric"],
        step=study.step,
        counts=", ".join(f"{count} {state}" for state, count in study.counts().items()) or "no trials",
        final=final,
        best=study.best(),
        winner_params=final["winner"]["params"] if final and not final["winner"]["baseline"] else {},
        tested=side_by_side(final["evaluation"]) if final and final.get("evaluation") else None,
        findings=study.findings(),
        audit=study.audit(),
        front=study.front(),
        said=dict(sorted(said.items(), key=lambda item: -len(item[1]))),
        baselines=dict(best_first),
        budget=sides_words(budget) if budget["baselines"]["tuned"] else "",
        rows=rows,
        names=names,
        fixed={name: value for name, value in (rows[0].params if rows else {}).items() if name not in names},
        costs=COSTS,
        costs_of=costs_of,
        states=study.costs_by_state(),
        over=study.ended_by(),
        ahead=study.outlook(),
        null=study.null(),
        phases=study.phases(),
        phase_names=PHASES,
        span=span,
        plots=plots,
        tenths=tenths,
        number=number,
        version=__version__,
    )
    html.write(path, text)


def varying(rows: list[TrialRow]) -> list[str]:
    """Names of the hyperparameters that are not the same in all trials."""
    names = sorted({name for row in rows for name in row.params})
    return [name for name in names if len({repr(row.params.get(name)) for row in rows}) > 1]


def costs_of(row: TrialRow) -> tuple[float | None, ...]:
    """The columns `COSTS`: over all attempts, or the wall clock of the last one if no more is known."""
    if row.cost is None:
        return row.seconds, None, None, None
    return row.seconds, row.cost.total.cpu_s, row.cost.total.gpu_s, row.cost.lost.seconds


def tenths(value: float | None) -> str:
    """Seconds, to a tenth."""
    return "-" if value is None else f"{value:.1f}"


def number(value: Any) -> str:
    """A cell of a table."""
    if value is None:
        return "-"
    return f"{round(value, 12):.5g}" if isinstance(value, float) else str(value)
