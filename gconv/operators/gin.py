"""The aggregation of the graph isomorphism network: an injective sum over neighbourhoods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from gconv.basis import Taps
from gconv.call import Call
from gconv.domains import Edges
from gconv.laplacian import adjacency, pattern, scaled
from gconv.mixing import Fixed
from gconv.operators.shapes import messy, ring
from gconv.spec import GraphStructure, Parameter, Parts, Sample, Theta, register


@dataclass(frozen=True)
class Sum(GraphStructure):
    """A + (1 + eps) I with a fixed or learned eps."""

    eps: float
    train_eps: bool

    taps = 1
    reads = "both"

    @property
    def kind(self) -> Literal["fixed", "learned"]:
        return "learned" if self.train_eps else "fixed"

    def parameters(self) -> dict[str, Parameter]:
        return {"eps": Parameter((1,), "constant", self.eps)} if self.train_eps else {}

    def basis(self, domain: Edges, theta: Theta, call: Call) -> Taps:
        eps: float | None = self.eps
        if self.train_eps:
            frozen = call.kind == "eager" and theta["eps"].is_cpu and not theta["eps"].requires_grad
            eps = float(theta["eps"]) if frozen else None
        if eps is not None:
            return adjacency(domain, call.x.dtype, loops="own", fill=1 + eps, weighted=False)
        entries, edge = pattern(domain, "own")
        values = torch.where(edge < 0, 1 + theta["eps"].to(call.x.dtype), 1.0)
        return Taps(entries, scaled(domain, edge, values))


@register(
    samples=lambda gin: [
        Sample(gin(), ring, 2),
        Sample(gin(eps=0.5), messy, 2),
        Sample(gin(eps=0.25, train_eps=True), messy, 3),
    ],
    citation="Xu et al., How Powerful are Graph Neural Networks?, ICLR 2019",
)
def gin(eps: float = 0.0, train_eps: bool = False) -> Parts:
    """The aggregation of the graph isomorphism network, without the perceptron that follows it.

    Equation: Y = (A + (1 + eps) I) X.

    Meaning: a sum, unlike a mean or a maximum, can distinguish any two multisets of neighbours. Followed by a
    multilayer perceptron it is PyG's GINConv: `mlp(GConv(gin())(x, graph))`.

    In the family: one tap, fixed or learned (eps); W = I.

    Traps: edge weights are ignored, as in PyG; a self-loop counts in addition to 1 + eps. GINEConv adds edge features
    inside a ReLU and is outside the family.

    Args: PyG's GINConv's, without its `nn`.

    Shapes: x (*b, n, c) -> (*b, n, c).
    Between two sets of nodes: `layer((x_source, x_target), bipartite)`.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(gin(eps=0.5))(torch.ones(7, 3), ring(7))[0]
    tensor([3.5000, 3.5000, 3.5000])
    """
    return Sum(float(eps), train_eps), Fixed(), False
