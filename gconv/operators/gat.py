"""Additive attention over edges: GAT and GATv2."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from gconv.basis import AttentionTaps, Basis, Identity, Stack, widened
from gconv.call import Call
from gconv.domains import Edges
from gconv.mixing import by_heads
from gconv.operators.attention import (
    Fill,
    arrivals,
    attend,
    check_features,
    check_heads,
    edge_features,
    glorot,
    head_mixing,
    head_taps,
)
from gconv.operators.shapes import Channels, messy, ring, weighted, widest
from gconv.spec import GraphStructure, Parameter, Parts, Sample, Theta, register


@dataclass(frozen=True)
class Attention(GraphStructure):
    """One tap per head: the softmax over the incoming edges of LeakyReLU(a_src . W x_j + a_dst . W x_i)."""

    heads: int
    c: int
    negative_slope: float
    add_self_loops: bool
    dropout: float = 0.0
    edge_dim: int | None = None
    fill: Fill = "mean"
    root: bool = False
    i: int | None = None

    kind, many = "adaptive", True
    reads = "both"

    @property
    def taps(self) -> int:
        return self.heads + self.root

    def parameters(self) -> dict[str, Parameter]:
        p = Parameter((self.heads, self.c), "uniform", (6 / (self.heads + self.c)) ** 0.5)
        ends = {"att_src": p, "att_dst": p}
        if self.i is not None:
            ends["target_weight"] = glorot(self.heads, self.i, self.c)
        if self.edge_dim is None:
            return ends
        return ends | {"att_edge": p, "lin_edge": glorot(self.heads, self.edge_dim, self.c)}

    def basis(self, domain: Edges, theta: Theta, call: Call) -> Basis:
        one, _ = arrivals(domain, self.add_self_loops)
        if self.edge_dim is None and self.i is None and domain.square and self.c <= call.x.shape[-1]:
            S = AttentionTaps(one, call.mixed(call.weight), theta["att_dst"], theta["att_src"], self.negative_slope)
            return Stack((S, Identity(call.x.shape[-2]))) if self.root else S
        W = call.weight[: self.heads]
        V = W if self.i is None else theta["target_weight"]
        # a . (W^T x) = x . (W a): the logits do not need the transformed signal
        target, source = (
            (matrix @ theta[name].unsqueeze(-1)).squeeze(-1).t() for matrix, name in ((V, "att_dst"), (W, "att_src"))
        )
        target, source = call.times(torch.cat((target, source), 1)).chunk(2, -1)
        logits = one.ends(domain.at_targets(widened(target)), widened(source))
        if self.edge_dim is not None:
            u = edge_features(domain, self.add_self_loops, self.edge_dim, self.fill, logits.dtype, "gat")
            logits = logits + u @ torch.einsum("kdc,kc->dk", widened(theta["lin_edge"]), widened(theta["att_edge"]))
        return attend(domain, one, F.leaky_relu(logits, self.negative_slope), call.x.dtype, self.root)


@dataclass(frozen=True)
class AttentionV2(GraphStructure):
    """One tap per head: the softmax over the incoming edges of a . LeakyReLU(W x_j + V x_i + shift)."""

    heads: int
    i: int
    c: int
    negative_slope: float
    add_self_loops: bool
    share_weights: bool
    bias: bool
    dropout: float = 0.0
    edge_dim: int | None = None
    fill: Fill = "mean"
    root: bool = False

    kind, many = "adaptive", True
    reads = "both"

    @property
    def taps(self) -> int:
        return self.heads + self.root

    def parameters(self) -> dict[str, Parameter]:
        made = {"att": Parameter((self.heads, self.c), "uniform", (6 / (self.heads + self.c)) ** 0.5)}
        if not self.share_weights:
            made["target_weight"] = glorot(self.heads, self.i, self.c)
        if self.bias:
            made["shift"] = Parameter((self.heads, self.c), "uniform", self.i**-0.5)
        if self.edge_dim is not None:
            made["lin_edge"] = glorot(self.heads, self.edge_dim, self.c)
        return made

    def basis(self, domain: Edges, theta: Theta, call: Call) -> Basis:
        one, _ = arrivals(domain, self.add_self_loops)
        source = call.mixed(call.weight)[..., : self.heads, :]
        if self.share_weights:
            target = domain.at_targets(source, -3)
        else:
            target = by_heads(domain.at_targets(call.x), theta["target_weight"])
        if self.bias:
            target = target + theta["shift"]
        if self.edge_dim is None:
            alpha = one.joint_attention(source, target, theta["att"], self.negative_slope)
            return head_taps(domain, one, alpha, self.root)
        source, target, lin_edge = widened(source), widened(target), widened(theta["lin_edge"])
        u = edge_features(domain, self.add_self_loops, self.edge_dim, self.fill, lin_edge.dtype, "gatv2")
        both = (
            source.index_select(-3, one.col)
            + target.index_select(-3, one.row)
            + torch.einsum("ed,kdc->ekc", u, lin_edge)
        )
        logits = (F.leaky_relu(both, self.negative_slope) * widened(theta["att"])).sum(-1)
        return attend(domain, one, logits, call.x.dtype, self.root)


@register(
    samples=lambda gat: [
        Sample(gat(3, 2, heads=2), ring, 3, row_stochastic=True),
        Sample(gat(3, 2, heads=3), messy, 3, row_stochastic=True),
        Sample(
            gat(2, 4, heads=2, concat=False, residual=True, edge_dim=2, fill_value="max", bias=False),
            messy,
            2,
            row_stochastic=True,
        ),
        Sample(gat(2, 3, negative_slope=0.1, dropout=0.5, add_self_loops=False), messy, 2),
        Sample(gat(2, 3, heads=2, share_weights=False, residual=True), messy, 2, row_stochastic=True),
    ],
    citation="Velickovic et al., Graph Attention Networks, ICLR 2018",
    init="glorot",
)
def gat(
    in_channels: Channels,
    out_channels: int,
    heads: int = 1,
    concat: bool = True,
    negative_slope: float = 0.2,
    dropout: float = 0.0,
    add_self_loops: bool = True,
    edge_dim: int | None = None,
    fill_value: Fill = "mean",
    bias: bool = True,
    residual: bool = False,
    share_weights: bool = True,
) -> Parts:
    """Graph attention: each node averages its neighbours with weights computed from the features of both.

    Equation: Y = [S_1 X W_1 | ... | S_h X W_h] + X W_0 + b (W_0 with residual),
    S_h[i, j] = softmax over j of LeakyReLU(a_src,h . W_h^T x_j + a_dst,h . V_h^T x_i + a_edge,h . U_h^T u_ij);
    V = W with share_weights.

    Meaning: S_h[i, j] is the weight with which node i reads node j.

    In the family: one tap per head, adaptive and row-stochastic; each head writes its own block (concat) or their mean
    is taken. With residual, the node itself is a last tap. Linear only when frozen: `layer.at(graph, x=x0)`.

    Traps: as in PyG, existing self-loops are replaced by new ones, whose features u are by default the mean over the
    incoming edges, 0 if there are none. Edge weights are ignored. A graph without edge features is an error if edge_dim
    is given; PyG ignores edge_dim then. dropout is applied to the attention weights, after the softmax. In a batch
    (b, n, c) each signal has its own attention.

    Args: PyG's GATConv's. out_channels: per head. fill_value: one number per feature, as a tuple, is accepted, too.
    share_weights: False uses a separate matrix `target_weight` for x_i in the logits, as PyG's
    GATConv((i_source, i_target), ...) does; it works on a Graph, too.

    Shapes: x (*b, n, i) -> (*b, n, heads o), or (*b, n, o) with concat=False; edge_attr (e, edge_dim). The weight is
    (heads, i, o); residual adds `heads` blocks of W_0, or one block with concat=False.
    Between two sets of nodes: `layer((x_source, x_target), bipartite)`; in_channels may be a pair (i_source, i_target).

    Raises:
        ValueError: if heads < 1, dropout is outside of [0, 1), or the graph's edge features are not edge_dim.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(gat(3, 2, heads=4))(torch.zeros(7, 3), ring(7)).shape
    torch.Size([7, 8])
    """
    i = widest(in_channels)
    check_heads(heads, dropout)
    check_features(edge_dim, fill_value)
    structure = Attention(
        heads,
        out_channels,
        negative_slope,
        add_self_loops,
        dropout,
        edge_dim,
        fill_value,
        bool(residual),
        None if share_weights else i,
    )
    return structure, head_mixing(heads, i, out_channels, concat, residual), bias


@register(
    samples=lambda gatv2: [
        Sample(gatv2(3, 2, heads=2), messy, 3, row_stochastic=True),
        Sample(gatv2(2, 2, heads=2, residual=True, share_weights=True), weighted, 2, row_stochastic=True),
        Sample(gatv2(2, 3, heads=2, concat=False, edge_dim=2, fill_value="max"), messy, 2, row_stochastic=True),
        Sample(gatv2(2, 2, negative_slope=0.1, dropout=0.5, add_self_loops=False, bias=False), messy, 2),
    ],
    citation="Brody, Alon and Yahav, How Attentive Are Graph Attention Networks?, ICLR 2022",
    init="glorot",
)
def gatv2(
    in_channels: Channels,
    out_channels: int,
    heads: int = 1,
    concat: bool = True,
    negative_slope: float = 0.2,
    dropout: float = 0.0,
    add_self_loops: bool = True,
    edge_dim: int | None = None,
    fill_value: Fill = "mean",
    bias: bool = True,
    share_weights: bool = False,
    residual: bool = False,
) -> Parts:
    """GATv2: graph attention in which the ranking of the neighbours can depend on the node.

    Equation: Y = [S_1 X W_1 | ... | S_h X W_h] + X W_0 + b (W_0 with residual),
    S_h[i, j] = softmax over j of a_h . LeakyReLU(W_h^T x_j + V_h^T x_i + U_h^T u_ij + s_h).

    Meaning: gat applies a monotone nonlinearity to a sum of a source term and a target term, so all nodes rank their
    neighbours alike. Here the nonlinearity comes before the dot product with a_h.

    In the family: as gat, with other logits; V is a parameter of the structure (`target_weight`), V = W with
    share_weights.

    Traps: self-loops and edge features as in gat. PyG's bias=True adds a bias to lin_l, to lin_r and to the output. The
    logits contain the sum of the first two, here `shift`. The bias of lin_l is also part of each message; if the rows
    of S sum to one, it is equivalent to an output bias, and only that exists here. For nodes without edges
    (add_self_loops=False) and under dropout the result differs from PyG's; a constant channel in x reproduces it.

    Args: PyG's GATv2Conv's. out_channels: per head. fill_value: one number per feature, as a tuple, is accepted, too.

    Shapes: x (*b, n, i) -> (*b, n, heads o), or (*b, n, o) with concat=False; edge_attr (e, edge_dim). The weight is as
    in gat; its heads are PyG's lin_l.
    Between two sets of nodes: `layer((x_source, x_target), bipartite)`; in_channels may be a pair (i_source, i_target).

    Raises:
        ValueError: if heads < 1, dropout is outside of [0, 1), or the graph's edge features are not edge_dim.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(gatv2(3, 2, heads=4))(torch.zeros(7, 3), ring(7)).shape
    torch.Size([7, 8])
    """
    i = widest(in_channels)
    check_heads(heads, dropout)
    check_features(edge_dim, fill_value)
    structure = AttentionV2(
        heads,
        i,
        out_channels,
        negative_slope,
        add_self_loops,
        share_weights,
        bias,
        dropout,
        edge_dim,
        fill_value,
        bool(residual),
    )
    return structure, head_mixing(heads, i, out_channels, concat, residual), bias
