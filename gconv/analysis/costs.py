"""Predicted cost of a call, and numbers of parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gconv.analysis.calls import check_signal
from gconv.arguments import checked, kind_of
from gconv.call import Call
from gconv.domains import read_graph
from gconv.interop.layers import Layer, Other, identify
from gconv.linear import Block, Composed, LinearMap, Map, Scaled, Sum
from gconv.lowering import Cost
from gconv.plan import Plan, plan
from gconv.spec import OutsideFamily


@checked
def cost(A: Map | nn.Module, x: Tensor | None = None, domain: Any = None) -> dict[str, Cost]:
    """Operations, memory traffic and largest temporary of one forward pass, for every lowering that supports it.

    Equation: flops counts a multiply-add as two; bytes counts each array read or written once; peak is the size of the
    largest intermediate array.

    Meaning: these are the estimates that the planner compares; nothing is run. The flops of `native`, `im2col` and
    dense products equal those of torch's counter, which does not count sparse products.

    Traps: products with padding are counted, as in torch's counter. Compositions and sums run their parts in turn, so
    they have a single entry, "planned".

    Args:
        A: a layer (a GConv, or one of torch.nn or PyG, converted or not) or a map.
        x: the signal, in the layout of the layer or of the map; default, for a map: a single signal.
        domain: the graph, for layers on graphs.

    Returns:
        the Cost of each lowering, by name.

    Raises:
        TypeError: if A is neither a layer nor a map, or x is missing for a layer.
        OutsideFamily: if the layer does not run in gconv.

    >>> from gconv import GConv
    >>> from gconv.operators import conv2d
    >>> costs = cost(GConv(conv2d(3, 64, 3, padding=1)), torch.zeros(1, 3, 32, 32))
    >>> costs["native"].flops == 2 * 9 * 3 * 64 * 32 * 32, costs["dense"].flops > costs["native"].flops
    (True, True)
    """
    if isinstance(A, nn.Module):
        found = identify(A)
        if not isinstance(found, Layer):
            why = found.reason if isinstance(found, Other) else "call it for each layer"
            raise OutsideFamily(f"cost takes a single layer, but {kind_of(A)} was given: {why}.")
        if x is None:
            raise TypeError("The cost of a layer depends on its input: give an x.")
        if not isinstance(x, Tensor):
            raise TypeError(f"cost takes the input x of the layer, a tensor, but {kind_of(x)} was given.")
        asked = found.enter(x, domain if domain is None or found.peer is None else read_graph(domain, x.shape[-2]))
        return _admitted(asked.gconv.plan(asked.x, asked.domain, **asked.edges))
    if not isinstance(A, Map):
        raise TypeError(f"cost takes a layer or a linear map, but {kind_of(A)} was given.")
    if x is not None:
        A.expect(check_signal(x, "cost"))
    else:
        x = torch.empty(A.sites[1], A.i, dtype=A.dtype, device="meta")
    if isinstance(A, LinearMap):
        return _admitted(plan(A.S, Call(x, A.mixing)))
    return {"planned": _planned(A, x)}


def _admitted(found: Plan) -> dict[str, Cost]:
    return {c.name: c.cost for c in found.candidates if c.cost is not None}


def _planned(A: Map, x: Tensor) -> Cost:
    """The sum of the costs of the chosen lowerings of all parts."""
    if isinstance(A, LinearMap):
        found = plan(A.S, Call(x, A.mixing))
        return _admitted(found)[found.chosen.name]
    if isinstance(A, Scaled):
        return _planned(A.A, x) + _extra(A, x, 1)
    if isinstance(A, Composed):
        total = Cost(0.0, 0.0)
        for B in reversed(A.factors):
            total, x = total + _planned(B, x), x.new_empty(*x.shape[:-2], B.sites[0], B.o, device="meta")
        return total
    if isinstance(A, Sum):
        total = _extra(A, x, len(A.terms) - 1)
        for B in A.terms:
            total = total + _planned(B, x)
        return total
    if not isinstance(A, Block):
        raise TypeError(f"cost takes maps of gconv, but {kind_of(A)} was given.")
    total = _extra(A, x, 1)
    for B in A.maps:
        total = total + _planned(B, x.new_empty(*x.shape[:-2], B.sites[1], B.i, device="meta"))
    return total


def _extra(A: Map, x: Tensor, times: int) -> Cost:
    """The cost of `times` element-wise passes over the output."""
    numbers = float(times) * A.sites[0] * A.o * max(1, x.shape[:-2].numel())
    return Cost(numbers, 3 * x.element_size() * numbers)


@checked
def parameter_count(model: nn.Module, trainable: bool = True) -> int:
    """The number of parameters of a layer or model, including those of learned structures.

    Args:
        model: any module; a shared parameter counts once.
        trainable: count only parameters that require gradients.

    Raises:
        TypeError: if it is not a module.

    >>> from gconv import GConv
    >>> from gconv.operators import conv2d
    >>> parameter_count(GConv(conv2d(3, 64, 3)))
    1792
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"parameter_count takes a layer or a model, a torch module, but {kind_of(model)} was given.")
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)
