"""Hypergraph convolution: from nodes to hyperedges and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gconv.basis import Product
from gconv.call import Call
from gconv.domains import Graph
from gconv.laplacian import incidence
from gconv.mixing import Dense
from gconv.operators.shapes import messy
from gconv.spec import GraphStructure, Parts, Sample, Theta, register


@dataclass(frozen=True)
class ThereAndBack(GraphStructure):
    """The mean over the nodes of each hyperedge, followed by the mean over the hyperedges of each node."""

    apply_weights: bool

    taps = 1
    square = "signals go to hyperedges and come back to the same nodes"

    def basis(self, domain: Graph, theta: Theta, call: Call) -> Product:
        into, back = incidence(domain, call.x.dtype, weighted=self.apply_weights)
        return Product(back, into)


def groups(weights: bool = True) -> Graph:
    """Six nodes in four hyperedges: one with a single node, one incidence listed twice, the last node in none."""
    index = torch.tensor([[0, 1, 2, 1, 3, 4, 4, 2, 2], [0, 0, 0, 1, 1, 1, 2, 3, 3]])
    return Graph.from_hyperedge_index(index, 6, torch.tensor([0.5, 2.0, 1.0, 1.5]) if weights else None)


def covered() -> Graph:
    """Four nodes, each in one or two of three hyperedges."""
    return Graph.from_hyperedge_index(torch.tensor([[0, 1, 1, 2, 3, 0], [0, 0, 1, 1, 2, 2]]), 4)


@register(
    samples=lambda hypergraph: [
        Sample(hypergraph(3, 2), groups, 3),
        Sample(hypergraph(2, 4, bias=False), covered, 2, row_stochastic=True),
        Sample(hypergraph(2, 3, apply_weights=True), groups, 2),
        Sample(hypergraph(2, 2), messy, 2),
    ],
    citation="Bai, Zhang and Torr, Hypergraph Convolution and Hypergraph Attention, Pattern Recognition 2021",
    init="glorot",
)
def hypergraph(in_channels: int, out_channels: int, apply_weights: bool = False, bias: bool = True) -> Parts:
    """The hypergraph convolution: every hyperedge averages its nodes, and every node averages its hyperedges.

    Equation: Y = D^-1 H B^-1 H^T X W + b; with apply_weights Y = D^-1 H W_e B^-1 H^T X W + b. H (n, hyperedges) holds
    the incidences, W_e the weights of the hyperedges, D = diag(H W_e 1), B = diag(H^T 1).

    Meaning: two steps of a random walk: from a node to one of its hyperedges, and from there to one of its nodes.

    In the family: one tap, a product of two sparse matrices that is never formed; W dense.

    Traps: a hypergraph is a `Graph` in which "node v is in hyperedge e" is an edge v -> v with edge_type e and the
    weight of e; `Graph.from_hyperedge_index` reads PyG's. PyG's HypergraphConv documents D^-1 H W_e B^-1 H^T, but its
    code uses the weights in D only. So does this, unless `apply_weights` is given (then the rows of S sum to 1). Labels
    of a disjoint union are local to each part. An edge u -> v with label e is allowed: u sends to e, v receives from e.

    Args:
        in_channels, out_channels: numbers of channels.
        apply_weights: whether to use the paper's formula instead of PyG's code.
        bias: whether to add a bias.

    Shapes: x (*b, n, i) -> (*b, n, o), edge_type (h,) for h incidences.

    Raises:
        ValueError: if the graph has no labels.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(hypergraph(3, 2))(torch.ones(6, 3), groups()).shape
    torch.Size([6, 2])
    """
    return ThereAndBack(apply_weights), Dense(1, in_channels, out_channels), bias
