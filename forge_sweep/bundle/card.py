"""The model card, from what the bundle knows of itself and the ``description`` in the experiment file.

After Mitchell et al. 2019, "Model Cards for Model Reporting", https://arxiv.org/abs/1810.03993.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forge_sweep import __version__, html
from forge_sweep.bundle import files
from forge_sweep.bundle.evaluation import Evaluation
from forge_sweep.bundle.layout import ENSEMBLE, HTML, MARKDOWN
from forge_sweep.task.words import side_by_side

SHOWN = 40  # columns
NOT_RECORDED = "not recorded"
COSTS = ("seconds", "cpu_s", "gpu_s")

BODY = """<h1>{{ name }}</h1>
{% for section in sections %}
<h2>{{ section.title }}</h2>
{% set first = loop.first %}{% for line in section.lines %}<p{% if first %} class="first"{% endif %}>{{ line }}</p>
{% endfor %}{% if section.rows %}<div class="scroll"><table>
<tr>{% for name in section.header %}<th scope="col">{{ name }}</th>{% endfor %}</tr>
{% for row in section.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>{% endif %}
{% endfor %}"""


@dataclass(frozen=True)
class Section:
    """One part of the card: paragraphs, then a table."""

    title: str
    lines: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Card:
    """A card of the model ``title``, ready to be written."""

    title: str
    sections: tuple[Section, ...] = field(repr=False)

    def markdown(self) -> str:
        """The card as Markdown."""
        parts = [f"# Model card: {_plain(self.title)}"]
        for section in self.sections:
            parts += [f"## {section.title}", *map(_plain, section.lines)]
            if section.rows:
                lines = [f"| {' | '.join(map(_plain, row))} |" for row in (section.header, *section.rows)]
                parts.append("\n".join([lines[0], f"|{'---|' * len(section.header)}", *lines[1:]]))
        return "\n\n".join([*parts, f"forge-sweep {__version__}"]) + "\n"

    def html(self) -> str:
        """The card as one page that loads nothing from elsewhere."""
        style = "body { max-width: 60rem; }\n"
        return html.page(f"Model card: {self.title}", BODY, style=style, name=self.title, sections=self.sections)

    def texts(self) -> dict[str, str]:
        """Both forms under the names that they have in a bundle."""
        return {MARKDOWN: self.markdown(), HTML: self.html()}


def card_of(folder: Path, registered: Section | None = None) -> Card:
    """The card of a saved bundle, made anew; see `card`."""
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
    """The card of a bundle, from its ``bundle.json``, ``task.json`` and ``schema.json``.

    ``registered``, what the registry knows besides, is shown after the purpose; ``evaluation`` is as
    `Evaluation.to_dict` has it.
    """
    metadata = about["metadata"]
    experiment = metadata.get("experiment", {})
    name = experiment.get("tracking", {}).get("model_name") or experiment.get("name") or "a model"
    told = [] if registered is None else [registered]
    parts = [*_subject(about, task, schema, told), *_figures(metadata, evaluation), *_circumstances(about)]
    return Card(name, tuple(parts))


def _subject(
    about: Mapping[str, Any], task: Mapping[str, Any], schema: Mapping[str, Any], registered: Sequence[Section]
) -> Iterator[Section]:
    """What the model is for, and what it was made of."""
    metadata = about["metadata"]
    experiment = metadata.get("experiment", {})
    said = experiment.get("description") or "No purpose was stated: set `description` in the experiment file."
    what = []
    for each in task.get("heads", {"": task}).values():
        classes = f", one of {_listed(map(str, each['classes']))}" if each["kind"] in ("binary", "multiclass") else ""
        what.append(f"{', '.join(each['targets'])} ({each['kind']}){classes}")
    verdict = [metadata["verdict"]] if metadata.get("verdict") else []
    yield Section("Purpose", (said, f"Predicts {'; '.join(what)}.", *verdict))
    yield from registered
    data = {
        "version": metadata.get("dataset_version"),
        "digest (SHA-256)": metadata.get("dataset_digest"),
        "split": experiment.get("data", {}).get("split", {}).get("kind"),
        "split digest (SHA-256)": metadata.get("split_digest"),
        **{f"{role} rows": f"{count:,}" for role, count in metadata.get("sizes", {}).items()},
        "normalization version": metadata.get("normalization_version") or "learned from the training rows",
    }
    yield _facts("Data", data)
    columns, rows = schema["columns"], []
    for column in columns[:SHOWN]:
        seen = _listed(column.get("categories", ()))
        if column.get("low") is not None:
            seen = f"{_cell(column['low'])} to {_cell(column['high'])}"
        rows.append((column["name"], column["kind"], seen or "-", "yes" if column["missing"] else "no"))
    more = (f"and {len(columns) - SHOWN} more columns, in schema.json",) if len(columns) > SHOWN else ()
    yield Section("Inputs", more, ("column", "kind", "seen in training", "missing in training"), tuple(rows))
    preprocessing = experiment.get("preprocessing", {})
    parameters = {
        "kind": about["kind"],
        **metadata.get("params", {}),
        "seed": metadata.get("seed"),
        "decision threshold": about["threshold"],
        "scaler": preprocessing.get("scaler"),
        "impute": preprocessing.get("impute"),
        "sweep": metadata.get("sweep"),
    }
    yield _facts("Hyperparameters", parameters)
    if about["kind"] == ENSEMBLE:
        yield _members(about)


def _members(about: Mapping[str, Any]) -> Section:
    """The models of an ensemble, and what all of them together take for a row."""
    told = about["metadata"].get("ensemble", {})
    latency, named = told.get("latency_ms"), told.get("members") or [{} for _ in about["members"]]
    rows = tuple(
        (str(more.get("words", f"member {i}")), each["kind"], f"{each['weight']:.3g}", _cell(more.get("value")))
        for i, (each, more) in enumerate(zip(about["members"], named, strict=True))
    )
    took = NOT_RECORDED if latency is None else f"{latency:.3g} ms"
    line = (
        f"The scores are the weighted mean of the members' scores. One row through all of them takes {took} (median)."
    )
    return Section("Members", (line,), ("model", "kind", "weight", "objective, validation"), rows)


def _figures(metadata: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> Iterator[Section]:
    """What the model is worth."""
    figures = metadata.get("figures", {})
    objective = metadata.get("experiment", {}).get("objective", {}).get("metric", "")
    yield _metrics(metadata, figures, objective)
    if evaluation is not None:
        titles, lines = side_by_side(evaluation)
        how = (
            "Scored in the same test evaluation. Intervals of 95 % over rows; a lead is the difference over the "
            "same resamples of rows, above 0 is better, whatever the metric."
        )
        yield Section("Compared on test", (how,), titles, tuple(lines))

    found, confirmed = metadata.get("baselines", {}), metadata.get("confirmed", {})
    rows: list[tuple[str, ...]] = [(kind, _cell(value)) for kind, value in found.items()]
    if "mean" in confirmed:
        over_seeds = f"{confirmed['mean']:.5g} ± {confirmed['spread']:.2g} ({len(confirmed.get('values', []))})"
        rows.insert(0, ("this model, over seeds", over_seeds))
    unknown = () if found else (f"Baselines: {NOT_RECORDED}.",)
    yield Section("Baselines", unknown, ("model", f"{objective or 'objective'}, validation"), tuple(rows))

    calibrated = {name: figures[name]["calibration"] for name in ("validation", "test") if figures.get(name)}
    names = ["ece", "ece_by_chance", "brier"]
    rows = [(split, *(_cell(each[name]) for name in names)) for split, each in calibrated.items() if each]
    if rows:
        header: tuple[str, ...] = ("rows", "expected calibration error", "of which by chance", "Brier score")
        yield Section("Calibration", (), header, tuple(rows))

    test = figures.get("test", {})
    if classes := test.get("classes", []):
        header = tuple(classes[0])
        rows = [tuple(_cell(each[name]) for name in header) for each in classes]
        yield Section("By class, on test", (), header, tuple(rows))
    if slices := test.get("slices", []):
        known = slices[0]["metrics"]
        names = [name for name in known if name == objective.removeprefix("val_")] or list(known)[:1]
        names += [name for name in ("accuracy", "log_loss", "mae") if name in known and name not in names]
        rows = [
            (each["column"], each["category"], f"{each['rows']:,}", *(_cell(each["metrics"][name]) for name in names))
            for each in slices
        ]
        yield Section("By slice, on test", (), ("column", "category", "rows", *names), tuple(rows))


def _metrics(metadata: Mapping[str, Any], figures: Mapping[str, Any], objective: str) -> Section:
    splits = [name for name in ("validation", "test") if figures.get(name)]
    if not splits:
        rows = tuple((name, _cell(value)) for name, value in metadata.get("test", {}).items())
        return Section("Metrics", (f"Intervals: {NOT_RECORDED}.",), ("metric", "value"), rows)
    how = figures[splits[-1]]["bootstrap"]
    lines = [
        f"Objective: {objective or NOT_RECORDED}. "
        f"Intervals of {how['level']:.0%}: percentile bootstrap over rows, {how['resamples']} resamples, "
        f"seed {how['seed']}. Validation rows chose the model and its threshold, so that their figures are optimistic.",
    ]
    if "test" in splits:
        looks = metadata.get("test_looks")
        lines.append(
            f"The sweep evaluated on the test rows once: evaluation {looks or NOT_RECORDED} of these rows on record."
        )
    names = figures[splits[0]]["metrics"]
    rows = tuple((name, *(_interval(figures[split]["metrics"].get(name)) for split in splits)) for name in names)
    header = ("metric", *(f"{split} ({figures[split]['rows']:,} rows)" for split in splits))
    return Section("Metrics", tuple(lines), header, rows)


def _circumstances(about: Mapping[str, Any]) -> Iterator[Section]:
    """What the search cost, where it ran, and where the figures end."""
    metadata = about["metadata"]
    if cost := metadata.get("cost"):
        rows = [(each["state"], str(each["count"]), *(_cell(each[name]) for name in COSTS)) for each in cost["states"]]
        rows.append(("baselines", "-", _cell(cost["baseline_seconds"]), "-", "-"))
        header = ("trials", "number", "wall seconds", "CPU seconds", "GPU seconds")
        yield Section("Search cost", (f"{cost['epochs']:,} epochs in all.",), header, tuple(rows))
    else:
        yield Section("Search cost", (f"The search: {NOT_RECORDED}.",))
    found = metadata.get("environment", {})
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    names = ("image_digest", "git_commit", "git_dirty", "python", "platform", "cpu", "gpus", "cuda", "backend")
    values = {name.replace("_", " "): found.get(name, NOT_RECORDED) for name in names}
    yield _facts("Environment", {**values, "packages": packages})
    yield Section("Limits", tuple(_limits(metadata)))


def _limits(metadata: Mapping[str, Any]) -> Iterator[str]:
    version = metadata.get("dataset_version", "the training data")
    yield f"The figures hold for rows like those of {version}: the ranges and categories under Inputs, and no others."
    sizes, test = metadata.get("sizes", {}), metadata.get("figures", {}).get("test", {})
    wide = [
        name
        for name, (value, low, high) in test.get("metrics", {}).items()
        if None not in (value, low, high) and max(high - value, value - low) > 0.1 * abs(value)
    ]
    if wide:
        yield f"{sizes.get('test', 'few')} test rows leave {', '.join(wide)} uncertain by more than a tenth either way."
    if (looks := metadata.get("test_looks") or 0) > 1:
        yield f"The test rows had been evaluated on {looks - 1} times before: the test figures are optimistic."
    if test and not test.get("slices"):
        yield "No slice of the test rows was large enough, or no column categorical: nothing is known about subgroups."
    environment = metadata.get("environment", {})
    if environment.get("image_digest", "unknown") in ("none", "unknown"):
        yield "It was not trained in an image with a known digest; only package versions say what it ran on."
    if environment.get("git_dirty"):
        yield "The code had uncommitted changes; they are kept with the sweep's run."


def _facts(title: str, values: Mapping[str, Any]) -> Section:
    return Section(title, (), ("", ""), tuple((name, _cell(value)) for name, value in values.items()))


def _interval(figure: Sequence[float | None] | None) -> str:
    if figure is None or figure[0] is None:
        return "-"
    value, low, high = figure
    return f"{value:.4g}" if low is None else f"{value:.4g} ({low:.4g} to {high:.4g})"


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return _listed(map(str, value)) or "none"
    return f"{round(value, 12):.5g}" if isinstance(value, float) else str(value)


def _listed(values: Iterable[str], longest: int = 12) -> str:
    each = list(values)
    return ", ".join(each[:longest]) + (f" and {len(each) - longest} more" if len(each) > longest else "")


def _plain(text: str) -> str:
    """Text that Markdown shows as it is: names of columns and categories may hold anything."""
    escaped = "".join(f"\\{letter}" if letter in "\\`*_[]<>|#" else letter for letter in text)
    return " ".join(escaped.split())
