"""A fixed S and a dense W as one step of autograd, whichever way its numbers are made.

    mixed      Y = sum_k S_k X W_k + b         dX = sum_k S_k^T dY W_k^T,    dW_k = (S_k X)^T dY,    db = sum dY
    moments    M_k = (S_k X)^T Z               dX = sum_k S_k^T Z dM_k^T,    dZ = sum_k S_k X dM_k

Each is the other's derivative, to any order. The ways: `steps` for small signals, `single` for a large one a few rows
at a time, `batches` for many a few at a time. Transforms do not know a way's kernels, and meet plain operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from gconv.basis import Basis
from gconv.kernels import owned, transformed

Gradients = tuple[Tensor | None, Tensor | None]


class Way(Protocol):
    """How the numbers are made; x (*b, n, i), W (k, i, o), dy (*b, m, o)."""

    @property
    def S(self) -> Basis: ...

    @property
    def T(self) -> Way:
        """The way for the transposed structure."""

    def forward(self, x: Tensor, W: Tensor, bias: Tensor | None) -> tuple[Tensor, Sequence[Tensor]]:
        """Y, and what the gradient in W is made of, where that is not x."""

    def gradients(self, x: Tensor | None, W: Tensor | None, dy: Tensor, made: Sequence[Tensor]) -> Gradients:
        """dX where W is given, and dW where x is: from what `forward` has made, if there is anything."""


def mixed(x: Tensor, W: Tensor, bias: Tensor | None, way: Way) -> Tensor:
    """sum_k S_k X W_k + b."""
    y: Tensor = Mixed.apply(x, W, bias, way)
    return y


class Mixed(torch.autograd.Function):
    """`mixed`, and its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, bias: Tensor | None, way: Way) -> Tensor:
        ctx.way = way
        to_x, to_w = ctx.needs_input_grad[:2]
        y, made = way.forward(x, W, bias)
        ctx.save_for_backward(x if to_w else None, W if to_x else None, *(made if to_w else ()))
        return owned(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, W, *made = ctx.saved_tensors
        way: Way = ctx.way
        db = None
        if ctx.needs_input_grad[2]:
            db = dy.sum(0) if dy.ndim == 2 else dy.sum(tuple(range(dy.ndim - 1)))
        if transformed():
            dx = None if W is None else _mixed(way.S.T, dy, W.mT)
            return dx, None if x is None else _moments(way.S, x, dy), db, None
        if torch.is_grad_enabled():
            dx = None if W is None else mixed(dy, W.mT, None, way.T)
            return dx, None if x is None else Moments.apply(x, dy, way), db, None
        dx, dw = way.gradients(x, W, dy, made)
        return dx, dw, db, None


class Moments(torch.autograd.Function):
    """The gradient in W, and its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor, way: Way) -> Tensor:
        ctx.way = way
        ctx.save_for_backward(x, z)
        found = way.gradients(x, None, z, ())[1]
        assert found is not None
        return found

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, z = ctx.saved_tensors
        to_x, to_z = ctx.needs_input_grad[:2]
        way: Way = ctx.way
        if transformed():
            return _mixed(way.S.T, z, g.mT) if to_x else None, _mixed(way.S, x, g) if to_z else None, None
        return mixed(z, g.mT, None, way.T) if to_x else None, mixed(x, g, None, way) if to_z else None, None


def _mixed(S: Basis, x: Tensor, W: Tensor) -> Tensor:
    """sum_k S_k X W_k by operators that any transform knows."""
    return S.contract(torch.einsum("...ni,kio->...kno", x, W))


def _moments(S: Basis, x: Tensor, z: Tensor) -> Tensor:
    return torch.einsum("...kmi,...mo->kio", S.expand(x), z)
