"""Axes: one small matrix along each axis of a grid, S = A_1 (x) A_2 (x) A_3; the Kronecker product is not formed."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from gconv.arguments import shown
from gconv.basis.base import Basis, lazy
from gconv.basis.entries import kronecker
from gconv.basis.taps import Taps


@dataclass(frozen=True, eq=False)
class Axes(Basis):
    """One tap that acts along each axis in turn (resampling).

    Args:
        factors: for each axis a single tap (m_a, n_a); the grids are the m_a and the n_a, row-major.

    >>> import torch
    >>> from gconv.basis import Pattern
    >>> zero = torch.zeros(2, dtype=torch.int64)
    >>> double = Taps(Pattern((1, 2, 1), zero, torch.arange(2), zero), torch.ones(2))  # one site becomes two
    >>> Axes((double, double)).expand(torch.tensor([[5.0]])).flatten()
    tensor([5., 5., 5., 5.])
    """

    factors: tuple[Taps, ...]

    def __post_init__(self) -> None:
        for A in self.factors:
            if not isinstance(A, Taps) or A.pattern.shape[0] != 1 or A.reduce != "sum":
                what = f"{A.reduce} over {A.shape}" if isinstance(A, Taps) else shown(A)
                raise ValueError(f"A factor along an axis must be Taps of shape (1, m, n) that sum, but it is {what}.")
        if not self.factors:
            raise ValueError("Axes take one factor for each axis of the grid, but there are none.")

    @lazy
    def shape(self) -> tuple[int, int, int]:
        return 1, math.prod([A.shape[1] for A in self.factors]), math.prod([A.shape[2] for A in self.factors])

    @property
    def nnz(self) -> int:
        """The non-zeros of each factor times the number of lines that it is applied to, one axis after another."""
        rows, cols = [A.shape[1] for A in self.factors], [A.shape[2] for A in self.factors]
        return sum(A.nnz * math.prod(rows[:a]) * math.prod(cols[a + 1 :]) for a, A in enumerate(self.factors))

    @property
    def signature(self) -> Hashable:
        return "Axes", *(A.signature for A in self.factors)

    @lazy
    def T(self) -> Axes:
        return Axes(tuple(A.T for A in self.factors))

    def expand(self, x: Tensor) -> Tensor:
        d, c = len(self.factors), x.shape[-1]
        y = x.unflatten(-2, [A.shape[2] for A in self.factors])  # (*b, n_1, ..., n_d, c)
        for a, A in enumerate(self.factors):
            after = d - a  # the number of axes after this one, including the channels
            rest = y.shape[y.ndim - after :]
            y = A.expand(y.flatten(-after)).squeeze(-3).unflatten(-1, rest)
        return y.flatten(-d - 1, -2).unsqueeze(-3) if c else y.reshape(*x.shape[:-2], 1, self.shape[1], 0)

    @property
    def learned(self) -> list[Tensor]:
        return [values for factor in self.factors for values in factor.learned]

    def entries(self, dtype: torch.dtype, device: torch.device) -> Taps:
        return reduce(kronecker, self.factors)

    def contract(self, z: Tensor) -> Tensor:
        return self.expand(z.squeeze(-3)).squeeze(-3)
