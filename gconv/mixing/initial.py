"""Weights to start from."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from gconv.mixing.base import Mixing, Parametrised
from gconv.mixing.elementary import Separable


def initial_weight(
    mixing: Mixing | Parametrised,
    init: Literal["fan_in", "glorot"],
    dtype: torch.dtype | None,
    device: torch.device | str | None,
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
        i: int = getattr(mixing, "i")  # noqa: B009
        bound = math.sqrt(6 / max(1, i + mixing.channels(i)))
    else:
        bound = 1 / math.sqrt(max(1, mixing.fan_in))
    weight = stored.uniform_(-bound, bound).permute([kept.index(axis) for axis in order])
    if isinstance(mixing, Separable):  # each filter sees taps numbers, not i
        with torch.no_grad():
            weight[: mixing.taps] *= 1 / (bound * math.sqrt(mixing.taps))
    return weight
