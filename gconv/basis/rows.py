"""A pattern without a list of its entries: the rows that the products read are all that is kept."""

from __future__ import annotations

import torch
from torch import Tensor

from gconv.basis.base import lazy
from gconv.basis.taps import Layout, Pattern
from gconv.kernels import CSR
from gconv.kernels.sparse import rows_of


class ByRows(Pattern):
    """A single tap, its entries row by row; `row` and `col` are written out, and kept, for who asks for them.

    A list of int64 numbers takes more than everything that a product on a symmetric structure reads.

    >>> swap = Pattern((1, 2, 2), *torch.tensor([[0, 0], [1, 0], [0, 1]]))
    >>> ByRows.of(swap).written().row
    tensor([0, 1])
    """

    def __init__(self, shape: tuple[int, int, int], tap: Tensor, csr: CSR) -> None:
        self.__dict__.update(shape=shape, tap=tap, _memo={"expand": csr})

    @classmethod
    def of(cls, pattern: Pattern) -> ByRows:
        """The same entries, sorted by row and column; equal ones in their order."""
        crow, col, crow_t, col_t, to_t, from_t = pattern.csr("expand").tensors
        return cls(pattern.shape, pattern.tap, CSR(crow, col, crow_t, col_t, None, to_t, from_t))

    def csr(self, layout: Layout) -> CSR:
        return self._memo["expand"]  # with a single tap all layouts are the same

    def written(self) -> Pattern:
        """The same with a list of the entries, which is not kept here."""
        csr = self.csr("expand")
        row, col = rows_of(csr.crow, csr.col), csr.col.long()
        if csr.perm is not None:  # of a transpose, whose entries keep their order
            row, col = (torch.empty_like(end).index_copy(0, csr.perm.long(), end) for end in (row, col))
        return Pattern(self.shape, self.tap, row, col)

    @lazy
    def row(self) -> Tensor:
        return self.written().row

    @lazy
    def col(self) -> Tensor:
        return self.written().col

    @lazy
    def T(self) -> Pattern:
        k, m, n = self.shape
        return ByRows((k, n, m), self.tap, self.csr("expand").T)

    def __len__(self) -> int:
        return self.tap.shape[0]
