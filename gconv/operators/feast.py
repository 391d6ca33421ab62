"""Feature-steered convolution: each edge selects among the matrices by the features of its end points."""

from __future__ import annotations

from dataclasses import dataclass

from gconv.basis import SharedTaps, widened
from gconv.call import Call
from gconv.domains import Edges
from gconv.laplacian import mean, pattern
from gconv.mixing import Dense
from gconv.operators.shapes import Channels, messy, ring, widest
from gconv.spec import GraphStructure, Parameter, Parts, Sample, Theta, register


@dataclass(frozen=True)
class Steered(GraphStructure):
    """One tap per head: softmax over the heads of u_h . (x_j - x_i) + c_h, divided by the number of incoming edges."""

    heads: int
    i: int
    add_self_loops: bool

    kind, many = "adaptive", True
    reads = "both"

    @property
    def taps(self) -> int:
        return self.heads

    def parameters(self) -> dict[str, Parameter]:
        return {"u": Parameter((self.heads, self.i), "uniform", self.i**-0.5), "c": Parameter((self.heads,), value=0.1)}

    def basis(self, domain: Edges, theta: Theta, call: Call) -> SharedTaps:
        one, _ = pattern(domain, "replace" if self.add_self_loops else "keep")
        steer = widened(call.x @ theta["u"].t())
        difference = one.ends(-domain.at_targets(steer), steer)  # subtract before adding c, which rounding would lose
        q = (difference + theta["c"]).softmax(-1)
        return SharedTaps(one, (q * mean(one, q.dtype).unsqueeze(-1)).to(call.x.dtype))


@register(
    samples=lambda feast: [
        Sample(feast(3, 2, heads=2), ring, 3),
        Sample(feast(2, 3, heads=3), messy, 2),
        Sample(feast(2, 2, heads=2, add_self_loops=False, bias=False), messy, 2),
        Sample(feast(2, 3), ring, 2, row_stochastic=True),
    ],
    citation="Verma, Boyer and Verbeek, FeaStNet: Feature-Steered Graph Convolutions for 3D Shape Analysis, CVPR 2018",
)
def feast(
    in_channels: Channels, out_channels: int, heads: int = 1, add_self_loops: bool = True, bias: bool = True
) -> Parts:
    """FeaStConv: every edge is a convex combination of matrices, with coefficients from the features of its end points.

    Equation: Y = sum_h S_h X W_h + b, S_h[i, j] = (1 / |N(i)|) softmax over h of u_h . (x_j - x_i) + c_h.

    Meaning: the offset labels of a grid convolution, learned from the signal. Attention selects among neighbours; this
    operator selects among matrices.

    In the family: one tap per head, adaptive; the values of an edge sum to 1 / |N(i)| over the heads; W dense. Linear
    only when frozen: `layer.at(graph, x=x0)`.

    Traps: as in PyG, existing self-loops are replaced by new ones; |N(i)| counts edges, the self-loop included; edge
    weights are ignored. S is invariant to adding one vector to all x_i. In a batch (b, n, c) each signal has its own
    structure.

    Args: PyG's FeaStConv's.

    Shapes: x (*b, n, i) -> (*b, n, o). u (heads, i), c (heads); the weight (heads, i, o) is PyG's lin, cut by heads.
    Between two sets of nodes: `layer((x_source, x_target), bipartite)`.

    Raises:
        ValueError: if heads < 1.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(feast(3, 2, heads=4))(torch.zeros(7, 3), ring(7)).shape
    torch.Size([7, 2])
    """
    i = widest(in_channels)
    if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1:
        raise ValueError(f"heads must be a positive integer, but it is {heads!r}.")
    return Steered(heads, i, add_self_loops), Dense(heads, i, out_channels), bias
