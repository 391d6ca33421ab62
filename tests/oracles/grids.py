"""Oracles of the operators on grids: torch."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn
from torch_geometric import nn as pyg

from gconv import GConv, Graph, Grid, operators
from gconv.spec import Sample
from oracles.common import call_grid, given, graphs, oracle, random_case

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
CONV_T = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
FUNCTION = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def as_tuple(value: Any, d: int) -> tuple[int, ...]:
    return (value,) * d if isinstance(value, int) else tuple(value)


def torch_kernel(W: Tensor, kernel: tuple[int, ...], transposed: bool = False) -> Tensor:
    """(k, i, o) or (k, g, i/g, o/g) -> torch's (o, i/g, *kernel), transposed (i, o/g, *kernel)."""
    blocks = W.unsqueeze(1) if W.ndim == 3 else W
    a, b = (2, 3) if transposed else (3, 2)
    return torch.stack([tap.permute(0, a - 1, b - 1).flatten(0, 1) for tap in blocks], -1).unflatten(-1, kernel)


@oracle("conv1d", "conv2d", "conv3d")
def conv(layer: GConv, domain: Grid, x: Tensor) -> Tensor:
    a, d = given(layer), domain.ndim
    kernel = as_tuple(a["kernel_size"], d)
    i, o, padding = a.pop("in_channels"), a.pop("out_channels"), a["padding"]
    if padding in ("same_upper", "same_lower"):
        a["padding"] = padding = onnx_same(padding, domain.shape, kernel, a)
    if isinstance(padding, tuple) and isinstance(padding[0], tuple):  # pairs: beyond torch's layers
        flat = [p for pair in reversed(padding) for p in pair]
        mode = {"zeros": "constant"}.get(a["padding_mode"], a["padding_mode"])
        x, a["padding"], a["padding_mode"] = F.pad(x, flat, mode), 0, "zeros"
    weights = {"weight": torch_kernel(layer.weight, kernel), "bias": layer.bias}
    return call_grid(CONV[d](i, o, **a), weights, x)


@oracle("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transpose(layer: GConv, domain: Grid, x: Tensor) -> Tensor:
    a, d = given(layer), domain.ndim
    W, mode = torch_kernel(layer.weight, as_tuple(a["kernel_size"], d), True), a.pop("padding_mode")
    if mode == "zeros":
        return call_grid(
            CONV_T[d](a.pop("in_channels"), a.pop("out_channels"), **a), {"weight": W, "bias": layer.bias}, x
        )
    k, s, p, dl, e = (as_tuple(a[n], d) for n in ("kernel_size", "stride", "padding", "dilation", "output_padding"))
    size = [(n - 1) * s[t] - 2 * p[t] + dl[t] * (k[t] - 1) + e[t] + 1 for t, n in enumerate(domain.shape)]
    u = torch.zeros(len(x), a["out_channels"], *size, dtype=x.dtype, requires_grad=True)
    forth = FUNCTION[d](F.pad(u, [q for n in reversed(p) for q in (n, n)], mode), W, None, s, 0, dl, a["groups"])
    forth = forth[(..., *(slice(n) for n in domain.shape))]  # output_padding beyond a stride: sites that no tap reaches
    (y,) = torch.autograd.grad(forth, u, x, create_graph=True)
    return y if layer.bias is None else y + layer.bias.reshape(-1, *[1] * d)


def onnx_same(padding: str, size: tuple[int, ...], kernel: tuple[int, ...], a: dict[str, Any]) -> Any:
    """ONNX's auto_pad: what brings the output to ceil(n / stride), an odd site behind (upper) or before (lower)."""
    pairs = []
    for t, n in enumerate(size):
        s, dl = as_tuple(a["stride"], len(size))[t], as_tuple(a["dilation"], len(size))[t]
        total = max(0, (math.ceil(n / s) - 1) * s + dl * (kernel[t] - 1) + 1 - n)
        small, large = total // 2, total - total // 2
        pairs.append((small, large) if padding == "same_upper" else (large, small))
    return tuple(pairs)


@oracle("depthwise")
def depthwise(layer: GConv, domain: Grid, x: Tensor) -> Tensor:
    a = given(layer)
    c, q, d = a.pop("channels"), a.pop("multiplier"), a.pop("ndim")
    weights = {"weight": torch_kernel(layer.weight, as_tuple(a["kernel_size"], d)), "bias": layer.bias}
    return call_grid(CONV[d](c, c * q, groups=c, **a), weights, x)


@oracle("pointwise")
def pointwise(layer: GConv, domain: Grid, x: Tensor) -> Tensor:
    a = given(layer)
    d = a["ndim"]
    weights = {"weight": torch_kernel(layer.weight, (1,) * d), "bias": layer.bias}
    return call_grid(CONV[d](a["in_channels"], a["out_channels"], 1, bias=a["bias"]), weights, x)


@oracle("separable")
def separable(layer: GConv, domain: Grid, x: Tensor) -> Tensor:
    a = given(layer)
    i, o, d, bias = a.pop("in_channels"), a.pop("out_channels"), a.pop("ndim"), a.pop("bias")
    kernel = as_tuple(a["kernel_size"], d)
    taps = int(np.prod(kernel))
    depth, point = layer.weight[:taps].t().reshape(i, 1, *kernel), layer.weight[taps:].reshape(o, i, *[1] * d)
    middle = call_grid(CONV[d](i, i, groups=i, bias=False, **a), {"weight": depth}, x)
    return call_grid(CONV[d](i, o, 1, bias=bias), {"weight": point, "bias": layer.bias}, middle)


@oracle("avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool1d", "max_pool2d", "max_pool3d")
def pool(layer: GConv, domain: Grid, x: Tensor) -> Tensor:
    a = given(layer)
    beyond = isinstance(a["padding"], str | tuple) and not isinstance(a["padding"][0], int)
    mean = layer.spec.name.startswith("avg")
    if beyond or (mean and a["dilation"] not in (1, (1,) * domain.ndim)):
        return pool_by_windows(a, domain.shape, x, mean)
    if mean:
        a.pop("dilation")
    return getattr(F, layer.spec.name)(x, **a)


def pool_by_windows(a: dict[str, Any], size: tuple[int, ...], x: Tensor, mean: bool) -> Tensor:
    """ONNX's formula, window by window: what torch's pooling does not take."""
    d = len(size)
    k, s, dl = as_tuple(a["kernel_size"], d), as_tuple(a["stride"] or a["kernel_size"], d), as_tuple(a["dilation"], d)
    places, counts = [], []  # for each axis and output site: the sites read, and how many count
    for t, n in enumerate(size):
        span, pads = dl[t] * (k[t] - 1) + 1, a["padding"]
        if isinstance(pads, str):
            total = max(0, (math.ceil(n / s[t]) - 1) * s[t] + span - n)
            p, q = (total // 2, total - total // 2)[:: 1 if pads == "same_upper" else -1]
        else:
            p, q = pads[t] if isinstance(pads, tuple) and isinstance(pads[t], tuple) else (as_tuple(pads, d)[t],) * 2
        steps = (n + p + q - span) / s[t]
        out = math.floor(steps) + 1
        if a["ceil_mode"]:
            out = math.ceil(steps) + 1
            out -= (out - 1) * s[t] >= n + p
        windows = [[o * s[t] - p + r * dl[t] for r in range(k[t])] for o in range(out)]
        places.append([[at for at in w if 0 <= at < n] for w in windows])
        low, high = (-p, n + q) if a.get("count_include_pad") else (0, n)
        counts.append([sum(low <= at < high for at in w) for w in windows])
    parts = []
    for o in itertools.product(*(range(len(axis)) for axis in places)):
        window = x
        for t, at in enumerate(o):
            window = window.index_select(t - d, torch.tensor(places[t][at], dtype=torch.int64))
        flat = window.flatten(-d)
        if mean:
            parts.append(
                flat.sum(-1) / (a.get("divisor_override") or math.prod(counts[t][at] for t, at in enumerate(o)))
            )
        else:
            parts.append(flat.amax(-1))
    return torch.stack(parts, -1).unflatten(-1, [len(axis) for axis in places])


@oracle("global_pool")
def global_pool(layer: GConv, domain: Any, x: Tensor) -> Tensor:
    reduce = given(layer)["reduce"]
    if isinstance(domain, Grid):
        axes = tuple(range(-domain.ndim, 0))
        return {"mean": torch.mean, "sum": torch.sum, "max": torch.amax}[reduce](x, axes, keepdim=True)
    part = torch.tensor(
        [g for g, (a, b) in enumerate(zip(domain.ptr, domain.ptr[1:], strict=False)) for _ in range(a, b)]
    )
    run = {"mean": pyg.global_mean_pool, "sum": pyg.global_add_pool, "max": pyg.global_max_pool}[reduce]
    return torch.stack([run(one, part, len(domain.ptr) - 1) for one in x])


# -- random specs and grids ----------------------------------------------------------------------------------------


def axes(draw: Any, d: int, low: int, high: int) -> tuple[int, ...]:
    return tuple(draw(st.integers(low, high)) for _ in range(d))


MODES = st.sampled_from(["zeros", "circular", "reflect", "replicate"])


def grid_for(
    draw: Any, kernel: tuple[int, ...], dilation: tuple[int, ...], padding: tuple[int, ...], more: int = 3
) -> Grid:
    least = (max(p + 1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True))
    return Grid(tuple(n + draw(st.integers(0, more)) for n in least))


@random_case("conv1d", "conv2d", "conv3d")
def _(draw: Any, name: str) -> Sample:
    d, groups = int(name[-2]), draw(st.integers(1, 2))
    kernel, stride, padding, dilation = (
        axes(draw, d, 1, 3),
        axes(draw, d, 1, 3),
        axes(draw, d, 0, 2),
        axes(draw, d, 1, 2),
    )
    i, o = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    spec = getattr(operators, name)(i, o, kernel, stride, padding, dilation, groups, draw(st.booleans()), draw(MODES))
    grid = grid_for(draw, kernel, dilation, padding)
    return Sample(spec, lambda: grid, i)


@random_case("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _(draw: Any, name: str) -> Sample:
    d, groups = int(name[-2]), draw(st.integers(1, 2))
    kernel, stride, dilation = axes(draw, d, 1, 3), axes(draw, d, 1, 3), axes(draw, d, 1, 2)
    i, o = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    extra = tuple(draw(st.integers(0, max(s, dl) - 1)) for s, dl in zip(stride, dilation, strict=True))
    mode = draw(MODES)
    # a border that is folded back must lie beside the grid it came from: with a kernel of one there may be no room
    padding = axes(draw, d, 0, 1) if mode == "zeros" else (min(draw(st.integers(0, 1)), min(kernel) - 1),) * d
    grid = Grid(axes(draw, d, 3, 4))
    spec = getattr(operators, name)(i, o, kernel, stride, padding, extra, groups, draw(st.booleans()), dilation, mode)
    return Sample(spec, lambda: grid, i)


@random_case("depthwise", "separable")
def _(draw: Any, name: str) -> Sample:
    d, i, o = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    kernel, padding, dilation = axes(draw, d, 1, 3), axes(draw, d, 0, 2), axes(draw, d, 1, 2)
    rest = {"stride": axes(draw, d, 1, 3), "padding": padding, "dilation": dilation, "bias": draw(st.booleans())}
    rest |= {"padding_mode": draw(MODES), "ndim": d}
    spec = (
        operators.depthwise(i, kernel, multiplier=o, **rest)
        if name == "depthwise"
        else operators.separable(i, o, kernel, **rest)
    )
    grid = grid_for(draw, kernel, dilation, padding)
    return Sample(spec, lambda: grid, i)


@random_case("pointwise")
def _(draw: Any, name: str) -> Sample:
    d, i, o = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    grid = Grid(axes(draw, d, 1, 4))
    return Sample(operators.pointwise(i, o, draw(st.booleans()), d), lambda: grid, i)


@random_case("avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool1d", "max_pool2d", "max_pool3d")
def _(draw: Any, name: str) -> Sample:
    d, mean = int(name[-2]), name.startswith("avg")
    kernel, stride = axes(draw, d, 1, 3), draw(st.none() | st.tuples(*[st.integers(1, 3)] * d))
    padding, dilation = tuple(draw(st.integers(0, k // 2)) for k in kernel), axes(draw, d, 1, 1 + (not mean))
    rest: dict[str, Any] = {"stride": stride, "padding": padding, "ceil_mode": draw(st.booleans())}
    if mean:
        rest["count_include_pad"] = draw(st.booleans())
        rest |= {"divisor_override": draw(st.none() | st.integers(1, 5))} if d > 1 else {}
    else:
        rest["dilation"] = dilation
    grid = grid_for(draw, kernel, dilation, padding)
    if name == "avg_pool3d":  # where torch, the oracle, wants the grid as large as the kernel, padding aside
        grid = Grid(tuple(max(n, k) for n, k in zip(grid.shape, kernel, strict=True)))
    return Sample(getattr(operators, name)(kernel, **rest), lambda: grid, draw(st.integers(1, 2)))


@random_case("global_pool")
def _(draw: Any, name: str) -> Sample:
    spec = operators.global_pool(draw(st.sampled_from(["mean", "sum", "max"])))
    graph, grid = Graph.union([draw(graphs(weighted=False)) for _ in range(2)]), Grid(axes(draw, 2, 1, 4))
    domain = draw(st.sampled_from([graph, grid]))
    return Sample(spec, lambda: domain, 2)
