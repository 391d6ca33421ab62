"""What every form of S promises, and the two smallest forms."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, overload, runtime_checkable

import torch
from torch import Tensor

T = TypeVar("T")


class lazy(Generic[T]):
    """A property computed once for each object.

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
        with torch.inference_mode(False):  # what is kept must serve training too
            value = owner.__dict__[self.name] = self.make(owner)
        return value


@runtime_checkable
class Basis(Protocol):
    """A stack of k structure matrices of shape (m, n)."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(k, m, n): taps, output sites, input sites."""
        ...

    @property
    def nnz(self) -> int:
        """Multiply-adds a channel that `expand` needs: the non-zeros of all taps, or of the steps of a recurrence."""
        ...

    @property
    def linear(self) -> bool:
        """False where a tap reduces with max."""
        ...

    @property
    def signature(self) -> Hashable:
        """What a plan may depend on: form, shape and counts, no numbers."""
        ...

    @property
    def T(self) -> Basis:
        """The stack of the transposed matrices."""
        ...

    def expand(self, x: Tensor) -> Tensor: ...

    def contract(self, z: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Identity:
    """One tap, the identity: each site keeps its own signal."""

    n: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return 1, self.n, self.n

    @property
    def nnz(self) -> int:
        return 0

    @property
    def linear(self) -> bool:
        return True

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


@dataclass(frozen=True, eq=False)
class Stack:
    """Several stacks of the same (m, n), their taps one after the other."""

    parts: tuple[Basis, ...]

    def __post_init__(self) -> None:
        shapes = {part.shape[1:] for part in self.parts}
        if len(shapes) != 1:
            raise ValueError(f"Only structures of one shape (m, n) can be stacked, but these have {sorted(shapes)}.")

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

    @property
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
