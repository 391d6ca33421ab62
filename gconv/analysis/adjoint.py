"""Whether A.T is the adjoint of A."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gconv.analysis.calls import map_of
from gconv.analysis.numbers import check_finite, power_of_two, vector_norm, wider
from gconv.arguments import checked
from gconv.linear import Map


@checked
def adjoint_gap(A: Map | nn.Module, seed: int = 0, *, domain: Any = None, x: Tensor | None = None) -> float:
    """The dot test |<A x, y> - <x, A^T y>| / (|A x| |y|) for random x and y: zero if A.T is the adjoint of A.

    Traps: it does not test A itself; a wrong map with a matching transpose passes.

    Cost: two products in the precision of the map; the inner products are in double precision.

    Args:
        A: any map, or a layer.
        seed: of the random signals.
        domain, x: for a layer, its Grid or graph, and the signal at which adaptive structure is frozen.

    Raises:
        TypeError: if the domain of a layer is missing.
        ValueError: if the map contains NaN or infinity.

    >>> from gconv import GConv, Grid
    >>> from gconv.operators import conv2d
    >>> adjoint_gap(GConv(conv2d(2, 3, 3)).at(Grid((8, 8)))) < 1e-6
    True
    """
    A = map_of(A, "adjoint_gap", domain, x)
    check_finite(A, "adjoint_gap")
    generator = torch.Generator(device="cpu").manual_seed(seed)
    kind = wider(A.dtype)

    def draw(sites: int, channels: int) -> Tensor:
        return torch.randn(sites, channels, generator=generator, dtype=kind).to(A.device, A.dtype)

    source, target = draw(A.sites[1], A.i), draw(A.sites[0], A.o)
    with torch.no_grad():
        forth, back = (A @ source).to(kind).view_as(target), (A.T @ target).to(kind).view_as(source)
    scale = max(power_of_two(forth), power_of_two(back)) if bool(forth.any() or back.any()) else 1.0
    gap = float(((forth / scale * target).sum() - (source * (back / scale)).sum()).abs())
    size = vector_norm(forth / scale) * vector_norm(target)
    return gap / size if size else gap
