"""Attention by cosine similarity."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from gconv.basis import Basis
from gconv.call import Call
from gconv.domains import Edges
from gconv.mixing import Fixed
from gconv.operators.attention import arrivals, attend
from gconv.operators.shapes import messy, ring
from gconv.spec import GraphStructure, Parameter, Parts, Sample, Theta, register


@dataclass(frozen=True)
class Cosine(GraphStructure):
    """One tap: the softmax over the incoming edges of beta cos(x_i, x_j)."""

    learned: bool
    add_self_loops: bool

    taps = 1
    kind, many = "adaptive", True
    reads = "both"

    def parameters(self) -> dict[str, Parameter]:
        return {"beta": Parameter((1,), "constant", 1.0)} if self.learned else {}

    def basis(self, domain: Edges, theta: Theta, call: Call) -> Basis:
        one, _ = arrivals(domain, self.add_self_loops)
        wide = call.x.to(torch.promote_types(call.x.dtype, torch.float32))  # squares underflow in float16
        u = F.normalize(wide, dim=-1).to(call.x.dtype).unsqueeze(-2)
        cosine = one.dots(domain.at_targets(u, -3), u)
        return attend(domain, one, theta["beta"] * cosine if self.learned else cosine, call.x.dtype)


@register(
    samples=lambda agnn: [
        Sample(agnn(), messy, 3, row_stochastic=True),
        Sample(agnn(requires_grad=False), ring, 2, row_stochastic=True),
        Sample(agnn(add_self_loops=False), messy, 2),
    ],
    citation="Thekumparampil et al., Attention-based Graph Neural Network for Semi-Supervised Learning, 2018",
)
def agnn(requires_grad: bool = True, add_self_loops: bool = True) -> Parts:
    """Propagation with attention by cosine similarity, with a single learned parameter or none.

    Equation: Y = S X, S[i, j] = softmax over j of beta cos(x_i, x_j).

    Meaning: beta = 0 is the mean of the neighbours; a large beta selects the most similar neighbour.

    In the family: one tap, adaptive and row-stochastic; W = I. Linear only when frozen: `layer.at(graph, x=x0)`.

    Traps: as in PyG, existing self-loops are replaced by new ones, edge weights are ignored, and the cosine with a zero
    vector is 0. A node without incoming edges (add_self_loops=False) gets 0.

    Args: PyG's AGNNConv's. requires_grad: whether beta, which starts at 1, is learned.

    Shapes: x (*b, n, c) -> (*b, n, c).

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(agnn())(torch.ones(7, 2), ring(7))[0]
    tensor([1., 1.], grad_fn=<SelectBackward0>)
    """
    return Cosine(bool(requires_grad), add_self_loops), Fixed(), False
