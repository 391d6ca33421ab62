"""The matrix product that mixes channels, by the faster of torch's ways.

In bfloat16, processors without instructions for it multiply at a fraction of float32's rate: there the factors are
widened to float32 and the product is rounded back, as a bfloat16 product that is summed in float32 is. In float32 a 1x1
convolution is another way to the same product; with its derivatives it was measured to be no faster.

To few channels, torch's X W is slower in float32 than X (W^T)^T with W^T laid out anew, and its X^T dY than (dY^T X)^T.
In float64 they differ less. Where the rows of X W may lie apart, W filled up with zeros to `FEW` columns is faster yet.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gconv.kernels.transforms import is_plain_eager, no_subclass
from gconv.rates import at, rates

GAIN = 1.5  # a product is widened where that is so many times as fast
SIZE = 64.0  # of W, where the two are compared
FEW = 16  # channels out below which X^T dY is turned around
FEWER = 8  # channels out up to which W is laid out anew
MIN_NUMBERS = 1 << 15  # numbers in X from which on this is worth a call of its own


def widens() -> bool:
    """Whether bfloat16 products run through float32 on this machine's CPU."""
    curves = rates().curves
    return at(curves["gemm widened"], SIZE) > GAIN * at(curves["gemm bfloat16"], SIZE)


widens._dynamo_marked_constant = True  # type: ignore[attr-defined]  # see gconv.rates.price


def matmul(X: Tensor, W: Tensor) -> Tensor:
    """X W, (*b, n, i) (i, o) -> (*b, n, o).

    >>> matmul(torch.ones(2, 3, dtype=torch.bfloat16), torch.ones(3, 1, dtype=torch.bfloat16)).flatten()
    tensor([3., 3.], dtype=torch.bfloat16)
    """
    if few(X, W):
        made: Tensor = _ToFew.apply(X, W)
        return made
    if X.dtype != torch.bfloat16 or W.dtype != torch.bfloat16 or X.device.type != "cpu" or not widens():
        return X @ W
    with torch.autocast("cpu", enabled=False):
        return (X.float() @ W.float()).bfloat16()


def few(X: Tensor, W: Tensor) -> bool:
    """Whether X W goes to so few channels, from so many numbers, that another way is faster."""
    if not is_plain_eager() or not no_subclass(X, W):
        return False
    if W.ndim != 2 or not W.shape[1] < min(FEW, W.shape[0]) or X.numel() < MIN_NUMBERS:
        return False
    return X.dtype == W.dtype == torch.float32 and X.is_cpu and not torch.is_autocast_enabled("cpu")


def narrow(X: Tensor, o: int) -> bool:
    """Whether a matrix X to o channels is such a product, more than that of a matrix and a vector."""
    return 1 < o < min(FEW, X.shape[1]) and X.numel() >= MIN_NUMBERS and X.dtype == torch.float32


def mm_padded(X: Tensor, W: Tensor) -> Tensor:
    """X W, (n, i) (i, o) -> (n, o); nothing is recorded, and rows of the result may lie apart.

    >>> mm_padded(torch.ones(1 << 12, 8), torch.ones(8, 3)).stride()
    (16, 1)
    """
    o = W.shape[1]
    return torch.mm(X, F.pad(W, (0, FEW - o)))[:, :o] if narrow(X, o) else torch.mm(X, W)


def xt_y(X: Tensor, Y: Tensor, out: Tensor | None = None) -> Tensor:
    """X^T Y, (n, i) (n, o) -> (i, o), in `out` where there is one; nothing is recorded."""
    if not narrow(X, Y.shape[1]):
        return torch.mm(X.mT, Y, out=out)
    made = torch.mm(Y.mT, X).mT
    return made if out is None else out.copy_(made)


class _ToFew(torch.autograd.Function):
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
