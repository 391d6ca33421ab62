"""Signed attention: neighbours are added or subtracted."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gconv.basis import Polynomial, Recurrence, SharedTaps, Stack
from gconv.call import Call
from gconv.domains import Graph
from gconv.laplacian import adjacency
from gconv.mixing import Beside, Fixed
from gconv.mixing.base import check_channels
from gconv.operators.attention import check_heads
from gconv.operators.shapes import messy, ring
from gconv.spec import GraphStructure, Parameter, Parts, Sample, Theta, register


@dataclass(frozen=True)
class Signed(GraphStructure):
    """Two taps: tanh(a_l . x_j + a_r . x_i) times gcn's normalised adjacency, and eps I."""

    c: int
    eps: float
    add_self_loops: bool
    normalize: bool
    initial: bool
    dropout: float = 0.0

    taps = 2
    kind, many = "adaptive", True

    def parameters(self) -> dict[str, Parameter]:
        p = Parameter((self.c,), "uniform", self.c**-0.5)
        return {"att_l": p, "att_r": p}

    def basis(self, domain: Graph, theta: Theta, call: Call) -> Stack:
        x, width = call.x, self.c * (1 + self.initial)
        if x.shape[-1] != width:
            layout = ", x beside x_0" if self.initial else ""
            raise ValueError(f"This fagcn takes {width} channels in{layout}, but the signal has {x.shape[-1]}.")
        x = x[..., : self.c]
        L = adjacency(
            domain,
            x.dtype,
            loops="fill" if self.normalize and self.add_self_loops else "keep",
            norm="sym" if self.normalize else None,
            weighted=not self.normalize,
        )
        wide = torch.promote_types(x.dtype, torch.float32)  # gradients of long rows are sums
        source, target = ((x @ theta[name]).to(wide) for name in ("att_l", "att_r"))
        values = (source[..., L.pattern.col] + target[..., L.pattern.row]).tanh().to(x.dtype) * L.values
        S = SharedTaps(L.pattern, values.unsqueeze(-1))
        return Stack((S, Polynomial(L, Recurrence.monomial(1), ((self.eps,),))))  # eps I, a polynomial of degree 0


@register(
    samples=lambda fagcn: [
        Sample(fagcn(2), messy, 4),
        Sample(fagcn(3, eps=0.3, dropout=0.5, add_self_loops=False), ring, 6),
        Sample(fagcn(2, eps=0.0, normalize=False), messy, 4),
        Sample(fagcn(3, initial=False), messy, 3),
    ],
    citation="Bo et al., Beyond Low-frequency Information in Graph Convolutional Networks, AAAI 2021",
)
def fagcn(
    channels: int,
    eps: float = 0.1,
    dropout: float = 0.0,
    add_self_loops: bool = True,
    normalize: bool = True,
    initial: bool = True,
) -> Parts:
    """FAGCN: attention coefficients with signs, so that each edge acts as a low-pass or a high-pass filter.

    Equation: Y = S X + eps X_0, S[i, j] = tanh(a_l . x_j + a_r . x_i) / sqrt(d_i d_j).

    Meaning: a positive entry makes the two nodes more similar, a negative entry less similar.

    In the family: two taps, an adaptive S without softmax (rows do not sum to one) and eps I; W only selects channels.
    Linear only when frozen: `layer.at(graph, x=x0)`.

    Traps: x is the concatenation of X and X_0, 2 c channels, and the attention reads X; PyG takes two arguments. With
    initial=False, X is used as X_0, too. Degrees and added self-loops are gcn's, on the unweighted graph: PyG raises an
    error for edge weights with normalize=True, here they are ignored. With normalize=False edge weights are used in
    place of 1 / sqrt(d_i d_j), and no self-loops are added. dropout applies to S, not to eps X_0. The authors' code
    adds no self-loops, and a bias inside the tanh.

    Args: PyG's FAConv's. initial: whether x contains a separate X_0.

    Shapes: x (*b, n, 2 c), X then X_0, or (*b, n, c) with initial=False -> (*b, n, c).

    Raises:
        ValueError: if channels < 1, dropout is outside of [0, 1), or x has another number of channels.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(fagcn(3))(torch.ones(7, 6), ring(7)).shape
    torch.Size([7, 3])
    """
    check_channels(channels, channels)
    check_heads(1, dropout)
    structure = Signed(channels, float(eps), add_self_loops, normalize, initial, dropout)
    return structure, Beside(2, fold=True) if initial else Fixed(2), False
