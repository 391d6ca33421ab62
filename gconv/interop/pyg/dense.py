"""Dense adjacencies, readouts, and the linear layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gconv import operators
from gconv.domains import Graph
from gconv.interop.peer import Peer, Weights, run
from gconv.interop.pyg.common import PLAIN, biased, blocks, has_bias, inner_bias, listed, matrices, nothing, sizes
from gconv.interop.pyg.neighbours import GIN_NOTES
from gconv.interop.torch_nn import linear_call
from gconv.spec import OperatorSpec

DENSE = "the dense adjacency, its zeros left out, is read as a graph; one that needs a gradient stays PyG's"


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
