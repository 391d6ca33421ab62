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

    # -- what the planner and the lowerings ask of a form; a new one overrides what differs ----------------------------

    @property
    def leaves(self) -> tuple[Basis, ...]:
        """The forms that are stacked tap after tap; itself, where nothing is stacked."""
        return (self,)

    @lazy
    def taps_of_leaves(self) -> tuple[int, ...]:
        """How many taps each leaf has."""
        return tuple(leaf.shape[0] for leaf in self.leaves)

    @lazy
    def identities_first(self) -> tuple[int, ...]:
        """The numbers of the leaves, in an order in which sums over them need no copy."""
        return tuple(sorted(range(len(self.leaves)), key=lambda number: not self.leaves[number].is_identity))

    @property
    def count(self) -> int:
        """How many forms it is put together from."""
        return 1

    @property
    def is_identity(self) -> bool:
        """Whether it is the identity, so that its products are what they are made of."""
        return False

    @property
    def gaps(self) -> bool:
        """Whether rows of what `contract_flat` takes may lie apart in memory."""
        return self.shape[0] == 1 and not self.is_identity

    @property
    def learned(self) -> list[Tensor]:
        """The numbers of S that need a gradient."""
        return []

    @property
    def fixed(self) -> bool:
        """Whether S is linear, and none of its numbers needs a gradient."""
        return self.linear and not self.learned

    @property
    def by_entries(self) -> bool:
        """Whether it runs by its sparse entries, in one product for all taps."""
        return True

    @property
    def tapwise(self) -> bool:
        """Whether it has `each`, the products S_k z_k tap by tap."""
        return False

    @property
    def steps(self) -> int:
        """Products of a recurrence, one after the other; 0 without a recurrence."""
        return 0

    @property
    def has_kernel(self) -> bool:
        """Whether a kernel of its own makes all S_k x W_k; see `fused`."""
        return False

    @property
    def unwritten(self) -> int:
        """Entries that are computed by a kernel, and written out only for products other than its own."""
        return 0

    @property
    def is_grid(self) -> bool:
        """Whether it is given by the geometry of a grid, without a list of entries."""
        return False

    @property
    def has_empty_windows(self) -> bool:
        """Whether a maximum is taken over nothing but padding."""
        return False

    @property
    def patterns(self) -> tuple[Any, ...]:
        """The patterns (`gconv.kernels.CSR`) that products have gone through."""
        return ()

    def overhead(self, mixing: Any, many: str = "") -> str:
        """Words for what a call by itself depends on, as `gconv.rates` names them; `many` says if signals are many."""
        return f"{' bare' if mixing.shape is None else ''}{many}"

    def as_sparse(self, dtype: torch.dtype, device: torch.device) -> Basis:
        """The same structure in forms that hold their entries or a recurrence of them."""
        return self

    def entries(self, dtype: torch.dtype, device: torch.device) -> Any:
        """S as `Taps`, differentiable in its numbers; see `gconv.basis.entries`."""
        from gconv.basis.entries import of_dense

        return of_dense(self.expand(torch.eye(self.shape[2], dtype=dtype, device=device)))

    def tap(self, k: int, dtype: torch.dtype, device: torch.device) -> Basis:
        """Tap k of S alone, in a closed form where there is one."""
        one: Basis = self.entries(dtype, device).tap(k, dtype, device)
        return one

    def expand_flat(self, x: Tensor) -> Tensor:
        """All S_k x with taps and channels in one axis, (*b, n, c) -> (*b, m, k c); nothing is recorded."""
        E = self.expand(x)
        return E.squeeze(-3) if E.shape[-3] == 1 else E.movedim(-3, -2).flatten(-2)

    def contract_flat(self, z: Tensor, add: Tensor | None = None, row: Tensor | None = None) -> Tensor:
        """sum_k S_k z_k + add + row, (*b, n, k c) -> (*b, m, c), not recorded; z and add may be overwritten."""
        k = self.shape[0]
        y = self.contract(z.unsqueeze(-3) if k == 1 else z.unflatten(-1, (k, -1)).movedim(-2, -3))
        y = y if add is None else add.add_(y)
        return y if row is None else y.add_(row)

    def rows(self, x: Tensor) -> Callable[[slice, Tensor], Tensor]:
        """A function that gives rows of `expand_flat`, in the tensor that it is given if it likes."""
        whole = self.expand_flat(x)
        return lambda piece, out: whole[piece]

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

    @property
    def count(self) -> int:
        """How many forms it is put together from."""
        return 1

    @property
    def is_identity(self) -> bool:
        return True

    @property
    def tapwise(self) -> bool:
        return True

    def entries(self, dtype: torch.dtype, device: torch.device) -> Any:
        from gconv.basis.entries import identity

        return identity(self.n, dtype, device)

    def expand_flat(self, x: Tensor) -> Tensor:
        return x

    def contract_flat(self, z: Tensor, add: Tensor | None = None, row: Tensor | None = None) -> Tensor:
        y = z if add is None else add.add_(z)
        return y if row is None else y.add_(row)

    def rows(self, x: Tensor) -> Callable[[slice, Tensor], Tensor]:
        return lambda piece, out: x[piece]


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

    @property
    def learned(self) -> list[Tensor]:
        return [values for part in self.parts for values in part.learned]

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
    def has_kernel(self) -> bool:
        return any(part.has_kernel for part in self.parts)

    @property
    def unwritten(self) -> int:
        return sum(part.unwritten for part in self.parts)

    @property
    def is_grid(self) -> bool:
        return any(part.is_grid for part in self.parts)

    @property
    def patterns(self) -> tuple[Any, ...]:
        return tuple(csr for part in self.parts for csr in part.patterns)

    @lazy
    def leaves(self) -> tuple[Basis, ...]:
        return tuple(leaf for part in self.parts for leaf in part.leaves)

    @property
    def fixed(self) -> bool:
        for part in self.parts:  # noqa: SIM110  a loop takes no further frame
            if not part.fixed:
                return False
        return True

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

    def entries(self, dtype: torch.dtype, device: torch.device) -> Any:
        from gconv.basis.entries import stacked

        return stacked([part.entries(dtype, device) for part in self.parts])

    def tap(self, k: int, dtype: torch.dtype, device: torch.device) -> Basis:
        for part in self.parts:
            if k < part.shape[0]:
                return part.tap(k, dtype, device)
            k -= part.shape[0]
        raise IndexError(f"There is no tap {k} beyond the last one.")

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

    @property
    def learned(self) -> list[Tensor]:
        return [values for part in self.parts for values in part.learned]

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

    def entries(self, dtype: torch.dtype, device: torch.device) -> Any:
        from gconv.basis.entries import multiplied

        return multiplied(self.left.entries(dtype, device), self.right.entries(dtype, device))

    def tap(self, k: int, dtype: torch.dtype, device: torch.device) -> Basis:
        right = self.right.shape[0]
        return Product(self.left.tap(k // right, dtype, device), self.right.tap(k % right, dtype, device))


def each(S: Basis, z: Tensor) -> Tensor:
    """S_k z_k, tap by tap, of a form that can (`Taps`, `Identity`, and stacks of them)."""
    result: Tensor = S.each(z)  # type: ignore[attr-defined]
    return result
