"""Random walks on a directed graph and on its reverse."""

from __future__ import annotations

from dataclasses import dataclass

from gconv.basis import Basis, Polynomial, Recurrence, Stack
from gconv.call import Call
from gconv.domains import Graph
from gconv.laplacian import adjacency
from gconv.mixing import Dense
from gconv.operators.bases import steps
from gconv.operators.shapes import messy, ring, weighted
from gconv.spec import GraphStructure, Parts, Sample, Theta, register


@dataclass(frozen=True)
class Walks(GraphStructure):
    """Powers 0 to k of the random walk along the edges, then powers 1 to k of the walk on the reversed graph."""

    k: int

    @property
    def taps(self) -> int:
        return 2 * self.k + 1

    def basis(self, domain: Graph, theta: Theta, call: Call) -> Basis:
        along = adjacency(domain, call.x.dtype, norm="col", degree="out").T
        against = adjacency(domain, call.x.dtype, norm="row")
        powers = Recurrence.monomial(self.k + 1)
        rest = tuple(tuple(float(t == p) for t in range(self.k + 1)) for p in range(1, self.k + 1))
        return Stack((Polynomial(along, powers), Polynomial(against, powers, rest)))


@register(
    samples=lambda diffusion: [
        Sample(diffusion(3, 2, k=2), messy, 3),
        Sample(diffusion(2, 3, k=3), weighted, 2),
        Sample(diffusion(2, 2, k=1, bias=False), ring, 2, row_stochastic=True),
    ],
    citation="Li, Yu, Shahabi and Liu, Diffusion Convolutional Recurrent Neural Network, ICLR 2018",
    init="glorot",
)
def diffusion(in_channels: int, out_channels: int, k: int = 2, bias: bool = True) -> Parts:
    """The diffusion convolution of DCRNN: random walks in both directions, with one matrix per direction and length.

    Equation: Y = X W_0 + sum_{t=1..k} (D_O^-1 A^T)^t X W_t + (D_I^-1 A)^t X W_{k+t} + b, with A[i, j] the edges
    j -> i, D_O the out-degrees (column sums of A) and D_I the in-degrees (row sums).

    Meaning: a node averages over the end points of walks of t steps, downstream and upstream separately: in a road
    network, traffic ahead and traffic behind have different effects.

    In the family: 2k + 1 taps, powers of two sparse matrices; W dense.

    Traps: the paper's W is A^T here, so its D_O^-1 W is D_O^-1 A^T. The paper sums K terms from step 0 in both
    directions; step 0 is the identity in both, has a single matrix here, and k is K - 1. The authors' code differs from
    their formula: it applies the transposed walks, by Chebyshev's recurrence, and for k >= 2 starts the second
    direction from a term of the first. A node without outgoing (incoming) edges receives nothing from that direction.

    Args: k: number of steps.

    Shapes: x (*b, n, i) -> (*b, n, o).

    Raises:
        ValueError: if k < 1.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(diffusion(3, 2))(torch.zeros(7, 3), ring(7)).shape
    torch.Size([7, 2])
    """
    return Walks(steps(k, 1)), Dense(2 * k + 1, in_channels, out_channels), bias
