"""The matrix of an operator, its norm, its adjoint and what it can see."""

from __future__ import annotations

import torch
from torch import Tensor

from gconv.linear import LinearMap
from gconv.lowering import dense


def matrix(A: LinearMap) -> Tensor:
    """The matrix of A, (m o, n i): sites outermost, channels innermost. Differentiable in W; n i columns of memory.

    Equation: M = sum_k S_k (x) W_k^T.

    >>> from gconv import GConv, Grid
    >>> from gconv.operators import avg_pool1d
    >>> matrix(GConv(avg_pool1d(2)).at(Grid((4,))))
    tensor([[0.5000, 0.5000, 0.0000, 0.0000],
            [0.0000, 0.0000, 0.5000, 0.5000]])
    """
    return dense.matrix(A.S, A.mixing, A.W, A.i, A.dtype, A.device)


def norm(A: LinearMap, tol: float = 1e-8, steps: int = 300) -> float:
    """The largest singular value ||A||, by Lanczos bidiagonalisation; no matrix is formed.

    Equation: A V = U B with B bidiagonal; the norm of B rises to that of A, and stops where ||A^T u - s v|| <= tol s.
    The error of s is then at most tol s, and of the order of tol^2 s where the largest singular value stands alone.

    Args:
        A: the map.
        tol: of the residual.
        steps: at most; two products each, and one vector of each side kept.
    """
    generator = torch.Generator(device="cpu").manual_seed(0)
    v = torch.randn(A.sites[1], A.i, generator=generator, dtype=torch.float64).to(A.device, A.dtype)
    v, value, beta = v / v.norm(), 0.0, 0.0
    left: list[Tensor] = []
    right, diagonal, beside = [v.flatten()], list[float](), list[float]()
    with torch.no_grad():
        for _ in range(min(steps, *A.shape)):
            u = _orthogonal((A @ right[-1].view_as(v)).flatten(), left)
            diagonal.append(float(u.norm()))
            if diagonal[-1] == 0:
                break
            left.append(u / diagonal[-1])
            w = _orthogonal((A.T @ left[-1].view(A.sites[0], A.o)).flatten(), right)
            beta = float(w.norm())
            B = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
            B += torch.diag(torch.tensor(beside, dtype=torch.float64), 1)
            P, singular, _ = torch.linalg.svd(B)
            value = float(singular[0])
            if beta * abs(float(P[-1, 0])) <= tol * value:
                break
            beside.append(beta)
            right.append(w / beta)
    return value


def _orthogonal(x: Tensor, basis: list[Tensor]) -> Tensor:
    """x without its part in the span of an orthonormal basis; twice, which is enough."""
    if basis:
        Q = torch.stack(basis)
        for _ in range(2):
            x = x - Q.mT @ (Q @ x)
    return x


def adjoint_gap(A: LinearMap, seed: int = 0) -> float:
    """|<A x, y> - <x, A^T y>| / (|A x| |y|) for random x and y: zero if A.T is the adjoint of A.

    Trap: it says nothing of A itself; a wrong map with a matching transpose passes.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(A.device, A.dtype)  # noqa: E731
    x, y = draw(A.sites[1], A.i), draw(A.sites[0], A.o)
    with torch.no_grad():
        forth, back = A @ x, A.T @ y
        gap = (forth * y).sum() - (x * back).sum()
        return float(gap.abs() / (forth.norm() * y.norm()).clamp(min=torch.finfo(A.dtype).tiny))


def receptive_field(A: LinearMap) -> Tensor:
    """(m, n) whether output site m reads input site n through any tap.

    What is mere rounding beside the largest entry counts as zero.
    """
    with torch.no_grad():
        size = dense.stack(A.S, A.dtype, A.device).abs().amax(0)
        return size > 100 * torch.finfo(A.dtype).eps * size.max() if size.numel() else size > 0
