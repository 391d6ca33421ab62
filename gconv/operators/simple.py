"""Aggregation over neighbours without parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gconv.basis import Basis, Stack, Taps
from gconv.call import Call
from gconv.domains import Edges
from gconv.laplacian import Loops, adjacency, itself, mean
from gconv.mixing import Beside, Fixed
from gconv.operators.shapes import messy, ring, weighted
from gconv.spec import GraphStructure, Parts, Sample, Theta, register

Root = Literal["sum", "cat", "self_loop"] | None


@dataclass(frozen=True)
class Aggregation(GraphStructure):
    """The weighted sum, mean or maximum over incoming edges; with `root` preceded by a tap for the node itself."""

    aggr: Literal["sum", "mean", "max"]
    loops: Loops
    root: bool

    square = "combine_root='self_loop' adds a loop to nodes that are source and target at once"

    @property
    def reads(self) -> Literal["source", "both"] | None:
        if self.loops != "keep":
            return None
        return self.reads_block

    @property
    def reads_block(self) -> Literal["source", "both"]:
        return "both" if self.root else "source"

    @property
    def taps(self) -> int:
        return 2 if self.root else 1

    def basis(self, domain: Edges, theta: Theta, call: Call) -> Basis:
        S = adjacency(domain, call.x.dtype, loops=self.loops, summed=self.aggr != "max")
        if self.aggr == "mean":
            S = Taps(S.pattern, S.values * mean(S.pattern, call.x.dtype, domain, self.loops))
        elif self.aggr == "max":
            S = Taps(S.pattern, S.values, "max")
        return Stack((itself(domain, call.x.dtype), S)) if self.root else S


@register(
    samples=lambda simple: [
        Sample(simple(), messy, 2),
        Sample(simple(aggr="mean", combine_root="self_loop"), ring, 2, row_stochastic=True),
        Sample(simple(aggr="mean", combine_root="sum"), messy, 3),
        Sample(simple(aggr="sum", combine_root="cat"), weighted, 2),
        Sample(simple(aggr="max", combine_root="cat"), messy, 2),
    ],
    citation="Fey and Lenssen, Fast Graph Representation Learning with PyTorch Geometric, 2019 (its SimpleConv)",
)
def simple(aggr: Literal["sum", "mean", "max"] = "sum", combine_root: Root = None) -> Parts:
    """Propagation without parameters: the weighted sum, mean or maximum over the incoming edges.

    Equation: y_i = aggr over edges j -> i of w_ij x_j. With combine_root "sum" x_i is added, with "self_loop" an edge
    i -> i of weight 1 is added to the graph, and with "cat" the result is [x_i | y_i].

    Meaning: the aggregation step of message passing alone.

    In the family: one tap, or the identity and one tap; W = I, or both concatenated. With "max" it is not linear.

    Traps: the mean divides by the number of edges, not by their total weight; "self_loop" adds a loop even where one
    exists. A node without incoming edges aggregates to 0.

    Args: PyG's SimpleConv's; the aggregations are "sum", "mean" and "max".

    Shapes: x (*b, n, c) -> (*b, n, c), with "cat" (*b, n, 2 c), the node first.
    Between two sets of nodes: `layer((x_source, x_target), bipartite)`.

    Raises:
        ValueError: if aggr or combine_root is unknown.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(simple(aggr="mean", combine_root="cat"))(torch.ones(7, 1), ring(7))[0]
    tensor([1., 1.])
    """
    if aggr not in ("sum", "mean", "max"):
        raise ValueError(f"aggr must be 'sum', 'mean' or 'max', but it is {aggr!r}.")
    if combine_root not in (None, "sum", "cat", "self_loop"):
        raise ValueError(f"combine_root must be None, 'sum', 'cat' or 'self_loop', but it is {combine_root!r}.")
    root = combine_root in ("sum", "cat")
    structure = Aggregation(aggr, "add" if combine_root == "self_loop" else "keep", root)
    return structure, Beside(2) if combine_root == "cat" else Fixed(1 + root), False
