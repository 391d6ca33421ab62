"""Block matrices with some blocks learned and the others zero; and the concatenation of all taps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gconv.arguments import shown
from gconv.mixing.base import Mixing, Parametrised, check_number
from gconv.mixing.elementary import Dense
from gconv.mixing.fixed import SideBySide


@dataclass(frozen=True)
class Blocks(Parametrised):
    """Matrices W_k in blocks of (p, q) channels: the listed blocks are learned, the others are zero.

    Args:
        k, i, o: taps, channels in, channels out.
        p, q: channels in and out of a block.
        places: for each learned block (tap, block row, block column). The weight is (len(places), p, q).

    >>> halves = Blocks(1, 4, 2, 2, 1, ((0, 0, 0), (0, 1, 1)))  # each output depends on two of the inputs
    >>> halves.plain(torch.ones(2, 2, 1))[1][0].mT
    tensor([[1., 1., 0., 0.],
            [0., 0., 1., 1.]])
    """

    k: int
    i: int
    o: int
    p: int
    q: int
    places: tuple[tuple[int, int, int], ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("channels into a block", self.p)
        check_number("channels out of a block", self.q)
        if self.i % self.p or self.o % self.q:
            raise ValueError(f"Blocks of ({self.p}, {self.q}) channels must divide ({self.i}, {self.o}) channels.")
        sizes = self.k, self.i // self.p, self.o // self.q
        for place in self.places:
            if len(place) != 3 or not all(
                type(at) is int and 0 <= at < size for at, size in zip(place, sizes, strict=True)
            ):
                raise ValueError(
                    f"A place (tap, block row, block column) must be below {sizes}, but one is {shown(place)}."
                )
        if len({*self.places}) < len(self.places):
            raise ValueError("A place of a block is given twice, but each block has a single weight.")

    @property
    def taps(self) -> int:
        return self.k

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.places), self.p, self.q

    @property
    def fan_in(self) -> int:
        return self.p

    def plain(self, W: Tensor) -> tuple[Mixing, Tensor]:
        tap, row, col = torch.tensor(self.places, dtype=torch.int64, device=W.device).reshape(-1, 3).t()
        grid = W.new_zeros(self.taps, self.i // self.p, self.o // self.q, self.p, self.q)
        placed = grid.index_put((tap, row, col), W, accumulate=True)
        return Dense(self.taps, self.i, self.o), placed.transpose(2, 3).reshape(self.taps, self.i, self.o)


@dataclass(frozen=True)
class Beside(SideBySide):
    """Each tap writes one block of the output: Y = [S_0 X | S_1 X | ...], o = k i.

    W_t is the (i, k i) matrix that writes channel c to t i + c. With `fold` it is the adjoint, from k i channels to i.
    """

    def gather(self, E: Tensor, W: Tensor | None) -> Tensor:
        if self.fold:
            return E.unflatten(-1, (self.taps, -1)).diagonal(dim1=-4, dim2=-2).sum(-1)
        return E.movedim(-3, -2).flatten(-2)

    def spread(self, X: Tensor, W: Tensor | None) -> Tensor:
        return X.unflatten(-1, (self.taps, -1)).movedim(-2, -3) if self.fold else super().spread(X, W)

    def unfolded(self, i: int) -> Tensor:
        return torch.einsum("tk,ic->tikc", torch.eye(self.taps), torch.eye(i)).flatten(2)
