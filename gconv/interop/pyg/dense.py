"""PyG's layers on dense adjacencies, its readouts, and its linear layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric import nn as pyg

from gconv import operators
from gconv.arguments import kind_of
from gconv.domains import Graph
from gconv.interop.peer import Peer, Weights, run
from gconv.interop.pyg.common import biased, blocks, has_bias, inner_bias, listed, nothing, sizes
from gconv.interop.pyg.common import dense as is_dense
from gconv.interop.pyg.neighbours import GIN_NOTES
from gconv.interop.torch_nn import LINEAR, linear_call
from gconv.kernels import readable
from gconv.spec import OperatorSpec

Matrix = Callable[[Any, Tensor, bool], Tensor]  # (layer, adjacencies (b, n, n), whether to add loops) -> A
DENSE = "the nonzeros of the dense adjacency are read as a graph; adjacencies that require gradients run in PyG"


def as_graph(A: Tensor, loops: bool = False) -> Graph:
    """A batch (b, n, n) as the disjoint union of b graphs, out_i = sum_j A[i, j] x_j; zeros are not edges.

    With `loops`, zeros on the diagonal are edges of weight 0.
    """
    n, there = A.shape[-1], A != 0
    if loops:
        there = there | torch.eye(n, dtype=torch.bool, device=A.device)
    part, i, j = there.nonzero().t()
    return Graph(torch.stack([part * n + j, part * n + i]), len(A) * n, A[part, i, j])


def dense(layer: Any, x: Any, adj: Any, matrix: Matrix, add_loop: bool = True, loops: bool = False) -> Tensor | None:
    """layer(x, adj), with A computed from adj by `matrix`."""
    if not is_dense(x) or not is_dense(adj) or adj.dtype != x.dtype or adj.requires_grad:
        return None
    if x.ndim not in (2, 3) or adj.ndim not in (2, 3) or not x.shape[-2]:
        return None
    signals = x.unsqueeze(0) if x.ndim == 2 else x
    A = matrix(layer, (adj.unsqueeze(0) if adj.ndim == 2 else adj).expand(len(signals), -1, -1), add_loop)
    b, n = signals.shape[:2]
    if not b or A.shape[1:] != (n, n):
        return None
    return run(layer, signals.flatten(0, 1), as_graph(A, loops)).unflatten(0, (b, n))


def settled(matrix: Matrix) -> Callable[[Any, OperatorSpec, Any], tuple[OperatorSpec, Any]]:
    """`Peer.settle` for layers whose domain is an adjacency (n, n)."""

    def settle(layer: Any, spec: OperatorSpec, domain: Any) -> tuple[OperatorSpec, Any]:
        if not isinstance(domain, Tensor) or domain.ndim != 2 or not domain.is_floating_point():
            raise TypeError(
                f"The domain of {kind_of(layer)} must be a dense adjacency (n, n) of floating point numbers, "
                f"but it is {domain if isinstance(domain, Graph) else kind_of(domain)}."
            )
        return spec, as_graph(matrix(layer, domain.unsqueeze(0), True))

    return settle


def masked(y: Tensor | None, mask: Tensor | None) -> Tensor | None:
    return y if y is None or mask is None else y * mask.view(-1, y.shape[1], 1).to(y.dtype)


def looped(adj: Tensor, add_loop: bool, value: float = 1.0) -> Tensor:
    """The adjacency with its diagonal replaced by `value`, if add_loop."""
    if not add_loop:
        return adj
    return torch.where(torch.eye(adj.shape[-1], dtype=torch.bool, device=adj.device), value, adj)


def averaged(layer: Any, adj: Tensor, add_loop: bool) -> Tensor:
    """Rows divided by max(1, row sum)."""
    return adj / adj.sum(-1, keepdim=True).clamp(min=1)


def gcn_matrix(layer: Any, adj: Tensor, add_loop: bool) -> Tensor:
    A = looped(adj, add_loop, 2.0 if layer.improved else 1.0)
    root = A.sum(-1).clamp(min=1).rsqrt()
    return root.unsqueeze(-1) * A * root.unsqueeze(-2)


def graph_matrix(layer: Any, adj: Tensor, add_loop: bool) -> Tensor:
    if layer.aggr == "max":
        return (adj.mT != 0).to(adj.dtype)
    return averaged(layer, adj, add_loop) if layer.aggr == "mean" else adj


def gin_matrix(layer: Any, adj: Tensor, add_loop: bool) -> Tensor:
    own = torch.eye(adj.shape[-1], dtype=adj.dtype, device=adj.device)
    return adj + (1 + layer.eps) * own if add_loop else adj


def gat_matrix(layer: Any, adj: Tensor, add_loop: bool) -> Tensor:
    return (looped(adj, add_loop) != 0).to(adj.dtype)


def dense_gcn(layer: Any, x: Any, adj: Any, mask: Any = None, add_loop: bool = True) -> Tensor | None:
    return masked(dense(layer, x, adj, gcn_matrix, add_loop), mask)


def dense_sage(layer: Any, x: Any, adj: Any, mask: Any = None) -> Tensor | None:
    y = dense(layer, x, adj, averaged)
    return masked(F.normalize(y, dim=-1) if layer.normalize and y is not None else y, mask)


def dense_graph(layer: Any, x: Any, adj: Any, mask: Any = None) -> Tensor | None:
    return masked(dense(layer, x, adj, graph_matrix), mask)


def dense_gin(layer: Any, x: Any, adj: Any, mask: Any = None, add_loop: bool = True) -> Tensor | None:
    y = dense(layer, x, adj, gin_matrix, add_loop, loops=add_loop)
    return masked(y if y is None else layer.nn(y), mask)


def dense_gat(layer: Any, x: Any, adj: Any, mask: Any = None, add_loop: bool = True) -> Tensor | None:
    if isinstance(adj, Tensor) and not add_loop and not (readable(adj) and bool((adj != 0).any(-1).all())):
        return None  # PyG returns NaN (0 / 0) for rows without entries
    return masked(dense(layer, x, adj, gat_matrix, add_loop), mask)


def dense_gat_spec(layer: Any) -> OperatorSpec:
    return operators.gat(
        sizes(layer.lin)[0],
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
        "att_src": layer.att_src.expand(1, 1, layer.heads, layer.out_channels)[0, 0],
        "att_dst": layer.att_dst.expand(1, 1, layer.heads, layer.out_channels)[0, 0],
        "bias": layer.bias,
    }


def readout(
    layer: Any,
    x: Any,
    index: Any = None,
    ptr: Any = None,
    dim_size: int | None = None,
    dim: int = -2,
) -> Tensor | None:
    if not is_dense(x) or x.ndim < 2 or not x.is_floating_point() or dim not in (-2, x.ndim - 2) or not x.shape[-2]:
        return None
    if not all(given is None or (is_dense(given) and readable(given)) for given in (index, ptr)):
        return None
    if index is not None and index.ndim == 1 and bool((index[1:] >= index[:-1]).all()) and bool((index >= 0).all()):
        counts = torch.bincount(index, minlength=dim_size or 0)
        starts = (0, *counts.cumsum(0).tolist())
    elif index is None and ptr is not None and ptr.ndim == 1:
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
    """The description of a readout; the domain of its LinearMap is a union of graphs."""
    return Peer(lambda layer: operators.global_pool(reduce), nothing, readout)


PEERS: dict[type, Peer] = {
    pyg.DenseGCNConv: Peer(
        lambda m: operators.gcn(*sizes(m.lin), normalize=False, bias=has_bias(m)),
        biased("lin"),
        dense_gcn,
        listed(DENSE, "degrees below 1 count as 1; existing loops are replaced"),
        settle=settled(gcn_matrix),
    ),
    pyg.DenseSAGEConv: Peer(
        lambda m: operators.graphconv(*sizes(m.lin_rel), bias=m.lin_root.bias is not None),
        inner_bias("lin_rel", "lin_root"),
        dense_sage,
        listed(DENSE, "the mean divides by the sum of the weights, or by 1 where that is larger"),
        after=lambda m: "with normalize=True each row is divided by its norm" if m.normalize else None,
        settle=settled(averaged),
    ),
    pyg.DenseGraphConv: Peer(
        lambda m: operators.graphconv(
            *sizes(m.lin_rel), "max" if m.aggr == "max" else "sum", m.lin_rel.bias is not None
        ),
        inner_bias("lin_rel", "lin_root"),
        dense_graph,
        lambda m: [DENSE] + ["the maximum uses the transposed adjacency, as PyG's code does"] * (m.aggr == "max"),
        settle=settled(graph_matrix),
    ),
    pyg.DenseGINConv: Peer(
        lambda m: operators.simple(),
        nothing,
        dense_gin,
        listed(DENSE, GIN_NOTES[0]),
        inner=("nn",),
        after=lambda m: "its network `nn` follows the aggregation",
        settle=settled(gin_matrix),
    ),
    pyg.DenseGATConv: Peer(dense_gat_spec, dense_gat_weights, dense_gat, listed(DENSE), settle=settled(gat_matrix)),
    pyg.MeanAggregation: pooled("mean"),
    pyg.SumAggregation: pooled("sum"),
    pyg.MaxAggregation: pooled("max"),
    pyg.Linear: replace(LINEAR, call=lambda layer, x: linear_call(layer, x)),  # torch names its argument input
}
