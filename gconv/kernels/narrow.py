"""Interleaving of single-channel signals, so that one pass over the pattern handles eight of them by SIMD."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

LANES = 8  # signals that are interleaved


def supports(x: Tensor) -> bool:
    """Whether x (b, *sites, c) is a batch of enough single-channel signals."""
    return x.ndim > 2 and x.shape[-1] == 1 and len(x) >= LANES


def interleaved(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Applies `run`, (*sites, c) -> (*sites', c) for each channel, to all signals of x (b, *sites, 1) as channels."""
    parts = [run(chunk.movedim(0, -2).flatten(-2)).movedim(-1, 0) for chunk in x.split(LANES)]
    y = x.new_empty(len(x), *parts[0].shape[1:], 1)
    for place, part in zip(y.split(LANES), parts, strict=True):
        place.squeeze(-1).copy_(part)
    return y
