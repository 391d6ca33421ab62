"""The matrix product that mixes channels, by the faster of torch's ways.

In bfloat16, processors without instructions for it multiply at a fraction of float32's rate: there the factors are
widened to float32 and the product is rounded back, as a bfloat16 product that is summed in float32 is. In float32 a 1x1
convolution is another way to the same product; with its derivatives it was measured to be no faster.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gconv.rates import at, rates

GAIN = 1.5  # a product is widened where that is so many times as fast
SIZE = 64.0  # of W, where the two are compared


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
    if X.dtype != torch.bfloat16 or W.dtype != torch.bfloat16 or X.device.type != "cpu" or not widens():
        return X @ W
    with torch.autocast("cpu", enabled=False):
        return (X.float() @ W.float()).bfloat16()
