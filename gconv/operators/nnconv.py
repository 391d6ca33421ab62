"""Edge-conditioned convolution: a network computes the matrix of each edge from its attributes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from gconv.basis import Basis, SharedTaps, Stack
from gconv.call import Call
from gconv.domains import Edges
from gconv.laplacian import itself, mean, pattern
from gconv.mixing import Dense
from gconv.operators.shapes import Channels, attributes, messy, weighted, widest
from gconv.spec import GraphStructure, Parameter, Parts, Sample, Theta, register


@dataclass(frozen=True)
class Conditioned(GraphStructure):
    """One tap per hidden unit, ReLU(u W_1^T + b_1), one tap that is 1 on every edge; with `root` the node itself."""

    dim: int
    hidden: int
    average: bool
    root: bool

    kind = "learned"

    @property
    def reads(self) -> Literal["source", "both"]:
        return "both" if self.root else "source"

    @property
    def taps(self) -> int:
        return self.hidden + 1 + self.root

    def parameters(self) -> dict[str, Parameter]:
        bound = self.dim**-0.5
        return {
            "w1": Parameter((self.hidden, self.dim), "uniform", bound),
            "b1": Parameter((self.hidden,), "uniform", bound),
        }

    def basis(self, domain: Edges, theta: Theta, call: Call) -> Basis:
        u = attributes("nnconv", domain, self.dim, call.x.dtype)
        one, _ = pattern(domain)
        units = (theta["w1"] @ u.t() + theta["b1"].unsqueeze(1)).relu()
        values = torch.cat([units, torch.ones_like(units[:1])])
        S = SharedTaps(one, (values * mean(one, call.x.dtype) if self.average else values).t())
        return Stack((S, itself(domain, call.x.dtype))) if self.root else S


@register(
    samples=lambda nnconv: [
        Sample(nnconv(3, 2, dim=2, hidden=3), weighted, 3),
        Sample(nnconv(2, 3, dim=2, hidden=2, aggr="mean"), messy, 2),
        Sample(nnconv(2, 2, dim=2, hidden=1, root_weight=False, bias=False), messy, 2),
    ],
    citation="Gilmer et al., Neural Message Passing for Quantum Chemistry, ICML 2017; Simonovsky and Komodakis, "
    "Dynamic Edge-Conditioned Filters in Convolutional Neural Networks on Graphs, CVPR 2017",
)
def nnconv(
    in_channels: Channels,
    out_channels: int,
    dim: int,
    hidden: int,
    aggr: Literal["sum", "mean"] = "sum",
    root_weight: bool = True,
    bias: bool = True,
) -> Parts:
    """The edge-conditioned convolution: the matrix of an edge is computed from its attributes by a network.

    Equation: y_i = sum over edges j -> i of Theta(u_ij)^T x_j + W_root^T x_i + b,
    Theta(u) = sum_h phi_h(u) W_h + W_hidden, phi = ReLU(W_1 u + b_1).

    Meaning: nonlinear in the edge attributes but linear in x: the last layer of the network is the mixing, the layers
    before it are the structure.

    In the family: hidden + 1 learned taps on the edges, and the identity; W dense.

    Traps: edge weights are ignored. PyG's NNConv takes any network; Sequential(Linear(dim, hidden), ReLU(),
    Linear(hidden, i o)) is this operator, with `edge_attr` as u. A maximum over the edges cannot be split into taps.
    PyG forms a matrix per edge, e i o numbers; here e (hidden + 1) values are stored.

    Args:
        in_channels, out_channels: numbers of channels.
        dim: number of attributes per edge.
        hidden: number of hidden units of the network.
        aggr: "sum" or "mean" over the incoming edges.
        root_weight: whether to add the node itself, with its own matrix.
        bias: whether to add a bias.

    Shapes: x (*b, n, i) -> (*b, n, o), edge_attr (e, dim). w1 (hidden, dim) and b1 are those of the first Linear; the
    weight's taps are the columns of the last Linear as (i, o), then its bias as (i, o), then PyG's lin.
    Between two sets of nodes: `layer((x_source, x_target), bipartite)`; in_channels may be a pair (i_source, i_target).

    Raises:
        ValueError: if aggr is unknown, a size is not positive, or the graph has no edge_attr or one of another width.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(nnconv(3, 2, dim=2, hidden=4))(torch.zeros(8, 3), weighted()).shape
    torch.Size([8, 2])
    """
    if aggr not in ("sum", "mean"):
        raise ValueError(f"aggr must be 'sum' or 'mean', but it is {aggr!r}: no other splits into taps.")
    for name, value in (("dim", dim), ("hidden", hidden)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a positive integer, but it is {value!r}.")
    structure = Conditioned(dim, hidden, aggr == "mean", root_weight)
    return structure, Dense(structure.taps, widest(in_channels), out_channels), bias
