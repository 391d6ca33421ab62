"""Many steps: polynomials of one matrix."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric import nn as pyg

from gconv import operators
from gconv.interop.peer import LeftAlone, Peer, Weights, run
from gconv.interop.pyg.common import (
    AFFINE,
    CACHED,
    graph_cached,
    has_bias,
    inner_bias,
    listed,
    matrices,
    never_cached,
    nothing,
    ordinary,
    per_edge,
    sizes,
    usual,
    weighted,
)
from gconv.spec import OperatorSpec

CHEB_NOTES = [
    "self-loops are dropped; out-degrees normalise",
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
    if isinstance(lambda_max, Tensor) and (lambda_max.numel() != 1 or lambda_max.requires_grad):
        return None
    top = float(lambda_max)
    return run(layer, x, edge_index, cheb_spec(layer, top), edge_weight=edge_weight) if top > 0 else None


def tag_spec(layer: Any) -> OperatorSpec:
    ordinary(layer)
    if not layer.normalize:
        raise LeftAlone("normalize=False: gconv's tag always normalises")
    i, o = sizes(layer.lins[0])
    return operators.tag(i, o, len(layer.lins) - 1, has_bias(layer))


def sg_spec(layer: Any) -> OperatorSpec:
    ordinary(layer)
    never_cached(layer)
    if not layer.add_self_loops:  # mixhop's power K alone
        return operators.mixhop(*sizes(layer.lin), (layer.K,), False, layer.lin.bias is not None)
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
    pyg.SGConv: Peer(sg_spec, inner_bias("lin"), weighted),
    pyg.SSGConv: Peer(ssg_spec, inner_bias("lin"), weighted),
    pyg.APPNP: Peer(appnp_spec, nothing, appnp_call, appnp_notes),
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
        lambda m: ["its steps are multiplied out, a matrix for each power"] + [AFFINE] * arma_affine(m),
        affine=arma_affine,
    ),
}
