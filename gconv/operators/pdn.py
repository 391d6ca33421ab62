"""Pathfinder discovery: edge weights computed from edge attributes by a network."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gconv.basis import Taps
from gconv.call import Call
from gconv.domains import Graph
from gconv.laplacian import normalised, pattern
from gconv.mixing import Dense
from gconv.operators.shapes import attributes, messy, weighted
from gconv.spec import GraphStructure, Parameter, Parts, Sample, Theta, register


@dataclass(frozen=True)
class Weighed(GraphStructure):
    """gcn's adjacency with learned edge weights sigmoid(w_2 . ReLU(W_1 u + b_1) + b_2), u the edge attributes."""

    dim: int
    hidden: int
    add_self_loops: bool
    normalize: bool

    taps = 1
    kind = "learned"

    def parameters(self) -> dict[str, Parameter]:
        return {
            "w1": Parameter((self.hidden, self.dim), "uniform", (6 / (self.hidden + self.dim)) ** 0.5),
            "b1": Parameter((self.hidden,), "constant", 0.0),
            "w2": Parameter((self.hidden,), "uniform", (6 / (self.hidden + 1)) ** 0.5),
            "b2": Parameter((1,), "constant", 0.0),
        }

    def basis(self, domain: Graph, theta: Theta, call: Call) -> Taps:
        u = attributes("pdn", domain, self.dim, call.x.dtype)
        units = (u @ theta["w1"].t() + theta["b1"]).relu()
        weight = (units @ theta["w2"] + theta["b2"]).sigmoid()
        entries, edge = pattern(domain, "fill" if self.add_self_loops else "keep")
        weight = torch.cat([weight, weight.new_ones(1)])[edge]  # index -1 is an added loop, of weight 1
        return Taps(entries, normalised(entries, weight) if self.normalize else weight)


@register(
    samples=lambda pdn: [
        Sample(pdn(3, 2, edge_dim=2, hidden_channels=3), weighted, 3),
        Sample(pdn(2, 3, edge_dim=2, hidden_channels=2), messy, 2),
        Sample(pdn(2, 2, edge_dim=2, hidden_channels=2, add_self_loops=False, bias=False), messy, 2),
        Sample(pdn(2, 2, edge_dim=2, hidden_channels=1, normalize=False), messy, 2),
    ],
    citation="Rozemberczki et al., Pathfinder Discovery Networks for Neural Message Passing, WWW 2021",
    init="glorot",
)
def pdn(
    in_channels: int,
    out_channels: int,
    edge_dim: int,
    hidden_channels: int,
    add_self_loops: bool = True,
    normalize: bool = True,
    bias: bool = True,
) -> Parts:
    """PDNConv: gcn with edge weights computed from the edge attributes by a small network.

    Equation: Y = D^-1/2 (A' + I) D^-1/2 X W + b, A'[i, j] = sum over edges j -> i of
    sigmoid(w_2 . ReLU(W_1 u_ij + b_1) + b_2), D the degrees of A' + I.

    Meaning: the network learns which kinds of edges are relevant for the task.

    In the family: one tap, learned; W dense.

    Traps: gcn's conventions, as in PyG: a node with a self-loop keeps it and its learned weight; in-degrees normalise
    both ends of an edge. u is `edge_attr`; edge weights are ignored. With normalize=False no self-loops are added.

    Args: PyG's PDNConv's.

    Shapes: x (*b, n, i) -> (*b, n, o), edge_attr (e, edge_dim). w1, b1 and w2, b2 are PyG's mlp.0 and mlp.2.

    Raises:
        ValueError: if a size is not positive, or the graph has no edge_attr or one of another width.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(pdn(3, 2, edge_dim=2, hidden_channels=4))(torch.zeros(8, 3), weighted()).shape
    torch.Size([8, 2])
    """
    for name, value in (("edge_dim", edge_dim), ("hidden_channels", hidden_channels)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a positive integer, but it is {value!r}.")
    structure = Weighed(edge_dim, hidden_channels, add_self_loops and normalize, normalize)
    return structure, Dense(1, in_channels, out_channels), bias
