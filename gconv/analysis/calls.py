"""Argument handling of analysis functions: maps, layers with domains, and calls of whole models."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gconv.arguments import integer, kind_of, shown
from gconv.domains import Bipartite, Graph, Grid, read_graph
from gconv.interop.layers import Chain, Layer, identify
from gconv.interop.maps import as_linear_map
from gconv.linear import Map
from gconv.spec import OperatorSpec, OutsideFamily

Model = nn.Module | Map | Callable[..., Tensor]


def map_of(A: Any, asking: str, domain: Any = None, x: Tensor | None = None) -> Map:
    """A map unchanged, or a layer as a map on its domain.

    Args:
        A: a map or a layer.
        asking: the name of the calling function, for messages.
        domain, x: for a layer, see `gconv.as_linear_map`.

    Raises:
        TypeError: if it is neither, or the domain of a layer is missing.
        OutsideFamily: if it is a layer or a network that is not a linear map.
    """
    if isinstance(A, Map):
        return A
    if not isinstance(A, nn.Module):
        raise TypeError(
            f"{asking} takes a linear map, layer.at(domain), or a layer with domain=..., but {kind_of(A)} was given."
        )
    if domain is None:
        found = identify(A)
        if isinstance(A, nn.Linear) and isinstance(found, Layer):  # one site: the matrix is the same at every site
            domain = Grid((1,))
        else:
            name = found.name if isinstance(found, Layer) else type(A).__name__
            raise TypeError(
                f"{asking} takes a linear map, and {name} is a map only on a domain, a Grid or a graph: "
                f"{asking}(layer.at(domain)) or {asking}(layer, domain=domain)."
            )
    try:
        return as_linear_map(A, domain, x)
    except OutsideFamily as error:
        if not any(True for _ in A.children()):
            raise
        raise type(error)(
            f"{asking} takes a linear map, not a network: {str(error).rstrip('.')}. Networks are accepted by "
            "lipschitz_bound, affine and effective_receptive_field."
        ) from None


def check_signal(x: Any, asking: str, wanted: str = "(*b, n, c)") -> Tensor:
    """x, if it is a signal.

    Raises:
        TypeError: if it is not a floating point or complex tensor.
        ValueError: if it has fewer than two axes.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{asking} takes a signal x, a tensor of shape {wanted}, but {kind_of(x)} was given.")
    if not (x.dtype.is_floating_point or x.dtype.is_complex):
        raise TypeError(f"{asking} takes a signal of floating point numbers, but its dtype is {x.dtype}.")
    if x.ndim < 2:
        raise ValueError(f"{asking} takes a signal x of shape {wanted}, but its shape is {tuple(x.shape)}.")
    return x


def input_like(x: Any, asking: str, model: Any = None) -> Tensor:
    """An uninitialised input of this shape; dtype and device are those of x if it is a tensor, else the model's.

    Raises:
        TypeError: if x is neither a tensor nor a shape.
    """
    if isinstance(x, Tensor):
        return torch.empty(x.shape, dtype=x.dtype, device=x.device)
    try:
        shape = tuple(integer(n, "x") for n in x)
    except (TypeError, ValueError):
        shape = (-1,)
    if isinstance(x, str | bytes) or not shape or min(shape) < 0:
        given = shown(x) if isinstance(x, tuple | list) else kind_of(x)
        raise TypeError(f"{asking} takes an input x or its shape, such as (3, 32, 32), but {given} was given.")
    like: Any = model if isinstance(model, Map) else None
    if isinstance(model, nn.Module):
        like = next((p for p in model.parameters() if p.is_floating_point() or p.is_complex()), None)
    return torch.empty(shape) if like is None else torch.empty(shape, dtype=like.dtype, device=like.device)


def check_model(model: Any, asking: str) -> None:
    """Check that a model is a map or callable.

    Raises:
        TypeError: if it is not.
    """
    if isinstance(model, type | OperatorSpec) or not (isinstance(model, Map) or callable(model)):
        raise TypeError(
            f"{asking} takes a model (a layer, nn.Sequential, any function of x, or a linear map), "
            f"but {kind_of(model)} was given."
        )


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Restores buffers (running statistics), training modes and the CPU random state of a model on exit."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [(module, module.training) for module in modules]
    held = [(module, dict(module._buffers)) for module in modules]
    numbers = [b for _, buffers in held for b in buffers.values() if b is not None and not is_lazy(b) and not b.is_meta]
    kept = [(b, b.detach().clone()) for b in numbers]
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, training in modes:
            module.training = training
        for module, buffers in held:
            module._buffers.clear()
            module._buffers.update(buffers)
        for buffer, value in kept:
            with torch.inference_mode(buffer.is_inference()), torch.no_grad():
                buffer.copy_(value)


def call(model: Model, x: Tensor, domain: Any = None) -> Tensor:
    """model(x), passing the graph to modules that take one, also inside nn.Sequential.

    Raises:
        TypeError: if the model does not return a tensor.
    """
    y = walk(model, x, domain)[0]
    if not isinstance(y, Tensor):
        raise TypeError(f"The model must return one tensor, but it returned {kind_of(y)}.")
    return y


def walk(model: Model, x: Tensor, domain: Any = None) -> tuple[Tensor, Any]:
    """model(x, domain), and the domain of the result, which pooling changes."""
    if isinstance(model, Map):
        return model @ x, domain
    if isinstance(model, nn.Module):
        found = identify(model)
        if isinstance(found, Chain) and (domain is not None or isinstance(model, nn.ModuleList)):
            for part in found.parts:
                x, domain = walk(part, x, domain)
            return x, domain
        if isinstance(found, Layer):
            if not takes_graph(found, domain):
                return model(x), domain
            graph = graph_of(domain, x.shape[-2])
            y = model(x, graph) if found.peer is None else _hand(model, x, graph)
            return y, found.spec.structure.target(graph)
    return _hand(model, x, domain), domain


def graph_of(domain: Any, size: int) -> Any:
    """A Bipartite unchanged, any other domain of nodes as a Graph."""
    return domain if isinstance(domain, Bipartite) else read_graph(domain, size)


def takes_graph(layer: Layer, domain: Any) -> bool:
    """Whether the domain must be passed to a layer.

    Raises:
        ValueError: if it is a graph layer and the domain is None.
    """
    kind = layer.spec.structure.domain
    if kind == "graph" and domain is None:
        raise ValueError(f"{layer.name} works on a graph: give the graph as the domain.")
    return kind == "graph" or (kind == "any" and domain is not None and not isinstance(domain, Grid))


def _hand(model: Callable[..., Any], x: Tensor, domain: Any) -> Any:
    """model(x), model(x, domain) or model(x, edge_index=...), depending on its signature."""
    more, named = arguments(model, x, domain)
    return model(x, *more, **named)


def arguments(model: Callable[..., Any], x: Tensor, domain: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a model besides x, determined from its signature.

    Raises:
        TypeError: if the graph has weights that the model does not take.
    """
    if domain is None:
        return (), {}
    module = isinstance(model, nn.Module)
    try:
        parameters = inspect.signature(model.forward if module else model).parameters  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        return (domain,), {}
    if "edge_index" in parameters:
        graph: Graph = read_graph(domain, x.shape[-2])
        tensors = {name: getattr(graph, name) for name in ("edge_weight", "edge_attr", "edge_type")}
        given = {name: value for name, value in tensors.items() if value is not None and name in parameters}
        if tensors["edge_weight"] is not None and "edge_weight" not in given:
            raise TypeError(f"{type(model).__name__} takes no edge_weight, but the graph has weights.")
        return (), {"edge_index": graph.edge_index, **given}
    kinds = [p.kind for p in parameters.values()]
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    second = sum(kind in places for kind in kinds) > 1 or inspect.Parameter.VAR_POSITIONAL in kinds
    if not second or (module and type(model).__module__.startswith("torch.nn.")):
        return (), {}
    return (domain,), {}
