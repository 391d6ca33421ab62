"""Mixings with nothing to learn: channels pass as they are, change places, or are laid side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gconv.basis import Basis, each
from gconv.errors import InputError
from gconv.mixing.base import Mixing, expect


@dataclass(frozen=True)
class Fixed:
    """Channels pass as they are: W_k = I for every tap (pooling, propagation). Any number of channels."""

    taps: int = 1

    apart: ClassVar[bool] = False

    @property
    def shape(self) -> None:
        return None

    @property
    def fan_in(self) -> int:
        return self.taps

    def channels(self, i: int) -> int:
        return i

    def gather(self, E: Tensor, W: Tensor | None) -> Tensor:
        return E.squeeze(-3) if self.taps == 1 else E.sum(-3)

    def spread(self, X: Tensor, W: Tensor | None) -> Tensor:
        return X.unsqueeze(-3).expand(*X.shape[:-2], self.taps, *X.shape[-2:])

    def collect(self, S: Basis, Z: Tensor) -> Tensor:
        return S.contract(Z)

    def dense(self, W: Tensor | None, i: int) -> Tensor:
        return torch.eye(i).expand(self.taps, i, i)

    def transpose(self, W: Tensor | None, i: int) -> tuple[Mixing, Tensor | None]:
        return self, None

    def width(self, i: int) -> int:
        return self.taps * i

    def flops(self, sites: int, i: int) -> int:
        return 2 * sites * self.taps * i


@dataclass(frozen=True)
class Patches:
    """What each tap reads is laid beside the others: o = i k, channel c of tap t becomes channel c k + t.

    W_t is the (i, i k) matrix that writes channel c to c k + t. With `fold` it is the adjoint, from i k channels to i.
    """

    taps: int
    fold: bool = False

    shape: ClassVar[None] = None

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
                f"Folding {self.taps} taps takes a multiple of {self.taps} channels, but the signal has {i}."
            )
        return i // self.taps

    def gather(self, E: Tensor, W: Tensor | None) -> Tensor:
        if self.fold:
            return E.unflatten(-1, (-1, self.taps)).diagonal(dim1=-4, dim2=-1).sum(-1)
        return E.movedim(-3, -1).flatten(-2)

    def spread(self, X: Tensor, W: Tensor | None) -> Tensor:
        if self.fold:
            return X.unflatten(-1, (-1, self.taps)).movedim(-1, -3)
        return X.unsqueeze(-3).expand(*X.shape[:-2], self.taps, *X.shape[-2:])

    def collect(self, S: Basis, Z: Tensor) -> Tensor:
        if self.fold:
            return S.contract(Z)
        return self.gather(each(S, Z), None)

    def dense(self, W: Tensor | None, i: int) -> Tensor:
        if self.fold:
            return Patches(self.taps).dense(None, i // self.taps).mT
        k, at = torch.eye(self.taps), torch.eye(i)
        return torch.einsum("tk,ic->tick", k, at).flatten(2)

    def transpose(self, W: Tensor | None, i: int) -> tuple[Mixing, Tensor | None]:
        return Patches(self.taps, not self.fold), None

    def width(self, i: int) -> int:
        return i if self.fold else i * self.taps

    def flops(self, sites: int, i: int) -> int:
        return sites * i


@dataclass(frozen=True)
class Shuffled:
    """One tap; channels in g rows are read off by columns: channel r (i / g) + c becomes channel c g + r."""

    i: int
    groups: int

    taps: ClassVar[int] = 1
    shape: ClassVar[None] = None
    fan_in: ClassVar[int] = 1
    apart: ClassVar[bool] = False

    def __post_init__(self) -> None:
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

    def collect(self, S: Basis, Z: Tensor) -> Tensor:
        return S.contract(Z)

    def dense(self, W: Tensor | None, i: int) -> Tensor:
        return self._shuffle(torch.eye(i)).unsqueeze(0)

    def transpose(self, W: Tensor | None, i: int) -> tuple[Mixing, Tensor | None]:
        return Shuffled(self.i, self.i // self.groups), None

    def width(self, i: int) -> int:
        return i

    def flops(self, sites: int, i: int) -> int:
        return sites * i
