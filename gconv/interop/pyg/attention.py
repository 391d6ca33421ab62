"""PyG's layers with adaptive structure."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric import nn as pyg

from gconv import operators
from gconv.binding import dropped
from gconv.domains import Graph, read_graph
from gconv.interop.peer import LeftAlone, Peer, Weights, engine, run, run_on, with_ones
from gconv.interop.pyg.common import (
    AFFINE,
    CACHED,
    MEAN,
    blocks,
    channels_in,
    graph_cached,
    has_bias,
    kept_graph,
    level,
    listed,
    matrices,
    matrix,
    ordinary,
    per_edge,
    sizes,
    unweighted,
    usual,
)
from gconv.interop.pyg.edges import labelled, relational_call
from gconv.interop.pyg.neighbours import LOOPED, TWO_SIGNALS, two_signals
from gconv.kernels import readable
from gconv.operators.attention import arrivals
from gconv.spec import OperatorSpec


def gat_spec(layer: Any) -> OperatorSpec:
    ordinary(layer, node_dim=0)
    return operators.gat(
        channels_in(layer),
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
        share_weights=layer.lin is not None,
    )


def fill(layer: Any) -> Any:
    """PyG's fill_value; "mean" if it has no effect."""
    value = layer.fill_value
    if layer.edge_dim is None or not layer.add_self_loops:
        return "mean"
    if isinstance(value, Tensor):
        return float(value) if value.numel() == 1 else tuple(value.flatten().tolist())
    return value


def with_residual(layer: Any, W: Tensor, affine: bool = False) -> Tensor:
    """The weights of the heads, followed by those of the residual connection if there is one."""
    if layer.res is None:
        return W
    return torch.cat(level(W, blocks(layer.res, layer.heads if layer.concat else 1, affine)))


def gat_weights(layer: Any) -> Weights:
    source = blocks(layer.lin_src if layer.lin is None else layer.lin, layer.heads)
    W: Weights = {
        "att_src": layer.att_src[0],
        "att_dst": layer.att_dst[0],
        "bias": layer.bias,
    }
    if layer.lin is None:
        source, W["target_weight"] = level(source, blocks(layer.lin_dst, layer.heads))
    W["weight"] = with_residual(layer, source)
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
) -> Any:
    if not usual(layer, x, edge_index) or size is not None:
        return None
    if not per_edge(edge_attr, x, edge_index, (1, 2)) or (layer.edge_dim is None and edge_attr is not None):
        return None
    if layer.edge_dim is not None and edge_attr is None:
        return None if return_attention_weights else featureless(layer, x, edge_index)
    if return_attention_weights:
        return attended(layer, x, edge_index, edge_attr, layer.add_self_loops, True)
    return run(layer, x, edge_index, edge_attr=edge_attr)


def featureless(layer: Any, x: Tensor, edge_index: Tensor) -> Tensor:
    """A call without edge features of a layer that has a matrix for them."""
    weights, other = layer.peer.weights(layer), engine(layer, _featureless, layer)
    return run(layer, x, edge_index, other, {k: W for k, W in weights.items() if k not in ("lin_edge", "att_edge")})


def _featureless(layer: Any) -> OperatorSpec:
    return OperatorSpec.from_dict(layer.gconv.spec.to_dict() | {"edge_dim": None, "fill_value": "mean"})


def gatv2_call(layer: Any, x: Any, edge_index: Any, edge_attr: Any = None, return_attention_weights: Any = None) -> Any:
    return gat_call(layer, x, edge_index, edge_attr, None, return_attention_weights)


def transformer_call(
    layer: Any, x: Any, edge_index: Any, edge_attr: Any = None, return_attention_weights: Any = None
) -> Any:
    if not isinstance(return_attention_weights, bool):
        return gat_call(layer, x, edge_index, edge_attr)
    if not usual(layer, x, edge_index) or edge_attr is not None:
        return None
    return attended(layer, x, edge_index, None, False, False)


def attended(
    layer: Any, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None, loops: bool, after_dropout: bool
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The output, and PyG's (edge_index, attention weights) with one column per head, in PyG's order of edges.

    Args:
        layer, x, edge_index, edge_attr: of the call.
        loops: whether new self-loops, at the end, replaced existing ones.
        after_dropout: whether PyG returns the weights after dropout.
    """
    gconv = layer.gconv.borrow(layer.peer.weights(layer))
    vars(gconv)["training"] = False
    signal = with_ones(x) if layer.peer.affine(layer) else x
    graph = read_graph(edge_index, len(x), edge_attr=edge_attr)
    call = gconv._call(signal)
    whole = gconv._basis(graph, call)
    S = dropped(whole, layer.dropout) if layer.training and layer.dropout else whole
    heads: Any = S if after_dropout else whole
    alpha = getattr(heads, "parts", (heads,))[0].values
    edges, order = listed_edges(graph, edge_index, loops)
    return run_on(gconv, S, call), (edges, alpha[order])


def listed_edges(graph: Graph, edge_index: Tensor, loops: bool) -> tuple[Tensor, Tensor]:
    """PyG's edges, with new self-loops last, and for each of them the index of its entry in `arrivals`."""
    one, edge = arrivals(graph, loops)
    kept = graph.source != graph.target if loops else torch.ones_like(graph.source, dtype=torch.bool)
    place = (kept.cumsum(0) - 1)[edge] if len(edge) and graph.num_edges else edge
    place = torch.where(edge < 0, kept.sum() + one.row, place)
    if loops:
        edge_index = torch.cat([edge_index[:, kept], torch.arange(graph.size, device=edge.device).expand(2, -1)], 1)
    return edge_index, torch.empty_like(place).index_copy_(0, place, torch.arange(len(place), device=place.device))


def attention_notes(layer: Any) -> list[str]:
    notes = []
    if layer.add_self_loops:
        notes.append("existing self-loops are replaced by new ones")
    if getattr(layer, "dropout", 0.0):
        notes.append("in training, dropout draws different random numbers than PyG's")
    return notes


def gatv2_affine(layer: Any) -> bool:
    return layer.lin_l.bias is not None or layer.lin_r.bias is not None


def gatv2_spec(layer: Any) -> OperatorSpec:
    ordinary(layer, node_dim=0)
    i = channels_in(layer, more=gatv2_affine(layer))
    if layer.share_weights and isinstance(i, tuple):
        raise LeftAlone(f"share_weights=True needs equal channels, but in_channels={layer.in_channels}")
    return operators.gatv2(
        i,
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
    lins = (layer.lin_l,) if layer.share_weights else (layer.lin_l, layer.lin_r)
    source, *targets = level(*(blocks(lin, heads, affine) for lin in lins))
    W: Weights = {
        "weight": with_residual(layer, source, affine),
        "att": layer.att[0],
        "bias": layer.bias,
    }
    if targets:
        W["target_weight"] = targets[0]
    if layer.bias is not None:
        W["shift"] = torch.zeros_like(layer.att[0])
    if layer.edge_dim is not None:
        W["lin_edge"] = blocks(layer.lin_edge, heads)
    return W


def supergat_spec(layer: Any) -> OperatorSpec:
    ordinary(layer, node_dim=0)
    return operators.supergat(
        sizes(layer.lin)[0],
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
    if not usual(layer, x, edge_index):
        return None
    y = run(layer, x, edge_index)
    if not layer.training:
        return y
    if not readable(edge_index):
        return None  # its loss samples edges
    # inputs of the self-supervised loss: the logits of sampled edges and non-edges
    edges = listed_edges(read_graph(edge_index, len(x)), edge_index, layer.add_self_loops)[0]
    positive = layer.positive_sampling(edges)
    negative = layer.negative_sampling(edges, len(x), batch) if neg_edge_index is None else neg_edge_index
    source, target = torch.cat([positive, negative], 1)
    z = layer.lin(x).unflatten(-1, (layer.heads, -1))
    logits = (z[target] * z[source]).sum(-1)
    if layer.attention_type == "SD":
        logits = logits / layer.out_channels**0.5
    labels = (torch.arange(len(logits), device=x.device) < positive.shape[1]).to(logits.dtype)
    vars(layer).update(att_x=logits, att_y=labels)  # bypasses __setattr__: the operator does not change
    return y


def transformer_affine(layer: Any) -> bool:
    return layer.lin_value.bias is not None


def transformer_spec(layer: Any) -> OperatorSpec:
    ordinary(layer, node_dim=0)
    return operators.transformer(
        channels_in(layer, more=transformer_affine(layer)),
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
    parts = [blocks(lin, heads, affine) for lin in (layer.lin_query, layer.lin_key, layer.lin_value)]
    if layer.root_weight:
        parts.append(blocks(layer.lin_skip, heads if layer.concat else 1, affine))
    query, key, *values = level(*parts)
    return {"weight": torch.cat(values) if layer.root_weight else values[0], "query": query, "key": key}


def transformer_notes(layer: Any) -> list[str]:
    notes = ["no self-loops are added; a node without edges gets only its own term"]
    if layer.dropout:
        notes.append("in training, dropout draws different random numbers than PyG's")
    return notes + [AFFINE] * transformer_affine(layer)


def agnn_spec(layer: Any) -> OperatorSpec:
    ordinary(layer)
    return operators.agnn(True, layer.add_self_loops)


def feast_spec(layer: Any) -> OperatorSpec:
    ordinary(layer, MEAN)
    i = sizes(layer.lin)[0]
    return operators.feast(i, layer.out_channels, layer.heads, layer.add_self_loops, has_bias(layer))


def fa_spec(layer: Any) -> OperatorSpec:
    ordinary(layer)
    graph_cached(layer)
    return operators.fagcn(layer.channels, layer.eps, layer.dropout, layer.add_self_loops, layer.normalize)


def fa_call(
    layer: Any, x: Any, x_0: Any, edge_index: Any, edge_weight: Any = None, return_attention_weights: Any = None
) -> Any:
    if (edge_weight is None) != layer.normalize:
        return None
    y = two_signals(layer, x, x_0, edge_index, edge_weight)
    if y is None or not isinstance(return_attention_weights, bool):
        return y
    if layer.cached and layer.normalize:
        return None  # it uses the edges of the first call
    loops = layer.normalize and layer.add_self_loops
    source, target = edges = listed_edges(read_graph(edge_index, len(x)), edge_index, loops)[0]
    return y, (edges, (layer.att_l(x)[source] + layer.att_r(x)[target]).tanh().squeeze(-1))


def eg_spec(layer: Any) -> OperatorSpec:
    ordinary(layer, node_dim=0)
    graph_cached(layer)
    if layer.aggregators != ["symnorm"]:
        raise LeftAlone(f"aggregators={layer.aggregators}: gconv converts only 'symnorm'")
    i = sizes(layer.bases_lin)[0]
    heads, bases = layer.num_heads, layer.num_bases
    return operators.egc(i, layer.out_channels, ("symnorm",), heads, bases, layer.add_self_loops, has_bias(layer))


def eg_weights(layer: Any) -> Weights:
    comb = layer.comb_lin
    return {
        "weight": blocks(layer.bases_lin, layer.num_bases),
        "comb_weight": comb.weight,
        "comb_bias": comb.bias,
        "bias": layer.bias,
    }


def eg_call(layer: Any, x: Any, edge_index: Any, *, values: Any = None) -> Tensor | None:
    if not usual(layer, x, edge_index):
        return None
    gcn = engine(layer, _bases, layer)
    graph = kept_graph(layer, x, edge_index, edge_weight=values)
    bases = run(layer, x, graph, gcn, {"weight": matrices(layer.bases_lin)}).unflatten(-1, (layer.num_bases, -1))
    y = (layer.comb_lin(x).unflatten(-1, (layer.num_heads, -1)) @ bases).flatten(-2)
    return y if layer.bias is None else y + layer.bias


def _bases(layer: Any) -> OperatorSpec:
    return operators.gcn(*sizes(layer.bases_lin), add_self_loops=layer.add_self_loops, bias=False)


def resgated_spec(layer: Any) -> OperatorSpec:
    ordinary(layer)
    if type(layer.act) is not nn.Sigmoid or layer.edge_dim is not None:
        raise LeftAlone("its gates are not sigmoids of x alone (act or edge_dim is given)")
    return operators.resgated(channels_in(layer, more=1), layer.out_channels, layer.root_weight, has_bias(layer))


def resgated_weights(layer: Any) -> Weights:
    lins = (layer.lin_key, layer.lin_query, *([layer.lin_skip] if layer.root_weight else []))
    value = torch.cat([layer.lin_value.weight, layer.lin_value.bias.unsqueeze(1)], 1)
    parts = level(value.t(), *(F.pad(matrix(lin), (0, 0, 0, 1)) for lin in lins))
    value, key, query, *root = (part.t() for part in parts)
    return {
        "weight": torch.cat([value, *root]).unsqueeze(-1),
        "key": key,
        "query": query,
        "gate": layer.lin_key.bias + layer.lin_query.bias,
        "bias": layer.bias,
    }


def resgated_call(layer: Any, x: Any, edge_index: Any, edge_attr: Any = None) -> Tensor | None:
    return None if edge_attr is not None else unweighted(layer, x, edge_index)


def rgat_spec(layer: Any) -> OperatorSpec:
    ordinary(layer, node_dim=0)
    if layer.attention_mode != "additive-self-attention" or layer.dim != 1 or layer.edge_dim is not None:
        raise LeftAlone("gconv supports only its additive attention without edge features")
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
) -> Any:
    if edge_attr is not None or size is not None:
        return None
    if not isinstance(return_attention_weights, bool):
        return relational_call(layer, x, edge_index, edge_type)
    if layer.mod is not None or not usual(layer, x, edge_index) or not labelled(layer, edge_index, edge_type):
        return None  # PyG returns the weights before `mod`
    gconv = layer.gconv.borrow(layer.peer.weights(layer))
    call = gconv._call(x)
    S = gconv._basis(read_graph(edge_index, len(x), edge_type=edge_type), call)
    return run_on(gconv, S, call), (edge_index, S.values)


PEERS: dict[type, Peer] = {
    pyg.GATConv: Peer(gat_spec, gat_weights, gat_call, attention_notes),
    pyg.GATv2Conv: Peer(
        gatv2_spec,
        gatv2_weights,
        gatv2_call,
        lambda m: attention_notes(m) + [AFFINE] * gatv2_affine(m),
        affine=gatv2_affine,
    ),
    pyg.SuperGATConv: Peer(
        supergat_spec,
        supergat_weights,
        supergat_call,
        listed("in training the edges of its self-supervised loss are sampled by PyG"),
    ),
    pyg.TransformerConv: Peer(
        transformer_spec, transformer_weights, transformer_call, transformer_notes, affine=transformer_affine
    ),
    pyg.AGNNConv: Peer(agnn_spec, lambda m: {"beta": m.beta}, unweighted, attention_notes),
    pyg.FeaStConv: Peer(
        feast_spec,
        lambda m: {"weight": blocks(m.lin, m.heads), "u": m.u.weight, "c": m.c, "bias": m.bias},
        unweighted,
        attention_notes,
    ),
    pyg.FAConv: Peer(
        fa_spec,
        lambda m: {"att_l": m.att_l.weight[0], "att_r": m.att_r.weight[0]},
        fa_call,
        lambda m: [TWO_SIGNALS, LOOPED] + [CACHED] * m.cached,
    ),
    pyg.EGConv: Peer(
        eg_spec,
        eg_weights,
        eg_call,
        lambda m: ["its bases run as one gcn, whose outputs each node combines"] + [CACHED] * m.cached,
    ),
    pyg.ResGatedGraphConv: Peer(resgated_spec, resgated_weights, resgated_call, listed(AFFINE), affine=lambda m: True),
    pyg.RGATConv: Peer(
        rgat_spec,
        rgat_weights,
        rgat_call,
        lambda m: (
            ["edge weights are ignored"]
            + ["calls that return attention weights run in PyG, which returns those before `mod`"] * (m.mod is not None)
        ),
    ),
}
