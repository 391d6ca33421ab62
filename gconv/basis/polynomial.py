"""Polynomial: S_k = p_k(L) for polynomials with a three-term recurrence; the matrices p_k(L) are not formed."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor

from gconv import kernels
from gconv.arguments import plural, shown
from gconv.basis.base import Basis, lazy
from gconv.basis.entries import polynomial
from gconv.basis.taps import MAX_BYTES_PREPARED, Taps


@dataclass(frozen=True)
class Recurrence:
    """Coefficients of a polynomial family: p_0 = 1 and p_{k+1}(t) = (alpha_k t + beta_k) p_k(t) - gamma_k p_{k-1}(t).

    Row k is (alpha_k, beta_k, gamma_k); K - 1 rows define K polynomials.

    >>> Recurrence.chebyshev(4).at(torch.tensor(0.5))  # 1, t, 2t^2 - 1, 4t^3 - 3t
    tensor([ 1.0000,  0.5000, -0.5000, -1.0000])
    """

    name: str
    rows: tuple[tuple[float, float, float], ...]

    def __post_init__(self) -> None:
        if not isinstance(self.rows, tuple) or any(not isinstance(row, tuple) or len(row) != 3 for row in self.rows):
            raise ValueError(f"The rows of a recurrence are tuples (alpha, beta, gamma), not {shown(self.rows)}.")
        if self.rows and self.rows[0][2] != 0:
            raise ValueError(
                f"The first step of a recurrence has no p_(-1), so gamma_0 must be 0, not {self.rows[0][2]}."
            )

    @classmethod
    def chebyshev(cls, terms: int) -> Recurrence:
        if terms < 1:
            raise ValueError(f"A recurrence has at least one term, not {terms}.")
        return cls("chebyshev", tuple((1.0, 0.0, 0.0) if k == 0 else (2.0, 0.0, 1.0) for k in range(terms - 1)))

    @classmethod
    def monomial(cls, terms: int) -> Recurrence:
        if terms < 1:
            raise ValueError(f"A recurrence has at least one term, not {terms}.")
        return cls("monomial", ((1.0, 0.0, 0.0),) * (terms - 1))

    @property
    def terms(self) -> int:
        return len(self.rows) + 1

    def at(self, t: Tensor) -> Tensor:
        """The values of all polynomials at numbers t, (k, *t.shape)."""
        values = [torch.ones_like(t)]
        for k, (alpha, beta, gamma) in enumerate(self.rows):
            step = (alpha * t + beta) * values[k]
            values.append(step - gamma * values[k - 1] if gamma else step)
        return torch.stack(values)


@dataclass(frozen=True, eq=False)
class Polynomial(Basis):
    """Polynomials of one sparse matrix, S_j = sum_k combine[j, k] p_k(L).

    Args:
        L: one tap of shape (n, n).
        recurrence: the family p_k.
        combine: (j, k) coefficients: numbers, or a tensor that may require grad; None for one tap per polynomial.
    """

    L: Taps
    recurrence: Recurrence
    combine: Tensor | tuple[tuple[float, ...], ...] | None = None
    _products: dict[Any, kernels.ReadyRecurrence | Literal[False]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        L, c, terms = self.L, self.combine, len(self.recurrence.rows) + 1
        square = isinstance(L, Taps) and L.pattern.shape[0] == 1 and L.pattern.shape[1] == L.pattern.shape[2]
        if not square or L.reduce != "sum":
            what = f"{L.reduce} over {L.shape}" if isinstance(L, Taps) else shown(L)
            raise ValueError(f"L of a polynomial must be Taps of shape (1, n, n) that sum, but it is {what}.")
        if c is None:
            return
        if len(c) == 0 or (isinstance(c, Tensor) and c.ndim != 2):
            what = f"shape {tuple(c.shape)}" if isinstance(c, Tensor) else "no rows"
            raise ValueError(f"combine takes a row of {plural(terms, 'coefficient')} for each tap, but it has {what}.")
        for row in c[:1] if isinstance(c, Tensor) else c:
            if len(row) != terms:
                raise ValueError(
                    f"combine has {plural(len(row), 'column')}, but the recurrence gives {plural(terms, 'term')}."
                )

    @property
    def shape(self) -> tuple[int, int, int]:
        taps = self.recurrence.terms if self.combine is None else len(self.combine)
        return taps, *self.L.shape[1:]

    @property
    def nnz(self) -> int:
        return (self.recurrence.terms - 1) * self.L.nnz

    @property
    def signature(self) -> Hashable:
        return "Polynomial", self.shape, self.recurrence, self.L.nnz

    @lazy
    def T(self) -> Polynomial:
        return Polynomial(self.L.T, self.recurrence, self.combine)

    @property
    def _fixed(self) -> bool:
        """Whether L is not learned, so that the recurrence runs as one torch operator."""
        return not self.L.values.requires_grad and bool(self.recurrence.rows)

    def _apply(self, x: Tensor) -> Tensor:
        return self.L.expand(x).squeeze(-3)

    def _terms(self, x: Tensor) -> Iterator[Tensor]:
        """Generates p_k(L) x."""
        before, now = None, x
        yield now
        for alpha, beta, gamma in self.recurrence.rows:
            step = self._apply(now) if alpha == 1 else alpha * self._apply(now)
            step = step + beta * now if beta else step
            step = step - gamma * before if before is not None and gamma else step
            before, now = now, step
            yield now

    def expand(self, x: Tensor) -> Tensor:
        if self.combine is not None and len(self.combine) == 1:
            return self._single(self.combine[0], x).unsqueeze(-3)
        if self._fixed:
            csr, values, back = self.L.ordered("expand")
            terms = kernels.terms(csr, values, x, self.recurrence.rows, back)  # (*b, n, k, c)
        else:
            terms = torch.stack(list(self._terms(x)), -2)
        if self._zeros:
            assert isinstance(self.combine, tuple)
            return torch.stack([_weighted(row, iter(terms.unbind(-2))) for row in self.combine], -3)
        if self.combine is not None:
            terms = torch.einsum("jk,...nkc->...njc", self._combine(x), terms)
        return terms.movedim(-2, -3)

    def _single(self, coefficients: Tensor | tuple[float, ...], x: Tensor) -> Tensor:
        """sum_k c_k p_k(L) x."""
        if x.dtype == torch.float16:  # terms may exceed its largest number although their sum times a diagonal does not
            return self._single(coefficients, x.float()).to(x.dtype)
        if isinstance(coefficients, Tensor) or not self._fixed:
            return _weighted(coefficients, self._terms(x))
        csr, values, back = self.L.ordered("expand")
        return kernels.filtered(csr, values, x, self.recurrence.rows, coefficients, back)

    def _combine(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.combine, dtype=x.dtype, device=x.device)

    @lazy
    def _zeros(self) -> bool:
        """Whether a coefficient is the number 0, with which no NaN may be multiplied."""
        return isinstance(self.combine, tuple) and 0 in chain(*self.combine)

    @property
    def fixed(self) -> bool:
        c = self.combine
        return not (self.L.values.requires_grad or (isinstance(c, Tensor) and c.requires_grad))

    @property
    def learned(self) -> list[Tensor]:
        c = self.combine
        return self.L.learned + ([c] if isinstance(c, Tensor) and c.requires_grad else [])

    @property
    def by_entries(self) -> bool:
        return False

    @property
    def steps(self) -> int:
        return self.recurrence.terms

    @property
    def patterns(self) -> tuple[kernels.CSR, ...]:
        return self.L.patterns

    def overhead(self, mixing: Any, many: str = "") -> str:
        return f" terms{super().overhead(mixing, many)}"

    def entries(self, dtype: torch.dtype, device: torch.device) -> Taps:
        return polynomial(self.L, self.recurrence.rows, self.combine, dtype, device)

    def tap(self, k: int, dtype: torch.dtype, device: torch.device) -> Polynomial:
        if self.combine is None:
            return replace(self, combine=(tuple(float(j == k) for j in range(self.recurrence.terms)),))
        return replace(self, combine=self.combine[k : k + 1])

    def expand_flat(self, x: Tensor) -> Tensor:
        if self.combine is not None or not self.recurrence.rows:
            return super().expand_flat(x)
        fits = x.ndim == 2 and x.is_contiguous()
        version = 0 if self.L.values.is_inference() else self.L.values._version
        run = self._products.get((x.shape[-1], x.dtype, version)) if fits else False
        if run is None:
            run = self._prepare(x, x.shape[-1], version)
        if run:
            return run.terms(x)
        csr, values, back = self.L.ordered("expand")
        return kernels.terms(csr, values, x, self.recurrence.rows, back).flatten(-2)

    def contract_flat(self, z: Tensor, add: Tensor | None = None, row: Tensor | None = None) -> Tensor:
        if self.combine is not None or not self.recurrence.rows:
            return super().contract_flat(z, add, row)
        c = z.shape[-1] // (len(self.recurrence.rows) + 1)
        version = 0 if self.L.values.is_inference() else self.L.values._version
        run = self._products.get((c, z.dtype, version)) if z.ndim == 2 and z.is_contiguous() else False
        if run is None:
            run = self._prepare(z, c, version)
        if run:
            y = run.clenshaw(z)
        else:
            csr, values, back = self.L.ordered("expand")
            y = kernels.clenshaw(csr, values, z.unflatten(-1, (self.shape[0], -1)), self.recurrence.rows, back)
        y = y if add is None else add.add_(y)
        return y if row is None else y.add_(row)

    def _prepare(self, x: Tensor, c: int, version: int) -> kernels.ReadyRecurrence | Literal[False]:
        """A prepared recurrence for x's dtype and c channels, or False; cached in `_products`."""
        run: kernels.ReadyRecurrence | Literal[False] = False
        if self.shape[2] * c * self.recurrence.terms * x.element_size() <= MAX_BYTES_PREPARED:
            csr, values, _ = self.L.ordered("expand")
            run = kernels.ready_recurrence(csr, values, c, self.recurrence.rows, x.dtype) or False
        if any(key[-1] != version for key in list(self._products)):  # of values that were modified in place since
            self._products.clear()
        self._products[c, x.dtype, version] = run
        return run

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_products": {}}  # which contain memory addresses

    def contract(self, z: Tensor) -> Tensor:
        """Clenshaw: with b_k = z_k + (alpha_k L + beta_k) b_{k+1} - gamma_{k+1} b_{k+2}, the sum is b_0."""
        if self.combine is not None and len(self.combine) == 1:
            return self.expand(z.squeeze(-3)).squeeze(-3)
        if self._zeros:
            assert isinstance(self.combine, tuple)
            columns = zip(*self.combine, strict=True)
            z = torch.stack([_weighted(column, iter(z.unbind(-3))) for column in columns], -3)
        elif self.combine is not None:
            z = torch.einsum("jk,...jnc->...knc", self._combine(z), z)
        if self._fixed:
            csr, values, back = self.L.ordered("expand")
            return kernels.clenshaw(csr, values, z.movedim(-3, -2), self.recurrence.rows, back)
        rows = self.recurrence.rows
        z_k = z.unbind(-3) if rows else (z.squeeze(-3),)  # results of `unbind` cannot be modified in place
        ahead, b = None, z_k[-1]
        for k in range(len(rows) - 1, -1, -1):
            alpha, beta, _ = rows[k]
            step = z_k[k] + (self._apply(b) if alpha == 1 else alpha * self._apply(b))
            step = step + beta * b if beta else step
            step = step - rows[k + 1][2] * ahead if ahead is not None and rows[k + 1][2] else step
            ahead, b = b, step
        return b


def _weighted(coefficients: Tensor | tuple[float, ...], terms: Iterator[Tensor]) -> Tensor:
    """sum_k c_k p_k, with one term in memory at a time; no multiplication by 0 or 1."""
    total = None
    for c, term in zip(coefficients, terms, strict=True):
        if not isinstance(c, Tensor) and c == 0:
            continue
        part = term if not isinstance(c, Tensor) and c == 1 else c * term
        total = part if total is None else total + part
    return torch.zeros_like(term) if total is None else total
