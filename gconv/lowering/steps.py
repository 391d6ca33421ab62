"""A fixed S and a dense W as one step of autograd, both passes by hand.

    Y = sum_k S_k X W_k + b      dX = sum_k S_k^T dY W_k^T,    dW_k = (S_k X)^T dY = X^T (S_k^T dY),    db = sum dY

Put together from products, views and sums, each of which autograd remembers, a small graph's convolution costs more to
write down than to compute. Derivatives of derivatives are still put together so.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from gconv.basis import Basis, Identity, Stack, beside, together
from gconv.kernels import known, transformed
from gconv.lowering.single import fixed

PLAIN = (Tensor, Parameter)
LARGE = 1 << 22  # bytes of all S_k x, from which on the arithmetic is all that counts
TYPES = (torch.float32, torch.float64)  # others are summed in a wider type


def serves(S: Basis, x: Tensor, W: Tensor) -> bool:
    """Whether S is fixed, x small and no constant, and nobody wants to see the single operators."""
    if torch.compiler.is_compiling() or type(x) not in PLAIN or type(W) not in PLAIN or not x.is_cpu:
        return False
    if x.dtype not in TYPES or x.dtype != W.dtype or not 0 < x.numel() * x.element_size() * W.shape[0] <= LARGE:
        return False
    if not fixed(S) or known(x) is not None:
        return False
    return not (transformed() or torch._C._len_torch_dispatch_stack() > 0 or torch.is_autocast_enabled("cpu"))


def mixed(S: Basis, x: Tensor, W: Tensor, bias: Tensor | None, aggregate: bool) -> Tensor:
    """sum_k S_k X W_k + b, x (*b, n, i), W (k, i, o) -> (*b, m, o): aggregate first or transform first."""
    if torch.is_grad_enabled() and (x.requires_grad or W.requires_grad or (bias is not None and bias.requires_grad)):
        y: Tensor = _Mixed.apply(x, W, bias, S, aggregate)
        return y
    return _aggregate(S, x, W, bias)[0] if aggregate else _transform(S, x, W, bias)


def _pieces(S: Basis, W: Tensor) -> list[tuple[Basis, Tensor]]:
    """The parts of a stack, each with its weight (k, i, o), or (i, o) of a single tap."""
    if not isinstance(S, Stack):
        return [(S, W.squeeze(0) if W.shape[0] == 1 else W)]
    if len(S.parts) == W.shape[0]:
        return list(zip(S.parts, W.unbind(), strict=True))
    found, at = [], 0
    for part in S.parts:
        k = part.shape[0]
        found.append((part, W[at] if k == 1 else W[at : at + k]))
        at += k
    return found


def _tall(W: Tensor) -> Tensor:
    """(k, i, o) -> (k i, o)."""
    return W if W.ndim == 2 else W.flatten(0, 1)


def _wide(W: Tensor) -> Tensor:
    """(k, i, o) -> (i, k o)."""
    return W if W.ndim == 2 else W.movedim(0, 1).flatten(1)


def _rows(x: Tensor) -> Tensor:
    """Signals (*b, sites, c) as a matrix, all sites of all signals below each other."""
    return x if x.ndim == 2 else x.flatten(0, -2)


def _like(X: Tensor, x: Tensor) -> Tensor:
    """Such a matrix as signals again, as many as x has."""
    return X if x.ndim == 2 else X.view(*x.shape[:-2], -1, X.shape[1])


def _expand(S: Basis, x: Tensor) -> Tensor:
    """All S_k x beside each other, (b m, k c)."""
    return x if type(S) is Identity and x.ndim == 2 else _rows(beside(S, x))


def _aggregate(S: Basis, x: Tensor, W: Tensor, bias: Tensor | None) -> tuple[Tensor, list[Tensor]]:
    """Y, and all S_k X as matrices."""
    made: list[Tensor] = []
    y = None
    for part, own in _pieces(S, W):
        E, matrix = _expand(part, x), _tall(own)
        made.append(E)
        if y is not None:
            y.addmm_(E, matrix)
        else:
            y = torch.mm(E, matrix) if bias is None else torch.addmm(bias, E, matrix)
    assert y is not None
    return _like(y, x), made


def _transform(S: Basis, x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
    y = _contracted(x, [(part, _wide(own)) for part, own in _pieces(S, W)])
    return y if bias is None else y.add_(bias)


def _contracted(x: Tensor, pieces: list[tuple[Basis, Tensor]]) -> Tensor:
    """sum_k S_k X W_k over some parts, each with its matrix (i, k o)."""
    X, y = _rows(x), None
    for part, matrix in pieces:
        if type(part) is Identity and y is not None:
            _rows(y).addmm_(X, matrix)
            continue
        z = together(part, _like(torch.mm(X, matrix), x))
        y = z if y is None else y.add_(z)
    assert y is not None
    return y


def _put(out: Tensor, X: Tensor, Y: Tensor) -> None:
    """X^T Y into a weight's gradient (k, i, o), or (i, o); X or Y has its taps beside each other."""
    if out.ndim == 2:
        torch.mm(X.mT, Y, out=out)
        return
    k, i, o = out.shape
    made = torch.mm(X.mT, Y)
    out.copy_(made.view(k, i, o) if len(made) == k * i else made.view(i, k, o).movedim(1, 0))


class _Mixed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, bias: Tensor | None, S: Basis, aggregate: bool) -> Tensor:
        ctx.S, ctx.aggregate = S, aggregate
        if not aggregate:
            ctx.save_for_backward(x, W)
            return _transform(S, x, W, bias)
        y, made = _aggregate(S, x, W, bias)
        ctx.save_for_backward(x, W, *(made if ctx.needs_input_grad[1] else ()))
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (x, W, *made), S = ctx.saved_tensors, ctx.S
        to_x, to_w, to_bias = ctx.needs_input_grad[:3]
        db = _rows(dy).sum(0) if to_bias else None
        if torch.is_grad_enabled():
            dx = S.T.contract(torch.einsum("...mo,kio->...kmi", dy, W)) if to_x else None
            dw = torch.einsum("...kmi,...mo->kio", S.expand(x), dy) if to_w else None
        else:
            dw = torch.empty_like(W) if to_w else None
            dx = _back_aggregate(S, W, dy, made, to_x, dw) if ctx.aggregate else _back_transform(S, x, W, dy, to_x, dw)
        return dx, dw, db, None, None


def _back_aggregate(
    S: Basis, W: Tensor, dy: Tensor, made: list[Tensor], to_x: bool, dw: Tensor | None
) -> Tensor | None:
    """dX where it is wanted, and dW from all S_k X."""
    if dw is not None:
        arriving = _rows(dy)
        for (_, out), E in zip(_pieces(S, dw), made, strict=True):
            _put(out, E, arriving)
    return _contracted(dy, [(part.T, _tall(own).mT) for part, own in _pieces(S, W)]) if to_x else None


def _back_transform(S: Basis, x: Tensor, W: Tensor, dy: Tensor, to_x: bool, dw: Tensor | None) -> Tensor | None:
    """dX where it is wanted, and dW, both from all S_k^T dY."""
    X, dx = _rows(x), None
    outs = _pieces(S, W if dw is None else dw)
    for (part, own), (_, out) in zip(_pieces(S, W), outs, strict=True):
        back = _expand(part.T, dy)
        if dw is not None:
            _put(out, X, back)
        if to_x:
            matrix = own.mT if own.ndim == 2 else own.mT.flatten(0, 1)
            dx = torch.mm(back, matrix) if dx is None else dx.addmm_(back, matrix)
    return None if dx is None else _like(dx, x)
