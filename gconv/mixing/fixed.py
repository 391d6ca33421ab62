"""Mixings without a weight: the identity, permutations, and concatenations of the taps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gconv.arguments import plural
from gconv.basis import Basis, each
from gconv.errors import InputError
from gconv.mixing.base import Mixing, check_channels, check_number, expect


@dataclass(frozen=True)
class Fixed(Mixing):
    """W_k = I for every tap (pooling, propagation), for any number of channels."""

    taps: int = 1

    shape = None

    def __post_init__(self) -> None:
        check_number("taps", self.taps)

    @property
    def fan_in(self) -> int:
        return self.taps

    def channels(self, i: int) -> int:
        return i

    def gather(self, E: Tensor, W: Tensor | None) -> Tensor:
        return E.squeeze(-3) if self.taps == 1 else E.sum(-3)

    def spread(self, X: Tensor, W: Tensor | None) -> Tensor:
        return X.unsqueeze(-3).expand(*X.shape[:-2], self.taps, *X.shape[-2:])

    def dense(self, W: Tensor | None, i: int) -> Tensor:
        return torch.eye(i).expand(self.taps, i, i)

    def transpose(self, W: Tensor | None, i: int) -> tuple[Mixing, Tensor | None]:
        return self, None

    def flops(self, sites: int, i: int) -> int:
        return 2 * sites * self.taps * i


@dataclass(frozen=True)
class SideBySide(Mixing):
    """Each tap writes its own channels of the output, o = k i; with `fold` the adjoint, from k i channels to i."""

    taps: int
    fold: bool = False

    shape = None

    def __post_init__(self) -> None:
        check_number("taps", self.taps)

    @property
    def apart(self) -> bool:
        return not self.fold

    @property
    def fan_in(self) -> int:
        return self.taps

    def channels(self, i: int) -> int:
        if not self.fold:
            return i * self.taps
        if i % self.taps:
            raise InputError(
                f"Folding {plural(self.taps, 'tap')} takes a multiple of {self.taps} channels, but the signal has {i}."
            )
        return i // self.taps

    def spread(self, X: Tensor, W: Tensor | None) -> Tensor:
        return X.unsqueeze(-3).expand(*X.shape[:-2], self.taps, *X.shape[-2:])

    def collect(self, S: Basis, Z: Tensor) -> Tensor:
        return S.contract(Z) if self.fold else self.gather(each(S, Z), None)

    def unfolded(self, i: int) -> Tensor:
        """(k, i, k i) the matrices without `fold`."""
        raise NotImplementedError

    def dense(self, W: Tensor | None, i: int) -> Tensor:
        return self.unfolded(i // self.taps).mT if self.fold else self.unfolded(i)

    def transpose(self, W: Tensor | None, i: int) -> tuple[Mixing, Tensor | None]:
        return type(self)(self.taps, not self.fold), None

    def width(self, i: int) -> int:
        return i if self.fold else i * self.taps

    def flops(self, sites: int, i: int) -> int:
        return sites * i


@dataclass(frozen=True)
class Patches(SideBySide):
    """The taps of each channel are consecutive: o = i k.

    W_t is the (i, i k) matrix that writes channel c to c k + t. With `fold` it is the adjoint, from i k channels to i.
    """

    def gather(self, E: Tensor, W: Tensor | None) -> Tensor:
        if self.fold:
            return E.unflatten(-1, (-1, self.taps)).diagonal(dim1=-4, dim2=-1).sum(-1)
        return E.movedim(-3, -1).flatten(-2)

    def spread(self, X: Tensor, W: Tensor | None) -> Tensor:
        return X.unflatten(-1, (-1, self.taps)).movedim(-1, -3) if self.fold else super().spread(X, W)

    def unfolded(self, i: int) -> Tensor:
        return torch.einsum("tk,ic->tick", torch.eye(self.taps), torch.eye(i)).flatten(2)


@dataclass(frozen=True)
class Shuffled(Mixing):
    """One tap that permutes the channels: channel r (i / g) + c becomes channel c g + r."""

    i: int
    groups: int

    taps = 1
    shape = None
    fan_in = 1

    def __post_init__(self) -> None:
        check_channels(self.i, self.i)
        check_number("groups", self.groups, 0)
        if self.groups < 1 or self.i % self.groups:
            raise ValueError(f"groups must divide the channels, but {self.groups} does not divide {self.i}.")

    def channels(self, i: int) -> int:
        expect(i, self.i)
        return i

    def _shuffle(self, X: Tensor) -> Tensor:
        return X.unflatten(-1, (self.groups, -1)).mT.flatten(-2)

    def gather(self, E: Tensor, W: Tensor | None) -> Tensor:
        return self._shuffle(E.squeeze(-3))

    def spread(self, X: Tensor, W: Tensor | None) -> Tensor:
        return self._shuffle(X).unsqueeze(-3)

    def dense(self, W: Tensor | None, i: int) -> Tensor:
        return self._shuffle(torch.eye(i)).unsqueeze(0)

    def transpose(self, W: Tensor | None, i: int) -> tuple[Mixing, Tensor | None]:
        return Shuffled(self.i, self.i // self.groups), None

    def flops(self, sites: int, i: int) -> int:
        return sites * i
