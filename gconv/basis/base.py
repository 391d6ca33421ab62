"""What every form of S promises."""

from __future__ import annotations

from collections.abc import Callable, Hashable
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
    def batch(self) -> tuple[int, ...]:
        """The shape (*b,) of the signals that each have matrices of their own; () where all have the same."""
        return ()

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
        """Whether S is linear and the same for all signals, and none of its numbers needs a gradient."""
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
        """S as `Taps`, differentiable in its numbers; None: `gconv.basis.entries` finds them by `expand`."""
        return None

    def tap(self, k: int, dtype: torch.dtype, device: torch.device) -> Basis | None:
        """Tap k of S alone in a closed form; None without one: `gconv.basis.single` takes it from the entries."""
        return None

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
