"""SharedTaps: several taps on the entries of one, S_k[i, j] = sum over the entries e = (i, j) of values[e, k]."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gconv.basis.base import Basis, lazy
from gconv.basis.taps import Pattern, Taps
from gconv.kernels import CSR, heads_spmm


@dataclass(frozen=True, eq=False)
class SharedTaps(Basis):
    """Taps whose entries sit in the same places, as attention's heads do: one pattern, k values an entry.

    Args:
        pattern: where the entries are, a single tap.
        values: (e, k) in the order of the pattern's entries; may require grad.
        transposed: the stack of the transposed matrices.

    >>> import torch
    >>> pattern = Pattern((1, 1, 2), *torch.tensor([[0, 0], [0, 0], [0, 1]]))
    >>> SharedTaps(pattern, torch.tensor([[1.0, 2.0], [3.0, 4.0]])).expand(torch.tensor([[1.0], [10.0]])).flatten()
    tensor([31., 42.])
    """

    pattern: Pattern
    values: Tensor
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        _, m, n = self.pattern.shape
        return self.values.shape[1], *((n, m) if self.transposed else (m, n))

    @property
    def nnz(self) -> int:
        return self.values.numel()

    @property
    def signature(self) -> Hashable:
        return "SharedTaps", self.shape, self.nnz

    @lazy
    def T(self) -> SharedTaps:
        return SharedTaps(self.pattern, self.values, not self.transposed)

    def _product(self, x: Tensor, together: bool = False) -> Tensor:
        csr = self.pattern.csr("expand")
        return heads_spmm(csr, csr.ordered(self.values), x, together, self.transposed)

    def expand(self, x: Tensor) -> Tensor:
        return self._product(x.unsqueeze(-2)).movedim(-2, -3)

    def contract(self, z: Tensor) -> Tensor:
        return self._product(z.movedim(-3, -2), together=True).squeeze(-2)

    @property
    def learned(self) -> list[Tensor]:
        return [self.values] if self.values.requires_grad else []

    @property
    def tapwise(self) -> bool:
        return True

    @property
    def patterns(self) -> tuple[CSR, ...]:
        return self.pattern.layouts

    def overhead(self, mixing: Any, many: str = "") -> str:
        return " heads" if mixing.apart else f" learned{super().overhead(mixing)}"

    def entries(self, dtype: torch.dtype, device: torch.device) -> Taps:
        one = self.pattern.T if self.transposed else self.pattern
        k, e = self.shape[0], len(one)
        tap = torch.arange(k, device=one.row.device).repeat_interleave(e)
        return Taps(Pattern(self.shape, tap, one.row.repeat(k), one.col.repeat(k)), self.values.mT.flatten())

    def tap(self, k: int, dtype: torch.dtype, device: torch.device) -> SharedTaps:
        return replace(self, values=self.values[:, k : k + 1])

    def each(self, z: Tensor) -> Tensor:
        """(*b, k, n, c) -> (*b, k, m, c): S_k z_k, tap by tap."""
        return self._product(z.movedim(-3, -2)).movedim(-2, -3)
