"""Neighbourhood averages with an amplified diagonal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from gconv.basis import Identity, Stack, Taps
from gconv.call import Call
from gconv.domains import Graph
from gconv.laplacian import adjacency
from gconv.mixing import Dense
from gconv.operators.shapes import messy, ring
from gconv.spec import GraphStructure, Parts, Sample, Theta, register


@dataclass(frozen=True)
class Enhanced(GraphStructure):
    """D^-1 (A + I) with its diagonal multiplied by 1 + lambda, and the node itself."""

    diag_lambda: float
    add_self_loops: bool

    taps = 2

    def basis(self, domain: Graph, theta: Theta, call: Call) -> Stack:
        loops: Literal["replace", "keep"] = "replace" if self.add_self_loops else "keep"
        S = adjacency(domain, call.x.dtype, loops=loops, norm="row", weighted=False)
        loop = S.pattern.row == S.pattern.col
        values = torch.where(loop, (1 + self.diag_lambda) * S.values, S.values)
        return Stack((Taps(S.pattern, values), Identity(domain.size)))


@register(
    samples=lambda cluster_gcn: [
        Sample(cluster_gcn(3, 2), ring, 3, row_stochastic=True),
        Sample(cluster_gcn(2, 4, diag_lambda=0.5), messy, 2),
        Sample(cluster_gcn(2, 3, diag_lambda=-0.25, add_self_loops=False, bias=False), messy, 2),
    ],
    citation="Chiang et al., Cluster-GCN: An Efficient Algorithm for Training Deep and Large Graph Convolutional "
    "Networks, KDD 2019",
    init="glorot",
)
def cluster_gcn(
    in_channels: int, out_channels: int, diag_lambda: float = 0.0, add_self_loops: bool = True, bias: bool = True
) -> Parts:
    """Cluster-GCN's layer: a mean over the node and its neighbours with an amplified diagonal, and the node itself.

    Equation: Y = (A' + lambda diag(A')) X W_0 + X W_1 + b, A' = D^-1 (A + I), D the degrees of A + I.

    Meaning: lambda > 0 preserves a node's own signal when many layers are stacked.

    In the family: two taps, a fixed average and the identity; W dense.

    Traps: as PyG's ClusterGCNConv: existing self-loops are replaced by one of weight 1; edge weights are ignored; the
    degree counts incoming edges. With add_self_loops=False PyG assigns lambda / degree to the self-loops by their
    position in the edge list, and fails unless there are as many loops as nodes; here each loop uses its own node's
    degree.

    Args: PyG's ClusterGCNConv's.

    Shapes: x (*b, n, i) -> (*b, n, o). The weight's tap 0 is PyG's lin_out, tap 1 its lin_root.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(cluster_gcn(3, 2))(torch.ones(7, 3), ring(7)).shape
    torch.Size([7, 2])
    """
    return Enhanced(float(diag_lambda), add_self_loops), Dense(2, in_channels, out_channels), bias
