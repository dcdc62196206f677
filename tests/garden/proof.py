"""What is proven of every fault, and its line of the table in docs/failures.md."""

from __future__ import annotations

import math
import re
from pathlib import Path

from tests.garden.plots import Fault, Said, beyond_noise, gain, overrides_of

PAGE = Path(__file__).parents[2] / "docs" / "failures.md"
HEAD = "| what was done wrong | what a plain loop prints | what is said here | when |\n| --- | --- | --- | --- |\n"


def caught(fault: Fault, folder: Path) -> Said:
    """That a fault is said under its own name at its stage, and that it is not said where it was not planted."""
    planted = fault.look(folder / "planted", planted=True)
    own = [each for each in planted if (each.code, each.when) == (fault.code, fault.when)]
    assert own, (
        f"{fault.name}: expected {fault.code} at {fault.when}, found {[(s.code, s.when, s.text) for s in planted]}"
    )
    healthy = {each.code for each in fault.look(folder / "healthy", planted=False)}
    assert fault.code not in healthy, f"{fault.name}: {fault.code} without the fault"
    others = {each.code for each in planted if each.severity != "info"} - healthy - {fault.code}
    assert others == set(fault.beside), f"{fault.name}: beside it, {others}"
    return own[0]


def line(fault: Fault, said: Said) -> str:
    """The line of the table; runs the plain loop, which raises nothing."""
    logs = fault.plain()
    assert all(isinstance(value, str | int | float) for value in logs.values())
    printed = fault.prints.format(**logs)
    text = re.sub(r"\s+", " ", said.text.partition("\n")[0]).replace("|", "\\|").removeprefix(f"{said.code}: ")
    return f"| {fault.what} | {printed} | `{said.code}`: {text} | {said.when} |"


def masked(text: str) -> str:
    """A line without its figures, which differ from machine to machine in their last digits."""
    return re.sub(r"-?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?|\bnan\b|\binf\b", "#", text)


def in_page(fault: Fault) -> str:
    """The line that docs/failures.md has of a fault; "" where it has none."""
    lines = [each for each in PAGE.read_text().splitlines() if each.startswith(f"| {fault.what} |")]
    return lines[0] if lines else ""


def works(fault: Fault, said: Said, folder: Path) -> None:
    """That the printed line, applied as it stands, is better than what was before by more than noise."""
    lines = overrides_of(said.fix)
    assert lines, f"{fault.name}: no TOML line in {said.fix!r}"
    before, after = gain(fault, folder / "repaired", lines)
    assert math.isfinite(after.sum())
    assert beyond_noise(before, after), f"{fault.name}: {before} before, {after} with {lines}"
