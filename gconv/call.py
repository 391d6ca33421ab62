"""Call: one call of a layer as a value, which its structure, the planner and a lowering read.

What a call depends on besides its tensors (gradients, compilers, transforms, a constant signal) is asked once, when
the value is made.
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
    """The signal and the weights of one call, and what is known of them.

    Args:
        x: the signal, (*b, n, i); for a lowering that works on images (b, i, *grid).
        mixing, W: the elementary mixing and its weight.
        bias: (o,) or None.
        weight: the weight as it is learned, where W is made of it.
        kind, constant: "eager" for a plain call, see `gconv.kernels.call_kind`; what is known of a constant signal.
            Both are asked for where no kind is given.

    >>> call = Call(torch.ones(3, 2))
    >>> call.mixed(torch.ones(4, 2, 5)).shape, call.constant
    (torch.Size([3, 4, 5]), None)
    """

    def __init__(
        self,
        x: Tensor,
        mixing: Mixing = NOTHING_MIXED,
        W: Tensor | None = None,
        bias: Tensor | None = None,
        weight: Any = None,
        kind: CallKind | None = None,
        constant: Constant | None = None,
    ) -> None:
        self.x, self.mixing, self.W, self.bias = x, mixing, W, bias
        self.weight: Any = W if weight is None else weight
        self.kind, self.constant = kind, constant
        if kind is None:
            self.kind = call_kind()
            self.constant = constant_of(x) if self.kind == "eager" else None
        self.made: tuple[Tensor, Tensor] | None = None  # a weight, and all x W_k

    @property
    def gradients(self) -> tuple[bool, bool]:
        """Which gradients will be asked for: in x, and in the weight."""
        return (self.x.requires_grad, True) if torch.is_grad_enabled() else (False, False)

    def at(self, x: Tensor) -> Call:
        """The same call with x in another shape."""
        return Call(x, self.mixing, self.W, self.bias, self.weight, self.kind, self.constant if x is self.x else None)

    def times(self, W: Tensor) -> Tensor:
        """X W, (*b, n, i) (i, o) -> (*b, n, o), through the sparse form of a constant signal that has one."""
        return product(self.x, W)

    def mixed(self, W: Tensor) -> Tensor:
        """All x W_k beside each other, (*b, n, i) (k, i, c) -> (*b, n, k, c); computed once for the last weight."""
        if self.made is None or self.made[0] is not W:
            small = self.kind == "eager" and self.constant is None and self.x.numel() < MIN_NUMBERS
            self.made = W, by_heads(self.x, W, torch.matmul if small and self.x.itemsize > 2 else product)
        return self.made[1]

    def spread(self) -> Tensor:
        """All x W_k as the mixing spreads them, (*b, k, n, c); those that the structure was made of are taken."""
        if self.made is not None and self.made[0] is self.W and self.mixing.apart:
            return self.made[1].movedim(-2, -3)
        return self.mixing.spread(self.x, self.W)

    def products(self) -> Tensor:
        """(*b, k, n, c) the x W_k that a structure was made of."""
        assert self.made is not None
        return self.made[1].movedim(-2, -3)

    def has_made(self, products: Tensor) -> bool:
        """Whether these are this call's x W_k: a structure that holds them was made of this signal and weight."""
        return self.made is not None and self.made[0] is self.W and self.made[1] is products
