"""One layer of a grid network as a layer on sites: the same weights, on a graph with edges labelled by tap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gconv.domains import Bipartite
from gconv.mixing import Dense, Fixed, Grouped, Separable, Shuffled, plain, spread_bias
from gconv.module import GConv
from gconv.operators import channel_shuffle, selection, simple
from gconv.spec import OperatorSpec, OutsideFamily
from gconv.transfer.taps import Placed

Missing = Literal["zero", "renormalise"]


class OnSites(nn.Module):
    """A layer of gconv from one set of sites to another, on signals (b, c, n).

    Args:
        gconv: the layer.
        domain: the edges between the sites, labelled by tap; None for a layer that acts on each site separately.
    """

    def __init__(self, gconv: GConv, domain: Bipartite | None) -> None:
        super().__init__()
        self.gconv, self.domain = gconv, domain

    def forward(self, x: Tensor) -> Tensor:
        if self.domain is None:
            return self.gconv(x)
        return self.gconv(x.mT, self.domain).mT

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> OnSites:
        super()._apply(fn, recurse)
        if self.domain is not None:
            self.domain = self.domain.to(fn(torch.empty(0, device=self.domain.device)).device)
        return self

    def extra_repr(self) -> str:
        return "" if self.domain is None else repr(self.domain)


class FrameOrder(nn.Module):
    """Signals (b, c, n) as flattened images (b, c, pixels) in the order of the frame, with zeros in the holes.

    Args:
        lift: the entries (pixel, site, value) of the map from sites to pixels.
        pixels: the number of pixels of the frame.
    """

    def __init__(self, lift: tuple[Tensor, Tensor, Tensor], pixels: int) -> None:
        super().__init__()
        for name, tensor in zip(("pixel", "site", "share"), lift, strict=True):
            self.register_buffer(name, tensor, persistent=False)
        self.pixels = pixels

    def forward(self, x: Tensor) -> Tensor:
        pixel, site, share = self.get_buffer("pixel"), self.get_buffer("site"), self.get_buffer("share")
        read = x[..., site] * share.to(x.dtype)
        return x.new_zeros(*x.shape[:-1], self.pixels).index_add(-1, pixel, read)


def spec_on_sites(spec: OperatorSpec, W: Tensor | None, largest: bool) -> OperatorSpec:
    """The operator on labelled edges with the mixing of a grid operator.

    Raises:
        OutsideFamily: if the mixing rearranges pixels into channels or back.
    """
    mixing, _ = plain(spec.mixing, W)
    if isinstance(mixing, Dense | Separable):
        return selection(mixing.i, mixing.o, mixing.taps, spec.bias)
    if isinstance(mixing, Grouped):
        return selection(mixing.i, mixing.o, mixing.taps, spec.bias, mixing.groups)
    if isinstance(mixing, Fixed) and mixing.taps == 1:
        return simple("max" if largest else "sum")
    if isinstance(mixing, Shuffled):
        return channel_shuffle(mixing.i, mixing.groups)
    raise OutsideFamily(f"{spec.name} rearranges pixels into channels, for which sites have no order")


def layer_on_sites(engine: GConv, made: Placed, missing: Missing, source: int) -> OnSites:
    """A grid layer with its weights, between two sets of sites.

    Args:
        engine: a GConv with the weights.
        made: its structure between the sites.
        missing: the treatment of taps that read holes.
        source: the number of input sites.
    """
    spec = engine.spec
    target = spec_on_sites(spec, engine.weight, made.largest)
    value = made.value
    if missing == "renormalise" and not made.largest:
        value = value * _scale(made)[made.row]
    weight = None if made.largest or bool((value == 1).all()) else value
    ends = torch.stack([made.col, made.row])
    domain = Bipartite(ends, (source, made.target.size), edge_weight=weight, edge_type=made.tap)
    like = engine.weight if engine.weight is not None else engine._like
    layer = GConv(target, dtype=like.dtype, device=like.device).train(engine.training)
    carry(engine, layer)
    return OnSites(layer, domain.to(like.device))


def carry(engine: GConv, layer: GConv) -> None:
    """Copy the weight and bias of a grid layer to a layer on sites."""
    mixing, W = plain(engine.spec.mixing, engine.weight)
    with torch.no_grad():
        if layer.weight is not None:
            assert W is not None
            i: Any = getattr(mixing, "i", None)
            layer.weight.copy_(mixing.dense(W, i) if isinstance(mixing, Dense | Separable) else W)
            layer.weight.requires_grad_(bool(engine.weight is not None and engine.weight.requires_grad))
        if layer.bias is not None:
            bias = spread_bias(engine.spec.mixing, engine.bias)
            assert bias is not None and engine.bias is not None
            layer.bias.copy_(bias).requires_grad_(engine.bias.requires_grad)


def _scale(made: Placed) -> Tensor:
    """(m,) the total weight of a row's taps divided by the weight of those that do not read holes."""
    there = made.total - made.missing
    return torch.where(there.abs() > 1e-12, made.total / torch.where(there.abs() > 1e-12, there, 1.0), 0.0)
