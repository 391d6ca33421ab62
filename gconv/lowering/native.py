"""native: torch's own convolution and pooling kernels, reached by views alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gconv.basis import Basis, Shifts, Windows
from gconv.call import Call
from gconv.lowering.base import Cost, Lowering, Problem, Work
from gconv.mixing import Dense, Fixed, Grouped, Mixing, Separable
from gconv.mixing.elementary import plus_product

BLOCK = 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8  # channels that oneDNN fills up
CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_T: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
MAX: dict[int, Callable[..., Any]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
ADAPTIVE: dict[int, Callable[..., Any]] = {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}
MEAN: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _channels_first(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """(*b, n, c) -> (b, c, *grid), a view of the same memory."""
    x = x.mT.unflatten(-1, grid)
    return x.flatten(0, -len(grid) - 2) if x.ndim > len(grid) + 2 else x


def _channels_last(y: Tensor, batch: tuple[int, ...], d: int) -> Tensor:
    """(b, c, *grid) of d axes -> (*b, n, c), a view."""
    y = y.flatten(-d).mT if d > 1 else y.mT
    return y.unflatten(0, batch) if len(batch) > 1 else y


def _weight(W: Tensor, mixing: Mixing, kernel: tuple[int, ...], transposed: bool) -> tuple[Tensor, int]:
    """torch's layout (o, i/g, *kernel), or for a transposed convolution (i, o/g, *kernel), and the groups."""
    if W.ndim == 4:  # (k, g, i/g, o/g)
        order = (1, 2, 3, 0) if transposed else (1, 3, 2, 0)
        return W.permute(order).flatten(0, 1).unflatten(-1, kernel), mixing.groups
    W = W.permute(1, 2, 0) if transposed else W.permute(2, 1, 0)
    return W.view(*W.shape[:2], *kernel), 1


def run(S: Shifts | Windows, call: Call) -> Tensor:
    y = run_images(S, call.at(_channels_first(call.x, S.grids[0])))
    return _channels_last(y, tuple(call.x.shape[:-2]), len(S.size))


def run_images(S: Shifts | Windows, call: Call) -> Tensor:
    """The same on images, (b, i, *grid) -> (b, o, *grid), or without b."""
    return _images(S, call.mixing, call.W, call.x, call.bias)


def _images(S: Shifts | Windows, mixing: Mixing, W: Tensor | None, x: Tensor, bias: Tensor | None) -> Tensor:
    d = len(S.size)
    if isinstance(S, Windows):
        if _low(x):  # not there in half precision for each number of axes
            return _add_bias(ADAPTIVE[d](x.float(), S.out).to(x.dtype), bias, d)
        return _add_bias(ADAPTIVE[d](x, S.out), bias, d)
    if S.window:
        return _add_bias(_pool(S, x), bias, d)
    if W is None:
        return _add_bias(S.pad_images(x) if S.is_padded else x.clone(), bias, d)
    if _distrusted(S, mixing) and _low(x):
        with torch.autocast(x.device.type, enabled=False):
            y = _images(S, mixing, W.float(), x.float(), None if bias is None else bias.float())
        return y.to(x.dtype) if d < 3 or keeps_format(x) else y.to(x.dtype).contiguous()
    if isinstance(mixing, Separable):
        depth, point = mixing.factors(W)
        filtered = _images(S, Grouped(mixing.taps, mixing.i, mixing.i, mixing.i), depth[:, :, None, None], x, None)
        return CONV[d](filtered, point.mT.reshape(mixing.o, mixing.i, *[1] * d), bias)
    if mixing.scale != 1.0:
        W = W * mixing.scale
    if d == 1 and mixing.is_dense and S.trivial and x.stride(-2) == 1:
        return plus_product(bias, x.mT, W.squeeze(0)).mT  # torch's 1-D convolutions would turn x and y around
    weight, groups = _weight(W, mixing, S.kernel, S.transposed)
    padding = S.even_padding
    if not S.transposed:
        if padding is None:
            x, padding = S.pad_images(x), (0,) * d
        return CONV[d](x, weight, bias, S.stride, padding, S.dilation, groups)
    outer, inner = (S.size, padding) if padding is not None else (S.padded, (0,) * d)
    extra = [
        n + 2 * p - ((o - 1) * s + dl * (k - 1) + 1)
        for n, p, o, s, dl, k in zip(outer, inner, S.out, S.stride, S.dilation, S.kernel, strict=True)
    ]
    y = CONV_T[d](x, weight, None, S.stride, inner, extra, groups, S.dilation)
    if padding is None:
        y = S.unpad(y.movedim(-d - 1, -1)).movedim(-1, -d - 1)
    return _add_bias(y, bias, d)


def _add_bias(y: Tensor, bias: Tensor | None, d: int) -> Tensor:
    return y if bias is None else y + bias.reshape(-1, *[1] * d)


def _distrusted(S: Shifts, mixing: Mixing) -> bool:
    """Whether torch's convolutions of this kind are not to be trusted in float16 and bfloat16 on a CPU.

    In three dimensions, transposed, and in groups with dilation they have been seen to read beyond their arrays or to
    return what was in memory before, depending on the processor and the sizes. Those run in float32.
    """
    if len(S.kernel) == 3 or S.transposed:
        return True
    return isinstance(mixing, Grouped) and max(S.dilation) > 1


def keeps_format(x: Tensor) -> bool:
    """Whether torch's own convolutions of volumes like x keep channels_last, as on a CPU only oneDNN's do."""
    if x.device.type != "cpu" or (x.dtype == torch.float32 and not _low(x)):
        return True
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False
    half = x.dtype if x.element_size() == 2 else torch.get_autocast_dtype("cpu")
    supported = getattr(torch.ops.mkldnn, f"_is_mkldnn_{'fp16' if half == torch.float16 else 'bf16'}_supported", None)
    return supported is not None and bool(supported())


def _low(x: Tensor) -> bool:
    """Whether torch would run a convolution of x in two bytes a number, on a CPU."""
    if x.device.type != "cpu":
        return False
    return x.element_size() == 2 or (x.dtype == torch.float32 and torch.is_autocast_enabled("cpu"))


def _pool(S: Shifts, x: Tensor) -> Tensor:
    d, padding = len(S.size), S.even_padding
    if S.is_open[1]:  # the whole of a grid whose size an exporter keeps open
        axes = tuple(range(-d, 0))
        return x.amax(axes, keepdim=True) if S.reduce == "max" else x.sum(axes, keepdim=True) * S.scale(x)
    if d == 3 and x.ndim == 4:  # of one volume alone torch refuses some memory formats
        return _pool(S, x.unsqueeze(0)).squeeze(0)
    if d == 3 and x.element_size() == 2 and x.device.type == "cpu":  # where torch has no 3-D pooling in half precision
        return _pool(S, x.float()).to(x.dtype)
    small = d == 3 and any(n < k for n, k in zip(S.size, S.kernel, strict=True))  # torch refuses, padding aside
    wide = padding is not None and any(2 * p > k for p, k in zip(padding, S.kernel, strict=True))
    # torch sends the gradient of a maximum over padding alone, which dilation allows, past the end of the row
    apart = S.reduce == "max" and any(p and d > 1 for p, d in zip(padding or (), S.dilation, strict=False))
    if padding is None or small or wide or apart:
        x, padding = S.pad_images(x, -math.inf if S.reduce == "max" else 0.0), (0,) * d
    if S.reduce == "max":
        if d == 1 and S.is_open[0]:  # torch's max_pool1d fixes the length
            pairs = (1, *S.kernel), (1, *S.stride), (0, *padding), (1, *S.dilation)
            return F.max_pool2d(x.unsqueeze(-2), *pairs).squeeze(-2)
        largest: Tensor = MAX[d](x, S.kernel, S.stride, padding, S.dilation)
        return largest
    y = MEAN[d](x, S.kernel, S.stride, padding)
    scale = S.scale(y, math.prod(S.kernel))
    if isinstance(scale, float):
        return y if math.isclose(scale, 1.0, rel_tol=1e-15) else y * scale
    return y * scale.mT.unflatten(-1, S.out)


def refuses(S: Basis, mixing: Mixing) -> str | None:
    if isinstance(S, Windows):
        return None if isinstance(mixing, Fixed) else "torch's pooling kernels leave the channels as they are"
    if not isinstance(S, Shifts):
        return f"torch's kernels run the shifts of a kernel on a grid, and this structure is {type(S).__name__}"
    if S.window:
        if not isinstance(mixing, Fixed):
            return "torch's pooling kernels leave the channels as they are"
        if S.transposed:
            return "torch has no transposed pooling kernel"
        if S.reduce == "sum" and any(d != 1 for d in S.dilation):
            return "torch's average pooling has no dilation"
        return None
    if isinstance(mixing, Fixed) and {*S.kernel, *S.stride} == {1} and not S.transposed:
        return None  # a border is laid on, and nothing else is done
    if not isinstance(mixing, Dense | Grouped | Separable):
        return f"torch's convolutions mix densely or in groups, not as {type(mixing).__name__}"
    if not S.linear:
        return "torch's convolutions sum their taps"
    return None


def cost(S: Shifts | Windows, mixing: Mixing, p: Problem) -> Cost:
    _, m, n = S.shape
    if isinstance(S, Windows):
        taps, outs = S.nnz / max(1, m), float(m) * p.b * p.i
        volume = " volume" if len(S.size) == 3 else ""
        works = Work(f"pool max{volume}", outs, taps), Work(f"pool max{volume} back", outs * p.dx, taps)
        return Cost(float(S.nnz) * p.b * p.i, p.item * p.b * p.i * float(n + m), p.item * outs, works)
    entries = float(S.nnz) / max(1, math.prod(S.kernel))
    numbers = float(p.b) * (n * p.i + m * p.o)
    images = Work("image", float(p.b) * p.passes * (p.kind == "float32"))
    flops = float(mixing.flops(int(entries) * p.b, p.i))
    return Cost(
        flops,
        p.item * numbers,
        p.item * float(p.b) * m * p.o,
        (*_work(S, mixing, p, flops), p.stream(numbers, 1), images),
    )


def _work(S: Shifts, mixing: Mixing, p: Problem, flops: float) -> list[Work]:
    if S.window:
        return _pooling(S, p)
    if mixing.shape is None:
        return [p.stream(float(S.shape[1]) * p.b * p.i, 1 + p.dx)]
    if isinstance(mixing, Separable):
        ones, taps = (1,) * len(S.kernel), math.prod(S.kernel)
        point = Shifts(S.grids[1], ones, ones, ones, ((0, 0),) * len(ones))
        mixed = 2.0 * S.shape[1] * p.b * p.i * p.o
        depth = _work(S, Grouped(taps, p.i, p.i, p.i), replace(p, o=p.i), flops - mixed)
        return [*depth, *_work(point, Dense(1, p.i, p.o), replace(p, dx=p.dx or p.dw), mixed)]
    if len(S.kernel) == 1 and mixing.is_dense and S.trivial and p.last:
        return list(p.product(flops, p.i, p.o))
    groups = mixing.groups
    return [*_begun(S, p, groups), *_convolved(S, p, groups, flops)]


def _pooling(S: Shifts, p: Problem) -> list[Work]:
    taps, outs = float(math.prod(S.kernel)), float(math.prod(S.out) * p.b * p.i)
    outs *= min(1.0, taps / 4) if S.reduce == "max" else 1.0  # fewer taps were not measured
    volume = " volume" if len(S.kernel) == 3 else ""
    return [
        Work(f"pool {S.reduce}{volume}", outs, taps),
        Work(f"pool {S.reduce}{volume} back", outs * p.dx, taps),
    ]


def _begun(S: Shifts, p: Problem, groups: int) -> list[Work]:
    """What a call takes besides its arithmetic: what oneDNN sets up, or the calls of single groups."""
    if not _onednn(S, p, groups):
        more = float(groups - 1) if p.kind != "bfloat16" else 0.0
        return [Work("group", more), Work("group", more * (p.passes - 1), 2.0)]
    begun = [Work("onednn", 1.0, float(p.passes))]
    return [*begun, Work("transposed", 1.0, float(max(S.stride)))] if S.transposed else begun


def _convolved(S: Shifts, p: Problem, groups: int, flops: float) -> list[Work]:
    """The arithmetic, at one rate for all kinds of kernels; docs/results/plans.md has what plans lose by it."""
    i, o, taps = p.i / groups, p.o / groups, math.prod(S.kernel)
    if S.transposed and p.kind == "float64":  # what its taps write lies in memory before it is added up
        numbers = float(p.item * taps * S.shape[2]) * p.b * p.o
        columns = [Work("columns", numbers), Work("columns", numbers * (p.dx + p.dw), 2.0)]
        return [*columns, *p.product(flops, i, taps * o)]
    if groups > 1 and 4 * groups > max(p.i, p.o) and p.kind != "float64":  # hardly any channels share a product
        filled = flops * max(1.0, BLOCK / groups)
        return [Work("single", filled * (1 + p.dx) + flops * p.dw, float(max(S.kernel)) ** 2)]
    width = math.sqrt(i * o) if S.transposed else o
    return [Work(f"conv {p.kind}", flops * (1 + p.dw), width), Work(f"conv {p.kind}", flops * p.dx, min(i, o))]


def _onednn(S: Shifts, p: Problem, groups: int) -> bool:
    """Whether torch hands this to oneDNN, whose calls cost more by themselves: the rule of its convolutions."""
    if p.kind != "float32":
        return False
    height, width = (1, *S.kernel)[-2:]
    shared = groups > 1 or (height > 3 and width > 3) or p.b > 1 or p.b * p.i * S.shape[2] > 20480
    moved = any(s != 1 for s in (*S.stride, *S.dilation))
    return shared and (moved or p.b >= 16 or height != 1 or width != 1 or torch.get_num_threads() > 1)


NATIVE = Lowering("native", run, refuses, cost, images=run_images)
