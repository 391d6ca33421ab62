"""Multi-hop graph convolutions: polynomials of one sparse matrix, evaluated by their recurrence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from gconv.basis import Polynomial, Recurrence, Taps
from gconv.call import Call
from gconv.domains import Graph
from gconv.laplacian import Norm, adjacency, laplacian
from gconv.mixing import Dense, Fixed
from gconv.operators.shapes import messy, ring, weighted
from gconv.spec import GraphStructure, Parts, Sample, Theta, register

MAX_STEPS = 100_000


@dataclass(frozen=True)
class Powers(GraphStructure):
    """Polynomials p_k(L) of a rescaled Laplacian or a normalised adjacency, or fixed combinations of them."""

    recurrence: Recurrence
    matrix: Literal["laplacian", "adjacency", "adjacency+loops"]
    norm: Norm = "sym"
    lmax: float | str | None = None
    combine: tuple[tuple[float, ...], ...] | None = None

    @property
    def taps(self) -> int:
        return self.recurrence.terms if self.combine is None else len(self.combine)

    def basis(self, domain: Graph, theta: Theta, call: Call) -> Polynomial:
        return Polynomial(self.L(domain, call.x), self.recurrence, self.combine)

    def L(self, domain: Graph, x: Tensor) -> Taps:
        if self.matrix == "laplacian":
            return laplacian(domain, x.dtype, norm=self.norm, lmax=self.lmax)  # type: ignore[arg-type]
        return adjacency(domain, x.dtype, loops="fill" if self.matrix == "adjacency+loops" else "keep", norm=self.norm)


def _terms(k: int, least: int) -> int:
    if not isinstance(k, int) or k < least:
        raise ValueError(f"k must be an integer >= {least}, but it is {k!r}.")
    return at_most("k", k, MAX_STEPS)


def at_most(name: str, value: int, most: int) -> int:
    """The value, if it is at most `most`.

    Raises:
        ValueError: otherwise.
    """
    if value > most:
        raise ValueError(f"{name} can be at most {most:,}, but it is {value}.")
    return value


@register(
    samples=lambda cheb: [
        Sample(cheb(3, 4, k=3), ring, 3),
        Sample(cheb(4, 2, k=5), weighted, 4),
        Sample(cheb(2, 3, k=1), weighted, 2),
        Sample(cheb(2, 3, k=4, normalization=None, bias=False), weighted, 2),
        Sample(cheb(3, 2, k=3, normalization="rw"), messy, 3),
        Sample(cheb(3, 2, k=3, lambda_max=1.5), messy, 3),
    ],
    citation="Defferrard, Bresson and Vandergheynst, Convolutional Neural Networks on Graphs with Fast Localized "
    "Spectral Filtering, NeurIPS 2016",
    init="glorot",
)
def cheb(
    in_channels: int,
    out_channels: int,
    k: int,
    normalization: Literal["sym", "rw"] | None = "sym",
    lambda_max: float | str | None = "bound",
    bias: bool = True,
) -> Parts:
    """The Chebyshev convolution: a learned spectral filter of k terms over k - 1 hops, without an eigenbasis.

    Equation: Y = sum_{t<k} T_t(L~) X W_t + b, L~ = 2 L / lambda_max - I, T_0 = 1, T_1 = z, T_t = 2 z T_{t-1} - T_{t-2}.

    Meaning: W_t is the coefficient matrix of the t-th Chebyshev polynomial in the graph's frequencies; the receptive
    field of a node is its (k - 1)-hop neighbourhood.

    In the family: k taps, polynomials of one sparse matrix that are never formed; W dense. Evaluated by the recurrence
    on the input channels, or by Clenshaw's algorithm on the output channels.

    Traps: k counts terms (PyG's K; a paper's order is k - 1). PyG's conventions: self-loops are dropped; the Laplacian
    is normalised by out-degrees; "rw" acts as A D^-1; an isolated node has diagonal 1 in a normalised L; lambda_max
    defaults to the bound 2 max(L_ij), which is 2 for normalised Laplacians ("exact" computes the eigenvalue).

    Args: PyG's ChebConv's, with `lambda_max` here instead of in the call.

    Shapes: x (*b, n, i) -> (*b, n, o).

    Raises:
        ValueError: if k < 1, the normalisation is unknown, lambda_max is not positive or far too small for the graph,
            or a weighted degree is negative (with "sym").

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(cheb(16, 32, k=3))(torch.zeros(7, 16), ring(7)).shape
    torch.Size([7, 32])
    """
    norms: dict[str | None, Norm] = {"sym": "sym", "rw": "col", None: None}
    if normalization not in norms:
        raise ValueError(f"normalization must be 'sym', 'rw' or None, but it is {normalization!r}.")
    structure = Powers(Recurrence.chebyshev(_terms(k, 1)), "laplacian", norms[normalization], lambda_max)
    return structure, Dense(k, in_channels, out_channels), bias


@register(
    samples=lambda sgc: [
        Sample(sgc(3, 2, k=2), weighted, 3),
        Sample(sgc(2, 4, k=3, bias=False), messy, 2),
        Sample(sgc(2, 2, k=1), ring, 2, row_stochastic=True),
    ],
    citation="Wu et al., Simplifying Graph Convolutional Networks, ICML 2019",
    init="glorot",
)
def sgc(in_channels: int, out_channels: int, k: int = 1, bias: bool = True) -> Parts:
    """Simplified graph convolution: k steps of gcn's averaging and one matrix.

    Equation: Y = S^k X W + b, S = D^-1/2 (A + I) D^-1/2.

    Meaning: k layers of gcn without the nonlinearities and with a single weight matrix; S^k X can be precomputed.

    In the family: one tap, the k-th power of gcn's S, evaluated by repeated products; W dense.

    Traps: gcn's conventions for self-loops and degrees.

    Args: PyG's SGConv's, with K named k.

    Shapes: x (*b, n, i) -> (*b, n, o).

    Raises:
        ValueError: if k < 1.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(sgc(3, 2, k=2))(torch.zeros(7, 3), ring(7)).shape
    torch.Size([7, 2])
    """
    last = (*(0.0,) * _terms(k, 1), 1.0)
    return (
        Powers(Recurrence.monomial(k + 1), "adjacency+loops", combine=(last,)),
        Dense(1, in_channels, out_channels),
        bias,
    )


@register(
    samples=lambda tag: [
        Sample(tag(3, 2, k=3), weighted, 3),
        Sample(tag(2, 4, k=2, bias=False), messy, 2),
        Sample(tag(2, 2, k=0), ring, 2),
    ],
    citation="Du et al., Topology Adaptive Graph Convolutional Networks, 2017",
    init="glorot",
)
def tag(in_channels: int, out_channels: int, k: int = 3, bias: bool = True) -> Parts:
    """Topology adaptive graph convolution: one matrix per power of the adjacency.

    Equation: Y = sum_{t=0..k} S^t X W_t + b, S = D^-1/2 A D^-1/2.

    Meaning: a polynomial filter in the monomial basis; W_t mixes the channels of what is t hops away.

    In the family: k + 1 taps, the powers of one sparse matrix; W dense.

    Traps: no self-loops are added (as in PyG); k hops are k + 1 taps.

    Args: PyG's TAGConv's, with K named k.

    Shapes: x (*b, n, i) -> (*b, n, o).

    Raises:
        ValueError: if k < 0.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(tag(3, 2))(torch.zeros(7, 3), ring(7)).shape
    torch.Size([7, 2])
    """
    return Powers(Recurrence.monomial(_terms(k, 0) + 1), "adjacency"), Dense(k + 1, in_channels, out_channels), bias


@register(
    samples=lambda appnp: [
        Sample(appnp(4, 0.1), weighted, 3),
        Sample(appnp(2, 0.5), messy, 2),
        Sample(appnp(3, 0.2), ring, 2, row_stochastic=True),
    ],
    citation="Gasteiger, Bojchevski and Guennemann, Predict then Propagate, ICLR 2019",
)
def appnp(k: int = 10, alpha: float = 0.1) -> Parts:
    """Personalised PageRank propagation of predictions, without parameters.

    Equation: Y = sum_{t<k} alpha (1 - alpha)^t S^t X + (1 - alpha)^k S^k X, S = D^-1/2 (A + I) D^-1/2.

    Meaning: k steps of Z <- (1 - alpha) S Z + alpha X, a random walk with restart probability alpha.

    In the family: one tap, a fixed polynomial of gcn's S; W = I.

    Traps: gcn's conventions for self-loops and degrees. PyG's dropout of edges between the steps is not included.

    Args: PyG's APPNP's, with K named k.

    Shapes: x (*b, n, c) -> (*b, n, c).

    Raises:
        ValueError: if k < 1 or alpha is outside of [0, 1].

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(appnp(10, 0.1))(torch.ones(7, 3), ring(7))[0]
    tensor([1.0000, 1.0000, 1.0000])
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is a probability in [0, 1], but it is {alpha!r}.")
    row = (*(alpha * (1 - alpha) ** t for t in range(_terms(k, 1))), (1 - alpha) ** k)
    return Powers(Recurrence.monomial(k + 1), "adjacency+loops", combine=(tuple(map(float, row)),)), Fixed(), False
