"""Whether A.T is the adjoint of A."""

from __future__ import annotations

import torch

from gconv.linear import Map


def adjoint_gap(A: Map, seed: int = 0) -> float:
    """|<A x, y> - <x, A^T y>| / (|A x| |y|) for random x and y: zero if A.T is the adjoint of A.

    Trap: it says nothing of A itself; a wrong map with a matching transpose passes.

    Cost: two products.

    >>> from gconv import GConv, Grid
    >>> from gconv.operators import conv2d
    >>> adjoint_gap(GConv(conv2d(2, 3, 3)).at(Grid((8, 8)))) < 1e-6
    True
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(A.device, A.dtype)  # noqa: E731
    x, y = draw(A.sites[1], A.i), draw(A.sites[0], A.o)
    with torch.no_grad():
        forth, back = A @ x, A.T @ y
        gap = (forth * y).sum() - (x * back).sum()
        return float(gap.abs() / (forth.norm() * y.norm()).clamp(min=torch.finfo(A.dtype).tiny))
