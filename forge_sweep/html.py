"""HTML pages that stand alone: they load nothing from elsewhere, run no script, and follow a dark theme."""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from forge_sweep import __version__

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>
:root { --ink: #1d2430; --paper: #fff; --soft: #5a6475; --line: #dde2ea; --box: #f2f6fd; --mark: #2a6fdb; }
:root { --other: #d9730d; --alarm: #b3261e; }
@media (prefers-color-scheme: dark) {
:root { --ink: #e6eaf2; --paper: #14181f; --soft: #a3adbd; --line: #333b48; --box: #1d2430; --mark: #6ea3f5; }
:root { --other: #f0a050; --alarm: #ff8a80; }
}
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
body { color: var(--ink); background: var(--paper); overflow-wrap: break-word; }
h1 { font-size: 1.6rem; margin-bottom: .4rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem 1rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; } .muted { color: var(--soft); } .alarm { color: var(--alarm); font-weight: 600; }
.first { font-size: 1.1rem; border-left: 4px solid var(--mark); padding: .4rem 1rem; background: var(--box); }
{{ style | safe }}</style>
</head>
<body>
{% block body %}{% endblock %}
<p class="muted">forge-sweep {{ version }}</p>
</body>
</html>
"""


def page(title: str, body: str, *, style: str = "", **values: Any) -> str:
    """A page; ``body`` is a Jinja template that every one of ``values`` is escaped in, ``style`` is more CSS."""
    from jinja2 import DictLoader, Environment

    inside = '{% extends "page" %}{% block body %}' + body + "{% endblock %}"
    environment = Environment(autoescape=True, trim_blocks=True, loader=DictLoader({"page": PAGE, "inside": inside}))
    return environment.get_template("inside").render(title=title, style=style, version=__version__, **values)


def table(titles: Sequence[object], rows: Iterable[Sequence[object]], *, caption: str = "") -> str:
    """A small table for a notebook, every text of it escaped; without titles, the first cell of a row is its title."""
    head = f"<thead><tr>{_cells('th', titles)}</tr></thead>" if titles else ""
    lines = (
        f"<tr>{_cells('td', row)}</tr>" if titles else f"<tr>{_cells('th', row[:1])}{_cells('td', row[1:])}</tr>"
        for row in rows
    )
    above = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f"<table>{above}{head}<tbody>{''.join(lines)}</tbody></table>"


def link(address: str, words: str) -> str:
    """A paragraph with a link; the address as text where it is none of the web."""
    if not address.startswith(("http://", "https://")):
        return f"<p>{html.escape(f'{words}: {address}')}</p>"
    return f'<p><a href="{html.escape(address)}" target="_blank" rel="noopener">{html.escape(words)}</a></p>'


def _cells(tag: str, values: Iterable[object]) -> str:
    """Cells as they are read: to the left, with the line breaks of their text."""
    style = ' style="text-align: left; white-space: pre-wrap"'
    return "".join(f"<{tag}{style}>{html.escape(str(value))}</{tag}>" for value in values)


def write(path: Path, text: str) -> None:
    """Write a page, replaced as a whole and never half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
