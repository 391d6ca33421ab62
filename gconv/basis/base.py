"""Basis: the interface of all forms of S."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar, overload

import torch
from torch import Tensor

from gconv.kernels import lasting

T = TypeVar("T")


class lazy(Generic[T]):
    """A cached property; under torch.compile it is recomputed.

    functools.cached_property is not used because torch.compile cannot trace its lock.
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
    """A stack of k structure matrices of shape (m, n)."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(k, m, n): taps, output sites, input sites."""
        raise NotImplementedError

    @property
    def nnz(self) -> int:
        """Multiply-adds per channel of `expand`: the non-zeros of all taps, or of all steps of a recurrence."""
        raise NotImplementedError

    @property
    def batch(self) -> tuple[int, ...]:
        """The batch shape (*b,) if each signal has its own matrices; () if all signals share them."""
        return ()

    @property
    def linear(self) -> bool:
        """False if a tap reduces with max."""
        return True

    @property
    def signature(self) -> Hashable:
        """What a plan may depend on: form, shape and counts, but no values."""
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

    # -- read by the planner and the lowerings; a new form overrides the defaults that do not apply --------------------

    @property
    def leaves(self) -> tuple[Basis, ...]:
        """The forms of a stack, nested stacks flattened; (self,) for any other form."""
        return (self,)

    @lazy
    def taps_of_leaves(self) -> tuple[int, ...]:
        """How many taps each leaf has."""
        return tuple(leaf.shape[0] for leaf in self.leaves)

    @lazy
    def identities_first(self) -> tuple[int, ...]:
        """The indices of the leaves, identities first, so that later products can be added in place."""
        return tuple(sorted(range(len(self.leaves)), key=lambda number: not self.leaves[number].is_identity))

    @property
    def count(self) -> int:
        """The number of forms that it consists of."""
        return 1

    @property
    def is_identity(self) -> bool:
        """Whether it is the identity, whose products return their argument."""
        return False

    @property
    def gaps(self) -> bool:
        """Whether the rows of the argument of `contract_flat` may have gaps between them in memory."""
        return self.shape[0] == 1 and not self.is_identity

    @property
    def learned(self) -> list[Tensor]:
        """The tensors of S that require a gradient."""
        return []

    @property
    def fixed(self) -> bool:
        """Whether S is linear and the same for all signals, and none of its tensors requires a gradient."""
        return self.linear and not self.learned

    @property
    def by_entries(self) -> bool:
        """Whether it is evaluated by one sparse product for all taps."""
        return True

    @property
    def tapwise(self) -> bool:
        """Whether it has a method `each`, which returns the products S_k z_k tap by tap."""
        return False

    @property
    def steps(self) -> int:
        """Number of sequential products of a recurrence; 0 if it is not one."""
        return 0

    @property
    def has_kernel(self) -> bool:
        """Whether it has a fused kernel for all S_k x W_k; see `fused`."""
        return False

    @property
    def unwritten(self) -> int:
        """Number of entries that have to be computed and stored first, unless the fused kernel is used."""
        return 0

    @property
    def is_grid(self) -> bool:
        """Whether it is defined by the geometry of a grid instead of a list of entries."""
        return False

    def traced_grid(self, native: bool) -> tuple[int, ...] | None:
        """The only input grid for which a torch.jit.trace holds; None if it holds for others or refuses them itself.

        native: whether torch's kernels are traced, which take grids of any size.
        """
        return None

    @property
    def has_empty_windows(self) -> bool:
        """Whether a window contains only padding."""
        return False

    @property
    def patterns(self) -> tuple[Any, ...]:
        """The patterns (`gconv.kernels.CSR`) that have been built for products."""
        return ()

    def overhead(self, mixing: Any, many: str = "") -> str:
        """Words that select the fixed overhead of a call in `gconv.rates`; `many` is " many" for several signals."""
        return f"{' bare' if mixing.shape is None else ''}{many}"

    def as_sparse(self, dtype: torch.dtype, device: torch.device) -> Basis:
        """The same structure in a form with sparse entries."""
        return self

    def entries(self, dtype: torch.dtype, device: torch.device) -> Any:
        """S as `Taps`, differentiable in its values; if None, `gconv.basis.entries` computes them by `expand`."""
        return None

    def tap(self, k: int, dtype: torch.dtype, device: torch.device) -> Basis | None:
        """Tap k of S as a form of its own; if None, `gconv.basis.single` takes it from the entries."""
        return None

    def expand_flat(self, x: Tensor) -> Tensor:
        """All S_k x with taps and channels in one axis, (*b, n, c) -> (*b, m, k c); no autograd."""
        E = self.expand(x)
        return E.squeeze(-3) if E.shape[-3] == 1 else E.movedim(-3, -2).flatten(-2)

    def contract_flat(self, z: Tensor, add: Tensor | None = None, row: Tensor | None = None) -> Tensor:
        """sum_k S_k z_k + add + row, (*b, n, k c) -> (*b, m, c); no autograd.

        Args:
            z: (*b, n, k c); may be overwritten.
            add: (*b, m, c); may be overwritten.
            row: (c,), added to each row.
        """
        k = self.shape[0]
        y = self.contract(z.unsqueeze(-3) if k == 1 else z.unflatten(-1, (k, -1)).movedim(-2, -3))
        y = y if add is None else add.add_(y)
        return y if row is None else y.add_(row)

    def rows(self, x: Tensor) -> Callable[[slice, Tensor], Tensor]:
        """A function (slice, out) that returns these rows of `expand_flat(x)`; it may use `out` for the result."""
        whole = self.expand_flat(x)
        return lambda piece, out: whole[piece]

    def adapted(self, call: Any) -> Basis:
        """The same structure; one that depends on products x W_k takes those of this call (a `gconv.call.Call`)."""
        return self

    def fused(self, call: Any) -> Tensor | None:
        """(*b, k, m, c) all S_k x W_k by a fused kernel, if S was computed from this call's x W_k; else None."""
        return None
