"""The drift of two versions as one self-contained HTML page: pictures of the distributions, and every figure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from forge_sweep import html
from forge_sweep.checks.drift import DISTANCE, MISSING, NEW_SHARE, PSI
from forge_sweep.checks.effects import OTHER_BIN
from forge_sweep.feature_store.drift import metric_text, p_text, scored_on, verdict
from forge_sweep.feature_store.words import counted, listed

if TYPE_CHECKING:
    from forge_sweep.checks.drift import ColumnDrift
    from forge_sweep.feature_store.drift import DriftReport

PICTURES = 30
MOST_PICTURES = 60
"""So many columns are pictured, and so many where more drifted; the page stays below a megabyte."""

LEFT, WIDTH, RIGHT = 155, 150, 105
ROW, BAR = 24, 8
LONGEST = 24

STYLE = """h1 { margin-bottom: 0; } .verdict.drifted { border-color: var(--alarm); }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px; }
.a { background: var(--mark); fill: var(--mark); } .b { background: var(--other); fill: var(--other); }
td.n, th.n { text-align: right; white-space: nowrap; } .name { overflow-wrap: anywhere; min-width: 8rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(23rem, 100%), 1fr)); gap: 1.2rem; }
.pictures { align-items: start; }
figure { margin: 0; padding: .8rem; border: 1px solid var(--line); border-radius: 6px; }
figure.drifted { border-color: var(--alarm); } figcaption { overflow-wrap: anywhere; margin-bottom: .4rem; }
svg { width: 100%; height: auto; } svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
"""

BODY = """<h1>Drift</h1>
<p class="muted"><span class="key a"></span> A {{ report.a }}, {{ rows[0] }};
<span class="key b"></span> B {{ report.b }}, {{ rows[1] }}. Training and validation rows; test rows are not read.
{% if report.shared %}{{ "{:,}".format(report.shared) }} rows of B equal a row of A in every feature, which makes
drift look smaller.{% endif %}</p>
<p class="first verdict{{ " drifted" if report.drifted }}">{{ verdict }}.</p>
<p class="muted">A column counts as drifted where a p-value, adjusted for every test made here (Benjamini-Hochberg), is
below {{ report.drift.alpha }}, and an effect matters: a population stability index (PSI) of {{ limits.PSI }} or a
distance of {{ limits.DISTANCE }}, less what chance gives; {{ "{:.0%}".format(limits.MISSING) }} more or fewer missing
values; or new categories in {{ "{:.0%}".format(limits.NEW_SHARE) }} of the values. Distance is Kolmogorov-Smirnov's D
of numbers and the total variation of categories. The rate of false flags holds for rows that are independent.</p>
{% for words, names in differing if names %}<p><span class="alarm">{{ words }}</span>: {{ names | join(", ") }}</p>
{% endfor %}
<h2>Distributions</h2>
{% if pictures | length < report.drift.columns | length %}
<p class="muted">The first {{ pictures | length }} of {{ report.drift.columns | length }} columns.</p>{% endif %}
<div class="pictures">
{% for picture in pictures %}{% set column, n = picture.column, loop.index %}
<figure{% if column.drifted %} class="drifted"{% endif %}>
<figcaption><b>{{ column.name }}</b>{% if column.drifted %} <span class="alarm">{{ mark(column) }}</span>
{%- elif column.target %} <span class="muted">target</span>{% endif %}<br>
<span class="muted">PSI {{ "%.3f" | format(column.psi) }}, distance {{ "%.3f" | format(column.distance) }}, adjusted p
{{ p_text(column) }}</span></figcaption>
<svg viewBox="0 0 {{ picture.width }} {{ picture.height }}" role="img" aria-labelledby="t{{ n }} d{{ n }}">
<title id="t{{ n }}">{{ column.name }}: shares in A and in B</title>
<desc id="d{{ n }}">{{ picture.words }}</desc>
{% for bar in picture.bars %}<g><title>{{ bar.words }}</title>
<text x="{{ picture.left - 8 }}" y="{{ bar.y + 13 }}" text-anchor="end">{{ bar.name }}</text>
<rect class="a" x="{{ picture.left }}" y="{{ bar.y + 1 }}" width="{{ bar.a }}" height="{{ picture.bar }}"/>
<rect class="b" x="{{ picture.left }}" y="{{ bar.y + 10 }}" width="{{ bar.b }}" height="{{ picture.bar }}"/>
<text x="{{ picture.left + bar.longest + 6 }}" y="{{ bar.y + 13 }}">{{ bar.shares }}</text></g>
{% endfor %}</svg></figure>
{% endfor %}</div>
<h2>All columns</h2>
<div class="scroll"><table>
<tr><th scope="col">column</th><th scope="col" class="n">PSI</th><th scope="col" class="n">by chance</th>
<th scope="col" class="n">distance</th><th scope="col" class="n">by chance</th>
<th scope="col" class="n">missing A</th><th scope="col" class="n">missing B</th>
<th scope="col" class="n">adjusted p</th><th scope="col"></th><th scope="col">categories</th></tr>
{% for column in report.drift.columns %}<tr><td class="name">{{ column.name }}</td>
<td class="n">{{ "%.3f" | format(column.psi) }}</td><td class="n">{{ "%.3f" | format(column.chance[0]) }}</td>
<td class="n">{{ "%.3f" | format(column.distance) }}</td><td class="n">{{ "%.3f" | format(column.chance[1]) }}</td>
<td class="n">{{ "{:.1%}".format(column.missing[0]) }}</td><td class="n">{{ "{:.1%}".format(column.missing[1]) }}</td>
<td class="n">{{ p_text(column) }}</td>
<td>{% if column.drifted %}<span class="alarm">{{ mark(column) }}</span>{% elif column.target %}target{% endif %}</td>
<td class="name">{% if column.new %}new ({{ "{:.1%}".format(column.new_share) }} of the values):
{{ listed(column.new, column.new_count) }}{% endif %}{% if column.new and column.gone %}; {% endif %}
{%- if column.gone %}gone: {{ listed(column.gone, column.gone_count) }}{% endif %}</td></tr>
{% endfor %}</table></div>
<h2>Models trained on A</h2>
{% if report.models_why %}<p class="alarm">They were not looked up: {{ report.models_why }}</p>
{% elif not report.models %}<p>No registered model was trained on {{ report.a }}.</p>
{% else %}<p class="muted">{{ scored_on }}.</p>
<div class="scroll"><table>
<tr><th scope="col">model</th><th scope="col">aliases</th><th scope="col">kind</th><th scope="col">objective</th>
<th scope="col" class="n">on A</th><th scope="col" class="n">on B</th><th scope="col"></th>
<th scope="col">other metrics</th></tr>
{% for model in report.models %}<tr><td class="name">{{ model.uri }}</td><td>{{ model.aliases | join(", ") }}</td>
<td>{{ model.kind }}</td>
{% if model.why %}<td colspan="5" class="name">not scored: {{ model.why }}</td>
{% else %}<td>{{ model.objective }}</td><td class="n">{{ "%.4g" | format(model.a[model.objective]) }}</td>
<td class="n">{{ "%.4g" | format(model.b[model.objective]) }}</td>
<td>{% if model.worse %}<span class="alarm">worse</span>{% endif %}</td>
<td class="name">{% for name in model.a if name != model.objective %}{{ metric_text(model, name) }}
{{- ", " if not loop.last }}{% endfor %}</td>{% endif %}</tr>
{% endfor %}</table></div>{% endif %}"""


@dataclass(frozen=True)
class Bar:
    """One bin in a picture.

    Attributes:
        name: what the bin is called, shortened.
        words: all of it, with both shares, for people who point or listen.
        y: its upper end.
        a: length of the bar of A; lengths are in the units of the picture.
        b: likewise.
        shares: both shares as text.
    """

    name: str
    words: str
    y: int
    a: float
    b: float
    shares: str

    @property
    def longest(self) -> float:
        """Where the text behind the bars begins."""
        return max(self.a, self.b)


@dataclass(frozen=True)
class Picture:
    """The distributions of one column.

    Attributes:
        column: the column.
        bars: one per bin.
    """

    column: ColumnDrift
    bars: tuple[Bar, ...]
    left: int = LEFT
    width: int = LEFT + WIDTH + RIGHT
    bar: int = BAR

    @property
    def height(self) -> int:
        """All bars."""
        return ROW * len(self.bars)

    @property
    def words(self) -> str:
        """Every bar in words."""
        return "; ".join(bar.words for bar in self.bars)


def _render(report: DriftReport) -> str:
    found = report.drift
    drawn = found.columns[: min(max(PICTURES, len(found.drifted)), MOST_PICTURES)]
    return html.page(
        f"Drift from {report.a} to {report.b}",
        BODY,
        style=STYLE,
        report=report,
        rows=[counted(number, "row") for number in found.rows],
        verdict=verdict(found),
        differing=(("Only in B", found.added), ("Only in A", found.gone), ("Of another type", found.retyped)),
        pictures=[_picture(column) for column in drawn],
        scored_on=scored_on(report),
        mark=mark,
        p_text=p_text,
        metric_text=metric_text,
        limits={"PSI": PSI, "DISTANCE": DISTANCE, "MISSING": MISSING, "NEW_SHARE": NEW_SHARE},
        listed=listed,
    )


def write_html(report: DriftReport, path: Path) -> None:
    """Write the report with pictures as one HTML file that loads nothing from elsewhere.

    Args:
        report: what `drift` gave.
        path: HTML file; replaced as a whole, never half-written.
    """
    html.write(path, _render(report))


def _picture(column: ColumnDrift) -> Picture:
    bins = list(zip(column.bins, *column.shares, strict=True))
    most = max((max(a, b) for name, a, b in bins if name != OTHER_BIN), default=1.0)
    scales = [0.0 if name == OTHER_BIN else WIDTH / most for name, _, _ in bins]  # all others would dwarf the rest
    return Picture(column, tuple(bar(i, *each, scales[i]) for i, each in enumerate(bins)))


def bar(position: int, name: str, a: float, b: float, scale: float) -> Bar:
    """One bin."""
    short = name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"
    shares = f"{a:.1%} → {b:.1%}"
    return Bar(short, f"{name}: {shares}", ROW * position, round(a * scale, 1), round(b * scale, 1), shares)


def mark(column: ColumnDrift) -> str:
    """What a drifted column is called."""
    return "label shift" if column.target else "drift"
