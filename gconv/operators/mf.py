"""Molecular fingerprints: one pair of matrices per node degree."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gconv.basis import Pattern, Taps
from gconv.call import Call
from gconv.domains import Edges
from gconv.laplacian import counts, diagonal
from gconv.mixing import Dense
from gconv.operators.shapes import Channels, messy, ring, widest
from gconv.spec import GraphStructure, Parts, Sample, Theta, register


@dataclass(frozen=True)
class ByDegree(GraphStructure):
    """One adjacency per degree, with the rows of the nodes of that degree; then one identity per degree, likewise."""

    max_degree: int

    reads = "both"

    @property
    def taps(self) -> int:
        return 2 * (self.max_degree + 1)

    def basis(self, domain: Edges, theta: Theta, call: Call) -> Taps:
        m, n = domain.sites
        own = diagonal(domain)
        degree = counts(domain.target, m).clamp(max=self.max_degree)
        tap = torch.cat([degree[domain.target], degree + self.max_degree + 1])
        row, col = torch.cat([domain.target, own.row]), torch.cat([domain.source, own.col])
        return Taps(Pattern((self.taps, m, n), tap, row, col), torch.ones_like(row, dtype=call.x.dtype))


@register(
    samples=lambda mf: [
        Sample(mf(3, 2, max_degree=2), messy, 3),
        Sample(mf(2, 3, max_degree=4, bias=False), messy, 2),
        Sample(mf(2, 2, max_degree=0), ring, 2),
    ],
    citation="Duvenaud et al., Convolutional Networks on Graphs for Learning Molecular Fingerprints, NeurIPS 2015",
)
def mf(in_channels: Channels, out_channels: int, max_degree: int = 10, bias: bool = True) -> Parts:
    """The molecular fingerprint convolution: the matrices depend on the degree of the node.

    Equation: y_i = W_d^T sum over edges j -> i of x_j + W_(D+1+d)^T x_i + b, d = min(number of incoming edges, D).

    Meaning: in a molecule the number of bonds of an atom determines much of its chemistry.

    In the family: 2 (D + 1) taps: the adjacency and the identity, split into rows of equal degree; W dense.

    Traps: edge weights are ignored, as in PyG. PyG's MFConv has a bias per degree, which a single b cannot express;
    append a channel of ones to x, and the last row of W_(D+1+d) is the bias of degree d. The authors' code has a single
    matrix for x_i, and features of the bonds beside x_j.

    Args: PyG's MFConv's. max_degree: D; larger degrees count as D. bias: one b for all degrees.

    Shapes: x (*b, n, i) -> (*b, n, o). The weight's taps are PyG's lins_l, then its lins_r.
    Between two sets of nodes: `layer((x_source, x_target), bipartite)`; in_channels may be a pair (i_source, i_target).

    Raises:
        ValueError: if max_degree is negative.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(mf(3, 2, max_degree=4))(torch.ones(7, 3), ring(7)).shape
    torch.Size([7, 2])
    """
    if not isinstance(max_degree, int) or isinstance(max_degree, bool) or max_degree < 0:
        raise ValueError(f"max_degree must be an integer >= 0, but it is {max_degree!r}.")
    structure = ByDegree(max_degree)
    return structure, Dense(structure.taps, widest(in_channels), out_channels), bias
