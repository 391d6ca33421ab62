"""Oracles of what moves numbers on a grid: torch's Unfold, Fold, PixelShuffle, ChannelShuffle; numpy's pad."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from gconv import GConv, Grid, operators
from gconv.spec import Sample
from oracles.common import given, oracle, random_case
from oracles.grids import MODES, as_tuple, axes, grid_for


def _places(a: dict[str, Any], size: tuple[int, ...]) -> tuple[list[int], Tensor]:
    """The patches' grid, and (k, sites') which site of the padded grid each tap of each patch reads, by counting."""
    d = len(size)
    k, s, dl = (as_tuple(a[name], d) for name in ("kernel_size", "stride", "dilation"))
    p = [q if isinstance(q, tuple) else (q, q) for q in (a["padding"] if isinstance(a["padding"], tuple) else ())]
    p = p or [(a["padding"],) * 2] * d
    out = [(n + sum(p[t]) - dl[t] * (k[t] - 1) - 1) // s[t] + 1 for t, n in enumerate(size)]
    numbers = np.pad(np.arange(1, math.prod(size) + 1).reshape(size), p)
    read = [
        [numbers[tuple(s[t] * m[t] + dl[t] * r[t] for t in range(d))] for m in np.ndindex(*out)] for r in np.ndindex(*k)
    ]
    return out, torch.tensor(read)


@oracle("unfold")
def unfold(layer: GConv, domain: Grid, x: Tensor) -> Tensor:
    a = given(layer)
    d, pairs = a.pop("ndim"), isinstance(a["padding"], tuple) and isinstance(a["padding"][0], tuple)
    out, read = _places(a, domain.shape)
    if d == 2 and not pairs:
        return nn.Unfold(**a)(x).unflatten(-1, out)
    flat = F.pad(x.flatten(-d), (1, 0))  # number 0 reads the border
    return flat[..., read].flatten(1, 2).unflatten(-1, out)


@oracle("fold")
def fold(layer: GConv, domain: Grid, x: Tensor) -> Tensor:
    a = given(layer)
    d, size = a.pop("ndim"), as_tuple(a.pop("output_size"), domain.ndim)
    out, read = _places(a, size)
    assert tuple(out) == domain.shape
    if d == 2 and not (isinstance(a["padding"], tuple) and isinstance(a["padding"][0], tuple)):
        return nn.Fold(size, **a)(x.flatten(2))
    values = x.flatten(2).unflatten(1, (-1, len(read))).flatten(2)
    flat = values.new_zeros(*values.shape[:2], math.prod(size) + 1)
    return flat.index_add(-1, read.flatten(), values)[..., 1:].unflatten(-1, size)


@oracle("pixel_shuffle")
def pixel_shuffle(layer: GConv, domain: Grid, x: Tensor) -> Tensor:
    r, d = given(layer)["upscale_factor"], domain.ndim
    if d == 2:
        return F.pixel_shuffle(x, r)
    blocks = x.unflatten(1, (-1, *[r] * d))  # (b, c, *r, *grid)
    order = [0, 1, *(axis for t in range(d) for axis in (2 + d + t, 2 + t))]
    return blocks.permute(order).reshape(len(x), -1, *(n * r for n in domain.shape))


@oracle("pixel_unshuffle")
def pixel_unshuffle(layer: GConv, domain: Grid, x: Tensor) -> Tensor:
    r, d = given(layer)["downscale_factor"], domain.ndim
    if d == 2:
        return F.pixel_unshuffle(x, r)
    blocks = x.reshape(*x.shape[:2], *(e for n in domain.shape for e in (n // r, r)))
    order = [0, 1, *range(3, 3 + 2 * d, 2), *range(2, 2 + 2 * d, 2)]
    return blocks.permute(order).flatten(1, 1 + d)


@oracle("channel_shuffle")
def channel_shuffle(layer: GConv, domain: Any, x: Tensor) -> Tensor:
    shuffle = nn.ChannelShuffle(given(layer)["groups"])
    return shuffle(x) if isinstance(domain, Grid) else shuffle(x.transpose(1, 2)).transpose(1, 2)


@oracle("pad")
def pad(layer: GConv, domain: Grid, x: Tensor) -> Tensor:
    a, d = given(layer), domain.ndim
    p = a["padding"] if isinstance(a["padding"], tuple) else (a["padding"],) * d
    pairs = [q if isinstance(q, tuple) else (q, q) for q in p]
    grown = [(max(0, before), max(0, after)) for before, after in pairs]
    mode = {"zeros": "constant", "circular": "wrap", "replicate": "edge"}.get(a["mode"], a["mode"])
    numbers = np.arange(1, domain.size + 1).reshape(domain.shape)
    full = np.pad(numbers, grown, mode)
    cut = tuple(
        slice(max(0, -before), n - max(0, -after)) for (before, after), n in zip(pairs, full.shape, strict=True)
    )
    read = torch.from_numpy(full[cut].copy())
    return F.pad(x.flatten(-d), (1, 0))[..., read]


@random_case("unfold", "fold")
def _(draw: Any, name: str) -> Sample:
    d = draw(st.integers(1, 3))
    kernel, stride, padding, dilation = (axes(draw, d, *r) for r in ((1, 3), (1, 3), (0, 2), (1, 2)))
    size, c = grid_for(draw, kernel, dilation, padding, 2), draw(st.integers(1, 2))
    if name == "unfold":
        return Sample(operators.unfold(kernel, dilation, padding, stride, d), lambda: size, c)
    spec = operators.fold(size.shape, kernel, dilation, padding, stride, d)
    places = zip(size.shape, kernel, stride, padding, dilation, strict=True)
    patches = Grid(tuple((n + 2 * p - dl * (k - 1) - 1) // s + 1 for n, k, s, p, dl in places))
    return Sample(spec, lambda: patches, c * math.prod(kernel))


@random_case("pixel_shuffle", "pixel_unshuffle")
def _(draw: Any, name: str) -> Sample:
    d, r, c = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    shape = axes(draw, d, 1, 3)
    if name == "pixel_shuffle":
        return Sample(operators.pixel_shuffle(r, d), lambda: Grid(shape), c * r**d)
    return Sample(operators.pixel_unshuffle(r, d), lambda: Grid(tuple(n * r for n in shape)), c)


@random_case("channel_shuffle")
def _(draw: Any, name: str) -> Sample:
    g, rows = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    size = Grid(axes(draw, draw(st.integers(1, 3)), 1, 3))
    return Sample(operators.channel_shuffle(g * rows, g), lambda: size, g * rows)


@random_case("pad")
def _(draw: Any, name: str) -> Sample:
    d, mode = draw(st.integers(1, 3)), draw(MODES)
    size = Grid(axes(draw, d, 1, 4))
    most = {"circular": 0, "reflect": -1}.get(mode)
    pairs = tuple(
        tuple(draw(st.integers(-((n - 1) // 2), 3 if most is None else n + most)) for _ in range(2)) for n in size.shape
    )
    return Sample(operators.pad(pairs, mode, d), lambda: size, draw(st.integers(1, 2)))
