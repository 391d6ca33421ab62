"""native: torch's convolution and pooling kernels, called on views of the arguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gconv.basis import Basis, Shifts, Windows
from gconv.basis.shifts import OFTEN
from gconv.call import Call
from gconv.lowering.base import Cost, Lowering, Problem, Work
from gconv.mixing import Dense, Fixed, Grouped, Mixing, Separable
from gconv.mixing.elementary import plus_product

BLOCK = 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8  # oneDNN pads channels to a multiple of this
CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_T: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
MAX: dict[int, Callable[..., Any]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
ADAPTIVE: dict[int, Callable[..., Any]] = {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}
MEAN: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _channels_first(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """(*b, n, c) -> (b, c, *grid), a view."""
    x = x.mT.unflatten(-1, grid)
    return x.flatten(0, -len(grid) - 2) if x.ndim > len(grid) + 2 else x


def _channels_last(y: Tensor, batch: tuple[int, ...], d: int) -> Tensor:
    """(b, c, *grid) of d axes -> (*b, n, c), a view."""
    y = y.flatten(-d).mT if d > 1 else y.mT
    return y.unflatten(0, batch) if len(batch) > 1 else y


def _weight(W: Tensor, mixing: Mixing, kernel: tuple[int, ...], transposed: bool) -> tuple[Tensor, int]:
    """The weight in torch's layout (o, i/g, *kernel), or for transposed convolutions (i, o/g, *kernel), and groups."""
    if W.ndim == 4:  # (k, g, i/g, o/g)
        order = (1, 2, 3, 0) if transposed else (1, 3, 2, 0)
        W = W.permute(order).flatten(0, 1).unflatten(-1, kernel)
        return _plain(W) if W.shape[0] == 1 else W, mixing.groups
    W = W.permute(1, 2, 0) if transposed else W.permute(2, 1, 0)
    W = W.view(*W.shape[:2], *kernel)
    return _plain(W) if W.shape[0] == 1 else W, 1


def _plain(W: Tensor) -> Tensor:
    """(1, i, *kernel), copied if the first axis has an unusual stride: torch's backward pass raises an error for it."""
    if W.is_contiguous():
        return W
    return W.contiguous() if W.ndim == 3 else _as_last(W.contiguous(), W.ndim - 2)


def _as_last(y: Tensor, d: int) -> Tensor:
    """Images of d axes, in channels_last; without the memory format, which vmap does not support."""
    return y.movedim(-d - 1, -1).contiguous().movedim(-1, -d - 1)


def run(S: Shifts | Windows, call: Call) -> Tensor:
    y = run_images(S, call.at(_channels_first(call.x, S.grids[0])))
    return _channels_last(y, tuple(call.x.shape[:-2]), len(S.size))


def run_images(S: Shifts | Windows, call: Call) -> Tensor:
    """The same on images, (b, i, *grid) -> (b, o, *grid), or without b."""
    return _images(S, call.mixing, call.W, call.x, call.bias)


def _images(S: Shifts | Windows, mixing: Mixing, W: Tensor | None, x: Tensor, bias: Tensor | None) -> Tensor:
    d = len(S.size)
    if isinstance(S, Windows):
        if _is_half(x):  # torch has no half-precision kernel for some numbers of axes
            return _add_bias(ADAPTIVE[d](x.float(), S.out).to(x.dtype), bias, d)
        return _add_bias(ADAPTIVE[d](x, S.out), bias, d)
    if S.window:
        return _add_bias(_pool(S, x), bias, d)
    if W is None:
        return _add_bias(S.pad_images(x) if S.is_padded else x.clone(), bias, d)
    if _unreliable_in_half(S, x.dtype) and _is_half(x):
        with torch.autocast(x.device.type, enabled=False):
            y = _images(S, mixing, W.float(), x.float(), None if bias is None else bias.float())
        y = y.to(x.dtype)
        if d < 3:
            return y
        copied = S.mode == "circular" and S.is_padded  # by torch's pad, whose result is contiguous
        last = suggests_last(x.unsqueeze(0) if x.ndim == d + 1 else x) and not copied
        if not last and not isinstance(mixing, Separable):
            last = suggests_last(_weight(W, mixing, S.kernel, S.transposed)[0])
        return _as_last(y, d) if last and keeps_format(x) else y.contiguous()
    if isinstance(mixing, Separable):
        depth, point = mixing.factors(W)
        filtered = _images(S, Grouped(mixing.taps, mixing.i, mixing.i, mixing.i), depth[:, :, None, None], x, None)
        return CONV[d](filtered, point.mT.reshape(mixing.o, mixing.i, *[1] * d), bias)
    if mixing.scale != 1.0:
        W = W * mixing.scale
    if d == 1 and mixing.is_dense and S.trivial and x.stride(-2) == 1:
        return plus_product(bias, x.mT, W.squeeze(0)).mT  # torch's 1-D convolutions would transpose x and y in memory
    weight, groups = _weight(W, mixing, S.kernel, S.transposed)
    padding = S.even_padding
    if not S.transposed:
        if padding is None:
            x, padding = S.pad_images(x), (0,) * d
        if max(S.stride) > 1 and _corrupts_memory(S, padding, weight, groups, x):
            return CONV[d](_mean(x, (1,) * d, S.stride, padding), weight, bias)
        return CONV[d](x, weight, bias, S.stride, padding, S.dilation, groups)
    outer, inner = (S.size, padding) if padding is not None else (S.padded, (0,) * d)
    extra = [
        n + 2 * p - ((o - 1) * s + dl * (k - 1) + 1)
        for n, p, o, s, dl, k in zip(outer, inner, S.out, S.stride, S.dilation, S.kernel, strict=True)
    ]
    inside = None if padding is None else bias  # unpadding adds up sites, so the bias is added after it
    if max(S.stride) > 1 and _corrupts_memory(S, inner, weight, groups, x):
        y = _add_bias(_between_zeros(CONV_T[d](x, weight), S.stride, outer), inside, d)
    else:
        y = CONV_T[d](x, weight, inside, S.stride, inner, extra, groups, S.dilation)
    return y if padding is not None else _add_bias(S.unpad(y.movedim(-d - 1, -1)).movedim(-1, -d - 1), bias, d)


def _add_bias(y: Tensor, bias: Tensor | None, d: int) -> Tensor:
    return y if bias is None else y + bias.reshape(-1, *[1] * d)


def _unreliable_in_half(S: Shifts, dtype: torch.dtype) -> bool:
    """Whether torch's convolutions of this kind may be wrong in float16 and bfloat16 on a CPU.

    3-D, transposed, and dilated convolutions were observed to read out of bounds or to return uninitialised memory,
    depending on the processor, the sizes and the memory format. The gradient of large kernels is a sum in float16. All
    are computed in float32 instead.
    """
    large = dtype == torch.float16 and math.prod(S.kernel) > OFTEN
    return large or len(S.kernel) == 3 or S.transposed or max(S.dilation) > 1


def _corrupts_memory(S: Shifts, padding: tuple[int, ...], weight: Tensor, groups: int, x: Tensor) -> bool:
    """Whether the backward pass of torch's convolution may write out of bounds on a CPU, and end the process.

    Observed in float32 and bfloat16 with torch 2.13 (oneDNN 3.12): 1 x 1 convolutions with a stride, without padding
    and groups, in channels_last (which a compiler may choose by itself), with fewer than 16 channels on the finer grid
    with AVX-512, fewer than 8 with AVX2. They are computed without a stride, from every s-th site or to it.
    """
    pointwise = len(S.kernel) == 2 and {*S.kernel} == {1} and not any(padding)
    return pointwise and groups == 1 and weight.shape[1] < 16 and x.device.type == "cpu"


def _between_zeros(y: Tensor, stride: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
    """(*b, h, w) -> (*b, *size), with y at every s-th site and zeros at the others.

    >>> _between_zeros(torch.ones(1, 2), (1, 2), (1, 3))
    tensor([[1., 0., 1.]])
    """
    height, width = stride
    spread = F.pad(y[..., None, :, None], (0, width - 1, 0, 0, 0, height - 1)).flatten(-2).flatten(-3, -2)
    spread = F.pad(spread, (0, size[1] - spread.shape[-1], 0, size[0] - spread.shape[-2]))
    return _as_last(spread, 2) if y.ndim == 4 and suggests_last(y) else spread


def keeps_format(x: Tensor) -> bool:
    """Whether torch's 3-D convolutions preserve channels_last for x; on a CPU only oneDNN's kernels do."""
    if x.device.type != "cpu" or (x.dtype == torch.float32 and not _is_half(x)):
        return True
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False
    half = x.dtype if x.element_size() == 2 else torch.get_autocast_dtype("cpu")
    supported = getattr(torch.ops.mkldnn, f"_is_mkldnn_{'fp16' if half == torch.float16 else 'bf16'}_supported", None)
    return supported is not None and bool(supported())


def suggests_last(x: Tensor) -> bool:
    """Whether torch treats images (b, c, *grid) as channels_last, by the rule of its `suggest_memory_format`.

    >>> x = torch.empty(2, 3, 4, 5)
    >>> suggests_last(x), suggests_last(x.contiguous(memory_format=torch.channels_last))
    (False, True)
    """
    if x.ndim == 3:
        x = x.unsqueeze(2)
    least, strides, shape = 0, x.stride(), x.shape
    if strides[1] == 0:
        return False
    for axis in (1, *range(x.ndim - 1, 1, -1), 0):
        if shape[axis] == 0 or strides[axis] < least or (axis == 0 and least == strides[1]):
            return False
        least = strides[axis] * max(1, shape[axis])
    return True


def _is_half(x: Tensor) -> bool:
    """Whether torch would compute a convolution of x in half precision on a CPU, also because of autocast."""
    if x.device.type != "cpu":
        return False
    return x.element_size() == 2 or (x.dtype == torch.float32 and torch.is_autocast_enabled("cpu"))


def _pool(S: Shifts, x: Tensor) -> Tensor:
    d, padding = len(S.size), S.even_padding
    if S.is_open[1]:  # a window over the whole grid, whose size is dynamic
        axes = tuple(range(-d, 0))
        return x.amax(axes, keepdim=True) if S.reduce == "max" else x.sum(axes, keepdim=True) * S.scale(x)
    if d == 3 and x.ndim == 4:  # without a batch axis torch rejects some memory formats
        return _pool(S, x.unsqueeze(0)).squeeze(0)
    if d == 3 and x.element_size() == 2 and x.device.type == "cpu":  # torch has no 3-D pooling in half precision there
        return _pool(S, x.float()).to(x.dtype)
    if summed_often(S) and x.element_size() == 2 and x.device.type == "cpu":
        return _pool(S, x.float()).to(x.dtype)
    # cases that torch rejects: in 3-D a kernel larger than the unpadded grid; padding of more than half the kernel
    small = d == 3 and any(n < k for n, k in zip(S.size, S.kernel, strict=True))
    wide = padding is not None and any(2 * p > k for p, k in zip(padding, S.kernel, strict=True))
    # with dilation a window may contain padding only; torch then writes the gradient of the maximum out of bounds
    only_padding = S.reduce == "max" and any(p and d > 1 for p, d in zip(padding or (), S.dilation, strict=False))
    if padding is None or small or wide or only_padding:
        x, padding = S.pad_images(x, -math.inf if S.reduce == "max" else 0.0), (0,) * d
    if S.reduce == "max":
        if d == 1 and S.is_open[0]:  # torch's max_pool1d specialises the length
            pairs = (1, *S.kernel), (1, *S.stride), (0, *padding), (1, *S.dilation)
            return F.max_pool2d(x.unsqueeze(-2), *pairs).squeeze(-2)
        largest: Tensor = MAX[d](x, S.kernel, S.stride, padding, S.dilation)
        return largest
    y = _mean(x, S.kernel, S.stride, padding)
    scale = S.scale(y, math.prod(S.kernel))
    if isinstance(scale, float):
        return y if math.isclose(scale, 1.0, rel_tol=1e-15) else y * scale
    return y * scale.mT.unflatten(-1, S.out)


def _mean(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...]) -> Tensor:
    """Average pooling, also of complex images, for which torch has no kernel."""
    if x.is_complex():
        return torch.complex(_mean(x.real, kernel, stride, padding), _mean(x.imag, kernel, stride, padding))
    return MEAN[len(kernel)](x, kernel, stride, padding)


def summed_often(S: Shifts) -> bool:
    """Whether a site is in so many windows that torch's sum of their gradients, in 16 bits on a CPU, stops growing."""
    if S.is_open[1]:
        return False
    return math.prod([-(-k // s) for k, s in zip(S.kernel, S.stride, strict=True)]) > OFTEN  # which dynamo can trace


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
        return None  # padding only
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
    return [*_overhead(S, p, groups), *_arithmetic(S, p, groups, flops)]


def _pooling(S: Shifts, p: Problem) -> list[Work]:
    taps, outs = float(math.prod(S.kernel)), float(math.prod(S.out) * p.b * p.i)
    outs *= min(1.0, taps / 4) if S.reduce == "max" else 1.0  # the curve begins at 4 taps
    volume = " volume" if len(S.kernel) == 3 else ""
    return [
        Work(f"pool {S.reduce}{volume}", outs, taps),
        Work(f"pool {S.reduce}{volume} back", outs * p.dx, taps),
    ]


def _overhead(S: Shifts, p: Problem, groups: int) -> list[Work]:
    """The fixed overhead of a call: oneDNN's setup, or a separate call for each group."""
    if not _onednn(S, p, groups):
        more = float(groups - 1) if p.kind != "bfloat16" else 0.0
        return [Work("group", more), Work("group", more * (p.passes - 1), 2.0)]
    setup = [Work("onednn", 1.0, float(p.passes))]
    return [*setup, Work("transposed", 1.0, float(max(S.stride)))] if S.transposed else setup


def _arithmetic(S: Shifts, p: Problem, groups: int, flops: float) -> list[Work]:
    """The arithmetic, at one throughput for all kernel shapes; docs/results/plans.md reports the error of the model."""
    i, o, taps = p.i / groups, p.o / groups, math.prod(S.kernel)
    if S.transposed and p.kind == "float64":  # the results of all taps are written to memory, then added up
        numbers = float(p.item * taps * S.shape[2]) * p.b * p.o
        columns = [Work("columns", numbers), Work("columns", numbers * (p.dx + p.dw), 2.0)]
        return [*columns, *p.product(flops, i, taps * o)]
    if groups > 1 and 4 * groups > max(p.i, p.o) and p.kind != "float64":  # fewer than 4 channels per group
        filled, size, end = flops * max(1.0, BLOCK / groups), float(max(S.kernel)) ** 2, " last" if p.last else ""
        weight = Work(f"single weight{end}", flops * p.dw, size)
        return [Work(f"single{end}", filled, size), Work("single last", filled * p.dx, size), weight]
    width = math.sqrt(i * o) if S.transposed else o
    return [Work(f"conv {p.kind}", flops * (1 + p.dw), width), Work(f"conv {p.kind}", flops * p.dx, min(i, o))]


def _onednn(S: Shifts, p: Problem, groups: int) -> bool:
    """Whether torch dispatches this convolution to oneDNN, whose calls have a larger overhead: torch's own rule."""
    if p.kind != "float32":
        return False
    height, width = (1, *S.kernel)[-2:]
    shared = groups > 1 or (height > 3 and width > 3) or p.b > 1 or p.b * p.i * S.shape[2] > 20480
    moved = any(s != 1 for s in (*S.stride, *S.dilation))
    return shared and (moved or p.b >= 16 or height != 1 or width != 1 or torch.get_num_threads() > 1)


NATIVE = Lowering("native", run, refuses, cost, images=run_images)
