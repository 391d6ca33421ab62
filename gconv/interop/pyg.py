"""The layers of PyG, one entry a class. Imported only for models that contain some."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn.conv import MessagePassing

from gconv import operators
from gconv.domains import Graph, read_graph
from gconv.interop.peer import LeftAlone, Peer, Weights, run
from gconv.spec import OperatorSpec

try:
    from gconv.operators.outside import OUTSIDE
except ImportError:
    OUTSIDE = {}

PLAIN = (Tensor, nn.Parameter)
SUM, MEAN, MAX = ("add", "sum"), ("mean",), ("max",)
AGGR = {"add": "sum", "sum": "sum", "mean": "mean", "max": "max"}


def is_layer(module: nn.Module) -> bool:
    """Whether a report speaks of a module of PyG."""
    return isinstance(module, MessagePassing) or type(module).__name__ in PEERS or type(module).__name__ in OUTSIDE


def why_outside(name: str) -> str:
    """The reason why a class of PyG is left alone."""
    return OUTSIDE.get(name, "no layer that gconv knows")


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
    if getattr(layer, "node_dim", -2) == 0 and x.ndim != 2:
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


def weighted(
    layer: Any, x: Any, edge_index: Any, edge_weight: Tensor | None = None, size: Any = None
) -> Tensor | None:
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


def supergat_call(
    layer: Any, x: Any, edge_index: Any, neg_edge_index: Any = None, batch: Any = None
) -> Tensor | None:
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
}
