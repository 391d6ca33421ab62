"""Prints the help of `python -m experiments.images.ladder --help` without importing torch, which takes seconds.

The module runs normally until its parser prints the help and ends the process. Packages that are not needed for this
are replaced by placeholders, whose attributes are classes that can be subclassed, called and indexed.
"""

import importlib.abc
import importlib.machinery
import runpy
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

REAL = {
    "experiments",
    "datasets",
    "tyro",
    "docstring_parser",
    "typeguard",
    "typing_extensions",
    *sys.stdlib_module_names,
}
"""Packages that are imported: the standard library, experiments, datasets, and tyro with its dependencies."""


class Meta(type):
    """The metaclass of `Placeholder`: attributes, items and calls return `Placeholder` again."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Placeholder

    def __getitem__(cls, key: object) -> Any:
        return Placeholder

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return Placeholder

    def __iter__(cls) -> Iterator[Any]:
        return iter(())


class Placeholder(metaclass=Meta):
    """Stands for a class, a function, a module or a value of a package that is not imported."""


def _attribute(name: str) -> Any:
    return getattr(Placeholder, name)


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Creates a module of placeholders for every package that is not in `REAL`."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """The spec of a placeholder module; None for packages that are imported."""
        if name.partition(".")[0] in REAL:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def exec_module(self, module: ModuleType) -> None:
        """Define the attributes of the module."""
        vars(module)["__getattr__"] = _attribute


def print_help(argv: Sequence[str]) -> None:
    """Run the module started with `-m`, which ends the process; return if this needs the real packages.

    Args:
        argv: the command line of the interpreter, `sys.orig_argv`.
    """
    module = argv[argv.index("-m") + 1]
    if module.partition(".")[0] != "experiments":
        return
    finder = Finder()
    sys.meta_path.insert(0, finder)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except Exception:  # the top level of the module needs more than placeholders
        pass
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name, made in sys.modules.items() if _to_be_imported_again(name, made)]:
            del sys.modules[name]


def _to_be_imported_again(name: str, module: ModuleType) -> bool:
    ours = name != "experiments" and name.partition(".")[0] in ("experiments", "datasets")
    return ours or isinstance(getattr(module, "__loader__", None), Finder)
