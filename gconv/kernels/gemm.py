"""The matrix product of signals and weights, by the fastest of several equivalent torch calls.

On processors without bfloat16 instructions, bfloat16 products are much slower than in float32: the factors are then
converted to float32 and the product is rounded, which agrees with a bfloat16 product that accumulates in float32. In
float32 a 1x1 convolution computes the same product; including its backward pass it was measured to be no faster.

For few output channels, torch.mm(X, W) is slower in float32 than with W stored column-major, and X^T dY is slower than
(dY^T X)^T. In float64 the difference is smaller. If gaps between the rows of X W in memory are allowed, padding W with
zeros to `FEW` columns is faster still.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gconv.errors import Differentiable
from gconv.kernels.transforms import is_plain_eager, no_subclass
from gconv.rates import at, rates

GAIN = 1.5  # bfloat16 products are computed in float32 if that is at least this many times as fast
SIZE = 64.0  # columns of W for which the two are compared
FEW = 16  # output channels below which X^T dY is computed as (dY^T X)^T
FEWER = 8  # output channels up to which W is copied to column-major order
MIN_NUMBERS = 1 << 15  # entries of X below which the plain product is used


def widens() -> bool:
    """Whether bfloat16 products are computed in float32 on this machine's CPU."""
    curves = rates().curves
    return at(curves["gemm widened"], SIZE) > GAIN * at(curves["gemm bfloat16"], SIZE)


widens._dynamo_marked_constant = True  # type: ignore[attr-defined]  # see gconv.rates.price


def matmul(X: Tensor, W: Tensor) -> Tensor:
    """X W, (*b, n, i) (i, o) -> (*b, n, o).

    >>> matmul(torch.ones(2, 3, dtype=torch.bfloat16), torch.ones(3, 1, dtype=torch.bfloat16)).flatten()
    tensor([3., 3.], dtype=torch.bfloat16)
    """
    if few(X, W):
        product: Tensor = _FewColumns.apply(X, W)
        return product
    if X.dtype != torch.bfloat16 or W.dtype != torch.bfloat16 or X.device.type != "cpu" or not widens():
        return X @ W
    with torch.autocast("cpu", enabled=False):
        return (X.float() @ W.float()).bfloat16()


def few(X: Tensor, W: Tensor) -> bool:
    """Whether `_FewColumns` is used for X W: a large float32 X and few output channels, in a plain eager call."""
    if not is_plain_eager() or not no_subclass(X, W):
        return False
    if W.ndim != 2 or not W.shape[1] < min(FEW, W.shape[0]) or X.numel() < MIN_NUMBERS:
        return False
    return X.dtype == W.dtype == torch.float32 and X.is_cpu and not torch.is_autocast_enabled("cpu")


def narrow(X: Tensor, o: int) -> bool:
    """Whether a product of a matrix X with o columns is large with few columns, but not a matrix-vector product."""
    return 1 < o < min(FEW, X.shape[1]) and X.numel() >= MIN_NUMBERS and X.dtype == torch.float32


def mm_padded(X: Tensor, W: Tensor) -> Tensor:
    """X W, (n, i) (i, o) -> (n, o); no autograd. The rows of the result may have gaps between them in memory.

    >>> mm_padded(torch.ones(1 << 12, 8), torch.ones(8, 3)).stride()
    (16, 1)
    """
    o = W.shape[1]
    return torch.mm(X, F.pad(W, (0, FEW - o)))[:, :o] if narrow(X, o) else torch.mm(X, W)


def xt_y(X: Tensor, Y: Tensor, out: Tensor | None = None) -> Tensor:
    """X^T Y, (n, i) (n, o) -> (i, o), written to `out` if it is given; no autograd."""
    if not narrow(X, Y.shape[1]):
        return torch.mm(X.mT, Y, out=out)
    product = torch.mm(Y.mT, X).mT
    return product if out is None else out.copy_(product)


class _FewColumns(Differentiable):
    """X W with few columns of W."""

    what = "X W"

    @staticmethod
    def forward(ctx: Any, X: Tensor, W: Tensor) -> Tensor:
        ctx.save_for_backward(X, W)
        return F.linear(X, W.t().contiguous()) if W.shape[1] <= FEWER else X @ W

    @staticmethod
    def backward(ctx: Any, dY: Tensor) -> tuple[Tensor | None, Tensor | None]:
        X, W = ctx.saved_tensors
        dX = dY @ W.t() if ctx.needs_input_grad[0] else None
        dW = (dY.flatten(0, -2).t() @ X.flatten(0, -2)).t() if ctx.needs_input_grad[1] else None
        return dX, dW
