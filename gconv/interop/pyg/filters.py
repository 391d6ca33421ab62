"""PyG's multi-hop layers: polynomials of one matrix."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric import nn as pyg

from gconv import operators
from gconv.basis import Polynomial, Taps
from gconv.binding import dropped
from gconv.domains import Graph, read_graph
from gconv.interop.peer import LeftAlone, Peer, Weights, engine, run, run_on
from gconv.interop.pyg.common import (
    AFFINE,
    CACHED,
    dense,
    graph_cached,
    has_bias,
    inner_bias,
    kept_graph,
    listed,
    matrices,
    nothing,
    ordinary,
    per_edge,
    sizes,
    usual,
    weighted,
)
from gconv.kernels import readable
from gconv.laplacian import laplacian
from gconv.spec import OperatorSpec

CACHED_SIGNAL = "cached=True: the filtered signal of the first call is reused in all later calls, as in PyG"
CHEB_NOTES = [
    "self-loops are dropped; the Laplacian is normalised by out-degrees",
    "lambda_max defaults to 2 max(L_ij) of the whole batch of graphs",
]


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
    if isinstance(lambda_max, Tensor) and (
        lambda_max.numel() != 1 or lambda_max.requires_grad or not readable(lambda_max)
    ):
        return rescaled(layer, x, read_graph(edge_index, x.shape[-2], edge_weight=edge_weight), batch, lambda_max)
    top = float(lambda_max)
    return run(layer, x, edge_index, engine(layer, cheb_spec, layer, top), edge_weight=edge_weight) if top > 0 else None


def rescaled(layer: Any, x: Tensor, graph: Graph, batch: Any, lambda_max: Tensor) -> Tensor | None:
    """A call with one lambda_max per graph of a batch, or a differentiable one."""
    if lambda_max.numel() > 1:
        if not dense(batch) or batch.shape != (graph.size,) or lambda_max.ndim != 1:
            return None
        lambda_max = lambda_max[batch]
    if readable(lambda_max) and bool((lambda_max <= 0).any()):
        return None
    gconv = layer.gconv.borrow(layer.peer.weights(layer))
    structure = gconv.spec.structure
    L = laplacian(graph, x.dtype, norm=structure.norm, lmax=2.0)  # L - I
    row = L.pattern.row
    one = (row == L.pattern.col).to(x.dtype)
    scale = 2 / lambda_max.to(x.dtype).expand(graph.size)
    values = (L.values + one) * scale[row] - one
    return run_on(gconv, Polynomial(Taps(L.pattern, values), structure.recurrence, structure.combine), gconv._call(x))


def tag_spec(layer: Any) -> OperatorSpec:
    ordinary(layer)
    if not layer.normalize:
        raise LeftAlone("normalize=False: gconv's tag always normalises")
    i, o = sizes(layer.lins[0])
    return operators.tag(i, o, len(layer.lins) - 1, has_bias(layer))


def sg_spec(layer: Any) -> OperatorSpec:
    ordinary(layer)
    if not layer.add_self_loops:  # mixhop with the single power K
        return operators.mixhop(*sizes(layer.lin), (layer.K,), False, layer.lin.bias is not None)
    return operators.sgc(*sizes(layer.lin), layer.K, layer.lin.bias is not None)


def sg_call(layer: Any, x: Any, edge_index: Any, edge_weight: Any = None) -> Tensor | None:
    return cached_call(layer, "_cached_x", x, edge_index, edge_weight)


def ssg_call(layer: Any, x: Any, edge_index: Any, edge_weight: Any = None) -> Tensor | None:
    return cached_call(layer, "_cached_h", x, edge_index, edge_weight)


def cached_call(layer: Any, kept: str, x: Any, edge_index: Any, edge_weight: Any) -> Tensor | None:
    """With cached=True the filtered signal of the first call is reused in all later calls."""
    if not layer.cached:
        return weighted(layer, x, edge_index, edge_weight)
    signal: Tensor | None = getattr(layer, kept)
    if signal is None:
        if not usual(layer, x, edge_index) or not per_edge(edge_weight, x, edge_index):
            return None
        gconv = layer.gconv.borrow(layer.peer.weights(layer))
        S = gconv._basis(read_graph(edge_index, x.shape[-2], edge_weight=edge_weight), gconv._call(x))
        signal = S.expand(x).squeeze(-3)
        setattr(layer, kept, signal)
    else:
        signal = signal.detach()
    y: Tensor = layer.lin(signal)
    return y


def ssg_spec(layer: Any) -> OperatorSpec:
    ordinary(layer)
    return operators.ssg(*sizes(layer.lin), layer.alpha, layer.K, layer.add_self_loops, layer.lin.bias is not None)


def appnp_spec(layer: Any) -> OperatorSpec:
    ordinary(layer)
    graph_cached(layer)
    if not (layer.add_self_loops and layer.normalize):
        raise LeftAlone("add_self_loops=False or normalize=False: gconv's appnp adds loops and normalises")
    return operators.appnp(layer.K, layer.alpha)


def appnp_call(layer: Any, x: Any, edge_index: Any, edge_weight: Any = None) -> Tensor | None:
    if not (layer.dropout and layer.training):
        return weighted(layer, x, edge_index, edge_weight)
    if not usual(layer, x, edge_index) or not per_edge(edge_weight, x, edge_index):
        return None
    if edge_weight is None:  # explicit weights keep the entries in the order of PyG's random draws
        edge_weight = x.new_ones(edge_index.shape[1])
    graph = kept_graph(layer, x, edge_index, edge_weight=edge_weight)
    S, y = layer.gconv.spec.structure.L(graph, x), x
    for _ in range(layer.K):
        S = dropped(S, layer.dropout)  # each step drops edges from those kept by the previous step
        y = (1 - layer.alpha) * S.expand(y).squeeze(-3) + layer.alpha * x
    return y


def lg_spec(layer: Any) -> OperatorSpec:
    ordinary(layer)
    return operators.lightgcn(layer.normalize)


def mixhop_spec(layer: Any) -> OperatorSpec:
    ordinary(layer)
    i, o = sizes(layer.lins[max(layer.powers)])
    return operators.mixhop(i, o, tuple(layer.powers), layer.add_self_loops, has_bias(layer))


def arma_affine(layer: Any) -> bool:
    return layer.bias is not None and layer.num_layers > 1


def arma_spec(layer: Any) -> OperatorSpec:
    ordinary(layer)
    if layer.act is not None:
        raise LeftAlone("it applies an activation between its steps (use act=None)")
    i, o = layer.init_weight.shape[-2:]
    return operators.tag(i + arma_affine(layer), o, layer.num_layers, layer.bias is not None and layer.num_layers == 1)


def arma_weights(layer: Any) -> Weights:
    """The recursion Z <- S Z M_t + X R_t + b_t expanded into one matrix per power of S."""
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


PEERS: dict[type, Peer] = {
    pyg.ChebConv: Peer(
        cheb_spec, lambda m: {"weight": matrices(*m.lins), "bias": m.bias}, cheb_call, listed(*CHEB_NOTES)
    ),
    pyg.TAGConv: Peer(
        tag_spec,
        lambda m: {"weight": matrices(*m.lins), "bias": m.bias},
        weighted,
        listed("no self-loops are added"),
    ),
    pyg.SGConv: Peer(sg_spec, inner_bias("lin"), sg_call, lambda m: [CACHED_SIGNAL] * m.cached),
    pyg.SSGConv: Peer(ssg_spec, inner_bias("lin"), ssg_call, lambda m: [CACHED_SIGNAL] * m.cached),
    pyg.APPNP: Peer(appnp_spec, nothing, appnp_call, lambda m: [CACHED] * m.cached),
    pyg.LGConv: Peer(lg_spec, nothing, weighted, listed("no self-loops are added")),
    pyg.MixHopConv: Peer(
        mixhop_spec,
        lambda m: {"weight": matrices(*(m.lins[p] for p in m.powers)), "bias": m.bias},
        weighted,
    ),
    pyg.ARMAConv: Peer(
        arma_spec,
        arma_weights,
        arma_call,
        lambda m: ["its steps are expanded into one matrix per power"] + [AFFINE] * arma_affine(m),
        affine=arma_affine,
    ),
}
