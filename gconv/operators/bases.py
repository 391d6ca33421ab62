"""Learned filters in a basis of polynomials: Bernstein, Chebyshev interpolation, Jacobi."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gconv.basis import Polynomial, Recurrence
from gconv.call import Call
from gconv.domains import Graph
from gconv.mixing import Dense, Fixed, Grouped
from gconv.operators.polynomial import MAX_STEPS, Powers, at_most
from gconv.operators.shapes import messy, ring, weighted
from gconv.spec import GraphStructure, Parameter, Parts, Sample, Theta, register

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Filter(GraphStructure):
    """One learned polynomial sum_k c_k p_k(L) with c = theta M, or relu(theta) M; M = I without `change`.

    Args:
        powers: the matrix and the family p_k.
        start: the initial theta.
        change: M, the change of basis: one row per parameter, one column per polynomial.
        positive: whether theta is clamped at 0 from below.
    """

    powers: Powers
    start: Numbers
    change: tuple[Numbers, ...] | None = None
    positive: bool = False

    kind = "learned"
    taps = 1

    def parameters(self) -> dict[str, Parameter]:
        return {"theta": Parameter((len(self.start),), "constant", self.start)}

    def basis(self, domain: Graph, theta: Theta, call: Call) -> Polynomial:
        c = theta["theta"].to(call.x.dtype)
        c = c.relu() if self.positive else c
        if self.change is not None:
            c = c @ torch.tensor(self.change, dtype=call.x.dtype, device=call.x.device)
        return Polynomial(self.powers.L(domain, call.x), self.powers.recurrence, c.unsqueeze(0))


MAX_DEGREE = 2_000  # of filters defined by values at nodes, whose change of basis is a dense matrix


def steps(k: int, least: int = 0, most: int = MAX_STEPS) -> int:
    """k, a number of steps, after validation.

    Raises:
        ValueError: if it is not an integer from `least` to `most`.
    """
    if not isinstance(k, int) or isinstance(k, bool) or k < least:
        raise ValueError(f"k counts steps and must be an integer >= {least}, but it is {k!r}.")
    return at_most("k", k, most)


def nodes(k: int) -> Tensor:
    """The k + 1 Chebyshev nodes, ascending: the zeros of T_(k+1), in float64.

    >>> nodes(1)
    tensor([-0.7071,  0.7071], dtype=torch.float64)
    """
    return -torch.cos((torch.arange(k + 1, dtype=torch.float64) + 0.5) * (math.pi / (k + 1)))


def interpolation(k: int) -> Tensor:
    """The matrix (k + 1, k + 1) that maps values at the Chebyshev nodes to the coefficients c of sum_t c_t T_t.

    Equation: c_t = (2 - [t = 0]) / (k + 1) sum_j f(x_j) T_t(x_j), exact if f is a polynomial of degree <= k.

    >>> x = nodes(2)
    >>> ((2 * x**2 - 1) @ interpolation(2)).round(decimals=6).abs()  # T_2 itself
    tensor([0., 0., 1.], dtype=torch.float64)
    """
    place = torch.arange(k, -1, -1, dtype=torch.float64) + 0.5
    T = torch.cos(place.unsqueeze(1) * torch.arange(k + 1, dtype=torch.float64) * (math.pi / (k + 1)))
    T[:, 0] = 0.5
    return T * (2 / (k + 1))


def _rows(matrix: Tensor) -> tuple[Numbers, ...]:
    return tuple(tuple(row) for row in matrix.tolist())


def _frequencies(k: int) -> Powers:
    """Chebyshev polynomials of L - I, with L the symmetric Laplacian: its spectrum [0, 2] is shifted to [-1, 1]."""
    return Powers(Recurrence.chebyshev(k + 1), "laplacian", "sym", 2.0)


@register(
    samples=lambda bernstein: [
        Sample(bernstein(4), weighted, 2),
        Sample(bernstein(3), messy, 3),
        Sample(bernstein(0), ring, 2),
    ],
    citation="He, Wei, Huang and Xu, BernNet: Learning Arbitrary Graph Spectral Filters via Bernstein Approximation, "
    "NeurIPS 2021",
)
def bernstein(k: int = 10) -> Parts:
    """BernNet's propagation: a non-negative filter parametrised by its values along the spectrum.

    Equation: Y = sum_{t=0..k} relu(theta_t) C(k, t) / 2^k (2 I - L)^(k-t) L^t X, L = I - D^-1/2 A D^-1/2.

    Meaning: theta_t is approximately the filter's response at frequency 2 t / k. It is initialised to ones, which pass
    every signal unchanged. The response is non-negative, as the paper's optimisation problem requires.

    In the family: one tap, a learned polynomial of the Laplacian; W = I. A fixed matrix in float64 converts the
    Bernstein basis to Chebyshev's, so that a recurrence of k products replaces the k (k + 3) / 2 of the definition.

    Traps: self-loops are dropped, and the Laplacian is normalised by out-degrees (PyG's, which the paper's code calls).

    Args: k: degree; k + 1 parameters.

    Shapes: x (*b, n, c) -> (*b, n, c); theta (k + 1,).

    Raises:
        ValueError: if k < 0.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(bernstein(4))(torch.ones(7, 1), ring(7)).detach().flatten()[:3]
    tensor([1., 1., 1.])
    """
    share, x = torch.arange(steps(k, 0, MAX_DEGREE) + 1, dtype=torch.float64), (1 + nodes(k)) / 2
    ways = torch.tensor([math.log(math.comb(k, t)) for t in range(k + 1)], dtype=torch.float64)
    logs = ways.unsqueeze(1) + torch.outer(share, x.log()) + torch.outer(k - share, (-x).log1p())
    values = logs.exp()  # (parameter, node)
    return Filter(_frequencies(k), (1.0,) * (k + 1), _rows(values @ interpolation(k)), positive=True), Fixed(), False


@register(
    samples=lambda chebnetii: [
        Sample(chebnetii(4), weighted, 2),
        Sample(chebnetii(3), messy, 3),
        Sample(chebnetii(0), ring, 2),
    ],
    citation="He, Wei and Wen, Convolutional Neural Networks on Graphs with Chebyshev Approximation, Revisited, "
    "NeurIPS 2022",
)
def chebnetii(k: int = 10) -> Parts:
    """ChebNetII's propagation: the filter that interpolates learned values at the Chebyshev nodes.

    Equation: Y = sum_{t=0..k} c_t T_t(L - I) X, c_t = (2 - [t = 0]) / (k + 1) sum_j relu(theta_j) T_t(x_j),
    x_j the k + 1 zeros of T_(k+1), ascending.

    Meaning: theta_j is exactly the response at frequency 1 + x_j. In between the filter is the interpolating
    polynomial, whose coefficients decay as those of a smooth function do; free Chebyshev coefficients need not. theta
    is initialised to ones, which pass every signal unchanged.

    In the family: one tap, a learned polynomial of the Laplacian; W = I.

    Traps: between the nodes the response may be negative, unlike bernstein's. Self-loops are dropped, the Laplacian is
    normalised by out-degrees, and lambda_max is taken as 2 (all as in the paper's code).

    Args: k: degree; k + 1 parameters.

    Shapes: x (*b, n, c) -> (*b, n, c); theta (k + 1,).

    Raises:
        ValueError: if k < 0.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(chebnetii(4))(torch.zeros(7, 3), ring(7)).shape
    torch.Size([7, 3])
    """
    change = _rows(interpolation(steps(k, 0, MAX_DEGREE)))
    return Filter(_frequencies(k), (1.0,) * (k + 1), change, positive=True), Fixed(), False


def _jacobi(k: int, a: float, b: float) -> Recurrence:
    rows = [((a + b + 2) / 2, (a - b) / 2, 0.0)]
    for t in range(2, k + 1):
        s = 2 * t + a + b
        below = 2 * t * (t + a + b) * (s - 2)
        rows.append(
            (
                (s - 1) * s / (2 * t * (t + a + b)),
                (s - 1) * (a * a - b * b) / below,
                2 * (t + a - 1) * (t + b - 1) * s / below,
            )
        )
    return Recurrence("jacobi", tuple(rows[:k]))


@register(
    samples=lambda jacobi: [
        Sample(jacobi(3, k=3), weighted, 3),
        Sample(jacobi(2, 4, k=4, a=0.5, b=-0.5, bias=True), messy, 2),
        Sample(jacobi(2, k=1, a=-0.5, b=-0.5), messy, 2),
        Sample(jacobi(1, k=0), ring, 1),
    ],
    citation="Wang and Zhang, How Powerful are Spectral Graph Neural Networks, ICML 2022",
)
def jacobi(
    in_channels: int, out_channels: int | None = None, k: int = 10, a: float = 1.0, b: float = 1.0, bias: bool = False
) -> Parts:
    """JacobiConv's filter: Jacobi polynomials of the adjacency, with one coefficient per degree and channel.

    Equation: Y = sum_{t=0..k} P_t^(a,b)(S) X W_t, S = D^-1/2 A D^-1/2, W_t diagonal, P_0 = 1,
    P_1 = (a - b) / 2 + (a + b + 2) / 2 z, P_t = (alpha_t z + beta_t) P_{t-1} - gamma_t P_{t-2}.

    Meaning: the P_t are orthogonal under the weight (1 - z)^a (1 + z)^b; if it matches the density of the signal over
    the spectrum, the coefficients converge fast. a = b = -1/2 is Chebyshev's basis up to scale, a = b = 0 Legendre's.

    In the family: k + 1 taps, polynomials of one sparse matrix; W depthwise (one filter per channel), or dense.

    Traps: degrees are sums of edge weights (the paper's code counts edges) over the incoming edges, as in gcn; no
    self-loops are added. The paper parametrises its coefficients by products of tanh; here they are free parameters.
    The paper's code has -beta_t for t >= 2, which is another polynomial if a and b differ.

    Args: out_channels: None for the paper's diagonal W, a number for a dense one. k: degree. a, b: both > -1.

    Shapes: x (*b, n, i) -> (*b, n, i), or (*b, n, o) with out_channels.

    Raises:
        ValueError: if k < 0, a or b is not above -1, or the polynomials of that degree exceed 1e30 on [-1, 1].

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(jacobi(3, k=4))(torch.zeros(7, 3), ring(7)).shape, GConv(jacobi(3, 5))(torch.zeros(7, 3), ring(7)).shape
    (torch.Size([7, 3]), torch.Size([7, 5]))
    """
    if not (a > -1 and b > -1):
        raise ValueError(f"Jacobi polynomials are orthogonal for a > -1 and b > -1, but a = {a!r} and b = {b!r}.")
    taps = steps(k) + 1
    top = min(max(a, b), 1e6)
    largest = math.lgamma(k + top + 1) - math.lgamma(k + 1) - math.lgamma(top + 1)
    if max(a, b) > 1e6 or largest > math.log(1e30):  # P_k at the ends of the spectrum, C(k + a, k)
        raise ValueError(
            f"Jacobi polynomials of degree {k} with a = {a!r} and b = {b!r} exceed 1e30; take smaller ones."
        )
    if out_channels is None:
        mixing: Dense | Grouped = Grouped(taps, in_channels, in_channels, in_channels)
    else:
        mixing = Dense(taps, in_channels, out_channels)
    return Powers(_jacobi(k, float(a), float(b)), "adjacency"), mixing, bias
