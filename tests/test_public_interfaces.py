"""Nothing here names a private attribute or a table of a library that belongs to others."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "forge_sweep"
LIBRARIES = ("mlflow", "optuna", "keras", "tensorflow", "ray", "multiprocessing", "sklearn", "xgboost", "pandas")

TABLES = (
    "experiments|experiment_tags|runs|metrics|params|tags|latest_metrics|inputs|input_tags|datasets|logged_models"
    "|registered_models|registered_model_aliases|registered_model_tags|model_versions|model_version_tags"
    "|studies|study_directions|study_user_attributes|study_system_attributes|trials|trial_params|trial_values"
    "|trial_intermediate_values|trial_heartbeats|trial_user_attributes|trial_system_attributes|version_info"
)
"""MLflow's and Optuna's."""

SQL = re.compile(rf"\b(?:FROM|JOIN|INTO|UPDATE|TABLE)\s+[\"'`]?(?:{TABLES})\b(?!\.)")


def is_private(name: str) -> bool:
    """``_name``, but not ``__name__``."""
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def is_foreign(module: str | None) -> bool:
    return module is not None and module.partition(".")[0] in LIBRARIES


def scopes(node: ast.AST) -> Iterator[list[ast.AST]]:
    """The nodes of each outermost function, and those outside of all."""
    outside: list[ast.AST] = []
    waiting = [node]
    while waiting:
        for child in ast.iter_child_nodes(waiting.pop()):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield list(ast.walk(child))
            else:
                outside.append(child)
                waiting.append(child)
    yield outside


def foreign_names(tree: ast.AST) -> Iterator[tuple[ast.AST, set[str]]]:
    """Each node, with the names that stand for a library, what is imported from one, or what is made of these."""
    shared: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            shared |= {(each.asname or each.name).partition(".")[0] for each in node.names if is_foreign(each.name)}
        elif isinstance(node, ast.ImportFrom) and is_foreign(node.module):
            shared |= {each.asname or each.name for each in node.names}
    while True:
        before, found = len(shared), list[tuple[list[ast.AST], set[str]]]()
        for nodes in scopes(tree):
            local: set[str] = set()
            while True:
                pairs = [pair for node in nodes for pair in assigned(node, shared | local)]
                shared |= {name for name, is_shared in pairs if is_shared}
                more = {name for name, is_shared in pairs if not is_shared} - local
                if not more:
                    break
                local |= more
            found.append((nodes, local))
        if len(shared) == before:
            for nodes, local in found:
                yield from ((node, shared | local) for node in nodes)
            return


def assigned(node: ast.AST, names: set[str]) -> Iterator[tuple[str, bool]]:
    """Names that a statement gives something foreign; whether the whole file sees them, as attributes of ``self``."""
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign) and root(node.value) in names:
        targets = node.targets
    elif isinstance(node, ast.AnnAssign) and (is_typed(node.annotation, names) or root(node.value) in names):
        targets = [node.target]
    elif isinstance(node, ast.withitem) and node.optional_vars is not None and root(node.context_expr) in names:
        targets = [node.optional_vars]
    elif isinstance(node, ast.arg) and is_typed(node.annotation, names):
        yield node.arg, False
    elif isinstance(node, ast.FunctionDef) and is_typed(node.returns, names):
        yield node.name, True
    for target in targets:
        if isinstance(target, ast.Name):
            yield target.id, False
        elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
            yield target.attr, True


def is_typed(annotation: ast.expr | None, names: set[str]) -> bool:
    return annotation is not None and any(
        isinstance(node, ast.Name) and node.id in names for node in ast.walk(annotation)
    )


def root(node: ast.expr | None) -> str | None:
    """The name that an expression begins with; of ``self.client.x`` it is ``client``."""
    while isinstance(node, ast.Attribute | ast.Call | ast.Subscript | ast.Await):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
            return node.attr
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None


def problems(source: str) -> list[str]:
    """Line and name of each private name and each statement on a table."""
    found: list[tuple[int, str]] = []
    for node, names in foreign_names(ast.parse(source)):
        if isinstance(node, ast.Import):
            parts = [each.name for each in node.names if is_foreign(each.name)]
            found += [(node.lineno, each) for each in parts if any(map(is_private, each.split(".")))]
        elif isinstance(node, ast.ImportFrom) and is_foreign(node.module):
            parts = [f"{node.module}.{each.name}" for each in node.names]
            found += [(node.lineno, each) for each in parts if any(map(is_private, each.split(".")))]
        elif isinstance(node, ast.Attribute) and is_private(node.attr) and root(node.value) in {*names, "super"}:
            found.append((node.lineno, ast.unparse(node)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and SQL.search(node.value):
            found.append((node.lineno, node.value.strip().splitlines()[0]))
    return [f"{line}: {words}" for line, words in sorted(found)]


def modules() -> list[str]:
    return sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("module", modules())
def test_only_public_names_and_no_tables_of_other_libraries(module: str) -> None:
    """What is private to them may change in any release of theirs."""
    assert not problems((PACKAGE / module).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "source",
    [
        "from mlflow.tracking._tracking_service.utils import set_tracking_uri",
        "from optuna.storages import _cached_storage",
        "import optuna._callbacks",
        "import keras\nkeras._tf_keras",
        "import tensorflow as tf\ntf.config._x()",
        "from mlflow import MlflowClient\nclient = MlflowClient()\nclient._tracking_client.store",
        "from mlflow import MlflowClient\ndef f(client: MlflowClient | None):\n    client._tracking_client",
        "from mlflow import MlflowClient\n"
        "class A:\n    def __init__(self):\n        self.c = MlflowClient()\n    def f(self):\n        self.c._x",
        "import optuna\nstudy = optuna.create_study()\nstudy._storage",
        "import keras\nwith keras.device('cpu') as d:\n    d._x",
        "import optuna\nclass S(optuna.storages.RDBStorage):\n    def f(self):\n        super()._get_trials()",
        "import ray\nray._private.worker",
        "from multiprocessing import forkserver\nserver = forkserver._forkserver\nserver._stop()",
        "from sklearn.utils import _param_validation",
        "import pandas as pd\nframe = pd.DataFrame()\nframe._mgr",
        "from xgboost import XGBClassifier\nXGBClassifier()._Booster",
        "x = 'SELECT * FROM runs'",
        "x = 'INSERT INTO trial_params VALUES (1)'",
        "x = f'UPDATE trials SET state = {1}'",
    ],
)
def test_each_way_to_a_private_name_is_seen(source: str) -> None:
    """Imports, attributes of modules, of what they return, and of what is said to be theirs; statements."""
    assert problems(source)


@pytest.mark.parametrize(
    "source",
    [
        "from mlflow import MlflowClient\nMlflowClient().search_runs([])",
        "import mlflow\nmlflow.__version__",
        "import mlflow\nclass A:\n    def f(self):\n        self._x",
        "x = 'the rows come from the runs'",
        "x = 'SELECT * FROM forge_leases'",
    ],
)
def test_what_is_public_is_allowed(source: str) -> None:
    """And so are private names of our own."""
    assert not problems(source)
