"""LinearMap: an operator bound to its domain and weights, as the linear map that it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from gconv.basis import Basis
from gconv.mixing import Mixing
from gconv.plan import evaluate


@dataclass(frozen=True, eq=False)
class LinearMap:
    """The linear part of an operator, x (*b, n, i) -> A @ x (*b, m, o); the bias is left out.

    Args:
        S: the structure on its domain; adaptive structure is frozen at the x it was made from.
        mixing, W: the channel part.
        i: channels in.

    >>> from gconv import GConv, Grid
    >>> from gconv.operators import conv1d
    >>> A = GConv(conv1d(2, 3, 3)).at(Grid((8,)))
    >>> A.shape, A.T.shape, tuple((A @ torch.zeros(8, 2)).shape)
    ((18, 16), (16, 18), (6, 3))
    """

    S: Basis
    mixing: Mixing
    W: Tensor | None
    i: int
    dtype: torch.dtype = field(default_factory=torch.get_default_dtype)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def o(self) -> int:
        """Channels out."""
        return self.mixing.channels(self.i)

    @property
    def sites(self) -> tuple[int, int]:
        """(m, n): sites out, sites in."""
        return self.S.shape[1], self.S.shape[2]

    @property
    def shape(self) -> tuple[int, int]:
        """(m o, n i), the shape of the matrix."""
        return self.S.shape[1] * self.o, self.S.shape[2] * self.i

    @cached_property
    def T(self) -> LinearMap:
        """The adjoint: every S_k and W_k transposed."""
        mixing, W = self.mixing.transpose(self.W, self.i)
        return LinearMap(self.S.T, mixing, W, self.o, self.dtype, self.device)

    def __matmul__(self, x: Tensor) -> Tensor:
        return self.apply(x)

    def apply(self, x: Tensor, lowering: str | None = None) -> Tensor:
        """A @ x, by a lowering of choice.

        Raises:
            ValueError: if x has other sites or channels than the map.
        """
        if x.ndim < 2 or x.shape[-2:] != (self.S.shape[2], self.i):
            raise ValueError(
                f"This map takes signals (*b, {self.S.shape[2]} sites, {self.i} channels), "
                f"but x has shape {tuple(x.shape)}."
            )
        return evaluate(self.S, self.mixing, self.W, x, None, lowering)

    def __repr__(self) -> str:
        return f"LinearMap({self.shape[0]} x {self.shape[1]}, {type(self.S).__name__}, {type(self.mixing).__name__})"
