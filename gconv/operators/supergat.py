"""Attention that can also be trained by self-supervision to predict edges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F

from gconv.basis import Basis, widened
from gconv.call import Call
from gconv.domains import Edges
from gconv.operators.attention import arrivals, attend, check_heads, head_mixing
from gconv.operators.shapes import Channels, messy, ring, widest
from gconv.spec import GraphStructure, Parameter, Parts, Sample, Theta, register


@dataclass(frozen=True)
class Likely(GraphStructure):
    """One tap per head: the softmax over the incoming edges of logits computed from (W x_i) . (W x_j)."""

    heads: int
    c: int
    negative_slope: float
    add_self_loops: bool
    attention: Literal["MX", "SD"]
    dropout: float = 0.0

    kind, many = "adaptive", True
    reads = "both"

    @property
    def taps(self) -> int:
        return self.heads

    def parameters(self) -> dict[str, Parameter]:
        p = Parameter((self.heads, self.c), "uniform", (6 / (self.heads + self.c)) ** 0.5)
        return {"att_l": p, "att_r": p} if self.attention == "MX" else {}

    def basis(self, domain: Edges, theta: Theta, call: Call) -> Basis:
        one, _ = arrivals(domain, self.add_self_loops)
        z = call.mixed(call.weight)
        logits = one.dots(domain.at_targets(z, -3), z).values
        if self.attention == "MX":
            wide = widened(z)
            source, target = (wide * theta["att_l"]).sum(-1), domain.at_targets((wide * theta["att_r"]).sum(-1))
            logits = one.ends(target, source) * logits.sigmoid()
        else:
            logits = logits / self.c**0.5
        return attend(domain, one, F.leaky_relu(logits, self.negative_slope), z.dtype)


@register(
    samples=lambda supergat: [
        Sample(supergat(3, 2, heads=2), messy, 3, row_stochastic=True),
        Sample(supergat(2, 3, heads=2, concat=False, attention_type="SD"), messy, 2, row_stochastic=True),
        Sample(
            supergat(2, 2, negative_slope=0.1, dropout=0.5, add_self_loops=False, bias=False),
            ring,
            2,
            row_stochastic=True,
        ),
    ],
    citation="Kim and Oh, How to Find Your Friendly Neighborhood: Graph Attention Design with Self-Supervision, ICLR 2021",  # noqa: E501
    init="glorot",
)
def supergat(
    in_channels: Channels,
    out_channels: int,
    heads: int = 1,
    concat: bool = True,
    negative_slope: float = 0.2,
    dropout: float = 0.0,
    add_self_loops: bool = True,
    bias: bool = True,
    attention_type: Literal["MX", "SD"] = "MX",
) -> Parts:
    """SuperGAT: graph attention that weights an edge by its predicted probability.

    Equation: Y = [S_1 X W_1 | ... | S_h X W_h] + b, S_h[i, j] = softmax over j of LeakyReLU(l_ij), with z = W_h^T x:
    "SD"  l_ij = z_i . z_j / sqrt(o)
    "MX"  l_ij = (a_l,h . z_j + a_r,h . z_i) sigmoid(z_i . z_j)

    Meaning: z_i . z_j measures how likely the edge j -> i is; "MX" multiplies gat's logits by that probability.

    In the family: as gat, with other logits.

    Traps: this is the forward map only. In training PyG also samples edges and non-edges for a self-supervised loss on
    z_i . z_j; it does not change the output, and its arguments neg_sample_ratio, edge_sample_ratio and is_undirected
    are not part of the operator. Otherwise as in PyG: existing self-loops are replaced by new ones, edge weights are
    ignored, dropout is applied after the softmax.

    Args: PyG's SuperGATConv's, without those of the loss. out_channels: per head.

    Shapes: x (*b, n, i) -> (*b, n, heads o), or (*b, n, o) with concat=False.

    Raises:
        ValueError: if heads < 1, dropout is outside of [0, 1), or attention_type is neither "MX" nor "SD".

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(supergat(3, 2, heads=4))(torch.zeros(7, 3), ring(7)).shape
    torch.Size([7, 8])
    """
    check_heads(heads, dropout)
    if attention_type not in ("MX", "SD"):
        raise ValueError(f"attention_type must be 'MX' or 'SD', but it is {attention_type!r}.")
    structure = Likely(heads, out_channels, negative_slope, add_self_loops, attention_type, dropout)
    return structure, head_mixing(heads, widest(in_channels), out_channels, concat, False), bias
