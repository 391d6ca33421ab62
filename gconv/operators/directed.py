"""Directed graphs: separate matrices for incoming and outgoing edges."""

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
NORMS: dict[str, tuple[Norm, Norm]] = {  # of A with in-degrees, and of A with out-degrees, which is then transposed
    "gcn": ("sym", "sym"),
    "mean": ("row", "col"),
    "sum": (None, None),
    "both": ("both", "both"),
}


@dataclass(frozen=True)
class BothWays(GraphStructure):
    """(1 - alpha) times the graph, alpha times the reversed graph; with `root` the node itself, too."""

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
    """Dir-GNN: separate matrices for the graph, for the reversed graph, and for the node itself.

    Equation: Y = (1 - alpha) S(A) X W_0 + alpha S(A^T) X W_1 + X W_2 + b.

    Meaning: in a directed graph both directions carry information of different kinds (citing and being cited); alpha is
    the weight of the reversed one.

    In the family: three taps, two fixed (normalised) adjacencies and the identity; W dense.

    Traps: PyG's DirGNNConv(GCNConv) adds no self-loops and uses one degree per direction at both ends of an edge,
    D_in^-1/2 A D_in^-1/2 and D_out^-1/2 A^T D_out^-1/2 ("gcn"); the paper, and DGL's GraphConv, use
    D_in^-1/2 A D_out^-1/2 and its transpose ("both"). "mean" is DirGNNConv(SAGEConv). PyG passes no edge weights;
    `weighted` uses them. PyG's three biases are one here: b = (1 - alpha) b_in + alpha b_out + b_root.

    Args:
        in_channels, out_channels: numbers of channels.
        aggr: "gcn", "mean", "sum" or "both": the normalisation S.
        alpha: weight of the reversed edges, in [0, 1].
        root_weight: whether to add the node itself, with its own matrix.
        weighted: whether to use edge weights.
        bias: whether to add a bias.

    Shapes: x (*b, n, i) -> (*b, n, o). The weight's taps are PyG's conv_in, conv_out, lin.

    Raises:
        ValueError: if aggr is unknown, alpha is outside of [0, 1], or a weighted degree is negative ("gcn", "both").

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
