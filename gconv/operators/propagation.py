"""Propagation: fixed and learned polynomial filters on a graph, most of them without a weight matrix."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from gconv.basis import Basis, Polynomial, Recurrence
from gconv.call import Call
from gconv.domains import Graph
from gconv.mixing import Dense, Fixed
from gconv.operators.bases import Filter, steps
from gconv.operators.neighbourhood import Neighbours
from gconv.operators.polynomial import Powers
from gconv.operators.shapes import messy, ring, weighted
from gconv.spec import GraphStructure, Parts, Sample, Theta, register


def _share(alpha: float, least: float = 0.0) -> float:
    if not least <= alpha <= 1:
        raise ValueError(f"alpha is a share in [{least:g}, 1], but it is {alpha!r}.")
    return float(alpha)


@register(
    samples=lambda lightgcn: [
        Sample(lightgcn(), weighted, 3),
        Sample(lightgcn(), messy, 2),
        Sample(lightgcn(normalize=False), messy, 2),
        Sample(lightgcn(), ring, 2, row_stochastic=True),
    ],
    citation="He et al., LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation, SIGIR 2020",
)
def lightgcn(normalize: bool = True) -> Parts:
    """LightGCN's propagation: a normalised sum over the neighbours.

    Equation: Y = D^-1/2 A D^-1/2 X, or Y = A X with normalize=False.

    Meaning: there is no weight matrix and no self-connection; LightGCN averages the outputs of all layers, the input
    included, which brings each node's own signal back.

    In the family: one tap, an adjacency; W = I.

    Traps: no self-loops are added, so an isolated node gets 0. In-degrees normalise both ends of an edge (PyG).

    Args: PyG's LGConv's.

    Shapes: x (*b, n, c) -> (*b, n, c).

    Raises:
        ValueError: if a weighted degree is negative.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(lightgcn())(torch.arange(4.0).unsqueeze(1), ring(4)).flatten()
    tensor([2., 1., 2., 1.])
    """
    return Neighbours(norm="sym" if normalize else None), Fixed(), False


@register(
    samples=lambda ssg: [
        Sample(ssg(3, 2, alpha=0.1, k=4), weighted, 3),
        Sample(ssg(2, 4, alpha=0.5, k=2), messy, 2),
        Sample(ssg(2, 2, alpha=0.2, k=3, add_self_loops=False, bias=False), messy, 2),
        Sample(ssg(2, 2, alpha=0.0), ring, 2, row_stochastic=True),
    ],
    citation="Zhu and Koniusz, Simple Spectral Graph Convolution, ICLR 2021",
    init="glorot",
)
def ssg(
    in_channels: int,
    out_channels: int,
    alpha: float,
    k: int = 1,
    add_self_loops: bool = True,
    bias: bool = True,
) -> Parts:
    """Simple spectral graph convolution: the mean of the first k powers of S, mixed with the node itself.

    Equation: Y = (alpha I + (1 - alpha) / k sum_{t=1..k} S^t) X W + b, S = D^-1/2 (A + I) D^-1/2.

    Meaning: a truncated diffusion kernel: high powers enlarge the receptive field, low powers limit oversmoothing.

    In the family: one tap, a fixed polynomial of gcn's S; W dense.

    Traps: as in PyG's SSGConv, alpha I is added once; the paper writes it inside the mean, which is equal. The sum
    starts at t = 1.

    Args: PyG's SSGConv's, K written k.

    Shapes: x (*b, n, i) -> (*b, n, o).

    Raises:
        ValueError: if k < 1 or alpha is outside of [0, 1].

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(ssg(3, 2, alpha=0.05, k=16))(torch.zeros(7, 3), ring(7)).shape
    torch.Size([7, 2])
    """
    row = (_share(alpha), *((1 - alpha) / k for _ in range(steps(k, 1))))
    matrix: Literal["adjacency", "adjacency+loops"] = "adjacency+loops" if add_self_loops else "adjacency"
    structure = Powers(Recurrence.monomial(k + 1), matrix, combine=(tuple(map(float, row)),))
    return structure, Dense(1, in_channels, out_channels), bias


@register(
    samples=lambda gpr: [
        Sample(gpr(4, 0.2), weighted, 3),
        Sample(gpr(3, 0.5), messy, 2),
        Sample(gpr(0), ring, 2),
        Sample(gpr(3, 0.1), ring, 2, row_stochastic=True),
    ],
    citation="Chien, Peng, Li and Milenkovic, Adaptive Universal Generalized PageRank Graph Neural Network, ICLR 2021",
)
def gpr(k: int = 10, alpha: float = 0.1) -> Parts:
    """GPRGNN's propagation: generalised PageRank, with one learned coefficient per power of S.

    Equation: Y = sum_{t=0..k} theta_t S^t X, S = D^-1/2 (A + I) D^-1/2.

    Meaning: initialised as personalised PageRank (appnp): theta_t = alpha (1 - alpha)^t and theta_k = (1 - alpha)^k.
    Learned signs can turn the low-pass filter into a high-pass one, as heterophilous graphs require.

    In the family: one tap, a learned polynomial of gcn's S; W = I.

    Traps: theta is the paper's gamma, and `temp` in its code.

    Args: k: number of steps. alpha: restart probability of the initial theta.

    Shapes: x (*b, n, c) -> (*b, n, c); theta (k + 1,).

    Raises:
        ValueError: if k < 0 or alpha is outside of [0, 1].

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(gpr(2, 0.5)).theta
    Parameter containing:
    tensor([0.5000, 0.2500, 0.2500], requires_grad=True)
    """
    start = (*(_share(alpha) * (1 - alpha) ** t for t in range(steps(k))), (1 - alpha) ** k)
    return Filter(Powers(Recurrence.monomial(k + 1), "adjacency+loops"), tuple(map(float, start))), Fixed(), False


DIRECTED = 100.0  # largest t on directed graphs, where rounding errors grow like exp(0.42 t) and then dominate
LONGEST = 1e8  # largest t; its series has about 100,000 terms


def heat_series(t: float) -> tuple[float, ...]:
    """e^(-t) (I_0(t), -2 I_1(t), 2 I_2(t), ...): the Chebyshev coefficients of exp(-t (1 + z)), down to 1e-200.

    The ratios of the Bessel functions come from their backward recurrence, I_k / I_(k-1) = 1 / (2 k / t + I_(k+1) /
    I_k), each between 0 and 1. Their products are normalised at z = -1, where the absolute terms sum to 1.

    >>> [round(c, 6) for c in heat_series(1.0)[:3]]
    [0.46576, -0.415821, 0.099878]
    """
    top = int(min(4 * t, 32 * math.sqrt(t))) + 60
    ratios = [0.0]
    for k in range(top, 0, -1):
        ratios.append(t / (2 * k + t * ratios[-1]))
    values = [1.0, *accumulate(ratios[:0:-1], operator.mul)]
    values = values[:1] + [2 * v for v in values[1:]]
    whole = math.fsum(values)
    shares = [v / whole for v in values]
    return tuple(-c if k % 2 else c for k, c in enumerate(shares) if c > 1e-200)


def heat_error(t: float, k: int) -> float:
    """The largest error of `heat(t, k)` over all frequencies in [0, 2], attained at frequency 0.

    Equation: 2 e^(-t) sum_{j>k} I_j(t), the sum of the omitted terms; on an undirected graph it bounds the operator
    norm of the error.

    >>> heat_error(1.0, 2) > heat_error(1.0, 6) > heat_error(1.0, 14) > 0
    True
    """
    return math.fsum(abs(c) for c in heat_series(t)[k + 1 :])


def heat_degree(t: float) -> int:
    """The degree at which the truncation error is below float64 precision; up to t = DIRECTED on directed graphs too.

    Equation: the smallest k with 2 e^(-t) sum_{j>k} (1 + sqrt(2))^j I_j(t) < 1e-15. The eigenvalues of L - I lie in the
    unit disk, where |T_j| <= (1 + sqrt(2))^j; on the interval [-1, 1] of undirected graphs |T_j| <= 1, which is the
    bound beyond t = DIRECTED.

    >>> heat_degree(1.0)
    18
    """
    rest, series = 0.0, heat_series(t)
    for k in range(len(series) - 1, 0, -1):
        rest += abs(series[k]) * (1 + math.sqrt(2)) ** (k if t <= DIRECTED else 0)
        if rest > 1e-15:
            return k
    return 0


@register(
    samples=lambda heat: [
        Sample(heat(0.7), weighted, 2),
        Sample(heat(2.0, k=5), messy, 3),
        Sample(heat(0.5), ring, 1, row_stochastic=True),
    ],
    citation="Kondor and Lafferty, Diffusion Kernels on Graphs and Other Discrete Structures, ICML 2002; "
    "Gasteiger, Weissenberger and Guennemann, Diffusion Improves Graph Learning, NeurIPS 2019",
)
def heat(t: float = 1.0, k: int | None = None) -> Parts:
    """The heat kernel: a signal after diffusion for a time t.

    Equation: Y = exp(-t L) X, L = I - D^-1/2 A D^-1/2, by k steps of the Chebyshev series
    exp(-t L) = e^(-t) (I_0(t) + 2 sum_j (-1)^j I_j(t) T_j(L - I)), I_j the modified Bessel functions.

    Meaning: the solution of dX/dt = -L X; frequency lambda is damped by exp(-t lambda).

    In the family: one tap, a fixed polynomial of the Laplacian; W = I.

    Traps: on undirected graphs the error is at most `heat_error(t, k)`. On directed graphs that bound does not hold,
    more terms are needed (the default includes them), and rounding errors grow like exp(0.42 t): keep t small (20 is
    fine, 40 overflows in single precision, above 100 is an error). Self-loops are dropped. An isolated node has L = 1
    and is damped by exp(-t). Kondor and Lafferty take L = D - A; Gasteiger et al. add self-loops of weight 1 to the
    graph first, as `ppr` does.

    Args: t: time, > 0. k: degree; None for float64 precision, see `heat_degree`.

    Shapes: x (*b, n, c) -> (*b, n, c).

    Raises:
        ValueError: if t is not in (0, 1e8], k < 0, or the graph is directed and t > 100.

    >>> import torch
    >>> from gconv import GConv
    >>> y = GConv(heat(3.0))(torch.ones(7, 1), ring(7))
    >>> torch.allclose(y, torch.ones(7, 1))  # heat is kept on a regular graph
    True
    """
    if not 0 < t < math.inf:
        raise ValueError(f"t is a time and must be a positive number, but it is {t!r}.")
    if t > LONGEST:
        raise ValueError(f"t can be at most {LONGEST:g}, a series of about 100,000 terms, but it is {t!r}.")
    series = heat_series(t)
    k = heat_degree(t) if k is None else k
    row = (*series, *(0.0,) * max(0, steps(k) + 1 - len(series)))[: k + 1]
    powers = Powers(Recurrence.chebyshev(k + 1), "laplacian", "sym", 2.0, (row,))
    return OnUndirected(powers, "heat with t <= 100") if t > DIRECTED else powers, Fixed(), False


@dataclass(frozen=True)
class OnUndirected(GraphStructure):
    """Polynomials that approximate another function on the interval [-1, 1]; they require a symmetric matrix."""

    powers: Powers
    instead: str = "appnp, a power series,"

    @property
    def taps(self) -> int:
        return self.powers.taps

    def basis(self, domain: Graph, theta: Theta, call: Call) -> Basis:
        if not domain.is_undirected:
            raise ValueError(
                "This series converges on undirected graphs, but the graph is directed (an edge lacks its reverse of "
                f"the same weight); {self.instead} runs on both."
            )
        return Polynomial(self.powers.L(domain, call.x), self.powers.recurrence, self.powers.combine)


@register(
    samples=lambda ppr: [
        Sample(ppr(0.3), weighted, 2),
        Sample(ppr(0.5, k=4), weighted, 3),
        Sample(ppr(0.2), ring, 1, row_stochastic=True),
    ],
    citation="Gasteiger, Weissenberger and Guennemann, Diffusion Improves Graph Learning, NeurIPS 2019",
)
def ppr(alpha: float = 0.15, k: int | None = None) -> Parts:
    """Personalised PageRank in the limit of infinitely many steps: a random walk with restart probability alpha.

    Equation: Y = alpha (I - (1 - alpha) S)^-1 X, S = D^-1/2 (A + I) D^-1/2, by k steps of the Chebyshev series
    alpha / sqrt(1 - q^2) (1 + 2 sum_j r^j T_j(S)), q = 1 - alpha, r = q / (1 + sqrt(1 - q^2)).

    Meaning: appnp with k = infinity. Each term of appnp's power series reduces the error by a factor q, each term of
    this series by r: 0.56 instead of 0.85 at alpha = 0.15, where 59 terms give float64 precision.

    In the family: one tap, a fixed polynomial of gcn's S; W = I.

    Traps: undirected graphs only. The error is at most 2 alpha / sqrt(1 - q^2) r^(k+1) / (1 - r).

    Args: alpha: restart probability. k: degree; None for float64 precision.

    Shapes: x (*b, n, c) -> (*b, n, c).

    Raises:
        ValueError: if alpha is outside of [0.001, 1], k < 0, or the graph is directed.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(ppr(0.2))(torch.ones(7, 1), ring(7)).flatten()[:3]
    tensor([1.0000, 1.0000, 1.0000])
    """
    q = 1 - _share(alpha, 0.001)
    root = math.sqrt(1 - q * q)
    r = q / (1 + root)
    if k is None:
        k = 0
        while 2 * alpha / root * r ** (k + 1) / (1 - r) > 1e-15:
            k += 1
    row = tuple((2 if j else 1) * alpha / root * r**j for j in range(steps(k) + 1))
    return OnUndirected(Powers(Recurrence.chebyshev(k + 1), "adjacency+loops", combine=(row,))), Fixed(), False
