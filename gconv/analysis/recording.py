"""What a network computes at one input, as a program of linear steps: masks and selections are frozen.

A dispatch mode sees every operator that torch runs, whatever the model's code looks like, after functionalization has
replaced writes in place. An operator on a value that depends on the input becomes

    the operator itself, without constant terms    linear ones (SUMS, a polynomial in the positions of the arguments)
    a product with its slope                       activations that are piecewise linear (SLOPES)
    a selection                                    maxima, pooling, sorting
    nothing                                        comparisons, roundings, whole numbers: constant within a region

and all others raise NotLinear, with the layer that ran them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from gconv.interop.layers import Layer, identify
from gconv.linear.program import Program, Slot, Step, substitute
from gconv.spec import NotLinear

# an operator is linear where each term has at most one factor that depends on the input; numbers are positions of
# arguments, and a list counts as a sum
SUMS = {
    "add": "0 + 1", "sub": "0 + 1", "rsub": "0 + 1", "mul": "0 * 1", "div": "0", "where": "1 + 2", "fill": "0 + 1",
    "lerp": "0 + 1", "complex": "0 + 1", "masked_fill": "0 + 2", "masked_scatter": "0 + 2",
    "constant_pad_nd": "0 + 2", "index_put": "0 + 2", "_unsafe_index_put": "0 + 2", "index_add": "0 + 3",
    "index_copy": "0 + 3", "index_fill": "0 + 3", "scatter": "0 + 3", "scatter_add": "0 + 3", "scatter_reduce": "0 + 3",
    "slice_scatter": "0 + 1", "select_scatter": "0 + 1", "diagonal_scatter": "0 + 1", "as_strided_scatter": "0 + 1",
    "mm": "0 * 1", "bmm": "0 * 1", "mv": "0 * 1", "dot": "0 * 1", "matmul": "0 * 1", "linear": "2 + 0 * 1",
    "addmm": "0 + 1 * 2", "addbmm": "0 + 1 * 2", "baddbmm": "0 + 1 * 2", "addmv": "0 + 1 * 2", "addr": "0 + 1 * 2",
    "addcmul": "0 + 1 * 2", "addcdiv": "0 + 1", "_trilinear": "0 * 1 * 2", "convolution": "2 + 0 * 1",
    "grid_sampler_2d": "0", "grid_sampler_3d": "0",
    **dict.fromkeys((
        "view", "_unsafe_view", "reshape", "_reshape_alias", "permute", "transpose", "t", "expand", "squeeze",
        "unsqueeze", "slice", "select", "split", "split_with_sizes", "unsafe_split", "unbind", "chunk", "clone",
        "alias", "detach", "lift_fresh", "_to_copy", "diagonal", "as_strided", "unfold", "flip", "roll", "rot90",
        "repeat", "tril", "triu", "diag_embed", "sum", "mean", "cumsum", "neg", "gather", "index", "_unsafe_index",
        "index_select", "take", "masked_select", "im2col", "col2im", "pixel_shuffle", "pixel_unshuffle",
        "channel_shuffle", "native_channel_shuffle", "trace", "view_as_real", "view_as_complex", "_conj",
        "conj_physical", "real", "imag", "resolve_conj", "cat", "reflection_pad1d", "reflection_pad2d",
        "reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d", "avg_pool2d", "avg_pool3d",
        "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "max_unpool2d", "max_unpool3d", "_fft_r2c", "_fft_c2r",
        "_fft_c2c", "stack", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
        "upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d",
        "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d",
        "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
    ), "0"),
}  # fmt: skip
CONSTANT = {
    "sign", "sgn", "floor", "ceil", "round", "trunc", "heaviside", "zeros_like", "ones_like", "full_like",
    "empty_like", "new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided",
}  # fmt: skip


def _between(x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    """The slope of clamp, which is 1 at its ends."""
    inside = torch.ones_like(x, dtype=torch.bool)
    inside = inside if low is None else inside & (x >= low)
    return inside if high is None else inside & (x <= high)


# the derivative of an activation in its first argument, at kinks as autograd has it
SLOPES: dict[str, Callable[..., Tensor]] = {
    "relu": lambda x: x > 0,
    "threshold": lambda x, t, value: x > t,
    "hardtanh": lambda x, low=-1, high=1: (x > low) & (x < high),
    "clamp": _between,
    "clamp_min": lambda x, low: _between(x, low),
    "clamp_max": lambda x, high: _between(x, None, high),
    "leaky_relu": lambda x, slope=0.01: torch.ones_like(x).masked_fill(x <= 0, slope),
    "_prelu_kernel": lambda x, weight: torch.where(x > 0, torch.ones_like(x), weight),
    "hardsigmoid": lambda x: ((x > -3) & (x < 3)).to(x.dtype) / 6,
    "hardshrink": lambda x, edge=0.5: (x < -edge) | (x > edge),
    "softshrink": lambda x, edge=0.5: (x < -edge) | (x > edge),
    "abs": torch.sgn,
}
SLOPES["rrelu_with_noise"] = SLOPES["rrelu_with_noise_functional"] = lambda x, noise, low=1 / 8, high=1 / 3, *_: SLOPES[
    "leaky_relu"
](x, (low + high) / 2)
POOLS = {"max_pool2d_with_indices": 2, "max_pool3d_with_indices": 3, "adaptive_max_pool2d": 2, "adaptive_max_pool3d": 3}
PICKS = {"max": 1, "min": 1, "median": 1, "nanmedian": 1, "mode": 1, "sort": 1, "cummax": 1, "cummin": 1, "topk": 2,
         "kthvalue": 2}  # fmt: skip
EXTREMES = {"max", "min", "amax", "amin", "median"}
NORMS = {"native_batch_norm": (5, 7), "cudnn_batch_norm": (5, 7), "miopen_batch_norm": (5, 7),
         "_native_batch_norm_legit": (5, 7), "_native_batch_norm_legit_functional": (5, 7),
         "_native_batch_norm_legit_no_training": (None, 6), "_batch_norm_no_update": (None, 6)}  # fmt: skip


class Recorder(TorchDispatchMode):
    """Records what happens to one tensor.

    Args:
        x: the input.
        names: the name of each module of the model.
    """

    def __init__(self, x: Tensor, names: dict[int, str]) -> None:
        super().__init__()
        self.names, self.steps, self.count = names, list[Step](), 1
        self.slots = WeakTensorKeyDictionary()
        self.slots[x] = Slot(0)
        self.layers: list[nn.Module] = []
        self.hooks: list[Any] = []

    def __enter__(self) -> Recorder:
        hook = nn.modules.module
        self.hooks = [
            hook.register_module_forward_pre_hook(lambda module, args: self.layers.append(module)),
            hook.register_module_forward_hook(self._leave, always_call=True),
        ]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self.hooks:
            hook.remove()

    def _leave(self, module: nn.Module, args: Any, out: Any) -> None:
        self.layers.pop()

    def program(self, x: Tensor, y: Tensor) -> Program:
        """What led from x to y."""
        out = self.slots.get(y)
        return Program.of(self.steps, None if out is None else out.number, (y.shape, x.shape), x.dtype, x.device)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.__name__.split(".")[0]
        if torch.Tag.nondeterministic_seeded in func.tags and not (name.startswith("rrelu") and not any(args[4:5])):
            self.refuse(f"draws random numbers ({name}); call model.eval()")
        out = func(*args, **kwargs)
        if not _slots_of(substitute([*args, *kwargs.values()], self._slot)):
            return out
        results = out if isinstance(out, list | tuple) else (out,)
        if func.namespace != "aten":
            self.refuse(f"runs {func}, which is no operator of torch itself")
        if name in CONSTANT or all(isinstance(r, bool) or (isinstance(r, Tensor) and not _real(r)) for r in results):
            return out
        if not all(isinstance(r, Tensor) for r in results):
            self.refuse("reads a number out of a tensor that depends on the input")
        self._record(name, func, args, kwargs, results)
        return out

    # -- what an operator becomes --------------------------------------------------------------------------------

    def _record(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        x = args[0]
        alone = isinstance(x, Tensor) and not _slots_of(substitute([*args[1:], *kwargs.values()], self._slot))
        dim = kwargs.get("dim", args[PICKS[name]] if name in PICKS and len(args) > PICKS[name] else None)
        if name == "copy":  # into the place of x, whose numbers are gone
            if args[1] in self.slots:
                self._step(_cast, (self._slot(args[1]), x.shape, x.dtype), out)
        elif name in SLOPES and alone:
            slope = SLOPES[name](x, *args[1:], **kwargs)
            self._step(torch.mul, (self._slot(x), slope), out[:1])
        elif name in ("maximum", "minimum", "fmax", "fmin"):
            wins = (out[0] == args[0]).to(out[0].dtype)
            share = wins / (wins + (out[0] == args[1]).to(wins.dtype)).clamp(min=1)
            self._step(_blend, (*(self._slot(a) if a in self.slots else 0.0 for a in args[:2]), share), out)
        elif name in NORMS and alone:
            training, eps = NORMS[name]
            if (training is not None and args[training]) or args[4] is None:
                self.refuse("normalises by statistics of its own input; call model.eval()")
            scale = (args[4] + args[eps]).rsqrt()
            scale = scale if args[1] is None else scale * args[1]
            self._step(torch.mul, (self._slot(x), scale.view(-1, *[1] * (x.ndim - 2)).to(x.dtype)), out[:1])
        elif name in POOLS and alone:
            self._step(_pick_window, (self._slot(x), out[1], POOLS[name]), out[:1])
        elif name in PICKS and alone and len(out) == 2:
            self._step(_pick, (self._slot(x), -1 if dim is None else dim, out[1]), out[:1])
        elif name in EXTREMES and alone and len(out) == 1:
            dims = args[1] if len(args) > 1 and args[1] else kwargs.get("dim") or list(range(x.ndim))
            keep = bool(args[2] if len(args) > 2 else kwargs.get("keepdim", False))
            top = getattr(torch, "amax" if "max" in name else "amin")(x, dims, True) if name != "median" else out[0]
            share = (x == top).to(x.dtype)
            self._step(_weighted_sum, (self._slot(x), share / share.sum(dims, keepdim=True), dims, keep), out)
        elif name == "scatter_reduce" and args[4] in ("amax", "amin"):
            self._scatter(args, kwargs.get("include_self", args[5] if len(args) > 5 else True), out)
        elif name in SUMS and not (name == "scatter_reduce" and args[4] not in ("sum", "mean")):
            self._linear(name, func, args, kwargs, out)
        else:
            self.refuse(f"computes {name}, which is not piecewise linear in its input")

    def _linear(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """The operator itself, with zeros in place of constant terms."""
        if name == "scatter" and (len(args) > 4 or "reduce" in kwargs):
            self.refuse("multiplies entries that it scatters")
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
        if _slots_of([filled[p] for p in rest]) or _slots_of(substitute(list(kwargs.values()), self._slot)):
            self.refuse(f"computes {name}, which is not linear in an argument that depends on the input")
        self._step(func, tuple(filled), out, kwargs)

    def _scatter(self, args: tuple[Any, ...], include: bool, out: Any) -> None:
        """The maximum over entries that land in one place; ties share."""
        base, dim, index, source = args[:4]
        hit = (source == out[0].gather(dim, index)).to(out[0].dtype)
        own = base == out[0]
        if not include:
            own = own & (torch.zeros_like(base).scatter(dim, index, 1.0) == 0)
        count = own.to(hit.dtype).scatter_add(dim, index, hit).clamp(min=1)
        hit, own = hit / count.gather(dim, index), own / count
        slots = [self._slot(t) if t in self.slots else 0.0 for t in (base, source)]
        self._step(_scatter_selected, (slots[0], own, dim, index, slots[1], hit), out)

    def _step(self, function: Any, args: tuple[Any, ...], out: Any, kwargs: dict[str, Any] | None = None) -> None:
        numbers: list[int | None] = []
        for result in out:
            numbers.append(self.count if _real(result) else None)
            if _real(result):
                self.slots[result] = Slot(self.count)
                self.count += 1
        self.steps.append(Step(function, substitute(args, _detached), kwargs or {}, tuple(numbers)))

    def _slot(self, value: Any) -> Any:
        """The slot of a tensor that depends on the input; None for all else."""
        return self.slots.get(value) if isinstance(value, Tensor) else None

    def _constant(self, value: Any) -> Any:
        return (self.slots.get(value) or value) if isinstance(value, Tensor) else value

    def refuse(self, what: str) -> None:
        """Raises: NotLinear, with the layer that runs."""
        layer = next((m for m in reversed(self.layers) if id(m) in self.names), None)
        name = "The model" if layer is None or not self.names[id(layer)] else f"Layer {self.names[id(layer)]!r}"
        kind = "" if layer is None else f" ({type(layer).__name__})"
        adaptive = layer is not None and any(_adapts(m) for m in self.layers)
        advice = "; freeze_attention=True freezes its attention at x" if adaptive else ""
        raise NotLinear(f"{name}{kind} {what}{advice}.")


def _adapts(module: nn.Module) -> bool:
    """Whether a layer makes its structure from the signal."""
    found = identify(module)
    return isinstance(found, Layer) and found.spec.structure.kind == "adaptive"


def _real(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _slots_of(value: Any) -> list[Slot]:
    found: list[Slot] = []
    substitute([value], lambda v: found.append(v) if isinstance(v, Slot) else None)
    return found


def _zero(value: Any) -> Any:
    """Zeros in place of a constant term."""
    if isinstance(value, Tensor):
        return torch.zeros((), dtype=value.dtype, device=value.device).expand(value.shape)
    return 0 if isinstance(value, int | float | complex) else value


def _detached(value: Any) -> Any:
    """A constant without its history; autograd cannot save a tensor made in inference mode."""
    if not isinstance(value, Tensor):
        return value
    return value.clone() if value.is_inference() else value.detach()


# -- steps that are no operator of torch -------------------------------------------------------------------------------


def _cast(v: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return v.to(dtype).expand(shape)


def _pick_window(v: Tensor, index: Tensor, axes: int) -> Tensor:
    """The entries of these places among the last axes."""
    return v.flatten(-axes).gather(-1, index.flatten(-axes)).view(index.shape)


def _pick(v: Tensor, dim: int, index: Tensor) -> Tensor:
    """The entries of these places along one axis, which may be gone in the index."""
    return v.gather(dim, index) if index.ndim == v.ndim else v.gather(dim, index.unsqueeze(dim)).squeeze(dim)


def _weighted_sum(v: Tensor, share: Tensor, dims: list[int], keep: bool) -> Tensor:
    return (v * share).sum(dims, keepdim=keep)


def _blend(a: Any, b: Any, share: Tensor) -> Tensor:
    return a * share + b * (1 - share)


def _scatter_selected(v: Any, own: Tensor, dim: int, index: Tensor, w: Any, hit: Tensor) -> Tensor:
    return (v * own).scatter_add(dim, index, w * hit)
