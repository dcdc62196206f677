"""The model card: what a model is for, what it was made of, what it is worth and where that ends.

Written from what the bundle knows of itself (Mitchell et al. 2019, "Model Cards for Model Reporting",
https://arxiv.org/abs/1810.03993). The only thing in it that a person typed is the purpose: ``description`` in the
experiment file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forge_sweep import __version__
from forge_sweep.bundle import files
from forge_sweep.bundle.evaluation import Evaluation
from forge_sweep.task.words import side_by_side

MARKDOWN, HTML = "card.md", "card.html"
CARD_FILES = frozenset({MARKDOWN, HTML})

SHOWN = 40
"""So many columns are listed in full."""

NOT_RECORDED = "not recorded"

COSTS = ("seconds", "cpu_s", "gpu_s")

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Model card: {{ title }}</title>
<style>
:root { --ink: #1d2430; --paper: #fff; --soft: #5a6475; --line: #dde2ea; --box: #f2f6fd; --mark: #2a6fdb; }
@media (prefers-color-scheme: dark) {
:root { --ink: #e6eaf2; --paper: #14181f; --soft: #a3adbd; --line: #333b48; --box: #1d2430; --mark: #6ea3f5; }
}
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
body { color: var(--ink); background: var(--paper); overflow-wrap: break-word; }
h1 { font-size: 1.6rem; margin-bottom: .4rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem 1rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; } .muted { color: var(--soft); }
.first { font-size: 1.1rem; border-left: 4px solid var(--mark); padding: .4rem 1rem; background: var(--box); }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for section in sections %}
<h2>{{ section.title }}</h2>
{% set first = loop.first %}{% for line in section.lines %}<p{% if first %} class="first"{% endif %}>{{ line }}</p>
{% endfor %}{% if section.rows %}<div class="scroll"><table>
<tr>{% for name in section.header %}<th scope="col">{{ name }}</th>{% endfor %}</tr>
{% for row in section.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>{% endif %}
{% endfor %}
<p class="muted">forge-sweep {{ version }}</p>
</body>
</html>
"""


@dataclass(frozen=True)
class Section:
    """One part of the card.

    Attributes:
        title: its heading.
        lines: paragraphs.
        header: names of the table's columns.
        rows: the table.
    """

    title: str
    lines: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Card:
    """A card, ready to be written.

    Attributes:
        title: the model's name.
        sections: its parts, the purpose first.
    """

    title: str
    sections: tuple[Section, ...] = field(repr=False)

    def markdown(self) -> str:
        """The card as Markdown."""
        parts = [f"# Model card: {_plain(self.title)}"]
        for section in self.sections:
            parts += [f"## {section.title}", *map(_plain, section.lines)]
            if section.rows:
                parts.append("\n".join(_table(section.header, section.rows)))
        return "\n\n".join([*parts, f"forge-sweep {__version__}"]) + "\n"

    def html(self) -> str:
        """The card as one page that loads nothing from elsewhere."""
        from jinja2 import Environment

        template = Environment(autoescape=True, trim_blocks=True).from_string(TEMPLATE)
        return template.render(title=self.title, sections=self.sections, version=__version__)

    def texts(self) -> dict[str, str]:
        """Both forms under the names that they have in a bundle."""
        return {MARKDOWN: self.markdown(), HTML: self.html()}


def card_of(folder: Path, registered: Section | None = None) -> Card:
    """The card of a saved bundle, made anew.

    Args:
        folder: the bundle, checked.
        registered: what the registry knows besides, shown after the purpose.

    Raises:
        BundleError: a file is no JSON.
    """
    about, task, schema = (files.read_json(folder / f"{name}.json") for name in ("bundle", "task", "schema"))
    evaluation = Evaluation.load(folder)
    return card(about, task, schema, registered, None if evaluation is None else evaluation.to_dict())


def card(
    about: Mapping[str, Any],
    task: Mapping[str, Any],
    schema: Mapping[str, Any],
    registered: Section | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> Card:
    """The card of a bundle.

    Args:
        about: ``bundle.json``: kind, threshold, metadata, packages.
        task: ``task.json``.
        schema: ``schema.json``.
        registered: what the registry knows besides.
        evaluation: what the look at the test rows gave, as `Evaluation.to_dict` has it.
    """
    metadata = about["metadata"]
    experiment = metadata.get("experiment", {})
    name = experiment.get("tracking", {}).get("model_name") or experiment.get("name") or "a model"
    parts = [
        _purpose(experiment, task, metadata),
        registered,
        _data(metadata, task),
        _columns(schema),
        _made(about, experiment),
        _metrics(metadata, experiment),
        None if evaluation is None else _compared(evaluation),
        _baselines(metadata, experiment),
        _calibration(metadata),
        _classes(metadata),
        _slices(metadata, experiment),
        _cost(metadata),
        _environment(about),
        _limits(about, experiment),
    ]
    return Card(name, tuple(part for part in parts if part is not None))


def _purpose(experiment: Mapping[str, Any], task: Mapping[str, Any], metadata: Mapping[str, Any]) -> Section:
    said = experiment.get("description") or "No purpose was stated: set `description` in the experiment file."
    what = f"Predicts {', '.join(task['targets'])} ({task['kind']})"
    classes = f", one of {_listed(map(str, task['classes']))}" if task["kind"] in ("binary", "multiclass") else ""
    verdict = [metadata["verdict"]] if metadata.get("verdict") else []
    return Section("Purpose", (said, f"{what}{classes}.", *verdict))


def _data(metadata: Mapping[str, Any], task: Mapping[str, Any]) -> Section:
    sizes = metadata.get("sizes", {})
    split = metadata.get("experiment", {}).get("data", {}).get("split", {})
    rows = {
        "version": metadata.get("dataset_version"),
        "digest (SHA-256)": metadata.get("dataset_digest"),
        "split": split.get("kind"),
        "split digest (SHA-256)": metadata.get("split_digest"),
        **{f"{role} rows": f"{count:,}" for role, count in sizes.items()},
        "normalization version": metadata.get("normalization_version") or "learned from the training rows",
    }
    return Section("Data", (), ("", ""), tuple((name, _cell(value)) for name, value in rows.items()))


def _columns(schema: Mapping[str, Any]) -> Section:
    columns = schema["columns"]
    rows = []
    for column in columns[:SHOWN]:
        numbers = column.get("low") is not None
        seen = (
            f"{_cell(column['low'])} to {_cell(column['high'])}" if numbers else _listed(column.get("categories", ()))
        )
        rows.append((column["name"], column["kind"], seen or "-", "yes" if column["missing"] else "no"))
    more = (f"and {len(columns) - SHOWN} more columns, in schema.json",) if len(columns) > SHOWN else ()
    return Section("Inputs", more, ("column", "kind", "seen in training", "missing in training"), tuple(rows))


def _made(about: Mapping[str, Any], experiment: Mapping[str, Any]) -> Section:
    metadata = about["metadata"]
    values = {
        "kind": about["kind"],
        **metadata.get("params", {}),
        "seed": metadata.get("seed"),
        "decision threshold": about["threshold"],
        "scaler": experiment.get("preprocessing", {}).get("scaler"),
        "impute": experiment.get("preprocessing", {}).get("impute"),
        "sweep": metadata.get("sweep"),
    }
    rows = tuple((name, _cell(value)) for name, value in values.items())
    return Section("Hyperparameters", (), ("", ""), rows)


def _metrics(metadata: Mapping[str, Any], experiment: Mapping[str, Any]) -> Section:
    figures = metadata.get("figures", {})
    splits = [name for name in ("validation", "test") if figures.get(name)]
    if not splits:
        rows = tuple((name, _cell(value)) for name, value in metadata.get("test", {}).items())
        return Section("Metrics", (f"Intervals: {NOT_RECORDED}.",), ("metric", "value"), rows)
    how = figures[splits[-1]]["bootstrap"]
    lines = [
        f"Objective: {experiment.get('objective', {}).get('metric', NOT_RECORDED)}. "
        f"Intervals of {how['level']:.0%}: percentile bootstrap over rows, {how['resamples']} resamples, "
        f"seed {how['seed']}. Validation rows chose the model and its threshold, so that their figures are optimistic.",
    ]
    if "test" in splits:
        looks = metadata.get("test_looks")
        lines.append(f"Test rows were looked at once by this sweep; look {looks or NOT_RECORDED} at them on record.")
    names = figures[splits[0]]["metrics"]
    rows = tuple((name, *(_interval(figures[split]["metrics"].get(name)) for split in splits)) for name in names)
    header = ("metric", *(f"{split} ({figures[split]['rows']:,} rows)" for split in splits))
    return Section("Metrics", tuple(lines), header, rows)


def _compared(evaluation: Mapping[str, Any]) -> Section:
    titles, rows = side_by_side(evaluation)
    lines = (
        "Scored in the same look at the same test rows. Intervals of 95 % over rows; a lead is the difference over the "
        "same resamples of rows, above 0 is better, whatever the metric.",
    )
    return Section("Compared on test", lines, titles, tuple(rows))


def _baselines(metadata: Mapping[str, Any], experiment: Mapping[str, Any]) -> Section:
    objective = experiment.get("objective", {}).get("metric", "objective")
    found = metadata.get("baselines", {})
    confirmed = metadata.get("confirmed", {})
    rows = [(kind, _cell(value)) for kind, value in found.items()]
    if "mean" in confirmed:
        values = confirmed.get("values", [])
        rows.insert(
            0, ("this model, over seeds", f"{confirmed['mean']:.5g} ± {confirmed['spread']:.2g} ({len(values)})")
        )
    lines = () if found else (f"Baselines: {NOT_RECORDED}.",)
    return Section("Baselines", lines, ("model", f"{objective}, validation"), tuple(rows))


def _calibration(metadata: Mapping[str, Any]) -> Section | None:
    figures = metadata.get("figures", {})
    found = {name: figures[name]["calibration"] for name in ("validation", "test") if figures.get(name)}
    if not any(found.values()):
        return None
    names = ("ece", "ece_by_chance", "brier")
    rows = tuple((split, *(_cell(each[name]) for name in names)) for split, each in found.items() if each)
    header = ("rows", "expected calibration error", "of which by chance", "Brier score")
    return Section("Calibration", (), header, rows)


def _classes(metadata: Mapping[str, Any]) -> Section | None:
    found = metadata.get("figures", {}).get("test", {}).get("classes", [])
    if not found:
        return None
    header = tuple(found[0])
    rows = tuple(tuple(_cell(each[name]) for name in header) for each in found)
    return Section("By class, on test", (), header, rows)


def _slices(metadata: Mapping[str, Any], experiment: Mapping[str, Any]) -> Section | None:
    found = metadata.get("figures", {}).get("test", {}).get("slices", [])
    if not found:
        return None
    wanted = experiment.get("objective", {}).get("metric", "").removeprefix("val_")
    names = [name for name in found[0]["metrics"] if name == wanted] or list(found[0]["metrics"])[:1]
    names += [name for name in ("accuracy", "log_loss", "mae") if name in found[0]["metrics"] and name not in names]
    rows = [
        (each["column"], each["category"], f"{each['rows']:,}", *(_cell(each["metrics"][name]) for name in names))
        for each in found
    ]
    return Section("By slice, on test", (), ("column", "category", "rows", *names), tuple(rows))


def _cost(metadata: Mapping[str, Any]) -> Section:
    cost = metadata.get("cost")
    if not cost:
        return Section("Search cost", (f"The search: {NOT_RECORDED}.",))
    rows = [(each["state"], str(each["count"]), *(_cell(each[name]) for name in COSTS)) for each in cost["states"]]
    rows.append(("baselines", "-", _cell(cost["baseline_seconds"]), "-", "-"))
    header = ("trials", "number", "wall seconds", "CPU seconds", "GPU seconds")
    return Section("Search cost", (f"{cost['epochs']:,} epochs in all.",), header, tuple(rows))


def _environment(about: Mapping[str, Any]) -> Section:
    found = about["metadata"].get("environment", {})
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    names = ("image_digest", "git_commit", "git_dirty", "python", "platform", "cpu", "gpus", "cuda", "backend")
    values = {name.replace("_", " "): found.get(name, NOT_RECORDED) for name in names}
    rows = tuple((name, _cell(value)) for name, value in {**values, "packages": packages}.items())
    return Section("Environment", (), ("", ""), rows)


def _limits(about: Mapping[str, Any], experiment: Mapping[str, Any]) -> Section:
    return Section("Limits", tuple(_limit_lines(about["metadata"])))


def _limit_lines(metadata: Mapping[str, Any]) -> Iterator[str]:
    """What the figures do not say, as far as it follows from what is recorded."""
    version = metadata.get("dataset_version", "the training data")
    yield f"The figures hold for rows like those of {version}: the ranges and categories under Inputs, and no others."
    sizes, test = metadata.get("sizes", {}), metadata.get("figures", {}).get("test", {})
    wide = [name for name, (value, low, high) in test.get("metrics", {}).items() if _is_wide(value, low, high)]
    if wide:
        yield f"{sizes.get('test', 'few')} test rows leave {', '.join(wide)} uncertain by more than a tenth either way."
    if (looks := metadata.get("test_looks") or 0) > 1:
        yield f"The test rows had been looked at {looks - 1} times before: the test figures are optimistic."
    if test and not test.get("slices"):
        yield "No slice of the test rows was large enough, or no column categorical: nothing is known about subgroups."
    environment = metadata.get("environment", {})
    if environment.get("image_digest", "unknown") in ("none", "unknown"):
        yield "It was not trained in an image with a known digest; only package versions say what it ran on."
    if environment.get("git_dirty"):
        yield "The code had uncommitted changes; they are kept with the sweep's run."


def _is_wide(value: float | None, low: float | None, high: float | None) -> bool:
    """Whether an interval reaches more than a tenth of its value away."""
    if value is None or low is None or high is None:
        return False
    return max(high - value, value - low) > 0.1 * abs(value)


def _interval(figure: Sequence[float | None] | None) -> str:
    """``0.9123 (0.8901 to 0.9312)``."""
    if figure is None or figure[0] is None:
        return "-"
    value, low, high = figure
    return f"{value:.4g}" if low is None else f"{value:.4g} ({low:.4g} to {high:.4g})"


def _cell(value: Any) -> str:
    """A value in a table."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return _listed(map(str, value)) or "none"
    return f"{round(value, 12):.5g}" if isinstance(value, float) else str(value)


def _listed(values: Iterable[str], longest: int = 12) -> str:
    """The first values."""
    each = list(values)
    return ", ".join(each[:longest]) + (f" and {len(each) - longest} more" if len(each) > longest else "")


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A table in Markdown."""
    yield f"| {' | '.join(map(_plain, header))} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(map(_plain, row))} |"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is: names of columns and categories may hold anything."""
    escaped = "".join(f"\\{letter}" if letter in "\\`*_[]<>|#" else letter for letter in text)
    return " ".join(escaped.split())
