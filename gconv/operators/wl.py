"""The continuous Weisfeiler-Leman step: the average of a node and the mean of its neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gconv.basis import Taps
from gconv.call import Call
from gconv.domains import Edges
from gconv.laplacian import normalised, pattern
from gconv.mixing import Fixed
from gconv.operators.shapes import messy, ring
from gconv.spec import GraphStructure, Parts, Sample, Theta, register


@dataclass(frozen=True)
class Half(GraphStructure):
    """(I + D^-1 A) / 2."""

    taps = 1
    reads = "both"

    def basis(self, domain: Edges, theta: Theta, call: Call) -> Taps:
        entries, _ = pattern(domain, "own")
        average = normalised(pattern(domain)[0], domain.weights(torch.float64), "row").to(call.x.dtype)
        return Taps(entries, 0.5 * torch.cat([average, average.new_ones(domain.sites[0])]))


@register(
    samples=lambda wl_continuous: [
        Sample(wl_continuous(), ring, 2, row_stochastic=True),
        Sample(wl_continuous(), messy, 3),
    ],
    citation="Togninalli et al., Wasserstein Weisfeiler-Lehman Graph Kernels, NeurIPS 2019",
)
def wl_continuous() -> Parts:
    """The continuous Weisfeiler-Leman step: the average of a node and the weighted mean of its neighbours.

    Equation: Y = (X + D^-1 A X) / 2.

    Meaning: a lazy random walk; the signals of repeated steps are the features of a graph kernel.

    In the family: one tap, fixed; W = I.

    Traps: the mean divides by the total weight of the incoming edges, unlike PyG's other means. A node without incoming
    edges is multiplied by 1/2.

    Shapes: x (*b, n, c) -> (*b, n, c).
    Between two sets of nodes: `layer((x_source, x_target), bipartite)`.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(wl_continuous())(torch.ones(7, 2), ring(7))[0]
    tensor([1., 1.])
    """
    return Half(), Fixed(), False
