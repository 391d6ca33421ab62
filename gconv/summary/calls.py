"""Recording of the calls of layers in a run of a model, and of their cost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from gconv.interop.converted import Converted
from gconv.interop.layers import Layer, engine_call, identify
from gconv.interop.peer import base_class
from gconv.interop.peers import is_layer, is_pyg, of_keras, parts
from gconv.mixing import Mixing
from gconv.module import GConv
from gconv.plan import Plan
from gconv.spec import OutsideFamily
from gconv.summary.table import Row

DIRECT = ("native", "im2col", "gft", "sparse", "recurrence")  # lowerings that evaluate the sum over taps directly


@dataclass(eq=False)
class Call:
    """One call of a module; a call of a layer becomes a row."""

    module: nn.Module
    is_row: bool
    inner: set[int] = field(default_factory=set)  # ids of submodules that are separate layers
    seconds: float = 0.0  # without those of rows inside
    started: float = 0.0
    flops: float = 0.0
    row: Row | None = None
    direct: int | None = None  # multiply-adds, if gconv can compute them from the plan


class Calls:
    """Records the calls of layers in runs of a model, by global hooks: hooks on a layer may change how it runs."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules = dict(_named(model))
        self.names = {id(module): name for name, module in self.modules.items()}
        self.layers = {id(module): _as_row(module) for module in self.modules.values()}
        self.counted: set[int] = set()
        self.stack: list[Call] = []
        self.seen: list[Call] = []  # calls of the last run
        self.found: list[Call] = []  # calls of the first run, with their rows
        self.busy = False
        self.flops: Callable[[], float] = float

    @contextmanager
    def watched(self, finish: Callable[[Call, tuple[Any, ...], dict[str, Any], Any], None]) -> Iterator[None]:
        """Within this block, `finish(call, args, kwargs, out)` is called after each call of a layer."""
        self.seen, self.stack = [], []
        thread = get_ident()  # the hooks are called in all threads

        def enter(module: nn.Module, args: Any) -> None:
            if get_ident() == thread and not self.busy and id(module) in self.names:
                self._enter(module)

        def leave(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            if get_ident() != thread or self.busy or not self.stack or self.stack[-1].module is not module:
                return
            call = self.stack.pop()
            if call.is_row:
                spent, flops = now() - call.started, self.flops() - call.flops
                call.seconds, call.flops = call.seconds + spent, flops
                for outer in self.stack:
                    if outer.is_row:
                        outer.seconds, outer.flops = outer.seconds - spent, outer.flops + flops
                self.busy = True
                try:
                    finish(call, args, kwargs, out)
                finally:
                    self.busy = False

        hook = nn.modules.module
        hooks = [
            hook.register_module_forward_pre_hook(enter),
            hook.register_module_forward_hook(leave, with_kwargs=True),
        ]
        keras = next(filter(None, map(of_keras, self.modules.values())), None)
        try:
            with keras.announced(enter, leave) if keras else nullcontext():
                yield
        finally:
            for each in hooks:
                each.remove()
                # torch 2.13 does not remove this entry, so that torch.compile would warn about global hooks
                getattr(hook, "_global_forward_hooks_with_kwargs", {}).pop(each.id, None)

    def _enter(self, module: nn.Module) -> None:
        outer = next((call for call in reversed(self.stack) if call.is_row), None)
        found = self.layers[id(module)]
        is_row = found is not None and (outer is None or id(module) in outer.inner)
        call = Call(module, is_row)
        if is_row:
            call.inner = _inner(module, found)
            self.seen.append(call)
        self.stack.append(call)
        call.flops, call.started = self.flops(), now()

    def describe(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Fill in the row of a call."""
        module, found = call.module, self.layers[id(call.module)]
        own = _parameters(module, call.inner)
        new = {id(p): p.numel() for p in own if id(p) not in self.counted}
        self.counted |= new.keys()
        arguments = _tensors((args, kwargs))
        taken, given = ([t for t in each if t.layout is torch.strided] for each in (arguments, _tensors(out)))
        held = set(map(_place, taken))
        fresh = {_place(t): t.numel() * t.element_size() for t in given}
        plan = _plan(found, args, kwargs) if isinstance(found, Layer) else None
        ours = isinstance(module, GConv | Converted) and plan is not None
        chosen = None if plan is None else next(c for c in plan.candidates if c.name == plan.chosen.name)
        call.direct = None if plan is None else _multiply_adds(found, plan, arguments[0], given[0])
        call.row = Row(
            path=self.names[id(module)],
            layer=base_class(module).__name__,
            operator=repr(found.spec) if isinstance(found, Layer) else None,
            inputs=tuple(tuple(t.shape) for t in taken),
            outputs=tuple(tuple(t.shape) for t in given),
            parameters=sum(new.values()),
            multiply_adds=0,
            bytes=sum(size for place, size in fresh.items() if place not in held),
            lowering=plan.chosen.name if ours and plan else _library(module),
            predicted=chosen.seconds if ours and chosen else None,
        )
        self.found.append(call)

    def rows(self, rest: float, least: list[float] | None) -> list[Row]:
        """All rows; flops and parameters outside of layers, if any, are the last row."""
        made = []
        for number, call in enumerate(self.found):
            assert call.row is not None
            count = round(call.flops / 2) if call.direct is None else call.direct
            made.append(replace(call.row, multiply_adds=count, measured=least[number] if least else None))
        every = nn.Module.named_parameters(self.model)  # Keras' own would change the keys of its state_dict
        left = sum(p.numel() for _, p in every if id(p) not in self.counted)
        if left or rest >= 2:
            made.append(Row("(other)", type(self.model).__name__, None, (), (), left, round(rest / 2), 0, ""))
        return made


def count_flops(calls: Calls, run: Callable[[], object]) -> float:
    """Count the flops of each call by torch's FlopCounterMode; returns those outside of layers."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        calls.flops = counter.get_total_flops
        with calls.watched(lambda call, args, kwargs, out: None):
            run()
    calls.flops = float
    for call, again in zip(calls.found, calls.seen, strict=False):
        call.flops = again.flops
    return counter.get_total_flops() - math.fsum(call.flops for call in calls.seen)


def _library(module: nn.Module) -> str:
    return "PyG" if is_pyg(base_class(module)) else "Keras" if of_keras(module) else "torch"


def _as_row(module: nn.Module) -> Any:
    """The description of a module if its calls are rows; else None."""
    found = identify(module)
    return found if isinstance(found, Layer) or is_layer(module) else None


def _inner(module: nn.Module, found: Any) -> set[int]:
    """The ids of submodules of a layer that are separate layers, such as the network of a GIN."""
    names = found.peer.inner if isinstance(found, Layer) and found.peer is not None else ()
    parts = [getattr(module, name) for name in names]
    return {id(m) for part in parts if isinstance(part, nn.Module) for m in part.modules()}


def _parameters(module: nn.Module, inner: set[int]) -> list[Tensor]:
    """The parameters of a layer, without those of submodules that are separate layers."""
    if of_keras(module):
        return [variable.value for variable in module.weights]  # type: ignore[union-attr]
    own = [m for m in module.modules() if id(m) not in inner]
    return [p for m in own for p in m._parameters.values() if p is not None]


def _named(module: nn.Module, name: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, nn.Module]]:
    """The modules inside a module, each once, with their names; those of Keras, which torch does not know, too."""
    seen = set() if seen is None else seen
    if id(module) not in seen:
        seen.add(id(module))
        yield name, module
        for key, child in parts(module).items():
            yield from _named(child, f"{name}.{key}" if name else key, seen)


def _plan(found: Layer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plan | None:
    """The plan of gconv for a call of a layer; None if gconv cannot run it."""
    module = found.module
    try:
        if isinstance(module, GConv | Converted):
            return module.plan(*args, **kwargs)
        asked = engine_call(module, *args, **kwargs)
        return asked.gconv.plan(asked.x, asked.domain, **asked.edges)
    except (OutsideFamily, ValueError, TypeError, RuntimeError):
        return None


def _multiply_adds(found: Layer, plan: Plan, x: Tensor, y: Tensor) -> int:
    """The multiply-adds of the cheapest lowering that evaluates the sum over taps directly."""
    mixing, structure = found.spec.mixing, found.spec.structure
    weightless = mixing.shape is None
    if weightless and (structure.domain != "graph" or getattr(structure, "reduce", None) == "max"):
        return 0
    costs = {c.name: c.cost.flops for c in plan.candidates if c.cost is not None}
    flops = min(
        (value for name, value in costs.items() if name.split(":")[0] in DIRECT), default=costs[plan.chosen.name]
    )
    if weightless and isinstance(mixing, Mixing):  # without a weight no products are counted, only the sums over taps
        flops -= mixing.flops(y.numel() // mixing.channels(x.shape[-1]), x.shape[-1])
    return round(max(0.0, flops) / 2)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [t for part in value for t in _tensors(part)]
    return [value] if isinstance(value, Tensor) else []


def _place(t: Tensor) -> int:
    return t.untyped_storage().data_ptr()


def now() -> float:
    """A clock in seconds, after synchronising with the GPU."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()
