"""Attention over the edges: structure that adapts to the signal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gconv.basis import Taps
from gconv.domains import Graph
from gconv.laplacian import pattern
from gconv.mixing import Dense, Heads
from gconv.operators.shapes import messy, ring
from gconv.spec import Parameter, Sample, Theta, register


def row_softmax(logits: Tensor, row: Tensor, rows: int) -> Tensor:
    """Softmax over the entries of each row, (e, h) -> (e, h); safe for large logits."""
    index = row.unsqueeze(-1).expand_as(logits)
    top = (
        logits.detach().new_full((rows, logits.shape[1]), -torch.inf).scatter_reduce(0, index, logits.detach(), "amax")
    )
    weight = (logits - top[row]).exp()
    total = weight.new_zeros(rows, logits.shape[1]).index_add(0, row, weight)
    return weight / (total[row] + 1e-16)


@dataclass(frozen=True)
class Attention:
    """One tap a head: the softmax over the arriving edges of LeakyReLU(a_src . W x_j + a_dst . W x_i)."""

    heads: int
    c: int
    negative_slope: float
    add_self_loops: bool
    dropout: float = 0.0

    domain: ClassVar[Literal["graph"]] = "graph"
    kind: ClassVar[Literal["adaptive"]] = "adaptive"

    @property
    def taps(self) -> int:
        return self.heads

    def parameters(self) -> dict[str, Parameter]:
        p = Parameter((self.heads, self.c), "uniform", (6 / (self.heads + self.c)) ** 0.5)
        return {"att_src": p, "att_dst": p}

    def basis(self, domain: Graph, theta: Theta, x: Tensor) -> Taps:
        one, _ = pattern(domain, "replace" if self.add_self_loops else "keep")
        W = theta["weight"]  # (k, i, c); a . (W^T x) = x . (W a), so the logits need no transformed signal
        source = x @ torch.einsum("kic,kc->ik", W, theta["att_src"])
        target = x @ torch.einsum("kic,kc->ik", W, theta["att_dst"])
        logits = F.leaky_relu(source[one.col] + target[one.row], self.negative_slope)
        return Taps.shared(one, row_softmax(logits, one.row, domain.size).t())

    def target(self, domain: Graph) -> Graph:
        return domain


@register(
    samples=lambda: [
        Sample(gat(3, 2, heads=2), ring, 3, row_stochastic=True),
        Sample(gat(3, 2, heads=3), messy, 3, row_stochastic=True),
        Sample(gat(2, 4, heads=2, concat=False), messy, 2, row_stochastic=True),
        Sample(gat(2, 3, add_self_loops=False), messy, 2),
    ],
    citation="Velickovic et al., Graph Attention Networks, ICLR 2018",
    init="glorot",
)
def gat(
    in_channels: int,
    out_channels: int,
    heads: int = 1,
    concat: bool = True,
    negative_slope: float = 0.2,
    dropout: float = 0.0,
    add_self_loops: bool = True,
    bias: bool = True,
) -> Any:
    """Graph attention: each node weighs its neighbours by what they carry.

    Equation: Y = [S_1 X W_1 | ... | S_k X W_k] + b,
    S_h[i, j] = softmax over j of LeakyReLU(a_src,h . W_h^T x_j + a_dst,h . W_h^T x_i).

    In the family: one tap a head, adaptive and row-stochastic; each head writes its own block (concat) or their mean is
    taken. Linear only when frozen: `layer.at(graph, x=x0)`.

    Traps: as PyG: existing self-loops are replaced by new ones; edge weights are ignored. dropout drops attention
    weights in training, after the softmax. A batch (b, n, c) is b graphs' worth of attention, run one after the other.

    Args: PyG's GATConv's. out_channels: of each head.

    Shapes: x (*b, n, i) -> (*b, n, heads o), or (*b, n, o) with concat=False.

    Raises:
        ValueError: if heads < 1 or dropout is outside of [0, 1).

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(gat(3, 2, heads=4))(torch.zeros(7, 3), ring(7)).shape
    torch.Size([7, 8])
    """
    if not isinstance(heads, int) or heads < 1:
        raise ValueError(f"heads must be a positive integer, but it is {heads!r}.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is a probability in [0, 1), but it is {dropout!r}.")
    structure = Attention(heads, out_channels, negative_slope, add_self_loops, dropout)
    if concat:
        return structure, Heads(heads, in_channels, out_channels), bias
    return structure, Dense(heads, in_channels, out_channels, scale=1 / heads), bias
