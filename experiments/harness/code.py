"""Identifies the code that made a row, by a hash of the syntax trees (without docstrings) that can affect its numbers.

These are the module of the run, the modules of its family and the training loops that it imports, and the modules of
the operators that these import. Comments, docstrings, layout, published numbers and recipes (which are part of a row's
configuration) are excluded. The engine below the operators is not hashed; it is identified by `gconv.NUMERICS`, which
is increased by hand when results may change.
"""

import ast
import functools
import hashlib
import importlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gconv
from experiments.harness.machine import ROOT

SILENT = {
    *("common", "code", "code_changes", "experiment", "machine", "measure", "options", "progress", "render", "specs"),
    *("store", "sweeps"),
}
TOLD = ("published", "recipes")


def code(run: Callable[..., Any], more: Iterable[str] = ()) -> dict[str, Any]:
    """The entry of a row for its code: {"hash": 16 hex digits, "numerics": the value of gconv.NUMERICS}.

    Args:
        run: the function that makes the row, possibly a partial.
        more: names of further modules, for example of an operator given by --spec.
    """
    run = code_of(run)
    modules = sorted({*_closure(run.__module__), *(m for name in more for m in _closure(name))})
    digest = hashlib.sha256()
    for name in modules:
        digest.update(f"{name if name != run.__module__ else ''}\n{_tree(_file(name))}\n".encode())
    return {"hash": digest.hexdigest()[:16], "numerics": gconv.NUMERICS}


def code_of(run: Callable[..., Any]) -> Callable[..., Any]:
    """The function wrapped by partials; for `experiment.call`, the run that it calls."""
    while isinstance(run, functools.partial):
        run = run.args[0] if run.args and callable(run.args[0]) else run.func
    return run


def _file(module: str) -> Path:
    if module.endswith(".py"):  # an operator given by its file
        return Path(module).expanduser()
    file = getattr(importlib.import_module(module), "__file__", None)
    return Path(file) if file else Path()


@functools.cache
def _closure(module: str) -> frozenset[str]:
    """The module, and the modules of its family, of the training loops and of the operators that it imports."""
    found, open_ = {module}, [module]
    while open_:
        file = _file(open_.pop())
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if file.is_file() else ():
            if not isinstance(node, ast.ImportFrom) or not node.module:
                continue
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            if node.module == "gconv.operators":
                factories = [getattr(gconv.operators, alias.name, None) for alias in node.names]
                names = [f.__module__ for f in factories if f is not None]
            for name in names:
                if name not in found and _counts(name):
                    found.add(name)
                    if name.startswith("experiments."):
                        open_.append(name)
    return frozenset(found)


def _counts(name: str) -> bool:
    parts = name.split(".")
    if parts[:2] == ["gconv", "operators"]:
        return Path(gconv.__file__).parent.joinpath(*parts[1:]).with_suffix(".py").is_file()
    if (
        parts[0] != "experiments"
        or parts[-1] in TOLD
        or (parts[1:2] == ["harness"] and parts[2:3] and parts[2] in SILENT)
    ):
        return False
    return (ROOT / Path(*parts)).with_suffix(".py").is_file()


@functools.cache
def _tree(file: Path) -> str:
    """The syntax tree without docstrings and positions."""
    if not file.is_file():
        return ""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or not body:
            continue
        node.body = [s for s in body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))] or [
            ast.Pass()
        ]
    return ast.dump(tree)
