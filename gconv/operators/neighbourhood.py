"""One-hop graph convolutions: every node aggregates its neighbours once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gconv.basis import Basis, Stack, Taps
from gconv.call import Call
from gconv.domains import Edges
from gconv.laplacian import Loops, Norm, adjacency, itself, mean
from gconv.mixing import Dense
from gconv.operators.shapes import Channels, messy, ring, weighted, widest
from gconv.spec import GraphStructure, Parts, Sample, Theta, register

Aggregate = Literal["mean", "sum", "max"]


@dataclass(frozen=True)
class Neighbours(GraphStructure):
    """One tap, a (normalised) adjacency; with `root` a second one, the node itself."""

    loops: Loops = "keep"
    fill: float = 1.0
    norm: Norm = None
    weighted: bool = True
    reduce: Literal["sum", "max"] = "sum"
    mean: bool = False
    root: bool = False

    square = (
        "its degrees and self-loops belong to nodes that are source and target at once; with normalize=False (and no "
        "self-loops) it has neither"
    )

    @property
    def reads(self) -> Literal["source", "both"] | None:
        if self.loops != "keep" or self.norm == "sym":
            return None
        return self.reads_block

    @property
    def reads_block(self) -> Literal["source", "both"]:
        return "both" if self.root else "source"

    @property
    def taps(self) -> int:
        return 2 if self.root else 1

    def basis(self, domain: Edges, theta: Theta, call: Call) -> Basis:
        weighted = self.weighted and domain.edge_weight is not None
        if self.mean and self.norm is None and self.fill == 1 and self.reduce == "sum" and not weighted:
            S = adjacency(domain, call.x.dtype, loops=self.loops, norm="row", weighted=False)
            return Stack((S, itself(domain, call.x.dtype))) if self.root else S
        S = adjacency(
            domain,
            call.x.dtype,
            loops=self.loops,
            fill=self.fill,
            norm=self.norm,
            weighted=self.weighted,
            summed=self.reduce == "sum",
        )
        values = S.values
        if self.mean:  # divides by the number of incoming edges, not by their weight
            values = values * mean(S.pattern, call.x.dtype, domain, self.loops)
        if self.mean or self.reduce == "max":
            S = Taps(S.pattern, values, self.reduce)
        return Stack((S, itself(domain, call.x.dtype))) if self.root else S


def _aggregate(aggr: Aggregate, weighted: bool, root: bool) -> Neighbours:
    if aggr not in ("mean", "sum", "max"):
        raise ValueError(f"aggr must be 'mean', 'sum' or 'max', but it is {aggr!r}.")
    return Neighbours(weighted=weighted, mean=aggr == "mean", reduce="max" if aggr == "max" else "sum", root=root)


@register(
    samples=lambda gcn: [
        Sample(gcn(3, 4), ring, 3, row_stochastic=True),
        Sample(gcn(3, 2), weighted, 3),
        Sample(gcn(4, 2, improved=True, bias=False), messy, 4),
        Sample(gcn(2, 3, add_self_loops=False), messy, 2),
        Sample(gcn(2, 2, normalize=False), messy, 2),
    ],
    citation="Kipf and Welling, Semi-Supervised Classification with Graph Convolutional Networks, ICLR 2017",
    init="glorot",
)
def gcn(
    in_channels: int,
    out_channels: int,
    improved: bool = False,
    add_self_loops: bool = True,
    normalize: bool = True,
    bias: bool = True,
) -> Parts:
    """The graph convolution of Kipf and Welling.

    Equation: Y = D^-1/2 (A + I) D^-1/2 X W + b, with D the degrees of A + I.

    Meaning: every node averages itself and its neighbours, weighting nodes of high degree less, then mixes channels.
    It is a low-pass filter: the first-order Chebyshev convolution with tied weights.

    In the family: one tap, a fixed normalised adjacency; W dense.

    Traps: PyG's conventions. A node with a self-loop keeps it and its weight, and gets no second one. On directed
    graphs the in-degree normalises both ends of an edge (DGL and jraph take out- and in-degrees, Kipf's code row sums).
    Degrees are sums of edge weights. With normalize=False no self-loops are added.

    Args: PyG's GCNConv's. improved: added self-loops have weight 2.

    Shapes: x (*b, n, i) -> (*b, n, o).
    Between two sets of nodes, with normalize=False: `layer(x_source, bipartite)`.

    Raises:
        ValueError: if a weighted degree is negative.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(gcn(3, 2))(torch.ones(7, 3), ring(7)).shape
    torch.Size([7, 2])
    """
    loops: Loops = "fill" if add_self_loops and normalize else "keep"
    return (
        Neighbours(loops, 2.0 if improved else 1.0, "sym" if normalize else None),
        Dense(1, in_channels, out_channels),
        bias,
    )


@register(
    samples=lambda graphconv: [
        Sample(graphconv(3, 2), weighted, 3),
        Sample(graphconv(2, 4), messy, 2),
        Sample(graphconv(2, 3, aggr="mean", bias=False), messy, 2),
        Sample(graphconv(2, 3, aggr="max"), messy, 2),
    ],
    citation="Morris et al., Weisfeiler and Leman Go Neural, AAAI 2019",
    init="glorot",
)
def graphconv(in_channels: Channels, out_channels: int, aggr: Aggregate = "sum", bias: bool = True) -> Parts:
    """The graph convolution of Morris et al.: separate matrices for the neighbours and for the node itself.

    Equation: y_i = W_0^T aggr over edges j -> i of w_ij x_j + W_1^T x_i + b.

    Meaning: the node's own signal is kept apart from its neighbours', as the 1-WL colour refinement does.

    In the family: two taps, the weighted adjacency and the identity; W dense. With aggr="max" it is not linear.

    Traps: the mean divides by the number of edges, not by their total weight (as in PyG). A node without incoming
    edges aggregates to 0.

    Args: PyG's GraphConv's.

    Shapes: x (*b, n, i) -> (*b, n, o). The weight's tap 0 is PyG's lin_rel, tap 1 its lin_root.
    Between two sets of nodes: `layer((x_source, x_target), bipartite)`; in_channels may be a pair (i_source, i_target).

    Raises:
        ValueError: if aggr is unknown.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(graphconv(3, 2))(torch.ones(7, 3), ring(7)).shape
    torch.Size([7, 2])
    """
    return _aggregate(aggr, True, True), Dense(2, widest(in_channels), out_channels), bias


@register(
    samples=lambda sage: [
        Sample(sage(3, 2), ring, 3),
        Sample(sage(2, 4), messy, 2),
        Sample(sage(2, 3, aggr="sum", bias=False), messy, 2),
        Sample(sage(2, 3, aggr="max"), messy, 2),
        Sample(sage(2, 3, root_weight=False), ring, 2, row_stochastic=True),
    ],
    citation="Hamilton, Ying and Leskovec, Inductive Representation Learning on Large Graphs, NeurIPS 2017",
    init="glorot",
)
def sage(
    in_channels: Channels, out_channels: int, aggr: Aggregate = "mean", root_weight: bool = True, bias: bool = True
) -> Parts:
    """GraphSAGE: separate matrices for the mean of the neighbours and for the node itself.

    Equation: y_i = W_0^T aggr over edges j -> i of x_j + W_1^T x_i + b; without root_weight the second term is absent.

    Meaning: it learns an aggregation instead of node embeddings, so it applies to unseen nodes and graphs.

    In the family: two taps, the row-normalised adjacency and the identity; W dense. With aggr="max" it is not linear.

    Traps: edge weights are ignored, as in PyG. A node without incoming edges aggregates to 0.

    Args: PyG's SAGEConv's.

    Shapes: x (*b, n, i) -> (*b, n, o). The weight's tap 0 is PyG's lin_l, tap 1 its lin_r.
    Between two sets of nodes: `layer((x_source, x_target), bipartite)`; in_channels may be a pair (i_source, i_target).

    Raises:
        ValueError: if aggr is unknown.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(sage(3, 2))(torch.ones(7, 3), ring(7)).shape
    torch.Size([7, 2])
    """
    return _aggregate(aggr, False, root_weight), Dense(2 if root_weight else 1, widest(in_channels), out_channels), bias
