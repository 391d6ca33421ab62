"""The mean over heads plus a term for the node itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gconv.mixing.base import Mixing, Parametrised, check_number
from gconv.mixing.elementary import Dense


@dataclass(frozen=True)
class AveragedHeads(Parametrised):
    """The mean over heads plus a term for the node itself: Y = 1 / h (S_1 X W_1 + ... + S_h X W_h) + X W_(h+1).

    The weight is (heads + 1, i, o); the last matrix is not divided by the number of heads.
    """

    heads: int
    i: int
    o: int

    def __post_init__(self) -> None:
        check_number("heads", self.heads)
        super().__post_init__()

    @property
    def taps(self) -> int:
        return self.heads + 1

    @property
    def shape(self) -> tuple[int, ...]:
        return self.taps, self.i, self.o

    def plain(self, W: Tensor) -> tuple[Mixing, Tensor]:
        return Dense(self.taps, self.i, self.o), torch.cat([W[: self.heads] / self.heads, W[self.heads :]])
