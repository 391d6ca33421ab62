"""Diagonal: S_k = U diag(g_k) U^T, filters in the Fourier basis of a symmetric Laplacian."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gconv.basis.base import Basis


@dataclass(frozen=True, eq=False)
class Diagonal(Basis):
    """Structure matrices that are diagonal in one orthonormal basis.

    Args:
        U: (n, r) orthonormal eigenvectors as columns (r <= n of them).
        g: (k, r) the multiplier of each tap at each eigenvalue; may require grad.
        eigenvalues: (r,) ascending, for frequency responses.
        tangent: (k, r, r) or None: the result of `functions.tangent` for a matrix that requires a gradient. It is zero
            in value.

    S is a function of the matrix only if equal eigenvalues have equal multipliers (up to rounding). Otherwise S depends
    on which eigenvectors the solver returns for a repeated eigenvalue.
    """

    U: Tensor
    g: Tensor
    eigenvalues: Tensor
    tangent: Tensor | None = None

    def __post_init__(self) -> None:
        if not (self.g.ndim == self.U.ndim == 2 and self.eigenvalues.ndim == 1):
            raise ValueError(
                f"A diagonal structure takes U (n, r), g (k, r) and eigenvalues (r,), but they are "
                f"{tuple(self.U.shape)}, {tuple(self.g.shape)} and {tuple(self.eigenvalues.shape)}."
            )
        if not self.g.shape[-1] == self.U.shape[-1] == self.eigenvalues.shape[0]:
            raise ValueError(
                f"U has {self.U.shape[-1]} eigenvectors, g {self.g.shape[-1]} multipliers per tap, and there are "
                f"{self.eigenvalues.shape[0]} eigenvalues; the three must agree."
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.g.shape[0], self.U.shape[0], self.U.shape[0]

    @property
    def nnz(self) -> int:
        return (self.shape[0] + 1) * self.U.numel()

    @property
    def signature(self) -> Hashable:
        return "Diagonal", self.shape, self.U.shape[1]

    @property
    def T(self) -> Diagonal:
        return self

    @property
    def learned(self) -> list[Tensor]:
        return [t for t in (self.g, self.U, self.tangent) if t is not None and t.requires_grad]

    @property
    def by_entries(self) -> bool:
        return False

    def tap(self, k: int, dtype: torch.dtype, device: torch.device) -> Diagonal:
        tangent = None if self.tangent is None else self.tangent[k : k + 1]
        return replace(self, g=self.g[k : k + 1], tangent=tangent)

    def gft(self, x: Tensor) -> Tensor:
        """The graph Fourier transform U^T x, (*b, n, c) -> (*b, r, c)."""
        return self.U.t() @ x

    def igft(self, x: Tensor) -> Tensor:
        """The inverse, U x."""
        return self.U @ x

    def filtered(self, spectrum: Tensor) -> Tensor:
        """The multipliers of each tap times its spectrum, (*b, k or 1, r, c) -> (*b, k, r, c)."""
        product = self.g.unsqueeze(-1) * spectrum
        return product if self.tangent is None else product + self.tangent @ spectrum

    def expand(self, x: Tensor) -> Tensor:
        return self.igft(self.filtered(self.gft(x).unsqueeze(-3)))

    def contract(self, z: Tensor) -> Tensor:
        return self.igft(self.filtered(self.gft(z)).sum(-3))
