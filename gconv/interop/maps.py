"""Layers of torch.nn and PyG as linear maps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gconv.arguments import checked, kind_of
from gconv.domains import Grid, read_graph
from gconv.interop.layers import Chain, Layer, Other, identify
from gconv.interop.peer import base_class
from gconv.linear import Map
from gconv.spec import OutsideFamily


@checked
def as_linear_map(module: nn.Module, domain: Any, x: Tensor | None = None) -> Map:
    """A layer of torch.nn, PyG or gconv on a domain as a linear map, without its bias.

    Equation: A @ x = layer(x) - layer(0), A = sum_k S_k (x) W_k^T.

    Meaning: it makes matrix, spectrum, norm and adjoint available for layers of other libraries. An `nn.Sequential` is
    the composition of its layers, `A_k @ ... @ A_1`, without Identity and, in eval mode, Dropout.

    Args:
        module: a layer, converted or not.
        domain: a Grid for layers on images, otherwise a Graph, edge_index, PyG Data, ... with the edge weights or
            attributes of the call; for PyG's dense layers the adjacency (n, n).
        x: (n, i) the signal at which adaptive structure (attention) is frozen; for torch's layers also an image
            (i, *grid).

    Shapes: A maps signals (*b, n, i) to (*b, m, o), with sites before channels also on grids.

    Raises:
        OutsideFamily: if the layer is not in the family; the message says why.
        NotLinear: if it takes a maximum, or a nonlinear function follows its linear part.
        TypeError: if it is not a module.
        ValueError: if its structure is adaptive and no x is given.

    >>> import torch
    >>> from torch import nn
    >>> A = as_linear_map(nn.Conv2d(3, 8, 3, padding=1), Grid((5, 6)))
    >>> A.shape
    (240, 90)
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"as_linear_map takes a layer, but {kind_of(module)} was given.")
    found = identify(module)
    if isinstance(found, Chain) and found.parts:
        return _composed([part for part in found.parts if not _passes(part)], domain, x)
    return _layer(module, found).at(domain, x)


def _layer(module: nn.Module, found: Layer | Chain | Other) -> Layer:
    if isinstance(found, Layer):
        return found
    reason = found.reason if isinstance(found, Other) else "it is an empty container"
    raise OutsideFamily(f"{base_class(module).__name__} has no LinearMap: {reason}.")


def _passes(part: nn.Module) -> bool:
    """Whether a layer returns its input."""
    return type(part) is nn.Identity or (type(part) is nn.Dropout and not part.training)


def _composed(parts: list[nn.Module], domain: Any, x: Tensor | None) -> Map:
    """The composition of the maps of a sequence of layers, each on the output domain of the previous one."""
    place: Any = domain if isinstance(domain, Grid) else read_graph(domain, -1 if x is None else x.shape[-2])
    A: Map | None = None
    for part in parts:
        layer = _layer(part, identify(part))
        structure = layer.spec.structure
        at = x
        if x is None and A is not None and structure.kind != "adaptive":  # determines the number of channels
            at = torch.zeros(place.size, A.o, dtype=A.dtype, device=A.device)
        step = layer.at(place, at)
        place = structure.target(place)
        x = None if x is None else step @ x
        A = step if A is None else step @ A
    if A is None:
        raise OutsideFamily("An nn.Sequential of identities only has no LinearMap: there is nothing to map.")
    return A
