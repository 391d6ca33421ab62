"""Precision and range: maps in double precision, and norms that neither overflow nor underflow.

A norm is homogeneous, f(c A) = |c| f(A), only if squares neither overflow nor underflow. Maps are therefore converted
to double precision first, and values are divided by a power of two, which is exact, before they are squared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from gconv.basis import Attended, Basis
from gconv.basis.taps import Pattern
from gconv.linear import Block, Composed, LinearMap, Map, ProgramMap, Scaled, Sum


def wider(dtype: torch.dtype) -> torch.dtype:
    """Double precision, real or complex."""
    return torch.complex128 if dtype.is_complex else torch.float64


def at_least_single(dtype: torch.dtype) -> torch.dtype:
    """The dtype of results for inputs of this dtype: float32 for bfloat16 and float16, else the same."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def is_positive(value: Any) -> bool:
    """Whether a value is a positive, finite real number."""
    return isinstance(value, Real) and value is not True and 0 < float(value) < math.inf


def is_count(value: Any) -> bool:
    """Whether a value is an integer >= 1."""
    return isinstance(value, Integral) and value is not True and int(value) >= 1


def power_of_two(x: Tensor) -> float:
    """A power of two near the largest |entry| of x; 1 if that is zero, infinite or NaN.

    >>> power_of_two(torch.tensor([0.0, -5.0])), power_of_two(torch.zeros(2))
    (4.0, 1.0)
    """
    top = float(x.detach().abs().max()) if x.numel() else 0.0
    if top == 0 or not math.isfinite(top):
        return 1.0
    return 2.0 ** max(-1000, min(1000, math.frexp(top)[1] - 1))


def scaled(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """x divided by a power of two near its largest entry along these axes, and that power (1 if there is none).

    >>> scaled(torch.tensor([[3.0, 1.0], [0.0, 0.0]]), (-1,))
    (tensor([[1.5000, 0.5000],
            [0.0000, 0.0000]]), tensor([[2.],
            [1.]]))
    """
    if not x.numel():
        return x, x.real.new_ones([1 if d - x.ndim in dims else n for d, n in enumerate(x.shape)])
    top = x.detach().abs().amax(dims, keepdim=True)
    power = torch.ldexp(torch.ones_like(top), torch.frexp(top).exponent - 1)
    power = torch.where((top > 0) & top.isfinite() & (power > 0) & power.isfinite(), power, torch.ones_like(top))
    return x / power, power


def vector_norm(x: Tensor) -> float:
    """|x|, without intermediate overflow or underflow.

    >>> vector_norm(torch.tensor([3e-200, 4e-200], dtype=torch.float64))
    5e-200
    """
    scale = power_of_two(x)
    return float((x.detach().to(wider(x.dtype)) / scale).norm()) * scale


def singular(M: Tensor) -> Tensor:
    """The singular values of matrices (*b, m, n), each descending, in double precision."""
    M = M.detach().to(wider(M.dtype))
    scale = power_of_two(M)
    return torch.linalg.svdvals(M / scale) * scale


def spectral_norm(M: Tensor) -> float:
    """The largest singular value of matrices (*b, m, n)."""
    return float(singular(M).max()) if M.numel() else 0.0


# -- maps ----------------------------------------------------------------------------------------------------------


def widen(A: Map) -> Map:
    """The same map in double precision, without gradients: its tensors are converted, not recomputed."""
    if A.dtype == wider(A.dtype):
        return A
    if isinstance(A, LinearMap):
        S = _converted(A.S, lambda t: t.detach().to(wider(t.dtype)))
        W = None if A.W is None else A.W.detach().to(wider(A.W.dtype))
        return replace(A, S=S, W=W, dtype=wider(A.dtype))
    if isinstance(A, ProgramMap):
        return replace(A, program=A.program.to(wider(A.dtype)))
    if isinstance(A, Scaled):
        return Scaled(A.c.detach().to(wider(A.c.dtype)) if isinstance(A.c, Tensor) else A.c, widen(A.A))
    if isinstance(A, Sum):
        return Sum(tuple(map(widen, A.terms)))
    if isinstance(A, Composed):
        return Composed(tuple(map(widen, A.factors)))
    if isinstance(A, Block):
        return Block(tuple(tuple(B and widen(B) for B in row) for row in A.rows), A.axis)
    return A


def _converted(S: Any, convert: Callable[[Tensor], Tensor]) -> Any:
    """A structure with all floating point tensors converted."""
    if isinstance(S, Tensor):
        return convert(S) if S.is_floating_point() or S.is_complex() else S
    if isinstance(S, Attended):
        return _converted(S.written, convert)
    if isinstance(S, tuple):
        parts = tuple(_converted(part, convert) for part in S)
        return S if all(new is old for new, old in zip(parts, S, strict=True)) else parts
    if isinstance(S, Pattern) or not is_dataclass(S) or isinstance(S, type):
        return S
    old = {f.name: getattr(S, f.name) for f in fields(S) if f.init}
    new = {name: None if name == "made" else _converted(value, convert) for name, value in old.items()}
    return S if all(new[name] is old[name] for name in old) else replace(S, **new)


def numbers(A: Map) -> Iterator[Tensor]:
    """All tensors from which the entries of a map are computed."""
    if isinstance(A, LinearMap):
        if A.W is not None:
            yield A.W
        yield from _held(A.S)
    elif isinstance(A, ProgramMap):
        yield from A.program.constants()
    elif isinstance(A, Scaled):
        yield torch.as_tensor(A.c)
        yield from numbers(A.A)
    else:
        for B in A.terms if isinstance(A, Sum) else A.factors if isinstance(A, Composed) else A.maps:  # type: ignore
            yield from numbers(B)


def _held(S: Basis) -> list[Tensor]:
    found: list[Tensor] = []

    def keep(t: Tensor) -> Tensor:
        found.append(t)
        return t

    _converted(S, keep)
    return found


def check_finite(A: Map, asking: str) -> None:
    """Raises a ValueError, naming the calling function, if a map contains NaN or infinity.

    Args:
        A: the map.
        asking: the name of the calling function.
    """
    if not all(bool(t.detach().isfinite().all()) for t in numbers(A)):
        raise ValueError(
            f"{asking} needs finite numbers, but the weights or the structure of {A} contain NaN or infinity."
        )
