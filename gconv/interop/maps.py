"""Foreign layers as linear maps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gconv.domains import Grid, read_graph
from gconv.interop.peer import LeftAlone, Unweighted, with_ones
from gconv.interop.peers import base_class, describe
from gconv.linear import Map
from gconv.module import GConv
from gconv.spec import NotLinear, OutsideFamily, Structure


def as_linear_map(module: nn.Module, domain: Any, x: Tensor | None = None) -> Map:
    """A layer of torch.nn, PyG or gconv on a domain, as the linear map that it is; its bias is left out.

    Equation: A @ x = layer(x) - layer(0), A = sum_k W_k^T (x) S_k.

    Meaning: the door to matrix, spectrum, norm and adjoint for layers that were never written with gconv.

    Args:
        module: a layer, converted or not.
        domain: a Grid for what works on images, otherwise a Graph, edge_index, PyG Data, ... with the edge weights or
            attributes that the layer would be called with; for PyG's dense layers the adjacency (n, n).
        x: (n, i) the signal at which adaptive structure (attention) is frozen.

    `nn.Sequential` is the composition of its layers, `A_k @ ... @ A_1`; Identity, and Dropout in eval, are left out.

    Shapes: A maps signals (*b, n, i) to (*b, m, o), sites before channels also on grids.

    Raises:
        OutsideFamily: if the layer is not of the family; the message says why.
        NotLinear: if it takes a maximum, or something nonlinear follows its linear part.
        ValueError: if its structure is adaptive and no x is given.

    >>> import torch
    >>> from torch import nn
    >>> A = as_linear_map(nn.Conv2d(3, 8, 3, padding=1), Grid((5, 6)))
    >>> A.shape
    (240, 90)
    """
    if isinstance(module, GConv) and not isinstance(module, Unweighted):
        return module.at(domain, x)
    if not isinstance(module, nn.Module):
        raise TypeError(f"as_linear_map takes a layer, but a {type(module).__name__} was given.")
    if type(module) is nn.Sequential and len(module):
        return _composed([part for part in module if not _passes(part)], domain, x)
    name = base_class(module).__name__
    try:
        peer, spec = describe(module)
    except LeftAlone as reason:
        raise OutsideFamily(f"{name} has no LinearMap: {reason}.") from None
    after = peer.after(module)
    if after:
        raise NotLinear(f"{name} is not linear: {after}.")
    spec, domain = peer.settle(module, spec, domain)
    layer = Unweighted(spec).eval().borrow(peer.weights(module))
    if not peer.affine(module):
        return layer.at(domain, x)
    A = layer.at(domain, None if x is None else with_ones(x))
    assert A.W is not None
    i = A.i - 1  # without the channel of ones, which holds biases
    return replace(A, mixing=replace(A.mixing, i=i), W=A.W[..., :i, :], i=i)  # type: ignore[type-var]


def _passes(part: nn.Module) -> bool:
    return isinstance(part, nn.Identity) or (isinstance(part, nn.Dropout) and not part.training)


def _structure(part: nn.Module) -> Structure:
    try:
        return part.spec.structure if isinstance(part, GConv) else describe(part)[1].structure
    except LeftAlone as reason:
        raise OutsideFamily(f"{base_class(part).__name__} has no LinearMap: {reason}.") from None


def _composed(parts: list[nn.Module], domain: Any, x: Tensor | None) -> Map:
    """The maps of layers in a row, each on the domain that the one before leads to."""
    place = domain if isinstance(domain, Grid) else read_graph(domain, -1 if x is None else x.shape[-2])
    A: Map | None = None
    for part in parts:
        at = x
        if x is None and A is not None and _structure(part).kind != "adaptive":  # says how many channels pass
            at = torch.zeros(place.size, A.o, dtype=A.dtype, device=A.device)
        step = as_linear_map(part, place, at)
        place = _structure(part).target(place)
        x = None if x is None else step @ x
        A = step if A is None else step @ A
    if A is None:
        raise OutsideFamily("A Sequential without layers that do something has no LinearMap: there is nothing to map.")
    return A
