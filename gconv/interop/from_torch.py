"""Layers of other libraries as independent GConv layers."""

from __future__ import annotations

import torch
from torch import nn

from gconv.arguments import checked, shown
from gconv.interop.layers import Layer, Other, identify
from gconv.interop.peer import UNKNOWN, Unweighted, base_class
from gconv.interop.peers import uninitialised
from gconv.module import GConv
from gconv.spec import OutsideFamily


def gconv_of(layer: nn.Module, asking: str) -> GConv:
    """A GConv that shares the weights of a layer, or the layer itself if it is a GConv.

    Raises:
        TypeError: if it is not a layer.
        OutsideFamily: if it is not in the family, or computes more than sum_k S_k X W_k + b.
    """
    if not isinstance(layer, nn.Module):
        raise TypeError(f"{asking} takes a layer, such as nn.Conv2d(3, 8, 3), but {shown(layer)} was given.")
    if uninitialised(layer):
        raise OutsideFamily(f"{type(layer).__name__} is not initialised, so it has no weights yet: call it once.")
    found, name = identify(layer), base_class(layer).__name__
    if not isinstance(found, Layer):
        why = found.reason if isinstance(found, Other) else UNKNOWN
        if why == UNKNOWN and any(True for _ in layer.children()):
            why = "it contains several layers: convert them one by one"
            why += ", or run the whole network on pixels with gconv.transfer" if asking == "twin" else ""
        raise OutsideFamily(f"{name} cannot be written as a GConv: {why}.")
    if found.after:
        raise OutsideFamily(f"{name} cannot be written as a single GConv: {found.after}.")
    if found.peer is not None and found.peer.affine(layer):
        raise OutsideFamily(
            f"{name} cannot be written as a single GConv: its structure also acts on a bias; use gconv.convert."
        )
    if found.peer is None:
        assert isinstance(layer, GConv)
        return layer
    engine = Unweighted(found.spec)
    engine._like = next(layer.parameters(), engine._like)
    return engine.borrow(found.peer.weights(layer))


@checked
def from_torch(layer: nn.Module) -> GConv:
    """A GConv with the operator and copies of the weights of a layer; see `GConv.from_torch`.

    >>> from_torch(nn.Conv2d(3, 8, 3, padding=1))
    GConv(conv2d(3, 8, 3, padding=1))
    """
    own = gconv_of(layer, "GConv.from_torch")
    given = {key: value for key, value in own._parameters.items() if value is not None}
    like = next(iter(given.values()), own._like)
    made = GConv(own.spec, dtype=like.dtype, device=like.device).train(layer.training)
    with torch.no_grad():
        for key, parameter in made._parameters.items():
            if parameter is not None:
                parameter.copy_(given[key]).requires_grad_(given[key].requires_grad)
    return made
