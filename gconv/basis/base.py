"""What every form of S promises, and the two smallest forms."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

import torch
from torch import Tensor

from gconv.kernels import lasting

T = TypeVar("T")


class lazy(Generic[T]):
    """A property computed once for each object, but for objects within a compiler's trace.

    functools.cached_property without its lock, which torch.compile cannot trace.
    """

    def __init__(self, make: Callable[[Any], T]) -> None:
        self.make, self.name, self.__doc__ = make, make.__name__, make.__doc__

    @overload
    def __get__(self, owner: None, kind: Any = None) -> lazy[T]: ...

    @overload
    def __get__(self, owner: object, kind: Any = None) -> T: ...

    def __get__(self, owner: Any, kind: Any = None) -> Any:
        if owner is None:
            return self
        if torch.compiler.is_dynamo_compiling():
            return self.make(owner)
        with lasting(owner):
            value = owner.__dict__[self.name] = self.make(owner)
        return value


class Basis:
    """A stack of k structure matrices of shape (m, n); each form says for itself what lowerings ask of it."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(k, m, n): taps, output sites, input sites."""
        raise NotImplementedError

    @property
    def nnz(self) -> int:
        """Multiply-adds a channel that `expand` needs: the non-zeros of all taps, or of the steps of a recurrence."""
        raise NotImplementedError

    @property
    def linear(self) -> bool:
        """False where a tap reduces with max."""
        return True

    @property
    def signature(self) -> Hashable:
        """What a plan may depend on: form, shape and counts, no numbers."""
        raise NotImplementedError

    @property
    def T(self) -> Basis:
        """The stack of the transposed matrices."""
        raise NotImplementedError

    def expand(self, x: Tensor) -> Tensor:
        """All S_k x, (*b, n, c) -> (*b, k, m, c)."""
        raise NotImplementedError

    def contract(self, z: Tensor) -> Tensor:
        """sum_k S_k z_k, (*b, k, n, c) -> (*b, m, c)."""
        raise NotImplementedError

    def adapted(self, call: Any) -> Basis:
        """The same structure, where it is made of products x W_k, made of those of this call (a `gconv.call.Call`)."""
        return self

    def fused(self, call: Any) -> Tensor | None:
        """(*b, k, m, c) all S_k x W_k by one kernel, where S was made of this call's x W_k; else None."""
        return None


@dataclass(frozen=True)
class Identity(Basis):
    """One tap, the identity: each site keeps its own signal."""

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


@dataclass(frozen=True, eq=False)
class Stack(Basis):
    """Several stacks of the same (m, n), their taps one after the other."""

    parts: tuple[Basis, ...]

    def __post_init__(self) -> None:
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
    def linear(self) -> bool:
        return all(part.linear for part in self.parts)

    @property
    def signature(self) -> Hashable:
        return ("Stack", *(part.signature for part in self.parts))

    @lazy
    def T(self) -> Stack:
        return Stack(tuple(part.T for part in self.parts))

    def expand(self, x: Tensor) -> Tensor:
        # taps beside channels in memory, (*b, m, k, c), so that mixing is one matrix product without a copy
        parts = [part.expand(x).movedim(-3, -2) for part in self.parts]
        return torch.cat(parts, -2).movedim(-2, -3)

    def contract(self, z: Tensor) -> Tensor:
        pieces = z.split([part.shape[0] for part in self.parts], -3)
        total = self.parts[0].contract(pieces[0])
        for part, piece in zip(self.parts[1:], pieces[1:], strict=True):
            total = total + part.contract(piece)
        return total

    def adapted(self, call: Any) -> Basis:
        return Stack(tuple(part.adapted(call) for part in self.parts))

    def fused(self, call: Any) -> Tensor | None:
        return self.parts[0].fused(call)

    def each(self, z: Tensor) -> Tensor:
        """(*b, k, n, c) -> (*b, k, m, c): S_k z_k, tap by tap, where every part can."""
        pieces = z.split([part.shape[0] for part in self.parts], -3)
        return torch.cat([each(part, piece) for part, piece in zip(self.parts, pieces, strict=True)], -3)


@dataclass(frozen=True, eq=False)
class Product(Basis):
    """One stack after another, S_(k, l) = left_k right_l; at least one of them has a single tap."""

    left: Basis
    right: Basis

    def __post_init__(self) -> None:
        if self.left.shape[2] != self.right.shape[1]:
            raise ValueError(
                f"The right structure leads to {self.right.shape[1]} sites, but the left one starts from "
                f"{self.left.shape[2]}."
            )
        if min(self.left.shape[0], self.right.shape[0]) > 1:
            raise ValueError("Only one of two structures in a product may have several taps.")

    @property
    def parts(self) -> tuple[Basis, Basis]:
        return self.left, self.right

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.left.shape[0] * self.right.shape[0], self.left.shape[1], self.right.shape[2]

    @property
    def nnz(self) -> int:
        return self.left.nnz * self.right.shape[0] + self.right.nnz * self.left.shape[0]

    @property
    def linear(self) -> bool:
        return self.left.linear and self.right.linear

    @property
    def signature(self) -> Hashable:
        return "Product", self.left.signature, self.right.signature

    @lazy
    def T(self) -> Product:
        return Product(self.right.T, self.left.T)

    def expand(self, x: Tensor) -> Tensor:
        return self.left.expand(self.right.expand(x)).flatten(-4, -3)

    def contract(self, z: Tensor) -> Tensor:
        if self.right.shape[0] > 1:  # the left one has a single tap
            return self.left.contract(self.right.contract(z).unsqueeze(-3))
        return self.left.contract(self.right.contract(z.unsqueeze(-3)))


def each(S: Basis, z: Tensor) -> Tensor:
    """S_k z_k, tap by tap, of a form that can (`Taps`, `Identity`, and stacks of them)."""
    result: Tensor = S.each(z)  # type: ignore[attr-defined]
    return result
