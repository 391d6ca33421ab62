"""One large signal on a fixed S, a few rows at a time: what is made on the way stays in the cache, none of it is kept.

    aggregate first    rows of S_k X, then mixed                  transform first    all of X W_k, then gathered
    dX = sum_k S_k^T dY W_k^T,    dW_k = (S_k X)^T dY = X^T (S_k^T dY): the side whose products are narrower

Only what rows are gathered from is written out whole, and S_k x where its rows go by a schedule (see
gconv.kernels.order). Results lie in room that is used again (see gconv.kernels.memory), which torch's own products
would not give them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gconv.basis import Basis, Identity, Polynomial, SharedTaps, Stack, Taps
from gconv.kernels import empty, in_order, is_plain_eager, known, matmul, no_subclass, spmm_rows
from gconv.lowering import rule
from gconv.lowering.rule import Gradients

CHUNK = 1 << 21  # bytes of the rows at hand
LARGE = 1 << 24  # bytes of all S_k x, from which on this pays


def serves(S: Basis, x: Tensor, W: Tensor) -> bool:
    """Whether this is one large signal that may change, on an S that does not."""
    if x.ndim != 2 or not x.is_floating_point() or x.dtype != W.dtype or not is_plain_eager():
        return False
    if x.layout is not torch.strided or x.numel() * x.element_size() * S.shape[0] <= LARGE:
        return False
    return no_subclass(x, W) and x.is_cpu and fixed(S) and known(x) is None and not torch.is_autocast_enabled("cpu")


def fixed(S: Basis) -> bool:
    """Whether no number of S is learned, and S is linear."""
    if isinstance(S, Stack):
        return all(fixed(part) for part in S.parts)
    if isinstance(S, Polynomial):
        learned = isinstance(S.combine, Tensor) and S.combine.requires_grad
        return not (learned or S.L.values.requires_grad)
    taps = isinstance(S, Taps | SharedTaps) and S.linear and not S.values.requires_grad
    return taps or isinstance(S, Identity)


def mixed(S: Basis, x: Tensor, W: Tensor, bias: Tensor | None, aggregate: bool) -> Tensor:
    """sum_k S_k X W_k + b, x (n, i), W (k, i, o) -> (m, o): aggregate first or transform first."""
    return rule.mixed(x, W, bias, Rows(S, aggregate))


@dataclass(frozen=True, eq=False)
class Rows:
    """A few rows at a time: aggregate first or transform first, and backward at the narrower side."""

    S: Basis
    aggregate: bool

    @property
    def T(self) -> Rows:
        return Rows(self.S.T, not self.aggregate)

    def forward(self, x: Tensor, W: Tensor, bias: Tensor | None) -> tuple[Tensor, tuple[()]]:
        return (_aggregate if self.aggregate else _transform)(self.S, x, W, bias), ()

    def gradients(self, x: Tensor | None, W: Tensor | None, dy: Tensor, made: Sequence[Tensor]) -> Gradients:
        return _gradients(self.S, x, W, dy)


def _leaves(S: Basis) -> tuple[Basis, ...]:
    return tuple(leaf for part in S.parts for leaf in _leaves(part)) if isinstance(S, Stack) else (S,)


def wide(W: Tensor) -> Tensor:
    """(k, i, o) -> (i, k o)."""
    return W.movedim(0, 1).flatten(1)


def _step(width: int, like: Tensor) -> int:
    return max(1, CHUNK // max(1, width * like.element_size()))


def _pieces(rows: int, width: int, like: Tensor) -> Iterator[slice]:
    """So many rows, as many at a time as `CHUNK` allows at this width."""
    step = _step(width, like)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _rows(S: Basis, x: Tensor) -> Callable[[slice, Tensor], Tensor]:
    """A function that gives rows of all S_k x side by side, (rows, k c), in `out` if it likes."""
    if isinstance(S, Identity):
        return lambda piece, out: x[piece]
    k, c = S.shape[0], x.shape[1]
    if isinstance(S, Taps):
        csr, values, _ = S.ordered("expand")
        if in_order(csr, values, x):  # which is worth more than rows that are still near
            made = spmm_rows(csr, values, x).view(-1, k * c)
            return lambda piece, out: made[piece]

        def some(piece: slice, out: Tensor) -> Tensor:
            place = out.view(-1, c) if out.is_contiguous() else out if k == 1 else None
            found = spmm_rows(csr, values, x, piece.start * k, piece.stop * k, out=place)
            return out if found is place else found.view(-1, k * c)

        return some
    whole = S.expand(x).movedim(-3, -2).flatten(-2)
    return lambda piece, out: whole[piece]


def _side_by_side(S: Basis, x: Tensor) -> Callable[[slice], Tensor]:
    """A function that gives rows of all S_k x side by side, (rows, k c); they hold until the next call."""
    leaves, c = _leaves(S), x.shape[1]
    x = x if x.stride(-1) == 1 else x.contiguous()
    sources = [_rows(leaf, x) for leaf in leaves]
    widths = [leaf.shape[0] * c for leaf in leaves]
    held = x.new_empty(min(S.shape[1], _step(sum(widths), x)), sum(widths))

    def some(piece: slice) -> Tensor:
        wide = held[: piece.stop - piece.start]
        if len(sources) == 1:
            return sources[0](piece, wide)
        for rows, place in zip(sources, wide.split(widths, 1), strict=True):
            found = rows(piece, place)
            if found is not place:
                place.copy_(found.view(place.shape))
        return wide

    return some


def write(out: Tensor, X: Tensor, W: Tensor, bias: Tensor | None) -> None:
    """X W + b into `out`, a matrix."""
    if X.dtype == torch.bfloat16:
        out.copy_(matmul(X, W) if bias is None else matmul(X, W).add_(bias))
    elif bias is None:
        torch.mm(X, W, out=out)
    else:
        torch.addmm(bias, X, W, out=out)


def _contract(S: Basis, z: Tensor, add: Tensor | None, out: Tensor | None) -> Tensor:
    """sum_k S_k z_k + add, of z (n, k c) that nobody else has; in `out` where there is one, which may be `add`."""
    k, _, n = S.shape
    c = z.shape[1] // k
    if isinstance(S, Taps):
        csr, values, _ = S.ordered("contract")
        return spmm_rows(csr, values, z.view(n * k, c), add=add, out=out)
    made = z if isinstance(S, Identity) else S.contract(z.view(n, k, c).movedim(-2, -3))
    made = made if add is None else made.add_(add)
    return made if out is None else out.copy_(made)


def _aggregate(S: Basis, x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
    y, matrix = empty(x, (S.shape[1], W.shape[2])), W.flatten(0, 1)
    rows = _side_by_side(S, x)
    for piece in _pieces(len(y), len(matrix), x):
        write(y[piece], rows(piece), matrix, bias)
    return y


def _transform(S: Basis, x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
    o, matrix, leaves = W.shape[2], wide(W), _leaves(S)
    widths = [leaf.shape[0] * o for leaf in leaves]
    made = [empty(x, (len(x), width)) for width in widths]
    for piece in _pieces(len(x), len(W) * o, x):
        if len(made) == 1:
            write(made[0][piece], x[piece], matrix, None)
            continue
        for z, some in zip(made, matmul(x[piece], matrix).split(widths, 1), strict=True):
            z[piece] = some
    y: Tensor | None = None
    add = bias
    for leaf, z in sorted(zip(leaves, made, strict=True), key=lambda pair: not isinstance(pair[0], Identity)):
        y = add = _contract(leaf, z, add, y)
    assert y is not None
    return y


def _gradients(S: Basis, x: Tensor | None, W: Tensor | None, dy: Tensor) -> Gradients:
    """dX where W is given, and dW where x is."""
    some = x if W is None else W.mT
    if some is None:
        return None, None
    (k, _, n), i, o = S.shape, some.shape[-1], dy.shape[-1]
    summed = torch.float32 if dy.dtype == torch.bfloat16 else dy.dtype
    if i < o:
        dx = None if W is None else _transform(S.T, dy, W.mT, None)
        if x is None:
            return dx, None
        dw, rows = dy.new_zeros(k * i, o, dtype=summed), _side_by_side(S, x)
        for piece in _pieces(len(dy), k * i, x):
            dw.addmm_(rows(piece).mT.to(summed), dy[piece].to(summed))
        return dx, dw.view(k, i, o).to(dy.dtype)
    dx = None if W is None else empty(dy, (n, i))
    dw, rows = dy.new_zeros(i, k * o, dtype=summed), _side_by_side(S.T, dy)
    matrix = None if W is None else W.mT.flatten(0, 1)
    for piece in _pieces(n, k * o, dy):
        back = rows(piece)
        if x is not None:
            dw.addmm_(x[piece].mT.to(summed), back.to(summed))
        if dx is not None and matrix is not None:
            write(dx[piece], back, matrix, None)
    return dx, None if x is None else dw.view(i, k, o).movedim(1, 0).to(dy.dtype)
