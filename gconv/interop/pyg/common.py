"""Helpers for the descriptions of PyG layers: checks of layers and calls, and reading of weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric import nn as pyg
from torch_geometric.nn.conv import MessagePassing

from gconv.domains import Graph, read_graph
from gconv.interop.peer import LeftAlone, Weights, base_class, run
from gconv.kernels import is_fake, is_plain_eager

PLAIN = (Tensor, nn.Parameter)
SUM, MEAN, MAX = ("add", "sum"), ("mean",), ("max",)
AGGR: dict[str, Any] = {"add": "sum", "sum": "sum", "mean": "mean", "max": "max"}
MODULES = {"sum": pyg.SumAggregation, "mean": pyg.MeanAggregation, "max": pyg.MaxAggregation}  # of each of them
CACHED = "cached=True: the first graph is used in all later calls, as in PyG; reset_parameters clears it"
GRAPH_TENSORS = ("edge_index", "edge_weight", "edge_attr", "edge_type", "pos")
HOOKS = tuple(
    f"_{name}_forward_{when}"
    for name in ("propagate", "message", "aggregate", "message_and_aggregate", "edge_update")
    for when in ("hooks", "pre_hooks")
)
BY_CHANNEL = {  # layers that treat the channels of messages independently, so decomposed_layers has no effect
    pyg.GCNConv, pyg.TAGConv, pyg.SGConv, pyg.SSGConv, pyg.APPNP, pyg.LGConv, pyg.MixHopConv, pyg.ChebConv
}  # fmt: skip
AFFINE = "a constant last channel represents the biases that are aggregated like a channel"


def ordinary(layer: Any, aggr: tuple[str, ...] = SUM, node_dim: int = -2) -> None:
    """Check the general options of MessagePassing.

    Raises:
        LeftAlone: if one of them is not supported.
    """
    if layer.flow != "source_to_target":
        raise LeftAlone(f"flow={layer.flow!r}: gconv's edges lead from source to target")
    if layer.node_dim != node_dim:
        raise LeftAlone(f"node_dim={layer.node_dim}: gconv's nodes are the axis before the channels")
    if layer.aggr not in aggr:
        raise LeftAlone(f"aggr={layer.aggr!r} is not one of {', '.join(aggr)}")
    if base_class(layer.aggr_module) is not MODULES[AGGR[layer.aggr]]:
        raise LeftAlone(f"its aggr_module was replaced by {layer.aggr_module}")
    if layer.decomposed_layers > 1 and base_class(layer) not in BY_CHANNEL:
        raise LeftAlone(f"decomposed_layers={layer.decomposed_layers} splits its channels into groups")


def channels_in(layer: Any, both: bool = True, more: int = 0) -> Any:
    """The input channels, a pair if those of sources and targets differ.

    Args:
        layer: the layer.
        both: whether the layer reads the targets.
        more: number of channels appended to the signal.
    """
    channels = layer.in_channels
    if not isinstance(channels, (tuple, list)):
        return channels + more
    source, target = (c + more for c in channels)
    return (source, target) if both and source != target else source


def graph_cached(layer: Any) -> None:
    """Check that a layer has not cached a graph yet.

    Raises:
        LeftAlone: if it has.
    """
    if vars(layer).get("_cached_graph") is not None:  # a converted layer stores the graph itself
        return
    if layer.cached and (layer._cached_edge_index is not None or layer._cached_adj_t is not None):
        raise LeftAlone("cached=True, and it has cached a graph already: reset_parameters clears it")


def observed(layer: Any) -> bool:
    """Whether an explainer or a hook needs the messages."""
    own = vars(layer)
    for name in HOOKS:
        if own.get(name):
            return True
    return bool(layer._explain)


def per_edge(value: Any, x: Tensor, edge_index: Tensor, ndims: tuple[int, ...] = (1,)) -> bool:
    """Whether a value is None, or a tensor with one row per edge and the dtype and device of x."""
    if value is None:
        return True
    if (type(value) not in PLAIN and not is_fake(value)) or value.ndim not in ndims or value.dtype != x.dtype:
        return False
    return len(value) == edge_index.shape[1] and value.device == x.device


def dense(x: Any) -> bool:
    """Whether x is a plain strided tensor, or a fake tensor of an exporter."""
    return (type(x) in PLAIN or is_fake(x)) and x.layout is torch.strided


def several(layer: Any) -> bool:
    """Whether PyG's layer accepts several signals (*b, n, c) on one graph."""
    if getattr(layer, "node_dim", -2) == 0:
        return False
    return layer.gconv.spec.structure.kind != "adaptive" or isinstance(layer, pyg.ResGatedGraphConv)


def usual(layer: Any, x: Any, *indices: Any) -> bool:
    """Whether a call is supported: the signal a plain tensor, edges plain edge_index tensors, messages not observed."""
    if type(x) not in PLAIN and not is_fake(x):
        return False
    if x.layout is not torch.strided or x.ndim < 2 or not x.is_floating_point() or not x.shape[-2]:
        return False
    if layer.gconv.spec.sides is not None:  # it takes pairs only
        return False
    if x.ndim != 2 and not several(layer):
        return False
    for edge_index in indices:
        if (
            (type(edge_index) is not Tensor and not is_fake(edge_index))
            or edge_index.layout != torch.strided
            or edge_index.ndim != 2
        ):
            return False
        if edge_index.dtype != torch.int64 or len(edge_index) != 2:
            return False
    return not (isinstance(layer, MessagePassing) and observed(layer))


def kept_graph(layer: Any, x: Tensor, edge_index: Tensor, **edges: Tensor | None) -> Graph:
    """The given graph; for a layer with cached=True, the first one."""
    if not getattr(layer, "cached", False):
        return read_graph(edge_index, x.shape[-2], **edges)
    if layer._cached_graph is not None:
        return layer._cached_graph
    graph = read_graph(edge_index, x.shape[-2], **edges)
    if is_plain_eager():
        layer._cached_graph = graph
    return graph


def on_graph(layer: Any, x: Tensor, edge_index: Tensor, **edges: Tensor | None) -> Tensor:
    """Run a layer on the graph of `kept_graph`."""
    return run(layer, x, kept_graph(layer, x, edge_index, **edges))


def same_graph(layer: Any, graph: Graph) -> Graph:
    """The graph of the previous call if it equals this one by content, so that its cached quantities are reused.

    For graphs that a call builds from several tensors.
    """
    if graph.learned or not is_plain_eager():
        return graph
    last: Graph | None = layer._last_graph
    alike = last is not None and last.size == graph.size and last.ptr == graph.ptr
    if last is not None and alike and all(_equal(getattr(last, n), getattr(graph, n)) for n in GRAPH_TENSORS):
        return last
    layer._last_graph = graph
    return graph


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and a.device == b.device and a.shape == b.shape and torch.equal(a, b)


def weighted(layer: Any, x: Any, edge_index: Any, edge_weight: Tensor | None = None, size: Any = None) -> Tensor | None:
    """layer(x, edge_index, edge_weight)."""
    if not usual(layer, x, edge_index) or size is not None:
        return None
    if edge_weight is not None and not per_edge(edge_weight, x, edge_index):
        return None
    return run(layer, x, kept_graph(layer, x, edge_index, edge_weight=edge_weight))


def unweighted(layer: Any, x: Any, edge_index: Any, size: Any = None) -> Tensor | None:
    """layer(x, edge_index)."""
    return None if size is not None or not usual(layer, x, edge_index) else on_graph(layer, x, edge_index)


def attributed(layer: Any, x: Any, edge_index: Any, edge_attr: Tensor | None = None, size: Any = None) -> Tensor | None:
    """layer(x, edge_index, edge_attr) with required attributes."""
    if not usual(layer, x, edge_index) or size is not None or edge_attr is None:
        return None
    return run(layer, x, edge_index, edge_attr=edge_attr) if per_edge(edge_attr, x, edge_index, (1, 2)) else None


def has_bias(layer: Any) -> bool:
    return layer.bias is not None


def matrices(*lins: Any) -> Tensor:
    """The weights of linear layers as W (k, i, o), one tap each."""
    if len(lins) == 1:
        return lins[0].weight.t().unsqueeze(0)
    parts = [lin.weight for lin in lins]
    if all([part.shape == parts[0].shape for part in parts]):  # a list, which is faster than a generator
        return torch.stack(parts).mT
    return stacked(*[part.t() for part in parts])


def stacked(*parts: Tensor) -> Tensor:
    """Matrices (i, o) as taps (k, i, o); those with fewer rows are zero-padded."""
    return torch.stack(level(*parts))


def level(*parts: Tensor) -> tuple[Tensor, ...]:
    """Matrices (..., i, o), zero-padded to the same number of rows."""
    widths = [part.shape[-2] for part in parts]
    i = max(widths)
    if widths.count(i) == len(widths):
        return parts
    return tuple(part if part.shape[-2] == i else F.pad(part, (0, 0, 0, i - part.shape[-2])) for part in parts)


def matrix(lin: Any) -> Tensor:
    """The weight (o, i) of a linear layer as (i, o)."""
    W: Tensor = lin.weight.t()
    return W


def sizes(lin: Any) -> tuple[int, int]:
    """The input and output channels of a linear layer of torch or PyG, without computing its weight."""
    if isinstance(lin, nn.Linear):
        return lin.in_features, lin.out_features
    return lin.in_channels, lin.out_channels


def blocks(lin: Any, heads: int, affine: bool = False) -> Tensor:
    """The weight of a linear layer with concatenated heads as (heads, i, c); affine adds its bias, or 0, as a row."""
    W: Tensor = lin.weight.unflatten(0, (heads, -1)).mT
    if not affine:
        return W
    bias = W.new_zeros(heads, W.shape[-1]) if lin.bias is None else lin.bias.unflatten(0, (heads, -1))
    return torch.cat([W, bias.unsqueeze(1)], 1)


def nothing(layer: Any) -> Weights:
    return {}


def biased(*names: str) -> Callable[[Any], Weights]:
    """Weights of layers with one linear layer per tap, of these names, and a separate bias."""
    if len(names) == 1:
        name = names[0]
        return lambda layer: {"weight": getattr(layer, name).weight.t().unsqueeze(0), "bias": layer.bias}
    return lambda layer: {"weight": matrices(*(getattr(layer, n) for n in names)), "bias": layer.bias}


def inner_bias(*names: str) -> Callable[[Any], Weights]:
    """As `biased`, with the bias of the first of the linear layers that has one."""

    def weights(layer: Any) -> Weights:
        lins = [getattr(layer, n) for n in names]
        bias = next((lin.bias for lin in lins if lin.bias is not None), None)
        return {"weight": matrices(*lins), "bias": bias}

    return weights


def listed(*notes: str) -> Callable[[Any], list[str]]:
    """A function that returns these notes for every layer of a class."""
    return lambda layer: list(notes)


def maximum(layer: Any) -> list[str]:
    """The note for layers that take a maximum."""
    return ["a maximum: it has no LinearMap"] if layer.aggr == "max" else []
