"""Functions of a symmetric matrix, f(A) = U diag(f(lambda)) U^T, and their derivatives.

The derivative of eigenvectors divides by differences of eigenvalues and is infinite where two are equal, as on every
graph with symmetries. The derivative of f(A) is finite (Daleckii and Krein): with E = U^T dA U,

    U^T df(A) U  =  F * E,                          F_ij = f[l_i, l_j]
    second order:   sum_m f[l_i, l_m, l_j] E_im E_mj

where f[a, b] = (f(a) - f(b)) / (a - b), with f[a, a] = f'(a), and f[a, b, c] = (f[a, b] - f[b, c]) / (a - c) are
divided differences. U and lambda are treated as constants; a matrix that is zero in value, `tangent`, gives autograd
these derivatives.

Independent multipliers for each eigenvector do not define a function of A if eigenvalues repeat, because the
eigenvectors of a repeated eigenvalue are arbitrary. A `Response` is therefore a function of the eigenvalue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.func import grad

from gconv.errors import Differentiable
from gconv.kernels.transforms import derivatives, readable, transformed, wrapped

NEAR = 1e-4  # for eigenvalues closer than this, second divided differences are computed from derivatives

_solver = torch.linalg.eigh


def eigh(A: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (*b, n) ascending, and eigenvectors (*b, n, n) as columns; all eigenproblems are solved here."""
    values, vectors = _solver(A)
    return values, vectors


class Response(Protocol):
    """k functions of a real number, and their first divided differences, computed without cancellation."""

    def values(self, at: Tensor) -> Tensor:
        """(k, *at.shape)"""
        ...

    def slopes(self, a: Tensor, b: Tensor) -> Tensor:
        """(k, *shape) f[a, b], with f' where a = b; symmetric, differentiable in b."""
        ...


def change(A: Tensor) -> Tensor | None:
    """A - A.detach(): zero in value, with the derivatives of A; None if A is a constant."""
    return A - A.detach() if A.requires_grad or wrapped(A) else None


def tangent(E: Tensor, at: Tensor, response: Response) -> Tensor:
    """(k, n, n), zero in value, with the first and second derivatives of U^T f(A) U in A.

    Third derivatives are missing under torch.func and forward mode; in autograd they raise an error.

    Args:
        E: (n, n) U^T (A - A.detach()) U.
        at: (n,) the eigenvalues, as constants.
        response: f.
    """
    first = response.slopes(at.unsqueeze(1), at) * E
    if not transformed():

        def second(G: Tensor, V: Tensor) -> Tensor:
            found = torch.zeros_like(V)
            for m, differences in enumerate(_second_differences(response, at)):
                P = (G * differences).sum(0)  # (i, j)
                found[m] += V[:, m] @ P
                found[:, m] += P @ V[m]
            return found

        moved: Tensor = first + Quadratic.apply(E, first.shape, second)
        return moved
    if derivatives(E) < 2 or not len(at):
        return first
    differences = torch.stack(list(_second_differences(response, at)), -2)  # (k, i, m, j)
    return first + torch.einsum("kimj,im,mj->kij", differences, E, E)


def _second_differences(response: Response, at: Tensor) -> Iterator[Tensor]:
    """For each m the second divided differences f[l_i, l_m, l_j] (k, i, j): those of y -> f[l_m, y] at l_i and l_j."""
    gap = at.unsqueeze(1) - at
    near = gap.abs() < NEAR
    one = response.slopes(at.unsqueeze(1), at)  # (k, m, i)
    if readable(at):
        pairs = near.nonzero().unbind(1)
    else:
        index = torch.arange(len(at), device=at.device)
        pairs = index.repeat_interleave(len(at)), index.repeat(len(at))
    middle = (at[pairs[0]] + at[pairs[1]]) / 2
    offset = (at[pairs[0]] - at[pairs[1]]) / 12**0.5
    nodes = torch.stack([middle - offset, middle + offset]).unsqueeze(1).expand(2, len(at), -1)  # Gauss, 2 points
    slopes = [grad(lambda y, k=k: response.slopes(at.unsqueeze(1), y)[k].sum()) for k in range(len(one))]
    close = torch.stack([slope(nodes).mean(0) for slope in slopes])  # (k, m, pair)
    divisor = torch.where(near, 1.0, gap)
    for m in range(len(at)):
        quotient = (one[:, m].unsqueeze(-1) - one[:, m].unsqueeze(-2)) / divisor
        if not readable(at):
            yield torch.where(near, close[:, m].unflatten(-1, near.shape), quotient)
            continue
        yield quotient.index_put((torch.arange(len(one), device=at.device).unsqueeze(1), *pairs), close[:, m])


class Quadratic(Differentiable):
    """A quadratic form q(E) of a tensor E that is zero: zero, as is its gradient; its second derivative is not.

    Args:
        E: zero in value.
        shape: of q(E).
        second: second(G, V) is the derivative, in the direction V, of the gradient of <G, q(E)>. It is called only if q
            is differentiated twice.
    """

    what = "a function of a matrix"

    @staticmethod
    def forward(ctx: Any, E: Tensor, shape: tuple[int, ...], second: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(E)
        ctx.second = second
        return E.new_zeros(shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (E,) = ctx.saved_tensors
        return (_Again.apply(E, gradients[0], ctx.second) if torch.is_grad_enabled() else None), None, None


class _Again(Differentiable):
    """The backward pass of `Quadratic`: linear in E, and so zero at E = 0; its derivative is not zero."""

    what = "a function of a matrix"

    @staticmethod
    def forward(ctx: Any, E: Tensor, G: Tensor, second: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(G)
        ctx.second = second
        return torch.zeros_like(E)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (G,), (V,) = ctx.saved_tensors, gradients
        with torch.no_grad():
            found = ctx.second(G, V)
        return _Last.apply(found, V), None, None


class _Last(Differentiable):
    """A second derivative, which cannot be differentiated again."""

    what = "a function of a matrix"

    @staticmethod
    def forward(ctx: Any, found: Tensor, V: Tensor) -> Tensor:
        return found.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise NotImplementedError(
            "The third derivative in the edge weights through eigenvalues or eigenvectors is not implemented; filters "
            "that are polynomials of the Laplacian (cheb with lambda_max=2, heat, wavelet(order=...)) have all."
        )


def shares(a: Tensor, b: Tensor, edges: Tensor, width: float = 1e-10) -> list[Tensor]:
    """The fractions of the interval from a to b that lie between successive `edges`; for a = b those of a small one.

    For divided differences of piecewise functions: f[a, b] is the mean of the divided differences of the pieces,
    weighted by these fractions. A point within `width` of the first or last edge counts as inside, and one at another
    edge as half on either side, so that the result does not depend on the rounding of an eigenvalue.

    >>> [float(s) for s in shares(torch.tensor(0.5), torch.tensor(2.0), torch.tensor([0.0, 1.0, 2.0, 3.0]))]
    [0.3333333432674408, 0.6666666865348816, 0.0]
    """
    first, last = edges[0], edges[-1]
    for edge in edges:
        a, b = (torch.where((t - edge).abs() < width / 10, edge + (t - t.detach()), t) for t in (a, b))
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    near = high - low < width
    middle = ((low + high) / 2).detach()
    middle = torch.where((middle - first).abs() < width, first + width / 2, middle)
    middle = torch.where((middle - last).abs() < width, last - width / 2, middle)
    low, high = torch.where(near, middle - width / 2, low), torch.where(near, middle + width / 2, high)
    start, end = torch.where(low < first - width, first, -torch.inf), torch.where(high > last + width, last, torch.inf)
    bounds = [start, *edges[1:-1], end]
    found = []
    for left, right in pairwise(bounds):
        part = torch.minimum(torch.maximum(high, left), right) - torch.maximum(torch.minimum(low, right), left)
        found.append(part / (high - low))
    return found


def exponential(a: Tensor, b: Tensor) -> Tensor:
    """The divided difference of exp(-x): -exp(-min) (1 - exp(-d)) / d with d = |a - b|."""
    d = (a - b).abs()
    small = d < 0.05
    x = torch.where(small, d, 0.0)
    series = 1 - x / 2 * (1 - x / 3 * (1 - x / 4 * (1 - x / 5 * (1 - x / 6 * (1 - x / 7 * (1 - x / 8))))))
    ratio = torch.where(small, series, -torch.expm1(-d) / torch.where(small, 1.0, d))
    return -torch.exp(-torch.minimum(a, b)) * ratio
