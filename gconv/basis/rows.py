"""A sparsity pattern stored in CSR form only, without the COO list of its entries."""

from __future__ import annotations

import torch
from torch import Tensor

from gconv.basis.base import lazy
from gconv.basis.taps import Layout, Pattern
from gconv.kernels import CSR
from gconv.kernels.sparse import rows_of


class ByRows(Pattern):
    """A single tap with its entries sorted by row; `row` and `col` are computed and cached when they are read.

    The int64 indices of a COO list take more memory than all data that products with a symmetric structure read.

    >>> swap = Pattern((1, 2, 2), *torch.tensor([[0, 0], [1, 0], [0, 1]]))
    >>> ByRows.of(swap).written().row
    tensor([0, 1])
    """

    def __init__(self, shape: tuple[int, int, int], tap: Tensor, csr: CSR, _memo: object = None) -> None:
        # torch.compile of torch 2.11 passes the default of _memo, as for a dataclass, and traces no update of __dict__
        self.__dict__["shape"], self.__dict__["tap"], self.__dict__["_memo"] = shape, tap, {"expand": csr}

    @classmethod
    def of(cls, pattern: Pattern) -> ByRows:
        """The same entries, sorted by row and column; the sort is stable."""
        crow, col, crow_t, col_t, to_t, from_t = pattern.csr("expand").tensors
        return cls(pattern.shape, pattern.tap, CSR(crow, col, crow_t, col_t, None, to_t, from_t))

    def csr(self, layout: Layout) -> CSR:
        return self._memo["expand"]  # all layouts are the same for a single tap

    def written(self) -> Pattern:
        """The same pattern as a COO list, which is not cached here."""
        csr = self.csr("expand")
        row, col = rows_of(csr.crow, csr.col), csr.col.long()
        if csr.perm is not None:  # of a transpose, whose entries are in the order of the original
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
