"""The identity, and stacks and products of other forms."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gconv.basis.base import Basis, lazy
from gconv.basis.entries import entries, identity, multiplied, single, stacked
from gconv.basis.taps import Taps


@dataclass(frozen=True)
class Identity(Basis):
    """One tap, the identity matrix."""

    n: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return 1, self.n, self.n

    @property
    def nnz(self) -> int:
        return 0

    @property
    def signature(self) -> Hashable:
        return self

    @property
    def T(self) -> Identity:
        return self

    def expand(self, x: Tensor) -> Tensor:
        return x.unsqueeze(-3)

    def contract(self, z: Tensor) -> Tensor:
        return z.squeeze(-3)

    def each(self, z: Tensor) -> Tensor:
        """S_0 z_0 = z_0."""
        return z

    @property
    def is_identity(self) -> bool:
        return True

    @property
    def tapwise(self) -> bool:
        return True

    def entries(self, dtype: torch.dtype, device: torch.device) -> Taps:
        return identity(self.n, dtype, device)

    def expand_flat(self, x: Tensor) -> Tensor:
        return x

    def contract_flat(self, z: Tensor, add: Tensor | None = None, row: Tensor | None = None) -> Tensor:
        y = z if add is None else add.add_(z)
        return y if row is None else y.add_(row)

    def rows(self, x: Tensor) -> Callable[[slice, Tensor], Tensor]:
        return lambda piece, out: x[piece]


class Composite(Basis):
    """A form made of others, its `parts`, and what follows from them."""

    parts: tuple[Basis, ...]

    @property
    def batch(self) -> tuple[int, ...]:
        return next((part.batch for part in self.parts if part.batch), ())

    @property
    def linear(self) -> bool:
        return all(part.linear for part in self.parts)

    @property
    def learned(self) -> list[Tensor]:
        return [values for part in self.parts for values in part.learned]

    @property
    def fixed(self) -> bool:
        for part in self.parts:  # noqa: SIM110  no generator, whose frame costs time in every call
            if not part.fixed:
                return False
        return True

    @property
    def by_entries(self) -> bool:
        return all(part.by_entries for part in self.parts)

    @property
    def steps(self) -> int:
        return sum(part.steps for part in self.parts)

    @property
    def count(self) -> int:
        return sum(part.count for part in self.parts)

    @property
    def unwritten(self) -> int:
        return sum(part.unwritten for part in self.parts)

    @property
    def is_grid(self) -> bool:
        return any(part.is_grid for part in self.parts)

    @property
    def patterns(self) -> tuple[Any, ...]:
        return tuple(csr for part in self.parts for csr in part.patterns)


@dataclass(frozen=True, eq=False)
class Stack(Composite):
    """The taps of several forms with the same (m, n), concatenated."""

    parts: tuple[Basis, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("A stack needs at least one structure.")
        shapes = [part.shape[1:] for part in self.parts]
        if any(shape != shapes[0] for shape in shapes):
            shapes = sorted(set(shapes))
            raise ValueError(f"Only structures of one shape (m, n) can be stacked, but these have {shapes}.")

    @property
    def shape(self) -> tuple[int, int, int]:
        return sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:]

    @property
    def nnz(self) -> int:
        return sum(part.nnz for part in self.parts)

    @property
    def signature(self) -> Hashable:
        return ("Stack", *(part.signature for part in self.parts))

    @lazy
    def T(self) -> Stack:
        return Stack(tuple(part.T for part in self.parts))

    def expand(self, x: Tensor) -> Tensor:
        # stored as (*b, m, k, c), so that mixing is one matrix product without a copy
        parts = [part.expand(x).movedim(-3, -2) for part in self.parts]
        return torch.cat(parts, -2).movedim(-2, -3)

    def contract(self, z: Tensor) -> Tensor:
        pieces = z.split([part.shape[0] for part in self.parts], -3)
        total = self.parts[0].contract(pieces[0])
        for part, piece in zip(self.parts[1:], pieces[1:], strict=True):
            total = total + part.contract(piece)
        return total

    @property
    def has_kernel(self) -> bool:
        return any(part.has_kernel for part in self.parts)

    @lazy
    def leaves(self) -> tuple[Basis, ...]:
        return tuple(leaf for part in self.parts for leaf in part.leaves)

    @property
    def tapwise(self) -> bool:
        return all(part.tapwise for part in self.parts)

    def overhead(self, mixing: Any, many: str = "") -> str:
        first = self.parts[0]
        words = first.overhead(mixing)
        if first.tapwise and words not in ("", " bare"):
            return words
        several = any(part.shape[0] > 1 for part in self.parts)
        return f"{' labels' if several else ' parts'}{many}"

    def as_sparse(self, dtype: torch.dtype, device: torch.device) -> Basis:
        found = tuple(part.as_sparse(dtype, device) for part in self.parts)
        return self if all(a is b for a, b in zip(found, self.parts, strict=True)) else Stack(found)

    def entries(self, dtype: torch.dtype, device: torch.device) -> Taps:
        return stacked([entries(part, dtype, device) for part in self.parts])

    def tap(self, k: int, dtype: torch.dtype, device: torch.device) -> Basis:
        for part in self.parts:
            if k < part.shape[0]:
                return single(part, k, dtype, device)
            k -= part.shape[0]
        raise IndexError(
            f"The tap is out of range: the number of taps is {self.shape[0]}, and they are numbered from 0."
        )

    def adapted(self, call: Any) -> Basis:
        return Stack(tuple(part.adapted(call) for part in self.parts))

    def fused(self, call: Any) -> Tensor | None:
        for part in self.parts[1:]:  # whose products are those of the call
            if not part.is_identity:
                return None
        return self.parts[0].fused(call)

    def each(self, z: Tensor) -> Tensor:
        """(*b, k, n, c) -> (*b, k, m, c): S_k z_k, tap by tap; every part must be `tapwise`."""
        pieces = z.split([part.shape[0] for part in self.parts], -3)
        return torch.cat([each(part, piece) for part, piece in zip(self.parts, pieces, strict=True)], -3)


@dataclass(frozen=True, eq=False)
class Product(Composite):
    """The product of two forms, S_(k, l) = left_k right_l; at least one of them has a single tap."""

    left: Basis
    right: Basis

    def __post_init__(self) -> None:
        if self.left.shape[2] != self.right.shape[1]:
            raise ValueError(
                f"In a product of structures the right one has {self.right.shape[1]} output sites, but the left one "
                f"has {self.left.shape[2]} input sites; they must be equal."
            )
        if min(self.left.shape[0], self.right.shape[0]) > 1:
            raise ValueError("Only one of two structures in a product may have several taps.")

    @property
    def parts(self) -> tuple[Basis, ...]:  # type: ignore[override]  # not lazy: compiled functions read it first
        return self.left, self.right

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.left.shape[0] * self.right.shape[0], self.left.shape[1], self.right.shape[2]

    @property
    def nnz(self) -> int:
        return self.left.nnz * self.right.shape[0] + self.right.nnz * self.left.shape[0]

    @property
    def signature(self) -> Hashable:
        return "Product", self.left.signature, self.right.signature

    @lazy
    def T(self) -> Product:
        return Product(self.right.T, self.left.T)

    def expand(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float16:  # right x may exceed its largest number although left right x does not
            return self.expand(x.float()).to(x.dtype)
        if self.right.shape[0] == 1:
            return self.left.expand(self.right.expand(x).squeeze(-3))
        return _to_each(self.left, self.right.expand(x))

    def contract(self, z: Tensor) -> Tensor:
        if z.dtype == torch.float16:
            return self.contract(z.float()).to(z.dtype)
        if self.right.shape[0] == 1:
            return self.left.contract(_to_each(self.right, z))
        if self.left.linear:  # and has a single tap
            return self.left.contract(self.right.contract(z).unsqueeze(-3))
        taps = [single(self, k, z.dtype, z.device).contract(one) for k, one in enumerate(z.split(1, -3))]
        return torch.stack(taps).sum(0)

    def entries(self, dtype: torch.dtype, device: torch.device) -> Taps:
        wide = torch.promote_types(dtype, torch.float32)
        return multiplied(entries(self.left, wide, device), entries(self.right, wide, device))

    def tap(self, k: int, dtype: torch.dtype, device: torch.device) -> Basis:
        right = self.right.shape[0]
        return Product(single(self.left, k // right, dtype, device), single(self.right, k % right, dtype, device))


def _to_each(S: Basis, z: Tensor) -> Tensor:
    """S z_k for a single tap S, (*b, k, n, c) -> (*b, k, m, c), in one product with all channels beside each other."""
    wide = S.expand(z.movedim(-3, -2).flatten(-2)).squeeze(-3)
    return wide.unflatten(-1, (z.shape[-3], z.shape[-1])).movedim(-2, -3)


def each(S: Basis, z: Tensor) -> Tensor:
    """S_k z_k, tap by tap, for a form that is `tapwise` (`Taps`, `Identity`, and stacks of them)."""
    result: Tensor = S.each(z)  # type: ignore[attr-defined]
    return result
