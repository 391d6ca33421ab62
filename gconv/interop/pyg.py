"""The layers of PyG, one entry a class. Imported only for models that contain some."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn.conv import MessagePassing

from gconv import operators
from gconv.domains import Graph, read_graph
from gconv.interop.peer import LeftAlone, Peer, Weights, run
from gconv.interop.peers import base_class
from gconv.interop.torch_nn import linear_call
from gconv.operators.outside import OUTSIDE
from gconv.spec import OperatorSpec

PLAIN = (Tensor, nn.Parameter)
SUM, MEAN, MAX = ("add", "sum"), ("mean",), ("max",)
AGGR = {"add": "sum", "sum": "sum", "mean": "mean", "max": "max"}


def is_layer(module: nn.Module) -> bool:
    """Whether a report speaks of a module of PyG."""
    return isinstance(module, MessagePassing) or type(module).__name__ in PEERS or type(module).__name__ in OUTSIDE


ELSEWHERE = {
    "PANConv": "it returns its matrix as a SparseTensor beside the signal; gconv.operators.pan is the operator alone",
    "SplineConv": "it runs on a compiled package that gconv was not tested against; gconv.operators.spline is the "
    "operator",
}


def why_outside(name: str) -> str:
    """The reason why a class of PyG is left alone."""
    if name in ELSEWHERE:
        return ELSEWHERE[name]
    return OUTSIDE.get(name, "no layer that gconv knows").rstrip(".")


# -- what must be ordinary about a layer, and about a call ---------------------------------------------------------


def ordinary(layer: Any, aggr: tuple[str, ...] = SUM, node_dim: int = -2) -> None:
    """Refuse what PyG lets any layer change.

    Raises:
        LeftAlone: with the reason.
    """
    if layer.flow != "source_to_target":
        raise LeftAlone(f"flow={layer.flow!r}: gconv's edges lead from source to target")
    if layer.node_dim != node_dim:
        raise LeftAlone(f"node_dim={layer.node_dim}: gconv's nodes are the axis before the channels")
    if layer.aggr not in aggr:
        raise LeftAlone(f"aggr={layer.aggr!r}, which is none of {', '.join(aggr)}")
    if layer.aggr == "softmax" or getattr(layer.aggr_module, "learn", False):
        raise LeftAlone("its aggregation is learned")
    if layer.decomposed_layers > 1:
        raise LeftAlone(f"decomposed_layers={layer.decomposed_layers} cuts its channels into pieces")


def one_kind(layer: Any, kind: str = "") -> None:
    """Refuse layers between two sets of nodes.

    Raises:
        LeftAlone: with the reason.
    """
    channels = layer.in_channels
    if isinstance(channels, (tuple, list)) and (kind == "apart" or channels[0] != channels[1]):
        raise LeftAlone(f"in_channels={tuple(channels)}: it leads from one set of nodes to another")


def never_cached(layer: Any) -> None:
    """Refuse layers that keep their first result, whatever signal comes later.

    Raises:
        LeftAlone: with the reason.
    """
    if layer.cached:
        raise LeftAlone("cached=True: PyG returns what the first signal gave, whatever comes later")


def graph_cached(layer: Any) -> None:
    """Refuse a layer whose cache is already full.

    Raises:
        LeftAlone: with the reason.
    """
    if layer.cached and (layer._cached_edge_index is not None or layer._cached_adj_t is not None):
        raise LeftAlone("cached=True, and it holds a graph already: reset_parameters empties it")


CACHED = "cached=True: the first graph serves all later calls, as in PyG; reset_parameters forgets it"


def observed(layer: Any) -> bool:
    """Whether an explainer or a hook looks into the messages."""
    hooks = ("propagate", "message", "aggregate", "message_and_aggregate", "edge_update")
    return bool(layer._explain) or any(
        vars(layer).get(f"_{name}_forward_{when}") for name in hooks for when in ("hooks", "pre_hooks")
    )


def per_edge(value: Any, x: Tensor, edge_index: Tensor, ndims: tuple[int, ...] = (1,)) -> bool:
    """Whether there is nothing, or one row an edge of x's dtype."""
    if value is None:
        return True
    if type(value) not in PLAIN or value.ndim not in ndims or value.dtype != x.dtype:
        return False
    return len(value) == edge_index.shape[1] and value.device == x.device


def usual(layer: Any, x: Any, *indices: Any) -> bool:
    """A signal as one tensor, edges as plain edge_index tensors, and nobody looking."""
    if type(x) not in PLAIN or x.ndim < 2 or not x.is_floating_point() or not x.shape[-2]:
        return False
    if x.ndim != 2 and (getattr(layer, "node_dim", -2) == 0 or layer.gconv.spec.structure.kind != "fixed"):
        return False
    for edge_index in indices:
        if type(edge_index) is not Tensor or edge_index.layout != torch.strided or edge_index.ndim != 2:
            return False
        if edge_index.dtype != torch.int64 or len(edge_index) != 2:
            return False
    return not (isinstance(layer, MessagePassing) and observed(layer))


def kept_graph(layer: Any, x: Tensor, edge_index: Tensor, **edges: Tensor | None) -> Graph:
    """The graph that is given; the first one that was, if the layer caches."""
    if not getattr(layer, "cached", False):
        return read_graph(edge_index, x.shape[-2], **edges)
    if layer._cached_graph is None:
        layer._cached_graph = read_graph(edge_index, x.shape[-2], **edges)
    return layer._cached_graph


def on_graph(layer: Any, x: Tensor, edge_index: Tensor, **edges: Tensor | None) -> Tensor:
    """Run on that graph."""
    return run(layer, x, kept_graph(layer, x, edge_index, **edges))


def weighted(layer: Any, x: Any, edge_index: Any, edge_weight: Tensor | None = None, size: Any = None) -> Tensor | None:
    """layer(x, edge_index, edge_weight)."""
    if not usual(layer, x, edge_index) or not per_edge(edge_weight, x, edge_index) or size is not None:
        return None
    return on_graph(layer, x, edge_index, edge_weight=edge_weight)


def unweighted(layer: Any, x: Any, edge_index: Any, size: Any = None) -> Tensor | None:
    """layer(x, edge_index)."""
    return None if size is not None or not usual(layer, x, edge_index) else on_graph(layer, x, edge_index)


def attributed(layer: Any, x: Any, edge_index: Any, edge_attr: Tensor | None = None, size: Any = None) -> Tensor | None:
    """layer(x, edge_index, edge_attr), attributes needed."""
    if not usual(layer, x, edge_index) or size is not None or edge_attr is None:
        return None
    return run(layer, x, edge_index, edge_attr=edge_attr) if per_edge(edge_attr, x, edge_index, (1, 2)) else None


# -- weights -------------------------------------------------------------------------------------------------------


def has_bias(layer: Any) -> bool:
    return layer.bias is not None


def matrix(lin: Any) -> Tensor:
    """A linear layer's (o, i) as (i, o)."""
    W: Tensor = lin.weight.t()
    return W


def matrices(*lins: Any) -> Tensor:
    """Linear layers as W (k, i, o), a tap each."""
    return matrix(lins[0]).unsqueeze(0) if len(lins) == 1 else torch.stack([matrix(lin) for lin in lins])


def sizes(lin: Any) -> tuple[int, int]:
    """Channels in and out of a linear layer; PyG's own numbers stay -1 where they were found lazily."""
    return lin.weight.shape[1], lin.weight.shape[0]


def blocks(lin: Any, heads: int, affine: bool = False) -> Tensor:
    """A linear layer that writes heads side by side, as (heads, i, c); affine with its bias, or 0, as a last row."""
    W: Tensor = lin.weight.unflatten(0, (heads, -1)).mT
    if not affine:
        return W
    bias = W.new_zeros(heads, W.shape[-1]) if lin.bias is None else lin.bias.unflatten(0, (heads, -1))
    return torch.cat([W, bias.unsqueeze(1)], 1)


# -- one step ------------------------------------------------------------------------------------------------------


def gcn_spec(layer: Any, improved: bool | None = None) -> OperatorSpec:
    ordinary(layer)
    graph_cached(layer)
    improved = layer.improved if improved is None else improved
    return operators.gcn(*sizes(layer.lin), improved, layer.add_self_loops, layer.normalize, bias=has_bias(layer))


def gcn_call(layer: Any, x: Any, edge_index: Any, edge_weight: Any = None) -> Tensor | None:
    if not layer.improved:
        return weighted(layer, x, edge_index, edge_weight)
    if not usual(layer, x, edge_index) or not per_edge(edge_weight, x, edge_index):
        return None
    graph = kept_graph(layer, x, edge_index, edge_weight=edge_weight)
    return run(layer, x, graph, gcn_spec(layer, False) if graph.edge_weight is None else None)


def gcn_notes(layer: Any) -> list[str]:
    notes = []
    if layer.normalize:
        notes.append("degrees count the arriving weights and normalise both ends, on directed graphs too")
    if layer.add_self_loops:
        notes.append("a node with a self-loop keeps it and gets no second one")
    if layer.improved:
        notes.append("improved=True: loops weigh 2 where edge weights are given, and 1 where none are")
    return notes + [CACHED] * layer.cached


def sage_spec(layer: Any) -> OperatorSpec:
    ordinary(layer, (*SUM, *MEAN, *MAX))
    one_kind(layer)
    root = layer.root_weight and not layer.project
    return operators.sage(*sizes(layer.lin_l), AGGR[layer.aggr], root, layer.lin_l.bias is not None)


def sage_weights(layer: Any) -> Weights:
    root = layer.root_weight and not layer.project
    lins = (layer.lin_l, layer.lin_r) if root else (layer.lin_l,)
    return {"weight": matrices(*lins), "bias": layer.lin_l.bias}


def sage_call(layer: Any, x: Any, edge_index: Any, size: Any = None) -> Tensor | None:
    if size is not None or not usual(layer, x, edge_index):
        return None
    if layer.project:
        y = run(layer, layer.lin(x).relu(), edge_index)
        y = y + layer.lin_r(x) if layer.root_weight else y
    else:
        y = run(layer, x, edge_index)
    return F.normalize(y, dim=-1) if layer.normalize else y


def sage_after(layer: Any) -> str | None:
    if layer.project:
        return "with project=True neighbours pass a ReLU before they are aggregated"
    return "with normalize=True each row is divided by its length" if layer.normalize else None


def sage_notes(layer: Any) -> list[str]:
    notes = ["edge weights are ignored"]
    if layer.project:
        notes.append("project=True: the linear layer and the ReLU before it stay PyG's, and so does lin_r")
    if layer.normalize:
        notes.append("normalize=True: each row is divided by its length afterwards")
    return notes + maximum(layer)


def maximum(layer: Any) -> list[str]:
    return ["a maximum: it has no LinearMap"] if layer.aggr == "max" else []


def graphconv_spec(layer: Any) -> OperatorSpec:
    ordinary(layer, (*SUM, *MEAN, *MAX))
    one_kind(layer)
    return operators.graphconv(*sizes(layer.lin_rel), AGGR[layer.aggr], layer.lin_rel.bias is not None)


def mean_notes(layer: Any) -> list[str]:
    return ["the mean divides by the number of edges, not by their weights"] * (layer.aggr == "mean") + maximum(layer)


def simple_spec(layer: Any) -> OperatorSpec:
    ordinary(layer, (*SUM, *MEAN, *MAX))
    return operators.simple(AGGR[layer.aggr], layer.combine_root)


def gin_spec(layer: Any) -> OperatorSpec:
    ordinary(layer)
    return operators.gin(train_eps=True)


def gin_call(layer: Any, x: Any, edge_index: Any, size: Any = None) -> Tensor | None:
    return None if size is not None or not usual(layer, x, edge_index) else layer.nn(run(layer, x, edge_index))


GIN_NOTES = ["its aggregation runs through gconv; the network behind it, `nn`, is kept", "edge weights are ignored"]


def cluster_spec(layer: Any) -> OperatorSpec:
    ordinary(layer)
    if not layer.add_self_loops:
        raise LeftAlone(
            "add_self_loops=False: PyG then needs as many loops as nodes, and weighs them by their place in the list"
        )
    return operators.cluster_gcn(
        *sizes(layer.lin_out), layer.diag_lambda, layer.add_self_loops, layer.lin_out.bias is not None
    )


def le_spec(layer: Any) -> OperatorSpec:
    ordinary(layer)
    one_kind(layer)
    i, o = sizes(layer.lin1)
    return operators.le(i + (layer.lin1.bias is not None), o, layer.lin3.bias is not None)


def le_weights(layer: Any) -> Weights:
    lins = (layer.lin1, layer.lin2, layer.lin3)
    if layer.lin1.bias is None:
        return {"weight": matrices(*lins), "bias": layer.lin3.bias}
    zero = torch.zeros_like(layer.lin1.bias)
    rows = torch.stack([layer.lin1.bias, zero, zero]).unsqueeze(1)
    return {"weight": torch.cat([matrices(*lins), rows], 1), "bias": layer.lin3.bias}


AFFINE = "a last channel of ones carries the biases that are mixed or weighed like a channel"


# -- polynomials ---------------------------------------------------------------------------------------------------


def cheb_spec(layer: Any, lambda_max: Any = "bound") -> OperatorSpec:
    ordinary(layer)
    i, o = sizes(layer.lins[0])
    return operators.cheb(i, o, len(layer.lins), layer.normalization, lambda_max, has_bias(layer))


def cheb_call(
    layer: Any, x: Any, edge_index: Any, edge_weight: Any = None, batch: Any = None, lambda_max: Any = None
) -> Tensor | None:
    if not usual(layer, x, edge_index) or not per_edge(edge_weight, x, edge_index):
        return None
    if lambda_max is None:
        return run(layer, x, edge_index, edge_weight=edge_weight)
    if isinstance(lambda_max, Tensor) and (lambda_max.numel() != 1 or lambda_max.requires_grad):
        return None
    top = float(lambda_max)
    return run(layer, x, edge_index, cheb_spec(layer, top), edge_weight=edge_weight) if top > 0 else None


CHEB_NOTES = [
    "self-loops are dropped; out-degrees normalise",
    "lambda_max defaults to 2 max(L_ij) of the whole batch of graphs",
]


def tag_spec(layer: Any) -> OperatorSpec:
    ordinary(layer)
    if not layer.normalize:
        raise LeftAlone("normalize=False: gconv's tag always normalises")
    i, o = sizes(layer.lins[0])
    return operators.tag(i, o, len(layer.lins) - 1, has_bias(layer))


def sg_spec(layer: Any) -> OperatorSpec:
    ordinary(layer)
    never_cached(layer)
    if not layer.add_self_loops:
        raise LeftAlone("add_self_loops=False: gconv's sgc always adds them")
    return operators.sgc(*sizes(layer.lin), layer.K, layer.lin.bias is not None)


def ssg_spec(layer: Any) -> OperatorSpec:
    ordinary(layer)
    never_cached(layer)
    return operators.ssg(*sizes(layer.lin), layer.alpha, layer.K, layer.add_self_loops, layer.lin.bias is not None)


def appnp_spec(layer: Any) -> OperatorSpec:
    ordinary(layer)
    graph_cached(layer)
    if not (layer.add_self_loops and layer.normalize):
        raise LeftAlone("add_self_loops=False or normalize=False: gconv's appnp adds loops and normalises")
    return operators.appnp(layer.K, layer.alpha)


def appnp_call(layer: Any, x: Any, edge_index: Any, edge_weight: Any = None) -> Tensor | None:
    return None if layer.dropout and layer.training else weighted(layer, x, edge_index, edge_weight)


def appnp_notes(layer: Any) -> list[str]:
    drops = ["in training its dropout of edges, anew at each step, stays PyG's"] if layer.dropout else []
    return drops + [CACHED] * layer.cached


def lg_spec(layer: Any) -> OperatorSpec:
    ordinary(layer)
    return operators.lightgcn(layer.normalize)


def mixhop_spec(layer: Any) -> OperatorSpec:
    ordinary(layer)
    i, o = sizes(layer.lins[max(layer.powers)])
    return operators.mixhop(i, o, tuple(layer.powers), layer.add_self_loops, has_bias(layer))


# -- attention -----------------------------------------------------------------------------------------------------


def gat_spec(layer: Any) -> OperatorSpec:
    ordinary(layer, node_dim=0)
    one_kind(layer, "apart")
    return operators.gat(
        layer.lin.weight.shape[1],
        layer.out_channels,
        layer.heads,
        layer.concat,
        layer.negative_slope,
        layer.dropout,
        layer.add_self_loops,
        layer.edge_dim,
        fill(layer),
        bias=has_bias(layer),
        residual=layer.res is not None,
    )


def fill(layer: Any) -> Any:
    """PyG's fill_value, where it matters."""
    value = layer.fill_value
    if layer.edge_dim is None or not layer.add_self_loops:
        return "mean"
    if isinstance(value, Tensor):
        return float(value) if value.numel() == 1 else tuple(value.flatten().tolist())
    return value


def beside(layer: Any, W: Tensor, affine: bool = False) -> Tensor:
    """The heads' W, and behind them the node's own."""
    if layer.res is None:
        return W
    return torch.cat([W, blocks(layer.res, layer.heads if layer.concat else 1, affine)])


def gat_weights(layer: Any) -> Weights:
    W: Weights = {
        "weight": beside(layer, blocks(layer.lin, layer.heads)),
        "att_src": layer.att_src[0],
        "att_dst": layer.att_dst[0],
        "bias": layer.bias,
    }
    if layer.edge_dim is not None:
        W |= {"att_edge": layer.att_edge[0], "lin_edge": blocks(layer.lin_edge, layer.heads)}
    return W


def gat_call(
    layer: Any,
    x: Any,
    edge_index: Any,
    edge_attr: Any = None,
    size: Any = None,
    return_attention_weights: Any = None,
) -> Tensor | None:
    if not usual(layer, x, edge_index) or size is not None or return_attention_weights is not None:
        return None
    if (edge_attr is None) != (layer.edge_dim is None) or not per_edge(edge_attr, x, edge_index, (1, 2)):
        return None
    return run(layer, x, edge_index, edge_attr=edge_attr)


def gatv2_call(
    layer: Any, x: Any, edge_index: Any, edge_attr: Any = None, return_attention_weights: Any = None
) -> Tensor | None:
    return gat_call(layer, x, edge_index, edge_attr, None, return_attention_weights)


def attention_notes(layer: Any) -> list[str]:
    notes = []
    if layer.add_self_loops:
        notes.append("existing self-loops are replaced by new ones")
    if getattr(layer, "dropout", 0.0):
        notes.append("in training, attention is dropped by other random numbers than PyG's")
    return notes


def gatv2_affine(layer: Any) -> bool:
    return layer.lin_l.bias is not None or layer.lin_r.bias is not None


def gatv2_spec(layer: Any) -> OperatorSpec:
    ordinary(layer, node_dim=0)
    one_kind(layer)
    return operators.gatv2(
        layer.lin_l.weight.shape[1] + gatv2_affine(layer),
        layer.out_channels,
        layer.heads,
        layer.concat,
        layer.negative_slope,
        layer.dropout,
        layer.add_self_loops,
        layer.edge_dim,
        fill(layer),
        bias=has_bias(layer),
        share_weights=layer.share_weights,
        residual=layer.res is not None,
    )


def gatv2_weights(layer: Any) -> Weights:
    affine, heads = gatv2_affine(layer), layer.heads
    W: Weights = {
        "weight": beside(layer, blocks(layer.lin_l, heads, affine), affine),
        "att": layer.att[0],
        "bias": layer.bias,
    }
    if not layer.share_weights:
        W["target_weight"] = blocks(layer.lin_r, heads, affine)
    if layer.bias is not None:
        W["shift"] = torch.zeros_like(layer.att[0])
    if layer.edge_dim is not None:
        W["lin_edge"] = blocks(layer.lin_edge, heads)
    return W


def supergat_spec(layer: Any) -> OperatorSpec:
    ordinary(layer, node_dim=0)
    return operators.supergat(
        layer.lin.weight.shape[1],
        layer.out_channels,
        layer.heads,
        layer.concat,
        layer.negative_slope,
        layer.dropout,
        layer.add_self_loops,
        has_bias(layer),
        layer.attention_type,
    )


def supergat_weights(layer: Any) -> Weights:
    W: Weights = {"weight": blocks(layer.lin, layer.heads), "bias": layer.bias}
    return W | {"att_l": layer.att_l[0], "att_r": layer.att_r[0]} if layer.attention_type == "MX" else W


def supergat_call(layer: Any, x: Any, edge_index: Any, neg_edge_index: Any = None, batch: Any = None) -> Tensor | None:
    return None if layer.training or not usual(layer, x, edge_index) else run(layer, x, edge_index)


def transformer_affine(layer: Any) -> bool:
    return layer.lin_value.bias is not None


def transformer_spec(layer: Any) -> OperatorSpec:
    ordinary(layer, node_dim=0)
    one_kind(layer)
    return operators.transformer(
        layer.lin_key.weight.shape[1] + transformer_affine(layer),
        layer.out_channels,
        layer.heads,
        layer.concat,
        layer.beta,
        layer.dropout,
        layer.edge_dim,
        bias=False,
        root_weight=layer.root_weight,
    )


def transformer_weights(layer: Any) -> Weights:
    affine, heads = transformer_affine(layer), layer.heads
    W = blocks(layer.lin_value, heads, affine)
    if layer.root_weight:
        W = torch.cat([W, blocks(layer.lin_skip, heads if layer.concat else 1, affine)])
    return {
        "weight": W,
        "query": blocks(layer.lin_query, heads, affine),
        "key": blocks(layer.lin_key, heads, affine),
    }


def transformer_notes(layer: Any) -> list[str]:
    notes = ["no self-loops are added; a node without edges gets its own part alone"]
    if layer.dropout:
        notes.append("in training, attention is dropped by other random numbers than PyG's")
    return notes + [AFFINE] * transformer_affine(layer)


def agnn_spec(layer: Any) -> OperatorSpec:
    ordinary(layer)
    return operators.agnn(True, layer.add_self_loops)


# -- pseudo-coordinates --------------------------------------------------------------------------------------------


def gmm_spec(layer: Any) -> OperatorSpec:
    ordinary(layer, MEAN)
    one_kind(layer)
    if layer.separate_gaussians:
        raise LeftAlone("separate_gaussians=True: each pair of channels has a structure of its own")
    if layer.root_weight is False and not hasattr(layer, "root"):
        raise LeftAlone("with root_weight=False PyG's GMMConv fails: it reads a `root` that it never sets")
    return operators.monet(
        layer.g.shape[0], layer.out_channels, layer.dim, layer.kernel_size, layer.root_weight, has_bias(layer)
    )


def gmm_weights(layer: Any) -> Weights:
    W = layer.g.unflatten(1, (layer.kernel_size, -1)).transpose(0, 1)
    if layer.root_weight:
        W = torch.cat([W, matrices(layer.root)])
    return {"weight": W, "mu": layer.mu, "sigma": layer.sigma, "bias": layer.bias}


def listed(*notes: str) -> Callable[[Any], list[str]]:
    """The same notes for every layer of a class."""
    return lambda layer: list(notes)


def biased(*names: str) -> Callable[[Any], Weights]:
    """Weights of layers that mix by linear layers of these names, a tap each, with a bias of their own."""
    return lambda layer: {"weight": matrices(*(getattr(layer, n) for n in names)), "bias": layer.bias}


def inner_bias(*names: str) -> Callable[[Any], Weights]:
    """As `biased`, where the first linear layer with a bias has the layer's."""

    def weights(layer: Any) -> Weights:
        lins = [getattr(layer, n) for n in names]
        bias = next((lin.bias for lin in lins if lin.bias is not None), None)
        return {"weight": matrices(*lins), "bias": bias}

    return weights


def nothing(layer: Any) -> Weights:
    return {}


# -- two signals, relations, degrees, hyperedges -------------------------------------------------------------------


def gcn2_spec(layer: Any) -> OperatorSpec:
    ordinary(layer)
    graph_cached(layer)
    theta = {} if layer.beta == 1.0 else {"theta": math.expm1(layer.beta), "layer": 1}
    return operators.gcn2(
        layer.channels,
        layer.alpha,
        **theta,
        shared_weights=layer.weight2 is None,
        add_self_loops=layer.add_self_loops,
        normalize=layer.normalize,
    )


def gcn2_weights(layer: Any) -> Weights:
    return {"weight": torch.stack([layer.weight1, *([] if layer.weight2 is None else [layer.weight2])])}


def gcn2_call(layer: Any, x: Any, x_0: Any, edge_index: Any, edge_weight: Any = None) -> Tensor | None:
    if type(x_0) not in PLAIN or type(x) not in PLAIN or x.shape != x_0.shape or x.dtype != x_0.dtype:
        return None
    return weighted(layer, torch.cat([x, x_0], -1), edge_index, edge_weight)


TWO_SIGNALS = "x and x_0 run as one signal, side by side"


def fa_spec(layer: Any) -> OperatorSpec:
    ordinary(layer)
    graph_cached(layer)
    return operators.fagcn(layer.channels, layer.eps, layer.dropout, layer.add_self_loops, layer.normalize)


def fa_call(
    layer: Any, x: Any, x_0: Any, edge_index: Any, edge_weight: Any = None, return_attention_weights: Any = None
) -> Tensor | None:
    if return_attention_weights is not None or (edge_weight is None) != layer.normalize:
        return None
    return gcn2_call(layer, x, x_0, edge_index, edge_weight)


def rgcn_spec(layer: Any) -> OperatorSpec:
    fast = base_class(layer).__name__ == "FastRGCNConv"
    ordinary(layer, (*SUM, *MEAN) if fast else (*SUM, *MEAN, *MAX), node_dim=0)
    one_kind(layer)
    width = layer.in_channels_l
    return operators.relational(
        width,
        layer.out_channels,
        layer.num_relations,
        layer.num_bases,
        layer.num_blocks,
        AGGR[layer.aggr],
        layer.root is not None,
        has_bias(layer),
    )


def rgcn_weights(layer: Any) -> Weights:
    W, root, parts = layer.weight, layer.root, layer.num_blocks
    if parts is None:
        W = W if root is None else torch.cat([W, root.unsqueeze(0)])
    elif root is not None:
        cut = root.unflatten(1, (parts, -1)).unflatten(0, (parts, -1)).transpose(1, 2)
        W = torch.cat([W.flatten(0, 1), cut.flatten(0, 1)])
    return {"weight": W, "bias": layer.bias} | ({} if layer.num_bases is None else {"comp": layer.comp})


def relational_call(layer: Any, x: Any, edge_index: Any, edge_type: Any = None) -> Tensor | None:
    if not usual(layer, x, edge_index) or type(edge_type) is not Tensor or edge_type.dtype != torch.int64:
        return None
    if edge_type.shape != edge_index.shape[1:] or bool(((edge_type < 0) | (edge_type >= layer.num_relations)).any()):
        return None
    return run(layer, x, edge_index, edge_type=edge_type)


def signed_spec(layer: Any) -> OperatorSpec:
    ordinary(layer, MEAN)
    biases = (layer.lin_pos_r.bias, layer.lin_neg_r.bias)
    return operators.signed(layer.in_channels, layer.out_channels, layer.first_aggr, biases[0] is not None)


def signed_weights(layer: Any) -> Weights:
    lefts, rights = (layer.lin_pos_l, layer.lin_neg_l), (layer.lin_pos_r, layer.lin_neg_r)
    left = matrices(*lefts)
    if not layer.first_aggr:
        left = left.unflatten(1, (2, -1)).flatten(0, 1)
    bias = None if rights[0].bias is None else torch.cat([lin.bias for lin in rights])
    return {"weight": torch.cat([left, matrices(*rights)]), "bias": bias}


def signed_call(layer: Any, x: Any, pos_edge_index: Any, neg_edge_index: Any) -> Tensor | None:
    if not usual(layer, x, pos_edge_index, neg_edge_index):
        return None
    sizes = torch.tensor([pos_edge_index.shape[1], neg_edge_index.shape[1]], device=x.device)
    kind = torch.arange(2, device=x.device).repeat_interleave(sizes)
    return run(layer, x, torch.cat([pos_edge_index, neg_edge_index], 1), edge_type=kind)


def mf_affine(layer: Any) -> bool:
    return layer.lins_l[0].bias is not None


def mf_spec(layer: Any) -> OperatorSpec:
    ordinary(layer)
    one_kind(layer)
    i, o = sizes(layer.lins_l[0])
    return operators.mf(i + mf_affine(layer), o, len(layer.lins_l) - 1, bias=False)


def mf_weights(layer: Any) -> Weights:
    W = matrices(*layer.lins_l, *layer.lins_r)
    if mf_affine(layer):
        b = torch.stack([lin.bias for lin in layer.lins_l])
        W = torch.cat([W, torch.cat([torch.zeros_like(b), b]).unsqueeze(1)], 1)
    return {"weight": W}


def hypergraph_spec(layer: Any) -> OperatorSpec:
    ordinary(layer, node_dim=0)
    if layer.use_attention:
        raise LeftAlone("use_attention=True: its attention reads features of the hyperedges, a second signal")
    return operators.hypergraph(*sizes(layer.lin), bias=has_bias(layer))


def hypergraph_call(
    layer: Any,
    x: Any,
    hyperedge_index: Any,
    hyperedge_weight: Any = None,
    hyperedge_attr: Any = None,
    num_edges: Any = None,
) -> Tensor | None:
    if not usual(layer, x, hyperedge_index) or (hyperedge_weight is not None and hyperedge_weight.dtype != x.dtype):
        return None
    return run(layer, x, Graph.from_hyperedge_index(hyperedge_index, len(x), hyperedge_weight))


# -- a network of the edges, matrices steered by the signal --------------------------------------------------------


def network(layer: Any) -> tuple[Any, Any]:
    """The two linear layers of Sequential(Linear, ReLU, Linear).

    Raises:
        LeftAlone: if the network is another one, or someone hooks into it.
    """
    parts = list(layer.nn) if type(layer.nn) is nn.Sequential else []
    kinds = [base_class(part).__name__ for part in parts]
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in layer.nn.modules())
    if kinds != ["Linear", "ReLU", "Linear"] or hooked:
        raise LeftAlone(
            "its network is not Sequential(Linear, ReLU, Linear), the one that splits into a structure and a mixing"
        )
    return parts[0], parts[2]


def nn_spec(layer: Any) -> OperatorSpec:
    ordinary(layer, (*SUM, *MEAN))
    one_kind(layer)
    first, _ = network(layer)
    dim, hidden = sizes(first)
    return operators.nnconv(
        layer.in_channels_l, layer.out_channels, dim, hidden, AGGR[layer.aggr], layer.root_weight, has_bias(layer)
    )


def nn_weights(layer: Any) -> Weights:
    first, last = network(layer)
    cut = (layer.in_channels_l, layer.out_channels)
    W = last.weight.t().unflatten(1, cut)
    constant = W.new_zeros(1, *cut) if last.bias is None else last.bias.unflatten(0, cut).unsqueeze(0)
    root = [matrices(layer.lin)] if layer.root_weight else []
    shift = first.weight.new_zeros(len(first.weight)) if first.bias is None else first.bias
    return {"weight": torch.cat([W, constant, *root]), "w1": first.weight, "b1": shift, "bias": layer.bias}


def feast_spec(layer: Any) -> OperatorSpec:
    ordinary(layer, MEAN)
    i = layer.lin.weight.shape[1]
    return operators.feast(i, layer.out_channels, layer.heads, layer.add_self_loops, has_bias(layer))


def pdn_spec(layer: Any) -> OperatorSpec:
    ordinary(layer)
    if [base_class(part).__name__ for part in layer.mlp] != ["Linear", "ReLU", "Linear", "Sigmoid"]:
        raise LeftAlone("its network of the edges was replaced")
    edges = sizes(layer.mlp[0])
    return operators.pdn(*sizes(layer.lin), *edges, layer.add_self_loops, layer.normalize, has_bias(layer))


def pdn_weights(layer: Any) -> Weights:
    first, last = layer.mlp[0], layer.mlp[2]
    network = {"w1": first.weight, "b1": first.bias, "w2": last.weight[0], "b2": last.bias}
    return {"weight": matrices(layer.lin), "bias": layer.bias, **network}


def eg_spec(layer: Any) -> OperatorSpec:
    ordinary(layer, node_dim=0)
    graph_cached(layer)
    if layer.aggregators != ["symnorm"]:
        raise LeftAlone(f"aggregators={layer.aggregators}: gconv converts 'symnorm' alone")
    i = layer.bases_lin.weight.shape[1]
    options = (("symnorm",), layer.num_heads, layer.num_bases, layer.add_self_loops, has_bias(layer))
    return operators.egc(i, layer.out_channels, *options)


def eg_weights(layer: Any) -> Weights:
    comb = layer.comb_lin
    return {
        "weight": blocks(layer.bases_lin, layer.num_bases),
        "comb_weight": comb.weight,
        "comb_bias": comb.bias,
        "bias": layer.bias,
    }


def eg_call(layer: Any, x: Any, edge_index: Any) -> Tensor | None:
    if not usual(layer, x, edge_index):
        return None
    spec = operators.gcn(*sizes(layer.bases_lin), add_self_loops=layer.add_self_loops, bias=False)
    graph = kept_graph(layer, x, edge_index)
    bases = run(layer, x, graph, spec, {"weight": matrices(layer.bases_lin)}).unflatten(-1, (layer.num_bases, -1))
    y = (layer.comb_lin(x).unflatten(-1, (layer.num_heads, -1)) @ bases).flatten(-2)
    return y if layer.bias is None else y + layer.bias


def resgated_spec(layer: Any) -> OperatorSpec:
    ordinary(layer)
    one_kind(layer)
    if type(layer.act) is not nn.Sigmoid or layer.edge_dim is not None:
        raise LeftAlone("its gates are no sigmoids of x alone (another act, or edge_dim)")
    i, o = sizes(layer.lin_value)
    return operators.resgated(i + 1, o, layer.root_weight, has_bias(layer))


def resgated_weights(layer: Any) -> Weights:
    values = [torch.cat([layer.lin_value.weight, layer.lin_value.bias.unsqueeze(1)], 1)]
    if layer.root_weight:
        values.append(F.pad(layer.lin_skip.weight, (0, 1)))
    return {
        "weight": torch.cat(values).unsqueeze(-1),
        "key": F.pad(layer.lin_key.weight, (0, 1)),
        "query": F.pad(layer.lin_query.weight, (0, 1)),
        "gate": layer.lin_key.bias + layer.lin_query.bias,
        "bias": layer.bias,
    }


def resgated_call(layer: Any, x: Any, edge_index: Any, edge_attr: Any = None) -> Tensor | None:
    return None if edge_attr is not None else unweighted(layer, x, edge_index)


def rgat_spec(layer: Any) -> OperatorSpec:
    ordinary(layer, node_dim=0)
    if layer.attention_mode != "additive-self-attention" or layer.dim != 1 or layer.edge_dim is not None:
        raise LeftAlone("gconv knows its additive attention without edge features alone")
    return operators.rgat(
        layer.in_channels,
        layer.out_channels,
        layer.num_relations,
        heads=layer.heads,
        concat=layer.concat,
        mod=layer.mod,
        attention_mechanism=layer.attention_mechanism,
        negative_slope=layer.negative_slope,
        dropout=layer.dropout,
        bias=has_bias(layer),
    )


def rgat_weights(layer: Any) -> Weights:
    if layer.num_bases is not None:
        W = torch.einsum("rb,bio->rio", layer.att, layer.basis)
    elif layer.num_blocks is not None:
        W = torch.stack([torch.block_diag(*parts) for parts in layer.weight])
    else:
        W = layer.weight
    W = W.unflatten(-1, (layer.heads, -1)).transpose(1, 2).flatten(0, 1)
    return {"weight": W, "q": layer.q, "k": layer.k, "bias": layer.bias}


def rgat_call(
    layer: Any,
    x: Any,
    edge_index: Any,
    edge_type: Any = None,
    edge_attr: Any = None,
    size: Any = None,
    return_attention_weights: Any = None,
) -> Tensor | None:
    plain = edge_attr is None and size is None and return_attention_weights is None
    return relational_call(layer, x, edge_index, edge_type) if plain else None


def wl_spec(layer: Any) -> OperatorSpec:
    ordinary(layer)
    return operators.wl_continuous()


# -- polynomials with matrices inside ------------------------------------------------------------------------------


def arma_affine(layer: Any) -> bool:
    return layer.bias is not None and layer.num_layers > 1


def arma_spec(layer: Any) -> OperatorSpec:
    ordinary(layer)
    if layer.act is not None:
        raise LeftAlone("an activation sits inside the layer, between one step and the next (act=None has none)")
    i, o = layer.init_weight.shape[-2:]
    return operators.tag(i + arma_affine(layer), o, layer.num_layers, layer.bias is not None and layer.num_layers == 1)


def arma_weights(layer: Any) -> Weights:
    """Z <- S Z M_t + X R_t + b_t, multiplied out: a matrix for each power of S."""
    at = (lambda t: 0) if layer.shared_weights else (lambda t: t)
    affine = arma_affine(layer)

    def root(t: int) -> Tensor:
        R = layer.root_weight[at(t)]
        return torch.cat([R, layer.bias[at(t)]], 1) if affine else R

    first = layer.init_weight
    powers = [root(0), F.pad(first, (0, 0, 0, 1)) if affine else first]
    for t in range(1, layer.num_layers):
        powers = [root(t), *(P @ layer.weight[at(t - 1)] for P in powers)]
    bias = layer.bias[0].mean((0, 1)) if layer.bias is not None and not affine else None
    return {"weight": torch.stack(powers).mean(1), "bias": bias}


def arma_call(layer: Any, x: Any, edge_index: Any, edge_weight: Any = None) -> Tensor | None:
    return None if layer.dropout and layer.training else weighted(layer, x, edge_index, edge_weight)


# -- wrappers ------------------------------------------------------------------------------------------------------


def dir_spec(layer: Any) -> OperatorSpec:
    kinds = {base_class(conv).__name__ for conv in (layer.conv_in, layer.conv_out)}
    for conv in (layer.conv_in, layer.conv_out):
        ordinary(conv, (*SUM, *MEAN))
        one_kind(conv)
    if kinds == {"GCNConv"} and layer.conv_in.normalize and not layer.conv_in.cached:
        aggr, lin = "gcn", layer.conv_in.lin
    elif kinds == {"SAGEConv"} and not (layer.conv_in.project or layer.conv_in.normalize):
        aggr, lin = AGGR[layer.conv_in.aggr], layer.conv_in.lin_l
    else:
        raise LeftAlone(f"gconv knows DirGNNConv around a plain GCNConv or SAGEConv, not around {kinds}")
    if getattr(layer.conv_in, "root_weight", False):
        raise LeftAlone("the layers inside read the node itself, too")
    root = layer.root_weight
    return operators.directed(*sizes(lin), aggr, layer.alpha, root, bias=dir_weights(layer)["bias"] is not None)


def dir_weights(layer: Any) -> Weights:
    a = layer.alpha
    pairs = [(1 - a, layer.conv_in), (a, layer.conv_out)]
    lins = [conv.lin_l if hasattr(conv, "lin_l") else conv.lin for _, conv in pairs]
    biases = [
        share * bias
        for (share, conv), lin in zip(pairs, lins, strict=True)
        if (bias := lin.bias if hasattr(conv, "lin_l") else conv.bias) is not None
    ]
    if layer.root_weight:
        lins.append(layer.lin)
        biases.append(layer.lin.bias)
    return {"weight": matrices(*lins), "bias": torch.stack(biases).sum(0) if biases else None}


# -- dense adjacencies ---------------------------------------------------------------------------------------------


def dense(layer: Any, x: Any, adj: Any, make: Callable[[Tensor], Tensor], loops: bool = False) -> Tensor | None:
    """A batch (b, n, n) as one graph of b parts, out_i = sum_j A[i, j] x_j; `make` says which A act.

    Zeros are no edges, except those on the diagonal with `loops`.
    """
    if type(x) not in PLAIN or type(adj) is not Tensor or adj.dtype != x.dtype or adj.requires_grad:
        return None
    if x.ndim not in (2, 3) or adj.ndim not in (2, 3) or not x.shape[-2]:
        return None
    signals = x.unsqueeze(0) if x.ndim == 2 else x
    matrices = make((adj.unsqueeze(0) if adj.ndim == 2 else adj).expand(len(signals), -1, -1))
    if not len(signals) or matrices.shape[1:] != (signals.shape[1],) * 2:
        return None
    b, n = signals.shape[:2]
    there = matrices != 0
    if loops:
        there = there | torch.eye(n, dtype=torch.bool, device=x.device)
    part, i, j = there.nonzero().t()
    graph = Graph(torch.stack([part * n + j, part * n + i]), b * n, matrices[part, i, j])
    return run(layer, signals.flatten(0, 1), graph).unflatten(0, (b, n))


def masked(y: Tensor | None, mask: Tensor | None) -> Tensor | None:
    return y if y is None or mask is None else y * mask.view(-1, y.shape[1], 1).to(y.dtype)


def looped(adj: Tensor, add_loop: bool, value: float = 1.0) -> Tensor:
    """The diagonal replaced."""
    if not add_loop:
        return adj
    return torch.where(torch.eye(adj.shape[-1], dtype=torch.bool, device=adj.device), value, adj)


def averaged(adj: Tensor) -> Tensor:
    """Rows divided by their sums where these exceed 1."""
    return adj / adj.sum(-1, keepdim=True).clamp(min=1)


def dense_gcn(layer: Any, x: Any, adj: Any, mask: Any = None, add_loop: bool = True) -> Tensor | None:
    def make(A: Tensor) -> Tensor:
        A = looped(A, add_loop, 2.0 if layer.improved else 1.0)
        root = A.sum(-1).clamp(min=1).rsqrt()
        return root.unsqueeze(-1) * A * root.unsqueeze(-2)

    return masked(dense(layer, x, adj, make), mask)


def dense_sage(layer: Any, x: Any, adj: Any, mask: Any = None) -> Tensor | None:
    y = dense(layer, x, adj, averaged)
    return masked(F.normalize(y, dim=-1) if layer.normalize and y is not None else y, mask)


def dense_graph(layer: Any, x: Any, adj: Any, mask: Any = None) -> Tensor | None:
    make = {"add": lambda A: A, "mean": averaged, "max": lambda A: (A.mT != 0).to(A.dtype)}[layer.aggr]
    return masked(dense(layer, x, adj, make), mask)


def dense_gin(layer: Any, x: Any, adj: Any, mask: Any = None, add_loop: bool = True) -> Tensor | None:
    def make(A: Tensor) -> Tensor:
        own = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
        return A + (1 + layer.eps) * own if add_loop else A

    y = dense(layer, x, adj, make, add_loop)
    return masked(y if y is None else layer.nn(y), mask)


def dense_gat(layer: Any, x: Any, adj: Any, mask: Any = None, add_loop: bool = True) -> Tensor | None:
    if isinstance(adj, Tensor) and not add_loop and not bool((adj != 0).any(-1).all()):
        return None  # a row without entries is 0 / 0 in PyG
    return masked(dense(layer, x, adj, lambda A: (looped(A, add_loop) != 0).to(A.dtype)), mask)


def dense_gat_spec(layer: Any) -> OperatorSpec:
    return operators.gat(
        layer.lin.weight.shape[1],
        layer.out_channels,
        layer.heads,
        layer.concat,
        layer.negative_slope,
        layer.dropout,
        add_self_loops=False,
        bias=has_bias(layer),
    )


def dense_gat_weights(layer: Any) -> Weights:
    return {
        "weight": blocks(layer.lin, layer.heads),
        "att_src": layer.att_src[0, 0],
        "att_dst": layer.att_dst[0, 0],
        "bias": layer.bias,
    }


DENSE = "the dense adjacency, its zeros left out, is read as a graph; one that needs a gradient stays PyG's"


# -- readouts ------------------------------------------------------------------------------------------------------


def readout(
    layer: Any,
    x: Any,
    index: Any = None,
    ptr: Any = None,
    dim_size: int | None = None,
    dim: int = -2,
    max_num_elements: int | None = None,
) -> Tensor | None:
    if (
        type(x) not in PLAIN
        or x.ndim < 2
        or not x.is_floating_point()
        or dim not in (-2, x.ndim - 2)
        or not x.shape[-2]
    ):
        return None
    if type(index) is Tensor and index.ndim == 1 and bool((index[1:] >= index[:-1]).all()) and bool((index >= 0).all()):
        counts = torch.bincount(index, minlength=dim_size or 0)
        starts = (0, *counts.cumsum(0).tolist())
    elif index is None and type(ptr) is Tensor and ptr.ndim == 1:
        starts = tuple(ptr.tolist())
    elif index is None and ptr is None:
        starts = (0, x.shape[-2])
    else:
        return None
    if starts[-1] != x.shape[-2] or (dim_size is not None and dim_size != len(starts) - 1):
        return None
    nodes = Graph(torch.empty(2, 0, dtype=torch.int64, device=x.device), x.shape[-2], ptr=starts)
    return run(layer, x, nodes)


def pooled(reduce: Literal["mean", "sum", "max"]) -> Peer:
    """A readout; domains of its LinearMap are graphs of several parts."""
    return Peer(lambda layer: operators.global_pool(reduce), nothing, readout)


PEERS: dict[str, Peer] = {
    "GCNConv": Peer(gcn_spec, biased("lin"), gcn_call, gcn_notes),
    "ChebConv": Peer(
        cheb_spec, lambda m: {"weight": matrices(*m.lins), "bias": m.bias}, cheb_call, listed(*CHEB_NOTES)
    ),
    "SAGEConv": Peer(sage_spec, sage_weights, sage_call, sage_notes, after=sage_after),
    "GraphConv": Peer(graphconv_spec, inner_bias("lin_rel", "lin_root"), weighted, mean_notes),
    "SimpleConv": Peer(simple_spec, nothing, weighted, mean_notes),
    "GINConv": Peer(
        gin_spec,
        lambda m: {"eps": m.eps},
        gin_call,
        listed(*GIN_NOTES),
        inner=("nn",),
        after=lambda m: "its network `nn` follows the aggregation",
    ),
    "ClusterGCNConv": Peer(
        cluster_spec, inner_bias("lin_out", "lin_root"), unweighted, listed("edge weights are ignored")
    ),
    "LEConv": Peer(
        le_spec,
        le_weights,
        weighted,
        lambda m: [AFFINE] * (m.lin1.bias is not None),
        affine=lambda m: m.lin1.bias is not None,
    ),
    "TAGConv": Peer(
        tag_spec,
        lambda m: {"weight": matrices(*m.lins), "bias": m.bias},
        weighted,
        listed("no self-loops are added"),
    ),
    "SGConv": Peer(sg_spec, inner_bias("lin"), weighted),
    "SSGConv": Peer(ssg_spec, inner_bias("lin"), weighted),
    "APPNP": Peer(appnp_spec, nothing, appnp_call, appnp_notes),
    "LGConv": Peer(lg_spec, nothing, weighted, listed("no self-loops are added")),
    "MixHopConv": Peer(
        mixhop_spec,
        lambda m: {"weight": matrices(*(m.lins[p] for p in m.powers)), "bias": m.bias},
        weighted,
    ),
    "GATConv": Peer(gat_spec, gat_weights, gat_call, attention_notes),
    "GATv2Conv": Peer(
        gatv2_spec,
        gatv2_weights,
        gatv2_call,
        lambda m: attention_notes(m) + [AFFINE] * gatv2_affine(m),
        affine=gatv2_affine,
    ),
    "SuperGATConv": Peer(
        supergat_spec,
        supergat_weights,
        supergat_call,
        listed("in training its self-supervised loss needs PyG's forward; gconv runs it in eval"),
    ),
    "TransformerConv": Peer(
        transformer_spec, transformer_weights, gatv2_call, transformer_notes, affine=transformer_affine
    ),
    "AGNNConv": Peer(agnn_spec, lambda m: {"beta": m.beta}, unweighted, attention_notes),
    "GMMConv": Peer(
        gmm_spec, gmm_weights, attributed, listed("the mean over edges, without the 1 / K of its docstring")
    ),
    "NNConv": Peer(nn_spec, nn_weights, attributed, listed("edge weights are ignored")),
    "FeaStConv": Peer(
        feast_spec,
        lambda m: {"weight": blocks(m.lin, m.heads), "u": m.u.weight, "c": m.c, "bias": m.bias},
        unweighted,
        attention_notes,
    ),
    "GCN2Conv": Peer(gcn2_spec, gcn2_weights, gcn2_call, lambda m: [TWO_SIGNALS] + [CACHED] * m.cached),
    "FAConv": Peer(
        fa_spec,
        lambda m: {"att_l": m.att_l.weight[0], "att_r": m.att_r.weight[0]},
        fa_call,
        lambda m: [TWO_SIGNALS] + [CACHED] * m.cached,
    ),
    "RGCNConv": Peer(rgcn_spec, rgcn_weights, relational_call, listed("the mean is over the edges of one relation")),
    "FastRGCNConv": Peer(
        rgcn_spec, rgcn_weights, relational_call, listed("the mean is over the edges of one relation")
    ),
    "SignedConv": Peer(
        signed_spec, signed_weights, signed_call, listed("the two lists of edges are one graph with two labels")
    ),
    "MFConv": Peer(mf_spec, mf_weights, unweighted, lambda m: [AFFINE] * mf_affine(m), affine=mf_affine),
    "HypergraphConv": Peer(
        hypergraph_spec,
        biased("lin"),
        hypergraph_call,
        listed("weights of hyperedges count in the degrees of the nodes alone, unlike in its documented formula"),
    ),
    "ARMAConv": Peer(
        arma_spec,
        arma_weights,
        arma_call,
        lambda m: ["its steps are multiplied out, a matrix for each power"] + [AFFINE] * arma_affine(m),
        affine=arma_affine,
    ),
    "PDNConv": Peer(pdn_spec, pdn_weights, attributed, listed("gcn's loops and degrees, of the learned weights")),
    "EGConv": Peer(
        eg_spec,
        eg_weights,
        eg_call,
        lambda m: ["its bases run as a gcn that each node combines: the same, with fewer taps"] + [CACHED] * m.cached,
    ),
    "ResGatedGraphConv": Peer(resgated_spec, resgated_weights, resgated_call, listed(AFFINE), affine=lambda m: True),
    "RGATConv": Peer(rgat_spec, rgat_weights, rgat_call, listed("edge weights are ignored")),
    "WLConvContinuous": Peer(wl_spec, nothing, weighted, listed("the mean divides by the weights")),
    "DirGNNConv": Peer(
        dir_spec, dir_weights, unweighted, listed("no self-loops are added, and no edge weights are read")
    ),
    "DenseGCNConv": Peer(
        lambda m: operators.gcn(*sizes(m.lin), normalize=False, bias=has_bias(m)),
        biased("lin"),
        dense_gcn,
        listed(DENSE, "degrees below 1 count as 1; existing loops are replaced"),
    ),
    "DenseSAGEConv": Peer(
        lambda m: operators.graphconv(*sizes(m.lin_rel), bias=m.lin_root.bias is not None),
        inner_bias("lin_rel", "lin_root"),
        dense_sage,
        listed(DENSE, "the mean divides by the sum of the weights, or by 1 where that is larger"),
        after=lambda m: "with normalize=True each row is divided by its length" if m.normalize else None,
    ),
    "DenseGraphConv": Peer(
        lambda m: operators.graphconv(
            *sizes(m.lin_rel), "max" if m.aggr == "max" else "sum", m.lin_rel.bias is not None
        ),
        inner_bias("lin_rel", "lin_root"),
        dense_graph,
        lambda m: [DENSE] + ["the maximum reads the adjacency transposed, as PyG's code does"] * (m.aggr == "max"),
    ),
    "DenseGINConv": Peer(
        lambda m: operators.simple(),
        nothing,
        dense_gin,
        listed(DENSE, GIN_NOTES[0]),
        inner=("nn",),
        after=lambda m: "its network `nn` follows the aggregation",
    ),
    "DenseGATConv": Peer(dense_gat_spec, dense_gat_weights, dense_gat, listed(DENSE)),
    "MeanAggregation": pooled("mean"),
    "SumAggregation": pooled("sum"),
    "MaxAggregation": pooled("max"),
    "Linear": Peer(
        lambda m: operators.pointwise(*sizes(m), m.bias is not None, ndim=1),
        lambda m: {"weight": matrices(m), "bias": m.bias},
        linear_call,
    ),
}
