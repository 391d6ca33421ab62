"""Rational filters: by truncated series (ARMA) or in the graph Fourier basis (Cayley)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gconv.basis import Diagonal, Polynomial, Recurrence
from gconv.call import Call
from gconv.domains import Graph
from gconv.errors import InputTypeError
from gconv.laplacian import function_of_laplacian
from gconv.mixing import Dense
from gconv.operators.bases import steps
from gconv.operators.polynomial import MAX_STEPS, Powers, at_most
from gconv.operators.shapes import messy, ring, weighted
from gconv.spec import GraphStructure, Parameter, Parts, Sample, Theta, register


@dataclass(frozen=True)
class Poles(GraphStructure):
    """sum_{t<=T} a_k^t S^t for each learned number a_k, S the symmetrically normalised adjacency."""

    taps: int
    layers: int

    kind = "learned"

    def parameters(self) -> dict[str, Parameter]:
        start = tuple(0.9 * (k + 1) / self.taps for k in range(self.taps))
        return {"a": Parameter((self.taps,), "constant", start)}

    def basis(self, domain: Graph, theta: Theta, call: Call) -> Polynomial:
        a, powers = theta["a"].to(call.x.dtype), Powers(Recurrence.monomial(self.layers + 1), "adjacency")
        columns = [torch.ones_like(a)]
        for _ in range(self.layers):
            columns.append(columns[-1] * a)
        return Polynomial(powers.L(domain, call.x), powers.recurrence, torch.stack(columns, 1))


@register(
    samples=lambda arma: [
        Sample(arma(3, 2, num_stacks=2, num_layers=3), weighted, 3),
        Sample(arma(2, 3, num_stacks=3, num_layers=2, bias=False), messy, 2),
        Sample(arma(2, 2, num_stacks=1, num_layers=1), ring, 2),
    ],
    citation="Bianchi, Grattarola, Livi and Alippi, Graph Neural Networks with Convolutional ARMA Filters, TPAMI 2021",
    init="glorot",
)
def arma(in_channels: int, out_channels: int, num_stacks: int = 2, num_layers: int = 4, bias: bool = True) -> Parts:
    """The ARMA filter: learned poles, expanded in geometric series of num_layers terms.

    Equation: Y = sum_k (sum_{t=0..T} a_k^t S^t) X W_k + b, S = D^-1/2 A D^-1/2; for |a_k| < 1 and T = infinity the
    bracket is (I - a_k S)^-1.

    Meaning: a_k sets the range of stack k. Its response 1 / (1 - a_k s) can be sharper than that of a polynomial with
    as many parameters. The sum is the result of T iterations of Z <- a_k S Z + X.

    In the family: K taps, learned polynomials of one sparse matrix; W dense.

    Traps: this is PyG's ARMAConv with act=None, shared weights and recurrent matrices a_k I; its mean over stacks is
    absorbed in W. Every other ARMAConv with act=None, and with one layer or without bias, is tag(k=num_layers) whose
    weights are products of its matrices; with an act it is several layers. No self-loops are added. |a_k| is not
    constrained to be below 1, where the series converges.

    Args: PyG's ARMAConv's. num_stacks: number of poles; num_layers: T, the highest power.

    Shapes: x (*b, n, i) -> (*b, n, o); a (num_stacks,).

    Raises:
        ValueError: if num_stacks < 1 or num_layers < 0.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(arma(3, 2))(torch.zeros(7, 3), ring(7)).shape
    torch.Size([7, 2])
    """
    for name, value, least in (("num_stacks", num_stacks, 1), ("num_layers", num_layers, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be an integer >= {least}, but it is {value!r}.")
        at_most(name, value, MAX_STEPS)
    return Poles(num_stacks, num_layers), Dense(num_stacks, in_channels, out_channels), bias


@dataclass(frozen=True, eq=False)
class Turns:
    """1, and the real and imaginary parts of the powers of C(lambda) = (h lambda - i) / (h lambda + i).

    Equation: C[a, b] = 2 i h / ((h a + i) (h b + i)), C^j[a, b] = C(a) C^(j-1)[a, b] + C[a, b] C(b)^(j-1).
    """

    k: int
    h: Tensor

    def values(self, at: Tensor) -> Tensor:
        u = self.h * at
        angle = 2 * torch.arange(self.k + 1, device=u.device).unsqueeze(1) * torch.atan2(torch.ones_like(u), u)
        return torch.cat([angle[:1].cos(), 2 * angle[1:].cos(), 2 * angle[1:].sin()])

    def slopes(self, a: Tensor, b: Tensor) -> Tensor:
        one, two = 1 / (self.h * a + 1j), 1 / (self.h * b + 1j)
        first = 2j * self.h * one * two
        C, D = (self.h * a - 1j) * one, (self.h * b - 1j) * two
        found, power = [torch.zeros_like(first)], torch.ones_like(D)
        for _ in range(self.k):
            found.append(C * found[-1] + first * power)
            power = power * D
        z = torch.stack(found)
        return torch.cat([z[:1].real, 2 * z[1:].real, -2 * z[1:].imag])


@dataclass(frozen=True)
class Cayley(GraphStructure):
    """1, then the real and imaginary parts of the powers of (h lambda - i) / (h lambda + i), with h learned."""

    k: int
    norm: Literal["sym"] | None

    kind = "learned"

    @property
    def taps(self) -> int:
        return 2 * self.k + 1

    def parameters(self) -> dict[str, Parameter]:
        return {"h": Parameter((1,), "constant", 1.0)}

    def basis(self, domain: Graph, theta: Theta, call: Call) -> Diagonal:
        if theta["h"].is_complex():
            raise InputTypeError(
                "cayley: h must be real, but it is complex; apply a real layer to the real and the imaginary part of x."
            )
        return function_of_laplacian(domain, self.norm, Turns(self.k, theta["h"].to(torch.float64)), call.x.dtype)


@register(
    samples=lambda cayley: [
        Sample(cayley(3, 2, k=2), weighted, 3),
        Sample(cayley(2, 3, k=3, normalization=None, bias=False), ring, 2),
        Sample(cayley(2, 2, k=0), ring, 2),
    ],
    citation="Levie, Monti, Bresson and Bronstein, CayleyNets: Graph Convolutional Neural Networks with Complex "
    "Rational Spectral Filters, IEEE Transactions on Signal Processing 2019",
    init="glorot",
)
def cayley(
    in_channels: int, out_channels: int, k: int = 3, normalization: Literal["sym"] | None = "sym", bias: bool = True
) -> Parts:
    """The Cayley filter: a trigonometric polynomial in the Cayley transform of the spectrum, with a learned zoom.

    Equation: Y = X W_0 + sum_{j=1..k} 2 Re(C^j) X W_j - 2 Im(C^j) X W_{k+j} + b, C = (h L - i I)(h L + i I)^-1; that is
    X c_0 + 2 Re sum_j C^j X c_j with complex matrices c_j = W_j + i W_{k+j}.

    Meaning: C maps the spectrum to the unit circle, exp(-2 i arccot(h lambda)), on which powers form a Fourier basis.
    A large h spreads the low frequencies over the circle, a small h the high ones; learning h selects the band that
    the filter resolves.

    In the family: 2k + 1 taps with real multipliers, 1, 2 cos and 2 sin of 2 j arccot(h lambda), diagonal in one
    orthogonal basis; W dense.

    Traps: computed exactly in the eigenbasis, O(n^3) once per graph, where the paper iterates Jacobi's method;
    undirected graphs only. Changing the sign of h replaces C by its conjugate.

    Args: k: order. normalization: "sym" or None, the Laplacian.

    Shapes: x (*b, n, i) -> (*b, n, o); h (1,).

    Raises:
        ValueError: if k < 0, the normalisation is not symmetric, or the graph is directed.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(cayley(3, 2))(torch.zeros(7, 3), ring(7)).shape
    torch.Size([7, 2])
    """
    if normalization not in ("sym", None):
        raise ValueError(
            f"A Fourier basis needs a symmetric Laplacian: normalization 'sym' or None, not {normalization!r}."
        )
    return Cayley(steps(k), normalization), Dense(2 * k + 1, in_channels, out_channels), bias
