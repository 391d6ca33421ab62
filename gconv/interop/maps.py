"""Foreign layers as linear maps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from gconv.domains import Grid
from gconv.interop.peer import LeftAlone, Unweighted, with_ones
from gconv.interop.peers import base_class, describe
from gconv.linear import LinearMap
from gconv.module import GConv
from gconv.spec import NotLinear, OutsideFamily


def as_linear_map(module: nn.Module, domain: Any, x: Tensor | None = None) -> LinearMap:
    """A layer of torch.nn, PyG or gconv on a domain, as the linear map that it is; its bias is left out.

    Equation: A @ x = layer(x) - layer(0), A = sum_k W_k^T (x) S_k.

    Meaning: the door to matrix, spectrum, norm and adjoint for layers that were never written with gconv.

    Args:
        module: a layer, converted or not.
        domain: a Grid for what works on images, otherwise a Graph, edge_index, PyG Data, ... with the edge weights or
            attributes that the layer would be called with.
        x: (n, i) the signal at which adaptive structure (attention) is frozen.

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
    name = base_class(module).__name__
    try:
        peer, spec = describe(module)
    except LeftAlone as reason:
        raise OutsideFamily(f"{name} has no LinearMap: {reason}.") from None
    after = peer.after(module)
    if after:
        raise NotLinear(f"{name} is not linear: {after}.")
    if peer.any_axes and isinstance(domain, Grid):
        spec = peer.spec(module, domain.ndim)
    layer = Unweighted(spec).eval().borrow(peer.weights(module))
    if not peer.affine(module):
        return layer.at(domain, x)
    A = layer.at(domain, None if x is None else with_ones(x))
    assert A.W is not None
    i = A.i - 1  # without the channel of ones, which holds biases
    return replace(A, mixing=replace(A.mixing, i=i), W=A.W[..., :i, :], i=i)  # type: ignore[type-var]
