"""Scaled dot-product attention over edges."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gconv.basis import Basis
from gconv.call import Call
from gconv.domains import Edges
from gconv.mixing import by_heads
from gconv.operators.attention import arrivals, attend, check_heads, complete, head_mixing
from gconv.operators.shapes import Channels, messy, pixels, widest
from gconv.spec import GraphStructure, OutsideFamily, Parameter, Parts, Sample, Theta, register


@dataclass(frozen=True)
class DotProduct(GraphStructure):
    """One tap per head: the softmax over the incoming edges of (Q x_i + q) . K x_j / sqrt(c)."""

    heads: int
    i: int
    c: int
    bias: bool
    dropout: float = 0.0
    root: bool = True

    kind, many = "adaptive", True
    reads = "both"

    @property
    def taps(self) -> int:
        return self.heads + self.root

    def parameters(self) -> dict[str, Parameter]:
        bound = self.i**-0.5
        p = Parameter((self.heads, self.i, self.c), "uniform", bound)
        shift = {"query_bias": Parameter((self.heads, self.c), "uniform", bound)} if self.bias else {}
        return {"query": p, "key": p, **shift}

    def basis(self, domain: Edges, theta: Theta, call: Call) -> Basis:
        one, _ = arrivals(domain, False)
        scale = self.c**-0.5
        asked = theta["query"] * scale  # scaling the weight is cheaper than scaling the logits
        if domain.square:
            query, key = by_heads(call.x, torch.cat((asked, theta["key"]))).split(self.heads, -2)
        else:
            query, key = by_heads(domain.at_targets(call.x), asked), by_heads(call.x, theta["key"])
        if self.bias:
            query = query + theta["query_bias"] * scale
        return attend(domain, one, one.dots(query, key), query.dtype, self.root)


@register(
    samples=lambda transformer: [
        Sample(transformer(3, 2, heads=2), messy, 3),
        Sample(transformer(2, 3, heads=2, concat=False, dropout=0.5), messy, 2),
        Sample(transformer(3, 2, heads=2, root_weight=False), complete, 3, row_stochastic=True),  # self-attention
        Sample(transformer(2, 2, bias=False, root_weight=False), pixels, 2, row_stochastic=True),
    ],
    citation="Shi et al., Masked Label Prediction: Unified Message Passing Model for Semi-Supervised Classification, IJCAI 2021",  # noqa: E501
)
def transformer(
    in_channels: Channels,
    out_channels: int,
    heads: int = 1,
    concat: bool = True,
    beta: bool = False,
    dropout: float = 0.0,
    edge_dim: int | None = None,
    bias: bool = True,
    root_weight: bool = True,
) -> Parts:
    """Dot-product attention over the edges of a graph, and the node itself.

    Equation: Y = [S_1 X W_1 | ... | S_h X W_h] + X W_0 + b (W_0 with root_weight),
    S_h[i, j] = softmax over j of (Q_h^T x_i + q_h) . K_h^T x_j / sqrt(o).

    Meaning: attention is a convolution with adaptive structure. On the complete graph with self-loops this is a
    transformer's self-attention without its output projection; on a pixel graph it is windowed attention.

    In the family: one tap per head, adaptive; nonempty rows sum to one. Queries and keys are parameters of the
    structure, values are the mixing. With root_weight, the node itself is a last tap. Linear only when frozen:
    `layer.at(graph, x=x0)`.

    Traps: no self-loops are added and double edges count twice, as in PyG; a node without incoming edges gets
    W_0^T x_i + b. PyG's four biases become two: a key bias adds the same number to all logits of a row and has no
    effect, and a value bias is equivalent to an output bias if rows sum to one (averaged over heads with concat=False).
    For nodes without edges and under dropout it is not equivalent; a constant channel in x reproduces it. PyG has no
    output bias without root_weight; here `bias` always is one. Edge features are outside the family, since PyG also
    adds them to the values, a term that does not depend on x; so is beta=True, a gate computed from the output.

    Args: PyG's TransformerConv's. out_channels: per head. beta, edge_dim: only False and None.

    Shapes: x (*b, n, i) -> (*b, n, heads o), or (*b, n, o) with concat=False. The weight is (heads, i, o); root_weight
    adds `heads` blocks of W_0, or one block with concat=False.
    Between two sets of nodes: `layer((x_source, x_target), bipartite)`; in_channels may be a pair (i_source, i_target).

    Raises:
        ValueError: if heads < 1 or dropout is outside of [0, 1).
        OutsideFamily: with beta or edge_dim.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(transformer(3, 2, heads=4))(torch.zeros(5, 3), complete(5)).shape
    torch.Size([5, 8])
    """
    i = widest(in_channels)
    check_heads(heads, dropout)
    if beta:
        raise OutsideFamily(
            "transformer with beta=True gates its result by a sigmoid of that result, which no structure made from the "
            "edges can say; use beta=False."
        )
    if edge_dim is not None:
        raise OutsideFamily(
            "transformer with edge_dim adds edge features to the values, a term of the output that is not linear in x; "
            "use gat or gatv2, where edge features only weigh the edges."
        )
    structure = DotProduct(heads, i, out_channels, bias, dropout, bool(root_weight))
    return structure, head_mixing(heads, i, out_channels, concat, bool(root_weight)), bias
