"""SharedTaps: several taps with one pattern, S_k[i, j] = sum over the entries e = (i, j) of values[e, k]."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gconv.arguments import plural, shown
from gconv.basis.base import Basis, lazy
from gconv.basis.taps import SWAPPED, Layout, Pattern, Taps
from gconv.kernels import CSR, heads_spmm


@dataclass(frozen=True, eq=False)
class SharedTaps(Basis):
    """Taps with a common sparsity pattern, such as the heads of attention: k values per entry.

    Args:
        pattern: the sparsity pattern. If it has t taps itself, such as relations, there are t k taps: those of its
            first tap, those of its second, and so on.
        values: (e, k) in the order of the pattern's entries, or (*b, e, k) if each signal has its own; may require
            grad.
        transposed: the stack of the transposed matrices.

    >>> import torch
    >>> pattern = Pattern((1, 1, 2), *torch.tensor([[0, 0], [0, 0], [0, 1]]))
    >>> SharedTaps(pattern, torch.tensor([[1.0, 2.0], [3.0, 4.0]])).expand(torch.tensor([[1.0], [10.0]])).flatten()
    tensor([31., 42.])
    """

    pattern: Pattern
    values: Tensor
    transposed: bool = False

    def __post_init__(self) -> None:
        values = self.values
        if not isinstance(values, Tensor) or values.ndim < 2 or values.shape[-2] != self.pattern.tap.shape[0]:
            what = tuple(values.shape) if isinstance(values, Tensor) else shown(values)
            raise ValueError(
                f"SharedTaps take values (*b, e, k) for the {plural(len(self.pattern), 'entry', 'entries')}, but they "
                f"are {what}."
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        t, m, n = self.pattern.shape
        return t * self.values.shape[-1], *((n, m) if self.transposed else (m, n))

    @property
    def batch(self) -> tuple[int, ...]:
        return tuple(self.values.shape[:-2])

    @property
    def nnz(self) -> int:
        return self.values.shape[-2] * self.values.shape[-1]

    @property
    def signature(self) -> Hashable:
        return "SharedTaps", self.shape, self.nnz, self.values.ndim > 2

    @lazy
    def T(self) -> SharedTaps:
        return SharedTaps(self.pattern, self.values, not self.transposed)

    def _product(self, layout: Layout, x: Tensor, together: bool = False) -> Tensor:
        csr = self.pattern.csr(SWAPPED[layout] if self.transposed else layout)
        return heads_spmm(csr, csr.ordered(self.values, -2), x, together, self.transposed)

    def _by_heads(self, z: Tensor) -> Tensor:
        """(*b, t k, n, c) -> (*b, n t, k, c)."""
        z, t = z.movedim(-3, -2), self.pattern.shape[0]
        return z if t == 1 else z.unflatten(-2, (t, -1)).flatten(-4, -3)

    def _by_taps(self, y: Tensor) -> Tensor:
        """(*b, m t, k, c) -> (*b, t k, m, c)."""
        t = self.pattern.shape[0]
        return (y if t == 1 else y.unflatten(-3, (-1, t)).flatten(-3, -2)).movedim(-2, -3)

    def expand(self, x: Tensor) -> Tensor:
        return self._by_taps(self._product("expand", x.unsqueeze(-2)))

    def contract(self, z: Tensor) -> Tensor:
        return self._product("contract", self._by_heads(z), together=True).squeeze(-2)

    @property
    def learned(self) -> list[Tensor]:
        return [self.values] if self.values.requires_grad else []

    @property
    def fixed(self) -> bool:
        return self.values.ndim == 2 and not self.values.requires_grad

    @property
    def tapwise(self) -> bool:
        return True

    @property
    def patterns(self) -> tuple[CSR, ...]:
        return self.pattern.layouts

    def overhead(self, mixing: Any, many: str = "") -> str:
        return " heads" if mixing.apart else f" learned{super().overhead(mixing)}"

    def entries(self, dtype: torch.dtype, device: torch.device) -> Taps:
        one, k = self.pattern.T if self.transposed else self.pattern, self.values.shape[-1]
        tap = one.tap.repeat(k) * k + torch.arange(k, device=one.row.device).repeat_interleave(len(one))
        return Taps(Pattern(self.shape, tap, one.row.repeat(k), one.col.repeat(k)), self.values.mT.flatten())

    def tap(self, k: int, dtype: torch.dtype, device: torch.device) -> Basis:
        if self.pattern.shape[0] > 1:
            return self.entries(dtype, device).tap(k, dtype, device)
        return replace(self, values=self.values[..., k : k + 1])

    def each(self, z: Tensor) -> Tensor:
        """(*b, k, n, c) -> (*b, k, m, c): S_k z_k, tap by tap."""
        return self._by_taps(self._product("each", self._by_heads(z)))
