"""Operators given on the command line, `--spec "module:factory(k=3)"`, parsed without evaluating the text."""

import ast
import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from gconv import OperatorSpec


class SpecError(ValueError):
    """An operator that cannot be used: the text, its module or its factory is wrong."""


def read_spec(text: str) -> Callable[[int, int], OperatorSpec]:
    """The function `(in_channels, out_channels) -> spec` given by a text.

    "gconv.operators:cheb(k=3)" gives `cheb(i, o, k=3)`: the experiment supplies the channels, and further arguments
    must be literals. The module may also be in the current folder, or given as a path: "ideas/mine.py:factory(k=3)".

    Raises: SpecError for a text of another form, a missing module or factory, and arguments that are not literals; when
        called, also if the factory raises, does not return a spec, or returns one with other channels.

    >>> read_spec("gconv.operators:cheb(k=3)")(2, 4).name
    'cheb'
    >>> read_spec("gconv.operators:cheb(k=f(x))")
    Traceback (most recent call last):
        ...
    experiments.harness.specs.SpecError: --spec gconv.operators:cheb(k=f(x)): the argument f(x) is not a literal
    """

    def wrong(what: object) -> SpecError:
        return SpecError(f"--spec {text}: {what}")

    module_name, colon, call = text.partition(":")
    if not colon or not module_name or not call:
        raise wrong('expected "module:factory(k=3)"')
    try:
        tree: ast.expr = ast.parse(call.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise wrong(f'expected "module:factory(k=3)", but {getattr(error, "msg", error)} in {call!r}') from None
    arguments: list[Any] = []
    named: dict[str, Any] = {}
    if isinstance(tree, ast.Call):
        arguments = [_literal(node, wrong) for node in tree.args]
        for keyword in tree.keywords:
            if keyword.arg is None:
                raise wrong("** is not possible here")
            if keyword.arg in named:
                raise wrong(f"{keyword.arg!r} is given twice")
            named[keyword.arg] = _literal(keyword.value, wrong)
        tree = tree.func
    if not isinstance(tree, ast.Name):
        raise wrong('expected "module:factory(k=3)"')
    factory = _find(module_name, tree.id, wrong)

    def make(i: int, o: int) -> OperatorSpec:
        try:
            spec = factory(i, o, *arguments, **named)
        except (TypeError, ValueError) as error:
            hint = "; leave out the channels, which the experiment supplies" if "given twice" in str(error) else ""
            raise wrong(f"{_said(error).rstrip('.')}{hint}") from error
        except (Exception, SystemExit) as error:
            raise wrong(f"{tree.id} raises {type(error).__name__}: {_said(error)}") from error
        if not isinstance(spec, OperatorSpec):
            raise wrong(f"{tree.id} returns {type(spec).__name__}, not an OperatorSpec")
        given = getattr(spec.mixing, "i", i)
        if (given, spec.mixing.channels(given)) != (i, o):
            have = f"{given} channels to {spec.mixing.channels(given)}"
            raise wrong(f"{tree.id}({i}, {o}) maps {have}; expected {i} to {o}")
        return spec

    return make


def _said(error: BaseException) -> str:
    """The first line of an error."""
    return next(iter(str(error).strip().splitlines()), "no message")


def _literal(node: ast.expr, wrong: Callable[[object], SpecError]) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError):
        raise wrong(f"the argument {ast.unparse(node)} is not a literal") from None


def _find(module_name: str, name: str, wrong: Callable[[object], SpecError]) -> Callable[..., Any]:
    if "" not in sys.path:
        sys.path.append("")  # the current folder, as with python -m
    try:
        module = _from_file(module_name) if module_name.endswith(".py") else importlib.import_module(module_name)
    except FileNotFoundError:
        raise wrong(f"there is no file {module_name}") from None
    except ModuleNotFoundError as error:
        raise wrong(f"there is no module {error.name}") from None
    except (Exception, SystemExit) as error:
        raise wrong(f"importing {module_name} failed: {type(error).__name__}: {_said(error)}") from error
    factory = getattr(module, name, None)
    if callable(factory):
        return factory
    known = [word for word in dir(module) if not word.startswith("_") and callable(getattr(module, word))]
    near = difflib.get_close_matches(name, known, 3)
    raise wrong(f"{module_name} has no {name}" + (f"; did you mean {' or '.join(near)}?" if near else ""))


def _from_file(name: str) -> ModuleType:
    """The module in a file; it may import its neighbours. Raises: FileNotFoundError."""
    if name not in sys.modules:
        path = Path(name).expanduser()
        if not path.is_file():
            raise FileNotFoundError(name)
        if (folder := str(path.parent.resolve())) not in sys.path:
            sys.path.append(folder)
        found = importlib.util.spec_from_file_location(name, path)
        assert found is not None and found.loader is not None
        module = importlib.util.module_from_spec(found)
        sys.modules[name] = module  # dataclasses look their module up
        try:
            found.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
