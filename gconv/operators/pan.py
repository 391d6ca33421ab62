"""Path integrals: sums over walks, with a learned weight per length."""

from __future__ import annotations

from dataclasses import dataclass

from gconv.basis import Polynomial, Product, Recurrence, Taps
from gconv.call import Call
from gconv.domains import Graph
from gconv.laplacian import adjacency, diagonal, reach
from gconv.mixing import Dense
from gconv.operators.shapes import messy, ring
from gconv.spec import GraphStructure, Parameter, Parts, Sample, Theta, register


@dataclass(frozen=True)
class Paths(GraphStructure):
    """N^-1/2 (sum_l c_l A^l) N^-1/2, N the number of nodes within filter_size hops."""

    filter_size: int

    taps = 1
    kind = "learned"

    def parameters(self) -> dict[str, Parameter]:
        return {"path": Parameter((self.filter_size + 1,), "constant", 0.5)}

    def basis(self, domain: Graph, theta: Theta, call: Call) -> Product:
        root = domain.memo(
            ("within reach", self.filter_size, call.x.dtype),
            lambda: Taps(diagonal(domain), reach(domain, self.filter_size, call.x.dtype).rsqrt()),
        )
        A, steps = adjacency(domain, call.x.dtype, weighted=False), Recurrence.monomial(self.filter_size + 1)
        return Product(root, Product(Polynomial(A, steps, theta["path"].cumprod(0).unsqueeze(0)), root))


@register(
    samples=lambda pan: [
        Sample(pan(3, 2, filter_size=2), ring, 3),
        Sample(pan(2, 3, filter_size=3), messy, 2),
        Sample(pan(2, 2, filter_size=0, bias=False), messy, 2),
    ],
    citation="Ma et al., Path Integral Based Convolution and Pooling for Graph Neural Networks, NeurIPS 2020",
)
def pan(in_channels: int, out_channels: int, filter_size: int, bias: bool = True) -> Parts:
    """PANConv: the maximal entropy transition matrix, a sum over all walks up to a length, weighted by length.

    Equation: Y = N^-1/2 (sum_{l<=L} c_l A^l) N^-1/2 X W + b, c_l = p_0 p_1 ... p_l, N_ii the number of nodes from which
    i can be reached in at most L steps.

    Meaning: p_l is the factor for one more step; like appnp, but with learned coefficients and a finite range.

    In the family: one tap, a learned polynomial of the adjacency between two diagonals, never formed; W dense.

    Traps: as in PyG's code, c_l is a cumulative product of the weights, not the weight itself; N counts nodes (the node
    itself included), not walks, which the paper sums; edge weights are ignored, and double edges count twice in A. In
    the authors' code p_0 multiplies the identity only, and filter_size counts the terms, L + 1. PyG also returns the
    matrix M, here `layer.at(graph).S`. PyG's PANConv needs a sparse tensor package, so it was not run here: the oracle
    in the tests is this formula with dense matrices.

    Args: PyG's PANConv's. filter_size: L.

    Shapes: x (*b, n, i) -> (*b, n, o). path (L + 1) is PyG's weight, the weight its lin.

    Raises:
        ValueError: if filter_size is negative.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(pan(3, 2, filter_size=2))(torch.zeros(7, 3), ring(7)).shape
    torch.Size([7, 2])
    """
    if not isinstance(filter_size, int) or isinstance(filter_size, bool) or filter_size < 0:
        raise ValueError(f"filter_size must be an integer >= 0, but it is {filter_size!r}.")
    return Paths(filter_size), Dense(1, in_channels, out_channels), bias
