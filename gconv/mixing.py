"""W: what happens to the channels on the way through each tap.

Each mixing is a description without numbers; the weight travels beside it. Two ways to apply it, one for each
association of the triple product S X W:

    gather(E, W)    (*b, k, m, i) -> (*b, m, o)      after the structure: sum_k E_k W_k
    spread(X, W)    (*b, n, i) -> (*b, k, n, o_k)    before the structure: X W_k
    collect(S, Z)   (*b, k, n, o_k) -> (*b, m, o)    then the structure: sum_k S_k Z_k
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from gconv.basis import Basis, Taps


class Mixing(Protocol):
    """The channel part of an operator with `taps` taps, from i to o channels."""

    @property
    def taps(self) -> int: ...

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of the weight; None where there is nothing to learn."""
        ...

    @property
    def fan_in(self) -> int: ...

    def channels(self, i: int) -> int:
        """Channels out for i channels in.

        Raises:
            ValueError: if this mixing expects another number of channels.
        """
        ...

    def gather(self, E: Tensor, W: Tensor | None) -> Tensor: ...

    def spread(self, X: Tensor, W: Tensor | None) -> Tensor: ...

    def collect(self, S: Basis, Z: Tensor) -> Tensor: ...

    def dense(self, W: Tensor | None, i: int) -> Tensor:
        """The plain (k, i, o) weight that does the same."""
        ...

    def transpose(self, W: Tensor | None, i: int) -> tuple[Mixing, Tensor | None]:
        """The mixing and weight of the adjoint."""
        ...

    def width(self, i: int) -> int:
        """Channels that a transform-first structure product carries, all taps together."""
        ...

    def flops(self, sites: int, i: int) -> int:
        """Multiply-adds, times two, to mix the channels at `sites` sites, all taps together."""
        ...


def _expect(given: int, wanted: int) -> None:
    if given != wanted:
        raise ValueError(f"This operator takes {wanted} channels in, but the signal has {given}.")


def _channels(i: int, o: int) -> None:
    for name, value in (("in", i), ("out", o)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"The number of channels {name} must be a positive integer, but it is {value!r}.")


@dataclass(frozen=True)
class Dense:
    """Every output channel sees every input channel: W (k, i, o).

    Args:
        taps, i, o: taps, channels in, channels out.
        scale: a fixed factor on the weight (the mean over heads is 1 / k).
    """

    taps: int
    i: int
    o: int
    scale: float = 1.0

    def __post_init__(self) -> None:
        _channels(self.i, self.o)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.taps, self.i, self.o

    @property
    def fan_in(self) -> int:
        return self.taps * self.i

    def channels(self, i: int) -> int:
        _expect(i, self.i)
        return self.o

    def _scaled(self, W: Tensor) -> Tensor:
        return W if self.scale == 1.0 else W * self.scale

    def gather(self, E: Tensor, W: Tensor | None) -> Tensor:
        assert W is not None
        W = self._scaled(W)
        if self.taps == 1:
            return E.squeeze(-3) @ W[0]
        return E.movedim(-3, -2).flatten(-2) @ W.flatten(0, 1)

    def spread(self, X: Tensor, W: Tensor | None) -> Tensor:
        assert W is not None
        W = self._scaled(W)
        if self.taps == 1:
            return (X @ W[0]).unsqueeze(-3)
        wide = X @ W.movedim(0, 1).flatten(1)
        return wide.unflatten(-1, (self.taps, self.o)).movedim(-2, -3)

    def collect(self, S: Basis, Z: Tensor) -> Tensor:
        return S.contract(Z)

    def dense(self, W: Tensor | None, i: int) -> Tensor:
        assert W is not None
        return self._scaled(W)

    def transpose(self, W: Tensor | None, i: int) -> tuple[Mixing, Tensor | None]:
        assert W is not None
        return Dense(self.taps, self.o, self.i, self.scale), W.mT

    def width(self, i: int) -> int:
        return self.taps * self.o

    def flops(self, sites: int, i: int) -> int:
        return 2 * sites * self.taps * self.i * self.o


@dataclass(frozen=True)
class Grouped:
    """Channels in g groups that do not meet: W (k, g, i/g, o/g); depthwise where g = i.

    Raises:
        ValueError: if the groups do not divide both numbers of channels.
    """

    taps: int
    i: int
    o: int
    groups: int

    def __post_init__(self) -> None:
        _channels(self.i, self.o)
        if self.groups < 1 or self.i % self.groups or self.o % self.groups:
            raise ValueError(
                f"groups must divide the channels in and out, "
                f"but {self.groups} does not divide both {self.i} and {self.o}."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        return self.taps, self.groups, self.i // self.groups, self.o // self.groups

    @property
    def fan_in(self) -> int:
        return self.taps * self.i // self.groups

    def channels(self, i: int) -> int:
        _expect(i, self.i)
        return self.o

    def gather(self, E: Tensor, W: Tensor | None) -> Tensor:
        assert W is not None
        split = E.unflatten(-1, (self.groups, -1))
        return torch.einsum("...kmgi,kgio->...mgo", split, W).flatten(-2)

    def spread(self, X: Tensor, W: Tensor | None) -> Tensor:
        assert W is not None
        split = X.unflatten(-1, (self.groups, -1))
        return torch.einsum("...ngi,kgio->...kngo", split, W).flatten(-2)

    def collect(self, S: Basis, Z: Tensor) -> Tensor:
        return S.contract(Z)

    def dense(self, W: Tensor | None, i: int) -> Tensor:
        assert W is not None
        return torch.stack([torch.block_diag(*blocks) for blocks in W.unbind(0)])

    def transpose(self, W: Tensor | None, i: int) -> tuple[Mixing, Tensor | None]:
        assert W is not None
        return Grouped(self.taps, self.o, self.i, self.groups), W.mT

    def width(self, i: int) -> int:
        return self.taps * self.o

    def flops(self, sites: int, i: int) -> int:
        return 2 * sites * self.taps * self.i * self.o // self.groups


@dataclass(frozen=True)
class Heads:
    """Each tap writes its own block of the output: W (k, i, c), Y = [S_0 X W_0 | S_1 X W_1 | ...], o = k c.

    In the formula, W_k is the (i, o) matrix that is zero outside of block k.
    """

    taps: int
    i: int
    c: int

    def __post_init__(self) -> None:
        _channels(self.i, self.c)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.taps, self.i, self.c

    @property
    def fan_in(self) -> int:
        return self.i

    def channels(self, i: int) -> int:
        _expect(i, self.i)
        return self.taps * self.c

    def gather(self, E: Tensor, W: Tensor | None) -> Tensor:
        assert W is not None
        return (E @ W).movedim(-3, -2).flatten(-2)

    def spread(self, X: Tensor, W: Tensor | None) -> Tensor:
        assert W is not None
        wide = X @ W.movedim(0, 1).flatten(1)
        return wide.unflatten(-1, (self.taps, self.c)).movedim(-2, -3)

    def collect(self, S: Basis, Z: Tensor) -> Tensor:
        assert isinstance(S, Taps)
        return S.each(Z).movedim(-3, -2).flatten(-2)

    def dense(self, W: Tensor | None, i: int) -> Tensor:
        assert W is not None
        blocks = torch.eye(self.taps, dtype=W.dtype, device=W.device)
        return torch.einsum("kic,kh->kihc", W, blocks).flatten(2)

    def transpose(self, W: Tensor | None, i: int) -> tuple[Mixing, Tensor | None]:
        return Dense(self.taps, self.taps * self.c, self.i), self.dense(W, i).mT

    def width(self, i: int) -> int:
        return self.taps * self.c

    def flops(self, sites: int, i: int) -> int:
        return 2 * sites * self.taps * self.i * self.c


@dataclass(frozen=True)
class Fixed:
    """Channels pass as they are: W_k = I for every tap (pooling, propagation). Any number of channels."""

    taps: int = 1

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
class Shared:
    """One matrix for all taps: W (i, o), Y = (sum_k S_k X) W."""

    taps: int
    i: int
    o: int

    def __post_init__(self) -> None:
        _channels(self.i, self.o)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.i, self.o

    @property
    def fan_in(self) -> int:
        return self.i

    def channels(self, i: int) -> int:
        _expect(i, self.i)
        return self.o

    def gather(self, E: Tensor, W: Tensor | None) -> Tensor:
        assert W is not None
        return E.sum(-3) @ W

    def spread(self, X: Tensor, W: Tensor | None) -> Tensor:
        assert W is not None
        Z = X @ W
        return Z.unsqueeze(-3).expand(*Z.shape[:-2], self.taps, *Z.shape[-2:])

    def collect(self, S: Basis, Z: Tensor) -> Tensor:
        return S.contract(Z)

    def dense(self, W: Tensor | None, i: int) -> Tensor:
        assert W is not None
        return W.expand(self.taps, self.i, self.o)

    def transpose(self, W: Tensor | None, i: int) -> tuple[Mixing, Tensor | None]:
        assert W is not None
        return Shared(self.taps, self.o, self.i), W.mT

    def width(self, i: int) -> int:
        return self.taps * self.o

    def flops(self, sites: int, i: int) -> int:
        return 2 * sites * self.i * self.o


@dataclass(frozen=True)
class Separable:
    """A filter a channel, then one matrix: W_k = diag(d_k) P, a mixing of low rank (MobileNet's separable convolution).

    The weight is (k + o, i): the k rows d_k, then P^T.
    """

    taps: int
    i: int
    o: int

    def __post_init__(self) -> None:
        _channels(self.i, self.o)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.taps + self.o, self.i

    @property
    def fan_in(self) -> int:
        return self.i

    def channels(self, i: int) -> int:
        _expect(i, self.i)
        return self.o

    def split(self, W: Tensor) -> tuple[Tensor, Tensor]:
        """d (k, i) and P (i, o)."""
        return W[: self.taps], W[self.taps :].mT

    def gather(self, E: Tensor, W: Tensor | None) -> Tensor:
        assert W is not None
        d, P = self.split(W)
        return (E * d.unsqueeze(-2)).sum(-3) @ P

    def spread(self, X: Tensor, W: Tensor | None) -> Tensor:
        assert W is not None
        d, P = self.split(W)
        return (X.unsqueeze(-3) * d.unsqueeze(-2)) @ P

    def collect(self, S: Basis, Z: Tensor) -> Tensor:
        return S.contract(Z)

    def dense(self, W: Tensor | None, i: int) -> Tensor:
        assert W is not None
        d, P = self.split(W)
        return d.unsqueeze(-1) * P

    def transpose(self, W: Tensor | None, i: int) -> tuple[Mixing, Tensor | None]:
        return Dense(self.taps, self.o, self.i), self.dense(W, i).mT

    def width(self, i: int) -> int:
        return self.taps * self.o

    def flops(self, sites: int, i: int) -> int:
        return 2 * sites * self.i * (self.taps + self.o)


def initial_weight(
    mixing: Mixing, init: Literal["fan_in", "glorot"], dtype: torch.dtype | None, device: torch.device | str | None
) -> Tensor | None:
    """A weight to start from: uniform in +- 1 / sqrt(fan_in) (torch's rule) or +- sqrt(6 / (i + o)) (Glorot's).

    Stored with the output channel outermost and the tap innermost, which is how torch's kernels want it: to them the
    weight is then a view, not a copy.
    """
    if mixing.shape is None:
        return None
    order = list(range(len(mixing.shape)))
    # (k, ..., i, o) is kept as (..., o, i, k); without a tap axis as (o, i)
    kept = [*order[1:-2], order[-1], order[-2], 0] if len(order) > 2 else order[::-1]
    stored = torch.empty([mixing.shape[axis] for axis in kept], dtype=dtype, device=device)
    if init == "glorot":
        i: int = mixing.i  # type: ignore[attr-defined]
        bound = math.sqrt(6 / max(1, i + mixing.channels(i)))
    else:
        bound = 1 / math.sqrt(max(1, mixing.fan_in))
    weight = stored.uniform_(-bound, bound).permute([kept.index(axis) for axis in order])
    if isinstance(mixing, Separable):  # each filter sees taps numbers, not i
        with torch.no_grad():
            weight[: mixing.taps] *= 1 / (bound * math.sqrt(mixing.taps))
    return weight
