"""The local extremum convolution: differences between a node and its neighbours."""

from __future__ import annotations

from dataclasses import dataclass

from gconv.basis import Stack, Taps
from gconv.call import Call
from gconv.domains import Edges
from gconv.laplacian import adjacency, degrees, itself
from gconv.mixing import Dense
from gconv.operators.shapes import Channels, messy, weighted, widest
from gconv.spec import GraphStructure, Parts, Sample, Theta, register


@dataclass(frozen=True)
class Extrema(GraphStructure):
    """Three taps: the weighted adjacency A, the negative degrees -D, and the node itself."""

    taps = 3
    reads = "both"

    def basis(self, domain: Edges, theta: Theta, call: Call) -> Stack:
        D = degrees(domain, call.x.dtype)
        return Stack((adjacency(domain, call.x.dtype), Taps(D.pattern, -D.values), itself(domain, call.x.dtype)))


@register(
    samples=lambda le: [Sample(le(3, 2), weighted, 3), Sample(le(2, 4, bias=False), messy, 2)],
    citation="Ranjan, Sanyal and Talukdar, ASAP: Adaptive Structure Aware Pooling for Learning Hierarchical Graph "
    "Representations, AAAI 2020",
)
def le(in_channels: Channels, out_channels: int, bias: bool = True) -> Parts:
    """The local extremum convolution: the difference between neighbours and node, plus the node itself.

    Equation: Y = A X W_0 - D X W_1 + X W_2 + b, D = diag(A 1); at a node
    y_i = sum over edges j -> i of w_ij (W_0^T x_j - W_1^T x_i) + W_2^T x_i + b.

    Meaning: with W_0 = W_1 the first two terms are minus the Laplacian, which is large at local extrema.

    In the family: three taps, A, -D and the identity; W dense.

    Traps: PyG's LEConv(bias=True) has two biases. The one of lin3 is b. The one of lin1 is inside the sum over edges,
    so node i receives it D_ii times, which a single b cannot express; append a channel of ones to x, and it is the last
    row of W_0. lin2 has no bias. The authors' code removes self-loops first, and its W_1 has the opposite sign.

    Args: PyG's LEConv's. bias: the one of lin3.

    Shapes: x (*b, n, i) -> (*b, n, o). The weight's taps are PyG's lin1, lin2, lin3.
    Between two sets of nodes: `layer((x_source, x_target), bipartite)`; in_channels may be a pair (i_source, i_target).

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(le(3, 2))(torch.ones(8, 3), weighted()).shape
    torch.Size([8, 2])
    """
    return Extrema(), Dense(3, widest(in_channels), out_channels), bias
