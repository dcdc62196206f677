"""A user's own builder or source, ``module:function``: found, read and digested without being imported.

A builder's signature is the schema of [model.search]; its source, with the local modules that it imports, is part of
what a sweep is, and goes wherever its models go. The function of ``data.source`` gives the rows.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.util
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.machinery import PathFinder, SourceFileLoader
from pathlib import Path
from typing import Any, NoReturn, cast

from forge_sweep.errors import ExperimentError, Mistake
from forge_sweep.experiment.space import GENERAL, HYPERPARAMETERS, Hyperparameter

KEY, SOURCE_KEY, CALLBACKS = "model.builder", "data.source", "model.callbacks"
NAME = r"[A-Za-z_][A-Za-z0-9_]*"
FORM = re.compile(rf"({NAME}(?:\.{NAME})*):({NAME})", re.ASCII)
PACKAGE = "__init__"
"""Last part of the name under which a package's own file stands among `Code.files`."""

MOST_FILES = 200
MOST_BYTES = 1_000_000
"""Of one file."""

EXAMPLE, SOURCE_EXAMPLE = "def build(inputs, heads, *, width: int = 64): ...", "def load(): ..."


@dataclass(frozen=True)
class Code:
    """The text of a builder or of a source.

    Attributes:
        module: dotted name, such as ``fraud_two_branch``.
        function: that builds a model, or gives the rows.
        files: the text of the module, of its packages (as ``nets.__init__``) and of the local modules that it imports,
            by dotted name.
        parameters: what a builder takes by name, in its order; ``default`` is None for one that is left out unless the
            experiment names it.
        required: those that have no default.
        paths: where each file was read, for people and debuggers.
    """

    module: str
    function: str
    files: Mapping[str, str]
    parameters: Mapping[str, Hyperparameter]
    required: frozenset[str] = frozenset()
    paths: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def builder(self) -> str:
        """As ``model.builder`` names it."""
        return f"{self.module}:{self.function}"

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over all files; line ends count as one kind."""
        return hashlib.sha256(json.dumps(dict(self.files), sort_keys=True).encode()).hexdigest()

    def names(self, module: str) -> list[str]:
        """What a module among the files defines or imports at its top: functions, classes and other values."""
        own = module if module in self.files else f"{module}.{PACKAGE}"
        found: list[str] = []
        for node in _parsed(own, self.files.get(own, "")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.append(node.name)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                found += [alias.asname or alias.name for alias in node.names]
            elif isinstance(node, ast.Assign):
                found += [target.id for target in node.targets if isinstance(target, ast.Name)]
        return found

    @property
    def hyperparameters(self) -> dict[str, Hyperparameter]:
        """What [model.search] may hold: the general hyperparameters, and the function's own.

        Of the general ones only the batch size has a default that is not the function's: a model that comes compiled
        has an optimizer of its own, and a record must not name another one.
        """
        general = {
            name: known if name == "batch_size" else _without_default(known)
            for name, known in HYPERPARAMETERS.items()
            if name in GENERAL
        }
        return {**general, **self.parameters}


def is_own(name: object) -> bool:
    """Whether ``model.builder`` or ``data.source`` names a function of the user's own."""
    return isinstance(name, str) and ":" in name


def read(builder: str, root: Path, *, source: bool = False, callbacks: Sequence[str] = ()) -> Code:
    """Read a builder beside the experiment file (``root``), or else on Python's path; nothing is imported.

    Args:
        builder: as ``model.builder`` names it.
        root: folder of the experiment file.
        source: it is what ``data.source`` names.
        callbacks: what ``model.callbacks`` names; modules among it are read from the same place.

    Raises:
        ExperimentError: there is no such function, it cannot be a builder, or its source cannot be read.
    """
    if source:
        with _about_source():
            return _read(builder, root, source=True)
    return _read(builder, root, source=False, callbacks=callbacks)


def _read(builder: str, root: Path, *, source: bool, callbacks: Sequence[str] = ()) -> Code:
    form = FORM.fullmatch(builder)
    if form is None:
        _refuse("module:function, such as net:build for the function build in net.py", _meant(builder), builder)
    module, function = form.groups()
    for local in (True, False):
        if (files := _collect(module, root, local=local)) is not None:
            for other in {name.rpartition(":")[0] for name in callbacks if FORM.fullmatch(name)}:
                if (more := _collect(other, root, local=local)) is None:
                    expected = f"modules beside that of {builder}; there is no {file_name(other)}"
                    raise ExperimentError(CALLBACKS, [Mistake(CALLBACKS, json.dumps(list(callbacks)), expected, "")])
                files |= more
            texts = {name: _text(name, path) for name, path in files.items()}
            paths = {name: str(path) for name, path in files.items()}
            return from_files(module, function, texts, paths=paths, source=source)
    where = f"in {root}, where the experiment file is, and none on Python's path"
    _refuse(f"a module; there is no {file_name(module)} {where}", _meant(builder), builder)


def from_files(
    module: str,
    function: str,
    files: Mapping[str, str],
    paths: Mapping[str, str] | None = None,
    *,
    source: bool = False,
) -> Code:
    """The builder or source in files that were read before; see `read`."""
    own = module if module in files else f"{module}.{PACKAGE}"
    if own not in files:
        _refuse(f"the source of {module} among {', '.join(sorted(files)) or 'no files'}", "", f"{module}:{function}")
    tree = _parsed(own, files[own])
    found = _function(tree, function, own, f"{module}:{function}")
    if source:
        given, bare = found.args, len(found.args.args) - len(found.args.defaults)
        named = zip(given.kwonlyargs, given.kw_defaults, strict=True)
        needed = [*given.posonlyargs, *given.args[:bare], *(each for each, default in named if default is None)]
        if asked := [each.arg for each in needed if each.arg != "root"]:
            where = f"({file_name(own)}:{found.lineno})"
            expected = f"a function without arguments, or with root, the folder of the experiment file {where}"
            _refuse(f"{expected}; it takes {', '.join(asked)}", f"such as {EXAMPLE}", f"{module}:{function}")
        return Code(module, function, dict(sorted(files.items())), {}, paths=paths or {})
    parameters, required = _Signature(tree, file_name(own), f"{module}:{function}").read(found)
    return Code(module, function, dict(sorted(files.items())), parameters, required, paths or {})


def file_name(name: str) -> str:
    """A file as people call it: ``nets/two.py`` for ``nets.two``."""
    return f"{name.replace('.', '/')}.py"


@contextlib.contextmanager
def _about_source() -> Iterator[None]:
    """Mistakes are of ``data.source``."""
    try:
        yield
    except ExperimentError as error:
        found = [
            replace(each, path=SOURCE_KEY, hint=each.hint.replace(EXAMPLE, SOURCE_EXAMPLE)) for each in error.mistakes
        ]
        raise ExperimentError(SOURCE_KEY, found) from None


def _refuse(expected: str, hint: str, builder: str) -> NoReturn:
    raise ExperimentError(KEY, [Mistake(KEY, json.dumps(builder), expected, hint)])


def _meant(builder: str) -> str:
    module, _, function = builder.partition(":")
    module = module.removesuffix(".py").replace("/", ".").strip(". ")
    meant = f"{module}:{function.removesuffix('()').strip()}"
    return f'did you mean "{meant}"?' if FORM.fullmatch(meant) and meant != builder else ""


# Finding the files


def _collect(module: str, root: Path, *, local: bool) -> dict[str, Path] | None:
    """The module's file and those of the local modules that it imports; None where there is no such module.

    Beside the experiment file every module is local, elsewhere those of the same package.
    """
    path = [str(root)] if local else sys.path
    top = module.partition(".")[0]
    begun = _locate(module, path, namespaces=True)
    if not begun or not _ends_in(begun, module):
        return None
    files, waiting = dict(begun), list(begun)
    while waiting:
        name = waiting.pop()
        for other in _imported(name, files[name]):
            first = other.partition(".")[0]
            if first in sys.stdlib_module_names or (not local and first != top):
                continue
            found = _locate(other, path, namespaces=_locate(first, sys.path, namespaces=False) is None)
            new = [key for key in found or {} if key not in files]
            files |= found or {}
            waiting += new
        if len(files) > MOST_FILES:
            _refuse(f"a module with at most {MOST_FILES} local modules; it imports more", "", module)
    return files


def _locate(module: str, path: Sequence[str], *, namespaces: bool) -> dict[str, Path] | None:
    """Source files of a module and the packages that it is in, by the names of `Code.files`; None where there is none.

    Step by step, since `importlib.util.find_spec` imports packages.
    """
    found: dict[str, Path] = {}
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[:count])
        spec = PathFinder.find_spec(name, list(path))
        if spec is None:
            return found or None  # ``from nets.two import Layer`` asks for nets.two.Layer, too
        if isinstance(spec.loader, SourceFileLoader) and spec.origin:
            key = f"{name}.{PACKAGE}" if spec.submodule_search_locations is not None else name
            found[key] = Path(spec.origin)
        elif spec.submodule_search_locations is None or not namespaces:
            return found or None
        if spec.submodule_search_locations is None:
            break
        path = list(spec.submodule_search_locations)
    return found or None


def _ends_in(files: Mapping[str, Path], module: str) -> bool:
    return module in files or f"{module}.{PACKAGE}" in files


def _imported(name: str, path: Path) -> Iterator[str]:
    """Every module that a file may import, and every name that may be one."""
    package = name.rpartition(".")[0].split(".") if "." in name else []
    for node in ast.walk(_parsed(name, _text(name, path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            home = ".".join([*base, *(node.module.split(".") if node.module else [])])
            yield from filter(None, (home, *(f"{home}.{alias.name}".strip(".") for alias in node.names)))


def _text(name: str, path: Path) -> str:
    """A file's text, in the encoding that it declares, with one kind of line end."""
    try:
        if path.stat().st_size > MOST_BYTES:
            _refuse(f"source files of at most {MOST_BYTES:,} bytes; {path} is larger", "", name)
        return importlib.util.decode_source(path.read_bytes())
    except (OSError, SyntaxError, ValueError) as error:
        _refuse(f"a source file that can be read; {path}: {error}", "", name)


@functools.lru_cache(maxsize=64)
def _parsed(name: str, text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) else ""
        said = error.msg if isinstance(error, SyntaxError) else error
        _refuse(f"Python; {file_name(name)}{line}: {said}", "correct that line", name)


# Its signature


def _function(tree: ast.Module, wanted: str, own: str, builder: str) -> ast.FunctionDef:
    """The function of a module, wherever it stands at the top, such as below an ``if``."""
    functions: dict[str, ast.FunctionDef] = {}
    waiting: list[Any] = list(reversed(tree.body))
    while waiting:
        node = waiting.pop()
        names = [alias.asname or alias.name for alias in getattr(node, "names", ()) if isinstance(alias, ast.alias)]
        if isinstance(node, ast.FunctionDef):
            functions[node.name] = node
        elif isinstance(node, ast.ClassDef) and node.name == wanted:
            hint = f"write a function that returns one: {EXAMPLE}"
            _refuse(f"a function; {wanted} of {file_name(own)} is a class", hint, builder)
        elif isinstance(node, ast.ImportFrom) and wanted in names:
            home = f"{'.' * node.level}{node.module or ''}"
            _refuse(f"the module that defines {wanted}; {file_name(own)} imports it from {home}", "", builder)
        elif isinstance(node, ast.If | ast.Try):
            waiting += reversed([*node.body, *node.orelse, *getattr(node, "finalbody", [])])
    if wanted not in functions:
        public = [name for name in functions if not name.startswith("_")]
        there = f"it has {', '.join(public)}" if public else "it has none"
        _refuse(f"a function of {file_name(own)}, which has no {wanted}; {there}", _nearest(wanted, public), builder)
    return functions[wanted]


def _nearest(word: str, known: Sequence[str]) -> str:
    import difflib

    close = difflib.get_close_matches(word, known, n=1)
    return f'did you mean "{close[0]}"?' if close else ""


class _Unreadable(Exception):
    """A part of a signature that is no plain value or type."""


TYPES = {"int": "int", "float": "float", "bool": "bool", "str": "choice"}
KNOWN_TYPES = "int, float, bool, str or a Literal, as such or in an Annotated with bounds"


@dataclass(frozen=True)
class _Signature:
    """Reads hyperparameters from the signature of one function, with the constants of its module."""

    tree: ast.Module
    file: str
    builder: str

    def read(self, function: ast.FunctionDef) -> tuple[dict[str, Hyperparameter], frozenset[str]]:
        """The hyperparameters, and the names of those without a default."""
        given = function.args
        positional = [*given.posonlyargs, *given.args]
        if len(positional) < 2 or len(given.defaults) > len(positional) - 2:
            seen = ", ".join(argument.arg for argument in positional) or "none"
            self._refuse(function, f"two arguments first, inputs and heads; they are {seen}")
        for star in filter(None, (given.vararg, given.kwarg)):
            self._refuse(star, f"every hyperparameter by its name; it takes *{star.arg}")
        by_position: list[ast.expr | None] = [None] * (len(positional) - len(given.defaults)) + list(given.defaults)
        pairs = list(zip(positional, by_position, strict=True))[2:]
        pairs += zip(given.kwonlyargs, given.kw_defaults, strict=True)
        found, required = {}, set()
        for argument, default in pairs:
            found[argument.arg] = self._hyperparameter(argument, default)
            required |= {argument.arg} if default is None else set()
        return found, frozenset(required)

    def _hyperparameter(self, argument: ast.arg, default: ast.expr | None) -> Hyperparameter:
        name = argument.arg
        try:
            value = None if default is None else self._value(default)
        except _Unreadable:
            shown = ast.unparse(cast(ast.expr, default))
            self._refuse(argument, f"a default of {name} that is a number, a text, True, False or None; it is {shown}")
        try:
            kind = self._type(argument.annotation, value)
        except _Unreadable as error:
            self._refuse(argument, f"{name} to be {KNOWN_TYPES}; {error}")
        if kind["type"] == "float" and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if name in GENERAL:
            known = HYPERPARAMETERS[name]
            bounds = {"type": known.type, "low": known.low, "high": known.high, "choices": known.choices}
            # The package reads these two as well; of the others a function may make more than the package does.
            if name in ("batch_size", "scaler") or kind == {"type": known.type}:
                kind = bounds
        found = Hyperparameter(default=value, **{"doc": f"Of {self.builder}.", **kind})
        if value is not None and not found.accepts(value):
            self._refuse(argument, f"a default of {name} that is {found.expected}; it is {json.dumps(value)}")
        return found

    def _refuse(self, node: Any, expected: str) -> NoReturn:
        _refuse(f"a function that takes {expected} ({self.file}:{node.lineno})", f"such as {EXAMPLE}", self.builder)

    @functools.cached_property
    def _constants(self) -> dict[str, ast.expr]:
        """What the module assigns once at its top, such as ``WIDTH = 64`` or a type."""
        found: dict[str, ast.expr] = {}
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                found[node.targets[0].id] = node.value
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
                found[node.target.id] = node.value
        return found

    def _value(self, node: ast.expr, depth: int = 0) -> Any:
        """A plain value: a literal, or a constant of the module."""
        if isinstance(node, ast.Name) and node.id in self._constants and depth < 8:
            return self._value(self._constants[node.id], depth + 1)
        try:
            value = ast.literal_eval(node)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            raise _Unreadable from None
        if value is not None and not isinstance(value, int | float | str | bool):
            raise _Unreadable
        if isinstance(value, float) and not math.isfinite(value):
            raise _Unreadable
        return value

    def _type(self, node: ast.expr | None, default: Any, depth: int = 0) -> dict[str, Any]:
        """The arguments of a `Hyperparameter`; without an annotation the type of the default."""
        if node is None:
            if default is None:
                raise _Unreadable("it has neither a type nor a default")
            return {"type": TYPES[type(default).__name__]}
        if isinstance(node, ast.Constant) and isinstance(node.value, str):  # a type in quotes
            try:
                return self._type(ast.parse(node.value, mode="eval").body, default, depth + 1)
            except SyntaxError:
                raise _Unreadable(f"its type is {node.value!r}") from None
        if isinstance(node, ast.Name) and node.id in self._constants and depth < 8:
            return self._type(self._constants[node.id], default, depth + 1)
        if (optional := _optional(node)) is not None:
            return self._type(optional, default, depth + 1)
        name = _last(node)
        if name in TYPES:
            return {"type": TYPES[name]}
        if isinstance(node, ast.Subscript) and _last(node.value) == "Literal":
            parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            return {"type": "choice", "choices": tuple(self._value(part) for part in parts)}
        if isinstance(node, ast.Subscript) and _last(node.value) == "Annotated" and isinstance(node.slice, ast.Tuple):
            kind = self._type(node.slice.elts[0], default, depth + 1)
            for mark in node.slice.elts[1:]:
                kind |= self._bounds(mark, kind["type"])
            return kind
        raise _Unreadable(f"its type is {ast.unparse(node)}")

    def _bounds(self, mark: ast.expr, kind: str) -> dict[str, Any]:
        """Bounds such as ``(8, 512)``, ``Ge(8)``, ``Interval(ge=8)`` or ``Field(ge=8, le=512)``; a text describes."""
        if isinstance(mark, ast.Constant) and isinstance(mark.value, str):
            return {"doc": mark.value}
        limits: dict[str, Any] = {}
        if isinstance(mark, ast.Tuple) and len(mark.elts) == 2:
            limits = dict(zip(("ge", "le"), map(self._value, mark.elts), strict=True))
        elif isinstance(mark, ast.Call):
            name = str(_last(mark.func))
            if name in ("Ge", "Gt", "Le", "Lt") and len(mark.args) == 1:
                limits = {name.lower(): self._value(mark.args[0])}
            elif name in ("Interval", "Field") and not mark.args:
                limits = {str(word.arg): self._value(word.value) for word in mark.keywords}
        doc = {"doc": str(limits.pop("description"))} if "description" in limits else {}
        limits = {key: limit for key, limit in limits.items() if limit is not None}
        numbers = all(type(limit) in (int, float) for limit in limits.values()) and kind in ("int", "float")
        if not numbers or not (limits or doc) or limits.keys() - {"ge", "gt", "le", "lt"}:
            raise _Unreadable(
                f"it has {ast.unparse(mark)}, expected bounds of a number: (8, 512), Ge(8) or Field(ge=8, le=512)"
            )
        found: dict[str, Any] = dict(doc)
        for low in (key for key in ("ge", "gt") if key in limits):
            found["low"] = limits[low] if low == "ge" else _beyond(limits[low], kind, math.inf)
        for high in (key for key in ("le", "lt") if key in limits):
            found["high"] = limits[high] if high == "le" else _beyond(limits[high], kind, -math.inf)
        return found


def _beyond(limit: float, kind: str, towards: float) -> float:
    """The nearest value that is not the limit itself."""
    return math.nextafter(limit, towards) if kind == "float" else limit + (1 if towards > 0 else -1)


def _last(node: ast.expr) -> str | None:
    """``Literal`` of ``typing.Literal``."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None


def _optional(node: ast.expr) -> ast.expr | None:
    """The type beside None in ``float | None`` or ``Optional[float]``."""
    if isinstance(node, ast.Subscript) and _last(node.value) == "Optional":
        return node.slice
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        sides = [
            side for side in (node.left, node.right) if not (isinstance(side, ast.Constant) and side.value is None)
        ]
        return sides[0] if len(sides) == 1 else None
    return None


def _without_default(known: Hyperparameter) -> Hyperparameter:
    return Hyperparameter(known.type, None, known.doc, known.low, known.high, known.choices)
