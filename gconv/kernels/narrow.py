"""Signals of one channel, several side by side: one walk over the pattern serves them all, and fills a vector."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

LANES = 8  # signals side by side


def serves(x: Tensor) -> bool:
    """Whether x (b, *sites, c) is of such signals, and of enough of them."""
    return x.ndim > 2 and x.shape[-1] == 1 and len(x) >= LANES


def side_by_side(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`run`, from (*sites, c) to (*others, c) channel by channel, for all signals of x (b, *sites, 1)."""
    parts = [run(some.movedim(0, -2).flatten(-2)).movedim(-1, 0) for some in x.split(LANES)]
    y = x.new_empty(len(x), *parts[0].shape[1:], 1)
    for place, part in zip(y.split(LANES), parts, strict=True):
        place.squeeze(-1).copy_(part)
    return y
