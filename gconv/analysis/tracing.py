"""torch.fx traces of modules for one call: submodules and in-place operators are nodes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx, nn


def trace(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[fx.Graph, dict[fx.Node, Any]]:
    """The graph of module(*args, **kwargs), and the value of each of its inputs.

    Numbers, None and strings are constants of the trace; all other arguments are inputs.
    """
    tracer = _Tracer(module, args, kwargs)
    return tracer.trace(module), tracer.values


class _Proxy(fx.Proxy):
    """Records `x += y` as such: other names of x, and its views, change as well."""


def _recorded_in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, other: x.tracer.create_proxy("call_function", function, (x, other), {})


for _name in ("iadd", "isub", "imul", "itruediv"):
    setattr(_Proxy, f"__{_name}__", _recorded_in_place(getattr(operator, _name)))


class _Tracer(fx.Tracer):
    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.call = module, args, kwargs
        self.values: dict[fx.Node, Any] = {}

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        module, args, kwargs = self.call
        inputs, options = self._inputs(args), self._inputs(kwargs)
        return (lambda: root_fn(module, *inputs, **options)), []

    def _inputs(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, list | tuple):
            return type(value)(map(self._inputs, value))
        if isinstance(value, dict):
            return {key: self._inputs(part) for key, part in value.items()}
        made = self.create_proxy("placeholder", f"input_{len(self.values)}", (), {})
        self.values[made.node] = value
        return made
