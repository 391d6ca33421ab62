"""Call: the inputs of one call of a layer, passed to its structure, the planner and a lowering.

The state that a call depends on besides its tensors (compilers, transforms, a constant signal) is determined once, when
the object is created.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gconv.kernels import CallKind, Constant, call_kind, constant_of, product
from gconv.kernels.gemm import MIN_NUMBERS
from gconv.mixing import Fixed, Mixing, by_heads

NOTHING_MIXED = Fixed()


class Call:
    """The signal and the weights of one call.

    Args:
        x: the signal, (*b, n, i); for a lowering that works on images (b, i, *grid).
        mixing, W: the elementary mixing (default: none) and its weight.
        bias: (o,) or None.
        weight: the learned parameter, where W is computed from it; default W.
        kind: "eager" for a plain call, see `gconv.kernels.call_kind`; determined here if None.
        constant: the `Constant` of a signal that was declared constant; looked up if kind is None.

    >>> call = Call(torch.ones(3, 2))
    >>> call.mixed(torch.ones(4, 2, 5)).shape, call.constant
    (torch.Size([3, 4, 5]), None)
    """

    def __init__(
        self,
        x: Tensor,
        mixing: Mixing | None = None,
        W: Tensor | None = None,
        bias: Tensor | None = None,
        weight: Any = None,
        kind: CallKind | None = None,
        constant: Constant | None = None,
    ) -> None:
        # torch.compile of torch 2.11 cannot trace a default value that is an object
        self.x, self.W, self.bias = x, W, bias
        self.mixing: Mixing = NOTHING_MIXED if mixing is None else mixing
        self.weight: Any = W if weight is None else weight
        self.kind, self.constant = kind, constant
        if kind is None:
            self.kind = call_kind()
            self.constant = constant_of(x) if self.kind == "eager" else None
        self.cached: tuple[Tensor, Tensor] | None = None  # a weight W, and all x W_k (*b, n, k, c)

    @property
    def gradients(self) -> tuple[bool, bool]:
        """Whether gradients in x, and in the weight, will be needed."""
        return (self.x.requires_grad, True) if torch.is_grad_enabled() else (False, False)

    def at(self, x: Tensor) -> Call:
        """The same call with x in another shape."""
        return Call(x, self.mixing, self.W, self.bias, self.weight, self.kind, self.constant if x is self.x else None)

    def times(self, W: Tensor) -> Tensor:
        """X W, (*b, n, i) (i, o) -> (*b, n, o); a sparse product where x is constant and has few non-zeros."""
        return product(self.x, W)

    def mixed(self, W: Tensor) -> Tensor:
        """All x W_k, (*b, n, i) (k, i, c) -> (*b, n, k, c); the result for the last weight is cached."""
        if self.cached is None or self.cached[0] is not W:
            small = self.kind == "eager" and self.constant is None and self.x.numel() < MIN_NUMBERS
            self.cached = W, by_heads(self.x, W, torch.matmul if small and self.x.itemsize > 2 else product)
        return self.cached[1]

    def spread(self) -> Tensor:
        """`mixing.spread`: all x W_k (*b, k, n, c), from the cache if `mixed` has computed them."""
        if self.cached is not None and self.cached[0] is self.W and self.mixing.apart:
            return self.cached[1].movedim(-2, -3)
        return self.mixing.spread(self.x, self.W)

    def products(self) -> Tensor:
        """(*b, k, n, c) the cached x W_k."""
        assert self.cached is not None
        return self.cached[1].movedim(-2, -3)

    def is_cached(self, products: Tensor) -> bool:
        """Whether these are the cached x W_k of this call's weight."""
        return self.cached is not None and self.cached[0] is self.W and self.cached[1] is products
