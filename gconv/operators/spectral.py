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
    """k overlapping hat functions on [0, top], piecewise linear, that sum to one; constant outside.

    The slope at a knot is the mean of the slopes on both sides.
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
    """k overlapping frequency bands: piecewise linear hat functions g_k(lambda) that sum to one."""

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
    """Graph Fourier multipliers: Fourier transform, multiplication by frequency, inverse transform.

    Equation: Y = sum_k U diag(g_k(lambda)) U^T X W_k + b, with L = U diag(lambda) U^T and g_k the k-th of k piecewise
    linear hat functions on [0, lambda_max] that sum to one.

    Meaning: W_k is the weight matrix of the k-th frequency band. It is interpolated linearly between bands, so the
    filter is smooth in frequency and the number of weights does not depend on the graph (Henaff et al.).

    In the family: k taps that are diagonal in one orthogonal basis; W dense.

    Traps: requires an undirected graph. The eigenbasis takes O(n^3) time once per graph and n^2 numbers. With
    normalization=None, each part of a union uses its own lambda_max. Gradients in edge weights are finite at repeated
    eigenvalues; at a knot of the hat functions they use the mean of both slopes.

    Args: k: number of bands. normalization: "sym" or None, of the Laplacian.

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
