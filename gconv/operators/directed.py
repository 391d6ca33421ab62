"""Directed graphs: what arrives and what leaves, each with a matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gconv.basis import Basis, Identity, Stack, Taps
from gconv.call import Call
from gconv.domains import Graph
from gconv.laplacian import Degree, Norm, adjacency
from gconv.mixing import Dense
from gconv.operators.shapes import messy, ring
from gconv.spec import GraphStructure, Parts, Sample, Theta, register

Aggregate = Literal["gcn", "mean", "sum", "both"]
NORMS: dict[str, tuple[Norm, Norm]] = {  # of A by its in-degrees, and of A by its out-degrees, then transposed
    "gcn": ("sym", "sym"),
    "mean": ("row", "col"),
    "sum": (None, None),
    "both": ("both", "both"),
}


@dataclass(frozen=True)
class BothWays(GraphStructure):
    """(1 - alpha) of the edges as they are, alpha of the edges reversed, and perhaps the node itself."""

    aggr: Aggregate
    alpha: float
    root: bool
    weighted: bool

    square = "signals go both ways along its edges"

    @property
    def taps(self) -> int:
        return 2 + self.root

    def basis(self, domain: Graph, theta: Theta, call: Call) -> Basis:
        ends: tuple[Degree, Degree] = ("in", "out")
        there, back = (
            adjacency(domain, call.x.dtype, norm=norm, degree=degree, weighted=self.weighted)
            for norm, degree in zip(NORMS[self.aggr], ends, strict=True)
        )
        there, back = Taps(there.pattern, (1 - self.alpha) * there.values), Taps(back.pattern, self.alpha * back.values)
        return Stack((there, back.T, *([Identity(domain.size)] if self.root else [])))


@register(
    samples=lambda directed: [
        Sample(directed(3, 2), messy, 3),
        Sample(directed(2, 3, aggr="mean", alpha=0.25), messy, 2),
        Sample(directed(2, 2, aggr="both", alpha=1.0, root_weight=False, weighted=True), messy, 2),
        Sample(directed(2, 3, aggr="sum", bias=False), ring, 2),
    ],
    citation="Rossi et al., Edge Directionality Improves Learning on Heterophilic Graphs, LoG 2023",
    init="glorot",
)
def directed(
    in_channels: int,
    out_channels: int,
    aggr: Aggregate = "gcn",
    alpha: float = 0.5,
    root_weight: bool = True,
    weighted: bool = False,
    bias: bool = True,
) -> Parts:
    """Dir-GNN: the edges as they are, the edges reversed, and the node itself, each with a matrix.

    Equation: Y = (1 - alpha) S(A) X W_0 + alpha S(A^T) X W_1 + X W_2 + b.

    Meaning: "who cites me" and "whom I cite" need not mean the same; alpha weighs the second.

    In the family: three taps, two fixed (normalised) adjacencies and the identity; W dense.

    Traps: PyG's DirGNNConv(GCNConv) adds no self-loops, and S is symmetric in the degree of its own direction at both
    ends, D_in^-1/2 A D_in^-1/2 and D_out^-1/2 A^T D_out^-1/2 ("gcn"); the paper, and DGL's GraphConv, take
    D_in^-1/2 A D_out^-1/2 and its transpose ("both"). "mean" is DirGNNConv(SAGEConv). PyG passes no edge weights;
    `weighted` reads them. Its three biases are one: b = (1 - alpha) b_in + alpha b_out + b_root.

    Args:
        in_channels, out_channels: channels.
        aggr: "gcn", "mean", "sum" or "both": S.
        alpha: share of the reversed edges, in [0, 1].
        root_weight: whether the node itself has a matrix.
        weighted: whether edge weights count.
        bias: whether one number a channel is added.

    Shapes: x (*b, n, i) -> (*b, n, o). The weight's taps are PyG's conv_in, conv_out, lin.

    Raises:
        ValueError: if aggr is unknown or alpha outside of [0, 1].

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(directed(3, 2))(torch.ones(6, 3), messy()).shape
    torch.Size([6, 2])
    """
    if aggr not in NORMS:
        raise ValueError(f"aggr must be 'gcn', 'mean', 'sum' or 'both', but it is {aggr!r}.")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is a share in [0, 1], but it is {alpha!r}.")
    structure = BothWays(aggr, float(alpha), root_weight, weighted)
    return structure, Dense(2 + root_weight, in_channels, out_channels), bias
