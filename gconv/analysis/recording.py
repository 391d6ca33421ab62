"""Recording of a network at one input as a program of linear steps, with masks and selections frozen.

A dispatch mode intercepts every operator that torch runs, independently of the model's code, after functionalization
has replaced in-place operators. An operator on a value that depends on the input becomes

    the operator itself without constant terms     if it is linear (SUMS)
    a product with its slope                       if it is a piecewise linear activation (SLOPES)
    a selection                                    for maxima, pooling, sorting
    nothing                                        for comparisons, rounding and integers, which are locally constant

and all others raise NotLinear, naming the layer that ran them.
"""

from __future__ import annotations

from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from gconv.analysis.rules import (
    CONSTANT,
    EXTREMES,
    NORMS,
    PICKS,
    POOLS,
    RESHAPES,
    SLOPES,
    SUMS,
    blend,
    cast_to,
    pick,
    pick_window,
    put,
    scatter_selected,
    take,
    weighted_sum,
)
from gconv.interop.layers import Layer, identify
from gconv.linear.program import Program, Slot, Step, substitute
from gconv.spec import NotLinear


class Recorder(TorchDispatchMode):
    """Records the operators applied to one tensor.

    Args:
        x: the input.
        names: the name of each module of the model, by id.
    """

    def __init__(self, x: Tensor, names: dict[int, str]) -> None:
        super().__init__()
        self.names, self.steps, self.count = names, list[Step](), 1
        self.slots = WeakTensorKeyDictionary()
        self.slots[x] = Slot(0)
        self.memory: dict[int, tuple[Slot, Tensor]] = {}  # by address, storages that were written to, as flat tensors
        self.layers: list[nn.Module] = []
        self.hooks: list[Any] = []

    def __enter__(self) -> Recorder:
        hook = nn.modules.module  # these hooks are called in all threads
        self.thread = get_ident()
        self.hooks = [
            hook.register_module_forward_pre_hook(self._enter),
            hook.register_module_forward_hook(self._leave, always_call=True),
        ]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self.hooks:
            hook.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        if get_ident() == self.thread:
            self.layers.append(module)

    def _leave(self, module: nn.Module, args: Any, out: Any) -> None:
        if get_ident() == self.thread:
            self.layers.pop()

    def program(self, x: Tensor, y: Tensor) -> Program:
        """The recorded steps from x to y."""
        out = self._slot(y)
        return Program.of(self.steps, None if out is None else out.number, (y.shape, x.shape), x.dtype, x.device)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.__name__.split(".")[0]
        if torch.Tag.nondeterministic_seeded in func.tags and not (name.startswith("rrelu") and not any(args[4:5])):
            self.refuse(f"draws random numbers ({name}); call model.eval()")
        if name.endswith("_") and _slots_of(substitute([*args, *kwargs.values()], self._slot)):
            return self._write(name[:-1], func, args, kwargs)
        out = func(*args, **kwargs)
        if not _slots_of(substitute([*args, *kwargs.values()], self._slot)):
            return out
        results = out if isinstance(out, list | tuple) else (out,)
        if func.namespace != "aten":
            self.refuse(f"runs {func}, which is not a torch operator")
        rounds = name in CONSTANT or (name == "div" and kwargs.get("rounding_mode") is not None)
        rounds = rounds and not any(isinstance(r, Tensor) and r.is_complex() for r in results)  # sgn(z) is z / |z|
        if rounds or all(isinstance(r, bool) or (isinstance(r, Tensor) and not _real(r)) for r in results):
            return out
        if not all(isinstance(r, Tensor) for r in results):
            self.refuse("converts a tensor that depends on the input to a Python number")
        self._record(name, func, args, kwargs, results)
        return out

    # -- in-place operators that functionalization leaves (inside torch's composite operators) ---------------------

    def _write(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record an in-place operator as its functional variant."""
        target, overload = args[0], func.__name__.split(".")[1]
        before, old = target, self._slot(target)
        if name not in RESHAPES:
            before = target.clone()
            if old is not None:
                self.slots[before] = old
        out = func(*args, **kwargs)
        if name != "zero":
            functional = getattr(getattr(torch.ops.aten, name), overload)
            self._record(name, functional, (before, *args[1:]), kwargs, [target])
        if name not in RESHAPES:
            new = self.slots.get(target)
            self._wrote(target, None if new is old else new)
        return out

    def _wrote(self, target: Tensor, new: Slot | None) -> None:
        """Update the slots of all tensors that share the storage of one that was written to."""
        place, itemsize = _place(target), target.element_size()
        flat: Any = torch.zeros(target.untyped_storage().nbytes() // itemsize, dtype=target.dtype, device=target.device)
        others = [(u, slot) for u, slot in self.slots.items() if u is not target and _place(u) == place]
        if place in self.memory:
            flat = self.memory[place][0]
        else:
            for u, slot in others:
                flat = self._emit(put, (flat, slot, *_geometry(u)))
        value = _zero(target) if new is None else new
        flat = self._emit(put, (flat, value, *_geometry(target)))
        self.memory[place] = flat, target  # a reference to target keeps its address from being reused
        for u, _ in [*others, (target, None)]:
            self.slots[u] = self._emit(take, (flat, *_geometry(u)))

    def _emit(self, function: Any, args: tuple[Any, ...]) -> Slot:
        """Record a step whose result is not a tensor of the model."""
        self.steps.append(Step(function, substitute(args, _detached), {}, (self.count,)))
        self.count += 1
        return Slot(self.count - 1)

    # -- linearisation of operators ------------------------------------------------------------------------------

    def _record(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        x = args[0]
        alone = isinstance(x, Tensor) and not _slots_of(substitute([*args[1:], *kwargs.values()], self._slot))
        dim = kwargs.get("dim", args[PICKS[name]] if name in PICKS and len(args) > PICKS[name] else None)
        if name == "copy":  # overwrites x
            if self._slot(args[1]):
                self._step(cast_to, (self._slot(args[1]), x.shape, x.dtype), out)
        elif name in SLOPES and alone and not x.is_complex():  # the modulus of a complex number is not linear
            slope = SLOPES[name](x, *args[1:], **kwargs)
            self._step(torch.mul, (self._slot(x), slope), out[:1])
        elif name in ("maximum", "minimum", "fmax", "fmin"):
            wins = (out[0] == args[0]).to(out[0].dtype)
            share = wins / (wins + (out[0] == args[1]).to(wins.dtype)).clamp(min=1)
            self._step(blend, (*(self._slot(a) or 0.0 for a in args[:2]), share), out)
        elif name in NORMS and alone:
            training, eps = NORMS[name]
            if (training is not None and args[training]) or args[4] is None:
                self.refuse("normalises by statistics of its input; call model.eval()")
            scale = (args[4] + args[eps]).rsqrt()
            scale = scale if args[1] is None else scale * args[1]
            self._step(torch.mul, (self._slot(x), scale.view(-1, *[1] * (x.ndim - 2)).to(x.dtype)), out[:1])
        elif name in POOLS and alone:
            self._step(pick_window, (self._slot(x), out[1], POOLS[name]), out[:1])
        elif name in PICKS and alone and len(out) == 2:
            self._step(pick, (self._slot(x), -1 if dim is None else dim, out[1]), out[:1])
        elif name in EXTREMES and alone and len(out) == 1:
            dims = args[1] if len(args) > 1 and args[1] else kwargs.get("dim") or list(range(x.ndim))
            keep = bool(args[2] if len(args) > 2 else kwargs.get("keepdim", False))
            top = getattr(torch, "amax" if "max" in name else "amin")(x, dims, True) if name != "median" else out[0]
            share = (x == top).to(x.dtype)
            self._step(weighted_sum, (self._slot(x), share / share.sum(dims, keepdim=True), dims, keep), out)
        elif name == "scatter_reduce" and args[4] in ("amax", "amin"):
            self._scatter(args, kwargs.get("include_self", args[5] if len(args) > 5 else True), out)
        elif name in SUMS and not (name == "scatter_reduce" and args[4] not in ("sum", "mean")):
            self._linear(name, func, args, kwargs, out)
        else:
            self.refuse(f"computes {name}, which is not piecewise linear in its input")

    def _linear(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Record the operator itself, with its constant terms replaced by zeros."""
        if name == "scatter" and (len(args) > 4 or "reduce" in kwargs):
            self.refuse("uses scatter with a reduction")
        filled = list(substitute(args, self._constant))
        rest = set(range(len(args)))
        for term in SUMS[name].split(" + "):
            factors = [p for p in map(int, term.split(" * ")) if p < len(args)]
            rest.difference_update(factors)
            varying = [p for p in factors if _slots_of(filled[p])]
            if len(varying) > 1:
                self.refuse(f"computes {name} of two values that both depend on the input")
            if not varying:
                for p in factors[:1]:
                    filled[p] = substitute(filled[p], _zero)
            elif isinstance(filled[varying[0]], list | tuple):
                filled[varying[0]] = substitute(filled[varying[0]], _zero)
        if name == "detach":  # the adjoint is computed by autograd, which would stop here
            func = torch.ops.aten.alias.default
        if _slots_of([filled[p] for p in rest]) or _slots_of(substitute(list(kwargs.values()), self._slot)):
            self.refuse(f"computes {name}, which is not linear in an argument that depends on the input")
        self._step(func, tuple(filled), out, kwargs)

    def _scatter(self, args: tuple[Any, ...], include: bool, out: Any) -> None:
        """Record a maximum or minimum over entries scattered to the same index; ties are averaged."""
        base, dim, index, source = args[:4]
        hit = (source == out[0].gather(dim, index)).to(out[0].dtype)
        own = base == out[0]
        if not include:
            own = own & (torch.zeros_like(base).scatter(dim, index, 1.0) == 0)
        count = own.to(hit.dtype).scatter_add(dim, index, hit).clamp(min=1)
        hit, own = hit / count.gather(dim, index), own / count
        slots = [self._slot(t) or 0.0 for t in (base, source)]
        self._step(scatter_selected, (slots[0], own, dim, index, slots[1], hit), out)

    def _step(self, function: Any, args: tuple[Any, ...], out: Any, kwargs: dict[str, Any] | None = None) -> None:
        numbers: list[int | None] = []
        for result in out:
            numbers.append(self.count if _real(result) else None)
            if _real(result):
                self.slots[result] = Slot(self.count)
                self.count += 1
        self.steps.append(Step(function, substitute(args, _detached), kwargs or {}, tuple(numbers)))

    def _slot(self, value: Any) -> Any:
        """The slot of a tensor that depends on the input; None for other values."""
        if not isinstance(value, Tensor):
            return None
        found = self.slots.get(value)
        if found is None and self.memory and _real(value) and _place(value) in self.memory:
            found = self.slots[value] = self._emit(take, (self.memory[_place(value)][0], *_geometry(value)))
        return found

    def _constant(self, value: Any) -> Any:
        return self._slot(value) or value

    def refuse(self, what: str) -> None:
        """Raise NotLinear, naming the layer that runs."""
        layer = next((m for m in reversed(self.layers) if id(m) in self.names), None)
        name = "The model" if layer is None or not self.names[id(layer)] else f"Layer {self.names[id(layer)]!r}"
        kind = "" if layer is None else f" ({type(layer).__name__})"
        adaptive = layer is not None and any(_adapts(m) for m in self.layers)
        advice = "; freeze_attention=True freezes its attention at x" if adaptive else ""
        raise NotLinear(f"{name}{kind} {what}{advice}.")


def _adapts(module: nn.Module) -> bool:
    """Whether the structure of a layer depends on the signal."""
    found = identify(module)
    return isinstance(found, Layer) and found.spec.structure.kind == "adaptive"


def _real(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _slots_of(value: Any) -> list[Slot]:
    found: list[Slot] = []
    substitute([value], lambda v: found.append(v) if isinstance(v, Slot) else None)
    return found


def _place(t: Tensor) -> int:
    return t.untyped_storage().data_ptr() if t.layout is torch.strided else -1


def _geometry(t: Tensor) -> tuple[torch.Size, tuple[int, ...], int]:
    return t.shape, t.stride(), int(t.storage_offset())


def _zero(value: Any) -> Any:
    """Zeros in place of a constant term."""
    if isinstance(value, Tensor):
        return torch.zeros((), dtype=value.dtype, device=value.device).expand(value.shape)
    return 0 if isinstance(value, int | float | complex) else value


def _detached(value: Any) -> Any:
    """A constant detached from autograd; inference tensors are copied, since autograd cannot save them."""
    if not isinstance(value, Tensor):
        return value
    return value.clone() if value.is_inference() else value.detach()
