"""Importing a user's own module, of a builder or of a source, as often as there are versions of it.

Each version is a package of its own in ``sys.modules``, named by the digest, in which the files have their names. Two
versions, as in a bundle and beside the experiment, do not see each other, nor what else is called ``net`` on the path.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
import threading
from collections.abc import Sequence
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from forge_sweep.errors import TrialFailed
from forge_sweep.experiment.code import PACKAGE, Code, file_name

PREFIX = "forge_sweep_own_"

HIDDEN = {"jax", "keras", "numpy", "pandas", "scipy", "sklearn", "tensorflow", "torch"}
"""Packages that builders import; a file of that name beside them is imported in their place."""

LONGEST = 300

# Lines of a backend's message that tell where, not what.
_NOISE = re.compile(
    r"^(Graph execution error|Detected at|Exception encountered|Stack trace|Arguments received|File |\[\[|- )"
)
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_NODE = re.compile(r"\{\{function_node [^}]*\}\} ?| ?\[Op:\w+\]( name: ?\S*)?")
_LAYER = re.compile(r"Exception encountered when calling (?:layer )?(.+?)\.?$", re.MULTILINE)

_lock = threading.Lock()


def module_of(code: Code, name: str = "") -> ModuleType:
    """The module of a builder or of a source, or another one of its files by name; its code runs.

    Raises:
        TrialFailed: it cannot be imported; says where.
    """
    package = package_of(code)
    with _lock:
        if not any(isinstance(finder, _Finder) and finder.package == package for finder in sys.meta_path):
            sys.meta_path.append(_Finder(package, code))
    try:
        return importlib.import_module(f"{package}.{name or code.module}")
    except (Exception, SystemExit) as error:  # a script that parses its own command line ends so
        raise failed(error, f"{name or code.module} cannot be imported") from error


def package_of(code: Code) -> str:
    """The name in ``sys.modules`` below which the files of this version stand."""
    return f"{PREFIX}{code.digest[:16]}"


def failed(error: BaseException, what: str, hint: str = "") -> TrialFailed:
    """An error of a user's code as the failure of a trial, with the place in the user's own files."""
    place = f" ({found})" if (found := where(error)) else ""
    if (name := found.partition(".")[0].partition("/")[0]) in HIDDEN:
        hint = f"rename {found.partition(':')[0]}: beside the builder it hides the package {name}"
    text = cause(error)
    package = next((name for name in text.replace("'", " ").split() if name.startswith(PREFIX)), "").partition(".")[0]
    text = text.replace(f"{package}.", "") if package else text
    return TrialFailed("code", f"{what}: {type(error).__name__}: {text[:LONGEST]}{place}", hint=hint)


def cause(error: BaseException) -> str:
    """The first line of an error's message that says what went wrong, and in which layer where Keras says so."""
    text = _NODE.sub("", _ANSI.sub("", getattr(error, "message", None) or str(error)))
    lines = [line.strip() for line in text.splitlines()]
    telling = [line for line in lines if line and not _NOISE.match(line)]
    found = (telling or [line for line in lines if line] or [""])[0][:LONGEST]
    layer = _LAYER.search(text) if telling else None
    return f"{found} (in {layer[1]})" if layer and layer[1] not in found else found


def where(error: BaseException) -> str:
    """The line of the user's own files that an error passed last, such as ``net.py:12``; "" for none."""
    found, step = "", error.__traceback__
    while step is not None:
        module = str(step.tb_frame.f_globals.get("__name__", ""))
        if module.startswith(PREFIX):
            found = f"{file_name(module.partition('.')[2])}:{step.tb_lineno}"
        step = step.tb_next
    return found


class _Finder(MetaPathFinder, InspectLoader):
    """Finds and loads the files of one version."""

    def __init__(self, package: str, code: Code) -> None:
        self.package, self.code = package, code

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        if fullname != self.package and not fullname.startswith(f"{self.package}."):
            return None
        name = fullname[len(self.package) + 1 :]
        if name in self.code.files:
            spec = ModuleSpec(fullname, self, origin=self._file(name))
            spec.has_location = True
            return spec
        below = any(file.startswith(f"{name}.") for file in self.code.files)
        return ModuleSpec(fullname, self, is_package=True) if below or not name else None

    def is_package(self, fullname: str) -> bool:
        """See `importlib.abc.InspectLoader`."""
        return fullname[len(self.package) + 1 :] not in self.code.files

    def get_source(self, fullname: str) -> str:
        """The text of a file, as the user wrote it: what tracebacks and TensorFlow's AutoGraph read."""
        name = fullname[len(self.package) + 1 :]
        return self.code.files.get(name) or self.code.files.get(f"{name}.{PACKAGE}", "")

    def get_code(self, fullname: str) -> CodeType:
        """The compiled file, its imports of local modules led to those of this version."""
        name = fullname[len(self.package) + 1 :]
        tree = _Local(self.package, self.code).visit(ast.parse(self.get_source(fullname)))
        own = name if name in self.code.files else f"{name}.{PACKAGE}"
        compiled: CodeType = compile(ast.fix_missing_locations(tree), self._file(own), "exec", dont_inherit=True)
        return compiled

    def _file(self, name: str) -> str:
        """The file itself, for debuggers, where it is still what was read; else a name that no file has."""
        path = self.code.paths.get(name, "")
        try:
            if path and importlib.util.decode_source(Path(path).read_bytes()) == self.code.files.get(name):
                return path
        except (OSError, SyntaxError, ValueError):
            pass
        return f"<{self.package}>/{file_name(name)}"


class _Local(ast.NodeTransformer):
    """Leads absolute imports of local modules to the package of their version; relative ones are there already."""

    def __init__(self, package: str, code: Code) -> None:
        self.package = package
        self.tops = {name.partition(".")[0] for name in code.files}

    def visit_Import(self, node: ast.Import) -> Any:  # of `ast.NodeVisitor`
        """``import nets.two`` binds ``nets``."""
        kept = [alias for alias in node.names if alias.name.partition(".")[0] not in self.tops]
        found: list[ast.stmt] = [ast.copy_location(ast.Import(kept), node)] if kept else []
        for alias in node.names:
            if alias in kept:
                continue
            whole = ast.alias(f"{self.package}.{alias.name}", alias.asname)
            found.append(ast.copy_location(ast.Import([whole]), node))
            if alias.asname is None:
                top = ast.alias(alias.name.partition(".")[0], None)
                found.append(ast.copy_location(ast.ImportFrom(self.package, [top], 0), node))
        return found

    def visit_ImportFrom(self, node: ast.ImportFrom) -> Any:
        """``from nets.two import Layer``."""
        if not node.level and node.module and node.module.partition(".")[0] in self.tops:
            return ast.copy_location(ast.ImportFrom(f"{self.package}.{node.module}", node.names, 0), node)
        return node
