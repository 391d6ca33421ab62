"""PyG's one-hop layers: sums, means and maxima over neighbours."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric import nn as pyg

from gconv import operators
from gconv.domains import read_graph
from gconv.interop.peer import LeftAlone, Peer, Weights, base_class, engine, run
from gconv.interop.pyg.common import (
    AFFINE,
    AGGR,
    CACHED,
    MAX,
    MEAN,
    SUM,
    biased,
    channels_in,
    dense,
    graph_cached,
    has_bias,
    inner_bias,
    kept_graph,
    listed,
    matrices,
    matrix,
    maximum,
    nothing,
    observed,
    ordinary,
    per_edge,
    sizes,
    stacked,
    unweighted,
    usual,
    weighted,
)
from gconv.kernels import at_trace_time
from gconv.spec import OperatorSpec

GIN_NOTES = ["its aggregation runs through gconv; the network `nn` after it is kept", "edge weights are ignored"]
LOOPED = "calls with a sparse adjacency with loops run in PyG, which adds to such loops instead of replacing them"
TWO_SIGNALS = "x and x_0 are concatenated to one signal"


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
    return run(layer, x, graph, engine(layer, gcn_spec, layer, False) if graph.edge_weight is None else None)


def gcn_settle(layer: Any, spec: OperatorSpec, domain: Any) -> tuple[OperatorSpec, Any]:
    graph = read_graph(domain, -1)
    return gcn_spec(layer, False) if graph.edge_weight is None else spec, domain


def gcn_notes(layer: Any) -> list[str]:
    notes = []
    if layer.normalize:
        notes.append("degrees sum the incoming weights and normalise both ends, on directed graphs, too")
    if layer.add_self_loops:
        notes.append("a node with a self-loop keeps it and gets no second one")
    if layer.improved:
        notes.append("improved=True: added loops have weight 2 if edge weights are given, and 1 otherwise")
    return notes + [CACHED] * layer.cached


def sage_spec(layer: Any) -> OperatorSpec:
    ordinary(layer, (*SUM, *MEAN, *MAX))
    root = layer.root_weight and not layer.project
    i, o = channels_in(layer, root), layer.out_channels
    return operators.sage(i, o, AGGR[layer.aggr], root, layer.lin_l.bias is not None)


def sage_weights(layer: Any) -> Weights:
    root = layer.root_weight and not layer.project
    lins = (layer.lin_l, layer.lin_r) if root else (layer.lin_l,)
    return {"weight": matrices(*lins), "bias": layer.lin_l.bias}


def sage_call(layer: Any, x: Any, edge_index: Any, size: Any = None, *, values: Any = None) -> Tensor | None:
    if size is not None or not usual(layer, x, edge_index):
        return None
    if values is not None:
        signal = layer.lin(x).relu() if layer.project else x
        sums = engine(layer, operators.simple, AGGR[layer.aggr])
        y = layer.lin_l(run(layer, signal, read_graph(edge_index, x.shape[-2], edge_weight=values), sums, {}))
        y = y + layer.lin_r(x) if layer.root_weight else y
    elif layer.project:
        y = run(layer, layer.lin(x).relu(), edge_index)
        y = y + layer.lin_r(x) if layer.root_weight else y
    else:
        y = run(layer, x, edge_index)
    return F.normalize(y, dim=-1) if layer.normalize else y


def sage_after(layer: Any) -> str | None:
    if layer.project:
        return "with project=True a ReLU is applied to the neighbours before aggregation"
    return "with normalize=True each row is divided by its norm" if layer.normalize else None


def sage_notes(layer: Any) -> list[str]:
    notes = ["edge weights are ignored"]
    if layer.project:
        notes.append("project=True: the linear layer and ReLU before it, and lin_r, run in PyG")
    if layer.normalize:
        notes.append("normalize=True: each row is divided by its norm afterwards")
    return notes + maximum(layer)


def graphconv_spec(layer: Any) -> OperatorSpec:
    ordinary(layer, (*SUM, *MEAN, *MAX))
    return operators.graphconv(channels_in(layer), layer.out_channels, AGGR[layer.aggr], layer.lin_rel.bias is not None)


def mean_notes(layer: Any) -> list[str]:
    return ["the mean divides by the number of edges, not by their weights"] * (layer.aggr == "mean") + maximum(layer)


def simple_spec(layer: Any) -> OperatorSpec:
    ordinary(layer, (*SUM, *MEAN, *MAX))
    return operators.simple(AGGR[layer.aggr], layer.combine_root)


def gin_spec(layer: Any) -> OperatorSpec:
    ordinary(layer)
    return operators.gin(train_eps=True)


def gin_call(layer: Any, x: Any, edge_index: Any, size: Any = None, *, values: Any = None) -> Tensor | None:
    if size is not None or not usual(layer, x, edge_index):
        return None
    if values is None:
        return layer.nn(run(layer, x, edge_index))
    graph = read_graph(edge_index, x.shape[-2], edge_weight=values)
    return layer.nn(run(layer, x, graph, engine(layer, operators.simple), {}) + (1 + layer.eps) * x)


def cluster_spec(layer: Any) -> OperatorSpec:
    ordinary(layer)
    if not layer.add_self_loops:
        raise LeftAlone(
            "add_self_loops=False: PyG then needs as many loops as nodes, and weights them by position in the list"
        )
    return operators.cluster_gcn(
        *sizes(layer.lin_out), layer.diag_lambda, layer.add_self_loops, layer.lin_out.bias is not None
    )


def le_spec(layer: Any) -> OperatorSpec:
    ordinary(layer)
    i = channels_in(layer, more=layer.lin1.bias is not None)
    return operators.le(i, layer.out_channels, layer.lin3.bias is not None)


def le_weights(layer: Any) -> Weights:
    source, *targets = (matrix(lin) for lin in (layer.lin1, layer.lin2, layer.lin3))
    if layer.lin1.bias is not None:
        source = torch.cat([source, layer.lin1.bias.unsqueeze(0)])
        targets = [F.pad(W, (0, 0, 0, 1)) for W in targets]
    return {"weight": stacked(source, *targets), "bias": layer.lin3.bias}


def wl_spec(layer: Any) -> OperatorSpec:
    ordinary(layer)
    return operators.wl_continuous()


def dir_spec(layer: Any) -> OperatorSpec:
    convs = (layer.conv_in, layer.conv_out)
    kinds = {base_class(conv) for conv in convs}
    for conv in convs:
        ordinary(conv, (*SUM, *MEAN))
        if isinstance(channels_in(conv), tuple):
            raise LeftAlone("its inner layers are bipartite")
        if observed(conv):
            raise LeftAlone("an explainer or a hook needs the messages of its inner layers")
    aggr: Any
    if kinds == {pyg.GCNConv} and all(c.normalize and not c.cached and not c.add_self_loops for c in convs):
        aggr, lin = "gcn", layer.conv_in.lin
    elif (
        kinds == {pyg.SAGEConv}
        and layer.conv_in.aggr == layer.conv_out.aggr
        and not any(c.project or c.normalize or c.root_weight for c in convs)
    ):
        aggr, lin = AGGR[layer.conv_in.aggr], layer.conv_in.lin_l
    else:
        names = " and ".join(sorted(cls.__name__ for cls in kinds))
        raise LeftAlone(f"gconv supports it around a plain GCNConv or SAGEConv, not around {names}")
    parts = (
        *((conv.lin_l if kinds == {pyg.SAGEConv} else conv) for conv in convs),
        *([layer.lin] if layer.root_weight else []),
    )
    bias = any(part.bias is not None for part in parts)
    return operators.directed(*sizes(lin), aggr, layer.alpha, layer.root_weight, bias=bias)


def dir_call(layer: Any, x: Any, edge_index: Any) -> Tensor | None:
    """Checks for changes of the inner layers, which the outer layer does not detect."""
    return unweighted(layer, x, edge_index) if _same_inside(layer) else None


@at_trace_time
def _same_inside(layer: Any) -> str | None:
    return "yes" if dir_spec(layer) == layer.spec else None


def dir_weights(layer: Any) -> Weights:
    a = layer.alpha
    pairs = [(1 - a, layer.conv_in), (a, layer.conv_out)]
    lins = [conv.lin_l if hasattr(conv, "lin_l") else conv.lin for _, conv in pairs]
    own = [(share, lin if hasattr(conv, "lin_l") else conv) for (share, conv), lin in zip(pairs, lins, strict=True)]
    biases = [share * part.bias for share, part in own if part.bias is not None]
    if layer.root_weight:
        lins.append(layer.lin)
        biases.append(layer.lin.bias)
    return {"weight": matrices(*lins), "bias": torch.stack(biases).sum(0) if biases else None}


def gcn2_spec(layer: Any) -> OperatorSpec:
    ordinary(layer)
    graph_cached(layer)
    theta: dict[str, Any] = {} if layer.beta == 1.0 else {"theta": math.expm1(layer.beta), "layer": 1}
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


def two_signals(layer: Any, x: Any, x_0: Any, edge_index: Any, edge_weight: Any = None) -> Tensor | None:
    """layer(x, x_0, edge_index, edge_weight), with the signals concatenated."""
    if not dense(x_0) or not dense(x) or x.shape != x_0.shape or x.dtype != x_0.dtype:
        return None
    return weighted(layer, torch.cat([x, x_0], -1), edge_index, edge_weight)


PEERS: dict[type, Peer] = {
    pyg.GCNConv: Peer(gcn_spec, biased("lin"), gcn_call, gcn_notes, settle=gcn_settle),
    pyg.SAGEConv: Peer(sage_spec, sage_weights, sage_call, sage_notes, after=sage_after),
    pyg.GraphConv: Peer(graphconv_spec, inner_bias("lin_rel", "lin_root"), weighted, mean_notes),
    pyg.SimpleConv: Peer(
        simple_spec,
        nothing,
        weighted,
        lambda m: mean_notes(m) + [LOOPED] * (m.combine_root == "self_loop"),
    ),
    pyg.GINConv: Peer(
        gin_spec,
        lambda m: {"eps": m.eps},
        gin_call,
        listed(*GIN_NOTES),
        inner=("nn",),
        after=lambda m: "its network `nn` follows the aggregation",
    ),
    pyg.ClusterGCNConv: Peer(
        cluster_spec, inner_bias("lin_out", "lin_root"), unweighted, listed("edge weights are ignored")
    ),
    pyg.LEConv: Peer(
        le_spec,
        le_weights,
        weighted,
        lambda m: [AFFINE] * (m.lin1.bias is not None),
        affine=lambda m: m.lin1.bias is not None,
    ),
    pyg.WLConvContinuous: Peer(wl_spec, nothing, weighted, listed("the mean divides by the weights")),
    pyg.DirGNNConv: Peer(
        dir_spec, dir_weights, dir_call, listed("no self-loops are added, and no edge weights are read")
    ),
    pyg.GCN2Conv: Peer(gcn2_spec, gcn2_weights, two_signals, lambda m: [TWO_SIGNALS] + [CACHED] * m.cached),
}
