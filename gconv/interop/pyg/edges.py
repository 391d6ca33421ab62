"""PyG's layers with edge labels, signs, attributes, degrees or hyperedges."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric import nn as pyg

from gconv import operators
from gconv.domains import Bipartite, Graph, read_graph
from gconv.interop.peer import LeftAlone, Peer, Weights, base_class, engine, run
from gconv.interop.pyg.common import (
    AFFINE,
    AGGR,
    MAX,
    MEAN,
    SUM,
    attributed,
    biased,
    channels_in,
    dense,
    has_bias,
    level,
    listed,
    matrices,
    ordinary,
    same_graph,
    sizes,
    unweighted,
    usual,
)
from gconv.kernels import readable
from gconv.spec import OperatorSpec

LINEAR = (nn.Linear, pyg.Linear)


def rgcn_spec(layer: Any) -> OperatorSpec:
    fast = base_class(layer) is pyg.FastRGCNConv
    ordinary(layer, (*SUM, *MEAN) if fast else (*SUM, *MEAN, *MAX), node_dim=0)
    root = layer.root is not None
    width = channels_in(layer, root)
    if layer.num_blocks is not None and isinstance(width, tuple):
        raise LeftAlone(f"num_blocks with in_channels={width}: its blocks have different sizes")
    return operators.relational(
        width,
        layer.out_channels,
        layer.num_relations,
        layer.num_bases,
        layer.num_blocks,
        AGGR[layer.aggr],
        root,
        has_bias(layer),
    )


def rgcn_weights(layer: Any) -> Weights:
    W, root, parts = layer.weight, layer.root, layer.num_blocks
    if parts is None:
        W = W if root is None else torch.cat(level(W, root.unsqueeze(0)))
    elif root is not None:
        cut = root.unflatten(1, (parts, -1)).unflatten(0, (parts, -1)).transpose(1, 2)
        W = torch.cat([W.flatten(0, 1), cut.flatten(0, 1)])
    return {"weight": W, "bias": layer.bias} | ({} if layer.num_bases is None else {"comp": layer.comp})


def relational_call(layer: Any, x: Any, edge_index: Any, edge_type: Any = None) -> Tensor | None:
    if not usual(layer, x, edge_index) or not labelled(layer, edge_index, edge_type):
        return None
    return run(layer, x, edge_index, edge_type=edge_type)


def labelled(layer: Any, edge_index: Tensor, edge_type: Any) -> bool:
    """Whether there is one valid relation per edge; the range is checked only if values can be read."""
    if not dense(edge_type) or edge_type.dtype != torch.int64 or edge_type.shape != edge_index.shape[1:]:
        return False
    return not readable(edge_type) or not bool(((edge_type < 0) | (edge_type >= layer.num_relations)).any())


def rgcn_call(layer: Any, x: Any, edge_index: Any, edge_type: Any = None) -> Tensor | None:
    if x is None:
        x = torch.arange(layer.in_channels_l, device=layer.weight.device)
    elif not dense(x) or x.dtype != torch.int64 or x.ndim != 1:
        return relational_call(layer, x, edge_index, edge_type)
    elif base_class(layer) is pyg.FastRGCNConv:  # it uses the embedding of each node's position, not of x
        return None
    # x holds indices of embeddings: X W is a selection of rows of W for each tap
    signal = layer.weight.new_empty(len(x), 1)
    if layer.num_blocks is not None or not usual(layer, signal, edge_index):
        return None
    if not labelled(layer, edge_index, edge_type):
        return None
    W = layer.peer.weights(layer)
    gconv = layer.gconv.borrow(W)
    S = gconv._basis(read_graph(edge_index, len(x), edge_type=edge_type), gconv._call(signal))
    y: Tensor = S.contract(W["weight"][:, x])
    return y if layer.bias is None else y + layer.bias


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
    source, target = x if isinstance(x, tuple) and len(x) == 2 else (x, x)
    if not usual(layer, source, pos_edge_index, neg_edge_index) or not usual(layer, target):
        return None
    kind = torch.cat([torch.zeros_like(pos_edge_index[0]), torch.ones_like(neg_edge_index[0])])
    edge_index = torch.cat([pos_edge_index, neg_edge_index], 1)
    if source is not target:
        return run(layer, x, Bipartite(edge_index, (source.shape[-2], target.shape[-2]), edge_type=kind))
    return run(layer, source, same_graph(layer, Graph(edge_index, source.shape[-2], edge_type=kind)))


def mf_affine(layer: Any) -> bool:
    return layer.lins_l[0].bias is not None


def mf_spec(layer: Any) -> OperatorSpec:
    ordinary(layer)
    i = channels_in(layer, more=mf_affine(layer))
    return operators.mf(i, layer.out_channels, len(layer.lins_l) - 1, bias=False)


def mf_weights(layer: Any) -> Weights:
    source, target = matrices(*layer.lins_l), matrices(*layer.lins_r)
    if mf_affine(layer):
        b = torch.stack([lin.bias for lin in layer.lins_l])
        source, target = F.pad(source, (0, 0, 0, 1)), torch.cat([target, b.unsqueeze(1)], 1)
    return {"weight": torch.cat(level(source, target))}


def hypergraph_spec(layer: Any) -> OperatorSpec:
    ordinary(layer, node_dim=0)
    if layer.use_attention:
        raise LeftAlone("use_attention=True: its attention reads the features of hyperedges, a second signal")
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
    graph = Graph.from_hyperedge_index(hyperedge_index, len(x), hyperedge_weight)
    return run(layer, x, same_graph(layer, graph))


def gmm_spec(layer: Any) -> OperatorSpec:
    ordinary(layer, MEAN)
    if layer.separate_gaussians:
        raise LeftAlone("separate_gaussians=True: each pair of channels has its own structure")
    if layer.root_weight is False and not hasattr(layer, "root"):
        raise LeftAlone("root_weight=False: PyG's GMMConv fails, since it uses an undefined attribute `root`")
    i = channels_in(layer, layer.root_weight)
    return operators.monet(i, layer.out_channels, layer.dim, layer.kernel_size, layer.root_weight, has_bias(layer))


def gmm_weights(layer: Any) -> Weights:
    W = layer.g.unflatten(1, (layer.kernel_size, -1)).transpose(0, 1)
    if layer.root_weight:
        W = torch.cat(level(W, matrices(layer.root)))
    return {"weight": W, "mu": layer.mu, "sigma": layer.sigma, "bias": layer.bias}


def in_a_row(parts: Iterable[nn.Module], *kinds: tuple[type, ...]) -> bool:
    """Whether the modules are of exactly these classes, in this order."""
    classes = [base_class(part) for part in parts]
    return len(classes) == len(kinds) and all(cls in some for cls, some in zip(classes, kinds, strict=True))


def network(layer: Any) -> tuple[Any, Any]:
    """The two linear layers of Sequential(Linear, ReLU, Linear).

    Raises:
        LeftAlone: if the network has another form or hooks.
    """
    parts = list(layer.nn) if type(layer.nn) is nn.Sequential else []
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in layer.nn.modules())
    if not in_a_row(parts, LINEAR, (nn.ReLU,), LINEAR) or hooked:
        raise LeftAlone(
            "its network is not Sequential(Linear, ReLU, Linear), which can be split into structure and mixing"
        )
    return parts[0], parts[2]


def nn_spec(layer: Any) -> OperatorSpec:
    ordinary(layer, (*SUM, *MEAN))
    first, _ = network(layer)
    dim, hidden = sizes(first)
    return operators.nnconv(
        channels_in(layer, layer.root_weight),
        layer.out_channels,
        dim,
        hidden,
        AGGR[layer.aggr],
        layer.root_weight,
        has_bias(layer),
    )


def nn_weights(layer: Any) -> Weights:
    first, last = network(layer)
    cut = (layer.in_channels_l, layer.out_channels)
    W = last.weight.t().unflatten(1, cut)
    constant = W.new_zeros(1, *cut) if last.bias is None else last.bias.unflatten(0, cut).unsqueeze(0)
    root = [matrices(layer.lin)] if layer.root_weight else []
    w1 = first.weight
    shift = w1.new_zeros(len(w1)) if first.bias is None else first.bias
    return {"weight": torch.cat(level(W, constant, *root)), "w1": w1, "b1": shift, "bias": layer.bias}


def pdn_spec(layer: Any) -> OperatorSpec:
    ordinary(layer)
    if not in_a_row(layer.mlp, LINEAR, (nn.ReLU,), LINEAR, (nn.Sigmoid,)):
        raise LeftAlone("its network of the edges was replaced")
    edges = sizes(layer.mlp[0])
    return operators.pdn(*sizes(layer.lin), *edges, layer.add_self_loops, layer.normalize, has_bias(layer))


def pdn_call(layer: Any, x: Any, edge_index: Any, edge_attr: Any = None, *, values: Any = None) -> Tensor | None:
    if values is None:
        return attributed(layer, x, edge_index, edge_attr)
    if not usual(layer, x, edge_index):
        return None
    graph = read_graph(edge_index, x.shape[-2], edge_weight=values)
    return run(layer, x, graph, engine(layer, _gcn, layer), {"weight": matrices(layer.lin), "bias": layer.bias})


def _gcn(layer: Any) -> OperatorSpec:
    return operators.gcn(*sizes(layer.lin), False, layer.add_self_loops, layer.normalize, bias=has_bias(layer))


def pdn_weights(layer: Any) -> Weights:
    first, last = layer.mlp[0], layer.mlp[2]
    network = {"w1": first.weight, "b1": first.bias, "w2": last.weight[0], "b2": last.bias}
    return {"weight": matrices(layer.lin), "bias": layer.bias, **network}


PEERS: dict[type, Peer] = {
    pyg.RGCNConv: Peer(
        rgcn_spec,
        rgcn_weights,
        rgcn_call,
        listed("the mean is over the edges of one relation", "calls with a pair of node indices as x run in PyG"),
    ),
    pyg.FastRGCNConv: Peer(
        rgcn_spec,
        rgcn_weights,
        rgcn_call,
        listed(
            "the mean is over the edges of one relation",
            "calls with node indices as x run in PyG, which uses the embedding of each node's position, not of x",
        ),
    ),
    pyg.SignedConv: Peer(
        signed_spec, signed_weights, signed_call, listed("the two edge lists become one graph with two labels")
    ),
    pyg.MFConv: Peer(mf_spec, mf_weights, unweighted, lambda m: [AFFINE] * mf_affine(m), affine=mf_affine),
    pyg.HypergraphConv: Peer(
        hypergraph_spec,
        biased("lin"),
        hypergraph_call,
        listed("weights of hyperedges are used in the degrees of the nodes only, unlike in its documented formula"),
    ),
    pyg.GMMConv: Peer(
        gmm_spec, gmm_weights, attributed, listed("the mean over edges, without the factor 1 / K of its docstring")
    ),
    pyg.NNConv: Peer(nn_spec, nn_weights, attributed, listed("edge weights are ignored")),
    pyg.PDNConv: Peer(pdn_spec, pdn_weights, pdn_call, listed("gcn's loops and degrees, with the learned weights")),
}
