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


def norm(A: LinearMap, tol: float = 1e-10, steps: int = 2000) -> float:
    """The largest singular value ||A||, by power iteration on A^T A; no matrix is formed.

    Args:
        A: the map.
        tol: stop when the value moves by less than this share.
        steps: at most; 2 products each.
    """
    generator = torch.Generator(device="cpu").manual_seed(0)
    x = torch.randn(A.sites[1], A.i, generator=generator, dtype=torch.float64).to(A.device, A.dtype)
    before = 0.0
    with torch.no_grad():
        for _ in range(steps):
            x = x / x.norm().clamp(min=torch.finfo(A.dtype).tiny)
            y = A @ x
            value = float(y.norm())
            if abs(value - before) <= tol * value:
                break
            before, x = value, A.T @ y
    return value


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
