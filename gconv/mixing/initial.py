"""Initialisation of weights."""

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
    """An initial weight: uniform in +- 1 / sqrt(fan_in) (torch's rule) or +- sqrt(6 / (i + o)) (Glorot).

    It is stored with the output channel outermost and the tap innermost, as torch's kernels need it, so that they can
    use a view of the weight.
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
    if isinstance(mixing, Separable):  # the fan-in of the filters is `taps`, not i
        with torch.no_grad():
            weight[: mixing.taps] *= 1 / (bound * math.sqrt(mixing.taps))
    return weight
