"""AttentionTaps: additive attention as structure, evaluated by a fused kernel where possible."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from gconv.basis.base import Basis
from gconv.basis.shared import SharedTaps
from gconv.basis.taps import Pattern, Taps
from gconv.kernels import attention, attention_values


@dataclass(frozen=True, eq=False)
class AttentionTaps(Basis):
    """S_h[i, j] = softmax over j of LeakyReLU(<z_ih, target_h> + <z_jh, source_h>), z_h = x W_h.

    Args:
        pattern: the sparsity pattern, square, with a single tap.
        products: all x W_k (*b, n, k, c), of which the first `heads` are z.
        target, source: (heads, c).
        slope: of LeakyReLU for negative arguments.
        dropout: the fraction of S's values to drop, and a seed (1,).

    >>> import torch
    >>> pattern = Pattern((1, 2, 2), *torch.tensor([[0, 0], [0, 0], [0, 1]]))
    >>> x = torch.tensor([[0.0], [-5.0]])
    >>> S = AttentionTaps(pattern, x.unsqueeze(-1), torch.ones(1, 1), torch.ones(1, 1), 0.0)
    >>> S.values.flatten(), S.fused_attention().flatten()
    (tensor([0.5000, 0.5000]), tensor([-2.5000,  0.0000]))
    """

    pattern: Pattern
    products: Tensor
    target: Tensor
    source: Tensor
    slope: float
    dropout: tuple[float, Tensor] | None = None
    _memo: list[SharedTaps] = field(default_factory=list, init=False)

    @property
    def heads(self) -> int:
        return self.target.shape[0]

    @property
    def z(self) -> Tensor:
        """(*b, n, heads, c) the products from which the logits are computed."""
        return self.products[..., : self.heads, :]

    def fused_attention(self) -> Tensor:
        """(*b, n, heads, c) all S_h z_h, by one fused kernel that does not store the values of S."""
        z = self.products[..., : len(self.target), :]
        return attention(self.pattern.csr("expand"), z, self.target, self.source, self.slope, self.dropout)

    def adapted(self, call: Any) -> Basis:
        return replace(self, products=call.mixed(call.W))

    def fused(self, call: Any) -> Tensor | None:
        return self.fused_attention().movedim(-2, -3) if call.is_cached(self.products) else None

    @property
    def written(self) -> SharedTaps:
        """The same structure with its values computed, cached."""
        if not self._memo:
            csr = self.pattern.csr("expand")
            values = attention_values(csr, self.z, self.target, self.source, self.slope, self.dropout)
            self._memo.append(SharedTaps(self.pattern, self.pattern.unordered(csr, values)))
        return self._memo[0]

    @property
    def values(self) -> Tensor:
        """(*b, e, heads) the values, in the order of the pattern's entries."""
        return self.written.values

    @property
    def batch(self) -> tuple[int, ...]:
        return tuple(self.products.shape[:-3])

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.heads, *self.pattern.shape[1:]

    @property
    def nnz(self) -> int:
        return self.heads * len(self.pattern)

    @property
    def signature(self) -> Hashable:
        return "AttentionTaps", self.shape, self.nnz, self.products.ndim > 3

    @property
    def learned(self) -> list[Tensor]:
        return [t for t in (self.target, self.source) if t.requires_grad and torch.is_grad_enabled()]

    @property
    def fixed(self) -> bool:
        return False

    @property
    def tapwise(self) -> bool:
        return True

    @property
    def has_kernel(self) -> bool:
        return True

    @property
    def unwritten(self) -> int:
        return self.nnz

    def overhead(self, mixing: Any, many: str = "") -> str:
        return " attention"

    def as_sparse(self, dtype: torch.dtype, device: torch.device) -> Basis:
        return self.written

    def entries(self, dtype: torch.dtype, device: torch.device) -> Taps:
        return self.written.entries(dtype, device)

    def tap(self, k: int, dtype: torch.dtype, device: torch.device) -> Basis:
        return self.written.tap(k, dtype, device)

    @property
    def T(self) -> SharedTaps:
        return self.written.T

    def expand(self, x: Tensor) -> Tensor:
        return self.written.expand(x)

    def contract(self, z: Tensor) -> Tensor:
        return self.written.contract(z)

    def each(self, z: Tensor) -> Tensor:
        """(*b, k, n, c) -> (*b, k, n, c): S_k z_k, tap by tap."""
        return self.written.each(z)
