"""How a question reaches what it is asked about: a layer, a sequence of them, or a map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from gconv.linear import Map
from gconv.module import GConv
from gconv.spec import Domain

Model = nn.Module | Map | Callable[..., Tensor]


def map_of(A: Map | GConv, domain: Domain | Any = None, x: Tensor | None = None) -> Map:
    """A map as it is; a layer on its domain.

    Raises:
        TypeError: if it is neither, or a layer comes without a domain.
    """
    if isinstance(A, Map):
        return A
    if not isinstance(A, GConv):
        raise TypeError(f"This question is about a GConv or a linear map of one, not about a {type(A).__name__}.")
    if domain is None:
        raise TypeError(f"{A.spec} is a map only on a domain: give a Grid or a graph beside it.")
    return A.at(domain, x)


def call(model: Model, x: Tensor, domain: Any = None) -> Tensor:
    """model(x), the graph handed to whatever takes one: to GConv layers on graphs, inside nn.Sequential, too."""
    if isinstance(model, Map):
        return model @ x
    if isinstance(model, nn.Sequential | nn.ModuleList):
        for layer in model:
            x = call(layer, x, domain)
        return x
    if isinstance(model, GConv):
        graph = domain if takes_graph(model) else None
        out: Tensor = model(x) if graph is None else model(x, graph)
        return out
    known = domain is None or type(model).__module__.startswith("torch.nn")
    return model(x) if known else model(x, domain)


def takes_graph(layer: GConv) -> bool:
    """Whether a layer must be handed a graph."""
    return layer.spec.structure.domain == "graph"
