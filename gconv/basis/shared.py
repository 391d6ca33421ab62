"""SharedTaps: several taps on the entries of one, S_k[i, j] = sum over the entries e = (i, j) of values[e, k]."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from torch import Tensor

from gconv.basis.base import Basis, lazy
from gconv.basis.taps import Pattern
from gconv.kernels import heads_spmm


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

    def each(self, z: Tensor) -> Tensor:
        """(*b, k, n, c) -> (*b, k, m, c): S_k z_k, tap by tap."""
        return self._product(z.movedim(-3, -2)).movedim(-2, -3)
