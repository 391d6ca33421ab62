"""Filters in the graph Fourier basis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gconv.basis import Diagonal
from gconv.basis.functions import shares
from gconv.call import Call
from gconv.domains import Graph
from gconv.laplacian import function_of_laplacian
from gconv.mixing import Dense
from gconv.operators.polynomial import MAX_STEPS, at_most
from gconv.operators.shapes import ring, weighted
from gconv.spec import GraphStructure, Parts, Sample, Theta, register


@dataclass(frozen=True)
class Bands:
    """k overlapping bumps over [0, 1], piecewise linear, which sum to one; constant outside.

    At a knot the slope is the mean of those on either side.
    """

    taps: int
    top: float

    def values(self, at: Tensor) -> Tensor:
        if self.taps == 1:
            return torch.ones_like(at).unsqueeze(0)
        knots = torch.arange(self.taps, dtype=at.dtype, device=at.device).reshape(-1, *[1] * at.ndim)
        place = (at / self.top).clamp(0, 1) * (self.taps - 1)
        return (1 - (place - knots).abs()).clamp(min=0)

    def slopes(self, a: Tensor, b: Tensor) -> Tensor:
        if self.taps == 1:
            return torch.zeros_like(a + b).unsqueeze(0)
        scale = (self.taps - 1) / self.top
        rising = shares(scale * a, scale * b, torch.arange(self.taps, dtype=a.dtype, device=a.device))
        none = torch.zeros_like(rising[0])
        return scale * (torch.stack([none, *rising]) - torch.stack([*rising, none]))


@dataclass(frozen=True)
class Multipliers(GraphStructure):
    """k overlapping bands of frequencies: piecewise linear bumps g_k(lambda) that sum to one."""

    taps: int
    norm: Literal["sym"] | None

    def basis(self, domain: Graph, theta: Theta, call: Call) -> Diagonal:
        if self.norm == "sym":
            return function_of_laplacian(domain, "sym", Bands(self.taps, 2.0), call.x.dtype)
        return function_of_laplacian(domain, None, Bands(self.taps, 1.0), call.x.dtype, by_largest=True)


@register(
    samples=lambda spectral: [
        Sample(spectral(3, 2, k=4), ring, 3),
        Sample(spectral(2, 4, k=6, normalization=None, bias=False), weighted, 2),
        Sample(spectral(2, 3, k=1), weighted, 2),
    ],
    citation="Bruna et al., Spectral Networks and Locally Connected Networks on Graphs, ICLR 2014; "
    "Henaff, Bruna and LeCun, Deep Convolutional Networks on Graph-Structured Data, 2015",
    init="glorot",
)
def spectral(
    in_channels: int, out_channels: int, k: int = 8, normalization: Literal["sym"] | None = "sym", bias: bool = True
) -> Parts:
    """Graph Fourier multipliers: transform, weigh the frequencies, transform back.

    Equation: Y = sum_k U diag(g_k(lambda)) U^T X W_k + b, with L = U diag(lambda) U^T and g_k the k-th of k piecewise
    linear bumps over [0, lambda_max], which sum to one.

    Meaning: W_k is the channel mixing at the k-th band of frequencies; between bands it is interpolated, so the filter
    is smooth in frequency and the number of weights does not grow with the graph (Henaff et al.).

    In the family: k taps that one orthogonal basis diagonalises; W dense.

    Traps: needs an undirected graph. The eigenbasis costs O(n^3) once and (n, n) numbers. With normalization=None,
    lambda_max is that of each part of a union. A gradient in edge weights is finite at repeated eigenvalues; where an
    eigenvalue is a knot of the bumps, it takes the mean of both slopes.

    Args: k: bands. normalization: "sym" or None, the Laplacian whose eigenbasis it is.

    Shapes: x (*b, n, i) -> (*b, n, o).

    Raises:
        ValueError: if k < 1, the normalisation is not symmetric, or the graph is directed.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(spectral(3, 2, k=4))(torch.zeros(7, 3), ring(7)).shape
    torch.Size([7, 2])
    """
    if normalization not in ("sym", None):
        raise ValueError(
            f"A Fourier basis needs a symmetric Laplacian: normalization 'sym' or None, not {normalization!r}."
        )
    if not isinstance(k, int) or k < 1:
        raise ValueError(f"k must be an integer >= 1, but it is {k!r}.")
    at_most("k", k, MAX_STEPS)
    return Multipliers(k, normalization), Dense(k, in_channels, out_channels), bias
