"""Many signals on one fixed S, a few at a time: what is made on the way stays in the cache, and none of it is kept.

    Y = sum_k S_k X W_k + b      dX = sum_k S_k^T dY W_k^T,    dW_k = (S_k X)^T dY = X^T (S_k^T dY)

Both associations of S X W serve both passes; the backward pass takes the one whose products are narrower, whatever the
forward pass took.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gconv.basis import Basis, Polynomial, SharedTaps, Taps
from gconv.kernels import empty, is_plain_eager, matmul, no_subclass
from gconv.kernels.narrow import LANES
from gconv.lowering import rule
from gconv.lowering.rule import Gradients
from gconv.lowering.single import fixed, wide, write

CHUNK = 1 << 21  # bytes that the taps of the signals at hand take


def serves(S: Basis, x: Tensor, W: Tensor) -> bool:
    """Whether S is fixed, and there are signals enough on it to go through in parts."""
    if x.ndim < 3 or not (is_plain_eager() and no_subclass(x, W)):
        return False
    if not (x.numel() and x.is_cpu and x.is_floating_point() and x.dtype == W.dtype):
        return False
    k, m, n = S.shape
    if x.numel() // n * x.element_size() * k * max(m, n) <= 4 * CHUNK or not _simple(S):
        return False
    return not torch.is_autocast_enabled("cpu")


def _simple(S: Basis) -> bool:
    return isinstance(S, Polynomial | Taps | SharedTaps) and fixed(S)


def mixed(S: Basis, x: Tensor, W: Tensor, bias: Tensor | None, aggregate: bool) -> Tensor:
    """sum_k S_k X W_k + b, x (*b, n, i), W (k, i, o) -> (*b, m, o): aggregate first or transform first."""
    return rule.mixed(x.flatten(0, -3), W, bias, Parts(S, aggregate)).unflatten(0, x.shape[:-2])


@dataclass(frozen=True, eq=False)
class Parts:
    """A few signals (b, n, c) at a time: aggregate first or transform first, and backward at the narrower side."""

    S: Basis
    aggregate: bool

    @property
    def T(self) -> Parts:
        return Parts(self.S.T, not self.aggregate)

    def forward(self, x: Tensor, W: Tensor, bias: Tensor | None) -> tuple[Tensor, tuple[()]]:
        return _mix(self.S, x, W, bias, self.aggregate), ()

    def gradients(self, x: Tensor | None, W: Tensor | None, dy: Tensor, made: Sequence[Tensor]) -> Gradients:
        return _gradients(self.S, x, W, dy)


def _parts(S: Basis, x: Tensor, width: int) -> Iterator[slice]:
    """Of the signals, as many at a time as `CHUNK` allows for products of this width."""
    k, m, n = S.shape
    step = max(LANES if width == 1 else 1, CHUNK // max(1, x.element_size() * width * k * max(m, n)))
    return (slice(start, start + step) for start in range(0, len(x), step))


def _side_by_side(S: Basis, x: Tensor) -> Tensor:
    """All S_k x as a matrix (b m, k c)."""
    return S.expand(x).movedim(-3, -2).flatten(-2).flatten(0, 1)


def _contract(S: Basis, z: Tensor) -> Tensor:
    """sum_k S_k z_k of a matrix (b n, k c)."""
    k, _, n = S.shape
    return S.contract(z.view(-1, n, k, z.shape[1] // k).movedim(-2, -3))


def _mix(S: Basis, x: Tensor, W: Tensor, bias: Tensor | None, aggregate: bool) -> Tensor:
    m = S.shape[1]
    i, o = W.shape[1:]
    y = empty(x, (len(x), m, o))
    matrix = W.flatten(0, 1) if aggregate else wide(W)
    for part in _parts(S, x, i if aggregate else o):
        if aggregate:
            write(y[part].view(-1, o), _side_by_side(S, x[part]), matrix, bias)
        else:
            made = _contract(S, matmul(x[part].flatten(0, 1), matrix))
            y[part] = made if bias is None else made.add_(bias)
    return y


def _gradients(S: Basis, x: Tensor | None, W: Tensor | None, dy: Tensor) -> Gradients:
    """dX where W is given and dW where x is, with products of the narrower side."""
    k, _, n = S.shape
    some = x if W is None else W.mT
    if some is None:
        return None, None
    i, o = some.shape[-1], dy.shape[-1]
    narrow = i < o
    dx = None if W is None else empty(dy, (len(dy), n, i))
    summed = torch.float32 if dy.itemsize == 2 else dy.dtype
    dw = None if x is None else dy.new_zeros((k * i, o) if narrow else (i, k * o), dtype=summed)
    matrix = None if W is None else W.flatten(0, 1).mT if narrow else W.mT.flatten(0, 1)
    for part in _parts(S, dy, min(i, o)):
        arriving = dy[part].flatten(0, 1) if narrow else _side_by_side(S.T, dy[part])
        if dw is not None and x is not None:
            met = _side_by_side(S, x[part]) if narrow else x[part].flatten(0, 1)
            dw += matmul(met.mT, arriving)
        if dx is not None and matrix is not None:
            if narrow:
                dx[part] = _contract(S.T, matmul(arriving, matrix))
            else:
                write(dx[part].view(-1, i), arriving, matrix, None)
    if dw is not None:
        dw = (dw.view(k, i, o) if narrow else dw.view(i, k, o).movedim(1, 0)).to(dy.dtype)
    return dx, dw
