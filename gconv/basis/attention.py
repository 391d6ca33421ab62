"""AttentionTaps and DotTaps: attention as structure, evaluated by a fused kernel where possible."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from gconv.basis.base import Basis
from gconv.basis.shared import SharedTaps
from gconv.basis.taps import Dots, Pattern, Taps
from gconv.kernels import CSR, attention, attention_values, dot_attention, dot_values, is_fused


@dataclass(frozen=True, eq=False)
class Attended(Basis):
    """Attention whose values are computed and stored, as `written`, only where they are needed.

    Args:
        pattern: the sparsity pattern, with a single tap.
    """

    pattern: Pattern
    _memo: dict[tuple[bool, bool], SharedTaps] = field(default_factory=dict, init=False)

    @property
    def heads(self) -> int:
        raise NotImplementedError

    def attention_values(self, csr: CSR) -> Tensor:
        """(*b, e, heads) the values in row order."""
        raise NotImplementedError

    @property
    def written(self) -> SharedTaps:
        """The same structure with its values computed, cached for each mode: without gradients there is no graph."""
        traced = torch.compiler.is_dynamo_compiling()  # dynamo does not know the inference mode
        mode = torch.is_grad_enabled(), not traced and torch.is_inference_mode_enabled()
        made = self._memo.get(mode)
        if made is None:
            csr = self.pattern.csr("expand")
            made = SharedTaps(self.pattern, self.pattern.unordered(csr, self.attention_values(csr)))
            self._memo[mode] = made
        return made

    @property
    def values(self) -> Tensor:
        """(*b, e, heads) the values, in the order of the pattern's entries."""
        return self.written.values

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.heads, *self.pattern.shape[1:]

    @property
    def nnz(self) -> int:
        return self.heads * len(self.pattern)

    @property
    def signature(self) -> Hashable:
        return type(self).__name__, self.shape, self.nnz, bool(self.batch)

    @property
    def fixed(self) -> bool:
        return False

    @property
    def tapwise(self) -> bool:
        return True

    def entries(self, dtype: torch.dtype, device: torch.device) -> Taps:
        return self.written.entries(dtype, device)

    def tap(self, k: int, dtype: torch.dtype, device: torch.device) -> Basis:
        return self.written.tap(k, dtype, device)

    @property
    def T(self) -> SharedTaps:
        return self.written.T


@dataclass(frozen=True, eq=False)
class AttentionTaps(Attended):
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

    products: Tensor
    target: Tensor
    source: Tensor
    slope: float
    dropout: tuple[float, Tensor] | None = None

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

    def attention_values(self, csr: CSR) -> Tensor:
        return attention_values(csr, self.z, self.target, self.source, self.slope, self.dropout)

    def adapted(self, call: Any) -> Basis:
        return replace(self, products=call.mixed(call.W))

    def fused(self, call: Any) -> Tensor | None:
        return self.fused_attention().movedim(-2, -3) if call.is_cached(self.products) else None

    @property
    def batch(self) -> tuple[int, ...]:
        return tuple(self.products.shape[:-3])

    @property
    def learned(self) -> list[Tensor]:
        return [t for t in (self.target, self.source) if t.requires_grad and torch.is_grad_enabled()]

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

    def expand(self, x: Tensor) -> Tensor:
        return self.written.expand(x)

    def contract(self, z: Tensor) -> Tensor:
        return self.written.contract(z)

    def each(self, z: Tensor) -> Tensor:
        """(*b, k, n, c) -> (*b, k, n, c): S_k z_k, tap by tap."""
        return self.written.each(z)


@dataclass(frozen=True, eq=False)
class DotTaps(Attended):
    """S_h[i, j] = softmax over j of <query_ih, key_jh>; its products are one kernel, which stores no values of S.

    Args:
        pattern: the sparsity pattern, with a single tap.
        query: (*b, m, heads, c).
        key: (*b, n, heads, c).
        dropout: the fraction of S's values to drop, and a seed (1,).

    >>> import torch
    >>> pattern = Pattern((1, 1, 2), *torch.tensor([[0, 0], [0, 0], [0, 1]]))
    >>> S = DotTaps(pattern, torch.zeros(1, 1, 1), torch.ones(2, 1, 1))
    >>> S.values.flatten(), S.expand(torch.tensor([[1.0], [3.0]])).flatten(), isinstance(S, Attended)
    (tensor([0.5000, 0.5000]), tensor([2.]), True)
    """

    query: Tensor
    key: Tensor
    dropout: tuple[float, Tensor] | None = None

    @property
    def heads(self) -> int:
        return self.query.shape[-2]

    def attention_values(self, csr: CSR) -> Tensor:
        return dot_values(csr, self.query, self.key, self.dropout)

    @property
    def batch(self) -> tuple[int, ...]:
        return tuple(self.query.shape[:-3])

    @property
    def learned(self) -> list[Tensor]:
        return [t for t in (self.query, self.key) if t.requires_grad and torch.is_grad_enabled()]

    def overhead(self, mixing: Any, many: str = "") -> str:
        return " heads" if mixing.apart else f" learned{super().overhead(mixing)}"

    def expand(self, x: Tensor) -> Tensor:
        return self.each(x.unsqueeze(-3))

    def contract(self, z: Tensor) -> Tensor:
        return self.each(z).sum(-3)

    def each(self, z: Tensor) -> Tensor:
        """(*b, k or 1, n, c) -> (*b, k, m, c): S_k z_k, tap by tap."""
        if z.shape[:-3] != self.batch:  # S of one signal, applied to several
            return self.written.each(z.expand(*z.shape[:-3], self.heads, *z.shape[-2:]))
        y = dot_attention(self.pattern.csr("expand"), self.query, self.key, z.movedim(-3, -2), self.dropout)
        return y.movedim(-2, -3)


def attended(one: Pattern, logits: Tensor | Dots, dtype: torch.dtype) -> Basis:
    """One tap per head: the softmax over each row of logits (*b, e, h), which are not stored if a kernel is fused.

    Args:
        one: the sparsity pattern, with a single tap.
        logits: for 16-bit signals in float32.
        dtype: of the softmax.

    >>> import torch
    >>> pattern = Pattern((1, 1, 2), *torch.tensor([[0, 0], [0, 0], [0, 1]]))
    >>> dots = pattern.dots(torch.ones(1, 1, 1), torch.tensor([[[1.0]], [[1.0]]]))
    >>> isinstance(dots, Dots), attended(pattern, dots, torch.float32).values.flatten()
    (True, tensor([0.5000, 0.5000]))
    """
    if not isinstance(logits, Dots):
        return SharedTaps(one, one.softmax(logits).to(dtype))
    if is_fused(one.csr("expand")):
        return DotTaps(one, logits.row, logits.col)
    return SharedTaps(one, one.softmax(logits.values).to(dtype))
