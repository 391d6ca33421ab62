"""Wavelets on graphs: band-pass filters that are localised on the graph."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gconv.basis import Basis, Pattern, Polynomial, Product, Recurrence, Taps
from gconv.basis.functions import exponential, shares
from gconv.call import Call
from gconv.domains import Graph
from gconv.laplacian import function_of_laplacian
from gconv.mixing import Dense
from gconv.operators.bases import MAX_DEGREE, interpolation, nodes
from gconv.operators.polynomial import Powers, at_most
from gconv.operators.propagation import heat_degree, heat_series
from gconv.operators.shapes import messy, ring, weighted
from gconv.spec import GraphStructure, Parameter, Parts, Sample, Theta, register

LMAX = 2.0  # of the symmetric Laplacian
LMIN = LMAX / 20
LARGEST = 16.0  # largest s of gwnn, where exp(2 s) times the rounding error of float64 is a few per cent


def kernels(scales: int, frequencies: Tensor) -> Tensor:
    """(scales + 1, ...): the scaling function and the wavelets, largest scale first, at frequencies in [0, 2].

    Equation: h(lambda) = G exp(-(lambda / (0.6 LMIN))^4), g_s(lambda) = g(s lambda) with
    g(x) = x^2 below 1, -5 + 11 x - 6 x^2 + x^3 from 1 to 2, 4 / x^2 above, and G = 1 + 2 / sqrt(27) the maximum of g;
    s decreases geometrically from 2 / LMIN to 1 / LMAX, with LMAX = 2 and LMIN = LMAX / 20.

    >>> kernels(2, torch.tensor([0.0, 2.0]))
    tensor([[1.3849, 0.0000],
            [0.0000, 0.0025],
            [0.0000, 1.0000]])
    """
    low = (1 + 2 / math.sqrt(27)) * torch.exp(-((frequencies / (0.6 * LMIN)) ** 4))
    bands = []
    for j in range(scales):
        x = _scale(scales, j) * frequencies
        between = -5 + 11 * x - 6 * x**2 + x**3
        bands.append(torch.where(x < 1, x**2, torch.where(x <= 2, between, 4 / x.clamp(min=1) ** 2)))
    return torch.stack([low, *bands])


def _scale(scales: int, j: int) -> float:
    first, last = math.log(2 / LMIN), math.log(1 / LMAX)
    return math.exp(first + (last - first) * j / max(1, scales - 1))


@dataclass(frozen=True)
class Kernels:
    """The scaling function and the wavelets, as functions of the frequency."""

    scales: int

    def values(self, at: Tensor) -> Tensor:
        return kernels(self.scales, at)

    def slopes(self, a: Tensor, b: Tensor) -> Tensor:
        u, v = a / (0.6 * LMIN), b / (0.6 * LMIN)
        quartic = (u + v) * (u.square() + v.square()) / (0.6 * LMIN)
        found = [(1 + 2 / math.sqrt(27)) * exponential(u**4, v**4) * quartic]
        one, two = 1 + 1e-9, 2 + 1e-9  # 1 and 2 up to rounding belong to the lower piece
        edges = a.new_tensor([-1e300, one, two, 1e300])
        for j in range(self.scales):
            s = _scale(self.scales, j)
            x, y = s * a, s * b
            below, between, above = shares(x, y, edges)
            p, q = x.clamp(max=one), y.clamp(max=one)
            slope = below * (p + q)
            p, q = x.clamp(one, two), y.clamp(one, two)
            slope = slope + between * (11 - 6 * (p + q) + p * p + p * q + q * q)
            p, q = x.clamp(min=two), y.clamp(min=two)
            found.append(s * (slope - above * 4 * (p + q) / (p * q).square()))
        return torch.stack(found)


@dataclass(frozen=True)
class Wavelets(GraphStructure):
    """The scaling function and the wavelets of the symmetric Laplacian, exact or interpolated by polynomials."""

    scales: int
    order: int | None

    @property
    def taps(self) -> int:
        return self.scales + 1

    def basis(self, domain: Graph, theta: Theta, call: Call) -> Basis:
        if self.order is None:
            return function_of_laplacian(domain, "sym", Kernels(self.scales), call.x.dtype)
        c = kernels(self.scales, 1 + nodes(self.order)) @ interpolation(self.order)
        powers = Powers(Recurrence.chebyshev(self.order + 1), "laplacian", "sym", LMAX)
        return Polynomial(powers.L(domain, call.x), powers.recurrence, tuple(tuple(row) for row in c.tolist()))


@register(
    samples=lambda wavelet: [
        Sample(wavelet(3, 2, scales=3), weighted, 3),
        Sample(wavelet(2, 3, scales=2, order=6), messy, 2),
        Sample(wavelet(2, 2, scales=2, order=0), weighted, 2),
        Sample(wavelet(1, 2, scales=1, bias=False), ring, 1),
    ],
    citation="Hammond, Vandergheynst and Gribonval, Wavelets on Graphs via Spectral Graph Theory, Applied and "
    "Computational Harmonic Analysis 2011",
    init="glorot",
)
def wavelet(in_channels: int, out_channels: int, scales: int = 4, order: int | None = None, bias: bool = True) -> Parts:
    """Spectral graph wavelets: a signal filtered at several scales, with a weight matrix for each scale.

    Equation: Y = h(L) X W_0 + sum_{j=1..J} g(s_j L) X W_j + b, L = I - D^-1/2 A D^-1/2; h and g as in `kernels`.

    Meaning: g is a band-pass filter: g(s L) keeps frequencies around 1.4 / s, and wide bands are localised on the
    graph. h is a low-pass filter for the frequencies below all bands.

    In the family: J + 1 taps with fixed multipliers; diagonal in an orthogonal basis, or, with `order`, polynomials of
    the Laplacian by Chebyshev's recurrence (the paper's fast transform); W dense.

    Traps: lambda_max is the bound 2, so the scales do not depend on the graph; the paper uses the graph's own, as does
    PyGSP's Abspline, whose kernels these are with lambda_max = 2 and scales + 1 filters. The
    polynomials interpolate the kernels at the Chebyshev nodes; the paper truncates the Chebyshev series. The scaling
    function is narrow near lambda = 0, and a low order does not resolve it. The exact transform needs an undirected
    graph.

    Args: scales: J, the number of wavelets. order: None for the exact transform, or the degree of the polynomials.

    Shapes: x (*b, n, i) -> (*b, n, o).

    Raises:
        ValueError: if scales < 1, order < 0, or the graph is directed and order is None.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(wavelet(3, 2))(torch.zeros(7, 3), ring(7)).shape
    torch.Size([7, 2])
    """
    for name, value, least in (("scales", scales, 1), ("order", 0 if order is None else order, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be an integer >= {least}, but it is {value!r}.")
        at_most(name, value or 0, MAX_DEGREE)
    return Wavelets(scales, order), Dense(scales + 1, in_channels, out_channels), bias


@dataclass(frozen=True)
class InWavelets(GraphStructure):
    """psi diag(theta) psi^-1 with psi = exp(-s L): one learned number per node of one graph."""

    nodes: int = field()  # required: overrides the default of the base class
    s: float

    taps = 1
    kind = "learned"

    def parameters(self) -> dict[str, Parameter]:
        return {"theta": Parameter((self.nodes,), "constant", 1.0)}

    def basis(self, domain: Graph, theta: Theta, call: Call) -> Basis:
        if domain.size != self.nodes:
            raise ValueError(
                f"gwnn has a parameter for each of {self.nodes} nodes, but the graph has {domain.size}; "
                "it belongs to one graph."
            )
        there = heat_series(self.s)[: heat_degree(self.s) + 1]
        back = tuple(math.exp(2 * self.s) * abs(c) for c in there)
        powers = Powers(Recurrence.chebyshev(len(there)), "laplacian", "sym", LMAX)
        L = powers.L(domain, call.x)

        def diagonal() -> Pattern:
            i = torch.arange(domain.size, device=domain.device)
            return Pattern((1, domain.size, domain.size), torch.zeros_like(i), i, i)

        g = Taps(domain.memo("diagonal", diagonal), theta["theta"].to(call.x.dtype))
        psi, inverse = (Polynomial(L, powers.recurrence, (c,)) for c in (there, back))
        return Product(psi, Product(g, inverse))


@register(
    samples=lambda gwnn: [
        Sample(gwnn(3, 2, nodes=8, s=0.5), weighted, 3),
        Sample(gwnn(2, 2, nodes=6, s=1.0, bias=False), messy, 2),
        Sample(gwnn(2, 3, nodes=7, s=0.7), ring, 2),
    ],
    citation="Xu, Shen, Cao, Qiu and Cheng, Graph Wavelet Neural Network, ICLR 2019",
    init="glorot",
)
def gwnn(in_channels: int, out_channels: int, nodes: int, s: float = 1.0, bias: bool = True) -> Parts:
    """GWNN's convolution: multipliers in a basis of heat wavelets instead of eigenvectors, for one fixed graph.

    Equation: Y = psi diag(theta) psi^-1 X W + b, psi = exp(-s L), L = I - D^-1/2 A D^-1/2.

    Meaning: column j of psi is the heat that diffuses from node j, so theta_j weights the neighbourhood of node j;
    eigenvectors are not localised. theta is initialised to ones, which pass every signal unchanged.

    In the family: one tap, the product of a polynomial, a learned diagonal and another polynomial; W dense.

    Traps: theta is tied to the nodes of one graph: the layer cannot be applied to another graph, and permuting the
    nodes permutes theta. psi^-1 = exp(s L) amplifies by up to exp(2 s), which costs precision for large s. The authors'
    code, as read, computes the inverse from eigenvalues that it has overwritten, so its two matrices are not inverse to
    each other, and it may set small and negative entries to 0; here both are exact series that are never formed.

    Args: nodes: number of nodes of the graph. s: scale, in (0, 16]; near 8 no digit of single precision is left.

    Shapes: x (*b, n, i) -> (*b, n, o); theta (n,).

    Raises:
        ValueError: if s is not in (0, 16], nodes < 1, or the graph has another number of nodes.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(gwnn(3, 2, nodes=7))(torch.zeros(7, 3), ring(7)).shape
    torch.Size([7, 2])
    """
    if not isinstance(nodes, int) or isinstance(nodes, bool) or nodes < 1:
        raise ValueError(f"nodes must be an integer >= 1, the size of the graph, but it is {nodes!r}.")
    if not 0 < s < math.inf:
        raise ValueError(f"s is a scale and must be a positive number, but it is {s!r}.")
    if s > LARGEST:
        raise ValueError(
            f"s can be at most {LARGEST:g}: psi^-1 amplifies rounding errors by exp(2 s), and with s = {s!r} no digit "
            "of double precision is left."
        )
    return InWavelets(nodes, float(s)), Dense(1, in_channels, out_channels), bias
