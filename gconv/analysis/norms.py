"""The operator norm and certified upper bounds."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from gconv.analysis.calls import map_of
from gconv.analysis.explicit import matrix
from gconv.analysis.fourier import Frames, fourier_blocks, kernel_weight, ring_symbol
from gconv.analysis.numbers import check_finite, is_count, is_positive, spectral_norm, vector_norm, widen
from gconv.arguments import checked
from gconv.basis import Shifts
from gconv.linear import Block, Composed, LinearMap, Map, Scaled, Sum

SITES = 1000  # number of nodes up to which eigenvalues are cheaper than Lanczos iterations


@checked
def norm(
    A: Map | nn.Module, tol: float = 1e-8, steps: int = 300, *, domain: Any = None, x: Tensor | None = None
) -> float:
    """The largest singular value ||A||.

    Equation: ||A|| = max over x of |A x| / |x|. If A is block diagonal in a Fourier basis (grids with circular padding;
    polynomials of a symmetric matrix, up to 1000 nodes), it is computed exactly as the largest norm of the blocks.
    Otherwise by Lanczos bidiagonalisation, A V = U B with B bidiagonal: the norm of B increases to that of A, and the
    iteration stops when |A^T u - s v| <= tol s.

    Traps: Lanczos gives a lower bound. Its error is at most tol s, and of the order of tol^2 s if the largest singular
    value is well separated; `norm_bound` is an upper bound.

    Cost: see `singular_values`; otherwise two products and two stored vectors per step.

    Args:
        A: any map, or a layer. It is converted to double precision first.
        tol: tolerance of the residual, relative to the norm.
        steps: maximal number of iterations.
        domain, x: for a layer, its Grid or graph, and the signal at which adaptive structure is frozen.

    Raises:
        TypeError: if the domain of a layer is missing.
        ValueError: if tol or steps is not positive, or the map contains NaN or infinity.

    >>> from gconv import GConv, Grid
    >>> from gconv.operators import avg_pool2d
    >>> round(norm(GConv(avg_pool2d(2)).at(Grid((8, 8)))), 6)
    0.5

    Source: Golub and Kahan, Calculating the Singular Values and Pseudo-Inverse of a Matrix, 1965.
    """
    A = map_of(A, "norm", domain, x)
    if not is_positive(tol) or not is_count(steps):
        raise ValueError(f"tol must be positive and steps a positive integer, but they are {tol!r} and {steps!r}.")
    check_finite(A, "norm")
    exact = exact_norm(A)
    return _lanczos(widen(A), tol, steps) if exact is None else exact


def exact_norm(A: Map) -> float | None:
    """The norm from Fourier blocks; None if A is not block diagonal in a Fourier basis."""
    if not min(A.shape):
        return 0.0
    blocks = fourier_blocks(A, Frames(SITES))
    return None if blocks is None else spectral_norm(blocks.values)


def _lanczos(A: Map, tol: float, steps: int) -> float:
    generator = torch.Generator(device="cpu").manual_seed(0)
    start = torch.randn(A.sites[0], A.o, generator=generator, dtype=torch.float64).to(A.device, A.dtype)
    with torch.no_grad():
        v = adjoint(A, start)  # orthogonal to the null space of A
    if not bool(v.any()):
        return 0.0
    v, value, beta = v / vector_norm(v), 0.0, 0.0
    left: list[Tensor] = []
    right, diagonal, superdiagonal = [v.flatten()], list[float](), list[float]()
    with torch.no_grad():
        for _ in range(min(steps, *A.shape)):
            u = _orthogonal((A @ right[-1].view_as(v)).flatten(), left)
            diagonal.append(vector_norm(u))
            if diagonal[-1] == 0:
                break
            left.append(u / diagonal[-1])
            w = _orthogonal(adjoint(A, left[-1].view(A.sites[0], A.o)).flatten(), right)
            beta = vector_norm(w)
            B = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
            B += torch.diag(torch.tensor(superdiagonal, dtype=torch.float64), 1)
            P, singular, _ = torch.linalg.svd(B)
            value = float(singular[0])
            if beta * abs(float(P[-1, 0])) <= tol * value:
                break
            superdiagonal.append(beta)
            right.append(w / beta)
    return value


def adjoint(A: Map, y: Tensor) -> Tensor:
    """A^* y, the conjugate transpose applied to y."""
    return (A.T @ y.conj()).conj() if y.is_complex() else A.T @ y


def _orthogonal(x: Tensor, basis: list[Tensor]) -> Tensor:
    """x orthogonalised against an orthonormal basis by classical Gram-Schmidt with one reorthogonalisation."""
    if basis:
        Q = torch.stack(basis)
        for _ in range(2):
            x = x - Q.mT @ (Q.conj() @ x)
    return x


@checked
def norm_bound(A: Map | nn.Module, *, domain: Any = None, x: Tensor | None = None) -> float:
    """A certified upper bound of ||A||, up to rounding.

    Equation: the smallest of the bounds that apply:
        the exact norm, if A is block diagonal in a Fourier basis
        ||pad|| ||C|| for shifts on a grid, with C the circular map on the padded grid: a submatrix of a circulant has
            at most its norm (||pad|| = 1 for zero padding)
        sqrt(||M||_1 ||M||_inf), Schur's test, from the sparse matrix M
        ||A|| + ||B|| for a sum, ||A|| ||B|| for a product

    Cost: an FFT and a decomposition per frequency on grids; the sparse matrix otherwise.

    Args:
        A: any map, or a layer.
        domain, x: for a layer, its Grid or graph, and the signal at which adaptive structure is frozen.

    Raises:
        TypeError: if the domain of a layer is missing.
        ValueError: if the map contains NaN or infinity.

    >>> from gconv import GConv, Grid
    >>> from gconv.operators import conv2d
    >>> A = GConv(conv2d(2, 3, 3, padding=1)).at(Grid((8, 8)))
    >>> norm(A) <= norm_bound(A)
    True

    Source: Schur's test; for grids, the interlacing of singular values of a submatrix.
    """
    A = map_of(A, "norm_bound", domain, x)
    check_finite(A, "norm_bound")
    return _bound(A)


def _bound(A: Map) -> float:
    exact = exact_norm(A)
    if exact is not None:
        return exact
    bounds = [_schur(widen(A))]
    if isinstance(A, Sum):
        bounds.append(sum(_bound(B) for B in A.terms))
    elif isinstance(A, Composed):
        bounds.append(math.prod(_bound(B) for B in A.factors))
    elif isinstance(A, Scaled):
        c = A.c.detach() if isinstance(A.c, Tensor) else A.c
        bounds.append(abs(complex(c)) * _bound(A.A))
    elif isinstance(A, Block):
        bounds.append(math.hypot(*(_bound(B) for B in A.maps)))
    elif isinstance(A, LinearMap) and isinstance(A.S, Shifts):
        ring = _enlarged(A)
        bounds += [] if ring is None else [ring]
    return min(bounds)


def _schur(A: Map) -> float:
    M = abs(matrix(A, "sparse"))
    return math.sqrt(float(M.sum(0).max())) * math.sqrt(float(M.sum(1).max())) if M.nnz else 0.0


def _enlarged(A: LinearMap) -> float | None:
    """||pad|| times the norm of the circular map on the padded grid, enlarged to a multiple of the stride."""
    S, W = A.S, kernel_weight(A)
    assert isinstance(S, Shifts)
    if W is None:
        return None
    ring = tuple(-(-n // s) for n, s in zip(S.padded, S.stride, strict=True))
    symbol = ring_symbol(S, W.mT if S.transposed else W, ring)
    reads = 1.0
    if S.mode != "zeros" and S.is_padded:
        for _, place in S._border_maps(A.device):
            reads *= float(place.bincount().max())
    return math.sqrt(reads) * spectral_norm(symbol)
