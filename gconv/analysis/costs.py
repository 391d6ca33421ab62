"""What a call costs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gconv.analysis.calls import check_signal, kind_of
from gconv.arguments import checked
from gconv.call import Call
from gconv.domains import read_graph
from gconv.interop.layers import Layer, Other, identify
from gconv.linear import Block, Composed, LinearMap, Map, Scaled, Sum
from gconv.lowering import Cost
from gconv.plan import Plan, plan
from gconv.spec import OutsideFamily


@checked
def cost(A: Map | nn.Module, x: Tensor | None = None, domain: Any = None) -> dict[str, Cost]:
    """Arithmetic, memory traffic and largest temporary of one forward pass, for every lowering that admits it.

    Equation: flops counts a multiply-add as two; bytes is what is read and written once; peak is the largest array
    made on the way.

    Meaning: these are the numbers that the planner compares; nothing is run. The flops of `native`, `im2col` and dense
    products are what torch's own counter counts; sparse products, which it does not know, are counted here.

    Traps: padding counts as work, as it does in torch's counter. Compositions and sums run each part in turn, as
    planned, so they have the one entry "planned".

    Args:
        A: a layer (a GConv, or one of torch.nn or PyG, converted or not) or a map.
        x: the signal, in the layer's or the map's layout; default, for a map, a single one.
        domain: the graph, for layers on graphs.

    Raises:
        TypeError: if it is neither a layer nor a map, or a layer comes without x.
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
            why = found.reason if isinstance(found, Other) else "ask about its layers one by one"
            raise OutsideFamily(f"cost knows single layers, not {kind_of(A)}: {why}.")
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
    """Of the cheapest way through each part."""
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
        raise TypeError(f"cost knows maps that gconv makes, not {kind_of(A)}.")
    total = _extra(A, x, 1)
    for B in A.maps:
        total = total + _planned(B, x.new_empty(*x.shape[:-2], B.sites[1], B.i, device="meta"))
    return total


def _extra(A: Map, x: Tensor, times: int) -> Cost:
    """Passes over the output."""
    numbers = float(times) * A.sites[0] * A.o * max(1, x.shape[:-2].numel())
    return Cost(numbers, 3 * x.element_size() * numbers)


@checked
def parameter_count(model: nn.Module, trainable: bool = True) -> int:
    """The number of numbers that a layer or model learns, those of its structures included.

    Args:
        model: any module; a parameter that appears twice counts once.
        trainable: only those that require a gradient.

    Raises:
        TypeError: if it is no module.

    >>> from gconv import GConv
    >>> from gconv.operators import conv2d
    >>> parameter_count(GConv(conv2d(3, 64, 3)))
    1792
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"parameter_count takes a layer or a model, a torch module, but {kind_of(model)} was given.")
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)
