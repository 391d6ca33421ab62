"""Deep graph convolutions: an initial residual connection, and weight matrices near the identity."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gconv.mixing import Dense, Mixing, Parametrised
from gconv.operators.neighbourhood import Neighbours
from gconv.operators.shapes import messy, ring, weighted
from gconv.spec import Parts, Sample, register


@dataclass(frozen=True)
class Residual(Parametrised):
    """W_0 = (1 - alpha) [M_0; 0] and W_1 = alpha [0; M_1], M = (1 - beta) I + beta W. The weight is (1 or 2, c, c)."""

    c: int
    alpha: float
    beta: float
    shared: bool

    taps = 2

    @property
    def i(self) -> int:
        return 2 * self.c

    @property
    def o(self) -> int:
        return self.c

    @property
    def shape(self) -> tuple[int, ...]:
        return 2 - self.shared, self.c, self.c

    def plain(self, W: Tensor) -> tuple[Mixing, Tensor]:
        M = (1 - self.beta) * torch.eye(self.c, dtype=W.dtype, device=W.device) + self.beta * W
        now, first = (1 - self.alpha) * M[0], self.alpha * M[-1]
        zero = torch.zeros_like(now)
        return Dense(2, self.i, self.o), torch.stack([torch.cat([now, zero]), torch.cat([zero, first])])


@register(
    samples=lambda gcn2: [
        Sample(gcn2(2, 0.1), ring, 4),
        Sample(gcn2(3, 0.25, theta=0.5, layer=2), messy, 6),
        Sample(gcn2(2, 0.5, theta=1.0, layer=3, shared_weights=False), weighted, 4),
        Sample(gcn2(2, 0.5, add_self_loops=False, shared_weights=False), messy, 4),
        Sample(gcn2(2, 0.5, normalize=False), messy, 4),
    ],
    citation="Chen et al., Simple and Deep Graph Convolutional Networks, ICML 2020",
    init="glorot",
)
def gcn2(
    channels: int,
    alpha: float,
    theta: float | None = None,
    layer: int | None = None,
    shared_weights: bool = True,
    add_self_loops: bool = True,
    normalize: bool = True,
) -> Parts:
    """GCNII: an averaging step, an initial residual connection, and a matrix near the identity.

    Equation: Y = ((1 - alpha) S X + alpha X_0) ((1 - beta) I + beta W), S = D^-1/2 (A + I) D^-1/2,
    beta = log(theta / layer + 1); with shared_weights=False X_0 is multiplied by a second matrix instead of W.

    Meaning: X_0 is the output of the first layer. The deeper a layer, the closer its matrix is to the identity, so
    that networks of 64 layers can be trained.

    In the family: two taps, gcn's S and the identity; half of each W_k is zero, since S reads only X and the identity
    reads only X_0.

    Traps: x is the concatenation of X and X_0, 2 c channels; PyG takes two arguments. Without theta and layer, beta is
    1. There is no bias. gcn's conventions for self-loops and degrees. With two matrices, the authors' code multiplies
    S X and X_0 by beta W and beta W' without the factors 1 - alpha and alpha, which are the paper's and PyG's.

    Args: PyG's GCN2Conv's.

    Shapes: x (*b, n, 2 c), X then X_0 -> (*b, n, c). The weight is (1, c, c), PyG's weight1; not shared (2, c, c),
    weight1 and weight2.

    Raises:
        ValueError: if alpha is outside of [0, 1], only one of theta and layer is given, layer < 1, or
            theta / layer <= -1.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(gcn2(3, 0.1, theta=0.5, layer=1))(torch.ones(7, 6), ring(7)).shape
    torch.Size([7, 3])
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is a share in [0, 1], but it is {alpha!r}.")
    if (theta is None) != (layer is None):
        raise ValueError(f"theta and layer come together, but they are {theta!r} and {layer!r}.")
    beta = 1.0
    if theta is not None and layer is not None:
        if layer < 1 or theta / layer <= -1:
            raise ValueError(f"theta / layer must be above -1 and layer at least 1, but they are {theta} and {layer}.")
        beta = math.log(theta / layer + 1)
    loops = add_self_loops and normalize
    structure = Neighbours("fill" if loops else "keep", 1.0, "sym" if normalize else None, root=True)
    return structure, Residual(channels, float(alpha), beta, shared_weights), False
