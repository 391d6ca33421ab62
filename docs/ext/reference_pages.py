"""Generates the API reference: a page for each public module, from `__all__` or from its public definitions."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

from ext.docstrings import inline

MODULES = (
    "gconv", "gconv.analysis", "gconv.blocks", "gconv.parallel", "gconv.transfer", "gconv.summary", "gconv.interop",
    "gconv.domains", "gconv.linear", "gconv.spec", "gconv.basis", "gconv.mixing", "gconv.laplacian", "gconv.lowering",
    "gconv.plan", "gconv.kernels", "gconv.caches", "gconv.rates", "gconv.calibrate", "gconv.errors", "gconv.testing",
)  # fmt: skip


def names(module: ModuleType) -> list[str]:
    """The public functions and classes of a module.

    >>> import gconv.analysis
    >>> "matrix" in names(gconv.analysis)
    True
    """
    listed = getattr(module, "__all__", None)
    own = listed if listed is not None else [n for n in vars(module) if not n.startswith("_")]
    things = [(name, getattr(module, name)) for name in own]
    return [
        name
        for name, thing in things
        if (inspect.isclass(thing) or inspect.isfunction(thing))
        and (listed is not None or thing.__module__ == module.__name__)
        and thing.__doc__
    ]


def _entry(module: str, name: str, thing: Any) -> str:
    if inspect.isclass(thing):
        return f".. autoclass:: {module}.{name}\n   :members:\n   :show-inheritance:\n"
    return f".. autofunction:: {module}.{name}\n"


def write(folder: Path) -> None:
    """Write all pages to a folder."""
    folder.mkdir(exist_ok=True)
    seen: dict[int, str] = {}
    texts, summaries = {}, []
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        summary = " ".join((inspect.getdoc(module) or module_name).partition("\n\n")[0].split())
        summaries.append(f"   * - :doc:`{module_name}`\n     - {inline(summary)}")
        table, entries = [], []
        for name in names(module):
            thing = getattr(module, name)
            first = inline((inspect.getdoc(thing) or name).splitlines()[0])
            home = seen.setdefault(id(thing), f"{module_name}.{name}")
            role = "class" if inspect.isclass(thing) else "func"
            table += [f"   * - :py:{role}:`{name} <{home}>`", f"     - {first}"]
            if home == f"{module_name}.{name}":
                entries.append(_entry(module_name, name, thing))
        head = f"{module_name}\n{'=' * len(module_name)}\n\n.. automodule:: {module_name}\n   :no-index:\n\n"
        listing = ".. list-table::\n   :widths: 30 70\n\n" + "\n".join(table) + "\n\n" if table else ""
        texts[module_name] = head + listing + "\n".join(entries)
    texts["index"] = (
        "Reference\n=========\n\nThe public API, generated from docstrings. Operators have separate pages: "
        ":doc:`/operators/index`. :ref:`genindex` lists all names.\n\n.. list-table::\n   :widths: 30 70\n\n"
        + "\n".join(summaries)
        + "\n\n.. toctree::\n   :hidden:\n\n"
        + "\n".join(f"   {name}" for name in MODULES)
        + "\n"
    )
    for name, text in texts.items():
        path = folder / f"{name}.rst"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
